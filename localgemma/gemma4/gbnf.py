"""Shapes written as a GBNF grammar (llama.cpp grammars/README.md), in a notation: JSON's, or that of Gemma's calls.

Automata become rules that go to their right only, so that llama.cpp follows them without deep stacks. Objects of up to four
properties may have them in any order, larger ones in the notation's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from localgemma.errors import UsageError
from localgemma.gemma4.automaton import Automaton, Ranges, TooLarge, one_of
from localgemma.gemma4.shapes import AnyOf, Entries, Exactly, Figure, Items, Shape, Words

MOST_TEXT = 1_500_000  # characters of a grammar
_ANY_ORDER = 4
_ALTERNATIVES = 8  # strings of an enum that stand beside each other; more become an automaton
_MOST_RULES = 40_000
_HINT = "Simplify the schema."


def literal(text: str) -> str:
    """Text as GBNF writes it."""
    return '"' + "".join(_sign(ord(sign)) if sign != " " else sign for sign in text) + '"'


def signs(found: Ranges) -> str:
    """A set of code points as GBNF writes it."""
    return "[" + "".join(_sign(low) if low == high else f"{_sign(low)}-{_sign(high)}" for low, high in found) + "]"


def _sign(code: int) -> str:
    if 48 <= code <= 57 or 65 <= code <= 90 or 97 <= code <= 122 or chr(code) in "_:,{}":
        return chr(code)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


class Notation(Protocol):
    """How values are spelled."""

    space: str  # where white space may stand: a rule's body, or nothing
    free: Automaton  # every string that it can spell

    def quoted(self, found: Ranges) -> str:
        """One sign of a string: alternatives."""
        ...

    def quotes(self) -> tuple[str, str]:
        """What opens and closes a string."""
        ...

    def value(self, value: Any) -> str:
        """A whole value. Raises UsageError for one that it cannot spell."""
        ...

    def key(self, name: str) -> str:
        """A property's name. Raises UsageError for one that it cannot spell."""
        ...

    def names(self, spelling: Automaton | None) -> tuple[Automaton, str, str]:
        """The names of properties that are not declared: their spelling, and what opens and closes them. Raises TooLarge."""
        ...

    def order(self, fields: Mapping[str, Shape]) -> list[str]:
        """The order of properties."""
        ...


class Writer:
    """Collects the rules of one grammar; `prefix` keeps the names of two writers apart."""

    def __init__(self, notation: Notation, prefix: str) -> None:
        self._notation, self._prefix = notation, prefix
        self.rules: dict[str, str] = {}
        self._names: dict[Any, str] = {}
        self._kept: list[object] = []  # what is known by its id must live
        self._size = self._count = 0
        self._space = f"{prefix}space" if notation.space else ""
        if self._space:
            self.rules[self._space] = notation.space

    def text(self) -> str:
        """The rules so far."""
        return "".join(f"{name} ::= {body}\n" for name, body in self.rules.items())

    def rule(self, shape: Shape) -> str:
        """The name of the rule for a shape."""
        if id(shape) in self._names:
            return self._names[id(shape)]
        name = self._names[id(shape)] = self._new(shape)
        self._set(name, self._body(shape))
        return name

    def entries(self, shape: Entries) -> str:
        """A rule for an object's entries, without its braces."""
        return self._entries(shape)

    def _new(self, keep: object = None) -> str:
        self._kept.append(keep)
        self._count += 1
        if self._count > _MOST_RULES:
            raise UsageError("The schema makes too large a grammar.", _HINT)
        return f"{self._prefix}{self._count}"

    def _set(self, name: str, body: str) -> None:
        self._size += len(body)
        if self._size > MOST_TEXT:
            raise UsageError("The schema makes too large a grammar.", _HINT)
        self.rules[name] = body

    def _shared(self, key: Any, body: str) -> str:
        """A rule of this body that is made once."""
        if key not in self._names:
            self._names[key] = self._new()
            self._set(self._names[key], body)
        return self._names[key]

    def _body(self, shape: Shape) -> str:
        if isinstance(shape, Words):
            return self._string(shape)
        if isinstance(shape, Figure):
            return self._automaton(shape.spelling, signs, '""')
        if isinstance(shape, Exactly):
            return self._exactly(shape)
        if isinstance(shape, Items):
            return f'"[" {self._space} {self._items(shape)} "]"'
        if isinstance(shape, Entries):
            return f'"{{" {self._space} {self._entries(shape)} "}}"'
        assert isinstance(shape, AnyOf)
        return " | ".join(dict.fromkeys(self.rule(option) for option in shape.options))

    def _string(self, shape: Words) -> str:
        notation = self._notation
        opening, closing = notation.quotes()
        spelling = notation.free if shape.spelling is None else shape.spelling
        return f"{opening} {self._automaton(spelling, notation.quoted, closing)}"

    def _automaton(self, spelling: Automaton, write: Any, end: str) -> str:
        """The rules of an automaton; the name of the first."""
        key = (id(spelling), end)
        if key in self._names:
            return self._names[key]
        names = [self._new(spelling) for _ in spelling.edges]
        self._names[key] = names[0]
        for state, edges in enumerate(spelling.edges):
            targets: dict[int, list[tuple[int, int]]] = {}
            for low, high, to in edges:
                targets.setdefault(to, []).append((low, high))
            options = []
            for to, found in targets.items():
                spelled = write(tuple(found))
                options.append(f"( {spelled} ) {names[to]}" if " | " in spelled else f"{spelled} {names[to]}")
            self._set(names[state], " | ".join(options + [end] * (state in spelling.ends)))
        return names[0]

    def _exactly(self, shape: Exactly) -> str:
        texts = [value for value in shape.values if isinstance(value, str)]
        if len(texts) <= _ALTERNATIVES:
            return " | ".join(dict.fromkeys(map(self._notation.value, shape.values)))
        try:
            rest = [self._notation.value(value) for value in shape.values if not isinstance(value, str)]
            return " | ".join([self._string(Words(one_of(texts))), *dict.fromkeys(rest)])
        except TooLarge:
            raise UsageError("An enum of the schema is too large.", _HINT) from None

    def _comma(self) -> str:
        return f'"," {self._space}'.strip()

    def _items(self, shape: Items) -> str:
        """A list's items, without its brackets."""
        size, most = len(shape.first), shape.most
        tail = self._more(shape, size)
        for at in range(size - 1, -1, -1):
            head = "" if at == 0 else self._comma() + " "
            here = f"{head}{self.rule(shape.first[at])} {tail}" if most is None or at < most else ""
            options = [option for option in (here, self._ending(at > 0) if at >= shape.least else "") if option]
            tail = self._new()
            self._set(tail, " | ".join(options))
        return tail

    def _ending(self, after: bool) -> str:
        """The end of a list or object, before its bracket."""
        return self._space if self._space and after else '""'

    def _more(self, shape: Items, done: int) -> str:
        """The items after the first `done`."""
        least = max(shape.least - done, 0)
        most = None if shape.most is None else max(shape.most - done, 0)
        if shape.rest is None or most == 0:
            return self._shared(("end", done > 0), self._ending(done > 0))
        name, item = self._new(), self.rule(shape.rest)
        self._count += most or least
        another = self._shared(("another", item), f"{self._comma()} {item}")
        end = self._ending(True)
        if done:
            self._set(name, f"{another}{_times(least, most)} {end}")
        else:
            rest = f"{item} {another}{_times(max(least - 1, 0), None if most is None else most - 1)} {end}"
            self._set(name, rest if least else f'{rest} | ""')
        return name

    def _entries(self, shape: Entries) -> str:
        names = self._notation.order(shape.fields)
        fields = [f'{self._notation.key(name)} ":" {self._space} {self.rule(shape.fields[name])}' for name in names]
        entries = [self._new() for _ in fields]
        for name, body in zip(entries, fields, strict=True):
            self._set(name, body)
        needed = [name in shape.required for name in names]
        other = self._other(shape)
        if not entries:
            return self._others_alone(shape, other)
        if len(entries) <= _ANY_ORDER:
            return self._any_order(entries, needed, other)
        return self._in_order(entries, needed, other)

    def _in_order(self, entries: list[str], needed: list[bool], other: str) -> str:
        """Entries one after another, `other` ones between them: rules for what follows each, after others and as the first."""
        comma = self._comma()
        following, first = self._ending(True), self._ending(False)
        for at in range(len(entries), -1, -1):
            after, name = self._new(), self._new()
            needs = at < len(entries) and needed[at]
            for rule, skipped, head in ((after, following, f"{comma} "), (name, first, "")):
                options = [f"{head}{entries[at]} {following}"] if at < len(entries) else []
                options += [f"{head}{other} {after}"] if other else []
                self._set(rule, " | ".join(options if needs else [*options, skipped]))
            following, first = after, name
        return first

    def _any_order(self, entries: list[str], needed: list[bool], other: str) -> str:
        """Entries in any order, `other` ones between them: a rule for every set of those that are left."""
        memo: dict[tuple[frozenset[int], bool], str] = {}

        def rule(left: frozenset[int], after: bool) -> str:
            key = (left, after)
            if key not in memo:
                name = memo[key] = self._new()
                comma = f"{self._comma()} " if after else ""
                options = [f"{comma}{entries[at]} {rule(left - {at}, True)}" for at in sorted(left)]
                options += [f"{comma}{other} {rule(left, True)}"] if other else []
                options += [] if any(needed[at] for at in left) else [self._ending(after)]
                self._set(name, " | ".join(options))
            return memo[key]

        return rule(frozenset(range(len(entries))), False)

    def _other(self, shape: Entries) -> str:
        """A rule for an entry that is not declared; nothing where there may be none."""
        if shape.others is None or shape.most == 0:
            return ""
        try:
            spelling, opening, closing = self._notation.names(shape.names)
        except TooLarge:
            raise UsageError("The schema's property names are too many.", _HINT) from None
        write = self._notation.quoted if opening else signs
        name = self._automaton(spelling, write, closing or '""')
        return self._shared(("entry", id(shape)), f'{opening} {name} ":" {self._space} {self.rule(shape.others)}')

    def _others_alone(self, shape: Entries, other: str) -> str:
        """Entries of which none is declared."""
        if not other:
            return self._shared(("end", False), self._ending(False))
        least, most = shape.least, shape.most
        self._count += most or least
        another = self._shared(("another", other), f"{self._comma()} {other}")
        rest = f"{other} {another}{_times(max(least - 1, 0), None if most is None else most - 1)} {self._ending(True)}"
        name = self._new(shape)
        self._set(name, rest if least else f'{rest} | ""')
        return name


def _times(least: int, most: int | None) -> str:
    if most is None:
        return f"{{{least},}}" if least else "*"
    return f"{{{least},{most}}}"
