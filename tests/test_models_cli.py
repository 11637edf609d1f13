"""`localgemma models` on the stand-in hub: what is said, to which stream, with which exit code, and what stays offline."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from published import FILES, REPOSITORY, Published, publish, with_template, with_text
from standin_hub import Hub

from localgemma import settings
from localgemma.cli import main as cli_main
from localgemma.cli import models_view as view
from localgemma.files import catalog, store

ROOT = Path(__file__).resolve().parent.parent
Run = Callable[..., Result]


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: Hub) -> Iterator[Published]:
    """A model on the stand-in hub, and a LOCALGEMMA_HOME with the catalogue that names it."""
    monkeypatch.setenv("LOCALGEMMA_HOME", str(tmp_path / "home"))
    found = publish(hub)
    found.write()
    yield found


@pytest.fixture
def run() -> Run:
    """Runs `localgemma models …`."""
    return lambda *args, **kwargs: CliRunner().invoke(cli_main.cli, ["models", *args], **kwargs)


def reply(result: Result) -> dict[str, object]:
    """The one JSON object on stdout."""
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


def test_list(tiny: Published, run: Run) -> None:
    result = run("list")
    assert result.exit_code == 0 and not result.stderr
    for word in ("demo", "tiny:Q4_K_M@owner", "gemma-4-31b:Q4_0@google", "16.4 GiB", "4.60", "0.042 vramfit"):
        assert word in result.stdout, word
    assert "gemma-4-31b:Q4_1@unsloth" not in result.stdout
    assert "gemma-4-31b:Q4_1@unsloth" in run("list", "--all").stdout
    assert "Could be" not in run("list", "--here").stdout
    assert "google" not in run("list", "tiny").stdout
    found = reply(run("list", "--json"))
    assert {item["role"] for item in found["here"]} == {"text", "projector", "drafter"}  # type: ignore[attr-defined]
    assert len(found["available"]) == len(list(catalog.load().variants()))  # type: ignore[arg-type]
    assert not tiny.hub.requests


def test_pull_needs_a_yes(tiny: Published, run: Run) -> None:
    result = run("pull", "tiny")
    assert (result.exit_code, "Add --yes" in result.stderr) == (2, True), result.output
    assert not tiny.hub.bytes_served(FILES["text"])


def test_pull_asks_on_a_terminal(tiny: Published, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal:
        @staticmethod
        def isatty() -> bool:
            return True

    monkeypatch.setattr(view, "sys", type("sys", (), {"stdin": Terminal, "stderr": Terminal, "stdout": sys.stdout}))
    monkeypatch.setattr(view, "progress_bar", None)
    result = run("pull", "tiny", input="n\n")
    assert (result.exit_code, "Download 15.2 MiB?" in result.stderr) == (130, True), result.output


def test_pull(tiny: Published, run: Run) -> None:
    dry = run("pull", "tiny", "--dry-run")
    for word in (*FILES.values(), REPOSITORY, "6.58 MiB", "corrected copy", "To download: 15.2 MiB"):
        assert word in dry.stdout, (word, dry.stdout)
    assert not tiny.hub.bytes_served(FILES["text"])
    result = run("pull", "tiny", "--yes")
    assert (result.exit_code, "corrected copy is used" in result.stderr) == (0, True), result.output
    assert "localgemma chat -m tiny" in result.stderr
    again = run("pull", "tiny")
    assert (again.exit_code, "Everything is here" in again.stdout) == (0, True), again.output
    listed = run("list", "--here").stdout
    assert "tiny" in listed and "checked" in listed and "made here" in listed


def test_pull_as_json(tiny: Published, run: Run) -> None:
    dry = reply(run("pull", "tiny", "--dry-run", "--json"))
    assert dry["download_bytes"] == sum(map(len, tiny.data.values())) and dry["dry_run"] is True
    done = reply(run("pull", "tiny", "--json"))
    assert Path(str(done["text"])).read_bytes() == tiny.data["text"]
    assert "gelu" in str(done["projector"])


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (("pull", "gemma-5"), 3, "Did you mean gemma-4"),
        (("show", "zzzz"), 3, "There are: demo"),
        (("verify", "gemma-4-31b"), 3, "Nothing of 'gemma-4-31b' is on this machine"),
        (("show", "x/no.gguf"), 3, "There is no file"),
        (("list", "a:b:c"), 2, "is no model's name"),
    ],
)
def test_errors_end_in_the_next_step(tiny: Published, run: Run, args: tuple[str, ...], code: int, says: str) -> None:
    result = run(*args)
    assert (result.exit_code, says in result.stderr) == (code, True), result.output


def test_a_broken_catalogue_of_ones_own(tiny: Published, run: Run) -> None:
    path = settings.load().config_dir / "models.toml"
    path.write_text("[models.tiny]\n\ntitle = 3\n")
    result = run("list")
    assert result.exit_code == 2 and f"{path}, line 3, models.tiny.title" in result.stderr


def test_show_of_what_is_here_and_what_is_not(tiny: Published, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    demo = run("show", "demo").stdout
    for word in ("toy", "Q4_K_M", "10,696,780", "8,192 tokens", "1 KiB a token", "Q6_K", "ships with localgemma"):
        assert word in demo, word
    away = run("show", "tiny")
    for word in (REPOSITORY, "its header alone", "10,696,780", "mmproj-tiny.gguf"):
        assert word in away.stdout, (word, away.output)
    assert not tiny.hub.bytes_served(FILES["drafter"])
    monkeypatch.setenv("LOCALGEMMA_OFFLINE", "1")  # the header was kept
    assert run("show", "tiny").stdout == away.stdout
    monkeypatch.delenv("LOCALGEMMA_OFFLINE")
    found = reply(run("show", "tiny", "--json"))
    assert (found["here"], found["facts"]["parameters"]) == (False, 10_696_780)  # type: ignore[index]
    run("pull", "tiny", "-y")
    here = run("show", "tiny").stdout
    assert "checked here" in here and "does not say which activation" in here


def test_verify(tiny: Published, run: Run) -> None:
    run("pull", "tiny", "-y")
    result = run("verify")
    assert result.exit_code == 0 and result.stdout.count("sha256 and structure are right") == 7, result.output
    assert run("verify", "tiny").stdout.count("are right") == 4  # with the corrected projector
    path = store.copies(catalog.load().find("tiny").variants[0].text[0])[0].path
    data = bytearray(path.read_bytes())
    data[-100] ^= 4
    path.resolve().write_bytes(data)
    result = run("verify", "tiny")
    assert (result.exit_code, "damaged: its sha256" in result.stdout) == (5, True), result.output
    assert "models pull" in result.stderr
    assert "Damaged, and not used" in run("list").stdout
    assert run("verify", "demo").exit_code == 0
    found = json.loads(run("verify", "--json").stdout)
    assert [item["reason"] for item in found["damaged"]]
    assert run("pull", "tiny", "-y").exit_code == 0 and run("verify").exit_code == 0


def test_verify_a_file_from_elsewhere(tiny: Published, run: Run, tmp_path: Path) -> None:
    """A linked file of a published name and size, but of other bytes, is another file, not a damaged one."""
    same, other = tmp_path / "a" / FILES["text"], tmp_path / "b" / FILES["text"]
    for path, data in ((same, tiny.data["text"]), (other, tiny.data["text"][:-1] + b"?")):
        path.parent.mkdir()
        path.write_bytes(data)
        assert "of owner" in (said := run("verify", str(path)).stdout) or path == other, said
        assert run("import", str(path)).exit_code == 0
    assert "tiny" in run("list", "--here").stdout
    result = run("verify")
    assert result.exit_code == 0 and "of no file in the catalogue" in result.stdout, result.output
    texts = [item for item in store.inventory(catalog.load()).of("text") if item.origin == "linked"]
    assert {(item.path, item.file is not None) for item in texts} == {(same, True), (other, False)}
    assert run("verify", str(tmp_path / "none.gguf")).exit_code == 3


def test_outdated_and_update(tiny: Published, run: Run, tmp_path: Path) -> None:
    assert "Nothing here comes from a publisher" in run("outdated").stdout
    run("pull", "tiny", "-y")
    assert "are what their publishers offer now" in run("outdated").stdout
    tiny.hub.change(REPOSITORY, FILES["text"], with_template(tiny.data["text"], "another", tmp_path / "scratch"))
    result = run("outdated")
    assert "only the chat template changed" in result.stdout and "needs no download" in result.stdout
    served = tiny.hub.bytes_served(FILES["text"])
    assert run("update", "-y").exit_code == 0 and tiny.hub.bytes_served(FILES["text"]) == served
    tiny.hub.change(REPOSITORY, FILES["text"], with_text(tiny.data["text"], "general.name", "New", tmp_path / "scratch"))
    served = tiny.hub.bytes_served(FILES["text"])
    assert "to make anew from what is here: 1 files" in run("update", "--dry-run").stdout
    assert "Updated" in run("update").stdout  # nothing is downloaded, so nothing is asked
    assert tiny.hub.bytes_served(FILES["text"]) - served <= len(tiny.data["text"])  # the header's range
    data = bytearray(tiny.data["text"])
    data[-9] ^= 1
    tiny.hub.change(REPOSITORY, FILES["text"], bytes(data))
    assert "the weights differ" in run("outdated").stdout
    found = reply(run("update", "--dry-run", "--json"))
    assert found["download_bytes"] == len(data)
    assert run("update").exit_code == 2  # nobody can say yes
    assert "Updated" in run("update", "-y").stdout
    assert "are what their publishers offer now" in run("outdated", "tiny").stdout


def test_outdated_offline_asks_the_catalogue(tiny: Published, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run("pull", "tiny", "-y")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = len(tiny.hub.requests)
    assert "as the catalogue says" in run("outdated").stdout
    assert len(tiny.hub.requests) == before


def test_every_subcommand_can_be_loaded(run: Run) -> None:
    listed = [line.split()[0] for line in run("-h").stdout.split("Commands:")[1].splitlines() if line.strip()]
    assert listed == ["list", "show", "pull", "verify", "import", "rm", "prune", "outdated", "update", "bundle", "unbundle"]
    for name in listed:
        assert run(name, "-h").exit_code == 0, name


NO_SOCKETS = """
import socket, sys
def refuse(*args, **kwargs):
    print("A SOCKET WAS OPENED", args, file=sys.stderr, flush=True)
    import os
    os._exit(99)
socket.socket.__init__ = refuse
socket.create_connection = socket.getaddrinfo = socket.gethostbyname = refuse
from localgemma.cli.main import main
sys.argv[0] = "localgemma"
main()
"""


def without_sockets(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs the command line in a process that ends with 99 where it opens a socket."""
    return subprocess.run(
        [sys.executable, "-c", NO_SOCKETS, *args], capture_output=True, text=True, cwd=ROOT, stdin=subprocess.DEVNULL,
        env={**os.environ, **env}, check=False,
    )  # fmt: skip


QUESTION = ("What is the capital of Vorland?", "--max-tokens", "8", "--no-save")


@pytest.mark.live
@pytest.mark.parametrize(
    "args",
    [
        ("models", "list"), ("models", "show", "demo"), ("models", "verify", "demo"), ("models", "pull", "demo"),
        ("plan", "-m", "demo"), ("chat", "-m", "demo", *QUESTION),
    ],
    ids=" ".join,
)  # fmt: skip
def test_what_is_present_opens_no_socket(args: tuple[str, ...], tmp_path: Path) -> None:
    done = without_sockets(*args, LOCALGEMMA_HOME=str(tmp_path), HF_HOME=str(tmp_path / "hf"))
    assert done.returncode == 0 and done.stdout.strip(), done.stderr


@pytest.mark.parametrize("args", [("pull", "tiny", "-y"), ("show", "tiny"), ("update",)], ids=" ".join)
def test_offline_is_an_option_of_every_command(tiny: Published, run: Run, args: tuple[str, ...]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("LOCALGEMMA_OFFLINE", "HF_HUB_OFFLINE"):
            patch.setenv(name, "0")  # and is put back, whatever --offline does
        result = run(*args, "--offline")
    assert not tiny.hub.requests and "Traceback" not in result.output
    if args[0] == "pull":
        assert result.exit_code == 5 and "--offline" in result.stderr


@pytest.mark.live
def test_a_downloaded_model_opens_no_socket(tiny: Published, run: Run) -> None:
    assert run("pull", "tiny", "-y").exit_code == 0
    before = len(tiny.hub.requests)
    done = without_sockets("chat", "-m", "tiny", *QUESTION)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
    assert len(tiny.hub.requests) == before


def test_the_socket_guard_works(tmp_path: Path) -> None:
    env = {"LOCALGEMMA_HOME": str(tmp_path), "HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = without_sockets("models", "show", "gemma-4-31b:Q4_0@google", **env)
    assert done.returncode == 99, done.stderr
