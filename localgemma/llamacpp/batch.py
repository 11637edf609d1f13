"""Batches for llama_decode over arrays of our own, filled by slices: a row costs a fraction of a microsecond."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class Span:
    """Tokens of one sequence from `position` on; the last `outputs` of them get logits."""

    sequence: int
    tokens: Sequence[int]
    position: int
    outputs: int = 0


class Batch:
    """A llama_batch of up to `capacity` rows: tokens, or embeddings of `width` floats, or (`both`) a token with each."""

    def __init__(self, bindings: Any, capacity: int, width: int = 0, *, both: bool = False) -> None:
        self._tokens: Any = (ctypes.c_int32 * capacity)()
        self._positions = (ctypes.c_int32 * capacity)()
        self._counts = (ctypes.c_int32 * capacity)(*[1] * capacity)
        self._sequences = (ctypes.c_int32 * capacity)()
        self._outputs: Any = (ctypes.c_int8 * capacity)()
        self._rows: Any = (ctypes.c_float * (capacity * width))() if width else None
        one = ctypes.POINTER(ctypes.c_int32)
        start = ctypes.addressof(self._sequences)
        self._pointers = (one * capacity)(*[ctypes.cast(start + 4 * row, one) for row in range(capacity)])
        self.struct = bindings.llama_batch(
            n_tokens=0,
            token=ctypes.cast(self._tokens, one) if both or not width else None,
            embd=ctypes.cast(self._rows, ctypes.POINTER(ctypes.c_float)) if self._rows is not None else None,
            pos=ctypes.cast(self._positions, one),
            n_seq_id=ctypes.cast(self._counts, one),
            seq_id=ctypes.cast(self._pointers, ctypes.POINTER(one)),
            logits=ctypes.cast(self._outputs, ctypes.POINTER(ctypes.c_int8)),
        )

    def fill(self, spans: Sequence[Span], embeddings: Any = None) -> Any:
        """The struct, holding the spans one after another; `embeddings` points to the floats that go with the tokens."""
        if embeddings is not None:
            ctypes.memmove(self._rows, embeddings, ctypes.sizeof(self._rows))
        start = 0
        for span in spans:
            count = len(span.tokens)
            end = start + count
            self._tokens[start:end] = span.tokens
            self._positions[start:end] = list(range(span.position, span.position + count))
            self._sequences[start:end] = [span.sequence] * count
            self._outputs[start:end] = b"\0" * (count - span.outputs) + b"\1" * span.outputs
            start = end
        self.struct.n_tokens = start
        return self.struct

    def fill_one(self, token: int, position: int, sequence: int) -> Any:
        """The struct, holding one token with its logits."""
        self._tokens[0], self._positions[0], self._sequences[0], self._outputs[0] = token, position, sequence, 1
        self.struct.n_tokens = 1
        return self.struct

    def fill_rows(self, rows: Any, position: int, sequence: int, *, output: bool = False) -> Any:
        """The struct, holding embeddings (float32 [rows, width]) from `position` on; `output` asks for their logits."""
        count = len(rows)
        ctypes.memmove(self._rows, rows.ctypes.data, rows.nbytes)
        self._positions[:count] = list(range(position, position + count))
        self._sequences[:count] = [sequence] * count
        self._outputs[:count] = bytes([output]) * count
        self.struct.n_tokens = count
        return self.struct
