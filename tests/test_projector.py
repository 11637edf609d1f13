"""The corrected copy of a projector: the same weights, one entry more, whole or not there."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
import time
from collections import namedtuple
from pathlib import Path

import gguf
import pytest

from localgemma.errors import BadModelFile, DiskError, NotFound
from localgemma.files import projector as p
from localgemma.files.header import check_projector, read_header

DEMO = Path(p.__file__).parent.parent / "assets" / "demo"
Usage = namedtuple("Usage", "total used free")


def make_lacking(path: Path, **extra: str | bool) -> Path:
    """The demo projector without clip.use_gelu, and with `extra` entries (a dot is written as two underscores)."""
    reader = gguf.GGUFReader(DEMO / "mmproj.gguf")
    writer = gguf.GGUFWriter(path, "clip")
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key in ("general.architecture", p.KEY):
            continue
        kind = field.types[0]
        value = extra.pop(key.replace(".", "__"), field.contents())
        writer.add_key_value(key, value, kind, field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None)
    for key, value in extra.items():
        writer.add_bool(key.replace("__", "."), bool(value))
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def lacking(tmp_path: Path) -> Path:
    return make_lacking(tmp_path / "mmproj-F16.gguf")


def test_shipped_projector_needs_no_copy(tmp_path: Path) -> None:
    assert p.corrected(DEMO / "mmproj.gguf", tmp_path / "copies") == (DEMO / "mmproj.gguf", None)
    assert read_header(DEMO / "mmproj.gguf").metadata[p.KEY] is True
    assert not (tmp_path / "copies").exists()


def test_copy_has_the_entry_and_the_same_weights(lacking: Path, tmp_path: Path) -> None:
    before = lacking.read_bytes()
    copy, note = p.corrected(lacking, tmp_path / "deep" / "copies")
    assert copy.parent == tmp_path / "deep" / "copies" and copy.name.startswith("mmproj-F16-gelu-")
    assert note is not None and copy.name in note and note.endswith(".")
    ours, source = gguf.GGUFReader(copy), gguf.GGUFReader(lacking)
    assert ours.fields[p.KEY].contents() is True
    assert set(ours.fields) - set(source.fields) == {p.KEY}
    for key in set(source.fields) - {"GGUF.kv_count"}:
        assert ours.fields[key].contents() == source.fields[key].contents()
    for mine, theirs in zip(ours.tensors, source.tensors, strict=True):
        assert (mine.name, mine.tensor_type, list(mine.shape)) == (theirs.name, theirs.tensor_type, list(theirs.shape))
        assert mine.data.tobytes() == theirs.data.tobytes()
    check_projector(read_header(copy), 256)
    assert lacking.read_bytes() == before
    assert p.corrected(copy, tmp_path / "other") == (copy, None)


def test_copy_is_written_once_and_a_changed_file_gets_another(lacking: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copies"
    copy, _ = p.corrected(lacking, folder)
    stamp = copy.stat().st_mtime_ns
    again, note = p.corrected(lacking, folder)
    assert again == copy and note and copy.stat().st_mtime_ns == stamp
    os.utime(lacking, ns=(1, 1))
    other, _ = p.corrected(lacking, folder)
    assert other != copy and sorted(folder.iterdir()) == sorted([copy, other])


def test_a_damaged_copy_is_replaced(lacking: Path, tmp_path: Path) -> None:
    copy, _ = p.corrected(lacking, tmp_path / "copies")
    whole = copy.read_bytes()
    for damage in (b"", whole[:100], whole[:-1], b"x" * len(whole)):
        copy.write_bytes(damage)
        assert p.corrected(lacking, tmp_path / "copies")[0].read_bytes() == whole


def test_a_file_with_another_activation_or_type_is_left_alone(tmp_path: Path) -> None:
    silu = make_lacking(tmp_path / "silu.gguf", clip__use_silu=True)
    other = make_lacking(tmp_path / "other.gguf", clip__vision__projector_type="gemma3")
    for path in (silu, other, DEMO / "text.gguf"):
        assert p.corrected(path, tmp_path / "copies") == (path, None)


def test_bad_and_missing_files_are_told(lacking: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        p.corrected(tmp_path / "none.gguf", tmp_path)
    os.truncate(lacking, lacking.stat().st_size - 40)
    with pytest.raises(BadModelFile, match="is cut off"):
        p.corrected(lacking, tmp_path / "copies")


def test_full_disk_is_told_before_anything_is_written(lacking: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10, 9, 1 << 20))
    with pytest.raises(DiskError, match=r"needs 24 MB .* and 1 MB are free"):
        p.corrected(lacking, tmp_path / "copies")
    assert not list((tmp_path / "copies").iterdir())


def test_folder_that_cannot_be_made(lacking: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DiskError, match="could not be written"):
        p.corrected(lacking, tmp_path / "file" / "copies")


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_failed_write_leaves_nothing(lacking: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, broken, fail)
        with pytest.raises(DiskError, match="No space left"):
            p.corrected(lacking, tmp_path / "copies")
    assert not list((tmp_path / "copies").iterdir())
    assert p.corrected(lacking, tmp_path / "copies")[0].exists()


def test_a_source_that_shrinks_meanwhile(lacking: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = lacking.stat().st_size
    monkeypatch.setattr(p, "_make_room", lambda folder, _: (folder.mkdir(), os.truncate(lacking, size - 4096)))
    with pytest.raises(DiskError, match="came out incomplete"):
        p.corrected(lacking, tmp_path / "copies")
    assert not list((tmp_path / "copies").iterdir())


def test_old_unfinished_copies_are_swept_and_new_ones_kept(lacking: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copies"
    folder.mkdir()
    old, new = folder / ".a-gelu-1.x.part", folder / ".a-gelu-1.y.part"
    for path in (old, new):
        path.write_bytes(b"GGUF")
    os.utime(old, (time.time() - 2 * p.STALE,) * 2)
    copy, _ = p.corrected(lacking, folder)
    assert sorted(folder.iterdir()) == sorted([copy, new])


def _killed(path: Path, folder: Path) -> None:
    os.fsync = lambda _: os._exit(9)  # type: ignore[assignment]
    p.corrected(path, folder)


def test_a_killed_process_leaves_nothing_that_is_taken_for_whole(lacking: Path, tmp_path: Path) -> None:
    worker = multiprocessing.get_context("spawn").Process(target=_killed, args=(lacking, tmp_path / "copies"))
    worker.start()
    worker.join(60)
    assert worker.exitcode == 9 and [path.suffix for path in (tmp_path / "copies").iterdir()] == [".part"]
    copy, _ = p.corrected(lacking, tmp_path / "copies")
    assert gguf.GGUFReader(copy).fields[p.KEY].contents() is True


def _race(path: Path, folder: Path, results: multiprocessing.Queue[str]) -> None:
    copy, _ = p.corrected(path, folder)
    results.put(f"{copy.name} {hashlib.sha256(copy.read_bytes()).hexdigest()}")


def test_processes_that_race_get_the_same_whole_copy(lacking: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [context.Process(target=_race, args=(lacking, tmp_path / "copies", results)) for _ in range(4)]
    for worker in workers:
        worker.start()
    said = {results.get(timeout=60) for _ in workers}
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert len(said) == 1 and len(list((tmp_path / "copies").iterdir())) == 1
