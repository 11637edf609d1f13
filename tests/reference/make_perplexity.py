"""Writes tests/data/perplexity.json: what llama-perplexity says of the demo model against a coarser copy of it.

    python tests/reference/make_perplexity.py LLAMA-PERPLEXITY

Base pass and `--kl-divergence` with one chunk of 512 tokens a batch (`-b 512`), on CPU, over the text that `text()` writes.
llama-perplexity keeps the reference's log-probabilities in 16 bits, cut off 16 nats below the likeliest, so its KLD and Δp
differ from exact ones in the fourth digit; its PPL(base) of the second pass is of those, and is not used.

Processors with AMX compute with other kernels, which changes the PPL of these files by 0.3 %: run it on both kinds.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "localgemma" / "assets" / "demo" / "text.gguf"
PATTERNS = {"ppl": r"Mean PPL\(Q\)\s+:\s+([\d.]+)", "kl": r"Mean\s+KLD:\s+([\d.-]+)", "max": r"Maximum KLD:\s+([\d.-]+)",
            "dp_rms": r"RMS Δp\s+:\s+([\d.]+)", "same": r"Same top p:\s+([\d.]+)"}  # fmt: skip


def text() -> str:
    """Sentences of the demo model's world, no two alike."""
    things, places = (
        ("boat", "tree", "bridge", "house", "tower"),
        ("market", "garden", "school", "farm", "mill", "river", "lake"),
    )
    colours = ("green", "blue", "red", "golden", "old", "small")
    return " ".join(
        f"A {colours[n % 6]} {things[n % 5]} stood behind the {places[n % 7]}. "
        f"The answer to {n} plus {n * 3 % 17} is {n + n * 3 % 17}."
        for n in range(90)
    )


def run(*arguments: str) -> str:
    """What the program prints."""
    done = subprocess.run(arguments, capture_output=True, text=True, errors="replace", check=True)
    return done.stdout + done.stderr


def coarser(folder: Path) -> Path:
    """The demo model at 2 bits, made again from its 4 bits."""
    target = folder / "q2.gguf"
    run(sys.executable, "-m", "localgemma", "quantize", str(DEMO), str(target), "--type", "Q2_K", "--allow-requantize", "-q")
    return target


def main() -> None:
    """Run both passes and write the figures."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data, base = folder / "text.txt", folder / "base.kld"
        data.write_text(text(), encoding="utf-8")
        common = (sys.argv[1], "-f", str(data), "-b", "512", "--kl-divergence-base", str(base))
        run(*common, "-m", str(DEMO))
        found = run(*common, "-m", str(coarser(folder)), "--kl-divergence")
    kind = "amx" if "AMX_INT8 = 1" in found else "other"
    figures = {key: float(match[1]) for key, pattern in PATTERNS.items() if (match := re.search(pattern, found))}
    kept = ROOT / "tests" / "data" / "perplexity.json"
    kept.write_text(json.dumps(json.loads(kept.read_text()) | {kind: figures}, indent=1) + "\n", encoding="utf-8")
    print(kind, figures)


if __name__ == "__main__":
    main()
