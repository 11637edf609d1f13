"""Makes tests/data/convert: two small random models, and what llama.cpp's own converter writes for them and the demo model.

    python tests/reference/make_convert.py LLAMA_CPP [DEMO]

LLAMA_CPP is the source folder vendor/llama.cpp of llama-cpp-python 0.3.36 (commit 0c1e57098); DEMO is the demo model's
folder with hf/ and assistant/. Needs torch and transformers 5.24. The models' shapes and tensor names are those that
transformers gives and saves; their weights are then made from the names alone (tests/checkpoints.py), so only the
configurations are stored. Of the converter's output are stored: every tensor's type, shape and SHA-256, every metadata
entry (long arrays and texts by SHA-256), and the SHA-256 of the whole file.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from checkpoints import DATA, write_checkpoint  # noqa: E402

TYPES = ("bf16", "f16", "f32", "q8_0")
NAMES = {"model": "Tiny-Gemma-4-1M-it", "assistant": "Tiny-Gemma-4-1M-it-assistant"}  # the folders' names are read too
MIXED = ("F32", "F16", "BF16", "F32")
CARD = """---
license: apache-2.0
license_link: https://ai.google.dev/gemma/docs/gemma_4_license
base_model:
  - google/gemma-4-31B
pipeline_tag: image-text-to-text
tags:
  - test
language: en
---
A random model for tests.
"""
LOW = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "[multimodal]", "<unused0>", "<|tool>", "<tool|>", "<|tool_call>",
       "<tool_call|>", "<|tool_response>", "<tool_response|>", '<|"|>', "<|think|>", "<|channel>", "<channel|>", "<|turn>",
       "<turn|>"]  # fmt: skip
HIGH = ["<|image>", "<|audio>", "<|image|>", "<|audio|>", "<image|>", "<audio|>", "<|video|>"]
BEYOND = ["<beyond>", "<beyond, special>"]  # added tokens after the base vocabulary
NAMED = {"boi_token": "<|image>", "eoi_token": "<image|>", "image_token": "<|image|>", "boa_token": "<|audio>",
         "eoa_token": "<audio|>", "audio_token": "<|audio|>", "sot_token": "<|turn>", "eot_token": "<turn|>",
         "soc_token": "<|channel>", "eoc_token": "<channel|>", "think_token": "<|think|>", "std_token": "<|tool>",
         "etd_token": "<tool|>", "stc_token": "<|tool_call>", "etc_token": "<tool_call|>", "str_token": "<|tool_response>",
         "etr_token": "<tool_response|>", "escape_token": '<|"|>'}  # fmt: skip


def make_tokenizer(folder: Path) -> int:
    """A small tokenizer of Gemma 4's kind; the number of its tokens."""
    letters = [chr(code) for code in range(33, 127)] + ["▁", "é", "😀"]
    merges = [["▁", "t"], ["▁t", "h"], ["▁th", "e"], ["i", "n"], ["▁", "▁"], ["\n", "\n"], ["e", "r"]]
    tokens = [*LOW, "\n", *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *("".join(pair) for pair in merges), *HIGH]
    special = [token for token in LOW if token not in ("[multimodal]", "<unused0>")] + HIGH
    count = len(tokens)
    numbers = {token: number for number, token in enumerate(tokens)} | {token: count + i for i, token in enumerate(BEYOND)}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [{"id": numbers[token], "content": token, **flags, "special": token != BEYOND[0]} for token in [*special, *BEYOND]]
    write_json(folder / "tokenizer.json", {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False},
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
            "vocab": {token: number for number, token in enumerate(tokens)}, "merges": merges,
        },
    })  # fmt: skip
    write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "GemmaTokenizer", "bos_token": {"content": "<bos>", "__type": "AddedToken", **flags},
        "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>", "padding_side": "left",
        "add_bos_token": True, "add_eos_token": False, "extra_special_tokens": ["<|video|>", BEYOND[1]], **NAMED,
    })  # fmt: skip
    (folder / "chat_template.jinja").write_text("{{ bos_token }}{% for m in messages %}{{ m['content'] }}\r\n{% endfor %}")
    write_json(folder / "generation_config.json", {"temperature": 1.0, "top_k": 64, "top_p": 0.95, "bos_token_id": 2})
    (folder / "README.md").write_text(CARD)
    return count + len(BEYOND)


def make_model(folder: Path) -> None:
    """Text and vision, of sizes unlike the demo model's, in the layout `per_layer_config`, several shards."""
    from transformers import Gemma4Config, Gemma4ForConditionalGeneration

    tokens = make_tokenizer(folder)
    sliding, full = "sliding_attention", "full_attention"
    config = Gemma4Config(
        text_config={
            "vocab_size": tokens, "hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 5,
            "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 16, "global_head_dim": 32,
            "num_global_key_value_heads": 2, "attention_k_eq_v": True, "layer_types": [sliding, sliding, full, sliding, full],
            "sliding_window": 48, "max_position_embeddings": 4096, "final_logit_softcapping": 25.0,
            "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0, "use_bidirectional_attention": "vision",
            "rms_norm_eps": 1e-5,
            "rope_parameters": {
                full: {"rope_type": "proportional", "partial_rotary_factor": 0.5, "rope_theta": 500_000.0},
                sliding: {"rope_type": "default", "rope_theta": 20_000.0},
            },
        },
        vision_config={
            "hidden_size": 64, "intermediate_size": 104, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 2, "head_dim": 32, "patch_size": 4, "position_embedding_size": 40, "standardize": False,
        },
        audio_config=None, image_token_id=tokens - 5, boi_token_id=tokens - 9, eoi_token_id=tokens - 3,
    )  # fmt: skip
    config.audio_config = None
    Gemma4ForConditionalGeneration(config).bfloat16().save_pretrained(folder, max_shard_size="200KB")
    processor = {"image_processor": {"image_mean": [0.5, 0.25, 0.125], "image_std": [1.0, 2.0, 4.0]}}
    write_json(folder / "processor_config.json", processor)


def make_assistant(folder: Path) -> None:
    """A drafter of other sizes."""
    from transformers import Gemma4AssistantConfig, Gemma4AssistantForCausalLM

    tokens = make_tokenizer(folder)
    text = {
        "model_type": "gemma4_text", "vocab_size": tokens, "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "global_head_dim": 64,
        "num_global_key_value_heads": 1, "attention_k_eq_v": True, "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": 48, "max_position_embeddings": 4096, "hidden_size_per_layer_input": 0,
        "vocab_size_per_layer_input": 0, "num_kv_shared_layers": 2,
    }  # fmt: skip
    config = Gemma4AssistantConfig(text_config=text, backbone_hidden_size=96)
    Gemma4AssistantForCausalLM(config).bfloat16().save_pretrained(folder)


def store(made: Path, model: str) -> None:
    """Keep the configurations and the layout of the weights."""
    target = DATA / model
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    layout: dict[str, dict[str, Any]] = {}
    for path in sorted(made.iterdir()):
        if path.suffix != ".safetensors":
            shutil.copyfile(path, target / path.name)
            continue
        with path.open("rb") as stream:
            header = json.loads(stream.read(struct.unpack("<Q", stream.read(8))[0]))
        header.pop("__metadata__", None)
        layout[path.name] = {name: (entry["dtype"], entry["shape"]) for name, entry in header.items()}
    write_json(target / "layout.json", layout)


def reference(llama_cpp: Path, folder: Path, part: str, kind: str, target: Path) -> dict[str, Any]:
    """What llama.cpp's converter writes for one part in one type."""
    script = [
        sys.executable,
        str(llama_cpp / "convert_hf_to_gguf.py"),
        str(folder),
        "--outfile",
        str(target),
        "--outtype",
        kind,
    ]
    done = subprocess.run([*script, *(["--mmproj"] if part == "vision" else [])], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return describe(target)


def describe(path: Path) -> dict[str, Any]:
    """Hash, metadata and tensors of a GGUF file."""
    import gguf

    reader = gguf.GGUFReader(path)
    metadata = {key: shortened(field) for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    tensors = {
        tensor.name: [tensor.tensor_type.name, [int(n) for n in tensor.shape], digest(tensor.data.tobytes())[:16]]
        for tensor in reader.tensors
    }
    return {"sha256": digest(path.read_bytes()), "metadata": metadata, "tensors": tensors}


def shortened(field: Any) -> list[Any]:
    """A metadata entry: types and value, which is a hash where it is long."""
    value = field.contents()
    text = json.dumps(value)
    return [[kind.name for kind in field.types], value if len(text) < 200 else f"sha256 {digest(text.encode())}"]


def digest(data: bytes) -> str:
    """SHA-256."""
    return hashlib.sha256(data).hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Compact JSON."""
    path.write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n")


def main(llama_cpp: Path, demo: Path | None) -> None:
    """Make both models, convert everything in every type, store what came out."""
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        folders: dict[str, tuple[Path, tuple[str, ...]]] = {}
        for model, make in (("model", make_model), ("assistant", make_assistant)):
            (work / "made" / model).mkdir(parents=True)
            make(work / "made" / model)
            store(work / "made" / model, model)
            parts = ("text", "vision") if model == "model" else ("drafter",)
            folders[model] = write_checkpoint(model, work / "plain" / NAMES[model]), parts
            folders[f"{model}-mixed"] = write_checkpoint(model, work / "mixed" / NAMES[model], MIXED), parts
        if demo is not None:
            folders |= {"demo": (demo / "hf", ("text", "vision")), "demo-assistant": (demo / "assistant", ("drafter",))}
        for name, (folder, parts) in folders.items():
            for part in parts:
                for kind in TYPES:
                    results[f"{name} {part} {kind}"] = reference(llama_cpp, folder, part, kind, work / "out.gguf")
                    print(name, part, kind, results[f"{name} {part} {kind}"]["sha256"])
    data = json.dumps(results, separators=(",", ":")).encode()
    (DATA.parent / "convert.json.gz").write_bytes(gzip.compress(data, 9, mtime=0))


if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 3:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) == 3 else None)
