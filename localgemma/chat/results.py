"""What a tool gave back, as the conversation keeps it: words, data or pictures, within a limit of characters."""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from localgemma.messages import ImagePart, Message, Part, Pixels, TextPart, ToolCall

_DEPTH = 64  # levels of data, as many as a call may have; what is nested more deeply is written out as text
_PICTURES = 8  # of one result


class ToolFailed(Exception):
    """A tool's own report of an error, in words for the model."""


def failure(call: ToolCall, text: str) -> Message:
    """The answer to a call that gave nothing, for the model to read."""
    return Message("tool", tool_call_id=call.id, name=call.name, result={"error": text})


def success(call: ToolCall, value: Any, limit: int, picture: Callable[[Any], Part]) -> Message:
    """What a tool returned, as a message. Text stays text, data become plain JSON, pictures are read by `picture`.

    Text beyond `limit` characters in all is cut, which the text says, and pictures beyond the eighth are left out. Raises
    whatever a value raises that is none of these.
    """
    if inspect.iscoroutine(value):
        value = asyncio.run(value)
    items = value if isinstance(value, (list, tuple)) and any(map(_is_picture, value)) else [value]
    if any(map(_is_picture, items)):
        return Message("tool", tuple(_parts(items, limit, picture)), tool_call_id=call.id, name=call.name)
    if not isinstance(value, str):
        data = json.loads(json.dumps(value, default=_plain))
        text = json.dumps(data, ensure_ascii=False)
        if len(text) <= limit and not _is_deeper(data, _DEPTH):
            data = data if isinstance(data, Mapping) else {"value": data}
            return Message("tool", tool_call_id=call.id, name=call.name, result=data)
        value = text
    return Message("tool", (TextPart(_cut(value, limit)),), tool_call_id=call.id, name=call.name)


def _parts(items: Sequence[Any], limit: int, picture: Callable[[Any], Part]) -> Iterator[Part]:
    """Pictures and the words around them."""
    seen = 0
    for item in items:
        if _is_picture(item):
            seen += 1
            if seen <= _PICTURES:
                yield picture(_source(item))
        elif limit > 0:
            text = item if isinstance(item, str) else json.dumps(item, default=_plain, ensure_ascii=False)
            yield TextPart(_cut(text, limit))
            limit -= len(text)
    if seen > _PICTURES:
        yield TextPart(f"[{seen - _PICTURES} more pictures are left out]")


def _is_deeper(data: Any, levels: int) -> bool:
    """Whether plain data are nested beyond this many levels."""
    layer = [data]
    for _ in range(levels):
        layer = [each for each in layer if isinstance(each, (dict, list))]
        layer = [inner for each in layer for inner in (each.values() if isinstance(each, dict) else each)]
    return bool(layer)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]}\n[cut: the first {limit:,} of {len(text):,} characters]"


def _is_picture(value: Any) -> bool:
    return isinstance(value, (Pixels, ImagePart, bytes)) or any(
        base.__module__.startswith("PIL.") and base.__name__ == "Image" for base in type(value).__mro__
    )


def _source(value: Any) -> Any:
    return ImagePart(value, "picture") if isinstance(value, Pixels) else value


def _plain(value: Any) -> Any:
    """What JSON has no form for."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=str)
    if isinstance(value, Mapping):
        return dict(value)
    if any("__str__" in vars(base) for base in type(value).__mro__[:-1]):  # times, paths, decimals
        return str(value)
    raise TypeError(f"a {type(value).__name__} cannot be shown to the model: return text, data or a picture")
