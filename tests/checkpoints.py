"""Small checkpoints for tests: configurations are stored, weights are made from their tensors' names, the same everywhere."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

DATA = Path(__file__).parent / "data" / "convert"
WIDTHS = {"BF16": 2, "F16": 2, "F32": 4}
Layout = Mapping[str, Mapping[str, tuple[str, tuple[int, ...]]]]  # file name: tensor: (type, shape)


def weights(name: str, dtype: str, shape: tuple[int, ...]) -> bytes:
    """Finite values of either sign, from 2^-20 to 2^-5 in magnitude, that depend on the name alone."""
    size = WIDTHS[dtype]
    count = int(np.prod(shape, dtype=np.int64))
    noise = np.frombuffer(hashlib.shake_256(name.encode()).digest(count * size), f"<u{size}")
    if dtype == "F16":  # a sign bit, five of exponent, ten of mantissa: 2^-14 … 2^1
        return ((noise & 0x83FF) | ((1 + (noise >> 10 & 0xF)) << 10)).astype("<u2").tobytes()
    shift = 7 if dtype == "BF16" else 23
    sign, mantissa = 1 << (8 * size - 1), (1 << shift) - 1
    return ((noise & (sign | mantissa)) | ((107 + (noise >> shift & 0xF)) << shift)).astype(f"<u{size}").tobytes()


def write_safetensors(
    path: Path,
    tensors: Mapping[str, tuple[str, tuple[int, ...]]],
    make: Callable[[str, str, tuple[int, ...]], bytes] = weights,
) -> None:
    """One safetensors file."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    parts: list[bytes] = []
    end = 0
    for name, (dtype, shape) in tensors.items():
        parts.append(make(name, dtype, tuple(shape)))
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + len(parts[-1])]}
        end += len(parts[-1])
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(parts))


def stored_layout(model: str) -> Layout:
    """Files, tensors, types and shapes of a stored model."""
    layout: Layout = json.loads((DATA / model / "layout.json").read_text())
    return layout


def write_checkpoint(model: str, folder: Path, dtypes: tuple[str, ...] = ()) -> Path:
    """The stored model `model`, with weights, in `folder`; `dtypes` are taken in turn instead of its own types."""
    folder.mkdir(parents=True)
    for file in (DATA / model).iterdir():
        if file.name != "layout.json":
            shutil.copyfile(file, folder / file.name)
    turn = 0
    for name, tensors in stored_layout(model).items():
        changed = {}
        for tensor, (dtype, shape) in tensors.items():
            changed[tensor] = (dtypes[turn % len(dtypes)] if dtypes else dtype, tuple(shape))
            turn += 1
        write_safetensors(folder / name, changed)
    return folder
