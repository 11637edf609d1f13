"""Saved chats: what comes back is what was said, whatever happened in between, and only one process writes."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from fakes import FakeEngine, thought
from hypothesis import given, settings
from hypothesis import strategies as st

import localgemma
from localgemma import runtime
from localgemma.chat import record, sessions
from localgemma.chat.conversation import Conversation
from localgemma.chat.export import as_markdown, as_messages
from localgemma.cli import main as cli_main
from localgemma.engine import Prompt, StateInfo
from localgemma.errors import BadConversation, BadState, DiskError, NotFound, UsageError
from localgemma.gemma4.vision import from_rgb
from localgemma.messages import Done, ImagePart, Message, Notice, Pixels, TextPart, ToolCall, VideoPart
from localgemma.options import ChatOptions, LoadOptions, Sampling

ROOT = Path(__file__).resolve().parent.parent


def _pixels(seed: int = 0) -> Pixels:
    return from_rgb(random.Random(seed).randbytes(48 * 96 * 3), 96, 48)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder of this test's own; gives the folder of saved chats."""
    monkeypatch.setenv("LOCALGEMMA_HOME", str(tmp_path / "home"))
    return sessions.home()


class StateEngine(FakeEngine):
    """A fake engine with a state that is a text file."""

    broken: bool = False
    loaded: str = ""

    def save_state(self, prompt: Prompt, path: Path) -> StateInfo | None:
        """The prompt as text."""
        path.write_text(str(prompt))
        return StateInfo(self.count(prompt), 0, path.stat().st_size, 0.0)

    def load_state(self, path: Path) -> StateInfo:
        """Remember the text."""
        if not path.exists():
            raise NotFound("No state.")
        if self.broken:
            raise BadState("The saved state is of another model.")
        self.loaded = path.read_text()
        return StateInfo(len(self.loaded), 0, path.stat().st_size, 0.0)


# ---- the record ------------------------------------------------------------------------------------------------------

_texts = st.text(st.characters(blacklist_categories=()), max_size=40)
_data = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
_pictures = st.builds(_pixels, st.integers(0, 3))
_budgets = st.none() | st.sampled_from([70, 1120])
_parts = (
    st.builds(TextPart, _texts)
    | st.builds(ImagePart, st.none() | _pictures, _texts, _budgets)
    | st.builds(
        VideoPart, st.lists(st.tuples(st.floats(0, 1e4), _pictures), min_size=1, max_size=3).map(tuple), _texts, _budgets
    )
)
_calls = st.builds(
    ToolCall, _texts, st.dictionaries(st.text(max_size=5), _data, max_size=3), _texts, _texts, st.none() | _texts
)
_messages = st.builds(
    Message,
    st.sampled_from(["user", "assistant", "tool"]),
    st.lists(_parts, max_size=3).map(tuple),
    _texts,
    st.lists(_calls, max_size=2).map(tuple),
    _texts,
    _texts,
    _data,
    st.booleans(),
)


@settings(max_examples=60, deadline=None)
@given(messages=st.lists(_messages, max_size=4), system=st.none() | _texts, thinking=st.booleans(), bias=st.booleans())
def test_what_comes_back_is_what_was_saved(
    tmp_path_factory: pytest.TempPathFactory, messages: list[Message], system: str | None, thinking: bool, bias: bool
) -> None:
    folder = tmp_path_factory.mktemp("chat")
    sampling = Sampling(seed=3, stop=("x",), logit_bias={5: -1.0}) if bias else Sampling()
    wanted = record.Record(
        tuple(messages),
        system,
        ChatOptions(thinking=thinking),
        sampling,
        "demo",
        "2026-01-01T00:00:00+00:00",
        tools=({"type": "function", "function": {"name": "clock"}},) if thinking else (),
    )
    record.write(folder, wanted)
    found, lost = record.read(folder)
    assert (replace(found, updated=""), lost) == (wanted, [])


def test_a_saved_chat_is_readable_and_only_its_own_pictures_stay(tmp_path: Path) -> None:
    pixels = _pixels()
    chat = Conversation(FakeEngine(["A blue square."]), system="Be brief.")
    chat.ask("What is it?", [ImagePart(pixels, "a.png", 70)], temperature=0)
    chat.save(tmp_path / "trip")
    data = json.loads((tmp_path / "trip" / "chat.json").read_text())
    assert data["system"] == "Be brief."
    assert data["messages"] == [
        {"role": "user", "content": [
            {"type": "image", "source": "a.png", "budget": 70, "picture": pixels.sha256},
            {"type": "text", "text": "What is it?"},
        ]},
        {"role": "assistant", "content": "A blue square."},
    ]  # fmt: skip
    assert [path.stem for path in (tmp_path / "trip" / "pictures").iterdir()] == [pixels.sha256]
    chat.undo()
    chat.save(tmp_path / "trip")
    assert list((tmp_path / "trip" / "pictures").iterdir()) == []


def test_a_loaded_chat_goes_on(tmp_path: Path) -> None:
    first = Conversation(FakeEngine([thought("Hm.", "Paris.")]), "Be brief.", ChatOptions(thinking=True), Sampling(seed=7))
    first.ask("Capital of France?")
    first.save(tmp_path)
    engine = FakeEngine(["Rome."])
    second = Conversation(engine)
    second.load(tmp_path)
    assert (second.system, second.options, second.sampling) == (first.system, first.options, first.sampling)
    assert second.history == first.history
    second.ask("And Italy?")
    prompt = str(engine.requests[0].prompt)
    assert "Be brief." in prompt and "Paris." in prompt and engine.requests[0].sampling.seed == 7


@pytest.mark.parametrize("damage", ["missing", "changed", "not a picture"])
def test_a_lost_picture_is_said_and_the_chat_goes_on(tmp_path: Path, damage: str) -> None:
    chat = Conversation(FakeEngine())
    chat.ask("Look", [ImagePart(_pixels(), "a.png")])
    chat.save(tmp_path)
    path = next((tmp_path / "pictures").iterdir())
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(record.png(_pixels(1)) if damage == "changed" else b"text")
    again = Conversation(FakeEngine())
    again.load(tmp_path)
    events = list(again.send("And now?"))
    assert isinstance(events[0], Notice) and "a.png" in events[0].text and "lost" in events[0].text
    assert not any(isinstance(event, Notice) for event in again.send("And now?"))
    assert again.history[0].content[0] == TextPart("[lost picture: a.png]")


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", "1", "{}", '{"format": 2, "messages": []}', '{"format": 1}', '{"format": 1, "messages": 5}',
        '{"format": 1, "messages": [5]}', '{"format": 1, "messages": [{}]}', '{"format": 1, "messages": [{"role": "robot"}]}',
        '{"format": 1, "messages": [{"role": "user", "content": 7}]}',
        '{"format": 1, "messages": [{"role": "user", "content": [{"type": "image", "picture": "../../../x"}]}]}',
        '{"format": 1, "messages": [{"role": "user", "content": [{"type": "sound"}]}]}',
        '{"format": 1, "messages": [{"role": "user", "tool_calls": [{"name": 1, "arguments": {}}]}]}',
        '{"format": 1, "messages": [{"role": "user", "tool_calls": [{"name": "f", "arguments": []}]}]}',
        '{"format": 1, "messages": [], "options": {"nonsense": 1}}',
        '{"format": 1, "messages": [], "options": {"overflow": 1}}',
        '{"format": 1, "messages": [], "sampling": {"temperature": "hot"}}', '{"format": 1, "messages": [], "system": 5}',
        '{"format": 1, "messages": [], "tools": [7]}', "[" * 100_000,
    ],
)  # fmt: skip
def test_a_damaged_chat_is_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "chat.json").write_text(text)
    with pytest.raises(BadConversation, match=r"is damaged \(.*localgemma sessions rm"):
        record.read(tmp_path)


def test_a_missing_chat_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="localgemma sessions list"):
        Conversation(FakeEngine()).load(tmp_path / "none")


# ---- the engine's state ----------------------------------------------------------------------------------------------


def test_state_comes_along_or_is_discarded_with_a_notice(tmp_path: Path) -> None:
    chat = Conversation(StateEngine(["A"]))
    chat.ask("One")
    chat.save(tmp_path)
    assert chat.save_state(tmp_path)
    again = Conversation(engine := StateEngine(["B"]))
    info = again.load(tmp_path)
    assert info is not None and engine.loaded == str(chat.prompt())
    engine = StateEngine(["B"])
    engine.broken = True
    other = Conversation(engine)
    assert other.load(tmp_path) is None
    notices = [event.text for event in other.send("Two") if isinstance(event, Notice)]
    assert len(notices) == 1 and "another model" in notices[0] and "read again" in notices[0]
    assert "One" in str(engine.requests[0].prompt)


def test_an_engine_without_states_saves_none(tmp_path: Path) -> None:
    chat = Conversation(FakeEngine(["A"]))
    chat.ask("One")
    assert chat.save_state(tmp_path) is None
    assert Conversation(StateEngine()).save_state(tmp_path) is None  # nothing was said


@pytest.mark.live
def test_the_real_state_saves_reading_and_a_damaged_one_is_not_trusted(tmp_path: Path) -> None:
    load = LoadOptions(ctx=2048, image_tokens=70, checkpoint_bytes=4 << 20)
    question = "What is the capital of Greece?"
    with localgemma.open("demo", options=load) as model:
        chat = model.chat(temperature=0, max_tokens=12, image_tokens=70)
        chat.ask("What color is the shape?", [ROOT / "examples" / "picture.png"])
        chat.ask("Alma has a boat and a kite. Boris has a lamp. " * 9 + "What is the capital of France?")
        chat.save(tmp_path)
        info = chat.save_state(tmp_path)
        assert info is not None and info.tokens > 150 and info.pictures > 0
        wanted = chat.ask(question).content
    state = (tmp_path / record.STATE).read_bytes()

    def again(model: runtime.Model, data: bytes) -> tuple[StateInfo | None, Done, list[str]]:
        (tmp_path / record.STATE).write_bytes(data)
        chat = model.chat()
        loaded = chat.load(tmp_path)
        events = list(chat.send(question))
        assert isinstance(events[-1], Done) and events[-1].message.text == wanted
        return loaded, events[-1], [event.text for event in events if isinstance(event, Notice)]

    with localgemma.open("demo", options=load) as model:
        loaded, done, notices = again(model, state)
        assert loaded is not None and not notices
        assert done.usage.cached >= info.tokens - 70  # the answer's turn ends in new tokens
        for data, says in (
            (state[: len(state) // 2], "cut off"),
            (state[:999] + bytes(9) + state[1008:], "damaged"),
            (b"", ""),
        ):
            loaded, _, (notice,) = again(model, data)
            assert loaded is None and says in notice and "read again" in notice
    with localgemma.open("demo", options=replace(load, kv="f32")) as model:
        loaded, done, (notice,) = again(model, state)
        assert loaded is None and "KV cache" in notice and done.usage.cached == 0


# ---- sessions --------------------------------------------------------------------------------------------------------


def _talk(name: str | None, *texts: str) -> str:
    with sessions.Session(name) as kept:
        chat = Conversation(FakeEngine())
        if kept.exists:
            kept.restore(chat)
        chat.keep = kept.save
        for text in texts:
            chat.ask(text)
        return kept.name


def test_a_nameless_chat_is_saved_at_its_first_turn_and_listed(home: Path) -> None:
    with sessions.Session() as kept:
        assert not kept.exists and not home.exists()
    with pytest.raises(NotFound, match="Start one"):
        sessions.newest()
    first, second = _talk(None, "one"), _talk(None, "uno", "due")
    assert first != second
    assert (sessions.newest(), sessions.names()) == (second, [second, first])
    line = sessions.summary(second)
    assert (line.title, line.turns, line.model, line.problem) == ("uno", 2, "fake", "")
    _talk(first, "more")
    assert sessions.newest() == first
    assert [message.text for message in sessions.read(first).messages] == ["one", "Yes.", "more", "Yes."]
    sessions.remove(first)
    assert sessions.names() == [second] and not (home / first).exists()


def test_a_chat_keeps_the_tools_that_it_had(home: Path) -> None:
    clock = {"type": "function", "function": {"name": "clock", "description": "Tells the time."}}
    for tools in ([clock], []):
        with sessions.Session("talk") as kept:
            chat = Conversation(FakeEngine(["Yes."]), tools=tools)
            if kept.exists:
                kept.restore(chat)
            chat.ask("Hello?")
            kept.save(chat)
        assert sessions.read("talk").tools == (clock,)


def test_a_named_chat_without_a_turn_leaves_nothing(home: Path) -> None:
    with sessions.Session("trip"):
        assert (home / "trip").is_dir()
    assert not (home / "trip").exists()


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "a\\b", ".hidden", "x" * 200, "a\0b", "end.", "end ", "a\nb"])
def test_names_are_file_names(home: Path, name: str) -> None:
    for use in (sessions.Session, sessions.read, sessions.summary, sessions.remove):
        with pytest.raises(UsageError, match="cannot be called"):
            use(name)


def test_a_chat_that_cannot_be_saved_goes_on_and_says_so(home: Path) -> None:
    home.parent.mkdir(parents=True)
    home.write_text("a file where the folder should be")
    chat = Conversation(FakeEngine(["A", "B"]))
    chat.keep = sessions.Session().save
    events = list(chat.send("One"))
    assert next(event.text for event in events if isinstance(event, Notice)).endswith("--no-save.")
    assert len(chat.history) == 2


def _hold(name: str, ready: Any, release: Any) -> None:
    with sessions.Session(name):
        ready.set()
        release.wait(30)


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_a_second_process_is_told(home: Path) -> None:
    _talk("trip", "one")
    context = multiprocessing.get_context("fork")
    ready, release = context.Event(), context.Event()
    other = context.Process(target=_hold, args=("trip", ready, release))
    other.start()
    try:
        assert ready.wait(30)
        for use in (sessions.Session, sessions.remove):
            with pytest.raises(UsageError, match=r"open in another process\. .*--session NAME"):
                use("trip")
        assert sessions.read("trip").messages[0].text == "one"
    finally:
        release.set()
        other.join(30)
    with sessions.Session("trip") as kept:
        assert kept.exists


def _chatter(name: str, told: Any) -> None:
    """Talk until killed, a picture every third turn; tell the number of every turn that is finished."""
    with sessions.Session(name) as kept:
        chat = Conversation(StateEngine(context=1 << 40))
        if kept.exists:
            kept.restore(chat)
        chat.keep = kept.save
        while True:
            turn = len(chat.history) // 2
            chat.ask(f"turn {turn} " + "x" * 200, [ImagePart(_pixels(turn), f"{turn}.png")] if turn % 3 == 0 else [])
            os.write(told, turn.to_bytes(4, "little"))
            if turn % 5 == 4:
                kept.save_state(chat)


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_kill_at_random_moments(home: Path, full: bool) -> None:
    """The history is complete up to the last finished turn, with its pictures, after every kill."""
    context, chance = multiprocessing.get_context("fork"), random.Random(1)
    last, span = -1, 0.15
    for _ in range(200 if full else 20):
        reading, writing = os.pipe()
        child = context.Process(target=_chatter, args=("trip", writing))
        child.start()
        os.close(writing)
        time.sleep(chance.random() * span)
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        with os.fdopen(reading, "rb") as stream:
            turns = stream.read()
        if not turns:  # a crowded machine: more time, until turns are finished in it
            span = min(span * 1.2, 1.5)
        else:
            last = int.from_bytes(turns[len(turns) // 4 * 4 - 4 : len(turns) // 4 * 4], "little")
        if last < 0:
            continue
        found, lost = record.read(home / "trip")
        assert not lost
        assert len(found.messages) // 2 - 1 in (last, last + 1) and len(found.messages) % 2 == 0
        last = len(found.messages) // 2 - 1
        for turn, message in enumerate(found.messages[::2]):
            assert message.text.startswith(f"turn {turn} ")
            assert [part.pixels for part in message.content if isinstance(part, ImagePart)] == [_pixels(turn)] * (
                turn % 3 == 0
            )
    assert last > 0


REAL = """
import sys, localgemma
from localgemma.chat import sessions
from localgemma.messages import Notice
from localgemma.options import LoadOptions
load = LoadOptions(ctx=1024, image_tokens=0, checkpoint_bytes=1 << 20)
towns = ["France", "Greece", "Italy", "Spain"]
with localgemma.open("demo", options=load) as model, sessions.Session("trip") as kept:
    chat = model.chat(temperature=0, max_tokens=9, overflow="drop")
    if kept.exists:
        kept.restore(chat)
    chat.keep = kept.save
    while True:
        turn = len(chat.history) // 2
        events = list(chat.send(f"What is the capital of {towns[turn % 4]}?"))
        lost = [event.text for event in events if isinstance(event, Notice) and "state" in event.text]
        print(turn, events[-1].usage.cached, *lost, sep="\\t", flush=True)
        kept.save_state(chat)
"""


@pytest.mark.live
def test_kill_the_real_model_at_random_moments(home: Path, full: bool) -> None:
    """After every kill the turns are whole, and the state is valid or is given up with a notice; the answers are the same."""
    chance, last, states = random.Random(2), -1, 0
    for _ in range(40 if full else 2):
        child = subprocess.Popen([sys.executable, "-c", REAL], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        first = child.stdout.readline().split("\t")
        time.sleep(chance.random())
        child.kill()
        lines = [line.split("\t") for line in child.stdout.read().splitlines()]
        child.wait()
        assert int(first[0]) == last + 1, first
        states += len(first) == 2 and int(first[1]) > 20
        found, lost = record.read(home / "trip")
        assert not lost and len(found.messages) % 2 == 0
        told = int((lines or [first])[-1][0])
        last = len(found.messages) // 2 - 1
        assert last in (told, told + 1)
        for turn, message in enumerate(found.messages[::2]):
            assert message.text == f"What is the capital of {('France', 'Greece', 'Italy', 'Spain')[turn % 4]}?"
    assert states >= (20 if full else 0)
    with localgemma.open("demo", options=LoadOptions(ctx=1024, image_tokens=0)) as model:
        kept, fresh = model.chat(), model.chat(temperature=0, max_tokens=9, overflow="drop")
        kept.load(home / "trip")
        answer = str(kept.ask("What is the capital of Greece?"))
        (home / "trip" / record.STATE).unlink(missing_ok=True)
        fresh.load(home / "trip")
        assert str(fresh.ask("What is the capital of Greece?")) == answer


# ---- the command line ------------------------------------------------------------------------------------------------

Run = Callable[..., Result]


@pytest.fixture
def run(home: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command line on a fake engine, which says the number of messages in its prompt."""

    def opened(name: str, **_: object) -> runtime.Model:
        class Counting(StateEngine):
            def generate(self, request: Any, cancel: Any = None) -> Any:
                self.replies = [f"{name}: {str(request.prompt).count('<|turn>')}"]
                return super().generate(request, cancel)

        return runtime.Model(Counting(), runtime.Plan(Path("fake.gguf"), None, LoadOptions(), ()))

    monkeypatch.setattr(runtime, "open", opened)
    return lambda *args, **kwargs: CliRunner().invoke(cli_main.cli, list(args), **({"input": ""} | kwargs))


def test_c_continues_the_last_chat_with_its_model(run: Run) -> None:
    assert run("chat", "-c", "x").exit_code == 3
    assert run("chat", "one", "-m", "some").stdout == "some: 2\n"
    assert run("chat", "two", "-c").stdout == "some: 4\n"
    assert run("chat", "other", "-m", "next").stdout == "next: 2\n"
    assert run("chat", "more", "-c").stdout == "next: 4\n"
    assert run("chat", "more", "-c", "-m", "some").stdout == "some: 6\n"


def test_no_save_keeps_nothing_and_may_still_continue(run: Run, home: Path) -> None:
    assert run("chat", "one", "--no-save").exit_code == 0
    assert not home.exists()
    run("chat", "one")
    before = (home / sessions.newest() / "chat.json").read_bytes()
    assert run("chat", "two", "-c", "--no-save").stdout == "demo: 4\n"
    assert (home / sessions.newest() / "chat.json").read_bytes() == before


def test_a_named_chat_keeps_its_system_message_and_options(run: Run) -> None:
    assert run("chat", "one", "--session", "trip", "--system", "Be brief.", "--think", "--seed", "5").exit_code == 0
    assert run("chat", "two", "--session", "trip", "--temperature", "0").exit_code == 0
    found = sessions.read("trip")
    assert (found.system, found.options.thinking, found.sampling.seed, found.sampling.temperature) == ("Be brief.", True, 5, 0)
    assert run("chat", "x", "--session", "trip", "-c").exit_code == 2
    assert run("chat", "x", "--session", "a/b").exit_code == 2


def test_save_state_is_told(run: Run, home: Path) -> None:
    result = run("chat", "one", "--session", "trip", "--save-state")
    assert "saved too" in result.stderr and (home / "trip" / "state.bin").exists()


def test_the_list_and_its_verbs(run: Run, home: Path, tmp_path: Path) -> None:
    assert "Start one" in run("sessions", "list").stderr
    assert run("sessions", "list", "--json").stdout == "[]\n"
    run("chat", "How far is it?", "--session", "trip")
    (home / "bad").mkdir()
    (home / "bad" / "chat.json").write_text("{")
    listed = run("sessions", "list")
    assert "trip" in listed.stdout and "How far" in listed.stdout and "is damaged" in listed.stdout
    assert {row["name"] for row in json.loads(run("sessions", "list", "--json").stdout)} == {"trip", "bad"}
    assert run("sessions", "show", "trip").stdout == "**user**\n\nHow far is it?\n\n**assistant**\n\ndemo: 2\n"
    assert run("sessions", "show", "none").exit_code == 3
    rows = json.loads(run("sessions", "export", "trip", "--format", "json").stdout)
    assert rows == [{"role": "user", "content": "How far is it?"}, {"role": "assistant", "content": "demo: 2"}]
    out = tmp_path / "trip.md"
    assert run("sessions", "export", "trip", "-o", str(out)).exit_code == 0
    assert out.read_text() == run("sessions", "export", "trip").stdout
    assert run("sessions", "export", "trip", "-o", str(out)).exit_code == 2
    assert run("sessions", "export", "trip", "-o", str(tmp_path / "no" / "x.md")).exit_code == 5
    assert run("sessions", "rm", "trip", "bad", "none", "-y").exit_code == 3
    assert run("sessions", "rm", "trip").exit_code == 2  # nobody is there to ask
    assert run("sessions", "rm", "trip", "bad", "--yes").exit_code == 0
    assert not list(home.iterdir())


def test_exports_hold_pictures_calls_and_thoughts(tmp_path: Path) -> None:
    history = [
        Message("user", (ImagePart(_pixels(), "a b.png"), TextPart("Look"))),
        Message("assistant", thinking="Hm\nso", tool_calls=(ToolCall("f", {"x": 1}, "call_0"),)),
        Message("tool", tool_call_id="call_0", name="f", result={"y": "ü"}),
        Message("assistant", (TextPart("Half"),), cut=True),
    ]
    text = as_markdown("Be brief.", history, lambda pixels: "p.png")
    for wanted in ("**system**\n\nBe brief.", "![a b.png](p.png)", "> Hm\n> so", '`f({"x": 1})`', '"y": "ü"', "Half\n\n…"):
        assert wanted in text
    rows = as_messages("Be brief.", history)
    assert [row["role"] for row in rows] == ["system", "user", "assistant", "tool", "assistant"]
    assert rows[1]["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")
    assert rows[2]["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"x": 1}'}
    assert (rows[3]["tool_call_id"], rows[3]["content"]) == ("call_0", '{"y": "ü"}')
    json.dumps(rows)


def test_a_full_disk_is_a_disk_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    record.write(tmp_path, record.Record((Message("user", (TextPart("old"),)),)))
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskError, match="No space left"):
        record.write(tmp_path, record.Record((Message("user", (TextPart("new"),)),)))
    assert record.read(tmp_path)[0].messages[0].text == "old"
