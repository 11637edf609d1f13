"""What a sequence holds, on disk: llama.cpp's own state, then what it is of, then a checksum of everything before.

llama.cpp aborts on a truncated state and accepts a damaged one or another model's, so nothing is handed to it unverified.

    llama.cpp's sequence state | JSON | length of the JSON (8 bytes) | checksum (32 bytes) | magic (8 bytes)
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

from localgemma.engine import StateInfo
from localgemma.errors import BackendError, BadState, DiskError, NotFound
from localgemma.llamacpp import library
from localgemma.llamacpp.cache import MIN_GAP, Cache, Key
from localgemma.llamacpp.context import Context

_MAGIC = b"lgstate1"
_TAIL = struct.Struct("<Q32s8s")
_CHUNK = 16 << 20  # bytes hashed at once; several chunks run side by side
_LONGEST_HEADER = 1 << 26  # bytes of JSON: far beyond 262,144 tokens
_ROOM = "Make room on the disk, or save without it."
_SAMPLES, _SAMPLE = 256, 1 << 16  # blocks of a model file, and their bytes, that identify it


def save(cache: Cache, keys: list[Key], conversation: str, path: Path) -> StateInfo | None:
    """Write what serves `keys` to `path`; None where nothing of it is held. Raises DiskError."""
    started = time.perf_counter()
    slot = cache.acquire(keys, conversation)
    if slot is None:
        return None
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        if cache.kept(slot, keys) < MIN_GAP:  # another conversation's sequence is left alone
            return None
        cache.prepare(slot, keys)
        _write(cache.context, slot.id, slot.held, partial)
        os.replace(partial, path)
        return _info(slot.held, path.stat().st_size, started)
    except OSError as error:
        raise DiskError(
            f"The state cannot be written: {error.strerror or error}.", "Make room, or save without it."
        ) from error
    finally:
        cache.release(slot)
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def load(cache: Cache, path: Path) -> StateInfo:
    """Bring a saved state into the sequence that is idle longest; see engine.KeepsState."""
    started = time.perf_counter()
    context = cache.context
    keys = _read(context, path)
    slot = cache.acquire([])
    if slot is None:
        raise BackendError("Every sequence is at work.", "Try again when an answer is finished.")
    try:
        cache.clear(slot)
        if not cache.room(len(keys)):
            raise BadState("The running conversations leave no room for the saved state.")
        bindings, count, none = library.load(), ctypes.c_size_t(), (ctypes.c_int32 * 1)()
        name = os.fsencode(path)
        read = bindings.llama_state_seq_load_file(context.pointer, name, slot.id, none, 1, ctypes.byref(count))
        slot.held = list(keys)
        if not read or context.end(slot.id) != len(keys) or not context.can_resume(len(keys), slot.id):
            cache.clear(slot)
            raise BadState("llama.cpp could not load the saved state.")
        return _info(keys, path.stat().st_size, started)
    finally:
        cache.release(slot)


def _info(keys: list[Key], size: int, started: float) -> StateInfo:
    return StateInfo(len(keys), sum(isinstance(key, str) for key in keys), size, time.perf_counter() - started)


def _write(context: Context, sequence: int, held: list[Key], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    none = (ctypes.c_int32 * 1)()
    if not library.load().llama_state_seq_save_file(context.pointer, os.fsencode(path), sequence, none, 0):
        raise DiskError(f"llama.cpp could not write the state to {path.parent}.", _ROOM)
    groups = [(key, list(group)) for key, group in groupby(held)]
    packed = [item for key, group in groups for item in ([[key, len(group)]] if isinstance(key, str) else group)]
    header = json.dumps({**_identity(context), "keys": packed}, separators=(",", ":")).encode()
    with open(path, "ab") as file:
        file.write(header)
        file.flush()
        file.write(_TAIL.pack(len(header), _checksum(path, file.tell()), _MAGIC))


def _identity(context: Context) -> dict[str, Any]:
    options = context.options
    return {
        "model": fingerprint(context.model.path),
        "build": library.build(),
        "layout": [options.kv, options.flash_attention, context.model.window],
    }


def _read(context: Context, path: Path) -> list[Key]:
    """The keys of a file that is whole and belongs here; BadState else."""
    try:
        size = path.stat().st_size
        header = _header(path, size)
    except FileNotFoundError:
        raise NotFound(f"There is no saved state {path}.", "The conversation will be read again from its text.") from None
    except OSError as error:
        raise BadState(f"The saved state cannot be read: {error.strerror or error}.") from error
    words = {"model": "another model file", "build": "another build of llama.cpp", "layout": "another kind of KV cache"}
    for name, value in _identity(context).items():
        if header.get(name) != value:
            raise BadState(f"The saved state is of {words[name]}.")
    keys: list[Key] = []
    for item in header["keys"]:  # what a right checksum covers was written here
        keys += [item] if isinstance(item, int) else [item[0]] * item[1]
    if len(keys) >= context.size:
        raise BadState(f"The saved state holds {len(keys):,} tokens, and this context {context.size:,}.")
    return keys


def _header(path: Path, size: int) -> dict[str, Any]:
    """The JSON of a file whose checksum is right."""
    with open(path, "rb") as file:
        file.seek(max(0, size - _TAIL.size))
        tail = file.read(_TAIL.size)
        if len(tail) < _TAIL.size or not tail.endswith(_MAGIC):
            raise BadState("The saved state is cut off, or no saved state.")
        length, checksum, _ = _TAIL.unpack(tail)
        if not 0 < length <= min(_LONGEST_HEADER, size - _TAIL.size) or _checksum(path, size - _TAIL.size) != checksum:
            raise BadState("The saved state is damaged.")
        file.seek(size - _TAIL.size - length)
        found: dict[str, Any] = json.loads(file.read(length))
        return found


def _checksum(path: Path, end: int) -> bytes:
    """SHA-256 of the SHA-256 of each chunk: several threads hash a file as fast as it is read."""

    def part(start: int) -> bytes:
        with open(path, "rb") as file:
            file.seek(start)
            return hashlib.sha256(file.read(min(_CHUNK, end - start))).digest()

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return hashlib.sha256(b"".join(pool.map(part, range(0, end, _CHUNK)))).digest()


@lru_cache(maxsize=4)
def fingerprint(path: Path) -> str:
    """What tells a model file from another: its size, its beginning and blocks all over it (16 MiB each at most)."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        digest.update(file.read(_CHUNK))
        for index in range(_SAMPLES):
            file.seek(index * max(size - _SAMPLE, 0) // _SAMPLES)
            digest.update(file.read(_SAMPLE))
    return digest.hexdigest()
