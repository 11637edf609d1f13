"""Makes tests/data/compare_kl.npz: divergences of the demo model's quants on its held-out questions, and which they answer.

    python tests/reference/make_compare_kl.py REFERENCE.gguf CANDIDATE.gguf… [--data ../shared/demo-model/eval.jsonl]

`items` is the number of the item of each answer token, `kl_NAME` KL(reference ‖ candidate) of each token in nats, and
`right_NAME` whether each question was answered rightly. NAME is the candidate's file name without its ending.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from localgemma.compare import corpus, tasks  # noqa: E402
from localgemma.compare.records import Item  # noqa: E402
from localgemma.engine import Engine, Prompt  # noqa: E402
from localgemma.llamacpp.engine import open_engine  # noqa: E402
from localgemma.options import LoadOptions  # noqa: E402

PROJECTOR = ROOT / "localgemma" / "assets" / "demo" / "mmproj.gguf"
LOAD = LoadOptions(ctx=4096, image_tokens=140, threads=1, threads_batch=1, gpu_layers=0)


def log_probabilities(engine: Engine, item: Item) -> Any:
    """Log-probabilities at each answer token, float64 [tokens, vocabulary]."""
    first = engine.count(item.prompt) - 1
    rows = [
        row
        for start, block in engine.score(Prompt((*item.prompt.parts, *item.answer.parts)))
        for at, row in enumerate(block, start)
        if at >= first
    ][:-1]
    logits = np.array(rows, np.float64)
    logits -= logits.max(1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def main() -> None:
    """Write the data."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference", type=Path)
    parser.add_argument("candidates", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "demo-model" / "eval.jsonl")
    given = parser.parse_args()
    read = corpus.from_data([str(given.data)], image_tokens=70)
    base = open_engine(given.reference, PROJECTOR, LOAD)
    others = {path.stem: open_engine(path, PROJECTOR, LOAD) for path in given.candidates}
    found: dict[str, list[Any]] = {name: [] for name in others}
    items: list[Any] = []
    for index, item in enumerate(read.items):
        wanted = log_probabilities(base, item)
        items.append(np.full(len(wanted), index, np.int16))
        for name, engine in others.items():
            found[name].append((np.exp(wanted) * (wanted - log_probabilities(engine, item))).sum(1).astype(np.float32))
    data: dict[str, Any] = {"items": np.concatenate(items)}
    for name, engine in others.items():
        verdicts = tasks.run(engine, read.questions)
        data[f"kl_{name}"] = np.concatenate(found[name])
        data[f"right_{name}"] = np.array([verdicts[question.id].right for question in read.questions])
    np.savez_compressed(ROOT / "tests" / "data" / "compare_kl.npz", **data)
    print({name: (values.shape, float(values.mean())) for name, values in data.items()})


if __name__ == "__main__":
    main()
