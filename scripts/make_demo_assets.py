"""Makes the demo model in localgemma/assets/demo/ from a folder with bf16.gguf, assistant-f32.gguf and mmproj-f32.gguf.

    python scripts/make_demo_assets.py FOLDER [OUTPUT]

The language model becomes Q4_K_M and the drafter Q8_0. In the projector the two-dimensional weights become F16, the
rest stays F32, and `clip.use_gelu = true` is added as localgemma adds it to any projector that lacks it.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np
from llama_cpp import llama_cpp

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from localgemma.files.projector import corrected  # noqa: E402

LIMIT = 16_000_000  # bytes of all three together


def quantise(source: Path, target: Path, file_type: int) -> None:
    """Write `source` quantised to `file_type`."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize = file_type, True
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), params):
        raise SystemExit(f"llama.cpp could not quantise {source.name}.")


def halve_projector(source: Path, target: Path) -> None:
    """Write the projector with its two-dimensional weights as F16."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "clip")
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        value = int(gguf.LlamaFileType.MOSTLY_F16) if key == "general.file_type" else field.contents()
        kind = field.types[0]
        writer.add_key_value(key, value, kind, field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None)
    for tensor in reader.tensors:
        half = len(tensor.shape) == 2 and tensor.name.endswith(".weight")
        writer.add_tensor(tensor.name, tensor.data.astype(np.float16) if half else tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main(source: Path, target: Path) -> None:
    """Make the three files and show their sizes."""
    target.mkdir(parents=True, exist_ok=True)
    quantise(source / "bf16.gguf", target / "text.gguf", llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M)
    quantise(source / "assistant-f32.gguf", target / "drafter.gguf", llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0)
    with tempfile.TemporaryDirectory() as folder:
        half = Path(folder) / "mmproj.gguf"
        halve_projector(source / "mmproj-f32.gguf", half)
        copy, _ = corrected(half, Path(folder) / "corrected")
        shutil.copyfile(copy, target / "mmproj.gguf")
    sizes = {name: (target / f"{name}.gguf").stat().st_size for name in ("text", "drafter", "mmproj")}
    for name, size in sizes.items():
        print(f"{name:8} {size:12,} bytes")
    if sum(sizes.values()) > LIMIT:
        raise SystemExit(f"Together they are {sum(sizes.values()):,} bytes, more than {LIMIT:,}.")


if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 3:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) == 3 else ROOT / "localgemma" / "assets" / "demo")
