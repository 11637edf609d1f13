"""Where a file loses: its divergence by category, and along the answer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from localgemma.compare.records import Comparison, Result
from localgemma.compare.report_charts import brief, drawable, floor_of, kl_scale
from localgemma.compare.report_grids import against, category_names
from localgemma.compare.report_numbers import nats
from localgemma.compare.svg import Scale, drawing, line, path, plain, spread, tag, text_of, width_of, words

ROW = 38.0


def by_category(comparison: Comparison, family: str, results: Sequence[Result], chosen: str, width: float) -> str:
    """One row a category, one dot a file with its interval, the files named once above; nothing without categories."""
    shown = [result for result in drawable(results) if result.categories]
    names = category_names(shown)
    values = [end for r in shown for name in names for end in _ends(r, name)]
    if not values:
        return ""
    left, right = (96.0, width - 24) if width > 600 else (82.0, width - 14)
    x = kl_scale(comparison, values, left, right)
    tiers, head = _tiers(shown, names, x, chosen, right)
    top = 30 + tiers * 17 + 20
    bottom = top + ROW * len(names)
    parts = [words(0, 16, f"mean KL from {against(comparison, family)}, nats a token", "axis title")]
    floor = floor_of(comparison)
    if floor > x.low:
        parts.append(
            tag("rect", x=left, y=float(top - 8), width=float(x(floor) - left), height=float(bottom - top + 8), class_="noise")
        )
        parts.append(words(left, bottom + 36, f"shaded: noise floor, {nats(floor)}", "small soft"))
    for value in x.ticks(8 if width > 600 else 4):
        parts += [
            line(x(value), top - 8, x(value), bottom, "grid"),
            words(x(value), bottom + 17, plain(value), "tick", "middle"),
        ]
    for at, name in enumerate(names):
        y = top + ROW * (at + 0.5)
        parts += [line(left, y, right, y, "row"), words(left - 10, y + 4, brief(name, 12), "label", "end")]
    parts += head
    for result in sorted(shown, key=lambda r: r.subject.label == chosen):
        parts += _thread(result, names, x, top, result.subject.label == chosen)
    told = "; ".join(
        f"{r.subject.label}: " + ", ".join(f"{n} {nats(d.kl.value)}" for n, d in r.categories.items()) for r in shown
    )
    return drawing(width, bottom + 44, f"Mean KL divergence by category. {told}", *parts)


def _ends(result: Result, name: str) -> Iterator[float]:
    if name in result.categories:
        kl = result.categories[name].kl
        yield from (end for end in (kl.low, kl.value, kl.high) if math.isfinite(end) and end > 0)


def _tiers(shown: Sequence[Result], names: Sequence[str], x: Scale, chosen: str, right: float) -> tuple[int, list[str]]:
    """The files' names above their first dots, in as many tiers as they need, each with a thread down to its dot."""
    tops = []
    for result in shown:
        first = next((name for name in names if name in result.categories and result.categories[name].kl.value > 0), None)
        if first:
            tops.append((x(result.categories[first].kl.value), result.subject.label))
    tiers: list[float] = []
    placed = []
    for at, label in sorted(tops):
        half = width_of(brief(label, 18)) / 2
        middle = min(at, right + 10 - half)
        tier = next((i for i, end in enumerate(tiers) if middle - half > end + 8), len(tiers))
        if tier == len(tiers):
            tiers.append(0.0)
        tiers[tier] = middle + half
        placed.append((at, middle, tier, label))
    base = 30 + 17 * len(tiers)
    parts = []
    for at, middle, tier, label in placed:
        y = base - 17 * tier
        kind = "chosen" if label == chosen else "plain"
        parts.append(line(at, y + 5, at, base + 20 + ROW / 2 - 6, f"thread {kind}"))
        parts.append(words(middle, y, brief(label, 18), "label chosen" if label == chosen else "label", "middle"))
    return len(tiers), parts


def _thread(result: Result, names: Sequence[str], x: Scale, top: float, chosen: bool) -> list[str]:
    kind = "chosen" if chosen else "plain"
    points, marks = [], []
    for at, name in enumerate(names):
        if name not in result.categories or not (value := result.categories[name].kl.value) > 0 or not math.isfinite(value):
            continue
        y, kl = top + ROW * (at + 0.5), result.categories[name].kl
        points.append((x(value), y))
        if math.isfinite(kl.low) and math.isfinite(kl.high) and kl.low > 0:
            marks.append(line(x(kl.low), y, x(kl.high), y, f"whisker {kind}"))
        title = tag("title", text_of(f"{result.subject.label}, {name}: {nats(value)} nats"))
        marks.append(tag("circle", title, cx=float(x(value)), cy=float(y), r=5 if chosen else 4, class_=f"dot {kind}"))
    return [path(points, f"thread {kind}"), *marks] if points else []


def along(comparison: Comparison, family: str, results: Sequence[Result], chosen: str, width: float) -> str:
    """Mean KL by distance from the answer's start, one line a file, named at its end; nothing where it was not kept."""
    shown = [r for r in results if any(kl > 0 and math.isfinite(kl) for *_, kl in r.positions)]
    values = [kl for r in shown for *_, kl in r.positions if kl > 0 and math.isfinite(kl)]
    if not values:
        return ""
    wide = width > 600
    height = 440.0 if wide else 400.0
    names = max(width_of(brief(r.subject.label, 18)) for r in shown) + 18
    left, right, top, bottom = (64.0 if wide else 46.0), width - names, 36.0, height - 52
    y = kl_scale(comparison, values, bottom, top)
    last = max(r.positions[-1][1] for r in shown)
    x = Scale(
        1.0, max(2.0, math.sqrt((max(r.positions[-1][0] for r in shown) + 1) * (last + 1))), left + 6, right - 6, log=True
    )
    parts = [words(0, 16, f"mean KL from {against(comparison, family)}, nats a token", "axis title")]
    floor = floor_of(comparison)
    if floor > y.low:
        parts.append(
            tag("rect", x=left, y=float(y(floor)), width=float(right - left), height=float(bottom - y(floor)), class_="noise")
        )
        parts.append(words(left + 8, bottom - 8, f"noise floor {nats(floor)}", "small soft"))
    for value in y.ticks(7):
        parts += [line(left, y(value), right, y(value), "grid"), words(left - 8, y(value) + 4, plain(value), "tick", "end")]
    parts.append(line(left, bottom, right, bottom, "base"))
    power = 0
    while 2**power <= x.high:
        if wide or power % 2 == 0:
            parts.append(words(x(2**power), bottom + 19, f"{2**power:,}", "tick", "middle"))
        parts.append(line(x(2**power), bottom, x(2**power), bottom + 5, "base"))
        power += 1
    parts.append(words(right, height - 8, "token of the answer", "axis title", "end"))
    parts += _ends_named(shown, x, y, chosen, (top, bottom))
    told = ", ".join(r.subject.label for r in shown)
    return drawing(width, height, f"Mean KL divergence along the answer of {told}", *parts)


def _ends_named(shown: Sequence[Result], x: Scale, y: Scale, chosen: str, room: tuple[float, float]) -> list[str]:
    lines = [
        (r.subject.label, [(x(math.sqrt((a + 1) * (b + 1))), y(kl)) for a, b, kl in r.positions if kl > 0]) for r in shown
    ]
    heights = spread([points[-1][1] for _, points in lines], 15, *room)
    parts = []
    for (label, points), height in sorted(zip(lines, heights, strict=True), key=lambda item: item[0][0] == chosen):
        kind = "chosen" if label == chosen else "plain"
        end = points[-1]
        parts.append(path(points, f"line {kind}"))
        parts += [
            tag("circle", cx=float(px), cy=float(py), r=2.5 if label != chosen else 3.5, class_=f"dot {kind}")
            for px, py in points
        ]
        parts.append(path([(end[0] + 5, end[1]), (end[0] + 14, height)], f"lead {kind}"))
        parts.append(words(end[0] + 17, height + 4, brief(label, 18), "label chosen" if label == chosen else "label"))
    return parts
