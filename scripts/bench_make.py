"""Recipes of a given size against the standard ones: sizes, and mean KL divergence on chats that no recipe saw.

    python scripts/bench_make.py SOURCE.gguf --chats FILE.jsonl [--work DIR] [--bands N] [--tokens N] [--held N]

Every second chat makes the imatrix and the sensitivities, the others are held out. Prints a table, then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from localgemma.chat.data import finished
from localgemma.llamacpp.imatrix import Observed
from localgemma.llamacpp.probe import kl
from localgemma.make import calibration, imatrix, quantize, recipe, sensitivity, types
from localgemma.make.quantize import Wish
from localgemma.options import LoadOptions

STANDARD = (
    "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "IQ4_NL", "IQ4_XS", "Q4_0", "Q3_K_L", "Q3_K_M", "Q3_K_S",
    "IQ3_M", "IQ3_S", "IQ3_XS", "IQ3_XXS", "Q2_K", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS",
)  # fmt: skip


def chats(path: Path) -> list[calibration.Piece]:
    """Chats of the file with the answers that are expected of the model."""
    pieces: list[calibration.Piece] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        said = record.get("expected") or {}
        answer: dict[str, Any] = {"role": "assistant", "content": said.get("content") or ""}
        if said.get("reasoning"):
            answer["reasoning"] = said["reasoning"]
        if said.get("tool_calls"):
            answer["tool_calls"] = [{"type": "function", "function": call} for call in said["tool_calls"]]
        if record.get("images"):
            continue
        messages = [*record["messages"], *([answer] if said else [])]
        pieces.append(finished(messages, tools=record.get("tools") or (), thinking=bool(record.get("enable_thinking"))))
    return pieces


class Judge:
    """The source's predictions on the held-out chats."""

    def __init__(self, source: Path, pieces: list[calibration.Piece], load: LoadOptions) -> None:
        self._load = load
        with Observed(source, None, load) as observed:
            self._runs = [observed.runs(piece) for piece in pieces if not isinstance(piece, str)]
        self._reference = self._logits(source)

    def _logits(self, path: Path) -> list[Any]:
        with Observed(path, None, self._load) as observed:
            return [observed.logits(runs) for runs in self._runs]

    def divergence(self, path: Path) -> float:
        """Mean KL divergence, nats a token."""
        import numpy as np

        pairs = zip(self._reference, self._logits(path), strict=True)
        return float(np.concatenate([kl(reference, other) for reference, other in pairs]).mean())


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--chats", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("bench-make"))
    parser.add_argument("--bands", type=int, default=1 << 10)
    parser.add_argument("--tokens", type=int, default=sensitivity.TOKENS)
    parser.add_argument("--held", type=int, default=48, help="held-out chats")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--standard", help="types to compare with, by commas", default=",".join(STANDARD))
    parser.add_argument("--sensitivities", type=Path, help="a table measured before; default: WORK/sensitivities.csv")
    parser.add_argument("--budgets", help="bits a weight, by commas", default="2.8,3.4,4.0,4.7,5.6")
    given = parser.parse_args()
    given.work.mkdir(exist_ok=True)
    load = LoadOptions(image_tokens=0, ctx=2048, threads=given.threads)
    pieces = chats(given.chats)
    seen, held = pieces[::2], pieces[1::2]
    held = held[:: max(1, len(held) // given.held)]
    matrix, table_file = given.work / "imatrix.gguf", given.sensitivities or given.work / "sensitivities.csv"
    if not matrix.exists():
        imatrix.write(matrix, calibration.collect(given.source, None, seen, load, datasets=[given.chats.name]))
    weights = sensitivity.quantisable(given.source)
    if not table_file.exists():
        spread = seen[:: max(1, len(seen) // 24)]
        settings = sensitivity.Settings(given.tokens, given.bands, load)
        sensitivity.write_table(table_file, sensitivity.measure(given.source, spread, matrix, settings))
    table = sensitivity.read_table(table_file, weights)
    judge = Judge(given.source, held, load)
    standard = {}
    for name in given.standard.split(","):
        plan = quantize.make_plan(given.source, Wish(name, imatrix=matrix))
        path = given.work / f"{name}.gguf"
        if not path.exists():
            quantize.run_plan(plan, path)
        standard[name] = (plan.size, judge.divergence(path))
        print(f"{name:<8} {plan.size:>12,} {plan.bits:6.3f} bits  KL {standard[name][1]:.5f}", flush=True)
    values = sum(types.values(weight.shape) for weight in weights)
    rows = []
    for bits in map(float, given.budgets.split(",")):
        budget = int(bits * values / 8) + 400_000
        plan = recipe.plan_for_size(given.source, table, budget, Wish("", imatrix=matrix))
        path = given.work / "recipe.gguf"
        quantize.run_plan(plan, path, replace=True)
        near = min(standard, key=lambda name: abs(standard[name][0] - plan.size))
        mine = judge.divergence(path)
        rows.append({"budget": budget, "size": plan.size, "kl": mine, "near": near, "near_size": standard[near][0],
                     "near_kl": standard[near][1], "types": plan.by_type()})  # fmt: skip
        print(
            f"budget {budget:>12,} size {plan.size:>12,} ({plan.size / budget:.2%}) KL {mine:.5f} | {near} "
            f"{standard[near][0]:,} KL {standard[near][1]:.5f} {'better' if mine < standard[near][1] else 'WORSE'}",
            flush=True,
        )
    print(json.dumps({"standard": standard, "recipes": rows}))


if __name__ == "__main__":
    main()
