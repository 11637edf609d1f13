"""References of JSON schemas, and their combinations (allOf, and anyOf or oneOf beside others) written out as flat ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from localgemma.errors import UsageError

_MOST_BRANCHES = 64
_HINT = "Correct or simplify the schema."
_HIGHER = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
_LOWER = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")
_BOTH = ("pattern", "format", "multipleOf")  # each counts: kept in a tuple
_WORDS = (
    "title",
    "description",
    "default",
    "examples",
    "example",
    "$comment",
    "deprecated",
    "readOnly",
    "writeOnly",
    "$id",
    "$schema",
)


def resolve(root: Any, target: Any, where: str) -> Any:
    """What a reference names inside the schema. Raises UsageError; nothing is ever fetched."""
    if not isinstance(target, str) or not target.startswith("#"):
        raise UsageError(
            f"The reference {str(target)[:100]!r} at {where[:200]} leads out of the schema.", "Put it under $defs."
        )
    found = root
    for step in filter(None, target[1:].split("/")):
        step = unquote(step).replace("~1", "/").replace("~0", "~")
        if isinstance(found, Mapping) and step in found:
            found = found[step]
        elif isinstance(found, list) and step.isdecimal() and int(step) < len(found):
            found = found[int(step)]
        else:
            raise UsageError(f"The reference {target[:100]!r} at {where[:200]} leads nowhere.", "Correct it.")
    return found


def branches(schema: Any, root: Any, where: str, loose: list[str], seen: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """The flat schemas of which a value must fit one. Raises UsageError for references in a circle, or too many branches."""
    if schema is True:
        return [{}]
    if schema is False:
        return []
    if not isinstance(schema, Mapping):
        raise UsageError(f"The schema at {where[:200]} is neither an object nor true or false.", _HINT)
    own = {
        key: value for key, value in schema.items() if key not in ("$ref", "allOf", "anyOf", "oneOf", "$defs", "definitions")
    }
    groups: list[list[dict[str, Any]]] = [[own]]
    if "$ref" in schema:
        target = schema["$ref"]
        if target in seen:
            raise UsageError(f"The reference {str(target)[:100]!r} at {where[:200]} leads to itself.", _HINT)
        groups.append(branches(resolve(root, target, where), root, where, loose, (*seen, target)))
    for name in ("allOf", "anyOf", "oneOf"):
        parts = schema.get(name, [])
        if not isinstance(parts, list):
            raise UsageError(f"{name} at {where[:200]} is no list.", _HINT)
        found = [branches(part, root, where, loose, seen) for part in parts]
        if name == "allOf":
            groups += found
        elif name in schema:
            groups.append([flat for part in found for flat in part])
    result: list[dict[str, Any]] = [{}]
    for group in groups:
        if len(result) * len(group) > _MOST_BRANCHES:
            raise UsageError(f"The combinations at {where[:200]} give more than {_MOST_BRANCHES} cases.", _HINT)
        merged = [merge(one, other, where, loose) for one in result for other in group]
        result = [each for each in merged if each is not None]
    return result


def merge(one: dict[str, Any], other: dict[str, Any], where: str, loose: list[str]) -> dict[str, Any] | None:
    """A flat schema for what fits both; None where their types have nothing in common."""
    found = dict(one)
    for key, value in other.items():
        if key not in one or key in _WORDS:
            found[key] = value
        elif key == "type":
            found[key] = _types(one[key], value)
            if not found[key]:
                return None
        elif key in _HIGHER or key in _LOWER:
            found[key] = (max if key in _HIGHER else min)(one[key], value)
        elif key in _BOTH:
            parts = [each if isinstance(each, tuple) else (each,) for each in (one[key], value)]
            found[key] = tuple(dict.fromkeys((*parts[0], *parts[1])))
        elif key == "required":
            found[key] = [*one[key], *value]
        elif key == "items" and not isinstance(value, list) and not isinstance(one[key], list):
            found[key] = {"allOf": [one[key], value]}
        elif key == "enum":
            found[key] = [each for each in one[key] if each in value]
        elif key not in ("properties", "additionalProperties") and one[key] != value:
            loose.append(f"{key} at {where}: given twice")
    if "properties" in one or "properties" in other:
        found["properties"] = _properties(one, other)
    explicit = [each["additionalProperties"] for each in (one, other) if "additionalProperties" in each]
    if explicit:
        found["additionalProperties"] = (
            False if False in explicit else explicit[0] if len(explicit) == 1 else {"allOf": explicit}
        )
    return found


def _properties(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in [*one.get("properties", {}), *other.get("properties", {})]:
        parts = [
            each["properties"][name] if name in each.get("properties", {}) else each.get("additionalProperties")
            for each in (one, other)
        ]
        given = [part for part in parts if part is not None and part is not True]
        found[name] = False if False in given else given[0] if len(given) == 1 else {"allOf": given} if given else True
    return found


def _types(one: Any, other: Any) -> list[str]:
    mine, yours = ([each] if isinstance(each, str) else list(each) for each in (one, other))
    found = [kind for kind in mine if kind in yours or (kind == "integer" and "number" in yours)]
    return found + [kind for kind in yours if kind == "integer" and "number" in mine and kind not in found]
