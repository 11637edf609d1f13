"""The choke point: every evaluation passes here, and what llama.cpp would abort on is refused before it."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from typing import Any

from localgemma.errors import BackendError, DecodeError, DoesNotFit, PictureTooLarge
from localgemma.llamacpp import library, log
from localgemma.llamacpp.model import Model
from localgemma.options import LoadOptions

GGML_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "bf16": 30}  # ggml.h enum ggml_type
ABORTED = 2  # llama_decode's code for the abort callback


class Context:
    """KV cache and compute buffers of a model; used by one thread at a time."""

    def __init__(self, model: Model, options: LoadOptions, tokens: int) -> None:
        """Make a context of `tokens` positions. Raises DoesNotFit where llama.cpp cannot make it."""
        self._c = c = library.load()
        self.model = model
        self.ubatch = options.physical_batch
        self.outputs = options.outputs
        self._flag = ctypes.create_string_buffer(2)
        params = c.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = tokens, self.ubatch, self.ubatch
        params.n_seq_max, params.n_outputs_max, params.kv_unified = options.sequences, options.outputs, True
        if options.threads:
            params.n_threads = options.threads
        params.n_threads_batch = options.threads_batch or options.threads or params.n_threads_batch
        params.type_k = params.type_v = GGML_TYPES[options.kv]
        params.flash_attn_type = int(options.flash_attention)
        params.swa_full, params.no_perf = False, True
        log.clear()
        self.pointer = c.llama_init_from_model(model.pointer, params)
        if not self.pointer:
            raise DoesNotFit(f"llama.cpp cannot make a context of {tokens:,} tokens: {log.last_error() or 'no reason given'}.")
        self.size = int(c.llama_n_ctx(self.pointer))
        self.memory = c.llama_get_memory(self.pointer)
        self._batch = c.llama_batch_init(self.ubatch, 0, 1)
        self._pictures: Any = None
        self._set_abort_callback()

    def _set_abort_callback(self) -> None:
        # strlen("") is 0, strlen of one byte is 1: a callback without Python, which would need the interpreter's lock.
        runtime = ctypes.cdll.msvcrt if sys.platform == "win32" else ctypes.CDLL(None)
        self._strlen = runtime.strlen
        callback = ctypes.cast(self._strlen, self._c.ggml_abort_callback)
        self._c.llama_set_abort_callback(self.pointer, callback, ctypes.cast(self._flag, ctypes.c_void_p))
        self._callback = callback

    def interrupt(self, on: bool) -> None:
        """Make the running evaluation (CPU backends) stop, from any thread; stays until switched off."""
        self._flag[0] = b"\1" if on else b"\0"

    def decode(self, tokens: Sequence[int], position: int, outputs: int = 1) -> int:
        """Evaluate up to one ubatch of tokens from `position`; logits for the last `outputs` rows. 0, or ABORTED.

        Raises DecodeError for anything else.
        """
        count = len(tokens)
        if not 0 < count <= self.ubatch or not 0 <= outputs <= min(count, self.outputs):
            raise BackendError(f"A batch of {count} tokens with {outputs} outputs is outside this load's limits.")
        if position < 0 or position + count > self.size:
            raise BackendError(f"Positions {position} to {position + count} are outside the context of {self.size:,}.")
        batch = self._batch
        for row, token in enumerate(tokens):
            if not 0 <= token < self.model.vocab.size:
                raise BackendError(f"Token {token} is outside the vocabulary.")
            batch.token[row], batch.pos[row] = token, position + row
            batch.n_seq_id[row], batch.logits[row] = 1, row >= count - outputs
            batch.seq_id[row][0] = 0
        batch.n_tokens = count
        return self._checked(batch)

    def decode_one(self, token: int, position: int) -> int:
        """Evaluate the token just sampled, with its logits: `decode` without the loop."""
        if position >= self.size:
            raise BackendError(f"Position {position} is outside the context of {self.size:,}.")
        batch = self._batch
        batch.token[0], batch.pos[0], batch.n_seq_id[0], batch.logits[0] = token, position, 1, 1
        batch.seq_id[0][0] = 0
        batch.n_tokens = 1
        return self._checked(batch)

    def decode_picture(self, rows: Any, position: int) -> int:
        """Evaluate a picture's embeddings (float32 [tokens, width]) in one ubatch, each seeing all the others."""
        count, width = rows.shape
        if count > self.ubatch:
            raise PictureTooLarge(count, self.ubatch)
        if width != self.model.width or rows.dtype.name != "float32" or position + count > self.size:
            raise BackendError(f"Picture rows of {rows.shape} do not belong into this model.")
        if self._pictures is None:
            self._pictures = self._c.llama_batch_init(self.ubatch, width, 1)
        batch = self._pictures
        ctypes.memmove(batch.embd, rows.ctypes.data, rows.nbytes)
        for row in range(count):
            batch.pos[row], batch.n_seq_id[row], batch.logits[row] = position + row, 1, 0
            batch.seq_id[row][0] = 0
        batch.n_tokens = count
        self._c.llama_set_causal_attn(self.pointer, False)
        try:
            return self._checked(batch)
        finally:
            self._c.llama_set_causal_attn(self.pointer, True)

    def _checked(self, batch: Any) -> int:
        status = int(self._c.llama_decode(self.pointer, batch))
        if status in (0, ABORTED):
            return status
        reason = "no room in the KV cache" if status == 1 else log.last_error() or "no reason given"
        raise DecodeError(f"llama.cpp could not evaluate the batch ({reason}).", status)

    def logits(self, row: int) -> Any:
        """A copy of the float32 logits of a row of the last batch; BackendError where it has none."""
        import numpy as np

        pointer = self._c.llama_get_logits_ith(self.pointer, row)
        if not pointer:
            raise BackendError(f"Row {row} has no logits.")
        return np.ctypeslib.as_array(pointer, (self.model.vocab.size,)).copy()

    def can_resume(self, position: int) -> bool:
        """Whether the sliding window before `position` is still complete, so that evaluation may go on there."""
        lowest = int(self._c.llama_memory_seq_pos_min(self.memory, 0))
        return position == 0 or (lowest != -1 and lowest <= max(0, position - self.model.window + 1))

    def cut(self, position: int) -> None:
        """Forget everything from `position` on."""
        if position == 0:
            self._c.llama_memory_clear(self.memory, True)
        elif not self._c.llama_memory_seq_rm(self.memory, 0, position, -1):
            raise BackendError("llama.cpp could not shorten the KV cache.")

    @property
    def end(self) -> int:
        """The position after the last that the cache holds."""
        return int(self._c.llama_memory_seq_pos_max(self.memory, 0)) + 1

    def close(self) -> None:
        """Free batches and context."""
        if self.pointer:
            self._c.llama_batch_free(self._batch)
            if self._pictures is not None:
                self._c.llama_batch_free(self._pictures)
            self._c.llama_free(self.pointer)
            self.pointer = None
