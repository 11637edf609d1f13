"""Conversations as Gemma 4 reads them: Google's chat template, rendered to parts instead of one string.

`str(render(…))` equals the template's text byte for byte. The template's own markers are control tokens; everything that
came from people, tools and files is text, whatever it spells.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from localgemma.engine import Control, Media, Prompt, PromptPart, Text, join_parts
from localgemma.errors import BadConversation
from localgemma.gemma4 import tokens
from localgemma.gemma4 import tools as tool_text
from localgemma.gemma4.tools import run_template
from localgemma.messages import ImagePart, Message, Pixels, TextPart, VideoPart

Record: TypeAlias = Mapping[str, Any]
MediaReader: TypeAlias = Callable[[Record], Media]

LONG = 4_000  # characters of a document after which it is worth returning there for another question
ROLES = ("system", "developer", "user", "assistant", "model", "tool")
MARKS = {
    "image": tokens.IMAGE, "image_url": tokens.IMAGE, "audio": tokens.AUDIO, "input_audio": tokens.AUDIO,
    "video": tokens.VIDEO,
}  # fmt: skip


def picture(pixels: Pixels) -> Media:
    """A picture as it stands in a prompt."""
    return Media(tokens.IMAGE, (Control(tokens.IMAGE_BEGIN), pixels, Control(tokens.IMAGE_END)))


def video(frames: Iterable[tuple[float, Pixels]]) -> Media:
    """A video as it stands in a prompt: its frames, each after its time."""
    content: list[Control | Text | Pixels] = []
    for seconds, pixels in frames:
        time = f"{int(seconds // 60):02d}:{int(seconds % 60):02d} "
        content += (Text(" " + time if content else time), Control(tokens.IMAGE_BEGIN), pixels, Control(tokens.IMAGE_END))
    return Media(tokens.VIDEO, tuple(content))


def strip_thinking(text: str) -> str:
    """An answer without the thoughts that were left in it."""
    return "".join(part.split(tokens.CHANNEL)[0] for part in text.split(tokens.CHANNEL_END)).strip()


def as_mapping(message: Message) -> dict[str, Any]:
    """The message in the form that chat templates read; pictures carry `pixels`, videos `frames`."""
    record: dict[str, Any] = {"role": message.role, "content": _content(message)}
    if message.thinking:
        record["reasoning"] = message.thinking
    if message.tool_calls:
        record["tool_calls"] = [
            {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            | ({"id": call.id} if call.id else {})
            for call in message.tool_calls
        ]
    if message.name:
        record["name"] = message.name
    if message.tool_call_id or message.name:  # without an id the name counts, so the id must not equal a call's missing one
        record["tool_call_id"] = message.tool_call_id
    return record


def _content(message: Message) -> Any:
    media = [part for part in message.content if not isinstance(part, TextPart)]
    if message.result is not None and not media:
        return message.result if isinstance(message.result, Mapping) else {"value": message.result}
    if not media:
        return "".join(part.text for part in message.read if isinstance(part, TextPart))
    content: list[dict[str, Any]] = []
    if message.result is not None:
        content.append({"type": "text", "text": json.dumps(message.result, ensure_ascii=False)})
    for part in message.read:
        if isinstance(part, TextPart):
            content.append({"type": "text", "text": part.text})
        elif isinstance(part, ImagePart):
            content.append({"type": "image", "url": part.source, "pixels": part.pixels, "budget": part.budget})
        elif isinstance(part, VideoPart):
            content.append({"type": "video", "url": part.source, "frames": part.frames, "budget": part.budget})
    return content


def normalise(message: Message | Record) -> dict[str, Any]:
    """The message as the template needs it: a known role, arguments parsed, content text, parts or (tools) data."""
    message = as_mapping(message) if isinstance(message, Message) else message
    record = dict(tool_text.need_mapping(message, "A message"))
    role = record.get("role")
    if role not in ROLES:
        raise BadConversation(f"A message has the role {role!r}.", f"Use one of {', '.join(ROLES)}.")
    content = record.get("content")
    if isinstance(content, Sequence) and not isinstance(content, str):
        for part in content:
            tool_text.need_text(tool_text.need_mapping(part, "A content part").get("type", ""), "The type of a content part")
            tool_text.need_text(part.get("text", ""), "The text of a content part")
    elif role != "tool" and content is not None and not isinstance(content, str):
        raise BadConversation(f"The content of a message of {role} is neither text nor parts.", "Send a string or a list.")
    for key in ("tool_calls", "tool_responses"):
        if record.get(key):
            if not isinstance(record[key], Sequence) or isinstance(record[key], str):
                raise BadConversation(f"`{key}` must be a list.", "Correct it and send again.")
            record[key] = [tool_text.need_mapping(item, f"An entry of `{key}`") for item in record[key]]
    if record.get("tool_calls"):
        record["tool_calls"] = [tool_text.parsed_call(call) for call in record["tool_calls"]]
    return record


def render(
    messages: Sequence[Message | Record],
    *,
    tools: Sequence[Record] | None = None,
    enable_thinking: bool = False,
    preserve_thinking: bool = False,
    add_generation_prompt: bool = True,
    media: MediaReader | None = None,
) -> Prompt:
    """The conversation as Google's chat template writes it.

    `media` turns a picture's or video's part into what is evaluated; parts of Message records carry their own pixels,
    and without either the prompt has placeholders. Raises BadConversation.
    """
    records = [normalise(message) for message in messages]
    renderer = _Renderer(records, enable_thinking, preserve_thinking, media)
    try:
        renderer.setup(tools or ())
        renderer.conversation()
        opened = add_generation_prompt and renderer.generation_prompt()
    except RecursionError:
        raise BadConversation("Tool data is nested too deeply.", "Send flatter data.") from None
    return Prompt(join_parts(renderer.out), opened)


def _media(part: Record, media: MediaReader | None) -> Media:
    mark = MARKS[part["type"]]
    if isinstance(part.get("pixels"), Pixels):
        return picture(part["pixels"])
    if mark == tokens.VIDEO and part.get("frames"):
        return video(part["frames"])
    return Media(mark) if media is None or mark == tokens.AUDIO else media(part)


def render_with_template(
    template_source: str,
    messages: Sequence[Message | Record],
    *,
    tools: Sequence[Record] | None = None,
    media: MediaReader | None = None,
    **settings: bool,
) -> Prompt:
    """The conversation as another chat template (Jinja) writes it; arguments as for `render`.

    Only the template's own text can become a control token. Thoughts are taken out of earlier answers first, as a template
    could not find them: for it, the conversation holds no markers.
    """
    records = [normalise(message) for message in messages]
    for record in records:
        if record["role"] in ("assistant", "model") and record.get("content"):
            record["content"] = _without_thoughts(record["content"])
    contents = [record.get("content") for record in records]
    parts = [part for content in contents if isinstance(content, Sequence) for part in content if isinstance(part, Mapping)]
    waiting = {mark: [part for part in parts if MARKS.get(part.get("type", "")) == mark] for mark in MARKS.values()}
    data = {"messages": records, "tools": tools, "enable_thinking": False, "preserve_thinking": False}
    text, shown = run_template(template_source, {**data, "add_generation_prompt": True, **settings})
    out: list[PromptPart] = []
    for piece in re.split(f"({'|'.join(map(re.escape, tokens.EVERY_CONTROL))})", text):
        if piece in waiting:
            out.append(_media(waiting[piece].pop(0), media) if waiting[piece] else Media(piece))
        else:
            out.append(Control(piece) if piece in tokens.EVERY_CONTROL else Text(piece.translate(shown)))
    if any(media or part.get("pixels") or part.get("frames") for left in waiting.values() for part in left):
        raise BadConversation("The chat template left out a picture or video.", "Leave out --template, or send only text.")
    return Prompt(join_parts(out), [part for part in out if isinstance(part, Control)][-1:] == [Control(tokens.CHANNEL)])


def _without_thoughts(content: Any) -> Any:
    if isinstance(content, str):
        return strip_thinking(content)
    return [{**part, "text": strip_thinking(part["text"])} if "text" in part else part for part in content]


class _Renderer:
    """The template's state: `last` is what was written last, `role` of the message before (tools aside)."""

    def __init__(self, records: list[dict[str, Any]], thinking: bool, preserve: bool, media: MediaReader | None) -> None:
        self.out: list[PromptPart] = [Control(tokens.BOS)]
        self.records, self.thinking, self.preserve, self.media = records, thinking, preserve, media
        self.last, self.role = "", ""

    def setup(self, tools: Sequence[Record]) -> None:
        """The system turn: thinking, system prompt, tools. Takes the system message off the records."""
        first = self.records.pop(0) if self.records and self.records[0]["role"] in ("system", "developer") else None
        if not (self.thinking or tools or first):
            return
        self.out += (Control(tokens.TURN), Text("system\n"))
        if self.thinking:
            self.out += (Control(tokens.THINK), Text("\n"))
        content = first.get("content") if first else None
        if isinstance(content, str):
            self.out.append(Text(content.strip()))
        else:
            self.out += (Text(item.get("text", "").strip() + " ") for item in content or ())
        for tool in tools:
            self.out += tool_text.declaration(tool)
        self.out += (Control(tokens.TURN_END), Text("\n", (1,)))

    def conversation(self) -> None:
        """Every turn."""
        users = [index for index, record in enumerate(self.records) if record["role"] == "user"]
        after = users[-1] if users else -1
        for index, record in enumerate(self.records):
            if record["role"] != "tool":
                self._turn(index, record, index > after)

    def _turn(self, index: int, record: dict[str, Any], current: bool) -> None:
        self.last = ""
        role = "model" if record["role"] == "assistant" else record["role"]
        if not (role == "model" and self.role == "assistant"):
            # History drops an answer's thoughts, so the next prompt shares this one up to the first line of its answer.
            self.out += (Control(tokens.TURN), Text(role + "\n", (len(role) + 1,) if role == "model" and current else ()))
        calls = record.get("tool_calls")
        thought = record.get("reasoning") or record.get("reasoning_content")
        if thought and (current or (self.preserve and calls)):
            text = tool_text.need_text(thought, "`reasoning`")
            self.out += (Control(tokens.CHANNEL), Text(f"thought\n{text}\n"), Control(tokens.CHANNEL_END))
        self._calls(calls or ())
        answered = self._results(index, record)
        content = list(self._parts(record.get("content"), role == "model"))
        self.out += content
        rest = (later["role"] for later in self.records[index + 1 :] if later["role"] != "tool")
        following = next(rest, None)
        if self.last == "call" and not answered:
            self.out.append(Control(tokens.RESPONSE))
        elif not (role == "model" and following == "assistant" and (answered or not calls)):
            has_content = any(isinstance(part, Media) or part.text.strip() for part in content)
            if not answered or has_content or following:
                self.out += (Control(tokens.TURN_END), Text("\n"))
        self.role = record["role"]

    def _calls(self, calls: Sequence[Record]) -> None:
        for call in calls:
            function = call["function"]
            self.out += (Control(tokens.CALL), Text(f"call:{function['name']}{{"))
            self.out += tool_text.entries(function["arguments"] or {})
            self.out += (Text("}"), Control(tokens.CALL_END))
            self.last = "call"

    def _results(self, index: int, record: dict[str, Any]) -> bool:
        """The results that follow the calls of this message; whether there were any."""
        if record.get("tool_responses"):
            for response in record["tool_responses"]:
                self.out += tool_text.result(response.get("name") or "unknown", response.get("response", ()))
            self.last = "result"
            return True
        answered = False
        for follow in self.records[index + 1 :] if record.get("tool_calls") else ():
            if follow["role"] != "tool":
                break
            name = follow.get("name") or "unknown"
            for call in record["tool_calls"]:
                if call.get("id") == follow.get("tool_call_id"):
                    name = call["function"]["name"]
            self._result(name, follow.get("content"))
            self.last, answered = "result", True
        return answered

    def _result(self, name: object, content: object) -> None:
        """One tool message. An empty mapping is an empty text, as in the template."""
        parts: Sequence[Any] = ()
        if not isinstance(content, str) and tool_text.is_sequence(content) and not (isinstance(content, Mapping) and content):
            parts = content if isinstance(content, Sequence) else ()
            content = "".join(part.get("text", "") for part in parts if part.get("type") == "text")
        self.out += tool_text.result(name, content)
        self.out += (_media(part, self.media) for part in parts if part.get("type") in MARKS)

    def _parts(self, content: Any, model: bool) -> Iterator[Text | Media]:
        items = [{"type": "text", "text": content}] if isinstance(content, str) else content or ()
        long = any(item.get("type") in MARKS or len(item.get("text", "")) > LONG for item in items[:-1])
        for index, item in enumerate(items):
            if item.get("type") == "text":
                text, last = item.get("text", ""), index == len(items) - 1
                yield Text(strip_thinking(text) if model else text.strip(), (0,) if long and last else ())
            elif item.get("type") in MARKS:
                yield _media(item, self.media)

    def generation_prompt(self) -> bool:
        """What makes the model answer; True where it leaves a thought open."""
        thought = (Control(tokens.CHANNEL), Text("thought\n"))
        if not self.last:
            self.out += (Control(tokens.TURN), Text("model\n", (6,)))
            if not self.thinking:
                self.out += (*thought, Control(tokens.CHANNEL_END))
        elif self.last == "result" and self.thinking:
            self.out += thought
            return True
        return False
