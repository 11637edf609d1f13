"""The language model: its shape from the configuration, its tensors and its metadata.

Names and metadata are those that llama.cpp's `gemma4` architecture reads (llama.cpp src/models/gemma4.cpp).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from localgemma.errors import BadModelFile
from localgemma.make.plan import UNSUPPORTED, Config, Entry, Wanted

ARCHITECTURE = "gemma4"
HF_ARCHITECTURES = ("Gemma4ForConditionalGeneration", "Gemma4ForCausalLM")
ROPE_FREQS = "rope_freqs.weight"
MAX_LAYERS = 1024
_SLIDING, _FULL = "sliding_attention", "full_attention"
# The defaults of a configuration that leaves them out: transformers Gemma4TextConfig.
_ROPE = {
    _SLIDING: {"rope_type": "default", "rope_theta": 10_000.0},
    _FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0},
}
_NORMS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a Gemma 4 decoder; `_full` is for layers of full attention, `sliding` says which layers are not.

    `kv_heads_full` is None where all layers have the same number. `rotated` dimensions of a full head carry positions.
    `shared` layers, the last ones, use the keys and values of others.
    """

    sliding: tuple[bool, ...]
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    kv_heads_full: int | None
    head_dim: int
    head_dim_full: int
    k_is_v: bool
    shared: int
    vocabulary: int
    context: int
    window: int
    epsilon: float
    theta: float
    theta_sliding: float
    rotated: int
    softcap: float | None

    @property
    def layers(self) -> int:
        """Number of layers."""
        return len(self.sliding)

    def rope_freqs(self) -> list[float]:
        """Divisors of the frequencies of full layers: 1 where a pair of dimensions turns, 1e30 where it stays."""
        pairs = self.rotated // 2
        return [1.0] * pairs + [1e30] * (self.head_dim_full // 2 - pairs)


def read_shape(config: Config, *, drafter: bool = False) -> Shape:
    """The shape that the text section of a config.json describes; BadModelFile for what is missing or not supported."""
    _check_kind(config)
    sliding = _layer_types(config)
    head_dim_full, kv_heads_full = _full_attention(config, sliding)
    rope = Config(config.get("rope_parameters") or _ROPE, f"rope_parameters of {config.where}")
    full, local = rope.section(_FULL), rope.section(_SLIDING)
    full.must_be("rope_type", "proportional")
    local.must_be("rope_type", "default", None)
    local.must_be("partial_rotary_factor", None, 1.0, 1)
    shared = config.whole("num_kv_shared_layers", 0, least=0)
    if drafter:
        shared = shared or len(sliding)
    if shared != (len(sliding) if drafter else 0):
        raise config.bad("num_kv_shared_layers", f"{len(sliding) if drafter else 0}, as in the dense models,")
    softcap = config.get("final_logit_softcapping")
    return Shape(
        sliding=sliding,
        hidden=config.whole("hidden_size"),
        feed_forward=config.whole("intermediate_size"),
        heads=config.whole("num_attention_heads"),
        kv_heads=config.whole("num_key_value_heads"),
        kv_heads_full=kv_heads_full,
        head_dim=config.whole("head_dim"),
        head_dim_full=head_dim_full,
        k_is_v=bool(config.get("attention_k_eq_v")),
        shared=shared,
        vocabulary=config.whole("vocab_size"),
        context=config.whole("max_position_embeddings"),
        window=config.whole("sliding_window"),
        epsilon=config.number("rms_norm_eps", 1e-6),
        theta=full.number("rope_theta"),
        theta_sliding=local.number("rope_theta"),
        rotated=2 * int(head_dim_full * full.number("partial_rotary_factor", 1.0) / 2),
        softcap=None if softcap is None else config.number("final_logit_softcapping"),
    )


def _check_kind(config: Config) -> None:
    """Refuse what this converter does not know: experts, embeddings per layer, other activations."""
    config.must_be("enable_moe_block", None, False)
    config.must_be("num_experts", None, 0)
    config.must_be("use_double_wide_mlp", None, False)
    config.must_be("attention_bias", None, False)
    config.must_be("hidden_size_per_layer_input", 0)
    config.must_be("hidden_activation", None, "gelu_pytorch_tanh")
    config.must_be("use_bidirectional_attention", None, "vision")


def _layer_types(config: Config) -> tuple[bool, ...]:
    """Which layers have sliding attention."""
    kinds, count = config.get("layer_types"), config.whole("num_hidden_layers")
    if kinds is None and count <= MAX_LAYERS:  # five sliding layers, then a full one, and the last one is full
        kinds = [_FULL if (layer + 1) % 6 == 0 or layer == count - 1 else _SLIDING for layer in range(count)]
    if (
        not isinstance(kinds, list)
        or len(kinds) != count
        or count > MAX_LAYERS
        or not set(map(str, kinds)) <= {_SLIDING, _FULL}
    ):
        raise BadModelFile(f"{config.where} has layer_types that do not fit its {count:,} layers.", UNSUPPORTED)
    return tuple(kind == _SLIDING for kind in kinds)


def _full_attention(config: Config, sliding: tuple[bool, ...]) -> tuple[int, int | None]:
    """Head size and KV heads of full layers, from either layout: `per_layer_config`, or `global_head_dim` beside it."""
    layers = config.get("per_layer_config")
    if layers is None:
        kv_heads = config.get("num_global_key_value_heads") if config.get("attention_k_eq_v") else None
        head_dim = config.whole("global_head_dim", 512)
        return head_dim, None if kv_heads is None else config.whole("num_global_key_value_heads")
    where = f"per_layer_config of {config.where}"
    entries = {str(int(key)): value for key, value in Config(layers, where).values.items() if str(key).isdecimal()}
    if len(entries) != len(layers) or {int(key) for key in entries} != {i for i, local in enumerate(sliding) if not local}:
        raise BadModelFile(f"{where} does not describe exactly the layers of full attention.", UNSUPPORTED)
    first: dict[str, Any] = next(iter(entries.values()), {})
    if (
        not isinstance(first, dict)
        or not set(first) <= {"head_dim", "num_key_value_heads"}
        or any(e != first for e in entries.values())
    ):
        raise BadModelFile(f"{where} gives layers of full attention different shapes.", UNSUPPORTED)
    entry = Config(first, where)
    kv_heads = entry.get("num_key_value_heads")
    head_dim = entry.whole("head_dim", config.whole("head_dim"))
    return head_dim, None if kv_heads is None else entry.whole("num_key_value_heads")


def wanted(shape: Shape, tokens: int, prefix: str) -> Iterator[Wanted]:
    """Every tensor, as the checkpoint has it under `prefix`; `tokens` is the number of tokens in the vocabulary."""
    if tokens > shape.vocabulary:
        raise BadModelFile(
            f"tokenizer.json has {tokens:,} tokens, and the model only {shape.vocabulary:,} (vocab_size of config.json).",
            "Use the tokenizer that came with the model.",
        )
    rows = tokens if tokens < shape.vocabulary else None
    yield Wanted(f"{prefix}embed_tokens.weight", "token_embd.weight", (shape.vocabulary, shape.hidden), rows=rows)
    yield Wanted(f"{prefix}norm.weight", "output_norm.weight", (shape.hidden,), "F32")
    for layer in range(shape.layers):
        yield from _layer(shape, layer, f"{prefix}layers.{layer}.", f"blk.{layer}.")


def _layer(shape: Shape, layer: int, source: str, name: str) -> Iterator[Wanted]:
    full = not shape.sliding[layer]
    size = shape.head_dim_full if full else shape.head_dim
    kv_heads = shape.kv_heads_full or shape.kv_heads if full else shape.kv_heads
    hidden, wide = shape.hidden, shape.feed_forward

    def one(module: str, short: str, *dimensions: int) -> Wanted:
        keep = "F32" if len(dimensions) == 1 else None
        return Wanted(f"{source}{module}.weight", f"{name}{short}.weight", dimensions, keep)

    yield from (one(module, short, hidden) for module, short in _NORMS.items())
    yield Wanted(f"{source}layer_scalar", f"{name}layer_output_scale.weight", (1,), "F32")
    yield one("mlp.gate_proj", "ffn_gate", wide, hidden)
    yield one("mlp.up_proj", "ffn_up", wide, hidden)
    yield one("mlp.down_proj", "ffn_down", hidden, wide)
    yield one("self_attn.q_proj", "attn_q", shape.heads * size, hidden)
    yield one("self_attn.o_proj", "attn_output", hidden, shape.heads * size)
    yield one("self_attn.q_norm", "attn_q_norm", size)
    if layer < shape.layers - shape.shared:
        yield one("self_attn.k_proj", "attn_k", kv_heads * size, hidden)
        yield one("self_attn.k_norm", "attn_k_norm", size)
        if not (full and shape.k_is_v):
            yield one("self_attn.v_proj", "attn_v", kv_heads * size, hidden)


def metadata(shape: Shape, architecture: str, file_type: int) -> Iterator[Entry]:
    """What llama.cpp reads of the shape; in the order of llama.cpp's converter, so that whole files compare equal."""
    a = architecture
    kv: Entry = (f"{a}.attention.head_count_kv", "u32", shape.kv_heads)
    if shape.kv_heads_full is not None:
        kv = (kv[0], "i32[]", [shape.kv_heads if local else shape.kv_heads_full for local in shape.sliding])
    yield f"{a}.block_count", "u32", shape.layers
    yield f"{a}.context_length", "u32", shape.context
    yield f"{a}.embedding_length", "u32", shape.hidden
    yield f"{a}.feed_forward_length", "u32", shape.feed_forward
    yield f"{a}.attention.head_count", "u32", shape.heads
    yield kv
    yield f"{a}.rope.freq_base", "f32", shape.theta
    yield f"{a}.rope.freq_base_swa", "f32", shape.theta_sliding
    yield f"{a}.attention.layer_norm_rms_epsilon", "f32", shape.epsilon
    yield f"{a}.attention.key_length", "u32", shape.head_dim_full
    yield f"{a}.attention.value_length", "u32", shape.head_dim_full
    yield "general.file_type", "u32", file_type
    if shape.softcap is not None:
        yield f"{a}.final_logit_softcapping", "f32", shape.softcap
    yield f"{a}.attention.sliding_window", "u32", shape.window
    yield f"{a}.attention.shared_kv_layers", "u32", shape.shared
    yield f"{a}.embedding_length_per_layer_input", "u32", 0
    yield f"{a}.attention.sliding_window_pattern", "bool[]", list(shape.sliding)
    yield f"{a}.attention.key_length_swa", "u32", shape.head_dim
    yield f"{a}.attention.value_length_swa", "u32", shape.head_dim
    yield f"{a}.rope.dimension_count", "u32", shape.head_dim_full
    yield f"{a}.rope.dimension_count_swa", "u32", shape.head_dim
