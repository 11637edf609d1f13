"""A file that is being fetched: its bytes so far, and a journal of the pieces that are proven to have arrived.

Both lie beside the blob that they become: `<etag>.localgemma-part`, sparse and as long as the whole, and
`<etag>.localgemma-journal`, a line of JSON that says what it belongs to, then a line for each piece: its number, its sha256.
A line is written after its bytes. Whatever a sudden end leaves, a piece counts only if its bytes still have the hash.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from localgemma.files.hub import Resolved
from localgemma.units import MIB

PIECE = 8 * MIB
PART, JOURNAL = ".localgemma-part", ".localgemma-journal"
_LINE = re.compile(rb"(\d{1,9}) ([0-9a-f]{64})")
_READ = MIB


@dataclass(frozen=True, slots=True)
class Unfinished:
    """An interrupted download: which file of which repository, and the bytes that its pieces take on the disk."""

    blob: Path
    repository: str
    path: str
    size: int
    proven: int

    def discard(self) -> None:
        """Delete it."""
        for end in (PART, JOURNAL):
            self.blob.with_name(self.blob.name + end).unlink(missing_ok=True)


def unfinished(blobs: Path) -> Iterator[Unfinished]:
    """The interrupted downloads in a folder of blobs."""
    for journal in sorted(blobs.glob("*" + JOURNAL)):
        head, claims = _read_journal(journal)
        proven = min(len(claims) * PIECE, head.get("size", 0))
        blob = journal.with_name(journal.name.removesuffix(JOURNAL))
        yield Unfinished(blob, head.get("repository", ""), head.get("path", ""), head.get("size", 0), proven)


class Partial:
    """The unfinished copy of one file, for the process that holds the file's lock; all threads of it may use this.

    `claimed` are pieces that the journal names and nobody has looked at yet, `proven` those whose bytes have their hash.
    Every method raises OSError as the disk does.
    """

    def __init__(self, file: Resolved, blob: Path) -> None:
        self.file, self.size, self.blob, self.piece = file, file.size, blob, PIECE
        self.count = -(-file.size // PIECE)
        self._part, self._journal = blob.with_name(blob.name + PART), blob.with_name(blob.name + JOURNAL)
        self._lock = threading.Lock()
        self._streams: list[BinaryIO] = []
        self.proven: set[int] = set()
        self.claimed: dict[int, str] = {}
        self._log: BinaryIO | None = None
        self._open()

    def _open(self) -> None:
        head, claims = _read_journal(self._journal)
        if head != self._head() or not self._part.is_file():
            self.discard()
            claims = {}
            self._part.parent.mkdir(parents=True, exist_ok=True)
        with self._part.open("ab") as stream:
            stream.truncate(self.size)
        self._log = self._journal.open("ab", buffering=0)
        if not claims and not self._log.tell():
            write_all(self._log, json.dumps(self._head()).encode() + b"\n")
        else:
            write_all(self._log, b"\n")  # ends a line that was cut off
        self.claimed = {index: digest for index, digest in claims.items() if index < self.count}

    def _head(self) -> dict[str, Any]:
        remote = self.file.remote
        known = {"version": 1, "repository": remote.repository, "path": remote.path, "etag": self.file.etag}
        return known | {"size": self.size, "piece": self.piece}

    def bounds(self, index: int) -> tuple[int, int]:
        """Start and stop of a piece in the file."""
        return index * self.piece, min(self.size, (index + 1) * self.piece)

    @property
    def proven_bytes(self) -> int:
        """The size of all proven pieces."""
        whole = len(self.proven) * self.piece
        return whole - (self.count * self.piece - self.size) if self.count - 1 in self.proven else whole

    def stream(self) -> BinaryIO:
        """The bytes, for one thread to read and write."""
        stream = self._part.open("r+b", buffering=0)
        with self._lock:
            self._streams.append(stream)
        return stream

    def check(self, stream: BinaryIO, index: int) -> bool:
        """Whether a piece is proven, after looking at its bytes where it is only claimed."""
        claim = self.claimed.get(index)
        if index in self.proven or claim is None:
            return index in self.proven
        start, stop = self.bounds(index)
        digest = hashlib.sha256()
        for block in read_blocks(stream, start, stop):
            digest.update(block)
        with self._lock:
            self.claimed.pop(index, None)
            if digest.hexdigest() == claim:
                self.proven.add(index)
        return index in self.proven

    def prove(self, index: int, digest: str) -> None:
        """Enter a piece, whose bytes are written, into the journal."""
        with self._lock:
            if self._log is not None and index not in self.proven:
                write_all(self._log, b"%d %s\n" % (index, digest.encode()))
                self.proven.add(index)

    def finish(self) -> None:
        """Make it the blob, at once and for good: the bytes reach the disk before the name does."""
        with self._part.open("r+b") as stream:
            os.fsync(stream.fileno())
        self.close()
        os.replace(self._part, self.blob)
        self._journal.unlink(missing_ok=True)

    def give_back(self) -> None:
        """Leave on the disk what is proven and nothing else: after the disk ran full."""
        known = self.proven | set(self.claimed)
        self.close()
        if not known:
            self.discard()
            return
        with contextlib.suppress(OSError), self._part.open("r+b") as stream:
            stream.truncate(self.bounds(max(known))[1])

    def close(self) -> None:
        """Close every stream; what is proven stays for the next try."""
        with self._lock:
            for stream in (*self._streams, *([self._log] if self._log else [])):
                stream.close()
            self._streams.clear()
            self._log = None

    def discard(self) -> None:
        """Delete it."""
        self.close()
        self._part.unlink(missing_ok=True)
        self._journal.unlink(missing_ok=True)


def read_blocks(stream: BinaryIO, start: int, stop: int) -> Iterator[memoryview]:
    """The bytes from `start` to `stop` in views of one buffer; fewer where the file ends before."""
    buffer = memoryview(bytearray(min(_READ, max(1, stop - start))))
    stream.seek(start)
    while start < stop:
        got = stream.readinto(buffer[: stop - start])  # type: ignore[attr-defined]
        if not got:
            return
        yield buffer[:got]
        start += got


def write_all(stream: BinaryIO, data: bytes | memoryview) -> None:
    """Write every byte: an unbuffered stream may take fewer at a time."""
    view = memoryview(data)
    while view:
        view = view[stream.write(view) :]


def _read_journal(path: Path) -> tuple[dict[str, Any], dict[int, str]]:
    """Its first line, and the pieces that it names; both empty where it cannot be read."""
    try:
        first, *lines = path.read_bytes().split(b"\n")
        head = json.loads(first)
        if not isinstance(head, dict) or not isinstance(head.get("size"), int):
            return {}, {}
    except (OSError, ValueError, RecursionError):
        return {}, {}
    return head, {int(found[1]): found[2].decode() for line in lines if (found := _LINE.fullmatch(line))}
