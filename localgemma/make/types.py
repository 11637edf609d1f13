"""The names of quantisations: whole-file recipes that llama.cpp knows, and the types a single tensor can have."""

from __future__ import annotations

import difflib
from math import prod

from localgemma.errors import UsageError
from localgemma.files.header import TYPE_SIZES

FILE_TYPES: dict[str, int] = {  # llama.h enum llama_ftype; names of llama-quantize
    "F32": 0, "F16": 1, "BF16": 32, "Q8_0": 7, "Q6_K": 18, "Q5_K_M": 17, "Q5_K_S": 16, "Q5_1": 9, "Q5_0": 8,
    "Q4_K_M": 15, "Q4_K_S": 14, "Q4_1": 3, "Q4_0": 2, "IQ4_NL": 25, "IQ4_XS": 30, "MXFP4_MOE": 38,
    "Q3_K_L": 13, "Q3_K_M": 12, "Q3_K_S": 11, "IQ3_M": 27, "IQ3_S": 26, "IQ3_XS": 22, "IQ3_XXS": 23,
    "Q2_K": 10, "Q2_K_S": 21, "IQ2_M": 29, "IQ2_S": 28, "IQ2_XS": 20, "IQ2_XXS": 19, "Q2_0": 41,
    "IQ1_M": 31, "IQ1_S": 24, "TQ2_0": 37, "TQ1_0": 36, "Q1_0": 40,
}  # fmt: skip
_ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}

TENSOR_TYPES: dict[str, int] = {  # ggml.h enum ggml_type, those that ggml_quantize_chunk can write
    "f32": 0, "f16": 1, "bf16": 30, "q8_0": 8, "q6_K": 14, "q5_K": 13, "q5_1": 7, "q5_0": 6, "q4_K": 12, "q4_1": 3,
    "q4_0": 2, "iq4_nl": 20, "iq4_xs": 23, "mxfp4": 39, "nvfp4": 40, "q3_K": 11, "iq3_s": 21, "iq3_xxs": 18,
    "q2_K": 10, "iq2_s": 22, "iq2_xs": 17, "iq2_xxs": 16, "q2_0": 42, "iq1_m": 29, "iq1_s": 19,
    "tq2_0": 35, "tq1_0": 34, "q1_0": 41,
}  # fmt: skip
NAMES = {number: name for name, number in TENSOR_TYPES.items()}
PLAIN = frozenset({0, 1, 30})  # F32, F16, BF16
# Quantising to these without an imatrix ends in garbage or an abort: llama-quant.cpp tensor_requires_imatrix and
# ggml.c ggml_quantize_requires_imatrix.
NEED_IMATRIX = frozenset(TENSOR_TYPES[name] for name in ("iq3_xxs", "iq2_xxs", "iq2_xs", "iq2_s", "iq1_m", "iq1_s"))


def file_type(name: str) -> str:
    """The standard spelling of a whole-file type such as `q4_k_m`; UsageError with near names for another."""
    upper = name.strip().upper()
    upper = _ALIASES.get(upper, upper)
    if upper not in FILE_TYPES:
        raise UsageError(f"There is no quantisation type {name[:40]!r}.", _near(upper, FILE_TYPES))
    return upper


def tensor_type(name: str) -> int:
    """The ggml type of a name such as `q6_k`, in any case; UsageError with near names for another."""
    lower = {known.lower(): number for known, number in TENSOR_TYPES.items()}
    if name.strip().lower() not in lower:
        raise UsageError(f"There is no tensor type {name[:40]!r}.", _near(name.lower(), lower))
    return lower[name.strip().lower()]


def type_name(number: int) -> str:
    """The name of a ggml type: `q6_K`."""
    return NAMES.get(number, f"type {number}")


def values(shape: tuple[int, ...]) -> int:
    """Values in a tensor of that shape."""
    return prod(shape)


def nbytes(shape: tuple[int, ...], number: int) -> int:
    """Bytes of a tensor of that shape in that type."""
    block, size = TYPE_SIZES[number]
    return prod(shape) // block * size


def _near(name: str, known: dict[str, int]) -> str:
    near = difflib.get_close_matches(name, known, 3, 0.5)
    return f"Did you mean {' or '.join(near)}?" if near else f"There are: {', '.join(known)}."
