"""The conversation on a terminal: dropped files, the clipboard, completion, and what the screen gets in every kind of it."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeEngine, Reply, thought
from PIL import Image, ImageGrab
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from localgemma import runtime, settings
from localgemma.cli import attach
from localgemma.cli.interactive import COMMANDS, Interactive
from localgemma.cli.output import Output
from localgemma.cli.terminal import completer
from localgemma.errors import BadMedia, NotFound
from localgemma.messages import Done, Message, TextPart, ToolCall
from localgemma.options import LoadOptions

ROOT = Path(__file__).resolve().parent.parent
posix = pytest.mark.skipif(sys.platform == "win32", reason="paths and terminals of another kind")

# ---- dropped and pasted files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "windows", "wanted"),
    [
        ("a b", False, ["a", "b"]),
        (r"a\ b c", False, ["a b", "c"]),
        ("'a b' c", False, ["a b", "c"]),
        ('"a \\"b" c', False, ['a "b', "c"]),
        ("a'b c'd", False, ["ab cd"]),
        ("don't stop", False, ["don't", "stop"]),
        ("it's a dog's life", False, ["its a dogs", "life"]),
        ("end\\", False, ["end\\"]),
        (r"C:\Users\me\a.png", True, [r"C:\Users\me\a.png"]),
        (r'"C:\My Pictures\a.png" b', True, [r"C:\My Pictures\a.png", "b"]),
        ("don't stop", True, ["don't", "stop"]),
        ("", False, []),
    ],
)
def test_words_of_a_line(line: str, windows: bool, wanted: list[str]) -> None:
    assert attach.words(line, windows=windows) == wanted


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a picture and a text whose names have spaces and quotes."""
    Image.new("RGB", (64, 64), "blue").save(tmp_path / "my shot.png")
    Image.new("RGB", (64, 64), "red").save(tmp_path / "b.png")
    (tmp_path / "it's.txt").write_text("inside")
    return tmp_path


@posix
@pytest.mark.parametrize(
    ("line", "files", "text"),
    [
        ("{d}/my shot.png", ["my shot.png"], ""),
        ("{d}/my\\ shot.png", ["my shot.png"], ""),
        ("'{d}/my shot.png'", ["my shot.png"], ""),
        ('"{d}/my shot.png" ', ["my shot.png"], ""),
        ("file://{d}/my%20shot.png", ["my shot.png"], ""),
        ("file://localhost{d}/my%20shot.png", ["my shot.png"], ""),
        ("'{d}/my shot.png' '{d}/b.png'", ["my shot.png", "b.png"], ""),
        ("{d}/it\\'s.txt", ["it's.txt"], ""),
        ("'{d}/my shot.png' what is it?", ["my shot.png"], "what is it?"),
        ("what is {d}/b.png and why?", ["b.png"], "what is and why?"),
        ("{d}/b.png\nTwo\n  lines", ["b.png"], "Two\n  lines"),
        ("what does {d}/it\\'s.txt say?", [], "what does {d}/it\\'s.txt say?"),
        ("{d}/none.png", [], "{d}/none.png"),
        ("file://elsewhere{d}/b.png", [], "file://elsewhere{d}/b.png"),
        ("don't say b.png, it's a name", [], "don't say b.png, it's a name"),
        ("hello", [], "hello"),
        ("x" * 9000 + "/a.png", [], "x" * 9000 + "/a.png"),
        ("/\0.png", [], "/\0.png"),
    ],
)
def test_dropped_files(folder: Path, line: str, files: list[str], text: str) -> None:
    here = str(folder)
    assert attach.dropped(line.replace("{d}", here), windows=False) == (
        [str(folder / name) for name in files],
        text.replace("{d}", here),
    )


def test_dropped_files_of_windows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attach, "_is_file", lambda name: name in (r"C:\My Pictures\a.png", r"C:\b.png", r"\\host\share\c.png"))
    assert attach.dropped(r'"C:\My Pictures\a.png" C:\b.png', windows=True)[0] == [r"C:\My Pictures\a.png", r"C:\b.png"]
    assert attach.dropped(r"C:\My Pictures\a.png", windows=True) == ([r"C:\My Pictures\a.png"], "")
    assert attach.dropped(r"C:\b.png what is it?", windows=True) == ([r"C:\b.png"], "what is it?")
    assert attach.dropped(r"\\host\share\c.png what?", windows=True) == ([r"\\host\share\c.png"], "what?")
    assert attach._local("file:///C:/My%20Pictures/a.png", True) == "C:/My Pictures/a.png"


def test_a_relative_name_alone_is_a_file_and_in_a_sentence_a_word(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert attach.dropped("b.png") == (["b.png"], "")
    assert attach.dropped("b.png please") == ([], "b.png please")


# ---- the clipboard ---------------------------------------------------------------------------------------------------


def _grab(monkeypatch: pytest.MonkeyPatch, found: Any) -> None:
    def grab() -> Any:
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(ImageGrab, "grabclipboard", grab)


@pytest.mark.parametrize(
    ("found", "error", "says"),
    [
        (NotImplementedError("wl-paste or xclip is required"), NotFound, r"Install wl-clipboard .* /file"),
        (ChildProcessError("xclip error: Can't open display"), BadMedia, r"Can't open display\)\. Save the picture"),
        (None, BadMedia, "There is no picture in the clipboard. Copy one"),
        ([], BadMedia, "There is no picture"),
    ],
)
def test_a_clipboard_without_a_picture(monkeypatch: pytest.MonkeyPatch, found: Any, error: Any, says: str) -> None:
    _grab(monkeypatch, found)
    with pytest.raises(error, match=says):
        attach.clipboard()


def test_paste_attaches_the_picture_or_the_copied_files(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = FakeEngine()
    talk = _talk(engine)
    _grab(monkeypatch, Image.new("RGBA", (64, 64), "green"))
    talk.take("/paste")
    _grab(monkeypatch, [str(folder / "it's.txt")])
    talk.take("/paste")
    talk.take("What is it?")
    prompt = engine.requests[0].prompt
    assert "<|image|>" in str(prompt) and "inside" in str(prompt)
    said = capsys.readouterr().err
    assert "the clipboard's picture" in said and "it's.txt" in said and "pasted picture →" in said


# ---- commands --------------------------------------------------------------------------------------------------------


def _model(engine: FakeEngine) -> runtime.Model:
    return runtime.Model(engine, runtime.Plan(Path("fake.gguf"), None, LoadOptions(), ()))


def _talk(engine: FakeEngine) -> Interactive:
    model = _model(engine)
    return Interactive(model, model.chat(), Output(), [])


def test_a_change_at_the_front_says_what_is_read_again(capsys: pytest.CaptureFixture[str]) -> None:
    talk = _talk(FakeEngine())
    for line in ("/think on", "/system Be brief."):
        talk.take(line)
    assert "read again" not in capsys.readouterr().err  # nothing was read yet
    talk.take("Hello")
    for line in ("/think off", "/system", "/think 9"):
        talk.take(line)
        count = talk.chat.engine.count(talk.chat.prompt())
        assert f"{count:,} tokens will be read again" in capsys.readouterr().err


def test_a_command_that_fails_is_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    talk = _talk(FakeEngine())
    lines = iter(["/file none.png", "/undo", "/retry", "/edit x", "/save /no/such/place/x.md", "/nothing", "/exit"])
    monkeypatch.setattr(talk, "_read", lambda *_: next(lines))
    talk.run()
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 6


def test_calls_and_notices_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output()
    output.event(ToolCall("f", {"x": 1}, "call_0"))
    output.event(ToolCall("", {}, "call_1", "call:g{", "it has no end"))
    output.event(Done(Message("assistant", (TextPart("x"),)), "tool_calls"))
    said = capsys.readouterr().err
    assert "Tool call: f(x=1)" in said and "unreadable: it has no end" in said


@posix
def test_completion(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "sub dir").mkdir()

    def offered(line: str) -> list[str]:
        found = completer(COMMANDS).get_completions(Document(line), CompleteEvent(completion_requested=True))
        return [line[: len(line) + item.start_position] + item.text for item in found]

    assert offered("/s") == ["/system", "/stats", "/save"]
    assert offered("/pa") == ["/paste"]
    assert offered("hello b") == []
    assert offered("/file b") == ["/file b.png"]
    assert offered("/file b.png my") == ["/file b.png my\\ shot.png"]
    assert offered("/file 'my") == ["/file 'my shot.png"]
    assert offered("/file my\\ s") == ["/file my\\ shot.png"]
    assert offered("/file 'b.png' m") == ["/file 'b.png' my\\ shot.png"]
    assert offered("/file su") == ["/file sub\\ dir/"]
    assert offered(f"{folder}/b") == [f"{folder}/b.png"]
    assert offered("/think b") == []


# ---- on a real terminal, and without one -----------------------------------------------------------------------------

CHAT = """
import sys, time
sys.path[:0] = [{tests!r}, {root!r}]
from pathlib import Path
from fakes import FakeEngine, thought
from localgemma import runtime
from localgemma.cli import main
from localgemma.messages import Progress
from localgemma.options import LoadOptions

class Slow(FakeEngine):
    def generate(self, request, cancel=None):
        said = str(request.prompt).split("<|turn>user")[-1]
        if "read" in said:
            for done in range(20):
                yield Progress("prefill", done, 20, (20 - done) / 10)
                time.sleep(0.02)
        markdown = thought("Let me see.", "# Head\\n\\nüber **all**\\n\\n- a\\n- b\\n")
        self.replies = [markdown if "think" in said else "All is well. " * 40]
        for output in super().generate(request, cancel):
            time.sleep(0.05 if "slow" in said else 0)
            yield output

model = runtime.Model(Slow(), runtime.Plan(Path("x.gguf"), None, LoadOptions(), ()))
runtime.open = lambda *_, **__: model
main.cli.main(["chat", *sys.argv[1:]])
""".format(tests=str(ROOT / "tests"), root=str(ROOT))


READY = "\x1b[?2004h"  # the line editor asks for pastes to be marked


class Screen:
    """A program on a terminal of its own; `wait` reads until a text appears."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        import pty
        import termios

        self.pid, self._terminal = pty.fork()
        if self.pid == 0:
            termios.tcsetwinsize(0, (30, 80))
            os.environ.update({"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"} | environment)
            os.execv(sys.executable, [sys.executable, "-c", CHAT, *arguments])
        self.text = ""

    def wait(self, text: str, seconds: float = 30) -> str:
        """Everything that was printed since the last wait, up to this text."""
        end = time.monotonic() + seconds
        while text not in self.text:
            ready, _, _ = select.select([self._terminal], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"{text!r} did not come; what came: {self.text!r}"
            try:
                data = os.read(self._terminal, 65536)
            except OSError:
                data = b""
            assert data, f"{text!r} did not come before the end; what came: {self.text!r}"
            self.text += data.decode(errors="replace")
        at = self.text.index(text) + len(text)
        seen, self.text = self.text[:at], self.text[at:]
        return seen

    def type(self, text: str) -> None:
        """Send keys."""
        os.write(self._terminal, text.encode())

    def code(self) -> int:
        """Wait for the end."""
        while True:
            try:
                if not os.read(self._terminal, 65536):
                    break
            except OSError:
                break
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.fixture
def screen() -> Iterator[Callable[..., Screen]]:
    """Makes screens, and ends what still runs."""
    made: list[Screen] = []

    def make(*arguments: str, **environment: str) -> Screen:
        made.append(Screen(*arguments, **environment))
        return made[-1]

    yield make
    for one in made:
        try:
            os.kill(one.pid, signal.SIGKILL)
            os.waitpid(one.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


@posix
def test_ctrl_c_ends_the_answer_and_twice_leaves(screen: Callable[..., Screen]) -> None:
    talk = screen("--no-save")
    talk.wait(READY)
    talk.type("slow\r")
    time.sleep(0.5)
    talk.type("\x03")
    assert "All is well" in talk.wait("Ctrl-C again leaves.")
    talk.wait(READY)
    talk.type("more\r")
    talk.wait("tokens/s")
    talk.wait(READY)
    talk.type("slow\r")
    time.sleep(0.5)
    talk.type("\x03")
    talk.wait("Ctrl-C again leaves.")
    talk.type("\x03")
    assert talk.code() == 130


@posix
def test_markdown_thoughts_and_progress(screen: Callable[..., Screen]) -> None:
    talk = screen("--no-save")
    talk.wait(READY)
    talk.type("think and read\r")
    shown = talk.wait("tokens/s")
    assert re.search(r"Reading: \d+ %, 1\.\d s left", shown)
    assert "\x1b[2mL" in shown and "Let me see." in re.sub(r"\x1b\[\d*m", "", shown) and "<|channel>" not in shown
    assert "\x1b[1mall\x1b[0m" in shown and "**" not in shown.replace("think", "")
    assert "• " in shown
    talk.wait(READY)
    talk.type("first line\x1b\rsecond line\r")
    talk.wait("tokens/s")
    talk.wait(READY)
    talk.type("\x04")
    assert talk.code() == 0


@posix
@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"NO_COLOR": "1"}])
def test_plain_terminals_get_no_colours(screen: Callable[..., Screen], environment: dict[str, str]) -> None:
    once = screen("think", "--no-save", "--think", **environment)
    shown = once.wait("tokens/s")
    assert "über" in shown and "\x1b[2m" not in shown and not re.search(r"\x1b\[[\d;]*3\dm", shown)
    assert once.code() == 0
    if environment.get("TERM") == "dumb":
        assert "\x1b" not in shown
        talk = screen("--no-save", **environment)
        talk.wait("> ")
        talk.type("hello\r")
        assert "\x1b" not in talk.wait("tokens/s")


def _piped(*arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, **options.pop("environment", {})}
    command = [sys.executable, "-c", CHAT, *arguments]
    return subprocess.run(command, capture_output=True, env=environment, timeout=60, check=False, **options)


def test_without_a_terminal_the_answer_is_plain_text() -> None:
    done = _piped("think", "--no-save", input=b"")
    assert (done.returncode, done.stdout.decode()) == (0, "# Head\n\nüber **all**\n\n- a\n- b\n\n")
    assert b"\x1b" not in done.stderr and b"\r" not in done.stderr.replace(b"\r\n", b"\n")


@pytest.mark.parametrize(("encoding", "written"), [("ascii", "utf-8"), ("latin-1", "latin-1"), ("cp1251", "cp1251")])
def test_an_encoding_that_lacks_a_character_gets_a_question_mark(encoding: str, written: str) -> None:
    """Where the locale says ASCII nobody chose it, and click writes UTF-8."""
    done = _piped("think", "--no-save", input=b"", environment={"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"})
    assert done.returncode == 0, done.stderr
    assert ("?ber **all**" if encoding == "cp1251" else "über **all**") in done.stdout.decode(written)


@posix
def test_a_closed_pipe_is_no_error() -> None:
    line = '"$0" -c "$1" hello --no-save < /dev/null | head -c 5; echo " ${PIPESTATUS[0]}"'
    done = subprocess.run(["bash", "-c", line, sys.executable, CHAT], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "All i 0\n", done.stderr
    assert "Error" not in done.stderr and "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr


def test_a_terminal_says_whether_it_is_styled() -> None:
    for environ, styled in (({}, True), ({"TERM": "xterm"}, True), ({"TERM": "dumb"}, False), ({"NO_COLOR": "1"}, False)):
        assert settings.load({"HOME": "/nowhere", **environ}).styled == styled


def test_a_reply_cut_by_an_error_ends_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    talk = _talk(FakeEngine([Reply(thought("Hm.", "So far"), fail=BadMedia("It failed.", "Try again."))]))
    lines = iter(["hello", "/exit"])
    talk._read = lambda *_: next(lines)
    talk.run()
    shown = capsys.readouterr()
    assert shown.err.endswith("Error: It failed. Try again.\n")
    assert shown.out.endswith("\n")
