"""Passages: tokens and pictures that are read for their logits, many at once, by an engine that can."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from localgemma.engine import CancelToken
from localgemma.messages import Pixels

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, slots=True)
class Passage:
    """Tokens and pictures to walk, in order; logits are wanted of its token positions from `first` on."""

    runs: tuple[tuple[int, ...] | Pixels, ...]
    first: int = 0

    def __len__(self) -> int:
        """Context positions that it takes."""
        return sum(run.tokens if isinstance(run, Pixels) else len(run) for run in self.runs)


@dataclass(frozen=True, slots=True)
class Block:
    """Logits (float32 [rows, vocabulary]) of the passage `passage` from `position` on.

    `logits` is the engine's own buffer, which its next step overwrites.
    """

    passage: int
    position: int
    logits: np.ndarray


@runtime_checkable
class Spells(Protocol):
    """What an engine can do that tells its tokens' bytes."""

    def pieces(self) -> list[bytes]:
        """The bytes of every token, control tokens by their names."""
        ...


@runtime_checkable
class Walks(Protocol):
    """What an engine can do that reads many passages at once; `isinstance(engine, Walks)` asks for it."""

    def walk(self, passages: Sequence[Passage], cancel: CancelToken | None = None) -> Iterator[list[Block]]:
        """One batch a step: the blocks of logits that it gave, until all passages were read.

        Which passages share a batch follows from their lengths and the load's ubatch, outputs and sequences alone, so that
        two models walk alike. Raises ContextOverflow and PictureTooLarge before the first step, Cancelled, DecodeError.
        """
        ...
