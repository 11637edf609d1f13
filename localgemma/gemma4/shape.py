"""Layers and KV geometry of Gemma 4: what a context costs, from the header's metadata or from the released configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil

from localgemma.errors import BadModelFile

PAD = 256  # cells; llama.cpp pads the context and the sliding cache to it (llama-context.cpp, llama-kv-cache-iswa.cpp)
KV_BLOCKS: dict[str, tuple[int, int]] = {  # values, bytes of a block; ggml-common.h
    "f32": (1, 4), "f16": (1, 2), "bf16": (1, 2), "q8_0": (32, 34), "q5_1": (32, 24), "q5_0": (32, 22),
    "q4_1": (32, 20), "q4_0": (32, 18),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer: whether its attention slides, its KV heads and their size. No heads: it reads another layer's KV."""

    sliding: bool
    kv_heads: int
    head_dim: int

    @property
    def kv_values(self) -> int:
        """Values a cell of the cache has here, K and V together (V is stored even where it equals K)."""
        return 2 * self.kv_heads * self.head_dim


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a text model; `window` is in tokens."""

    layers: tuple[Layer, ...]
    hidden: int
    feed_forward: int
    heads: int
    vocabulary: int
    window: int
    trained_context: int

    def cells(self, layer: Layer, tokens: int, ubatch: int, sequences: int = 1) -> int:
        """Cells that this layer's cache has for a context of `tokens` (llama-kv-cache-iswa.cpp, unified, no full-size SWA)."""
        context = padded(tokens)
        return padded(min(context, self.window * sequences + ubatch)) if layer.sliding else context

    def kv_bytes(self, layer: Layer, kv: str, tokens: int, ubatch: int, sequences: int = 1) -> int:
        """Bytes of this layer's K and V."""
        values, size = KV_BLOCKS[kv]
        return self.cells(layer, tokens, ubatch, sequences) * layer.kv_values * size // values

    def checkpoint_bytes(self, kv: str) -> int:
        """Bytes of a checkpoint: the sliding layers' last `window` positions."""
        values, size = KV_BLOCKS[kv]
        return sum(self.window * layer.kv_values * size // values for layer in self.layers if layer.sliding)

    def kv_read_layer(self, layer: Layer, kv: str, depth: int) -> int:
        """Bytes of this layer's cache that one token's attention reads after `depth` tokens."""
        values, size = KV_BLOCKS[kv]
        return (min(depth, self.window) if layer.sliding else depth) * layer.kv_values * size // values


def padded(tokens: int) -> int:
    """Tokens rounded up as llama.cpp does."""
    return -(-tokens // PAD) * PAD


def from_metadata(metadata: Mapping[str, object], vocabulary: int) -> Shape:
    """The shape that a gemma4 GGUF's metadata describes; BadModelFile where a key is missing or impossible."""

    def number(key: str) -> int:
        value = metadata.get(f"gemma4.{key}")
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 31:
            raise BadModelFile(f"The model file is damaged: its gemma4.{key} is {value!r}.")
        return value

    count = number("block_count")
    window_of = metadata.get("gemma4.attention.sliding_window_pattern")
    if not isinstance(window_of, tuple) or len(window_of) != count:
        raise BadModelFile("The model file is damaged: it does not say which layers slide.")
    heads = metadata.get("gemma4.attention.head_count_kv")
    given = heads if isinstance(heads, tuple) else (heads,) * count
    per_layer = [item for item in given if isinstance(item, int) and 0 <= item < 1 << 16]
    if len(per_layer) != count:
        raise BadModelFile("The model file is damaged: its KV heads are not one number a layer.")
    shared = metadata.get("gemma4.attention.shared_kv_layers")
    own = count - (shared if isinstance(shared, int) else 0)
    full_dim, sliding_dim = number("attention.key_length"), number("attention.key_length_swa")
    query = metadata.get("gemma4.attention.head_count")
    return Shape(
        layers=tuple(
            Layer(bool(slides), per_layer[i] if i < own else 0, sliding_dim if slides else full_dim)
            for i, slides in enumerate(window_of)
        ),
        hidden=number("embedding_length"),
        feed_forward=_first(metadata.get("gemma4.feed_forward_length")),
        heads=_first(query),
        vocabulary=vocabulary,
        window=number("attention.sliding_window"),
        trained_context=number("context_length"),
    )


def _first(value: object) -> int:
    if isinstance(value, tuple) and value:
        value = max(item for item in value if isinstance(item, int))
    return value if isinstance(value, int) else 0


# google/gemma-4-31B-it, config.json: 60 layers, five sliding and one full, in turn.
GEMMA_31B = Shape(
    layers=tuple(Layer(True, 16, 256) if i % 6 != 5 else Layer(False, 4, 512) for i in range(60)),
    hidden=5376,
    feed_forward=21504,
    heads=32,
    vocabulary=262_144,
    window=1024,
    trained_context=262_144,
)
# google/gemma-4-31B-it, config.json vision_config: values in the projector, of which BF16 makes 1,200,703,680 bytes.
PROJECTOR_31B_BYTES = 1_200_726_368


def matrices(shape: Shape, index: int) -> Iterator[tuple[str, int, int]]:
    """(role, columns, rows) of a layer's matrices; full layers use K as V (attention_k_eq_v)."""
    layer = shape.layers[index]
    query, key = shape.heads * layer.head_dim, layer.kv_heads * layer.head_dim
    yield "attn_q", shape.hidden, query
    yield "attn_k", shape.hidden, key
    if layer.sliding:
        yield "attn_v", shape.hidden, key
    yield "attn_output", query, shape.hidden
    yield "ffn_gate", shape.hidden, shape.feed_forward
    yield "ffn_up", shape.hidden, shape.feed_forward
    yield "ffn_down", shape.feed_forward, shape.hidden


def vectors(shape: Shape, index: int) -> Iterator[tuple[str, int]]:
    """(role, length) of a layer's F32 vectors."""
    dim = shape.layers[index].head_dim
    for role in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"):
        yield role, shape.hidden
    yield "attn_q_norm", dim
    yield "attn_k_norm", dim
    yield "layer_output_scale", 1


def metadata_of(shape: Shape) -> dict[str, object]:
    """The gemma4 keys that llama.cpp needs to lay this shape out."""
    full = next((layer for layer in shape.layers if not layer.sliding), shape.layers[0])
    sliding = next((layer for layer in shape.layers if layer.sliding), shape.layers[0])
    keys: dict[str, object] = {
        "context_length": shape.trained_context, "embedding_length": shape.hidden, "block_count": len(shape.layers),
        "feed_forward_length": shape.feed_forward, "embedding_length_per_layer_input": 0, "final_logit_softcapping": 30.0,
        "attention.head_count": shape.heads, "attention.head_count_kv": tuple(layer.kv_heads for layer in shape.layers),
        "attention.layer_norm_rms_epsilon": 1e-6, "attention.shared_kv_layers": 0,
        "attention.key_length": full.head_dim, "attention.value_length": full.head_dim,
        "attention.key_length_swa": sliding.head_dim, "attention.value_length_swa": sliding.head_dim,
        "attention.sliding_window": shape.window,
        "attention.sliding_window_pattern": tuple(layer.sliding for layer in shape.layers),
        "rope.dimension_count": full.head_dim, "rope.dimension_count_swa": sliding.head_dim,
        "rope.freq_base": 1e6, "rope.freq_base_swa": 1e4,
    }  # fmt: skip
    return {"general.architecture": "gemma4", **{f"gemma4.{key}": value for key, value in keys.items()}}


def layer_values(shape: Shape, index: int) -> int:
    """Weights of a layer."""
    return sum(columns * rows for _, columns, rows in matrices(shape, index)) + ceil(sum(n for _, n in vectors(shape, index)))
