"""A conversation on disk: a folder with `chat.json` to read, and its pictures beside it, named by their hash.

Nothing is trusted when it comes back: every field is checked, and a picture must have the hash that its name says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from localgemma.chat.functions import as_tools
from localgemma.errors import BadConversation, DiskError, LocalgemmaError, NotFound, UsageError
from localgemma.gemma4 import vision
from localgemma.messages import ImagePart, Message, Part, Pixels, TextPart, ToolCall, VideoPart
from localgemma.options import ChatOptions, Sampling, updated
from localgemma.whole import whole_file

FORMAT = 1
FILE, PICTURES, STATE, LOCK = "chat.json", "pictures", "state.bin", "lock"
_HASH = re.compile(r"[0-9a-f]{64}")
_ROLES = ("user", "assistant", "tool")
_Options = TypeVar("_Options", ChatOptions, Sampling)


@dataclass(frozen=True, slots=True)
class Record:
    """What is kept of a conversation: `tools` are their declarations. Times are ISO 8601, UTC; `model` is its name."""

    messages: tuple[Message, ...] = ()
    system: str | None = None
    options: ChatOptions = field(default_factory=ChatOptions)
    sampling: Sampling = field(default_factory=Sampling)
    model: str = ""
    created: str = ""
    updated: str = ""
    tools: tuple[Mapping[str, Any], ...] = ()


@contextmanager
def held(folder: Path, timeout: float = 0) -> Iterator[None]:
    """Hold the folder's lock, which ends with this process at the latest. Raises UsageError if another process has it."""
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = FileLock(folder / LOCK, timeout=timeout)
        lock.acquire()
    except Timeout:
        hint = "Leave it there first, or take another name: --session NAME"
        raise UsageError(f"The chat {folder.name} is open in another process.", hint) from None
    except OSError as error:
        raise _failed(folder, error) from error
    try:
        yield
    finally:
        lock.release()


def write(folder: Path, record: Record) -> None:
    """Save the conversation: pictures first, then `chat.json` in one step, so that a crash leaves the one before.

    The caller holds the folder. Raises DiskError.
    """
    pictures = {pixels.sha256: pixels for message in record.messages for pixels in _pixels(message)}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    record = replace(record, created=record.created or now, updated=now)
    text = json.dumps(as_json(record), ensure_ascii=False, indent=1, default=str) + "\n"
    try:
        data = text.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which UTF-8 cannot say
        data = json.dumps(as_json(record), indent=1, default=str).encode()
    shelf = folder / PICTURES
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if pictures:
            shelf.mkdir(exist_ok=True)
        for name, pixels in pictures.items():
            if not (shelf / f"{name}.png").exists():
                with whole_file(shelf / f"{name}.png") as stream:
                    stream.write(png(pixels))
        with whole_file(folder / FILE) as stream:
            stream.write(data)
        for path in shelf.glob("*.png") if shelf.is_dir() else ():
            if path.stem not in pictures:
                path.unlink()
    except OSError as error:
        raise _failed(folder, error) from error


def read(folder: Path, *, pictures: bool = True) -> tuple[Record, list[str]]:
    """The saved conversation, and what of it is lost. Raises NotFound, DiskError, and BadConversation if it is damaged.

    Without `pictures` their files are not read, and their parts have no pixels.
    """
    path = folder / FILE
    try:
        data = json.loads(path.read_bytes())
        shelf = _Shelf(folder / PICTURES if pictures else None)
        return _parsed(data, shelf), shelf.lost
    except FileNotFoundError:
        raise NotFound(f"There is no saved chat {folder.name}.", "See what there is: localgemma sessions list") from None
    except OSError as error:
        raise _failed(folder, error) from error
    except RecursionError:
        raise _damaged(path, "it is nested too deeply") from None
    except (ValueError, TypeError, KeyError, AttributeError, UsageError) as error:
        raise _damaged(path, error.message if isinstance(error, LocalgemmaError) else str(error)) from error


def as_json(record: Record) -> dict[str, Any]:
    """The conversation as JSON data; only options that differ from the defaults are in it."""
    return {
        "format": FORMAT,
        "created": record.created,
        "updated": record.updated,
        "model": record.model,
        "system": record.system,
        "options": _changed(record.options, ChatOptions()),
        "sampling": _changed(record.sampling, Sampling()),
        **({"tools": list(record.tools)} if record.tools else {}),
        "messages": [_message(message) for message in record.messages],
    }


def _changed(options: ChatOptions | Sampling, default: ChatOptions | Sampling) -> dict[str, Any]:
    values = {f.name: getattr(options, f.name) for f in fields(options)}
    return {name: value for name, value in values.items() if value != getattr(default, name)}


def _message(message: Message) -> dict[str, Any]:
    row: dict[str, Any] = {"role": message.role}
    if len(message.content) == 1 and isinstance(part := message.content[0], TextPart) and not part.source:
        row["content"] = part.text
    elif message.content:
        row["content"] = [_part(part) for part in message.content]
    if message.tool_calls:
        row["tool_calls"] = [asdict(call) | {"arguments": dict(call.arguments)} for call in message.tool_calls]
    for name in ("thinking", "tool_call_id", "name", "cut"):
        if getattr(message, name):
            row[name] = getattr(message, name)
    if message.result is not None:
        row["result"] = message.result
    return row


def _part(part: Part) -> dict[str, Any]:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text} | ({"source": part.source} if part.source else {})
    row: dict[str, Any] = {"type": "image" if isinstance(part, ImagePart) else "video", "source": part.source}
    if part.budget is not None:
        row["budget"] = part.budget
    if isinstance(part, VideoPart):
        row["frames"] = [{"seconds": seconds, "picture": pixels.sha256} for seconds, pixels in part.frames]
    elif part.pixels is not None:
        row["picture"] = part.pixels.sha256
    return row


def _pixels(message: Message) -> Iterator[Pixels]:
    for part in message.content:
        if isinstance(part, ImagePart) and part.pixels is not None:
            yield part.pixels
        elif isinstance(part, VideoPart):
            yield from (pixels for _, pixels in part.frames)


def png(pixels: Pixels) -> bytes:
    """The picture as the bytes of a PNG file."""
    import io

    from PIL import Image

    stream = io.BytesIO()
    Image.frombytes("RGB", (pixels.width, pixels.height), pixels.rgb).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


class _Shelf:
    """The saved pictures of a conversation; `lost` says in sentences which ones could not be read.

    Without a folder no picture is read, and none is lost.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._seen: dict[str, Pixels] = {}
        self.lost: list[str] = []

    def picture(self, name: object, source: str) -> Pixels | None:
        """The picture of this hash; None, and a sentence in `lost`, where it is gone or changed."""
        if not isinstance(name, str) or not _HASH.fullmatch(name):
            raise ValueError(f"{str(name)[:80]!r} is no picture's hash")
        if name not in self._seen:
            if self.folder is None:
                return None
            try:
                self._seen[name] = _picture(self.folder / f"{name}.png", name)
            except LocalgemmaError as error:
                self.lost.append(f"The picture {source or name[:12]} of this chat is lost: {error.message}")
                return None
        return self._seen[name]


def _picture(path: Path, sha256: str) -> Pixels:
    from localgemma.chat.media import open_image

    image = open_image(path)
    pixels = vision.from_rgb(image.tobytes(), image.width, image.height)
    if pixels.sha256 != sha256:
        raise DiskError("Its file was changed.", "")
    return pixels


def _parsed(data: Any, shelf: _Shelf) -> Record:
    if data["format"] != FORMAT:
        raise ValueError(f"it is of format {data['format']}, and this localgemma reads {FORMAT}")
    system = data.get("system")
    return Record(
        tuple(_read_message(row, shelf) for row in data["messages"]),
        None if system is None else _text(system),
        _options(ChatOptions(), data.get("options", {})),
        _options(Sampling(), data.get("sampling", {})),
        _text(data.get("model", "")),
        _text(data.get("created", "")),
        _text(data.get("updated", "")),
        tuple(tool.declaration for tool in as_tools(data.get("tools", ()))),
    )


def _options(default: _Options, saved: Mapping[str, Any]) -> _Options:
    values = dict(saved)
    if "stop" in values:
        values["stop"] = tuple(map(_text, values["stop"]))
    if "logit_bias" in values:
        values["logit_bias"] = {int(token): float(bias) for token, bias in values["logit_bias"].items()}
    return updated(default, values)


def _read_message(row: Mapping[str, Any], shelf: _Shelf) -> Message:
    if row["role"] not in _ROLES:
        raise ValueError(f"a message has the role {str(row['role'])[:40]!r}")
    content = row.get("content", [])
    parts = (TextPart(content),) if isinstance(content, str) else tuple(_read_part(part, shelf) for part in content)
    calls = tuple(map(_read_call, row.get("tool_calls", ())))
    texts = {name: _text(row.get(name, "")) for name in ("thinking", "tool_call_id", "name")}
    return Message(row["role"], parts, tool_calls=calls, result=row.get("result"), cut=row.get("cut") is True, **texts)


def _read_call(row: Mapping[str, Any]) -> ToolCall:
    if not isinstance(row["arguments"], dict):
        raise ValueError("a tool call's arguments are no mapping")
    error = row.get("error")
    texts = {name: _text(row.get(name, "")) for name in ("name", "id", "raw")}
    return ToolCall(arguments=row["arguments"], error=None if error is None else _text(error), **texts)


def _read_part(row: Mapping[str, Any], shelf: _Shelf) -> Part:
    if row["type"] == "text":
        return TextPart(_text(row["text"]), _text(row.get("source", "")))
    source, budget = _text(row.get("source", "")), row.get("budget")
    if row["type"] == "image":
        if "picture" not in row:
            return ImagePart(None, source, budget)
        pixels = shelf.picture(row["picture"], source)
        return ImagePart(pixels, source, budget) if pixels or not shelf.folder else TextPart(f"[lost picture: {source}]")
    if row["type"] == "video":
        frames = [(float(frame["seconds"]), shelf.picture(frame["picture"], source)) for frame in row["frames"]]
        kept = tuple((seconds, pixels) for seconds, pixels in frames if pixels is not None)
        return VideoPart(kept, source, budget) if kept or not shelf.folder else TextPart(f"[lost video: {source}]")
    raise ValueError(f"a part has the type {str(row['type'])[:40]!r}")


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{str(value)[:40]!r} stands where a text belongs")
    return value


def _failed(folder: Path, error: OSError) -> DiskError:
    hint = "Free some space or check its permissions; --no-save chats without saving."
    return DiskError(f"The chat {folder.name} cannot be read or written: {error.strerror or error}.", hint)


def _damaged(path: Path, reason: str) -> BadConversation:
    hint = f"Repair {path}, or remove the chat: localgemma sessions rm {path.parent.name}"
    return BadConversation(f"The saved chat {path.parent.name} is damaged ({' '.join(reason.split())[:200]}).", hint)
