"""huggingface_hub's cache, which is our store, so that every tool of that family finds our files and we find theirs.

models--owner--name/blobs/<etag> holds the bytes, snapshots/<commit>/<path> points to them, refs/<branch> names a commit, and
.locks/models--owner--name/<etag>.lock is held by whoever fetches (huggingface_hub file_download.py).
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from localgemma import settings
from localgemma.errors import DiskError
from localgemma.files.hub import COMMIT, RemoteFile, Resolved
from localgemma.units import format_size


def repository_folder(repository: str) -> Path:
    """Where the cache keeps a repository."""
    return settings.load().hub_cache / f"models--{repository.replace('/', '--')}"


def blob_of(file: Resolved) -> Path:
    """Where the bytes of a file are, once they are complete."""
    return repository_folder(file.remote.repository) / "blobs" / file.etag


def pointer_of(remote: RemoteFile, commit: str) -> Path:
    """Where a program finds a file of a commit by its name."""
    return repository_folder(remote.repository).joinpath("snapshots", commit, *remote.path.split("/"))


def lock_of(file: Resolved) -> Path:
    """The lock of whoever fetches the file."""
    folder = repository_folder(file.remote.repository)
    return folder.parent / ".locks" / folder.name / f"{file.etag}.lock"


def cached(remote: RemoteFile) -> Path | None:
    """Where a complete copy of the file is in the cache, or None; opens no connection."""
    commit = remote.revision
    if not COMMIT.fullmatch(commit):
        ref = repository_folder(remote.repository).joinpath("refs", *remote.revision.split("/"))
        try:
            commit = ref.read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            return None
        if not COMMIT.fullmatch(commit):
            return None
    pointer = pointer_of(remote, commit)
    return pointer if pointer.is_file() else None


def present(file: Resolved) -> Path | None:
    """Where a copy of the file is in the cache under its name, or None: it has its size and, where it is a link, its hash."""
    pointer = pointer_of(file.remote, file.commit)
    if pointer.is_symlink() and Path(os.readlink(pointer)).name != file.etag:
        return None
    return pointer if _has_size(pointer, file.size) else None


def has_blob(file: Resolved) -> bool:
    """Whether the file's bytes are in the cache, under its name or another."""
    return _has_size(blob_of(file), file.size)


def place(file: Resolved) -> Path:
    """Let the file's name point to its blob; raises OSError."""
    blob, pointer = blob_of(file), pointer_of(file.remote, file.commit)
    pointer.parent.mkdir(parents=True, exist_ok=True)
    fresh = pointer.with_name(f".{pointer.name}.{uuid.uuid4().hex[:8]}")
    try:
        os.symlink(os.path.relpath(blob, pointer.parent), fresh)
    except OSError:
        try:
            os.link(blob, fresh)
        except OSError:  # a file system without links: the blob itself takes the place, as huggingface_hub does it
            os.replace(blob, fresh)
    os.replace(fresh, pointer)
    return pointer


def remember(file: Resolved) -> None:
    """Let the file's branch or tag name its commit; raises OSError."""
    if file.remote.revision == file.commit:
        return
    ref = repository_folder(file.remote.repository).joinpath("refs", *file.remote.revision.split("/"))
    with contextlib.suppress(OSError):
        if ref.read_text(encoding="ascii") == file.commit:
            return
    ref.parent.mkdir(parents=True, exist_ok=True)
    fresh = ref.with_name(f"{ref.name}.{uuid.uuid4().hex[:8]}.tmp")
    fresh.write_text(file.commit, encoding="ascii")
    os.replace(fresh, ref)


def free_bytes(folder: Path) -> int:
    """Free space of the disk that a folder, which need not exist yet, is on."""
    for each in (folder, *folder.absolute().parents):
        with contextlib.suppress(OSError):
            return shutil.disk_usage(each).free
    return 0


@contextlib.contextmanager
def disk_errors(missing: Callable[[], int]) -> Iterator[None]:
    """OSError becomes DiskError; `missing` tells how many bytes were still to be written."""
    try:
        yield
    except OSError as error:
        folder = settings.load().hub_cache
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise too_small(missing(), free_bytes(folder), folder) from error
        hint = "Check the folder and its disk, or set HF_HUB_CACHE to a folder that can be written to."
        raise DiskError(f"{folder} cannot be written to: {error.strerror or error}.", hint) from error


def too_small(missing: int, free: int, folder: Path) -> DiskError:
    """The refusal that names the shortfall."""
    short = format_size(max(1, missing - free))
    return DiskError(
        f"The download needs {format_size(missing)} more, and {folder} has {format_size(free)} free: {short} are missing.",
        f"Free {short}, or set HF_HUB_CACHE to a folder on a larger disk.",
    )


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.is_file() and path.stat().st_size == size
    except OSError:
        return False
