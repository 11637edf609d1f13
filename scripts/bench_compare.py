"""Times `localgemma compare --raw` beside llama-perplexity: one reference and some quants over the same text.

llama-perplexity needs a base pass that writes its file of logits and one pass a quant; ours is one command. Both are given the
same threads. Prints a table and one JSON line with seconds of wall clock and of processor, and the figures of both.

    python scripts/bench_compare.py --perplexity BIN --reference BF16.gguf --text FILE Q8_0.gguf Q4_K_M.gguf …
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

_FIGURES = {"ppl": r"Mean PPL\(Q\)\s+:\s+([\d.]+)", "kl": r"Mean\s+KLD:\s+([\d.-]+)",
            "dp_rms": r"RMS Δp\s+:\s+([\d.]+)", "same": r"Same top p:\s+([\d.]+)"}  # fmt: skip


def timed(command: list[str], env: dict[str, str] | None = None) -> tuple[str, float, float]:
    """(output, seconds of wall clock, seconds of processor) of a command that must succeed."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, env=env, capture_output=True, text=True, errors="replace")
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"{' '.join(command[:3])} … failed: {done.stderr[-500:]}")
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done.stdout + done.stderr, wall, used


def theirs(options: argparse.Namespace, folder: Path, extra: list[str]) -> dict[str, Any]:
    """llama-perplexity's passes."""
    base = str(folder / "base.kld")
    common = [options.perplexity, "-f", options.text, "-t", str(options.threads), "--kl-divergence-base", base, *extra]
    _, wall, used = timed([*common, "-m", options.reference])
    figures = {}
    for quant in options.quants:
        text, more, cost = timed([*common, "-m", quant, "--kl-divergence"])
        wall, used = wall + more, used + cost
        found = {name: re.search(pattern, text) for name, pattern in _FIGURES.items()}
        figures[Path(quant).stem] = {name: float(match[1]) for name, match in found.items() if match}
    return {"wall_s": wall, "cpu_s": used, "file_bytes": Path(base).stat().st_size, "figures": figures}


def ours(options: argparse.Namespace, folder: Path, extra: list[str]) -> dict[str, Any]:
    """One comparison, with nothing kept from an earlier one."""
    env = os.environ | {"LOCALGEMMA_HOME": str(folder)}
    command = [sys.executable, "-m", "localgemma", "compare", *options.quants, "--reference", options.reference, "--raw"]
    command += ["--data", options.text, "--json", "--quiet", "--threads", str(options.threads), *extra]
    text, wall, used = timed(command, env)
    found = json.loads(text[text.index("{") :])
    figures = {}
    for quant, result in zip(options.quants, found["results"], strict=True):
        overall = result["overall"]
        figures[Path(quant).stem] = {
            "ppl": overall["perplexity"], "kl": overall["kl"]["value"], "dp_rms": 100 * overall["dp_rms"],
            "same": 100 * overall["same_top"]["value"],
        }  # fmt: skip
    return {"wall_s": wall, "cpu_s": used, "figures": figures}


def main() -> None:
    """Run both, one after the other, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("quants", nargs="+")
    parser.add_argument("--reference", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--perplexity", required=True)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--same-batches", action="store_true", help="ubatch 512 and one chunk a batch on both sides")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        mine = ours(options, Path(first), ["--ubatch", "512"] if options.same_batches else [])
        other = theirs(options, Path(second), ["-b", "512"] if options.same_batches else [])
    print(f"{'':<10} {'wall s':>8} {'cpu s':>8}")
    for name, row in (("localgemma", mine), ("llama.cpp", other)):
        print(f"{name:<10} {row['wall_s']:>8.1f} {row['cpu_s']:>8.1f}")
    print(f"\n{'quant':<10} {'PPL':>12} {'theirs':>12} {'KLD':>9} {'theirs':>9} {'RMS Δp':>7} {'theirs':>7}", end="")
    print(f" {'same':>7} {'theirs':>7}")
    for name, a in mine["figures"].items():
        b = other["figures"][name]
        print(f"{name:<10} {a['ppl']:>12.4f} {b['ppl']:>12.4f} {a['kl']:>9.6f} {b['kl']:>9.6f} {a['dp_rms']:>7.3f} "
              f"{b['dp_rms']:>7.3f} {a['same']:>7.3f} {b['same']:>7.3f}")  # fmt: skip
    ratio = {name: mine[name] / other[name] for name in ("wall_s", "cpu_s")}
    print(json.dumps({"ours": mine, "theirs": other, "ratio": ratio}))


if __name__ == "__main__":
    main()
