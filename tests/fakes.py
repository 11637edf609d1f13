"""An engine that says what a script tells it, in any chunking: conversations and the command line are tested on it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from localgemma.engine import CancelToken, EngineInfo, Finished, Output, Piece, Prompt, Request, StopReason
from localgemma.errors import ContextOverflow
from localgemma.gemma4.tokens import IDS, MARKERS
from localgemma.messages import Pixels, Progress, Timings, Usage

_MARKER = re.compile("|".join(re.escape(marker) for marker in MARKERS))


@dataclass
class Reply:
    """One generation: the text with its markers spelled out, and why it ends. `fail` is raised after the text."""

    text: str
    reason: StopReason = "stop"
    fail: Exception | None = None
    progress: tuple[Progress, ...] = ()


@dataclass
class FakeEngine:
    """Implements engine.Engine. One token a chunk of `chunk` bytes; a prompt counts one token a character."""

    replies: list[Reply | str] = field(default_factory=list)
    chunk: int = 3
    context: int = 100_000
    image_tokens: int = 1120
    requests: list[Request] = field(default_factory=list)
    closed: bool = False
    stopped: int = 0

    @property
    def info(self) -> EngineInfo:
        """A made-up model."""
        return EngineInfo("fake", "gemma4", self.context, self.image_tokens, quant="Q4_K_M")

    def generate(self, request: Request, cancel: CancelToken | None = None) -> Iterator[Output]:
        """The next reply of the script, piece by piece."""
        needed = self.count(request.prompt)
        if needed >= self.context:
            raise ContextOverflow(needed, self.context)
        self.requests.append(request)
        planned = self.replies.pop(0) if self.replies else "Yes."
        reply = Reply(planned) if isinstance(planned, str) else planned
        yield from reply.progress
        reason, said = reply.reason, 0
        ended = False
        try:
            for piece in pieces(reply.text, self.chunk):
                if cancel is not None and cancel.cancelled:
                    reason = "cancelled"
                    break
                if request.sampling.max_tokens is not None and said >= request.sampling.max_tokens:
                    reason = "length"
                    break
                said += 1
                yield piece
            ended = True
        finally:
            self.stopped += not ended
        if reply.fail is not None:
            raise reply.fail
        timings = Timings(0.1, 0.1, 0.0, 0.5, 1000.0, 50.0)
        yield Finished(reason, Usage(prompt=needed, answer=said), timings)

    def score(self, prompt: Prompt) -> Iterator[tuple[int, np.ndarray]]:
        """One row of zeros."""
        yield 0, np.zeros((1, 8), dtype=np.float32)

    def count(self, prompt: Prompt) -> int:
        """One a character, and a picture's own tokens."""
        return sum(item.tokens if isinstance(item, Pixels) else len(item.text) for item in prompt.flat())

    def tokenize(self, prompt: Prompt) -> list[int]:
        """Code points; -1 for pictures."""
        ids: list[int] = []
        for item in prompt.flat():
            ids += [-1] * item.tokens if isinstance(item, Pixels) else [ord(char) for char in item.text]
        return ids

    def close(self) -> None:
        """Remember it."""
        self.closed = True


def pieces(text: str, chunk: int) -> Iterator[Piece]:
    """The text as tokens: markers whole, the rest in chunks of `chunk` bytes (which may split characters)."""
    at = 0
    for found in _MARKER.finditer(text):
        yield from _plain(text[at : found.start()], chunk)
        yield Piece(IDS[found[0]], found[0].encode(), found[0])
        at = found.end()
    yield from _plain(text[at:], chunk)


def _plain(text: str, chunk: int) -> Iterator[Piece]:
    data = text.encode()
    for start in range(0, len(data), chunk):
        yield Piece(1000, data[start : start + chunk])


def thought(thinking: str, answer: str) -> str:
    """A reply with thoughts, as the model writes it."""
    return f"<|channel>thought\n{thinking}\n<channel|>{answer}"
