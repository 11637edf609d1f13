"""The choke point: every evaluation passes here, and what llama.cpp would abort on is refused before it."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from typing import Any

from localgemma.errors import BackendError, DecodeError, DoesNotFit, PictureTooLarge
from localgemma.llamacpp import library, log
from localgemma.llamacpp.batch import Batch, Span
from localgemma.llamacpp.model import Model
from localgemma.options import LoadOptions

GGML_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "bf16": 30}  # ggml.h enum ggml_type
ABORTED = 2  # llama_decode's code for the abort callback
NO_ROOM = 1  # and for a KV cache without enough free cells
_WINDOW = 1  # llama.h LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY: the sliding layers alone


class Context:
    """KV cache and compute buffers of a model; used by one thread at a time."""

    def __init__(self, model: Model, options: LoadOptions, tokens: int, observer: Any = None) -> None:
        """Make a context of `tokens` positions. Raises DoesNotFit where llama.cpp cannot make it.

        `observer` is a ggml_backend_sched_eval_callback that sees every operation; the caller keeps it alive.
        """
        self._c = c = library.load()
        self.model = model
        self.options = options
        self.ubatch = options.physical_batch
        self.outputs = options.outputs
        self._flag = ctypes.create_string_buffer(2)
        params = c.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = tokens, self.ubatch, self.ubatch
        params.n_seq_max, params.n_outputs_max, params.kv_unified = options.sequences, options.outputs, True
        params.n_outputs_max_per_seq = options.draft_tokens + 1 if options.drafter else 1
        if options.threads:
            params.n_threads = options.threads
        params.n_threads_batch = options.threads_batch or options.threads or params.n_threads_batch
        params.type_k = params.type_v = GGML_TYPES[options.kv]
        params.flash_attn_type = int(options.flash_attention)
        params.swa_full, params.no_perf = False, True
        if observer is not None:
            params.cb_eval = observer
        log.clear()
        self.pointer = c.llama_init_from_model(model.pointer, params)
        if not self.pointer:
            raise DoesNotFit(f"llama.cpp cannot make a context of {tokens:,} tokens: {log.last_error() or 'no reason given'}.")
        self.size = int(c.llama_n_ctx(self.pointer))
        self.memory = c.llama_get_memory(self.pointer)
        self._batch = Batch(c, self.ubatch)
        self._pictures: Batch | None = None
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

    def decode(self, tokens: Sequence[int], position: int, outputs: int = 1, sequence: int = 0) -> int:
        """Evaluate up to one ubatch of tokens from `position`; logits for the last `outputs` rows. 0, or ABORTED.

        Raises DecodeError for anything else.
        """
        return self.decode_spans([Span(sequence, tokens, position, outputs)])

    def decode_spans(self, spans: Sequence[Span]) -> int:
        """Evaluate spans of several sequences in one ubatch; rows are in the order given. 0, or ABORTED.

        Either all of it is evaluated or nothing. Raises DecodeError for anything else, with status NO_ROOM for a full cache.
        """
        total = sum(len(span.tokens) for span in spans)
        outputs = sum(span.outputs for span in spans)
        if not 0 < total <= self.ubatch or outputs > self.outputs:
            raise BackendError(f"A batch of {total} tokens with {outputs} outputs is outside this load's limits.")
        for span in spans:
            count = len(span.tokens)
            if not count or not 0 <= span.outputs <= count or not 0 <= span.sequence < self.options.sequences:
                raise BackendError(f"A span of {count} tokens with {span.outputs} outputs is outside this load's limits.")
            if span.position < 0 or span.position + count > self.size:
                raise BackendError(
                    f"Positions {span.position} to {span.position + count} are outside the context of {self.size:,}."
                )
            if min(span.tokens) < 0 or max(span.tokens) >= self.model.vocab.size:
                raise BackendError("A token is outside the vocabulary.")
        return self._checked(self._batch.fill(spans))

    def decode_one(self, token: int, position: int, sequence: int = 0) -> int:
        """Evaluate the token just sampled, with its logits: `decode` without the loop."""
        if position >= self.size:
            raise BackendError(f"Position {position} is outside the context of {self.size:,}.")
        return self._checked(self._batch.fill_one(token, position, sequence))

    def decode_picture(self, rows: Any, position: int, sequence: int = 0) -> int:
        """Evaluate a picture's embeddings (float32 [tokens, width]) in one ubatch, each seeing all the others."""
        count, width = rows.shape
        if count > self.ubatch:
            raise PictureTooLarge(count, self.ubatch)
        if width != self.model.width or rows.dtype.name != "float32" or position + count > self.size:
            raise BackendError(f"Picture rows of {rows.shape} do not belong into this model.")
        if self._pictures is None:
            self._pictures = Batch(self._c, self.ubatch, width)
        batch = self._pictures.fill_rows(rows, position, sequence)
        self._c.llama_set_causal_attn(self.pointer, False)
        try:
            return self._checked(batch)
        finally:
            self._c.llama_set_causal_attn(self.pointer, True)

    def _checked(self, batch: Any) -> int:
        status = int(self._c.llama_decode(self.pointer, batch))
        if status in (0, ABORTED):
            return status
        reason = "no room in the KV cache" if status == NO_ROOM else log.last_error() or "no reason given"
        raise DecodeError(f"llama.cpp could not evaluate the batch ({reason}).", status)

    def logits(self, row: int) -> Any:
        """A copy of the float32 logits of a row of the last batch; BackendError where it has none."""
        import numpy as np

        pointer = self._c.llama_get_logits_ith(self.pointer, row)
        if not pointer:
            raise BackendError(f"Row {row} has no logits.")
        return np.ctypeslib.as_array(pointer, (self.model.vocab.size,)).copy()

    def rows(self, row: int, count: int) -> Any:
        """float32 [count, vocabulary]: the logits of neighbouring rows of the last batch, in llama.cpp's own buffer.

        The next evaluation overwrites them. BackendError where a row has none.
        """
        import numpy as np

        size = self.model.vocab.size
        first = self._c.llama_get_logits_ith(self.pointer, row)
        last = self._c.llama_get_logits_ith(self.pointer, row + count - 1)
        if not first or not last:
            raise BackendError(f"Row {row} has no logits.")
        if ctypes.addressof(last.contents) - ctypes.addressof(first.contents) != 4 * size * (count - 1):
            return np.stack([self.logits(row + index) for index in range(count)])
        return np.ctypeslib.as_array(first, (count, size))

    def can_resume(self, position: int, sequence: int = 0) -> bool:
        """Whether the sliding window before `position` is still complete, so that evaluation may go on there."""
        lowest = int(self._c.llama_memory_seq_pos_min(self.memory, sequence))
        return position == 0 or (lowest != -1 and lowest <= max(0, position - self.model.window + 1))

    def cut(self, position: int, sequence: int = 0) -> None:
        """Forget everything of a sequence from `position` on."""
        if not self._c.llama_memory_seq_rm(self.memory, sequence, position, -1):
            raise BackendError("llama.cpp could not shorten the KV cache.")

    def end(self, sequence: int = 0) -> int:
        """The position after the last that the cache holds."""
        return int(self._c.llama_memory_seq_pos_max(self.memory, sequence)) + 1

    def snapshot(self, sequence: int = 0) -> Any:
        """The sliding layers' last window, as bytes (numpy uint8); it serves evaluation from the end as it is now."""
        import numpy as np

        size = int(self._c.llama_state_seq_get_size_ext(self.pointer, sequence, _WINDOW))
        blob = np.empty(size, np.uint8)
        pointer = blob.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        if self._c.llama_state_seq_get_data_ext(self.pointer, pointer, size, sequence, _WINDOW) != size:
            raise BackendError("llama.cpp could not copy the sliding window.")
        return blob

    def restore(self, blob: Any, position: int, sequence: int = 0) -> bool:
        """Put a snapshot back and cut at `position`, its end or one before; False where the sequence is now empty.

        The other layers must still hold the same tokens up to there; whoever calls sees to that.
        """
        pointer = blob.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        if not self._c.llama_state_seq_set_data_ext(self.pointer, pointer, blob.nbytes, sequence, _WINDOW):
            self.cut(0, sequence)
            return False
        self.cut(position, sequence)
        return self.end(sequence) == position and self.can_resume(position, sequence)

    def share(self, source: int, target: int, end: int) -> None:
        """Let `target`, which is empty, hold the first `end` positions of `source` too.

        Its sliding window must then be restored from a snapshot: cells that two sequences hold are never reused.
        """
        self._c.llama_memory_seq_cp(self.memory, source, target, 0, end)

    def close(self) -> None:
        """Free the context."""
        if self.pointer:
            self._c.llama_free(self.pointer)
            self.pointer = None
