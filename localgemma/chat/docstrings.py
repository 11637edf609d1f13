"""What a docstring says of a function and its parameters, in the Google, NumPy or reST form."""

from __future__ import annotations

import inspect
import re
from typing import Final

_PARAMETERS: Final = frozenset({"args", "arguments", "parameters", "params", "other parameters", "keyword arguments"})
_OTHER: Final = frozenset({"returns", "return", "yields", "raises", "examples", "example", "attributes", "see also", "notes"})
_DASHES = re.compile(r"-{3,}\s*")
_GOOGLE = re.compile(r"\*{0,2}(\w+)\s*(?:\(.*?\))?\s*:(?:\s+(.*)|\s*)$")
_NUMPY = re.compile(r"(\*{0,2}\w+(?:\s*,\s*\*{0,2}\w+)*)\s*(?::.*)?$")
_REST = re.compile(r":(\w+)(?:\s+([^:]*))?:\s*(.*)$")


def parse(docstring: str | None) -> tuple[str, dict[str, str]]:
    """The description without its sections, and the text of each parameter that has one."""
    reader = _Reader()
    lines = inspect.cleandoc(docstring or "").splitlines()
    for index, line in enumerate(lines):
        reader.take(line.rstrip(), lines[index + 1] if index + 1 < len(lines) else "")
    about = {name: " ".join(filter(None, texts)) for name, texts in reader.about.items()}
    return "\n".join(reader.prose).strip(), {name: text for name, text in about.items() if text}


class _Reader:
    """Reads line by line; `section` is None in prose, `indent` that of a Google section's entries."""

    def __init__(self) -> None:
        self.prose: list[str] = []
        self.about: dict[str, list[str]] = {}
        self.section: str | None = None
        self.numpy = False
        self.indent: int | None = None
        self.current: list[str] = []  # the entry that a continuation line belongs to

    def take(self, line: str, following: str) -> None:
        """One line, and the one after it."""
        word = line.removesuffix(":").strip().lower()
        dashed = bool(_DASHES.fullmatch(following.strip()))
        if word in _PARAMETERS | _OTHER and not line[:1].isspace() and (line.endswith(":") or dashed):
            self.section = "parameters" if word in _PARAMETERS else "other"
            self.numpy, self.indent, self.current = dashed, None, []
        elif field := _REST.match(line):
            self.section, self.current = "rest", []
            if field[1] in ("param", "parameter", "arg", "argument", "keyword") and field[2]:
                self._begin(field[2].split()[-1], field[3])
        elif self.section is None or (line and not line[0].isspace() and not self.numpy):
            self.section = None
            self.prose.append(line)
        elif not _DASHES.fullmatch(line.strip()):
            self._entry(line)

    def _entry(self, line: str) -> None:
        depth = len(line) - len(line.lstrip())
        if self.section == "parameters" and line.strip():
            self.indent = (0 if self.numpy else depth) if self.indent is None else self.indent
            found = (_NUMPY if self.numpy else _GOOGLE).match(line.strip()) if depth == self.indent else None
            if found:
                self._begin(found[1], "" if self.numpy else found[2] or "")
                return
        self.current.append(line.strip())

    def _begin(self, names: str, text: str) -> None:
        self.current = [text]
        for name in names.split(","):
            self.about[name.strip().lstrip("*")] = self.current
