"""A comparison as JSON and back: everything that was found, equal to the records it came from."""

from __future__ import annotations

import json
import math
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

from localgemma.compare.records import Comparison
from localgemma.errors import UsageError

FORMAT, VERSION = "localgemma comparison", 1
_HINT = "Give a file that localgemma compare --json wrote."


def to_json(comparison: Comparison) -> str:
    """The whole comparison, indented. JSON knows no infinity and no NaN, so these are written as text ("inf", "nan")."""
    data = {"format": FORMAT, "version": VERSION, **_plain(comparison)}
    return json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def from_json(text: str) -> Comparison:
    """The comparison that `to_json` wrote. Raises UsageError for anything else, with the place of the first fault."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"This is not JSON: {error}.", _HINT) from None
    if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
        raise UsageError("This JSON is no comparison.", _HINT)
    version = data.pop("version", None)
    if version != VERSION:
        raise UsageError(
            f"This comparison has format {version!r}, and {VERSION} is known.", "Update localgemma, or compare anew."
        )
    result: Comparison = _record(Comparison, data, "comparison")
    return result


def _plain(value: Any) -> Any:
    """Records as objects, tuples as arrays, numbers that JSON does not know as text."""
    if is_dataclass(value):
        return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _record(kind: Any, data: Any, where: str) -> Any:
    if not isinstance(data, dict):
        raise _wrong(where, "an object", data)
    hints = get_type_hints(kind)
    known = {item.name for item in fields(kind)}
    for name in data:
        if name not in known:
            raise UsageError(f"{where} has the unknown field {name[:40]!r}.", _HINT)
    try:
        return kind(**{name: _value(hints[name], item, f"{where}.{name}") for name, item in data.items()})
    except TypeError:
        raise UsageError(f"{where} lacks a field.", _HINT) from None


def _value(kind: Any, data: Any, where: str) -> Any:
    """`data` as the annotation `kind` says; only the kinds that the records use."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return None if data is None else _value(next(arg for arg in args if arg is not types.NoneType), data, where)
    if is_dataclass(kind):
        return _record(kind, data, where)
    if origin is tuple:
        return _tuple(args, data, where)
    if origin is Mapping:
        if not isinstance(data, dict):
            raise _wrong(where, "an object", data)
        return {key: _value(args[1], item, f"{where}.{key[:40]}") for key, item in data.items()}
    if kind is float:
        return _float(data, where)
    if type(data) is not kind:
        raise _wrong(where, kind.__name__, data)
    return data


def _tuple(args: tuple[Any, ...], data: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(data, list):
        raise _wrong(where, "an array", data)
    kinds = [args[0]] * len(data) if len(args) == 2 and args[1] is Ellipsis else list(args)
    if len(kinds) != len(data):
        raise _wrong(where, f"{len(kinds)} values", data)
    return tuple(_value(kind, item, f"{where}[{index}]") for index, (kind, item) in enumerate(zip(kinds, data, strict=True)))


def _float(data: Any, where: str) -> float:
    if isinstance(data, str) and data in ("inf", "-inf", "nan"):
        return float(data)
    if isinstance(data, int | float) and not isinstance(data, bool):
        return float(data)
    raise _wrong(where, "a number", data)


def _wrong(where: str, wanted: str, data: Any) -> UsageError:
    return UsageError(f"{where} is {str(data)[:40]!r}, and {wanted} belongs there.", _HINT)
