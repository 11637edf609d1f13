"""Writes tests/data/quantize.json: digests of what llama-quantize makes of the tests' tiny model.

python tests/reference/make_quantize.py PATH/TO/llama-quantize
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

from test_quantize import digest, tensor_digest, write_imatrix, write_model  # noqa: E402

TYPES = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "IQ4_XS", "Q3_K_M", "Q2_K")


def main() -> None:
    """Quantise with and without imatrix; names are relative, as the metadata keeps them."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = write_model(folder / "tiny-F16.gguf")
        matrix = write_imatrix(folder / "tiny.imatrix.gguf", model)
        files = {}
        for kind in TYPES:
            for option in ([], ["--imatrix", matrix.name]):
                subprocess.run(
                    [sys.argv[1], *option, model.name, "out.gguf", kind], cwd=folder, check=True, capture_output=True
                )
                files[f"{kind} imatrix" if option else kind] = tensor_digest(folder / "out.gguf")
        stored = {"model": digest(model), "files": files}
    (TESTS / "data" / "quantize.json").write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    main()
