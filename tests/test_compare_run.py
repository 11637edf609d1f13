"""Whole comparisons on made-up engines: both ways, going on after a stop, what is refused and what is said."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from walkers import WIDTH, Walker

from localgemma.compare import lgref, results, run
from localgemma.compare.corpus import Ask, Corpus
from localgemma.compare.metrics import Tokens
from localgemma.compare.records import Comparison, Conditions, Item, Question, Subject
from localgemma.compare.run import Hands, Job
from localgemma.compare.samples import Sample, raw_item, spread
from localgemma.engine import Control, Engine, Prompt, Text
from localgemma.errors import Cancelled, DiskError, UsageError
from localgemma.messages import Message, Progress, TextPart
from localgemma.options import LoadOptions
from localgemma.passages import Passage

WORDS = " ".join(f"w{n}x{n * n}" for n in range(2600))
LOAD = LoadOptions(ctx=4096, ubatch=64, outputs=64, sequences=1, image_tokens=0, threads=2)
BASE = Subject("BF16", "model", "BF16", 1000, "aa", 16.0, vocabulary="v", vocabulary_size=WIDTH, template="t")
NOISES = {"aa": 0.0, "q8": 0.01, "q4": 0.1, "q2": 0.5}


def subject(name: str, **changes: object) -> Subject:
    return replace(BASE, label=name.upper(), quant=name, sha256=name, **changes)  # type: ignore[arg-type]


def chat(name: str, answer: str) -> Item:
    return Item(name, "chat", Prompt((Control("<bos>"), Text("who are you then"))), Prompt((Text(answer),)))


CORPUS = Corpus("mine", (raw_item("text", WORDS), chat("a", WORDS[:200]), chat("b", "one two three")), sha256="s")


@dataclass
class Opener:
    """Opens walkers, and remembers which; `stop` makes them end after so many batches."""

    room: int = 100
    opened: list[tuple[str, LoadOptions]] = field(default_factory=list)
    engines: list[Walker] = field(default_factory=list)
    stop: int = 1 << 30
    error: Exception | None = None
    told: list[Progress] = field(default_factory=list)

    def open(self, which: Subject, load: LoadOptions) -> Engine:
        noise = NOISES[which.sha256] + (0.001 if load.ubatch != 64 else 0.0) + (0.05 if which.kv != "f16" else 0.0)
        engine = Walker(noise=noise, stop_after=self.stop, error=self.error)
        self.opened.append((which.label, load))
        self.engines.append(engine)
        return engine

    def hands(self) -> Hands:
        return Hands(self.open, self.together, told=self.told.append)

    def together(self, some: Sequence[Subject], _: LoadOptions) -> bool:
        return len(some) <= self.room


def job(tmp_path: Path, *candidates: Subject, **changes: object) -> Job:
    around = Conditions("", 0, 0, "build 1", "CPU", 64, "t")
    return replace(
        Job(CORPUS, BASE, candidates, LOAD, tmp_path / "kept", around, ask=False),
        **changes,  # type: ignore[arg-type]
    )


def divergences(found: Comparison) -> list[float]:
    return [result.overall.kl.value for result in found.results if result.overall]


@pytest.mark.parametrize("room", [100, 2, 1], ids=["all at once", "in pairs", "one at a time"])
def test_worse_files_diverge_more_however_they_fit(tmp_path: Path, room: int) -> None:
    hands = Opener(room)
    found = run.compare(job(tmp_path, subject("q8"), subject("q4"), subject("q2")), hands.hands())
    a, b, c = divergences(found)
    assert 0 < a < b / 10 < c / 100
    assert found.conditions.exact == (room > 1)
    assert found.conditions.noise is not None and found.conditions.noise.kl.value < a
    assert set(found.results[0].categories) == {"text", "chat"}
    assert sum(each.positions for each in found.results[0].categories.values()) == found.conditions.positions
    assert all(engine.closed for engine in hands.engines)
    assert hands.told and hands.told[-1].seconds_left is not None
    if room == 1:  # a large reference is slow to load: once for all its walks, once with the other ubatch
        assert [label for label, _ in hands.opened].count(BASE.label) == 2


def test_the_noise_floor_is_taken_from_everywhere() -> None:
    samples = [Sample(str(i), "c", Passage((tuple(range(100)),), 50), tuple(range(49))) for i in range(40)]
    for positions, ids in [(8000, range(40)), (2000, range(0, 40, 2)), (400, range(0, 40, 10)), (50, [0])]:
        assert [each.id for each in spread(samples, positions)] == [str(i) for i in ids]
    assert spread([], 100) == []


def test_neighbours_that_chance_could_exchange_are_named() -> None:
    random, items = np.random.default_rng(1), np.repeat(np.arange(60), 20)
    base = np.exp(random.normal(-6, 2, 60))[items] * random.exponential(1, 1200)

    def tokens(kl: np.ndarray) -> tuple[Tokens, list[int]]:
        return replace(Tokens.empty(1200), kl=kl.astype(np.float32)), items.tolist()

    near = base * np.exp(random.normal(-0.125, 0.5, 1200))
    assert list(results.alike({"A": tokens(base), "B": tokens(base * 3)})) == []
    (said,) = results.alike({"C": tokens(base * 9), "B": tokens(near), "A": tokens(base)})
    assert "cannot be told apart" in said and "C" not in said.split(" cannot")[0]


def test_a_kept_reference_agrees_with_the_exact_way(tmp_path: Path) -> None:
    subjects = subject("q8"), subject("q4"), subject("q2")
    exact = run.compare(job(tmp_path / "a", *subjects), Opener().hands())
    sampled = run.compare(job(tmp_path / "b", *subjects), Opener(1).hands())
    for one, two in zip(exact.results, sampled.results, strict=True):
        assert one.overall is not None and two.overall is not None
        difference = abs(one.overall.kl.value - two.overall.kl.value)
        assert difference < max(0.01 * one.overall.kl.value, 3 * two.overall.sampled_error)
        assert two.overall.kl.low <= one.overall.kl.value <= two.overall.kl.high
        assert one.overall.perplexity == pytest.approx(two.overall.perplexity, rel=1e-5)


def test_a_reference_file_stands_for_its_model(tmp_path: Path) -> None:
    file = tmp_path / "x.lgref"
    first = run.compare(job(tmp_path, subject("q4"), save_reference=file), Opener().hands())
    opened = lgref.read(file)
    positions = first.conditions.positions
    assert file.stat().st_size / positions <= 1024
    hands = Opener(1)
    again = run.compare(job(tmp_path / "elsewhere", subject("q4"), reference=opened), hands.hands())
    assert [label for label, _ in hands.opened] == ["Q4"]
    assert divergences(again)[0] == pytest.approx(divergences(first)[0], rel=0.02)
    assert again.reference.subject == BASE and again.conditions.noise == first.conditions.noise
    assert again.conditions.set == "mine" and not again.conditions.exact


@pytest.mark.parametrize("room", [100, 1])
def test_a_comparison_that_was_stopped_goes_on(tmp_path: Path, room: int) -> None:
    whole = run.compare(job(tmp_path / "whole", subject("q4"), subject("q2")), Opener(room).hands())
    cut = Opener(room, stop=75, error=Cancelled("Stopped."))
    with pytest.raises(Cancelled):
        run.compare(job(tmp_path, subject("q4"), subject("q2")), cut.hands())
    rest = Opener(room)
    found = run.compare(job(tmp_path, subject("q4"), subject("q2")), rest.hands())
    assert divergences(found) == divergences(whole)
    fresh = Opener(room)
    run.compare(job(tmp_path / "other", subject("q4"), subject("q2")), fresh.hands())
    assert sum(len(e.walked) for e in rest.engines) < sum(len(e.walked) for e in fresh.engines)
    nothing = Opener(room)
    run.compare(job(tmp_path, subject("q4"), subject("q2")), nothing.hands())
    assert sum(len(e.walked) for e in nothing.engines) == 0


def test_a_new_candidate_is_walked_alone_beside_the_reference(tmp_path: Path) -> None:
    run.compare(job(tmp_path, subject("q4")), Opener().hands())
    hands = Opener()
    run.compare(job(tmp_path, subject("q4"), subject("q2")), hands.hands())
    walked = {label for (label, _), engine in zip(hands.opened, hands.engines, strict=True) if engine.walked}
    assert walked == {"BF16", "Q2"}


def test_a_full_disk_stops_it_and_what_is_done_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, count = os.fsync, 0

    def full(handle: int) -> None:
        nonlocal count
        count += 1
        if count > 2:
            raise OSError(28, "No space left on device")
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DiskError, match=r"No space left.*what is done is kept"):
            run.compare(job(tmp_path, subject("q4"), subject("q2")), Opener().hands())
    assert not list((tmp_path / "kept").rglob("*.part"))
    rest = Opener()
    run.compare(job(tmp_path, subject("q4"), subject("q2")), rest.hands())
    whole = Opener()
    run.compare(job(tmp_path / "b", subject("q4"), subject("q2")), whole.hands())
    assert sum(len(e.walked) for e in rest.engines) < sum(len(e.walked) for e in whole.engines)


def test_what_cannot_be_compared_is_refused_or_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="another tokenizer"):
        run.compare(job(tmp_path, subject("q4", vocabulary="w")), Opener().hands())
    found = run.compare(job(tmp_path, subject("q8", family="qat"), subject("q4", template="u")), Opener().hands())
    qat, other = found.results
    assert qat.overall is None and "qat" in qat.why_not and not qat.categories
    assert other.overall is not None and "template" in other.notes[0]


@pytest.mark.parametrize("text", ["", "one", "a b c"])
def test_data_of_a_token_or_none_is_refused_in_a_sentence(tmp_path: Path, text: str) -> None:
    corpus = Corpus("short", (raw_item("short", text),), sha256="x")
    with pytest.raises(UsageError, match="nothing to predict"):
        run.compare(job(tmp_path, subject("q4"), corpus=corpus), Opener().hands())


def test_questions_are_asked_once_and_prompts_answered_side_by_side(tmp_path: Path) -> None:
    user = Message("user", (TextPart("Is it so?"),))
    corpus = Corpus(
        "asked", CORPUS.items, tuple(Question(f"q{n}", "yes", "chat", (user,), "exact", "Yes.") for n in range(3)),
        (Ask("ask", "chat", (user,)),), "z",
    )  # fmt: skip
    hands = Opener()
    found = run.compare(job(tmp_path, subject("q4"), corpus=corpus, ask=True), hands.hands())
    assert found.reference.tasks["yes"].right == 3 and found.results[0].tasks["yes"].against is not None
    assert found.answers[0].prompt == "Is it so?" and set(found.answers[0].answers) == {"BF16", "Q4"}
    assert found.reference.speed is not None and found.reference.speed.decode > 0
    again = Opener()
    assert repr(run.compare(job(tmp_path, subject("q4"), corpus=corpus, ask=True), again.hands())) == repr(found)
    assert sum(len(engine.requests) for engine in again.engines) == 0


def test_kv_types_of_one_file_are_compared(tmp_path: Path) -> None:
    found = run.compare(job(tmp_path, replace(BASE, label="BF16, KV q8_0", kv="q8_0")), Opener().hands())
    assert divergences(found)[0] > 0
