"""Schemas as grammars, by llama.cpp's own word: what it lets through is valid, and what is valid it lets through."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from schemas import EDGES, FORMATS, PATTERNS, UNHELD, Make, made

from localgemma.chat.check import modern, problem
from localgemma.engine import Control
from localgemma.errors import UsageError
from localgemma.gemma4 import grammar
from localgemma.gemma4.calls import read_call
from localgemma.gemma4.numbers import numbers
from localgemma.gemma4.regex import UnsupportedPattern, pattern, whole
from localgemma.gemma4.schema import read_schema
from localgemma.gemma4.tokens import CALL, CALL_END, QUOTE
from localgemma.gemma4.tools import entries
from localgemma.llamacpp import library
from localgemma.llamacpp.grammar import Guide
from localgemma.llamacpp.model import Vocabulary
from localgemma.llamacpp.prefixes import Prefixes

DEMO = Path(__file__).parents[1] / "localgemma" / "assets" / "demo" / "text.gguf"
SEED = 7


class World:
    """A vocabulary, and grammars over it."""

    def __init__(self) -> None:
        c = library.load()
        params = c.llama_model_default_params()
        params.vocab_only = True
        self._model = c.llama_model_load_from_file(str(DEMO).encode(), params)
        self.vocab = Vocabulary(c, c.llama_model_get_vocab(self._model))
        self.prefixes = Prefixes(self.vocab)
        self.prefixes.wait()
        self.closing = [*(self.vocab.text(sign)[0] for sign in ',]}"'), self.vocab.control(QUOTE)]  # the last ends most

    def guide(self, made: grammar.Grammar) -> Guide:
        """A grammar at its start."""
        return Guide(self.vocab, made.constraint, None, False, self.prefixes)

    def accepts(self, made: grammar.Grammar, parts: list[Control | str], split: bool = False) -> bool:
        """Whether a text may be written, and may end there."""
        guide = self.guide(made)
        for part in parts:
            # In a call `<` is a token of its own; other tokens are as the tokeniser has them.
            pieces = [part] if isinstance(part, Control) or not split else re.split("(<)", part)
            for piece in pieces:
                for token in [self.vocab.control(piece.text)] if isinstance(piece, Control) else self.vocab.text(piece):
                    if not guide.allows(token):
                        return False
                    guide.accept(token)
        return guide.allows(1)

    def written(self, made: grammar.Grammar, rng: random.Random, most: int = 120) -> tuple[str, set[int]] | None:
        """A random text that the grammar lets through, and where it has quote markers; None where it does not end."""
        guide, out, quotes = self.guide(made), bytearray(), set[int]()
        for count in range(5 * most):
            if guide.allows(1) and (count > most or rng.random() < 0.3):
                return out.decode("utf-8"), quotes
            closing = [token for token in self.closing if guide.allows(token)] if count > most or rng.random() < 0.3 else []
            tries = (rng.randrange(self.vocab.size) for _ in range(8))
            token = (
                closing[-1]
                if closing and count > most
                else rng.choice(closing)
                if closing
                else next((each for each in tries if self.speaks(guide, each)), None)
            )
            if token is None:
                allowed = guide.every()
                assert len(allowed), "a dead end"
                if allowed[-1] in self.vocab.ends and all(int(each) in self.vocab.ends for each in allowed):
                    return out.decode("utf-8"), quotes
                while (token := int(allowed[rng.randrange(len(allowed))])) in self.vocab.ends:
                    pass
            guide.accept(token)
            name = self.vocab.names.get(token)
            if name == QUOTE:
                quotes.add(len(out.decode("utf-8")))
            out += name.encode() if name else self.vocab.piece(token)
        return None

    def speaks(self, guide: Guide, token: int) -> bool:
        """Whether a token may come next and does not end the text."""
        return token not in self.vocab.ends and guide.allows(token)


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def cases(full: bool) -> Iterator[tuple[Any, Make]]:
    """All edges, and generated schemas up to 300 in all; fewer in CI."""
    rng = random.Random(SEED)
    count = 300 - len(EDGES)
    for index in range(count):
        case = made(rng)
        if full or index % 10 == 0:
            yield case
    yield from EDGES


def tool(schema: Any) -> list[dict[str, Any]]:
    """A tool that takes the schema as its only argument."""
    parameters = {"type": "object", "properties": {"v": schema}, "required": ["v"], "$defs": schema.get("$defs", {})}
    return [{"type": "function", "function": {"name": "f", "parameters": parameters}}]


def call_of(value: Any) -> list[Control | str]:
    """A call as Gemma writes it."""
    middle = [part if isinstance(part, Control) else part.text for part in entries({"v": value})]
    return [Control(CALL), "call:f{", *middle, "}", Control(CALL_END)]


def read_back(raw: str, quotes: set[int]) -> Any:
    """The value in a call's text, whose quote markers stand at some offsets."""
    call = read_call(raw, quotes)
    assert call.error is None, raw
    return dict(call.arguments)["v"]


def utterable(value: Any) -> bool:
    """Whether all keys of a value stand in a call as they are read back."""
    raw, quotes = "", set[int]()
    for part in call_of(value)[1:-1]:
        quotes |= {len(raw)} if isinstance(part, Control) else set()
        raw += part if isinstance(part, str) else part.text
    return dict(read_call(raw, quotes).arguments) == {"v": value}


def test_every_value_of_a_schema_is_accepted(world: World, full: bool) -> None:
    rng = random.Random(SEED)
    for schema, make in cases(full):
        answer, call = grammar.answer(schema), grammar.required(tool(schema))
        assert (answer.loose, call.loose) == ((), ()), schema
        valid = Draft202012Validator(modern(schema))
        for _ in range(20 if full else 5):
            value = make(rng)
            valid.validate(value)
            style = rng.choice([{"separators": (",", ":")}, {}, {"indent": 2}])
            said = json.dumps(value, ensure_ascii=False, **style)
            assert world.accepts(answer, [said]), (schema, said)
            if utterable(value):
                assert world.accepts(call, call_of(value), split=True), (schema, value)


def test_everything_accepted_is_valid(world: World, full: bool) -> None:
    rng = random.Random(SEED)
    ended = tried = 0
    for schema, _ in cases(full):
        valid = Draft202012Validator(modern(schema))
        answer, call = grammar.answer(schema), grammar.required(tool(schema), 1)
        for _ in range(2 if full else 1):
            tried += 2
            if (said := world.written(answer, rng)) is not None:
                valid.validate(json.loads(said[0]))
                ended += 1
            if (said := world.written(call, rng)) is not None:
                start, stop = len(CALL), len(said[0]) - len(CALL_END)
                valid.validate(read_back(said[0][start:stop], {at - start for at in said[1]}))
                ended += 1
    assert ended > 0.8 * tried


def test_unheld_keywords_are_named() -> None:
    for name, schema in UNHELD.items():
        assert any(name in each for each in read_schema(schema).loose), name
        assert grammar.answer(schema).constraint.grammar


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "http://example.org/schema"},
        {"$ref": "#/nowhere"},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}},
        {"type": "object", "properties": {"x": {"$ref": "#"}}, "required": ["x"]},
        {"type": "nothing"},
        {"enum": []},
        5,
        {"type": "integer", "minimum": 5, "maximum": 4},
        {"type": "string", "minLength": 5, "maxLength": 4},
        False,
        {"allOf": [{"type": "string"}, {"type": "integer"}]},
        {"type": "array", "items": False, "minItems": 1},
        {"enum": "abc"},
        {"properties": []},
        {"minLength": "a"},
        {"minimum": "a"},
        {"anyOf": []},
        {"type": 5},
        {"type": "string", "pattern": "^a$", "minLength": 2},
        {"enum": ["\ud800"]},
    ],
)
def test_impossible_schemas_are_refused(schema: Any) -> None:
    with pytest.raises(UsageError) as caught:
        grammar.answer(schema)
    assert caught.value.hint


def _deep(levels: int) -> Any:
    schema: Any = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


def _doubling(levels: int) -> Any:
    defs = {f"d{n}": {"allOf": [{"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}, {"type": "string"}]}] * 3} for n in range(levels)}
    return {"$ref": "#/$defs/d0", "$defs": {**defs, f"d{levels}": {"type": "integer"}}}


BOMBS = {
    "deep": _deep(5000),
    "doubling": _doubling(30),
    "wide": {"type": "object", "properties": {f"p{n}": {"type": "object", "properties": {"a": {}}} for n in range(20_000)}},
    "repeated": {
        "type": "array",
        "items": {"type": "array", "items": {"type": "string", "maxLength": 2000}, "maxItems": 10**9},
        "maxItems": 10**9,
        "minItems": 10**6,
    },
    "pattern": {"type": "string", "pattern": "((a{1000}){1000}){1000}"},
    "blow-up": {"type": "string", "pattern": ".*a.{30}$"},
    "long": {"type": "string", "pattern": "a" * 100_000},
    "enum": {"enum": [f"{n}" * 50 for n in range(20_000)]},
    "branches": {"allOf": [{"anyOf": [{"minLength": n}, {"maxLength": n + 5}]} for n in range(40)]},
    "huge numbers": {"type": "integer", "minimum": 10**300, "maximum": 10**301, "multipleOf": 10**200},
    "bounds": {"type": "number", "minimum": 1e-300, "maximum": 1e300},
    "counts": {"type": "array", "minItems": 1000, "maxItems": 1000, "items": {"type": "array", "minItems": 1000}},
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_limited(name: str, world: World) -> None:
    try:
        made = grammar.answer(BOMBS[name])
    except UsageError as error:
        assert error.hint
    else:
        assert len(made.constraint.grammar) < 4_000_000
        guide = world.guide(made)
        assert len(guide.every())
    calls = grammar.calls(tool(BOMBS[name]))
    assert world.guide(calls).allows(world.vocab.control("<eos>"))  # it waits for its trigger


def test_patterns_match_as_python_does() -> None:
    rng = random.Random(SEED)
    for source, _ in PATTERNS:
        try:
            mine = pattern(source)
        except UnsupportedPattern:
            continue
        for _ in range(300):
            text = "".join(rng.choice('abzAZ09-@.: äß"\\rgdeu') for _ in range(rng.randint(0, 9)))
            assert mine.matches(text) == bool(re.search(source, text, re.ASCII)), (source, text)
    for name, make in FORMATS.items():
        from localgemma.gemma4.formats import FORMATS as spelled

        assert all(whole(spelled[name]).matches(make(rng)) for _ in range(50)), name


def test_bounds_are_exact() -> None:
    rng = random.Random(SEED)
    compare = {">": Decimal.__gt__, ">=": Decimal.__ge__, "<": Decimal.__lt__, "<=": Decimal.__le__}
    for _ in range(60):
        integer = rng.random() < 0.5
        bounds = [(rng.choice(list(compare)), Decimal(rng.randint(-300, 300)) / rng.choice([1, 10, 100])) for _ in range(2)]
        mine, _ = numbers(integer, bounds)
        for _ in range(40):
            value = rng.choice([bound for _, bound in bounds]) + Decimal(rng.randint(-30, 30)) / rng.choice([1, 10, 100])
            value = value.to_integral_value() if integer else value
            text = format(value.normalize() + 0, "f")
            assert mine.matches(text) == all(compare[sign](value, bound) for sign, bound in bounds), (text, bounds)


def test_values_are_checked_without_a_grammar() -> None:
    assert problem({"type": "integer", "nullable": True}, None) is None
    assert "is not of type 'integer'" in (problem({"properties": {"a": {"type": "integer"}}}, {"a": "x"}) or "")
    assert problem({"type": "string", "pattern": "^(a+)+$"}, "a" * 5000 + "b")  # at once, where Python's matcher would not end
    assert problem({"$ref": "http://localhost:1/x"}, 1)
    assert problem({"items": [{"type": "integer"}], "additionalItems": False}, [1, 2])
    assert problem({"minimum": 1, "exclusiveMinimum": True}, 1)
    assert problem({"required": 5}, {})
