"""Small drawings: bars of speed and memory, and the interval of one score."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from localgemma.compare.records import Result, TaskScore
from localgemma.compare.report_charts import brief
from localgemma.compare.report_numbers import rate
from localgemma.compare.svg import Scale, drawing, line, tag, width_of, words
from localgemma.units import format_size

WIDTH = 330.0
_ROW = 26.0


def bars(
    title: str, results: Sequence[Result], value: Callable[[Result], float], shown: Callable[[float], str], chosen: str
) -> str:
    """A bar a file with its figure at the end; nothing where no file has one."""
    rows = [(brief(r.subject.label, 18), value(r), r.subject.label == chosen) for r in results]
    most = max((number for _, number, _ in rows), default=0.0)
    if not most > 0:
        return ""
    left = max(width_of(label, 12.5) for label, *_ in rows) + 8
    right = WIDTH - max(width_of(shown(number), 12.5) for _, number, _ in rows) - 6
    x = Scale(0.0, most, left, right)
    parts = [words(0, 14, title, "axis title")]
    for at, (label, number, picked) in enumerate(rows):
        y = 26 + at * _ROW
        kind = "chosen" if picked else "plain"
        parts.append(words(left - 8, y + 15, label, "label chosen" if picked else "label", "end"))
        if number > 0:
            parts.append(
                tag(
                    "rect",
                    x=left,
                    y=float(y + 3),
                    width=float(max(1.0, x(number) - left)),
                    height=16,
                    rx=2,
                    class_=f"bar {kind}",
                )
            )
        parts.append(words((x(number) if number > 0 else left) + 6, y + 15, shown(number) if number > 0 else "–", "figure"))
    parts.append(line(left, 26, left, 26 + _ROW * len(rows), "base"))
    told = ", ".join(f"{label} {shown(number)}" for label, number, _ in rows)
    return drawing(WIDTH, 30 + _ROW * len(rows), f"{title}: {told}", *parts)


def speed_bars(results: Sequence[Result], chosen: str) -> list[str]:
    """Decode, prefill and memory, each a drawing of its own."""
    timed = [result for result in results if result.speed]

    def decode(result: Result) -> float:
        return result.speed.decode if result.speed else 0.0

    def prefill(result: Result) -> float:
        return result.speed.prefill if result.speed else 0.0

    def taken(result: Result) -> float:
        return float(sum(result.speed.memory.values())) if result.speed else 0.0

    drawn = [
        bars("writing (decode), tokens a second", timed, decode, rate, chosen),
        bars("reading (prefill), tokens a second", timed, prefill, rate, chosen),
        bars("memory taken, all devices", timed, taken, format_size, chosen),
    ]
    return [drawing for drawing in drawn if drawing]


def interval(score: TaskScore, reference: TaskScore | None, kind: str) -> str:
    """A score on a line from 0 to 1 with its interval; a tick where the reference is."""
    x = Scale(0.0, 1.0, 3, 69)
    value, low, high = (score.interval.value, score.interval.low, score.interval.high)
    if not math.isfinite(value):
        return ""
    parts = [line(3, 7, 69, 7, "row")]
    if reference and reference is not score and math.isfinite(reference.interval.value):
        parts.append(line(x(reference.interval.value), 1, x(reference.interval.value), 13, "refer"))
    if math.isfinite(low) and math.isfinite(high):
        parts.append(line(x(low), 7, x(high), 7, f"whisker {kind}"))
    parts.append(tag("circle", cx=float(x(value)), cy=7, r=3, class_=f"dot {kind}"))
    return tag("svg", *parts, viewBox="0 0 72 14", width=72, height=14, aria_hidden="true")
