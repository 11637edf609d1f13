"""Messages checked for the chat template, and tools as Gemma 4 reads them: declarations, arguments and results.

A port of the macros of Google's chat template. Only the template's own markers become control tokens; names, schemas,
arguments and results stay text, whatever they spell.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, Final

from localgemma.engine import Control, Text
from localgemma.errors import BadConversation
from localgemma.gemma4.tokens import BOS, EOS, QUOTE, RESPONSE, RESPONSE_END, TOOL, TOOL_END

SCHEMA_KEYS: Final = ("description", "type", "properties", "required", "nullable")
MARK: Final = Control(QUOTE)
Parts = Iterator[Control | Text]


def need_text(value: object, what: str) -> str:
    """The value, if it is a string; else BadConversation."""
    if isinstance(value, str):
        return value
    raise BadConversation(f"{what} must be a string, not {type(value).__name__}.", "Correct it and send again.")


def need_mapping(value: object, what: str) -> Mapping[Any, Any]:
    """The value, if it is a mapping (a JSON object); else BadConversation."""
    if isinstance(value, Mapping):
        return value
    raise BadConversation(f"{what} must be a JSON object, not {type(value).__name__}.", "Correct it and send again.")


def parsed_call(call: Mapping[str, Any]) -> dict[str, Any]:
    """The call with its arguments as a mapping or None, even where they came as a string of JSON."""
    function = dict(need_mapping(call.get("function"), "The `function` of a tool call"))
    name = need_text(function.get("name"), "The name of a called tool")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            arguments = [arguments]
        if not isinstance(arguments, dict):
            raise BadConversation(f"The arguments of the call of {name} are not a JSON object.", "Send an object such as {}.")
    if arguments is not None:
        need_mapping(arguments, f"The arguments of the call of {name}")
    function["arguments"] = arguments
    return {**call, "function": function}


def is_sequence(value: object) -> bool:
    """What Jinja calls a sequence: it has a length and can be indexed (mappings too)."""
    return hasattr(value, "__len__") and hasattr(value, "__getitem__")


def _get(value: object, key: str) -> Any:
    """The value's entry; "" where there is none, as Jinja's undefined prints."""
    return value.get(key, "") if isinstance(value, Mapping) else ""


def _upper(value: object) -> str:
    return str(value).upper()


def _sorted(value: object, what: str) -> list[tuple[Any, Any]]:
    """Jinja's dictsort: by key, ignoring case."""
    items = need_mapping(value, what).items()
    try:
        return sorted(items, key=lambda item: item[0].lower() if isinstance(item[0], str) else item[0])
    except TypeError as error:
        raise BadConversation(f"{what} has keys that are not all strings.", "Use strings as keys.") from error


def _quoted(value: object) -> Parts:
    yield MARK
    yield Text(str(value))
    yield MARK


def _between(pieces: Iterable[Iterable[Control | Text]]) -> Parts:
    """The pieces with commas between them."""
    for index, piece in enumerate(pieces):
        if index:
            yield Text(",")
        yield from piece


def _names(value: object) -> Parts:
    """`[…]` with every entry quoted: the names of required properties."""
    if not isinstance(value, Iterable):
        raise BadConversation("A schema's `required` must be a list of names.", "Correct the tool's schema.")
    yield Text("[")
    yield from _between(_quoted(item) for item in value)
    yield Text("]")


def argument(value: object, quote_keys: bool = True) -> Parts:
    """A value in Gemma's notation: strings between quote markers, mappings sorted by key."""
    if value is None:
        yield Text("null")
    elif isinstance(value, str):
        yield from _quoted(value)
    elif isinstance(value, bool):
        yield Text("true" if value else "false")
    elif isinstance(value, Mapping):
        yield Text("{")
        yield from entries(value, quote_keys)
        yield Text("}")
    elif is_sequence(value) and isinstance(value, Iterable):
        yield Text("[")
        yield from _between(argument(item, quote_keys) for item in value)
        yield Text("]")
    else:
        yield Text(str(value))


def entries(value: object, quote_keys: bool = False) -> Parts:
    """The entries of a mapping without its braces, as arguments of a call and results are written."""
    yield from _between(_entry(key, item, quote_keys) for key, item in _sorted(value, "An argument or result"))


def _entry(key: object, value: object, quote_keys: bool) -> Parts:
    if quote_keys:
        yield from _quoted(need_text(key, "A key"))
    else:
        yield Text(str(key))
    yield Text(":")
    yield from argument(value, quote_keys)


def result(name: object, value: object) -> Parts:
    """A tool's result between its markers; what is not a mapping becomes the entry `value`."""
    yield Control(RESPONSE)
    yield Text("response:" + need_text(name, "A tool's name") + "{")
    if isinstance(value, Mapping):
        yield from entries(value)
    else:
        yield Text("value:")
        yield from argument(value, False)
    yield Text("}")
    yield Control(RESPONSE_END)


def declaration(tool: object) -> Parts:
    """A tool's declaration between its markers."""
    function = _get(need_mapping(tool, "A tool"), "function")
    if not isinstance(function, Mapping):
        raise BadConversation(
            "A tool has no `function`.", 'Give tools as {"type": "function", "function": {"name": …, "parameters": …}}.'
        )
    yield Control(TOOL)
    yield Text(f"declaration:{_get(function, 'name')}{{description:")
    yield from _quoted(_get(function, "description"))
    params = _get(function, "parameters")
    if params:
        yield from _declared_parameters(params)
    if "response" in function:
        yield from _declared_response(function["response"])
    yield Text("}")
    yield Control(TOOL_END)


def _declared_parameters(params: object) -> Parts:
    yield Text(",parameters:{")
    if _get(params, "properties"):
        yield Text("properties:{")
        yield from _properties(_get(params, "properties"))
        yield Text("},")
    if _get(params, "required"):
        yield Text("required:")
        yield from _names(_get(params, "required"))
        yield Text(",")
    if _get(params, "type"):
        yield Text("type:")
        yield from _quoted(_upper(_get(params, "type")))
        yield Text("}")


def _declared_response(response: object) -> Parts:
    yield Text(",response:{")
    if _get(response, "description"):
        yield Text("description:")
        yield from _quoted(_get(response, "description"))
        yield Text(",")
    if _upper(_get(response, "type")) == "OBJECT":
        yield Text("type:")
        yield from _quoted("OBJECT")
        yield Text("}")


def _properties(properties: object, skip: tuple[str, ...] = ()) -> Parts:
    """The properties of an object schema; `skip` are keys that are no properties."""
    items = _sorted(properties, "A schema's `properties`")
    yield from _between(_property(key, value) for key, value in items if key not in skip)


def _property(key: object, value: object) -> Parts:
    yield Text(f"{key}:{{")
    yield from _between(_fields(value))
    yield Text("}")


def _fields(value: object) -> Iterator[list[Control | Text]]:
    """What a property declares, in the template's order: description, enum or items, nullable, properties, type."""
    kind = _upper(_get(value, "type"))
    if _get(value, "description"):
        yield [Text("description:"), *_quoted(_get(value, "description"))]
    if kind == "STRING" and _get(value, "enum"):
        yield [Text("enum:"), *argument(_get(value, "enum"))]
    if kind == "ARRAY" and isinstance(_get(value, "items"), Mapping) and _get(value, "items"):
        items = _sorted(_get(value, "items"), "A schema's `items`")
        fields = (_item(key, item) for key, item in items if item is not None)
        yield [Text("items:{"), *_between(fields), Text("}")]
    if _get(value, "nullable"):
        yield [Text("nullable:true")]
    if kind == "OBJECT":
        if isinstance(_get(value, "properties"), Mapping):
            yield [Text("properties:{"), *_properties(_get(value, "properties")), Text("}")]
        else:
            yield [Text("properties:{"), *_properties(value, SCHEMA_KEYS), Text("}")]
        if _get(value, "required"):
            yield [Text("required:"), *_names(_get(value, "required"))]
    yield [Text("type:"), *_quoted(kind)]


def _item(key: object, value: object) -> Parts:
    """One entry of an array's `items`."""
    yield Text(f"{key}:")
    if key == "properties":
        yield Text("{")
        if isinstance(value, Mapping):
            yield from _properties(value)
        yield Text("}")
    elif key == "required":
        yield from _names(value)
    elif key == "type" and isinstance(value, str):
        yield from argument(value.upper())
    elif key == "type":
        if not isinstance(value, Iterable):
            raise BadConversation("A schema's `type` must be a name or a list of names.", "Correct the tool's schema.")
        yield from argument([_upper(item) for item in value])
    else:
        yield from argument(value)


class _Data(dict[Any, Any]):
    """A tool's result that Jinja does not take for a sequence, as it takes every other mapping."""

    def __len__(self) -> int:
        raise TypeError("data have no length")

    def __bool__(self) -> bool:
        return True


def _translated(value: Any, table: dict[int, int]) -> Any:
    """The data with the characters of all its strings, keys included, replaced."""
    if isinstance(value, str):
        return value.translate(table)
    if isinstance(value, Mapping):
        copy = {_translated(key, table): _translated(item, table) for key, item in value.items()}
        if copy.get("role") == "tool" and isinstance(copy.get("content"), dict) and copy["content"]:
            copy["content"] = _Data(copy["content"])
        return copy
    return [_translated(item, table) for item in value] if isinstance(value, (list, tuple)) else value


def run_template(source: str, data: dict[str, Any]) -> tuple[str, dict[int, int]]:
    """The text that a Jinja template makes, and the table that gives back the conversation's own <, | and >.

    Private-use characters stand for these while the template runs, so that none of them can be part of a marker.
    """
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    hidden, shown = dict[int, int](), dict[int, int]()

    def refuse(message: str) -> None:
        raise ValueError(message)

    def tojson(value: object, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(_translated(value, shown), ensure_ascii=ensure_ascii, **options).translate(hidden)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = tojson
    environment.globals |= {"raise_exception": refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
    environment.globals |= {"bos_token": BOS, "eos_token": EOS}
    try:
        seen = set(source + json.dumps(data, ensure_ascii=False, default=str))
        free = (code for code in range(0xF0000, 0x10FFFE) if chr(code) not in seen)
        hidden.update(zip(map(ord, "<|>"), free, strict=False))
        shown.update((stand_in, code) for code, stand_in in hidden.items())
        return environment.from_string(source).render(_translated(data, hidden)), shown
    except Exception as error:
        hint = "Correct the template, or leave out --template."
        raise BadConversation(f"The chat template failed: {str(error).translate(shown)}", hint) from error
