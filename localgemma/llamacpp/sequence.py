"""A prompt as tokens and pictures, and bringing it into a sequence: what the cache lacks is evaluated."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from localgemma.engine import Control, Prompt, Text
from localgemma.errors import BadConversation, PictureTooLarge
from localgemma.llamacpp.batch import Span
from localgemma.llamacpp.cache import Cache, Key, Slot, common_prefix, outside_picture
from localgemma.llamacpp.model import Vocabulary
from localgemma.llamacpp.task import Rows, Steps
from localgemma.llamacpp.vision import Projector
from localgemma.messages import Pixels, Progress

Run: TypeAlias = list[int] | Pixels

LONG, NEAR = 2048, 512  # tokens: a stretch without a branch, and how far before its end a checkpoint is taken all the same
TAIL = 16  # tokens after a branch that are evaluated twice rather than holding up the first token of an answer


@dataclass(slots=True)
class Plan:
    """A prompt as runs of token ids and pictures, with one key for each position.

    `branches` are positions, in order, after which another prompt may go on differently.
    """

    runs: list[Run]
    keys: list[Key] = field(default_factory=list)
    pictures: int = 0
    branches: list[int] = field(default_factory=list)

    def ids(self, start: int) -> list[int] | None:
        """The token ids from `start` to the end; None where a picture is among them."""
        keys = self.keys[start:]
        ids = [key for key in keys if isinstance(key, int)]
        return ids if len(ids) == len(keys) else None


def plan(prompt: Prompt, vocab: Vocabulary, largest_picture: int) -> Plan:
    """Tokenise a prompt. Raises PictureTooLarge, and BadConversation for a prompt that does not end in tokens."""
    result = Plan([])
    for item in prompt.flat():
        if isinstance(item, Pixels):
            if not largest_picture:
                raise BadConversation("This model was loaded without its projector.", "Load it with one to send pictures.")
            if item.tokens > largest_picture:
                raise PictureTooLarge(item.tokens, largest_picture)
            result.runs.append(item)
            result.keys += [item.sha256] * item.tokens
            result.pictures += item.tokens
            continue
        ids = [vocab.control(item.text)] if isinstance(item, Control) else vocab.text(item.text)
        if not ids:
            continue
        if isinstance(item, Text):
            result.branches += [len(result.keys) + _position(item.text, at, ids, vocab) for at in item.branches]
        if result.runs and isinstance(result.runs[-1], list):
            result.runs[-1] += ids
        else:
            result.runs.append(list(ids))
        result.keys += ids
    if not result.runs or isinstance(result.runs[-1], Pixels):
        raise BadConversation("The prompt has no text at its end.", "Add a question.")
    return result


def _position(text: str, at: int, ids: list[int], vocab: Vocabulary) -> int:
    """The token position of a character offset; before a token that spans it."""
    return len(ids) if at >= len(text) else common_prefix(vocab.text(text[:at]), ids)


class Prefill:
    """Brings `wanted` into a slot. `start` is how much was there, `row` where the last logits are.

    `late` is a branch so near the end that its checkpoint is left to the caller, who has then an answer under way.
    """

    def __init__(self, slot: Slot, wanted: Plan, cache: Cache, projector: Projector | None) -> None:
        self._slot, self._plan, self._cache, self._projector = slot, wanted, cache, projector
        self.start = self.row = 0
        self.encode_seconds = 0.0
        self.late: int | None = None

    def steps(self, report: Callable[[Progress], None]) -> Steps:
        """Evaluate what the cache lacks."""
        slot, keys, cache = self._slot, self._plan.keys, self._cache
        self.start = start = cache.prepare(slot, keys)
        marks = self._marks(start)
        if marks and len(keys) - marks[-1] <= TAIL and self._plan.ids(marks[-1]) is not None:
            self.late = marks.pop()
        begun = time.perf_counter()
        position, total = 0, len(keys)
        for run in self._plan.runs:
            size = run.tokens if isinstance(run, Pixels) else len(run)
            while (done := len(slot.held) - position) < size:
                self._mark(marks)
                if isinstance(run, Pixels):
                    yield Rows(slot.id, self._encoded(run, report), position)
                    count = size
                else:
                    stop = min([at - position for at in marks if at > len(slot.held)] + [size, done + cache.context.ubatch])
                    last = position + stop == total
                    count, row = yield Span(slot.id, run[done:stop], position + done, int(last))
                    self.row = row + count - 1
                slot.held += keys[len(slot.held) : len(slot.held) + count]
                at = len(slot.held)
                report(Progress("prefill", at, total, (time.perf_counter() - begun) / (at - start) * (total - at)))
            position += size
        self._mark(marks)

    def _marks(self, start: int) -> list[int]:
        """Where checkpoints are worth taking: at branches, and near the end of a long text, whose question may change."""
        keys, total, marks = self._plan.keys, len(self._plan.keys), [0]
        wanted = {at for at in self._plan.branches if at >= start}
        if total - max([start, *(at for at in wanted if at < total - TAIL)]) > LONG:
            wanted.add(outside_picture(keys, total - NEAR))
        for at in sorted(wanted):
            if self._cache.worth_marking(self._slot, at, marks[-1]):
                marks.append(at)
        return marks[1:]

    def _mark(self, marks: list[int]) -> None:
        while marks and marks[0] <= len(self._slot.held):
            if marks.pop(0) == len(self._slot.held):
                self._cache.mark(self._slot)

    def _encoded(self, run: Pixels, report: Callable[[Progress], None]) -> object:
        assert self._projector is not None  # plan() refuses pictures without one
        begun = time.perf_counter()
        if not self._projector.holds(run):
            report(Progress("encode", 0, run.tokens))
        pictures = [each for each in self._plan.runs if isinstance(each, Pixels)]
        rows = self._projector.encode(run, pictures[pictures.index(run) + 1 :])
        self.encode_seconds += time.perf_counter() - begun
        return rows
