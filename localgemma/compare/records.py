"""What a comparison reads and what it finds: frozen records, picklable, with no library behind them.

Divergences are nats, KL(reference ‖ candidate): what is lost where the candidate is used for the reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from localgemma.engine import Prompt
from localgemma.messages import Message

CATEGORIES = ("chat", "long", "code", "science", "non-latin", "tools", "thinking", "pictures", "video")
SET_VERSION = 1  # of the built-in sets: raised with every change, so that tables of two people compare
Kind = Literal["exact", "choice", "tool_calls", "json", "contains"]


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to walk: each token of `answer` is predicted from `prompt` and the answer's tokens before it.

    `prompt` is empty for raw text, whose second half of every chunk is scored, as llama-perplexity does.
    """

    id: str
    category: str
    prompt: Prompt
    answer: Prompt


@dataclass(frozen=True, slots=True)
class Question:
    """One task item with a right answer.

    `kind` says how the answer is judged: the text equal to `expected`, the likeliest of `choices` (by log-probability a
    token), the tool calls equal by names and arguments, JSON that is valid (and equal to `expected` where that is given),
    or the text with `expected` in it. A prompt of whole `messages` ends with the user's (or a tool's).
    """

    id: str
    task: str
    category: str
    messages: tuple[Message, ...]
    kind: Kind
    expected: Any = None
    choices: tuple[str, ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()
    thinking: bool = False


@dataclass(frozen=True, slots=True)
class Interval:
    """A measured value with its 95 % interval; `n` is how many items it rests on."""

    value: float
    low: float
    high: float
    n: int = 0


@dataclass(frozen=True, slots=True)
class Divergence:
    """How far a candidate's predictions are from the reference's over `positions` tokens of `items` texts.

    `kl` is the mean with the interval that a bootstrap over items gives, `kl_error` its standard error over tokens as
    llama-perplexity prints it; `quantiles` are of the tokens' divergences ("50", "90", "95", "99", "99.9", "100").
    `same_top` is the share of tokens with the same likeliest token, `dp_rms` the root of the mean squared change of the right
    token's probability, `dp` quantiles of that change. `perplexity` is the candidate's, `ratio` it over the reference's.
    `sampled_error` is the standard error that a sampled tail adds (0: full vocabulary).
    """

    positions: int
    items: int
    kl: Interval
    kl_error: float
    quantiles: Mapping[str, float]
    same_top: Interval
    dp_rms: float
    dp: Mapping[str, float]
    perplexity: float
    reference_perplexity: float
    ratio: Interval
    sampled_error: float = 0.0


@dataclass(frozen=True, slots=True)
class Test:
    """A paired test against the reference: `gained` items are right here alone, `lost` there alone; McNemar's exact `p`."""

    gained: int
    lost: int
    p: float


@dataclass(frozen=True, slots=True)
class TaskScore:
    """Right answers of one task: `right` of `n`, Wilson's 95 % interval, by item, and the test against the reference."""

    task: str
    right: int
    n: int
    interval: Interval
    items: Mapping[str, bool] = field(default_factory=dict)
    against: Test | None = None


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens a second of prefill and decode, seconds to the first token and to load; bytes that the load took by device."""

    prefill: float = 0.0
    decode: float = 0.0
    first_token: float = 0.0
    load: float = 0.0
    memory: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Subject:
    """What is measured: a file with a KV type. `label` names it in every table, such as `Q4_K_M` or `Q4_K_M, KV q8_0`.

    `family` is what its weights descend from ("" or "qat"): a divergence is only taken within one family. `vocabulary` and
    `template` are hashes of the file's tokenizer (of `vocabulary_size` tokens) and chat template.
    """

    label: str
    name: str
    quant: str
    bytes: int
    sha256: str = ""
    bits_per_weight: float = 0.0
    kv: str = "f16"
    publisher: str = ""
    family: str = ""
    vocabulary: str = ""
    vocabulary_size: int = 0
    template: str = ""


@dataclass(frozen=True, slots=True)
class Answered:
    """One answer to one of the user's own prompts; `differs_at` is the first character where it leaves the reference's."""

    text: str
    differs_at: int | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt, and what each subject (by its label) said to it."""

    prompt: str
    answers: Mapping[str, Answered]


@dataclass(frozen=True, slots=True)
class Result:
    """All that was found about one subject; `positions` are divergences by distance from the answer's start, as
    (first, last, mean KL). A subject without `overall` could not be compared by divergence, and `why_not` says so.
    """

    subject: Subject
    overall: Divergence | None = None
    categories: Mapping[str, Divergence] = field(default_factory=dict)
    positions: tuple[tuple[int, int, float], ...] = ()
    tasks: Mapping[str, TaskScore] = field(default_factory=dict)
    speed: Speed | None = None
    notes: tuple[str, ...] = ()
    why_not: str = ""


@dataclass(frozen=True, slots=True)
class Conditions:
    """How it was measured, so that two tables can be told apart: everything a table states under itself.

    `set` is name and version ("small 1"), `noise` the divergence of the reference's own file at `noise_ubatch`.
    `memory_limit` is what this machine could give a model's weights and context, in bytes (0: unknown). Of `likeliest` tokens
    and the rest alone the divergences are lower bounds (0: they are not).
    """

    set: str
    positions: int
    items: int
    build: str
    backend: str
    ubatch: int
    template: str
    machine: str = ""
    noise: Divergence | None = None
    noise_ubatch: int = 0
    memory_limit: int = 0
    exact: bool = True
    date: str = ""
    likeliest: int = 0


@dataclass(frozen=True, slots=True)
class Comparison:
    """A whole comparison: the reference first, then every candidate in the order asked for."""

    reference: Result
    results: tuple[Result, ...]
    conditions: Conditions
    answers: tuple[Asked, ...] = ()
    recommendation: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
