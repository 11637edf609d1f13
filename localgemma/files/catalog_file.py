"""Reads and checks models.toml: the one that comes with localgemma, and a user's own that adds to it or overrides it.

Whatever is wrong is a `UsageError` that says file, line and field.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from localgemma.errors import UsageError

Raw = dict[str, Any]
Where = tuple[str | int, ...]  # a value's way through tables and lists
ROLES = ("text", "projector", "drafter")
MAX_BYTES = 1 << 50
_HINT = "Correct that line, or move the file away."


def _text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip()) and value.isprintable()


def _prose(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _words(value: object) -> bool:
    return isinstance(value, list) and all(map(_text, value))


def _size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < MAX_BYTES


def _figures(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in value.values())


def is_safe_path(value: object) -> bool:
    """Whether this is a relative path of a .gguf file that stays inside its folder on every system."""
    if not _text(value) or not isinstance(value, str) or "\\" in value or ":" in value or not value.endswith(".gguf"):
        return False
    return not PurePosixPath(value).is_absolute() and all(part.strip(" .") for part in value.split("/"))


def _matches(pattern: str) -> Callable[[object], bool]:
    return lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None


_Check = tuple[Callable[[object], bool], str]
_TEXT: _Check = (_text, "a text")
_SHA256: _Check = (_matches(r"[0-9a-f]{64}"), "64 hexadecimal digits in lower case")
_REVISION: _Check = (
    _matches(r"[0-9a-f]{40}|[A-Za-z0-9][A-Za-z0-9._/-]{0,99}"),
    "a commit's 40 hexadecimal digits, or a branch",
)
_BYTES: _Check = (_size, "a whole number of bytes")
_FIGURES: _Check = (_figures, "numbers by the name of their measure, like { localbench = 0.16 }")
_PATH: _Check = (is_safe_path, "a path of a .gguf file inside the repository")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
FIELDS: dict[str, dict[str, _Check]] = {
    "measure": {
        "title": _TEXT,
        "metric": _TEXT,
        "better": (_matches("lower|higher"), "'lower' or 'higher'"),
        "caution": _TEXT,
    },
    "model": {
        "title": _TEXT,
        "description": (_prose, "a text"),
        "aliases": (_words, "a list of names"),
        "default": (_matches(r"[^:@\s]+@[^:@\s]+"), "QUANT@PUBLISHER"),
        "default_reason": _TEXT,
        "parameters": (_size, "a whole number"),
        "width": (_size, "a whole number"),
        "kv": (lambda v: isinstance(v, dict) and all(map(_figures, v.values())), "figures by the type of the KV cache"),
    },
    "publisher": {
        "title": _TEXT,
        "repository": (_matches(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"), "OWNER/NAME of a repository on the hub"),
        "revision": _REVISION,
        "folder": _TEXT,
        "qat": (lambda v: isinstance(v, bool), "true or false"),
        "drafter_from": _TEXT,
        "projector_from": _TEXT,
    },
    "file": {
        "quant": (_matches(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}"), "a quantisation like Q4_K_M"),
        "path": _PATH,
        "revision": _REVISION,
        "bytes": _BYTES,
        "about": _BYTES,
        "sha256": _SHA256,
        "quality": _FIGURES,
    },
    "replaced": {"path": _PATH, "sha256": _SHA256, "bytes": _BYTES, "seen": _TEXT},
}


class CatalogFile:
    """One models.toml: `data` is its content, checked field by field but not for what is missing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._text = path.read_bytes().decode("utf-8")
            self.data: Raw = tomllib.loads(self._text)
        except tomllib.TOMLDecodeError as error:
            raise UsageError(f"{path} is no valid TOML: {error}.", _HINT) from None
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise UsageError(f"{path} could not be read: {reason}.", _HINT) from None
        self._check()

    def bad(self, where: Where, what: str, hint: str = _HINT) -> NoReturn:
        """A UsageError that names file, line and field."""
        field = "".join(f"[{part + 1}]" if isinstance(part, int) else f".{part}" for part in where).lstrip(".")
        line = self._line(where)
        raise UsageError(f"{self.path}{f', line {line}' if line else ''}, {field}: {what}.", hint)

    def has(self, where: Where) -> bool:
        """Whether this file has a value there."""
        return _has(self.data, where)

    def _line(self, where: Where) -> int:
        """The line on which the value ends: the first one up to which the file holds it; 0 where it has none."""
        lines = self._text.splitlines(keepends=True)
        while where and not self.has(where):
            where = where[:-1]  # what is missing is reported at the table that should have it
        for end in range(1, len(lines) + 1 if where else 0):
            for closing in ("", "]"):  # a list may still be open
                try:
                    head = tomllib.loads("".join(lines[:end]) + closing)
                except tomllib.TOMLDecodeError:
                    continue
                if _has(head, where):
                    return end
        return 0

    def _check(self) -> None:
        for key in self.data:
            if key not in ("measures", "models"):
                self._unknown((key,), key, ("measures", "models"))
        for name in self._tables(("measures",)):
            self._fields(("measures", name), "measure")
        for model in self._tables(("models",)):
            self._fields(("models", model), "model", ("publishers",))
            for publisher in self._tables(("models", model, "publishers")):
                where = ("models", model, "publishers", publisher)
                self._fields(where, "publisher", (*ROLES, "replaced"))
                for role in (*ROLES, "replaced"):
                    for index in self._list((*where, role)):
                        self._fields((*where, role, index), "replaced" if role == "replaced" else "file")

    def _at(self, where: Where) -> Any:
        value: Any = self.data
        for part in where:
            value = value[part]
        return value

    def _tables(self, where: Where) -> list[str]:
        value = self._at(where) if self.has(where) else {}
        if not isinstance(value, dict):
            self.bad(where, "it is not a table of tables")
        for name in value:
            if not _NAME.fullmatch(name):
                self.bad((*where, name), "a name is made of letters, digits, dots and dashes")
            if not isinstance(value[name], dict):
                self.bad((*where, name), "it is not a table")
        return list(value)

    def _list(self, where: Where) -> range:
        value = self._at(where) if self.has(where) else []
        if not isinstance(value, list):
            self.bad(where, "it is not a list of files")
        return range(len(value))

    def _fields(self, where: Where, kind: str, more: tuple[str, ...] = ()) -> None:
        table, known = self._at(where), FIELDS[kind]
        if not isinstance(table, dict):
            self.bad(where, f"it is not a {kind} in braces")
        for name, value in table.items():
            if name in known:
                allowed, what = known[name]
                if not allowed(value):
                    self.bad((*where, name), f"{str(value)[:80]!r} is not {what}")
            elif name not in more:
                self._unknown((*where, name), name, (*known, *more))

    def _unknown(self, where: Where, name: str, known: tuple[str, ...]) -> NoReturn:
        near = difflib.get_close_matches(name, known, 1)
        self.bad(where, "there is no such field", f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(known)}.")


def _has(data: object, where: Where) -> bool:
    for part in where:
        if isinstance(data, list):
            if not isinstance(part, int) or part >= len(data):
                return False
            data = data[part]
        elif not isinstance(data, dict) or part not in data:
            return False
        else:
            data = data[part]
    return True


def merged(base: Mapping[str, Any], own: Mapping[str, Any]) -> Raw:
    """`base` with what `own` adds or overrides; files are the same where their path is."""
    result: Raw = dict(base)
    for key, value in own.items():
        before = result.get(key)
        if isinstance(before, dict) and isinstance(value, dict) and key != "quality":
            result[key] = merged(before, value)
        elif isinstance(before, list) and key in (*ROLES, "replaced"):
            files = {file.get("path"): file for file in before}
            for file in value:
                files[file.get("path")] = {**files.get(file.get("path"), {}), **file}
            result[key] = list(files.values())
        else:
            result[key] = value
    return result
