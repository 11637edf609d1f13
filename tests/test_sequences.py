"""Several conversations at once: each is answered as if it were alone, none waits for another, and room is shared."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from localgemma.chat.conversation import Conversation, collect
from localgemma.engine import CancelToken, Control, Finished, Output, Piece, Progress, Prompt, Request, Text
from localgemma.gemma4.prompt import render
from localgemma.llamacpp.engine import LlamaEngine, open_engine
from localgemma.messages import Message, TextPart
from localgemma.options import ChatOptions, LoadOptions, Sampling

pytestmark = pytest.mark.live
DEMO = Path(__file__).parents[1] / "localgemma" / "assets" / "demo"
FOUR = LoadOptions(ctx=8192, ubatch=256, image_tokens=70, threads=1, sequences=4)
GREEDY = Sampling(temperature=0, max_tokens=40)
ENDLESS = Sampling(temperature=0, logit_bias={1: -99.0, 50: -99.0, 106: -99.0})


def demo(options: LoadOptions) -> LlamaEngine:
    return open_engine(DEMO / "text.gguf", DEMO / "mmproj.gguf", options)


@pytest.fixture(scope="module")
def four() -> Iterator[LlamaEngine]:
    engine = demo(FOUR)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def alone() -> Iterator[LlamaEngine]:
    engine = demo(replace(FOUR, sequences=1))
    yield engine
    engine.close()


def asked(text: str, before: str = "") -> Prompt:
    system = [Message("system", (TextPart(before),))] if before else []
    return render([*system, Message("user", (TextPart(text),))])


def together(engine: LlamaEngine, requests: list[Request], cancel: dict[int, CancelToken] | None = None) -> list[list[Output]]:
    """Every request on a thread of its own."""
    results: list[list[Output]] = [[] for _ in requests]

    def read(index: int) -> None:
        for output in engine.generate(requests[index], (cancel or {}).get(index)):
            results[index].append(output)

    threads = [threading.Thread(target=read, args=(index,)) for index in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def said(outputs: list[Output]) -> str:
    return b"".join(output.data for output in outputs if isinstance(output, Piece) and not output.marker).decode()


def finished(outputs: list[Output]) -> Finished:
    assert isinstance(outputs[-1], Finished)
    return outputs[-1]


CAPITALS = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo", "Egypt": "Cairo", "Norway": "Oslo"}


def test_each_is_answered_as_if_alone(four: LlamaEngine, alone: LlamaEngine) -> None:
    questions = [f"What is the capital of {country}?" for country in CAPITALS] + ["What is 347 + 586?", "Hello!"]
    requests = [Request(asked(question), GREEDY) for question in questions]  # twice as many as sequences
    expected = [said(list(alone.generate(request))) for request in requests]
    assert expected[0] == "The capital of France is Paris."
    for _ in range(2):
        assert [said(outputs) for outputs in together(four, requests)] == expected


@pytest.mark.parametrize("on_device", [False, True])
def test_batches_are_shared_and_samplers_are_not(four: LlamaEngine, monkeypatch: pytest.MonkeyPatch, on_device: bool) -> None:
    monkeypatch.setattr(four, "_on_device", on_device)
    sizes: list[int] = []
    decode = four._context.decode_spans
    monkeypatch.setattr(four._context, "decode_spans", lambda spans: (sizes.append(len(spans)), decode(spans))[1])
    greedy = Request(asked("What is the capital of France?"), GREEDY)
    logs = Request(asked("What is the capital of France?"), replace(GREEDY, logprobs=2))
    # Few tokens: on a quantised file the size of a batch moves logits by up to 0.4, and hot sampling wanders off with them.
    warm = Request(asked("Hello!"), Sampling(temperature=1.5, seed=5, max_tokens=8))
    single = said(list(four.generate(warm)))
    first, second, third = together(four, [greedy, logs, warm])
    assert said(first) == said(second) == "The capital of France is Paris." and said(third) == single
    assert max(sizes) >= 2


def test_a_short_prompt_does_not_wait_for_a_long_one(four: LlamaEngine) -> None:
    long, short = Request(asked("river stone " * 2500), GREEDY), Request(asked("Hello!"), GREEDY)
    ended: dict[str, float] = {}

    def read(name: str, request: Request) -> None:
        list(four.generate(request))
        ended[name] = time.perf_counter()

    first = threading.Thread(target=read, args=("long", long))
    first.start()
    time.sleep(0.05)
    second = threading.Thread(target=read, args=("short", short))
    second.start()
    first.join()
    second.join()
    assert ended["short"] < ended["long"]


def test_a_prompt_does_not_stop_answers(four: LlamaEngine) -> None:
    seen: list[tuple[float, int]] = []
    cancel = CancelToken()

    def answer() -> None:
        for output in four.generate(Request(asked("Hello!"), ENDLESS), cancel):
            if isinstance(output, Piece):
                seen.append((time.perf_counter(), 1))

    thread = threading.Thread(target=answer)
    thread.start()
    while len(seen) < 10:
        time.sleep(0.01)
    started = time.perf_counter()
    list(four.generate(Request(asked("blue sky " * 1500), replace(GREEDY, max_tokens=1))))
    ended = time.perf_counter()
    cancel.cancel()
    thread.join()
    assert sum(started < moment < ended for moment, _ in seen) >= 5


def test_cancelling_one_leaves_the_others(four: LlamaEngine) -> None:
    cancel = CancelToken()
    requests = [
        Request(asked("river stone " * 2000), GREEDY),
        Request(asked("What is the capital of Japan?"), GREEDY),
        Request(asked("Hello!"), replace(ENDLESS, max_tokens=60)),
    ]
    threading.Timer(0.15, cancel.cancel).start()
    results = together(four, requests, {0: cancel})
    assert [finished(outputs).reason for outputs in results] == ["cancelled", "stop", "length"]
    assert said(results[1]) == "The capital of Japan is Tokyo."
    again = list(four.generate(Request(asked("What is the capital of Egypt?"), GREEDY)))
    assert said(again) == "The capital of Egypt is Cairo."


def test_conversations_keep_their_sequences(four: LlamaEngine) -> None:
    rules = "Be brief. " + "stone river " * 150
    chats = [Conversation(four, rules, ChatOptions(), GREEDY) for _ in range(3)]
    first = [chat.ask(f"Hello {index}!").usage for index, chat in enumerate(chats)]
    assert first[0].prompt > 300
    assert all(usage.prompt - usage.cached < 64 for usage in first[1:])  # the system prompt is shared, not read again
    likely: list[dict[int, float]] = []
    for turn in range(2):
        for chat in chats:
            answer = chat.ask("What is the capital of France?", logprobs=3)
            assert answer.usage.prompt - answer.usage.cached < 100
            if turn:
                likely.append({token: logprob for token, _, logprob in answer.logprobs[0].top})
    fresh = demo(replace(FOUR, sequences=1))
    for chat, expected in zip(chats, likely, strict=True):
        other = Conversation(fresh, rules, ChatOptions(), GREEDY, history=chat.history[:-1])
        top = collect(other.reply(logprobs=3)).logprobs[0].top
        for token, _, logprob in top[:2]:  # on a quantised file the size of a batch moves logits by up to 0.4
            assert abs(expected[token] - logprob) < 0.4
    fresh.close()


def test_where_room_is_short_the_youngest_waits_and_goes_on(alone: LlamaEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    small = demo(replace(FOUR, ctx=512, sequences=3))
    sampling = replace(ENDLESS, max_tokens=220)
    requests = [Request(asked(text), sampling) for text in ("Hello!", "What is 347 + 586?", "What is the capital of Italy?")]
    parked: list[int] = []
    park = small._scheduler._park
    monkeypatch.setattr(small._scheduler, "_park", lambda task: (parked.append(task.slot.id), park(task)))
    results = together(small, requests)
    assert parked
    assert [finished(outputs).reason for outputs in results] == ["length"] * 3
    assert [finished(outputs).usage.answer for outputs in results] == [220] * 3
    single = said(list(alone.generate(requests[0])))[:40]
    assert said(results[0])[:40] == single
    endless = together(small, [Request(request.prompt, ENDLESS) for request in requests])
    assert {finished(outputs).reason for outputs in endless} == {"context"}
    small.close()


def test_scoring_shares_the_engine_and_waits_for_a_slow_reader(four: LlamaEngine, alone: LlamaEngine) -> None:
    prompt = Prompt((Control("<bos>"), Text("river stone blue sky " * 150)))
    expected = list(alone.score(prompt))
    rows = four.score(prompt)
    first = next(rows)
    assert (
        said(list(four.generate(Request(asked("What is the capital of France?"), GREEDY))))
        == "The capital of France is Paris."
    )
    found = [first, *rows]
    assert [start for start, _ in found] == [start for start, _ in expected]
    for (_, one), (_, other) in zip(found, expected, strict=True):
        assert np.abs(one - other).max() < 0.5 and (one.argmax(1) == other.argmax(1)).mean() > 0.95


def test_closing_ends_what_runs() -> None:
    engine = demo(FOUR)
    stream = engine.generate(Request(asked("Hello!"), ENDLESS))
    while not isinstance(next(stream), Piece):
        pass
    waiting = [engine.generate(Request(asked("river " * 500), ENDLESS)) for _ in range(6)]
    thread = threading.Thread(target=engine.close)
    thread.start()
    assert finished(list(stream)).reason == "cancelled"
    assert {finished([o for o in each if not isinstance(o, Progress)]).reason for each in waiting} == {"cancelled"}
    thread.join(10)
    assert not thread.is_alive()
