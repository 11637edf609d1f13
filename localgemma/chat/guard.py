"""The repetition guard: notices that an answer goes round in circles, and never minds tables, code or lists of numbers.

Three signs, each followed as the text streams in:
* sentences or lines of prose that repeat, alone or as a cycle of up to 12, word by word or nearly so;
* a run of words that repeats without any sentence in it ("and then and then and then");
* anything at all that repeats exactly for 8,000 characters.
The thresholds are choices, not measurements: each leaves a legitimate refrain or a column of zeros room.
"""

from __future__ import annotations

import difflib
import re
from collections import deque
from dataclasses import dataclass

_CYCLE = 12  # the longest cycle of sentences, and half the longest cycle of words
_EXACT, _NEAR = 6, 8  # how often a cycle must stand there: word by word, nearly so
_WORD_CYCLE = 24
_LONG = 8000  # characters of exact repetition that end even code
_LONG_STEP = 2000
_END = re.compile(r"\n|(?<=[.!?…])\s|(?<=[。！？])")
_LABEL = re.compile(r"^\s*(?:[-*+•>#]+|\(?\d+[.):])\s*")
_WORD = re.compile(r"\w+", re.UNICODE)


@dataclass(frozen=True, slots=True)
class _Unit:
    """A line or sentence: its words, the numbers among them, and whether it is prose."""

    words: tuple[str, ...]
    numbers: tuple[str, ...]
    prose: bool
    length: int


class RepetitionGuard:
    """Feed it text; `feed` is True once the text loops, and stays True."""

    def __init__(self) -> None:
        self._rest = ""
        self._fenced = False
        self._units: deque[_Unit] = deque(maxlen=_CYCLE)
        self._exact = [0] * (_CYCLE + 1)
        self._near = [0] * (_CYCLE + 1)
        self._words: deque[str] = deque(maxlen=_WORD_CYCLE)
        self._runs = [0] * (_WORD_CYCLE + 1)
        self._tail = ""
        self._unread = 0
        self._fired = False

    def feed(self, text: str) -> bool:
        """Take the next piece of the answer; whether it goes in circles."""
        if self._fired or not text:
            return self._fired
        self._rest += text
        while found := _END.search(self._rest):
            unit, self._rest = self._rest[: found.end()], self._rest[found.end() :]
            self._fired = self._fired or self._take(unit)
        if len(self._rest) > 400:  # no sentence ends here: look at its words, the last one may still grow
            cut = self._rest.rfind(" ") + 1
            if cut > 0:
                whole, self._rest = self._rest[:cut], self._rest[cut:]
                self._fired = self._fired or self._take_words(whole)
        self._fired = self._fired or self._take_any(text)
        return self._fired

    def _take(self, raw: str) -> bool:
        line = raw.strip()
        if line.startswith(("```", "~~~")):
            self._fenced = not self._fenced
            return False
        if self._fenced or not any(char.isalnum() for char in line):
            return False
        looped = self._take_unit(_unit(line))
        return self._take_words(line) or looped

    def _take_unit(self, unit: _Unit) -> bool:
        looped = False
        for period in range(1, _CYCLE + 1):
            other = self._units[-period] if len(self._units) >= period else None
            exact = other is not None and other.words == unit.words
            near = exact or (other is not None and self._near_enough(other, unit))
            self._exact[period] = self._exact[period] + 1 if exact else 0
            self._near[period] = self._near[period] + 1 if near else 0
            enough = self._exact[period] >= (_EXACT - 1) * period or self._near[period] >= (_NEAR - 1) * period
            if enough:
                cycle = [unit, *list(self._units)[-period:][1:]]
                looped = looped or sum(u.length for u in cycle if u.prose) * 2 > sum(u.length for u in cycle)
        self._units.append(unit)
        return looped

    @staticmethod
    def _near_enough(one: _Unit, other: _Unit) -> bool:
        # Other numbers are other content: a log or a list of results is no loop.
        if not (one.prose and other.prose) or one.numbers != other.numbers:
            return False
        matcher = difflib.SequenceMatcher(None, one.words, other.words, autojunk=False)
        return matcher.quick_ratio() >= 0.85 and matcher.ratio() >= 0.85

    def _take_words(self, line: str) -> bool:
        if self._fenced or _is_table(line):
            return False
        for word in line.casefold().split():
            for period in range(1, _WORD_CYCLE + 1):
                same = len(self._words) >= period and self._words[-period] == word
                self._runs[period] = self._runs[period] + 1 if same else 0
                if self._runs[period] and self._runs[period] + period >= max(100 if period <= 2 else 60, 10 * period):
                    cycle = list(self._words)[-period:]
                    if sum(_is_word(item) for item in cycle) * 2 > period:
                        return True
            self._words.append(word)
        return False

    def _take_any(self, text: str) -> bool:
        self._tail = (self._tail + text)[-_LONG:]
        self._unread += len(text)
        if self._unread < _LONG_STEP or len(self._tail) < _LONG:
            return False
        self._unread = 0
        return _period(self._tail) <= 200


def _unit(line: str) -> _Unit:
    bare = _LABEL.sub("", line)
    words = tuple(_WORD.findall(bare.casefold()))
    letters = sum(char.isalpha() for char in bare)
    solid = sum(not char.isspace() for char in bare)
    prose = not _is_table(line) and letters >= 16 and letters >= 0.8 * solid
    return _Unit(words, tuple(word for word in words if any(c.isdigit() for c in word)), prose, solid)


def _is_table(line: str) -> bool:
    return line.lstrip().startswith("|") or line.count("|") >= 2 or "\t" in line.strip()


def _is_word(text: str) -> bool:
    letters = sum(char.isalpha() for char in text)
    return letters >= 2 and letters * 3 >= len(text) * 2


def _period(text: str) -> int:
    """The shortest period of the whole text (Knuth-Morris-Pratt failure function)."""
    failure = [0] * len(text)
    length = 0
    for index in range(1, len(text)):
        while length and text[index] != text[length]:
            length = failure[length - 1]
        if text[index] == text[length]:
            length += 1
        failure[index] = length
    return len(text) - failure[-1] if text else 0
