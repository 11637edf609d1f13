"""An engine whose logits are made up from what it has read, so that comparisons run without a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from fakes import FakeEngine

from localgemma.engine import CancelToken, EngineInfo, Prompt
from localgemma.errors import Cancelled
from localgemma.messages import Pixels
from localgemma.passages import Block, Passage

WIDTH = 512


@dataclass
class Walker(FakeEngine):
    """Its logits are those of the last token, with `noise` of its own; it stops at `stop_after` batches."""

    noise: float = 0.0
    rows: int = 16
    walked: list[Passage] = field(default_factory=list)
    stop_after: int = 1 << 30
    error: Exception | None = None

    @property
    def info(self) -> EngineInfo:
        """A made-up model."""
        return EngineInfo("walker", "gemma4", self.context, self.image_tokens, bos=2)

    def tokenize(self, prompt: Prompt) -> list[int]:
        """Words, numbered by their letters; -1 for pictures."""
        ids: list[int] = []
        for item in prompt.flat():
            if isinstance(item, Pixels):
                ids += [-1] * item.tokens
            else:
                ids += [sum(map(ord, word)) % WIDTH for word in item.text.split()]
        return ids

    def count(self, prompt: Prompt) -> int:
        """Its tokens."""
        return len(self.tokenize(prompt))

    def walk(self, passages: Sequence[Passage], cancel: CancelToken | None = None) -> Iterator[list[Block]]:
        """Each passage by itself, `rows` rows a batch."""
        for number, passage in enumerate(passages):
            self.walked.append(passage)
            ids = [token for run in passage.runs for token in ([0] * run.tokens if isinstance(run, Pixels) else run)]
            for start in range(passage.first, len(ids), self.rows):
                if self.stop_after <= 0:
                    raise self.error or Cancelled("Stopped.")
                self.stop_after -= 1
                part = ids[start : start + self.rows]
                yield [Block(number, start, np.stack([self._row(token, start + at) for at, token in enumerate(part)]))]

    def _row(self, token: int, position: int) -> np.ndarray:
        row: np.ndarray = np.roll(_table(0.0)[token], position)
        return row + np.roll(_table(self.noise)[token], position + 7) if self.noise else row


@cache
def _table(noise: float) -> np.ndarray:
    """Made-up rows: the logits, or what a file adds to them."""
    rows = np.random.default_rng(round(noise * 1000)).standard_normal((WIDTH, WIDTH)) * (noise or 3.0)
    return rows.astype(np.float32)
