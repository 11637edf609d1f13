"""A reference's predictions in 968 bytes a token instead of a row of the whole vocabulary.

Of each token's distribution the likeliest tokens are kept with their log-probabilities, and of all others (the tail) their
mass and some that were drawn from it, each by its own probability. KL(reference ‖ candidate) is then the part over the
likeliest tokens, exactly, and an unbiased estimate over the tail. With p the reference's and q the candidate's tail, P and Q
their masses, the tail's part is P ln(P/Q) + P E[r - 1 - ln r], r = (q/Q) / (p/P), the mean over draws from p/P: r - 1 has
mean 0, so adding it changes nothing but the noise, which it takes away to first order.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from localgemma.compare import metrics
from localgemma.compare.metrics import Softmax, Tokens

if TYPE_CHECKING:
    import numpy as np

TOP, DRAWN = 100, 60  # tokens kept of each distribution: 968 bytes a token with both
_SCALE = 64 / (1 << 24)  # nats: log-probabilities are whole multiples of it, kept in 3 bytes
_LEAST = -63.9
_DEPTHS = (8.0, 14.0, 22.0, 40.0)  # nats below the likeliest within which the TOP likeliest are sought first


@dataclass(slots=True)
class Compact:
    """Distributions of some tokens: `top` and `drawn` token ids (int32 [tokens, TOP or DRAWN]) with their ln p (float32),
    ln of the `tail`'s mass and of the right token's probability (float64). Where the vocabulary has no tail it is -inf.
    """

    top: np.ndarray
    top_log: np.ndarray
    drawn: np.ndarray
    drawn_log: np.ndarray
    tail: np.ndarray
    base: np.ndarray

    @classmethod
    def empty(cls, count: int) -> Compact:
        """Room for `count` tokens."""
        import numpy as np

        return cls(
            np.zeros((count, TOP), np.int32), np.zeros((count, TOP), np.float32),
            np.zeros((count, DRAWN), np.int32), np.zeros((count, DRAWN), np.float32),
            np.full(count, -np.inf), np.zeros(count),
        )  # fmt: skip

    def part(self, which: slice) -> Compact:
        """Some of the tokens."""
        return Compact(*(getattr(self, f.name)[which] for f in fields(self)))


def compact(logits: np.ndarray, targets: np.ndarray, seed: int) -> Compact:
    """What is kept of float32 logits [rows, vocabulary]; the draws follow from `seed` and the row's number alone."""
    found = Compact.empty(len(logits))

    def work(part: slice) -> None:
        base = Softmax.of(logits[part])
        found.base[part] = base.log_probability(logits[part], targets[part])
        for row in range(part.start, part.stop):
            _shorten(found, row, base, row - part.start, seed)

    list(metrics.pool().map(work, metrics.parts(*logits.shape)))
    return found


def put(whole: Compact, part: Compact, at: int) -> None:
    """Write some tokens' distributions to their place."""
    for f in fields(whole):
        getattr(whole, f.name)[at : at + len(part.base)] = getattr(part, f.name)


def _shorten(found: Compact, row: int, base: Softmax, at: int, seed: int) -> None:
    """Keep one row: its likeliest tokens, most likely first, and draws from the others."""
    import numpy as np

    weights, log_total = base.weights[at], np.log(base.total[at])
    chosen = _likeliest(weights)
    found.top[row, : len(chosen)] = chosen
    found.top_log[row] = -np.inf
    found.top_log[row, : len(chosen)] = np.log(weights[chosen].astype(np.float64)) - log_total
    weights[chosen] = 0.0
    steps = np.cumsum(weights, dtype=np.float64)
    if not steps[-1] > 0.0:
        return
    random = np.random.default_rng((seed, row))
    drawn = np.searchsorted(steps, random.random(DRAWN) * steps[-1], side="right")
    drawn = np.minimum(drawn, np.flatnonzero(weights)[-1])
    found.drawn[row] = drawn
    found.drawn_log[row] = np.log(weights[drawn].astype(np.float64)) - log_total
    found.tail[row] = np.log(steps[-1]) - log_total


def _likeliest(weights: np.ndarray) -> np.ndarray:
    """The TOP largest that are not 0, largest first; few of a large vocabulary are worth sorting."""
    import numpy as np

    for depth in _DEPTHS:
        near = np.flatnonzero(weights > np.exp(-depth))
        if len(near) >= TOP:
            break
    else:
        near = np.flatnonzero(weights)
    order = np.argsort(-weights[near], kind="stable")[:TOP]
    return near[order]


def against(kept: Compact, candidate: np.ndarray, targets: np.ndarray) -> Tokens:
    """A candidate's tokens from its float32 logits [rows, vocabulary] against kept distributions."""
    tokens = Tokens.empty(len(candidate))

    def work(part: slice) -> None:
        import numpy as np

        logits, known = candidate[part], kept.part(part)
        own = Softmax.of(logits)
        constant = (own.top + np.log(own.total))[:, None]
        rows = np.arange(len(logits))[:, None]
        there = np.isfinite(known.top_log)
        p = np.where(there, np.exp(known.top_log.astype(np.float64)), 0.0)
        log_q = logits[rows, known.top].astype(np.float64) - constant
        head = np.where(there, p * (np.where(there, known.top_log, 0.0) - log_q), 0.0).sum(axis=1)
        rest, variance = _tail(known, own, logits[rows, known.drawn].astype(np.float64) - constant)
        tokens.kl[part] = np.maximum(head + rest, 0.0)
        tokens.variance[part] = variance
        tokens.same[part] = (own.likeliest == known.top[:, 0]) & there[:, 0]
        tokens.own[part] = own.log_probability(logits, targets[part])
        tokens.base[part] = known.base

    list(metrics.pool().map(work, metrics.parts(*candidate.shape)))
    return tokens


def _tail(known: Compact, own: Softmax, log_q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The tail's part of the divergence, and the variance of that estimate."""
    import numpy as np

    mass = np.exp(known.tail)
    weights = own.weights
    np.put_along_axis(weights, known.top.astype(np.int64), 0.0, axis=1)
    own_tail = np.log(np.maximum(weights.sum(axis=1, dtype=np.float64), 1e-300) / own.total)
    there = mass > 0
    log_p_mass = np.where(there, known.tail, 0.0)
    log_r = (log_q - own_tail[:, None]) - (known.drawn_log.astype(np.float64) - log_p_mass[:, None])
    log_r = np.where(there[:, None] & np.isfinite(known.drawn_log), log_r, 0.0)  # without draws: the tail as one
    terms = np.expm1(np.minimum(log_r, 500.0)) - log_r
    value = mass * (log_p_mass - own_tail + terms.mean(axis=1))
    variance = mass**2 * terms.var(axis=1, ddof=1) / terms.shape[1]
    return np.where(there, value, 0.0), np.where(there, variance, 0.0)


def record_type() -> Any:
    """The numpy type of a token's record."""
    import numpy as np

    return np.dtype(
        [("top", "u1", (TOP, 3)), ("top_log", "u1", (TOP, 3)), ("drawn", "u1", (DRAWN, 3)), ("drawn_log", "u1", (DRAWN, 3)),
         ("tail", "<f4"), ("base", "<f4")]
    )  # fmt: skip


def packed(kept: Compact) -> bytes:
    """Records as they stand in the file."""
    import numpy as np

    rows = np.zeros(len(kept.base), record_type())
    rows["top"], rows["drawn"] = _three(kept.top), _three(kept.drawn)
    for name in ("top_log", "drawn_log"):
        values = np.clip(np.nan_to_num(getattr(kept, name).astype(np.float64), neginf=-64.0), -64.0, 0.0)
        rows[name] = _three(np.minimum(np.rint(values / -_SCALE), (1 << 24) - 1).astype(np.int64))
    rows["tail"], rows["base"] = kept.tail, kept.base
    return rows.tobytes()


def unpacked(data: bytes) -> Compact:
    """The reverse."""
    import numpy as np

    rows = np.frombuffer(data, record_type())
    logs = [_whole(rows[name]) * -_SCALE for name in ("top_log", "drawn_log")]
    top_log, drawn_log = (np.where(log < _LEAST, -np.inf, log) for log in logs)
    return Compact(
        _whole(rows["top"]).astype(np.int32), top_log, _whole(rows["drawn"]).astype(np.int32), drawn_log,
        rows["tail"].astype(np.float64), rows["base"].astype(np.float64),
    )  # fmt: skip


def _three(values: np.ndarray) -> np.ndarray:
    import numpy as np

    return values.astype("<u4")[..., None].view(np.uint8)[..., :3]


def _whole(data: np.ndarray) -> np.ndarray:
    import numpy as np

    padded = np.zeros((*data.shape[:-1], 4), np.uint8)
    padded[..., :3] = data
    return padded.view("<u4")[..., 0].astype(np.int64)
