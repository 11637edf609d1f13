"""rm and prune: what is planned, what stays, and that no file of another program is ever touched."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from filelock import FileLock
from published import FILES, Published, publish
from standin_hub import Hub

from localgemma import settings
from localgemma.cli.main import cli
from localgemma.errors import DiskError, NotFound, UsageError
from localgemma.files import bundle, catalog, ledger, pieces, pull, store, unbundle
from localgemma.files.imports import imported, link, models_folder
from localgemma.files.locate import locate
from localgemma.files.prune import plan_prune
from localgemma.files.removal import Removal, Step, plan_removal

DEMO = Path(store.__file__).parent.parent / "assets" / "demo"
DAYS = 3 * 24 * 3600


@pytest.fixture
def tiny(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Published:
    """A small model on the stand-in hub, in the catalogue, and nothing of it here."""
    monkeypatch.setenv("LOCALGEMMA_HOME", str(tmp_path / "home"))
    published = publish(hub)
    published.write()
    return published


def pulled() -> pull.Pulled:
    return pull.run(pull.plan(catalog.load().find("tiny").choose()[0]))


def files_of(folder: Path) -> dict[str, str]:
    """Every file below a folder with the hash of its bytes, links with their target."""
    return {
        str(path.relative_to(folder)): os.readlink(path)
        if path.is_symlink()
        else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def rm(*names: object) -> Removal:
    return plan_removal([str(name) for name in names], catalog.load())


def shown(plan: Removal) -> list[tuple[str, str]]:
    return sorted((step.what, step.path.name) for step in plan.steps)


def cache() -> Path:
    return settings.load().hub_cache


def age(path: Path) -> None:
    os.utime(path, (time.time() - DAYS,) * 2)


def test_what_localgemma_fetched_goes_with_all_that_belongs_to_it(tiny: Published) -> None:
    files = pulled()
    assert files.copy and files.projector and files.drafter
    plan = rm("tiny")
    assert shown(plan) == sorted(("delete", name) for name in (*FILES.values(), files.copy.name)) and plan.kept == ()
    paths = [files.text, files.projector, files.drafter, files.copy]
    assert plan.freed == sum(path.stat().st_size for path in paths)
    assert all(path.exists() for path in paths), "a plan does nothing"
    plan.execute()
    assert files_of(cache() / "models--owner--tiny").keys() <= {"refs/main"}
    assert not any(path.exists() for path in paths) and not list((settings.load().data_dir / "files").iterdir())
    with pytest.raises(NotFound, match="tiny is not on this machine"):
        rm("tiny")
    with pytest.raises(NotFound, match="There is no model 'tinny'"):
        rm("tinny")


def test_what_another_program_fetched_stays_unless_its_path_is_given(tiny: Published) -> None:
    files = pulled()
    for record in (settings.load().data_dir / "files").iterdir():
        record.unlink()  # as if another program had brought them
    before = files_of(cache())
    plan = rm("tiny")
    assert plan.steps == () and {kept.path for kept in plan.kept} == {files.text, files.projector, files.drafter}
    assert all(str(kept.path) in kept.why and "localgemma models rm" in kept.why for kept in plan.kept)
    plan.execute()
    assert files_of(cache()) == before
    plan = rm(files.text)
    assert shown(plan) == [("delete", FILES["text"])]
    plan.execute()
    after = files_of(cache())
    gone = before.keys() - after.keys()
    assert len(gone) == 2 and all("snapshots" in name or "blobs" in name for name in gone), "its name and its blob"
    assert {name: after[name] for name in after} == {name: before[name] for name in before.keys() - gone}


def test_every_name_of_a_blob_goes_and_no_other(tiny: Published) -> None:
    files = pulled()
    repository = cache() / "models--owner--tiny"
    blob = files.text.resolve()
    for commit, make in (("b" * 40, os.symlink), ("c" * 40, os.link)):
        (repository / "snapshots" / commit).mkdir()
        make(blob, repository / "snapshots" / commit / "old-name.gguf")
    shutil.copy(DEMO / "drafter.gguf", repository / "snapshots" / ("b" * 40) / "other.gguf")
    rm(files.text).execute()
    assert not blob.exists() and not (repository / "snapshots" / ("c" * 40)).exists()
    assert [p.name for p in (repository / "snapshots" / ("b" * 40)).iterdir()] == ["other.gguf"]


def test_a_cache_that_has_two_paths_is_one(tiny: Published, tmp_path: Path) -> None:
    files = pulled()
    (tmp_path / "other-way").symlink_to(cache())
    other = tmp_path / "other-way" / files.text.relative_to(cache())
    blob = files.text.resolve()
    rm(other).execute()
    assert not blob.exists() and not files.text.is_symlink()


def test_a_linked_file_is_only_forgotten(tiny: Published, tmp_path: Path) -> None:
    folder = tmp_path / "LM Studio"
    folder.mkdir()
    for name in ("text", "mmproj"):
        link(shutil.copy(DEMO / f"{name}.gguf", folder))
    before = files_of(folder)
    for name, left in (("text", ["mmproj"]), (str(folder / "mmproj.gguf"), [])):
        plan = rm(name)
        assert [step.what for step in plan.steps] == ["unlink"] and plan.freed == 0
        assert plan.kept[0].why == "linked only; its owner keeps it"
        plan.execute()
        assert [item.name for item in imported()] == left
    assert files_of(folder) == before


@pytest.mark.parametrize("place", ["elsewhere/a.gguf", "home/config/a.gguf", "home/data/a.gguf", "home/data/files/a.gguf"])
def test_a_path_that_is_not_ours_is_refused(tiny: Published, tmp_path: Path, place: str) -> None:
    path = tmp_path / place
    path.parent.mkdir(parents=True, exist_ok=True)
    models_folder().mkdir(parents=True, exist_ok=True)
    shutil.copy(DEMO / "text.gguf", path)
    with pytest.raises(UsageError, match="is not localgemma's to delete"):
        rm(path)
    with pytest.raises(UsageError, match="is not localgemma's to delete"):
        rm(models_folder() / ".." / ".." / ".." / place)
    with pytest.raises(NotFound):
        rm(tmp_path / "none.gguf")
    assert path.exists()


def test_a_link_that_was_put_in_the_way_deletes_nothing(tiny: Published, tmp_path: Path) -> None:
    """Between plan and execution, or before it, a folder of ours is exchanged for a link to somebody else's."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    shutil.copy(DEMO / "text.gguf", theirs)
    ours = models_folder() / "x"
    ours.mkdir(parents=True)
    shutil.copy(DEMO / "text.gguf", ours)
    plan = rm(ours / "text.gguf")
    shutil.rmtree(ours)
    ours.symlink_to(theirs)
    with pytest.raises(DiskError, match="is not where localgemma keeps files"):
        plan.execute()
    with pytest.raises(UsageError):
        rm(ours / "text.gguf")
    ours.unlink()
    ours.mkdir()
    (ours / "text.gguf").symlink_to(theirs / "text.gguf")
    rm(ours / "text.gguf").execute()
    assert files_of(theirs) == {"text.gguf": hashlib.sha256((DEMO / "text.gguf").read_bytes()).hexdigest()}
    with pytest.raises(DiskError):
        Removal((Step("delete", theirs / "text.gguf", 1, ""),)).execute()
    assert (theirs / "text.gguf").exists()


def test_what_was_unpacked_goes_and_its_folder_with_it(tiny: Published, tmp_path: Path) -> None:
    known = catalog.load()
    bundle.plan_bundle(locate("demo", known), known, tmp_path / "b.tar").execute()
    items = unbundle.install(unbundle.read_bundle(tmp_path / "b.tar"))
    plan = rm(*(item.name for item in items[:2]))
    assert [step.what for step in plan.steps].count("delete") == 2
    plan.execute()
    assert [item.name for item in imported()] == [items[2].name]
    rm(items[2].path).execute()
    assert imported() == () and list(models_folder().iterdir()) == []
    assert [kept.why for kept in rm("demo").kept] == ["it comes with localgemma"] * 3


def test_a_projector_that_another_model_needs_stays(tiny: Published) -> None:
    config = settings.load().config_dir / "models.toml"
    hub = tiny.hub
    hub.add("owner/tiny", "tiny-Q8_0.gguf", tiny.data["text"] + bytes(32))
    tiny.write()
    commit = hub.repositories["owner/tiny"].refs["main"]
    blob = hub.repositories["owner/tiny"].commits[commit]["tiny-Q8_0.gguf"]
    extra = f', {{ quant = "Q8_0", path = "tiny-Q8_0.gguf", bytes = {blob.size}, sha256 = "{blob.sha256}" }} ]'
    lines = config.read_text().splitlines()
    lines = [line[:-1].rstrip() + extra if line.startswith("text = ") else line for line in lines]
    config.write_text("\n".join(lines))
    known = catalog.load()
    for name in ("tiny:Q4_K_M", "tiny:Q8_0"):
        pull.run(pull.plan(known.find(name).choose()[0]))
    plan = rm("tiny:Q4_K_M")
    assert shown(plan) == [("delete", FILES["text"])]
    assert {kept.why for kept in plan.kept} == {"another model here needs it"} and len(plan.kept) == 2
    plan.execute()
    assert len(rm("tiny:Q8_0").steps) == 4 and len(rm("tiny").steps) == 4


def test_an_interrupted_download_goes_too_but_not_a_running_one(tiny: Published) -> None:
    hub = tiny.hub
    found = catalog.load().find("tiny").choose()[0]
    file = pull.plan(found).fetches[0]
    from localgemma.files import cache as hub_cache

    partial = pieces.Partial(file, hub_cache.blob_of(file))
    partial.close()
    assert hub
    plan = rm("tiny")
    assert {step.path.name.partition(".")[2] for step in plan.steps} == {"localgemma-part", "localgemma-journal"}
    assert plan.freed < file.size, "a file with holes takes what it takes"
    lock = hub_cache.lock_of(file)
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock), pytest.raises(DiskError, match="is being downloaded now"):
        plan.execute()
    assert plan_prune(catalog.load()).steps == (), "it is not a day old"
    for step in plan.steps:
        age(step.path)
    assert {s.path for s in plan_prune(catalog.load()).steps} == {s.path for s in plan.steps}
    plan.execute()
    assert not any(step.path.exists() for step in plan.steps)


def test_prune_takes_what_is_superfluous_and_nothing_else(tiny: Published, tmp_path: Path) -> None:
    files = pulled()
    elsewhere = Path(shutil.copy(DEMO / "text.gguf", tmp_path / "gone.gguf"))
    link(elsewhere)
    elsewhere.unlink()
    kept = Path(shutil.copy(DEMO / "text.gguf", tmp_path / "kept.gguf"))
    link(kept)
    assert files.copy
    orphan = Path(shutil.copy(files.copy, files.copy.with_name("old-gelu-0123456789abcdef.gguf")))
    young, old = models_folder() / ".x.1.part" / "a.gguf", models_folder() / ".y.2.part" / "a.gguf"
    for path in (young, old):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"half")
    age(old)
    before = files_of(cache())
    plan = plan_prune(catalog.load())
    assert shown(plan) == sorted([("unlink", "gone.gguf"), ("delete", orphan.name), ("delete", "a.gguf")])
    plan.execute()
    assert files_of(cache()) == before and files.copy.exists() and young.exists() and not old.parent.exists()
    assert [item.path for item in imported()] == [kept]
    assert plan_prune(catalog.load()).steps == ()


def test_prune_removes_a_replaced_file_once_the_new_one_is_here(tiny: Published) -> None:
    first = pulled().text
    was = hashlib.sha256(first.read_bytes()).hexdigest()
    tiny.hub.add("owner/tiny", FILES["text"], tiny.data["text"] + bytes(32))
    tiny.replaced.append(was)
    tiny.write()
    assert plan_prune(catalog.load()).steps == (), "the old one is all there is"
    new = pulled().text
    plan = plan_prune(catalog.load())
    assert [step.path for step in plan.steps] == [first] and "replaced by its publisher" in plan.steps[0].why
    record = ledger.recall(first)
    assert record
    ledger.forget(first)
    assert plan_prune(catalog.load()).steps == () and plan_prune(catalog.load()).kept[0].path == first
    ledger.record(first, record.sha256, fetched=True)
    plan.execute()
    assert new.exists() and not first.exists()


def test_prune_removes_what_a_check_found_damaged(tiny: Published) -> None:
    text = pulled().text
    ledger.record(text, "0" * 64, intact=False)
    plan = plan_prune(catalog.load())
    assert [step.path for step in plan.steps] == [text] and plan.steps[0].why.startswith("damaged: ")


def test_the_commands_show_ask_and_do(tiny: Published, tmp_path: Path) -> None:
    files = pulled()

    def run(*words: str, code: int = 0) -> Any:
        result = CliRunner().invoke(cli, ["models", *words])
        assert result.exit_code == code, result.output
        return json.loads(result.stdout) if "--json" in words and code == 0 else result.output

    assert "nobody is there to ask" in run("rm", "tiny", code=2)
    assert "nobody is asked" in run("rm", "tiny", "--json", code=2)
    plan = run("rm", "tiny", "--dry-run", "--json")
    assert plan["done"] is False and len(plan["steps"]) == 4 and files.text.exists()
    assert "There is nothing to remove." in run("prune", "--yes")
    assert run("prune", "--json") == {"steps": [], "kept": [], "freed": 0, "done": False}
    said = run("rm", "tiny", "--yes")
    assert "fetched by localgemma" in said and "are free again" in said and not files.text.exists()
    assert "is not on this machine" in run("rm", "tiny", code=3)
