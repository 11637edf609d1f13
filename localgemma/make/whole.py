"""A file that appears whole or not at all, whoever is killed while it is written."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from localgemma.errors import DiskError, UsageError
from localgemma.units import format_size

RESERVE = 64 << 20  # bytes of disk that stay free


class Draft:
    """The file while it is written: write to `path` (from any process that inherits `handle`), then `keep()` it.

    On Linux it has no name until then, so nothing can be left behind; elsewhere it has a temporary name beside the target,
    which goes when the draft is closed.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self.handle = _unnamed(target.parent)
        self._named = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
        self.path = Path(f"/proc/self/fd/{self.handle}") if self.handle is not None else self._named
        self.leftover = None if self.handle is not None else self._named

    @property
    def size(self) -> int:
        """Bytes written so far."""
        try:
            return (os.stat(self.path) if self.handle is None else os.fstat(self.handle)).st_size
        except FileNotFoundError:
            return 0

    def keep(self) -> None:
        """Give the finished file its name; what had it before is replaced at that moment."""
        if self.handle is None:
            with self._named.open("rb+") as stream:
                os.fsync(stream.fileno())
        else:
            os.fsync(self.handle)
            try:
                self._link(self.target)
                return
            except FileExistsError:
                self._link(self._named)
        os.replace(self._named, self.target)

    def _link(self, name: Path) -> None:
        folder = os.open(name.parent, os.O_RDONLY)  # a folder's descriptor makes Python call linkat, which follows /proc
        try:
            os.link(self.path, name, src_dir_fd=folder, follow_symlinks=True)
        finally:
            os.close(folder)

    def close(self) -> None:
        """Drop what was not kept."""
        if self.handle is not None:
            os.close(self.handle)
        with contextlib.suppress(OSError):
            self._named.unlink()


def _unnamed(folder: Path) -> int | None:
    flag = getattr(os, "O_TMPFILE", None)
    if flag is None or not os.path.isdir("/proc/self/fd"):
        return None
    try:
        return os.open(folder, flag | os.O_RDWR, 0o666)
    except OSError:  # not every file system can
        return None


@contextmanager
def draft(target: Path) -> Iterator[Draft]:
    """A draft of `target`; DiskError for what the file system refuses."""
    try:
        new = Draft(target)
        try:
            yield new
        finally:
            new.close()
    except OSError as error:
        raise disk_error(target, error) from error


def disk_error(target: Path, error: OSError) -> DiskError:
    """The error of a file that could not be written."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    hint = "Free some space, or choose another folder." if full else "Check the folder and its permissions."
    return DiskError(f"{target} could not be written: {error.strerror or error}.", hint)


def check_target(source: Path | None, target: Path, size: int, *, replace: bool = False) -> None:
    """Refuse a target that is the source, exists, has no folder or no room for `size` bytes; UsageError or DiskError."""
    try:
        if source is not None and target.exists() and os.path.samefile(source, target):
            raise UsageError(f"{target} is both input and output.", "Give the output another name.")
        if target.is_dir():
            raise UsageError(f"{target} is a folder.", "Give the name of a file in it.")
        if target.exists() and not target.is_file():
            raise DiskError(f"{target} is not an ordinary file.", "Give another name.")
        if target.exists() and not replace:
            raise UsageError(f"{target} is already there.", "Give another name, or replace it with --force.")
        folder = target.parent
        if not folder.is_dir():
            raise DiskError(f"There is no folder {folder}.", "Make it first, or give another name.")
        if not os.access(folder, os.W_OK):
            raise DiskError(f"{folder} may not be written to.", "Give another folder, or change its permissions.")
        need_room(folder, size)
    except (OSError, ValueError) as error:
        raise DiskError(f"{str(target)!r} cannot be used: {error}.", "Give another name.") from error


def need_room(folder: Path, size: int) -> None:
    """DiskError where the folder's disk has less than `size` bytes and a small reserve free."""
    free = shutil.disk_usage(folder).free
    if free < size + RESERVE:
        raise DiskError(
            f"{folder} has {format_size(free)} free, and {format_size(size + RESERVE)} are needed.",
            "Free some space, or choose another folder.",
        )
