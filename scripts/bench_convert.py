"""Speed and memory of `localgemma convert` on a slice of the 31B's shape: six layers, five shards, about 8 GB.

    python scripts/bench_convert.py [--folder DIR] [--types bf16,q8_0] [--reference PYTHON CONVERT_HF_TO_GGUF] [--layers N]
                                    [--repeat N] [--cold]

Makes random weights in DIR (default: a temporary folder), converts them, copies them with `cp` for comparison, runs
llama.cpp's own script where it is given, in rounds in which each has its turn, and deletes everything. Times are wall-clock
from start to exit of the process (ours ends when the file is on the disk, as `cp, sync` does, and plain `cp` does not); memory
is the peak resident set of the process. The last line is one JSON document. Linux only.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from localgemma.make import text  # noqa: E402
from localgemma.make.plan import Config  # noqa: E402

SHARDS = 5
FULL, SLIDING = "full_attention", "sliding_attention"
NOISE = 1 << 27  # values that are made; tensors are cut from them at different places
TOKENS = 262_144
CONFIG = {  # google/gemma-4-31B-it, config.json
    "attention_k_eq_v": True, "final_logit_softcapping": 30.0, "global_head_dim": 512, "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 5376, "hidden_size_per_layer_input": 0,
    "intermediate_size": 21504, "max_position_embeddings": 262144, "model_type": "gemma4_text", "num_attention_heads": 32,
    "num_global_key_value_heads": 4, "num_key_value_heads": 16, "num_kv_shared_layers": 0, "rms_norm_eps": 1e-6,
    "sliding_window": 1024, "tie_word_embeddings": True, "use_bidirectional_attention": "vision", "vocab_size": TOKENS,
    "vocab_size_per_layer_input": TOKENS, "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip


def make(folder: Path, layers: int) -> int:
    """The checkpoint; its size in bytes."""
    kinds = [FULL if layer % 6 == 5 else SLIDING for layer in range(layers)]
    section = {**CONFIG, "num_hidden_layers": layers, "layer_types": kinds}
    (folder / "config.json").write_text(json.dumps({"architectures": ["Gemma4ForCausalLM"], **section}))
    make_tokenizer(folder)
    wanted = sorted(text.wanted(text.read_shape(Config(section)), TOKENS, "model."), key=lambda one: one.source)
    share = sum(2 * int(np.prod(one.shape)) for one in wanted) / SHARDS
    shards: list[list[text.Wanted]] = [[]]
    size = 0
    for one in wanted:
        if size >= share * len(shards):
            shards.append([])
        shards[-1].append(one)
        size += 2 * int(np.prod(one.shape))
    noise = (np.random.default_rng(0).standard_normal(NOISE, np.float32) * np.float32(0.02)).view(np.uint32) >> 16
    words = noise.astype(np.uint16)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write(folder / name, shard, words)
        weight_map |= {one.source: name for one in shard}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return size


def write(path: Path, shard: Sequence[text.Wanted], words: np.ndarray) -> None:
    """One safetensors file of BF16 weights."""
    header, end = {}, 0
    for one in shard:
        size = 2 * int(np.prod(one.shape))
        header[one.source] = {"dtype": "BF16", "shape": one.shape, "data_offsets": [end, end + size]}
        end += size
    data = json.dumps(header).encode()
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(data)) + data)
        for number, one in enumerate(shard):
            left, at = int(np.prod(one.shape)), number * 977
            while left:
                piece = words[at : at + left]
                piece.tofile(stream)
                left, at = left - len(piece), 0


def make_tokenizer(folder: Path) -> None:
    """A vocabulary of the real size."""
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += [f"t{number:06}" for number in range(TOKENS - len(tokens))]
    tokens[-3] = "t1"  # what the one merge makes
    steps = [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]
    added = [{"id": i, "content": token, "special": True, "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False} for i, token in enumerate(tokens[:5])]  # fmt: skip
    vocabulary = {token: number for number, token in enumerate([*tokens[:-2], "t", "1"])}
    model = {
        "type": "BPE",
        "byte_fallback": True,
        "fuse_unk": True,
        "unk_token": "<unk>",
        "vocab": vocabulary,
        "merges": [["t", "1"]],
    }
    tokenizer = {"version": "1.0", "added_tokens": added, "model": model, "decoder": {"type": "Sequence", "decoders": steps}}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GemmaTokenizer"}))


def run(command: Sequence[str | Path]) -> tuple[float, float]:
    """Seconds and the peak resident memory in MiB of a command."""
    start = time.perf_counter()
    process = subprocess.Popen(list(map(str, command)), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command} failed: {said.decode()[-2000:]}")
    return time.perf_counter() - start, used.ru_maxrss / 1024


def settle(model: Path, *, cold: bool) -> None:
    """Let the disk finish what was written before, then have the source in the page cache, or out of it."""
    os.sync()
    for path in sorted(model.iterdir()):
        with path.open("rb", buffering=0) as stream:
            if cold:
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            else:
                buffer = bytearray(16 << 20)
                while stream.readinto(buffer):
                    pass


def measure(
    folder: Path, types: Sequence[str], reference: Sequence[str], repeat: int, *, cold: bool
) -> dict[str, dict[str, float]]:
    """Seconds and MiB of `cp`, of ours and of the reference: rounds in which each has its turn; the medians."""
    model, out = folder / "model", folder / "out"
    jobs: dict[str, list[str | Path]] = {
        "cp": ["cp", "-r", model, out],
        "cp, sync": ["sh", "-c", f"cp -r {model} {out} && sync {out}/*"],
    }
    for kind in types:
        jobs[f"convert {kind}"] = [sys.executable, "-m", "localgemma", "convert", model, "-o", out, "--type", kind]
        if reference:
            jobs[f"reference {kind}"] = [*reference, model, "--outfile", out, "--outtype", kind]
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in jobs}
    for turn in range(repeat):
        for name, job in jobs.items():
            settle(model, cold=cold)
            runs[name].append(run(job))
            shutil.rmtree(out) if out.is_dir() else out.unlink()
            seconds, memory = runs[name][-1]
            print(f"round {turn + 1}  {name:16} {seconds:8.2f} s {memory:9,.0f} MiB", flush=True)
    results: dict[str, dict[str, float]] = {}
    for name, found in runs.items():
        seconds, memory = statistics.median(one for one, _ in found), max(one for _, one in found)
        results[name] = {"seconds": round(seconds, 2), "MiB": round(memory, 1)}
    for kind in types:
        mine = results[f"convert {kind}"]["seconds"]
        beside = {name: round(one["seconds"] / mine, 2) for name, one in results.items() if name[:2] == "cp" or kind in name}
        print(f"{kind}: {mine:.2f} s; as many times as long: {beside}", flush=True)
    return results


def main() -> None:
    """Make, measure, delete."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--types", default="bf16,q8_0")
    parser.add_argument("--reference", nargs=2, default=[], metavar=("PYTHON", "SCRIPT"))
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--cold", action="store_true", help="without the source in the page cache")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        (folder / "model").mkdir()
        with multiprocessing.get_context("spawn").Pool(1) as pool:  # a child inherits its parent's peak memory
            size = pool.apply(make, (folder / "model", given.layers))
        print(f"{size / 1e9:.2f} GB in {SHARDS} shards", flush=True)
        results = measure(folder, given.types.split(","), given.reference, given.repeat, cold=given.cold)
    print(json.dumps({"bytes": size, **results}))


if __name__ == "__main__":
    main()
