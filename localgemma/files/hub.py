"""What a hub says about its files: revisions, sizes and hashes, and any range of their bytes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file as a person names it: repository `owner/name`, a branch, tag or commit, and its path in the repository."""

    repository: str
    revision: str
    path: str


@dataclass(frozen=True, slots=True)
class Resolved:
    """A file as the hub has it now.

    `commit` is 40 hex digits; `size` is in bytes; `sha256` is the hash of a file in large-file storage, None of a small one;
    `etag` names its blob in the cache (the sha256, or git's own hash of a small file); `url` gives the bytes.
    """

    remote: RemoteFile
    commit: str
    size: int
    sha256: str | None
    etag: str
    url: str


def resolve(remote: RemoteFile) -> Resolved:
    """What the hub has under this name now.

    Raises NotFound (with near names), AccessError (gated or private), OfflineError, TransferError.
    """
    raise NotImplementedError


def list_files(repository: str, revision: str = "main") -> tuple[Resolved, ...]:
    """Every file of a repository at a revision, in the hub's order; raises as `resolve` does."""
    raise NotImplementedError


def read_range(file: RemoteFile | Resolved, start: int, length: int) -> bytes:
    """The bytes from `start`, at most `length` of them: fewer only at the end of the file; raises as `resolve` does."""
    raise NotImplementedError
