"""What a hub says about its files: revisions, sizes and hashes, and any range of their bytes.

Two requests of the hub's protocol are enough: a HEAD of a file's resolve address, and the repository's listing with hashes.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any, TypeVar
from urllib.parse import quote

from localgemma import net, settings
from localgemma.errors import LocalgemmaError, NotFound, TransferError, UsageError
from localgemma.files.refusal import Busy, refusal
from localgemma.options import TransferOptions
from localgemma.units import MIB

COMMIT, SHA256 = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{64}")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_REVISION = re.compile(r"[\w.-]+(?:/[\w.-]+)*", re.ASCII)
_ETAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")  # it becomes a file name
_LISTING_BYTES = 64 * MIB
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file as a person names it: repository `owner/name`, a branch, tag or commit, and its path in the repository.

    Raises UsageError for a name that could reach outside the folder it belongs in.
    """

    repository: str
    revision: str
    path: str

    def __post_init__(self) -> None:
        if not _REPOSITORY.fullmatch(self.repository) or ".." in self.repository or "--" in self.repository:
            raise UsageError(f"{self.repository[:200]!r} is not a repository.", "Write it as owner/name.")
        if not _REVISION.fullmatch(self.revision) or any(not part.strip(".") for part in self.revision.split("/")):
            raise UsageError(f"{self.revision[:200]!r} is not a revision.", "Give a branch, a tag or a commit.")
        parts = self.path.split("/")
        if any(not part.strip(". ") for part in parts) or not self.path.isprintable() or set(self.path) & set('\\:*?"<>|'):
            raise UsageError(f"{self.path[:200]!r} is not a path in a repository.", "Give it as folder/file.gguf.")


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


class Changed(TransferError):
    """The hub has other bytes under this name than it had before."""

    default_hint = "Run the same command again."


def resolve(remote: RemoteFile, *, options: TransferOptions | None = None) -> Resolved:
    """What the hub has under this name now.

    Raises NotFound (with near names), AccessError (gated or private), OfflineError, TransferError.
    """

    def ask() -> Resolved:
        with net.get(url_of(remote), method="HEAD", headers=_token(url_of(remote))) as reply:
            if reply.status == 404 and reply.near.get("x-error-code") == "EntryNotFound":
                raise _no_such_file(remote)
            if not (200 <= reply.status < 400):
                raise refusal(reply, remote.repository, remote.revision, remote.path)
            headers = reply.headers
        size = headers.get("x-linked-size") or ("" if reply.status >= 300 else headers.get("content-length", ""))
        etag = headers.get("x-linked-etag") or headers.get("etag", "")
        return _resolved(remote, headers.get("x-repo-commit", ""), size, _bare(etag))

    return patiently(ask, options)


def list_files(repository: str, revision: str = "main", *, options: TransferOptions | None = None) -> tuple[Resolved, ...]:
    """Every file of a repository at a revision, in the hub's order; raises as `resolve` does."""
    remote = RemoteFile(repository, revision, "-")
    url = f"{settings.load().hub_endpoint}/api/models/{repository}/revision/{quote(revision, safe='')}?blobs=true"

    def ask() -> Any:
        with net.get(url, headers=_token(url)) as reply:
            if reply.status != 200:
                raise refusal(reply, remote.repository, remote.revision, remote.path)
            return reply.body(_LISTING_BYTES)

    try:
        found = json.loads(patiently(ask, options))
        entries = [(str(each["rfilename"]), each["size"], each.get("lfs"), each.get("blobId")) for each in found["siblings"]]
        return tuple(
            _resolved(replace(remote, path=path), found["sha"], str(size), lfs["sha256"] if lfs else blob)
            for path, size, lfs, blob in entries
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _nonsense(f"a listing of {repository} that cannot be read") from error


def read_range(file: RemoteFile | Resolved, start: int, length: int, *, options: TransferOptions | None = None) -> bytes:
    """The bytes from `start`, at most `length` of them: fewer only at the end of the file; raises as `resolve` does.

    From a server without ranges everything before `start` is read and dropped.
    """
    found, silence = bytearray(), options.silence if options else None

    def ask() -> None:
        position = start + len(found)
        with open_range(file, position, start + length, silence) as (reply, first):
            for chunk in reply.chunks():
                found.extend(chunk[max(0, position - first) :][: length - len(found)])
                first += len(chunk)
                position = max(position, first)
                if len(found) == length:
                    return
            end = _total(reply)
            if end is None or position < min(end, start + length):
                raise net.Interrupted(f"The hub sent only a part of {_remote(file).path}.")

    if length > 0:
        with contextlib.suppress(_PastTheEnd):
            patiently(ask, options)
    return bytes(found)


class _PastTheEnd(TransferError):
    """A range that begins behind the last byte."""


@contextlib.contextmanager
def open_range(
    file: RemoteFile | Resolved, start: int, stop: int, silence: float | None = None
) -> Iterator[tuple[net.Reply, int]]:
    """The reply with bytes `start` to `stop` of a file, and the place of its first byte: 0 from a server without ranges.

    Raises Changed where the hub has another file now, Busy and Interrupted where another try may help, and as `resolve` does.
    """
    url = file.url if isinstance(file, Resolved) else url_of(file)
    with net.get(url, span=(start, stop), headers=_token(url), silence=silence) as reply:
        etag = reply.near.get("x-linked-etag") or ("" if reply.foreign else reply.near.get("etag", ""))
        if isinstance(file, Resolved) and reply.status in (200, 206, 416) and etag and _bare(etag) != file.etag:
            raise Changed(f"{file.remote.path} was replaced on the hub.")
        if reply.status == 416 and isinstance(file, Resolved) and start < file.size:
            raise Changed(f"{file.remote.path} has fewer bytes on the hub than it had.")
        if reply.status == 416:
            raise _PastTheEnd(f"{_remote(file).path} has at most {start:,} bytes on the hub.", "Run the same command again.")
        if reply.status not in (200, 206):
            remote = _remote(file)
            raise refusal(reply, remote.repository, remote.revision, remote.path)
        first = int(found[1]) if (found := re.match(r"bytes (\d+)-", reply.headers.get("content-range", ""))) else 0
        if reply.status == 206 and first != start:
            raise net.Interrupted("The hub sent another range than the one it was asked for.")
        if isinstance(file, Resolved) and (total := _total(reply)) not in (None, file.size):
            if etag:  # the same file, so its server is at fault
                raise net.Interrupted(f"The hub sent only a part of {file.remote.path}.")
            raise Changed(f"{file.remote.path} has {total:,} bytes on the hub now, not {file.size:,}.")
        yield reply, first


def patiently(ask: Callable[[], _T], options: TransferOptions | None = None) -> _T:
    """The answer of `ask`, which is asked again after a pause where a connection failed or the hub is busy."""
    options = options or TransferOptions()
    for attempt in range(options.attempts):
        try:
            return ask()
        except net.Interrupted as error:
            if attempt == options.attempts - 1:
                raise
            time.sleep(pause(error, attempt, options))
    raise AssertionError("unreachable")


def pause(error: net.Interrupted, attempt: int, options: TransferOptions) -> float:
    """Seconds to wait after try number `attempt` (from 0) failed with `error`; raises it where the hub asks for too much."""
    after = error.after if isinstance(error, Busy) else None
    if after is not None and after > options.patience:
        raise error
    return after if after is not None else min(options.patience, options.backoff * 2**attempt)


def url_of(remote: RemoteFile, commit: str | None = None) -> str:
    """The address of a file's bytes, of the file at `commit` where given."""
    revision = quote(commit or remote.revision, safe="")
    return f"{settings.load().hub_endpoint}/{remote.repository}/resolve/{revision}/{quote(remote.path)}"


def _no_such_file(remote: RemoteFile) -> NotFound:
    try:
        paths = [each.remote.path for each in list_files(remote.repository, remote.revision)]
    except LocalgemmaError:
        paths = []
    wanted, endpoint = PurePosixPath(remote.path).name, settings.load().hub_endpoint
    names = {PurePosixPath(path).name: path for path in paths}
    near = [names[name] for name in difflib.get_close_matches(wanted, names, 3, 0.5)]
    hint = f"Did you mean {' or '.join(near)}?" if near else f"See {endpoint}/{remote.repository}/tree/main for what it has."
    return NotFound(f"{remote.repository} has no file {remote.path!r}.", hint)


def _resolved(remote: RemoteFile, commit: object, size: str, etag: object) -> Resolved:
    if not (isinstance(commit, str) and COMMIT.fullmatch(commit) and isinstance(etag, str) and _ETAG.fullmatch(etag)):
        raise _nonsense(f"no commit or hash for {remote.path}")
    if not (size.isascii() and size.isdecimal() and len(size) < 16):
        raise _nonsense(f"no size for {remote.path}")
    sha256 = etag if SHA256.fullmatch(etag) else None
    return Resolved(remote, commit, int(size), sha256, etag, url_of(remote, commit))


def _nonsense(what: str) -> TransferError:
    return TransferError(f"The hub gave {what}.", "Check that HF_ENDPOINT names a hub, or try again later.")


def _remote(file: RemoteFile | Resolved) -> RemoteFile:
    return file.remote if isinstance(file, Resolved) else file


def _bare(etag: str) -> str:
    return etag.strip().removeprefix("W/").strip('"')


def _total(reply: net.Reply) -> int | None:
    """The size of the whole file as the reply tells it, or None."""
    if reply.status == 200:
        length = reply.near.get("x-linked-size") or reply.headers.get("content-length", "")
        return int(length) if length.isdecimal() else None
    found = re.fullmatch(r"bytes \d+-\d+/(\d+)", reply.headers.get("content-range", ""))
    return int(found[1]) if found else None


def _token(url: str) -> dict[str, str]:
    """The Authorization header, for the hub alone."""
    known = settings.load()
    if not known.hub_token or not url.startswith(f"{known.hub_endpoint}/"):
        return {}
    return {"Authorization": f"Bearer {known.hub_token}"}
