"""Noise is called noise: intervals and tests on the demo model's real divergences and answers, and against brute force."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localgemma.compare import stats

DATA = Path(__file__).parent / "data" / "compare_kl.npz"
RUNS = 200


def runs_of(count: int) -> int:
    """The row's 200 runs, whose own noise is ± 3 %; twice as many where they are cheap."""
    return RUNS if count > 100 else 2 * RUNS


@pytest.fixture(scope="module")
def real() -> dict[str, Any]:
    with np.load(DATA) as stored:
        return {name: stored[name] for name in stored.files}


def halves(random: np.random.Generator, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Masks of the tokens of two random halves of the items."""
    names = np.unique(items)
    first = np.isin(items, random.permutation(names)[: len(names) // 2])
    return first, ~first


@pytest.mark.parametrize(("count", "log"), [(400, True), (400, False), (60, True), (16, False)])
def test_random_halves_of_one_files_divergences_are_seldom_called_different(
    real: dict[str, Any], count: int, log: bool
) -> None:
    """The honesty of a comparison: the same file on random halves of the items, of which 5 ± 3 % may be called different."""
    random = np.random.default_rng(0)
    kl, items = real["kl_Q4_K_M"], real["items"]
    called, runs = 0, runs_of(count)
    for _ in range(runs):
        some = np.isin(items, random.permutation(np.unique(items))[:count])
        first, second = halves(random, items[some])
        values, names = kl[some], items[some]
        called += stats.unpaired(values[first], names[first], values[second], names[second], log=log).different
    print(f"halves of {count} items, log {log}, called different in {called} of {runs}")
    assert 0.02 * runs <= called <= 0.08 * runs


@pytest.mark.parametrize("count", [366, 100])
def test_random_halves_of_one_files_answers_are_seldom_called_different(real: dict[str, Any], count: int) -> None:
    random = np.random.default_rng(1)
    right = real["right_Q4_K_M"].astype(float)
    called, runs = 0, runs_of(count)
    for _ in range(runs):
        order = random.permutation(len(right))[:count]
        first, second = order[: count // 2], order[count // 2 :]
        called += stats.unpaired(right[first], first, right[second], second).different
    print(f"halves of {count} answers called different in {called} of {runs}")
    assert 0.02 * runs <= called <= 0.08 * runs


@pytest.mark.parametrize(("count", "log"), [(400, True), (60, True), (60, False), (12, True), (8, True)])
def test_two_candidates_that_are_one_are_seldom_called_different(real: dict[str, Any], count: int, log: bool) -> None:
    """Two files whose divergences were exchanged item by item at random differ by nothing but noise."""
    random = np.random.default_rng(2)
    one, other, items = real["kl_Q4_K_M"], real["kl_Q5_K_M"], real["items"]
    called, runs = 0, runs_of(count)
    for _ in range(runs):
        some = np.isin(items, random.permutation(np.unique(items))[:count])
        swap = random.integers(0, 2, items.max() + 1).astype(bool)[items[some]]
        first, second = np.where(swap, other[some], one[some]), np.where(swap, one[some], other[some])
        called += stats.paired(first, second, items[some], log=log).different
    print(f"exchanged pairs of {count} items, log {log}, called different in {called} of {runs}")
    assert 0.02 * runs <= called <= 0.08 * runs


def test_what_differs_is_called_different(real: dict[str, Any]) -> None:
    one, other, items = real["kl_Q5_K_M"], real["kl_Q4_K_M"], real["items"]
    found = stats.paired(one, other, items, log=True)
    assert found.different and found.value == pytest.approx(other.mean() - one.mean(), rel=1e-4)
    few = np.isin(items, np.unique(items)[:24])
    assert stats.paired(one[few], other[few], items[few], log=True).different
    assert stats.unpaired(one, items, other, items + 1000, log=True).different


@pytest.mark.slow
@pytest.mark.parametrize("count", [200, 60, 20, 8])
def test_intervals_hold_the_truth(real: dict[str, Any], count: int, full: bool) -> None:
    """Of samples of the items, drawn anew from all of them, 95 % of the intervals should hold the mean of all.

    They hold it less often, since 5 of the 418 items have 70 % of all divergence, but far more often than others would.
    """
    random, runs = np.random.default_rng(3), 1000 if full else 100
    kl, items = real["kl_Q4_K_M"], real["items"]
    starts = np.flatnonzero(np.diff(items, prepend=-1))
    tokens = np.split(np.arange(len(items)), starts[1:])
    held = plain = 0
    for _ in range(runs):
        drawn = [tokens[index] for index in random.integers(0, len(tokens), count)]
        values, names = kl[np.concatenate(drawn)], np.repeat(np.arange(count), [len(each) for each in drawn])
        found = stats.mean(values, names)
        held += found.low <= kl.mean() <= found.high
        plain += abs(found.value - kl.mean()) <= 1.96 * float(values.std(ddof=1)) / math.sqrt(len(values))
    print(f"{count} items: {held} of {runs} intervals hold the mean; {plain} of plain ones over tokens")
    assert held >= (0.82 if count == 200 else 0.62) * runs and held > plain


def test_intervals_scale_with_what_is_measured(real: dict[str, Any]) -> None:
    kl, items = real["kl_Q4_K_M"].astype(np.float64), real["items"]
    found, small = stats.mean(kl, items), stats.mean(kl * 1e-6, items)
    assert 0 < found.low < found.value < found.high and found.n == len(np.unique(items))
    assert (small.low, small.value, small.high) == pytest.approx((found.low * 1e-6, found.value * 1e-6, found.high * 1e-6))
    order = np.random.default_rng(4).permutation(len(kl))
    assert stats.mean(kl[order], items[order]).value == pytest.approx(found.value)
    assert stats.mean(kl, items) == found


def test_a_ratio_of_perplexities() -> None:
    random = np.random.default_rng(5)
    items = np.repeat(np.arange(50), 20)
    found = stats.ratio(0.1 + random.normal(0, 0.3, 1000), items)
    assert found.low < math.exp(0.1) < found.high and 0.02 < found.high - found.low < 0.1
    assert stats.ratio(np.zeros(1000), items) == stats.Interval(1.0, 1.0, 1.0, 50)


def test_shares_stay_between_nothing_and_all() -> None:
    items = np.repeat(np.arange(10), 10)
    everything = stats.share(np.ones(100, bool), items)
    assert everything.value == everything.high == 1 and 0.6 < everything.low < 0.8 and everything.n == 10
    assert stats.share(np.zeros(100, bool), items).high == pytest.approx(1 - everything.low)
    hits = np.ones(100, bool)
    hits[3] = False
    found = stats.share(hits, items)
    assert found.value == 0.99 and 0.9 < found.low < 0.99 < found.high < 1


def test_few_items_say_nothing() -> None:
    for interval in (stats.mean([0.1, 0.2], [0, 0]), stats.ratio([0.1, 0.2], [0, 1]), stats.wilson(0, 0)):
        assert math.isnan(interval.low) and math.isnan(interval.high)
    assert stats.mean([0.1, 0.3], [0, 1]).value == pytest.approx(0.2)
    assert not stats.unpaired([1.0, 2.0], [0, 0], [9.0, 9.0], [1, 2]).different
    assert not stats.paired([1.0], [9.0], [0]).different
    with pytest.raises(ValueError, match="0 values"):
        stats.mean([], [])


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (8, 10, 0.4902, 0.9433), (81, 263, 0.2553, 0.3662), (1, 1, 0.2065, 1.0)],
)
def test_wilsons_interval(right: int, n: int, low: float, high: float) -> None:
    """81 of 263 is in table I of Newcombe, "Two-sided confidence intervals for the single proportion", 1998, method 3."""
    found = stats.wilson(right, n)
    assert (round(found.low, 4), round(found.high, 4), found.value, found.n) == (low, high, right / n, n)


@pytest.mark.parametrize(
    ("gained", "lost", "p"),
    [(0, 0, 1.0), (5, 5, 1.0), (0, 5, 0.0625), (0, 6, 0.03125), (1, 9, 0.021484375), (12, 3, 0.03515625)],
)
def test_mcnemars_exact_test(gained: int, lost: int, p: float) -> None:
    names = [f"q{index}" for index in range(40)]
    before = dict.fromkeys(names, True) | dict.fromkeys(names[:gained], False)
    after = dict.fromkeys(names, True) | dict.fromkeys(names[gained : gained + lost], False)
    found = stats.mcnemar(before, after | {"only here": True})
    assert (found.gained, found.lost, found.p) == (gained, lost, p)


def test_paired_permutations_are_all_there_are() -> None:
    first, second = np.array([1.0, 2.0, 3.0, 5.0, 8.0]), np.array([1.5, 2.2, 2.9, 6.0, 9.5])
    d = second - first
    ways = [abs(sum(s * x for s, x in zip(signs, d, strict=True))) for signs in itertools.product((1, -1), repeat=5)]
    expected = sum(way >= abs(d.sum()) - 1e-12 for way in ways) / 32
    assert stats.paired(first, second, np.arange(5)).p == pytest.approx(expected)


def test_unpaired_permutations_agree_with_all_there_are() -> None:
    first, second = np.array([0.1, 0.4, 0.2, 0.9, 0.3]), np.array([0.8, 1.1, 0.7, 1.9, 1.2])
    both = np.concatenate([first, second])

    def apart(chosen: tuple[int, ...]) -> float:
        a, b = both[list(chosen)], np.delete(both, chosen)
        spread = a.var(ddof=1) / 5 + b.var(ddof=1) / 5
        return float(abs(a.mean() - b.mean()) / math.sqrt(spread))

    seen = apart((0, 1, 2, 3, 4))
    ways = [apart(chosen) for chosen in itertools.combinations(range(10), 5)]
    above, ties = sum(way > seen + 1e-9 for way in ways), sum(abs(way - seen) <= 1e-9 for way in ways)
    found = stats.unpaired(first, np.arange(5), second, np.arange(5))
    assert found.p == pytest.approx((above + ties / 2) / len(ways), abs=0.006)
    assert found.value == pytest.approx(second.mean() - first.mean())


def test_tokens_of_an_item_count_as_one_witness() -> None:
    """A hundred tokens of each of six items that happen to differ say no more than six numbers."""
    random = np.random.default_rng(6)
    items = np.repeat(np.arange(6), 100)
    level = random.normal(0, 1, 6)[items]
    a, b = level + random.normal(0, 0.01, 600), level + 0.05 + random.normal(0, 0.01, 600)
    found = stats.unpaired(a, items, b, items)
    assert not found.different and stats.paired(a, b, items).different
    assert found.high - found.low > 1
