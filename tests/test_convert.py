"""Converting checkpoints: equal to llama.cpp's own converter, in bounded memory, whole or not at all."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from checkpoints import DATA, write_checkpoint, write_safetensors
from hypothesis import given, settings
from hypothesis import strategies as st

from localgemma.engine import CancelToken
from localgemma.errors import BadModelFile, Cancelled, DiskError, LocalgemmaError, NotFound, UsageError
from localgemma.files.header import check_drafter, check_projector, check_text_model, read_header
from localgemma.make import encoding, whole, writer
from localgemma.make.convert import convert, planned_size
from localgemma.messages import Progress

ROOT = Path(__file__).parent.parent
NAMES = {"model": "Tiny-Gemma-4-1M-it", "assistant": "Tiny-Gemma-4-1M-it-assistant"}  # read by the converters
MIXED = ("F32", "F16", "BF16", "F32")
REFERENCE: dict[str, Any] = json.loads(gzip.decompress((DATA.parent / "convert.json.gz").read_bytes()))
# Metadata that differs from what llama.cpp's converter writes, and why.
EXPLAINED = {
    "clip.use_gelu": "The reference leaves it out, and llama.cpp then runs the vision tower with quick GELU.",
}
INDEX, SHARD = "model.safetensors.index.json", "model-00001-of-00006.safetensors"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The stored models with weights: as saved, and with several number types mixed."""
    base = tmp_path_factory.mktemp("checkpoints")
    plain = {model: write_checkpoint(model, base / "plain" / name) for model, name in NAMES.items()}
    mixed = {f"{model}-mixed": write_checkpoint(model, base / "mixed" / name, MIXED) for model, name in NAMES.items()}
    return plain | mixed


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the model that a test may damage."""
    return write_checkpoint("model", tmp_path / NAMES["model"])


def described(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metadata and tensors as tests/reference/make_convert.py stores them."""
    reader = gguf.GGUFReader(path)
    metadata: dict[str, Any] = {}
    for key, field in reader.fields.items():
        if not key.startswith("GGUF."):
            value = field.contents()
            text = json.dumps(value)
            short = value if len(text) < 200 else f"sha256 {hashlib.sha256(text.encode()).hexdigest()}"
            metadata[key] = [[kind.name for kind in field.types], short]
    tensors = {
        tensor.name: [
            tensor.tensor_type.name,
            [int(n) for n in tensor.shape],
            hashlib.sha256(tensor.data.tobytes()).hexdigest()[:16],
        ]
        for tensor in reader.tensors
    }
    return metadata, tensors


def check_equal(folder: Path, case: str, target: Path) -> None:
    """What we write is what the reference wrote: every tensor, every metadata entry but the explained, the whole file."""
    _, part, kind = case.split()
    done = convert(folder, target, part=part, file_type=kind)  # type: ignore[arg-type]
    expected = REFERENCE[case]
    metadata, tensors = described(target)
    assert tensors == expected["tensors"] and list(tensors) == list(expected["tensors"])
    differing = {
        key for key in metadata.keys() | expected["metadata"].keys() if metadata.get(key) != expected["metadata"].get(key)
    }
    assert differing == ({"clip.use_gelu"} if part == "vision" else set())
    assert differing <= EXPLAINED.keys()
    if not differing:
        assert hashlib.sha256(target.read_bytes()).hexdigest() == expected["sha256"]
    assert done.tensors == len(tensors) and done.nbytes == target.stat().st_size == planned_size(
        folder, part=part, file_type=kind
    )  # type: ignore[arg-type]
    header = read_header(target)
    {
        "text": check_text_model,
        "drafter": check_drafter,
        "vision": lambda h: check_projector(h, 96 if "demo" not in case else 256),
    }[part](header)


@pytest.mark.parametrize("case", [case for case in REFERENCE if not case.startswith("demo")])
def test_a_random_model_equals_the_reference(case: str, folders: dict[str, Path], tmp_path: Path) -> None:
    check_equal(folders[case.split()[0]], case, tmp_path / "out.gguf")


@pytest.mark.parametrize("case", [case for case in REFERENCE if case.startswith("demo")])
def test_the_demo_model_equals_the_reference(case: str, shared: Path, tmp_path: Path) -> None:
    folder = shared / "demo-model" / ("assistant" if case.startswith("demo-assistant") else "hf")
    check_equal(folder, case, tmp_path / "out.gguf")


def test_the_projector_says_its_activation(folders: dict[str, Path], tmp_path: Path) -> None:
    convert(folders["model"], tmp_path / "out.gguf", part="vision")
    assert read_header(tmp_path / "out.gguf").metadata["clip.use_gelu"] is True


# --- numbers ---------------------------------------------------------------------------------------------------------


def as_floats(raw: np.ndarray, source: str) -> np.ndarray:
    if source == "BF16":
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return raw.view({"F16": np.float16, "F32": np.float32}[source]).astype(np.float32)


def check_encoding(raw: np.ndarray, source: str) -> None:
    """Every target type has the bits that gguf's quants module gives; what it makes infinite is an Overflow."""
    floats = as_floats(raw, source).reshape(1, -1)
    finite = bool(np.isfinite(floats).all())
    assert encoding.is_finite(raw, source) == finite
    for target in encoding.TARGET_SIZES if finite else ():
        with np.errstate(all="ignore"):
            expected = gguf.quants.quantize(floats, gguf.GGMLQuantizationType[target]).view(np.uint8).reshape(-1)
        scales = expected.reshape(-1, 34)[:, :2].copy().reshape(-1) if target == "Q8_0" else expected
        bad = target != "F32" and not encoding.is_finite(scales, "BF16" if target == "BF16" else "F16")
        out = np.empty(encoding.encoded_size(floats.size, target), np.uint8)
        if bad:
            with pytest.raises(encoding.Overflow):
                encoding.encode(raw, source, target, out)
        else:
            assert encoding.encode(raw, source, target, out).tobytes() == expected.tobytes(), target


@pytest.mark.parametrize("source", ["BF16", "F16"])
def test_all_values_of_16_bits(source: str) -> None:
    every = np.arange(1 << 16, dtype=np.uint16)
    for block in every.reshape(-1, 1024):  # each with one sign and few exponents, so finite or not as a whole
        check_encoding(block.view(np.uint8), source)


@given(st.lists(st.floats(width=32), min_size=32, max_size=32))
@settings(max_examples=300, deadline=None)
def test_any_block_of_32_bits(values: list[float]) -> None:
    check_encoding(np.array(values, np.float32).view(np.uint8), "F32")


@given(st.integers(0, 126), st.integers(-3, 3), st.sampled_from([1.0, -1.0]), st.integers(-20, 20))
@settings(max_examples=300, deadline=None)
def test_halves_are_rounded_as_the_reference_does(whole: int, steps: int, sign: float, exponent: int) -> None:
    value = np.array([whole + 0.5], np.float32)
    value = (value.view(np.uint32) + np.uint32(steps & 0xFFFFFFFF)).view(np.float32) * np.float32(sign)
    block = np.full(32, value[0], np.float32)
    block[0] = 127
    check_encoding((block * np.float32(2.0**exponent)).view(np.uint8), "F32")


def test_more_than_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(5).standard_normal(300_000, np.float32)[:299_968]
    check_encoding(noise.view(np.uint8), "F32")
    check_encoding((noise.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8), "BF16")


@pytest.mark.parametrize("kind", ["bf16", "f16", "f32", "q8_0"])
def test_small_blocks_give_the_same_file(
    kind: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "BLOCK", 256)
    check_equal(folders["model-mixed"], f"model-mixed text {kind}", tmp_path / "out.gguf")


def test_files_without_pread(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "preadv")
    monkeypatch.delattr(os, "pwrite")
    check_equal(folders["model"], "model text q8_0", tmp_path / "out.gguf")


# --- configurations --------------------------------------------------------------------------------------------------


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Edit a JSON file."""
    values = json.loads(path.read_text())
    edit(values)
    path.write_text(json.dumps(values))


def test_both_layouts_of_the_configuration_give_the_same_file(model: Path, tmp_path: Path) -> None:
    convert(model, tmp_path / "new.gguf")

    def to_old(values: dict[str, Any]) -> None:
        layers = values["text_config"].pop("per_layer_config")
        first = next(iter(layers.values()))
        values["text_config"] |= {
            "global_head_dim": first["head_dim"],
            "num_global_key_value_heads": first["num_key_value_heads"],
        }

    change(model / "config.json", to_old)
    convert(model, tmp_path / "old.gguf")
    assert (tmp_path / "old.gguf").read_bytes() == (tmp_path / "new.gguf").read_bytes()


def test_the_released_configuration_is_understood(shared: Path) -> None:
    from localgemma.make import text, vision
    from localgemma.make.plan import Config

    values = json.loads((shared / "release" / "config.json").read_text())
    shape = text.read_shape(Config(values).section("text_config"))
    assert (shape.layers, shape.hidden, shape.head_dim_full, shape.kv_heads_full, shape.window) == (60, 5376, 512, 4, 1024)
    assert shape.rope_freqs() == [1.0] * 64 + [1e30] * 192  # as published files have it
    wanted = list(text.wanted(shape, 262_144, "model."))
    processor = json.loads((shared / "release" / "processor_config.json").read_text())["image_processor"]
    tower = list(vision.wanted(vision.read_shape(Config(values).section("vision_config"), 5376, processor)))
    assert len(wanted) + 1 == 833 and len(tower) == 356  # tensors of the published files
    assert sum(int(np.prod(one.shape)) for one in wanted) + 256 == 30_697_345_596


def test_the_commit_of_a_hub_folder_is_not_its_name(tmp_path: Path) -> None:
    folder = write_checkpoint("model", tmp_path / "models--google--gemma-4-31B-it" / "snapshots" / ("a" * 40))
    done = convert(folder, tmp_path / "out.gguf")
    metadata = read_header(tmp_path / "out.gguf").metadata
    assert done.name == metadata["general.name"] == "Gemma 4 31B It"
    assert metadata["general.organization"] == "Google" and metadata["general.license"] == "apache-2.0"


def test_what_the_folder_lacks_is_filled_in_and_said(model: Path, tmp_path: Path) -> None:
    (model / "chat_template.jinja").unlink()
    (model / "generation_config.json").unlink()
    (model / "README.md").unlink()
    done = convert(model, tmp_path / "out.gguf")
    metadata = read_header(tmp_path / "out.gguf").metadata
    template = metadata["tokenizer.chat_template"]
    assert isinstance(template, str) and hashlib.sha256(template.encode()).hexdigest().startswith("ae53464b")
    assert any("comes with localgemma" in note and "2026-07-09" in note for note in done.notes)
    assert (metadata["general.sampling.temp"], metadata["general.sampling.top_k"]) == (1.0, 64)
    assert "general.license" not in metadata


def test_an_embedding_with_spare_rows_is_cut_to_the_vocabulary(model: Path, tmp_path: Path) -> None:
    convert(model, tmp_path / "whole.gguf")
    layout = json.loads((DATA / "model" / "layout.json").read_text())
    name = "model.language_model.embed_tokens.weight"
    file = next(file for file, tensors in layout.items() if name in tensors)
    rows, columns = layout[file][name][1]

    def weights(tensor: str, dtype: str, shape: tuple[int, ...]) -> bytes:
        from checkpoints import weights

        return weights(tensor, dtype, (rows, columns) if tensor == name else shape) + (
            bytes(2 * 7 * columns) if tensor == name else b""
        )

    layout[file][name][1] = [rows + 7, columns]
    write_safetensors(model / file, layout[file], weights)
    change(model / "config.json", lambda values: values["text_config"].update(vocab_size=rows + 7))
    convert(model, tmp_path / "cut.gguf")
    assert (tmp_path / "cut.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_an_output_that_is_not_tied_to_the_embedding(model: Path, tmp_path: Path) -> None:
    layout = json.loads((DATA / "model" / "layout.json").read_text())
    shape = next(tensors for tensors in layout.values() if "model.language_model.embed_tokens.weight" in tensors)
    shape = shape["model.language_model.embed_tokens.weight"][1]
    write_safetensors(model / SHARD, layout[SHARD] | {"lm_head.weight": ("BF16", tuple(shape))})
    change(model / INDEX, lambda values: values["weight_map"].update({"lm_head.weight": SHARD}))
    convert(model, tmp_path / "out.gguf")
    assert "output.weight" in {tensor.name for tensor in read_header(tmp_path / "out.gguf").tensors}


# --- bad input -------------------------------------------------------------------------------------------------------


def edit_header(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change a safetensors header; the data stay."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    edit(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def tensors_of(path: Path) -> list[str]:
    """Names of a file's tensors in the order of their places."""
    names: list[str] = []
    edit_header(path, lambda header: names.extend(name for name in header if name != "__metadata__"))
    return names


def poke(path: Path, name: str, values: bytes) -> None:
    """Overwrite the start of a tensor's values."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    at = 8 + length + json.loads(data[8 : 8 + length])[name]["data_offsets"][0]
    path.write_bytes(data[:at] + values + data[at + len(values) :])


EMBED, NORM = "model.language_model.embed_tokens.weight", "model.language_model.norm.weight"
LAYER = "model.language_model.layers.0."
Damage = Callable[[Path], object]


def shard_of(folder: Path, tensor: str) -> Path:
    return folder / json.loads((folder / INDEX).read_text())["weight_map"][tensor]


def entry(tensor: str, **values: Any) -> Damage:
    """A damage: change the header entry of `tensor`."""
    return lambda folder: edit_header(shard_of(folder, tensor), lambda header: header[tensor].update(values))


def moved(by: int) -> Damage:
    """A damage: the second tensor of the first shard is said to be `by` bytes further on, and all that follow."""

    def edit(header: dict[str, Any]) -> None:
        for name in list(header)[2:]:
            header[name]["data_offsets"] = [offset + by for offset in header[name]["data_offsets"]]

    return lambda folder: edit_header(folder / SHARD, edit)


def in_config(section: str | None, **values: Any) -> Damage:
    """A damage: change config.json."""
    return lambda folder: change(folder / "config.json", lambda c: (c[section] if section else c).update(values))


def in_index(**values: str) -> Damage:
    return lambda folder: change(folder / INDEX, lambda index: index["weight_map"].update(values))


def in_tokenizer(edit: Callable[[dict[str, Any]], object]) -> Damage:
    return lambda folder: change(folder / "tokenizer.json", edit)


def remove(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def written(name: str, data: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(data)


def weights_in(tensor: str, *words: int) -> Damage:
    return lambda folder: poke(shard_of(folder, tensor), tensor, np.array(words, "<u2").tobytes())


def twice(folder: Path) -> None:
    """The same tensor in a second shard."""
    for file in ("model-00001-of-00006.safetensors", "model-00002-of-00006.safetensors"):
        if file != shard_of(folder, NORM).name:
            tensors = json.loads((DATA / "model" / "layout.json").read_text())[file]
            write_safetensors(folder / file, tensors | {NORM: ("BF16", (96,))})
            return


def renamed(old: str, new: str) -> Damage:
    """A damage: a tensor of another name, in shard and index."""

    def damage(folder: Path) -> None:
        path = shard_of(folder, old)
        edit_header(path, lambda header: header.update({new: header.pop(old)}))
        change(folder / INDEX, lambda index: index["weight_map"].update({new: index["weight_map"].pop(old)}))

    return damage


def pickled(folder: Path) -> None:
    for path in (*folder.glob("*.safetensors"), folder / INDEX):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02}q\x00.")


BAD: dict[str, tuple[Damage, type[LocalgemmaError], tuple[str, ...]]] = {
    "missing shard": (remove(SHARD), NotFound, (SHARD, INDEX)),
    "index of another file": (in_index(**{NORM: SHARD}), BadModelFile, (INDEX, SHARD, NORM)),
    "index of a tensor that is not there": (in_index(ghost=SHARD), BadModelFile, (INDEX, SHARD, "ghost")),
    "index without a tensor": (
        lambda f: change(f / INDEX, lambda index: index["weight_map"].pop(NORM)),
        BadModelFile,
        (INDEX, NORM),
    ),
    "index that leads elsewhere": (in_index(ghost="../x.safetensors"), BadModelFile, (INDEX, "ghost", "../x")),
    "index that names no file": (in_index(ghost=7), BadModelFile, (INDEX, "ghost")),  # type: ignore[arg-type]
    "index without map": (written(INDEX, b"{}"), BadModelFile, (INDEX, "weight_map")),
    "index that is no JSON": (written(INDEX, b"{"), BadModelFile, (INDEX, "JSON")),
    "index nested too deeply": (written(INDEX, b"[" * 100_000), BadModelFile, (INDEX, "JSON")),
    "no index": (remove(INDEX), NotFound, (INDEX, SHARD)),
    "truncated": (
        lambda f: os.truncate(f / SHARD, (f / SHARD).stat().st_size - 10),
        BadModelFile,
        (SHARD, "tensor", "10 bytes"),
    ),
    "longer": (lambda f: (f / SHARD).open("ab").write(b"12345"), BadModelFile, (SHARD, "5 bytes longer")),
    "empty shard": (written(SHARD, b""), BadModelFile, (SHARD, "cut off")),
    "shard of three bytes": (written(SHARD, b"abc"), BadModelFile, (SHARD, "cut off")),
    "header larger than the file": (written(SHARD, struct.pack("<Q", 99) + b"{}"), BadModelFile, (SHARD, "cut off")),
    "header of an impossible size": (written(SHARD, b"\xff" * 64), BadModelFile, (SHARD, "cut off")),
    "header that is no JSON": (written(SHARD, struct.pack("<Q", 2) + b"{]"), BadModelFile, (SHARD, "JSON")),
    "header that is a list": (written(SHARD, struct.pack("<Q", 2) + b"[]"), BadModelFile, (SHARD, "JSON object")),
    "header with a name twice": (
        written(SHARD, struct.pack("<Q", 17) + b'{"aa": 1,"aa": 2}'),
        BadModelFile,
        (SHARD, "'aa'", "twice"),
    ),
    "overlapping": (moved(-2), BadModelFile, (SHARD, "tensor", "overlaps")),
    "hole": (moved(2), BadModelFile, (SHARD, "tensor", "hole")),
    "same place": (entry(NORM, data_offsets=[0, 192]), BadModelFile, ("safetensors", "tensor", "overlaps")),
    "negative place": (entry(NORM, data_offsets=[-192, 0]), BadModelFile, (NORM, "place")),
    "place in fractions": (entry(NORM, data_offsets=[0, 192.0]), BadModelFile, (NORM, "place")),
    "size that does not fit": (entry(NORM, shape=[95]), BadModelFile, (NORM, "190", "192")),
    "enormous shape": (entry(NORM, shape=[1 << 59] * 8), BadModelFile, (NORM, "needs")),
    "unknown number type": (entry(NORM, dtype="F3"), BadModelFile, (NORM, "F3")),
    "wrong number type": (entry(NORM, dtype="I16"), BadModelFile, (NORM, "I16", "BF16")),
    "tensor in two shards": (twice, BadModelFile, (NORM, "also in")),
    "NaN": (
        weights_in(LAYER + "mlp.up_proj.weight", 0, 0, 0x7FC0),
        BadModelFile,
        (LAYER + "mlp.up_proj.weight", "NaN", "safetensors"),
    ),
    "infinity": (weights_in(NORM, 0x7F80), BadModelFile, (NORM, "infinite")),
    "minus infinity": (weights_in(EMBED, 0xFF80), BadModelFile, (EMBED, "infinite")),
    "another architecture": (
        in_config(None, architectures=["LlamaForCausalLM"]),
        BadModelFile,
        ("config.json", "LlamaForCausalLM"),
    ),
    "no architecture": (in_config(None, architectures=None), BadModelFile, ("config.json", "architecture")),
    "experts": (in_config("text_config", enable_moe_block=True), BadModelFile, ("enable_moe_block", "dense")),
    "embeddings per layer": (
        in_config("text_config", hidden_size_per_layer_input=256),
        BadModelFile,
        ("hidden_size_per_layer_input", "dense"),
    ),
    "another activation": (in_config("text_config", hidden_activation="silu"), BadModelFile, ("hidden_activation", "silu")),
    "shared keys and values": (in_config("text_config", num_kv_shared_layers=2), BadModelFile, ("num_kv_shared_layers",)),
    "another rope": (
        in_config("text_config", rope_parameters={"full_attention": {"rope_type": "yarn"}, "sliding_attention": {}}),
        BadModelFile,
        ("rope_type", "yarn"),
    ),
    "rope that is missing": (
        in_config("text_config", rope_parameters={"full_attention": 3}),
        BadModelFile,
        ("full_attention",),
    ),
    "layer types that do not fit": (in_config("text_config", layer_types=["full_attention"]), BadModelFile, ("layer_types",)),
    "a size that is a text": (in_config("text_config", hidden_size="big"), BadModelFile, ("hidden_size", "big")),
    "a size below one": (in_config("text_config", num_attention_heads=0), BadModelFile, ("num_attention_heads",)),
    "a million layers": (in_config("text_config", num_hidden_layers=1_000_000), BadModelFile, ("layer",)),
    "layers of full attention that differ": (
        in_config("text_config", per_layer_config={"2": {"head_dim": 32}, "4": {"head_dim": 64}}),
        BadModelFile,
        ("per_layer_config",),
    ),
    "another head size": (in_config("text_config", head_dim=32), BadModelFile, ("shape", "self_attn")),
    "text_config that is a list": (in_config(None, text_config=[]), BadModelFile, ("text_config",)),
    "quantised already": (in_config(None, quantization_config={"quant_method": "gptq"}), BadModelFile, ("quantised already",)),
    "unknown tensor": (renamed(NORM, "model.language_model.extra.weight"), BadModelFile, (NORM, "lacks")),
    "one tensor more": (
        renamed("model.vision_tower.patch_embedder.position_embedding_table", "model.novel.weight"),
        BadModelFile,
        ("model.novel.weight", "safetensors"),
    ),
    "one layer more than the configuration says": (
        in_config(
            "text_config",
            num_hidden_layers=4,
            layer_types=["sliding_attention", "sliding_attention", "full_attention", "full_attention"],
            per_layer_config={"2": {"head_dim": 32}, "3": {"head_dim": 32}},
        ),
        BadModelFile,
        ("tensor",),
    ),
    "pickle": (pickled, UsageError, ("pytorch_model.bin", "pickle")),
    "no weights": (
        lambda f: [path.unlink() for path in (*f.glob("*.safetensors"), f / INDEX)],
        NotFound,
        ("model.safetensors",),
    ),
    "no configuration": (remove("config.json"), NotFound, ("config.json",)),
    "configuration that is no JSON": (written("config.json", b"\xff\xfe"), BadModelFile, ("config.json", "JSON")),
    "no tokenizer": (remove("tokenizer.json"), NotFound, ("tokenizer.json",)),
    "no tokenizer configuration": (remove("tokenizer_config.json"), NotFound, ("tokenizer_config.json",)),
    "another kind of tokenizer": (
        in_tokenizer(lambda t: t["model"].update(type="Unigram")),
        BadModelFile,
        ("tokenizer.json", "BPE"),
    ),
    "a vocabulary with a gap": (
        in_tokenizer(lambda t: t["model"]["vocab"].pop("<0x41>")),
        BadModelFile,
        ("tokenizer.json", "number"),
    ),
    "a number given twice": (
        in_tokenizer(lambda t: t["model"]["vocab"].update(novel=7)),
        BadModelFile,
        ("tokenizer.json", "7", "novel"),
    ),
    "no merges": (in_tokenizer(lambda t: t["model"].pop("merges")), BadModelFile, ("tokenizer.json", "merges")),
    "merges of three": (
        in_tokenizer(lambda t: t["model"]["merges"].append(["a", "b", "c"])),
        BadModelFile,
        ("tokenizer.json", "pairs"),
    ),
    "a token that is no text": (
        in_tokenizer(lambda t: t["added_tokens"].append({"id": 389, "content": "\ud800"})),
        BadModelFile,
        ("tokenizer.json", "text"),
    ),
    "a vocabulary larger than the embedding": (
        in_tokenizer(lambda t: t["added_tokens"].append({"id": 389, "content": "<more>"})),
        BadModelFile,
        ("tokenizer.json", "390", "389"),
    ),
    "a special token that is not there": (in_config(None, sep_token_id=99_999), BadModelFile, ("sep_token_id", "389")),
    "a broken model card": (written("README.md", b"---\na: [\n---\n"), BadModelFile, ("README.md",)),
    "generation settings that are no JSON": (
        written("generation_config.json", b"x"),
        BadModelFile,
        ("generation_config.json",),
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_leaves_nothing(case: str, model: Path, tmp_path: Path) -> None:
    damage, error, said = BAD[case]
    damage(model)
    (tmp_path / "out").mkdir()
    with pytest.raises(error) as caught:
        convert(model, tmp_path / "out" / "x.gguf")
    for part in said:
        assert part in str(caught.value), str(caught.value)
    assert caught.value.message.endswith(".") and "\n" not in str(caught.value) and caught.value.hint
    assert caught.value.exit_code == error.exit_code in (2, 3, 5)
    assert not list((tmp_path / "out").iterdir())


VISION_BAD: dict[str, tuple[Damage, tuple[str, ...]]] = {
    "clipped": (in_config("vision_config", use_clipped_linears=True), ("use_clipped_linears",)),
    "grouped heads": (in_config("vision_config", num_key_value_heads=1), ("num_key_value_heads",)),
    "standardize without its tensors": (in_config("vision_config", standardize=True), ("model.vision_tower.std_bias",)),
    "another patch": (in_config("vision_config", patch_size=8), ("shape", "input_proj")),
    "sound too": (in_config(None, audio_config={}), ("audio_config",)),
    "a mean of two": (written("processor_config.json", b'{"image_mean": [1, 2]}'), ("image_mean",)),
    "NaN": (weights_in("model.vision_tower.patch_embedder.input_proj.weight", 0x7FFF), ("input_proj", "NaN")),
}


@pytest.mark.parametrize("case", VISION_BAD)
def test_bad_input_of_the_vision_part(case: str, model: Path, tmp_path: Path) -> None:
    damage, said = VISION_BAD[case]
    damage(model)
    with pytest.raises(BadModelFile) as caught:
        convert(model, tmp_path / "x.gguf", part="vision")
    assert all(part in str(caught.value) for part in said), str(caught.value)
    assert not (tmp_path / "x.gguf").exists()


@pytest.mark.parametrize(("kind", "word"), [("f16", 0x477F + 0x80), ("q8_0", 0x7F00)])
def test_values_too_large_for_a_type_are_refused(kind: str, word: int, model: Path, tmp_path: Path) -> None:
    name = LAYER + "mlp.up_proj.weight"
    weights_in(name, word)(model)
    with pytest.raises(BadModelFile, match=f"{name!r} has values too large for {kind.upper()}"):
        convert(model, tmp_path / "x.gguf", file_type=kind)
    convert(model, tmp_path / "y.gguf", file_type="bf16")


def test_wrong_use(folders: dict[str, Path], tmp_path: Path) -> None:
    plain = folders["model"]
    cases: list[tuple[dict[str, Any], type[LocalgemmaError], str]] = [
        ({"file_type": "q4_k_m"}, UsageError, "localgemma quantize"),
        ({"file_type": "BF16 "}, UsageError, "bf16"),
        ({"part": "audio"}, UsageError, "text, vision, drafter"),
        ({"part": "drafter"}, UsageError, "no part 'drafter'"),
        ({"folder": folders["assistant"], "part": "vision"}, UsageError, "no part 'vision'"),
        ({"folder": tmp_path / "none"}, NotFound, "config.json"),
        ({"folder": plain / "config.json"}, NotFound, "config.json"),
        ({"folder": Path("a\0b")}, DiskError, "could not be read"),
        ({"output": plain / SHARD}, UsageError, "both input and output"),
        ({"output": tmp_path}, UsageError, "is a folder"),
        ({"output": tmp_path / "none" / "x.gguf"}, DiskError, "There is no folder"),
        ({"output": tmp_path / "there.gguf"}, UsageError, "--force"),
    ]
    (tmp_path / "there.gguf").write_bytes(b"precious")
    for arguments, error, said in cases:
        call: dict[str, Any] = {"folder": plain, "output": tmp_path / "x.gguf"} | arguments
        with pytest.raises(error) as caught:
            convert(**call)
        assert said in str(caught.value), str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["there.gguf"]
    assert (tmp_path / "there.gguf").read_bytes() == b"precious"
    assert convert(plain, tmp_path / "there.gguf", replace=True).nbytes == (tmp_path / "there.gguf").stat().st_size


def test_output_under_another_name_of_the_input_is_noticed(model: Path, tmp_path: Path) -> None:
    for link in (os.link, os.symlink):
        alias = tmp_path / f"{link.__name__}.gguf"
        link(model / SHARD, alias)
        with pytest.raises(UsageError, match="both input and output"):
            convert(model, alias, replace=True)
    assert (model / SHARD).stat().st_size > 1000


# --- disks, kills, cancelling ----------------------------------------------------------------------------------------


def test_full_disk_is_told_before_anything_is_written(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1 << 20))  # type: ignore[attr-defined]
    with pytest.raises(DiskError, match="are needed"):
        convert(folders["model"], tmp_path / "x.gguf")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("call", ["pwrite", "fsync"])
def test_a_failing_disk_leaves_nothing(
    call: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(DiskError, match="No space left"):
            convert(folders["model"], tmp_path / "x.gguf")
    assert not list(tmp_path.iterdir())


def test_a_real_limit_of_file_size(folders: dict[str, Path], tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(DiskError, match=r"x\.gguf could not be written"):
            convert(folders["model"], tmp_path / "x.gguf")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_a_source_that_cannot_be_read_or_shrinks(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    for read, error, said in ((fail, DiskError, "Input/output error"), (lambda *_: 0, BadModelFile, "became shorter")):
        with monkeypatch.context() as patch:
            patch.setattr(os, "preadv", read)
            with pytest.raises(error, match=said) as caught:
                convert(folders["model"], tmp_path / "x.gguf")
        assert "safetensors" in str(caught.value) and not list(tmp_path.iterdir())


def test_progress_is_told_and_ends_at_the_end(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "BLOCK", 4096)
    heard: list[Progress] = []
    convert(folders["model"], tmp_path / "x.gguf", progress=heard.append)
    assert len(heard) > 100 and heard[-1].done == heard[-1].total and heard[-1].seconds_left == 0
    assert all(one.seconds_left is not None and one.seconds_left >= 0 for one in heard)
    assert [one.done for one in heard] == sorted(one.done for one in heard)


def test_cancelling_leaves_what_was_there(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"precious")
    cancel = CancelToken()
    with pytest.raises(Cancelled):
        convert(folders["model"], tmp_path / "x.gguf", replace=True, progress=lambda _: cancel.cancel(), cancel=cancel)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"precious"]


def test_without_unnamed_files_nothing_is_left_either(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows, macOS and some network disks: a hidden temporary name, which goes."""
    monkeypatch.setattr(whole, "_unnamed", lambda _: None)
    check_equal(folders["model"], "model text bf16", tmp_path / "x.gguf")
    before, cancel = (tmp_path / "x.gguf").read_bytes(), CancelToken()
    seen: list[str] = []

    def stop(_: Progress) -> None:
        seen.extend(path.name for path in tmp_path.iterdir())
        cancel.cancel()

    with pytest.raises(Cancelled):
        convert(folders["model"], tmp_path / "x.gguf", replace=True, progress=stop, cancel=cancel)
    assert any(name.startswith(".x.gguf.") for name in seen)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [before]


KILLS = """
import json, os, random, signal, sys, time
from pathlib import Path
from localgemma.make import writer
from localgemma.make.convert import convert
folder, target, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
writer.BLOCK = 512
convert(folder, target)
start = time.perf_counter()
convert(folder, target, replace=True)
whole, seconds = target.read_bytes(), time.perf_counter() - start
target.unlink()
chance, seen = random.Random(7), {"nothing": 0, "whole": 0, "left": []}
for _ in range(count):
    child = os.fork()
    if not child:
        convert(folder, target)
        os._exit(0)
    time.sleep(chance.uniform(0, 1.1 * seconds))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    names = [path.name for path in target.parent.iterdir()]
    if not names:
        seen["nothing"] += 1
    elif names == [target.name] and target.read_bytes() == whole:
        seen["whole"] += 1
    else:
        seen["left"].append(names)
    for name in names:
        (target.parent / name).unlink()
print(json.dumps(seen))
"""


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="elsewhere a killed process leaves a hidden .part file")
def test_kills_at_random_moments_leave_no_part_of_a_file(folders: dict[str, Path], tmp_path: Path, full: bool) -> None:
    count = 100 if full else 12
    command = [sys.executable, "-c", KILLS, folders["model"], tmp_path / "x.gguf", str(count)]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=ROOT, timeout=300, check=True)
    seen = json.loads(done.stdout)
    assert seen["left"] == [] and seen["nothing"] + seen["whole"] == count and seen["nothing"] > count / 3


SLOW = """
import sys, time
from localgemma.make import writer
check = writer.is_finite
def slow(*values):
    print("started", flush=True)
    time.sleep(0.05)
    return check(*values)
writer.is_finite, writer.BLOCK = slow, 512
from localgemma.cli.main import main
main()
"""


def test_ctrl_c_leaves_nothing(folders: dict[str, Path], tmp_path: Path) -> None:
    command = [sys.executable, "-c", SLOW, "convert", folders["model"], "-o", tmp_path / "x.gguf"]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None and process.stdout.readline().startswith("started")
    process.send_signal(signal.SIGINT)
    start = time.monotonic()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "cancelled" in said and time.monotonic() - start < 10
    assert not list(tmp_path.iterdir())


# --- memory ----------------------------------------------------------------------------------------------------------


def test_memory_does_not_grow_with_a_tensor(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tracemalloc

    wide = 400_000  # values a row: 77 MB a tensor, zeros that take no disk
    change(model / "config.json", lambda c: c["text_config"].update(intermediate_size=wide))
    layout = json.loads((DATA / "model" / "layout.json").read_text())
    for file, tensors in layout.items():
        for name, (_, shape) in tensors.items():
            if "language_model" in name and ".mlp." in name:
                shape[:] = [wide if size == 160 else size for size in shape]
        header, end = {}, 0
        for name, (dtype, shape) in tensors.items():
            size = 2 * int(np.prod(shape))
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
            end += size
        text = json.dumps(header).encode()
        (model / file).write_bytes(struct.pack("<Q", len(text)) + text)
        os.truncate(model / file, 8 + len(text) + end)
    monkeypatch.setattr(writer, "BLOCK", 1 << 20)
    cancel, written = CancelToken(), 0

    def listen(progress: Progress) -> None:
        nonlocal written
        written = int(progress.done)
        if written > 200e6:
            cancel.cancel()  # enough to see that memory is bounded

    tracemalloc.start()
    try:
        with pytest.raises(Cancelled):
            convert(model, tmp_path / "x.gguf", file_type="q8_0", progress=listen, cancel=cancel)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert written > 200e6 and peak < 48e6


# --- the command -----------------------------------------------------------------------------------------------------


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "localgemma", "convert", *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=ROOT, timeout=120)


def test_the_command(folders: dict[str, Path], tmp_path: Path) -> None:
    done = run(folders["model"], "-o", tmp_path / "text.gguf", "--type", "q8_0")
    assert done.returncode == 0 and not done.stdout
    assert "Chat template: chat_template.jinja" in done.stderr and "--part vision" in done.stderr
    assert "Q8_0" in done.stderr.splitlines()[-1]
    check_text_model(read_header(tmp_path / "text.gguf"))
    done = run(folders["model"], "-o", tmp_path / "text.gguf")
    assert done.returncode == 2 and "already there" in done.stderr and "Traceback" not in done.stderr
    done = run(folders["assistant"], "-o", tmp_path / "draft.gguf", "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    check_drafter(read_header(tmp_path / "draft.gguf"))
    assert run(tmp_path / "none", "-o", tmp_path / "x.gguf").returncode == 3
    assert run(folders["model"], "-o", tmp_path / "none" / "x.gguf").returncode == 5
    assert run(folders["model"], "-o", tmp_path / "x.gguf", "--type", "q4_k_m").returncode == 2


def test_random_damage_is_never_a_crash(model: Path, tmp_path: Path, full: bool) -> None:
    """Bytes of headers and configurations changed at random: converted, or refused with a typed error."""
    chance = random.Random(3)
    names = [SHARD, INDEX, "config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "README.md"]
    originals = {name: (model / name).read_bytes() for name in names}
    for _ in range(2000 if full else 60):
        name = chance.choice(names)
        data = bytearray(originals[name])
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(min(len(data), 1500))] = chance.choice(b'0"{}[]:,-9ax\x00\xff')
        (model / name).write_bytes(data)
        try:
            convert(model, tmp_path / "x.gguf", replace=True)
        except LocalgemmaError as error:
            assert error.exit_code in (2, 3, 5) and error.hint
        (model / name).write_bytes(originals[name])
    assert {path.name for path in tmp_path.iterdir()} <= {"x.gguf", NAMES["model"]}
