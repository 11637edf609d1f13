"""Bundles: what goes in comes out the same, and nothing hostile or damaged is installed."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from localgemma import whole
from localgemma.cli.main import cli
from localgemma.errors import BadModelFile, Cancelled, ChecksumError, DiskError, LocalgemmaError, NotFound, UsageError
from localgemma.files import bundle as bundling
from localgemma.files import catalog, ledger
from localgemma.files.bundle import plan_bundle
from localgemma.files.imports import imported, models_folder
from localgemma.files.locate import locate, of_path
from localgemma.files.prune import plan_prune
from localgemma.files.unbundle import install, read_bundle

DEMO = Path(bundling.__file__).parent.parent / "assets" / "demo"
FILES = {"text": "text.gguf", "projector": "mmproj.gguf", "drafter": "drafter.gguf"}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOCALGEMMA_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the demo model."""
    path = tmp_path_factory.mktemp("bundle") / "demo.tar"
    known = catalog.load()
    plan_bundle(locate("demo", known), known, path).execute()
    return path


def nothing_installed() -> bool:
    return imported() == () and (not models_folder().exists() or list(models_folder().iterdir()) == [])


def test_what_goes_in_comes_out(made: Path, tmp_path: Path) -> None:
    known = catalog.load()
    plan = plan_bundle(locate("demo", known), known, tmp_path / "b.tar")
    assert made.stat().st_size == plan.size
    found = read_bundle(made)
    assert found.name == "demo" and [c.role for c in found.contents] == list(FILES)
    assert found.contents[0].catalogue["quant"] == "Q4_K_M" and found.contents[0].catalogue["publisher"] == "localgemma"
    told: list[int] = []
    linked = install(found, lambda done, total: told.append(done))
    assert told[-1] == found.size == sum(item.size for item in linked)
    for item in linked:
        assert item.path.read_bytes() == (DEMO / FILES[item.role]).read_bytes() and item.state == "present"
        record = ledger.recall(item.path)
        assert record and record.fetched and record.intact and record.sha256 == item.sha256
    assert install(read_bundle(made)) == linked, "installed before, it is only linked"
    linked[1].path.write_bytes(b"")
    assert install(read_bundle(made))[1].state == "present", "an installation that was damaged is made anew"
    assert [p.name for p in models_folder().iterdir()] == [found.folder.name]


def test_any_tar_reads_it(made: Path) -> None:
    with tarfile.open(made) as tar:
        assert tar.getnames() == ["manifest.json", *FILES.values()]
        member = tar.extractfile("text.gguf")
        assert member and member.read() == (DEMO / "text.gguf").read_bytes()


def test_a_bundle_is_not_written_over_what_is_there(made: Path, tmp_path: Path) -> None:
    known = catalog.load()
    for target, says in ((made, "is already there"), (tmp_path, "is a folder")):
        with pytest.raises(UsageError, match=says):
            plan_bundle(locate("demo", known), known, target)


def test_a_damaged_file_is_not_bundled(tmp_path: Path) -> None:
    for name in FILES.values():
        shutil.copy(DEMO / name, tmp_path)
    ledger.record(tmp_path / "mmproj.gguf", "0" * 64)
    target = tmp_path / "out" / "b.tar"
    with pytest.raises(ChecksumError, match=r"mmproj\.gguf is damaged"):
        plan_bundle(of_path(tmp_path / "text.gguf"), catalog.load(), target).execute()
    ledger.forget(tmp_path / "mmproj.gguf")
    plan = plan_bundle(of_path(tmp_path / "text.gguf"), catalog.load(), target)
    with pytest.raises(Cancelled):
        plan.execute(lambda done, total: done < total // 2)
    with (tmp_path / "drafter.gguf").open("ab") as stream:
        stream.write(b"more")
    with pytest.raises(BadModelFile, match=r"drafter\.gguf changed while it was read"):
        plan.execute()
    assert list((tmp_path / "out").iterdir()) == []


def test_a_disk_that_cannot_hold_it_is_named(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = catalog.load()
    plan = plan_bundle(locate("demo", known), known, tmp_path / "b.tar")
    with monkeypatch.context() as patch:
        patch.setattr(whole.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
        for act in (plan.execute, lambda: install(read_bundle(made))):
            with pytest.raises(DiskError, match=r"needs 31\.2 MiB in .* Free 30\.3 MiB there"):
                act()

    def too_large(_: int) -> None:
        raise OSError(errno.EFBIG, "File too large")

    monkeypatch.setattr(whole.os, "fsync", too_large)
    with pytest.raises(DiskError, match="FAT32 ends at 4 GiB"):
        plan.execute()
    with pytest.raises(DiskError, match="File too large"):
        install(read_bundle(made))
    assert nothing_installed() and [p.name for p in tmp_path.iterdir()] == ["home"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a tmpfs")
def test_a_small_disk_is_left_as_it_was(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fills up although it seemed large enough: whatever was written is gone again."""
    monkeypatch.setattr(whole, "SPARE", -(1 << 40))
    if os.system(f"mkdir -p {tmp_path}/small && mount -t tmpfs -o size=9m none {tmp_path}/small 2>/dev/null"):
        pytest.skip("may not mount a tmpfs")
    try:
        monkeypatch.setenv("LOCALGEMMA_HOME", f"{tmp_path}/small/home")
        with pytest.raises(DiskError, match="No space left"):
            install(read_bundle(made))
        assert nothing_installed()
        known = catalog.load()
        with pytest.raises(DiskError, match="No space left"):
            plan_bundle(locate("demo", known), known, tmp_path / "small" / "b.tar").execute()
        assert not (tmp_path / "small" / "b.tar").exists()
    finally:
        os.system(f"umount {tmp_path}/small")


TEXT = (DEMO / "text.gguf").read_bytes()
EYES = (DEMO / "mmproj.gguf").read_bytes()


def member(name: str, data: bytes, **fields: Any) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape") + data + bytes(-len(data) % 512)


def record(name: str, data: bytes, role: str = "text", **changes: Any) -> dict[str, Any]:
    return {"name": name, "role": role, "size": len(data), "sha256": hashlib.sha256(data).hexdigest(), **changes}


def manifest(*files: Any, **changes: Any) -> bytes:
    return member("manifest.json", json.dumps({"format": 1, "name": "x", "files": list(files), **changes}).encode())


GOOD = (record("a.gguf", TEXT), record("b.gguf", EYES, "projector"))
END = bytes(1024)
BODY = member("a.gguf", TEXT) + member("b.gguf", EYES)


def named(name: str) -> bytes:
    """A bundle whose text model has this name, in manifest and member alike."""
    return manifest(record(name, TEXT)) + member(name, TEXT) + END


def typed(kind: bytes, **fields: Any) -> bytes:
    """A bundle whose text model is a member of another type."""
    return manifest(record("a.gguf", TEXT)) + member("a.gguf", b"", type=kind, **fields) + END


def other_size(size: int) -> bytes:
    block = bytearray(member("a.gguf", TEXT)[:512])
    block[124:136] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)
    block[148:156] = b"%06o\0 " % (256 + sum(block[:148]) + sum(block[156:512]))
    return manifest(record("a.gguf", TEXT)) + bytes(block) + TEXT + bytes(-len(TEXT) % 512) + END


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "name with ..": (lambda: named("../a.gguf"), "forbidden name"),
    "name with .. inside": (lambda: named("a/../../a.gguf"), "forbidden name"),
    "absolute name": (lambda: named("/tmp/a.gguf"), "forbidden name"),
    "Windows drive": (lambda: named("C:\\a.gguf"), "forbidden name"),
    "backslashes": (lambda: named("..\\a.gguf"), "forbidden name"),
    "folder in the name": (lambda: named("a/b.gguf"), "forbidden name"),
    "hidden file": (lambda: named(".a.gguf"), "forbidden name"),
    "device of Windows": (lambda: named("CON.gguf"), "forbidden name"),
    "alternate stream": (lambda: named("a.gguf:x.gguf"), "forbidden name"),
    "control characters": (lambda: named("a\x1b[31m.gguf"), "forbidden name"),
    "line break": (lambda: named("a.gguf\n"), "forbidden name"),
    "not a model": (lambda: named("models.toml"), "forbidden name"),
    "the manifest's own name": (lambda: named("manifest.json"), "forbidden name"),
    "name of 101 bytes": (lambda: manifest(record("a" * 96 + ".gguf", TEXT)), "forbidden name"),
    "no name": (lambda: manifest({**GOOD[0], "name": 1}), "forbidden name"),
    "symbolic link": (lambda: typed(tarfile.SYMTYPE, linkname="/etc/passwd"), "not a plain file"),
    "hard link": (lambda: typed(tarfile.LNKTYPE, linkname="/etc/passwd"), "not a plain file"),
    "character device": (lambda: typed(tarfile.CHRTYPE), "not a plain file"),
    "block device": (lambda: typed(tarfile.BLKTYPE), "not a plain file"),
    "named pipe": (lambda: typed(tarfile.FIFOTYPE), "not a plain file"),
    "folder": (lambda: typed(tarfile.DIRTYPE), "not a plain file"),
    "sparse file": (lambda: typed(tarfile.GNUTYPE_SPARSE), "not a plain file"),
    "long name": (lambda: member("././@LongLink", b"x" * 200, type=tarfile.GNUTYPE_LONGNAME) + END, "not a plain file"),
    "pax header": (lambda: member("p", b"20 path=/etc/passwd\n", type=tarfile.XHDTYPE) + END, "not a plain file"),
    "plain file with a link": (lambda: typed(tarfile.REGTYPE, linkname="/etc/passwd"), "not a plain file"),
    "size too large": (lambda: other_size(1 << 40), "claims 1,099,511,627,776 bytes"),
    "size beyond counting": (lambda: other_size(1 << 80), "claims 1,208,925,819"),
    "negative size": (lambda: other_size(-1024), "claims -1,024 bytes"),
    "size too small": (lambda: other_size(512), "holds 'a.gguf' of 512 bytes where"),
    "size of the manifest lies": (
        lambda: manifest({**GOOD[0], "size": 5}) + member("a.gguf", TEXT) + END, "where its manifest has 'a.gguf' of 5"
    ),
    "unknown member": (lambda: manifest(GOOD[0]) + member("a.gguf", TEXT) + member("run.sh", b"#!") + END, "'run.sh', which"),
    "member before the manifest": (lambda: member("a.gguf", TEXT) + manifest(*GOOD) + END, "does not start with a manifest"),
    "another order": (lambda: manifest(*GOOD) + member("b.gguf", EYES) + member("a.gguf", TEXT) + END, "holds 'b.gguf' of"),
    "member twice": (lambda: manifest(*GOOD) + member("a.gguf", TEXT) * 2 + END, "holds 'a.gguf' of"),
    "name twice": (lambda: manifest(GOOD[0], GOOD[0]) + member("a.gguf", TEXT) * 2 + END, "two files named"),
    "name twice but for case": (lambda: manifest(GOOD[0], record("A.gguf", TEXT)), "two files named"),
    "65 files": (lambda: manifest(*[record(f"{i}.gguf", TEXT) for i in range(65)]), "manifest of 65 files"),
    "no files": (lambda: manifest() + END, "manifest of 0 files"),
    "a million files": (lambda: manifest(*[0] * 300_000) + END, "manifest of 300,000 files"),
    "manifest too large": (lambda: member("manifest.json", b" " * (2 << 20)) + END, "does not start with a manifest"),
    "manifest too deep": (lambda: member("manifest.json", b"[" * 100_000) + END, "cannot be read"),
    "no JSON": (lambda: member("manifest.json", b"{") + END, "cannot be read"),
    "files is a number": (lambda: manifest(files=3) + END, "cannot be read"),
    "another format": (lambda: manifest(*GOOD, format=2) + BODY + END, "of format 2, and this localgemma knows 1"),
    "another role": (lambda: manifest({**GOOD[0], "role": "config"}) + END, "size, role and sha256"),
    "bad sha256": (lambda: manifest({**GOOD[0], "sha256": "x"}) + END, "size, role and sha256"),
    "size is true": (lambda: manifest({**GOOD[0], "size": True}) + END, "size, role and sha256"),
    "no text model": (lambda: manifest(GOOD[1]) + END, "does not hold one model"),
    "two projectors": (lambda: manifest(*GOOD, {**GOOD[1], "name": "c.gguf"}) + END, "does not hold one model"),
    "no end": (lambda: manifest(*GOOD) + BODY, "damaged at byte"),
    "a file missing": (lambda: manifest(*GOOD) + member("a.gguf", TEXT) + END, r"b\.gguf is missing"),
    "more after the end": (lambda: manifest(*GOOD) + BODY + END + b"more", "goes on after its end"),
    "endless zeros": (lambda: manifest(*GOOD) + BODY + bytes(1 << 20), "goes on after its end"),
    "bad checksum of a header": (lambda: manifest(*GOOD).replace(b"manifest", b"Manifest") + END, "bad checksum"),
    "no tar": (lambda: b"\x1f\x8b" + bytes(2000), "is no bundle"),
    "zip": (lambda: b"PK\3\4" + os.urandom(2000), "is no bundle"),
    "empty": (lambda: b"", "is no bundle"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_bundle_is_refused_before_a_byte_is_written(name: str, tmp_path: Path) -> None:
    make, says = HOSTILE[name]
    path = tmp_path / "b.tar"
    path.write_bytes(make())
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match=says) as caught:
        read_bundle(path)
    assert caught.value.hint and len(str(caught.value)) < 400
    assert sorted(tmp_path.rglob("*")) == before and nothing_installed()


def wide_projector() -> bytes:
    """The demo's projector, for a model of another width."""
    key = b"clip.vision.projection_dim"
    at = EYES.index(key) + len(key) + 4
    return EYES[:at] + (5376).to_bytes(4, "little") + EYES[at + 4 :]


def bundle_of(*files: tuple[str, bytes, str]) -> bytes:
    return manifest(*(record(*file) for file in files)) + b"".join(member(name, data) for name, data, _ in files) + END


UNSOUND: dict[str, tuple[Callable[[], bytes], type[LocalgemmaError], str]] = {
    "another sha256": (
        lambda: manifest({**GOOD[0], "sha256": "0" * 64}) + member("a.gguf", TEXT) + END, ChecksumError, "is damaged"
    ),
    "a flipped bit": (
        lambda: manifest(GOOD[0]) + member("a.gguf", TEXT[:-9] + b"?" + TEXT[-8:]) + END, ChecksumError, "is damaged"
    ),
    "no GGUF": (lambda: bundle_of(("a.gguf", b"#!/bin/sh", "text")), BadModelFile, "not a GGUF file"),
    "cut off": (lambda: bundle_of(("a.gguf", TEXT[:-4096], "text")), BadModelFile, "cut off"),
    "roles swapped": (lambda: bundle_of(("a.gguf", EYES, "text")), BadModelFile, "is a picture projector, not"),
    "a projector of another model": (
        lambda: bundle_of(("a.gguf", TEXT, "text"), ("b.gguf", wide_projector(), "projector")),
        BadModelFile, "for a model of width 5376",
    ),
    "a text as drafter": (
        lambda: bundle_of(("a.gguf", TEXT, "text"), ("b.gguf", TEXT, "drafter")), BadModelFile, "not a Gemma 4 drafter"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNSOUND)
def test_an_unsound_file_is_not_installed(name: str, tmp_path: Path) -> None:
    make, error, says = UNSOUND[name]
    path = tmp_path / "b.tar"
    path.write_bytes(make())
    found = read_bundle(path)
    with pytest.raises(error, match=says):
        install(found)
    assert nothing_installed()


def test_a_cut_or_cancelled_installation_leaves_nothing(made: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(made, tmp_path))
    found = read_bundle(path)
    with pytest.raises(Cancelled):
        install(found, lambda done, total: done < total // 2)
    os.truncate(path, 8_000_000)
    with pytest.raises(ChecksumError, match="became shorter"):
        install(found)
    with pytest.raises(UsageError, match="cut off"):
        read_bundle(path)
    with pytest.raises(NotFound):
        read_bundle(tmp_path / "none.tar")
    assert nothing_installed()


DIES = """
import os, sys
from pathlib import Path
from localgemma.files.unbundle import install, read_bundle
install(read_bundle(Path(sys.argv[1])), lambda done, total: os._exit(9) if done > total * float(sys.argv[2]) else True)
"""


@pytest.mark.parametrize("share", ["0.05", "0.6", "0.999"])
def test_a_process_that_dies_leaves_nothing_that_counts(made: Path, share: str) -> None:
    done = subprocess.run([sys.executable, "-c", DIES, str(made), share], cwd=Path(__file__).parents[1], check=False)
    assert done.returncode == 9 and imported() == ()
    left = list(models_folder().iterdir())
    assert len(left) == 1 and left[0].name.startswith(".") and left[0].name.endswith(".part")
    assert len(install(read_bundle(made))) == 3
    for path in left[0].iterdir():
        os.utime(path, (1, 1))
    plan = plan_prune(catalog.load())
    assert {step.path.parent for step in plan.steps} == {left[0]}
    plan.execute()
    assert not left[0].exists() and len(imported()) == 3


@hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_start_is_a_typed_error_or_the_same_bundle(made: Path, tmp_path: Path, data: st.DataObject) -> None:
    """Any byte of the headers and the manifest changed: refused, or what it names is still only what may be named."""
    raw = bytearray(made.read_bytes()[:3072])
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "b.tar"
    shutil.copy(made, path)
    with path.open("r+b") as stream:
        stream.write(raw)
    try:
        found = read_bundle(path)
    except LocalgemmaError as error:
        assert str(error)
        return
    assert found.folder.parent == models_folder()
    assert all("/" not in c.name and c.offset + c.size <= path.stat().st_size for c in found.contents)


def test_a_large_file_s_size_survives_the_header() -> None:
    out = io.BytesIO()
    bundling._write_header(out, "a.gguf", 61_410_000_000)
    assert tarfile.TarInfo.frombuf(out.getvalue(), "ascii", "strict").size == 61_410_000_000


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def run(*words: str, code: int = 0) -> Any:
        result = CliRunner().invoke(cli, ["models", *words])
        assert result.exit_code == code, result.output
        return json.loads(result.stdout) if "--json" in words and code == 0 else result.output

    plan = run("bundle", "demo", "--no-drafter", "--dry-run", "--json")
    assert [f["role"] for f in plan["files"]] == ["text", "projector"] and not (tmp_path / "demo.tar").exists()
    done = run("bundle", "demo", "--json")
    assert done["bundle"] == str(tmp_path / "demo.tar") and done["bytes"] == (tmp_path / "demo.tar").stat().st_size
    assert "already there" in run("bundle", "demo", code=2)
    assert run("unbundle", "demo.tar", "--dry-run", "--json")["installed"] == [] and nothing_installed()
    assert "localgemma chat -m text" in run("unbundle", "demo.tar")
    installed = run("unbundle", "demo.tar", "--json")
    assert [item["role"] for item in installed["installed"]] == ["text", "projector", "drafter"]
    assert "is no bundle" in run("unbundle", str(Path(__file__)), code=2)
