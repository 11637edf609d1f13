"""Tasks with right answers: how each kind is judged, that runs resume, and the demo model's accuracies."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FakeEngine, Reply, thought

from localgemma.compare import corpus, stats, tasks
from localgemma.compare.records import Question, TaskScore
from localgemma.compare.tasks import Verdict
from localgemma.engine import CancelToken, Control, Prompt
from localgemma.errors import Cancelled
from localgemma.messages import Message, TextPart
from localgemma.options import LoadOptions

DEMO = Path(__file__).parents[1] / "localgemma" / "assets" / "demo"
CALL = '<|tool_call>call:set{on:true,level:3,room:<|"|>hall<|"|>}<tool_call|>'
BOTH = "<|tool_call>call:b{}<tool_call|><|tool_call>call:a{}<tool_call|>"
TOOL = {"type": "function", "function": {"name": "set", "parameters": {"type": "object"}}}


def question(kind: Any, expected: Any, name: str = "q", **more: Any) -> Question:
    return Question(name, more.pop("task", "t"), "chat", (Message("user", (TextPart("?"),)),), kind, expected, **more)


def asked(reply: Reply | str, kind: Any, expected: Any, **more: Any) -> bool:
    return tasks.ask(FakeEngine([reply]), question(kind, expected, **more)).right


@pytest.mark.parametrize(
    ("kind", "expected", "said", "right"),
    [
        ("exact", "Paris.", "Paris.", True),
        ("exact", "Paris.", " Paris.\n", True),
        ("exact", "Paris.", "Paris", False),
        ("contains", "42", "It is **42**.", True),
        ("contains", "42", "142", False),
        ("contains", "42", "42.5", False),
        ("contains", "42", "The answer is 42, not 43.", True),
        ("contains", "18450", "18,450 crowns", True),
        ("contains", "18450", "18 450 crowns", True),
        ("contains", "4", "4 pence", True),
        ("contains", "circle", "A CIRCLE.", True),
        ("contains", "red", "It is coloured.", False),
        ("contains", "H2O", "H₂O", True),
        ("contains", "7", "٧", True),
        ("contains", "北京", "首都是北京。", True),
        ("contains", "เย็น", "คำตอบคือเย็นครับ", True),
        ("contains", "दिल्ली", "नई दिल्ली", True),
        ("contains", ["salt works", "17th"], "On the 17th, at the salt works.", True),
        ("contains", ["salt works", "17th"], "At the salt works.", False),
        ("json", None, '{"a": [1, 2]}', True),
        ("json", None, "{'a': 1}", False),
        ("json", None, '{"a": NaN}', False),
        ("json", None, "Here you are: {}", False),
        ("json", {"a": 1.5, "b": True}, '```json\n{"b": true, "a": 1.50}\n```', True),
        ("json", {"b": True}, '{"b": 1}', False),
        ("json", [1, 2], "[2, 1]", False),
        ("json", {"a": 1}, '{"a": 1, "b": 2}', False),
    ],
)
def test_words_are_judged(kind: Any, expected: Any, said: str, right: bool) -> None:
    assert asked(said, kind, expected) is right


@pytest.mark.parametrize(
    ("expected", "said", "right"),
    [
        ([{"name": "set", "arguments": {"room": "hall", "level": 3, "on": True}}], CALL, True),
        ([{"name": "set", "arguments": {"room": "hall", "level": 3.0, "on": True}}], CALL, True),
        ([{"name": "set", "arguments": {"room": "hall", "level": 3, "on": 1}}], CALL, False),
        ([{"name": "set", "arguments": {"room": "hall", "level": 3}}], CALL, False),
        ([{"name": "put", "arguments": {"room": "hall", "level": 3, "on": True}}], CALL, False),
        ([{"name": "set", "arguments": {"room": "hall", "level": 3, "on": True}}], CALL + CALL, False),
        (
            [{"name": "a", "arguments": {}}, {"name": "b"}],
            "<|tool_call>call:b{}<tool_call|><|tool_call>call:a{}<tool_call|>",
            True,
        ),
        ([{"name": "set", "arguments": {}}], "I would set it.", False),
        ([{"name": "set", "arguments": {}}], "<|tool_call>call:set{oops<tool_call|>", False),
    ],
)
def test_calls_are_judged(expected: Any, said: str, right: bool) -> None:
    assert asked(said, "tool_calls", expected, tools=(TOOL,)) is right


def test_a_call_where_words_were_wanted_is_wrong_and_thoughts_do_not_count() -> None:
    assert not asked("42" + CALL, "contains", "42", tools=(TOOL,))
    assert asked(thought("41? No.", "42"), "exact", "42", thinking=True)
    assert not asked(thought("42", "41"), "contains", "42", thinking=True)


def test_what_was_said_is_kept() -> None:
    verdict = tasks.ask(FakeEngine([CALL]), question("tool_calls", [], tools=(TOOL,)))
    assert json.loads(verdict.text) == [{"name": "set", "arguments": {"on": True, "level": 3, "room": "hall"}}]
    assert tasks.ask(FakeEngine([Reply("4", "length")]), question("exact", "42")) == Verdict("q", False, "4", cut=True)


def test_answers_are_greedy_and_tools_are_only_declared() -> None:
    engine = FakeEngine(["x"])
    system = Message("system", (TextPart("Be brief."),))
    asked_ = question("exact", "x", tools=(TOOL,), thinking=True)
    tasks.ask(engine, Question("q", "t", "chat", (system, *asked_.messages), "exact", "x", tools=(TOOL,), thinking=True))
    request = engine.requests[0]
    assert request.sampling.temperature == 0 and request.sampling.max_tokens == tasks.ANSWER
    assert request.span is not None and request.span.tokens == tasks.THOUGHT
    assert (
        "Be brief." in str(request.prompt) and "declaration:set" in str(request.prompt) and "<|think|>" in str(request.prompt)
    )


def test_a_run_goes_on_where_it_was() -> None:
    questions = [question("exact", str(number), f"q{number}") for number in range(4)]
    kept: list[Verdict] = []
    told: list[tuple[int, int]] = []
    cancel = CancelToken()

    def keep(verdict: Verdict) -> None:
        kept.append(verdict)
        if len(kept) == 2:
            cancel.cancel()

    with pytest.raises(Cancelled):
        tasks.run(FakeEngine(["0", "no"]), questions, keep=keep, cancel=cancel)
    engine = FakeEngine(["2", "3"])
    done = {verdict.id: verdict for verdict in kept}
    found = tasks.run(engine, questions, done=done, told=lambda done, of: told.append((done, of)))
    assert [found[q.id].right for q in questions] == [True, False, True, True]
    assert len(engine.requests) == 2 and told == [(3, 4), (4, 4)]


@dataclass
class Scorer(FakeEngine):
    """An engine whose next token is likely by its code point: the smaller, the likelier by `step` nats."""

    step: float = 1.0
    passes: int = 0

    def score(self, prompt: Prompt) -> Iterator[tuple[int, np.ndarray]]:
        self.passes += 1
        rows = np.tile(-self.step * np.arange(200, dtype=np.float32), (self.count(prompt), 1))
        yield 0, rows[:5]
        yield 5, rows[5:]


def test_the_likeliest_choice_is_taken_in_one_pass_where_it_can() -> None:
    engine = Scorer()
    asked_ = question("choice", "B", choices=("D", "B", "C"))
    assert tasks.ask(engine, asked_) == Verdict("q", True, "B") and engine.passes == 1
    # A token of "az" is a half nat likelier than "n" on average, though the whole of it is far less likely.
    longer = Scorer()
    assert tasks.ask(longer, question("choice", "az", choices=("zz", "az", "n"))) == Verdict("q", True, "az")
    assert longer.passes == 2
    assert tasks.ask(Scorer(), question("choice", "z", choices=("z", "aa"))) == Verdict("q", False, "aa")


def test_scores_flips_and_tests() -> None:
    questions = [question("exact", "x", f"q{n}", task="a" if n < 6 else "b") for n in range(10)]
    first = {f"q{n}": Verdict(f"q{n}", n != 0, "") for n in range(10)}
    second = {f"q{n}": Verdict(f"q{n}", n not in (1, 2, 7), "") for n in range(10)}
    base, other = tasks.scores(questions, first), tasks.scores(questions, second)
    assert [(s.task, s.right, s.n) for s in base.values()] == [("a", 5, 6), ("b", 4, 4)]
    both = stats.mcnemar(tasks.total(base).items, tasks.total(other).items)
    assert both.gained + both.lost == 4 and tasks.total(other).right == 7
    found = tasks.against(other, base)
    assert found["a"].against == stats.mcnemar(base["a"].items, other["a"].items)
    assert found["a"].against is not None and (found["a"].against.gained, found["a"].against.lost) == (1, 2)
    assert tasks.against({"c": TaskScore("c", 0, 0, stats.wilson(0, 0))}, base)["c"].against is None
    assert tasks.scores(questions, {}) == {}


@pytest.mark.live
def test_the_demo_model_knows_its_own_set() -> None:
    from localgemma.llamacpp.engine import open_engine

    found = corpus.load_set("demo")
    engine = open_engine(DEMO / "text.gguf", DEMO / "mmproj.gguf", LoadOptions(image_tokens=140))
    try:
        verdicts = tasks.run(engine, found.questions)
        start = engine.tokenize(Prompt((Control("<bos>"),)))
        choice = question("choice", "Paris", choices=("Rome", "Paris", "New Delhi"))
        france = Message("user", (TextPart("What is the capital of France? Answer in one word."),))
        chosen = tasks.ask(engine, Question("c", "t", "chat", (france,), choice.kind, "Paris", choice.choices))
    finally:
        engine.close()
    scores = tasks.scores(found.questions, verdicts)
    table = {task: f"{score.right}/{score.n}" for task, score in scores.items()}
    print(table)
    assert len(start) == 1 and chosen.right and chosen.text == "Paris"
    assert tasks.total(scores).right >= 158, table  # 165 of 176; pairs of pictures and numbers are its weak tasks
