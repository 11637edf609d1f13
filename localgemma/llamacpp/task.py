"""A task: a generator that says what it wants evaluated next.

It yields a Span or Rows and is sent (how many tokens were evaluated, row of the first). Spans that end in outputs are
evaluated whole or not at all in a step; other spans may be cut, so that long prompts take turns.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeAlias

from localgemma.engine import CancelToken
from localgemma.llamacpp.batch import Span
from localgemma.llamacpp.cache import Key, Slot

END = object()  # the last thing in a task's outputs
_SHORT = 64  # tokens of a prompt's end that are not cut for a turn
_BACKLOG = 4  # outputs that a task with `patient` set may be ahead of its reader


class Stopped(Exception):
    """The task was cancelled."""


class Lost(Exception):
    """The task's sequence was emptied to make room for an older task; it must be filled again."""


@dataclass(slots=True)
class Rows:
    """Embeddings of a picture (float32 [tokens, width]) from `position` on, in a batch of their own."""

    sequence: int
    rows: Any
    position: int


Grant: TypeAlias = tuple[int, int]
Steps: TypeAlias = Generator[Span | Rows, Grant, None]


@dataclass(eq=False, slots=True)
class Task:
    """Work on one sequence; its outputs end with END.

    `begin` makes its generator once a slot is free, or gets None when the task was cancelled before. `patient` makes it wait
    for a slow reader.
    """

    keys: list[Key]
    begin: Callable[[Slot | None], Steps]
    cancel: CancelToken
    outputs: queue.SimpleQueue[Any]
    conversation: str = ""
    patient: bool = False
    slot: Slot | None = None
    steps: Steps | None = None
    work: Span | Rows | None = None
    parked: bool = False

    @property
    def whole(self) -> bool:
        """Whether the work cannot be cut."""
        work = self.work
        return isinstance(work, Span) and (work.outputs > 1 or (work.outputs == 1 and len(work.tokens) <= _SHORT))

    @property
    def size(self) -> int:
        """Positions that it takes, at least."""
        return max(len(self.keys), len(self.slot.held) if self.slot else 0)

    @property
    def ready(self) -> bool:
        """Whether its reader keeps up."""
        return not self.parked and (not self.patient or self.outputs.qsize() < _BACKLOG)
