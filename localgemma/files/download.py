"""Downloads files of a hub into huggingface_hub's cache: several ranges at once, resumable, proven before they are seen."""

from __future__ import annotations

import contextlib
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from localgemma import net, settings
from localgemma.engine import CancelToken
from localgemma.errors import Cancelled, ChecksumError, DiskError
from localgemma.files import cache
from localgemma.files.cache import cached as cached  # part of this door
from localgemma.files.fetch import Fetch
from localgemma.files.hub import COMMIT, Changed, Resolved, resolve
from localgemma.files.pieces import Partial, Unfinished, unfinished
from localgemma.options import TransferOptions
from localgemma.units import MIB

SPARE = 16 * MIB  # of the disk that a download leaves free
TICK, WINDOW = 0.1, 5.0  # seconds between two reports, and over which the speed is measured
_SPLIT = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")


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
    options: TransferOptions | None = None,
) -> list[Path]:
    """Fetch what is missing and return where each file is, in order.

    A part of a split GGUF (`-00001-of-0000N`) brings the other parts along. Names of revisions change only when every file is
    here. Raises DiskError before the first byte where the disk is too small, ChecksumError, NotFound, AccessError,
    OfflineError, TransferError, Cancelled; whatever happens, a file that can be seen is complete and proven.
    """
    options = options or TransferOptions()
    wanted = [*files, *_other_parts(files, options)]
    if (need := demand(wanted)).missing:
        net.require_online("A download")
        if need.missing + SPARE > need.free:
            raise cache.too_small(need.missing + SPARE, need.free, need.folder)
    report = _Report(progress, cancel, sum(file.size for file in wanted))
    done = [_obtain(file, options, report) for file in wanted]
    for file in done:
        with contextlib.suppress(OSError):  # a cache that cannot be written to may still hold every file
            cache.remember(file)
    return [cache.pointer_of(file.remote, file.commit) for file in done[: len(files)]]


def demand(files: Sequence[Resolved]) -> Demand:
    """What `download` would fetch and how much disk that takes; opens no connection."""
    folder = settings.load().hub_cache
    distinct = list({cache.blob_of(file): file for file in files}.values())
    here = sum(file.size for file in distinct if cache.present(file) or cache.has_blob(file))
    partial = 0
    for file in distinct:
        if not cache.present(file) and not cache.has_blob(file):
            partial += sum(each.proven for each in unfinished(cache.blob_of(file).parent) if each.blob.name == file.etag)
    total = sum(file.size for file in distinct)
    return Demand(total, here, partial, total - here - partial, cache.free_bytes(folder), folder)


def interrupted() -> tuple[Unfinished, ...]:
    """The downloads that were begun and not finished, of every repository in the cache."""
    return tuple(each for blobs in sorted(settings.load().hub_cache.glob("models--*/blobs")) for each in unfinished(blobs))


class _Report:
    """Adds up the progress of all files, and hears of a cancel."""

    def __init__(self, progress: Callable[[Transferred], None] | None, cancel: CancelToken | None, total: int) -> None:
        self._progress, self._cancel, self._total, self._before = progress, cancel, total, 0
        self._seen: deque[tuple[float, int]] = deque()
        self._fetched = 0

    def complete(self, file: Resolved) -> None:
        """A file is done."""
        self.say(file, file.size)
        self._before += file.size

    def say(self, file: Resolved, done: int, fetched: int = 0) -> None:
        """`done` bytes of the file at hand are here, `fetched` more came over the network; raises Cancelled."""
        if self._cancel is not None and self._cancel.cancelled:
            raise Cancelled("The download was stopped.", "Run the same command again: what was fetched is kept.")
        now = time.monotonic()
        self._fetched += fetched
        self._seen.append((now, self._fetched))
        while len(self._seen) > 2 and now - self._seen[0][0] > WINDOW:
            self._seen.popleft()
        if self._progress is not None:
            (then, before), here = self._seen[0], min(self._total, self._before + done)
            speed = (self._fetched - before) / max(now - then, 1e-3)
            left = (self._total - here) / speed if speed > 0 else None
            self._progress(Transferred(here, self._total, speed, left, file.remote.path))


def _other_parts(files: Sequence[Resolved], options: TransferOptions) -> list[Resolved]:
    """The parts of split files that were not asked for."""
    known = {(file.remote.repository, file.commit, file.remote.path) for file in files}
    found = []
    for file in files:
        if not (split := _SPLIT.fullmatch(file.remote.path)):
            continue
        for number in range(1, int(split[3]) + 1):
            path = f"{split[1]}-{number:05}-of-{split[3]}.gguf"
            if (file.remote.repository, file.commit, path) in known:
                continue
            known.add((file.remote.repository, file.commit, path))
            pinned = replace(file.remote, path=path, revision=file.commit)
            if cache.cached(pinned):
                continue
            part = resolve(pinned, options=options)
            found.append(replace(part, remote=replace(part.remote, revision=file.remote.revision)))
    return found


def _obtain(file: Resolved, options: TransferOptions, report: _Report) -> Resolved:
    """Have one file in the cache; returns what it is now, which is another where the hub replaced it under way."""
    try:
        return _have(file, options, report)
    except (Changed, ChecksumError):  # start over, this file only
        now = file if COMMIT.fullmatch(file.remote.revision) else resolve(file.remote, options=options)
        return _have(now, options, report)


def _have(file: Resolved, options: TransferOptions, report: _Report) -> Resolved:
    if not cache.present(file):
        with _locked(file, report):
            if not cache.has_blob(file):
                _fetch(file, options, report)
            if not cache.present(file):
                with cache.disk_errors(lambda: file.size):
                    cache.place(file)
    report.complete(file)
    return file


@contextlib.contextmanager
def _locked(file: Resolved, report: _Report) -> Iterator[None]:
    """Hold the file's lock, which huggingface_hub takes too; while another process fetches the file, show how far it is."""
    path, blob = cache.lock_of(file), cache.blob_of(file)
    lock: BaseFileLock = FileLock(path, mode=0o664)
    while not lock.is_locked:
        try:
            with cache.disk_errors(lambda: file.size), contextlib.suppress(Timeout):
                path.parent.mkdir(parents=True, exist_ok=True)
                lock.acquire(timeout=TICK)
                continue
        except NotImplementedError:  # a file system without locks
            lock = SoftFileLock(path)
        report.say(file, sum(each.proven for each in unfinished(blob.parent) if each.blob == blob))
    try:
        yield
    finally:
        lock.release()


def _fetch(file: Resolved, options: TransferOptions, report: _Report) -> None:
    """Make the file's blob; the caller holds its lock."""
    with cache.disk_errors(lambda: file.size):
        partial = Partial(file, cache.blob_of(file))
    fetch, fetched = Fetch(partial, options), 0
    try:
        fetch.start()
        while True:
            with cache.disk_errors(lambda: file.size - partial.proven_bytes):
                if fetch.check():
                    fetch.stop()
                    partial.finish()
                    break
            fetch.wait(TICK)
            before, fetched = fetched, fetch.fetched
            report.say(file, fetch.done, fetched - before)
    except ChecksumError:
        fetch.stop()
        partial.discard()
        raise
    except DiskError:
        fetch.stop()
        partial.give_back()
        raise
    except net.Interrupted as error:
        error.hint += " What was fetched is kept."
        raise
    finally:
        fetch.stop()
        partial.close()
    _drop_older(file)


def _drop_older(file: Resolved) -> None:
    """Delete what an earlier version of the file left unfinished, unless someone is fetching it."""
    for each in unfinished(cache.blob_of(file).parent):
        if (each.repository, each.path) == (file.remote.repository, file.remote.path) and each.blob.name != file.etag:
            with contextlib.suppress(Timeout, OSError), FileLock(cache.lock_of(replace(file, etag=each.blob.name)), timeout=0):
                each.discard()
