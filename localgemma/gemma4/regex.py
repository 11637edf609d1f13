"""Regular expressions of JSON schemas (ECMA 262) as automata: the part of them that is regular.

Look-around, references back, word boundaries and classes by Unicode property are named, not guessed. Where ECMA's and Python's
classes differ (\\d, \\w, \\s), the smaller set is taken, so that what fits here fits by either.
"""

from __future__ import annotations

import functools

from localgemma.gemma4.automaton import EVERY, Automaton, Nfa, Ranges, common, ranges, without

_DIGIT: Ranges = ((0x30, 0x39),)
_WORD: Ranges = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
_SPACE: Ranges = ((0x09, 0x0D), (0x20, 0x20))
# What neither takes for a space: Unicode's White_Space, ECMA's byte order mark, and the separators of Python's str.isspace.
_NO_SPACE = without(
    ranges(
        [
            *((9, 13), (28, 32), (0x85, 0x85), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029)),
            *((0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000), (0xFEFF, 0xFEFF)),
        ]
    )
)
_NO_WORD: Ranges = common(without(_WORD), ((1, 0x7F),))
_NO_DIGIT: Ranges = common(
    without(_DIGIT), ((1, 0x65F), (0x2000, 0xA61F), (0xAC00, 0xD7FF))
)  # Arabic-Indic digits begin at 660
_CLASSES = {"d": _DIGIT, "D": _NO_DIGIT, "w": _WORD, "W": _NO_WORD, "s": _SPACE, "S": _NO_SPACE}
_WIDEST = {name: without(_CLASSES[name.swapcase()]) for name in _CLASSES}  # what either takes for one
_SIGNS = {"n": 10, "r": 13, "t": 9, "f": 12, "v": 11}
_LINE_ENDS: Ranges = ((10, 10), (13, 13), (0x2028, 0x2029))
_MOST_TIMES = 2000
_DEEPEST = 50


class UnsupportedPattern(ValueError):
    """What of a pattern is not supported."""


def pattern(source: str) -> Automaton:
    """The strings in which the expression is found somewhere. Raises UnsupportedPattern and TooLarge."""
    reader = _Reader(source)
    nfa = reader.nfa
    before, after = nfa.state(), nfa.state()
    nfa.moves[before].append((EVERY, before))
    nfa.moves[after].append((EVERY, after))
    start, end = reader.alternatives(0)
    if reader.at < len(source):
        raise UnsupportedPattern(f"a {source[reader.at]} without its partner")
    nfa.free[before].append(("", start))
    nfa.free[end].append(("", after))
    return nfa.deterministic(before, after)


@functools.lru_cache(maxsize=256)
def whole(source: str) -> Automaton:
    """The strings that the expression matches as a whole. Raises as `pattern` does."""
    return pattern(f"^(?:{source})$")


class _Reader:
    """Reads an expression into a nondeterministic automaton by recursive descent; a part is (first state, last state)."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.at = 0
        self.nfa = Nfa()

    def _peek(self, size: int = 1) -> str:
        return self.source[self.at : self.at + size]

    def _take(self) -> str:
        sign = self._peek()
        if not sign:
            raise UnsupportedPattern("an end in the middle")
        self.at += 1
        return sign

    def alternatives(self, depth: int) -> tuple[int, int]:
        """Branches parted by bars."""
        if depth > _DEEPEST:
            raise UnsupportedPattern("so many groups inside each other")
        start, end = self.nfa.state(), self.nfa.state()
        while True:
            first, last = self._sequence(depth)
            self.nfa.free[start].append(("", first))
            self.nfa.free[last].append(("", end))
            if self._peek() != "|":
                return start, end
            self.at += 1

    def _sequence(self, depth: int) -> tuple[int, int]:
        start = end = self.nfa.state()
        while self._peek() not in ("", "|", ")"):
            begun = self.at
            first, last = self._atom(depth)
            stop = self.at
            least, most = self._times()
            if (least, most) != (1, 1):
                first, last = self._repeated(begun, stop, depth, least, most)
            self.nfa.free[end].append(("", first))
            end = last
        return start, end

    def _repeated(self, begun: int, stop: int, depth: int, least: int, most: int | None) -> tuple[int, int]:
        """What stands between two offsets, so often; it is read again for every copy."""
        after = self.at
        start = end = self.nfa.state()
        final = self.nfa.state()
        for count in range(max(least, 1) if most is None else most):
            if count >= least:
                self.nfa.free[end].append(("", final))
            self.at = begun
            first, last = self._atom(depth)
            assert self.at == stop
            self.nfa.free[end].append(("", first))
            if most is None and count + 1 >= least:
                self.nfa.free[last].append(("", first))
            end = last
        if most is None and least == 0:
            self.nfa.free[start].append(("", final))
        self.nfa.free[end].append(("", final))
        self.at = after
        return start, final

    def _times(self) -> tuple[int, int | None]:
        """How often what was read may stand there."""
        sign = self._peek()
        found: tuple[int, int | None] = (1, 1)
        if sign and sign in "*+?":
            self.at += 1
            found = {"*": (0, None), "+": (1, None), "?": (0, 1)}[sign]
        elif sign == "{":
            end = self.source.find("}", self.at)
            low, comma, high = self.source[self.at + 1 : max(end, self.at)].partition(",")
            if end < 0 or not low.isdecimal() or not low.isascii() or (high and not (high.isdecimal() and high.isascii())):
                raise UnsupportedPattern("a { that is no count")
            found = (int(low), int(high) if high else None if comma else int(low))
            self.at = end + 1
        else:
            return found
        if max(found[0], found[1] or 0) > _MOST_TIMES or (found[1] is not None and found[0] > found[1]):
            raise UnsupportedPattern(f"so many repetitions ({_MOST_TIMES:,} at most)")
        if self._peek() == "?":
            self.at += 1  # lazy: the same strings
        if self._peek() and self._peek() in "*+?{":
            raise UnsupportedPattern("two counts after each other")
        return found

    def _atom(self, depth: int) -> tuple[int, int]:
        sign = self._take()
        start, end = self.nfa.state(), self.nfa.state()
        if sign == "(":
            if self._peek() == "?":
                self._group()
            first, last = self.alternatives(depth + 1)
            if self._take() != ")":
                raise UnsupportedPattern("a ( without its )")
            return first, last
        if sign in "^$":
            self.nfa.free[start].append((sign, end))
        elif sign in "*+?{":
            raise UnsupportedPattern(f"a {sign} with nothing before it")
        else:
            self.nfa.moves[start].append((self._signs(sign), end))
        return start, end

    def _group(self) -> None:
        """The head of a group: (?: and (?<name>."""
        if self._peek(2) == "?:":
            self.at += 2
            return
        end = self.source.find(">", self.at)
        name = self.source[self.at : end + 1]
        if end < 0 or not name.replace("?P<", "?<").startswith("?<") or name[:3] in ("?<=", "?<!"):
            raise UnsupportedPattern(f"({self._peek(2)}")
        self.at = end + 1

    def _signs(self, sign: str) -> Ranges:
        if sign == ".":
            return without(_LINE_ENDS)
        if sign == "\\":
            return self._escape()
        if sign == "[":
            return self._class()
        return ranges([(ord(sign), ord(sign))])

    def _escape(self) -> Ranges:
        sign = self._take()
        if sign in _CLASSES:
            return _CLASSES[sign]
        if sign in "bB" or sign in "pPkKAZzGQE" or sign in "123456789":
            raise UnsupportedPattern(f"\\{sign}")
        return ranges([(code, code) for code in [self._code(sign)]])

    def _code(self, sign: str) -> int:
        """The code point after a backslash."""
        if sign in _SIGNS:
            return _SIGNS[sign]
        if sign == "x":
            return self._hexadecimal(2)
        if sign == "u" and self._peek() == "{":
            end = self.source.find("}", self.at)
            size = end - self.at - 1
            self.at += 1
            code = self._hexadecimal(size)
            self.at += 1
            return code
        if sign == "u":
            return self._hexadecimal(4)
        if sign.isalnum():
            raise UnsupportedPattern(f"\\{sign}")
        return ord(sign)

    def _hexadecimal(self, size: int) -> int:
        text = self.source[self.at : self.at + max(size, 0)]
        self.at += len(text)
        if len(text) != size or not 0 < size <= 6 or any(sign not in "0123456789abcdefABCDEF" for sign in text):
            raise UnsupportedPattern("a code that is not hexadecimal")
        return min(int(text, 16), 0x10FFFF)

    def _class(self) -> Ranges:
        inverted = self._peek() == "^"
        self.at += inverted
        found: list[tuple[int, int]] = []
        while (sign := self._take()) != "]":
            low = self._in_class(sign, inverted)
            if self._peek() == "-" and self._peek(2) != "-]" and len(low) == 1 and low[0][0] == low[0][1]:
                self.at += 1
                high = self._in_class(self._take(), inverted)
                if len(high) != 1 or high[0][0] != high[0][1] or high[0][0] < low[0][0]:
                    raise UnsupportedPattern("a range that is none")
                low = [(low[0][0], high[0][0])]
            found += low
        return without(ranges(found)) if inverted else ranges(found)

    def _in_class(self, sign: str, inverted: bool) -> list[tuple[int, int]]:
        if sign == "[":
            raise UnsupportedPattern("a [ inside a class")
        if sign != "\\":
            return [(ord(sign), ord(sign))]
        sign = self._take()
        if sign in _CLASSES:
            return list((_WIDEST if inverted else _CLASSES)[sign])
        code = 8 if sign == "b" else self._code(sign)
        return [(code, code)]
