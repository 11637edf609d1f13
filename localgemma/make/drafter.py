"""The drafter (multi-token prediction): a small decoder that reads the language model's keys, values and last state."""

from __future__ import annotations

from collections.abc import Iterator

from localgemma.make import text
from localgemma.make.plan import Entry, Wanted

ARCHITECTURE = "gemma4-assistant"
HF_ARCHITECTURES = ("Gemma4AssistantForCausalLM",)
SKIPPED = "masked_embedding."  # a clustered vocabulary of the smallest models, which llama.cpp does without


def wanted(shape: text.Shape, backbone: int, tokens: int) -> Iterator[Wanted]:
    """Every tensor, as the checkpoint has it; `backbone` is the width of the language model it drafts for."""
    yield from text.wanted(shape, tokens, "model.")
    yield Wanted("pre_projection.weight", "nextn.pre_projection.weight", (shape.hidden, 2 * backbone))
    yield Wanted("post_projection.weight", "nextn.post_projection.weight", (backbone, shape.hidden))


def metadata(shape: text.Shape, backbone: int, file_type: int) -> Iterator[Entry]:
    """What llama.cpp reads of the shape."""
    yield from text.metadata(shape, ARCHITECTURE, file_type)
    yield f"{ARCHITECTURE}.embedding_length_out", "u32", backbone
    yield f"{ARCHITECTURE}.nextn_predict_layers", "u32", shape.layers
