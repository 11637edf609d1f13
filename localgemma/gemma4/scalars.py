"""Strings and numbers of a JSON schema as shapes; what of them no automaton holds is named."""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from localgemma.errors import UsageError
from localgemma.gemma4.automaton import Automaton, TooLarge, both, lengths
from localgemma.gemma4.formats import FORMATS
from localgemma.gemma4.numbers import numbers
from localgemma.gemma4.regex import UnsupportedPattern, pattern, whole
from localgemma.gemma4.shapes import Figure, Words

_BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
_LONGEST_PATTERN = 2000


def words(schema: Mapping[str, Any], where: str, loose: list[str]) -> Words:
    """A string's shape. What it cannot hold goes to `loose`."""
    found: Automaton | None = None
    for name in ("format", "pattern", "length"):
        for each in _spellings(schema, name, where, loose):
            try:
                found = each if found is None else both(found, each)
            except TooLarge:
                loose.append(f"{name} at {where}: too large together with the rest")
    return Words(found)


def _spellings(schema: Mapping[str, Any], name: str, where: str, loose: list[str]) -> list[Automaton]:
    """What one keyword asks of a string."""
    if name == "length":
        return _lengths(schema, where, loose)
    given = schema.get(name)
    values = [] if given is None else given if isinstance(given, tuple) else (given,)  # a tuple where schemas were merged
    found: list[Automaton] = []
    for value in values:
        if not isinstance(value, str):
            raise UsageError(f"{name} at {where[:200]} is no string.", "Correct the schema.")
        try:
            if name == "format" and value in FORMATS:
                found.append(whole(FORMATS[value]))
            elif name == "format":
                loose.append(f"format {value} at {where}")
            elif len(value) > _LONGEST_PATTERN:
                raise UnsupportedPattern(f"more than {_LONGEST_PATTERN:,} characters")
            else:
                found.append(pattern(value))
        except TooLarge:
            loose.append(f"{name} at {where}: too large")
        except UnsupportedPattern as error:
            loose.append(f"{name} at {where}: {error}")
    return found


def _lengths(schema: Mapping[str, Any], where: str, loose: list[str]) -> list[Automaton]:
    least, most = schema.get("minLength", 0), schema.get("maxLength")
    for value in (least, most):
        if value is not None and not (isinstance(value, int | float) and value >= 0 and value == int(value)):
            raise UsageError(f"minLength or maxLength at {where[:200]} is no count.", "Correct the schema.")
    found: list[Automaton] = []
    if most is not None and most < least:
        return [Automaton((), frozenset())]
    for name, low, high in (("minLength", int(least), None), ("maxLength", 0, most)):
        if not low and high is None:
            continue
        try:
            found.append(lengths(low, None if high is None else int(high)))
        except TooLarge:
            loose.append(f"{name} at {where}: too large")
    return found


def figure(schema: Mapping[str, Any], integer: bool, where: str, loose: list[str]) -> Figure:
    """A number's shape. What it cannot hold goes to `loose`."""
    bounds: list[tuple[str, Decimal]] = []
    for name, sign in _BOUNDS.items():
        value = schema.get(name)
        if isinstance(value, bool):  # draft 4: it makes the other bound exclusive
            continue
        if value is not None:
            exclusive = schema.get("exclusive" + name.capitalize()) is True
            bounds.append((sign[0] if exclusive else sign, _decimal(value, f"{name} at {where}")))
    given = schema.get("multipleOf")
    steps = (
        []
        if given is None
        else [_decimal(each, f"multipleOf at {where}") for each in (given if isinstance(given, tuple) else (given,))]
    )
    try:
        spelling, left = numbers(integer, bounds, steps)
    except TooLarge:
        loose += [f"{name} at {where}: too large" for name in _BOUNDS if name in schema]
        spelling, left = numbers(integer, [])[0], steps
    loose += [f"multipleOf {step} at {where}" for step in left]
    return Figure(spelling)


def _decimal(value: Any, what: str) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UsageError(f"{what[:200]} is no number.", "Correct the schema.")
    return Decimal(str(value))


def spelled(value: int | float) -> str | None:
    """A number as the grammars write it: no exponent; None for what has no such form, and for true and false."""
    if isinstance(value, bool) or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if isinstance(value, int):
        return str(value) if abs(value) < 10**40 else None
    text = format(Decimal(repr(value)), "f")
    return (text.rstrip("0").rstrip(".") or "0") if "." in text else text
