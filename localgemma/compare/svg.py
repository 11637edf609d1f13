"""A small builder of drawings: elements, scales with round ticks, and labels that keep out of each other's way.

Sizes are CSS pixels. Colours and fonts are classes of the page's style sheet, so that a drawing follows its colour scheme.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

# What XML cannot hold at all, and marks that turn the direction of all that follows.
_BAD = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff\u202a-\u202e\u2066-\u2069]")
_RAISED = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def text_of(value: object) -> str:
    """Any text as character data of HTML and SVG."""
    return escape(_BAD.sub("\ufffd", str(value)), quote=True)


def tag(name: str, *content: str, **attributes: object) -> str:
    """An element; `content` is markup already, attributes are escaped (`_` becomes `-`, a final one is dropped)."""
    shown = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{text_of(_short(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{shown}>{''.join(content)}</{name}>" if content else f"<{name}{shown}/>"


def _short(value: object) -> object:
    return f"{value:.1f}".rstrip("0").rstrip(".") if isinstance(value, float) else value


def words(x: float, y: float, shown: str, kind: str = "", anchor: str = "start") -> str:
    """A line of text; `kind` are classes."""
    return tag(
        "text", text_of(shown), x=float(x), y=float(y), class_=kind or None, text_anchor=None if anchor == "start" else anchor
    )


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """A straight line."""
    return tag("line", x1=float(x1), y1=float(y1), x2=float(x2), y2=float(y2), class_=kind)


def path(points: Iterable[tuple[float, float]], kind: str) -> str:
    """A line through points."""
    return tag("path", d="M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points), class_=kind)


def drawing(width: float, height: float, told: str, *content: str) -> str:
    """The whole drawing; `told` says in words what it shows."""
    title = tag("title", text_of(told))
    return tag(
        "svg",
        title,
        *content,
        viewBox=f"0 0 {width:.0f} {height:.0f}",
        role="img",
        width=f"{width:.0f}",
        height=f"{height:.0f}",
    )


def plain(value: float) -> str:
    """A tick's number, short enough for an axis: `20`, `0.0005`, `3·10⁻⁶`."""
    if 0 < value < 0.0001:
        power = math.floor(math.log10(value * 1.001))
        first = round(value / 10.0**power)
        return ("" if first == 1 else f"{first}·") + "10⁻" + str(-power).translate(_RAISED)
    shown = f"{value:.10f}".rstrip("0").rstrip(".")
    return shown or "0"


def width_of(shown: str, size: float = 13) -> float:
    """About how wide a text is in a sans-serif font."""
    return size * sum(0.68 if c.isupper() else 0.6 if c.isdigit() or c == "_" else 0.56 for c in shown)


@dataclass(frozen=True, slots=True)
class Scale:
    """From values to pixels; logarithmic where `log`. Values outside are moved to the edge."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        value = min(max(value, self.low), self.high)
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, count: int = 6) -> list[float]:
        """Round values inside: powers of ten (with 2 and 5 where there is room), or steps of 1, 2 or 5."""
        if not self.log:
            return _steps(self.low, self.high, count)
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        for factors in ((1, 2, 5), (1, 3), (1,)):
            found = [f * 10.0**power for power in range(first, last + 1) for f in factors]
            found = [value for value in found if self.low * 0.999 <= value <= self.high * 1.001]
            if len(found) <= count + 1:
                break
        return found


def _steps(low: float, high: float, count: int) -> list[float]:
    raw = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(f * power for f in (1, 2, 5, 10) if f * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(at * step, 12) for at in range(first, math.floor(high / step + 1e-9) + 1)]


def around(values: Sequence[float], room: float = 1.25) -> tuple[float, float]:
    """Ends of a logarithmic scale that holds the values with some room."""
    low, high = min(values), max(values)
    if high / low < 2:
        low, high = low / 1.5, high * 1.5
    return low / room, high * room


@dataclass(frozen=True, slots=True)
class Box:
    """A taken rectangle."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: Box) -> float:
        """The common area."""
        wide = min(self.right, other.right) - max(self.left, other.left)
        high = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0.0, wide) * max(0.0, high)


class Labels:
    """Places labels beside points so that they cover neither each other nor what was taken before."""

    def __init__(self, frame: Box, taken: Sequence[Box] = ()) -> None:
        self.frame = frame
        self.taken = list(taken)

    def place(self, x: float, y: float, shown: str, size: float = 13, gap: float = 9) -> tuple[float, float, str]:
        """(x, y of the baseline, anchor) of the best of eight places around the point."""
        wide, high = width_of(shown, size), size * 1.05
        found: list[tuple[float, int, Box, str]] = []
        for rank, (dx, dy) in enumerate(((1, 0), (1, -1), (-1, -1), (1, 1), (-1, 1), (-1, 0), (0, -2), (0, 2))):
            left = x + gap if dx > 0 else x - gap - wide if dx < 0 else x - wide / 2
            middle = y + dy * high * 0.8
            box = Box(left, middle - high / 2, left + wide, middle + high / 2)
            outside = wide * high - box.overlap(self.frame)
            cost = sum(box.overlap(other) for other in self.taken) + 4 * outside
            found.append((cost, rank, box, "start" if dx > 0 else "end" if dx < 0 else "middle"))
        _, _, box, anchor = min(found, key=lambda item: (round(item[0]), item[1]))
        self.taken.append(box)
        at = box.left if anchor == "start" else box.right if anchor == "end" else (box.left + box.right) / 2
        return at, box.bottom - size * 0.3, anchor


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions at least `gap` apart, in the order of the wanted ones and near them, inside low and high."""
    order = sorted(range(len(wanted)), key=lambda at: wanted[at])
    if len(order) > 1:
        gap = min(gap, (high - low) / (len(order) - 1))
    placed = [0.0] * len(wanted)
    at = low - gap
    for index in order:
        at = placed[index] = max(wanted[index], at + gap)
    at = high + gap
    for index in reversed(order):
        at = placed[index] = min(placed[index], at - gap)
    return placed
