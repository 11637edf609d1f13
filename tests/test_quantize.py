"""Quantising: sizes known before the first byte, files equal to llama-quantize's, and nothing left of what went wrong."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from click.testing import CliRunner

from localgemma.cli.main import cli
from localgemma.engine import CancelToken
from localgemma.errors import BackendError, BadModelFile, Cancelled, DiskError, LocalgemmaError, UsageError
from localgemma.files.header import TYPE_SIZES, read_header
from localgemma.llamacpp import tensors
from localgemma.make import imatrix, quantize, release, types, whole
from localgemma.make.quantize import Wish

pytest.importorskip("llama_cpp")
ROOT = Path(__file__).resolve().parent.parent
DATA = Path(__file__).parent / "data"
DEMO = ROOT / "localgemma" / "assets" / "demo"
LAYERS, WIDTH, INNER, WORDS = 3, 256, 512, 64


def write_model(path: Path, *, width: int = WIDTH, layers: int = LAYERS, kind: str = "f16", seed: int = 0) -> Path:
    """A Gemma 4 language model of a few layers and random weights, as small as llama.cpp's quantiser reads."""
    random_ = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "gemma4")
    writer.add_name("Tiny")
    for name, value in {"block_count": layers, "embedding_length": width, "feed_forward_length": INNER, "context_length": 512,
                        "attention.head_count": 2, "attention.head_count_kv": 1, "attention.key_length": 128,
                        "attention.value_length": 128, "attention.key_length_swa": 128,
                        "attention.value_length_swa": 128, "attention.sliding_window": 128,
                        "embedding_length_per_layer_input": 0, "attention.shared_kv_layers": 0}.items():  # fmt: skip
        writer.add_uint32(f"gemma4.{name}", value)
    writer.add_array("gemma4.attention.sliding_window_pattern", [layer < layers - 1 for layer in range(layers)])
    writer.add_float32("gemma4.attention.layer_norm_rms_epsilon", 1e-6)
    writer.add_tokenizer_model("none")

    def add(name: str, *shape: int) -> None:
        values = random_.standard_normal(shape).astype(np.float32) / 16
        if kind == "f16" and len(shape) > 1:
            values = values.astype(np.float16)
        writer.add_tensor(name, values)

    add("token_embd.weight", WORDS, width)
    add("output_norm.weight", width)
    for layer in range(layers):
        for name, shape in {"attn_q": (256, width), "attn_k": (128, width), "attn_v": (128, width),
                            "attn_output": (width, 256), "ffn_gate": (INNER, width), "ffn_up": (INNER, width),
                            "ffn_down": (width, INNER),
                            "attn_norm": (width,), "ffn_norm": (width,)}.items():  # fmt: skip
            add(f"blk.{layer}.{name}.weight", *shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_imatrix(path: Path, model: Path, *, seed: int = 0, spoil: Callable[[str], float] = lambda _: 1.0) -> Path:
    """An imatrix of random values for every weight in the layers of `model`."""
    random_ = np.random.default_rng(seed)
    entries = {
        tensor.name: imatrix.Entry(random_.random((1, tensor.shape[0])) * 100 * spoil(tensor.name), np.array([512], np.int64))
        for tensor in read_header(model).tensors
        if tensor.name.startswith("blk.") and len(tensor.shape) == 2
    }
    imatrix.write(path, imatrix.Imatrix(entries, ("made up",), 512, 1))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("tiny") / "tiny-F16.gguf")


@pytest.fixture(scope="module")
def matrix(model: Path) -> Path:
    return write_imatrix(model.with_name("tiny.imatrix.gguf"), model)


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_names_are_llama_cpp_s() -> None:
    from llama_cpp import llama_cpp

    known = {name: getattr(llama_cpp, name) for name in dir(llama_cpp) if name.startswith("LLAMA_FTYPE_")}
    for name, number in types.FILE_TYPES.items():
        assert number in (known.get(f"LLAMA_FTYPE_MOSTLY_{name}"), known.get(f"LLAMA_FTYPE_ALL_{name}")), name
    for name, number in types.TENSOR_TYPES.items():
        assert tensors.ggml().ggml_get_type_traits(number).contents.name == name.encode()
    assert types.NAMES.keys() <= TYPE_SIZES.keys()


@pytest.mark.parametrize("name", list(types.FILE_TYPES))
def test_the_size_of_every_type_is_known_to_the_byte(name: str, model: Path, matrix: Path, tmp_path: Path, full: bool) -> None:
    if not full and name not in ("F32", "Q4_K_M", "Q4_0", "IQ3_XXS", "Q2_0", "MXFP4_MOE"):
        pytest.skip("every other type with --full")
    plan = quantize.make_plan(model, Wish(name, imatrix=matrix))
    assert files_in(tmp_path) == set()
    quantize.run_plan(plan, tmp_path / "out.gguf")
    made = read_header(tmp_path / "out.gguf")
    assert made.file_size == plan.size
    assert {t.name: (t.type_id, t.nbytes) for t in made.tensors} == {t.name: (t.after, t.nbytes) for t in plan.tensors}
    assert sum(size for _, _, size in plan.by_type()) == sum(t.nbytes for t in made.tensors)
    assert made.metadata["general.file_type"] == types.FILE_TYPES[name]
    assert files_in(tmp_path) == {"out.gguf"}


def test_files_are_what_llama_quantize_writes(tmp_path: Path, full: bool) -> None:
    """Digests of llama-quantize's files of the same model, made by tests/reference/make_quantize.py."""
    stored = json.loads((DATA / "quantize.json").read_text())
    model = write_model(tmp_path / "tiny-F16.gguf")
    assert digest(model) == stored["model"]
    matrix = write_imatrix(tmp_path / "tiny.imatrix.gguf", model)
    few = ("Q8_0", "Q4_K_M imatrix", "IQ4_XS", "Q2_K imatrix")
    for key, expected in stored["files"].items():
        if not full and key not in few:
            continue
        name, _, with_matrix = key.partition(" ")
        plan = quantize.make_plan(model, Wish(name, imatrix=matrix if with_matrix else None))
        quantize.run_plan(plan, tmp_path / "out.gguf", replace=True)
        assert tensor_digest(tmp_path / "out.gguf") == expected, key


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def tensor_digest(path: Path) -> dict[str, str]:
    """sha256 of the header and of all the weights."""
    data = path.read_bytes()
    start = read_header(path).data_offset
    return {"header": hashlib.sha256(data[:start]).hexdigest(), "weights": hashlib.sha256(data[start:]).hexdigest()}


def test_exceptions_and_their_errors(model: Path) -> None:
    wish = Wish("Q4_K_M", ((r"attn_v", types.tensor_type("q8_0")), (r"blk\.0\.", types.tensor_type("F16"))))
    after = {tensor.name: types.type_name(tensor.after) for tensor in quantize.make_plan(model, wish).tensors}
    assert after["blk.0.attn_v.weight"] == "q8_0"  # the first that matches
    assert after["blk.0.attn_q.weight"] == "f16"
    assert after["blk.1.attn_q.weight"] == "q4_K"
    with pytest.raises(UsageError, match="No tensor of tiny-F16"):
        quantize.make_plan(model, Wish("Q4_K_M", (("attn_w", 8),)))
    with pytest.raises(UsageError, match="is not a regular expression"):
        quantize.make_plan(model, Wish("Q4_K_M", (("attn_(v", 8),)))
    with pytest.raises(UsageError, match="takes no exceptions"):
        quantize.make_plan(model, Wish("F16", (("attn_v", 8),)))


def _cut(path: Path) -> Path:
    path.write_bytes((DEMO / "text.gguf").read_bytes()[:-100_000])
    return path


def _not_gguf(path: Path) -> Path:
    path.write_bytes(b"x" * 5000)
    return path


def _other_architecture(path: Path) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


BAD = [
    ("unknown type", lambda t: ["IN", "OUT", "--type", "Q4_K_X"], 2, "no quantisation type 'Q4_K_X'. Did you mean"),
    ("unknown tensor type", lambda t: ["IN", "OUT", "--type", "Q4_K_M", "--tensor-type", "attn_v=q9"], 2, "tensor type 'q9'"),
    ("no equals sign", lambda t: ["IN", "OUT", "--type", "Q4_K_M", "--tensor-type", "attn_v"], 2, "is not REGEX=TYPE"),
    ("nothing matches", lambda t: ["IN", "OUT", "--type", "Q4_K_M", "--tensor-type", "foo=q8_0"], 2, "matches 'foo'"),
    ("missing input", lambda t: [str(t / "none.gguf"), "OUT", "--type", "Q8_0"], 3, "There is no file"),
    ("not a GGUF", lambda t: [str(_not_gguf(t / "a.gguf")), "OUT", "--type", "Q8_0"], 2, "a.gguf is not a GGUF file"),
    ("truncated", lambda t: [str(_cut(t / "b.gguf")), "OUT", "--type", "Q8_0"], 2, "b.gguf is cut off: 100,000 bytes"),
    ("another architecture", lambda t: [str(_other_architecture(t / "c.gguf")), "OUT", "--type", "Q8_0"], 2, "'llama'"),
    ("output = input", lambda t: ["IN", "IN", "--type", "Q8_0", "--force"], 2, "both input and output"),
    ("output is there", lambda t: ["IN", str(_not_gguf(t / "d.gguf")), "--type", "Q8_0"], 2, "already there"),
    ("output is a folder", lambda t: ["IN", str(t), "--type", "Q8_0"], 2, "is a folder"),
    ("output is a device", lambda t: ["IN", "/dev/full", "--type", "Q8_0", "--force"], 5, "not an ordinary file"),
    ("no such folder", lambda t: ["IN", str(t / "none" / "x.gguf"), "--type", "Q8_0"], 5, "There is no folder"),
    ("quantised already", lambda t: [str(DEMO / "text.gguf"), "OUT", "--type", "Q2_K"], 2, "is quantised already"),
    ("needs an imatrix", lambda t: ["IN", "OUT", "--type", "IQ2_XXS"], 2, "iq2_xxs needs an imatrix"),
    ("model as imatrix", lambda t: ["IN", "OUT", "--type", "Q4_0", "--imatrix", str(DEMO / "text.gguf")], 2, "no imatrix"),
    ("text as imatrix", lambda t: ["IN", "OUT", "--type", "Q4_0", "--imatrix", str(_not_gguf(t / "e"))], 2, "e is not a GGUF"),
    ("no imatrix there", lambda t: ["IN", "OUT", "--type", "Q4_0", "--imatrix", str(t / "none")], 3, "There is no file"),
    ("no type", lambda t: ["IN", "OUT"], 2, "What to make is not clear"),
    ("no output", lambda t: ["IN", "--type", "Q4_0"], 2, "output is not named"),
    ("types without a folder", lambda t: ["IN", "--types", "Q4_0"], 2, "What to make is not clear"),
    ("folder is a file", lambda t: ["IN", "-o", str(_not_gguf(t / "f")), "--types", "Q4_0"], 5, "could not be written"),
    ("types and an output", lambda t: ["IN", "OUT", "-o", str(t), "--types", "Q4_0"], 2, "--types makes several files"),
    ("no types", lambda t: ["IN", "-o", str(t), "--types", ","], 2, "No type is named"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "arguments", "code", "says"), BAD, ids=[row[0] for row in BAD])
def test_bad_input_ends_in_one_sentence(
    what: str, arguments: Callable[[Path], list[str]], code: int, says: str, model: Path, tmp_path: Path
) -> None:
    given = {"IN": str(model), "OUT": str(tmp_path / "out.gguf")}
    before = digest(model)
    words = [given.get(word, word) for word in arguments(tmp_path)]
    here = files_in(tmp_path)
    ran = CliRunner().invoke(cli, ["quantize", *words])
    assert ran.exit_code == code, ran.output
    assert says in ran.stderr and len(ran.stderr.strip().splitlines()) == 1
    assert files_in(tmp_path) == here and digest(model) == before


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda name: float("nan") if name == "blk.1.attn_k.weight" else 1.0, "values in 'blk.1.attn_k.weight.in_sum2'"),
        (lambda name: -1.0, "that no imatrix can have"),
    ],
)
def test_a_spoilt_imatrix_is_refused(spoil: Callable[[str], float], says: str, model: Path, tmp_path: Path) -> None:
    matrix = write_imatrix(tmp_path / "m.gguf", model, spoil=spoil)
    with pytest.raises(BadModelFile, match=says):
        quantize.make_plan(model, Wish("Q4_0", imatrix=matrix))


@pytest.mark.parametrize(("width", "layers", "says"), [(512, 3, "512 values for"), (256, 5, "has no tensor 'blk.3")])
def test_an_imatrix_of_another_model_is_refused(width: int, layers: int, says: str, model: Path, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other.gguf", width=width, layers=layers)
    matrix = write_imatrix(tmp_path / "m.gguf", other)
    with pytest.raises(BadModelFile, match="is of another model") as caught:
        quantize.make_plan(model, Wish("Q4_0", imatrix=matrix))
    assert says in str(caught.value)


def test_a_full_disk_is_said_before_the_work(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = quantize.make_plan(model, Wish("Q8_0"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1 << 40, 1 << 40, plan.size))
    with pytest.raises(DiskError, match="are needed"):
        quantize.run_plan(plan, tmp_path / "out.gguf")
    assert files_in(tmp_path) == set()


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are a POSIX matter")
def test_a_disk_that_fills_up_leaves_nothing(model: Path, tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys; from pathlib import Path; from localgemma.cli.main import main;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000));"
        "sys.argv = ['localgemma', 'quantize', *sys.argv[1:]]; main()"
    )
    words = [sys.executable, "-c", code, str(model), str(tmp_path / "out.gguf"), "--type", "Q8_0"]
    ran = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False)
    assert ran.returncode == 5, ran.stderr
    assert "could not be written" in ran.stderr
    assert files_in(tmp_path) == set()


def test_a_crash_of_the_worker_is_an_error_and_leaves_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize, "check_possible", lambda _: None)  # so that llama.cpp aborts
    plan = quantize.make_plan(model, Wish("Q4_K_M", (("token_embd", types.tensor_type("iq2_xxs")),)))
    with pytest.raises(BackendError, match="ended while it quantised"):
        quantize.run_plan(plan, tmp_path / "out.gguf")
    assert files_in(tmp_path) == set()


@pytest.mark.parametrize("named", [False, True])
def test_cancel_leaves_nothing(named: bool, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if named:
        monkeypatch.setattr(whole, "_unnamed", lambda _: None)
    plan, cancel = quantize.make_plan(model, Wish("Q6_K")), CancelToken()
    with pytest.raises(Cancelled):
        quantize.run_plan(plan, tmp_path / "out.gguf", progress=lambda _: cancel.cancel(), cancel=cancel)
    assert files_in(tmp_path) == set()


@pytest.mark.parametrize("named", [False, True])
def test_a_file_is_replaced_only_when_the_new_one_is_whole(
    named: bool, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if named:
        monkeypatch.setattr(whole, "_unnamed", lambda _: None)
    target = tmp_path / "out.gguf"
    target.write_bytes(b"old")
    plan, seen = quantize.make_plan(model, Wish("Q6_K")), set()
    quantize.run_plan(plan, target, replace=True, progress=lambda event: seen.add((target.stat().st_size, event.total)))
    assert {size for size, _ in seen} == {3} and target.stat().st_size == plan.size
    assert files_in(tmp_path) == {"out.gguf"}
    assert oct(target.stat().st_mode & 0o444) == oct(model.stat().st_mode & 0o444)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="unnamed files are Linux's")
@pytest.mark.parametrize("mode", ["parent", "worker"])
def test_killed_at_any_moment_nothing_is_left(mode: str, model: Path, tmp_path: Path, full: bool) -> None:
    """The caller or its worker is killed, at random moments from the start to the end; either the whole file or none."""
    code = "import sys; from localgemma.cli.main import main; sys.argv[0] = 'localgemma'; main()"
    command = [
        sys.executable,
        "-c",
        code,
        "quantize",
        str(model),
        str(tmp_path / "out.gguf"),
        "--type",
        "Q6_K",
        "--threads",
        "1",
    ]
    size = quantize.make_plan(model, Wish("Q6_K")).size
    begun = time.monotonic()
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    whole_time = time.monotonic() - begun
    random_ = random.Random(1)
    for _ in range(50 if full else 2):
        (tmp_path / "out.gguf").unlink(missing_ok=True)
        child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(random_.uniform(0.5, 1.05) * whole_time)
        workers = children(child.pid)
        if mode == "parent":
            child.kill()
        for worker in workers if mode == "worker" else ():
            os.kill(worker, signal.SIGKILL)
        child.wait()
        assert not alive(workers), "the worker must end with its parent"
        left = files_in(tmp_path)
        assert left <= {"out.gguf"} and all((tmp_path / name).stat().st_size == size for name in left)


def children(parent: int) -> list[int]:
    import psutil

    try:
        return [child.pid for child in psutil.Process(parent).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def alive(workers: list[int]) -> list[int]:
    """Those still running after ten seconds of grace."""
    import psutil

    for _ in range(1000):
        workers = [pid for pid in workers if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"]
        if not workers:
            break
        time.sleep(0.01)
    return workers


def test_a_named_draft_goes_with_a_killed_parent(model: Path, tmp_path: Path) -> None:
    """Where the file system has no unnamed files, the worker takes the half-written file along."""
    code = (
        "import sys; from localgemma.make import whole; whole._unnamed = lambda _: None;"
        "from localgemma.cli.main import main; sys.argv[0] = 'localgemma'; main()"
    )
    big = write_model(tmp_path / "big.gguf", layers=24, width=768)
    command = [
        sys.executable,
        "-c",
        code,
        "quantize",
        str(big),
        str(tmp_path / "out.gguf"),
        "--type",
        "Q3_K_M",
        "--threads",
        "1",
    ]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while child.poll() is None and not list(tmp_path.glob(".*.part")):
        time.sleep(0.005)
    assert child.poll() is None, "it was done before it could be killed"
    workers = children(child.pid)
    child.kill()
    child.wait()
    assert not alive(workers)
    assert files_in(tmp_path) == {"big.gguf"}


def test_a_dry_run_says_the_size(model: Path, tmp_path: Path) -> None:
    ran = CliRunner().invoke(cli, ["quantize", str(model), "--type", "q4_k_m", "--dry-run"])
    assert ran.exit_code == 0, ran.output
    CliRunner().invoke(cli, ["quantize", str(model), str(tmp_path / "o.gguf"), "--type", "q4_k_m"], catch_exceptions=False)
    size = (tmp_path / "o.gguf").stat().st_size
    assert f"{size:,}" in ran.stdout
    assert CliRunner().invoke(cli, ["quantize", str(model), "--type", "IQ2_XXS", "--dry-run"]).exit_code == 0


def test_a_release_has_names_sums_and_a_card(model: Path, matrix: Path, tmp_path: Path) -> None:
    words = ["quantize", str(model), "-o", str(tmp_path / "r"), "--types", "q8_0,Q4_K", "--card", "--imatrix", str(matrix)]
    ran = CliRunner().invoke(cli, words)
    assert ran.exit_code == 0, ran.output
    assert files_in(tmp_path / "r") == {"tiny-Q8_0.gguf", "tiny-Q4_K_M.gguf", "SHA256SUMS", "README.md"}
    sums = dict(reversed(line.split("  ")) for line in (tmp_path / "r" / "SHA256SUMS").read_text().splitlines())
    assert sums == {name: digest(tmp_path / "r" / name) for name in ("tiny-Q8_0.gguf", "tiny-Q4_K_M.gguf")}
    card = (tmp_path / "r" / "README.md").read_text()
    assert all(word in card for word in (*sums, *sums.values(), digest(matrix), "512 tokens of `made up`"))
    again = CliRunner().invoke(cli, words)
    assert again.exit_code == 2 and "already there" in again.stderr
    assert CliRunner().invoke(cli, [*words, "--force"]).exit_code == 0


@pytest.mark.parametrize(
    ("stem", "expected"),
    [("gemma-BF16", "gemma"), ("gemma.f16", "gemma"), ("mmproj-F32", "mmproj"), ("x", "x"), ("f16", "Tiny")],
)
def test_release_names(stem: str, expected: str, model: Path, tmp_path: Path) -> None:
    shutil.copy(model, tmp_path / f"{stem}.gguf")
    assert release.base_name(read_header(tmp_path / f"{stem}.gguf")) == expected


def test_projector_and_drafter_are_quantised_too(tmp_path: Path) -> None:
    for name in ("mmproj.gguf", "drafter.gguf"):
        plan = quantize.make_plan(DEMO / name, Wish("Q4_0", requantize=True))
        quantize.run_plan(plan, tmp_path / name)
        assert (tmp_path / name).stat().st_size == plan.size < (DEMO / name).stat().st_size


def test_errors_of_the_worker_keep_their_class() -> None:
    assert quantize._named("DiskError") is DiskError
    assert quantize._named("annotations") is BackendError
    assert issubclass(quantize._named("nonsense"), LocalgemmaError)
