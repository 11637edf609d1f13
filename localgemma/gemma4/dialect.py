"""What Gemma 4 writes, taken apart as it streams: thoughts, calls, answer. A pure state machine, and its string form.

Only a sampled marker token is a marker; text that spells one stays text. Where a reply is malformed, a marker is dropped
and the words around it are kept. A call whose string never closes may have swallowed what follows it, so it is cut at its
first other marker and the rest is read again.
"""

from __future__ import annotations

import codecs
import re
from collections import deque
from collections.abc import Iterable
from enum import Enum, auto
from typing import Any, TypeAlias

from localgemma.gemma4 import tokens
from localgemma.gemma4.calls import HEAD, read_call
from localgemma.messages import Notice, TextDelta, ThinkingDelta, ToolCall

Out: TypeAlias = ThinkingDelta | TextDelta | ToolCall | Notice
Item: TypeAlias = tuple[str, bool]  # text, or a marker's name and True

LABEL = "thought\n"
CALL_START = "call:"
ANCHORS = ("<|turn>model\n", tokens.RESPONSE_END)
_BARE_HEAD = re.compile(r"call:[^\s{}()<>\"'|]{1,200}")
_ANY_MARKER = re.compile("(" + "|".join(re.escape(name) for name in tokens.EVERY_CONTROL) + ")")


class _State(Enum):
    TEXT = auto()
    LABEL = auto()  # after <|channel>, its name
    THOUGHT = auto()
    CALL = auto()
    BARE = auto()  # after <channel|>, where a call may stand without its marker


class Parser:
    """Takes one reply, token by token; `open_thought` where the prompt ended inside a thought."""

    def __init__(self, open_thought: bool = False) -> None:
        self._state = _State.THOUGHT if open_thought else _State.TEXT
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._out: list[Out] = []
        self._held: list[Item] = []  # of a LABEL, CALL or BARE
        self._in_string = False
        self._break: int | None = None  # first marker inside an open string of the call
        self._resume = _State.TEXT  # where a call returns to
        self._bare = _BareScan()
        self._thought = False
        self._newlines = ""

    def feed(self, data: bytes, marker: str | None = None) -> list[Out]:
        """The events of one token: its bytes, or its name if it is a control token or marker."""
        text = self._decoder.decode(data if marker is None else b"", marker is not None)
        return self._run([(text, False)] + ([(marker, True)] if marker is not None else []))

    def finish(self) -> list[Out]:
        """The events left when nothing more comes. An open thought or call ends here."""
        self._run([(self._decoder.decode(b"", True), False)], flush=False)
        while self._held:
            self._run(self._close(), flush=False)
        self._newlines = ""
        self._state = _State.TEXT
        return self._run([])

    def _run(self, items: Iterable[Item], flush: bool = True) -> list[Out]:
        queue = deque(items)
        while queue:
            text, is_marker = queue.popleft()
            if is_marker:
                queue.extendleft(reversed(self._marker(text)))
            elif text:
                queue.extendleft(reversed(self._text(text)))
        if not flush:
            return []
        out, self._out = self._out, []
        return out

    def _text(self, text: str) -> list[Item]:
        """Ordinary text; what is returned is to be read again in the state that is then."""
        if self._state is _State.TEXT:
            self._out.append(TextDelta(text))
        elif self._state is _State.THOUGHT:
            self._think(text)
        elif self._state is _State.CALL:
            self._held.append((text, False))
        elif self._state is _State.LABEL:
            return self._label(text)
        else:
            return self._bare_call(text)
        return []

    def _think(self, text: str) -> None:
        body = text.rstrip("\n")
        if body:
            self._out.append(ThinkingDelta(self._newlines + body))
            self._newlines, self._thought = "", True
        self._newlines += text[len(body) :]

    def _label(self, text: str) -> list[Item]:
        seen = "".join(part for part, _ in self._held) + text
        if LABEL.startswith(seen) and seen != LABEL:
            self._held = [(seen, False)]
            return []
        self._held, self._state = [], _State.THOUGHT
        return [(seen.removeprefix(LABEL), False)]

    def _bare_call(self, text: str) -> list[Item]:
        for at, sign in enumerate(text):
            verdict = self._bare.take(sign)
            if verdict is None:
                continue
            self._held.append((text[: at + 1], False))
            call = read_call(*_joined(self._held)) if verdict else None
            if call is None or call.error is not None:
                return [(self._not_bare() + text[at + 1 :], False)]
            self._out.append(call)
            self._held, self._state = [], _State.TEXT
            return [(text[at + 1 :], False)]
        self._held.append((text, False))
        return []

    def _not_bare(self) -> str:
        """The held text, its markers dropped; it is no call."""
        text = "".join(part for part, is_marker in self._held if not is_marker)
        self._held, self._state = [], _State.TEXT
        return text

    def _marker(self, name: str) -> list[Item]:
        """A marker; what is returned is to be read again."""
        if self._state is _State.CALL:
            return self._marker_in_call(name)
        if self._state is _State.BARE and name == tokens.QUOTE and self._bare.quote():
            self._held.append((name, True))
            return []
        if self._state in (_State.BARE, _State.LABEL):
            return [*self._close(), (name, True)]
        if name == tokens.CALL:
            self._resume, self._state = self._state, _State.CALL
            self._held, self._in_string, self._break = [(name, True)], False, None
        elif name == tokens.CHANNEL:
            self._end_thought()
            self._state = _State.LABEL
        elif name == tokens.CHANNEL_END:
            self._end_thought()
            self._state, self._bare = _State.BARE, _BareScan()
        elif name in tokens.STOPS or name in (tokens.TURN, tokens.RESPONSE_END):
            self._end_thought()
            self._state = _State.TEXT
        return []

    def _end_thought(self) -> None:
        """Trailing newlines go, unless another thought follows; then they, or one, part the two."""
        self._newlines = (self._newlines or "\n") if self._thought else ""

    def _marker_in_call(self, name: str) -> list[Item]:
        if name == tokens.QUOTE:
            self._in_string = not self._in_string
        elif not self._in_string:
            again = self._close(closed=name == tokens.CALL_END)
            return [*again, (name, True)] if again or name != tokens.CALL_END else []
        elif self._break is None:
            self._break = len(self._held)
        self._held.append((name, True))
        return []

    def _close(self, closed: bool = False) -> list[Item]:
        """End what is held; `closed` where a call's own marker ends it. What is returned is to be read again."""
        held, state = self._held, self._state
        if state is _State.BARE:
            return [(self._not_bare(), False)]
        if state is _State.LABEL:
            self._held, self._state = [], _State.THOUGHT
            return []  # a label cut short, or without its newline
        self._held, self._state = [], self._resume
        body, rest = held[1:], list[Item]()
        call = read_call(*_joined(body))
        if call.error is not None and self._break is not None:
            body, rest = held[1 : self._break], held[self._break :]
            closed = rest[0][0] == tokens.CALL_END
            rest = rest[1:] if closed else rest
            call = read_call(*_joined(body))
        if not closed and not HEAD.match(call.raw) and not CALL_START.startswith(call.raw):
            return [item for item in body if not item[1]] + rest  # the marker was a stray, the text is text
        self._out.append(call)
        return rest


class _BareScan:
    """Follows `call:NAME{...}` character by character: True where it ends, False where it is no call, else None."""

    def __init__(self) -> None:
        self.head = ""
        self.depth = 0
        self.marked = False  # inside a marked string
        self.quoted = False  # inside an ordinary one
        self.escaped = False

    def quote(self) -> bool:
        """A quote marker; False where it cannot stand."""
        if not self.depth:
            return False
        if not self.quoted:
            self.marked = not self.marked
        return True

    def take(self, sign: str) -> bool | None:
        """One character of text."""
        if not self.depth:
            return self._take_head(sign)
        if self.marked:
            return None
        if self.quoted:
            self.quoted = self.escaped or sign != '"'
            self.escaped = sign == "\\" and not self.escaped
        elif sign == '"':
            self.quoted = True
        elif sign in "{}":
            self.depth += 1 if sign == "{" else -1
        return True if not self.depth else None

    def _take_head(self, sign: str) -> bool | None:
        if sign == "{" and _BARE_HEAD.fullmatch(self.head):
            self.depth = 1
            return None
        self.head += sign
        fits = CALL_START.startswith(self.head) or _BARE_HEAD.fullmatch(self.head)
        return None if fits else False


def _joined(items: Iterable[Item]) -> tuple[str, frozenset[int]]:
    """The text of a call with its markers spelled, and where its quote markers stand."""
    parts, quotes, at = list[str](), set[int](), 0
    for text, is_marker in items:
        if is_marker and text == tokens.QUOTE:
            quotes.add(at)
        parts.append(text)
        at += len(text)
    return "".join(parts), frozenset(quotes)


def split_markers(text: str) -> list[tuple[str, bool]]:
    """The text in pieces, each with whether it is a marker; a marker that the end cuts in half is dropped."""
    pieces = [(part, index % 2 == 1) for index, part in enumerate(_ANY_MARKER.split(text)) if part]
    if pieces and not pieces[-1][1]:
        pieces[-1] = (_without_cut(pieces[-1][0]), False)
    return pieces


def _without_cut(text: str) -> str:
    for name in tokens.MARKERS + tokens.STOPS:
        for size in range(len(name) - 1, 2, -1):
            cut = name[:size]
            if text.endswith(cut) and (cut.startswith("<|") or cut.endswith("|")):
                return text.removesuffix(cut)
    return text


def parse_response(text: str, prefix: str = "") -> dict[str, Any]:
    """The assistant message written in `text`: role, and where there are any reasoning_content, content, tool_calls.

    `prefix` is the prompt before it, whose end may belong to the message (an opened thought). A call that cannot be read
    keeps its text, after the name, as its `arguments`. On well-formed replies this equals transformers 5.24.
    """
    start = max((prefix.rfind(anchor) + len(anchor) for anchor in ANCHORS if anchor in prefix), default=0)
    parser = Parser()
    events = parser._run(split_markers(prefix[start:] + text)) + parser.finish()
    message: dict[str, Any] = {"role": "assistant"}
    thinking = _unmarked("".join(event.text for event in events if isinstance(event, ThinkingDelta))).strip()
    content = _unmarked("".join(event.text for event in events if isinstance(event, TextDelta))).strip()
    calls = [_function(event) for event in events if isinstance(event, ToolCall)]
    message |= {"reasoning_content": thinking} if thinking else {}
    message |= {"content": content} if content else {}
    message |= {"tool_calls": calls} if calls else {}
    return message


def _unmarked(text: str) -> str:
    """Without the markers that dropping others has made, as in `<tu<eos>rn|>`. Every marker ends in `>`."""
    kept: list[str] = []
    for sign in text:
        kept.append(sign)
        if sign == ">":
            tail = "".join(kept[-20:])
            del kept[len(kept) - max((len(name) for name in tokens.EVERY_CONTROL if tail.endswith(name)), default=0) :]
    return "".join(kept)


def _function(call: ToolCall) -> dict[str, Any]:
    arguments: Any = dict(call.arguments)
    if call.error is not None:
        head = HEAD.match(call.raw)
        arguments = call.raw[head.end() :] if head else call.raw
    return {"type": "function", "function": {"name": call.name, "arguments": arguments}}
