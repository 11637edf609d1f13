"""Conversations held to tool_choice, to a number of calls and to the form of an answer; and the engine that holds them."""

from __future__ import annotations

import dataclasses
import json
import pickle
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypedDict

import pydantic
import pytest
from click.testing import CliRunner
from fakes import FakeEngine, Reply, thought
from jsonschema import Draft202012Validator

from localgemma.chat.conversation import Conversation
from localgemma.chat.functions import Tool
from localgemma.chat.tool_loop import Toolbox
from localgemma.cli import main as cli_main
from localgemma.engine import CancelToken, Control, Finished, Piece, Prompt, Request, SpanLimit, Text
from localgemma.errors import UsageError
from localgemma.gemma4 import grammar
from localgemma.gemma4.calls import read_call
from localgemma.gemma4.prompt import render
from localgemma.gemma4.tokens import CHANNEL, CHANNEL_END, IDS
from localgemma.llamacpp.engine import LlamaEngine, open_engine
from localgemma.messages import Notice
from localgemma.options import ChatOptions, Constraint, LoadOptions, Sampling, ToolLimits

DEMO = Path(__file__).parents[1] / "localgemma" / "assets" / "demo"
SPAN = SpanLimit(CHANNEL, CHANNEL_END, 20, insert=(Text("\n"), Control(CHANNEL_END)))
ROME = '<|tool_call>call:weather{city:<|"|>Rome<|"|>}<tool_call|>'
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0, "maximum": 120}},
    "required": ["name", "age"],
}


def weather(city: str, unit: Literal["celsius", "fahrenheit"] = "celsius") -> str:
    """The weather of a city."""
    return f"clear over {city}"


def alarm(hour: int) -> str:
    """Set an alarm."""
    return f"at {hour}"


class Person(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=8)
    age: int = pydantic.Field(ge=0, le=120)


@dataclasses.dataclass
class Place:
    city: str
    size: Literal["small", "large"] = "small"


class Trip(TypedDict):
    to: Place
    days: int


def chat_with(*replies: str | Reply, tools: Any = (), **options: Any) -> tuple[Conversation, FakeEngine]:
    engine = FakeEngine(list(replies))
    return Conversation(engine, options=ChatOptions(**options), tools=tools), engine


def constraint(engine: FakeEngine, at: int = 0) -> Constraint:
    found = engine.requests[at].constraint
    assert found is not None
    return found


def test_calls_are_held_by_default_and_the_record_is_picklable() -> None:
    chat, engine = chat_with(ROME, "Clear.", tools=[weather, alarm])
    assert chat.ask("Weather?").content == "Clear."
    found = constraint(engine)
    assert found.triggers == ("<|tool_call>",) and '"weather"' in found.grammar and '"alarm"' in found.grammar
    assert pickle.loads(pickle.dumps(engine.requests[0])) == engine.requests[0]
    chat, engine = chat_with("Hi.", tools=[weather], grammar=False)
    chat.ask("Hi")
    assert engine.requests[0].constraint is None
    chat, engine = chat_with("Hi.")
    chat.ask("Hi")
    assert engine.requests[0].constraint is None


@pytest.mark.parametrize("how", ["option", "argument", "openai"])
def test_tool_choice(how: str) -> None:
    def asked(choice: str) -> tuple[Conversation, FakeEngine, dict[str, Any]]:
        chat, engine = chat_with(ROME, "Clear.", tools=[weather, alarm], tool_choice=choice if how == "option" else "auto")
        named = choice not in ("auto", "none", "required")
        form = {"type": "function", "function": {"name": choice}} if how == "openai" and named else choice
        return chat, engine, {} if how == "option" else {"tool_choice": form}

    chat, engine, by_name = asked("required")
    chat.ask("Weather?", **by_name)
    assert constraint(engine).triggers == () and '"alarm"' in constraint(engine).grammar
    assert constraint(engine, 1).triggers == ("<|tool_call>",)  # it was called: now it may answer
    chat, engine, by_name = asked("weather")
    chat.ask("Weather?", **by_name)
    assert constraint(engine).triggers == () and '"alarm"' not in constraint(engine).grammar
    chat, engine, by_name = asked("none")
    engine.replies = ["No."]
    chat.ask("Weather?", **by_name)
    assert engine.requests[0].sampling.logit_bias == {IDS["<|tool_call>"]: float("-inf")}
    assert engine.requests[0].constraint is None


def test_wrong_choices_are_refused() -> None:
    chat, _ = chat_with(tools=[weather])
    with pytest.raises(UsageError, match="weather"):
        chat.ask("Hi", tool_choice="wether")
    with pytest.raises(UsageError, match="grammar"):
        chat_with(tools=[weather], grammar=False)[0].ask("Hi", tool_choice="required")
    with pytest.raises(UsageError, match="without tools"):
        chat_with()[0].ask("Hi", tool_choice="required")
    with pytest.raises(UsageError, match="no option"):
        chat.ask("Hi", tool_chioce="none")


def test_parallel_calls_are_limited() -> None:
    for options, wanted in (({}, "another{0,15}"), ({"parallel_calls": False}, "calls ::= call\n")):
        chat, engine = chat_with("Hi.", tools=[weather], **options)
        chat.ask("Hi")
        assert wanted in constraint(engine).grammar
    chat = Conversation(engine := FakeEngine(["Hi."]), tools=Toolbox((), "always", ToolLimits(tool_calls=3)))
    chat.toolbox = dataclasses.replace(chat.toolbox, tools=Toolbox.of([weather]).tools)
    chat.ask("Hi")
    assert "another{0,2}" in constraint(engine).grammar


@pytest.mark.parametrize(
    ("form", "said", "parsed"),
    [
        (PERSON, '{"name": "Ada", "age": 36}', {"name": "Ada", "age": 36}),
        (
            {"type": "json_schema", "json_schema": {"name": "p", "schema": PERSON}},
            '{"name":"Ada","age":36}',
            {"name": "Ada", "age": 36},
        ),
        ({"type": "json_object"}, '{"a": [1]}', {"a": [1]}),
        ({"type": "text"}, "Hello", None),
        (Person, '{"name": "Ada", "age": 36}', Person(name="Ada", age=36)),
        (Place, '{"city": "Rom", "size": "large"}', Place("Rom", "large")),
        (Trip, '{"to": {"city": "Rom"}, "days": 2}', {"to": Place("Rom"), "days": 2}),
        (list[int], "[1, 2]", [1, 2]),
    ],
)
def test_structured_answers(form: Any, said: str, parsed: Any) -> None:
    chat, engine = chat_with(thought("hm", said), "Hello", thinking=True)
    answer = chat.ask("Who?", schema=form)
    assert (answer.parsed, answer.content) == (parsed, said)
    if form != {"type": "text"}:
        assert constraint(engine).triggers == () and constraint(engine).grammar.startswith("root ::= ")
    chat.schema = form
    assert chat.ask("Who?").parsed is None  # "Hello" is none of these
    chat, engine = chat_with(said, grammar=False)
    assert chat.ask("Who?", schema=form).parsed == parsed
    assert engine.requests[0].constraint is None


def test_an_answer_that_was_cut_or_does_not_fit_is_not_parsed() -> None:
    said = [
        (Reply('{"name": "Ada"', "length"), "cut before its end"), (Reply("Hello"), "no JSON"),
        (Reply('{"name": "Ada", "age": 150}'), "age"), (Reply('{"name": "Ada"}', "cancelled"), "cut before its end"),
    ]  # fmt: skip
    for reply, why in said:
        chat, _ = chat_with(reply)
        events = list(chat.send("Who?", schema=PERSON))
        assert events[-1].parsed is None  # type: ignore[union-attr]
        assert any(isinstance(event, Notice) and why in event.text for event in events), why


def test_what_no_answer_can_be() -> None:
    chat, engine = chat_with()
    for wrong in ("name", 5, {"type": "json_schema"}, {"type": "object", "properties": 3}, {"$ref": "http://a/b"}, complex):
        with pytest.raises(UsageError):
            list(chat.send("Hi", schema=wrong))
    assert not engine.requests and not chat.history


def test_keywords_that_no_grammar_holds_are_said_once_and_checked() -> None:
    schema = {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}
    chat, _ = chat_with("[1, 1]", "[1, 2]")
    first, second = (list(chat.send("List", schema=schema)) for _ in range(2))
    said = [event.text for event in first if isinstance(event, Notice)]
    assert "uniqueItems at #" in said[0] and "non-unique" in said[1] and len(said) == 2
    assert not any(isinstance(event, Notice) for event in second)
    assert second[-1].parsed == [1, 2]  # type: ignore[union-attr]


def test_a_form_and_tools_together() -> None:
    chat, engine = chat_with(ROME, '{"name": "Ada", "age": 1}', tools=[weather])
    answer = chat.ask("Weather?", schema=PERSON)
    assert (answer.parsed, len(answer.tool_results)) == ({"name": "Ada", "age": 1}, 1)
    assert "| calls\n" in constraint(engine).grammar


def test_arguments_of_a_schema_alone_are_checked() -> None:
    got: list[dict[str, Any]] = []
    declared = {"type": "function", "function": {"name": "note", "description": "", "parameters": PERSON}}
    tool = Tool(declared, lambda **arguments: got.append(arguments), None)
    bad, good = (f'<|tool_call>call:note{{age:{age},name:<|"|>Ada<|"|>}}<tool_call|>' for age in (999, 36))
    chat, engine = chat_with(bad, good, "Done.", tools=[tool], grammar=False)
    answer = chat.ask("Note")
    assert got == [{"age": 36, "name": "Ada"}]
    assert "age: 999 is greater than the maximum of 120" in (answer.tool_results[0].error or "")
    assert "Wrong arguments: age" in str(engine.requests[1].prompt)


def test_a_hostile_schema_of_one_tool_leaves_the_others_alone() -> None:
    declared = {"type": "function", "function": {"name": "bomb", "description": "", "parameters": {}}}
    bomb = Tool(declared, None, None, {"type": "object", "properties": {"a": {"$ref": "http://x/y"}}})
    chat, engine = chat_with("Hi.", tools=[weather, bomb])
    events = list(chat.send("Hi"))
    assert any(isinstance(event, Notice) and "bomb" in event.text for event in events)
    assert '"weather"' in constraint(engine).grammar and '"bomb"' in constraint(engine).grammar


def test_the_command_line_takes_a_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "person.json"
    path.write_text(json.dumps(PERSON))
    engine = open_engine(DEMO / "text.gguf", None, LoadOptions(image_tokens=0))
    monkeypatch.setattr("localgemma.llamacpp.engine.open_engine", lambda *_, **__: engine)
    done = CliRunner().invoke(cli_main.cli, ["chat", "Who?", "--schema", str(path), "--json", "--no-save", "--seed", "1"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout.splitlines()[-1])
    Draft202012Validator(PERSON).validate(found["parsed"])
    path.write_text("{")
    assert CliRunner().invoke(cli_main.cli, ["chat", "Who?", "--schema", str(path)]).exit_code == 2
    assert CliRunner().invoke(cli_main.cli, ["chat", "Who?", "--schema", str(tmp_path / "no")]).exit_code == 3


@pytest.fixture(scope="module")
def engine() -> Iterator[LlamaEngine]:
    opened = open_engine(DEMO / "text.gguf", None, LoadOptions(image_tokens=0, sequences=2))
    yield opened
    opened.close()


def spoken(engine: LlamaEngine, request: Request) -> tuple[str, Finished]:
    """What the engine generates, markers spelled, and its end."""
    *pieces, end = engine.generate(request)
    assert isinstance(end, Finished)
    text = b"".join((each.marker or "").encode() or each.data for each in pieces if isinstance(each, Piece))
    return text.decode("utf-8", "replace"), end


def asked(text: str, tools: Any = None, thinking: bool = False) -> Prompt:
    return render([{"role": "user", "content": text}], tools=tools, enable_thinking=thinking)


@pytest.mark.live
def test_thoughts_are_free_and_the_answer_is_held(engine: LlamaEngine) -> None:
    held = grammar.answer(PERSON).constraint
    for seed in range(4):
        request = Request(asked("What is 3 + 4?", thinking=True), Sampling(seed=seed, max_tokens=120), SPAN, "", held)
        text, end = spoken(engine, request)
        assert end.reason == "stop"
        thinking, _, answer = text.rpartition(CHANNEL_END)
        assert (thinking.startswith(CHANNEL)) == bool(end.usage.thinking) and end.usage.thinking <= SPAN.tokens + 3
        Draft202012Validator(PERSON).validate(json.loads(answer))


@pytest.mark.live
@pytest.mark.parametrize("temperature", [0.0, 1.0, 2.0])
def test_a_held_generation_on_the_device_chain(temperature: float) -> None:
    """The CPU backend runs chains in the graph too, as a GPU does: what was sampled there is held, and replaced by the CPU."""
    engine = open_engine(DEMO / "text.gguf", None, LoadOptions(image_tokens=0))
    engine._on_device = True
    for seed in range(3):
        for thinking in (False, True):
            sampling = Sampling(temperature=temperature, seed=seed, max_tokens=120)
            prompt = asked("What is 3 + 4?", thinking=thinking)
            text, end = spoken(engine, Request(prompt, sampling, SPAN, "", grammar.answer(PERSON).constraint))
            assert end.reason == "stop"
            Draft202012Validator(PERSON).validate(json.loads(text.rpartition(CHANNEL_END)[2]))
            free, _ = spoken(engine, Request(asked("Hello"), sampling, SPAN, "", None))
            waiting = grammar.calls([tool.declaration for tool in Toolbox.of([weather]).tools])
            assert spoken(engine, Request(asked("Hello"), sampling, SPAN, "", waiting.constraint))[0] == free
    engine.close()


@pytest.mark.live
def test_two_held_generations_and_a_free_one_at_once_and_a_cancelled_one(engine: LlamaEngine) -> None:
    held = grammar.answer(PERSON).constraint
    requests = [Request(asked(f"Who is {n}?"), Sampling(seed=n, max_tokens=80), SPAN, "", held) for n in range(3)]
    alone = [spoken(engine, request)[0] for request in requests]
    streams = [engine.generate(request) for request in requests]
    texts = ["", "", ""]
    live = dict(enumerate(streams))
    while live:
        for index, stream in list(live.items()):
            piece = next(stream, None)
            if piece is None:
                del live[index]
            elif isinstance(piece, Piece):
                texts[index] += piece.data.decode("utf-8", "replace")
    assert texts == alone
    token = CancelToken()
    pieces = engine.generate(requests[0], token)
    next(pieces)
    token.cancel()
    *_, end = pieces
    assert isinstance(end, Finished) and end.reason == "cancelled"


@pytest.mark.live
def test_the_distribution_is_the_models_own_over_what_is_allowed(engine: LlamaEngine) -> None:
    """First tokens of an enum, against the model's probabilities over those alone."""
    import numpy as np

    words = ["Rome", "Oslo", "Bern", "Lima", "Cairo"]
    prompt = asked("Name a city.")
    held = Constraint("root ::= " + " | ".join(f'"{word}"' for word in words))
    *_, (_, rows) = engine.score(prompt)
    logits = rows[-1].astype(np.float64)
    starts = {engine.tokenize(Prompt((Text(word),)))[0]: word for word in words}
    vocab = engine._model.vocab
    allowed = [
        t
        for t in range(vocab.size)
        if t not in vocab.names and (p := vocab.piece(t)) and any(w.encode().startswith(p) for w in words)
    ]
    weights = np.exp(logits[allowed] - logits[allowed].max())
    expected = dict(zip(allowed, weights / weights.sum(), strict=True))
    count = 400
    seen = Counter[int]()
    for seed in range(count):
        sampling = Sampling(temperature=1.0, top_k=0, top_p=1.0, seed=seed, max_tokens=1)
        piece = next(each for each in engine.generate(Request(prompt, sampling, None, "", held)) if isinstance(each, Piece))
        seen[piece.token] += 1
    assert set(seen) <= set(allowed) and starts
    statistic = sum((seen[t] - count * p) ** 2 / (count * p) for t, p in expected.items() if count * p >= 5)
    assert statistic < 30  # chi-square, at most a dozen cells: 1 in 1,000 by chance


@pytest.mark.live
def test_drafts_are_held_too() -> None:
    options = LoadOptions(image_tokens=0, drafter=DEMO / "drafter.gguf")
    drafting, plain = (
        open_engine(DEMO / "text.gguf", None, options),
        open_engine(DEMO / "text.gguf", None, LoadOptions(image_tokens=0)),
    )
    tools = [tool.declaration for tool in Toolbox.of([weather, alarm]).tools]
    for held in (grammar.answer(PERSON), grammar.required(tools), grammar.calls(tools)):
        for device in (False, True):
            drafting._on_device = device
            request = Request(
                asked("Weather in Rome?", tools), Sampling(temperature=0, max_tokens=60), SPAN, "", held.constraint
            )
            assert spoken(drafting, request)[0] == spoken(plain, request)[0]
    drafting.close()
    plain.close()


@pytest.mark.live
@pytest.mark.slow
def test_sampled_calls_are_valid(engine: LlamaEngine, shared: Path, full: bool) -> None:
    """Calls at temperature 1.5, the tools of the held-out questions, all of them valid against their schemas."""
    lines = map(json.loads, (shared / "demo-model" / "eval.jsonl").read_text().splitlines())
    items = [item for item in lines if item["tools"] and not item["enable_thinking"]]
    wanted, valid = 1000 if full else 60, 0
    seed = 0
    while valid < wanted:
        item = items[seed % len(items)]
        held = (grammar.calls if seed % 2 else grammar.required)(item["tools"]).constraint
        schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in item["tools"]}
        said = [message for message in item["messages"] if message["role"] in ("system", "user")]
        prompt = render(said, tools=item["tools"])
        text, end = spoken(
            engine, Request(prompt, Sampling(temperature=1.5, top_k=0, top_p=1, seed=seed, max_tokens=300), SPAN, "", held)
        )
        seed += 1
        if end.reason != "stop" or "<|tool_call>" not in text:
            continue
        for raw in text.split("<|tool_call>")[1:]:
            raw, closed, rest = raw.partition("<tool_call|>")
            call = read_call(raw)
            assert closed and not rest and call.error is None, text
            Draft202012Validator(schemas[call.name] | {"additionalProperties": False}).validate(dict(call.arguments))
            valid += 1
