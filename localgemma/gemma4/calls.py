"""Gemma 4's call syntax: `call:NAME{key:value,...}`, read into a ToolCall. A call that cannot be read keeps its text.

Strings stand between `<|"|>` markers and have no escapes. Also read, because the model writes them at times: JSON strings,
strings between `\\"` or `"\\""`, single quotes or none (one word), quoted keys, a doubled outer brace,
a comma before a closing bracket, `:NAME{` without its `call`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any

from localgemma.gemma4.tokens import QUOTE
from localgemma.messages import ToolCall

MAX_DEPTH = 64
MAX_DIGITS = 4000  # Python refuses to read more than 4,300
HEAD = re.compile(r"\s*(?:call:[ \t]*|:(?=[^\s{}]+\{))([^\s{}()<>\"'|]+)\s*")
_SPACE = re.compile(r"\s*")
BARE_KEY = re.compile(r"[^:,{}\[\]\"'<>\s](?:[^:,{}\[\]\"<>]*[^:,{}\[\]\"<>\s])?(?=\s*:)")
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?(?![\w.])")
_WORD = re.compile(r"[^\W\d][\w.\-]*")
_WORDS: dict[str, bool | None] = {"true": True, "false": False, "null": None, "True": True, "False": False, "None": None}
_ODD_QUOTES = ('"\\""', '\\"')
_JSON = json.JSONDecoder(strict=False)


class CallSyntaxError(ValueError):
    """Why a call could not be read."""


def read_call(raw: str, quotes: Collection[int] | None = None) -> ToolCall:
    """The call written in `raw`, the text between the call markers; never raises, `error` says what was wrong.

    `quotes` are the offsets at which `<|"|>` is a marker and not text that spells one; None or empty: wherever it stands.
    """
    head = HEAD.match(raw)
    name = head.group(1).rstrip(":") if head else ""
    if head is None:
        return ToolCall("", {}, raw=raw, error="the call does not begin with call:NAME")
    try:
        arguments = _Reader(raw, quotes or None).arguments(head.end())
    except CallSyntaxError as error:
        return ToolCall(name, {}, raw=raw, error=str(error))
    return ToolCall(name, arguments, raw=raw)


class _Reader:
    """Reads one call's arguments by recursive descent."""

    def __init__(self, raw: str, quotes: Collection[int] | None) -> None:
        self.raw = raw
        self.quotes = quotes
        self.at = 0

    def arguments(self, start: int) -> dict[str, Any]:
        """The dict at `start`, which must end the text."""
        self.at = start
        if self._peek() != "{":
            raise self._error("expected {")
        doubled = re.compile(r"\{\s*(?=\{)").match(self.raw, self.at)
        if doubled:
            self.at = doubled.end()
        found = self._dict(1)
        if doubled:
            self._expect("}")
        if self._peek():
            raise self._error("text after the closing }")
        return found

    def _peek(self) -> str:
        space = _SPACE.match(self.raw, self.at)
        self.at = space.end() if space else self.at
        return self.raw[self.at : self.at + 1]

    def _expect(self, sign: str) -> None:
        if self._peek() != sign:
            raise self._error(f"expected {sign}")
        self.at += 1

    def _error(self, what: str) -> CallSyntaxError:
        if self.at >= len(self.raw):
            return CallSyntaxError(f"{what}, but the call ends there")
        return CallSyntaxError(f"{what} at character {self.at}")

    def _more(self, close: str, first: bool) -> bool:
        """Whether another item follows; passes the comma, or the closing bracket."""
        if not first and self._peek() == ",":
            self.at += 1
        elif not first and self._peek() != close:
            raise self._error(f"expected , or {close}")
        if self._peek() == close:
            self.at += 1
            return False
        return True

    def _dict(self, depth: int) -> dict[str, Any]:
        self._expect("{")
        found: dict[str, Any] = {}
        while self._more("}", not found):
            key = self._key()
            self._expect(":")
            found[key] = self._value(depth + 1)
        return found

    def _list(self, depth: int) -> list[Any]:
        self._expect("[")
        found: list[Any] = []
        while self._more("]", not found):
            found.append(self._value(depth + 1))
        return found

    def _key(self) -> str:
        self._peek()
        text = self._string()
        if text is not None:
            return text
        bare = BARE_KEY.match(self.raw, self.at)
        if bare is None:
            raise self._error("expected a key")
        self.at = bare.end()
        return bare.group()

    def _value(self, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise self._error("nested too deeply")
        sign = self._peek()
        if sign == "{":
            return self._dict(depth)
        if sign == "[":
            return self._list(depth)
        text = self._string()
        if text is not None:
            return text
        number = _NUMBER.match(self.raw, self.at)
        if number:
            self.at = number.end()
            if number.group(1) or number.group(2):
                return float(number.group())
            if len(number.group()) > MAX_DIGITS:
                raise self._error("a number too long")
            return int(number.group())
        word = _WORD.match(self.raw, self.at)
        if word:
            self.at = word.end()
            return _WORDS.get(word.group(), word.group())
        raise self._error("expected a value")

    def _string(self) -> str | None:
        """The string that begins here in any of the quotes, or None where none begins."""
        if self._is_quote(self.at):
            return self._marked()
        for quote in _ODD_QUOTES:
            if self.raw.startswith(quote, self.at):
                end = self.raw.find(quote, self.at + len(quote))
                if end >= 0:
                    return self._take(self.at + len(quote), end, len(quote))
        sign = self.raw[self.at : self.at + 1]
        if sign == '"':
            try:
                text, self.at = _JSON.raw_decode(self.raw, self.at)
            except json.JSONDecodeError:
                raise self._error("a string that does not end, or a wrong escape,") from None
            return str(text).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if sign == "'":
            end = self.raw.find("'", self.at + 1)
            if end < 0:
                raise self._error("a string that does not end")
            return self._take(self.at + 1, end, 1)
        return None

    def _is_quote(self, at: int) -> bool:
        return self.raw.startswith(QUOTE, at) and (self.quotes is None or at in self.quotes)

    def _marked(self) -> str:
        start = self.at + len(QUOTE)
        end = self.raw.find(QUOTE, start)
        while end >= 0 and not self._is_quote(end):
            end = self.raw.find(QUOTE, end + 1)
        if end < 0:
            raise self._error("a string that does not end")
        return self._take(start, end, len(QUOTE))

    def _take(self, start: int, end: int, closing: int) -> str:
        self.at = end + closing
        return self.raw[start:end]
