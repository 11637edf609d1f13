"""Writes tests/data/imatrix.npz: what llama-imatrix finds for the demo model in F32 and the tests' text (every eighth column).

python tests/reference/make_imatrix.py PATH/TO/llama-imatrix
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

from test_imatrix import DATA, STEP, exact, sample_text  # noqa: E402

from localgemma.make import imatrix  # noqa: E402


def main() -> None:
    """Run llama-imatrix and keep its sums."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "sample.txt").write_text(sample_text())
        command = [sys.argv[1], "-m", str(exact(folder)), "-f", "sample.txt", "-o", "out.gguf", "-t", "1", "-ngl", "0"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        found = imatrix.read(folder / "out.gguf")
    values = {name: entry.sums[0, ::STEP].astype(np.float32) for name, entry in found.entries.items()}
    np.savez_compressed(DATA, tokens=np.int64(found.tokens), chunks=np.int64(found.chunks), **values)


if __name__ == "__main__":
    main()
