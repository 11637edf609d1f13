"""The walks of a comparison: segment by segment, what is finished kept, side by side or against a kept reference."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

from localgemma.compare import lgref, reference, walk
from localgemma.compare.keep import Store, key_of
from localgemma.compare.metrics import Tokens
from localgemma.compare.records import Subject
from localgemma.compare.reference import Compact
from localgemma.compare.samples import Sample, digest, segments, spread
from localgemma.engine import CancelToken, Engine
from localgemma.errors import Cancelled
from localgemma.messages import Progress
from localgemma.options import LoadOptions

NOISE_POSITIONS = 2048  # walked again at another ubatch for the noise floor
VERSION = 1  # of what is kept: raised when it would mean something else


@dataclass(slots=True)
class Walking:
    """The texts of a comparison and how they are walked; `build` names the library that does it."""

    samples: Sequence[Sample]
    load: LoadOptions
    store: Store
    build: str
    cancel: CancelToken
    told: Callable[[Progress], None]
    segments: Sequence[range] = ()
    _done: int = 0
    _total: int = 0
    _fresh: int = 0
    _started: float = field(default_factory=time.monotonic)
    _hash: str = ""

    def __post_init__(self) -> None:
        self.segments = segments(self.samples)
        self._hash = digest(self.samples)

    def key(self, *who: str) -> str:
        """The name under which a walk's parts are kept."""
        load = (self.load.kv, self.load.ubatch, self.load.outputs, self.load.sequences, self.load.flash_attention)
        return key_of(VERSION, self._hash, self.build, load, self.load.gpu_layers, who)

    def expect(self, walks: int) -> None:
        """How many models will be walked over all texts, for the time left."""
        self._total = walks * self.positions

    @property
    def positions(self) -> int:
        """Positions of all texts."""
        return sum(len(sample.passage) for sample in self.samples)

    def sparse(self) -> Walking:
        """The walking of the noise floor: texts from everywhere in the set, whose progress is not told."""
        return replace(self, samples=spread(self.samples, NOISE_POSITIONS), told=lambda _: None)

    def of(self, segment: int) -> Sequence[Sample]:
        """The samples of a segment."""
        return [self.samples[index] for index in self.segments[segment]]

    def tell(self, segment: int, walks: int, *, fresh: bool) -> None:
        """A segment was walked by so many models, just now or earlier. Raises Cancelled."""
        count = walks * sum(len(sample.passage) for sample in self.of(segment))
        self._done += count
        self._fresh += count if fresh else 0
        spent = time.monotonic() - self._started
        left = spent / self._fresh * max(0, self._total - self._done) if self._fresh else None
        self.told(Progress("compare", self._done, max(self._total, self._done), left))
        if self.cancel.cancelled:
            raise Cancelled("The comparison was stopped; what is done is kept.", "Run the same command again to go on.")


def identity(subject: Subject) -> str:
    """What tells a subject's predictions from another's."""
    return f"{subject.sha256}/{subject.kv}"


def lacking(walking: Walking, base: Subject, subjects: Sequence[Subject]) -> bool:
    """Whether anything of an exact comparison is still to be walked."""
    keys = [walking.key(identity(base), identity(subject)) for subject in subjects]
    return any(walking.store.get_tokens(key, number) is None for key in keys for number in range(len(walking.segments)))


def exactly(walking: Walking, base: Subject, engines: Mapping[str, Engine], subjects: Sequence[Subject]) -> None:
    """Walk what is missing of some candidates side by side with the reference; `engines` by label, the reference's by "".

    Full vocabulary, and one walk of the reference for all of them.
    """
    keys = {subject.label: walking.key(identity(base), identity(subject)) for subject in subjects}
    for number in range(len(walking.segments)):
        lacking = [each for each in subjects if walking.store.get_tokens(keys[each.label], number) is None]
        if lacking:
            some = [engines[""], *(engines[each.label] for each in lacking)]
            found = walk.side_by_side(some, walking.of(number), walking.cancel)
            for each, tokens in zip(lacking, found, strict=True):
                walking.store.put_tokens(keys[each.label], number, tokens)
            walking.tell(number, len(some), fresh=True)
        if len(lacking) < len(subjects):
            walking.tell(number, len(subjects) - len(lacking), fresh=False)


def record(walking: Walking, base: Subject, engine: Callable[[], Engine]) -> None:
    """Walk the reference alone and keep its predictions; `engine` is only called where needed."""
    key = walking.key(identity(base), "reference")
    for number in range(len(walking.segments)):
        fresh = walking.store.get(key, f"{number:05d}.rec") is None
        if fresh:
            walking.store.put(key, f"{number:05d}.rec", reference.packed(_compact(walking, engine(), number)))
        walking.tell(number, 1, fresh=fresh)


def _compact(walking: Walking, engine: Engine, number: int) -> Compact:
    some = walking.of(number)
    places = walk.starts(some)
    whole = Compact.empty(places[-1])
    for (block,) in walk.lockstep([engine], some, walking.cancel):
        targets, at = walk.right(some, places, block)
        reference.put(whole, reference.compact(block.logits, targets, (number << 20) + at), at)
    return whole


def records(walking: Walking, base: Subject) -> list[bytes]:
    """The kept records of a reference that was walked whole."""
    key = walking.key(identity(base), "reference")
    parts = [walking.store.get(key, f"{number:05d}.rec") for number in range(len(walking.segments))]
    return [part for part in parts if part is not None]


Kept = Callable[[int], Compact]  # a segment's reference


def from_store(walking: Walking, base: Subject) -> Kept:
    """The reference's predictions as `record` kept them."""
    key = walking.key(identity(base), "reference")

    def read(number: int) -> Compact:
        data = walking.store.get(key, f"{number:05d}.rec")
        assert data is not None
        return reference.unpacked(data)

    return read


def from_file(walking: Walking, opened: lgref.Reference) -> Kept:
    """The reference's predictions from its file."""
    places = walk.starts(walking.samples)
    return lambda number: opened.tokens(places[walking.segments[number].start], places[walking.segments[number].stop])


def sampled(walking: Walking, kept: Kept, key: str, engine: Callable[[], Engine]) -> None:
    """Walk what is missing of one candidate against a kept reference; `engine` is only called where needed."""
    for number in range(len(walking.segments)):
        fresh = walking.store.get_tokens(key, number) is None
        if fresh:
            some = walking.of(number)
            places = walk.starts(some)
            whole, known = Tokens.empty(places[-1]), kept(number)
            for (block,) in walk.lockstep([engine()], some, walking.cancel):
                targets, at = walk.right(some, places, block)
                part = known.part(slice(at, at + len(targets)))
                walk.put(whole, reference.against(part, block.logits, targets), at)
            walking.store.put_tokens(key, number, whole)
        walking.tell(number, 1, fresh=fresh)


def gathered(walking: Walking, key: str) -> tuple[Tokens, list[int]]:
    """The tokens of all segments that are kept, and the number of the sample that each is of."""
    parts, items = [], list[list[int]]()
    for number in range(len(walking.segments)):
        tokens = walking.store.get_tokens(key, number)
        if tokens is not None:
            parts.append(tokens)
            items += [[index] * len(walking.samples[index].targets) for index in walking.segments[number]]
    return Tokens.joined(parts) if parts else Tokens.empty(0), list(chain.from_iterable(items))


def other_ubatch(load: LoadOptions) -> LoadOptions:
    """The same load with half the ubatch, in which pictures must still fit."""
    half = max(16, (load.ubatch or 512) // 2)
    if half < load.image_tokens:
        half = (load.ubatch or 512) * 2
    return replace(load, ubatch=half, outputs=min(load.outputs, half))
