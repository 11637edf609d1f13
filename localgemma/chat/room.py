"""The room that files have in the context, and what a file will come to before it is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from localgemma.errors import ContextOverflow
from localgemma.messages import Part, Progress

_LARGEST = 262_144  # tokens; Gemma 4's own context


@dataclass
class Room:
    """Tokens of the context: `size` in all, `used` so far; `count` counts those of a text."""

    size: int
    count: Callable[[str], int]
    used: int = 0

    @property
    def free(self) -> int:
        """Tokens that are left beside some for an answer."""
        return self.size - self.used - min(512, self.size // 8)

    def overflow(self, needed: float, fits: str = "", *, counted: bool = True) -> ContextOverflow:
        """The error for a file that needs more than is free; `fits` says what of it does.

        What was not counted to its end is rounded to two digits.
        """
        needed = int(needed) + self.used + min(512, self.size // 8)
        needed = needed if counted else about(needed)
        larger = next((size for power in range(12, 19) if (size := 1 << power) >= needed), 0)
        ways = [fits] * bool(fits) + [f"load with --ctx {larger}"] * bool(larger)
        text = "; or ".join(ways) or "Give a part of it"
        return ContextOverflow(needed, self.size, f"{text[0].upper()}{text[1:]}.")


@dataclass(frozen=True, slots=True)
class Planned:
    """A file that was looked at: what is said of it, the tokens it will take (`pictures` of them), how its parts are read."""

    said: str
    tokens: int
    pictures: int
    read: Callable[[], Iterator[Part | Progress]]


def about(tokens: float) -> int:
    """A number of tokens that was not counted to its end, with two digits."""
    digits = max(0, len(str(int(tokens))) - 2)
    return int(-(-tokens // 10**digits) * 10**digits)
