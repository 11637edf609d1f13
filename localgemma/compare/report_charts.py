"""The drawing that people come for: quality against size, with the Pareto front, the noise floor and this machine's memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from localgemma.compare.recommend import PLAIN_KV, pareto
from localgemma.compare.records import Comparison, Result
from localgemma.compare.report_grids import against
from localgemma.compare.report_numbers import nats
from localgemma.compare.svg import Box, Labels, Scale, around, drawing, line, path, plain, tag, text_of, width_of, words
from localgemma.units import GIB, MIB, format_size

NEAR = 1.6  # times the largest file within which the memory limit is drawn to scale


def drawable(results: Sequence[Result]) -> list[Result]:
    """Those with a divergence that a logarithmic scale can show."""
    return [r for r in results if r.overall and math.isfinite(r.overall.kl.value) and r.overall.kl.value > 0]


def ends_of(result: Result) -> tuple[float, float]:
    """The interval's ends, or the value itself where there are none."""
    assert result.overall is not None
    kl = result.overall.kl
    low = kl.low if math.isfinite(kl.low) and kl.low > 0 else kl.value
    return low, kl.high if math.isfinite(kl.high) else kl.value


def floor_of(comparison: Comparison) -> float:
    """The noise floor in nats, 0 where it was not measured."""
    noise = comparison.conditions.noise
    return noise.kl.value if noise and math.isfinite(noise.kl.value) and noise.kl.value > 0 else 0.0


def kl_scale(comparison: Comparison, values: Sequence[float], start: float, end: float) -> Scale:
    """A logarithmic scale of the values; the noise floor is inside where it is not far below them."""
    floor = floor_of(comparison)
    low, high = around([*values, floor] if floor and floor > min(values) / 300 else values)
    return Scale(low, high, start, end, log=True)


def quality(comparison: Comparison, family: str, results: Sequence[Result], chosen: str, width: float) -> str:
    """Mean KL with its interval over file size, one point a file; nothing where no file has both."""
    shown = [result for result in drawable(results) if result.subject.bytes]
    if not shown:
        return ""
    wide = width > 600
    height = 500.0 if wide else 430.0
    left, right, top, bottom = (64.0, width - 20, 52.0, height - 52) if wide else (46.0, width - 8, 52.0, height - 50)
    ends = [end for result in shown for end in ends_of(result)]
    y = kl_scale(comparison, ends, bottom, top)
    unit, name = (GIB, "GiB") if max(r.subject.bytes for r in shown) >= 2 * GIB else (MIB, "MiB")
    x, limit_drawn = _sizes(comparison, shown, left, right)
    frame = Box(left, top - 10, right, bottom)
    labels = Labels(Box(left, top - 10, right + 6, bottom), [Box(x(r.subject.bytes) - 6, y(ends_of(r)[1]) - 4,
                    x(r.subject.bytes) + 6, y(ends_of(r)[0]) + 4) for r in shown])  # fmt: skip
    parts = _limit(comparison, x, frame, limit_drawn, labels)
    parts += [*_noise(comparison, y, frame, labels), *_axes(x, y, frame, unit, name, wide)]
    parts.append(words(0, 16, f"mean KL from {against(comparison, family)}, nats a token; lower is better", "axis title"))
    parts += _front(shown, x, y, frame, labels)
    parts += [mark for result in sorted(shown, key=lambda r: r.subject.label == chosen)
              for mark in _point(result, shown, x, y, result.subject.label == chosen)]  # fmt: skip
    parts += _names(shown, x, y, chosen, labels)
    parts.append(words(right, height - 8, f"file size, {name}", "axis title", "end"))
    told = "; ".join(
        f"{r.subject.label}: {format_size(r.subject.bytes)}, {nats(r.overall.kl.value)} nats" for r in shown if r.overall
    )
    return drawing(width, height, f"Mean KL divergence against file size. {told}", *parts)


def _sizes(comparison: Comparison, shown: Sequence[Result], left: float, right: float) -> tuple[Scale, bool]:
    """The scale of sizes, and whether this machine's memory limit is on it."""
    sizes = [result.subject.bytes for result in shown]
    low, high, limit = float(min(sizes)), float(max(sizes)), comparison.conditions.memory_limit
    drawn = 0 < limit <= NEAR * high and limit >= low / 2
    if drawn:
        low, high = min(low, limit), max(high, limit)
    room = (high - low) * 0.12 or high * 0.3
    return Scale(max(0.0, low - room), high + room, left, right), drawn


def _axes(x: Scale, y: Scale, frame: Box, unit: int, name: str, wide: bool) -> list[str]:
    parts = [line(frame.left, frame.bottom, frame.right, frame.bottom, "base")]
    for value in y.ticks(7):
        parts.append(line(frame.left, y(value), frame.right, y(value), "grid"))
        parts.append(words(frame.left - 8, y(value) + 4, plain(value), "tick", "end"))
    scaled = Scale(x.low / unit, x.high / unit, x.start, x.end)
    for value in scaled.ticks(9 if wide else 5):
        parts.append(line(scaled(value), frame.bottom, scaled(value), frame.bottom + 5, "base"))
        parts.append(words(scaled(value), frame.bottom + 19, plain(value), "tick", "middle"))
    return parts


def _noise(comparison: Comparison, y: Scale, frame: Box, labels: Labels) -> list[str]:
    """The band in which a divergence is arithmetic, not loss."""
    floor = floor_of(comparison)
    if not floor:
        return []
    if floor <= y.low:
        shown = f"noise floor {nats(floor)}, below this scale"
        return [words(frame.left + 8, frame.bottom - 8, shown, "small soft")]
    top = y(floor)
    labels.taken.append(Box(frame.left, frame.bottom - 20, frame.left + width_of("noise floor 0.00000", 12) + 8, frame.bottom))
    return [
        tag(
            "rect",
            x=frame.left,
            y=float(top),
            width=float(frame.right - frame.left),
            height=float(frame.bottom - top),
            class_="noise",
        ),
        words(frame.left + 8, frame.bottom - 8, f"noise floor {nats(floor)}", "small soft"),
    ]


def _limit(comparison: Comparison, x: Scale, frame: Box, drawn: bool, labels: Labels) -> list[str]:
    """This machine's memory: a line with the far side shaded, or a word at the edge where it is far away."""
    limit = comparison.conditions.memory_limit
    if not limit:
        return []
    shown = f"this machine holds {format_size(limit)}"
    if not drawn:
        inside = limit > x.high
        told = f"{shown}, more than all of these →" if inside else f"← {shown}, less than any of these"
        at, anchor = (frame.right, "end") if inside else (frame.left, "start")
        return [words(at, 36, told, "small soft", anchor)]
    at = x(limit)
    labels.taken.append(Box(at - 2, frame.top, at + 2, frame.bottom))
    flip = at + 8 + width_of(shown, 12) > frame.right
    return [
        tag(
            "rect",
            x=float(at),
            y=frame.top,
            width=float(frame.right - at),
            height=float(frame.bottom - frame.top),
            class_="beyond",
        ),
        line(at, frame.top, at, frame.bottom, "limit"),
        words(at - 6 if flip else at + 6, 36, shown, "small", "end" if flip else "start"),
    ]


def _front(shown: Sequence[Result], x: Scale, y: Scale, frame: Box, labels: Labels) -> list[str]:
    """The stairs of what no other file beats in both."""
    front = pareto(shown)
    points: list[tuple[float, float]] = []
    for result in front:
        assert result.overall is not None
        here = x(result.subject.bytes), y(result.overall.kl.value)
        if points:
            points.append((here[0], points[-1][1]))
        points.append(here)
    if not points:
        return []
    points = [(points[0][0], frame.top), *points, (frame.right, points[-1][1])]
    for (x1, y1), (x2, y2) in pairwise(points):
        labels.taken.append(Box(min(x1, x2) - 2, min(y1, y2) - 2, max(x1, x2) + 2, max(y1, y2) + 2))
    return [path(points, "front")]


def _point(result: Result, shown: Sequence[Result], x: Scale, y: Scale, chosen: bool) -> list[str]:
    assert result.overall is not None
    at, kl = x(result.subject.bytes), y(result.overall.kl.value)
    low, high = ends_of(result)
    kind = "chosen" if chosen else "plain"
    told = f"{nats(result.overall.kl.value)} nats ({nats(low)} to {nats(high)}), {format_size(result.subject.bytes)}"
    title = tag("title", text_of(f"{result.subject.label}: {told}"))
    kv = result.subject.kv not in PLAIN_KV
    parts = [line(at, y(low), at, y(high), f"whisker {kind}")] if low < high else []
    parts += [line(at - 4, y(end), at + 4, y(end), f"whisker {kind}") for end in (low, high) if low < high]
    return [
        *parts,
        tag("circle", title, cx=float(at), cy=float(kl), r=6 if chosen else 5, class_=f"dot {kind}{' ring' if kv else ''}"),
    ]


def _names(shown: Sequence[Result], x: Scale, y: Scale, chosen: str, labels: Labels) -> list[str]:
    """A label at every point; the chosen one is placed first."""
    parts = []
    for result in sorted(shown, key=lambda r: r.subject.label != chosen):
        assert result.overall is not None
        label = brief(result.subject.label)
        at, baseline, anchor = labels.place(x(result.subject.bytes), y(result.overall.kl.value), label)
        parts.append(words(at, baseline, label, "label chosen" if result.subject.label == chosen else "label", anchor))
    return parts


def brief(label: str, most: int = 24) -> str:
    """A label short enough for a drawing."""
    return label if len(label) <= most else label[: most - 1] + "…"
