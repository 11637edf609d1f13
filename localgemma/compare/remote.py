"""A reference behind an API: its likeliest tokens at each position, kept as a reference file that stands for the model.

What it says of a position is a coarse distribution: some tokens, and all others as one (the rest). The divergence of two
distributions is never less than that of the same two made coarser (the data-processing inequality), so what comes of such a
file is a lower bound. Nothing is drawn from the rest, and nothing estimated.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any

from localgemma.compare import lgref, reference, walk
from localgemma.compare.corpus import Corpus
from localgemma.compare.endpoint import LIKELIEST, Endpoint, Likely, next_tokens
from localgemma.compare.keep import Store, key_of
from localgemma.compare.lgref import Origin, Reference
from localgemma.compare.records import Conditions, Subject
from localgemma.compare.reference import Compact
from localgemma.compare.samples import Sample, digest, prepared
from localgemma.compare.walks import Walking
from localgemma.engine import CancelToken, Engine, Prompt, Text
from localgemma.errors import BackendError, UsageError
from localgemma.messages import Pixels, Progress
from localgemma.options import LoadOptions
from localgemma.passages import Passage, Spells

if TYPE_CHECKING:
    from pathlib import Path

VERSION = 1  # of what is kept: raised when it would mean something else
POSITIONS = 1000  # that are asked for unless the caller says otherwise: each is a request
AT_ONCE = 4  # requests
_ALIGNED = 0.5  # of the mass that it names; below, its tokens are others


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked of whom: `like` is a candidate, whose tokens and template the reference is asked in."""

    endpoint: Endpoint
    corpus: Corpus
    like: Subject
    load: LoadOptions
    store: Path
    around: Conditions
    positions: int = POSITIONS
    save: Path | None = None


def fetch(asked: Asked, engine: Engine, told: Callable[[Progress], None], cancel: CancelToken) -> Reference:
    """Ask for what is not kept yet, and write the file. Raises what asking does, DiskError, Cancelled with the parts kept."""
    everything = prepared(asked.corpus.items, engine)
    samples = cut(everything, asked.positions)
    cells = Cells(engine)
    store = Store(asked.store)
    walking = Walking(samples, asked.load, store, "", cancel, told)
    walking.expect(1)
    endpoint = asked.endpoint
    key = key_of("remote", VERSION, endpoint.url, endpoint.model, digest(samples), LIKELIEST, asked.like.vocabulary)
    records = []
    for number in range(len(walking.segments)):
        data = store.get(key, f"{number:05d}.rec")
        fresh = data is None
        if data is None:
            data = reference.packed(_segment(endpoint, walking.of(number), cells, cancel))
            store.put(key, f"{number:05d}.rec", data)
        records.append(data)
        walking.tell(number, 1, fresh=fresh)
    target = asked.save or store.folder / key / "reference.lgref"
    lgref.write(target, _origin(asked, records, everything, samples), samples, records)
    return lgref.read(target)


def _origin(asked: Asked, records: Sequence[bytes], everything: Sequence[Sample], samples: Sequence[Sample]) -> Origin:
    like, load, around = asked.like, asked.load, asked.around
    total, some = (sum(len(sample.targets) for sample in each) for each in (everything, samples))
    extra = {"likeliest": LIKELIEST, "endpoint": asked.endpoint.url, "of": total, "asked": None, "noise": None}
    name = asked.endpoint.model
    return Origin(
        set=asked.corpus.name if some == total else f"{asked.corpus.name}, the first tokens of each answer",
        model=f"{name} at {asked.endpoint.host}", label=name, sha256=hashlib.sha256(b"".join(records)).hexdigest(),
        vocabulary=like.vocabulary, template=like.template, family="qat" if "qat" in name.lower() else "",
        build=around.build, backend=around.backend, ubatch=load.ubatch or 0, outputs=load.outputs, sequences=load.sequences,
        vocabulary_size=like.vocabulary_size, kv="", date=around.date, extra=extra,
    )  # fmt: skip


def cut(samples: Sequence[Sample], positions: int) -> list[Sample]:
    """The texts without pictures, each with as many of its first tokens as all may have so that `positions` suffice."""
    texts = [sample for sample in samples if not any(isinstance(run, Pixels) for run in sample.passage.runs)]
    if not texts:
        raise UsageError("A remote reference reads text alone, and all of this has pictures.", "Give it texts too.")
    most = max(len(sample.targets) for sample in texts)
    while most > 1 and sum(min(most, len(sample.targets)) for sample in texts) > positions:
        most -= 1
    return [_first(sample, most) for sample in texts[:positions]]


def _first(sample: Sample, count: int) -> Sample:
    if len(sample.targets) <= count:
        return sample
    ids = _ids(sample)[: sample.passage.first + count]
    return replace(sample, passage=Passage((ids,), sample.passage.first), targets=sample.targets[:count])


def _ids(sample: Sample) -> tuple[int, ...]:
    return tuple(chain.from_iterable(run for run in sample.passage.runs if not isinstance(run, Pixels)))


class Cells:
    """Which token of the local vocabulary an endpoint means, by its bytes."""

    def __init__(self, engine: Engine) -> None:
        if not isinstance(engine, Spells):
            raise BackendError(f"{engine.info.model} does not tell its tokens' bytes.", "Compare models of this machine.")
        self._engine, self._pieces = engine, engine.pieces()
        self._by_bytes: dict[bytes, list[int]] = defaultdict(list)
        for token, data in enumerate(self._pieces):
            self._by_bytes[data].append(token)
        self._chosen: dict[bytes, int | None] = {}

    def token(self, likely: Likely) -> int | None:
        """Its id here; None where it has none, or where its bytes are those of several and a tokenizer does not decide."""
        given = likely.token
        if given is not None:
            there = 0 <= given < len(self._pieces)
            return given if there and (not likely.data or self._pieces[given] == likely.data) else None
        if not likely.data:
            return None
        if likely.data not in self._chosen:
            self._chosen[likely.data] = self._one(likely.data)
        return self._chosen[likely.data]

    def _one(self, data: bytes) -> int | None:
        """Of a byte's token and a character's, the one that text gives."""
        some = self._by_bytes.get(data, [])
        if len(some) < 2:
            return some[0] if some else None
        ids = self._engine.tokenize(Prompt((Text(data.decode("utf-8", "replace")),)))
        return ids[0] if len(ids) == 1 and ids[0] in some else None


def _segment(endpoint: Endpoint, samples: Sequence[Sample], cells: Cells, cancel: CancelToken) -> Compact:
    """The records of some samples, several requests at once."""
    places = walk.starts(samples)
    found = Compact.empty(places[-1])
    wanted = [_ids(sample)[: sample.passage.first + 1 + at] for sample in samples for at in range(len(sample.targets))]
    pool = ThreadPoolExecutor(AT_ONCE, "localgemma-remote")
    try:
        said = list(pool.map(next_tokens, repeat(endpoint), wanted, repeat(cancel)))
    finally:
        pool.shutdown(cancel_futures=True)
    targets = list(chain.from_iterable(sample.targets for sample in samples))
    named = [math.fsum(_put(found, row, likely, cells, targets[row])) for row, likely in enumerate(said)]
    told = math.fsum(math.exp(each.log) for likely in said for each in likely)
    if math.fsum(named) < _ALIGNED * told:
        raise UsageError(
            f"{endpoint.host} speaks in tokens of another kind: only {100 * math.fsum(named) / told:.0f} % of what it names "
            "is in this vocabulary.",
            "Serve the same model family there.",
        )
    return found


def _put(found: Compact, row: int, likely: Sequence[Likely], cells: Cells, target: int) -> list[float]:
    """Write what was said of a position; the probabilities that have a token here. All others are the rest."""
    import numpy as np

    known: dict[int, float] = {}
    for each in likely:
        if (token := cells.token(each)) is not None:
            known.setdefault(token, each.log)
    masses = [math.exp(log) for log in known.values()]
    found.top_log[row], found.drawn_log[row] = -np.inf, -np.inf
    found.base[row] = known.get(target, math.nan)
    if not known:  # one cell, of everything: nothing is told apart
        return masses
    tokens = list(known)
    found.top[row] = tokens[0]  # a place that is not used names a token that is, so that it takes nothing from the rest
    shift = 0 if cells.token(likely[0]) is not None else 1  # place 0 is the likeliest's; without a token here it stays empty
    found.top[row, shift : shift + len(tokens)] = tokens
    found.top_log[row, shift : shift + len(tokens)] = list(known.values())
    rest = 1.0 - math.fsum(masses)
    found.tail[row] = math.log(rest) if rest > 0 else -np.inf
    return masses


def likeliest(extra: Mapping[str, Any]) -> int:
    """Of how many likeliest tokens alone a reference file knows, by its origin's `extra`; 0: it has drawn from the others."""
    return int(extra.get("likeliest") or 0)


def notes(opened: Reference | None) -> tuple[str, ...]:
    """What must be said of a reference that was asked for by the network."""
    if opened is None or not (count := likeliest(opened.origin.extra)):
        return ()
    origin, asked = opened.origin, sum(len(sample.targets) for sample in opened.samples)
    return (
        f"{origin.label} is known by its answers alone ({origin.model}, {origin.date}): of each prediction the {count} "
        "likeliest tokens, all others as one. Every divergence is a lower bound of the whole vocabulary's; its sha256 is of "
        "these answers.",
        f"{asked:,} of {origin.extra.get('of', asked):,} positions were asked for.",
    )
