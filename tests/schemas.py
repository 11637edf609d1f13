"""JSON schemas, made and collected, each with a maker of random values that fit it: the grammars are tested on them."""

from __future__ import annotations

import random
import string
import uuid
from collections.abc import Callable
from typing import Any

Make = Callable[[random.Random], Any]
NAMES = (
    "id",
    "name",
    "größe",
    "日本",
    "a b",
    "x.y",
    "Ä",
    "emoji😀",
    "q:uote",
    "com,ma",
    "{brace}",
    "it's",
    "Zeta",
    "_u",
    "n1",
    "",
    "ß",
)
WORDS = (
    "abc",
    "XYZ",
    "äöü",
    "ñ",
    "日本語",
    "😀",
    '"',
    "\\",
    "\n",
    "<",
    "|",
    ">",
    "<|",
    "|>",
    ",",
    ":",
    "{",
    "}",
    "[",
    "]",
    "'",
    "/",
    "0",
    "-",
    "\t",
    ".",
    " ",
)


def text(rng: random.Random, least: int = 0, most: int = 12) -> str:
    """A string of so many code points, hostile ones among them; never one that spells a quote marker."""
    size = rng.randint(least, most)
    signs = "".join(rng.choice(WORDS) for _ in range(size + 2))[:size].ljust(size, "z")
    return signs.replace('<|"|>', "<|'|>")


def digits(rng: random.Random, size: int) -> str:
    """So many digits."""
    return "".join(rng.choice(string.digits) for _ in range(size))


def letters(rng: random.Random, low: int, high: int, signs: str = string.ascii_lowercase) -> str:
    """So many of some signs."""
    return "".join(rng.choice(signs) for _ in range(rng.randint(low, high)))


PATTERNS: tuple[tuple[str, Make], ...] = (
    (r"^[A-Z]{2}-\d{3}$", lambda rng: letters(rng, 2, 2, string.ascii_uppercase) + "-" + digits(rng, 3)),
    (r"^(red|green|blue)?$", lambda rng: rng.choice(["red", "green", "blue", ""])),
    (r"^\d{4}(-\d{2}){0,2}$", lambda rng: digits(rng, 4) + "".join("-" + digits(rng, 2) for _ in range(rng.randint(0, 2)))),
    (r"^[^\s@]+@[a-z.]+$", lambda rng: letters(rng, 1, 6, "ab0ü<|") + "@" + letters(rng, 1, 6, "abc.")),
    (r"abc", lambda rng: text(rng) + "abc" + text(rng)),
    (r"^a.*z$", lambda rng: "a" + text(rng).replace("\n", "").replace("\r", "") + "z"),
    (r"^(?:[a-f0-9]{2}:){3}[a-f0-9]{2}$", lambda rng: ":".join(letters(rng, 2, 2, "abcdef0123456789") for _ in range(4))),
    (r"^\p{L}", lambda rng: "unsupported"),
    (r"^[\w.+-]{1,8}$", lambda rng: letters(rng, 1, 8, "aZ_9.+-")),
    (r"^[äöü]+\u00df?$", lambda rng: letters(rng, 1, 4, "äöü") + rng.choice(["", "ß"])),
    (r'^"[a-z\\]*"$', lambda rng: '"' + letters(rng, 0, 5, "ab\\") + '"'),
)
FORMATS: dict[str, Make] = {
    "date": lambda rng: f"{rng.randint(1, 9999):04}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}",
    "time": lambda rng: (
        f"{rng.randint(0, 23):02}:{rng.randint(0, 59):02}:{rng.randint(0, 59):02}" + rng.choice(["Z", "+02:00"])
    ),
    "date-time": lambda rng: FORMATS["date"](rng) + "T" + FORMATS["time"](rng),
    "uuid": lambda rng: str(uuid.UUID(int=rng.getrandbits(128))),
    "email": lambda rng: letters(rng, 1, 8) + "@" + letters(rng, 1, 8) + ".org",
    "ipv4": lambda rng: ".".join(str(rng.randint(0, 255)) for _ in range(4)),
}


def made(rng: random.Random, depth: int = 0) -> tuple[dict[str, Any], Make]:
    """A random schema of the supported kind, and a maker of its values."""
    kinds = [_string, _string, _integer, _number, _enum, _plain]
    if depth < 3:
        kinds += [_object, _object, _object, _array, _array, _union, _nullable, _tuple, _map, _combined]
    return rng.choice(kinds if depth else [_object, _object, _object, _array, _union, _combined])(rng, depth)


def _string(rng: random.Random, depth: int) -> tuple[dict[str, Any], Make]:
    how = rng.randint(0, 4)
    if how == 0:
        pattern, make = rng.choice([each for each in PATTERNS if r"\p" not in each[0]])
        return {"type": "string", "pattern": pattern}, make
    if how == 1:
        name = rng.choice(list(FORMATS))
        return {"type": "string", "format": name}, FORMATS[name]
    if how == 2:
        low = rng.randint(0, 4)
        high = low + rng.randint(0, 30)
        bounds = rng.choice([{"minLength": low}, {"maxLength": high}, {"minLength": low, "maxLength": high}])
        return {"type": "string", **bounds}, lambda rng: text(
            rng, bounds.get("minLength", 0), bounds.get("maxLength", low + 9)
        )
    return {"type": "string"}, lambda rng: text(rng)


def _integer(rng: random.Random, depth: int) -> tuple[dict[str, Any], Make]:
    low = rng.choice([0, 1, -5, -1000, 17, 100, rng.randint(-(10**6), 10**6)])
    high = low + rng.choice([0, 1, 9, 100, 12345])
    bounds = rng.choice(
        [{}, {"minimum": low}, {"maximum": high}, {"minimum": low, "maximum": high}, {"exclusiveMinimum": low - 1}]
    )
    step = rng.choice([1, 1, 1, 2, 5, 7])
    schema = {"type": "integer", **bounds} | ({"multipleOf": step} if step > 1 else {})
    first = bounds.get(
        "minimum", bounds.get("exclusiveMinimum", low - 1) + 1 if "exclusiveMinimum" in bounds else high - 10**6
    )
    last = bounds.get("maximum", first + 10**6)
    if step > 1 and -(-first // step) * step > last:
        del schema["multipleOf"]
        step = 1
    return schema, lambda rng: rng.randint(-(-first // step), last // step) * step


def _number(rng: random.Random, depth: int) -> tuple[dict[str, Any], Make]:
    low = rng.choice([0, -1, 0.5, -2.25, 10, 99.9, -0.001])
    high = low + rng.choice([1, 0.25, 10, 1000.5])
    bounds = rng.choice([{}, {"minimum": low}, {"maximum": high}, {"minimum": low, "exclusiveMaximum": high}])

    def make(rng: random.Random) -> float | int:
        least, most = bounds.get("minimum", low), bounds.get("maximum", bounds.get("exclusiveMaximum", high))
        value: float | int = round(rng.uniform(least, most), rng.randint(0, 4))
        value = int(value) if rng.random() < 0.3 else value
        inside = least <= value <= most and value != bounds.get("exclusiveMaximum") and not 0 < abs(value) < 0.001
        return value if inside else least

    return {"type": "number", **bounds}, make


def _enum(rng: random.Random, depth: int) -> tuple[dict[str, Any], Make]:
    pool: list[Any] = [
        "red",
        "grün",
        'quo"te',
        "back\\slash",
        "a b",
        "<|turn>",
        "line\nend",
        "",
        1,
        2.5,
        -3,
        True,
        False,
        None,
        [1, "a"],
    ]
    values = rng.sample(pool, rng.randint(1, len(pool)))
    if rng.random() < 0.3:
        values = [f"value {number}" for number in range(rng.randint(9, 60))]
    if rng.random() < 0.3:
        return {"const": values[0]}, lambda rng: values[0]
    return {"enum": values}, lambda rng: rng.choice(values)


def _plain(rng: random.Random, depth: int) -> tuple[dict[str, Any], Make]:
    kind = rng.choice(["boolean", "null", "any", "types"])
    if kind == "any":
        return {}, lambda rng: rng.choice([None, 1, "x", [1, {"a": "b"}], {"k": [True]}, -2.5, ""])
    if kind == "types":
        return {"type": ["string", "integer", "null"]}, lambda rng: rng.choice([text(rng), rng.randint(-9, 9), None])
    return {"type": kind}, lambda rng: rng.choice([True, False]) if kind == "boolean" else None


def _object(rng: random.Random, depth: int) -> tuple[dict[str, Any], Make]:
    names = rng.sample(NAMES, rng.randint(0, 7))
    parts = {name: made(rng, depth + 1) for name in names}
    required = [name for name in names if rng.random() < 0.5]
    schema: dict[str, Any] = {"type": "object", "properties": {name: part[0] for name, part in parts.items()}}
    schema |= {"required": required} if required else {}
    schema |= {"additionalProperties": False} if rng.random() < 0.5 or not names else {}

    def make(rng: random.Random) -> dict[str, Any]:
        return {name: part[1](rng) for name, part in parts.items() if name in required or rng.random() < 0.5}

    return schema, make


def _map(rng: random.Random, depth: int) -> tuple[dict[str, Any], Make]:
    inner, make = made(rng, depth + 1)
    least = rng.randint(0, 1)
    schema = {"type": "object", "additionalProperties": inner} | ({"minProperties": least, "maxProperties": least + 3})
    if rng.random() < 0.5:
        schema = {
            "type": "object",
            "properties": {"kind": {"const": "k"}},
            "required": ["kind"],
            "additionalProperties": inner,
        }
        return schema, lambda rng: {"kind": "k"} | {letters(rng, 1, 3) + "0": make(rng) for _ in range(rng.randint(0, 3))}
    return schema, lambda rng: {f"{letters(rng, 1, 3)}{at}": make(rng) for at in range(rng.randint(least, least + 3))}


def _array(rng: random.Random, depth: int) -> tuple[dict[str, Any], Make]:
    inner, make = made(rng, depth + 1)
    low = rng.randint(0, 3)
    high = low + rng.randint(0, 4)
    bounds = rng.choice([{}, {"minItems": low}, {"maxItems": high}, {"minItems": low, "maxItems": high}])
    most = bounds.get("maxItems", low + 3)
    return {"type": "array", "items": inner, **bounds}, lambda rng: [
        make(rng) for _ in range(rng.randint(bounds.get("minItems", 0), most))
    ]


def _tuple(rng: random.Random, depth: int) -> tuple[dict[str, Any], Make]:
    parts = [made(rng, depth + 1) for _ in range(rng.randint(1, 3))]
    open_ = rng.random() < 0.3
    rest, make = made(rng, depth + 1)
    least = rng.randint(0, len(parts))
    schema = {
        "type": "array",
        "prefixItems": [part[0] for part in parts],
        "items": rest if open_ else False,
        "minItems": least,
    }

    def values(rng: random.Random) -> list[Any]:
        size = rng.randint(least, len(parts))
        extra = [make(rng) for _ in range(rng.randint(0, 2))] if open_ and size == len(parts) else []
        return [part[1](rng) for part in parts[:size]] + extra

    return schema, values


def _union(rng: random.Random, depth: int) -> tuple[dict[str, Any], Make]:
    if rng.random() < 0.4:
        tags = rng.sample(["cat", "dog", "Ente"], 2)
        parts = [_object(rng, depth + 1) for _ in tags]
        for tag, (schema, _) in zip(tags, parts, strict=True):
            schema["properties"] = {"kind": {"const": tag}} | schema["properties"]
            schema["required"] = ["kind", *schema.get("required", [])]

        def tagged(rng: random.Random) -> Any:
            at = rng.randrange(len(tags))
            return {"kind": tags[at]} | parts[at][1](rng)

        return {"oneOf": [schema for schema, _ in parts]}, tagged
    parts = [made(rng, depth + 1) for _ in range(rng.randint(1, 3))]
    return {"anyOf": [schema for schema, _ in parts]}, lambda rng: rng.choice(parts)[1](rng)


def _nullable(rng: random.Random, depth: int) -> tuple[dict[str, Any], Make]:
    schema, make = rng.choice([_string, _integer, _object, _array])(rng, depth + 1)
    return schema | {"nullable": True}, lambda rng: None if rng.random() < 0.3 else make(rng)


def _combined(rng: random.Random, depth: int) -> tuple[dict[str, Any], Make]:
    first, make = _object(rng, depth + 1)
    second, more = _object(rng, depth + 1)
    for schema in (first, second):
        schema.pop("additionalProperties", None)
    for name in set(first["properties"]) & set(second["properties"]):
        second["properties"].pop(name)
        second["required"] = [each for each in second.get("required", []) if each != name]
    names = set(second["properties"])
    return {
        "allOf": [first, second]
    }, lambda rng: make(rng) | {name: value for name, value in more(rng).items() if name in names}


def tree(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    """A value of the recursive schema."""
    below = [] if depth > 2 else [tree(rng, depth + 1) for _ in range(rng.randint(0, 2))]
    return {"value": rng.randint(0, 9), "children": below} if below or rng.random() < 0.5 else {"value": 0}


TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"value": {"type": "integer"}, "children": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
            "required": ["value"],
        },
        "a/b~c": {"type": ["string", "null"]},
        "list": {
            "anyOf": [
                {"type": "null"},
                {
                    "type": "array",
                    "prefixItems": [{"type": "integer"}, {"$ref": "#/$defs/list"}],
                    "items": False,
                    "minItems": 2,
                },
            ]
        },
    },
}


def chain(rng: random.Random) -> Any:
    """A value of the schema that is a list of itself."""
    return None if rng.random() < 0.4 else [rng.randint(0, 9), chain(rng)]


EDGES: list[tuple[dict[str, Any], Make]] = [
    (TREE | {"$ref": "#/$defs/node"}, tree),
    (TREE | {"$ref": "#/$defs/list"}, chain),
    (
        TREE | {"type": "object", "properties": {"x": {"$ref": "#/$defs/a~1b~0c"}}},
        lambda rng: {"x": rng.choice([None, text(rng)])},
    ),
    (
        TREE | {"allOf": [{"$ref": "#/$defs/node"}, {"required": ["children"]}]},
        lambda rng: {"value": 1, "children": [tree(rng)]},
    ),
    ({"type": "object"}, lambda rng: {letters(rng, 1, 4): rng.choice([1, "a", None, [], {}])}),
    ({"type": "object", "properties": {}, "additionalProperties": False}, lambda rng: {}),
    ({"type": "array"}, lambda rng: [rng.choice([1, "x", None, {"a": []}]) for _ in range(rng.randint(0, 3))]),
    ({"type": "array", "maxItems": 0}, lambda rng: []),
    (
        {"type": "array", "items": {"type": "integer"}, "minItems": 300, "maxItems": 310},
        lambda rng: [1] * rng.randint(300, 310),
    ),
    ({"type": "integer", "minimum": -12, "maximum": 7}, lambda rng: rng.randint(-12, 7)),
    ({"type": "integer", "minimum": 999, "maximum": 1000}, lambda rng: rng.randint(999, 1000)),
    ({"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 2}, lambda rng: 1),
    ({"type": "integer", "minimum": 2.5, "maximum": 1e3}, lambda rng: rng.randint(3, 1000)),
    ({"type": "number", "minimum": 0.1, "maximum": 0.125}, lambda rng: round(rng.uniform(0.1, 0.125), 4)),
    ({"type": "number", "exclusiveMinimum": -1, "exclusiveMaximum": 0}, lambda rng: round(rng.uniform(-0.99, -0.01), 2)),
    ({"type": "number", "maximum": -3.5}, lambda rng: -3.5 - rng.randint(0, 100) / 4),
    ({"type": "integer", "multipleOf": 25, "minimum": 1}, lambda rng: 25 * rng.randint(1, 4000)),
    ({"type": "string", "minLength": 3, "pattern": "^[ab]*$", "maxLength": 5}, lambda rng: letters(rng, 3, 5, "ab")),
    ({"type": "string", "maxLength": 0}, lambda rng: ""),
    ({"type": "string", "maxLength": 400}, lambda rng: text(rng, 0, 400)),
    ({"enum": [f"v{number}" for number in range(700)]}, lambda rng: f"v{rng.randrange(700)}"),
    ({"enum": ["<|turn>", "<tool_call|>", "a<|b"]}, lambda rng: rng.choice(["<|turn>", "<tool_call|>", "a<|b"])),
    ({"enum": [{"a": 1}, [], {}, 0, 1.5, "x"], "type": ["object", "number"]}, lambda rng: rng.choice([{"a": 1}, {}, 0, 1.5])),
    ({"const": {"nested": [1, {"deep": None}]}}, lambda rng: {"nested": [1, {"deep": None}]}),
    ({"anyOf": [{"type": "string"}, {"type": "string", "maxLength": 2}]}, lambda rng: text(rng)),
    ({"oneOf": [{"type": "string"}, {"type": "integer"}, {"type": "null"}]}, lambda rng: rng.choice([text(rng), 5, None])),
    (
        {"type": "object", "properties": {"a": True, "b": False, "c": {"type": "null"}}, "required": ["c"]},
        lambda rng: {"c": None},
    ),
    (
        {"type": "OBJECT", "properties": {"a": {"type": "STRING", "nullable": True}}},
        lambda rng: {"a": rng.choice([None, "x"])},
    ),
    ({"properties": {"a": {"minimum": 3}}, "required": ["a"]}, lambda rng: {"a": rng.randint(3, 9)}),
    (
        {"type": "object", "properties": {f"p{n}": {"type": "integer"} for n in range(60)}},
        lambda rng: {f"p{n}": n for n in range(60) if rng.random() < 0.3},
    ),
    (
        {"type": "object", "required": ["x", "y"], "additionalProperties": {"type": "boolean"}},
        lambda rng: {"x": True, "y": False},
    ),
    (
        {
            "type": "object",
            "properties": {"x": {"type": "integer"}},
            "allOf": [{"properties": {"x": {"minimum": 5}}}],
            "anyOf": [{"required": ["x"]}, {"properties": {"y": {"const": 1}}, "required": ["y"]}],
        },
        lambda rng: {"x": 7},
    ),
    (
        {"type": "array", "items": [{"type": "integer"}, {"type": "string"}], "additionalItems": False, "minItems": 2},
        lambda rng: [1, text(rng)],
    ),
    (
        {
            "type": "object",
            "properties": {"a": {"type": "string", "format": "date"}},
            "required": ["a"],
            "title": "T",
            "description": "d",
            "default": {},
            "examples": [1],
            "$comment": "c",
            "x-own": 3,
        },
        lambda rng: {"a": FORMATS["date"](rng)},
    ),
]

# A keyword that no grammar holds, and the schema that has it.
UNHELD: dict[str, Any] = {
    "uniqueItems": {"type": "array", "uniqueItems": True},
    "contains": {"type": "array", "contains": {"type": "integer"}},
    "not": {"type": "string", "not": {"const": "a"}},
    "if": {"type": "object", "if": {"required": ["a"]}, "then": {"required": ["b"]}},
    "dependentRequired": {"type": "object", "dependentRequired": {"a": ["b"]}},
    "patternProperties": {"type": "object", "patternProperties": {"^a": {"type": "integer"}}},
    "propertyNames": {"type": "object", "propertyNames": {"maxLength": 3}},
    "unevaluatedProperties": {"type": "object", "unevaluatedProperties": False},
    "minProperties at #": {"type": "object", "minProperties": 2},
    "minProperties": {"type": "object", "properties": {"a": {}, "b": {}}, "minProperties": 1},
    "pattern": {"type": "string", "pattern": r"^(?=a)\bx"},
    "format": {"type": "string", "format": "uri"},
    "maxLength": {"type": "string", "maxLength": 100_000},
    "maxItems": {"type": "array", "maxItems": 100_000},
    "minItems": {"type": "array", "minItems": 100_000},
    "multipleOf": {"type": "number", "multipleOf": 0.01},
    "oneOf": {"oneOf": [{"type": "integer"}, {"type": "number"}]},
    "requird": {"type": "object", "requird": ["a"]},
    "$dynamicRef": {"type": "object", "$dynamicRef": "#node"},
}
