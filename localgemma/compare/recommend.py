"""What follows from a comparison, in plain words, and what the planner remembers of it.

The rule: of the files that this machine can hold, the one nearest to the reference; where a smaller file's interval reaches
that of the nearest, this set cannot tell the two apart and the smaller one is taken. Nothing within the noise floor counts
as a loss. Divergences speak within one family only; across families the tasks do.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from localgemma.compare.records import Comparison, Interval, Result
from localgemma.compare.report_numbers import nats, percent, probability, rate, times, within
from localgemma.compare.report_tests import pooled, told_apart
from localgemma.compare.stats import LEVEL
from localgemma.measured import Loss
from localgemma.units import format_size

CATEGORY_WORDS = {"long": "long documents", "non-latin": "non-Latin scripts", "tools": "tool calls",
                  "science": "mathematics and science"}  # fmt: skip
PLAIN_KV = ("f16", "bf16", "f32")
RAW = ", raw"  # the end of a set's name that was read as plain text
MARKED = 1.5  # times the mean from which a category is named as the weakest
_SURE = 100  # texts from which an interval of the divergence is nearly as sure as it says (stats.py has the shares)


def choice(comparison: Comparison, memory_limit: int) -> Result | None:
    """The candidate that the rule takes; None where none fits or none was compared by divergence."""
    near = [result for result in _fitting(comparison, memory_limit) if result.subject.kv in PLAIN_KV]
    near = near or _fitting(comparison, memory_limit)
    if not near:
        return None
    best = min(near, key=lambda r: (_kl(r).value, r.subject.bytes))
    same = [result for result in near if not _apart(result, best, comparison)]
    return min(same, key=lambda r: (r.subject.bytes, _kl(r).value))


def sentences(comparison: Comparison, memory_limit: int) -> tuple[str, ...]:
    """The recommendation, one thought a sentence; `memory_limit` in bytes (0: unknown)."""
    chosen = choice(comparison, memory_limit)
    compared = _compared(comparison)
    if chosen is None:
        if not compared:
            return ("No file could be compared by divergence, so nothing is recommended.", *_across(comparison))
        small = min(compared, key=_needs)
        shown = f"{small.subject.label} needs {format_size(_needs(small))}"
        return (
            f"None of these files fits into {format_size(memory_limit)}: the smallest, {shown}. Make or pull a smaller one.",
            *_across(comparison),
        )
    return (
        _take(comparison, chosen, memory_limit), *_same(comparison, chosen, memory_limit),
        *_smaller(comparison, chosen, memory_limit), *_dominated(compared, chosen), *_weakest(chosen),
        *_tasks(comparison, chosen), *_kv(compared, chosen), *_across(comparison), *_caution(comparison, chosen),
    )  # fmt: skip


def losses(comparison: Comparison) -> tuple[Loss, ...]:
    """What the planner may prefer over published figures: every candidate's mean KL with its conditions.

    Raw text says little about an instruction-tuned model, lower bounds are no figures to rank by, and too
    few items for an interval say little about anything.
    """
    reference, c = comparison.reference.subject, comparison.conditions
    if c.set.endswith(RAW) or c.likeliest:
        return ()
    return tuple(
        Loss(
            sha256=s.sha256, name=s.name, quant=s.quant, publisher=s.publisher, kv=s.kv, kl=d.kl.value, low=d.kl.low,
            high=d.kl.high, reference=reference.label, reference_sha256=reference.sha256, family=s.family, set=c.set,
            positions=d.positions, noise=c.noise.kl.value if c.noise else 0.0, build=c.build, date=c.date,
        )
        for result in comparison.results
        if (d := result.overall) and (s := result.subject).family == reference.family
        and all(math.isfinite(end) for end in (d.kl.low, d.kl.value, d.kl.high))
    )  # fmt: skip


def pareto(results: Sequence[Result]) -> tuple[Result, ...]:
    """Those that no other file beats in both size and divergence, from small to large."""
    front: list[Result] = []
    for result in sorted(results, key=lambda r: (r.subject.bytes, _kl(r).value)):
        if not front or _kl(result).value < _kl(front[-1]).value:
            front.append(result)
    return tuple(front)


def _compared(comparison: Comparison) -> list[Result]:
    family = comparison.reference.subject.family
    return [r for r in comparison.results if r.overall and r.subject.family == family and math.isfinite(_kl(r).value)]


def _fitting(comparison: Comparison, limit: int) -> list[Result]:
    return [result for result in _compared(comparison) if not limit or _needs(result) <= limit]


def _needs(result: Result) -> int:
    """Bytes that it takes: as measured where it was loaded, else the file's."""
    return max(result.subject.bytes, sum(result.speed.memory.values()) if result.speed else 0)


def _kl(result: Result) -> Interval:
    return result.overall.kl if result.overall else Interval(math.inf, math.inf, math.inf)


def _apart(worse: Result, better: Result, comparison: Comparison) -> bool:
    """Whether the intervals leave a gap that is more than the noise floor; without intervals any difference counts."""
    noise = comparison.conditions.noise
    low, high = _kl(worse).low, _kl(better).high
    if math.isnan(low) or math.isnan(high):
        low, high = _kl(worse).value, _kl(better).value
    return low > high + (noise.kl.value if noise else 0.0)


def _take(comparison: Comparison, chosen: Result, limit: int) -> str:
    subject, found = chosen.subject, chosen.overall
    assert found is not None
    noise = comparison.conditions.noise
    where = f"what fits into this machine's {format_size(limit)}" if limit else "all that was compared"
    ends = within(found.kl)
    interval = f" ({ends})" if ends != "–" else ""
    floor = noise is not None and found.kl.value <= 2 * noise.kl.value
    least = "at least " if comparison.conditions.likeliest else ""
    told = ", which is hardly more than this machine's own arithmetic noise" if floor else ""
    speed = f" It writes {rate(chosen.speed.decode)} tokens/s here." if chosen.speed and chosen.speed.decode else ""
    return (
        f"Of {where}, take {subject.label} ({format_size(subject.bytes)}): its predictions are {least}"
        f"{nats(found.kl.value)} nats a token{interval} from "
        f"{comparison.reference.subject.label}'s{told}, and {percent(found.same_top.value)} % of the "
        f"likeliest tokens are the same.{speed}"
    )


def _same(comparison: Comparison, chosen: Result, limit: int) -> Iterator[str]:
    larger = [r for r in _fitting(comparison, limit)
              if r.subject.bytes > chosen.subject.bytes and r.subject.kv == chosen.subject.kv
              and not _apart(chosen, r, comparison)]  # fmt: skip
    if larger:
        names = _listed([r.subject.label for r in larger])
        are = "is" if len(larger) == 1 else "are"
        yield f"{names} {are} larger, and on this set the difference is within the uncertainty."


def _smaller(comparison: Comparison, chosen: Result, limit: int) -> Iterator[str]:
    """The next step down and the next one up, each with its price."""
    front = [r for r in pareto(_compared(comparison)) if r.subject.kv == chosen.subject.kv]
    below = [r for r in front if r.subject.bytes < chosen.subject.bytes]
    if below and _kl(chosen).value > 0:
        step = below[-1]
        saved = format_size(chosen.subject.bytes - step.subject.bytes)
        yield f"One step smaller, {step.subject.label} saves {saved} and diverges {_times(step, chosen)} times as much."
    above = [r for r in front if limit and _needs(r) > limit and _kl(r).value < _kl(chosen).value]
    if above:
        step = above[0]
        yield f"{step.subject.label} is nearer ({nats(_kl(step).value)} nats), but needs {format_size(_needs(step))}."


def _dominated(compared: list[Result], chosen: Result) -> Iterator[str]:
    front = {r.subject.label for r in pareto([r for r in compared if r.subject.kv == chosen.subject.kv])}
    lost = [r.subject.label for r in compared if r.subject.kv == chosen.subject.kv and r.subject.label not in front]
    if lost:
        yield f"Not worth {'its' if len(lost) == 1 else 'their'} size: {_listed(lost)}; a smaller file is at least as near."


def _weakest(chosen: Result) -> Iterator[str]:
    known = {name: d.kl.value for name, d in chosen.categories.items() if math.isfinite(d.kl.value)}
    if len(known) < 2 or not chosen.overall or not chosen.overall.kl.value:
        return
    name = max(known, key=lambda key: known[key])
    if (factor := known[name] / chosen.overall.kl.value) >= MARKED:
        yield f"It is weakest at {_category(name)}: {nats(known[name])} nats, {times(factor)} times its mean."


def _tasks(comparison: Comparison, chosen: Result) -> Iterator[str]:
    tested = [name for name, score in chosen.tasks.items() if score.against]
    if not tested:
        return
    apart = told_apart(comparison)
    worse = [n for n in tested if (chosen.subject.label, n) in apart and (t := chosen.tasks[n].against) and t.lost > t.gained]
    whole = pooled(comparison.reference, chosen)
    if worse:
        yield f"It answers worse than the reference at {_listed(worse)}, by more than chance."
    elif whole and whole.p < LEVEL and whole.lost > whole.gained:
        yield (
            f"No single task shows a loss, but all of them together do: {whole.lost} answers lost and {whole.gained} gained "
            f"({probability(whole)})."
        )
    else:
        none = "No task" if len(tested) == 1 else f"None of the {len(tested)} tasks"
        counts = f" ({whole.gained} answers gained, {whole.lost} lost, {probability(whole)})" if whole else ""
        yield f"{none} tells its answers from the reference's{counts}."


def _kv(compared: list[Result], chosen: Result) -> Iterator[str]:
    """What a quantised KV cache adds to the chosen file."""
    for other in compared:
        a, b = chosen.subject, other.subject
        if b.kv != a.kv and (b.sha256 or b.name) == (a.sha256 or a.name) and _kl(chosen).value > 0:
            more = _kl(other).value - _kl(chosen).value
            yield f"A {b.kv} KV cache adds {nats(max(0.0, more))} nats to it ({_times(other, chosen)} times as much)."


def _across(comparison: Comparison) -> Iterator[str]:
    family = comparison.reference.subject.family
    others = [r for r in comparison.results if r.subject.family != family]
    if others:
        names = _listed([r.subject.label for r in others])
        what = "descends from other weights: its" if len(others) == 1 else "descend from other weights: their"
        yield f"{names} {what} divergence from this reference says nothing, so compare the tasks."


def _caution(comparison: Comparison, chosen: Result) -> Iterator[str]:
    if chosen.overall and math.isnan(chosen.overall.kl.low):
        yield "These are too few items for an interval: take the figures as a first look."
    elif chosen.overall and chosen.overall.items < _SURE:
        yield (
            f"With {chosen.overall.items} texts, the interval of a divergence may hold the truth in only three of four cases "
            "instead of 95 %: no sample tells of texts that it lacks."
        )
    if comparison.conditions.likeliest:
        yield "All divergences here are lower bounds, and two of them may stand in another order than the whole ones."
    if not memory_known(comparison):
        yield "This machine's memory was not told, so nothing here says whether a file fits."


def memory_known(comparison: Comparison) -> bool:
    """Whether the comparison knows what this machine can hold."""
    return comparison.conditions.memory_limit > 0


def _times(more: Result, less: Result) -> str:
    return times(_kl(more).value / _kl(less).value)


def _category(name: str) -> str:
    return CATEGORY_WORDS.get(name, name)


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
