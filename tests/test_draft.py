"""Speculative decoding: the answer is the same, the distribution is the same, and drafts stop where they do not pay."""

from __future__ import annotations

import ctypes
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localgemma.chat.conversation import Conversation
from localgemma.engine import CancelToken, Control, Finished, Piece, Prompt, Request, SpanLimit, Text
from localgemma.errors import BadModelFile
from localgemma.gemma4.prompt import render
from localgemma.llamacpp import library
from localgemma.llamacpp.draft import DraftLength
from localgemma.llamacpp.engine import LlamaEngine, open_engine
from localgemma.messages import Message, TextPart
from localgemma.options import ChatOptions, LoadOptions, Sampling

# Where the size of a batch changes logits least: with flash attention 2 of 200 answers part at ties of 0.002.
OPTIONS = LoadOptions(kv="f32", flash_attention=False, ctx=2048, image_tokens=0, threads=1)
GREEDY = Sampling(temperature=0, max_tokens=80)


@pytest.fixture(scope="module")
def engines(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LlamaEngine, LlamaEngine]]:
    """The demo model in F16, without and with its drafter."""
    bindings, target = library.load(), tmp_path_factory.mktemp("draft") / "f16.gguf"
    params = bindings.llama_model_quantize_default_params()
    params.ftype = 1
    source = os.fsencode(shared / "demo-model/gguf/bf16.gguf")
    assert bindings.llama_model_quantize(source, os.fsencode(target), ctypes.byref(params)) == 0
    plain = open_engine(target, None, OPTIONS)
    drafting = open_engine(target, None, replace(OPTIONS, drafter=shared / "demo-model/gguf/assistant-f32.gguf"))
    yield plain, drafting
    plain.close()
    drafting.close()


def drafts(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(DraftLength, "choose", lambda self: count)


def questions(shared: Path) -> list[str]:
    items = [json.loads(line) for line in (shared / "demo-model/eval.jsonl").read_text().splitlines()]
    said = [message["content"] for item in items for message in item["messages"] if message["role"] == "user"]
    return [content for content in said if isinstance(content, str)]


@pytest.mark.live
@pytest.mark.parametrize("count, on_device", [(1, False), (3, False), (8, False), (3, True)])
def test_greedy_answers_are_the_same(
    engines: tuple[LlamaEngine, LlamaEngine],
    shared: Path,
    full: bool,
    monkeypatch: pytest.MonkeyPatch,
    count: int,
    on_device: bool,
) -> None:
    plain, drafting = engines
    drafts(monkeypatch, count)
    monkeypatch.setattr(drafting, "_on_device", on_device)
    asked = questions(shared)
    drafted = accepted = 0
    for index in range(200 if full else 8):
        options = ChatOptions(thinking=index % 2 == 0, think_budget=60, repetition_guard=False)
        question = asked[index * 17 % len(asked)]
        expected = Conversation(plain, None, options, GREEDY).ask(question)
        found = Conversation(drafting, None, options, GREEDY).ask(question)
        assert (found.content, found.thinking, found.finish_reason) == (
            expected.content,
            expected.thinking,
            expected.finish_reason,
        )
        assert (found.usage.answer, found.usage.thinking) == (expected.usage.answer, expected.usage.thinking)
        drafted, accepted = drafted + found.timings.drafted, accepted + found.timings.accepted
    print(f"{count} drafts a step: {accepted} of {drafted} accepted")
    assert accepted > 0.4 * drafted > 0


def joint(engine: LlamaEngine, prompt: Prompt, draws: int, first: int) -> Counter[tuple[int, ...]]:
    counts: Counter[tuple[int, ...]] = Counter()
    for seed in range(first, first + draws // 4):
        sampling = Sampling(temperature=2.0, top_k=3, top_p=1.0, seed=seed, max_tokens=4)
        counts[tuple(o.token for o in engine.generate(Request(prompt, sampling)) if isinstance(o, Piece))] += 1
    return counts


def chi_square(first: Counter[tuple[int, ...]], second: Counter[tuple[int, ...]]) -> float:
    """How unlike two samples are, in standard deviations (Wilson and Hilferty's normal form); rare answers pooled."""
    rare = {key for key in {*first, *second} if first[key] + second[key] < 10}
    groups = [(first[key], second[key]) for key in {*first, *second} - rare]
    groups.append((sum(first[key] for key in rare), sum(second[key] for key in rare)))
    groups = [(a, b) for a, b in groups if a + b]
    total_a, total_b = sum(a for a, _ in groups), sum(b for _, b in groups)
    statistic = 0.0
    for a, b in groups:
        share = (a + b) / (total_a + total_b)
        statistic += (a - share * total_a) ** 2 / (share * total_a) + (b - share * total_b) ** 2 / (share * total_b)
    degrees = len(groups) - 1
    return float(((statistic / degrees) ** (1 / 3) - (1 - 2 / (9 * degrees))) / (2 / (9 * degrees)) ** 0.5)


@pytest.mark.live
@pytest.mark.parametrize("on_device", [False, True])
def test_sampled_answers_have_the_same_distribution(
    engines: tuple[LlamaEngine, LlamaEngine], full: bool, monkeypatch: pytest.MonkeyPatch, on_device: bool
) -> None:
    plain, drafting = engines
    drafts(monkeypatch, 3)
    monkeypatch.setattr(drafting, "_on_device", on_device)
    prompt = render([Message("user", (TextPart("Hello! How are you today?"),))])
    draws = 20_000 if full else 800
    expected = joint(plain, prompt, draws, 0)
    away = chi_square(expected, joint(drafting, prompt, draws, 1_000_000))
    print(f"{draws} draws, {len(expected)} answers of four tokens: {away:.2f} standard deviations")
    assert away < 4


@pytest.mark.live
def test_limits_stops_and_cancelling_leave_the_cache_right(
    engines: tuple[LlamaEngine, LlamaEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, drafting = engines
    drafts(monkeypatch, 5)
    prompt = render([Message("user", (TextPart("What is 347 + 586?"),))], enable_thinking=True)
    span = SpanLimit("<|channel>", "<channel|>", 9, (Text("\n"), Control("<channel|>")))
    for sampling in (replace(GREEDY, max_tokens=2), replace(GREEDY, stop=("3",)), replace(GREEDY, logprobs=2)):
        for request in (Request(prompt, sampling), Request(prompt, sampling, span)):
            results = []
            for engine in engines:
                outputs = list(engine.generate(request))
                done = outputs[-1]
                assert isinstance(done, Finished)
                pieces = [output for output in outputs if isinstance(output, Piece)]
                results.append((done.reason, done.usage.answer, [piece.data for piece in pieces]))
                slot = engine._cache.slots[0]
                assert engine._called(lambda engine=engine: engine._context.end()) == len(slot.held)
            assert results[0] == results[1]
    cancel, seen = CancelToken(), 0
    for output in drafting.generate(Request(prompt, Sampling(seed=1, logit_bias={1: -99.0, 106: -99.0})), cancel):
        seen += isinstance(output, Piece)
        if seen == 20:
            cancel.cancel()
    assert list(plain.generate(Request(prompt, GREEDY)))[-1].usage.answer  # type: ignore[union-attr]
    texts = [b"".join(o.data for o in engine.generate(Request(prompt, GREEDY)) if isinstance(o, Piece)) for engine in engines]
    assert texts[0] == texts[1]


@pytest.mark.live
def test_another_file_is_no_drafter(engines: tuple[LlamaEngine, LlamaEngine]) -> None:
    path = engines[0]._model.path
    with pytest.raises(BadModelFile, match="no drafter"):
        open_engine(path, None, replace(OPTIONS, drafter=path))


def simulated(acceptance: float, draft_cost: float, steps: int = 600) -> tuple[DraftLength, float]:
    """A length that was trained on a machine where a draft costs `draft_cost` tokens' time; tokens a second at the end."""
    length = DraftLength(8)
    made = spent = 0.0
    for step in range(steps):
        count = length.choose()
        seconds = 0.01 * (1 + draft_cost * count)
        right = 0
        while right < count and (step * 7919 + right * 104729) % 1000 < 1000 * acceptance:
            right += 1
        length.took(count, seconds)
        length.saw(count, right)
        if step >= steps // 2:
            made, spent = made + right + 1, spent + seconds
    return length, made / spent


@pytest.mark.parametrize("acceptance, cost", [(0.0, 0.2), (0.3, 0.5), (0.1, 0.15), (0.0, 1.0)])
def test_drafts_stop_where_they_do_not_pay(acceptance: float, cost: float) -> None:
    assert simulated(acceptance, cost)[1] > 0.97 * 100


@pytest.mark.parametrize("acceptance, cost, least", [(0.95, 0.05, 3.0), (0.8, 0.1, 2.0), (0.6, 0.2, 1.1)])
def test_drafts_are_long_where_they_pay(acceptance: float, cost: float, least: float) -> None:
    length, speed = simulated(acceptance, cost)
    assert speed > least * 100
    best = max(range(9), key=lambda count: length.tokens(count) / (1 + cost * count))
    assert abs(length.choose() - best) <= 2 or length.choose() != 0


@given(st.lists(st.tuples(st.floats(1e-6, 10), st.integers(0, 8)), max_size=200))
def test_the_length_is_always_within_its_bounds(steps: list[tuple[float, int]]) -> None:
    length = DraftLength(8)
    for seconds, right in steps:
        count = length.choose()
        assert 0 <= count <= 8
        length.took(count, seconds)
        length.saw(count, min(count, right))
        assert 0 <= length.acceptance <= 1
