"""Bad input at the command line: what `localgemma convert`, `quantize` and `imatrix` say, the exit code, and what is left.

    python scripts/check_bad_make.py [--only WORD]

Every damaged checkpoint of tests/test_convert.py and every wrong command for a quantisation or an imatrix is run as a
process of its own; a disk that is full is a small tmpfs (Linux, as root). Prints one line a case, then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from checkpoints import write_checkpoint  # noqa: E402
from test_convert import BAD, NAMES, SHARD, VISION_BAD  # noqa: E402
from test_quantize import write_imatrix, write_model  # noqa: E402

DEMO = ROOT / "localgemma" / "assets" / "demo"
ALLOWED = (2, 3, 5)
Prepared = tuple[list[str], Path]  # the command, and the folder in which nothing new may appear


def localgemma(*words: str) -> tuple[int, list[str]]:
    """Exit code and the lines of stderr, without progress."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "dumb"}
    command = [sys.executable, "-m", "localgemma", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=False)
    return done.returncode, [line for line in done.stderr.splitlines() if line.strip()]


def damaged(work: Path, part: str, damage: Callable[[Path], object]) -> Prepared:
    """A converting command for a checkpoint with one thing wrong."""
    folder = write_checkpoint("model", work / NAMES["model"])
    damage(folder)
    (work / "out").mkdir()
    return ["convert", str(folder), "-o", str(work / "out" / "x.gguf"), "--part", part], work / "out"


def commands(work: Path) -> dict[str, Callable[[], Prepared]]:
    """Wrong commands for a small model, its imatrix and those of another."""
    model = write_model(work / "tiny-F16.gguf")
    other = write_model(work / "other.gguf", width=512)
    matrix, foreign = write_imatrix(work / "m.gguf", model), write_imatrix(work / "foreign.gguf", other)
    spoilt = write_imatrix(work / "spoilt.gguf", model, spoil=lambda _: float("nan"))
    cut = work / "cut.gguf"
    cut.write_bytes(model.read_bytes()[:-100_000])
    llama = work / "llama.gguf"
    llama.write_bytes(model.read_bytes().replace(b"gemma4", b"gemmaX"))
    (work / "words.txt").write_text("no recipe at all")
    (work / "data.jsonl").write_text('{"messages": []}\n')
    (work / "out").mkdir()
    out = str(work / "out" / "x.gguf")

    def case(*words: object) -> Callable[[], Prepared]:
        return lambda: (list(map(str, words)), work / "out")

    return {
        "quantize: unknown type": case("quantize", model, out, "--type", "Q4_KM"),
        "quantize: unknown tensor type": case("quantize", model, out, "--type", "Q4_K_M", "--tensor-type", "attn_v=q9"),
        "quantize: pattern that matches nothing": case("quantize", model, out, "--type", "Q4_0", "--tensor-type", "x=q8_0"),
        "quantize: broken pattern": case("quantize", model, out, "--type", "Q4_0", "--tensor-type", "(=q8_0"),
        "quantize: output is the input": case("quantize", model, model, "--type", "Q4_0", "--force"),
        "quantize: imatrix of another model": case("quantize", model, out, "--type", "Q4_0", "--imatrix", foreign),
        "quantize: imatrix with NaN": case("quantize", model, out, "--type", "Q4_0", "--imatrix", spoilt),
        "quantize: imatrix that is a model": case("quantize", model, out, "--type", "Q4_0", "--imatrix", other),
        "quantize: type that needs an imatrix": case("quantize", model, out, "--type", "IQ2_XXS"),
        "quantize: truncated": case("quantize", cut, out, "--type", "Q4_0"),
        "quantize: another architecture": case("quantize", llama, out, "--type", "Q4_0"),
        "quantize: no such model": case("quantize", work / "none.gguf", out, "--type", "Q4_0"),
        "quantize: no model at all": case("quantize", work / "words.txt", out, "--type", "Q4_0"),
        "quantize: quantised already": case("quantize", DEMO / "text.gguf", out, "--type", "Q2_K"),
        "quantize: recipe that is none": case("quantize", model, out, "--recipe", work / "words.txt"),
        "quantize: size that is none": case("quantize", model, out, "--target-size", "banana"),
        "quantize: size that is negative": case("quantize", model, out, "--target-size", "-3GiB"),
        "quantize: size that is too small": case("quantize", model, out, "--target-size", "10KiB"),
        "imatrix: data that are none": case("imatrix", "demo", "-o", out, "--data", work / "data.jsonl"),
        "imatrix: no such data": case("imatrix", "demo", "-o", out, "--data", work / "none.txt"),
        "imatrix: merge of two models": case("imatrix", "--merge", matrix, foreign, "-o", out),
        "imatrix: statistics of a model": case("imatrix", "--stats", model),
        "convert: type that only quantize makes": case("convert", work, "-o", out, "--type", "q4_k_m"),
    }  # fmt: skip


@contextmanager
def small_disk(megabytes: int) -> Iterator[Path]:
    """A folder on a disk of that size."""
    with tempfile.TemporaryDirectory() as name:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", name]
        subprocess.run(mount, check=True, capture_output=True)
        try:
            yield Path(name)
        finally:
            subprocess.run(["umount", name], check=True)


def judge(name: str, prepared: Prepared) -> dict[str, object]:
    """Run it and say what came."""
    words, folder = prepared
    before = sorted(path.name for path in folder.iterdir())
    code, lines = localgemma(*words)
    left = sorted({path.name for path in folder.iterdir()} - set(before))
    good = code in ALLOWED and len(lines) == 1 and "Traceback" not in lines[0] and not left
    said = " | ".join(lines)
    print(f"{'ok  ' if good else 'FAIL'} {code} {name}: {said}{f' LEFT {left}' if left else ''}", flush=True)
    return {"case": name, "code": code, "lines": len(lines), "left": left, "good": good}


def full_disks() -> list[dict[str, object]]:
    """A disk that is too small."""
    rows = []
    with tempfile.TemporaryDirectory() as name, small_disk(80) as disk:
        work = Path(name)
        checkpoint = write_checkpoint("model", work / NAMES["model"])
        model = write_model(work / "tiny-F16.gguf", layers=24, width=768)
        (disk / "filler").write_bytes(bytes(int(15.5 * 2**20)))
        target = str(disk / "x.gguf")
        rows.append(judge("convert: disk full", (["convert", str(checkpoint), "-o", target, "--type", "f32"], disk)))
        rows.append(judge("quantize: disk full", (["quantize", str(model), target, "--type", "Q8_0"], disk)))
    return rows


def main() -> None:
    """Run all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    given = parser.parse_args()
    rows = []
    for part, cases in (("text", {k: v[0] for k, v in BAD.items()}), ("vision", {k: v[0] for k, v in VISION_BAD.items()})):
        for name, damage in cases.items():
            title = f"convert {part}: {name}"
            if given.only in title:
                with tempfile.TemporaryDirectory() as work:
                    rows.append(judge(title, damaged(Path(work), part, damage)))
    with tempfile.TemporaryDirectory() as work:
        folder = write_checkpoint("model", Path(work) / NAMES["model"])
        words = ["convert", str(folder), "-o", str(folder / SHARD), "--force"]
        if given.only in "convert: output is a shard of the input":
            rows.append(judge("convert: output is a shard of the input", (words, folder)))
    with tempfile.TemporaryDirectory() as work:
        for title, prepare in commands(Path(work)).items():
            if given.only in title:
                rows.append(judge(title, prepare()))
    if given.only in "disk full" and sys.platform == "linux" and os.geteuid() == 0:
        rows += full_disks()
    bad = [row for row in rows if not row["good"]]
    print(json.dumps({"cases": len(rows), "good": len(rows) - len(bad), "bad": bad}))


if __name__ == "__main__":
    main()
