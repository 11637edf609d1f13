"""What an MCP tool answered, as a tool of this program returns it: text, data, pictures, or an error."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any

import mcp.types as types

from localgemma.chat.results import ToolFailed
from localgemma.units import format_size


def value_of(result: types.CallToolResult) -> Any:
    """A string, plain data, or a list of strings and pictures (bytes). Raises ToolFailed where the tool reports an error."""
    items = [item for block in result.content if (item := _item(block)) != ""]
    pictures = any(isinstance(item, bytes) for item in items)
    text = "\n\n".join(item for item in items if isinstance(item, str))
    if result.is_error:
        raise ToolFailed(text or "The tool failed and said nothing.")
    if pictures:
        return items
    data = result.structured_content
    if data is None or data == {"result": text}:  # what servers wrap a text in
        return _data(text)
    if not text or _same(text, data):
        return data
    return f"{text}\n\n{json.dumps(data, ensure_ascii=False)}"


def _item(block: types.ContentBlock) -> str | bytes:
    """One block of an answer; what the model cannot take is named."""
    if isinstance(block, types.TextContent):
        return block.text
    if isinstance(block, types.ImageContent):
        return _bytes(block.data)
    if isinstance(block, types.AudioContent):
        return f"[a sound, {format_size(len(block.data) * 3 // 4)}, which cannot be heard here]"
    if isinstance(block, types.ResourceLink):
        return f"[{block.title or block.name}: {block.uri}]"
    resource = block.resource
    if isinstance(resource, types.TextResourceContents):
        return f"{resource.uri}:\n{resource.text}"
    if (resource.mime_type or "").startswith("image/"):
        return _bytes(resource.blob)
    return f"[{resource.uri}, a file of {format_size(len(resource.blob) * 3 // 4)}]"


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=False)
    except (binascii.Error, ValueError):
        raise ToolFailed("The tool sent a picture that is not base64.") from None


def _data(text: str) -> Any:
    """A mapping where the text is one in JSON, as servers write it that know no structured answers; else the text."""
    if not text.startswith("{"):
        return text
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return found if isinstance(found, dict) else text


def _same(text: str, data: Any) -> bool:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return bool(found in (data, {"result": data}) or data == {"result": found})
