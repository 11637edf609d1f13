"""One turn being written: engine output in, events out, and what was said so far."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

from localgemma.chat.guard import RepetitionGuard
from localgemma.engine import CancelToken, EngineInfo, Finished, Output, Piece, StopReason
from localgemma.errors import UsageError
from localgemma.gemma4.dialect import Parser
from localgemma.gemma4.tokens import CHANNEL, CHANNEL_END
from localgemma.messages import (
    Answer,
    Done,
    Event,
    FinishReason,
    ImagePart,
    Message,
    Notice,
    Part,
    Progress,
    TextDelta,
    TextPart,
    ThinkingDelta,
    Timings,
    TokenLogprob,
    ToolCall,
    ToolResult,
    Usage,
)
from localgemma.options import IMAGE_BUDGETS

_PATIENCE = 3.0  # seconds of prefill that a picture of automatic size may take
_LEAST = 280  # and the budget that it always gets (design: --image-tokens auto)

_REASONS: dict[StopReason, FinishReason] = {
    "stop": "stop",
    "stop_string": "stop",
    "length": "length",
    "context": "length",
    "cancelled": "cancelled",
}


class LinkedToken(CancelToken):
    """A cancel token of the turn's own that also follows the caller's."""

    __slots__ = ("_parent",)

    def __init__(self, parent: CancelToken | None = None) -> None:
        super().__init__()
        self._parent = parent

    def watch(self, watcher: Callable[[], None] | None) -> None:
        """Watch both: a cancel by either stops a running evaluation at once."""
        super().watch(watcher)
        if self._parent is not None:
            self._parent.watch(watcher)

    @property
    def cancelled(self) -> bool:
        """Whether this turn, or whoever asked for it, wants the stop."""
        return super().cancelled or (self._parent is not None and self._parent.cancelled)


class Turn:
    """What one generation has said; `run` gives its events, `done` its end, `message` its state at any time."""

    def __init__(self, guarded: bool, cancel: CancelToken | None, first_id: int) -> None:
        self.token = LinkedToken(cancel)
        self._guards = (RepetitionGuard(), RepetitionGuard()) if guarded else None
        self._id = first_id
        self._text: list[str] = []
        self._thinking: list[str] = []
        self._calls: list[ToolCall] = []
        self._logprobs: list[TokenLogprob] = []
        self._looped = False
        self._finished: Finished | None = None

    @property
    def anything(self) -> bool:
        """Whether anything was said."""
        return bool(self._text or self._thinking or self._calls)

    def run(self, outputs: Iterator[Output], open_thought: bool) -> Iterator[Event]:
        """The events of a generation. Closing this closes the generation, and keeps what was half parsed."""
        parser = Parser(open_thought=open_thought)
        thinking = open_thought
        ended = False
        try:
            for output in outputs:
                if isinstance(output, Progress):
                    yield output
                elif isinstance(output, Finished):
                    self._finished = output
                elif not self._looped:  # after a loop the rest is read only for Finished
                    thinking = output.marker == CHANNEL or (thinking and output.marker != CHANNEL_END)
                    self._note(output, thinking)
                    for event in parser.feed(output.data, output.marker):
                        yield self._add(event)
            ended = True
            for event in parser.finish():
                yield self._add(event)
        finally:
            close = getattr(outputs, "close", None)
            if close is not None:
                close()
            if not ended:
                for event in parser.finish():
                    self._add(event)
        if self._looped:
            yield Notice("The answer was going round in circles and was ended.")
        elif self._finished is not None and self._finished.reason == "context":
            yield Notice("The context is full: the answer ends here. Start a new chat, or load with a larger --ctx.")

    def done(self) -> Done:
        """The end of a turn that ran to it."""
        reason = _REASONS[self._finished.reason] if self._finished is not None else "cancelled"
        if self._looped:
            reason = "repetition"
        elif reason == "stop" and self._calls:
            reason = "tool_calls"
        usage = self._finished.usage if self._finished is not None else Usage()
        timings = self._finished.timings if self._finished is not None else Timings()
        return Done(self.message(reason), reason, usage, timings, tuple(self._logprobs))

    def message(self, reason: FinishReason) -> Message:
        """What was said so far, as it goes into the conversation."""
        text = "".join(self._text)
        content = (TextPart(text),) if text else ()
        cut = reason not in ("stop", "tool_calls")
        return Message("assistant", content, "".join(self._thinking), tuple(self._calls), cut=cut)

    def _note(self, piece: Piece, thinking: bool) -> None:
        if piece.logprob is not None and piece.marker is None and not thinking:
            self._logprobs.append(piece.logprob)

    def _add(self, event: ThinkingDelta | TextDelta | ToolCall | Notice) -> ThinkingDelta | TextDelta | ToolCall | Notice:
        if isinstance(event, ToolCall):
            event = event if event.id else replace(event, id=f"call_{self._id}_{len(self._calls)}")
            self._calls.append(event)
        elif isinstance(event, (TextDelta, ThinkingDelta)):
            spoken = isinstance(event, TextDelta)
            (self._text if spoken else self._thinking).append(event.text)
            if self._guards is not None and self._guards[spoken].feed(event.text) and not self._looped:
                self._looped = True
                self.token.cancel()
        return event


def picture_of(
    source: Any, budget: int | Literal["auto"], info: EngineInfo, fetch: Callable[[str], bytes] | None
) -> ImagePart:
    """A picture for this engine, of `budget` tokens unless its name has a budget of its own. Raises UsageError, BadMedia."""
    from localgemma.chat.media import image_part, split_budget

    if isinstance(source, ImagePart) and source.pixels is not None:
        return source
    limit = info.image_tokens
    if not limit:
        raise UsageError("This model was loaded without a projector: it sees no pictures.", "Load it with --mmproj FILE.")
    own: int | None = None
    if isinstance(source, str) and not source.startswith("data:"):
        source, own = split_budget(source)
    wanted: Any = own or budget
    if wanted == "auto" and info.prefill_speed:
        quick = [size for size in IMAGE_BUDGETS if size <= info.prefill_speed * _PATIENCE]
        limit = min(limit, max([_LEAST, *quick]))
    return image_part(source, budget=wanted, ceiling=limit, fetch=fetch)


def picture_sizes(parts: Sequence[Part]) -> tuple[Notice, ...]:
    """What automatic sizes came to, for every picture."""
    return tuple(
        Notice(f"{part.source or 'picture'} → {part.pixels.width}×{part.pixels.height}, {part.pixels.tokens:,} tokens")
        for part in parts
        if isinstance(part, ImagePart) and part.pixels is not None
    )


def collect(events: Iterator[Event]) -> Answer:
    """Read a turn to its end."""
    done: Done | None = None
    results: list[ToolResult] = []
    for event in events:
        if isinstance(event, Done):
            done = event
        elif isinstance(event, ToolResult):
            results.append(event)
    assert done is not None  # every turn ends with Done or raises
    said = done.message
    cost = (done.usage, done.timings, done.logprobs)
    return Answer(said.text, said.thinking, said.tool_calls, done.finish_reason, *cost, tuple(results), done.parsed)
