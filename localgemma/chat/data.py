"""Files of data: plain texts, and chats as .jsonl with their thoughts, tools and pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from localgemma.engine import Media, Prompt
from localgemma.errors import DiskError, LocalgemmaError, NotFound, UsageError
from localgemma.gemma4.prompt import MARKS, MediaReader, picture, render, video
from localgemma.messages import ImagePart, Message, Part, TextPart, ToolCall, VideoPart

Piece: TypeAlias = str | Prompt
PartReader: TypeAlias = Callable[[Mapping[str, Any]], Part]
_FORM = 'Write a line like {"messages": [{"role": "user", "content": "…"}, …]} or {"text": "…"}.'


@dataclass(frozen=True, slots=True)
class Row:
    """One text (`text`), or one chat as it is written; `record` is the whole line, `where` names it in a sentence."""

    where: str
    text: str = ""
    messages: tuple[Mapping[str, Any], ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()
    thinking: bool = False
    record: Mapping[str, Any] | None = None

    def within(self, error: LocalgemmaError) -> LocalgemmaError:
        """The error with the place of this row before it."""
        error.message = f"{self.where}: {error.message}"
        return error


def read_text(path: Path) -> str:
    """A file as text. Raises NotFound, DiskError, and UsageError for one that is no text or has none."""
    text = _decoded(path)
    if not text.strip():
        raise UsageError(f"{path.name} has no text.", "Give a file with some pages of it.")
    return text


def _decoded(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFound(f"There is no file {path}.", "Check its name.") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path.name} is not text in UTF-8.", "Give text, or chats as .jsonl.") from None
    except (OSError, ValueError) as error:
        raise DiskError(f"{str(path)!r} could not be read: {error}.", "Check its name and permissions.") from error


def read_rows(path: Path) -> list[Row]:
    """The rows of a file: every line of a .jsonl is a chat or a text of its own, any other file is one text.

    A chat has `messages`, and may have `tools` and `enable_thinking`. Raises NotFound, DiskError, and UsageError naming the
    line that is neither.
    """
    if path.suffix.lower() != ".jsonl":
        return [Row(path.name, read_text(path))]
    rows = []
    for number, line in enumerate(_decoded(path).split("\n"), 1):
        if line.strip():
            where = f"Line {number} of {path.name}"
            try:
                rows.append(_row(json.loads(line), where))
            except (ValueError, RecursionError):
                raise UsageError(f"{where} is not JSON.", _FORM) from None
    if not rows:
        raise UsageError(f"{path.name} has no lines.", _FORM)
    return rows


def _row(record: Any, where: str) -> Row:
    if isinstance(record, Mapping):
        messages, tools = record.get("messages"), record.get("tools") or ()
        if isinstance(messages, list) and messages and isinstance(tools, list | tuple):
            return Row(where, "", tuple(messages), tuple(tools), bool(record.get("enable_thinking")), record)
        if isinstance(record.get("text"), str) and record["text"].strip():
            return Row(where, str(record["text"]), record=record)
    raise UsageError(f"{where}: It has neither messages nor a text.", _FORM)


def read_pieces(path: Path) -> list[Piece]:
    """What the rows of a file are to a model: texts, and chats as it read and wrote them, with their pictures.

    Raises what `read_rows` raises, and BadConversation and BadMedia with the place of the row.
    """
    pieces: list[Piece] = []
    media = media_reader(part_reader(path.parent))
    for row in read_rows(path):
        try:
            pieces.append(row.text or finished(row.messages, tools=row.tools, thinking=row.thinking, media=media))
        except LocalgemmaError as error:
            raise row.within(error) from None
    return pieces


def finished(
    messages: Sequence[Message | Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] = (),
    thinking: bool = False,
    media: MediaReader | None = None,
) -> Prompt:
    """A finished chat as the model read and wrote it. Raises BadConversation."""
    return render(
        messages, tools=tools, enable_thinking=thinking, preserve_thinking=True, add_generation_prompt=False, media=media
    )


def part_reader(folder: Path, budget: int | Literal["auto"] = "auto") -> PartReader:
    """Reads the pictures that chats name; relative names count from the data file's folder.

    `budget` is for pictures that say none of their own. Raises UsageError, NotFound, BadMedia.
    """
    from localgemma.chat.media import image_part

    def read(part: Mapping[str, Any]) -> Part:
        linked = part.get("image_url")
        source = linked.get("url") if isinstance(linked, Mapping) else linked
        source = source or part.get("url") or part.get("image") or part.get("path")
        if not isinstance(source, str) or part.get("type") not in ("image", "image_url"):
            raise UsageError(f"A part of type {part.get('type')!r} cannot be read.", "Only pictures, by path or data: URL.")
        known = source.startswith(("data:", "/")) or Path(source).is_absolute()
        return image_part(source if known else folder / source, part.get("budget") or budget)

    return read


def media_reader(read: PartReader) -> MediaReader:
    """The same for `render`."""

    def media(part: Mapping[str, Any]) -> Media:
        found = read(part)
        if isinstance(found, VideoPart):
            return video(found.frames)
        assert isinstance(found, ImagePart) and found.pixels is not None
        return picture(found.pixels)

    return media


def to_message(record: Any, read: PartReader) -> Message:
    """A message of a chat in the OpenAI or transformers form as a record. Raises UsageError and what `read` raises."""
    from localgemma.gemma4.prompt import normalise

    found = normalise(record)
    role = {"model": "assistant", "developer": "system"}.get(found["role"], found["role"])
    if found.get("tool_responses"):
        raise UsageError("`tool_responses` cannot be read here.", "Give each result as a message of the role tool.")
    content, result = found.get("content") or (), None
    if isinstance(content, Mapping):
        content, result = (), content
    items = [{"type": "text", "text": content}] if isinstance(content, str) else content
    parts = tuple(read(item) if item.get("type") in MARKS else TextPart(item.get("text", "")) for item in items)
    calls = tuple(
        ToolCall(call["function"]["name"], call["function"]["arguments"] or {}, str(call.get("id") or ""))
        for call in found.get("tool_calls") or ()
    )
    thought = str(found.get("reasoning") or found.get("reasoning_content") or "")
    name, answers = str(found.get("name") or ""), str(found.get("tool_call_id") or "")
    return Message(role, parts, thought, calls, tool_call_id=answers, name=name, result=result)
