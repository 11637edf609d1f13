"""Saved chats of this user: a folder for each under the data folder, one process at a time in each."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from localgemma import settings
from localgemma.chat import record
from localgemma.errors import DiskError, LocalgemmaError, NotFound, UsageError

if TYPE_CHECKING:
    from localgemma.chat.conversation import Conversation

_NAME = re.compile(r"[\w][\w .+-]{0,99}")


def home() -> Path:
    """The folder of all saved chats."""
    return settings.load().data_dir / "sessions"


@dataclass(frozen=True, slots=True)
class Summary:
    """A saved chat in a list: `turns` are the user's, `size` bytes with pictures and state, `problem` why it is unreadable."""

    name: str
    updated: datetime
    title: str = ""
    turns: int = 0
    model: str = ""
    size: int = 0
    problem: str = ""


class Session:
    """A saved chat that this process holds until `close`; a context manager.

    A new one without a name gets its folder, called by the time, at the first `save`.
    """

    def __init__(self, name: str | None = None) -> None:
        """Hold the chat of this name. Raises UsageError if the name is no file name or another process holds it."""
        self._held = ExitStack()
        self._folder: Path | None = None
        self.model = ""
        self._tools: tuple[Mapping[str, Any], ...] = ()
        if name is not None:
            self._folder = _folder(name)
            self._held.enter_context(record.held(self._folder))
            _sweep(self._folder)
            try:
                if self.exists:
                    saved = record.read(self._folder, pictures=False)[0]
                    self.model, self._tools = saved.model, saved.tools
            except BaseException:
                self.close()
                raise

    @property
    def exists(self) -> bool:
        """Whether anything was saved in it yet."""
        return self._folder is not None and (self._folder / record.FILE).exists()

    @property
    def name(self) -> str:
        """Its name; empty before a nameless one was first saved."""
        return self._folder.name if self._folder else ""

    def restore(self, chat: Conversation) -> None:
        """Let `chat` become what was saved. Raises what Conversation.load raises."""
        chat.load(self._place())

    def save(self, chat: Conversation) -> None:
        """Save the conversation as it stands; without tools of its own, with those that it had. Raises DiskError."""
        kept = chat.snapshot()
        model, self._tools = self.model or chat.engine.info.model, kept.tools or self._tools
        record.write(self._place(), replace(kept, model=model, tools=self._tools))

    def save_state(self, chat: Conversation) -> int:
        """Save the engine's state too; its bytes, 0 where there is nothing to save. Raises DiskError."""
        info = chat.save_state(self._place()) if self.exists else None
        return info.bytes if info else 0

    def _place(self) -> Path:
        if self._folder is None:
            stem = datetime.now().strftime("%Y-%m-%d-%H%M%S")
            for number in range(1, 1000):
                folder = home() / (stem if number == 1 else f"{stem}-{number}")
                try:
                    folder.mkdir(parents=True, mode=0o700)
                    break
                except FileExistsError:  # another process began a chat in the same second
                    continue
                except OSError as error:
                    raise DiskError(f"{folder} cannot be made: {error.strerror}.", "Or chat with --no-save.") from error
            self._held.enter_context(record.held(folder))
            self._folder = folder
        return self._folder

    def close(self) -> None:
        """Let other processes have it; a chat that was never saved leaves nothing behind."""
        empty = self._folder is not None and not self.exists
        self._held.close()
        if empty and self._folder is not None:
            with suppress(OSError):  # whatever else lies in the folder stays
                (self._folder / record.LOCK).unlink(missing_ok=True)
                self._folder.rmdir()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def names() -> list[str]:
    """The names of saved chats, the last one used first."""
    try:
        found = [(path.stat().st_mtime_ns, path.parent.name) for path in home().glob(f"*/{record.FILE}")]
    except OSError as error:
        raise DiskError(f"{home()} cannot be read: {error.strerror}.", "Check its permissions.") from error
    return [name for _, name in sorted(found, reverse=True)]


def newest() -> str:
    """The name of the last one used. Raises NotFound."""
    found = names()
    if not found:
        raise NotFound("There is no saved chat yet.", "Start one: localgemma chat")
    return found[0]


def read(name: str, *, pictures: bool = False) -> record.Record:
    """What is saved under a name. Raises NotFound, BadConversation and DiskError."""
    return record.read(_folder(name), pictures=pictures)[0]


def summary(name: str) -> Summary:
    """A saved chat in a line. Raises NotFound."""
    folder = _folder(name)
    try:
        when = datetime.fromtimestamp((folder / record.FILE).stat().st_mtime).astimezone()
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    except OSError:
        raise _missing(name) from None
    try:
        found = record.read(folder, pictures=False)[0]
    except LocalgemmaError as error:
        return Summary(name, when, size=size, problem=error.message)
    said = [message.text for message in found.messages if message.role == "user"]
    title = " ".join(said[0].split())[:80] if said else ""
    return Summary(name, when, title, len(said), found.model, size)


def remove(name: str) -> None:
    """Delete a saved chat with its pictures and state. Raises NotFound, DiskError, and UsageError if it is in use."""
    folder = _folder(name)
    if not folder.is_dir():
        raise _missing(name)
    with record.held(folder):
        try:
            (folder / record.FILE).unlink(missing_ok=True)  # first, so that half a deletion is no chat
            for path in folder.iterdir():
                if path.name != record.LOCK:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        except OSError as error:
            raise DiskError(f"{folder} cannot be removed: {error.strerror}.", "Check its permissions.") from error
    shutil.rmtree(folder, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Take away what a killed process had half written; the caller holds the folder."""
    for pattern in ("*.part", f"{record.PICTURES}/*.part"):
        for path in folder.glob(pattern):
            with suppress(OSError):
                path.unlink()


def _folder(name: str) -> Path:
    if not _NAME.fullmatch(name) or name.endswith((".", " ")):
        hint = "Use letters, digits, spaces, dots and dashes, at most 100: --session trip"
        raise UsageError(f"A chat cannot be called {name[:100]!r}.", hint)
    return home() / name


def _missing(name: str) -> NotFound:
    return NotFound(f"There is no saved chat {name}.", "See what there is: localgemma sessions list")
