"""Replies taken apart: 500 as transformers reads them, a corpus of malformed ones, and any chunking of anything."""

from __future__ import annotations

import gzip
import json
import pickle
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localgemma.gemma4 import tokens
from localgemma.gemma4.calls import read_call
from localgemma.gemma4.dialect import Out, Parser, parse_response, split_markers
from localgemma.messages import TextDelta, ThinkingDelta, ToolCall

DATA = Path(__file__).parent / "data"
Piece = tuple[bytes, str | None]  # as Parser.feed takes them


def load(name: str) -> list[dict[str, Any]]:
    raw = (DATA / name).read_bytes()
    text = (gzip.decompress(raw) if name.endswith(".gz") else raw).decode()
    return [json.loads(line) for line in text.split("\n") if line]


REPLIES = load("replies.jsonl.gz")
MALFORMED = load("malformed.jsonl")


def pieces_of(row: dict[str, Any]) -> list[Piece]:
    """A corpus row: a string is text, [name] a marker, {"x": hex} bytes. Half markers exist only in strings."""
    if row.get("only") == "text":
        return [(b"", text) if marker else (text.encode(), None) for text, marker in split_markers("".join(row["pieces"]))]
    found: list[Piece] = []
    for piece in row["pieces"]:
        if isinstance(piece, list):
            found.append((piece[0].encode(), piece[0]))
        else:
            found.append((piece.encode() if isinstance(piece, str) else bytes.fromhex(piece["x"]), None))
    return found


def run(pieces: Iterable[Piece], open_thought: bool = False) -> list[Out]:
    parser = Parser(open_thought)
    return [event for data, marker in pieces for event in parser.feed(data, marker)] + parser.finish()


def merged(events: Iterable[Out]) -> list[Out]:
    """Neighbouring pieces of thought and of text joined."""
    found: list[Out] = []
    for event in events:
        last = found[-1] if found else None
        if isinstance(event, TextDelta) and isinstance(last, TextDelta):
            found[-1] = TextDelta(last.text + event.text)
        elif isinstance(event, ThinkingDelta) and isinstance(last, ThinkingDelta):
            found[-1] = ThinkingDelta(last.text + event.text)
        else:
            found.append(event)
    return found


def joined(events: Sequence[Out], kind: type[TextDelta] | type[ThinkingDelta]) -> str:
    return "".join(event.text for event in events if isinstance(event, kind))


def calls(events: Sequence[Out]) -> list[list[Any]]:
    return [[e.name, e.arguments if e.error is None else None] for e in events if isinstance(e, ToolCall)]


def spoken(pieces: Iterable[Piece]) -> str:
    """The ordinary text of the pieces: bytes decoded run by run, without labels and white space."""
    runs: list[bytes] = [b""]
    for data, marker in pieces:
        if marker is None:
            runs[-1] += data
        else:
            runs.append(b"")
    return bared("".join(part.decode(errors="replace") for part in runs))


def heard(events: Iterable[Out]) -> str:
    """The text of the events, comparable with `spoken`."""
    return bared("".join(e.raw if isinstance(e, ToolCall) else e.text for e in events))


def bared(text: str) -> str:
    for name in tokens.EVERY_CONTROL:
        text = text.replace(name, "")
    return re.sub(r"\s|thou(ght)?", "", text)


def pieces_of_text(text: str) -> list[Piece]:
    return [(b"", part) if marker else (part.encode(), None) for part, marker in split_markers(text)]


# Well-formed replies


def test_there_are_500_replies_of_every_shape() -> None:
    shapes = {tuple(row["message"]) for row in REPLIES}
    assert len(REPLIES) == 500
    assert len(shapes) == 6


def test_parse_response_equals_transformers() -> None:
    differing = [row for row in REPLIES if parse_response(row["text"], row["prefix"]) != row["message"]]
    assert differing == []


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_the_stream_reads_as_the_string(size: int) -> None:
    for row in REPLIES:
        open_thought = row["prefix"].endswith("thought\n")
        pieces = [
            (data[at : at + size], marker)
            for data, marker in pieces_of_text(row["text"])
            for at in range(0, max(1, len(data)), size)
        ]
        events, message = run(pieces, open_thought), row["message"]
        assert joined(events, ThinkingDelta).strip() == message.get("reasoning_content", "")
        assert joined(events, TextDelta).strip() == message.get("content", "")
        made = [[c["function"]["name"], c["function"]["arguments"]] for c in message.get("tool_calls", [])]
        assert calls(events) == made


# Malformed replies


def test_the_corpus_is_large_enough() -> None:
    assert len({row["note"] for row in MALFORMED}) == len(MALFORMED) >= 60


@pytest.mark.parametrize("row", MALFORMED, ids=lambda row: row["note"])
def test_malformed_stream(row: dict[str, Any]) -> None:
    pieces = pieces_of(row)
    events = run(pieces)
    assert joined(events, ThinkingDelta) == row["thinking"]
    assert joined(events, TextDelta) == row["content"]
    assert calls(events) == row["calls"]
    assert heard(events) == spoken(pieces)
    spelled = b"".join(data for data, marker in pieces if marker is None).decode(errors="replace")
    for name in tokens.EVERY_CONTROL:
        assert name in spelled or name not in joined(events, TextDelta) + joined(events, ThinkingDelta)
    assert pickle.loads(pickle.dumps(events)) == events


@pytest.mark.parametrize("row", [row for row in MALFORMED if row.get("only") != "live"], ids=lambda row: row["note"])
def test_malformed_string(row: dict[str, Any]) -> None:
    message = parse_response("".join(piece[0] if isinstance(piece, list) else piece for piece in row["pieces"]))
    assert message.get("content", "") == row["content"].strip()
    assert message.get("reasoning_content", "") == row["thinking"].strip()
    assert not re.search(r"<\||\|>|<turn\||<channel\||<tool_call\|", message.get("content", ""))
    read = [c["function"] for c in message.get("tool_calls", [])]
    assert [c["name"] for c in read] == [name for name, _ in row["calls"]]
    assert [None if isinstance(c["arguments"], str) else c["arguments"] for c in read] == [a for _, a in row["calls"]]


def test_a_call_that_cannot_be_read_keeps_its_text_and_says_why() -> None:
    events = run(pieces_of_text('<|tool_call>call:f{a:<|"|>x<|"|>,b:'))
    assert events == [ToolCall("f", {}, raw='call:f{a:<|"|>x<|"|>,b:', error="expected a value, but the call ends there")]


def test_text_streams_at_once_and_trailing_newlines_wait() -> None:
    parser = Parser()
    assert parser.feed(b"", "<|channel>") == parser.feed(b"thought") == parser.feed(b"\n") == []
    assert parser.feed(b"A\n") == [ThinkingDelta("A")]
    assert parser.feed(b"B") == [ThinkingDelta("\nB")]
    assert parser.feed(b"\n\n") == parser.feed(b"", "<channel|>") == []
    assert parser.feed(b"\n\nHi") == [TextDelta("\n\nHi")]
    assert parser.feed(b" there\n") == [TextDelta(" there\n")]
    assert parser.finish() == []


def test_arguments_cannot_be_slipped_in_by_spelling_a_quote() -> None:
    pieces: list[Piece] = [(b"", tokens.CALL), (b"call:f{a:", None), (b"", tokens.QUOTE), (b'x<|"|>,b:<|"|>y', None)]
    events = run([*pieces, (b"", tokens.QUOTE), (b"}", None), (b"", tokens.CALL_END)])
    assert calls(events) == [["f", {"a": 'x<|"|>,b:<|"|>y'}]]


@pytest.mark.parametrize(
    ("text", "content"), [("<tu<eos>rn|>", ""), ("a<tu<eos>rn|>b", "ab"), ("<<eos>eos>x > y", "x > y"), ('<t<|"|>urn|>', "")]
)
def test_a_dropped_marker_makes_no_new_one(text: str, content: str) -> None:
    assert parse_response(text).get("content", "") == content


# Anything at all

WORDS = [
    "Hi", " ", "\n", "\n\n", "thought\n", "thought", "call:f{", "a:1", "}", "{", ",", ":", '"', '\\"', "'", "[", "]", "é",
    "🙂", "call:", "call:f{a:1}", "b", '<|"|>', "<|tool_call>", "<turn|>", "<|", "\\",
]  # fmt: skip
ANY_BYTES = st.one_of(st.sampled_from(WORDS).map(str.encode), st.binary(min_size=1, max_size=3))
ANY_MARKER = st.sampled_from(tokens.EVERY_CONTROL + tokens.MARKERS * 3)
ANY_PIECE = st.one_of(ANY_BYTES.map(lambda data: (data, None)), ANY_MARKER.map(lambda name: (b"", name)))
ANY_PIECES = st.lists(ANY_PIECE, max_size=25)


def whole(pieces: Iterable[Piece]) -> list[Piece]:
    """Neighbouring bytes joined."""
    found: list[Piece] = []
    for data, marker in pieces:
        if found and marker is None and found[-1][1] is None:
            found[-1] = (found[-1][0] + data, None)
        else:
            found.append((data, marker))
    return found


@settings(max_examples=600, deadline=None)
@given(ANY_PIECES, st.booleans(), st.data())
def test_every_chunking_gives_the_same_events(pieces: list[Piece], open_thought: bool, data: st.DataObject) -> None:
    expected = merged(run(whole(pieces), open_thought))
    assert merged(run(pieces, open_thought)) == expected
    single = [(raw[at : at + 1], None) if m is None else (b"", m) for raw, m in pieces for at in range(max(1, len(raw)))]
    assert merged(run(single, open_thought)) == expected
    size = data.draw(st.integers(2, 9))
    chunks = [(raw[at : at + size], m) for raw, m in whole(pieces) for at in range(0, max(1, len(raw)), size)]
    assert merged(run(chunks, open_thought)) == expected


@settings(max_examples=600, deadline=None)
@given(ANY_PIECES, st.booleans())
def test_nothing_is_lost_and_no_marker_leaks(pieces: list[Piece], open_thought: bool) -> None:
    pieces = [(b"", m) if m else (re.sub(rb"[th<|]", b"-", raw) if raw.decode(errors="replace") not in WORDS else raw, m)
              for raw, m in pieces]  # fmt: skip
    events = run(pieces, open_thought)
    spelled = b"".join(data for data, marker in pieces if marker is None).decode(errors="replace")
    for name in tokens.EVERY_CONTROL:
        assert name in spelled or name not in joined(events, TextDelta) + joined(events, ThinkingDelta)
    assert heard(events) == spoken(pieces)


@settings(max_examples=500, deadline=None)
@given(st.lists(st.one_of(st.sampled_from([*WORDS, *tokens.EVERY_CONTROL]), st.text(max_size=3)), max_size=25).map("".join))
def test_strings_never_raise_or_leak(text: str) -> None:
    content = parse_response(text).get("content", "")
    assert not any(name in content for name in tokens.EVERY_CONTROL)
    json.dumps(parse_response(text, prefix=text))


def sayable(size: int) -> st.SearchStrategy[str]:
    """Text that the syntax can hold in a string, where a quote marker cannot be told from its spelling."""
    return st.text(max_size=size).filter(lambda text: tokens.QUOTE not in text)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | sayable(8)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(sayable(5), inner, max_size=3))


@settings(max_examples=500, deadline=None)
@given(VALUES)
def test_written_arguments_are_read_back(value: Any) -> None:
    call = read_call("call:f" + written({"k": value}))
    assert call.error is None
    assert call.arguments == {"k": value}


def written(value: Any) -> str:
    """A value in Gemma's syntax, keys quoted."""
    if isinstance(value, str):
        return tokens.QUOTE + value + tokens.QUOTE
    if isinstance(value, dict):
        return "{" + ",".join(written(key) + ":" + written(item) for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(written, value)) + "]"
    return json.dumps(value)
