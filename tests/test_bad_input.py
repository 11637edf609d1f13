"""Bad input, through the command line and through Python: one sentence, the right code, and a process that goes on."""

from __future__ import annotations

import io
import os
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image

import localgemma
from localgemma import runtime
from localgemma.cli import main as cli_main
from localgemma.errors import BadMedia, BadModelFile, ContextOverflow, LocalgemmaError, NotFound, UsageError

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "localgemma" / "assets" / "demo"
pytestmark = pytest.mark.live


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width: int, height: int) -> bytes:
    """A whole one-bit PNG of this size; its pixels pack to almost nothing."""
    rows = zlib.compressobj()
    row = bytes(1 + -(-width // 8))
    packed = b"".join(rows.compress(row) for _ in range(height)) + rows.flush()
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def photo() -> bytes:
    """A PNG file of a picture that does not pack well."""
    stream = io.BytesIO()
    Image.frombytes("RGB", (96, 96), os.urandom(96 * 96 * 3)).save(stream, "PNG")
    return stream.getvalue()


def other_projector() -> bytes:
    """The demo model's projector with another width in its header: a projector of another model."""
    data = bytearray((DEMO / "mmproj.gguf").read_bytes())
    key = b"clip.vision.projection_dim"
    at = data.index(key) + len(key) + 4  # after the key and its value's type
    data[at : at + 4] = struct.pack("<I", 5376)
    return bytes(data)


def gguf(architecture: str) -> bytes:
    """A whole GGUF file without tensors."""
    key, value = b"general.architecture", architecture.encode()
    entry = struct.pack("<Q", len(key)) + key + struct.pack("<IQ", 8, len(value)) + value
    return b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + entry


def text_model() -> bytes:
    """The demo model."""
    return (DEMO / "text.gguf").read_bytes()


FILES: dict[str, tuple[Callable[[], bytes], type[LocalgemmaError], str]] = {
    "empty.gguf": (bytes, BadModelFile, "is empty"),
    "header cut.gguf": (lambda: text_model()[:1000], BadModelFile, "cut off"),
    "weights cut.gguf": (lambda: text_model()[:-1000], BadModelFile, "is cut off"),
    "text.gguf": (lambda: b"once upon a time " * 99, BadModelFile, "not a GGUF file"),
    "picture.gguf": (photo, BadModelFile, "not a GGUF file"),
    "llama.gguf": (lambda: gguf("llama"), BadModelFile, "architecture 'llama'"),
    "no architecture.gguf": (lambda: gguf(""), BadModelFile, "no architecture"),
    "projector.gguf": ((DEMO / "mmproj.gguf").read_bytes, BadModelFile, "a picture projector"),
    "drafter.gguf": ((DEMO / "drafter.gguf").read_bytes, BadModelFile, "a Gemma 4 drafter"),
    "no weights.gguf": (lambda: gguf("gemma4"), BadModelFile, "damaged"),
}
PICTURES: dict[str, tuple[Callable[[], bytes], type[LocalgemmaError], str]] = {
    "empty.png": (bytes, BadMedia, "is empty"),
    "cut.png": (lambda: photo()[:2000], BadMedia, "damaged or incomplete"),
    "huge.png": (lambda: png_of(20_000, 20_000), BadMedia, "megapixels"),
    "text.png": (lambda: b"not a picture", BadMedia, "not a picture"),
    "model.png": (text_model, BadMedia, "not a picture"),
}


@pytest.fixture(scope="module")
def model() -> Iterator[runtime.Model]:
    """The demo model, loaded once."""
    with localgemma.open("demo") as opened:
        yield opened


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs the command line in a folder of this test's own."""
    monkeypatch.chdir(tmp_path)
    return lambda *args, **kwargs: CliRunner().invoke(cli_main.cli, list(args), **({"input": ""} | kwargs))


@pytest.fixture
def loaded(run: Callable[..., Result], model: runtime.Model, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """The same on the model that is loaded already, and stays so."""
    monkeypatch.setattr(runtime, "open", lambda *args, **kwargs: runtime.Model(_Open(model.engine), model.plan))
    return run


class _Open:
    """An engine that is not closed."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def close(self) -> None:
        """Not now."""


def refused(result: Result, error: type[LocalgemmaError], says: str) -> None:
    """One sentence and the next step on stderr, nothing on stdout, and the error's own exit code."""
    assert result.exit_code == error.exit_code, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and re.fullmatch(r"Error: .{10,}\. ?.{10,}", lines[0]), result.stderr
    assert says in lines[0] and not result.stdout


def alive(model: runtime.Model) -> None:
    """The model still answers."""
    answer = model.chat().ask("What is the capital of France?", temperature=0)
    assert str(answer) == "The capital of France is Paris."


@pytest.mark.parametrize("name", FILES)
def test_a_bad_model_file(run: Callable[..., Result], tmp_path: Path, name: str) -> None:
    make, error, says = FILES[name]
    (tmp_path / name).write_bytes(make())
    refused(run("chat", "x", "-m", name), error, says)
    with pytest.raises(error, match=says) as caught:
        localgemma.open(tmp_path / name)
    assert caught.value.hint


def test_a_projector_of_another_model(run: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "other.gguf").write_bytes(other_projector())
    refused(run("chat", "x", "-m", "demo", "--mmproj", "other.gguf"), BadModelFile, "is for a model of width 5376")
    with pytest.raises(BadModelFile, match="width 5376"):
        localgemma.open("demo", projector=tmp_path / "other.gguf")
    (tmp_path / "text.gguf").write_bytes(b"once upon a time")
    refused(run("chat", "x", "--mmproj", "text.gguf"), BadModelFile, "not a GGUF file")
    refused(run("chat", "x", "--mmproj", "none.gguf"), NotFound, "none.gguf")


@pytest.mark.parametrize("name", ["gemma-5", "demo:Q9_X", "no such model", "x" * 3000, "none.gguf", "a\0b"])
def test_an_unknown_model(run: Callable[..., Result], name: str) -> None:
    refused(run("chat", "x", "-m", name), NotFound, "")
    with pytest.raises(NotFound) as caught:
        localgemma.open(name)
    assert caught.value.hint


@pytest.mark.parametrize("name", PICTURES)
def test_a_bad_picture(loaded: Callable[..., Result], model: runtime.Model, tmp_path: Path, name: str) -> None:
    make, error, says = PICTURES[name]
    (tmp_path / name).write_bytes(make())
    refused(loaded("chat", "What is it?", "-f", name), error, says)
    chat = model.chat()
    with pytest.raises(error, match=says) as caught:
        chat.ask("What is it?", images=[tmp_path / name])
    assert caught.value.hint and chat.history == ()
    alive(model)


def test_a_narrow_picture_is_looked_at(loaded: Callable[..., Result], model: runtime.Model, tmp_path: Path) -> None:
    (tmp_path / "narrow.png").write_bytes(png_of(1, 5000))
    result = loaded("chat", "What color is it?", "-f", "narrow.png", "--image-tokens", "70", "--max-tokens", "3", "--json")
    assert result.exit_code == 0 and '"pictures": 70' in result.stdout, result.output
    alive(model)


def test_a_budget_of_300(loaded: Callable[..., Result], model: runtime.Model, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(photo())
    refused(loaded("chat", "x", "-f", "a.png", "--image-tokens", "300"), UsageError, "280")
    refused(loaded("chat", "x", "-f", "a.png#300"), UsageError, "280")
    for options in ({"images": [f"{tmp_path / 'a.png'}#300"]}, {"images": [tmp_path / "a.png"], "image_tokens": 300}):
        with pytest.raises(UsageError, match="280") as caught:
            model.chat().send("x", **options)
        assert caught.value.exit_code == 2
    alive(model)


def test_a_prompt_of_ten_megabytes(loaded: Callable[..., Result], model: runtime.Model) -> None:
    text = "the quick brown fox " * (10 * 2**20 // 20)
    refused(loaded("chat", input=text), ContextOverflow, "the context holds 8,192")
    with pytest.raises(ContextOverflow) as caught:
        model.chat().ask(text[: 2**20])
    assert caught.value.needed > 2**18
    alive(model)


def test_nul_bytes_are_text(loaded: Callable[..., Result], model: runtime.Model, tmp_path: Path) -> None:
    result = loaded("chat", "--max-tokens", "2", input="a\0b \x01\x02 \xff\n")
    assert result.exit_code == 0, result.output
    model.chat(system="\0").ask("\0 a \0", max_tokens=2)
    (tmp_path / "nul.txt").write_bytes(b"text\0and more")
    refused(loaded("chat", "x", "-f", "nul.txt"), BadMedia, "not a picture")
    alive(model)


def test_bytes_that_are_no_text_are_no_crash(loaded: Callable[..., Result], model: runtime.Model) -> None:
    result = loaded("chat", "half a surrogate \udcff pair", "--max-tokens", "2", "--temperature", "0")
    assert result.exit_code == 0, result.output
    assert model.chat().ask("\ud800", max_tokens=2).finish_reason in ("stop", "length")
    alive(model)


def test_a_process_of_its_own_survives_them_all(tmp_path: Path) -> None:
    """The same files in one new process, which then answers a question."""
    for name, (make, _, _) in (FILES | PICTURES).items():
        (tmp_path / name).write_bytes(make())
    code = """
import pathlib, sys, localgemma
from localgemma.errors import LocalgemmaError
refused = 0
with localgemma.open("demo") as model:
    for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
        try:
            model.chat().ask("What is it?", [path]) if path.suffix == ".png" else localgemma.open(path).close()
        except LocalgemmaError as error:
            refused += 1
    print(refused, model.chat().ask("What is the capital of France?", temperature=0))
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, f"{len(FILES | PICTURES)} The capital of France is Paris.\n"), done.stderr
