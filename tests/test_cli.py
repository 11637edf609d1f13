"""The command line on the fake engine: which stream gets what, exit codes, and the conversation's commands."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from fakes import FakeEngine, Reply, thought

from localgemma import runtime
from localgemma.cli import main as cli_main
from localgemma.cli.attach import attachments
from localgemma.cli.interactive import COMMANDS, Interactive
from localgemma.cli.output import Output, _block_end, clean
from localgemma.errors import (
    BackendError,
    BadMedia,
    DecodeError,
    DoesNotFit,
    LocalgemmaError,
    NotDownloaded,
    NotFound,
    OfflineError,
)
from localgemma.messages import Progress
from localgemma.options import LoadOptions

Run = Callable[..., Result]


def _model(engine: FakeEngine) -> runtime.Model:
    choice = runtime.Choice("model", "fake", "a test")
    return runtime.Model(engine, runtime.Plan(Path("fake.gguf"), None, LoadOptions(), (choice,)))


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    """The engine that every load gives."""
    fake = FakeEngine()
    monkeypatch.setattr(runtime, "open", lambda *args, **kwargs: _model(fake))
    return fake


@pytest.fixture
def run() -> Run:
    """Runs the command line."""
    return lambda *args, **kwargs: CliRunner().invoke(cli_main.cli, list(args), **kwargs)


def test_answer_to_stdout_the_rest_to_stderr(engine: FakeEngine, run: Run) -> None:
    engine.replies = [thought("Let me see.", "Paris.")]
    result = run("chat", "Capital?", "--think", input="")
    assert result.exit_code == 0
    assert result.stdout == "Paris.\n"
    assert "Let me see." in result.stderr and "tokens/s" in result.stderr
    assert engine.closed


def test_quiet_and_hidden_thoughts(engine: FakeEngine, run: Run) -> None:
    engine.replies = [thought("Let me see.", "Paris.")] * 2
    assert run("chat", "Capital?", "--think", "--quiet", input="").stderr == ""
    assert "Let me" not in run("chat", "Capital?", "--think", "--hide-thinking", input="").stderr


def test_a_pipe_is_the_prompt_or_goes_before_it(engine: FakeEngine, run: Run) -> None:
    assert run("chat", input="from the pipe\n").exit_code == 0
    assert run("chat", "asked", input="from the pipe\n").exit_code == 0
    assert "from the pipe" in str(engine.requests[0].prompt)
    assert "from the pipe\n\nasked" in str(engine.requests[1].prompt)
    assert run("chat", input="").exit_code == 2


def test_json_is_one_object(engine: FakeEngine, run: Run) -> None:
    engine.replies = [thought("Hm.", "Paris\n<|tool_call>call:f{a:1}<tool_call|>")]
    result = run("chat", "x", "--json", "--think", input="")
    said = json.loads(result.stdout)
    assert set(said) == {"content", "thinking", "tool_calls", "finish_reason", "usage", "timings", "model", "plan"}
    assert said["tool_calls"][0]["arguments"] == {"a": 1}
    assert (said["finish_reason"], said["thinking"].strip(), said["plan"]) == (
        "tool_calls",
        "Hm.",
        [{"what": "model", "chosen": "fake", "reason": "a test"}],
    )


def test_options_reach_the_engine(engine: FakeEngine, run: Run, tmp_path: Path) -> None:
    (tmp_path / "s.txt").write_text("Be brief.\n")
    options = [
        "--temperature",
        "0",
        "--top-p",
        "0.5",
        "--top-k",
        "3",
        "--seed",
        "9",
        "--max-tokens",
        "2",
        "--think-budget",
        "5",
    ]
    result = run("chat", "x", "--system", f"@{tmp_path / 's.txt'}", "--think", *options, input="")
    assert result.exit_code == 0, result.output
    request = engine.requests[0]
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed, sampling.max_tokens) == (0, 0.5, 3, 9, 2)
    assert request.span is not None and request.span.tokens == 5
    assert "Be brief." in str(request.prompt)


def test_another_template(engine: FakeEngine, run: Run, tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text("{{ bos_token }}{{ messages[0].content }}!")
    assert run("chat", "Hello", "--template", str(tmp_path / "t.jinja"), input="").exit_code == 0
    assert str(engine.requests[0].prompt) == "<bos>Hello!"
    assert run("chat", "Hello", "--template", str(tmp_path / "none.jinja"), input="").exit_code == 3


@pytest.mark.live
def test_the_templates_of_files(run: Run) -> None:
    result = run("chat", "What is the capital of France?", "--template", "file", "--temperature", "0", "--no-save", input="")
    assert (result.exit_code, result.stdout) == (0, "The capital of France is Paris.\n"), result.stderr


def test_a_picture_of_the_network_offline(engine: FakeEngine, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOCALGEMMA_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "0")  # and is put back, whatever --offline does
    result = run("chat", "x", "-f", "https://example.org/a.png", "--offline", input="")
    assert (result.exit_code, result.stdout) == (5, "")
    assert result.stderr.startswith("Error: ") and "--offline" in result.stderr
    assert run("chat", "x", "-f", "http://example.org/a.png", input="").exit_code == 2


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["chat", "x", "--temperature", "-1"], 2),
        (["chat", "x", "--image-tokens", "300"], 2),
        (["chat", "x", "--image-tokens", "many"], 2),
        (["chat", "x", "--think-budget", "-1"], 2),
        (["chat", "x", "--ctx", "1"], 2),
        (["chat", "x", "--kv", "q3"], 2),
        (["plan", "--ctx", "10M"], 2),
        (["plan", "--ctx"], 2),
        (["chat", "x", "--nonsense"], 2),
        (["nonsense"], 2),
        (["chat", "x", "-f", "missing.png"], 3),
        (["chat", "x", "-f", "."], 2),
        (["chat", "x", "-f", "a\0b.png"], 3),
        (["chat", "x", "--system", "@missing.txt"], 3),
        (["chat", "--json"], 2),
    ],
)
def test_bad_input_is_one_sentence_and_its_code(engine: FakeEngine, run: Run, args: list[str], code: int) -> None:
    result = run(*args, input="")
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    assert re.fullmatch(r"Error: .+[.?] \S.+", result.stderr.strip()), result.stderr


def test_an_unknown_command_is_told_the_nearest(run: Run) -> None:
    assert "'plna'. Did you mean 'plan'? See" in run("plna").stderr
    assert "'--temp'. Did you mean one of: '--temperature', '--template'? See" in run("chat", "--temp", "1").stderr
    assert "'--temper'. Did you mean '--temperature'? See" in run("chat", "--temper", "1").stderr
    several = run("chat", "--modle", "x").stderr  # of options too, also where click puts them in brackets
    assert re.search(r"'--modle'\. Did you mean (one of: )?'--model'[^?()]*\? See", several), several


@pytest.mark.parametrize(
    ("name", "code", "says"),
    [
        ("gemma-4-31b", 3, "GiB with projector and drafter"),
        ("gemma-4-31b:Q4_K_M@unsloth", 3, "localgemma models pull gemma-4-31b"),
        ("demos", 3, "Did you mean demo?"),
        ("zzz", 3, "There are: demo"),
        ("x" * 5000, 3, "There is no model"),
        ("no/such.gguf", 3, "no/such.gguf"),
        ("a\0.gguf", 3, "no file name"),
    ],
)
def test_model_names(run: Run, name: str, code: int, says: str) -> None:
    result = run("chat", "x", "-m", name, input="")
    assert (result.exit_code, says in result.stderr) == (code, True), result.output


@pytest.mark.parametrize(
    "error",
    [
        NotFound("No."),
        NotDownloaded("No."),
        DoesNotFit("No."),
        OfflineError("No."),
        BackendError("No."),
        DecodeError("No.", 3),
    ],
)
def test_every_error_has_its_exit_code(engine: FakeEngine, run: Run, error: LocalgemmaError) -> None:
    engine.replies = [Reply("", fail=error)]
    result = run("chat", "x", input="")
    assert result.exit_code == error.exit_code
    assert f"Error: {error}" in result.stderr


def test_unexpected_errors_are_one_sentence_and_1(engine: FakeEngine, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCALGEMMA_LOG", raising=False)
    engine.replies = [Reply("", fail=ZeroDivisionError("oh\nno")), Reply("", fail=ZeroDivisionError("oh"))]
    result = run("chat", "x", input="")
    assert result.exit_code == 1
    assert "ZeroDivisionError: oh no" in result.stderr and "Traceback" not in result.stderr
    monkeypatch.setenv("LOCALGEMMA_LOG", "debug")
    assert "Traceback" in run("chat", "x", input="").stderr


def test_interrupts_are_130(engine: FakeEngine, run: Run) -> None:
    engine.replies = [Reply("", fail=KeyboardInterrupt()), Reply("So far", "cancelled")]  # type: ignore[arg-type]
    assert run("chat", "x", input="").exit_code == 130
    result = run("chat", "x", input="")
    assert (result.exit_code, result.stdout) == (130, "So far\n")


def test_bench_prints_a_table_and_a_json_line(engine: FakeEngine, run: Run) -> None:
    engine.replies = ["x" * 100] * 4
    result = run("bench", "demo")
    assert result.exit_code == 0, result.output
    last = json.loads(result.stdout.splitlines()[-1])
    assert last["decode_tokens_per_s"] == 50.0 and "decode" in result.stdout
    starts = {str(request.prompt)[:8] for request in engine.requests}
    assert len(starts) == 4


def test_text_files_go_into_the_prompt(engine: FakeEngine, run: Run, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("The code is KZ-7639.")
    assert run("chat", "Code?", "-f", str(tmp_path / "notes.txt"), input="").exit_code == 0
    assert "notes.txt:\n\nThe code is KZ-7639.\n\nCode?" in str(engine.requests[0].prompt)
    (tmp_path / "a.pdf").write_bytes(b"%PDF-1.7")
    with pytest.raises(BadMedia, match="damaged"):
        attachments([str(tmp_path / "a.pdf")])
    (tmp_path / "a.png").write_bytes(b"text in a picture's clothes")
    assert attachments([str(tmp_path / "a.png")]) == [str(tmp_path / "a.png")]


class _Script:
    """A session that reads these lines."""

    def __init__(self, engine: FakeEngine, lines: list[Any]) -> None:
        self.session = Interactive(model := _model(engine), model.chat(), Output(), [])
        self.lines = list(lines)
        self.session._read = self.read

    def read(self, prompt: str, default: str = "") -> str:
        if not self.lines:
            raise EOFError
        line = self.lines.pop(0)
        if isinstance(line, type):
            raise line
        return str(line)


def test_a_conversation_with_every_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("note text")
    fake = FakeEngine(["A", "B", "C", "D", "E"])
    lines = [
        "/help", "/stats", "one", "/retry", "/edit uno", "/think 50", "/system Be brief.", f"/file {tmp_path / 'notes.txt'}",
        "two", "/stats", f"/save {tmp_path / 'c.md'}", f"/save {tmp_path / 'c.json'}", "/undo", "/nonsense", "/file",
        "/think x",
        f"/save {tmp_path / 'c.md'}", "", "/clear", "/retry", "/exit", "never said",
    ]  # fmt: skip
    _Script(fake, lines).session.run()
    streams = capsys.readouterr()
    assert streams.out == "A\nB\nC\nD\n"
    for text in [*COMMANDS, "will be read again", "There is no command", "exists already", "Taken back: "]:
        assert text in streams.err
    last = str(fake.requests[-1].prompt)
    assert "note text" in last and "Be brief." in last and "uno" in last and "one" not in last
    assert fake.requests[-1].span.tokens == 50  # type: ignore[union-attr]
    rows = json.loads((tmp_path / "c.json").read_text())
    assert [row["role"] for row in rows] == ["system", "user", "assistant", "user", "assistant"]
    assert "**user**" in (tmp_path / "c.md").read_text()


def test_a_path_alone_is_an_attachment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "my notes.txt"
    path.write_text("inside")
    fake = FakeEngine()
    _Script(fake, [f"'{path}'", "what?"]).session.run()
    assert "inside" in str(fake.requests[0].prompt)
    assert "Attached" in capsys.readouterr().err


def test_ctrl_c_twice_leaves_once_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    _Script(FakeEngine(), [KeyboardInterrupt, "hi", KeyboardInterrupt]).session.run()
    with pytest.raises(KeyboardInterrupt):
        _Script(FakeEngine(), [KeyboardInterrupt, KeyboardInterrupt]).session.run()


def test_a_failed_answer_keeps_the_chat_and_the_attachments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "n.txt").write_text("kept")
    fake = FakeEngine([Reply("", fail=DecodeError("It failed.")), "fine"])
    _Script(fake, [f"/file {tmp_path / 'n.txt'}", "a", "b"]).session.run()
    assert "It failed." in capsys.readouterr().err
    assert "kept" in str(fake.requests[1].prompt)


def test_output_cannot_steer_the_terminal() -> None:
    assert clean("a\x1b[31mb\r\nc\td\x07") == "a�[31mb\nc\td�"


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("a\nb\n\nc", 5),
        ("a\nb\n\n", None),  # the next line may belong to it
        ("- a\n\n  more of a\n\nb", 18),
        ("```\na\n\nb\n", None),
        ("```\na\n\nb\n```\n\nc", 14),
        ("~~~\n```\n\nb\n~~~\n\nc", 16),
        ("```one line```\n\nc", 16),
        ("\n\na\n\nb", 5),
        ("a\nb", None),
    ],
)
def test_blocks_end_at_blank_lines_outside_fences(text: str, end: int | None) -> None:
    assert _block_end(text) == end


def test_progress_is_silent_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    Output().progress(Progress("load", 1, 2))
    assert capsys.readouterr() == ("", "")


def test_help_imports_no_heavy_module() -> None:
    code = (
        "import sys, localgemma.cli.main as m\n"
        "try: m.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "bad = {'llama_cpp', 'numpy', 'rich', 'prompt_toolkit', 'PIL', 'localgemma.runtime'} & set(sys.modules)\n"
        "assert not bad, bad"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "chat" in done.stdout and "bench" in done.stdout
