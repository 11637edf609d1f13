"""The built-in sets and a person's own data: what they hold, that they stay what they are, and how bad ones are refused."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeEngine
from PIL import Image, ImageDraw

from localgemma.chat import record, sessions
from localgemma.chat.record import Record
from localgemma.compare import corpus, draw, long
from localgemma.compare.corpus import Corpus
from localgemma.compare.records import CATEGORIES
from localgemma.compare.samples import prepared
from localgemma.engine import Prompt, Text
from localgemma.errors import BadMedia, LocalgemmaError, NotFound, UsageError
from localgemma.messages import ImagePart, Message, Pixels, TextPart, ToolCall, VideoPart
from localgemma.options import ChatOptions

NAMES = ("small", "full", "demo")
TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]


@pytest.fixture(scope="module")
def sets() -> dict[str, Corpus]:
    return {name: corpus.load_set(name) for name in NAMES}


def test_every_category_is_there(sets: dict[str, Corpus]) -> None:
    for name in ("small", "full"):
        counts = Counter(item.category for item in sets[name].items)
        assert set(counts) == set(CATEGORIES) and min(counts.values()) >= 4, name
        assert corpus.categories(sets[name].items) == list(CATEGORIES)
    assert len(sets["small"].items) == 77 and len(sets["small"].questions) == 115
    assert len(sets["full"].items) == 225 and len(sets["full"].questions) == 383
    assert {"chat", "long", "tools", "thinking", "pictures", "video"} <= {item.category for item in sets["demo"].items}


def test_full_holds_small_and_no_name_is_there_twice(sets: dict[str, Corpus]) -> None:
    assert {item.id for item in sets["small"].items} < {item.id for item in sets["full"].items}
    for found in sets.values():
        for ids in ([item.id for item in found.items], [question.id for question in found.questions]):
            assert len(ids) == len(set(ids))


def test_questions_can_be_judged(sets: dict[str, Corpus]) -> None:
    for found in sets.values():
        for question in found.questions:
            assert question.messages[-1].role in ("user", "tool"), question.id
            if question.kind == "choice":
                assert question.expected in question.choices and len(set(question.choices)) == len(question.choices)
            if question.kind == "tool_calls":
                declared = {tool["function"]["name"]: tool["function"]["parameters"] for tool in question.tools}
                for call in question.expected:
                    properties = declared[call["name"]]["properties"]
                    assert set(declared[call["name"]]["required"]) <= set(call["arguments"]) <= set(properties), question.id


def test_right_letters_are_spread_evenly(sets: dict[str, Corpus]) -> None:
    letters = Counter(question.expected for question in sets["full"].questions if question.kind == "choice")
    assert min(letters[letter] for letter in "ABCD") >= 0.15 * letters.total()


def test_needles_are_in_their_documents_once(sets: dict[str, Corpus]) -> None:
    for name in ("small", "full"):
        for row in (json.loads(line) for line in (corpus.ASSETS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()):
            for _, sentence in (row.get("document") or {}).get("needles", ()):
                assert long.document(row["document"]).count(sentence) == 1, row["id"]
        for question in sets[name].questions:
            if question.task.startswith("needle"):
                wanted = question.expected if isinstance(question.expected, list) else [question.expected]
                document = question.messages[-1].text.replace(",", "").casefold()
                assert all(word.casefold() in document for word in wanted), question.id


def test_answers_follow_their_prompts_as_the_template_has_them(sets: dict[str, Corpus]) -> None:
    for found in sets.values():
        for item in found.items:
            answer, prompt = str(item.answer), str(item.prompt)
            assert answer.endswith(("<turn|>", "<|tool_response>")), item.id
            assert prompt.startswith("<bos><|turn>") and len(answer) > len("<turn|>")
            if "<|think|>" in prompt:
                assert ("<channel|>" in answer) or "<channel|>" in prompt
            else:
                assert "<|channel>" not in answer
    by_id = {item.id: item for item in sets["small"].items}
    assert str(by_id["thinking-03"].prompt).endswith("<|turn>model\n")
    assert str(by_id["thinking-03"].answer) == (
        "<|channel>thought\n17 × 20 = 340. 17 × 3 = 51. 340 + 51 = 391.\n<channel|>17 × 23 = **391**<turn|>"
    )
    assert str(by_id["tools-02"].answer) == (
        '<|tool_call>call:set_timer{label:<|"|>pasta<|"|>,minutes:12}<tool_call|><|tool_response>'
    )
    assert str(by_id["tools-08"].prompt).endswith("<tool_response|>") and by_id["tools-08"].answer.parts[0] == Text(
        "Yes, take a coat: Turin gets 3 to 9 °C tomorrow. It starts with fog and turns sunny later; rain is unlikely (10 %)."
    )


def test_non_latin_scripts_are_each_there(sets: dict[str, Corpus]) -> None:
    text = "".join(str(item.answer) for item in sets["small"].items if item.category == "non-latin")
    scripts = {
        "Chinese": r"[一-鿿]", "Japanese": r"[ぁ-ヿ]", "Korean": r"[가-힣]", "Arabic": r"[ء-ي]", "Hindi": r"[अ-ह]",
        "Russian": r"[а-я]", "Greek": r"[α-ω]", "Thai": r"[ก-ฮ]", "Hebrew": r"[א-ת]",
    }  # fmt: skip
    for name, letters in scripts.items():
        assert len(re.findall(letters, text)) >= 40, name


def test_without_a_projector_only_text_is_left() -> None:
    found = corpus.load_set("small", pictures=False)
    assert not {"pictures", "video"} & {item.category for item in found.items}
    assert not any(isinstance(part, Pixels) for item in found.items for part in item.prompt.flat())
    assert found.name == "small 1, without pictures"


def test_sets_are_small_enough_and_named() -> None:
    assert sum(path.stat().st_size for path in corpus.ASSETS.iterdir()) < 700_000
    assert corpus.load_set("demo").name == "demo 1" and len(corpus.load_set("demo").sha256) == 64
    assert (corpus.default_set(4096), corpus.default_set(262_144)) == ("demo", "small")
    with pytest.raises(UsageError, match=r"no set 'smal'.*small, full, demo"):
        corpus.load_set("smal")


def test_documents_are_the_same_everywhere() -> None:
    recipe = {"kind": "ledger", "words": 60, "seed": 1, "needles": [[0.0, "Here."], [1.0, "There."]]}
    first, *_, last = long.document(recipe).split("\n\n")
    assert first == (
        "No. 1001: received from Karim Haddad by barge 69 units of roof slates at 33 crowns each, 2,277 crowns in all. "
        "Counted twice by Dmitri Solov. Here."
    )
    assert last.endswith(" There.") and long.document(recipe) == long.document(dict(recipe))
    for kind in ("chronicle", "minutes", "log", "ledger"):
        words = long.document({"kind": kind, "words": 500, "seed": 2}).split()
        assert 500 <= len(words) < 560 and len(set(words)) > 60


def test_pictures_are_drawn_as_their_recipes_say() -> None:
    recipe = {
        "size": [480, 480],
        "back": "white",
        "things": [["circle", "red", 120, 240, 60], ["square", "blue", 360, 240, 60]],
    }
    part = draw.picture(recipe)
    assert part.pixels is not None and part.budget == 70
    image = Image.frombytes("RGB", (part.pixels.width, part.pixels.height), part.pixels.rgb)
    at = [image.getpixel((int(image.width * x), image.height // 2)) for x in (0.25, 0.5, 0.75)]
    assert at == [(220, 30, 30), (255, 255, 255), (40, 70, 220)]
    assert part.pixels.sha256 == draw.picture(recipe).pixels.sha256  # type: ignore[union-attr]


def test_scattered_shapes_are_as_many_as_said() -> None:
    recipe = {"size": [480, 360], "back": "white", "things": [["scatter", "circle", "black", 8, 5, 24]]}
    pixels = draw.picture(recipe).pixels
    assert pixels is not None
    image = Image.frombytes("RGB", (pixels.width, pixels.height), pixels.rgb).convert("L").point(lambda v: 255 * (v < 128))
    seen, count = image.load(), 0
    assert seen is not None
    for y in range(image.height):
        for x in range(image.width):
            if seen[x, y] == 255:
                count += 1
                ImageDraw.floodfill(image, (x, y), 0)
    assert count == 8


def test_videos_change_when_they_should() -> None:
    scenes = [[0, [["circle", "red", 160, 120, 60]]], [3, [["circle", "green", 160, 120, 60]]]]
    part = draw.video({"size": [320, 240], "back": "white", "seconds": 5, "scenes": scenes})
    assert [seconds for seconds, _ in part.frames] == [0, 1, 2, 3, 4]
    hashes = [pixels.sha256 for _, pixels in part.frames]
    assert len(set(hashes[:3])) == len(set(hashes[3:])) == 1 and hashes[0] != hashes[3]
    moved = draw.video({"size": [320, 240], "seconds": 4, "moves": [[["circle", "red", 40, 120, 30], 280, 120]]})
    assert len({pixels.sha256 for _, pixels in moved.frames}) == 4


def shown(kind: str, url: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": kind, "url": url}]}]}


def write(path: Path, *rows: Any) -> str:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows))
    return str(path)


def test_own_chats_give_an_item_an_answer_and_are_asked_again(tmp_path: Path) -> None:
    more = [*TURNS, {"role": "user", "content": "Bye"}, {"role": "assistant", "content": "Goodbye."}]
    found = corpus.from_data([write(tmp_path / "a.jsonl", {"messages": more}, {"text": "Plain words."})])
    assert [(item.id, str(item.answer)) for item in found.items] == [
        ("Line 1 of a.jsonl/1", "Hello.<turn|>"),
        ("Line 1 of a.jsonl", "Goodbye.<turn|>"),
        ("Line 2 of a.jsonl", "Plain words."),
    ]
    assert found.items[2].prompt == Prompt(()) and found.items[2].category == "text"
    assert [message.text for message in found.asks[0].messages] == ["Hi", "Hello.", "Bye"] and not found.questions


def test_the_form_of_the_demo_models_questions(tmp_path: Path) -> None:
    call = {"name": "clock", "arguments": {"zone": "UTC"}}
    tool = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object"}}}
    rows = [
        {"id": "a", "task": "sum", "messages": [{"role": "user", "content": "2+2"}], "enable_thinking": True, "match": "exact",
         "expected": {"content": "4", "tool_calls": None, "reasoning": "two and two"}},
        {"id": "b", "messages": [{"role": "user", "content": "time?"}], "tools": [tool], "match": "tool_calls",
         "expected": {"content": None, "tool_calls": [call], "reasoning": None}},
    ]  # fmt: skip
    found = corpus.from_data([write(tmp_path / "q.jsonl", *rows)])
    assert [(q.id, q.task, q.kind, q.expected, q.thinking) for q in found.questions] == [
        ("a", "sum", "exact", "4", True),
        ("b", "tools", "tool_calls", [call], False),
    ]
    assert str(found.items[0].answer) == "<|channel>thought\ntwo and two\n<channel|>4<turn|>" and not found.asks
    assert str(found.items[1].answer) == '<|tool_call>call:clock{zone:<|"|>UTC<|"|>}<tool_call|><|tool_response>'


def test_folders_of_pictures_and_single_ones(tmp_path: Path) -> None:
    for name in ("b.png", "a.jpg"):
        Image.new("RGB", (96, 96), "red").save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not a picture")
    found = corpus.from_data([str(tmp_path)], image_tokens=70)
    assert [ask.id for ask in found.asks] == ["a.jpg", "b.png"] and not found.items
    part = found.asks[0].messages[0].content[0]
    assert isinstance(part, ImagePart) and part.pixels is not None and part.pixels.tokens <= 70
    assert len(corpus.from_data([str(tmp_path / "b.png")]).asks) == 1


def test_saved_sessions_by_name_and_by_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALGEMMA_HOME", str(tmp_path))
    call = ToolCall("f", {"x": 1}, "1")
    messages = (
        Message("user", (TextPart("One?"),)), Message("assistant", (TextPart("1"),), "think"),
        Message("user", (TextPart("Call."),)), Message("assistant", (), "", (call,)),
        Message("tool", tool_call_id="1", name="f", result={"y": 2}), Message("assistant", (TextPart("y is 2"),)),
    )  # fmt: skip
    record.write(sessions.home() / "trip", Record(messages, "Be brief.", ChatOptions(thinking=True)))
    for source in ("trip", str(sessions.home() / "trip")):
        found = corpus.from_data([source])
        assert [(item.id, str(item.answer)) for item in found.items] == [
            ("trip/2", "<|channel>thought\nthink\n<channel|>1<turn|>"),
            ("trip/4", "<|tool_call>call:f{x:1}<tool_call|><|tool_response>"),
            ("trip/6", "<channel|>y is 2<turn|>"),
        ]
        assert [ask.messages[-1].text for ask in found.asks] == ["Call."]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("{", "Line 2 of x.jsonl is not JSON"),
        ({"messages": []}, "Line 2 of x.jsonl: It has neither"),
        ({"messages": [{"role": "king", "content": "x"}]}, "Line 2 of x.jsonl: A message has the role 'king'"),
        ({"messages": TURNS, "match": "about"}, "Line 2 of x.jsonl: `match` cannot be 'about'"),
        ({"messages": TURNS[:1], "match": "exact"}, "Line 2 of x.jsonl: It does not say what is right"),
        ({"messages": TURNS, "match": "choice", "choices": ["A", "B"]}, "Line 2 of x.jsonl: It does not say what is right"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "url": "gone.png"}]}]},
            "Line 2 of x.jsonl: There is no",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "url": "bad.png"}]}]},
            "Line 2 of x.jsonl: bad.png is not",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "audio", "url": "a.wav"}]}]},
            "Line 2 of x.jsonl: A part of type",
        ),
    ],
)
def test_a_row_that_cannot_be_used_is_named(row: Any, says: str, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture at all")
    with pytest.raises(LocalgemmaError) as caught:
        corpus.from_data([write(tmp_path / "x.jsonl", {"messages": TURNS}, row)])
    assert str(caught.value).replace(f"{tmp_path}/", "").startswith(says)


def test_nothing_to_read_is_said(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture at all")
    (tmp_path / "empty").mkdir()
    for source, error, says in (
        (write(tmp_path / "e.txt", ""), UsageError, "e.txt has no text"),
        (write(tmp_path / "e.jsonl", ""), UsageError, "e.jsonl has no lines"),
        (str(tmp_path / "gone.txt"), NotFound, "neither a file nor a saved chat"),
        (str(tmp_path / "empty"), UsageError, "holds neither a saved chat nor pictures"),
        (str(tmp_path / "bad.png"), BadMedia, "bad.png is not a picture"),
    ):
        with pytest.raises(error, match=says):
            corpus.from_data([source])
    with pytest.raises(UsageError, match="nothing to read in no data"):
        corpus.from_data([])


def test_a_single_token_is_refused_by_name(tmp_path: Path) -> None:
    engine = FakeEngine()  # a token a character
    long = write(tmp_path / "long.txt", "ab" * 40)
    assert prepared(corpus.from_data([long]).items, engine)
    with pytest.raises(UsageError, match=r"one\.txt is too short"):
        prepared(corpus.from_data([long, write(tmp_path / "one.txt", "a")]).items, engine)


def test_videos_of_rows_are_rendered_with_their_times() -> None:
    scenes = [[0, [["text", "GO", 10, 10, 40]]]]
    frames = draw.video({"size": [96, 96], "back": "white", "seconds": 2, "scenes": scenes})
    item = corpus.item_of("v", "video", [Message("user", (frames, TextPart("?"))), Message("assistant", (TextPart("GO"),))])
    assert isinstance(frames, VideoPart)
    flat = [part.text if not isinstance(part, Pixels) else "▣" for part in item.prompt.flat()]
    assert "00:00 " in "".join(flat) and "".join(flat).count("▣") == 2
