"""A comparison as plain text for a terminal, as Markdown, and as CSV."""

from __future__ import annotations

import csv as csv_module
import io
import re
import textwrap
import unicodedata
from collections.abc import Iterator, Mapping

from localgemma.compare.recommend import sentences
from localgemma.compare.records import Comparison, Divergence, Result
from localgemma.compare.report_grids import Grid, bound, conditions, every, files, grids, hashes, notes

WIDTH = 120  # columns of the terminal's tables; wider ones are continued below themselves
LABEL = 28  # columns that a cell of words may take in the terminal, and one above numbers
HEAD = 18
QUANTILES = ("50", "90", "95", "99", "99.9", "100")
DP_QUANTILES = ("0.1", "1", "5", "10", "25", "50", "75", "90", "95", "99", "99.9")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")
_FORMULA = ("=", "+", "-", "@")


def table(comparison: Comparison, width: int = WIDTH) -> str:
    """All tables, the recommendation and the conditions in plain text, within `width` columns where cells allow it."""
    blocks = [_text(grid, width) for grid in grids(comparison)]
    if told := advice(comparison):
        blocks.append("\n".join(_filled("* ", sentence, width) for sentence in told))
    lines = [_filled(f"{what:<12} ", how, width) for what, how in conditions(comparison)]
    lines += [f"{'sha256':<12} {_clean(sha)}  {_clean(label)}" for label, sha in hashes(comparison)]
    lines += [_filled(f"{'note':<12} ", note, width) for note in notes(comparison)]
    return "\n\n".join([*blocks, "\n".join(lines)]) + "\n"


def advice(comparison: Comparison) -> tuple[str, ...]:
    """The recommendation that the comparison carries, made now where it carries none."""
    return comparison.recommendation or sentences(comparison, comparison.conditions.memory_limit)


def _filled(start: str, text: str, width: int) -> str:
    return textwrap.fill(_clean(text), width, initial_indent=start, subsequent_indent=" " * len(start), break_on_hyphens=False)


def _text(grid: Grid, width: int) -> str:
    """Columns two spaces apart, words to the left and numbers to the right; what is too wide goes on below."""
    rows = [
        tuple(_short(_clean(cell), LABEL if at < grid.left else HEAD if not number else 40) for at, cell in enumerate(row))
        for number, row in enumerate((grid.head, *grid.rows))
    ]
    widths = [max(_width(row[at]) for row in rows) for at in range(len(rows[0]))]
    lines = [_clean(grid.title)]
    for columns in _blocks(widths, grid.left, width):
        if len(lines) > 1:
            lines.append("")
        table = ["  ".join(_padded(row[at], widths[at], at >= grid.left) for at in columns).rstrip() for row in rows]
        lines += [table[0], "  ".join("─" * widths[at] for at in columns), *table[1:]]
    return "\n".join([*lines, *([_filled("", grid.note, width)] if grid.note else [])])


def _blocks(widths: list[int], left: int, most: int) -> Iterator[list[int]]:
    """The columns that stand beside each other within `most`, the words first in each block."""
    first = list(range(left))
    used, block = sum(widths[at] + 2 for at in first), list(first)
    for at in range(left, len(widths)):
        if block != first and used + widths[at] > most:
            yield block
            used, block = sum(widths[i] + 2 for i in first), list(first)
        block.append(at)
        used += widths[at] + 2
    yield block


def _padded(cell: str, width: int, right: bool) -> str:
    space = " " * (width - _width(cell))
    return space + cell if right else cell + space


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 0 if unicodedata.combining(c) else 1 for c in text)


def _short(text: str, most: int) -> str:
    return text if _width(text) <= most else text[: most - 1] + "…"


def _clean(text: str) -> str:
    """Text in one line that can neither steer a terminal nor turn its direction."""
    return _CONTROL.sub(" ", text)


def markdown(comparison: Comparison) -> str:
    """All tables, the recommendation and the conditions in GitHub's Markdown; text from files stays text."""
    parts = [f"# What each file costs beside {_escaped(comparison.reference.subject.label)}"]
    if told := advice(comparison):
        parts.append("\n".join(f"* {_escaped(sentence)}" for sentence in told))
    line = " · ".join(f"{what}: {_escaped(how)}" for what, how in conditions(comparison))
    for grid in grids(comparison):
        parts.append(f"## {_escaped(grid.title)}")
        parts.append(_markdown(grid))
        if grid.note:
            parts.append(_escaped(grid.note))
        parts.append(f"<sub>{line}</sub>")
    parts.append("## Files")
    parts.append(_markdown(files(comparison)))
    if found := notes(comparison):
        parts.append("## Notes\n\n" + "\n".join(f"* {_escaped(note)}" for note in found))
    return "\n\n".join(parts) + "\n"


def _markdown(grid: Grid) -> str:
    marks = "| --- " * grid.left + "| ---: " * (len(grid.head) - grid.left) + "|"
    lines = [f"| {' | '.join(map(_escaped, row))} |" for row in (grid.head, *grid.rows)]
    return "\n".join([lines[0], marks, *lines[1:]])


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is: no table cell, markup, link or HTML begins in it."""
    text = _clean(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*_\[\]|~#])", r"\\\1", text)
    return text.replace("://", ":\u200b//").replace("@", "@\u200b")


COLUMNS = (
    "file", "name", "quant", "publisher", "family", "kv", "bytes", "bits_per_weight", "sha256", "scope", "positions", "items",
    "kl", "kl_low", "kl_high", "kl_error", *(f"kl_q{name}" for name in QUANTILES), "same_top", "same_top_low",
    "same_top_high", "dp_rms", *(f"dp_q{name}" for name in DP_QUANTILES), "ppl", "reference_ppl", "ppl_ratio",
    "ppl_ratio_low", "ppl_ratio_high", "sampled_error", "right", "n", "accuracy_low", "accuracy_high", "gained", "lost", "p",
    "prefill_tokens_s", "decode_tokens_s", "first_token_s", "load_s", "memory_bytes", "why_not",
    "direction", "reference", "reference_sha256", "set", "build", "backend", "ubatch", "template", "noise_kl", "noise_ubatch",
    "exact", "machine", "date",
)  # fmt: skip


def csv(comparison: Comparison) -> str:
    """One row a file and scope (`all`, `category:…`, `task:…`, `position:first-last`), figures in full, empty where unknown.

    Every row carries its conditions, so that rows of several comparisons can stand in one file. Text that a spreadsheet
    would run as a formula gets an apostrophe before it.
    """
    stream = io.StringIO()
    writer = csv_module.DictWriter(stream, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    same = _conditions(comparison)
    for result in every(comparison):
        for row in _rows(result):
            writer.writerow({name: _cell(value) for name, value in {**row, **same}.items()})
    return stream.getvalue()


def _rows(result: Result) -> Iterator[dict[str, object]]:
    s = result.subject
    subject: dict[str, object] = {
        "file": s.label, "name": s.name, "quant": s.quant, "publisher": s.publisher, "family": s.family, "kv": s.kv,
        "bytes": s.bytes, "bits_per_weight": s.bits_per_weight or "", "sha256": s.sha256,
    }  # fmt: skip
    speed: dict[str, object] = {}
    if found := result.speed:
        speed = {"prefill_tokens_s": found.prefill, "decode_tokens_s": found.decode, "first_token_s": found.first_token,
                 "load_s": found.load, "memory_bytes": sum(found.memory.values())}  # fmt: skip
    overall = _divergence(result.overall) if result.overall else {}
    yield {**subject, "scope": "all", **overall, **speed, "why_not": result.why_not}
    for name, divergence in result.categories.items():
        yield {**subject, "scope": f"category:{name}", **_divergence(divergence)}
    for first, last, kl in result.positions:
        yield {**subject, "scope": f"position:{first}-{last}", "kl": kl}
    for name, score in result.tasks.items():
        row: dict[str, object] = {"right": score.right, "n": score.n, "accuracy_low": score.interval.low,
                                  "accuracy_high": score.interval.high}  # fmt: skip
        if test := score.against:
            row |= {"gained": test.gained, "lost": test.lost, "p": test.p}
        yield {**subject, "scope": f"task:{name}", **row}


def _divergence(d: Divergence) -> dict[str, object]:
    return {
        "positions": d.positions, "items": d.items, "kl": d.kl.value, "kl_low": d.kl.low, "kl_high": d.kl.high,
        "kl_error": d.kl_error, **_quantiles("kl_q", QUANTILES, d.quantiles), "same_top": d.same_top.value,
        "same_top_low": d.same_top.low, "same_top_high": d.same_top.high, "dp_rms": d.dp_rms,
        **_quantiles("dp_q", DP_QUANTILES, d.dp), "ppl": d.perplexity, "reference_ppl": d.reference_perplexity,
        "ppl_ratio": d.ratio.value, "ppl_ratio_low": d.ratio.low, "ppl_ratio_high": d.ratio.high,
        "sampled_error": d.sampled_error,
    }  # fmt: skip


def _quantiles(prefix: str, names: tuple[str, ...], found: Mapping[str, float]) -> dict[str, object]:
    return {f"{prefix}{name}": found[name] for name in names if name in found}


def _conditions(comparison: Comparison) -> dict[str, object]:
    c, reference = comparison.conditions, comparison.reference.subject
    return {
        "direction": "; ".join(filter(None, ("KL(reference||file), nats", bound(comparison)))),
        "reference": reference.label, "reference_sha256": reference.sha256,
        "set": c.set, "build": c.build, "backend": c.backend, "ubatch": c.ubatch, "template": c.template,
        "noise_kl": c.noise.kl.value if c.noise else "", "noise_ubatch": c.noise_ubatch or "", "exact": int(c.exact),
        "machine": c.machine, "date": c.date,
    }  # fmt: skip


def _cell(value: object) -> object:
    if not isinstance(value, str):
        return repr(value) if isinstance(value, float) else value
    text = _clean(value)
    return f"'{text}" if text.startswith(_FORMULA) else text
