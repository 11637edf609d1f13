"""Scoring: the logits of every token of a prompt, in blocks, sharing the engine with conversations."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from localgemma.llamacpp.batch import Span
from localgemma.llamacpp.cache import Cache, Slot
from localgemma.llamacpp.sequence import Plan
from localgemma.llamacpp.task import Lost, Rows, Steps, Stopped
from localgemma.llamacpp.vision import Projector
from localgemma.messages import Pixels

if TYPE_CHECKING:
    import numpy as np


class Scoring:
    """One prompt to score; the sequence it used is empty afterwards."""

    def __init__(
        self, wanted: Plan, cache: Cache, projector: Projector | None, emit: Callable[[tuple[int, np.ndarray]], None]
    ) -> None:
        self._plan, self._cache, self._projector, self._emit = wanted, cache, projector, emit
        self._told = 0

    def steps(self, slot: Slot | None) -> Steps:
        """Every run of the prompt from the start, with all its logits."""
        if slot is None:
            return
        try:
            while True:
                self._cache.clear(slot)
                try:
                    yield from self._walk(slot)
                    return
                except Lost:
                    continue
        except Stopped:
            return
        finally:
            self._cache.clear(slot)

    def _walk(self, slot: Slot) -> Steps:
        import numpy as np

        context = self._cache.context
        step = min(context.outputs, context.ubatch)
        for run in self._plan.runs:
            if isinstance(run, Pixels):
                assert self._projector is not None
                yield Rows(slot.id, self._projector.encode(run), len(slot.held))
                slot.held += self._plan.keys[len(slot.held) : len(slot.held) + run.tokens]
                continue
            for start in range(0, len(run), step):
                part, position = run[start : start + step], len(slot.held)
                _, row = yield Span(slot.id, part, position, len(part))
                slot.held += part
                if position >= self._told:
                    self._emit((position, np.stack([context.logits(row + index) for index in range(len(part))])))
                    self._told = len(slot.held)
