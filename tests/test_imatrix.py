"""Importance matrices: equal to llama-imatrix's values, the same file read and written, merged, described and refused."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from localgemma.chat import data
from localgemma.cli.main import cli
from localgemma.engine import CancelToken, Prompt
from localgemma.errors import BackendError, BadConversation, BadModelFile, Cancelled, UsageError
from localgemma.files.header import read_header
from localgemma.llamacpp.imatrix import Observed
from localgemma.make import calibration, imatrix, quantize
from localgemma.make.imatrix import Entry, Imatrix
from localgemma.make.quantize import Wish
from localgemma.options import LoadOptions

pytest.importorskip("llama_cpp")
DEMO = Path(__file__).resolve().parent.parent / "localgemma" / "assets" / "demo"
DATA = Path(__file__).parent / "data" / "imatrix.npz"
STEP = 8  # every eighth column of the reference is stored
LOAD = LoadOptions(image_tokens=0, ctx=512, threads=1, gpu_layers=0)
WORDS = ("The", "rain", "fell", "on", "a", "round", "house", "near", "the", "farm", "and", "nobody", "came", "back", "before")


def sample_text(count: int = 2600) -> str:
    """Words in a fixed random order; llama-imatrix read the same."""
    chooser = random.Random(5)
    return " ".join(chooser.choice(WORDS) for _ in range(count))


def collect(text: str, model: Path = DEMO / "text.gguf") -> Imatrix:
    return calibration.collect(model, None, [text], LOAD, datasets=["sample.txt"])


def exact(folder: Path) -> Path:
    """The demo model in F32: sums of a quantised one differ by 1e-3 from processor to processor."""
    plan = quantize.make_plan(DEMO / "text.gguf", Wish("F32", requantize=True))
    quantize.run_plan(plan, folder / "demo-F32.gguf")
    return folder / "demo-F32.gguf"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Imatrix:
    return collect(sample_text(), exact(tmp_path_factory.mktemp("demo")))


def test_the_values_are_llama_imatrix_s(demo: Imatrix) -> None:
    stored = np.load(DATA)
    assert set(stored.files) - {"tokens", "chunks"} == set(demo.entries)
    assert demo.tokens == int(stored["tokens"]) and demo.chunks == int(stored["chunks"])
    for name, entry in demo.entries.items():
        ours, theirs = entry.sums[0, ::STEP], stored[name]
        assert np.abs(ours - theirs).max() <= 1e-3 * theirs.max(), name
        assert np.median(np.abs(ours / theirs - 1)) < 1e-3, name


def test_the_file_is_read_as_it_was_written(demo: Imatrix, tmp_path: Path) -> None:
    imatrix.write(tmp_path / "a.gguf", demo)
    again = imatrix.read(tmp_path / "a.gguf")
    assert (again.datasets, again.chunk_size, again.chunks) == (("sample.txt",), 512, demo.chunks)
    for name, entry in demo.entries.items():
        assert np.array_equal(again.entries[name].sums, entry.sums.astype(np.float32))
        assert np.array_equal(again.entries[name].counts, entry.counts)
    header = read_header(tmp_path / "a.gguf")
    assert list(header.metadata) == ["general.type", "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"]
    assert header.tensors[0].name.endswith(".in_sum2") and header.tensors[1].shape == (1, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["a.gguf"]


def test_two_parts_merge_to_the_whole() -> None:
    words = sample_text(1400).split(" ")
    one, two = " ".join(words[:700]), " ".join(words[700:])
    parts = [collect(one), collect(two)]
    both = calibration.collect(DEMO / "text.gguf", None, [one, two], LOAD)
    merged = imatrix.merge(parts)
    assert merged.tokens == both.tokens and merged.datasets == ("sample.txt", "sample.txt")
    assert merged.chunks == merged.tokens // 512
    for name, entry in both.entries.items():
        assert np.allclose(merged.entries[name].sums, entry.sums, rtol=1e-9)


def made(name: str, columns: int, *, seed: int = 0, count: int = 512) -> Imatrix:
    values = np.random.default_rng(seed).random((1, columns)) * count
    return Imatrix({name: Entry(values, np.array([count], np.int64))}, ("x",), 512, 1)


@settings(deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=5), st.randoms())
def test_the_order_of_merging_does_not_matter(seeds: list[int], chooser: random.Random) -> None:
    parts = [made(f"blk.{seed % 3}.w", 4, seed=seed, count=seed + 1) for seed in seeds]
    mixed = chooser.sample(parts, len(parts))
    a, b = imatrix.merge(parts), imatrix.merge(mixed)
    assert a.entries.keys() == b.entries.keys() and a.tokens == b.tokens
    for name, entry in a.entries.items():
        assert np.allclose(entry.sums, b.entries[name].sums) and np.array_equal(entry.counts, b.entries[name].counts)


def test_files_of_two_models_do_not_merge() -> None:
    with pytest.raises(UsageError, match="of different models: 'w' has 4 and 8 columns"):
        imatrix.merge([made("w", 4), made("w", 8)])


def test_statistics_by_hand() -> None:
    sums = {"blk.0.w": [[0.0, 2.0, 6.0, 8.0]], "blk.1.w": [[0.0, 4.0, 12.0, 16.0]], "x": [[0.0, 0.0]]}
    entries = {name: Entry(np.array(values), np.array([2])) for name, values in sums.items()}
    x, first, second = imatrix.statistics(Imatrix(entries))
    assert (first.total, first.least, first.most, first.mean, first.columns) == (8, 0, 4, 2, 4)
    assert first.active == 0.75 and first.deviation == pytest.approx(np.sqrt(2.5))
    assert first.entropy == pytest.approx(-sum(p * np.log2(p) for p in (1 / 8, 3 / 8, 4 / 8)))
    assert first.peaks == 0.25 and first.similarity == 0 and second.similarity == pytest.approx(1)
    assert (x.total, x.entropy, x.evenness) == (0, 0, 0)
    unused = imatrix.statistics(Imatrix({"y": Entry(np.ones((1, 2)), np.array([0]))}))
    assert unused[0].columns == 0 and (Entry(np.ones((1, 2)), np.array([0])).mean() == 1).all()


def write_gguf(path: Path, keys: dict[str, Any], tensors: dict[str, np.ndarray]) -> Path:
    writer = gguf.GGUFWriter(path, "imatrix")
    for key, value in keys.items():
        (writer.add_array if isinstance(value, list) else writer.add_uint32 if isinstance(value, int) else writer.add_string)(
            key, value
        )
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


KEYS = {"general.type": "imatrix", "imatrix.datasets": ["x"], "imatrix.chunk_count": 1, "imatrix.chunk_size": 512}
ONE = np.ones((1, 1), np.float32)


@pytest.mark.parametrize(
    ("keys", "tensors", "says"),
    [
        ({}, {"w.in_sum2": ONE}, "no imatrix"),
        ({k: v for k, v in KEYS.items() if k != "imatrix.datasets"}, {"w.in_sum2": ONE, "w.counts": ONE}, "no imatrix"),
        (KEYS, {"w.in_sum2": ONE}, "entry 'w' is incomplete"),
        (KEYS, {"w.in_sum2": ONE, "w.counts": np.ones((2, 1), np.float32)}, "entry 'w' is incomplete"),
        (KEYS, {"w.in_sum2": ONE.astype(np.float16), "w.counts": ONE}, "values in 'w.in_sum2'"),
        (KEYS, {"w.in_sum2": ONE * np.inf, "w.counts": ONE}, "values in 'w.in_sum2'"),
        (KEYS, {"w.in_sum2": ONE, "w.counts": -ONE}, "values in 'w.counts'"),
        (KEYS, {}, "without entries"),
    ],
)
def test_what_is_no_imatrix_is_refused(
    keys: dict[str, Any], tensors: dict[str, np.ndarray], says: str, tmp_path: Path
) -> None:
    path = write_gguf(tmp_path / "bad.gguf", keys, tensors)
    with pytest.raises(BadModelFile, match=says):
        imatrix.read(path)


def test_the_old_form_is_named(tmp_path: Path) -> None:
    (tmp_path / "old.dat").write_bytes((3).to_bytes(4, "little") + b"\0" * 60)
    with pytest.raises(BadModelFile, match="llama-imatrix --in-file"):
        imatrix.read(tmp_path / "old.dat")


CHAT = {
    "messages": [
        {"role": "user", "content": "Question: 58-6="},
        {"role": "assistant", "reasoning": "ones: 8-6=2", "content": "52"},
    ],
    "enable_thinking": True,
}
TOOL = {"type": "function", "function": {"name": "clock", "description": "Tells the time.", "parameters": {"type": "object"}}}


def test_chats_are_read_as_the_model_saw_them(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in (CHAT, {**CHAT, "tools": [TOOL]}, {"text": "plain"})) + "\n\n")
    first, second, third = data.read_pieces(path)
    assert isinstance(first, Prompt) and isinstance(second, Prompt) and third == "plain"
    assert "<|think|>" in str(first) and "<|channel>thought\nones: 8-6=2\n<channel|>52<turn|>" in str(first)
    assert "declaration:clock" in str(second)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", '{"messages": []}', "Line 1 of a.jsonl: It has neither"),
        ("a.jsonl", '{"text": "x"}\n{"text": 3}', "Line 2 of a.jsonl: It has neither"),
        ("a.jsonl", '{"text": "x"}\n{', "Line 2 of a.jsonl is not JSON"),
        ("a.jsonl", "[" * 100_000, "Line 1 of a.jsonl is not JSON"),
        ("a.jsonl", '{"messages": [{"role": "king", "content": "x"}]}', "Line 1 of a.jsonl: A message has the role"),
        ("a.jsonl", "\n\n", "a.jsonl has no lines"),
        ("a.txt", " \n", "a.txt has no text"),
        ("a.txt", b"\xff\xfe\0", "a.txt is not text in UTF-8"),
    ],
)
def test_bad_data_names_its_line(name: str, content: str | bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises((UsageError, BadConversation)) as caught:
        data.read_pieces(path)
    assert str(caught.value).startswith(says)


@pytest.fixture(scope="module")
def observed() -> Iterator[Observed]:
    with Observed(DEMO / "text.gguf", None, LOAD) as opened:
        yield opened


@settings(deadline=None)
@given(st.integers(2, 40), st.integers(0, 60))
def test_chunks_are_whole_and_begin_with_bos(observed: Observed, size: int, words: int) -> None:
    ids = [2, *observed.model.vocab.text(" ".join(WORDS[index % len(WORDS)] for index in range(words)))]
    chunks = observed.chunks(" ".join(WORDS[index % len(WORDS)] for index in range(words)), size)
    assert all(chunk[0] == 2 for chunk in chunks)
    if len(ids) >= size:
        assert [len(chunk) for chunk in chunks] == [size] * (len(ids) // size)
        assert [token for chunk in chunks for token in chunk[1:]] == [
            token for at, token in enumerate(ids[: len(ids) // size * size]) if at % size
        ]
    else:
        assert chunks == [ids]


def test_long_chats_are_cut_at_the_context(observed: Observed) -> None:
    runs = observed.runs(data.finished([{"role": "user", "content": sample_text()}]))
    assert sum(len(run) for run in runs if isinstance(run, list)) == 512


def test_what_the_watcher_raises_comes_out() -> None:
    def fail(*_: object) -> None:
        raise BackendError("seen")

    opened = Observed(DEMO / "text.gguf", None, LOAD, wanted=lambda tensor: bool(tensor.op), watch=fail)
    with opened, pytest.raises(BackendError, match="seen"):
        opened.evaluate([[2, 300, 301]], CancelToken())


def test_cancelling_stops_it() -> None:
    cancel = CancelToken()
    with pytest.raises(Cancelled):
        calibration.collect(
            DEMO / "text.gguf", None, [sample_text()], LOAD, progress=lambda event: cancel.cancel(), cancel=cancel
        )


def run(*words: str) -> Any:
    return CliRunner().invoke(cli, ["imatrix", *words])


def test_the_command_reads_pictures_thoughts_and_tools(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (96, 96), "red").save(tmp_path / "red.png")
    parts = [{"type": "image_url", "image_url": {"url": "red.png"}}, {"type": "text", "text": "What color is it?"}]
    chat = {
        "messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "The shape is red."}],
        "tools": [TOOL],
    }
    (tmp_path / "chats.jsonl").write_text(json.dumps(chat) + "\n" + json.dumps(CHAT))
    (tmp_path / "text.txt").write_text("Capital of Ruta? Only one word.")
    target = tmp_path / "made.gguf"
    words = (str(DEMO / "text.gguf"), "-o", str(target), "--threads", "1", "--data", str(tmp_path / "chats.jsonl"))
    ran = run(*words, str(tmp_path / "text.txt"), "--ctx", "2048")
    assert ran.exit_code == 0, ran.output
    found = imatrix.read(target)
    assert found.datasets == ("chats.jsonl", "text.txt") and found.chunks == 1
    prompts = data.read_pieces(tmp_path / "text.txt")
    alone = calibration.collect(DEMO / "text.gguf", None, prompts, LOAD)
    assert found.tokens > alone.tokens + 70  # a picture takes 70 tokens at least
    again = run(*words)
    assert again.exit_code == 2 and "already there" in again.stderr


def test_the_command_merges_and_describes(tmp_path: Path) -> None:
    for seed in (1, 2):
        imatrix.write(tmp_path / f"{seed}.gguf", made("blk.0.attn_q.weight", 256, seed=seed))
    ran = run("--merge", str(tmp_path / "1.gguf"), str(tmp_path / "2.gguf"), "-o", str(tmp_path / "m.gguf"))
    assert ran.exit_code == 0, ran.output
    assert imatrix.read(tmp_path / "m.gguf").tokens == 1024
    ran = run("--stats", str(tmp_path / "m.gguf"))
    assert ran.exit_code == 0 and "blk.0.attn_q.weight" in ran.stdout and "1,024 tokens" in ran.stdout


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("demo", "-o", "T/x"), 2, "no data to read"),
        (("demo", "--data", "T/none.txt"), 2, "output is not named"),
        (("demo", "-o", "T/x", "--data", "T/none.txt"), 3, "There is no file"),
        (("demo", "-o", "T/none/x", "--data", "T/none.txt"), 5, "There is no folder"),
        (("T/none.gguf", "-o", "T/x", "--data", "T/none.txt"), 3, "There is no file"),
        (("--merge", "T/none", "-o", "T/x"), 2, "takes two files"),
        (("--merge", "T/none", "T/none", "-o", "T/x"), 3, "There is no file"),
        (("--stats", "T/none", "-o", "T/x"), 2, "--stats takes one"),
        (("D/mmproj.gguf", "-o", "T/x", "--data", "T/none.txt"), 2, "not a Gemma 4 language model"),
    ],
)
def test_wrong_commands_end_in_one_sentence(words: tuple[str, ...], code: int, says: str, tmp_path: Path) -> None:
    filled = [word.replace("T/", f"{tmp_path}/").replace("D/", f"{DEMO}/") for word in words]
    ran = run(*filled)
    assert ran.exit_code == code, ran.output
    assert says in ran.stderr and len(ran.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_pictures_need_a_projector_and_must_be_pictures(tmp_path: Path) -> None:
    from shutil import copy

    from PIL import Image

    copy(DEMO / "text.gguf", tmp_path / "alone.gguf")
    for source, says in (("red.png", "there is no projector"), ("none.png", "Line 1 of c.jsonl: There is no file")):
        Image.new("RGB", (96, 96), "red").save(tmp_path / "red.png")
        image = {"type": "image_url", "image_url": {"url": source}}
        (tmp_path / "c.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": [image]}]}))
        ran = run(str(tmp_path / "alone.gguf"), "-o", str(tmp_path / "x"), "--data", str(tmp_path / "c.jsonl"))
        assert ran.exit_code in (2, 3) and says in ran.stderr


def test_saved_chats_are_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from localgemma.chat import record, sessions
    from localgemma.cli.imatrix import read_pieces
    from localgemma.messages import Message, TextPart

    said = (Message("user", (TextPart("Capital of Ruta?"),)), Message("assistant", (TextPart("Kima"),)))
    record.write(tmp_path / "talk", record.Record(said, system="Be brief.", tools=(TOOL,)))
    (prompt,) = read_pieces([str(tmp_path / "talk")])
    monkeypatch.setattr(sessions, "home", lambda: tmp_path)
    assert read_pieces(["talk"]) == [prompt]
    assert str(prompt).endswith("Kima<turn|>\n") and "Be brief." in str(prompt)
    assert f"<|tool>declaration:{TOOL['function']['name']}" in str(prompt)
