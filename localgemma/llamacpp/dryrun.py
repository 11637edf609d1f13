"""What a load would take, from llama.cpp itself, without allocating it: a dry run on a file that has a header and no weights.

The file is sparse and its tokenizer is left out, so that a context takes about 10 ms. The compute buffer is that of the
backends of this build, and of no other. Only `no_alloc` with load mode NONE works: any other mode aborts the process.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import struct
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from localgemma.errors import BadModelFile, DoesNotFit
from localgemma.llamacpp import library, log
from localgemma.llamacpp.context import GGML_TYPES
from localgemma.llamacpp.model import split_arguments
from localgemma.options import LoadOptions

ALIGNMENT = 32  # GGUF's own, for the tensors of the stub
_NUMBER = re.compile(r"(\S+) (compute|output) +buffer size = +([\d.]+) MiB")
_KV = re.compile(r"llama_kv_cache: size = +([\d.]+) MiB")


@dataclass(frozen=True, slots=True)
class Buffers:
    """Bytes by buffer type, as llama.cpp names them (`CUDA0`, `CPU`, `CUDA_Host`); `weights` is empty where unknown."""

    weights: Mapping[str, int]
    compute: Mapping[str, int]
    kv: int
    output: int


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor of the stub: name, shape as GGUF writes it (fastest first), ggml type id and bytes."""

    name: str
    shape: tuple[int, ...]
    type_id: int
    nbytes: int


class DryRun:
    """A model that is only its shapes; `measure` may be called for any context. A context manager."""

    def __init__(self, metadata: Mapping[str, object], tensors: Sequence[TensorInfo], vocabulary: int) -> None:
        """Write the stub: `metadata` without its tokenizer, for a vocabulary of so many tokens."""
        self._folder = tempfile.TemporaryDirectory(prefix="localgemma-")
        self._path = Path(self._folder.name) / "shape.gguf"
        write_stub(self._path, metadata, tensors, vocabulary)
        self._models: dict[tuple[object, ...], Any] = {}

    def measure(self, options: LoadOptions, tokens: int) -> Buffers:
        """The buffers of a context of `tokens` positions under these options. Raises BadModelFile and DoesNotFit."""
        c = library.load()
        model = self._model(options)
        params = c.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = tokens, options.physical_batch, options.physical_batch
        params.n_seq_max, params.n_outputs_max, params.kv_unified = options.sequences, options.outputs, True
        params.n_outputs_max_per_seq = options.draft_tokens + 1 if options.drafter else 1
        params.type_k = params.type_v = GGML_TYPES[options.kv]
        params.flash_attn_type = int(options.flash_attention)
        params.swa_full, params.no_perf = False, True
        with log.collected() as lines:
            context = c.llama_init_from_model(model, params)
        if not context:
            raise DoesNotFit(f"llama.cpp cannot plan a context of {tokens:,} tokens: {log.last_error() or 'no reason given'}.")
        try:
            return _read(context, lines)
        finally:
            c.llama_free(context)

    def _model(self, options: LoadOptions) -> Any:
        key = (options.gpu_layers, options.devices, options.tensor_split, options.split_mode, options.main_gpu)
        if key not in self._models:
            c = library.load()
            params = c.llama_model_default_params()
            params.no_alloc, params.load_mode = True, c.LLAMA_LOAD_MODE_NONE
            keep = split_arguments(c, params, options)
            log.clear()
            pointer = c.llama_model_load_from_file(os.fsencode(self._path), params)
            del keep
            if not pointer:
                raise BadModelFile(f"llama.cpp cannot plan this model: {log.last_error() or 'no reason given'}.")
            self._models[key] = pointer
        return self._models[key]

    def close(self) -> None:
        """Free the models and delete the stub."""
        for pointer in self._models.values():
            library.load().llama_model_free(pointer)
        self._models.clear()
        self._folder.cleanup()

    def __enter__(self) -> DryRun:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _read(context: Any, lines: Sequence[str]) -> Buffers:
    """Sizes from the log, which every platform has; weights by buffer type from the breakdown, where it can be read."""
    compute: dict[str, int] = {}
    output, kv = 0, 0.0
    for line in lines:
        if found := _NUMBER.search(line):
            size = int(float(found[3]) * (1 << 20))
            if found[2] == "output":
                output += size
            else:
                compute[found[1]] = compute.get(found[1], 0) + size
        elif found := _KV.search(line):
            kv += float(found[1]) * (1 << 20)
    return Buffers(_weights(context), compute, int(kv), output)


class _Map(ctypes.Structure):
    """libstdc++'s std::map as it lies in memory: comparison, the head's colour and three links, the count."""

    _fields_ = (
        ("compare", ctypes.c_size_t),
        ("colour", ctypes.c_size_t),
        ("root", ctypes.c_void_p),
        ("left", ctypes.c_void_p),
        ("right", ctypes.c_void_p),
        ("count", ctypes.c_size_t),
    )


def _weights(context: Any) -> dict[str, int]:
    """Bytes of weights by buffer type; empty where this build does not export the C++ function (other than Linux)."""
    functions = _breakdown()
    if functions is None:
        return {}
    breakdown, name = functions
    found = breakdown(context)
    nodes = [found.root] if found.root and 0 < found.count < 64 else []
    result: dict[str, int] = {}
    while nodes:  # a node: colour, parent, left, right, key, then model, context and compute bytes
        words = (ctypes.c_size_t * 8).from_address(nodes.pop())
        nodes += [child for child in (words[2], words[3]) if child]
        result[name(words[4]).decode()] = words[5]
    return result


@functools.cache
def _breakdown() -> tuple[Any, Any] | None:
    try:
        function = library.shared_object("llama")._Z26llama_get_memory_breakdownPK13llama_context
        name = library.shared_object("ggml-base").ggml_backend_buft_name
    except (AttributeError, OSError):
        return None
    function.argtypes, function.restype = [ctypes.c_void_p], _Map
    name.argtypes, name.restype = [ctypes.c_void_p], ctypes.c_char_p
    return function, name


def write_stub(path: Path, metadata: Mapping[str, object], tensors: Sequence[TensorInfo], vocabulary: int) -> None:
    """A GGUF of these shapes whose weights are a hole in the file: all zero, and nothing on the disk."""
    head = _stub(metadata, tensors, vocabulary)
    size = sum(-(-tensor.nbytes // ALIGNMENT) * ALIGNMENT for tensor in tensors)
    with path.open("wb") as stream:
        stream.write(head)
        stream.truncate(len(head) + size)


def _stub(metadata: Mapping[str, object], tensors: Sequence[TensorInfo], vocabulary: int) -> bytes:
    """A GGUF header (version 3) for these shapes, up to where the weights would start."""
    kept = {key: value for key, value in metadata.items() if not key.startswith(("tokenizer.", "general."))}
    architecture = str(metadata["general.architecture"])
    kept |= {"general.architecture": architecture, "tokenizer.ggml.model": "none", f"{architecture}.vocab_size": vocabulary}
    entries = [_string(key) + packed for key, value in kept.items() if (packed := _value(value)) is not None]
    places, offset = [], 0
    for tensor in tensors:
        shape = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
        places.append(_string(tensor.name) + shape + struct.pack("<IQ", tensor.type_id, offset))
        offset += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(entries)) + b"".join(entries) + b"".join(places)
    return head + b"\0" * (-len(head) % ALIGNMENT)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: object) -> bytes | None:
    """A metadata value with its type id, as llama.cpp expects the keys of this family; None for what it does not need."""
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value) if 0 <= value < 1 << 32 else None
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + _string(value)
    if isinstance(value, tuple) and value and all(isinstance(item, bool) for item in value):
        return struct.pack(f"<IIQ{len(value)}?", 9, 7, len(value), *value)
    if isinstance(value, tuple) and value and all(isinstance(item, int) for item in value):
        return struct.pack(f"<IIQ{len(value)}I", 9, 4, len(value), *value)
    return None
