"""A conversation as a document: Markdown to read, or messages in the OpenAI form with their pictures inside."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable
from typing import Any

from localgemma.chat.record import png
from localgemma.gemma4.prompt import as_mapping
from localgemma.messages import ImagePart, Message, Pixels, TextPart, VideoPart


def as_markdown(system: str | None, messages: Iterable[Message], place: Callable[[Pixels], str] | None = None) -> str:
    """The conversation as Markdown. `place` gives the address of a picture's file; without it pictures are only named."""
    lines = [f"**system**\n\n{system}\n"] if system else []
    for message in messages:
        blocks = ["\n".join(f"> {line}".rstrip() for line in message.thinking.strip().splitlines())]
        for part in message.content:
            if isinstance(part, TextPart):
                blocks.append(part.text)
            elif isinstance(part, VideoPart):
                blocks.append(f"[video: {part.source}]")
            elif place is not None and part.pixels is not None:
                blocks.append(f"![{part.source}]({place(part.pixels)})")
            else:
                blocks.append(f"[picture: {part.source}]")
        for call in message.tool_calls:
            blocks.append(f"`{call.name}({json.dumps(dict(call.arguments), ensure_ascii=False, default=str)})`")
        if message.result is not None:
            blocks.append(f"```json\n{json.dumps(message.result, ensure_ascii=False, indent=1, default=str)}\n```")
        blocks.append("…" if message.cut else "")
        lines.append(f"**{message.name or message.role}**\n\n" + "\n\n".join(filter(None, blocks)) + "\n")
    return "\n".join(lines)


def as_messages(system: str | None, messages: Iterable[Message]) -> list[dict[str, Any]]:
    """The conversation as chat programs take it: OpenAI's message form, pictures and video frames as data: URLs."""
    rows: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    for message in messages:
        row = as_mapping(message)
        if any(not isinstance(part, TextPart) for part in message.content):
            row["content"] = [item for part in message.read for item in _items(part)]
        elif not isinstance(row["content"], str):
            row["content"] = json.dumps(message.result, ensure_ascii=False, default=str)
        for call in row.get("tool_calls", ()):
            arguments = json.dumps(dict(call["function"]["arguments"]), ensure_ascii=False, default=str)
            call["function"] = call["function"] | {"arguments": arguments}
        rows.append(row)
    return rows


def _items(part: TextPart | ImagePart | VideoPart) -> list[dict[str, Any]]:
    if isinstance(part, TextPart):
        return [{"type": "text", "text": part.text}]
    pictures = [part.pixels] if isinstance(part, ImagePart) else [pixels for _, pixels in part.frames]
    urls = [part.source if pixels is None else _data_url(pixels) for pixels in pictures]
    return [{"type": "image_url", "image_url": {"url": url}} for url in urls]


def _data_url(pixels: Pixels) -> str:
    return f"data:image/png;base64,{base64.b64encode(png(pixels)).decode()}"
