"""JSON schemas as Gemma's declarations can say them: references followed, unions narrowed, and the rest put into words.

The template writes type, description, enum (of strings), items, properties, required and nullable, and makes nonsense of what
it does not know: a list of types, `anyOf`, an object without `properties`. The schema itself stays what arguments are held to.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import unquote

from localgemma.errors import UsageError

_DEPTH = 12  # levels that are declared; what lies deeper is "an object"
_NODES = 1000  # parts of a schema, references followed: one that doubles at each level ends here
_SHOWN = 80  # characters of a value in a description
_ODD = ("$ref", "allOf", "anyOf", "oneOf", "const")
_KINDS = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object", type(None): "null"}
_WORDS = {
    "format": "Format: {}.", "pattern": "Pattern: {}.", "minimum": "At least {}.", "maximum": "At most {}.",
    "exclusiveMinimum": "More than {}.", "exclusiveMaximum": "Less than {}.", "multipleOf": "A multiple of {}.",
    "minLength": "At least {} characters.", "maxLength": "At most {} characters.", "minItems": "At least {} items.",
    "maxItems": "At most {} items.",
}  # fmt: skip


def declared(schema: Any) -> dict[str, Any]:
    """The schema of a tool's arguments as it is declared. Raises UsageError for one that is endless or refers to nothing."""
    found = _Reader(schema if isinstance(schema, Mapping) else {}).node(schema, 0, ())
    properties = found.get("properties", {})
    return {**found, "type": "object", "properties": properties}


def is_sayable(schema: Any, depth: int = 0) -> bool:
    """Whether the template says a schema as it is."""
    if not isinstance(schema, Mapping) or depth > _DEPTH:
        return False
    kind = schema.get("type")
    values = schema.get("enum", ())
    plain = isinstance(kind, str) and isinstance(values, Sequence) and all(isinstance(value, str) for value in values)
    if not plain or any(key in schema for key in _ODD):
        return False
    inner = schema.get("properties")
    if str(kind).lower() == "object":
        return isinstance(inner, Mapping) and all(is_sayable(each, depth + 1) for each in inner.values())
    return "items" not in schema or is_sayable(schema["items"], depth + 1)


class _Reader:
    """Reads one schema; `root` is where its references point."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._left = _NODES

    def node(self, schema: Any, depth: int, outer: tuple[str, ...]) -> dict[str, Any]:
        """One part of the schema; `outer` are the references that it stands in."""
        self._left -= 1
        if self._left < 0:
            raise UsageError("Its schema is too large to be declared.", "Leave this tool out.")
        if not isinstance(schema, Mapping):
            return {}
        if depth > _DEPTH:
            return {"type": "object", "properties": {}}
        while isinstance(reference := schema.get("$ref"), str):
            target = self._target(reference)
            if reference in outer:  # it contains itself, which a declaration cannot say
                return _inner_kind(target)
            outer = (*outer, reference)
            schema = {**target, **{key: value for key, value in schema.items() if key != "$ref"}}
        return self._whole(schema, depth, outer)

    def _whole(self, schema: Mapping[str, Any], depth: int, outer: tuple[str, ...]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for part in _list(schema.get("allOf")):
            _merge(found, self.node(part, depth, outer))
        for key in ("anyOf", "oneOf"):
            options = [self.node(option, depth + 1, outer) for option in _list(schema.get(key))]
            if options:
                _merge(found, _narrowed(options))
        _merge(found, self._own(schema, depth, outer))
        return found

    def _own(self, schema: Mapping[str, Any], depth: int, outer: tuple[str, ...]) -> dict[str, Any]:
        """What the keywords of one part say by themselves."""
        found: dict[str, Any] = {}
        kinds = [kind for kind in _list(schema.get("type")) or [schema.get("type")] if isinstance(kind, str)]
        values = [schema["const"]] if "const" in schema else _list(schema.get("enum"))
        kinds = kinds or sorted({_KINDS.get(type(value), "string") for value in values}, key=lambda kind: kind == "null")
        if "null" in kinds and len(kinds) > 1:
            found["nullable"] = True
        kinds = [kind for kind in kinds if kind != "null" or len(kinds) == 1] or _guessed(schema)
        said = [schema["description"]] if isinstance(schema.get("description"), str) and schema["description"] else []
        if kinds:
            found["type"] = kinds[0]
            said += [f"Also: {', '.join(kinds[1:])}."] if len(kinds) > 1 else []
        texts = [value for value in values if isinstance(value, str)]
        if values and texts == [value for value in values if value is not None]:
            found["enum"] = texts
        elif values:
            said.append(f"One of {', '.join(_short(value) for value in values)}.")
        said += [words.format(_short(schema[key])) for key, words in _WORDS.items() if key in schema]
        if found.get("type") == "object":
            inner = schema.get("properties")
            parts = inner.items() if isinstance(inner, Mapping) else ()
            found["properties"] = {str(name): self.node(part, depth + 1, outer) for name, part in parts}
            needed = [name for name in _list(schema.get("required")) if isinstance(name, str)]
            found |= {"required": needed} if needed else {}
        if found.get("type") == "array" and (items := self.node(schema.get("items"), depth + 1, outer)):
            found["items"] = items
        if said:
            found["description"] = " ".join(said)
        return found

    def _target(self, reference: str) -> Mapping[str, Any]:
        """What a reference inside this schema points to; nothing is ever fetched."""
        at: Any = self._root if reference.startswith("#") else None
        for step in filter(None, reference[1:].split("/")):
            name = unquote(step).replace("~1", "/").replace("~0", "~")
            at = at.get(name) if isinstance(at, Mapping) else None
        if not isinstance(at, Mapping):
            raise UsageError(f"Its schema refers to {reference[:_SHOWN]!r}, which is not in it.", "Correct the tool's schema.")
        return at


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else []


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def _guessed(schema: Mapping[str, Any]) -> list[str]:
    """The type that a schema without one means."""
    return ["object"] if "properties" in schema else ["array"] if "items" in schema else []


def _inner_kind(target: Mapping[str, Any]) -> dict[str, Any]:
    kind = target.get("type")
    return {"type": kind} if isinstance(kind, str) and kind != "object" else {"type": "object", "properties": {}}


def _narrowed(options: list[dict[str, Any]]) -> dict[str, Any]:
    """A union as one type: None becomes nullable, words join, and of several types the first is declared and all are named."""
    kept = [option for option in options if option.get("type") != "null"]
    nullable: dict[str, Any] = {"nullable": True} if len(kept) < len(options) or any(o.get("nullable") for o in kept) else {}
    if not kept:
        return {"type": "null"}
    if all("enum" in option for option in kept):
        return {**kept[0], "enum": [value for option in kept for value in option["enum"]], **nullable}
    if len(kept) == 1:
        return {**kept[0], **nullable}
    named = dict.fromkeys(_described(option) for option in kept)
    return {**kept[0], "description": f"{' or '.join(named)}.", **nullable}


def _described(option: Mapping[str, Any]) -> str:
    kind = str(option.get("type", "any value"))
    inner = f" of {option['items']['type']}" if kind == "array" and option.get("items", {}).get("type") else ""
    fields = ", ".join(option.get("properties", ()))
    return f"{kind}{inner}" + (f" ({fields})" if fields else "")


def _merge(found: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Put what another part says into what was found: properties and required names add up, the rest is the later one's."""
    texts = list(_texts(found, more))
    for key, value in more.items():
        if key == "properties":
            found[key] = {**found.get(key, {}), **value}
        elif key == "required":
            found[key] = [*found.get(key, ()), *(name for name in value if name not in found.get(key, ()))]
        else:
            found[key] = value
    if texts:
        found["description"] = " ".join(texts)


def _texts(*parts: Mapping[str, Any]) -> Iterator[str]:
    yield from dict.fromkeys(part["description"] for part in parts if part.get("description"))
