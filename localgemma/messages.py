"""What is said: messages and their parts, what streams out of a turn, and what it cost.

All records are frozen and picklable, so that they cross threads and processes as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

Role = Literal["system", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length", "tool_calls", "cancelled", "repetition"]


@dataclass(frozen=True, slots=True)
class Pixels:
    """A picture ready for the vision tower: RGB, uint8, row by row, sides multiples of 48.

    `rgb` has height × width × 3 bytes; `tokens` is (height/48)·(width/48); `sha256` is the hash of size and bytes and
    identifies the picture in every cache.
    """

    rgb: bytes = field(repr=False)
    width: int
    height: int
    tokens: int
    sha256: str


@dataclass(frozen=True, slots=True)
class TextPart:
    """Words; never control tokens, whatever they spell. `source` names the document that they are from, if any."""

    text: str
    source: str = ""


@dataclass(frozen=True, slots=True)
class ImagePart:
    """A picture: `pixels` once it was read and resized, `source` as a person would name it (a path, a URL)."""

    pixels: Pixels | None = None
    source: str = ""
    budget: int | None = None


@dataclass(frozen=True, slots=True)
class VideoPart:
    """A video as frames of `seconds` and pixels; `source` as a person would name it."""

    frames: tuple[tuple[float, Pixels], ...] = ()
    source: str = ""
    budget: int | None = None


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model made.

    `raw` is the text between its markers. `error` is None for a call that could be read, else what was wrong with it;
    `arguments` is then empty.
    """

    name: str
    arguments: Mapping[str, Any]
    id: str = ""
    raw: str = ""
    error: str | None = None


Part: TypeAlias = TextPart | ImagePart | VideoPart


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation.

    `content` holds its parts in order. Assistant messages may carry `thinking` and `tool_calls`, tool messages answer
    `tool_call_id`, and `name` is then the tool's. `result` is a tool result that is data instead of text. `cut` marks an
    answer that was stopped before its end.
    """

    role: Role
    content: tuple[Part, ...] = ()
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""
    result: Any = None
    cut: bool = False

    @property
    def text(self) -> str:
        """Its own words alone, without those of documents, parts joined."""
        return "".join(part.text for part in self.content if isinstance(part, TextPart) and not part.source)

    @property
    def read(self) -> tuple[Part, ...]:
        """Its parts as they are read: a text of a document and one beside it are one, with a blank line between them."""
        out: list[Part] = []
        for part in self.content:
            before = out[-1] if out else None
            if isinstance(before, TextPart) and isinstance(part, TextPart) and (before.source or part.source):
                out[-1] = TextPart(f"{before.text}\n\n{part.text}", part.source)
            else:
                out.append(part)
        return tuple(out)


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of a turn; `cached` of the prompt's tokens came from the KV cache, `pictures` of them are pictures."""

    prompt: int = 0
    cached: int = 0
    pictures: int = 0
    thinking: int = 0
    answer: int = 0

    @property
    def total(self) -> int:
        """Prompt and everything generated."""
        return self.prompt + self.thinking + self.answer


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds of a turn: `first_token` from the request to the first token, `prefill` and `decode` of evaluation.

    `encode` is the vision tower's part of `prefill`. Speeds are tokens per second, 0 where nothing was measured. Of `drafted`
    tokens `accepted` were right, which made decoding `draft_gain` times as fast (0: no drafts, or not measured).
    """

    first_token: float = 0.0
    prefill: float = 0.0
    encode: float = 0.0
    decode: float = 0.0
    prefill_speed: float = 0.0
    decode_speed: float = 0.0
    drafted: int = 0
    accepted: int = 0
    draft_gain: float = 0.0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a slow stage is: `stage` is load, encode or prefill; `done` of `total` (fractions or tokens)."""

    stage: str
    done: float
    total: float
    seconds_left: float | None = None


@dataclass(frozen=True, slots=True)
class ThinkingDelta:
    """A piece of thought."""

    text: str


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that the user should know: a dropped turn, a flagged reply, a smaller picture."""

    text: str


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log-probability of a sampled token and of the likeliest others, natural logarithm, before the sampler chain.

    `text` is the token's bytes; one token may hold half a character.
    """

    token: int
    data: bytes
    logprob: float
    top: tuple[tuple[int, bytes, float], ...] = ()


@dataclass(frozen=True, slots=True)
class ToolStarted:
    """A call that was checked and allowed, and runs now."""

    call: ToolCall


@dataclass(frozen=True, slots=True)
class ToolResult:
    """The answer to a call, as the conversation keeps it, after `seconds`. A call that failed has a result with `error`."""

    call: ToolCall
    message: Message
    seconds: float = 0.0

    @property
    def error(self) -> str | None:
        """Why there is no result; None where there is one."""
        result = self.message.result
        return str(result["error"]) if isinstance(result, Mapping) and set(result) == {"error"} else None


@dataclass(frozen=True, slots=True)
class Done:
    """The end of a turn: the message as it stands in the conversation, why it ended and what it cost.

    `parsed` is the value of a structured answer; None where there is none, or where it could not be read (a Notice says why).
    """

    message: Message
    finish_reason: FinishReason
    usage: Usage = Usage()
    timings: Timings = Timings()
    logprobs: tuple[TokenLogprob, ...] = ()
    parsed: Any = None


Event: TypeAlias = Progress | ThinkingDelta | TextDelta | ToolCall | ToolStarted | ToolResult | Notice | Done


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole turn; `str()` is its text. `tool_results` are the calls that were answered on the way; `parsed` as in Done."""

    content: str
    thinking: str
    tool_calls: tuple[ToolCall, ...]
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    logprobs: tuple[TokenLogprob, ...] = ()
    tool_results: tuple[ToolResult, ...] = ()
    parsed: Any = None

    def __str__(self) -> str:
        return self.content
