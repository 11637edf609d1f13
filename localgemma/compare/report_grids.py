"""The tables of a comparison as cells: what the terminal, Markdown and the page lay out each in its own way."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from localgemma.compare.records import CATEGORIES, Comparison, Result, Speed
from localgemma.compare.report_numbers import UNKNOWN, column, counted, nats, of, p_value, percent, places, rate, ratio, within
from localgemma.compare.report_tests import pooled, told_apart
from localgemma.units import format_duration, format_size

FAMILIES = {"": "as released", "qat": "quantisation-aware training"}
DIVERGENCE_HEAD = ("file", "size", "bits", "KL, nats", "95 % interval", "median", "99 %", "max", "same top, %", "RMS Δp, %",
                   "PPL ratio")  # fmt: skip
SHOWN = ("50", "99", "100")  # quantiles of the tokens' divergences with a column of their own


@dataclass(frozen=True, slots=True)
class Grid:
    """A table: its first `left` columns are words, the others are numbers. `note` is said under it."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    left: int = 1


def every(comparison: Comparison) -> tuple[Result, ...]:
    """The reference and all candidates."""
    return (comparison.reference, *comparison.results)


def families(comparison: Comparison) -> dict[str, tuple[Result, ...]]:
    """Candidates by what their weights descend from, the reference's family first: a divergence stays within one."""
    found: dict[str, list[Result]] = {comparison.reference.subject.family: []}
    for result in comparison.results:
        found.setdefault(result.subject.family, []).append(result)
    return {family: tuple(results) for family, results in found.items()}


def family_title(family: str) -> str:
    """A family in words."""
    return FAMILIES.get(family, family)


def against(comparison: Comparison, family: str) -> str:
    """What the divergences of a family are taken against."""
    reference = comparison.reference.subject
    label = f"{reference.label} (lower bound)" if comparison.conditions.likeliest else reference.label
    return label if family == reference.family else "the reference of their own family"


def grids(comparison: Comparison) -> tuple[Grid, ...]:
    """Every table that has something to say, in the report's order."""
    tables = [make(comparison, family) for family in families(comparison) for make in (divergences, categories)]
    return tuple(grid for grid in (*tables, tasks(comparison), speeds(comparison)) if grid.rows)


def divergences(comparison: Comparison, family: str) -> Grid:
    """KL and its kin of one family, one row a file."""
    results = families(comparison)[family]
    own = family == comparison.reference.subject.family
    found = [result.overall for result in results if result.overall]
    digits = [places(d.kl.value for d in found), *(places(d.quantiles.get(name, 0.0) for d in found) for name in SHOWN)]
    rows = [(*_file(result), *_figures(result, digits)) for result in results]
    if own and rows:
        label, *rest = _file(comparison.reference)
        rows.insert(0, (f"{label} (reference)", *rest, *[UNKNOWN] * 8))
    why = "; ".join(f"{r.subject.label}: {r.why_not}" for r in results if r.overall is None and r.why_not)
    title = f"Divergence from {against(comparison, family)}"
    return Grid(title if own else f"{title}: {family_title(family)}", DIVERGENCE_HEAD, tuple(rows), why)


def _file(result: Result) -> tuple[str, str, str]:
    """Label, size and bits a weight."""
    s = result.subject
    bits = f"{s.bits_per_weight:.2f}" if s.bits_per_weight else UNKNOWN
    return s.label, format_size(s.bytes) if s.bytes else UNKNOWN, bits


def _figures(result: Result, digits: Sequence[int]) -> tuple[str, ...]:
    found = result.overall
    if found is None:
        return (UNKNOWN,) * 8
    tails = (
        column(found.quantiles[name], count) if name in found.quantiles else UNKNOWN
        for name, count in zip(SHOWN, digits[1:], strict=True)
    )
    return (
        column(found.kl.value, digits[0]), within(found.kl, digits[0]), *tails,
        percent(found.same_top.value), percent(found.dp_rms, 2), ratio(found.ratio.value),
    )  # fmt: skip


def category_names(results: Sequence[Result]) -> tuple[str, ...]:
    """The categories that any of the results has, the known ones in their order."""
    found = {name for result in results for name in result.categories}
    return (*(name for name in CATEGORIES if name in found), *sorted(found - set(CATEGORIES)))


def categories(comparison: Comparison, family: str) -> Grid:
    """Mean KL by category of one family; the last row counts the positions that each rests on."""
    results = [result for result in families(comparison)[family] if result.categories]
    names = category_names(results)
    digits = [places(r.categories[name].kl.value for r in results if name in r.categories) for name in names]
    rows = [
        (r.subject.label, *(column(r.categories[name].kl.value, count) if name in r.categories else UNKNOWN
                            for name, count in zip(names, digits, strict=True)))
        for r in results
    ]  # fmt: skip
    if rows:
        counts = [max(r.categories[name].positions for r in results if name in r.categories) for name in names]
        rows.append(("positions", *(f"{count:,}" for count in counts)))
    title = f"Mean KL from {against(comparison, family)} by category, nats"
    return Grid(title, ("file", *names), tuple(rows))


def task_names(comparison: Comparison) -> tuple[str, ...]:
    """Every task that anything was asked, in the order of the reference's."""
    return tuple(dict.fromkeys(name for result in every(comparison) for name in result.tasks))


def tasks(comparison: Comparison) -> Grid:
    """Right answers by task, one column a file; `*` where a paired test calls the difference to the reference real."""
    results, names = every(comparison), task_names(comparison)
    apart = told_apart(comparison)
    rows = [(name, *(_score(result, name, apart) for result in results)) for name in names]
    if len(rows) > 1:
        rows.append(("all", *(_total(result) for result in results)))
        tests = [pooled(comparison.reference, result) for result in results]
        rows.append(("gained, lost", *(f"+{t.gained} −{t.lost}" if t else UNKNOWN for t in tests)))
        rows.append(("p of all", *(p_value(t.p) if t else UNKNOWN for t in tests)))
    note = (
        "* differs from the reference at 5 % (McNemar's exact test on the same items, Holm's correction for "
        "all the tests of this table); what has no star cannot be told from chance."
    )
    return Grid("Right answers by task", ("task", *(r.subject.label for r in results)), tuple(rows), note if rows else "")


def _score(result: Result, name: str, apart: set[tuple[str, str]]) -> str:
    if name not in result.tasks:
        return UNKNOWN
    return of(result.tasks[name]) + ("*" if (result.subject.label, name) in apart else "")


def _total(result: Result) -> str:
    right, n = (sum(getattr(score, field) for score in result.tasks.values()) for field in ("right", "n"))
    return f"{right}/{n}" if n else UNKNOWN


def speeds(comparison: Comparison) -> Grid:
    """Speed, load and memory of every file that was timed."""
    rows = [
        (
            result.subject.label, rate(speed.prefill), rate(speed.decode),
            f"{speed.first_token:.2f} s" if speed.first_token else UNKNOWN,
            format_duration(speed.load) if speed.load else UNKNOWN, memory(speed) or UNKNOWN,
        )
        for result in every(comparison) if (speed := result.speed)
    ]  # fmt: skip
    head = ("file", "prefill, tokens/s", "decode, tokens/s", "first token", "load", "memory taken")
    return Grid("Speed and memory on this machine", head, tuple(rows))


def memory(speed: Speed) -> str:
    """What a load took, by device."""
    return ", ".join(f"{format_size(size)} {device}" for device, size in speed.memory.items() if size)


def conditions(comparison: Comparison) -> Iterator[tuple[str, str]]:
    """How it was measured, as (what, how): what every table states under itself."""
    c, reference = comparison.conditions, comparison.reference.subject
    sha = f", sha256 {reference.sha256[:16]}…" if reference.sha256 else ""
    yield "direction", f"KL(reference ‖ file), nats a token; reference: {reference.label} ({reference.name}{sha})"
    yield (
        "set",
        f"{c.set}: {counted(c.positions, 'position')} of {counted(c.items, 'item')}; chat template {template(c.template)}",
    )
    yield "noise floor", noise(comparison)
    yield "llama.cpp", f"{c.build}, {c.backend}, ubatch {c.ubatch}"
    yield "logits", bound(comparison) or "the full vocabulary" if c.exact or c.likeliest else _sampled(comparison)
    where = [c.machine, f"{format_size(c.memory_limit)} for weights and context" if c.memory_limit else "", c.date]
    if any(where):
        yield "measured", "; ".join(part for part in where if part)


def template(name: str) -> str:
    """A chat template in words; of a hash, enough to tell it from others."""
    if re.fullmatch(r"[0-9a-f]{64}", name):
        return f"sha256 {name[:16]}…"
    return name or "none (raw text)"


def bound(comparison: Comparison) -> str:
    """What makes the divergences lower bounds; nothing where they are none."""
    count = comparison.conditions.likeliest
    return f"lower bound: {count} likeliest tokens of the reference, and the rest as one" if count else ""


def _sampled(comparison: Comparison) -> str:
    found = [result.overall for result in comparison.results if result.overall]
    what = "the reference's likeliest and sampled tokens"
    if not found:
        return f"{what}; no divergence was taken"
    worst = max(found, key=lambda d: d.sampled_error)
    share = f" ({percent(worst.sampled_error / worst.kl.value)} % of that mean)" if worst.kl.value else ""
    return f"{what}; the sampling adds a standard error of {nats(worst.sampled_error)} nats at most{share}"


def noise(comparison: Comparison) -> str:
    """The divergence that is no loss but arithmetic: the same file at another ubatch."""
    c = comparison.conditions
    if c.noise is None:
        return "not measured"
    same = "" if c.noise.same_top.value >= 1 else f", same top token {percent(c.noise.same_top.value, 2)} %"
    return f"{nats(c.noise.kl.value)} nats{same} (the reference's own file at ubatch {c.noise_ubatch})"


def files(comparison: Comparison) -> Grid:
    """Which files these are, to the byte."""
    rows = tuple(
        (s.label, s.name, s.publisher or UNKNOWN, s.kv, f"{s.bytes:,}" if s.bytes else UNKNOWN, s.sha256 or "not known")
        for s in (result.subject for result in every(comparison))
    )
    return Grid("Files", ("file", "name", "publisher", "KV", "bytes", "sha256"), rows, left=4)


def hashes(comparison: Comparison) -> tuple[tuple[str, str], ...]:
    """The sha256 of every file, by label; files measured with several KV types once."""
    found: dict[str, str] = {}
    for result in every(comparison):
        found.setdefault(result.subject.sha256 or f"not known: {result.subject.label}", result.subject.label)
    return tuple((label, "not known" if sha.startswith("not known") else sha) for sha, label in found.items())


def notes(comparison: Comparison) -> tuple[str, ...]:
    """What the reader must know besides: of the whole, of single files, and of chat templates that are not the reference's."""
    reference = comparison.reference.subject
    found = list(comparison.notes)
    for result in every(comparison):
        subject = result.subject
        found += [f"{subject.label}: {note}" for note in result.notes]
        if subject.template and reference.template and subject.template != reference.template:
            found.append(f"{subject.label}: the chat template in this file is not the one in the reference's.")
    return tuple(dict.fromkeys(found))
