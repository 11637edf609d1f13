"""Gives a Gemma 4 picture projector the activation it was trained with.

llama.cpp's converter leaves `clip.use_gelu` out of Gemma 4's projectors, and llama.cpp then runs the picture tower with
quick GELU instead of GELU. A copy with that one entry added sees pictures as the model was trained to; the weights are
the same bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import struct
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from localgemma.errors import DiskError, LocalgemmaError
from localgemma.files.header import Header, kind_of, read_header

KEY = "clip.use_gelu"
BLOCK = 4 << 20
SPARE = 16 << 20  # bytes of the disk left free beside the copy
STALE = 24 * 3600  # seconds after which another process's unfinished copy is swept away
_BOOL = 7
_ENTRY = struct.pack("<Q", len(KEY)) + KEY.encode() + struct.pack("<I?", _BOOL, True)
NOTE = (
    "This projector file does not say which activation it needs (clip.use_gelu), "
    "so localgemma uses a corrected copy of it, {copy}."
)


def corrected(path: Path, folder: Path) -> tuple[Path, str | None]:
    """The projector to load in place of `path`, and a note for the user where it is a corrected copy in `folder`.

    A file that says which activation it uses, or that is no Gemma 4 projector, is returned as it is. The copy is
    written once, under a name made from the file's size, time and header, and appears only when it is whole.
    """
    copy = planned(path, folder)
    if copy is None:
        return path, None
    try:
        if not copy.is_whole:
            _make_room(folder, copy.size)
            with path.open("rb") as stream, _whole_or_nothing(copy) as descriptor, os.fdopen(descriptor, "wb") as target:
                stream.seek(copy.data_offset)
                target.write(copy.start)
                while block := stream.read(BLOCK):
                    target.write(block)
                target.flush()
                os.fsync(target.fileno())
    except OSError as error:
        raise DiskError(
            f"The corrected copy of {path.name} could not be written to {folder}: {error.strerror or error}.",
            "Free some space there, or make that folder writable, then try again.",
        ) from error
    return copy.path, NOTE.format(copy=copy.path.name)


@dataclass(frozen=True, slots=True)
class Copy:
    """A corrected copy, made or not: where it belongs, how large it is, the bytes before its weights, and where in the
    original the weights begin."""

    path: Path
    size: int
    start: bytes = field(repr=False)
    data_offset: int

    @property
    def is_whole(self) -> bool:
        """Whether the copy is there, complete and corrected."""
        try:
            header = read_header(self.path)
        except LocalgemmaError:
            return False
        return header.file_size == self.size and header.metadata.get(KEY) is True


def planned(path: Path, folder: Path) -> Copy | None:
    """The corrected copy that `path` has or would get in `folder`; None for a file that needs none. It makes nothing."""
    header = read_header(path)
    if not lacks_activation(header):
        return None
    try:
        with path.open("rb") as stream:
            start = stream.read(header.header_end)
            digest = _digest(header, start, os.fstat(stream.fileno()).st_mtime_ns)
    except OSError as error:
        raise DiskError(f"{path} could not be read: {error.strerror or error}.", "Check its permissions.") from error
    new_start = _new_start(header, start)
    size = len(new_start) + max(header.file_size - header.data_offset, 0)
    return Copy(folder / f"{path.stem}-gelu-{digest}.gguf", size, new_start, header.data_offset)


def lacks_activation(header: Header) -> bool:
    """Whether this is a Gemma 4 projector that says nothing of its activation (both keys at once do not load)."""
    kind = header.text("clip.vision.projector_type") or header.text("clip.projector_type")
    return kind_of(header) == "projector" and kind == "gemma4v" and not {KEY, "clip.use_silu"} & set(header.metadata)


def _digest(header: Header, start: bytes, mtime_ns: int) -> str:
    """A name for the file's content that needs no reading of its weights."""
    whole = f"{header.file_size} {mtime_ns} {hashlib.sha256(start).hexdigest()}"
    return hashlib.sha256(whole.encode()).hexdigest()[:16]


def _new_start(header: Header, start: bytes) -> bytes:
    """The file's bytes before its weights, with the entry added; tensor offsets count from their end and stay."""
    counts = struct.pack("<I", header.version) + struct.pack("<QQ", len(header.tensors), len(header.metadata) + 1)
    body = b"GGUF" + counts + start[24 : header.metadata_end] + _ENTRY + start[header.metadata_end :]
    return body + bytes(-len(body) % header.alignment)


def _make_room(folder: Path, size: int) -> None:
    """The folder, with room for the copy; DiskError where there is none. Sweeps away copies that nobody finished."""
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".*-gelu-*.part"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > STALE:
                left.unlink()
    free = shutil.disk_usage(folder).free
    if free < size + SPARE:
        needs = f"needs {(size + SPARE) / 1e6:,.0f} MB in {folder}, and {free / 1e6:,.0f} MB are free."
        raise DiskError(f"The corrected copy of the projector {needs}", "Free some space there, then try again.")


@contextlib.contextmanager
def _whole_or_nothing(copy: Copy) -> Iterator[int]:
    """A descriptor of a temporary file that becomes the copy at the end, if it has its size; else it is removed."""
    descriptor, name = tempfile.mkstemp(prefix=f".{copy.path.stem}.", suffix=".part", dir=copy.path.parent)
    part = Path(name)
    try:
        yield descriptor
        if part.stat().st_size != copy.size:
            raise DiskError(f"{copy.path.name} came out incomplete: its source changed meanwhile.", "Try again.")
        try:
            os.replace(part, copy.path)
        except PermissionError:  # Windows, where another process has its own copy of the same bytes open
            if not copy.is_whole:
                raise
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
