"""The stores of other programs, laid out as each lays them out on each platform, and what a search finds in them."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from ollama_store import DEMO, Store, fused_blob

from localgemma import settings
from localgemma.cli.main import cli
from localgemma.errors import BadModelFile
from localgemma.files import ollama, scan
from localgemma.files.imports import imported, link

SERVICE = Path("/usr/share/ollama/.ollama/models")
FOLDERS = {  # platform: what its programs use, below the home
    "linux": {
        "LM Studio": ".lmstudio/models", "Ollama": ".ollama/models", "llama.cpp": ".cache/llama.cpp",
        "Jan": ".local/share/Jan/data", "Hugging Face": ".cache/huggingface/hub",
    },
    "darwin": {
        "LM Studio": ".lmstudio/models", "Ollama": ".ollama/models", "llama.cpp": "Library/Caches/llama.cpp",
        "Jan": "Library/Application Support/Jan/data", "Hugging Face": ".cache/huggingface/hub",
    },
    "win32": {
        "LM Studio": ".lmstudio/models", "Ollama": ".ollama/models", "llama.cpp": "AppData/Local/llama.cpp",
        "Jan": "AppData/Roaming/Jan/data", "Hugging Face": ".cache/huggingface/hub",
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home of a person who has none of these programs yet."""
    home = tmp_path / "person"
    home.mkdir()
    for name in (
        "XDG_CACHE_HOME",
        "XDG_DATA_HOME",
        "XDG_CONFIG_HOME",
        "APPDATA",
        "LOCALAPPDATA",
        "OLLAMA_MODELS",
        "LLAMA_CACHE",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    monkeypatch.setenv("LOCALGEMMA_HOME", str(tmp_path / "localgemma"))
    return home


def place(name: str, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy(DEMO / f"{name}.gguf", path))


def found_stores() -> list[tuple[str, Path]]:
    return [(store.program, store.folder) for store in scan.stores() if store.folder != SERVICE]


@pytest.mark.parametrize("platform", FOLDERS)
def test_each_platforms_folders_are_known(home: Path, platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    assert found_stores() == []
    for folder in FOLDERS[platform].values():
        (home / folder).mkdir(parents=True)
    assert found_stores() == [(program, home / folder) for program, folder in FOLDERS[platform].items()]


def test_what_the_programs_were_told_is_heeded(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("studio/models", "ollama", "llama", "hub"):
        (tmp_path / name).mkdir(parents=True)
    (home / ".lmstudio-home-pointer").write_text(f"{tmp_path / 'studio'}\n")
    for name, folder in (("OLLAMA_MODELS", "ollama"), ("LLAMA_CACHE", "llama"), ("HF_HUB_CACHE", "hub")):
        monkeypatch.setenv(name, str(tmp_path / folder))
    assert found_stores() == [
        ("LM Studio", tmp_path / "studio" / "models"), ("Ollama", tmp_path / "ollama"), ("llama.cpp", tmp_path / "llama"),
        ("Hugging Face", tmp_path / "hub"),
    ]  # fmt: skip
    monkeypatch.setenv("LLAMA_CACHE", str(tmp_path / "hub"))
    assert [program for program, _ in found_stores()][2:] == ["llama.cpp"], "one folder is looked through once"
    assert settings.elsewhere().ollama == tmp_path / "ollama"


def test_a_search_finds_the_files_of_every_program(home: Path, tmp_path: Path) -> None:
    studio = home / ".lmstudio" / "models" / "unsloth" / "gemma-4-31B-it-GGUF"
    place("text", studio / "gemma-4-31B-it-Q4_K_M.gguf")
    place("mmproj", studio / "mmproj-F16.gguf")
    jan = home / ".local" / "share" / "Jan" / "data" / "llamacpp" / "models" / "gemma-4-31b"
    place("text", jan / "model.gguf")
    place("mmproj", jan / "mmproj.gguf")
    cache = home / ".cache" / "llama.cpp"
    place("text", cache / "ggml-org_gemma-4-31B-it-GGUF_gemma-4-31B-it-Q4_0.gguf")
    place("drafter", cache / "ggml-org_gemma-4-31B-it-GGUF_mtp-gemma-4-31B-it.gguf")
    repository = home / ".cache" / "huggingface" / "hub" / "models--bartowski--google_gemma-4-31B-it-GGUF"
    blob = place("text", repository / "blobs" / ("0" * 64))
    for commit in ("a" * 40, "b" * 40):
        (repository / "snapshots" / commit).mkdir(parents=True)
        (repository / "snapshots" / commit / "google_gemma-4-31B-it-Q6_K.gguf").symlink_to(
            os.path.relpath(blob, repository / "snapshots" / commit)
        )
    store = Store(home / ".ollama" / "models")
    own = store.blob(fused_blob(tmp_path / "x"))
    plain, eyes = (store.blob(place(name, tmp_path / f"{name}.tmp")) for name in ("text", "mmproj"))
    store.manifest("registry.ollama.ai/library/gemma4/31b", model=own)
    store.manifest("registry.ollama.ai/library/gemma4/31b-it-q4_K_M", model=own)
    store.manifest("hf.co/unsloth/gemma-4-31B-it-GGUF/Q4_K_M", model=plain, projector=eyes)
    store.manifest("registry.ollama.ai/library/gemma4/31b-mlx", tensor=own)
    store.manifest("registry.ollama.ai/library/broken/1", model=own).write_text("{")
    result = scan.scan()
    rows = {
        (f.program, f.name): (f.role, f.form, f.projector.name if f.projector else None, f.drafter is not None)
        for f in result.found
    }
    assert rows == {
        ("LM Studio", "gemma-4-31B-it-Q4_K_M"): ("text", "plain", "mmproj-F16.gguf", False),
        ("LM Studio", "mmproj-F16"): ("projector", "plain", None, False),
        ("Ollama", "hf.co/unsloth/gemma-4-31B-it-GGUF:Q4_K_M"): ("text", "plain", eyes.name, False),
        ("Ollama", "hf.co/unsloth/gemma-4-31B-it-GGUF:Q4_K_M (projector)"): ("projector", "plain", None, False),
        ("Ollama", "gemma4:31b"): ("text", "ollama", None, False),
        ("llama.cpp", "ggml-org_gemma-4-31B-it-GGUF_gemma-4-31B-it-Q4_0"): ("text", "plain", None, True),
        ("llama.cpp", "ggml-org_gemma-4-31B-it-GGUF_mtp-gemma-4-31B-it"): ("drafter", "plain", None, False),
        ("Jan", "mmproj"): ("projector", "plain", None, False),
        ("Jan", "gemma-4-31b"): ("text", "plain", "mmproj.gguf", False),
        ("Hugging Face", "google_gemma-4-31B-it-Q6_K"): ("text", "plain", None, False),
    }
    assert result.in_pieces == ("gemma4:31b-mlx",) and result.others == 0 and result.unreadable == ()
    assert not any(item.is_31b for item in result.found), "the demo has other shapes"


def test_what_is_no_gemma_is_counted_and_what_is_broken_named(home: Path) -> None:
    models = home / ".lmstudio" / "models"
    path = place("text", models / "a" / "b" / "cut.gguf")
    os.truncate(path, 5000)
    (models / "a" / "b" / "model.gguf.part").write_bytes(b"not looked at")
    (models / "a" / "b" / "loop.gguf").symlink_to("loop.gguf")
    (models / "a" / "round").symlink_to(models)
    other = (DEMO / "text.gguf").read_bytes().replace(b"\x06\0\0\0\0\0\0\0gemma4", b"\x06\0\0\0\0\0\0\0llama4", 1)
    (models / "other.gguf").write_bytes(other)
    result = scan.scan()
    assert result.found == () and result.others == 1
    reasons = {p.name: reason for p, reason in result.unreadable}
    assert reasons.keys() == {"cut.gguf", "loop.gguf"} and "cut off" in reasons["cut.gguf"]


def test_the_search_is_bounded(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = home / ".lmstudio" / "models"
    place("mmproj", models.joinpath(*"abcdefgh", "deep.gguf"))
    place("mmproj", models.joinpath(*"abcdefghi", "deeper.gguf"))
    assert [item.name for item in scan.scan().found] == ["deep"]
    monkeypatch.setattr(scan, "MAX_FILES", 0)
    assert scan.scan().found == ()


@pytest.mark.parametrize(
    "digest",
    [
        "sha256:../../../etc/passwd",
        "sha256:" + "0" * 63,
        "sha256:" + "G" * 64,
        "/etc/passwd",
        "sha256-" + "A" * 64,
        "",
        "sha256:" + "0" * 65,
    ],
)
def test_a_manifest_names_nothing_outside_its_store(tmp_path: Path, digest: str) -> None:
    store = Store(tmp_path / "ollama")
    path = store.folder / "manifests" / "h" / "n" / "m" / "t"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": digest, "size": 1}]}))
    assert ollama.read_manifest(path, store.folder).model is None


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"layers": 1}', '{"layers": [1]}', '{"layers": [{}]}', "[" * 99_999, " " * (2 << 20)]
)
def test_a_manifest_that_is_none_is_passed_over(tmp_path: Path, content: str) -> None:
    store = Store(tmp_path / "ollama")
    path = store.folder / "manifests" / "h" / "n" / "m" / "t"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(BadModelFile):
        ollama.read_manifest(path, store.folder)
    assert list(ollama.models(store.folder)) == []


def test_import_scan_shows_and_links(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    studio = home / ".lmstudio" / "models" / "unsloth" / "gemma"
    place("text", studio / "gemma-Q4_K_M.gguf")
    place("mmproj", studio / "mmproj-F16.gguf")
    link(studio / "mmproj-F16.gguf")

    def run(*words: str, code: int = 0) -> str:
        result = CliRunner().invoke(cli, ["models", "import", "--scan", *words])
        assert result.exit_code == code, result.output
        return result.stdout

    seen = json.loads(run("--json"))
    assert [(f["name"], f["linked"], f["is_31b"]) for f in seen["found"]] == [
        ("gemma-Q4_K_M", False, False), ("mmproj-F16", True, False),
    ]  # fmt: skip
    assert seen["linked"] == [] and len(imported()) == 1
    said = run("--yes")
    assert "another Gemma 4, with projector" in said and "linked already" in said
    assert len(imported()) == 1, "only the 31B is taken up unasked"
    monkeypatch.setattr(scan, "WIDTH_31B", 256)
    monkeypatch.setattr(scan, "LAYERS_31B", 12)
    assert "nobody is there to ask" in CliRunner().invoke(cli, ["models", "import", "--scan"]).output
    assert run("--dry-run") and len(imported()) == 1
    linked = json.loads(run("--yes", "--json"))["linked"]
    assert [item["name"] for item in linked] == ["gemma-Q4_K_M"] and len(imported()) == 2
    folder = CliRunner().invoke(cli, ["models", "import", str(tmp_path), "--yes", "--json"])
    assert folder.exit_code == 0 and json.loads(folder.stdout)["linked"] == []
