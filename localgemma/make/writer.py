"""Writes a GGUF file: a header in one piece, then tensors in blocks, by several threads, each block at its own place.

The gguf package writes whole tensors only, and the largest one has 2.8 GB; here a block has at most 16 MiB, so memory
stays bounded. A block is read by position (pread), checked for NaN and infinity, encoded and written.
"""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from localgemma.engine import CancelToken
from localgemma.errors import Cancelled, DiskError
from localgemma.make.encoding import SOURCE_SIZES, Bytes, Overflow, encode, encoded_size, is_finite
from localgemma.make.plan import Entry
from localgemma.make.safetensors import Stored
from localgemma.messages import Progress

ALIGNMENT = 32  # of each tensor; the format's default
BLOCK = 16 << 20  # bytes read at a time; a whole number of values and of Q8_0 blocks
MAX_THREADS = 4
TYPE_IDS = {"F32": 0, "F16": 1, "Q8_0": 8, "BF16": 30}  # ggml.h enum ggml_type
_KINDS = {"u32": (4, "I"), "i32": (5, "i"), "f32": (6, "f"), "bool": (7, "?"), "str": (8, "")}
_ARRAY = 9


@dataclass(frozen=True, slots=True)
class Target:
    """One tensor to write: `shape` has the slowest dimension first; its values are `stored` in the checkpoint, or given."""

    name: str
    shape: tuple[int, ...]
    type: str
    stored: Stored | None = None
    values: Sequence[float] = ()
    patch: int | None = None

    @property
    def count(self) -> int:
        """Number of values."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in the output."""
        return encoded_size(self.count, self.type)


def pack_header(entries: Iterable[Entry], targets: Sequence[Target]) -> tuple[bytes, list[int], int]:
    """The bytes before the weights, each tensor's place in the file, and the file's size."""
    packed = [_string(key) + _value(kind, value) for key, kind, value in entries]
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(targets), len(packed)), *packed]
    offsets, end = [], 0
    for target in targets:
        offsets.append(end)
        shape = target.shape[::-1]
        place = struct.pack("<IQ", TYPE_IDS[target.type], end)
        parts += [_string(target.name), struct.pack(f"<I{len(shape)}Q", len(shape), *shape), place]
        end += _padded(target.nbytes)
    header = b"".join(parts)
    header += bytes(_padded(len(header)) - len(header))
    return header, [len(header) + offset for offset in offsets], len(header) + end


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(kind: str, value: Any) -> bytes:
    """A metadata value with its type before it."""
    single = kind.removesuffix("[]")
    number, code = _KINDS[single]
    if kind == single:
        return struct.pack("<I", number) + (struct.pack(f"<{code}", value) if code else _string(value))
    body = struct.pack(f"<{len(value)}{code}", *value) if code else b"".join(map(_string, value))
    return struct.pack("<IIQ", _ARRAY, number, len(value)) + body


class _File:
    """A file that threads read and write by position."""

    def __init__(self, path: Path, mode: str) -> None:
        self._stream = path.open(mode, buffering=0)
        self._lock = threading.Lock()

    def __enter__(self) -> _File:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stream.close()

    def read(self, into: Bytes, offset: int) -> int:
        """Bytes read, fewer than asked for only where the file ends."""
        view, done = into.data, 0
        while done < len(view):
            if hasattr(os, "preadv"):
                count = os.preadv(self._stream.fileno(), [view[done:]], offset + done)
            else:
                with self._lock:
                    self._stream.seek(offset + done)
                    count = self._stream.readinto(view[done:])  # type: ignore[attr-defined]
            if not count:
                break
            done += count
        return done

    def write(self, data: Bytes, offset: int) -> None:
        """Write all of it."""
        view, done = data.data, 0
        while done < len(view):
            if hasattr(os, "pwrite"):
                done += os.pwrite(self._stream.fileno(), view[done:], offset + done)
            else:
                with self._lock:
                    self._stream.seek(offset + done)
                    done += self._stream.write(view[done:])

    def resize(self, size: int) -> None:
        """Give it that size; what is never written is zeros."""
        self._stream.truncate(size)


@dataclass(frozen=True, slots=True)
class _Block:
    """Values of one tensor: `count` of them from the one at `first`, and where they go."""

    target: Target
    first: int
    count: int
    place: int


class Writer:
    """Fills an output file whose tensors are known; `progress` hears of every block, `cancel` stops it."""

    def __init__(
        self, entries: Iterable[Entry], targets: Sequence[Target], cancel: CancelToken, progress: Callable[[Progress], None]
    ) -> None:
        self.header, self._places, self.size = pack_header(entries, targets)
        self._targets, self._cancel, self._progress = targets, cancel, progress
        self._buffers = threading.local()
        self._stop = threading.Event()

    def write(self, path: Path) -> None:
        """Write all to the file at `path`. Raises BadModelFile, DiskError or Cancelled, or OSError of the output."""
        with ExitStack() as stack:
            output = stack.enter_context(_File(path, "rb+"))
            output.resize(self.size)
            output.write(np.frombuffer(self.header, np.uint8), 0)
            sources: dict[Path, _File] = {}
            for stored in (target.stored for target in self._targets if target.stored is not None):
                if stored.path not in sources:
                    sources[stored.path] = stack.enter_context(_open(stored.path))
            self._run(sources, output)

    def _run(self, sources: dict[Path, _File], output: _File) -> None:
        total = sum(target.nbytes for target in self._targets)
        start, done = time.monotonic(), 0
        pool = ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1), "convert")
        try:
            futures: list[Future[int]] = [pool.submit(self._one, block, sources, output) for block in self._blocks()]
            for future in as_completed(futures):
                done += future.result()
                if self._cancel.cancelled:
                    raise Cancelled("Converting was cancelled.", "Nothing was written.")
                seconds = time.monotonic() - start
                self._progress(Progress("Converting", done, total, seconds / done * (total - done)))
        finally:
            self._stop.set()
            pool.shutdown(wait=True, cancel_futures=True)

    def _blocks(self) -> Iterator[_Block]:
        for target, place in zip(self._targets, self._places, strict=True):
            step = target.count
            if target.stored is not None and target.patch is None:
                step = BLOCK // SOURCE_SIZES[target.stored.dtype]
            for first in range(0, target.count, step):
                count = min(step, target.count - first)
                yield _Block(target, first, count, place + encoded_size(first, target.type))

    def _one(self, block: _Block, sources: dict[Path, _File], output: _File) -> int:
        """Read, check, encode and write one block; the bytes written."""
        if self._stop.is_set() or self._cancel.cancelled:
            return 0
        target, stored = block.target, block.target.stored
        if stored is None:
            data = np.asarray(target.values, np.float32).view(np.uint8)
        else:
            data = self._encoded(block, stored, sources[stored.path])
        output.write(data, block.place)
        return len(data)

    def _encoded(self, block: _Block, stored: Stored, source: _File) -> Bytes:
        target, size = block.target, SOURCE_SIZES[stored.dtype]
        raw = self._buffer("raw", block.count * size)
        try:
            got = source.read(raw, stored.offset + block.first * size)
        except OSError as error:
            raise _unreadable(stored.path, error) from error
        if got < len(raw):
            raise stored.bad("became shorter while it was read", "Wait until it is complete, then try again.")
        if not is_finite(raw, stored.dtype):
            raise stored.bad("holds NaN or infinite values", "The checkpoint is damaged: download this file again.")
        if target.patch is not None:
            raw = _colours_first(raw, target.patch, size)
        try:
            return encode(raw, stored.dtype, target.type, self._buffer("out", encoded_size(block.count, target.type)))
        except Overflow:
            raise stored.bad(f"has values too large for {target.type}", "Choose --type bf16 or f32.") from None

    def _buffer(self, name: str, size: int) -> Bytes:
        """This thread's memory of that name, with room for `size` bytes; kept, since new memory is slow at first touch."""
        buffer: Bytes | None = getattr(self._buffers, name, None)
        if buffer is None or len(buffer) < size:
            buffer = np.empty(size, np.uint8)
            setattr(self._buffers, name, buffer)
        return buffer[:size]


def _open(path: Path) -> _File:
    try:
        return _File(path, "rb")
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> DiskError:
    return DiskError(f"{path} could not be read: {error.strerror or error}.", "Check its permissions and the disk.")


def _colours_first(raw: Bytes, patch: int, size: int) -> Bytes:
    """Patch pixels from [height, width, colour] to [colour, height, width]; the axes before and within a value stay."""
    pixels = raw.reshape(-1, patch, patch, 3, size)
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2, 4)).reshape(-1)
