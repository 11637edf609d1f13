"""Tensors of a shape whose file is not at hand, and the few layers that a device's speed is measured with."""

from __future__ import annotations

from dataclasses import replace

from localgemma.files.header import TYPE_SIZES
from localgemma.fit.memory import Weights
from localgemma.gemma4.shape import GEMMA_31B, Shape, matrices, metadata_of, vectors
from localgemma.llamacpp.dryrun import TensorInfo

F32, Q6_K = 0, 14


def tensors_of(shape: Shape, kind: int, embedding: int = Q6_K) -> tuple[TensorInfo, ...]:
    """Every tensor of the shape, the layers' matrices of ggml type `kind`."""
    rows = [
        _tensor("token_embd.weight", (shape.hidden, shape.vocabulary), embedding),
        _tensor("output_norm.weight", (shape.hidden,), F32),
    ]
    full = next((layer for layer in shape.layers if not layer.sliding), None)
    if full:
        rows.append(_tensor("rope_freqs.weight", (full.head_dim // 2,), F32))
    for index in range(len(shape.layers)):
        for role, columns, count in matrices(shape, index):
            rows.append(_tensor(f"blk.{index}.{role}.weight", (columns, count), kind))
        for role, length in vectors(shape, index):
            rows.append(_tensor(f"blk.{index}.{role}.weight", (length,), F32))
    return tuple(rows)


def _tensor(name: str, shape: tuple[int, ...], kind: int) -> TensorInfo:
    values, size = TYPE_SIZES[kind]
    count = 1
    for length in shape:
        count *= length
    return TensorInfo(name, shape, kind, count // values * size)


def for_weights(weights: Weights) -> tuple[dict[str, object], tuple[TensorInfo, ...]]:
    """Metadata and tensors of a dry run: the file's own where its header is at hand, else those of its shape."""
    header = weights.header
    if header is None:
        return metadata_of(weights.shape), tensors_of(weights.shape, weights.types[0][0], weights.output_type)
    return dict(header.metadata), tuple(TensorInfo(t.name, t.shape, t.type_id, t.nbytes) for t in header.tensors)


def layers_only(count: int, shape: Shape = GEMMA_31B) -> Shape:
    """The shape with `count` layers (the first ones, a full one last) and next to no vocabulary."""
    full = [layer for layer in shape.layers if not layer.sliding][:1]
    return replace(shape, layers=(*[layer for layer in shape.layers if layer.sliding][: count - 1], *full), vocabulary=256)
