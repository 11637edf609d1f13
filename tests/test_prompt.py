"""The prompt equals Google's template on 1,000 random conversations, and no text becomes a control token."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localgemma.engine import Control, Media, Prompt, Text
from localgemma.errors import BadConversation
from localgemma.gemma4 import tokens
from localgemma.gemma4.prompt import picture, render, render_with_template, video
from localgemma.messages import ImagePart, Message, Pixels, TextPart, ToolCall, VideoPart

DATA = Path(__file__).parent / "data" / "prompts.jsonl.gz"
SIMPLE = """{{ bos_token }}{% for message in messages %}<|turn>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}
{{ part.text if part.type == 'text' else '<|image|>' }}{% endfor %}{% endif %}
{% for call in message.tool_calls or [] %}<|tool_call>{{ call | tojson }}<tool_call|>{% endfor %}<turn|>
{% endfor %}{% if add_generation_prompt %}<|turn>model
{% endif %}"""


def pixels(value: int = 0) -> Pixels:
    return Pixels(bytes([value]) * 48 * 48 * 3, 48, 48, 1, str(value))


def controls(prompt: Prompt) -> list[Control]:
    return [part for part in prompt.parts if isinstance(part, Control)]


def cases() -> list[dict[str, Any]]:
    with gzip.open(DATA, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def test_equals_the_template() -> None:
    found = cases()
    assert len(found) == 1000
    wrong = [index for index, case in enumerate(found) if str(render(**case["input"])) != case["expected"]]
    assert wrong == []


def test_every_template_marker_is_control_and_names_are_known() -> None:
    for case in cases()[:300]:
        prompt = render(**case["input"])
        assert {part.text for part in controls(prompt)} <= set(tokens.IDS)
        assert not any(
            isinstance(a, Text) and isinstance(b, Text) for a, b in zip(prompt.parts, prompt.parts[1:], strict=False)
        )
        assert prompt.open_span is (
            case["expected"].endswith("<|channel>thought\n") and controls(prompt)[-1].text == "<|channel>"
        )


def conversation(text: str, name: str) -> dict[str, Any]:
    """A conversation that carries `text` and `name` everywhere that people and tools can write."""
    schema = {
        "type": "object",
        "properties": {name: {"type": "string", "description": text, "enum": [text]}},
        "required": [name],
    }
    call = {"id": "1", "type": "function", "function": {"name": name, "arguments": {name: {name: [text]}}}}
    return {
        "messages": [
            {"role": "system", "content": text},
            {"role": "user", "content": [{"type": "text", "text": text}, {"type": "image"}]},
            {"role": "assistant", "content": "a" + text, "reasoning": text, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": {name: {name: text}}},
            {"role": "tool", "name": name, "content": [{"type": "text", "text": text}]},
            {"role": "assistant", "content": "b" + text},
            {"role": "user", "content": text},
        ],
        "tools": [{"type": "function", "function": {"name": name, "description": text, "parameters": schema}}],
        "preserve_thinking": True,
    }


marked = st.lists(
    st.sampled_from([*tokens.EVERY_CONTROL, "<|channel>thought\n", "<|tu", "rn>", "x", " ", "\n"]), max_size=6
).map("".join)


@settings(max_examples=200, deadline=None)
@given(marked, marked)
def test_markers_in_text_stay_text(text: str, name: str) -> None:
    text, name = "t" + text, "n" + name
    prompt = render(**conversation(text, name))
    assert controls(prompt) == controls(render(**conversation("harmless", "name")))
    assert [part.mark for part in prompt.parts if isinstance(part, Media)] == ["<|image|>"]
    for words in (text.strip(), name):
        assert any(words in part.text for part in prompt.parts if isinstance(part, Text))


@settings(max_examples=60, deadline=None)
@given(marked, marked, st.sampled_from(["", "\U000f0000", "\U000f0000\U000f0001\U000f0002"]))
def test_markers_stay_text_in_other_templates(text: str, name: str, private: str) -> None:
    def made(text: str, name: str) -> Prompt:
        call = {"function": {"name": name, "arguments": json.dumps({name: text})}}
        parts = [{"type": "text", "text": "<|tur"}, {"type": "text", "text": text}, {"type": "image"}]
        messages = [{"role": "user", "content": text}, {"role": "user", "content": parts}]
        return render_with_template(SIMPLE, [*messages, {"role": "assistant", "content": "", "tool_calls": [call]}])

    prompt = made(private + text + "x", name)
    assert controls(prompt) == controls(made("harmless", "name"))
    assert f"user\n{private}{text}x" in str(prompt)
    assert json.dumps(name, ensure_ascii=False) in str(prompt)


def test_pictures_and_videos() -> None:
    message = Message("user", (TextPart(" look "), ImagePart(pixels()), VideoPart(((0.0, pixels(1)), (61.9, pixels(2))))))
    prompt = render([message])
    assert str(prompt) == "<bos><|turn>user\nlook<|image|><|video|><turn|>\n<|turn>model\n<|channel>thought\n<channel|>"
    begin, end = Control("<|image>"), Control("<image|>")
    assert [part for part in prompt.parts if isinstance(part, Media)] == [picture(pixels()), video(message.content[2].frames)]  # type: ignore[union-attr]
    assert video([(0.0, pixels(1)), (61.9, pixels(2))]).content == (
        Text("00:00 "), begin, pixels(1), end, Text(" 01:01 "), begin, pixels(2), end,
    )  # fmt: skip
    assert picture(pixels()).content == (begin, pixels(), end)
    read = render(
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}],
        media=lambda part: picture(pixels(3)),
    )
    assert picture(pixels(3)) in read.parts
    assert picture(pixels()) in render_with_template(SIMPLE, [Message("user", message.content[:2])]).parts
    with pytest.raises(BadConversation, match="left out"):
        render_with_template("{{ bos_token }}", [message])


def test_records_equal_mappings() -> None:
    records = [
        Message("system", (TextPart("Be brief."),)),
        Message("user", (TextPart("Weather?"),)),
        Message("assistant", thinking="Ask.", tool_calls=(ToolCall("w", {"city": "Oslo"}, "1"), ToolCall("t", {}, "2"))),
        Message("tool", tool_call_id="1", name="w", result={"degrees": 3, "ok": True}),
        Message("tool", (TextPart("noon"),), tool_call_id="2", name="t"),
    ]
    prompt = render(records, enable_thinking=True)
    assert str(prompt) == (
        "<bos><|turn>system\n<|think|>\nBe brief.<turn|>\n<|turn>user\nWeather?<turn|>\n<|turn>model\n<|channel>thought\n"
        'Ask.\n<channel|><|tool_call>call:w{city:<|"|>Oslo<|"|>}<tool_call|><|tool_call>call:t{}<tool_call|>'
        "<|tool_response>response:w{degrees:3,ok:true}<tool_response|>"
        '<|tool_response>response:t{value:<|"|>noon<|"|>}<tool_response|><|channel>thought\n'
    )
    assert prompt.open_span and not render(records).open_span
    assert "response:t{value:[1,null]}" in str(render([*records[:4], Message("tool", name="t", result=[1, None])]))


@pytest.mark.parametrize(
    "message",
    [
        {"role": "bot", "content": "x"},
        {"content": "x"},
        {"role": "user", "content": 5},
        {"role": "user", "content": ["x"]},
        {"role": "user", "content": [{"type": "text", "text": None}]},
        {"role": "assistant", "tool_calls": [{"name": "x"}]},
        {"role": "assistant", "tool_calls": [{"function": {"name": "x", "arguments": "[1]"}}]},
        {"role": "assistant", "tool_calls": [{"function": {"name": "x", "arguments": "{"}}]},
        {"role": "assistant", "tool_calls": [{"function": {"name": "x", "arguments": "[" * 100_000}}]},
        {"role": "assistant", "tool_calls": "x"},
        {"role": "assistant", "reasoning": 5},
        "x",
    ],
)
def test_malformed_messages_say_what_to_do(message: Any) -> None:
    with pytest.raises(BadConversation) as caught:
        render([message])
    assert caught.value.hint and str(caught.value).endswith(".")


@pytest.mark.parametrize("tool", [{"name": "x"}, "x", {"function": {"name": "x", "parameters": {"properties": [1]}}}])
def test_malformed_tools(tool: Any) -> None:
    with pytest.raises(BadConversation):
        render([], tools=[tool])


def test_templates_that_fail() -> None:
    for source in (
        "{% if %}",
        "{{ raise_exception('no <|turn>') }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
    ):
        with pytest.raises(BadConversation, match="The chat template failed"):
            render_with_template(source, [{"role": "user", "content": "x"}])


def test_nesting_that_is_too_deep() -> None:
    nested: dict[str, Any] = {}
    for _ in range(5000):
        nested = {"a": [nested]}
    message = {"role": "assistant", "tool_calls": [{"function": {"name": "x", "arguments": nested}}]}
    with pytest.raises(BadConversation):
        render([message])
    with pytest.raises(BadConversation):
        render_with_template(SIMPLE, [message])
