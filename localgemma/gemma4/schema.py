"""JSON schema (draft 2020-12, and what OpenAPI and older drafts write otherwise) read into shapes.

What a grammar cannot hold is named in `loose`, never dropped in silence; it must be checked once a value is there. Narrower
than the standard on purpose: an object with `properties` has no others unless `additionalProperties` allows them, and a schema
without `type` means the kinds that its keywords speak of.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from localgemma.errors import UsageError
from localgemma.gemma4.automaton import other_than
from localgemma.gemma4.merge import branches, resolve
from localgemma.gemma4.scalars import figure, spelled, words
from localgemma.gemma4.shapes import AnyOf, Entries, Exactly, Figure, Items, Shape, Words, apart, pairs, prune, same

ANNOTATIONS = frozenset(
    [
        "title",
        "description",
        "default",
        "examples",
        "example",
        "deprecated",
        "readOnly",
        "writeOnly",
        "$comment",
        "$schema",
        "$id",
        "id",
        "$anchor",
        "$defs",
        "definitions",
        "contentEncoding",
        "contentMediaType",
        "contentSchema",
        "discriminator",
        "xml",
        "externalDocs",
        "nullable",
        "$vocabulary",
        "enum",
        "const",
        "type",
    ]
)
KINDS: dict[str, frozenset[str]] = {
    "string": frozenset(("pattern", "minLength", "maxLength", "format")),
    "number": frozenset(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")),
    "array": frozenset(("items", "prefixItems", "additionalItems", "minItems", "maxItems", "uniqueItems", "contains")),
    "object": frozenset(
        [
            "properties",
            "required",
            "additionalProperties",
            "minProperties",
            "maxProperties",
            "patternProperties",
            "propertyNames",
        ]
    ),
}
HELD = frozenset().union(*KINDS.values()) - {"uniqueItems", "contains", "patternProperties", "propertyNames"}
_TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
_MOST_SHAPES, _DEEPEST, _MOST_ITEMS = 5000, 60, 1000
_HINT = "Correct or simplify the schema."


@dataclass(frozen=True, slots=True)
class Read:
    """A schema's shape, and what of it no grammar holds ("uniqueItems at #/properties/tags")."""

    shape: Shape
    loose: tuple[str, ...]


def read_schema(schema: Any) -> Read:
    """The shape of a schema. Raises UsageError for one that is malformed, too large, or that no value fits."""
    reader = _Reader(schema)
    try:
        shape = reader.read(schema, "#", 0)
        reader.exclusive()
    except RecursionError:
        raise UsageError("The schema is nested too deeply.", _HINT) from None
    if not prune(shape):
        raise UsageError("No value can fit the schema.", _HINT)
    return Read(shape, tuple(dict.fromkeys(reader.loose)))


class _Reader:
    def __init__(self, root: Any) -> None:
        self.root = root
        self.loose: list[str] = []
        self._count = 0
        self._references: dict[str, AnyOf] = {}
        self._exclusive: list[tuple[AnyOf, str]] = []
        self._anything: AnyOf | None = None

    def exclusive(self) -> None:
        """Name every oneOf whose options could both fit."""
        for shape, where in self._exclusive:
            if not all(apart(one, other) for one, other in pairs(shape.options)):
                self.loose.append(f"oneOf at {where}")

    def anything(self) -> AnyOf:
        """Any JSON value."""
        if self._anything is None:
            found = self._anything = AnyOf()
            every = (Items(rest=found), Entries(others=found), Exactly((True, False, None)), figure({}, False, "", self.loose))
            found.options += [Words(), *every]
        return self._anything

    def read(self, schema: Any, where: str, depth: int) -> Shape:
        """The shape of a schema that stands at `where`."""
        self._count += 1
        if self._count > _MOST_SHAPES or depth > _DEEPEST:
            raise UsageError(f"The schema is too large or nested too deeply at {where[:200]}.", _HINT)
        if schema is True:
            return self.anything()
        if schema is False:
            return AnyOf()
        if not isinstance(schema, Mapping):
            raise UsageError(f"The schema at {where[:200]} is neither an object nor true or false.", _HINT)
        rest = {key for key in schema if key not in ANNOTATIONS and not key.startswith("x-")}
        rest |= {key for key in ("type", "enum", "const") if key in schema}
        if rest == {"$ref"}:
            found: Shape = self._reference(schema["$ref"], where, depth)
        elif rest in ({"anyOf"}, {"oneOf"}) and isinstance(schema[(name := next(iter(rest)))], list):
            options = [self.read(each, f"{where}/{name}/{at}", depth + 1) for at, each in enumerate(schema[name])]
            found = AnyOf(options)
            if name == "oneOf":
                self._exclusive.append((found, where))
        elif rest & {"$ref", "allOf", "anyOf", "oneOf"}:
            flat = branches(schema, self.root, where, self.loose)
            found = AnyOf([self._flat(each, where, depth) for each in flat])
            if "oneOf" in schema:
                self._exclusive.append((found, where))
        else:
            return self._flat(schema, where, depth)
        return AnyOf([found, Exactly((None,))]) if schema.get("nullable") is True else found

    def _reference(self, target: Any, where: str, depth: int) -> AnyOf:
        if target not in self._references:
            schema = resolve(self.root, target, where)
            self._references[target] = AnyOf()
            self._references[target].options.append(self.read(schema, str(target), depth + 1))
        return self._references[target]

    def _flat(self, schema: Mapping[str, Any], where: str, depth: int) -> Shape:
        """A schema without references and combinations."""
        for key, value in schema.items():
            held = key in HELD or key in ANNOTATIONS or key.startswith("x-") or (value is False and key == "uniqueItems")
            if not held:
                self.loose.append(f"{key} at {where}")
        kinds = self._kinds(schema, where)
        if kinds is None and not {"enum", "const"} & set(schema):
            return self.anything()
        found: list[Shape] = []
        for kind in kinds or _TYPES:
            if kind in ("null", "boolean"):
                found.append(Exactly((None,) if kind == "null" else (True, False)))
            elif kind in ("integer", "number"):
                found.append(figure(schema, kind == "integer", where, self.loose))
            elif kind == "string":
                found.append(words(schema, where, self.loose))
            else:
                found.append((self._items if kind == "array" else self._entries)(schema, where, depth))
        shape: Shape = found[0] if len(found) == 1 else AnyOf(found)
        if "enum" in schema or "const" in schema:
            shape = _one_of(_allowed(schema, found, where))
        return AnyOf([shape, Exactly((None,))]) if schema.get("nullable") is True else shape

    def _kinds(self, schema: Mapping[str, Any], where: str) -> list[str] | None:
        """The kinds of value that the schema speaks of; None for all."""
        kinds = schema.get("type")
        if kinds is None:
            return [kind for kind, keywords in KINDS.items() if keywords & set(schema)] or None
        kinds = [kinds] if isinstance(kinds, str) else kinds
        lower = [str(kind).lower() for kind in kinds] if isinstance(kinds, list) else []
        if not lower and kinds != []:
            raise UsageError(f"The type at {where[:200]} is neither a name nor a list of names.", _HINT)
        for kind in lower:
            if kind not in _TYPES:
                raise UsageError(f"{kind[:40]!r} at {where[:200]} is no type.", f"Use {', '.join(_TYPES)}.")
        return [kind for kind in dict.fromkeys(lower) if kind != "integer" or "number" not in lower]

    def _items(self, schema: Mapping[str, Any], where: str, depth: int) -> Shape:
        first, rest, name = schema.get("prefixItems", []), schema.get("items", True), "prefixItems"
        if isinstance(rest, list):  # before 2020-12
            first, rest, name = rest, schema.get("additionalItems", True), "items"
        if not isinstance(first, list):
            raise UsageError(f"prefixItems at {where[:200]} is no list.", _HINT)
        shapes = tuple(self.read(each, f"{where}/{name}/{at}", depth + 1) for at, each in enumerate(first))
        others = None if rest is False else self.read(rest, f"{where}/items", depth + 1)
        least, most = self._counts(schema, "Items", where)
        if most is None and others is None:
            most = len(shapes)
        if most is not None and most < least:
            return AnyOf()
        return Items(shapes[:most], others, least, most)

    def _entries(self, schema: Mapping[str, Any], where: str, depth: int) -> Shape:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        if not isinstance(properties, Mapping) or not isinstance(required, list | tuple | bool):
            raise UsageError(f"properties or required at {where[:200]} is of the wrong kind.", _HINT)
        fields = {str(name): self.read(each, f"{where}/properties/{name}", depth + 1) for name, each in properties.items()}
        needed = [] if isinstance(required, bool) else [str(name) for name in required]
        extra = schema.get("additionalProperties", not fields)
        others = None if extra is False else self.read(extra, f"{where}/additionalProperties", depth + 1)
        for name in needed:
            if name not in fields and others is not None:
                fields[name] = others
        least, most = self._counts(schema, "Properties", where)
        names = other_than(fields) if others is not None and fields else None
        if not fields:
            if least > 1:  # the same name twice counts once, and no grammar knows what was named before
                self.loose.append(f"minProperties at {where}")
            return AnyOf() if most is not None and most < least else Entries({}, frozenset(), others, names, least, most)
        for name, wrong in (("minProperties", least > len(set(needed))), ("maxProperties", most is not None)):
            if wrong and not (name == "maxProperties" and others is None and len(fields) <= (most or 0)):
                self.loose.append(f"{name} at {where}")
        return Entries(fields, frozenset(needed), others, names)

    def _counts(self, schema: Mapping[str, Any], of: str, where: str) -> tuple[int, int | None]:
        least, most = schema.get(f"min{of}", 0), schema.get(f"max{of}")
        for value in (least, most):
            if value is not None and not (isinstance(value, int | float) and value >= 0 and value == int(value)):
                raise UsageError(f"min{of} or max{of} at {where[:200]} is no count.", _HINT)
        if least > _MOST_ITEMS:
            self.loose.append(f"min{of} at {where}")
            least = _MOST_ITEMS
        if most is not None and most > _MOST_ITEMS:
            self.loose.append(f"max{of} at {where}")
            most = None
        return int(least), None if most is None else int(most)


def _one_of(values: tuple[Any, ...]) -> Shape:
    """These values; lists and objects among them as shapes, which may be written with white space."""
    simple = tuple(value for value in values if not isinstance(value, list | dict))
    found: list[Shape] = [Exactly(simple)] if simple else []
    for value in values:
        if isinstance(value, list):
            found.append(Items(tuple(_one_of((each,)) for each in value), None, len(value), len(value)))
        elif isinstance(value, dict):
            found.append(Entries({str(name): _one_of((each,)) for name, each in value.items()}, frozenset(map(str, value))))
    return found[0] if len(found) == 1 else AnyOf(found)


def _allowed(schema: Mapping[str, Any], kinds: list[Shape], where: str) -> tuple[Any, ...]:
    """The values of enum and const that also are of the kinds that the rest of the schema allows."""
    values = schema.get("enum", [schema.get("const")])
    if not isinstance(values, list | tuple):
        raise UsageError(f"enum at {where[:200]} is no list.", _HINT)
    if "const" in schema:
        values = [value for value in values if same(value, schema["const"])]
    return tuple(value for value in values if any(_is(value, kind) for kind in kinds))


def _is(value: Any, kind: Shape) -> bool:
    if isinstance(kind, Words):
        return isinstance(value, str) and (kind.spelling is None or kind.spelling.matches(value))
    if isinstance(kind, Exactly):
        return any(same(value, each) for each in kind.values)
    if isinstance(kind, Items | Entries):
        return isinstance(value, list if isinstance(kind, Items) else dict)
    text = spelled(value) if isinstance(value, int | float) else None
    return isinstance(kind, Figure) and text is not None and kind.spelling.matches(text)
