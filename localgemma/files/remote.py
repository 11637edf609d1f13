"""The header of a file that is not on this machine: its first megabytes by range, kept in the cache under commit and path.

What is kept is a sparse file of the published size that holds the header alone, so that everything that reads a GGUF
header can read it.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from localgemma import settings
from localgemma.errors import BadModelFile, LocalgemmaError
from localgemma.files import hub
from localgemma.files.catalog_file import is_safe_path
from localgemma.files.header import Header, read_header
from localgemma.files.hub import RemoteFile, Resolved
from localgemma.whole import disk_errors, whole_file

FIRST = 16 << 20  # bytes asked for at first; the real model's header has 15.8 million
LARGEST = 128 << 20
_COMMIT = re.compile(r"[0-9a-f]{40}")


def kept_header(remote: RemoteFile) -> Header | None:
    """The header of a file pinned by commit, if it was fetched before; it opens no connection."""
    if not _COMMIT.fullmatch(remote.revision):
        return None
    try:
        return read_header(_place(remote.repository, remote.revision, remote.path))
    except LocalgemmaError:
        return None


def fetch_header(remote: RemoteFile | Resolved) -> Header:
    """The header of a published file, from the cache or by range; `path` of it is the sparse file.

    Raises BadModelFile for a file that has no valid header, DiskError, and what `hub.resolve` raises.
    """
    pinned = remote.remote if isinstance(remote, Resolved) else remote
    if kept := kept_header(pinned):
        return kept
    resolved = remote if isinstance(remote, Resolved) else hub.resolve(remote)
    if kept := kept_header(RemoteFile(pinned.repository, resolved.commit, pinned.path)):
        return kept
    place = _place(pinned.repository, resolved.commit, pinned.path)
    start, length = b"", min(FIRST, resolved.size)
    while True:
        start += hub.read_range(resolved, len(start), length - len(start))
        try:
            return _keep(place, start, resolved.size)
        except BadModelFile:
            # The cut-off start of a header reads like a damaged one: only more of the file tells them apart.
            if start[:4] != b"GGUF" or len(start) < length or length >= min(LARGEST, resolved.size):
                raise
            length = min(2 * length, LARGEST, resolved.size)


def _keep(place: Path, start: bytes, size: int) -> Header:
    """Write the sparse file and read it; BadModelFile where `start` does not hold a whole header."""
    with disk_errors(f"The header of {place.name}", place.parent):
        place.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(place) as stream:
            stream.write(start)
            stream.truncate(size)
            stream.flush()
            header = read_header(Path(stream.name))
            if header.header_end > len(start):
                raise BadModelFile(f"{place.name} has a longer header than was read.")
            stream.truncate(header.header_end)
            stream.truncate(size)  # what was read behind the header is given back to the disk
    return read_header(place)


def _place(repository: str, commit: str, path: str) -> Path:
    if not is_safe_path(path):
        raise BadModelFile(f"{path[:80]!r} is no path of a model file.", "Name a .gguf file inside the repository.")
    folder = settings.load().cache_dir / "headers" / repository.replace("/", "--") / commit
    return folder.joinpath(*PurePosixPath(path).parts)
