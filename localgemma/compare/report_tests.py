"""Which differences between answers are more than chance, over a whole table of tests."""

from __future__ import annotations

from localgemma.compare.records import Comparison, Result, Test
from localgemma.compare.stats import LEVEL, mcnemar
from localgemma.compare.tasks import total


def pooled(reference: Result, result: Result) -> Test | None:
    """The paired test over the items of all tasks together; None where nothing was paired."""
    if not any(score.against for score in result.tasks.values()):
        return None
    return mcnemar(total(reference.tasks).items, total(result.tasks).items)


def told_apart(comparison: Comparison) -> set[tuple[str, str]]:
    """(label, task) of the tests that stay below LEVEL after Holm's correction for all tests of the comparison.

    Without it one in twenty tests of equal files would be called a difference (Holm 1979, step down).
    """
    tests = sorted(
        (score.against.p, result.subject.label, name)
        for result in comparison.results
        for name, score in result.tasks.items()
        if score.against
    )
    found: set[tuple[str, str]] = set()
    for index, (p, label, name) in enumerate(tests):
        if p > LEVEL / (len(tests) - index):
            break
        found.add((label, name))
    return found
