"""Reads the header of a GGUF file (version 2 or 3): metadata and tensor places, never the weights.

Every count and every length is checked against the file's size before anything is allocated, so a damaged or hostile
file gives a `BadModelFile` in bounded time and memory. Long arrays (a vocabulary, its merges) are stepped over: the
metadata keeps an `Array` that says what they are, how many entries they have and where they start. What one header may
cost is bounded too: see cursor.py.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO, Literal

from localgemma.errors import BadModelFile, DiskError, NotFound
from localgemma.files.cursor import AGAIN, SCALARS, U32, U64, Cursor

TYPE_SIZES: dict[int, tuple[int, int]] = {  # id: (values in a block, bytes of a block); source: gguf.GGML_QUANT_SIZES
    0: (1, 4), 1: (1, 2), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 30: (1, 2),  # F32 F16 I8-I64 F64 BF16
    2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 40),  # Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q8_1
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292),  # Q2_K … Q6_K Q8_K
    16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110),  # IQ2_XXS … IQ4_NL IQ3_S
    22: (256, 82), 23: (256, 136), 29: (256, 56), 34: (256, 54), 35: (256, 66),  # IQ2_S IQ4_XS IQ1_M TQ1_0 TQ2_0
    39: (32, 17), 40: (64, 36), 41: (128, 18), 42: (64, 18),  # MXFP4 NVFP4 Q1_0 Q2_0
}  # fmt: skip

MAX_ENTRIES = 16_384  # metadata keys, and tensors; the real model has 51 and 833
MAX_NAME = 63  # bytes of a tensor's name that llama.cpp can hold
KEEP, KEEP_ALL = 1024, 65_536  # arrays of at most so many entries are kept as tuples, and so many in all arrays
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True, slots=True)
class Array:
    """An array that was stepped over: its element type id, its number of entries and where its first entry starts."""

    type_id: int
    count: int
    offset: int


Scalar = bool | int | float | str
Value = Scalar | tuple[Scalar, ...] | Array
Kind = Literal["text", "projector", "drafter", "other"]
KINDS: dict[str, Kind] = {"gemma4": "text", "clip": "projector", "gemma4-assistant": "drafter"}  # by architecture


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor's place; `offset` counts from the header's `data_offset`."""

    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """Everything a GGUF file says before its weights.

    `places` says where each metadata entry starts and ends in the file; `metadata_end` is where the tensor list starts.
    """

    path: Path
    version: int
    metadata: Mapping[str, Value]
    places: Mapping[str, tuple[int, int]]
    tensors: tuple[Tensor, ...]
    metadata_end: int
    header_end: int
    data_offset: int
    alignment: int
    file_size: int

    def array_length(self, key: str) -> int:
        """The number of entries of the array under `key`; 0 where there is no such array."""
        value = self.metadata.get(key)
        return value.count if isinstance(value, Array) else len(value) if isinstance(value, tuple) else 0

    def text(self, key: str) -> str:
        """The string under `key`, or an empty one."""
        value = self.metadata.get(key)
        return value if isinstance(value, str) else ""

    def number(self, key: str) -> int | None:
        """The whole number under `key`, or None."""
        value = self.metadata.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else None


def read_header(path: Path | str) -> Header:
    """Read and check the header of the GGUF file at `path`; NotFound or BadModelFile where that is not possible."""
    path = Path(path)
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            what = "a folder" if stat.S_ISDIR(mode) else "not an ordinary file"
            raise BadModelFile(f"{path} is {what}, where a model file is needed.", "Give a .gguf file.")
        with path.open("rb") as stream:
            return _read(path, stream)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(f"There is no file {path}.", "See what is there with: localgemma models list") from None
    except (OSError, ValueError, MemoryError) as error:  # ValueError: a NUL byte in the name
        hint = "Check the file's name and permissions and the disk, then try again."
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DiskError(f"{str(path)!r} could not be read: {reason}.", hint) from error


def kind_of(header: Header) -> Kind:
    """What the file is for: a language model, a picture projector, a drafter, or something else."""
    return KINDS.get(header.text("general.architecture"), "other")


def in_ollama_form(header: Header) -> bool:
    """Whether this is Gemma 4 as Ollama's converter writes it (its convert/convert_gemma4.go).

    Text and picture tower lie in one file, and the tokenizer goes by another name; llama.cpp loads neither.
    """
    return header.text("general.architecture") == "gemma4" and (
        header.text("tokenizer.ggml.model") == "llama" or any(t.name.startswith(("v.", "mm.")) for t in header.tensors)
    )


def check_text_model(header: Header) -> None:
    """BadModelFile unless this is a Gemma 4 language model that llama.cpp can load."""
    _check_architecture(header, "gemma4", "a Gemma 4 language model")
    if in_ollama_form(header):
        raise BadModelFile(
            f"{header.path.name} is Gemma 4 in Ollama's own form, text and pictures in one file, which llama.cpp cannot load.",
            f"Make a split and corrected copy with: localgemma models import --split {header.path}",
        )


def check_drafter(header: Header) -> None:
    """BadModelFile unless this is a Gemma 4 drafter (assistant model)."""
    _check_architecture(header, "gemma4-assistant", "a Gemma 4 drafter")


def check_projector(header: Header, n_embd: int) -> None:
    """BadModelFile unless this is a Gemma 4 picture projector for a model whose embedding length is `n_embd`."""
    name, hint = header.path.name, "Give the mmproj file that came with the model: --mmproj FILE"
    if kind_of(header) != "projector":
        raise BadModelFile(f"{name} is {_describe(header)}, not a Gemma 4 picture projector.", hint)
    kind = header.text("clip.vision.projector_type") or header.text("clip.projector_type")
    if kind != "gemma4v":
        raise BadModelFile(f"{name} is a projector of type {kind[:64]!r}, not of Gemma 4's type 'gemma4v'.", hint)
    width = header.number("clip.vision.projection_dim")
    if width != n_embd:
        raise BadModelFile(f"{name} is for a model of width {width or 'unknown'}, and this model's width is {n_embd}.", hint)


def _check_architecture(header: Header, architecture: str, what: str) -> None:
    if header.text("general.architecture") != architecture:
        raise BadModelFile(f"{header.path.name} is {_describe(header)}, not {what}.")
    for key, top in (("block_count", 1024), ("embedding_length", 1 << 20)):
        value = header.number(f"{architecture}.{key}")
        if value is None or not 1 <= value <= top:
            raise BadModelFile(f"{header.path.name} is damaged: its {key} is {value}, not 1 to {top:,}.", AGAIN)
    if not header.tensors:
        raise BadModelFile(f"{header.path.name} holds no tensors, only a vocabulary.", "Give a complete .gguf model file.")


def _describe(header: Header) -> str:
    kinds = {"text": "a Gemma 4 language model", "projector": "a picture projector", "drafter": "a Gemma 4 drafter"}
    name = header.text("general.architecture")[:64]
    return kinds.get(kind_of(header)) or (f"a model of architecture {name!r}" if name else "a GGUF file with no architecture")


def _value(cursor: Cursor, kind: int, key: str, kept_left: int) -> Value:
    """The metadata value of type `kind` at the cursor; an array of more than `kept_left` entries is stepped over."""
    if kind in SCALARS or kind == _STRING:
        return cursor.string() if kind == _STRING else cursor.scalar(SCALARS[kind])
    if kind != _ARRAY:
        cursor.bad(f"is damaged: its entry {key[:64]!r} has the unknown type {kind}")
    element, count = cursor.scalar(U32), cursor.scalar(U64)
    if element != _STRING and element not in SCALARS:
        cursor.bad(f"is damaged: its array {key[:64]!r} has elements of the unknown type {element}")
    least = 8 if element == _STRING else SCALARS[element].size
    if count > (cursor.size - cursor.pos) // least:
        cursor.bad(f"is cut off or damaged: its array {key[:64]!r} claims {count:,} entries")
    start = cursor.pos
    if count <= min(KEEP, kept_left):
        return tuple(cursor.string() if element == _STRING else cursor.scalar(SCALARS[element]) for _ in range(count))
    cursor.skip_strings(count) if element == _STRING else cursor.skip(count * least)
    return Array(element, count, start)


def _tensor(cursor: Cursor, seen: set[str]) -> Tensor:
    """The next tensor's record, checked by itself."""
    name = cursor.string()
    shown = repr(name[:64])
    if name in seen:
        cursor.bad(f"is damaged: it has the tensor {shown} twice")
    if len(name.encode("utf-8")) > MAX_NAME:
        cursor.bad(f"is damaged: it has a tensor name of more than {MAX_NAME} bytes, {shown}")
    seen.add(name)
    dimensions = cursor.scalar(U32)
    if not 1 <= dimensions <= 4:
        cursor.bad(f"is damaged: its tensor {shown} has {dimensions:,} dimensions, not 1 to 4")
    shape = tuple(cursor.scalar(U64) for _ in range(dimensions))
    kind, offset = cursor.scalar(U32), cursor.scalar(U64)
    if kind not in TYPE_SIZES:
        cursor.bad(f"has the tensor {shown} of the unknown type {kind}", "Update localgemma, or choose another quantisation.")
    values, (block, size) = prod(shape), TYPE_SIZES[kind]
    if not 0 < values < 1 << 63 or offset >= 1 << 63:
        cursor.bad(f"is damaged: its tensor {shown} has the impossible shape {shape} or place {offset:,}")
    if shape[0] % block:
        cursor.bad(f"is damaged: rows of its tensor {shown} are {shape[0]:,} values, not a multiple of {block}")
    return Tensor(name, shape, kind, offset, values // block * size)


def _check_places(cursor: Cursor, tensors: tuple[Tensor, ...], data: int, alignment: int) -> None:
    """Each tensor aligned and right after the one before, as llama.cpp demands, and all inside the file."""
    expected = 0
    for tensor in tensors:
        if tensor.offset % alignment:
            cursor.bad(f"is damaged: its tensor {tensor.name!r} is not aligned to {alignment} bytes")
        if tensor.offset != expected:
            cursor.bad(f"is damaged: its tensor {tensor.name!r} is at {tensor.offset:,}, not at {expected:,}")
        expected += -(-tensor.nbytes // alignment) * alignment
    missing = data + tensors[-1].offset + tensors[-1].nbytes - cursor.size if tensors else 0
    if missing > 0:
        cursor.bad(f"is cut off: {missing:,} bytes of {cursor.size + missing:,} are missing")


def _read(path: Path, stream: BinaryIO) -> Header:
    cursor = Cursor(path, stream)
    if not cursor.size:
        cursor.bad("is empty")
    cursor.need(min(4, cursor.size))
    if bytes(cursor.buffer[:4]) != b"GGUF":
        cursor.bad("is not a GGUF file", "Give a .gguf model file; see what is there with: localgemma models list")
    cursor.pos = 4
    version, n_tensors, n_entries = cursor.scalar(U32), cursor.scalar(U64), cursor.scalar(U64)
    if version not in (2, 3):
        note = " (big-endian)" if version and not version & 0xFFFF else ""
        cursor.bad(f"is of GGUF version {version}{note}, not 2 or 3", "Download it anew with: localgemma models pull NAME")
    for count, least, what in ((n_tensors, 32, "tensors"), (n_entries, 13, "metadata entries")):
        if count > min(MAX_ENTRIES, cursor.size // least):
            cursor.bad(f"is cut off or damaged: it claims {count:,} {what}")
    metadata: dict[str, Value] = {}
    places: dict[str, tuple[int, int]] = {}
    kept = 0
    for _ in range(n_entries):
        start, key = cursor.pos, cursor.string()
        if not key or key in metadata:
            cursor.bad(f"is damaged: it has the entry {key[:64]!r} twice" if key else "is damaged: it has a nameless entry")
        value = metadata[key] = _value(cursor, cursor.scalar(U32), key, KEEP_ALL - kept)
        kept += len(value) if isinstance(value, tuple) else 0
        places[key] = start, cursor.pos
    metadata_end = cursor.pos
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20 or alignment & (alignment - 1):
        cursor.bad(f"is damaged: its alignment is {str(alignment)[:64]}, not a power of two")
    seen: set[str] = set()
    tensors = tuple(_tensor(cursor, seen) for _ in range(n_tensors))
    data = -(-cursor.pos // alignment) * alignment
    _check_places(cursor, tensors, data, alignment)
    return Header(path, version, metadata, places, tensors, metadata_end, cursor.pos, data, alignment, cursor.size)
