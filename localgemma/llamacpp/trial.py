"""How fast a device really reads weights of a type: decoding with a few layers of the 31B's shape whose weights are zero.

The file is sparse, so nothing is downloaded or written; what zeros decode to is not looked at.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from localgemma.errors import BackendError
from localgemma.llamacpp import library, log
from localgemma.llamacpp.dryrun import TensorInfo, write_stub
from localgemma.llamacpp.model import split_arguments
from localgemma.options import LoadOptions

STEPS = 6


def seconds_a_token(
    metadata: Mapping[str, object], tensors: Sequence[TensorInfo], vocabulary: int, options: LoadOptions, limit: float = 0.4
) -> float:
    """Seconds that one token takes, the median of several; measuring stops after `limit` seconds. Raises BackendError.

    The least would be 6 to 8 % too hopeful: on 16 cores some thread is late at most tokens.
    """
    c = library.load()
    with tempfile.TemporaryDirectory(prefix="localgemma-") as folder:
        path = Path(folder) / "trial.gguf"
        write_stub(path, metadata, tensors, vocabulary)
        params = c.llama_model_default_params()
        params.load_mode = c.LLAMA_LOAD_MODE_MMAP if options.mmap else c.LLAMA_LOAD_MODE_NONE
        keep = split_arguments(c, params, replace(options, tensor_split=None))
        log.clear()
        model = c.llama_model_load_from_file(os.fsencode(path), params)
        del keep
        if not model:
            raise BackendError(f"llama.cpp cannot measure this device: {log.last_error() or 'no reason given'}.")
        try:
            return _decode(c, model, options, limit)
        finally:
            c.llama_model_free(model)
            library.release_threads()


def _decode(c: Any, model: Any, options: LoadOptions, limit: float) -> float:
    params = c.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch, params.n_outputs_max = 256, 16, 16, 1
    params.flash_attn_type, params.swa_full, params.no_perf = int(options.flash_attention), False, True
    if options.threads:
        params.n_threads = params.n_threads_batch = options.threads
    context = c.llama_init_from_model(model, params)
    if not context:
        raise BackendError(f"llama.cpp cannot measure this device: {log.last_error() or 'no reason given'}.")
    seconds, started = list[float](), time.perf_counter()
    try:
        for step in range(40):
            begun = time.perf_counter()
            token = (c.llama_token * 1)(3)
            status = c.llama_decode(context, c.llama_batch_get_one(token, 1))
            c.llama_synchronize(context)
            if status:
                raise BackendError(f"llama.cpp cannot measure this device (llama_decode returned {status}).")
            now = time.perf_counter()
            seconds.append(now - begun)
            if step >= STEPS - 1 and now - started > limit:
                break
        return statistics.median(seconds[1:])  # the first one sets up
    finally:
        c.llama_free(context)
