"""Fetches one file into its partial copy: several ranges at once, every piece hashed as it comes, and then the whole.

Workers take spans of pieces from the front; a piece that breaks off goes on where it was. Where a server answers a range with
the whole file, all workers but one leave, and that one listens to the file from its start and keeps what is missing.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from localgemma import net
from localgemma.errors import ChecksumError
from localgemma.files.hub import COMMIT, open_range, pause
from localgemma.files.pieces import Partial, read_blocks, write_all
from localgemma.options import TransferOptions

SPAN = 8  # pieces a request: 64 MiB, so that a hub sees few requests and the hash of the whole stays close behind


@dataclass
class _Begun:
    """A piece that has arrived in part: its bytes so far and their hash."""

    length: int = 0
    digest: Any = field(default_factory=hashlib.sha256)


@dataclass(eq=False)
class _Worker:
    """One connection; whoever holds `lock` may write, unless `dead`."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    dead: bool = False
    reply: net.Reply | None = None
    fetched: int = 0


class Fetch:
    """The download of one file, from `start` until `check` says so; `stop` ends it at any time."""

    def __init__(self, partial: Partial, options: TransferOptions) -> None:
        self.partial, self.options, self.file = partial, options, partial.file
        self._spans = deque(range(0, partial.count, SPAN))
        self._begun: dict[int, _Begun] = {}
        self._lock = threading.Lock()
        self._moved = threading.Condition(self._lock)
        self._stopped = threading.Event()
        self._alone: _Worker | None = None
        self._failure: BaseException | None = None
        self._workers: list[_Worker] = []
        self._threads: list[threading.Thread] = []
        self._left = 0

    @property
    def done(self) -> int:
        """Bytes of the file that are here."""
        return self.partial.proven_bytes + sum(begun.length for begun in list(self._begun.values()))

    @property
    def fetched(self) -> int:
        """Bytes that came over the network."""
        return sum(worker.fetched for worker in self._workers)

    def check(self) -> bool:
        """Whether every byte is here and the hash of the whole is right; raises what went wrong."""
        if self._failure is not None:
            raise self._failure
        return self._left == 0

    def start(self) -> None:
        """Begin; returns at once."""
        count = max(1, min(self.options.connections, len(self._spans)))
        self._workers = [_Worker() for _ in range(count)]
        self._left = count + 1
        targets = [(self._work, worker) for worker in self._workers] + [(self._prove_whole, None)]
        for target, worker in targets:
            thread = threading.Thread(target=self._guarded, args=(target, worker), name="localgemma-fetch", daemon=True)
            self._threads.append(thread)
            thread.start()

    def wait(self, seconds: float) -> None:
        """Until it is over, or `seconds` are."""
        with self._moved:
            self._moved.wait_for(lambda: not self._left or self._failure is not None, seconds)

    def stop(self) -> None:
        """End all work; when this returns, nothing writes any more."""
        self._stopped.set()
        with self._moved:
            self._moved.notify_all()
        for worker in self._workers:
            with worker.lock:
                worker.dead = True
                if worker.reply is not None:
                    worker.reply.abort()
        for thread in self._threads:
            thread.join(1.0)  # one that waits for a name or a connection is left behind: it is dead, and a daemon

    def _guarded(self, target: Any, worker: _Worker | None) -> None:
        try:
            target(worker) if worker else target()
        except BaseException as error:  # handed to whoever waits
            with self._moved:
                if self._failure is None and not self._stopped.is_set():
                    self._failure = error
            self._stopped.set()
        finally:
            with self._moved:
                self._left -= 1
                self._moved.notify_all()

    def _work(self, worker: _Worker) -> None:
        with self.partial.stream() as stream:
            while not self._leaves(worker):
                with self._lock:
                    span = self._spans.popleft() if self._spans else None
                if span is None:
                    return
                self._fetch_span(worker, stream, range(span, min(span + SPAN, self.partial.count)))
                if self._leaves(worker):
                    with self._lock:
                        self._spans.appendleft(span)

    def _leaves(self, worker: _Worker) -> bool:
        return self._stopped.is_set() or self._alone not in (None, worker)

    def _fetch_span(self, worker: _Worker, stream: BinaryIO, span: range) -> None:
        """All pieces of a span that are not proven yet, in as few requests as the gaps between them allow."""
        for index in span:
            if self._leaves(worker):
                return
            if self.partial.check(stream, index):
                self._tell()
        attempt = 0
        while not self._leaves(worker) and (gap := self._gap(span)):
            before = self._progress(gap)
            try:
                self._fetch_gap(worker, stream, gap)
            except net.Interrupted as error:
                if self._leaves(worker):
                    return
                attempt = 0 if self._progress(gap) > before else attempt + 1
                if attempt >= self.options.attempts:
                    raise
                self._stopped.wait(pause(error, attempt, self.options))

    def _gap(self, span: range) -> range | None:
        """The first run of pieces that are missing."""
        missing = [index for index in span if index not in self.partial.proven]
        if not missing:
            return None
        stop = next((index for index in range(missing[0], span.stop) if index in self.partial.proven), span.stop)
        return range(missing[0], stop)

    def _progress(self, gap: range) -> int:
        """Bytes of a gap that need not come again: for one who listens to the whole file, those of proven pieces only."""
        proven = sum(index in self.partial.proven for index in gap) * self.partial.piece
        if self._alone is not None:
            return self.partial.proven_bytes
        return proven + sum(self._begun[index].length for index in gap if index in self._begun)

    def _fetch_gap(self, worker: _Worker, stream: BinaryIO, gap: range) -> None:
        """One request for a run of pieces; raises Interrupted where it ends before the run does."""
        begun = self._begun.get(gap.start)
        position, stop = self.partial.bounds(gap.start)[0] + (begun.length if begun else 0), self.partial.bounds(gap[-1])[1]
        with open_range(self.file, position, stop, self.options.silence) as (reply, first):
            if first != position:
                if self._stay_alone(worker):
                    return  # and ask again: the others had their connections until now
                position, stop = first, self.file.size
            exact = reply.headers.get("content-length") == str(stop - position)  # read to its end, a connection serves again
            try:
                worker.reply = reply
                for chunk in reply.chunks():
                    worker.fetched += len(chunk)
                    position = self._take(worker, stream, position, memoryview(chunk)[: stop - position])
                    if self._leaves(worker) or (position >= stop and not exact):
                        return
            finally:
                worker.reply = None
        if position < stop:
            raise net.Interrupted(f"The hub sent only a part of {self.file.remote.path}.")

    def _take(self, worker: _Worker, stream: BinaryIO, position: int, view: memoryview) -> int:
        """Write bytes that belong at `position`, except those of proven pieces; returns the place after them."""
        while view:
            index = position // self.partial.piece
            start, stop = self.partial.bounds(index)
            part, view = view[: stop - position], view[stop - position :]
            if not self.partial.check(stream, index):
                begun = self._begun[index] = _Begun() if position == start else self._begun[index]
                with worker.lock:
                    if worker.dead:
                        return position
                    stream.seek(position)
                    write_all(stream, part)
                begun.digest.update(part)
                begun.length += len(part)
                if position + len(part) == stop:
                    self.partial.prove(index, begun.digest.hexdigest())
                    del self._begun[index]
                    self._tell()
            position += len(part)
        return position

    def _stay_alone(self, worker: _Worker) -> bool:
        """Send the other workers away; False where this one is alone already."""
        with self._moved:
            if self._alone is worker:
                return False
            if self._alone is None:
                self._alone = worker
        for other in self._workers:
            if other is not self._alone and other.reply is not None:
                other.reply.abort()
        with self._moved:
            while self._alone is worker and self._left > 2 and not self._stopped.is_set():
                self._moved.wait(0.5)
        return True

    def _tell(self) -> None:
        with self._moved:
            self._moved.notify_all()

    def _prove_whole(self) -> None:
        """Hash the file from its start as far as its pieces are proven, and compare in the end."""
        etag = self.file.etag
        if self.file.sha256:
            expected, digest = self.file.sha256, hashlib.sha256()
        elif COMMIT.fullmatch(etag):  # git's own hash of a small file
            expected, digest = etag, hashlib.sha1(b"blob %d\0" % self.file.size)
        else:
            return
        with self.partial.stream() as stream:
            for index in range(self.partial.count):
                with self._moved:
                    while index not in self.partial.proven and not self._stopped.is_set():
                        self._moved.wait(0.5)
                if self._stopped.is_set():
                    return
                for block in read_blocks(stream, *self.partial.bounds(index)):
                    digest.update(block)
        if digest.hexdigest() != expected:
            hint = "Run the same command again; if it stays so, the hub or a proxy on the way is at fault."
            raise ChecksumError(f"{self.file.remote.path} came with other bytes than the hub says it has.", hint)
