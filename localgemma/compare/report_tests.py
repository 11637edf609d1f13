"""Which differences between answers are more than chance, over a whole table of tests."""

from __future__ import annotations

from math import comb

from localgemma.compare.records import Comparison, Result, Test

LEVEL = 0.05


def mcnemar(gained: int, lost: int) -> float:
    """McNemar's exact two-sided p: the binomial test that gains and losses are equally likely."""
    n = gained + lost
    if not n:
        return 1.0
    tail = sum(comb(n, k) for k in range(min(gained, lost) + 1))
    return min(1.0, float(2 * tail / 2**n))


def pooled(result: Result) -> Test | None:
    """The paired test over the items of all tasks together; None where nothing was paired."""
    tests = [score.against for score in result.tasks.values() if score.against]
    if not tests:
        return None
    gained, lost = sum(test.gained for test in tests), sum(test.lost for test in tests)
    return Test(gained, lost, mcnemar(gained, lost))


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
