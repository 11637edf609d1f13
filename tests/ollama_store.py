"""Ollama's store as its own code lays it out (manifest/paths.go, convert/convert_gemma4.go), made of the demo model.

`fused_blob` writes the demo's text model and projector as Ollama's converter would write them: one file, entries and names
as there, F16 patch embedding, token types of tokenizer.json, no entries that only llama.cpp's converter writes.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGUFReader, GGUFValueType, GGUFWriter

DEMO = Path(__file__).parents[1] / "localgemma" / "assets" / "demo"
NOT_OLLAMAS = (
    *("GGUF.", "general.architecture", "general.sampling", "general.type", "general.size_label", "tokenizer.ggml.model"),
    *("tokenizer.ggml.token_type", "tokenizer.ggml.add_space_prefix", "tokenizer.ggml.add_bos_token", "general.alignment"),
)
VISION = ("block_count", "embedding_length", "feed_forward_length", "attention.head_count", "patch_size")


def fused_blob(path: Path, text: Path = DEMO / "text.gguf", projector: Path = DEMO / "mmproj.gguf") -> Path:
    """The two files as one in Ollama's form."""
    model, tower = GGUFReader(text), GGUFReader(projector)
    writer = GGUFWriter(path, "gemma4")
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("gemma4")
    tokens = model.fields["tokenizer.ggml.tokens"].contents()
    types = model.fields["tokenizer.ggml.token_type"].contents()
    special = (gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED)
    writer.add_token_types([gguf.TokenType.CONTROL if kind in special else gguf.TokenType.NORMAL for kind in types])
    assert len(tokens) == len(types)
    for key, field in model.fields.items():
        if not key.startswith(NOT_OLLAMAS):
            kind = field.types[0]
            sub = field.types[-1] if kind == GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), kind, sub_type=sub)
    for name in VISION:
        writer.add_uint32(f"gemma4.vision.{name}", int(tower.fields[f"clip.vision.{name}"].contents()))
    writer.add_uint32("gemma4.vision.num_channels", 3)
    writer.add_uint32("gemma4.vision.projector.scale_factor", 3)
    writer.add_float32("gemma4.vision.attention.layer_norm_epsilon", 1e-6)
    for tensor in (*model.tensors, *tower.tensors):
        data: Any = np.asarray(tensor.data)
        if tensor.name == "v.patch_embd.weight":
            data = data.astype(np.float16)
        raw = None if data.dtype in (np.float16, np.float32) else tensor.tensor_type
        writer.add_tensor(tensor.name, data, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


class Store:
    """An Ollama store in a folder: blobs by their sha256, and manifests that name them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "blobs").mkdir(parents=True)
        (folder / "manifests").mkdir()

    def blob(self, source: Path) -> Path:
        """The file, moved into the store under its sha256."""
        target = self.folder / "blobs" / f"sha256-{hashlib.sha256(source.read_bytes()).hexdigest()}"
        return source.rename(target)

    def manifest(self, place: str, **layers: Path) -> Path:
        """A manifest at `HOST/NAMESPACE/MODEL/TAG` whose layers (model=, projector=, …) are these blobs."""
        path = self.folder / "manifests" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        kinds = [
            {
                "mediaType": f"application/vnd.ollama.image.{kind}",
                "digest": blob.name.replace("-", ":"),
                "size": blob.stat().st_size,
            }
            for kind, blob in layers.items()
        ]
        config = {"mediaType": "application/vnd.docker.container.image.v1+json", "digest": f"sha256:{'0' * 64}", "size": 474}
        path.write_text(json.dumps({"schemaVersion": 2, "config": config, "layers": kinds}))
        return path
