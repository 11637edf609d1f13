"""Engine: what a loaded model can do, and the records that go in and come out.

Conversations, comparison and tests know only this. A prompt keeps control tokens, text and pixels apart, so no text can
become a control token, whatever it spells. Everything here is picklable: an engine may live in another process.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias, runtime_checkable

from localgemma.messages import Pixels, Progress, Timings, TokenLogprob, Usage
from localgemma.options import Constraint, Sampling

if TYPE_CHECKING:
    import numpy as np

StopReason = Literal["stop", "stop_string", "length", "context", "cancelled"]


@dataclass(frozen=True, slots=True)
class Control:
    """One control token, by its name in the vocabulary, such as `<|turn>`."""

    text: str


@dataclass(frozen=True, slots=True)
class Text:
    """Ordinary text; tokenised so that it never gives a control token or marker.

    `branches` are offsets in it after which another prompt may go on differently: an engine does well to be able to return
    there. They change neither what is read nor equality.
    """

    text: str
    branches: tuple[int, ...] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class Media:
    """A picture or video in a prompt: `mark` is what the chat template writes, `content` what is evaluated.

    Empty content is a placeholder, which renders and counts as its mark but cannot be evaluated.
    """

    mark: str
    content: tuple[Control | Text | Pixels, ...] = ()


PromptPart: TypeAlias = Control | Text | Media


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered conversation; `str()` is exactly the chat template's text.

    `open_span` is True where the prompt ends inside a span of a SpanLimit (a thought that the template opened).
    """

    parts: tuple[PromptPart, ...]
    open_span: bool = False

    def __str__(self) -> str:
        return "".join(part.mark if isinstance(part, Media) else part.text for part in self.parts)

    def flat(self) -> Iterator[Control | Text | Pixels]:
        """What is evaluated, in order, with neighbouring texts joined (tokenising must not see their seam)."""
        pending: list[Text] = []
        for item in self._items():
            if isinstance(item, Text):
                pending.append(item)
                continue
            if pending:
                yield _joined(pending)
                pending.clear()
            yield item
        if pending:
            yield _joined(pending)

    def _items(self) -> Iterator[Control | Text | Pixels]:
        for part in self.parts:
            if isinstance(part, Media):
                yield from part.content
            else:
                yield part


def _joined(texts: Iterable[Text]) -> Text:
    pieces: list[str] = []
    branches: list[int] = []
    size = 0
    for item in texts:
        pieces.append(item.text)
        branches += [size + at for at in item.branches]
        size += len(item.text)
    return Text("".join(pieces), tuple(branches))


def join_parts(items: Iterable[PromptPart]) -> tuple[PromptPart, ...]:
    """The parts with neighbouring texts joined and empty ones dropped."""
    joined: list[PromptPart] = []
    for item in items:
        if isinstance(item, Text):
            if not item.text:
                continue
            if joined and isinstance(joined[-1], Text):
                joined[-1] = _joined([joined[-1], item])
                continue
        joined.append(item)
    return tuple(joined)


@dataclass(frozen=True, slots=True)
class SpanLimit:
    """A limit of tokens between two control tokens: after `tokens` inside, `close` is inserted as if sampled.

    Tokens inside the span, its markers included, do not count towards Sampling.max_tokens.
    """

    opens: str
    closes: str
    tokens: int
    insert: tuple[Control | Text, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """One generation: the prompt, how to sample, the span whose length is limited (the thoughts), and what may be said.

    Requests of one `conversation` (any name; "" is none) share what the engine keeps for it.
    """

    prompt: Prompt
    sampling: Sampling = field(default_factory=Sampling)
    span: SpanLimit | None = None
    conversation: str = ""
    constraint: Constraint | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """One token of the answer: its id and bytes; `marker` is its name if it is a control token or marker, else None."""

    token: int
    data: bytes
    marker: str | None = None
    logprob: TokenLogprob | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of a generation. Usage.thinking counts tokens inside the span, Usage.answer those outside."""

    reason: StopReason
    usage: Usage
    timings: Timings


Output: TypeAlias = Piece | Progress | Finished


class CancelToken:
    """Set from any thread to stop a generation; it stays set."""

    __slots__ = ("_event", "_lock", "_watcher")

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._watcher: Callable[[], None] | None = None

    def cancel(self) -> None:
        """Ask for the stop."""
        self._event.set()
        with self._lock:
            if self._watcher is not None:
                self._watcher()

    def watch(self, watcher: Callable[[], None] | None) -> None:
        """Call `watcher` at the moment of cancelling (at once if that is past); None ends it, after a call under way."""
        with self._lock:
            self._watcher = watcher
            if watcher is not None and self._event.is_set():
                watcher()

    @property
    def cancelled(self) -> bool:
        """Whether the stop was asked for."""
        return self._event.is_set()


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What the engine is: names, sizes and limits that a conversation or report needs.

    `context` is in tokens, `image_tokens` the largest picture (0: no pictures), `prefill_speed` the tokens per second
    last seen (0: not yet), `text_speed` and `picture_speed` those of words and, by the vision tower, of pictures, and
    `decode_speed` that of an answer of some length without drafts. `notes` are sentences that the user should see once.
    `sequences` conversations run at once, and checkpoints of the KV cache take at most `checkpoint_bytes` of RAM. `bos` is
    the token that texts of this model begin with.
    """

    model: str
    architecture: str
    context: int
    image_tokens: int
    quant: str = ""
    backend: str = "CPU"
    load_seconds: float = 0.0
    prefill_speed: float = 0.0
    text_speed: float = 0.0
    picture_speed: float = 0.0
    decode_speed: float = 0.0
    notes: tuple[str, ...] = ()
    sequences: int = 1
    checkpoint_bytes: int = 0
    bos: int | None = None


class Engine(Protocol):
    """A loaded model. Methods may be called from any thread; work is done in the order asked for."""

    @property
    def info(self) -> EngineInfo:
        """What is loaded."""
        ...

    def generate(self, request: Request, cancel: CancelToken | None = None) -> Iterator[Output]:
        """Progress and Pieces, and Finished as the last; closing the iterator cancels.

        Raises ContextOverflow before anything is evaluated, PictureTooLarge, DecodeError. A cancelled generation ends with
        Finished("cancelled"), it does not raise.
        """
        ...

    def score(self, prompt: Prompt) -> Iterator[tuple[int, np.ndarray]]:
        """Blocks of (first position, float32 logits [rows, vocabulary]) for every position of a token, in order.

        Picture positions have no row, so a block never spans one. The arrays are the caller's.
        """
        ...

    def count(self, prompt: Prompt) -> int:
        """Context positions that the prompt takes."""
        ...

    def tokenize(self, prompt: Prompt) -> list[int]:
        """Token ids of the prompt; -1 at each picture position."""
        ...

    def close(self) -> None:
        """Free the model; further calls raise."""
        ...


@dataclass(frozen=True, slots=True)
class StateInfo:
    """A KV state on disk: `tokens` positions that it holds (`pictures` of them are pictures), bytes and seconds it took."""

    tokens: int
    pictures: int
    bytes: int
    seconds: float


@runtime_checkable
class DraftsTokens(Engine, Protocol):
    """What an engine can do that may have a drafter; `isinstance(engine, DraftsTokens)` asks for it."""

    drafting: bool  # whether the drafter may be used; False without one

    def drop_drafter(self) -> None:
        """Free the drafter for good."""
        ...


@runtime_checkable
class KeepsState(Protocol):
    """What an engine can do that saves what it has evaluated; `isinstance(engine, KeepsState)` asks for it."""

    def save_state(self, prompt: Prompt, path: Path) -> StateInfo | None:
        """Write the KV state that serves `prompt` (the conversation as it would be read next) to `path`, atomically.

        None where nothing of the prompt is held. Raises DiskError.
        """
        ...

    def load_state(self, path: Path) -> StateInfo:
        """Bring a saved state back, so that a prompt that begins with the same tokens and pictures continues it.

        Raises BadState for a file that is damaged or of another model file, llama.cpp build or KV cache, or that holds
        more than this context; nothing is loaded then. Raises NotFound where there is no file.
        """
        ...
