"""Downloads files of a hub into huggingface_hub's cache: several ranges at once, resumable, proven before they are seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from localgemma.engine import CancelToken
from localgemma.files.hub import RemoteFile, Resolved


@dataclass(frozen=True, slots=True)
class Transferred:
    """How far a download is: bytes `done` of `total` over all files, the speed, and the file at hand (its path)."""

    done: int
    total: int
    bytes_per_second: float
    seconds_left: float | None
    file: str


@dataclass(frozen=True, slots=True)
class Demand:
    """What a download would do to the disk, in bytes: `total` of all files, `present` complete ones, `partial` already
    fetched of the others, `missing` still to fetch, `free` on the disk of the cache, and `folder`, where they go."""

    total: int
    present: int
    partial: int
    missing: int
    free: int
    folder: Path


def download(
    files: Sequence[Resolved],
    *,
    progress: Callable[[Transferred], None] | None = None,
    cancel: CancelToken | None = None,
) -> list[Path]:
    """Fetch what is missing and return where each file is, in order.

    A part of a split GGUF (`-00001-of-0000N`) brings the other parts along; its path is the first part's. Raises DiskError
    before the first byte where the disk is too small, ChecksumError, AccessError, OfflineError, TransferError, Cancelled.
    """
    raise NotImplementedError


def demand(files: Sequence[Resolved]) -> Demand:
    """What `download` would fetch and how much disk that takes; opens no connection."""
    raise NotImplementedError


def cached(remote: RemoteFile) -> Path | None:
    """Where a complete copy of the file is in the cache, or None; opens no connection."""
    raise NotImplementedError
