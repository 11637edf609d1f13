"""What a load takes: KV from the shape, weights from the header, buffers from dry runs; each against something independent."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from localgemma.errors import BadModelFile
from localgemma.files.header import read_header
from localgemma.fit import stub
from localgemma.fit.buffers import Table
from localgemma.fit.decide import Here
from localgemma.fit.hardware import Machine
from localgemma.fit.memory import FILE_OVERHEAD, Setup, need, split_shares, weights_estimate, weights_of
from localgemma.gemma4.shape import GEMMA_31B, from_metadata, metadata_of
from localgemma.llamacpp import log
from localgemma.llamacpp.context import Context
from localgemma.llamacpp.dryrun import DryRun
from localgemma.llamacpp.model import Model
from localgemma.options import LoadOptions

DEMO = Path(__file__).parents[1] / "localgemma" / "assets" / "demo" / "text.gguf"
GIB, MIB = 1 << 30, 1 << 20
CPU = Machine((), 64 * GIB, 64 * GIB, 5e10, 2)


def kv_of(tokens: int, kv: str, ubatch: int, sequences: int = 1) -> int:
    return sum(GEMMA_31B.kv_bytes(layer, kv, tokens, ubatch, sequences) for layer in GEMMA_31B.layers)


@pytest.mark.parametrize(
    ("tokens", "kv", "ubatch", "sequences", "gib"),
    [
        (8192, "f16", 512, 1, 1.80),
        (16384, "f16", 512, 1, 2.42),
        (32768, "f16", 512, 1, 3.67),
        (131072, "f16", 512, 1, 11.17),
        (262144, "f16", 512, 1, 21.17),
        (32768, "f16", 1280, 1, 4.26),
        (32768, "q8_0", 1280, 1, 2.26),
        (32768, "f16", 512, 4, 6.02),
    ],
)
def test_the_kv_cache_of_the_31b(tokens: int, kv: str, ubatch: int, sequences: int, gib: float) -> None:
    assert kv_of(tokens, kv, ubatch, sequences) / GIB == pytest.approx(gib, abs=0.006)


def test_the_31b_is_as_released(shared: Path) -> None:
    config = json.loads((shared / "release" / "config.json").read_text())["text_config"]
    assert [layer.sliding for layer in GEMMA_31B.layers] == [kind == "sliding_attention" for kind in config["layer_types"]]
    kinds = {True: (config["num_key_value_heads"], config["head_dim"]),
             False: (config["num_global_key_value_heads"], config["global_head_dim"])}  # fmt: skip
    assert all((layer.kv_heads, layer.head_dim) == kinds[layer.sliding] for layer in GEMMA_31B.layers)
    assert (GEMMA_31B.hidden, GEMMA_31B.feed_forward, GEMMA_31B.heads) == (
        config["hidden_size"], config["intermediate_size"], config["num_attention_heads"],
    )  # fmt: skip
    assert (GEMMA_31B.vocabulary, GEMMA_31B.window, GEMMA_31B.trained_context) == (
        config["vocab_size"], config["sliding_window"], config["max_position_embeddings"],
    )  # fmt: skip


def test_metadata_and_shape_are_each_others_inverse() -> None:
    assert from_metadata(metadata_of(GEMMA_31B), GEMMA_31B.vocabulary) == GEMMA_31B


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("block_count", 0),
        ("block_count", "many"),
        ("attention.sliding_window_pattern", (True,)),
        ("attention.head_count_kv", (4, -1)),
        ("attention.key_length", True),
        ("context_length", 1 << 40),
        ("attention.sliding_window", None),
    ],
)
def test_impossible_metadata_is_refused(key: str, value: object) -> None:
    with pytest.raises(BadModelFile):
        from_metadata(metadata_of(GEMMA_31B) | {f"gemma4.{key}": value}, 1000)


def test_weights_come_from_the_tensor_table() -> None:
    header = read_header(DEMO)
    weights = weights_of(header)
    loose = sum(t.nbytes for t in header.tensors if not t.name.startswith("blk."))
    assert weights.embedding + sum(weights.layers) == sum(t.nbytes for t in header.tensors) - loose + weights.embedding
    assert weights.exact and len(weights.layers) == 12 and weights.output == weights.embedding


@pytest.mark.parametrize(
    ("quant", "kind", "size"),
    [("Q8_0", 8, 32_635_677_632), ("Q6_K", 14, 25_201_484_800), ("Q4_0", 2, 17_651_001_568)],
)
def test_estimates_share_out_a_published_file(quant: str, kind: int, size: int) -> None:
    """Pure recipes can be counted tensor by tensor: the estimate must agree layer by layer."""
    weights = weights_estimate(size, quant)
    assert weights.embedding + sum(weights.layers) + FILE_OVERHEAD == pytest.approx(size, abs=200)
    true = [0] * 60
    for tensor in stub.tensors_of(GEMMA_31B, kind):
        if tensor.name.startswith("blk."):
            true[int(tensor.name.split(".")[1])] += tensor.nbytes
    assert weights.layers == pytest.approx(true, rel=0.005)


@pytest.mark.live
@pytest.mark.parametrize("kv", ["f16", "q8_0"])
@pytest.mark.parametrize(("tokens", "ubatch"), [(512, 256), (4096, 512), (8192, 1120)])
def test_a_dry_run_tells_what_a_load_takes(kv: str, tokens: int, ubatch: int) -> None:
    header = read_header(DEMO)
    weights = weights_of(header)
    options = LoadOptions(kv=kv, ubatch=ubatch, image_tokens=0, gpu_layers=0, ctx=tokens, mmap=False)  # type: ignore[arg-type]
    metadata, tensors = stub.for_weights(weights)
    with DryRun(metadata, tensors, weights.shape.vocabulary) as run:
        dry = run.measure(options, tokens)
    with log.collected() as lines:
        model = Model(DEMO, options)
        context = Context(model, options, tokens)
    context.close()
    model.close()

    def told(what: str) -> float:
        return sum(float(line.split("=")[1].split()[0]) for line in lines if what in line and "buffer size" in line)

    assert sum(dry.compute.values()) / MIB == pytest.approx(told("compute"), abs=0.02)
    assert dry.kv / MIB == pytest.approx(told("KV"), abs=0.05)
    shape = sum(weights.shape.kv_bytes(layer, kv, tokens, ubatch) for layer in weights.shape.layers)
    assert shape == pytest.approx(dry.kv, abs=0.02 * MIB)
    if dry.weights:
        assert sum(dry.weights.values()) / MIB == pytest.approx(told("model"), abs=0.05)


@pytest.mark.live
def test_the_table_is_what_dry_runs_of_the_31b_say() -> None:
    """On a CPU the table must not be below the dry run, nor more than 2 % or 4 MiB above it."""
    weights = weights_estimate(17_651_001_568, "Q4_0")
    with Here(CPU) as here:
        for tokens, kv, ubatch in [
            (8192, "f16", 16), (8192, "f16", 128), (8192, "f16", 256), (8192, "f16", 512), (32768, "q8_0", 1120),
            (131072, "f16", 2048), (262144, "f16", 512),
        ]:  # fmt: skip
            options = LoadOptions(kv=kv, ubatch=ubatch, image_tokens=0, ctx=tokens)  # type: ignore[arg-type]
            setup = Setup(weights, options, tokens, ())
            true, table = here.compute.settle(setup).host, Table()(replace(setup, options=replace(options, kv="f16"))).host
            assert true - 2 * MIB <= table <= max(true * 1.02, true + 4 * MIB), (tokens, kv, ubatch)


@given(st.lists(st.integers(0, 61), min_size=2, max_size=4).filter(any))
def test_a_split_puts_each_layer_where_it_was_planned(counts: list[int]) -> None:
    """llama.cpp's rule, in its own float arithmetic: the first device whose running share is above layer / layers."""
    shares = split_shares(counts)
    sums = np.cumsum(np.array(shares, np.float32), dtype=np.float32)
    borders = sums / sums[-1]
    total = sum(counts)
    got = [int(np.searchsorted(borders, np.float32(i) / np.float32(total), side="right")) for i in range(total)]
    ends = list(accumulate(counts))
    assert got == [next(k for k, end in enumerate(ends) if i < end) for i in range(total)]


def test_every_layer_is_somewhere_once() -> None:
    weights = weights_estimate(17_651_001_568, "Q4_0")
    options = LoadOptions(ctx=8192, image_tokens=0)
    whole = sum(weights.layers) + weights.embedding
    for placement in [(), (0,), (1,), (30,), (61,), (20, 41), (10, 20, 5)]:
        taken = need(Setup(weights, options, 8192, placement), Table(("CUDA",) * 3))
        held = [item for gpu in (*taken.gpus, taken.host) for item in gpu if item.what == "weights"]
        output = weights.output if sum(placement) else 0
        assert sum(item.size for item in held) == whole + output
        kv = sum(item.size for gpu in (*taken.gpus, taken.host) for item in gpu if item.what == "KV cache")
        assert kv == kv_of(8192, "f16", 512)


class Amx(Table):
    """A processor that copies Q8_0 into a layout an eighth larger, and Q6_K into one of its size."""

    def repacked(self, kind: int) -> float:
        return {8: 38 / 34, 14: 1.0}.get(kind, 0.0)


def test_copies_in_another_layout_are_counted_where_no_gpu_is_used() -> None:
    weights = weights_estimate(32_635_677_632, "Q8_0")  # everything Q8_0, the tied output too
    weights = replace(weights, output_type=8)
    layers = sum(weights.layers)

    def host(compute: Table, placement: tuple[int, ...], mmap: bool = True) -> tuple[int, int]:
        options = LoadOptions(ctx=8192, image_tokens=0, mmap=mmap)
        taken = need(Setup(weights, options, 8192, placement), compute)
        return next(item.size for item in taken.host if item.what == "weights"), taken.droppable

    assert host(Table(), ()) == (layers + weights.embedding, 0)
    larger = pytest.approx((layers + weights.output) * 38 / 34 + weights.embedding, abs=2)
    assert host(Amx(), ()) == (larger, layers)  # beside it, the mapped file's layers until the memory is needed
    assert host(Amx(), (), mmap=False) == (larger, 0)
    assert host(Amx(("CUDA",)), (1,)) == (layers + weights.embedding, 0)


@pytest.mark.live
def test_llama_cpp_says_what_it_copies() -> None:
    """What the dry runs of one type say, against the buffers of a real load."""
    weights = weights_of(read_header(DEMO))
    options = LoadOptions(ctx=512, image_tokens=0, gpu_layers=0)
    with log.collected() as lines:
        Model(DEMO, options).close()
    found = [re.search(r"(\S+) model buffer size = +([\d.]+) MiB", line) for line in lines]
    copied = sum(float(each[2]) * MIB for each in found if each and not each[1].startswith("CPU_Mapped"))
    with Here(CPU) as here:
        ratios = {kind: here.compute.repacked(kind) for kind in (*dict(weights.types), weights.output_type)}
    layers = sum(size * ratios[kind] for kind, size in weights.types)
    assert layers + weights.output * ratios[weights.output_type] == pytest.approx(copied, abs=0.05 * MIB)
    assert ratios[0] == 0
