"""Grammars for what Gemma may write: calls of the declared tools in its own syntax, and answers in JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from localgemma.engine import Control
from localgemma.errors import UsageError
from localgemma.gemma4.automaton import EVERY, Automaton, Ranges, both, common, trimmed, without
from localgemma.gemma4.calls import BARE_KEY, read_call
from localgemma.gemma4.gbnf import MOST_TEXT, Writer, literal, signs
from localgemma.gemma4.schema import read_schema
from localgemma.gemma4.shapes import Entries, Shape
from localgemma.gemma4.tokens import CALL, CALL_END, QUOTE
from localgemma.gemma4.tools import argument
from localgemma.options import Constraint

_ESCAPES = {8: "b", 9: "t", 10: "n", 12: "f", 13: "r", 34: '"', 92: "\\"}
_PLAIN: Ranges = without(((1, 31), (34, 34), (92, 92)))
# A marker's own text begins with it. Written as its token it is never a character, so that llama.cpp cannot take a marker for
# the text that spells it, in the middle of a string or across a string's end; which it would, and abort.
_LESS = "<[<]>"
_NO_LESS: Ranges = without(((60, 60),))
_ANY_SIGN: Automaton = trimmed([[(low, high, 0) for low, high in EVERY]], [0])
# What a name of an undeclared property may be spelled with where it stands without quotes.
_NAME_SIGNS: Ranges = ((45, 46), (48, 57), (65, 90), (95, 95), (97, 122), (0xC0, 0x24F), (0x370, 0x1FFF), (0x3041, 0xD7FF))


@dataclass(frozen=True, slots=True)
class Grammar:
    """A constraint, and the keywords of its schemas that it does not hold, each with its place."""

    constraint: Constraint
    loose: tuple[str, ...] = ()


def _text(text: str) -> str:
    """Text, without the sign that markers begin with among its characters."""
    return f" {_LESS} ".join(literal(_checked(piece)) for piece in text.split("<"))


def _signs(found: Ranges) -> list[str]:
    """Alternatives for a set of code points, likewise."""
    plain = common(found, _NO_LESS)
    return ([signs(plain)] if plain else []) + ([_LESS] if plain != found else [])


class JsonNotation:
    """JSON, compact or with the white space that models like."""

    def __init__(self, beside_markers: bool = False) -> None:
        """`beside_markers`: the grammar lets markers through elsewhere."""
        self._beside = beside_markers

    space = r'"" | " " | "\n" [ \t]{0,40}'
    free = _ANY_SIGN

    def quoted(self, found: Ranges) -> str:
        """A sign as it is, or escaped where it must be."""
        plain = common(found, _PLAIN)
        options = _signs(plain) if self._beside else [signs(plain)] if plain else []
        special = [code for code in (*range(1, 32), 34, 92) if any(low <= code <= high for low, high in found)]
        short = [code for code in special if code in _ESCAPES]
        if short:
            options.append(
                f'"\\\\" {signs(tuple((ord(_ESCAPES[code]),) * 2 for code in sorted(short, key=_ESCAPES.__getitem__)))}'
            )
        options += [f'"\\\\u00" {literal(f"{code:02x}")}' for code in special if code < 32 and code not in _ESCAPES]
        return " | ".join(options)

    def quotes(self) -> tuple[str, str]:
        """Quotation marks."""
        return r'"\""', r'"\""'

    def value(self, value: Any) -> str:
        """A whole value, compact."""
        text = _checked(json.dumps(value, ensure_ascii=False, separators=(",", ":")))
        return _text(text) if self._beside else literal(text)

    def key(self, name: str) -> str:
        """A name between quotation marks."""
        return self.value(name)

    def names(self, spelling: Automaton | None) -> tuple[Automaton, str, str]:
        """Any name."""
        return (self.free if spelling is None else spelling), *self.quotes()

    def order(self, fields: Mapping[str, Shape]) -> list[str]:
        """As declared."""
        return list(fields)


class CallNotation:
    """Gemma's own syntax: strings between quote markers without escapes, keys without quotes."""

    space = ""
    free = _ANY_SIGN

    def quoted(self, found: Ranges) -> str:
        """A sign as it is."""
        return " | ".join(_signs(found))

    def quotes(self) -> tuple[str, str]:
        """The quote marker."""
        return QUOTE, QUOTE

    def value(self, value: Any) -> str:
        """A whole value. Raises UsageError where it would be read as another."""
        parts = list(argument(value, False))
        raw, quotes = "call:f{v:", set[int]()
        for part in parts:
            quotes |= {len(raw)} if isinstance(part, Control) else set()
            raw += part.text
        read = read_call(raw + "}", quotes)
        if read.error is not None or dict(read.arguments) != {"v": value}:
            raise UsageError(f"A value of the schema cannot be written in a call: {raw[9:80]}.", "Take it out of the schema.")
        return " ".join(part.text if isinstance(part, Control) else _text(part.text) for part in parts if part.text)

    def key(self, name: str) -> str:
        """A name as it is, or between quote markers where it could not be read otherwise."""
        bare = BARE_KEY.match(f"{name}:")
        if bare is not None and bare.end() == len(name):
            return _text(name)
        return self.value(name)

    def names(self, spelling: Automaton | None) -> tuple[Automaton, str, str]:
        """Names of letters, digits, _, - and dots. Raises TooLarge."""
        word = trimmed([[(a, b, 1) for a, b in _NAME_SIGNS], [(a, b, 1) for a, b in _NAME_SIGNS]], [1])
        return (word if spelling is None else both(word, spelling)), "", ""

    def order(self, fields: Mapping[str, Shape]) -> list[str]:
        """As the chat template writes them: by name, ignoring case."""
        return sorted(fields, key=str.lower)


def _checked(text: str) -> str:
    if any(0xD800 <= ord(sign) < 0xE000 or not ord(sign) for sign in text):
        raise UsageError(f"A name or value of the schema has a NUL or half a character: {text[:80]!r}.", "Correct the schema.")
    return text


def calls(tools: Sequence[Mapping[str, Any]], most: int = 16) -> Grammar:
    """What may stand from a call's marker on: 1 to `most` calls of these tools (declarations in the OpenAI form)."""
    rules, loose = _calls(tools, most)
    return Grammar(Constraint(f"root ::= calls\n{rules}", (CALL,), (CALL, CALL_END, QUOTE), QUOTE), loose)


def required(tools: Sequence[Mapping[str, Any]], most: int = 16) -> Grammar:
    """The same from the answer's first token on."""
    found = calls(tools, most)
    return Grammar(Constraint(found.constraint.grammar, (), (CALL, CALL_END, QUOTE), QUOTE), found.loose)


def answer(schema: Any, tools: Sequence[Mapping[str, Any]] = (), most: int = 16) -> Grammar:
    """An answer in JSON that fits the schema; or, where there are tools, calls of them instead."""
    read = read_schema(schema)
    writer = Writer(JsonNotation(beside_markers=bool(tools)), "j")
    root = writer.rule(read.shape)
    if not tools:
        return Grammar(Constraint(_limited(f"root ::= {root}\n{writer.text()}")), read.loose)
    rules, loose = _calls(tools, most)
    text = _limited(f"root ::= {root} | calls\n{writer.text()}{rules}")
    return Grammar(Constraint(text, (), (CALL, CALL_END, QUOTE), QUOTE), (*read.loose, *loose))


def _calls(tools: Sequence[Mapping[str, Any]], most: int) -> tuple[str, tuple[str, ...]]:
    """Rules for `calls`, and what they do not hold."""
    rules, loose, heads = list[str](), list[str](), list[str]()
    for index, tool in enumerate(tools):
        function = tool["function"]
        name = str(function["name"])
        try:
            read = read_schema(_arguments(function.get("parameters")))
            writer = Writer(CallNotation(), f"c{index}x")
            braced = _braced(writer, read.shape)
            loose += [f"{each} of {name}" for each in read.loose]
        except UsageError as error:  # it may come from a server: the others are no worse for it
            loose.append(f"the parameters of {name} ({error.message.rstrip('.')})")
            writer = Writer(CallNotation(), f"c{index}x")
            braced = _braced(writer, read_schema({"type": "object"}).shape)
        rules.append(writer.text())
        heads.append(f"{_text(name)} {braced}")
    more = f" another{{0,{most - 1}}}" if most > 1 else ""
    text = f"calls ::= call{more}\n" + ("another ::= call\n" if most > 1 else "")
    text += f'call ::= {CALL} "call:" ( {" | ".join(heads)} ) {CALL_END}\n'
    return _limited(text + "".join(rules)), tuple(loose)


def _arguments(schema: Any) -> Any:
    """A tool's parameters: an object, which takes nothing where nothing is declared."""
    schema = schema or {}
    if isinstance(schema, Mapping) and not set(schema) & {"$ref", "allOf", "anyOf", "oneOf"}:
        empty = {} if schema.get("properties") or "additionalProperties" in schema else {"additionalProperties": False}
        return {"properties": {}, **schema, **empty, "type": "object"}
    return schema


def _braced(writer: Writer, shape: Shape) -> str:
    return f'"{{" {writer.entries(shape)} "}}"' if isinstance(shape, Entries) else writer.rule(shape)


def _limited(text: str) -> str:
    if len(text) > 2 * MOST_TEXT:
        raise UsageError("The schemas make too large a grammar.", "Give fewer tools, or simpler schemas.")
    return text
