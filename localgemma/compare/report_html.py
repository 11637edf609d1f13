"""A comparison as one page that opens offline: no script, no font, no picture, no request; light and dark."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from localgemma import __version__
from localgemma.compare.recommend import PLAIN_KV, choice
from localgemma.compare.records import Comparison, Result
from localgemma.compare.report_answers import answers
from localgemma.compare.report_bars import speed_bars
from localgemma.compare.report_charts import quality
from localgemma.compare.report_grids import (
    Grid,
    against,
    categories,
    conditions,
    divergences,
    every,
    families,
    family_title,
    files,
    noise,
    notes,
    speeds,
)
from localgemma.compare.report_lines import along, by_category
from localgemma.compare.report_numbers import counted, nats, percent, rate, within
from localgemma.compare.report_scores import scores
from localgemma.compare.report_style import STYLE
from localgemma.compare.report_text import advice
from localgemma.compare.svg import tag, text_of
from localgemma.units import format_size

WIDE, NARROW = 1000.0, 358.0
Draw = Callable[[Comparison, str, Sequence[Result], str, float], str]


def html(comparison: Comparison) -> str:
    """The whole page. Its policy forbids whatever it does not contain, so that hostile text could load nothing either."""
    chosen = choice(comparison, comparison.conditions.memory_limit)
    label = chosen.subject.label if chosen else ""
    title = f"What each file costs beside {comparison.reference.subject.label}"
    sections = (
        _advice(comparison, chosen), _quality(comparison, label), *_where(comparison, label),
        scores(comparison, label, caption(comparison)), _speed(comparison, label), answers(comparison, label),
        _how(comparison),
    )  # fmt: skip
    head = (
        '<meta charset="utf-8"/>'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\"/>"
        '<meta name="viewport" content="width=device-width, initial-scale=1"/><meta name="referrer" content="no-referrer"/>'
    )
    top = tag("header", tag("p", "localgemma compare", class_="over"), tag("h1", text_of(title)), _what(comparison))
    body = tag("main", top, *filter(None, sections))
    foot = tag("footer", tag("p", f"Made by localgemma {text_of(__version__)}. This page is one file and loads nothing."))
    head += tag("title", text_of(title)) + tag("style", STYLE)
    return f"<!DOCTYPE html>\n{tag('html', tag('head', head), tag('body', body, foot), lang='en')}\n"


def caption(comparison: Comparison, family: str | None = None) -> str:
    """What every table and drawing says under itself, in one line."""
    c, reference = comparison.conditions, comparison.reference.subject
    sha = f" (sha256 {reference.sha256[:12]}…)" if reference.sha256 else ""
    whose = f"{reference.label}{sha}" if family in (None, reference.family) else "the own reference"
    rests = f"{counted(c.positions, 'position')} of {counted(c.items, 'item')}"
    return (
        f"KL({whose} ‖ file) over {rests}, set {c.set}; llama.cpp {c.build}, {c.backend}, ubatch {c.ubatch}; "
        f"noise floor {noise(comparison)}."
    )


def _what(comparison: Comparison) -> str:
    c = comparison.conditions
    rests = f"{counted(c.positions, 'token')} of {counted(c.items, 'item')}"
    parts = [counted(len(comparison.results), "file"), rests, f"set {c.set}", c.machine, c.date]
    return tag("p", text_of(" · ".join(part for part in parts if part)), class_="what")


def _advice(comparison: Comparison, chosen: Result | None) -> str:
    first, *more = advice(comparison) or ("Nothing could be compared.",)
    lead = text_of(_unbroken(first))
    if chosen and f"take {(name := text_of(chosen.subject.label))}" in lead:
        lead = lead.replace(f"take {name}", f"take {tag('strong', name)}", 1)
    items = "".join(tag("li", text_of(_unbroken(sentence))) for sentence in more)
    facts = _facts(comparison, chosen) if chosen else ""
    return tag(
        "section", tag("p", lead, class_="lead"), facts, tag("ul", items, class_="more") if items else "", class_="take"
    )


def _unbroken(sentence: str) -> str:
    """The sentence with its figures held together with their units."""
    return re.sub(r"(?<=\d) (?=[KMGT]iB|nats|%|tokens/s)|(?<=p) (?=[=<])|(?<=[=<]) (?=[\d.])", "\u00a0", sentence)


def _facts(comparison: Comparison, chosen: Result) -> str:
    d, s = chosen.overall, chosen.subject
    if d is None:
        return ""
    ends, bits = within(d.kl), f"{s.bits_per_weight:.2f} bits a weight" if s.bits_per_weight else ""
    facts = [
        ("divergence", nats(d.kl.value), "nats", "" if ends == "–" else f"95 %: {ends}"),
        (
            "same top token",
            percent(d.same_top.value),
            "%",
            "" if (ends := _shares(d.same_top.low, d.same_top.high)) == "" else ends,
        ),
        ("file", *(format_size(s.bytes).split(" ", 1) if s.bytes else ("–", "")), bits),
    ]
    if chosen.speed and chosen.speed.decode:
        facts.append(("writes", rate(chosen.speed.decode), "tokens/s", f"reads {rate(chosen.speed.prefill)} tokens/s"))
    cells = []
    for what, figure, unit, told in facts:
        value = [text_of(figure), " ", tag("span", text_of(unit)), tag("small", text_of(told)) if told else ""]
        cells.append(tag("div", tag("dt", what), tag("dd", *value)))
    return tag("dl", *cells, class_="facts")


def _shares(low: float, high: float) -> str:
    return f"95 %: {percent(low)}–{percent(high)}" if low == low and high == high else ""


def both(draw: Draw, comparison: Comparison, family: str, results: Sequence[Result], chosen: str) -> str:
    """A drawing for wide and one for narrow screens, of which one is shown."""
    drawn = [(kind, draw(comparison, family, results, chosen, width)) for kind, width in (("wide", WIDE), ("narrow", NARROW))]
    return "".join(tag("div", markup, class_=kind) for kind, markup in drawn if markup)


def _panels(comparison: Comparison, chosen: str, draw: Draw) -> Iterator[str]:
    """A figure for each family that has something to draw."""
    whole = families(comparison)
    for family, results in whole.items():
        drawn = both(draw, comparison, family, results, chosen)
        if drawn:
            shown = f"{family_title(family)}, against {against(comparison, family)}"
            heading = tag("h3", text_of(shown[0].upper() + shown[1:])) if len(whole) > 1 else ""
            yield tag("figure", heading, drawn, tag("figcaption", text_of(caption(comparison, family))))


def _quality(comparison: Comparison, chosen: str) -> str:
    told = (
        "Each point is a file: the further down, the closer its predictions are to the reference's; the further left, the "
        "smaller. Bars are 95 % intervals. No file is both smaller and closer than those on the line, the Pareto front."
    )
    if comparison.conditions.noise:
        told += " Within the shaded band at the bottom a difference is this machine's arithmetic, not the file's loss."
    if any(result.subject.kv not in PLAIN_KV for result in comparison.results):
        told += " Rings have a quantised KV cache."
    parts = [tag("h2", "Quality against size"), tag("p", told), *_panels(comparison, chosen, quality)]
    for family, results in families(comparison).items():
        grid = divergences(comparison, family)
        if any(result.overall for result in results):
            parts += [
                tag("h3", text_of(grid.title)),
                table(grid, chosen),
                _under(grid.note),
                _under(caption(comparison, family)),
            ]
        elif results:
            names = ", ".join(f"{r.subject.label} ({format_size(r.subject.bytes)})" for r in results)
            parts += [tag("h3", text_of(f"Without a divergence: {names}")), tag("p", text_of(_sentence(grid.note)))]
    return tag("section", *parts)


def _sentence(text: str) -> str:
    return text if not text or text.endswith((".", "!", "?")) else f"{text}."


def _where(comparison: Comparison, chosen: str) -> Iterator[str]:
    """By category, and along the answer."""
    found = list(_panels(comparison, chosen, by_category))
    if found:
        told = "A mean hides where a file loses. The same files, by what was asked of them."
        parts = [tag("h2", "Where it costs"), tag("p", told), *found]
        tables = [grid for family in families(comparison) if (grid := categories(comparison, family)).rows]
        inner = "".join(tag("h3", text_of(grid.title)) + table(grid, chosen) for grid in tables)
        parts.append(tag("details", tag("summary", "The figures as a table"), inner, _under(caption(comparison))))
        yield tag("section", *parts)
    found = list(_panels(comparison, chosen, along))
    if found:
        told = "Mean divergence by distance from the answer's start, with the reference's own words before it."
        yield tag("section", tag("h2", "Along the answer"), tag("p", told), *found)


def _speed(comparison: Comparison, chosen: str) -> str:
    grid = speeds(comparison)
    if not grid.rows:
        return ""
    c = comparison.conditions
    told = f"Measured here ({c.machine or 'machine unknown'}) with llama.cpp {c.build}, {c.backend}, ubatch {c.ubatch}."
    drawn = tag("figure", *speed_bars(every(comparison), chosen), class_="three")
    return tag("section", tag("h2", "Speed and memory"), tag("p", text_of(told)), drawn, table(grid, chosen))


def _how(comparison: Comparison) -> str:
    told = (
        "Every file reads the same prompts and the same answers, token by token. At each token the probabilities that it "
        "gives to all it could say next are laid beside the reference's; KL divergence is what is lost, on average, by "
        "believing the file instead of the reference. 0 is no difference. It says how far the predictions moved, not whether "
        "they got better or worse; that is what the tasks are for. Intervals come from resampling whole items, as the tokens "
        "of one answer are not independent."
    )
    listed = "".join(tag("dt", text_of(what)) + tag("dd", text_of(how)) for what, how in conditions(comparison))
    noted = "".join(tag("li", text_of(note)) for note in notes(comparison))
    parts = [tag("h2", "How it was measured"), tag("p", told), tag("dl", listed, class_="how")]
    if noted:
        parts += [tag("h3", "Notes"), tag("ul", noted, class_="more")]
    return tag("section", *parts, tag("h3", "Files"), table(files(comparison), ""))


def _under(text: str) -> str:
    return tag("p", text_of(text), class_="under") if text else ""


def table(grid: Grid, chosen: str) -> str:
    """A table in a box that scrolls by itself; the chosen file's row is marked."""
    left = [at < grid.left or name == "sha256" for at, name in enumerate(grid.head)]
    head = "".join(
        tag("th", text_of(cell), scope="col", class_="w" if left[at] else None) for at, cell in enumerate(grid.head)
    )
    rows = []
    for row in grid.rows:
        cells = [tag("th", text_of(row[0]), scope="row", class_="w", title=row[0])]
        cells += [_cell(cell, grid.head[at], left[at]) for at, cell in enumerate(row[1:], 1)]
        rows.append(tag("tr", *cells, class_="chosen" if row[0] == chosen else None))
    inner = tag("table", tag("thead", tag("tr", head)), tag("tbody", *rows))
    return tag("div", inner, class_="scroll", tabindex="0", role="region", aria_label=grid.title)


def _cell(cell: str, head: str, left: bool) -> str:
    shown = tag("code", text_of(cell)) if head == "sha256" else text_of(cell)
    return tag("td", shown, class_="w" if left else None)
