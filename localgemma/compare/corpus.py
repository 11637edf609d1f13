"""What a comparison reads: the built-in sets, and a person's own texts, chats, saved sessions and pictures.

Everything is read before a model is loaded, pictures included, so a row that cannot be used stops the comparison by name
before it has cost anything; leaving it out would give figures of another set than the one that was asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from localgemma.chat import data, record, sessions
from localgemma.compare import draw, long
from localgemma.compare.records import CATEGORIES, SET_VERSION, Item, Question
from localgemma.engine import Control, Prompt, Text
from localgemma.errors import LocalgemmaError, NotFound, UsageError
from localgemma.gemma4 import tokens
from localgemma.gemma4.prompt import render
from localgemma.messages import ImagePart, Message, Part, TextPart, ToolCall, VideoPart

ASSETS = Path(__file__).parent.parent / "assets" / "compare"
SETS: Mapping[str, tuple[str, ...]] = {"small": ("small",), "full": ("small", "full"), "demo": ("demo",)}
PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".avif"})
_DEMO_TOKENS = 4096  # entries of the demo model's vocabulary; Gemma 4 has 262,144
_KINDS = ("exact", "choice", "tool_calls", "json", "contains")
_DESCRIBE = "Describe this picture."


@dataclass(frozen=True, slots=True)
class Ask:
    """A prompt without a right answer, to be answered by every candidate and shown side by side."""

    id: str
    category: str
    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    thinking: bool = False


@dataclass(frozen=True, slots=True)
class Corpus:
    """What is walked (`items`), judged (`questions`) and shown (`asks`); `name` is as tables state it, such as "small 1".

    `sha256` is of everything that it was read from, so that two people can tell whether theirs is the same.
    """

    name: str
    items: tuple[Item, ...]
    questions: tuple[Question, ...] = ()
    asks: tuple[Ask, ...] = ()
    sha256: str = ""


def default_set(vocabulary: int) -> str:
    """The built-in set for a model whose vocabulary has so many entries: the demo model has one of its own."""
    return "demo" if vocabulary == _DEMO_TOKENS else "small"


def load_set(name: str, *, pictures: bool = True) -> Corpus:
    """A built-in set: `small` (minutes), `full` (several times that), or `demo` in the small world that the demo model knows.

    Without `pictures` (a model without a projector) those with pictures and videos are left out. Raises UsageError.
    """
    if name not in SETS:
        raise UsageError(f"There is no set {name!r}.", f"The sets are {', '.join(SETS)}.")
    digest, items, questions = hashlib.sha256(), list[Item](), list[Question]()
    for part in SETS[name]:
        path = ASSETS / f"{part}.jsonl"
        digest.update(path.read_bytes())
        for row in data.read_rows(path):
            found = _read(_expanded(row), _drawn, pictures=pictures)
            items += found.items
            questions += found.questions
    title = f"{name} {SET_VERSION}" + ("" if pictures else ", without pictures")
    return Corpus(title, tuple(items), tuple(questions), (), digest.hexdigest())


def from_data(sources: Sequence[str], *, image_tokens: int | Literal["auto"] = "auto") -> Corpus:
    """A person's own data: text files, chats as .jsonl, names or folders of saved sessions, pictures and folders of them.

    Raises NotFound, DiskError, BadMedia, BadConversation, and UsageError naming the line that cannot be used.
    """
    parts = [_source(source, image_tokens) for source in sources]
    names = ", ".join(Path(source).name for source in sources)
    if not any(part.items or part.questions or part.asks for part in parts):
        raise UsageError(f"There is nothing to read in {names or 'no data'}.", "Give texts, chats as .jsonl, or pictures.")
    digest = hashlib.sha256("".join(part.sha256 for part in parts).encode()).hexdigest()
    items = tuple(item for part in parts for item in part.items)
    questions = tuple(question for part in parts for question in part.questions)
    return Corpus(names, items, questions, tuple(ask for part in parts for ask in part.asks), digest)


def item_of(
    name: str, category: str, messages: Sequence[Message], *, tools: Sequence[Mapping[str, Any]] = (), thinking: bool = False
) -> Item:
    """A chat that ends with an answer as an item: the answer as the model writes it, up to its end marker."""
    prompt = render(messages[:-1], tools=tools, enable_thinking=thinking)
    return Item(name, category, prompt, _answer(messages[-1], prompt.open_span, thinking))


def _answer(message: Message, opened: bool, thinking: bool) -> Prompt:
    """An answer alone: what follows the generation prompt, which may have `opened` a thought."""
    message = message if thinking else replace(message, thinking="")
    parts = list(render([Message("user"), message], add_generation_prompt=False).parts)
    start = max(index for index, part in enumerate(parts) if part == Control(tokens.TURN))
    head = parts[start + 1]
    assert isinstance(head, Text) and head.text.startswith("model\n")
    parts[: start + 2] = [Text(head.text.removeprefix("model\n"))]
    if parts[-1] == Text("\n"):
        parts.pop()
    parts = [part for part in parts if part != Text("")]
    if opened and parts[0] == Control(tokens.CHANNEL):
        thought = parts[1]
        assert isinstance(thought, Text)
        parts[:2] = [Text(thought.text.removeprefix("thought\n"))]
    elif opened:
        parts.insert(0, Control(tokens.CHANNEL_END))
    return Prompt(tuple(parts))


def _expanded(row: data.Row) -> data.Row:
    """The row of a built-in set with its long document written out."""
    assert row.record is not None
    recipe = row.record.get("document")
    if recipe is None:
        return row
    text = long.document(recipe)
    messages = [dict(message) for message in row.messages]
    last = next(message for message in reversed(messages) if message["role"] == "user")
    last["content"] = f"{text}\n\n{last['content']}"
    return replace(row, messages=tuple(messages))


def _drawn(part: Mapping[str, Any]) -> Part:
    return draw.picture(part["draw"]) if part["type"] == "image" else draw.video(part["draw"])


def _read(row: data.Row, read: data.PartReader, *, pictures: bool = True, own: bool = False) -> Corpus:
    """What a row gives: an item where it holds an answer, a question where it says what is right, else an ask.

    A person's `own` chats are asked as well, and each of their answers is an item.
    """
    record_ = row.record or {}
    name = str(record_.get("id") or row.where)
    if row.text:
        return Corpus(name, (Item(name, str(record_.get("category") or "text"), Prompt(()), Prompt((Text(row.text),))),))
    seen = any(_is_media(part) for message in row.messages for part in _parts(message))
    if seen and not pictures:
        return Corpus(name, ())
    messages = [data.to_message(message, read) for message in row.messages]
    category = str(record_.get("category") or _category(row, messages))
    said = messages.pop() if messages[-1].role == "assistant" else None
    question = _question(row, name, category, tuple(messages), said)
    said = said or _expected_answer(record_)
    items: list[Item] = []
    for index, message in enumerate(messages if own else ()):
        if message.role == "assistant" and index:
            earlier = [*messages[:index], message]
            items.append(item_of(f"{name}/{index}", category, earlier, tools=row.tools, thinking=row.thinking))
    if said is not None and (said.content or said.tool_calls):
        items.append(item_of(name, category, [*messages, said], tools=row.tools, thinking=row.thinking))
    asks = [Ask(name, category, tuple(messages), row.tools, row.thinking)] if not question and (own or not items) else []
    return Corpus(name, tuple(items), (question,) if question else (), tuple(asks))


def _parts(message: Mapping[str, Any]) -> Iterable[Any]:
    content = message.get("content") if isinstance(message, Mapping) else None
    return content if isinstance(content, list) else ()


def _is_media(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") not in (None, "text")


def _category(row: data.Row, messages: Sequence[Message]) -> str:
    parts = [part for message in messages for part in message.content]
    if any(isinstance(part, VideoPart) for part in parts):
        return "video"
    if any(isinstance(part, ImagePart) for part in parts):
        return "pictures"
    if row.tools:
        return "tools"
    return "thinking" if row.thinking else "chat"


def _question(row: data.Row, name: str, category: str, messages: tuple[Message, ...], said: Message | None) -> Question | None:
    """The question of a row that has `match`; what is right is `expected`, or else the answer that the chat ends with."""
    record_ = row.record or {}
    kind, expected = record_.get("match"), record_.get("expected")
    if kind is None:
        return None
    if kind not in _KINDS:
        raise UsageError(f"{row.where}: `match` cannot be {kind!r}.", f"It takes {', '.join(_KINDS)}.")
    if isinstance(expected, Mapping) and {"content", "tool_calls"} & expected.keys():  # the form of the demo model's questions
        expected = expected.get("tool_calls" if kind == "tool_calls" else "content")
    if expected is None and said is not None:
        calls = [{"name": call.name, "arguments": call.arguments} for call in said.tool_calls]
        expected = calls if kind == "tool_calls" else said.text
    choices = tuple(map(str, record_.get("choices") or ()))
    if (kind == "choice" and expected not in choices) or (expected is None and kind != "json"):
        raise UsageError(f"{row.where}: It does not say what is right.", "Give `expected`; for `choice` one of `choices`.")
    task = str(record_.get("task") or category)
    return Question(name, task, category, messages, kind, expected, choices, row.tools, row.thinking)


def _expected_answer(record_: Mapping[str, Any]) -> Message | None:
    """The right answer of a row in the form of the demo model's questions."""
    expected = record_.get("expected")
    if not isinstance(expected, Mapping) or not {"content", "tool_calls"} & expected.keys():
        return None
    calls = tuple(ToolCall(call["name"], call["arguments"]) for call in expected.get("tool_calls") or ())
    text = str(expected.get("content") or "")
    return Message("assistant", (TextPart(text),) if text else (), str(expected.get("reasoning") or ""), calls)


def _source(source: str, image_tokens: int | Literal["auto"]) -> Corpus:
    path = Path(source).expanduser()
    if (path / record.FILE).is_file():
        return _session(record.read(path)[0], path.name)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in PICTURES)
        if not files:
            raise UsageError(f"{source} holds neither a saved chat nor pictures.", "Name the files in it that you mean.")
        return _pictures(files, image_tokens)
    if path.suffix.lower() in PICTURES:
        return _pictures([path], image_tokens)
    if not path.exists() and not path.suffix and source in sessions.names():
        return _session(sessions.read(source, pictures=True), source)
    if not path.exists():
        raise NotFound(f"There is neither a file nor a saved chat {source}.", "See the chats: localgemma sessions list")
    parts = []
    for row in data.read_rows(path):
        try:
            parts.append(_read(row, data.part_reader(path.parent, image_tokens), own=True))
        except UsageError as error:
            raise error if error.message.startswith(row.where) else row.within(error) from None
        except LocalgemmaError as error:
            raise row.within(error) from None
    items = tuple(item for part in parts for item in part.items)
    questions = tuple(question for part in parts for question in part.questions)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Corpus(path.name, items, questions, tuple(ask for part in parts for ask in part.asks), digest)


def _session(saved: record.Record, name: str) -> Corpus:
    """A saved chat: each of its answers is an item, and what was last asked is asked again."""
    system = (Message("system", (TextPart(saved.system),)),) if saved.system else ()
    messages, thinking = (*system, *saved.messages), saved.options.thinking
    row = data.Row(name, tools=saved.tools, thinking=thinking)
    category = _category(row, messages)
    items = [
        item_of(f"{name}/{index}", category, messages[: index + 1], tools=row.tools, thinking=thinking)
        for index, message in enumerate(messages)
        if message.role == "assistant" and index and not message.cut and (message.content or message.tool_calls)
    ]
    users = [index for index, message in enumerate(messages) if message.role == "user"]
    asks = [Ask(name, category, messages[: users[-1] + 1], row.tools, thinking)] if users else []
    digest = hashlib.sha256("".join(str(item.prompt) + str(item.answer) for item in items).encode()).hexdigest()
    return Corpus(name, tuple(items), (), tuple(asks), digest)


def _pictures(files: Sequence[Path], image_tokens: int | Literal["auto"]) -> Corpus:
    """Pictures to be described; what the reference says of them can be walked with `item_of`."""
    from localgemma.chat.media import image_part

    asks = [
        Ask(file.name, "pictures", (Message("user", (image_part(file, image_tokens), TextPart(_DESCRIBE))),)) for file in files
    ]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    return Corpus(", ".join(file.name for file in files), (), (), tuple(asks), digest)


def categories(items: Iterable[Item]) -> list[str]:
    """The categories of the items, the known ones first in their order."""
    found = {item.category for item in items}
    return [*(name for name in CATEGORIES if name in found), *sorted(found - set(CATEGORIES))]
