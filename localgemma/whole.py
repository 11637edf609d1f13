"""Files that appear whole or not at all, and the room for them."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from localgemma.errors import DiskError
from localgemma.units import format_size

SPARE = 16 << 20  # bytes of the disk left free beside what is written


def make_room(folder: Path, size: int, what: str) -> None:
    """Create the folder; DiskError where the disk has no room for `size` bytes more there, with the shortfall."""
    with disk_errors(what, folder):
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    missing = size + SPARE - free
    if missing > 0:
        raise DiskError(
            f"{what} needs {format_size(size + SPARE)} in {folder}, and {format_size(free)} are free.",
            f"Free {format_size(missing)} there, then try again.",
        )


@contextlib.contextmanager
def whole_file(target: Path) -> Iterator[BinaryIO]:
    """A file to write beside `target` that takes its place, safe on the disk, when the block ends without an error."""
    part = target.with_name(f".{target.name[:100]}.{secrets.token_hex(4)}.part")
    try:
        with part.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(part, target)
        _sync_folder(target.parent)
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


@contextlib.contextmanager
def disk_errors(what: str, folder: Path) -> Iterator[None]:
    """OSError becomes a DiskError that says what could not be written where."""
    try:
        yield
    except OSError as error:
        raise DiskError(
            f"{what} could not be written to {folder}: {error.strerror or error}.",
            "Free some space there, or make that folder writable, then try again.",
        ) from error


def _sync_folder(folder: Path) -> None:
    """Make the new name last through a power cut, where the system can."""
    with contextlib.suppress(OSError):  # Windows opens no folders
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
