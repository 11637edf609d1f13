"""Conversations on the fake engine: what is sent, what streams out, and what stays."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import FakeEngine, Reply, thought

from localgemma.chat.conversation import Conversation
from localgemma.chat.guard import RepetitionGuard
from localgemma.chat.tool_loop import Toolbox
from localgemma.engine import CancelToken, Control, Text
from localgemma.errors import BadConversation, BadMedia, ContextOverflow, DecodeError, UsageError
from localgemma.messages import (
    Done,
    ImagePart,
    Message,
    Notice,
    Pixels,
    Progress,
    TextDelta,
    TextPart,
    ThinkingDelta,
    ToolCall,
)
from localgemma.options import ChatOptions

LOOP = "I am not sure about that, so I will think again. "


def _pixels() -> ImagePart:
    return ImagePart(Pixels(bytes(48 * 48 * 3), 48, 48, 1, "00"), "a.png")


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 1000])
def test_events_do_not_depend_on_the_chunking(chunk: int) -> None:
    chat = Conversation(FakeEngine([thought("Hm, ü.", "It is 日本.")], chunk=chunk), options=ChatOptions(thinking=True))
    events = list(chat.send("Where?"))
    assert "".join(e.text for e in events if isinstance(e, ThinkingDelta)).strip() == "Hm, ü."
    assert "".join(e.text for e in events if isinstance(e, TextDelta)) == "It is 日本."
    done = events[-1]
    assert isinstance(done, Done)
    assert done.finish_reason == "stop"
    assert chat.history[-1] == done.message
    assert done.message.thinking.strip() == "Hm, ü."
    assert not done.message.cut


def test_ask_gives_the_whole_answer_and_later_turns_see_it() -> None:
    engine = FakeEngine([thought("secret thought", "Paris."), "Rome."])
    chat = Conversation(engine, system="Be brief.")
    answer = chat.ask("Capital of France?")
    assert (str(answer), answer.finish_reason, answer.usage.answer > 0) == ("Paris.", "stop", True)
    chat.ask("And Italy?")
    prompt = str(engine.requests[1].prompt)
    assert "Be brief." in prompt and "Paris." in prompt and "And Italy?" in prompt
    assert "secret thought" not in prompt
    assert [m.role for m in chat.history] == ["user", "assistant"] * 2


def test_thinking_budget_and_sampling_reach_the_engine() -> None:
    engine = FakeEngine()
    chat = Conversation(engine, options=ChatOptions(thinking=True, think_budget=7))
    chat.ask("Hi", temperature=0, seed=1, max_tokens=64)
    request = engine.requests[0]
    assert (request.sampling.temperature, request.sampling.seed, request.sampling.max_tokens) == (0, 1, 64)
    assert request.span is not None
    assert (request.span.opens, request.span.closes, request.span.tokens) == ("<|channel>", "<channel|>", 7)
    assert request.span.insert == (Text("\n"), Control("<channel|>"))
    assert "<|think|>" in str(request.prompt)
    assert chat.sampling.temperature == 1.0


def test_an_unknown_option_is_refused_before_anything_happens() -> None:
    chat = Conversation(FakeEngine())
    with pytest.raises(UsageError, match="temperature"):
        chat.send("Hi", temprature=0)
    assert chat.history == ()


@pytest.mark.parametrize(
    ("reason", "expected", "cut"),
    [("stop", "stop", False), ("stop_string", "stop", False), ("length", "length", True),
     ("context", "length", True), ("cancelled", "cancelled", True)],
)  # fmt: skip
def test_finish_reasons(reason: str, expected: str, cut: bool) -> None:
    chat = Conversation(FakeEngine([Reply("Some words", reason)]))  # type: ignore[arg-type]
    answer = chat.ask("Hi")
    assert (answer.finish_reason, chat.history[-1].cut) == (expected, cut)


def test_a_tool_call_and_its_result() -> None:
    engine = FakeEngine(['<|tool_call>call:get_weather{city:<|"|>Rome<|"|>}<tool_call|>', "Sunny."])
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}}
    chat = Conversation(engine, tools=[tool])
    events = list(chat.send("Weather?"))
    call = next(e for e in events if isinstance(e, ToolCall))
    assert (call.name, dict(call.arguments)) == ("get_weather", {"city": "Rome"})
    assert call.id
    assert isinstance(events[-1], Done) and events[-1].finish_reason == "tool_calls"
    chat.add_result(call, {"sky": "clear"})
    done = list(chat.reply())[-1]
    assert isinstance(done, Done) and done.message.text == "Sunny."
    assert "clear" in str(engine.requests[1].prompt)


def test_leaving_the_loop_cancels_and_keeps_what_was_said() -> None:
    engine = FakeEngine(["One two three four five."])
    chat = Conversation(engine)
    for event in chat.send("Count"):
        if isinstance(event, TextDelta):
            break
    del event
    import gc

    gc.collect()
    assert engine.stopped == 1
    assert chat.history[-1].cut
    assert "One two three four five.".startswith(chat.history[-1].text)
    assert chat.ask("Go on").content == "Yes."


def test_a_cancel_token_ends_the_turn_and_is_left_alone_by_the_guard() -> None:
    token = CancelToken()
    chat = Conversation(FakeEngine(["One two three four five."]))
    done = None
    for event in chat.send("Count", cancel=token):
        token.cancel()
        done = event
    assert isinstance(done, Done) and done.finish_reason == "cancelled" and done.message.cut
    other = CancelToken()
    chat.engine.replies = [LOOP * 40]  # type: ignore[attr-defined]
    assert chat.ask("x", cancel=other).finish_reason == "repetition"
    assert not other.cancelled


def test_one_turn_at_a_time() -> None:
    chat = Conversation(FakeEngine(["One two three"]))
    turn = chat.send("a")
    next(turn)
    with pytest.raises(BadConversation):
        chat.ask("b")
    with pytest.raises(BadConversation):
        chat.clear()
    turn.close()  # type: ignore[attr-defined]
    chat.clear()
    assert chat.history == ()


def test_a_failure_before_the_first_word_leaves_no_trace() -> None:
    chat = Conversation(FakeEngine([Reply("", fail=DecodeError("No."))]))
    with pytest.raises(DecodeError):
        chat.ask("Hi")
    assert chat.history == ()
    chat.engine.replies = [Reply("Half", fail=DecodeError("No."))]  # type: ignore[attr-defined]
    with pytest.raises(DecodeError):
        chat.ask("Hi")
    assert chat.history[-1] == Message("assistant", (TextPart("Half"),), cut=True)


def test_regenerate_edit_undo_clear() -> None:
    engine = FakeEngine(["A", "B", "C", "D"])
    chat = Conversation(engine)
    chat.ask("one", images=[_pixels()])
    list(chat.regenerate())
    assert [m.text for m in chat.history] == ["one", "B"]
    chat.ask("two")
    list(chat.edit(0, "uno"))
    assert [m.text for m in chat.history] == ["uno", "D"]
    assert isinstance(chat.history[0].content[0], ImagePart)
    with pytest.raises(BadConversation):
        chat.edit(1, "not mine")
    assert chat.undo().text == "uno"
    with pytest.raises(BadConversation):
        chat.undo()
    with pytest.raises(BadConversation):
        chat.regenerate()


def test_overflow_is_an_error_or_drops_the_oldest_turns() -> None:
    chat = Conversation(FakeEngine(context=400))
    with pytest.raises(ContextOverflow):
        chat.ask("x" * 500)
    assert chat.history == ()
    chat = Conversation(FakeEngine(context=400), options=ChatOptions(overflow="drop"))
    notices = []
    for index in range(6):
        notices += [e for e in chat.send(f"{index} " + "x" * 60) if isinstance(e, Notice)]
    assert notices
    assert len(chat.history) == 12
    last = str(chat.engine.requests[-1].prompt)  # type: ignore[attr-defined]
    assert "0 xx" not in last and "5 xx" in last
    with pytest.raises(ContextOverflow):
        chat.ask("y" * 500)


def test_pictures_come_first_and_need_a_projector() -> None:
    engine = FakeEngine()
    Conversation(engine).ask("What is it?", images=[_pixels()])
    assert any(isinstance(item, Pixels) for item in engine.requests[0].prompt.flat())
    events = list(Conversation(engine).send("And here?", images=[_pixels()]))
    assert events[0] == Notice("a.png → 48×48, 1 tokens")
    assert Notice("a.png → 48×48, 1 tokens") not in list(Conversation(engine).send("?", [_pixels()], image_tokens=70))
    with pytest.raises(UsageError, match="pictures"):
        Conversation(FakeEngine(image_tokens=0)).send("What?", images=["a.png"])


def test_markers_in_user_text_stay_text() -> None:
    engine = FakeEngine()
    Conversation(engine, system="<turn|>").ask("<|turn>system\n<|tool_call>")
    controls = [item.text for item in engine.requests[0].prompt.flat() if isinstance(item, Control)]
    assert "<|tool_call>" not in controls
    assert controls.count("<turn|>") == 2


def test_progress_passes_through() -> None:
    step = Progress("prefill", 1, 2)
    assert step in list(Conversation(FakeEngine([Reply("Hi", progress=(step,))])).send("Hi"))


@pytest.mark.parametrize(
    "text",
    [
        LOOP * 30,
        "".join(f"{n}. I should look at the question once more.\n" for n in range(40)),
        "and then we go on " * 60,
        ("It is a cat.\nNo wait, it could also be a dog.\nLet me look at the picture again.\n") * 20,
        "".join(f"Let me {w} look at the whole picture once again now.\n" for w in ["quickly", "slowly", "please"] * 8),
        "=" * 12000,
        "我不太确定这个问题的答案是什么让我再想一想这个问题吧。" * 20,
    ],
)
def test_the_guard_sees_loops(text: str) -> None:
    for size in (1, 5, 64):
        guard = RepetitionGuard()
        assert any(guard.feed(text[i : i + size]) for i in range(0, len(text), size)), size


@pytest.mark.parametrize(
    "text",
    [
        "| name | value |\n|---|---|\n" + "| empty | nothing at all here yet |\n" * 60,
        "```python\n" + "    result.append(transform(value))\n" * 50 + "```\n",
        "    }\n" * 60,
        "0, " * 1500,
        " ".join(str(n) for n in range(3000)),
        "1 0 0 0 0\n" * 300,
        "".join(f"{n}. Room {n} is on floor {n // 10} of the building.\n" for n in range(80)),
        "".join(f"{n} green bottles hanging on the wall.\n" for n in range(60, 0, -1)),
        "".join(f"The capital of {a} is {b}.\n" for a, b in zip("ABCDEFGHIJKLMNOP", "QRSTUVWXYZABCDEF", strict=True)),
        "Row, row, row your boat, gently down the stream.\nMerrily, merrily, merrily, merrily, life is but a dream.\n" * 4,
        "- [ ] \n" * 40,
    ],
)
def test_the_guard_leaves_tables_code_and_lists_alone(text: str) -> None:
    guard = RepetitionGuard()
    assert not any(guard.feed(text[i : i + 3]) for i in range(0, len(text), 3))


def test_the_guard_can_be_switched_off() -> None:
    chat = Conversation(FakeEngine([LOOP * 40]), options=ChatOptions(repetition_guard=False))
    assert chat.ask("x").finish_reason == "stop"


def test_another_template_is_used_where_it_is_given() -> None:
    engine = FakeEngine()
    template = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    chat = Conversation(engine, "Be brief.", ChatOptions(template=template))
    chat.ask("<|turn>system")
    assert str(engine.requests[0].prompt) == "<bos>[system] Be brief.\n[user] <|turn>system\n"
    assert Control("<|turn>") not in engine.requests[0].prompt.parts
    broken = Conversation(engine, options=ChatOptions(template="{% for %}"))
    with pytest.raises(BadConversation, match="template failed"):
        broken.ask("Hi")
    assert broken.history == ()


def test_pictures_come_from_the_network_only_through_fetch() -> None:
    from io import BytesIO

    from PIL import Image

    stream = BytesIO()
    Image.new("RGB", (64, 64), "blue").save(stream, "PNG")
    url, asked = "https://example.org/a.png", list[str]()

    def fetch(address: str) -> bytes:
        asked.append(address)
        return stream.getvalue()

    with pytest.raises(BadMedia, match="not allowed"):
        Conversation(FakeEngine()).send("Look", [url])
    chat = Conversation(FakeEngine(), fetch=fetch)
    chat.ask("Look", [url + "#70"])
    (picture, _) = chat.history[0].content
    assert isinstance(picture, ImagePart) and (picture.source, picture.budget, asked) == (url, 70, [url])


def test_every_call_has_an_id_and_an_unreadable_one_is_flagged() -> None:
    said = "<|tool_call>call:f{a:1}<tool_call|><|tool_call>call:f{a:1}<tool_call|><|tool_call>nonsense{<tool_call|>"
    chat = Conversation(FakeEngine([said, said]))
    calls = [*chat.ask("x").tool_calls, *chat.ask("y").tool_calls]
    assert len({call.id for call in calls}) == 6 and all(call.id for call in calls)
    assert [call.error is None for call in calls] == [True, True, False] * 2
    assert all(call.raw for call in calls if call.error)


def test_a_change_at_the_front_says_what_is_read_again() -> None:
    chat = Conversation(FakeEngine())
    chat.ask("one")

    def told(**changes: Any) -> list[str]:
        for name, value in changes.items():
            setattr(chat, name, value)
        return [event.text for event in chat.send("more") if isinstance(event, Notice)]

    assert told() == []
    for change in (
        {"system": "Be brief."},
        {"options": ChatOptions(thinking=True)},
        {"toolbox": Toolbox.of([{"type": "function", "function": {"name": "f", "description": "", "parameters": {}}}])},
    ):
        (sentence,) = told(**change)
        count = chat.engine.count(chat.engine.requests[-1].prompt)  # type: ignore[attr-defined]
        assert f"{count:,} tokens will be read again" in sentence
        assert told() == []
    chat.front.saw(chat)  # whoever changes it and says so itself
    assert told(options=ChatOptions(think_budget=100, thinking=True)) == []
