"""Finite automata over code points: what a string, number or key may spell, as the grammar compiler combines it.

Deterministic, and every state can still reach an end, so that a grammar made of one never runs into a dead end. Surrogates and
NUL belong to no string: UTF-8 and llama.cpp's grammars cannot carry them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeAlias

Ranges: TypeAlias = tuple[tuple[int, int], ...]  # sorted, disjoint, both ends included
Edge: TypeAlias = tuple[int, int, int]  # from, to, target

EVERY: Ranges = ((1, 0xD7FF), (0xE000, 0x10FFFF))
MOST_STATES = 3000
_MOST_WORK = 600_000  # about a second


class TooLarge(ValueError):
    """More states than a grammar should have."""


def ranges(pairs: Iterable[tuple[int, int]]) -> Ranges:
    """The union of ranges, sorted and joined, without what no string has."""
    joined: list[tuple[int, int]] = []
    for low, high in sorted(pairs):
        if joined and low <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(high, joined[-1][1]))
        else:
            joined.append((low, high))
    return common(tuple(joined), EVERY)


def common(one: Ranges, other: Ranges) -> Ranges:
    """What two sets share."""
    found: list[tuple[int, int]] = []
    a = b = 0
    while a < len(one) and b < len(other):
        low, high = max(one[a][0], other[b][0]), min(one[a][1], other[b][1])
        if low <= high:
            found.append((low, high))
        if one[a][1] < other[b][1]:
            a += 1
        else:
            b += 1
    return tuple(found)


def without(one: Ranges) -> Ranges:
    """Everything else."""
    found: list[tuple[int, int]] = []
    start = 0
    for low, high in one:
        if low > start:
            found.append((start, low - 1))
        start = high + 1
    return common((*found, (start, 0x10FFFF)), EVERY)


@dataclass(frozen=True, slots=True)
class Automaton:
    """`edges[state]` are disjoint ranges and where they lead; 0 is the start. No state is dead; none at all: nothing fits."""

    edges: tuple[tuple[Edge, ...], ...]
    ends: frozenset[int]

    def matches(self, text: str) -> bool:
        """Whether the whole text fits."""
        state: int | None = 0 if self.edges else None
        for sign in map(ord, text):
            if state is None:
                return False
            state = next((to for low, high, to in self.edges[state] if low <= sign <= high), None)
        return state in self.ends

    @property
    def empty(self) -> bool:
        """Whether nothing fits."""
        return not self.edges


def trimmed(edges: Sequence[Sequence[Edge]], ends: Iterable[int]) -> Automaton:
    """The automaton without the states that lead nowhere, and with neighbouring ranges joined."""
    final = set(ends)
    before: list[list[int]] = [[] for _ in edges]
    for state, leaving in enumerate(edges):
        for _, _, to in leaving:
            before[to].append(state)
    alive, todo = set(final), list(final)
    while todo:
        for state in before[todo.pop()]:
            if state not in alive:
                alive.add(state)
                todo.append(state)
    if 0 not in alive:
        return Automaton((), frozenset())
    numbers, order = {0: 0}, [0]
    for state in order:
        for _, _, to in edges[state]:
            if to in alive and to not in numbers:
                numbers[to] = len(order)
                order.append(to)
    kept: list[tuple[Edge, ...]] = []
    for state in order:
        by_target: dict[int, list[tuple[int, int]]] = {}
        for low, high, to in edges[state]:
            if to in alive:
                by_target.setdefault(numbers[to], []).append((low, high))
        leaving_ = [(low, high, to) for to, pairs in by_target.items() for low, high in ranges(pairs)]
        kept.append(tuple(sorted(leaving_)))
    return Automaton(tuple(kept), frozenset(numbers[state] for state in final if state in numbers))


def _explored(start: object, step: Callable[..., Iterable[tuple[int, int, object]]], ends: Callable[..., bool]) -> Automaton:
    """The automaton whose states are any hashable things, found from `start` on. Raises TooLarge."""
    numbers: dict[object, int] = {start: 0}
    order = [start]
    edges: list[list[Edge]] = []
    for state in order:
        leaving: list[Edge] = []
        for low, high, to in step(state):
            if to not in numbers:
                if len(order) >= MOST_STATES:
                    raise TooLarge
                numbers[to] = len(order)
                order.append(to)
            leaving.append((low, high, numbers[to]))
        edges.append(leaving)
    return trimmed(edges, (numbers[state] for state in order if ends(state)))


def both(one: Automaton, other: Automaton) -> Automaton:
    """What fits both. Raises TooLarge."""
    if one.empty or other.empty:
        return Automaton((), frozenset())

    def step(state: tuple[int, int]) -> Iterable[tuple[int, int, object]]:
        for low, high, to in one.edges[state[0]]:
            for low2, high2, to2 in other.edges[state[1]]:
                if low <= high2 and low2 <= high:
                    yield max(low, low2), min(high, high2), (to, to2)

    return _explored((0, 0), step, lambda state: state[0] in one.ends and state[1] in other.ends)


def other_than(texts: Iterable[str]) -> Automaton:
    """Every string but these."""
    trie, words = _trie(texts)
    rest = len(trie)
    edges: list[list[Edge]] = []
    for children in [*trie, {}]:
        leaving = [(sign, sign, to) for sign, to in children.items()]
        others = without(ranges((sign, sign) for sign in children))
        edges.append(leaving + [(low, high, rest) for low, high in others])
    return trimmed(edges, (state for state in range(rest + 1) if state not in words))


def one_of(texts: Iterable[str]) -> Automaton:
    """These strings alone. Raises TooLarge."""
    trie, words = _trie(texts)
    return trimmed([[(sign, sign, to) for sign, to in children.items()] for children in trie], words)


def _trie(texts: Iterable[str]) -> tuple[list[dict[int, int]], set[int]]:
    trie: list[dict[int, int]] = [{}]
    words: set[int] = set()
    for text in texts:
        at = 0
        for sign in map(ord, text):
            if sign not in trie[at]:
                if len(trie) >= MOST_STATES:
                    raise TooLarge
                trie[at][sign] = len(trie)
                trie.append({})
            at = trie[at][sign]
        words.add(at)
    return trie, words


def lengths(least: int, most: int | None) -> Automaton:
    """Every string of so many code points. Raises TooLarge."""
    count = least if most is None else most
    if count >= MOST_STATES:
        raise TooLarge
    edges = [[(low, high, at + 1) for low, high in EVERY] for at in range(count)]
    edges.append([(low, high, count) for low, high in EVERY] if most is None else [])
    return trimmed(edges, range(least, count + 1))


@dataclass(slots=True)
class Nfa:
    """A nondeterministic automaton under construction; anchors are conditions on empty moves."""

    moves: list[list[tuple[Ranges, int]]] = field(default_factory=list)
    free: list[list[tuple[str, int]]] = field(default_factory=list)  # "" always, "^" at the start alone, "$" at the end alone
    work: int = 0  # done so far, which is limited

    def state(self) -> int:
        """A new state. Raises TooLarge."""
        if len(self.moves) >= 20 * MOST_STATES:
            raise TooLarge
        self.moves.append([])
        self.free.append([])
        return len(self.moves) - 1

    def closure(self, states: Iterable[int], conditions: str) -> frozenset[int]:
        """What is reached without a sign where the conditions hold."""
        seen, todo = set(states), list(states)
        while todo:
            for condition, to in self.free[todo.pop()]:
                if to not in seen and (not condition or condition in conditions):
                    seen.add(to)
                    todo.append(to)
        self._worked(len(seen))
        return frozenset(seen)

    def _worked(self, steps: int) -> None:
        self.work += steps
        if self.work > _MOST_WORK:
            raise TooLarge

    def deterministic(self, start: int, end: int) -> Automaton:
        """The same language, deterministic. Raises TooLarge."""

        def step(state: tuple[frozenset[int], bool]) -> Iterable[tuple[int, int, object]]:
            moves = [move for each in state[0] for move in self.moves[each]]
            cuts = sorted(
                {low for signs, _ in moves for low, _ in signs} | {high + 1 for signs, _ in moves for _, high in signs}
            )
            self._worked(len(moves) * len(cuts))
            for low, following in pairwise(cuts):
                targets = {to for signs, to in moves if any(a <= low <= b for a, b in signs)}
                if targets:
                    yield low, following - 1, (self.closure(targets, ""), False)

        def ends(state: tuple[frozenset[int], bool]) -> bool:
            return end in self.closure(state[0], "^$" if state[1] else "$")

        return _explored((self.closure([start], "^"), True), step, ends)
