"""Quantised files and importance matrices beside llama.cpp's own tools: equal to the byte, and how near.

    python scripts/compare_make.py SOURCE.gguf TEXT --tools DIR [--work DIR]

SOURCE is a BF16, F16 or F32 model, TEXT what both read for the imatrix. Prints one line a check, then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from localgemma.make import imatrix

ROOT = Path(__file__).resolve().parent.parent
TYPES = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "IQ4_XS", "Q3_K_M", "Q2_K")
SMALL = ("IQ3_XXS", "IQ2_M", "IQ2_XXS", "IQ1_S")  # with an imatrix only


def localgemma(work: Path, *words: str) -> None:
    """Run our command line."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-m", "localgemma", *words], cwd=work, env=environment, check=True, capture_output=True)


def matrices(tools: Path, source: Path, work: Path, threads: str) -> dict[str, float]:
    """Largest relative differences of the sums, over each weight's largest and over each value."""
    localgemma(work, "imatrix", str(source), "-o", "ours.gguf", "--data", "text.txt", "--threads", threads, "--force")
    command = [str(tools / "llama-imatrix"), "-m", str(source), "-f", "text.txt", "-o", "theirs.gguf", "-t", threads]
    subprocess.run(command, cwd=work, check=True, capture_output=True)
    ours, theirs = imatrix.read(work / "ours.gguf"), imatrix.read(work / "theirs.gguf")
    assert ours.entries.keys() == theirs.entries.keys() and ours.tokens == theirs.tokens
    pairs = [(entry.sums, theirs.entries[name].sums) for name, entry in ours.entries.items()]
    return {
        "weights": len(pairs),
        "tokens": ours.tokens,
        "of_largest": max(float(np.abs(a - b).max() / b.max()) for a, b in pairs),
        "of_each": max(float((np.abs(a - b) / np.maximum(b, 1e-30)).max()) for a, b in pairs),
    }


def main() -> None:
    """Compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--tools", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("compare-make"))
    parser.add_argument("--threads", default="1")
    given = parser.parse_args()
    given.work.mkdir(exist_ok=True)
    shutil.copy(given.text, given.work / "text.txt")
    source = given.source.resolve()
    result = matrices(given.tools, source, given.work, given.threads)
    print("imatrix:", result, flush=True)
    equal = {}
    for name in TYPES + SMALL:
        for option in ([], ["--imatrix", "ours.gguf"]):
            if name in SMALL and not option:
                continue
            command = [str(given.tools / "llama-quantize"), *option, str(source), "theirs-q.gguf", name]
            subprocess.run(command, cwd=given.work, check=True, capture_output=True)
            localgemma(given.work, "quantize", str(source), "ours-q.gguf", "--type", name, *option, "--force")
            same = (given.work / "ours-q.gguf").read_bytes() == (given.work / "theirs-q.gguf").read_bytes()
            equal[f"{name}{' imatrix' if option else ''}"] = same
            print(f"{name:<8} {'imatrix' if option else 'plain':<8} {'equal' if same else 'DIFFERENT'}", flush=True)
    print(json.dumps({"imatrix": result, "equal": equal}))


if __name__ == "__main__":
    main()
