"""Measures what walking a reference, and comparing a file with a kept one, takes beside the model: peak resident bytes.

    python scripts/compare_memory.py MODEL.gguf [TOKENS]

Loads MODEL as `localgemma compare` does, walks TOKENS made-up tokens (1,024) as a reference, keeps it, and walks it again
against what was kept, in a process of its own. Prints a table and one JSON line.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import numpy as np

from localgemma import runtime
from localgemma.cli.compare_subjects import Files, layout
from localgemma.compare import reference, walk
from localgemma.compare.samples import Sample
from localgemma.fit import probe
from localgemma.passages import Passage


def main() -> None:
    """Measure and print."""
    path, count = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1024
    subject = Files(any_architecture=True).subject(str(path))
    before = probe.resident()
    load = layout(subject.vocabulary_size, 0, 0)
    engine = runtime.open_for_reading(path, None, load, any_architecture=True)
    tokens = np.random.default_rng(0).integers(300, min(4000, subject.vocabulary_size), count)
    texts = []
    for start in range(0, count, 512):
        run = tuple(int(token) for token in tokens[start : start + 512])
        texts.append(Sample(str(start), "text", Passage((run,), len(run) // 2), run[len(run) // 2 + 1 :]))
    places = walk.starts(texts)
    kept = reference.Compact.empty(places[-1])
    for (block,) in walk.lockstep([engine], texts):
        targets, at = walk.right(texts, places, block)
        reference.put(kept, reference.compact(block.logits, targets, at), at)
    first = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    for (block,) in walk.lockstep([engine], texts):
        targets, at = walk.right(texts, places, block)
        reference.against(kept.part(slice(at, at + len(targets))), block.logits, targets)
    second = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    engine.close()
    rows = {"program": before, "model": subject.bytes, "reference walk": first, "compare": second}
    for name, size in rows.items():
        print(f"{name:<16} {size / 2**20:>9.1f} MiB")
    beyond = {name: rows[name] - subject.bytes - before for name in ("reference walk", "compare")}
    for name, size in beyond.items():
        print(
            f"{name + ', beyond':<24} {size / 2**20:>7.1f} MiB beside the model (the program's own {before / 2**20:.0f} apart)"
        )
    print(json.dumps({"rows": load.outputs, "ubatch": load.ubatch, "bytes": rows, "beyond": beyond}))


if __name__ == "__main__":
    main()
