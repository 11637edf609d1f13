"""Values checked against JSON schemas, where no grammar did it, or not all of it. Nothing is fetched; no pattern can hang."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from localgemma.gemma4.automaton import TooLarge
from localgemma.gemma4.regex import UnsupportedPattern, pattern

_SHOWN = 200  # characters of an error's text
_NAMED = ("properties", "$defs", "definitions", "patternProperties", "dependentSchemas")  # names of schemas
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_SINGLE = ("items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames", "unevaluatedItems")
_matcher = lru_cache(maxsize=256)(pattern)


def problem(schema: Any, value: Any) -> str | None:
    """What of the value does not fit, in one sentence; None where all does. Raises nothing: a bad schema is a problem too."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import ValidationError, best_match
    from jsonschema.validators import extend
    from referencing import Registry

    def fits(_: Any, source: Any, instance: Any, __: Any) -> Iterator[ValidationError]:
        try:
            if isinstance(instance, str) and isinstance(source, str) and not _matcher(source).matches(instance):
                yield ValidationError(f"{instance!r} does not match {source!r}")
        except (UnsupportedPattern, TooLarge):  # Python's own matcher could be made to run for ever
            return

    kind = extend(Draft202012Validator, {"pattern": fits})
    try:
        validator = kind(modern(schema), registry=Registry(), format_checker=Draft202012Validator.FORMAT_CHECKER)
        error = best_match(validator.iter_errors(value))
    except RecursionError:
        return "It is nested too deeply."
    except Exception as broken:  # a schema that the library cannot follow: a reference to nowhere, a keyword of the wrong type
        return f"The schema cannot be followed: {_short(broken)}"
    if error is None:
        return None
    where = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in error.absolute_path).lstrip(".")
    return f"{where}: {_short(error.message)}" if where else _short(error.message)


def _short(error: object) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def modern(schema: Any) -> Any:
    """The schema in the words of draft 2020-12: without `nullable`, lists as `items`, exclusive flags and upper-case types."""
    if not isinstance(schema, Mapping):
        return schema
    found: dict[str, Any] = {key: value for key, value in schema.items() if key != "nullable"}
    if isinstance(found.get("items"), list):
        found["prefixItems"], found["items"] = found["items"], found.pop("additionalItems", True)
    for name in ("Minimum", "Maximum"):
        if isinstance(flag := found.get(f"exclusive{name}"), bool):
            del found[f"exclusive{name}"]
            if flag and name.lower() in found:
                found[f"exclusive{name}"] = found.pop(name.lower())
    kinds = found.get("type")
    if isinstance(kinds, str | list):
        found["type"] = kinds.lower() if isinstance(kinds, str) else [str(kind).lower() for kind in kinds]
    if isinstance(found.get("required"), bool):
        del found["required"]
    for key, value in found.items():
        if key in _NAMED and isinstance(value, Mapping):
            found[key] = {name: modern(each) for name, each in value.items()}
        elif key in _LISTS and isinstance(value, list):
            found[key] = [modern(each) for each in value]
        elif key in _SINGLE:
            found[key] = modern(value)
    return {"anyOf": [found, {"type": "null"}]} if schema.get("nullable") is True else found
