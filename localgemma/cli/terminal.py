"""Reading a line: prompt_toolkit on a terminal (history, several lines, completion), plain elsewhere."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from localgemma import settings
from localgemma.cli.attach import words

if TYPE_CHECKING:
    from prompt_toolkit.completion import CompleteEvent, Completer
    from prompt_toolkit.document import Document

FILE_COMMANDS = ("/file", "/save")
_BETWEEN_WORDS = re.compile(r"(?:^|(?<!\\)\s)$")
_OPEN_QUOTE = re.compile(r"""(?:^|\s)(?:'[^']*|"[^"]*)$""")


def reader(commands: Mapping[str, str], *, remember: bool) -> Callable[..., str]:
    """A function (prompt, default text) that returns a line, and raises EOFError and KeyboardInterrupt.

    On a terminal Esc Enter starts a new line, and lines are remembered for the next time unless `remember` is False.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return _plain
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory, History, InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    history: History = InMemoryHistory()
    folder = settings.load().data_dir
    try:
        folder.mkdir(parents=True, exist_ok=True)
        history = FileHistory(str(folder / "chat-history")) if remember else history
    except OSError:  # a read-only home: the history lives as long as the chat
        pass
    session: PromptSession[str] = PromptSession(
        history=history, completer=completer(commands), key_bindings=keys, complete_while_typing=False,
        prompt_continuation=". ",
    )  # fmt: skip

    def rich(prompt: str, default: str = "") -> str:
        return session.prompt(prompt, default=default)

    return rich


def _plain(prompt: str, default: str = "") -> str:
    sys.stderr.write(prompt)
    sys.stderr.flush()
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line


def completer(commands: Mapping[str, str]) -> Completer:
    """Completes commands with what they do, file names after the commands that take one, and paths at a line's start."""
    from prompt_toolkit.completion import Completer, Completion, PathCompleter
    from prompt_toolkit.document import Document

    paths = PathCompleter(expanduser=True)

    class Words(Completer):
        def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
            line = document.text_before_cursor
            name, space, rest = line.partition(" ")
            if not space and line.startswith("/") and "/" not in line[1:]:
                for command, text in commands.items():
                    if command.startswith(line):
                        yield Completion(command, -len(line), display_meta=text)
                return
            if space and name in commands and name not in FILE_COMMANDS:
                return
            typed = rest if space and name in FILE_COMMANDS else line
            if typed is line and not line.startswith(("/", "~", "./", "../", "'", '"')):
                return
            last = "" if _BETWEEN_WORDS.search(typed) else words(typed)[-1].lstrip("'\"")
            quoted = _OPEN_QUOTE.search(typed) is not None
            for found in paths.get_completions(Document(last), complete_event):
                text = found.text + "/" * found.display_text.endswith("/")  # the next Tab goes on inside a folder
                yield Completion(text if quoted else _escaped(text), 0, display=found.display)

    return Words()


def _escaped(text: str) -> str:
    return text if sys.platform == "win32" else text.replace("\\", "\\\\").replace(" ", "\\ ")
