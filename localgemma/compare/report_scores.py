"""The page's table of right answers: a score with its interval in every cell, and what a paired test says of it."""

from __future__ import annotations

from localgemma.compare.records import Comparison, Result
from localgemma.compare.report_bars import interval
from localgemma.compare.report_grids import every, task_names
from localgemma.compare.report_numbers import UNKNOWN, of, p_value
from localgemma.compare.report_tests import pooled, told_apart
from localgemma.compare.svg import tag, text_of

_TOLD = (
    "Answers that are right or wrong, to the same questions. Lines are Wilson's 95 % intervals from 0 to 100 %, the upright "
    "tick is the reference. A star says that a paired test calls the difference to the reference real (McNemar's exact test, "
    "Holm's correction for all tests of this table); whatever has no star cannot be told from chance."
)


def scores(comparison: Comparison, chosen: str, caption: str) -> str:
    """The whole section; nothing where no task was asked."""
    names, results = task_names(comparison), every(comparison)
    if not names:
        return ""
    apart = told_apart(comparison)
    head = [tag("th", "task", scope="col", class_="w")]
    head += [tag("th", text_of(r.subject.label), scope="col", class_=_picked(r, chosen)) for r in results]
    rows = [
        tag("tr", tag("th", text_of(name), scope="row", class_="w", title=name),
            *(_score(comparison, result, name, chosen, apart) for result in results))
        for name in names
    ]  # fmt: skip
    rows += _sums(results, chosen)
    table = tag("table", tag("thead", tag("tr", *head)), tag("tbody", *rows))
    box = tag("div", table, class_="scroll", tabindex="0", role="region", aria_label="Right answers by task")
    return tag(
        "section", tag("h2", "Right answers"), tag("p", text_of(_TOLD)), box, tag("p", text_of(caption), class_="under")
    )


def _picked(result: Result, chosen: str) -> str | None:
    return "chosen" if result.subject.label == chosen else None


def _score(comparison: Comparison, result: Result, name: str, chosen: str, apart: set[tuple[str, str]]) -> str:
    score = result.tasks.get(name)
    if score is None:
        return tag("td", UNKNOWN, class_=_picked(result, chosen))
    reference = comparison.reference.tasks.get(name)
    told, starred = "", (result.subject.label, name) in apart
    if test := score.against:
        told = f"{test.gained} gained, {test.lost} lost, p = {p_value(test.p)}"
    shown = tag("b", f"{of(score)}*") if starred else of(score)
    kind = "chosen" if result.subject.label == chosen else "plain"
    return tag("td", shown, interval(score, reference, kind), class_=_picked(result, chosen), title=told or None)


def _sums(results: tuple[Result, ...], chosen: str) -> list[str]:
    """All items together, and their paired test."""
    right = [sum(score.right for score in r.tasks.values()) for r in results]
    n = [sum(score.n for score in r.tasks.values()) for r in results]
    tests = [pooled(results[0], result) for result in results]
    lines = {
        "all": [f"{a}/{b}" if b else UNKNOWN for a, b in zip(right, n, strict=True)],
        "gained, lost": [f"+{test.gained} −{test.lost}" if test else UNKNOWN for test in tests],
        "p of all": [p_value(test.p) if test else UNKNOWN for test in tests],
    }
    return [
        tag("tr", tag("th", name, scope="row", class_="w"),
            *(tag("td", text_of(cell), class_=_picked(r, chosen)) for cell, r in zip(cells, results, strict=True)),
            class_="sum" if name == "all" else None)
        for name, cells in lines.items()
    ]  # fmt: skip
