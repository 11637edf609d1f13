"""The projector: pixels to embeddings through mtmd, each picture once."""

from __future__ import annotations

import ctypes
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from localgemma.errors import BackendError, BadModelFile, DoesNotFit
from localgemma.llamacpp import library, log
from localgemma.llamacpp.embeddings import Embeddings
from localgemma.llamacpp.model import OUT_OF_MEMORY, Model
from localgemma.llamacpp.state import fingerprint
from localgemma.messages import Pixels
from localgemma.options import LoadOptions


class Projector:
    """A vision projector beside a loaded model; embeddings are kept, so that no picture is encoded twice.

    On a GPU, pictures of one size are encoded together, as many as are no more work than the largest one allowed.
    """

    def __init__(self, path: Path, model: Model, options: LoadOptions) -> None:
        """Load `path`. Raises BadModelFile for a projector of another model."""
        self._c = library.load()
        self._m = library.vision()
        self._width = model.width
        self._together = options.image_tokens if options.projector_on_gpu and options.gpu_layers else 0
        params = self._m.mtmd_context_params_default()
        params.use_gpu, params.print_timings, params.warmup = options.projector_on_gpu, False, False
        if options.threads_batch or options.threads:
            params.n_threads = options.threads_batch or options.threads
        params.flash_attn_type = int(options.flash_attention)
        params.image_min_tokens, params.image_max_tokens = 1, 1120  # pictures of any budget pass untouched
        params.batch_max_tokens = max(self._together, 1)
        log.clear()
        self._context = self._m.mtmd_init_from_file(os.fsencode(path), model.pointer, params)
        if not self._context:
            reason = log.last_error() or "no reason given"
            if OUT_OF_MEMORY.search(reason):
                raise DoesNotFit(f"There is not enough memory to load {path.name}: {reason}.")
            raise BadModelFile(f"{path.name} does not fit this model: {reason}.")

        folder = options.picture_folder
        if folder is not None:
            facts = f"{fingerprint(path)} {library.build()} {options.flash_attention}"
            folder /= hashlib.sha256(facts.encode()).hexdigest()[:32]
        self._kept = Embeddings(self._width, folder)

    def holds(self, picture: Pixels) -> bool:
        """Whether the picture need not be encoded."""
        return self._kept.get(picture) is not None

    def encode(self, picture: Pixels, following: Sequence[Pixels] = ()) -> Any:
        """float32 [tokens, width] of a picture; from the cache if it was seen before.

        Those of the `following`, which will be asked for next, are encoded with it where they are of its size.
        """
        rows = self._kept.get(picture)
        if rows is None:
            found = self._encode(group := self._group(picture, following))
            for each, result in zip(group, found, strict=False):
                self._kept.put(each, result)
            rows = found[0]
        return rows

    def _group(self, picture: Pixels, following: Sequence[Pixels]) -> list[Pixels]:
        """The picture and others of its size, each once, that were never seen: as many as go into a batch."""
        group = {picture.sha256: picture}
        for other in following:
            if (len(group) + 1) * picture.tokens > self._together:
                break
            if (other.width, other.height) == (picture.width, picture.height) and not self.holds(other):
                group[other.sha256] = other
        return list(group.values())

    def _encode(self, pictures: Sequence[Pixels]) -> list[Any]:
        """The embeddings of pictures of one size; of fewer than were given where llama.cpp takes no more at once."""
        import numpy as np

        m = self._m
        held: list[Any] = []
        batch = m.mtmd_batch_init(self._context)
        try:
            images = []
            for picture in pictures:
                held.append(m.mtmd_input_chunks_init())
                image = self._image(picture, held[-1])
                if m.mtmd_batch_add_chunk(batch, image):  # the first is always taken
                    break
                images.append(image)
            if m.mtmd_batch_encode(batch):
                raise DoesNotFit(f"The picture could not be encoded: {log.last_error() or 'no reason given'}.")
            shape = pictures[0].tokens, self._width
            pointers = [m.mtmd_batch_get_output_embd(batch, image) for image in images]
            return [np.array(np.ctypeslib.as_array(pointer, shape), dtype=np.float32) for pointer in pointers]
        finally:
            m.mtmd_batch_free(batch)
            for chunks in held:
                m.mtmd_input_chunks_free(chunks)

    def _image(self, picture: Pixels, chunks: Any) -> Any:
        """The chunk that stands for the picture among `chunks`, which own it."""
        m = self._m
        if len(picture.rgb) != picture.width * picture.height * 3 or not picture.rgb:
            raise BackendError("A picture's bytes do not match its size.")
        buffer = (ctypes.c_uint8 * len(picture.rgb)).from_buffer_copy(picture.rgb)
        bitmap = m.mtmd_bitmap_init(picture.width, picture.height, buffer)
        marker = m.mtmd_default_marker()
        text = m.mtmd_input_text(marker, len(marker), False, True)
        try:
            status = m.mtmd_tokenize(self._context, chunks, ctypes.byref(text), (m.mtmd_bitmap_p_ctypes * 1)(bitmap), 1)
        finally:
            m.mtmd_bitmap_free(bitmap)
        if status:
            raise BackendError(f"llama.cpp refused the picture (mtmd_tokenize returned {status}).")
        found = [m.mtmd_input_chunks_get(chunks, i) for i in range(m.mtmd_input_chunks_size(chunks))]
        images = [k for k in found if m.mtmd_input_chunk_get_type(k) == m.MTMD_INPUT_CHUNK_TYPE_IMAGE]
        counts = [int(m.mtmd_input_chunk_get_n_tokens(k)) for k in images]
        if counts != [picture.tokens]:
            raise BackendError(f"llama.cpp makes {counts} tokens of a picture of {picture.tokens}.")
        return images[0]

    def close(self) -> None:
        """Free the projector."""
        if self._context:
            self._m.mtmd_free(self._context)
            self._context = None
