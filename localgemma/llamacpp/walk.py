"""Walking passages: many of them share each batch, and only the rows that are wanted have logits."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from localgemma.engine import CancelToken
from localgemma.errors import BackendError, BadConversation, Cancelled, ContextOverflow, PictureTooLarge
from localgemma.llamacpp.batch import Span
from localgemma.llamacpp.cache import Cache
from localgemma.llamacpp.context import ABORTED
from localgemma.llamacpp.vision import Projector
from localgemma.messages import Pixels
from localgemma.passages import Block, Passage

Share: TypeAlias = tuple["_Reader", Span]


@dataclass(slots=True)
class _Reader:
    """A passage under way in one sequence: `run` and `at` say what comes next, `position` where it goes."""

    index: int
    passage: Passage
    sequence: int
    run: int = 0
    at: int = 0
    position: int = 0

    @property
    def work(self) -> tuple[int, ...] | Pixels | None:
        return self.passage.runs[self.run] if self.run < len(self.passage.runs) else None

    def advance(self, count: int) -> None:
        """`count` tokens of the run, or its picture, were evaluated."""
        run = self.passage.runs[self.run]
        self.position += count
        self.at += count
        if isinstance(run, Pixels) or self.at == len(run):
            self.run, self.at = self.run + 1, 0


class Walk:
    """Some passages through a context that has nothing else to do."""

    def __init__(self, passages: Sequence[Passage], cache: Cache, projector: Projector | None, cancel: CancelToken) -> None:
        """Raises ContextOverflow, PictureTooLarge and BadConversation for what this load cannot hold."""
        self._cache, self._context, self._projector, self._cancel = cache, cache.context, projector, cancel
        for passage in passages:
            self._check(passage)
        self._waiting = deque(enumerate(passages))
        self._readers: list[_Reader] = []
        self._free = [slot.id for slot in cache.slots]

    def _check(self, passage: Passage) -> None:
        if len(passage) > self._context.size:
            raise ContextOverflow(len(passage), self._context.size)
        for run in passage.runs:
            if isinstance(run, Pixels):
                if self._projector is None:
                    raise BadConversation("This model was loaded without its projector.", "Load it with one to read pictures.")
                if run.tokens > self._context.ubatch:
                    raise PictureTooLarge(run.tokens, self._context.ubatch)

    def begin(self) -> None:
        """Empty the cache. Raises BackendError while a conversation is under way."""
        if any(slot.busy for slot in self._cache.slots):
            raise BackendError("The model answers a conversation, and cannot walk texts beside it.", "Wait for its answer.")
        for slot in self._cache.slots:
            self._cache.clear(slot)

    def step(self) -> list[Block] | None:
        """Evaluate one batch, or one picture; None when all is read. Raises Cancelled, DecodeError."""
        self._admit()
        if not self._readers:
            return None
        shown = next((reader for reader in self._readers if isinstance(reader.work, Pixels)), None)
        if shown is not None:
            self._show(shown)
            return []
        shares = self._packed()
        self._evaluate(lambda: self._context.decode_spans([span for _, span in shares]))
        blocks, row = [], 0
        for reader, span in shares:
            count = len(span.tokens)
            if span.outputs:
                logits = self._context.rows(row + count - span.outputs, span.outputs)
                blocks.append(Block(reader.index, span.position + count - span.outputs, logits))
            reader.advance(count)
            row += count
        return blocks

    def _admit(self) -> None:
        for reader in [reader for reader in self._readers if reader.work is None]:
            self._readers.remove(reader)
            self._context.cut(0, reader.sequence)
            self._free = sorted([*self._free, reader.sequence])
        taken = sum(len(reader.passage) for reader in self._readers)
        while self._waiting and self._free and taken + len(self._waiting[0][1]) <= self._context.size:
            index, passage = self._waiting.popleft()
            self._readers.append(_Reader(index, passage, self._free.pop(0)))
            taken += len(passage)

    def _show(self, reader: _Reader) -> None:
        picture = reader.work
        assert isinstance(picture, Pixels) and self._projector is not None
        rows = self._projector.encode(picture)
        self._evaluate(lambda: self._context.decode_picture(rows, reader.position, reader.sequence))
        reader.advance(picture.tokens)

    def _packed(self) -> list[Share]:
        """As many tokens as fit, the oldest passage first."""
        room, outputs = self._context.ubatch, self._context.outputs
        shares: list[Share] = []
        for reader in self._readers:
            run, start = reader.work, reader.at
            assert isinstance(run, tuple)
            before = max(0, reader.passage.first - reader.position)  # tokens whose rows nobody wants
            count = min(len(run) - start, room, before + outputs)
            if not count:
                continue
            wanted = max(0, count - before)
            shares.append((reader, Span(reader.sequence, run[start : start + count], reader.position, wanted)))
            room, outputs = room - count, outputs - wanted
        return shares

    def _evaluate(self, work: object) -> None:
        assert callable(work)
        if self._cancel.cancelled:
            raise Cancelled("The walk was stopped.")
        if work() == ABORTED:
            self._context.interrupt(False)
            raise Cancelled("The walk was stopped.")
