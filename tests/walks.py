"""Random walks over what people do with a conversation, each step beside a fresh evaluation of the same prompt.

    python tests/walks.py MODEL MMPROJ QUESTIONS [--walks 1000] [--first 0] [--sequences 1]

QUESTIONS is the demo model's eval.jsonl, so that answers have margins: in noise, near ties flip with the size of a batch.
Prints the largest and the usual differences of logits, and those of two fresh evaluations, in batches and token by token, and
of each greedy answer that differs the gap between the two tokens where it does.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from localgemma.chat.conversation import Conversation
from localgemma.chat.media import image_part
from localgemma.engine import CancelToken, EngineInfo, Finished, Output, Piece, Prompt, Request
from localgemma.llamacpp import generation
from localgemma.llamacpp.engine import LlamaEngine, open_engine
from localgemma.messages import ImagePart, Pixels
from localgemma.options import ChatOptions, LoadOptions, Sampling

FILLER = (
    "apple",
    "river",
    "seven",
    "blue",
    "the",
    "of",
    "stone",
    "quick",
    "Paris",
    "count",
    "to",
    "what",
    "is",
    "nine",
    "a",
    "sky",
)
# Without flash attention and with F32 KV the noise is least, so that what is wrong stands out.
SMALL = LoadOptions(
    kv="f32", flash_attention=False, ctx=1536, ubatch=128, image_tokens=70, threads=1
)  # 256 cells, 128 of them the window


class Recorder(generation.Sampler):
    """A sampler that keeps the logits it sampled from, by sequence."""

    seen: dict[tuple[int, int], list[np.ndarray]] = {}  # noqa: RUF012 (one for all)

    def sample(self, row: int) -> int:
        self.seen.setdefault((id(self._context), self._sequence), []).append(self._context.logits(row))
        return super().sample(row)


@dataclass
class Twin:
    """An engine whose every generation is repeated on two others that start over; what differs is noted."""

    engine: LlamaEngine
    fresh: LlamaEngine
    other: LlamaEngine
    logits: list[float] = field(default_factory=list)
    noise: list[float] = field(default_factory=list)
    usages: list[tuple[int, int]] = field(default_factory=list)
    answers: int = 0
    flips: list[float] = field(default_factory=list)
    noise_flips: list[float] = field(default_factory=list)

    @property
    def info(self) -> EngineInfo:
        return self.engine.info

    def count(self, prompt: Prompt) -> int:
        return self.engine.count(prompt)

    def tokenize(self, prompt: Prompt) -> list[int]:
        return self.engine.tokenize(prompt)

    def score(self, prompt: Prompt) -> Iterator[tuple[int, np.ndarray]]:
        return self.engine.score(prompt)

    def close(self) -> None:
        self.engine.close()

    def generate(self, request: Request, cancel: CancelToken | None = None) -> Iterator[Output]:
        outputs, rows = recorded(self.engine, request)
        done = outputs[-1]
        assert isinstance(done, Finished)
        self.usages.append((done.usage.prompt, done.usage.cached))
        again, fresh_rows = recorded(self.fresh, request, forget=True)
        finished = again[-1]
        assert isinstance(finished, Finished) and finished.usage.cached == 0
        self.logits.append(float(np.abs(rows[0] - fresh_rows[0]).max()))
        self.answers += 1
        self.flips += gap(rows, fresh_rows)
        if self.answers % 4 == 1 or self.logits[-1] > 0.03:  # what stands out is measured beside its noise
            # Token by token, as answers are made, against whole batches, as prompts are read.
            *_, (_, single) = self.other.score(request.prompt)
            self.noise.append(float(np.abs(single[-1] - fresh_rows[0]).max()))
            self.noise_flips += gap([single[-1]], fresh_rows[:1])
        yield from outputs


def gap(rows: list[np.ndarray], fresh: list[np.ndarray]) -> list[float]:
    """Where greedy choices part, how far apart the two tokens are in the fresh logits; empty where they never do."""
    for row, other in zip(rows, fresh, strict=False):
        if row.argmax() != other.argmax():
            return [float(other.max() - other[row.argmax()])]
    return [] if len(rows) == len(fresh) else [float("inf")]


def tokens(outputs: list[Output]) -> list[int]:
    return [output.token for output in outputs if isinstance(output, Piece)]


def recorded(engine: LlamaEngine, request: Request, *, forget: bool = False) -> tuple[list[Output], list[np.ndarray]]:
    """The outputs of a generation and the logits that its tokens were sampled from."""
    if forget:
        engine._called(lambda: [engine._cache.clear(slot) for slot in engine._cache.slots])
    Recorder.seen = {key: rows for key, rows in Recorder.seen.items() if key[0] != id(engine._context)}
    outputs = list(engine.generate(request))
    ((_, rows),) = [item for item in Recorder.seen.items() if item[0][0] == id(engine._context)]
    return outputs, rows


def picture(seed: int) -> ImagePart:
    """One of a few pictures of noise, 70 tokens or fewer."""
    width, height = ((240, 336), (336, 240), (192, 192), (96, 384))[seed % 4]
    rgb = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8).tobytes()
    digest = hashlib.sha256(f"{width}x{height}:".encode() + rgb).hexdigest()
    return ImagePart(Pixels(rgb, width, height, width * height // 48**2, digest), f"{seed}.png")


class World:
    """What is said in a walk: questions that the model knows, now and then after words that mean nothing."""

    def __init__(self, questions: Path) -> None:
        items = [json.loads(line) for line in questions.read_text().splitlines()]
        users = [message["content"] for item in items for message in item["messages"] if message["role"] == "user"]
        self.texts = [content for content in users if isinstance(content, str)]
        asked = [content for content in users if not isinstance(content, str) and len(content) == 2]
        self.pictures = [
            (image_part(questions.parent / part["image_url"]["url"], budget=70), text["text"])
            for part, text in (sorted(content, key=lambda part: part["type"]) for content in asked[::8])
        ]

    def text(self, rng: random.Random) -> str:
        filler = " ".join(rng.choices(FILLER, k=rng.choice((20, 60, 150, 300)))) + ". " if rng.random() < 0.15 else ""
        return filler + rng.choice(self.texts)


def walk(seed: int, chats: list[Conversation], steps: int, world: World) -> None:
    """A walk of `steps` turns, now and then in another conversation."""
    rng = random.Random(seed)
    for chat in chats:
        chat.clear()
        chat.options = replace(chat.options, thinking=rng.random() < 0.5)
        chat.system = world.text(rng) if rng.random() < 0.5 else None
    for _ in range(steps):
        chat = rng.choice(chats)
        if rng.random() < 0.1:
            chat.options = replace(chat.options, thinking=not chat.options.thinking)
        users = [index for index, message in enumerate(chat.history) if message.role == "user"]
        step: Any = rng.choice(("send", "send", "send", "picture", "regenerate", "edit", "undo")) if users else "send"
        limit = rng.choice((1, 5, 30, 120))
        sampling = {"temperature": 0, "max_tokens": limit}
        if step == "undo":
            for _ in range(rng.randint(1, min(2, len(users)))):
                chat.undo()
            step = "send"
        if step == "send":
            events = chat.send(world.text(rng), **sampling)
        elif step == "picture":
            image, question = rng.choice(world.pictures)
            events = chat.send(question, [image], **sampling)
        elif step == "regenerate":
            events = chat.regenerate(**sampling)
        else:
            events = chat.edit(rng.choice(users), world.text(rng), **sampling)
        for _ in events:
            pass


def run(files: tuple[Path, Path], questions: Path, seeds: range, *, steps: int = 5, sequences: int = 1) -> Twin:
    """Walks of these seeds; the Twin holds what was seen."""
    original, generation.Sampler = generation.Sampler, Recorder  # type: ignore[misc]
    options = replace(SMALL, sequences=sequences, checkpoint_bytes=4 << 20)
    engines = [
        open_engine(*files, options),
        open_engine(*files, replace(SMALL, checkpoint_bytes=0)),
        open_engine(*files, replace(SMALL, checkpoint_bytes=0, outputs=1)),
    ]
    twin, world = Twin(*engines), World(questions)
    try:
        chat = ChatOptions(think_budget=100, overflow="drop", repetition_guard=False)
        chats = [Conversation(twin, None, chat, Sampling(temperature=0)) for _ in range(3 if sequences > 1 else 2)]
        for seed in seeds:
            walk(seed, chats, steps, world)
    finally:
        generation.Sampler = original  # type: ignore[misc]
        for engine in engines:
            engine.close()
    return twin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path)
    parser.add_argument("projector", type=Path)
    parser.add_argument("questions", type=Path)
    parser.add_argument("--walks", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--sequences", type=int, default=1)
    args = parser.parse_args()
    seeds = range(args.first, args.first + args.walks)
    twin = run((args.text, args.projector), args.questions, seeds, steps=args.steps, sequences=args.sequences)
    prompt, cached = (sum(column) for column in zip(*twin.usages, strict=True))
    found: dict[str, Any] = {"walks": args.walks, "steps": twin.answers, "prompt": prompt, "cached": cached}
    for name, values in (("walk", twin.logits), ("noise", twin.noise)):
        found[name] = {"max": max(values), "p99": float(np.quantile(values, 0.99)), "median": float(np.median(values))}
    print(json.dumps({**found, "gaps of other answers": twin.flips, "and of the noise": twin.noise_flips}))


if __name__ == "__main__":
    main()
