"""What a header says about a model file, for people: tensors by type, bits per weight, quantisation, template."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import chain
from math import prod

from localgemma.files.header import Header, Kind, kind_of

# Names of tensor types and of whole-file quantisations by their ids; source: gguf.GGMLQuantizationType, gguf.LlamaFileType.
TYPES: dict[int, str] = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K",
    13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S",
    22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 30: "BF16", 34: "TQ1_0",
    35: "TQ2_0", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0",
}  # fmt: skip
QUANTS: dict[int, str] = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M",
    30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4", 39: "NVFP4", 40: "Q1_0",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TypeShare:
    """Tensors of one type: how many, and their `values` and bytes together."""

    name: str
    tensors: int
    values: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Facts:
    """A header's facts; `bits_per_weight` counts the tensors alone, `template_sha256` is that of the chat template."""

    role: Kind
    architecture: str
    name: str
    quant: str
    parameters: int
    bits_per_weight: float
    types: tuple[TypeShare, ...]
    context: int | None
    template_sha256: str | None
    file_size: int


def facts_of(header: Header, *more: Header) -> Facts:
    """The facts of a file, or of a model in several parts: the first says what it is, all have tensors."""
    count: dict[int, list[int]] = {}
    for tensor in chain(header.tensors, *(part.tensors for part in more)):
        share = count.setdefault(tensor.type_id, [0, 0, 0])
        for place, value in enumerate((1, prod(tensor.shape), tensor.nbytes)):
            share[place] += value
    types = [TypeShare(TYPES.get(kind, str(kind)), *share) for kind, share in count.items()]
    types.sort(key=lambda share: -share.nbytes)
    values, nbytes = sum(share.values for share in types), sum(share.nbytes for share in types)
    architecture, template = header.text("general.architecture"), header.text("tokenizer.chat_template")
    return Facts(
        role=kind_of(header),
        architecture=architecture,
        name=header.text("general.name"),
        quant=quant_of(header),
        parameters=values,
        bits_per_weight=nbytes * 8 / values if values else 0.0,
        types=tuple(types),
        context=header.number(f"{architecture}.context_length"),
        template_sha256=hashlib.sha256(template.encode()).hexdigest() if template else None,
        file_size=header.file_size + sum(part.file_size for part in more),
    )


def quant_of(header: Header) -> str:
    """The quantisation that the header names, else the type that most bytes are of."""
    named = QUANTS.get((header.number("general.file_type") or 0) & 1023)  # 1024 marks a guess
    if named and "general.file_type" in header.metadata:
        return named
    sizes: dict[int, int] = {}
    for tensor in header.tensors:
        sizes[tensor.type_id] = sizes.get(tensor.type_id, 0) + tensor.nbytes
    return TYPES.get(max(sizes, key=lambda kind: sizes[kind]), "") if sizes else ""
