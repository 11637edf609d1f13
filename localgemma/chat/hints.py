"""Type hints as JSON schemas, and a model's arguments read back as the hinted types.

Known are str, int, float, bool, Any, Literal, Enum, Optional, list, tuple[T, ...], set, dict, dataclass, TypedDict and
pydantic models. Only what Gemma's declarations can carry is written: where the template would leave out the allowed values
(those that are not strings), the description names them.
"""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from localgemma.chat.docstrings import parse
from localgemma.errors import UsageError

_PLAIN: dict[Any, str] = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
_LISTS = (list, set, frozenset, Sequence, Iterable, Set)
_SHOWN = 60  # characters of a wrong value that an error repeats


class BadArgument(ValueError):
    """Why an argument does not fit; written for the model, which reads it."""


@dataclass(frozen=True, slots=True)
class Field:
    """One parameter of a function or one field of a record."""

    hint: Any
    required: bool = True
    description: str = ""


Fields = Mapping[str, Field]


def object_schema(fields: Fields, outer: tuple[Any, ...] = ()) -> dict[str, Any]:
    """The schema of an object with these fields. Raises UsageError for a hint that has none."""
    properties: dict[str, Any] = {}
    for name, field in fields.items():
        try:
            schema = schema_of(field.hint, outer)
        except UsageError as error:
            raise UsageError(f"{name}: {error.message}", error.hint) from None
        texts = filter(None, (field.description, schema.get("description", "")))
        properties[name] = schema | ({"description": text} if (text := " ".join(texts)) else {})
    required = [name for name, field in fields.items() if field.required]
    return {"type": "object", "properties": properties} | ({"required": required} if required else {})


def schema_of(hint: Any, outer: tuple[Any, ...] = ()) -> dict[str, Any]:
    """The JSON schema of a type hint; `outer` are the records that it stands in. Raises UsageError."""
    hint, note = _bare(hint)
    options, nullable = _alternatives(hint)
    if nullable:
        return schema_of(options, outer) | {"nullable": True} | ({"description": note} if note else {})
    schema = _schema(options, outer)
    texts = " ".join(filter(None, (note, schema.get("description", ""))))
    return schema | ({"description": texts} if texts else {})


def _schema(hint: Any, outer: tuple[Any, ...]) -> dict[str, Any]:
    origin, args = get_origin(hint) or hint, get_args(hint)
    if hint is Any:
        return {}
    if hint in _PLAIN:
        return {"type": _PLAIN[hint]}
    if (allowed := _allowed(hint)) is not None:
        kinds = {_PLAIN[type(value)] for value in allowed}
        if len(kinds) != 1:
            raise UsageError(f"{hint!r} mixes kinds of values.", "Give values of one type.")
        said = {} if kinds == {"string"} else {"description": f"One of {', '.join(map(str, allowed))}."}
        return {"type": kinds.pop(), "enum": list(allowed), **said}
    if origin in _LISTS or (origin is tuple and (not args or args[1:] == (...,))):
        items = schema_of(args[0], outer) if args else {}
        return {"type": "array"} | ({"items": items} if items else {})
    if origin in (dict, Mapping):
        if args and args[0] is not str:
            raise UsageError(f"{hint!r} has keys that are not strings.", "Use dict[str, …].")
        inner = schema_of(args[1], outer) if args else {}
        return {"type": "object", "properties": {}} | ({"additionalProperties": inner} if inner else {})
    if (fields := members(hint)) is not None:
        if hint in outer:
            raise UsageError(f"{hint.__name__} contains itself, which a declaration cannot say.", "Take a dict instead.")
        return object_schema(fields, (*outer, hint))
    raise UsageError(
        f"{hint!r} is no type that a tool can take.",
        "Use str, int, float, bool, Literal, Enum, Optional, list, dict, a dataclass, TypedDict or pydantic model.",
    )


def _bare(hint: Any) -> tuple[Any, str]:
    """The hint without Annotated, Required and NotRequired, and the text that Annotated gave."""
    note = ""
    while get_origin(hint) in (Annotated, typing.Required, typing.NotRequired):
        said = [getattr(each, "description", each) for each in getattr(hint, "__metadata__", ())]  # pydantic's Field has one
        note = note or " ".join(each for each in said if isinstance(each, str))
        hint = get_args(hint)[0]
    return hint, note


def _alternatives(hint: Any) -> tuple[Any, bool]:
    """What a union leaves besides None, and whether None is allowed. `int | float` is a number."""
    if get_origin(hint) not in (Union, types.UnionType):
        return hint, False
    options = [option for option in get_args(hint) if option is not type(None)]
    nullable = len(options) < len(get_args(hint))
    if set(options) == {int, float}:
        options = [float]
    if len(options) != 1:
        raise UsageError(f"{hint!r} allows several types, which a declaration cannot say.", "Choose one of them, or Optional.")
    return options[0], nullable


def _allowed(hint: Any) -> dict[Any, Any] | None:
    """What the model writes for each value of a Literal or Enum; None for another hint."""
    if get_origin(hint) is Literal:
        return {value.name if isinstance(value, enum.Enum) else value: value for value in get_args(hint)}
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        plain = len({type(member.value) for member in hint} & {str, int}) == len({type(member.value) for member in hint}) == 1
        return {member.value if plain else member.name: member for member in hint}
    return None


def members(hint: Any) -> Fields | None:
    """The fields of a dataclass, TypedDict or pydantic model; None for anything else."""
    if not isinstance(hint, type):
        return None
    about = parse(hint.__doc__)[1]
    if (model := getattr(hint, "model_fields", None)) is not None and hasattr(hint, "model_validate"):
        return {name: Field(f.annotation, f.is_required(), f.description or about.get(name, "")) for name, f in model.items()}
    if typing.is_typeddict(hint):
        hints = typing.get_type_hints(hint, include_extras=True)
        required: frozenset[str] = hint.__required_keys__  # type: ignore[attr-defined]
        needed = {name for name in required if get_origin(hints[name]) is not typing.NotRequired}
        return {name: Field(kind, name in needed, about.get(name, "")) for name, kind in hints.items()}
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint, include_extras=True)
        nothing = dataclasses.MISSING
        return {
            each.name: Field(
                hints[each.name], each.default is nothing and each.default_factory is nothing, about.get(each.name, "")
            )
            for each in dataclasses.fields(hint)
            if each.init
        }
    return None


def read_object(fields: Fields, value: Any, where: str) -> dict[str, Any]:
    """The fields of a mapping as their hinted types. Raises BadArgument, which names the field."""
    if not isinstance(value, Mapping):
        raise _wrong(where, "an object", value)
    for name in value:
        if name not in fields:
            known = f"The names are: {', '.join(fields)}." if fields else "It takes none."
            raise BadArgument(f"{_join(where, str(name)[:_SHOWN])} is not known. {known}")
    for name, field in fields.items():
        if field.required and name not in value:
            raise BadArgument(f"{_join(where, name)} is missing.")
    return {name: read(fields[name].hint, item, _join(where, name)) for name, item in value.items()}


def read(hint: Any, value: Any, where: str) -> Any:
    """The value as its hint's type. Raises BadArgument."""
    hint, nullable = _alternatives(_bare(hint)[0])
    if hint is Any or (nullable and value is None):
        return value
    if nullable:
        return read(hint, value, where)
    if hint in _PLAIN:
        return _plain(hint, value, where)
    if (allowed := _allowed(hint)) is not None:
        for written, meant in allowed.items():
            if type(written) is type(value) and written == value:
                return meant
        raise _wrong(where, f"one of {', '.join(map(repr, allowed))}", value)
    origin, args = get_origin(hint) or hint, get_args(hint)
    if (fields := members(hint)) is not None:
        return _record(hint, fields, value, where)
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise _wrong(where, "an object", value)
        return {key: read(args[1] if args else Any, item, _join(where, str(key))) for key, item in value.items()}
    if not isinstance(value, (list, tuple)):
        raise _wrong(where, "a list", value)
    items = [read(args[0] if args else Any, item, f"{where}[{index}]") for index, item in enumerate(value)]
    try:
        return {tuple: tuple, set: set, Set: set, frozenset: frozenset}.get(origin, list)(items)
    except TypeError:
        raise _wrong(where, "a list of simple values", value) from None


def _plain(hint: Any, value: Any, where: str) -> Any:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    try:
        if (hint is float and number) or (hint is int and number and value == int(value)):
            return hint(value)
    except (OverflowError, ValueError):  # infinity and NaN are no whole number; a huge one is no float
        pass
    if type(value) is hint:
        return value
    kinds = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}
    raise _wrong(where, kinds.get(hint, "null"), value)


def _record(hint: Any, fields: Fields, value: Any, where: str) -> Any:
    if hasattr(hint, "model_validate"):
        if not isinstance(value, Mapping):
            raise _wrong(where, "an object", value)
        try:
            return hint.model_validate(dict(value))
        except ValueError as error:
            raise BadArgument(f"{where}: {' '.join(str(error).split())[:300]}") from None
    found = read_object(fields, value, where)
    try:
        return hint(**found)
    except (TypeError, ValueError) as error:  # what its __post_init__ refuses
        raise BadArgument(f"{where}: {error}") from None


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _wrong(where: str, expected: str, value: Any) -> BadArgument:
    shown = repr(value)
    return BadArgument(f"{where or 'It'} must be {expected}, not {shown if len(shown) <= _SHOWN else shown[:_SHOWN] + '…'}.")
