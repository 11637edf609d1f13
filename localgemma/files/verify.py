"""Proves a file: its structure, and the sha256 of its bytes against what they should be."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from localgemma.engine import CancelToken
from localgemma.errors import Cancelled, DiskError, LocalgemmaError
from localgemma.files import ledger
from localgemma.files.header import read_header
from localgemma.files.projector import Copy

BLOCK = 1 << 20  # bytes read at a time: larger blocks leave the processor's cache before they are hashed
Told = Callable[[int], None]  # how many bytes more were hashed


@dataclass(frozen=True, slots=True)
class Verdict:
    """`intact` is False with a `problem`; without an `expected` sha256 only the structure was proven."""

    path: Path
    intact: bool
    sha256: str
    expected: str | None
    problem: str = ""


def verify(
    path: Path, expected: str | None, *, size: int | None = None, told: Told | None = None, cancel: CancelToken | None = None
) -> Verdict:
    """Check structure, size (where it is known) and sha256, and remember the outcome.

    Raises NotFound, DiskError and Cancelled; a file that is not what it should be is a Verdict.
    """
    problem = _structure(path, size)
    found = sha256_of(path, told=told, cancel=cancel)
    if not problem and expected and found != expected:
        problem = f"its sha256 is {found[:16]}…, not {expected[:16]}…"
    ledger.record(path, found, intact=not problem)
    return Verdict(path, not problem, found, expected, problem)


def verify_copy(original: Path, copy: Copy, *, told: Told | None = None, cancel: CancelToken | None = None) -> Verdict:
    """Check a projector's corrected copy: its header with the one entry more, then the original's weights."""
    digest = hashlib.sha256(copy.start)
    feed_file(digest, original, copy.data_offset, told, cancel)
    return verify(copy.path, digest.hexdigest(), size=copy.size, told=told, cancel=cancel)


def sha256_of(path: Path, *, told: Told | None = None, cancel: CancelToken | None = None) -> str:
    """The sha256 of a file's bytes, in hexadecimal; DiskError and Cancelled."""
    digest = hashlib.sha256()
    feed_file(digest, path, 0, told, cancel)
    return digest.hexdigest()


def _structure(path: Path, size: int | None) -> str:
    """What is wrong with the header, the tensors' places or the size; empty where nothing is."""
    try:
        header = read_header(path)
    except DiskError:
        raise
    except LocalgemmaError as error:
        return error.message.removeprefix(f"{path.name} ").rstrip(".")
    if size is not None and header.file_size != size:
        return f"it has {header.file_size:,} bytes, not {size:,}"
    return ""


def feed_file(digest: hashlib._Hash, path: Path, start: int, told: Told | None, cancel: CancelToken | None) -> None:
    """Hash a file's bytes from `start` to its end; DiskError and Cancelled."""
    block = memoryview(bytearray(BLOCK))
    try:
        with path.open("rb", buffering=0) as stream:
            stream.seek(start)
            while count := stream.readinto(block):
                digest.update(block[:count])
                if told:
                    told(count)
                if cancel is not None and cancel.cancelled:
                    raise Cancelled("Cancelled.")
    except OSError as error:
        raise DiskError(
            f"{path} could not be read: {error.strerror or error}.", "Check its permissions and the disk."
        ) from error
