"""Sampling, loading and chatting options: frozen records, and the only home of their defaults.

An unknown name or a value out of range is a UsageError with near names; nothing is swallowed.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from localgemma.errors import UsageError

KvType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]
KV_TYPES: tuple[str, ...] = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
IMAGE_BUDGETS = (70, 140, 280, 560, 1120)  # soft tokens a picture; transformers Gemma4ImageProcessor
VIDEO_BUDGETS = (70, 140, 280)  # soft tokens a frame of a video; transformers Gemma4VideoProcessor's own is 70
_Record = TypeVar("_Record")


def updated(record: _Record, changes: Mapping[str, Any]) -> _Record:
    """The record with `changes` applied by field name; UsageError for a name it does not have."""
    names = [f.name for f in fields(record)]  # type: ignore[arg-type]
    for name in changes:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            hint = f"Did you mean {near[0]!r}?" if near else f"It takes: {', '.join(names)}."
            raise UsageError(f"There is no option {name!r}.", hint)
    return replace(record, **changes)  # type: ignore[type-var]


def _require(ok: bool, name: str, value: object, allowed: str) -> None:
    if not ok:
        raise UsageError(f"{name} cannot be {value!r}.", f"It takes {allowed}.")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen.

    Temperature 1.0, top-k 64, top-p 0.95 are the released generation_config.json of google/gemma-4-31B-it.
    temperature 0 is greedy. `max_tokens` counts the answer, not the thoughts; None is until the context ends. `stop` are
    strings that end the answer and are not part of it. `logprobs` is None, or how many likeliest tokens to report.
    """

    temperature: float = 1.0
    top_k: int = 64
    top_p: float = 0.95
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_last_n: int = 64
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_last_n: int = -1
    seed: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None

    def __post_init__(self) -> None:
        bounds: tuple[tuple[str, float, float, str], ...] = (
            ("temperature", 0, 100, "a number from 0 to 100"),
            ("top_p", 0, 1, "a number from 0 to 1"),
            ("min_p", 0, 1, "a number from 0 to 1"),
            ("repeat_penalty", 0.01, 100, "a number above 0"),
            ("presence_penalty", -100, 100, "a number from -100 to 100"),
            ("frequency_penalty", -100, 100, "a number from -100 to 100"),
            ("dry_multiplier", 0, 100, "a number from 0 to 100"),
            ("dry_base", 1, 100, "a number from 1 to 100"),
        )
        for name, low, high, allowed in bounds:
            value = getattr(self, name)
            _require(_is_number(value) and low <= value <= high, name, value, allowed)
        whole: tuple[tuple[str, int, str], ...] = (
            ("top_k", 0, "a whole number from 0 (off)"),
            ("penalty_last_n", -1, "a whole number from -1 (whole context)"),
            ("dry_allowed_length", 1, "a whole number from 1"),
            ("dry_last_n", -1, "a whole number from -1 (whole context)"),
        )
        for name, least, allowed in whole:
            value = getattr(self, name)
            _require(type(value) is int and least <= value < 2**31, name, value, allowed)
        if self.seed is not None:
            _require(type(self.seed) is int and 0 <= self.seed < 2**32, "seed", self.seed, "a whole number below 2^32")
        if self.max_tokens is not None:
            _require(
                type(self.max_tokens) is int and self.max_tokens >= 1, "max_tokens", self.max_tokens, "a whole number from 1"
            )
        if self.logprobs is not None:
            _require(
                type(self.logprobs) is int and 0 <= self.logprobs <= 100,
                "logprobs",
                self.logprobs,
                "a whole number from 0 to 100",
            )
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        else:
            object.__setattr__(self, "stop", tuple(self.stop))
        _require(all(isinstance(s, str) and s for s in self.stop), "stop", self.stop, "strings that are not empty")
        for token, bias in self.logit_bias.items():
            _require(
                type(token) is int and token >= 0 and _is_number(bias), "logit_bias", {token: bias}, "token ids and numbers"
            )


@dataclass(frozen=True, slots=True)
class Constraint:
    """What may be generated: a grammar in llama.cpp's GBNF form with the start symbol `root`.

    Control tokens stand in it by name, ordinary ones as `<[text]>`. It holds from a token of `triggers` on, else from the
    first outside the request's span. Of control tokens only `markers` are let through, in strings only `quote`, their end.
    """

    grammar: str
    triggers: tuple[str, ...] = ()
    markers: tuple[str, ...] = ()
    quote: str | None = None


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How a model is loaded; what is None is chosen by the plan.

    `gpu_layers` counts from the output end as llama.cpp does, -1 is all. `devices` are ggml device names. `ubatch` is
    tokens a physical batch; None is max(512, image_tokens), since a picture must fit into one. `image_tokens` is the
    largest picture this load allows, 0 loads no projector. `sequences` conversations share the context.
    Checkpoints of the KV cache, for prompts that part ways, take at most `checkpoint_bytes` of RAM; None is a tenth of what is
    free at load, at most 4 GiB. `drafter` is the file of an MTP drafter, which may propose up to `draft_tokens` tokens a step.
    Pictures are encoded once; with `picture_folder` once and for all, their embeddings are kept there (2 GiB at most).
    """

    ctx: int | None = None
    kv: KvType = "f16"
    gpu_layers: int | None = None
    devices: tuple[str, ...] | None = None
    tensor_split: tuple[float, ...] | None = None
    split_mode: Literal["layer", "row", "none"] = "layer"
    main_gpu: int = 0
    flash_attention: bool = True
    ubatch: int | None = None
    threads: int | None = None
    threads_batch: int | None = None
    mmap: bool = True
    mlock: bool = False
    image_tokens: int = 1120
    projector_on_gpu: bool = True
    outputs: int = 64
    sequences: int = 1
    checkpoint_bytes: int | None = None
    drafter: Path | None = None
    draft_tokens: int = 8
    picture_folder: Path | None = None
    check_tensors: bool = False

    def __post_init__(self) -> None:
        _require(self.ctx is None or 64 <= self.ctx <= 1 << 20, "ctx", self.ctx, "64 to 1,048,576 tokens")
        _require(self.kv in KV_TYPES, "kv", self.kv, ", ".join(KV_TYPES))
        _require(
            self.gpu_layers is None or self.gpu_layers >= -1, "gpu_layers", self.gpu_layers, "a number from 0, or -1 for all"
        )
        _require(self.ubatch is None or 16 <= self.ubatch <= 16384, "ubatch", self.ubatch, "16 to 16,384 tokens")
        _require(self.image_tokens == 0 or self.image_tokens in IMAGE_BUDGETS, "image_tokens", self.image_tokens, _budgets())
        _require(1 <= self.sequences <= 256, "sequences", self.sequences, "1 to 256")
        kept = self.checkpoint_bytes
        _require(kept is None or kept >= 0, "checkpoint_bytes", kept, "a number of bytes from 0")
        _require(1 <= self.draft_tokens <= 15, "draft_tokens", self.draft_tokens, "1 to 15")
        for name in ("threads", "threads_batch"):
            value = getattr(self, name)
            _require(value is None or 1 <= value <= 1024, name, value, "1 to 1,024")

    def checkpoint_limit(self, free: int) -> int:
        """Bytes that checkpoints may take where `free` bytes of RAM are free at load."""
        return min(free // 10, 4 << 30) if self.checkpoint_bytes is None else self.checkpoint_bytes

    @property
    def physical_batch(self) -> int:
        """Tokens a physical batch: large enough for the largest picture."""
        return max(self.ubatch or 512, self.image_tokens)


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """How a conversation behaves.

    `think_budget` tokens may go into thoughts before the thought channel is closed and the answer follows.
    `image_tokens` is a picture's budget, or "auto": the smallest that keeps the picture's own resolution.
    Of a video, `video_fps` frames a second are seen, `video_frames` at most, evenly apart, `video_tokens` each; where
    `video_fps` is None, `video_frames` is their number.
    `overflow` says what happens when the context is full: an error, or the oldest turns are dropped with a notice.
    `template` is the source of a Jinja chat template; None is Google's, as localgemma renders it.
    `tool_choice` is "auto", "none", "required" or the name of the tool that must be called; where `parallel_calls` is False, a
    message makes one call at most. With `grammar`, calls and structured answers cannot be malformed; else they are checked.
    """

    thinking: bool = False
    think_budget: int = 8192
    preserve_thinking: bool = False
    image_tokens: int | Literal["auto"] = "auto"
    video_fps: float | None = 1.0
    video_frames: int = 60
    video_tokens: int = 70
    overflow: Literal["error", "drop"] = "error"
    repetition_guard: bool = True
    template: str | None = None
    tool_choice: str = "auto"
    parallel_calls: bool = True
    grammar: bool = True

    def __post_init__(self) -> None:
        _require(
            type(self.think_budget) is int and self.think_budget >= 0,
            "think_budget",
            self.think_budget,
            "a whole number from 0",
        )
        _require(
            self.image_tokens == "auto" or self.image_tokens in IMAGE_BUDGETS, "image_tokens", self.image_tokens, _budgets()
        )
        fps = self.video_fps
        _require(fps is None or (_is_number(fps) and 0 < fps <= 240), "video_fps", fps, "a rate above 0, up to 240, or None")
        count = self.video_frames
        _require(type(count) is int and 0 < count <= 10_000, "video_frames", count, "1 to 10,000")
        _require(self.video_tokens in VIDEO_BUDGETS, "video_tokens", self.video_tokens, "70, 140 or 280")
        _require(self.overflow in ("error", "drop"), "overflow", self.overflow, "'error' or 'drop'")


@dataclass(frozen=True, slots=True)
class ToolLimits:
    """How far tools may go: `tool_rounds` of calls before an answer, `tool_calls` run of one message, `tool_seconds` a call,
    `tool_characters` of its result.
    """

    tool_rounds: int = 10
    tool_calls: int = 16
    tool_seconds: float = 60.0
    tool_characters: int = 20_000

    def __post_init__(self) -> None:
        for name in ("tool_rounds", "tool_calls", "tool_characters"):
            value = getattr(self, name)
            _require(type(value) is int and value >= 1, name, value, "a whole number from 1")
        _require(_is_number(self.tool_seconds) and self.tool_seconds > 0, "tool_seconds", self.tool_seconds, "seconds above 0")


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What an MCP server may take: `start_seconds` until it has listed its tools, `stop_seconds` to end by itself before it is
    ended, `message_bytes` of one message, `tools` that it may offer and `tool_characters` of the schema and the description of
    each.
    """

    start_seconds: float = 30.0
    stop_seconds: float = 2.0
    message_bytes: int = 16 << 20
    tools: int = 256
    tool_characters: int = 20_000

    def __post_init__(self) -> None:
        for name in ("start_seconds", "stop_seconds"):
            value = getattr(self, name)
            _require(_is_number(value) and 0 < value <= 3600, name, value, "seconds above 0, up to 3,600")
        for name in ("message_bytes", "tools", "tool_characters"):
            value = getattr(self, name)
            _require(type(value) is int and value >= 1, name, value, "a whole number from 1")


@dataclass(frozen=True, slots=True)
class TransferOptions:
    """How files come from a hub: `connections` ranges at once; a request that fails is sent again, `attempts` times at most
    without a new byte in between, after `backoff` seconds doubled each time (at most `patience`, also where the hub asks for
    more); `silence` seconds without a byte are a failure.
    """

    connections: int = 4
    attempts: int = 6
    backoff: float = 0.5
    patience: float = 120.0
    silence: float = 30.0

    def __post_init__(self) -> None:
        _require(1 <= self.connections <= 32, "connections", self.connections, "1 to 32")
        _require(1 <= self.attempts <= 100, "attempts", self.attempts, "1 to 100")
        for name in ("backoff", "patience", "silence"):
            value = getattr(self, name)
            _require(_is_number(value) and 0 <= value <= 3600, name, value, "0 to 3,600 seconds")


def _budgets() -> str:
    return ", ".join(map(str, IMAGE_BUDGETS[:-1])) + f" or {IMAGE_BUDGETS[-1]}"
