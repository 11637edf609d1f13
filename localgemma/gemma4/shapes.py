"""What a JSON schema allows, as a graph of shapes: the form between a schema and a grammar."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from localgemma.gemma4.automaton import Automaton, TooLarge, both


@dataclass(eq=False, slots=True)
class Words:
    """A string; None is any."""

    spelling: Automaton | None = None


@dataclass(eq=False, slots=True)
class Figure:
    """A number by its decimal digits."""

    spelling: Automaton


@dataclass(eq=False, slots=True)
class Exactly:
    """One of some values, of any kind."""

    values: tuple[Any, ...]


@dataclass(eq=False, slots=True)
class Items:
    """A list: `first` in their places, then any number of `rest` (None: no more); `least` to `most` in all."""

    first: tuple[Shape, ...] = ()
    rest: Shape | None = None
    least: int = 0
    most: int | None = None


@dataclass(eq=False, slots=True)
class Entries:
    """A mapping: `fields` by name, and `least` to `most` others of shape `others` whose names are spelled as `names` says."""

    fields: dict[str, Shape] = field(default_factory=dict)
    required: frozenset[str] = frozenset()
    others: Shape | None = None
    names: Automaton | None = None
    least: int = 0
    most: int | None = None


@dataclass(eq=False, slots=True)
class AnyOf:
    """One of several shapes. Shapes that contain themselves do it through one of these."""

    options: list[Shape] = field(default_factory=list)


Shape: TypeAlias = Words | Figure | Exactly | Items | Entries | AnyOf


def _children(shape: Shape) -> list[Shape]:
    if isinstance(shape, Items):
        return [*shape.first, *([shape.rest] if shape.rest else [])]
    if isinstance(shape, Entries):
        return [*shape.fields.values(), *([shape.others] if shape.others else [])]
    return list(shape.options) if isinstance(shape, AnyOf) else []


def every(root: Shape) -> list[Shape]:
    """The shape and all that are in it, each once."""
    found, seen = [root], {id(root)}
    for shape in found:
        for child in _children(shape):
            if id(child) not in seen:
                seen.add(id(child))
                found.append(child)
    return found


def prune(root: Shape) -> bool:
    """Take out what no finite value can have; False where nothing is left of the shape itself."""
    shapes = every(root)
    possible: set[int] = set()

    def can(shape: Shape | None) -> bool:
        return shape is not None and id(shape) in possible

    def fits(shape: Shape) -> bool:
        if isinstance(shape, Words | Figure):
            return shape.spelling is None or not shape.spelling.empty
        if isinstance(shape, Exactly):
            return bool(shape.values)
        if isinstance(shape, AnyOf):
            return any(map(can, shape.options))
        if isinstance(shape, Items):
            needed = shape.first[: shape.least]
            return all(map(can, needed)) and (len(needed) == shape.least or can(shape.rest)) and shape.most != -1
        return all(can(shape.fields.get(name)) for name in shape.required) and (not shape.least or can(shape.others))

    while True:
        more = {id(shape) for shape in shapes if id(shape) not in possible and fits(shape)}
        if not more:
            break
        possible |= more
    for shape in shapes:
        if isinstance(shape, AnyOf):
            shape.options = [option for option in shape.options if can(option)]
        elif isinstance(shape, Entries):
            shape.fields = {name: value for name, value in shape.fields.items() if can(value)}
            shape.others = shape.others if can(shape.others) else None
        elif isinstance(shape, Items):
            good = next((at for at, each in enumerate(shape.first) if not can(each)), len(shape.first))
            shape.rest = shape.rest if can(shape.rest) and good == len(shape.first) else None
            shape.first = shape.first[:good]
    return can(root)


def apart(one: Shape, other: Shape, depth: int = 4) -> bool:
    """Whether it is certain that no value has both shapes."""
    if not depth:
        return False
    if isinstance(one, AnyOf):
        return all(apart(option, other, depth - 1) for option in one.options)
    if isinstance(other, AnyOf):
        return apart(other, one, depth)
    if isinstance(one, Exactly):
        return not any(_may_be(value, other) for value in one.values)
    if isinstance(other, Exactly):
        return apart(other, one, depth)
    if type(one) is not type(other):
        return True
    if isinstance(one, Entries) and isinstance(other, Entries):
        for name in one.required | other.required:
            mine, yours = (each.fields.get(name, each.others) for each in (one, other))
            if mine is None or yours is None:
                return True
            if name in one.required & other.required and apart(mine, yours, depth - 1):
                return True
        return False
    if isinstance(one, Words | Figure) and isinstance(other, Words | Figure) and one.spelling and other.spelling:
        try:
            return both(one.spelling, other.spelling).empty
        except TooLarge:
            return False
    return False


def _may_be(value: Any, shape: Shape) -> bool:
    if isinstance(shape, Exactly):
        return any(same(value, each) for each in shape.values)
    if isinstance(shape, Words):
        return isinstance(value, str) and (shape.spelling is None or shape.spelling.matches(value))
    if isinstance(shape, Figure):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, list if isinstance(shape, Items) else dict)


def same(one: Any, other: Any) -> bool:
    """JSON equality: 1 is 1.0, and true is not 1."""
    return json.dumps(_plain(one), sort_keys=True) == json.dumps(_plain(other), sort_keys=True)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return int(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def pairs(shapes: list[Shape]) -> Iterator[tuple[Shape, Shape]]:
    """Every two of them."""
    for index, one in enumerate(shapes):
        for other in shapes[index + 1 :]:
            yield one, other
