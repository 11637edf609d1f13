"""The metadata of the two files that one Gemma 4 file in Ollama's own form becomes: what changes, and what is added."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from localgemma.errors import BadModelFile
from localgemma.files.header import Array, Header

ALIGNMENT = 32
_NORMAL, _CONTROL, _USER_DEFINED, _BYTE = 1, 3, 4, 6  # llama.cpp's token types
# Tokens that llama.cpp's converter (conversion/gemma.py) types as user defined, so that they are shown.
_SHOWN = {
    b"<|channel>", b"<channel|>", b"<|tool_call>", b"<tool_call|>", b"<|tool_response>", b"<tool_response|>", b'<|"|>',
}  # fmt: skip
_BYTE_TOKEN = re.compile(rb"<0x[0-9A-Fa-f]{2}>")
_CLIP = (  # an entry of the projector, and the entry it comes from
    ("clip.vision.projection_dim", "gemma4.embedding_length"),
    ("clip.vision.patch_size", "gemma4.vision.patch_size"),
    ("clip.vision.embedding_length", "gemma4.vision.embedding_length"),
    ("clip.vision.feed_forward_length", "gemma4.vision.feed_forward_length"),
    ("clip.vision.block_count", "gemma4.vision.block_count"),
    ("clip.vision.attention.head_count", "gemma4.vision.attention.head_count"),
)


def text_entries(header: Header, start: bytes) -> list[bytes]:
    """The metadata of the text copy: the source's bytes but for the tower's entries and the tokenizer's corrections."""
    changed = {
        "tokenizer.ggml.model": _entry("tokenizer.ggml.model", "gemma4"),
        "tokenizer.ggml.token_type": _token_types(header, start),
        "tokenizer.ggml.add_space_prefix": _entry("tokenizer.ggml.add_space_prefix", False),
        "tokenizer.ggml.add_bos_token": _entry("tokenizer.ggml.add_bos_token", True),
        "general.alignment": _entry("general.alignment", ALIGNMENT),
    }
    kept = [
        start[slice(*place)]
        for key, place in header.places.items()
        if key not in changed and not key.startswith(("gemma4.vision.", "gemma4.audio."))
    ]
    return [*kept, *changed.values()]


def _token_types(header: Header, start: bytes) -> bytes:
    """The entry of token types as llama.cpp's converter gives them, made of Ollama's."""
    tokens, types = (header.metadata.get(f"tokenizer.ggml.{what}") for what in ("tokens", "token_type"))
    if not isinstance(tokens, Array) or not isinstance(types, Array) or types.type_id not in (4, 5):
        raise BadModelFile(f"{header.path.name} has no vocabulary.", "Pull it again with: ollama pull")
    if tokens.type_id != 8 or tokens.count != types.count:
        raise BadModelFile(f"{header.path.name} has a damaged vocabulary.", "Pull it again with: ollama pull")
    given = struct.unpack_from(f"<{types.count}i", start, types.offset)
    right = [_token_type(token, kind) for token, kind in zip(_strings(start, tokens), given, strict=True)]
    key = b"tokenizer.ggml.token_type"
    return struct.pack("<Q", len(key)) + key + struct.pack(f"<IIQ{len(right)}i", 9, 5, len(right), *right)


def _token_type(token: bytes, given: int) -> int:
    if token in _SHOWN:
        return _USER_DEFINED
    if _BYTE_TOKEN.fullmatch(token):
        return _BYTE
    return _CONTROL if given == _CONTROL else _NORMAL


def _strings(start: bytes, array: Array) -> Iterator[bytes]:
    """The texts of an array that the header reader has stepped over, and so checked."""
    place = array.offset
    for _ in range(array.count):
        (length,) = struct.unpack_from("<Q", start, place)
        yield start[place + 8 : place + 8 + length]
        place += 8 + length


def projector_entries(header: Header) -> list[bytes]:
    """The projector's metadata, as llama.cpp's converter writes it for Gemma 4, and with the activation it forgets."""
    numbers = {}
    for key, source in _CLIP:
        value = header.number(source)
        if value is None or not 0 < value < 1 << 31:
            raise BadModelFile(f"{header.path.name} does not describe its picture tower: {source} is {value}.")
        numbers[key] = value
    pooling = header.number("gemma4.vision.projector.scale_factor")
    if pooling not in (None, 3):
        raise BadModelFile(f"{header.path.name} pools pictures by {pooling}, where Gemma 4 pools by 3.")
    epsilon = header.metadata.get("gemma4.vision.attention.layer_norm_epsilon", 1e-6)
    values: dict[str, str | bool | int | float | tuple[float, ...]] = {
        "general.architecture": "clip",
        "general.type": "mmproj",
        "general.file_type": 1,
        "clip.has_vision_encoder": True,
        "clip.use_gelu": True,
        "clip.vision.projector_type": "gemma4v",
        **numbers,
        "clip.vision.image_size": 224,  # required by llama.cpp, used by none
        "clip.vision.image_mean": (0.0, 0.0, 0.0),
        "clip.vision.image_std": (1.0, 1.0, 1.0),
        "clip.vision.attention.layer_norm_epsilon": epsilon if isinstance(epsilon, float) else 1e-6,
    }
    return [_entry(key, value) for key, value in values.items()]


def _entry(key: str, value: str | bool | int | float | tuple[float, ...]) -> bytes:
    """One metadata entry as GGUF stores it."""
    head = struct.pack("<Q", len(key)) + key.encode()
    if isinstance(value, str):
        return head + struct.pack("<IQ", 8, len(value.encode())) + value.encode()
    if isinstance(value, bool):
        return head + struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return head + struct.pack("<II", 4, value)
    if isinstance(value, float):
        return head + struct.pack("<If", 6, value)
    return head + struct.pack(f"<IIQ{len(value)}f", 9, 6, len(value), *value)
