"""Downloads: whatever the hub, the line, the disk or a sudden end does, a file that can be seen is whole and proven."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from standin_hub import Fault, Hub

from localgemma.engine import CancelToken
from localgemma.errors import Cancelled, ChecksumError, DiskError, LocalgemmaError, OfflineError, TransferError
from localgemma.files import cache, download, fetch, pieces
from localgemma.files.hub import RemoteFile, Resolved, resolve
from localgemma.files.pieces import JOURNAL, PART, Partial, unfinished
from localgemma.options import TransferOptions

ROOT = Path(__file__).resolve().parent.parent
PIECE = 1 << 20  # here; several in a file of a few megabytes
QUICK = TransferOptions(attempts=4, backoff=0.01, silence=0.5, patience=5)
REPOSITORY, NAME = "owner/name", "folder/model.gguf"
REMOTE = RemoteFile(REPOSITORY, "main", NAME)


def noise(size: int, seed: int = 1) -> bytes:
    """Bytes that no two places share."""
    return np.random.default_rng(seed).bytes(size)


def pull(options: TransferOptions = QUICK, **more: object) -> Path:
    """Resolve and download the one file, as a person's next try does."""
    return download.download([resolve(REMOTE, options=options)], options=options, **more)[0]  # type: ignore[arg-type]


def seen(hub_cache: Path) -> list[Path]:
    """Every file that a program would take for a model: blobs and snapshots."""
    found = [p for p in hub_cache.glob("models--*/blobs/*") if not p.name.endswith((PART, JOURNAL))]
    return found + [p for p in hub_cache.glob("models--*/snapshots/*/**/*") if not p.is_dir()]


def left_over(hub_cache: Path) -> list[str]:
    """Names of everything on the disk but locks and folders."""
    return sorted(p.name for p in hub_cache.rglob("*") if not p.is_dir() and p.suffix != ".lock")


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of 1 MiB."""
    monkeypatch.setattr(pieces, "PIECE", PIECE)


@pytest.fixture
def store(hub: Hub, tmp_path: Path) -> Path:
    """The empty hub cache of the test."""
    return tmp_path / "hf" / "hub"


# ------------------------------------------------------------------------------------------------- what a pull is


@pytest.mark.parametrize("size", [0, 1, 1000, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE, fetch.SPAN * PIECE + 5])
@pytest.mark.parametrize("lfs", [True, False])
def test_a_pull_is_what_huggingface_hub_would_have_made(hub: Hub, store: Path, size: int, lfs: bool) -> None:
    data = noise(size)
    blob = hub.add(REPOSITORY, NAME, data, lfs=lfs)
    path = pull()
    assert path.read_bytes() == data
    assert path.resolve() == (store / "models--owner--name" / "blobs" / blob.etag).resolve()
    assert huggingface_hub.try_to_load_from_cache(REPOSITORY, NAME, cache_dir=store) == str(path)
    assert download.cached(REMOTE) == path
    scanned = huggingface_hub.scan_cache_dir(store)
    assert not scanned.warnings and scanned.size_on_disk == size
    assert left_over(store) == sorted(["main", blob.etag, "model.gguf"])


def test_huggingface_hub_and_a_pull_find_each_others_files(hub: Hub, store: Path) -> None:
    hub.add(REPOSITORY, NAME, noise(1000))
    theirs = huggingface_hub.hf_hub_download(REPOSITORY, NAME, cache_dir=store, endpoint=hub.url)
    sent = hub.bytes_served()
    assert str(pull()) == theirs and hub.bytes_served() == sent
    assert cache.lock_of(resolve(REMOTE)).exists(), "the lock that huggingface_hub took is the one that a pull takes"
    assert huggingface_hub.hf_hub_download(REPOSITORY, NAME, cache_dir=store, endpoint=hub.url) == theirs
    assert hub.bytes_served() == sent


def test_what_is_present_opens_no_connection(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(REPOSITORY, NAME, noise(1000))
    file = resolve(REMOTE)
    path, asked = pull(), len(hub.requests)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("socket.socket", None)  # any use fails
    assert download.download([file]) == [path]
    assert download.demand([file]).missing == 0 and download.cached(REMOTE) == path
    assert len(hub.requests) == asked


def test_what_is_missing_is_refused_offline(hub: Hub, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(REPOSITORY, NAME, noise(1000))
    file, asked = resolve(REMOTE), len(hub.requests)
    monkeypatch.setenv("LOCALGEMMA_OFFLINE", "1")
    with pytest.raises(OfflineError):
        download.download([file])
    assert len(hub.requests) == asked and not store.exists()


def test_the_bytes_of_another_commit_are_used_again(hub: Hub, store: Path) -> None:
    data = noise(3 * PIECE)
    hub.add(REPOSITORY, NAME, data)
    first = pull()
    hub.add(REPOSITORY, "README.md", b"a new commit", lfs=False)
    sent = hub.bytes_served()
    second = pull()
    assert second != first and second.read_bytes() == data and hub.bytes_served() == sent


def test_a_split_model_comes_as_a_set(hub: Hub) -> None:
    parts = [f"q/model-Q8_0-{i:05}-of-00003.gguf" for i in (1, 2, 3)]
    for number, part in enumerate(parts):
        hub.add(REPOSITORY, part, noise(1000, number))
    first = resolve(RemoteFile(REPOSITORY, "main", parts[0]))
    (path,) = download.download([first])
    assert [p.name for p in sorted(path.parent.iterdir())] == [Path(p).name for p in parts]
    asked = len(hub.requests)
    assert download.download([first]) == [path] and len(hub.requests) == asked


def test_progress_adds_up(hub: Hub) -> None:
    hub.add(REPOSITORY, NAME, noise(5 * PIECE))
    hub.add(REPOSITORY, "b", noise(1000, 2))
    reports: list[download.Transferred] = []
    files = [resolve(REMOTE), resolve(RemoteFile(REPOSITORY, "main", "b"))]
    download.download(files, progress=reports.append, options=QUICK)
    done = [each.done for each in reports]
    assert done == sorted(done) and done[-1] == 5 * PIECE + 1000 and {each.total for each in reports} == {5 * PIECE + 1000}
    assert {each.file for each in reports} == {NAME, "b"}


def test_several_ranges_are_on_their_way_at_once(hub: Hub) -> None:
    hub.add(REPOSITORY, NAME, noise(4 * fetch.SPAN * PIECE))
    at_once, now, lock, real = [0], [0], threading.Lock(), Hub._take

    def counted(self: Hub, on: str, path: str) -> Fault | None:
        with lock:
            now[0] += 1
            at_once[0] = max(at_once[0], now[0])
        time.sleep(0.1)
        with lock:
            now[0] -= 1
        return real(self, on, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Hub, "_take", counted)
        pull()
    assert at_once[0] >= 3


def test_the_token_goes_to_the_hub_and_not_to_the_store(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(REPOSITORY, NAME, noise(1000))
    hub.token, hub.repositories[REPOSITORY].gated = "secret", True
    monkeypatch.setenv("HF_TOKEN", "secret")
    pull()
    sent = {(each.host, each.headers.get("Authorization")) for each in hub.requests}
    assert sent == {("hub", "Bearer secret"), ("store", None)}


# ------------------------------------------------------------------------------------------------ what goes wrong

HARMLESS = [  # one pull goes on by itself
    [Fault("cut", at=0)],
    [Fault("cut", at=PIECE + 77), Fault("cut", at=5), Fault("cut", at=PIECE)],
    [Fault("short", at=100), Fault("short", at=PIECE)],
    [Fault("status", status=429, retry_after=0.05)],
    [Fault("status", status=500), Fault("status", status=503, retry_after=0), Fault("status", status=408)],
    [Fault("status", status=403)],  # of the store: its signed address ran out
    [Fault("hang", at=PIECE + 5)],
    [Fault("whole")],
    [Fault("whole", times=50)],
    [Fault("whole", times=50), Fault("cut", at=2 * PIECE + 3)],
    [Fault("wrong", at=99)],  # the hash of the whole does not match: it starts over
    [Fault("status", status=416)],
    [Fault("status", status=503, on="head"), Fault("cut", on="head")],
]


@pytest.mark.parametrize(
    "faults", HARMLESS, ids=lambda faults: "-".join(f"{f.kind}{f.status if f.kind == 'status' else ''}" for f in faults)
)
def test_a_pull_gets_over_it(hub: Hub, store: Path, faults: list[Fault]) -> None:
    data = noise(fetch.SPAN * PIECE + 3 * PIECE + 11)
    hub.add(REPOSITORY, NAME, data)
    hub.fault(*(Fault(**vars(fault)) for fault in faults))
    assert pull().read_bytes() == data
    assert not list(unfinished(store / "models--owner--name" / "blobs"))


@pytest.mark.parametrize("redirect", [True, False])
@pytest.mark.parametrize("xet", [True, False])
@pytest.mark.parametrize("ranges", [True, False])
def test_every_kind_of_hub_serves(hub: Hub, redirect: bool, xet: bool, ranges: bool) -> None:
    hub.redirect, hub.xet, hub.ranges = redirect, xet, ranges
    data = noise(2 * fetch.SPAN * PIECE + 7)
    hub.add(REPOSITORY, NAME, data)
    assert pull().read_bytes() == data


FINAL = [  # one pull ends with this error, and the next one, without faults, with the file
    (Fault("cut", at=0, times=99), TransferError),
    (Fault("hang", at=0, times=99), TransferError),
    (Fault("status", status=500, times=99), TransferError),
    (Fault("status", status=429, retry_after=9999), TransferError),
    (Fault("wrong", at=3, times=99), ChecksumError),
    (Fault("status", status=416, times=99), TransferError),
]


@pytest.mark.parametrize(("fault", "error"), FINAL, ids=lambda value: getattr(value, "kind", ""))
def test_a_pull_gives_up_and_the_next_one_succeeds(hub: Hub, store: Path, fault: Fault, error: type[Exception]) -> None:
    data = noise(2 * PIECE)
    hub.add(REPOSITORY, NAME, data)
    hub.fault(Fault(**vars(fault)))
    with pytest.raises(error) as raised:
        pull()
    assert isinstance(raised.value, LocalgemmaError) and raised.value.hint and not seen(store)
    hub.calm()
    assert pull().read_bytes() == data


def test_a_hub_that_refuses_says_why_and_leaves_nothing_to_see(hub: Hub, store: Path) -> None:
    hub.add(REPOSITORY, NAME, noise(1000))
    hub.redirect = False
    file = resolve(REMOTE)
    for status, exit_code in ((401, 5), (403, 5), (404, 3)):
        hub.fault(Fault("status", status=status))
        with pytest.raises(LocalgemmaError) as raised:
            download.download([file], options=QUICK)
        assert raised.value.exit_code == exit_code and not seen(store)


@pytest.mark.parametrize("same_commit", [False, True])
def test_a_file_that_changes_between_two_tries_starts_over(hub: Hub, store: Path, same_commit: bool) -> None:
    old, new = noise(4 * PIECE), noise(4 * PIECE, 2)
    hub.add(REPOSITORY, NAME, old)
    hub.fault(Fault("cut", at=2 * PIECE), Fault("status", status=500, times=99))
    with pytest.raises(TransferError):
        pull()
    assert [each.proven for each in download.interrupted()] == [2 * PIECE]
    hub.calm()
    hub.change(REPOSITORY, NAME, new, same_commit=same_commit)
    assert pull().read_bytes() == new
    assert not download.interrupted(), "what was left of the old one is gone"


@pytest.mark.parametrize("same_commit", [False, True])
def test_a_file_that_changes_under_way_starts_over(hub: Hub, same_commit: bool) -> None:
    old, new = noise(4 * PIECE), noise(5 * PIECE, 2)
    hub.add(REPOSITORY, NAME, old)
    file = resolve(REMOTE)
    hub.change(REPOSITORY, NAME, new, same_commit=same_commit)
    (path,) = download.download([file], options=QUICK)
    assert path.read_bytes() == (new if same_commit else old), "a commit keeps its bytes; without them, the branch's are taken"


def test_a_pinned_commit_whose_bytes_changed_is_refused(hub: Hub, store: Path) -> None:
    hub.add(REPOSITORY, NAME, noise(1000))
    commit = resolve(REMOTE).commit
    file = resolve(RemoteFile(REPOSITORY, commit, NAME))
    hub.change(REPOSITORY, NAME, noise(1000, 2), same_commit=True)
    with pytest.raises(TransferError):
        download.download([file], options=QUICK)
    assert not seen(store)


# ------------------------------------------------------------------------------------------------------- resuming


def test_proven_pieces_are_not_fetched_again(hub: Hub, store: Path) -> None:
    data = noise(6 * PIECE + 100)
    blob = hub.add(REPOSITORY, NAME, data)
    hub.fault(Fault("cut", at=3 * PIECE + 5), Fault("status", status=500, times=99))
    with pytest.raises(TransferError):
        pull()
    hub.calm()
    need = download.demand([resolve(REMOTE)])
    assert (need.partial, need.missing) == (3 * PIECE, 3 * PIECE + 100)
    sent = len(hub.served())
    assert pull().read_bytes() == data
    assert hub.served()[sent:] == [(3 * PIECE, blob.size)]


@pytest.mark.parametrize(
    "damage", ["piece", "cut part", "no part", "journal line", "torn line", "journal head", "other piece size"]
)
def test_only_pieces_whose_bytes_have_their_hash_count(hub: Hub, store: Path, damage: str) -> None:
    data = noise(4 * PIECE)
    blob = hub.add(REPOSITORY, NAME, data)
    hub.fault(Fault("cut", at=3 * PIECE), Fault("status", status=500, times=99))
    with pytest.raises(TransferError):
        pull()
    hub.calm()
    place = cache.blob_of(resolve(REMOTE))
    part, journal = place.with_name(place.name + PART), place.with_name(place.name + JOURNAL)
    lines = journal.read_bytes().split(b"\n")
    if damage == "piece":
        with part.open("r+b") as stream:
            stream.seek(PIECE + 9)
            stream.write(b"what was never sent")
    elif damage == "cut part":
        os.truncate(part, PIECE + 9)
    elif damage == "no part":
        part.unlink()
    elif damage == "journal line":
        journal.write_bytes(journal.read_bytes().replace(b"\n1 ", b"\n7 "))
    elif damage == "torn line":
        journal.write_bytes(journal.read_bytes()[:-30])
    elif damage == "journal head":
        journal.write_bytes(b"\x00" * 40 + b"\n".join(lines[1:]))
    else:
        journal.write_bytes(journal.read_bytes().replace(str(PIECE).encode(), b"1024"))
    assert pull().read_bytes() == data
    assert left_over(store) == sorted(["main", blob.etag, "model.gguf"])


def test_wrong_bytes_of_an_earlier_try_are_found_and_fetched_anew(hub: Hub, store: Path) -> None:
    data = noise(4 * PIECE)
    hub.add(REPOSITORY, NAME, data)
    hub.fault(Fault("wrong", at=5))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetch.Fetch, "_prove_whole", lambda self: self._stopped.wait(0.3) and None)
        patch.setattr(Partial, "finish", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            pull()
    hub.calm()
    assert len(download.interrupted()) == 1
    assert pull().read_bytes() == data


def test_cancel_leaves_what_can_be_resumed_and_no_thread(hub: Hub, store: Path) -> None:
    hub.add(REPOSITORY, NAME, noise(4 * PIECE))
    hub.fault(Fault("hang", at=2 * PIECE + 5))
    token = CancelToken()

    def progress(state: download.Transferred) -> None:
        if state.done > 2 * PIECE:
            token.cancel()

    began = time.monotonic()
    with pytest.raises(Cancelled):
        pull(TransferOptions(silence=30), progress=progress, cancel=token)
    assert time.monotonic() - began < 3 and not seen(store)
    assert not [thread for thread in threading.enumerate() if thread.name == "localgemma-fetch"]
    assert [each.proven for each in download.interrupted()] == [2 * PIECE]
    download.interrupted()[0].discard()
    assert left_over(store) == []


def test_ctrl_c_leaves_what_can_be_resumed(hub: Hub, store: Path) -> None:
    data = noise(4 * PIECE)
    hub.add(REPOSITORY, NAME, data)
    hub.fault(Fault("hang", at=2 * PIECE + 5, times=99))
    process = start_pull("30")
    while not any(each.proven for each in download.interrupted()):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) not in (0, -signal.SIGKILL)
    assert not seen(store)
    hub.calm()
    assert pull().read_bytes() == data


def test_waiting_for_another_process_can_be_cancelled(hub: Hub) -> None:
    hub.add(REPOSITORY, NAME, noise(1000))
    lock, token = cache.lock_of(resolve(REMOTE)), CancelToken()
    lock.parent.mkdir(parents=True)
    with huggingface_hub.utils.WeakFileLock(lock), pytest.raises(Cancelled):
        pull(progress=lambda state: token.cancel(), cancel=token)


def test_a_branch_is_moved_when_every_file_is_there(hub: Hub) -> None:
    hub.add(REPOSITORY, NAME, noise(1000))
    old = pull()
    hub.add(REPOSITORY, NAME, noise(1000, 2))
    hub.add(REPOSITORY, "b", noise(1000, 3))
    hub.fault(Fault("status", status=500, times=99, path="b"))
    files = [resolve(REMOTE), resolve(RemoteFile(REPOSITORY, "main", "b"))]
    with pytest.raises(TransferError):
        download.download(files, options=QUICK)
    assert download.cached(REMOTE) == old
    hub.calm()
    assert download.download(files, options=QUICK)[0] == download.cached(REMOTE) != old


def test_an_error_of_the_callers_own_comes_back_as_it_is(hub: Hub) -> None:
    hub.add(REPOSITORY, NAME, noise(PIECE))

    def progress(state: download.Transferred) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        pull(progress=progress)
    assert pull()


# ------------------------------------------------------------------------------------------------ disk and others


def test_a_disk_that_is_too_small_is_refused_before_the_first_byte(
    hub: Hub, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(REPOSITORY, NAME, noise(2 * PIECE))
    file = resolve(REMOTE)
    monkeypatch.setattr(cache, "free_bytes", lambda folder: PIECE + download.SPARE)
    with pytest.raises(DiskError, match=r"1 MiB are missing"):
        download.download([file], options=QUICK)
    assert not store.exists() and hub.bytes_served() == 0


def mounted(folder: Path, *options: str) -> Iterator[Path]:
    """A file system of its own, where this user may mount one."""
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root on Linux")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """3 MiB."""
    yield from mounted(tmp_path / "small", "-o", "size=3m")


@pytest.fixture
def frozen_disk(tmp_path: Path) -> Iterator[Path]:
    """Read-only."""
    yield from mounted(tmp_path / "frozen", "-o", "ro")


def test_a_full_disk_is_refused_and_nothing_is_left(hub: Hub, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(small_disk / "hub"))
    hub.add(REPOSITORY, NAME, noise(4 * PIECE))
    with pytest.raises(DiskError, match="are missing"):
        pull()
    assert list(small_disk.iterdir()) == []


@pytest.mark.parametrize("others", [0, 1])
def test_a_disk_that_fills_up_under_way_keeps_proven_pieces_alone(
    hub: Hub, small_disk: Path, monkeypatch: pytest.MonkeyPatch, others: int
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(small_disk / "hub"))
    data = noise(4 * PIECE)
    hub.add(REPOSITORY, NAME, data)
    (small_disk / "of-others").write_bytes(bytes(others << 20))
    monkeypatch.setattr(download, "SPARE", -(64 << 20))  # as if the disk had been empty at the start
    with pytest.raises(DiskError, match="are missing"):
        pull()
    assert not seen(small_disk / "hub")
    (kept,) = download.interrupted()
    assert kept.proven >= PIECE
    used = sum(p.stat().st_blocks for p in small_disk.rglob("*") if p.is_file() and p.name != "of-others") * 512
    assert used <= 4 * PIECE
    (small_disk / "of-others").unlink()
    subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)
    sent = hub.bytes_served()
    assert pull().read_bytes() == data
    assert hub.bytes_served() - sent == 4 * PIECE - kept.proven


def test_a_read_only_folder_is_refused(hub: Hub, frozen_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(frozen_disk / "hub"))
    monkeypatch.setattr(cache, "free_bytes", lambda folder: 1 << 40)
    hub.add(REPOSITORY, NAME, noise(1000))
    with pytest.raises(DiskError, match=r"[Rr]ead-only"):
        pull()


def test_a_file_system_without_symlinks(hub: Hub, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(1, "no")

    monkeypatch.setattr("os.symlink", refuse)
    data = noise(1000)
    hub.add(REPOSITORY, NAME, data)
    assert pull().read_bytes() == data
    monkeypatch.setattr("os.link", refuse)
    hub.add(REPOSITORY, "other.gguf", noise(1000, 2))
    (path,) = download.download([resolve(RemoteFile(REPOSITORY, "main", "other.gguf"))])
    assert path.read_bytes() == noise(1000, 2)
    assert huggingface_hub.try_to_load_from_cache(REPOSITORY, "other.gguf", cache_dir=store) == str(path)


def test_two_processes_wait_for_one_another(hub: Hub, store: Path) -> None:
    data = noise(3 * fetch.SPAN * PIECE)
    blob = hub.add(REPOSITORY, NAME, data)
    others = [start_pull() for _ in range(2)]
    assert [other.wait(60) for other in others] == [0, 0]
    assert cache.pointer_of(REMOTE, resolve(REMOTE).commit).read_bytes() == data
    assert hub.bytes_served() == blob.size, "every byte came once"


# ------------------------------------------------------------------------------------------- sudden ends, at random

PULL = """
import sys
from localgemma.files import pieces
from localgemma.files.download import download
from localgemma.files.hub import RemoteFile, resolve
from localgemma.options import TransferOptions
pieces.PIECE = int(sys.argv[1])
options = TransferOptions(attempts=4, backoff=0.01, silence=float(sys.argv[2]), patience=5)
file = resolve(RemoteFile("owner/name", "main", "folder/model.gguf"), options=options)
print("go", flush=True)
download([file], options=options)
"""


def start_pull(silence: str = "0.5") -> subprocess.Popen[bytes]:
    """A pull in a process of its own, which has just begun to fetch."""
    process = subprocess.Popen(
        [sys.executable, "-c", PULL, str(pieces.PIECE), silence], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def random_fault(dice: random.Random, size: int) -> Fault:
    """Anything that a bad line or a bad hub does."""
    kind = dice.choice(["cut", "cut", "wrong", "short", "status", "status", "hang", "whole"])
    status = dice.choice([401, 403, 404, 416, 429, 500, 503])
    wait = dice.choice([None, 0.05]) if status == 429 else None
    return Fault(kind, at=dice.randrange(min(size, fetch.SPAN * pieces.PIECE)), status=status, retry_after=wait,  # type: ignore[arg-type]
                 on=dice.choice(["body"] * 5 + ["head"]), times=dice.choice([1, 1, 2, 9]))  # fmt: skip


def proven_ranges(file: Resolved) -> list[tuple[int, int]]:
    """Places of the pieces on the disk that the journal names and whose bytes are the file's."""
    blob = cache.blob_of(file)
    if not blob.with_name(blob.name + JOURNAL).exists():
        return []
    partial = Partial(file, blob)
    stream = partial.stream()
    found = [partial.bounds(index) for index in range(partial.count) if partial.check(stream, index)]
    partial.close()
    return found


def kill_at(process: subprocess.Popen[bytes], file: Resolved, dice: random.Random) -> str:
    """End a process suddenly, somewhere on its way from no piece to the last."""
    blob = cache.blob_of(file)
    journal, target = blob.with_name(blob.name + JOURNAL), dice.uniform(0, 1.1) * file.size / pieces.PIECE
    while process.poll() is None:
        with suppress(OSError):
            if journal.read_bytes().count(b"\n") - 1 >= target:
                break
        time.sleep(0.001)
    time.sleep(dice.uniform(0, 0.02))
    process.send_signal(signal.SIGKILL)
    return "killed" if process.wait() == -signal.SIGKILL else "ended before the kill"


def one_disaster(hub: Hub, store: Path, dice: random.Random, data: Path) -> str:
    """A pull with faults or a kill, then a pull without: what was seen in between, and that the second one is whole."""
    hub.redirect, hub.xet, hub.ranges = dice.random() < 0.6, dice.random() < 0.3, dice.random() < 0.9
    blob = hub.add(REPOSITORY, NAME, data)
    file = resolve(REMOTE)
    faults = [random_fault(dice, blob.size) for _ in range(dice.randrange(5))]
    hub.fault(*faults)
    if dice.random() < 0.4 or not faults:
        how = kill_at(start_pull(), file, dice)
    else:
        try:
            how = "got over it" if pull() else ""
        except LocalgemmaError as error:
            how = type(error).__name__
    hub.calm()
    for path in seen(store):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == blob.sha256, "a file that can be seen is whole"
    proven, sent = proven_ranges(file), len(hub.served())
    if dice.random() < 0.1:
        how += ", then the file changed"
        changed = bytearray(data.read_bytes())
        changed[dice.randrange(blob.size)] ^= 1
        blob, proven = hub.change(REPOSITORY, NAME, bytes(changed), same_commit=dice.random() < 0.5), []
    path = pull()
    assert hashlib.sha256(path.read_bytes()).hexdigest() == blob.sha256
    if hub.ranges and not any(fault.kind == "wrong" for fault in faults):
        again = [(a, b) for a, b in hub.served()[sent:] for start, stop in proven if a < stop and start < b]
        assert not again, f"proven bytes came again: {again}"
    kept = sum(stop - start for start, stop in proven) / blob.size
    return f"{blob.size / 1e6:.0f} MB, {', '.join(fault.kind for fault in faults) or 'no fault'}: {how}, {kept:.0%} kept"


def test_random_disasters(hub: Hub, store: Path, tmp_path: Path, full: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """200 of them on 50 to 200 MB with --full; a few on less without."""
    rounds, low, high = (200, 50_000_000, 200_000_000) if full else (8, 5_000_000, 25_000_000)
    if full:
        monkeypatch.setattr(pieces, "PIECE", 8 << 20)
    dice = random.Random(20260712)
    files = []
    for number in range(4):
        file = tmp_path / f"{number}.bin"
        file.write_bytes(noise(dice.randrange(low, high), number))
        files.append(file)
    for round_ in range(rounds):
        home = tmp_path / f"hf{round_}"
        monkeypatch.setenv("HF_HOME", str(home))
        seed = dice.randrange(1 << 32)
        said = one_disaster(hub, home / "hub", random.Random(seed), dice.choice(files))
        print(f"{round_}: seed {seed}: {said}")
        subprocess.run(["rm", "-rf", str(home)], check=True)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 9), max_size=12), st.binary(max_size=40))
def test_a_journal_of_any_bytes_is_read_or_ignored(lines: list[int], noise_bytes: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        blob = Path(folder) / "abc"
        file = Resolved(REMOTE, "0" * 40, 10 * PIECE, None, "abc", "http://127.0.0.1:1/")
        Partial(file, blob).close()
        with blob.with_name("abc" + JOURNAL).open("ab") as stream:
            for line in lines:
                stream.write(b"%d %s\n" % (line, hashlib.sha256(bytes([line])).hexdigest().encode()))
            stream.write(noise_bytes)
        partial = Partial(file, blob)
        assert set(partial.claimed) >= set(lines) and all(0 <= index < 10 for index in partial.claimed)
        stream = partial.stream()
        assert not any(partial.check(stream, index) for index in range(2)), "zeros have no such hash"
        partial.close()
