"""The picture projector: vision tower and the projection into the language model, as llama.cpp's `gemma4v` reads them.

llama.cpp's own converter leaves out `clip.use_gelu`, and llama.cpp then runs the tower with quick GELU; it is written here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from localgemma.errors import BadModelFile
from localgemma.make.plan import UNSUPPORTED, Config, Entry, Wanted

ARCHITECTURE = "clip"
HF_ARCHITECTURES = ("Gemma4ForConditionalGeneration",)
PREFIXES = ("model.vision_tower.", "model.embed_vision.")
IMAGE_SIZE = 224  # llama.cpp wants a value and uses none: Gemma 4 takes pictures of any size
_NORMS = {
    "input_layernorm": "ln1",
    "post_attention_layernorm": "attn_post_norm",
    "pre_feedforward_layernorm": "ln2",
    "post_feedforward_layernorm": "ffn_post_norm",
}


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of the vision tower; `projection` is the language model's width, `positions` the rows of each position table."""

    layers: int
    hidden: int
    feed_forward: int
    heads: int
    head_dim: int
    patch: int
    positions: int
    projection: int
    standardize: bool
    epsilon: float
    mean: tuple[float, ...]
    deviation: tuple[float, ...]


def read_shape(config: Config, projection: int, processor: Mapping[str, Any]) -> Shape:
    """The shape that a vision section describes; `processor` holds the picture processor's settings, if any."""
    config.must_be("use_clipped_linears", None, False)
    config.must_be("attention_bias", None, False)
    config.must_be("hidden_activation", None, "gelu_pytorch_tanh")
    config.must_be("pooling_kernel_size", None, 3)  # llama.cpp's default, and no key is written for it
    heads = config.whole("num_attention_heads")
    config.must_be("num_key_value_heads", None, heads)
    layers = config.whole("num_hidden_layers")
    if layers > 1024:
        raise config.bad("num_hidden_layers", "at most 1,024")
    return Shape(
        layers=layers,
        hidden=config.whole("hidden_size"),
        feed_forward=config.whole("intermediate_size"),
        heads=heads,
        head_dim=config.whole("head_dim"),
        patch=config.whole("patch_size"),
        positions=config.whole("position_embedding_size"),
        projection=projection,
        standardize=bool(config.get("standardize")),
        epsilon=config.number("rms_norm_eps", 1e-6),
        mean=_triple(processor, "image_mean", 0.0),
        deviation=_triple(processor, "image_std", 1.0),
    )


def _triple(processor: Mapping[str, Any], key: str, default: float) -> tuple[float, ...]:
    """Three numbers, always as floats: llama.cpp refuses a file where they are whole numbers."""
    values = processor.get(key)
    if values is None:
        return (default,) * 3
    if not isinstance(values, list) or len(values) != 3 or not all(type(value) in (int, float) for value in values):
        raise BadModelFile(f"processor_config.json has {key} = {str(values)[:64]}, where 3 numbers are needed.", UNSUPPORTED)
    return tuple(float(value) for value in values)


def wanted(shape: Shape) -> Iterator[Wanted]:
    """Every tensor, as the checkpoint has it."""
    tower, hidden = PREFIXES[0], shape.hidden
    yield Wanted("model.embed_vision.embedding_projection.weight", "mm.input_projection.weight", (shape.projection, hidden))
    embedder = f"{tower}patch_embedder."
    pixels = 3 * shape.patch**2
    yield Wanted(f"{embedder}input_proj.weight", "v.patch_embd.weight", (hidden, pixels), "patch", patch=shape.patch)
    table = (2, shape.positions, hidden)
    yield Wanted(f"{embedder}position_embedding_table", "v.position_embd.weight", table, "F32")
    if shape.standardize:
        yield Wanted(f"{tower}std_bias", "v.std_bias", (hidden,), "F32")
        yield Wanted(f"{tower}std_scale", "v.std_scale", (hidden,), "F32")
    for layer in range(shape.layers):
        yield from _layer(shape, f"{tower}encoder.layers.{layer}.", f"v.blk.{layer}.")


def _layer(shape: Shape, source: str, name: str) -> Iterator[Wanted]:
    hidden, wide, attention = shape.hidden, shape.feed_forward, shape.heads * shape.head_dim
    for module, short in _NORMS.items():
        yield Wanted(f"{source}{module}.weight", f"{name}{short}.weight", (hidden,), "F32")
    for which in ("q", "k"):
        yield Wanted(f"{source}self_attn.{which}_norm.weight", f"{name}attn_{which}_norm.weight", (shape.head_dim,), "F32")
    for which in ("q", "k", "v"):
        yield Wanted(f"{source}self_attn.{which}_proj.linear.weight", f"{name}attn_{which}.weight", (attention, hidden))
    yield Wanted(f"{source}self_attn.o_proj.linear.weight", f"{name}attn_out.weight", (hidden, attention))
    yield Wanted(f"{source}mlp.gate_proj.linear.weight", f"{name}ffn_gate.weight", (wide, hidden))
    yield Wanted(f"{source}mlp.up_proj.linear.weight", f"{name}ffn_up.weight", (wide, hidden))
    yield Wanted(f"{source}mlp.down_proj.linear.weight", f"{name}ffn_down.weight", (hidden, wide))


def metadata(shape: Shape, file_type: int) -> Iterator[Entry]:
    """What llama.cpp reads of the shape."""
    yield "general.file_type", "u32", file_type
    yield "clip.has_vision_encoder", "bool", True
    yield "clip.vision.projection_dim", "u32", shape.projection
    yield "clip.vision.image_size", "u32", IMAGE_SIZE
    yield "clip.vision.patch_size", "u32", shape.patch
    yield "clip.vision.embedding_length", "u32", shape.hidden
    yield "clip.vision.feed_forward_length", "u32", shape.feed_forward
    yield "clip.vision.block_count", "u32", shape.layers
    yield "clip.vision.attention.head_count", "u32", shape.heads
    yield "clip.vision.image_mean", "f32[]", list(shape.mean)
    yield "clip.vision.image_std", "f32[]", list(shape.deviation)
    yield "clip.vision.projector_type", "str", "gemma4v"
    yield "clip.vision.attention.layer_norm_epsilon", "f32", shape.epsilon
    yield "clip.use_gelu", "bool", True
