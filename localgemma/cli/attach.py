"""What goes along with a message: files given by name, dropped or pasted onto the terminal, and the clipboard's picture."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import click

from localgemma.chat.documents import PICTURES
from localgemma.errors import BadMedia, LockedDocument, NotFound

if TYPE_CHECKING:
    from localgemma.chat.pdf import Wanted

_POSIX_WORD = re.compile(r"""(?:'[^']*'|"(?:\\.|[^"\\])*"|\\.|[^\s'"\\]|['"\\])+""", re.DOTALL)
_WINDOWS_WORD = re.compile(r"""(?:'[^']*'|"[^"]*"|[^\s'"]|['"])+""")
_WHOLE_PATH = re.compile(r"(?:/|~|[A-Za-z]:[\\/]|\\\\)")  # a sentence may name README.md without meaning to send it
_IS_WINDOWS = sys.platform == "win32"


def attachments(files: Sequence[str]) -> list[Any]:
    """The files as `Conversation.send` takes them; texts are read, and the password of a locked PDF is asked for.

    Raises NotFound and BadMedia.
    """
    from localgemma.chat import documents, pdf
    from localgemma.chat.parts import kind_of

    found: list[Any] = []
    for name in files:
        if name.startswith(("http://", "https://", "data:")):
            found.append(name)
        elif (asked := pdf.wanted(name)) is not None:
            found.append(_unlocked(name, asked))
        else:
            path, budget = _existing(name)
            is_text = not budget and kind_of(name) == "text"
            found.append(documents.read(path) if is_text else name)
    return found


def _unlocked(name: str, asked: Wanted) -> str:
    """The PDF's name, with its password if that had to be asked for."""
    from localgemma.chat import pdf

    try:
        pdf.check(asked)
    except LockedDocument as error:
        if asked.password is not None or sys.stdin is None or not sys.stdin.isatty():
            raise
        password = click.prompt(f"{error.message} Password", hide_input=True, default="", show_default=False, err=True)
        name = f"{name}#password={password}"
        again = pdf.wanted(name)
        if not password or again is None:
            raise
        pdf.check(again)
    return name


def _existing(name: str) -> tuple[Path, int | None]:
    """The file, and its budget."""
    from localgemma.chat.media import split_budget

    bare, budget = split_budget(name)
    path = Path(bare).expanduser()
    try:
        if path.is_dir():
            raise BadMedia(f"{bare} is a folder.", "Give the files inside it, each with -f.")
        if not path.exists():
            raise NotFound(f"There is no file {bare}.", "Check its name, or give its whole path.")
    except (OSError, ValueError):
        raise BadMedia(f"{bare[:80]!r} is no file name.", "Check its name.") from None
    return path, budget


def words(text: str, *, windows: bool = _IS_WINDOWS) -> list[str]:
    """The words of a line as a shell reads them, quotes and escapes resolved; a lone quote is itself."""
    return [word for word, _, _ in _words(text, windows)]


def dropped(line: str, *, windows: bool = _IS_WINDOWS) -> tuple[list[str], str]:
    """The files that were dropped or pasted onto a line, and the words around them.

    A line of nothing but existing files gives them all. In a sentence only pictures named by their whole path count.
    """
    whole = _local(line.strip(), windows)
    if _looks_like_path(whole) and _is_file(whole):
        return [whole], ""
    found = [(_local(word, windows), start, end) for word, start, end in _words(line, windows)]
    if found and all(_looks_like_path(name) and _is_file(name) for name, _, _ in found):
        return [name for name, _, _ in found], ""
    files: list[str] = []
    rest, at = "", 0
    for name, start, end in found:
        if _WHOLE_PATH.match(name) and Path(name).suffix.lower() in PICTURES and _is_file(name):
            files.append(name)
            rest, at = rest + line[at:start].rstrip(" "), end
    return files, (rest + line[at:]).strip()


def clipboard() -> list[Any]:
    """What the clipboard holds for a message: a picture, or the names of copied files. Raises BadMedia and NotFound."""
    from PIL import ImageGrab

    try:
        found = ImageGrab.grabclipboard()
    except NotImplementedError:
        tool = "Install wl-clipboard (Wayland) or xclip (X11), or attach the file: /file picture.png"
        raise NotFound("No program here reads the clipboard's picture.", tool) from None
    except Exception as error:  # whatever a helper program or a damaged picture trips over
        reason = " ".join(str(error).split())[:200].rstrip(".")
        hint = "Save the picture and attach the file: /file picture.png"
        raise BadMedia(f"The clipboard cannot be read ({reason}).", hint) from None
    if not found:
        raise BadMedia("There is no picture in the clipboard.", "Copy one, then /paste again.")
    if isinstance(found, list):
        return found
    found.filename = "pasted picture"  # type: ignore[attr-defined]  # the name that notices and saved chats show
    return [found]


def _words(text: str, windows: bool) -> Iterator[tuple[str, int, int]]:
    for match in (_WINDOWS_WORD if windows else _POSIX_WORD).finditer(text):
        yield _unquoted(match[0], windows), match.start(), match.end()


def _unquoted(word: str, windows: bool) -> str:
    def plain(found: re.Match[str]) -> str:
        part = found[0]
        if part[0] in "'\"":
            inner = part[1:-1]
            return inner if windows or part[0] == "'" else re.sub(r"\\(.)", r"\1", inner, flags=re.DOTALL)
        return part[1:]

    pattern = r"""'[^']*'|"[^"]*\"""" if windows else r"""'[^']*'|"(?:\\.|[^"\\])*"|\\."""
    return re.sub(pattern, plain, word, flags=re.DOTALL)


def _local(name: str, windows: bool) -> str:
    """The path of a file: URL of this machine; every other name as it is."""
    if not name.lower().startswith("file://"):
        return name
    host, slash, path = name[7:].partition("/")
    if host.lower() not in ("", "localhost"):
        return name
    path = unquote(slash + path)
    return path[1:] if windows and re.match(r"/[A-Za-z]:", path) else path


def _looks_like_path(name: str) -> bool:
    return any(mark in name for mark in ("/", "\\", "."))


def _is_file(name: str) -> bool:
    try:
        return Path(name).expanduser().is_file()
    except (OSError, ValueError, RuntimeError):
        return False
