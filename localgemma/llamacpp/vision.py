"""The projector: pixels to embeddings through mtmd, each picture once."""

from __future__ import annotations

import ctypes
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

from localgemma.errors import BackendError, BadModelFile, DoesNotFit
from localgemma.llamacpp import library, log
from localgemma.llamacpp.model import OUT_OF_MEMORY, Model
from localgemma.messages import Pixels
from localgemma.options import LoadOptions

CACHE_BYTES = 256 << 20  # embeddings kept: 11 pictures of 1,120 tokens for the 31B


class Projector:
    """A vision projector beside a loaded model; embeddings of recent pictures are kept, bounded by bytes."""

    def __init__(self, path: Path, model: Model, options: LoadOptions) -> None:
        """Load `path`. Raises BadModelFile for a projector of another model."""
        self._c = library.load()
        self._m = library.vision()
        self._width = model.width
        self._cache: OrderedDict[str, Any] = OrderedDict()
        params = self._m.mtmd_context_params_default()
        params.use_gpu, params.print_timings, params.warmup = options.projector_on_gpu, False, False
        if options.threads_batch or options.threads:
            params.n_threads = options.threads_batch or options.threads
        params.flash_attn_type = int(options.flash_attention)
        params.image_min_tokens, params.image_max_tokens = 1, 1120  # pictures of any budget pass untouched
        log.clear()
        self._context = self._m.mtmd_init_from_file(os.fsencode(path), model.pointer, params)
        if not self._context:
            reason = log.last_error() or "no reason given"
            if OUT_OF_MEMORY.search(reason):
                raise DoesNotFit(f"There is not enough memory to load {path.name}: {reason}.")
            raise BadModelFile(f"{path.name} does not fit this model: {reason}.")

    def holds(self, picture: Pixels) -> bool:
        """Whether the picture's embedding is in the cache."""
        return picture.sha256 in self._cache

    def encode(self, picture: Pixels) -> Any:
        """float32 [tokens, width] of a picture; from the cache if it was seen before."""
        if (known := self._cache.get(picture.sha256)) is not None:
            self._cache.move_to_end(picture.sha256)
            return known
        rows = self._encode(picture)
        self._cache[picture.sha256] = rows
        while len(self._cache) > 1 and sum(kept.nbytes for kept in self._cache.values()) > CACHE_BYTES:
            self._cache.popitem(last=False)
        return rows

    def _encode(self, picture: Pixels) -> Any:
        import numpy as np

        m = self._m
        if len(picture.rgb) != picture.width * picture.height * 3 or not picture.rgb:
            raise BackendError("A picture's bytes do not match its size.")
        buffer = (ctypes.c_uint8 * len(picture.rgb)).from_buffer_copy(picture.rgb)
        bitmap = m.mtmd_bitmap_init(picture.width, picture.height, buffer)
        marker = m.mtmd_default_marker()
        text = m.mtmd_input_text(marker, len(marker), False, True)
        chunks = m.mtmd_input_chunks_init()
        try:
            status = m.mtmd_tokenize(self._context, chunks, ctypes.byref(text), (m.mtmd_bitmap_p_ctypes * 1)(bitmap), 1)
            if status:
                raise BackendError(f"llama.cpp refused the picture (mtmd_tokenize returned {status}).")
            found = [m.mtmd_input_chunks_get(chunks, i) for i in range(m.mtmd_input_chunks_size(chunks))]
            images = [k for k in found if m.mtmd_input_chunk_get_type(k) == m.MTMD_INPUT_CHUNK_TYPE_IMAGE]
            counts = [int(m.mtmd_input_chunk_get_n_tokens(k)) for k in images]
            if counts != [picture.tokens]:
                raise BackendError(f"llama.cpp makes {counts} tokens of a picture of {picture.tokens}.")
            if m.mtmd_encode_chunk(self._context, images[0]):
                raise DoesNotFit(f"The picture could not be encoded: {log.last_error() or 'no reason given'}.")
            rows = np.ctypeslib.as_array(m.mtmd_get_output_embd(self._context), (picture.tokens, self._width))
            return np.array(rows, dtype=np.float32)
        finally:
            m.mtmd_input_chunks_free(chunks)
            m.mtmd_bitmap_free(bitmap)

    def close(self) -> None:
        """Free the projector."""
        if self._context:
            self._m.mtmd_free(self._context)
            self._context = None
