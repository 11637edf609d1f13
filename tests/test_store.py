"""What is on this machine, which files a name opens, the proof of a file, and what is known before a download."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from published import DEMO, FILES, REPOSITORY, Published, publish, with_template, with_text, without_entry
from standin_hub import Hub

from localgemma import runtime, settings
from localgemma.errors import BadModelFile, ChecksumError, DiskError, NotDownloaded, NotFound, OfflineError
from localgemma.files import catalog, ledger, outdated, remote, store
from localgemma.files import pull as pulling
from localgemma.files.facts import facts_of
from localgemma.files.header import read_header
from localgemma.files.hub import RemoteFile, resolve
from localgemma.files.imports import link, parts_of
from localgemma.files.locate import locate, of_path
from localgemma.files.projector import planned
from localgemma.files.verify import sha256_of, verify, verify_copy


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A LOCALGEMMA_HOME of this test's own."""
    monkeypatch.setenv("LOCALGEMMA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    yield tmp_path / "home"


@pytest.fixture
def tiny(home: Path, hub: Hub) -> Published:
    """A model on the stand-in hub, and its catalogue."""
    found = publish(hub)
    found.write()
    return found


def pulled() -> pulling.Pulled:
    """The model, downloaded."""
    return pulling.run(pulling.plan(catalog.load().find("tiny").variants[0]))


def held(role: str = "text") -> list[store.Held]:
    """What is here of the model, by role."""
    files = {file for file in catalog.load().files() if file.repository == REPOSITORY}
    return [item for item in store.inventory(catalog.load()).of(role) if item.file in files]


def test_the_demo_is_here(home: Path) -> None:
    found = store.inventory(catalog.load())
    assert [(item.role, item.origin, item.ours) for item in found.held] == [
        ("text", "shipped", False), ("projector", "shipped", False), ("drafter", "shipped", False),
    ]  # fmt: skip
    assert not found.damaged


def test_a_pull_brings_everything_once(tiny: Published) -> None:
    result = pulled()
    assert result.text.read_bytes() == tiny.data["text"] and result.drafter and result.projector
    assert result.copy and read_header(result.copy).metadata["clip.use_gelu"] is True
    for role in FILES:
        (item,) = held(role)
        assert (item.verified, item.version, item.ours, item.origin) == (True, "same", True, "hub")
    (copy,) = [item for item in store.inventory(catalog.load()).held if item.origin == "corrected"]
    assert copy.path == result.copy and copy.ours
    before = len(tiny.hub.requests)
    again = pulling.plan(catalog.load().find("tiny").variants[0])
    assert not again.fetches and not again.copy and len(tiny.hub.requests) == before
    assert pulling.run(again) == result


def test_a_pull_without_hashes_takes_the_hubs(tiny: Published) -> None:
    tiny.write(sha256="", bytes="")
    assert pulled().text.read_bytes() == tiny.data["text"]
    assert held()[0].version == "unknown" and held()[0].sha256 == hashlib.sha256(tiny.data["text"]).hexdigest()


def test_a_pull_refuses_what_contradicts_the_catalogue(tiny: Published) -> None:
    tiny.write(sha256=f'"{"0" * 64}"')
    with pytest.raises(ChecksumError, match="other bytes"):
        pulled()
    assert not held()


def test_the_corrected_copy_counts_as_room(tiny: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    variant = catalog.load().find("tiny").variants[0]
    plan = pulling.plan(variant)
    assert plan.copy == len(tiny.data["projector"])
    free = plan.demand.missing + plan.copy // 2
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(free, 0, free))  # type: ignore[attr-defined]
    with pytest.raises(DiskError, match=r"are free\. Free "):
        pulling.plan(variant)


def test_open_names_size_and_command(tiny: Published) -> None:
    with pytest.raises(NotDownloaded, match=r"tiny:Q4_K_M@owner is not on this machine; 15\.2 MiB .*models pull tiny$"):
        runtime._locate("tiny")


def test_a_name_opens_text_projector_and_drafter(tiny: Published) -> None:
    result = pulled()
    found = locate("TINY:q4_k_m", catalog.load())
    assert (found.text, found.projector, found.drafter) == (result.text, result.projector, result.drafter)
    assert "belongs to tiny:Q4_K_M@owner" in found.projector_why


def test_runtime_pull(tiny: Published) -> None:
    seen: list[int] = []
    path = runtime.pull("tiny", progress=lambda now: seen.append(now.done))
    assert path.read_bytes() == tiny.data["text"] and seen[-1] == sum(map(len, tiny.data.values()))


@pytest.mark.parametrize("damage", ["cut", "header", "other-size"])
def test_a_damaged_file_is_never_present(tiny: Published, damage: str) -> None:
    path = pulled().text.resolve()
    data = bytearray(path.read_bytes())
    if damage == "cut":
        del data[-1000:]
    elif damage == "header":
        data[0:4] = b"GGXF"
    else:
        data += bytes(64)
    path.write_bytes(data)
    assert not held()
    (bad,) = store.inventory(catalog.load()).damaged
    assert bad.reason
    with pytest.raises(NotDownloaded):
        locate("tiny", catalog.load())
    assert pulled().text.read_bytes() == tiny.data["text"]


def test_a_flipped_bit_is_found_and_the_file_fetched_anew(tiny: Published) -> None:
    path = pulled().text
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.resolve().write_bytes(data)
    assert held()[0].verified is False  # its time changed: nothing is known of it any more
    verdict = verify(path, store.claimed_sha256(path))
    assert not verdict.intact and "sha256" in verdict.problem
    assert not held() and len(store.inventory(catalog.load()).damaged) == 1
    assert pulled().text.read_bytes() == tiny.data["text"]
    assert held()[0].verified


def test_partial_downloads_are_not_listed(tiny: Published) -> None:
    folder = settings.load().hub_cache / "models--owner--tiny"
    (folder / "blobs").mkdir(parents=True)
    (folder / "blobs" / "abc.incomplete").write_bytes(tiny.data["text"][:1000])
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / FILES["text"]).symlink_to(folder / "blobs" / "missing")
    assert not held() and not store.inventory(catalog.load()).damaged


def test_a_linked_file_is_recognised(tiny: Published, tmp_path: Path) -> None:
    path = tmp_path / "elsewhere" / FILES["text"]
    path.parent.mkdir()
    path.write_bytes(tiny.data["text"])
    link(path)
    (item,) = held()
    assert (item.path, item.origin, item.ours) == (path, "linked", False)
    assert locate("tiny", catalog.load()).text == path
    plan = pulling.plan(catalog.load().find("tiny").variants[0])
    assert [fetch.remote.path for fetch in plan.fetches] == [FILES["projector"], FILES["drafter"]]


def test_a_linked_file_of_no_publisher_is_opened_by_its_shape(tiny: Published, tmp_path: Path) -> None:
    path = tmp_path / "my own.gguf"
    path.write_bytes(tiny.data["text"])
    tiny.write(bytes="7", sha256="")
    item = link(path)
    shutil.copy(DEMO / "mmproj.gguf", tmp_path / "mmproj-my.gguf")
    for name in ("tiny", item.name, "tiny:Q4_K_M@linked", "tiny:q4_k_m"):
        found = locate(name, catalog.load())
        assert (found.text, found.projector) == (path, tmp_path / "mmproj-my.gguf"), name
    with pytest.raises(NotDownloaded):
        locate("tiny@owner", catalog.load())
    path.unlink()
    with pytest.raises(NotDownloaded):
        locate("tiny", catalog.load())


def test_a_path_finds_what_lies_beside_it() -> None:
    found = of_path(DEMO / "text.gguf")
    assert found.projector == DEMO / "mmproj.gguf" and found.drafter == DEMO / "drafter.gguf"


@pytest.mark.parametrize("name", ["no/such.gguf", "no-such", "a/b", "gemma-4-31b@nobody", "a\0b"])
def test_names_of_nothing(home: Path, name: str) -> None:
    with pytest.raises(NotFound):
        runtime._locate(name)


def test_an_older_content_is_told_from_another(tiny: Published) -> None:
    pulled()
    old = hashlib.sha256(tiny.data["text"]).hexdigest()
    tiny.hub.change(REPOSITORY, FILES["text"], b"another content")
    tiny.write()
    assert held()[0].version == "other"
    tiny.replaced = [old]
    tiny.write()
    assert held()[0].version == "older"


def test_a_model_in_parts(tiny: Published) -> None:
    parts = [f"tiny-Q8_0-0000{number}-of-00002.gguf" for number in (1, 2)]
    second = without_entry(DEMO / "text.gguf", "general.architecture")  # only the first part says what it is
    for part, data in zip(parts, (tiny.data["text"], second), strict=True):
        tiny.hub.add(REPOSITORY, part, data)
    lines = [f'{{ quant = "Q8_0", path = "{part}" }}' for part in parts]
    path = settings.load().config_dir / "models.toml"
    path.write_text(path.read_text().replace("text = [", f"text = [{', '.join(lines)}, ").replace("revision", "#"))
    variant = catalog.load().find("tiny:Q8_0").variants[0]
    result = pulling.run(pulling.plan(variant))
    assert result.text.name == parts[0] and len(variant.text) == 2
    (item,) = [item for item in held() if item.quant == "Q8_0"]
    assert item.size == len(tiny.data["text"]) + len(second) and item.verified and item.ours
    assert not pulling.plan(variant).fetches
    facts = facts_of(*(read_header(part) for part in parts_of(result.text)))
    assert (facts.parameters, facts.types[0].tensors, facts.file_size) == (2 * 10_696_780, 2 * 71, item.size)
    other = result.text.with_name(parts[1])
    other.resolve().write_bytes(second[:-100])
    assert [item.quant for item in held()] == [] and len(store.inventory(catalog.load()).damaged) == 1
    assert pulling.run(pulling.plan(variant)) == result and other.read_bytes() == second


def test_verify_knows_the_structure_and_the_sha256(tmp_path: Path) -> None:
    path = tmp_path / "text.gguf"
    shutil.copy(DEMO / "text.gguf", path)
    right = hashlib.sha256(path.read_bytes()).hexdigest()
    counted: list[int] = []
    assert verify(path, right, size=path.stat().st_size, told=counted.append).intact
    assert sum(counted) == path.stat().st_size and sha256_of(path) == right
    record = ledger.recall(path)
    assert record and record.intact and record.sha256 == right
    assert verify(path, None).intact
    assert "bytes, not 5" in verify(path, right, size=5).problem
    assert not verify(path, "0" * 64).intact
    data = bytearray(path.read_bytes())
    at = read_header(path).header_end - 12  # the last tensor's offset
    data[at] ^= 0x20
    path.write_bytes(data)
    assert "tensor" in verify(path, None).problem


def test_verify_knows_the_corrected_copy(tiny: Published) -> None:
    result = pulled()
    assert result.projector and result.copy
    copy = planned(result.projector, store.projectors_folder())
    assert copy and verify_copy(result.projector, copy).intact
    data = bytearray(result.copy.read_bytes())
    data[-3] ^= 1
    result.copy.write_bytes(data)
    assert not verify_copy(result.projector, copy).intact
    assert [item.origin for item in store.inventory(catalog.load()).damaged] == ["corrected"]


def test_the_ledger_forgets_what_changed(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(b"one")
    ledger.record(path, "a" * 64, fetched=True)
    ledger.record(path, "a" * 64)
    record = ledger.recall(path)
    assert record and record.fetched
    path.write_bytes(b"two!")
    assert ledger.recall(path) is None
    ledger.record(path, "b" * 64)
    (place,) = [p for p in (home / "data" / "files").iterdir() if "b" * 64 in p.read_text()]
    place.write_text("{")
    assert ledger.recall(path) is None
    ledger.forget(path)
    assert not place.exists()


def test_a_header_comes_by_range_and_is_kept(tiny: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FIRST", 1 << 16)
    file = RemoteFile(REPOSITORY, "main", FILES["text"])
    header = remote.fetch_header(file)
    local = read_header(DEMO / "text.gguf")
    assert (header.tensors, header.metadata.keys()) == (local.tensors, local.metadata.keys())
    assert facts_of(header) == facts_of(local)
    end = max(stop for _, stop in tiny.hub.served(FILES["text"]))
    assert end < 4 * local.header_end and end < header.file_size
    assert header.path.stat().st_blocks * 512 < 2 * local.header_end
    count = len(tiny.hub.requests)
    assert remote.fetch_header(RemoteFile(REPOSITORY, resolve(file).commit, FILES["text"])).tensors == header.tensors
    assert len(tiny.hub.requests) == count + 1  # the question for the commit alone


def test_a_header_of_something_else_ends_soon(tiny: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FIRST", 1 << 16)
    tiny.hub.add(REPOSITORY, "no.gguf", b"nothing" * 100_000)
    with pytest.raises(BadModelFile):
        remote.fetch_header(RemoteFile(REPOSITORY, "main", "no.gguf"))
    assert tiny.hub.bytes_served("no.gguf") <= 1 << 17
    tiny.hub.add(REPOSITORY, "bad.gguf", b"GGUF\x03\0\0\0" + b"\xff" * 500_000)
    with pytest.raises(BadModelFile):
        remote.fetch_header(RemoteFile(REPOSITORY, "main", "bad.gguf"))


def test_nothing_is_asked_offline(tiny: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALGEMMA_OFFLINE", "1")
    with pytest.raises(OfflineError):
        pulling.plan(catalog.load().find("tiny").variants[0])
    assert not tiny.hub.requests


@pytest.mark.parametrize(
    ("change", "expected", "says"),
    [
        ("nothing", "none", ""),
        ("template", "template", "only the chat template changed"),
        ("header", "header", "only the header (general.name) changed; the weights are the same"),
        ("weights", "weights", "the weights differ, in the same types"),
        ("both", "weights", "the weights differ, in the same types, and the chat template"),
        ("types", "weights", "tensors"),
        ("removed", "gone", "removed"),
    ],
)
def test_what_a_publisher_changed(tiny: Published, tmp_path: Path, change: str, expected: str, says: str) -> None:
    pulled()
    (item,) = held()
    data = bytearray(tiny.data["text"])
    if change in ("weights", "both"):
        data[-7] ^= 1
    new = bytes(data)
    if change in ("template", "both"):
        new = with_template(new, "{{ messages }} and more" * 50, tmp_path / "scratch")
    if change == "header":
        new = with_text(new, "general.name", "Another name, and longer", tmp_path / "scratch")
    if change == "types":
        new = tiny.data["drafter"]
    if change != "nothing":
        tiny.hub.change(REPOSITORY, FILES["text"], new)
    before = tiny.hub.bytes_served(FILES["text"])
    newest = outdated.newest_of([item]).get((REPOSITORY, FILES["text"])) if change != "removed" else None
    finding = outdated.compare(item, newest)
    assert (finding.change, says in finding.detail) == (expected, True), finding.detail
    assert finding.needs_download == (expected == "weights")
    assert tiny.hub.bytes_served(FILES["text"]) - before <= len(new)
    if change == "header":
        served = tiny.hub.bytes_served(FILES["text"])
        assert outdated.rebuild(finding).read_bytes() == new
        assert {each.version for each in held()} == {"newer", "same"} and all(each.ours for each in held())
        assert locate("tiny", catalog.load()).text.read_bytes() == new
        assert tiny.hub.bytes_served(FILES["text"]) == served
    if change == "template":
        quick = outdated.compare(item, newest, prove=False)
        assert quick.change == "unknown" and "not known" in quick.detail


def test_an_update_is_newer_than_the_catalogue(tiny: Published) -> None:
    pulled()
    data = bytearray(tiny.data["text"])
    data[-7] ^= 1
    tiny.hub.change(REPOSITORY, FILES["text"], bytes(data))
    variant = catalog.load().find("tiny").variants[0]
    pulling.run(pulling.plan(variant, latest=True))
    assert {item.version for item in held()} == {"newer", "same"}
    assert locate("tiny", catalog.load()).text.read_bytes() == bytes(data)
    assert not pulling.plan(variant).fetches
