"""Weights from one number type to another, block by block, with numpy alone.

Every result has the bits that gguf's own `quants` module gives for the same finite values; tests compare them. What that
module turns into an infinity is an `Overflow` here. Sources are BF16, F16 and F32; targets also Q8_0.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Bytes: TypeAlias = "NDArray[np.uint8]"
Words: TypeAlias = "NDArray[np.uint16]"
Floats: TypeAlias = "NDArray[np.float32]"
Piece: TypeAlias = Callable[[Bytes, Bytes], object]

SOURCE_SIZES = {"BF16": 2, "F16": 2, "F32": 4}  # bytes of a value
QK8_0 = 32  # values in a Q8_0 block: a scale in F16, then 32 signed bytes; ggml-common.h
TARGET_SIZES = {"F32": (1, 4), "F16": (1, 2), "BF16": (1, 2), "Q8_0": (QK8_0, 2 + QK8_0)}  # values, bytes of a block
_PIECE = 1 << 16  # values at a time: a piece and its scratch stay in a core's cache
_INFINITY = {"BF16": 0x7F80, "F16": 0x7C00}  # the bits of +infinity; NaNs are above
_BELOW_HALF = int(np.nextafter(np.float32(0.5), np.float32(0)).view(np.uint32))


class Overflow(Exception):
    """A value beyond what the target type can hold."""


def encoded_size(values: int, target: str) -> int:
    """Bytes of `values` values, which fill whole blocks of the target type."""
    block, size = TARGET_SIZES[target]
    return values // block * size


def is_finite(raw: Bytes, source: str) -> bool:
    """Whether no value is NaN or infinite; by two maxima over the bits, for either sign."""
    if source == "F32":
        bits = raw.view(np.uint32)
        return bool(bits.view(np.int32).max() < 0x7F800000 and bits.max() < 0xFF800000)
    words, infinity = raw.view(np.uint16), _INFINITY[source]
    return bool(words.view(np.int16).max() < infinity and words.max() < (0x8000 | infinity))


def encode(raw: Bytes, source: str, target: str, out: Bytes) -> Bytes:
    """The finite values in `raw`, encoded; `out` is room for them, and unused where nothing changes.

    Raises Overflow where a value does not fit the target type.
    """
    if source == target:
        return raw
    size = SOURCE_SIZES[source]
    values = len(raw) // size
    out = out[: encoded_size(values, target)]
    convert = _converter(source, target)
    for start in range(0, values, _PIECE):
        stop = min(values, start + _PIECE)
        convert(raw[start * size : stop * size], out[encoded_size(start, target) : encoded_size(stop, target)])
    if target in _INFINITY and not is_finite(out, target):
        raise Overflow
    return out


def _converter(source: str, target: str) -> Piece:
    """What encodes one piece; it keeps its scratch memory from piece to piece."""
    if (source, target) == ("BF16", "F16"):
        # mode "clip" writes to `out` without a copy
        return lambda raw, out: np.take(_bf16_to_f16(), raw.view(np.uint16), out=out.view(np.uint16), mode="clip")
    widen = _widener(source)
    if target == "F32":
        return lambda raw, out: np.copyto(out.view(np.float32), widen(raw))
    if target == "F16":
        return _f32_to_f16
    if target == "BF16":
        return lambda raw, out: _to_bf16(widen(raw), out)
    quantizer = _Q8()
    return lambda raw, out: quantizer(widen(raw), out)


def _widener(source: str) -> Callable[[Bytes], Floats]:
    """What gives a piece as F32; the result is valid until the next piece."""
    scratch = np.empty(_PIECE, np.float32)

    def from_bf16(raw: Bytes) -> Floats:
        words = raw.view(np.uint16)
        wide = scratch[: len(words)]
        np.left_shift(words, np.uint32(16), out=wide.view(np.uint32))
        return wide

    def from_f16(raw: Bytes) -> Floats:
        words = raw.view(np.uint16)
        wide = scratch[: len(words)]
        np.take(_f16_to_f32(), words, out=wide, mode="clip")
        return wide

    return {"BF16": from_bf16, "F16": from_f16, "F32": lambda raw: raw.view(np.float32)}[source]


@cache
def _bf16_to_f16() -> Words:
    """F16 of each of the 65,536 BF16 values: a look-up is four times as fast as the conversion."""
    wide = (np.arange(1 << 16, dtype=np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        return wide.astype(np.float16).view(np.uint16)


@cache
def _f16_to_f32() -> Floats:
    """F32 of each of the 65,536 F16 values."""
    return np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)


def _f32_to_f16(raw: Bytes, out: Bytes) -> None:
    with np.errstate(over="ignore"):
        np.copyto(out.view(np.float16), raw.view(np.float32), casting="same_kind")


def _to_bf16(wide: Floats, out: Bytes) -> None:
    """Round to the nearest BF16, ties to even."""
    bits = wide.view(np.uint32)
    np.copyto(out.view(np.uint16), (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16, casting="unsafe")


class _Q8:
    """Q8_0: a block's scale is its largest magnitude / 127, its values are rounded with halves away from zero."""

    def __init__(self) -> None:
        self._a = np.empty(_PIECE, np.float32)
        self._b = np.empty(_PIECE, np.float32)
        self._bytes = np.empty(_PIECE, np.int8)

    def __call__(self, wide: Floats, out: Bytes) -> None:
        count = len(wide)
        scale = self._largest(wide) / np.float32(127)
        halves = self._halves(scale)
        with np.errstate(divide="ignore", over="ignore"):
            inverse = np.float32(1) / scale
        inverse[~np.isfinite(inverse)] = 0  # a scale of zero, or so small that F16 makes it zero
        scaled, half = self._b[:count], self._a[:count]
        np.multiply(wide.reshape(-1, QK8_0), inverse[:, None], out=scaled.reshape(-1, QK8_0))
        # Adding the largest number below a half with the value's sign, then cutting, rounds halves away from zero.
        np.bitwise_and(scaled.view(np.uint32), np.uint32(0x80000000), out=half.view(np.uint32))
        np.bitwise_or(half.view(np.uint32), np.uint32(_BELOW_HALF), out=half.view(np.uint32))
        np.add(scaled, half, out=scaled)
        small = self._bytes[:count]
        np.copyto(small, scaled, casting="unsafe")
        blocks = out.reshape(-1, 2 + QK8_0)
        blocks[:, :2] = halves.view(np.uint8).reshape(-1, 2)
        blocks[:, 2:] = small.view(np.uint8).reshape(-1, QK8_0)

    def _largest(self, wide: Floats) -> Floats:
        """The largest magnitude of each block: five passes over the whole piece, each a maximum with a shifted self."""
        magnitude, spare = self._a[: len(wide)], self._b[: len(wide)]
        np.absolute(wide, out=magnitude)
        for shift in (1, 2, 4, 8, 16):
            np.maximum(magnitude[:-shift], magnitude[shift:], out=spare[:-shift])
            magnitude, spare = spare, magnitude
        return magnitude[::QK8_0].copy()

    @staticmethod
    def _halves(scale: Floats) -> NDArray[np.float16]:
        with np.errstate(over="ignore"):
            halves = scale.astype(np.float16)
        if not np.isfinite(halves).all():
            raise Overflow
        return halves
