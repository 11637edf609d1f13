"""The vocabulary of a checkpoint as llama.cpp's `gemma4` tokenizer reads it: tokens, their types, merges, chat template."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localgemma.errors import BadModelFile
from localgemma.make.plan import Entry
from localgemma.make.safetensors import read_bytes, read_json

NORMAL, CONTROL, USER_DEFINED, BYTE = 1, 3, 4, 6  # llama.h enum llama_token_type
SCORE = -1000.0  # of every token: the tokenizer goes by merges alone
# Markers that llama.cpp shows in its output, so that replies can be parsed; llama.cpp conversion/gemma.py.
VISIBLE = frozenset(
    {"<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", '<|"|>'}
)
CANONICAL_TEMPLATE = Path(__file__).parent.parent / "assets" / "chat_template.jinja"
_CANONICAL_SHA256 = "ae53464b"  # the first digits; Google's template of 2026-07-09
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_KINDS = {"bos": "bos", "eos": "eos", "unk": "unknown", "sep": "seperator", "pad": "padding", "mask": "mask"}
_DEFAULTS = {f"{kind}_token": f"<{kind}>" for kind in ("bos", "eos", "unk", "pad", "mask")}  # transformers GemmaTokenizer
_SPACE = chr(ord(" ") + 256)  # what a space inside a merge is written as, since a space parts its halves


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Tokens by id with their types, the merges by rank, ids of special tokens by kind, and the chat template.

    `adds` says by kind which of them a tokenizer puts around every text; Gemma 4 always begins with bos.
    """

    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]
    special: dict[str, int]
    adds: dict[str, bool]
    template: str
    template_note: str

    def metadata(self) -> Iterator[Entry]:
        """All of it as llama.cpp reads it."""
        yield "tokenizer.ggml.model", "str", "gemma4"
        yield "tokenizer.ggml.tokens", "str[]", self.tokens
        yield "tokenizer.ggml.scores", "f32[]", [SCORE] * len(self.tokens)
        yield "tokenizer.ggml.token_type", "i32[]", self.types
        yield "tokenizer.ggml.merges", "str[]", self.merges
        for kind, token in self.special.items():
            yield f"tokenizer.ggml.{_KINDS[kind]}_token_id", "u32", token
        for kind, value in self.adds.items():
            yield f"tokenizer.ggml.add_{kind}_token", "bool", value or kind == "bos"
        yield "tokenizer.chat_template", "str", self.template
        yield "tokenizer.ggml.add_space_prefix", "bool", False
        if "bos" not in self.adds:
            yield "tokenizer.ggml.add_bos_token", "bool", True


def read_vocabulary(folder: Path, config: dict[str, Any]) -> Vocabulary:
    """The vocabulary in `folder`; `config` is its config.json, which fills in ids of special tokens.

    Raises NotFound where there is no tokenizer.json or tokenizer_config.json, BadModelFile for another kind of tokenizer.
    """
    tokenizer = read_json(folder / "tokenizer.json", "tokenizer")
    settings = read_json(folder / "tokenizer_config.json", "tokenizer's configuration")
    model = tokenizer.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE" or not model.get("byte_fallback"):
        raise _bad("is not Gemma's kind of tokenizer (BPE with byte fallback)")
    base, added = _base(model.get("vocab")), _added(tokenizer.get("added_tokens") or [])
    tokens = _by_id(base, added)
    special_names = set(_special_names(settings))
    types = tuple(_type(text, number, len(base), special_names) for number, text in enumerate(tokens))
    template, note = _template(folder, settings)
    special = _special_ids(settings, added, config, len(tokens))
    adds = {kind: settings.get(f"add_{kind}_token") for kind in ("bos", "eos", "sep")}
    given = {kind: value for kind, value in adds.items() if isinstance(value, bool)}
    return Vocabulary(tokens, types, _merges(model.get("merges")), special, given, template, note)


def _bad(what: str) -> BadModelFile:
    return BadModelFile(f"tokenizer.json {what}.", "Use the tokenizer that came with the model.")


def _base(vocabulary: object) -> dict[str, int]:
    if not isinstance(vocabulary, dict) or not vocabulary or not all(type(number) is int for number in vocabulary.values()):
        raise _bad("has no vocabulary of texts and numbers")
    return vocabulary


def _added(entries: object) -> dict[str, int]:
    """Added tokens by text; the first of several with the same text counts."""
    added: dict[str, int] = {}
    for entry in entries if isinstance(entries, list) else [None]:
        text, number = (entry.get("content"), entry.get("id")) if isinstance(entry, dict) else (None, None)
        if not isinstance(text, str) or type(number) is not int:
            raise _bad("has added tokens without text or number")
        added.setdefault(text, number)
    return added


def _by_id(base: dict[str, int], added: dict[str, int]) -> tuple[str, ...]:
    """Every token's text by its number; the numbers must be 0, 1, 2 … without a gap."""
    texts: dict[int, str] = {}
    for text, number in (*base.items(), *added.items()):
        if texts.setdefault(number, text) != text:
            raise _bad(f"gives the number {number} to two tokens, {texts[number][:32]!r} and {text[:32]!r}")
    for number in range(len(texts)):
        if number not in texts:
            raise _bad(f"has no token with the number {number}")
    try:
        "".join(texts.values()).encode()
    except UnicodeEncodeError:
        raise _bad("has a token that is no valid text") from None
    return tuple(texts[number] for number in range(len(texts)))


def _type(text: str, number: int, base: int, special: set[str]) -> int:
    if text in VISIBLE:
        return USER_DEFINED
    if number < base and _BYTE.fullmatch(text):
        return BYTE
    if text in special:
        return CONTROL
    return NORMAL if number < base else USER_DEFINED


def _special_names(settings: dict[str, Any]) -> Iterator[str]:
    """The texts of all special tokens: what transformers' GemmaTokenizer makes of a tokenizer_config.json."""
    named = {key: value for key, value in settings.items() if key.endswith("_token")}
    values = [*(_DEFAULTS | named).values()]
    for key in ("model_specific_special_tokens", "extra_special_tokens", "additional_special_tokens"):
        more = settings.get(key)
        values += more.values() if isinstance(more, dict) else more if isinstance(more, list) else []
    for value in values:
        if text := _text(value):
            yield text


def _text(token: object) -> str | None:
    """The text of a token that is written as a string or as an object."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _special_ids(settings: dict[str, Any], added: dict[str, int], config: dict[str, Any], count: int) -> dict[str, int]:
    """Ids of the special tokens that llama.cpp knows by kind."""
    ids: dict[str, int] = {}
    for kind in _KINDS:
        text = _text(settings.get(f"{kind}_token"))
        if text is not None and text in added:
            ids[kind] = added[text]
    section = config.get("text_config")
    for kind in _KINDS:
        number = config.get(f"{kind}_token_id")
        if number is None and isinstance(section, dict):
            number = section.get(f"{kind}_token_id")
        if type(number) is int:
            ids.setdefault(kind, number)
    for kind, number in ids.items():
        if not 0 <= number < count:
            raise BadModelFile(
                f"config.json has {kind}_token_id = {number}, and there are {count:,} tokens.",
                "Use the config.json and tokenizer.json that came with the model.",
            )
    return ids


def _merges(entries: object) -> tuple[str, ...]:
    """Merges as `left right`, from either of the two ways in which they are written."""
    if not isinstance(entries, list) or not entries:
        raise _bad("has no merges")
    if all(isinstance(entry, str) for entry in entries):
        return tuple(entries)
    if not all(
        isinstance(entry, list) and len(entry) == 2 and all(isinstance(half, str) for half in entry) for entry in entries
    ):
        raise _bad("has merges that are no pairs of texts")
    return tuple(" ".join(half.replace(" ", _SPACE) for half in entry) for entry in entries)


def _template(folder: Path, settings: dict[str, Any]) -> tuple[str, str]:
    """The chat template, and where it is from: the folder's own, or where it has none, Google's of 2026-07-09."""
    template, source = settings.get("chat_template"), "tokenizer_config.json"
    if isinstance(template, list):
        entries = [entry for entry in template if isinstance(entry, dict)]
        template = next((entry.get("template") for entry in entries if entry.get("name") == "default"), None)
    if not isinstance(template, str):
        path = folder / "chat_template.jinja"
        source = path.name
        if not path.exists():
            path, source = CANONICAL_TEMPLATE, "the one that comes with localgemma, since the folder has none"
        try:
            template = read_bytes(path, "chat template").decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
        except UnicodeDecodeError:
            raise BadModelFile(f"{path.name} is no valid text.", "Download it again.") from None
    known = hashlib.sha256(template.encode()).hexdigest().startswith(_CANONICAL_SHA256)
    return template, f"{source}, {'Google’s of 2026-07-09' if known else 'not Google’s of 2026-07-09'}"
