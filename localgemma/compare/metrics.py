"""From logits to figures: what a candidate loses against a reference, token by token and over many."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import cache
from typing import TYPE_CHECKING, Any

from localgemma.compare import stats
from localgemma.compare.records import Divergence, Interval

if TYPE_CHECKING:
    import numpy as np

QUANTILES = (50.0, 90.0, 95.0, 99.0, 99.9, 100.0)
DP_QUANTILES = (0.0, 0.1, 1.0, 5.0, 25.0, 50.0, 75.0, 95.0, 99.0, 99.9, 100.0)
_CELLS = 1 << 18  # logits worked on at a time, so that they and the scratch stay in a core's cache


@dataclass(slots=True)
class Tokens:
    """One candidate's tokens, in order: float64 arrays of equal length.

    `kl` is KL(reference ‖ candidate) in nats, `same` whether the likeliest token is the same, `own` and `base` the right
    token's log-probability here and at the reference (NaN: not among those that it told), `variance`
    what a sampled tail adds to `kl` (0: nothing sampled).
    """

    kl: np.ndarray
    same: np.ndarray
    own: np.ndarray
    base: np.ndarray
    variance: np.ndarray

    @classmethod
    def empty(cls, count: int) -> Tokens:
        """Zeros for `count` tokens."""
        import numpy as np

        return cls(*(np.zeros(count) for _ in fields(cls)))

    @classmethod
    def joined(cls, parts: Sequence[Tokens]) -> Tokens:
        """Parts one after another."""
        import numpy as np

        return cls(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)))

    def chosen(self, which: Any) -> Tokens:
        """Some of the tokens, by a mask or slice."""
        return Tokens(*(getattr(self, f.name)[which] for f in fields(self)))


@cache
def pool() -> ThreadPoolExecutor:
    """Threads that numpy and engines work in; both let go of the interpreter's lock."""
    return ThreadPoolExecutor(min(16, os.cpu_count() or 1), "localgemma-compare")


def parts(rows: int, width: int) -> list[slice]:
    """Slices of rows that fit into a core's cache."""
    step = max(1, _CELLS // width)
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


@dataclass(slots=True)
class Softmax:
    """Rows of logits as exp(logit - top): `weights` with their `total`, so that p = weights / total; float32 and float64."""

    top: np.ndarray
    likeliest: np.ndarray
    weights: np.ndarray
    total: np.ndarray

    @classmethod
    def of(cls, logits: np.ndarray) -> Softmax:
        """Of float32 [rows, vocabulary]."""
        import numpy as np

        likeliest = logits.argmax(axis=1)
        top = logits[np.arange(len(logits)), likeliest]
        weights = np.subtract(logits, top[:, None])
        np.exp(weights, out=weights)
        return cls(top.astype(np.float64), likeliest, weights, weights.sum(axis=1).astype(np.float64))

    def log_probability(self, logits: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """ln p of one token a row, float64."""
        import numpy as np

        picked: np.ndarray = logits[np.arange(len(logits)), tokens].astype(np.float64)
        picked -= self.top + np.log(self.total)
        return picked


def against(reference: np.ndarray, candidates: Sequence[np.ndarray], targets: np.ndarray) -> list[Tokens]:
    """Every candidate's tokens, from float32 logits [rows, vocabulary] of each and the right tokens, exactly.

    The reference's softmax is computed once for all candidates.
    """
    found = [Tokens.empty(len(reference)) for _ in candidates]

    def work(part: slice) -> None:
        import numpy as np

        rows, right = reference[part], targets[part]
        base = Softmax.of(rows)
        base_right = base.log_probability(rows, right)
        for logits, tokens in zip((each[part] for each in candidates), found, strict=True):
            own = Softmax.of(logits)
            difference = np.subtract(rows, logits, out=own.weights)
            # Taken from the reference's likeliest token, so that the sum is of small numbers and nothing cancels.
            start = difference[np.arange(len(rows)), base.likeliest]
            difference -= start[:, None]
            mean = np.einsum("ij,ij->i", base.weights, difference).astype(np.float64) / base.total
            shift = start - base.top - np.log(base.total) + own.top + np.log(own.total)
            tokens.kl[part] = np.maximum(mean + shift, 0.0)
            tokens.same[part] = own.likeliest == base.likeliest
            tokens.own[part] = own.log_probability(logits, right)
            tokens.base[part] = base_right

    list(pool().map(work, parts(*reference.shape)))
    return found


def divergence(tokens: Tokens, items: Sequence[int] | np.ndarray) -> Divergence:
    """What the tokens say together; `items` has the number of the text that each is of."""
    import numpy as np

    count = len(tokens.kl)
    change = np.exp(tokens.own) - np.exp(tokens.base)
    log_ratio = tokens.base - tokens.own
    known = bool(np.isfinite(tokens.base).all())
    return Divergence(
        positions=count,
        items=len(np.unique(np.asarray(items))),
        kl=stats.mean(tokens.kl, items),
        kl_error=_error(tokens.kl),
        quantiles=_quantiles(tokens.kl, QUANTILES),
        same_top=stats.share(tokens.same, items),
        dp_rms=float(np.sqrt(np.mean(change**2))),
        dp=_quantiles(change, DP_QUANTILES),
        perplexity=_perplexity(tokens.own),
        reference_perplexity=_perplexity(tokens.base),
        ratio=stats.ratio(log_ratio, items) if known else Interval(math.nan, math.nan, math.nan),
        sampled_error=float(np.sqrt(tokens.variance.sum()) / count),
    )


def _perplexity(log_probabilities: np.ndarray) -> float:
    import numpy as np

    return math.exp(min(700.0, -float(np.mean(log_probabilities))))


def _error(values: np.ndarray) -> float:
    """The standard error of a mean over tokens, as llama-perplexity has it (none below 11)."""
    import numpy as np

    return float(np.std(values) / math.sqrt(len(values) - 1)) if len(values) > 10 else 0.0


def _quantiles(values: np.ndarray, which: Sequence[float]) -> Mapping[str, float]:
    import numpy as np

    found = np.percentile(values, which)
    return {f"{name:g}": float(value) for name, value in zip(which, found, strict=True)}


def by_distance(kl: np.ndarray, distances: np.ndarray) -> tuple[tuple[int, int, float], ...]:
    """Mean divergences by distance from the answer's start: (first, last, mean), the stretches doubling in length."""
    rows = []
    start, end, last = 0, 1, int(distances.max(initial=-1))
    while start <= last:
        inside = (distances >= start) & (distances < end)
        if inside.any():
            rows.append((start, min(end, last + 1) - 1, float(kl[inside].mean())))
        start, end = end, end * 2
    return tuple(rows)


def with_sampling(interval: Interval, error: float) -> Interval:
    """The interval widened by an independent standard error."""
    if not error:
        return interval
    low, high = interval.value - interval.low, interval.high - interval.value
    extra = (1.959964 * error) ** 2
    return Interval(
        interval.value,
        max(0.0, interval.value - math.sqrt(low * low + extra)),
        interval.value + math.sqrt(high * high + extra),
        interval.n,
    )
