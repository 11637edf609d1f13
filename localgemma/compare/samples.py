"""Texts as they are walked: token ids and pictures, with the tokens that are to be predicted."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from localgemma.compare.corpus import Corpus
from localgemma.compare.records import Item
from localgemma.engine import Engine, Prompt, Text
from localgemma.errors import BackendError, UsageError
from localgemma.gemma4.prompt import render
from localgemma.messages import Pixels
from localgemma.passages import Passage

CHUNK = 512  # tokens of a raw text that are read together; the second half is scored (llama-perplexity's defaults)
SEGMENT = 2048  # positions that are walked, and kept, together
LEAST = 16  # tokens of a raw text that are worth a chunk


@dataclass(frozen=True, slots=True)
class Sample:
    """A passage, and the token that each of its scored rows should predict."""

    id: str
    category: str
    passage: Passage
    targets: tuple[int, ...]


def prepared(items: Sequence[Item], engine: Engine) -> list[Sample]:
    """The items in this model's tokens. Raises UsageError where none has anything to predict, or a raw text has not."""
    samples: list[Sample] = []
    for item in items:
        found = list(_samples(item, engine))
        if not found and not item.prompt.parts:
            raise UsageError(f"{item.id} is too short: there is nothing to predict in it.", "Give some pages of text.")
        samples += found
    if not samples:
        raise UsageError("There is nothing to predict in the data.", "Give chats with an answer, or a text of some pages.")
    return samples


def _samples(item: Item, engine: Engine) -> Iterator[Sample]:
    if not item.prompt.parts:
        yield from _chunks(item, engine)
        return
    before, answer = runs_of(item.prompt, engine), runs_of(item.answer, engine)
    if len(answer) != 1 or isinstance(answer[0], Pixels):
        return
    first = sum(run.tokens if isinstance(run, Pixels) else len(run) for run in before) - 1
    runs = _joined([*before, answer[0][:-1]])
    yield Sample(item.id, item.category, Passage(runs, first), answer[0])


def _chunks(item: Item, engine: Engine) -> Iterator[Sample]:
    """A raw text as llama-perplexity reads it: each chunk begins with <bos> in the place of its first token.

    What is left at the end is dropped, unless it is all there is.
    """
    bos = engine.info.bos
    ids = engine.tokenize(item.answer)
    if bos is not None:
        ids = [bos, *ids]
    chunks = [ids[at : at + CHUNK] for at in range(0, len(ids) - CHUNK + 1, CHUNK)] or [ids]
    for number, chunk in enumerate(chunks, 1):
        if len(chunk) < LEAST:
            return
        first = len(chunk) // 2
        start = chunk[0] if bos is None else bos
        run = (start, *chunk[1:])  # the last predicts nothing, but rows may share a kernel's tile with it
        yield Sample(f"{item.id}-{number}", item.category, Passage((run,), first), tuple(chunk[first + 1 :]))


def runs_of(prompt: Prompt, engine: Engine) -> list[tuple[int, ...] | Pixels]:
    """A prompt as runs of token ids and pictures."""
    if not prompt.parts:
        return []
    pictures = [item for item in prompt.flat() if isinstance(item, Pixels)]
    ids = engine.tokenize(prompt)
    runs: list[tuple[int, ...] | Pixels] = []
    start = at = 0
    for picture in pictures:
        while at < len(ids) and ids[at] >= 0:
            at += 1
        if at > start:
            runs.append(tuple(ids[start:at]))
        runs.append(picture)
        start = at = at + picture.tokens
    if start < len(ids):
        runs.append(tuple(ids[start:]))
    if any(token < 0 for run in runs if isinstance(run, tuple) for token in run):
        raise BackendError("The pictures of a prompt and its tokens do not agree.")
    return runs


def _joined(runs: Sequence[tuple[int, ...] | Pixels]) -> tuple[tuple[int, ...] | Pixels, ...]:
    joined: list[tuple[int, ...] | Pixels] = []
    for run in runs:
        if isinstance(run, tuple) and joined and isinstance(joined[-1], tuple):
            joined[-1] += run
        elif isinstance(run, Pixels) or run:
            joined.append(run)
    return tuple(joined)


def segments(samples: Sequence[Sample]) -> list[range]:
    """The samples in stretches of about SEGMENT positions, each walked from an empty cache and kept when it is done."""
    found: list[range] = []
    start = size = 0
    for index, sample in enumerate(samples):
        if size and size + len(sample.passage) > SEGMENT:
            found.append(range(start, index))
            start, size = index, 0
        size += len(sample.passage)
    return [*found, range(start, len(samples))] if samples else []


def spread(samples: Sequence[Sample], positions: int) -> Sequence[Sample]:
    """Samples evenly spaced among all, together of at most so many positions; at least one."""
    every = sum(len(sample.passage) for sample in samples)
    step = max(1, -(-every // positions))
    found, size = list[Sample](), 0
    for sample in samples[::step]:
        size += len(sample.passage)
        if found and size > positions:
            break
        found.append(sample)
    return found


def digest(samples: Sequence[Sample]) -> str:
    """A hash of all tokens and pictures, and of what is predicted: sha256, hexadecimal."""
    total = hashlib.sha256()
    for sample in samples:
        names = [run.sha256 if isinstance(run, Pixels) else run for run in sample.passage.runs]
        total.update(repr((names, sample.passage.first, sample.targets)).encode())
    return total.hexdigest()


def largest(corpus: Corpus) -> tuple[int, int]:
    """(positions of the longest text, guessed without a tokenizer: half its bytes; tokens of the largest picture)."""
    longest = pictures = 0
    asked = [each.messages for each in corpus.questions] + [each.messages for each in corpus.asks]
    for item in (*corpus.items, *(Item("", "", render(messages), Prompt(())) for messages in asked)):
        parts = [*item.prompt.flat(), *item.answer.flat()]
        seen = [part.tokens for part in parts if isinstance(part, Pixels)]
        words = sum(len(part.text.encode("utf-8", "replace")) for part in parts if not isinstance(part, Pixels))
        pictures = max([pictures, *seen])
        longest = max(longest, sum(seen) + (words // 2 if item.prompt.parts else CHUNK))
    return longest + 64, pictures


def raw_item(name: str, text: str) -> Item:
    """A plain text as an item."""
    return Item(name, "text", Prompt(()), Prompt((Text(text),)))
