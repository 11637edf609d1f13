"""Converts a checkpoint (safetensors and configuration, as published) to GGUF, without torch and in bounded memory.

What is written equals what llama.cpp's own converter writes, bit for bit, apart from a few metadata entries that
`tests/test_convert.py` lists with the reasons.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from dataclasses import replace as changed
from math import prod
from pathlib import Path
from typing import Any, Literal, get_args

from localgemma.engine import CancelToken
from localgemma.errors import BadModelFile, NotFound, UsageError
from localgemma.make import drafter, text, vision
from localgemma.make.encoding import QK8_0, SOURCE_SIZES
from localgemma.make.naming import general
from localgemma.make.plan import UNSUPPORTED, Config, Entry, Wanted
from localgemma.make.safetensors import AGAIN, Stored, read_checkpoint, read_json
from localgemma.make.tokenizer import read_vocabulary
from localgemma.make.whole import check_target, draft
from localgemma.make.writer import Target, Writer, pack_header
from localgemma.messages import Progress

Part = Literal["text", "vision", "drafter"]
PARTS: tuple[str, ...] = get_args(Part)
TYPES = {"f32": 0, "f16": 1, "bf16": 32, "q8_0": 7}  # general.file_type; llama.h enum llama_ftype
_TEXT_PREFIXES = ("model.language_model.", "language_model.model.", "model.")
_OTHER_PREFIXES = (*vision.PREFIXES, "model.audio_tower.", "model.embed_audio.")  # what a text model's file leaves out
_BUFFERS = (".rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias")  # saved by old programs, computed by all


@dataclass(frozen=True, slots=True)
class Converted:
    """What was written: `notes` are sentences for the user, `has_vision` says that the checkpoint has a vision tower too."""

    path: Path
    part: Part
    name: str
    type: str
    tensors: int
    nbytes: int
    seconds: float
    notes: tuple[str, ...]
    has_vision: bool


@dataclass(frozen=True, slots=True)
class _Plan:
    part: Part
    name: str
    entries: tuple[Entry, ...]
    targets: tuple[Target, ...]
    notes: tuple[str, ...]
    has_vision: bool


def convert(
    folder: Path,
    output: Path,
    *,
    part: Part | None = None,
    file_type: str = "bf16",
    replace: bool = False,
    progress: Callable[[Progress], None] = lambda _: None,
    cancel: CancelToken | None = None,
) -> Converted:
    """Write one part of the checkpoint in `folder` to the GGUF file `output`, which appears only when it is whole.

    `part` is None for the model itself: the drafter of a drafter's checkpoint, else the language model. `file_type` is
    bf16, f16, f32 or q8_0. An output that is there is a UsageError without `replace`. Raises UsageError, BadModelFile,
    NotFound, DiskError, or Cancelled.
    """
    start = time.monotonic()
    _check_not_input(folder, output)
    plan = _plan(folder, part, _checked(file_type))
    writer = Writer(plan.entries, plan.targets, cancel or CancelToken(), progress)
    check_target(None, output, writer.size, replace=replace)
    with draft(output) as new:
        new.path.touch()
        writer.write(new.path)
        new.keep()
    seconds, size = time.monotonic() - start, writer.size
    return Converted(output, plan.part, plan.name, file_type, len(plan.targets), size, seconds, plan.notes, plan.has_vision)


def planned_size(folder: Path, *, part: Part | None = None, file_type: str = "bf16") -> int:
    """Bytes of the file that `convert` would write."""
    plan = _plan(folder, part, _checked(file_type))
    return pack_header(plan.entries, plan.targets)[2]


def _checked(name: str) -> str:
    if name not in TYPES:
        hint = "It takes bf16, f16, f32 or q8_0; others are made from the result with: localgemma quantize"
        raise UsageError(f"Converting to {name[:40]!r} is not possible.", hint)
    return name


def _check_not_input(folder: Path, output: Path) -> None:
    """Refuse to write over a file of the checkpoint, also one that this part does not read."""
    try:
        same = output.exists() and any(os.path.samefile(path, output) for path in folder.iterdir() if path.suffix != ".gguf")
    except (OSError, ValueError):  # told where the folder and the output are used
        return
    if same:
        raise UsageError(f"{output} is both input and output.", "Give the output another name.")


def _plan(folder: Path, part: Part | None, file_type: str) -> _Plan:
    """All that is known before a weight is read."""
    values = read_json(folder / "config.json", "configuration")
    config = Config(values)
    part = _choose_part(config, part)
    tensors = {name: tensor for name, tensor in read_checkpoint(folder).items() if not name.endswith(_BUFFERS)}
    make = {"text": _text, "vision": _vision, "drafter": _drafter}[part]
    return make(folder, config, tensors, file_type)


def _choose_part(config: Config, part: str | None) -> Part:
    """The part to convert; UsageError for one that this model does not have, BadModelFile for another architecture."""
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else "none"
    known = {"text": text.HF_ARCHITECTURES, "vision": vision.HF_ARCHITECTURES, "drafter": drafter.HF_ARCHITECTURES}
    usual = next((each for each, architectures in known.items() if name in architectures), None)
    if usual is None:
        raise BadModelFile(f"config.json is of a model of architecture {name[:64]!r}, not a Gemma 4.", UNSUPPORTED)
    chosen = part or usual
    if chosen not in PARTS:
        raise UsageError(f"There is no part {chosen[:40]!r}.", f"It takes {', '.join(PARTS)}.")
    if name not in known[chosen] or (chosen == "vision" and config.get("vision_config") is None):
        raise UsageError(
            f"config.json is of a {name[:64]}, which has no part {chosen!r}.", "Leave out --part, or give another."
        )
    if config.get("quantization_config") is not None:
        raise BadModelFile("config.json says that the weights are quantised already.", "Get the model as published, in BF16.")
    return chosen  # type: ignore[return-value]


def _text(folder: Path, config: Config, tensors: dict[str, Stored], file_type: str) -> _Plan:
    section = config.section("text_config") if config.get("text_config") is not None else config
    shape = text.read_shape(section)
    vocabulary = read_vocabulary(folder, config.values)
    prefix = next((one for one in _TEXT_PREFIXES if f"{one}embed_tokens.weight" in tensors), _TEXT_PREFIXES[0])
    own = {name: tensor for name, tensor in tensors.items() if not name.startswith(_OTHER_PREFIXES)}
    wanted = list(text.wanted(shape, len(vocabulary.tokens), prefix))
    if "lm_head.weight" in own:  # a model whose output is not tied to its embedding
        wanted.append(changed(wanted[0], source="lm_head.weight", name="output.weight"))
    targets, notes = _match(folder, wanted, own, file_type)
    freqs = shape.rope_freqs()
    targets.insert(0, Target(text.ROPE_FREQS, (len(freqs),), "F32", values=freqs))
    info = general(folder, config.values, text.ARCHITECTURE, "model", _parameters(targets))
    body = (*text.metadata(shape, text.ARCHITECTURE, TYPES[file_type]), _QUANTIZATION_VERSION, *vocabulary.metadata())
    notes = (*notes, f"Chat template: {vocabulary.template_note}.")
    has_vision = config.get("vision_config") is not None
    return _Plan("text", info.name, (*info.entries, *body), tuple(targets), notes, has_vision)


def _drafter(folder: Path, config: Config, tensors: dict[str, Stored], file_type: str) -> _Plan:
    shape = text.read_shape(config.section("text_config"), drafter=True)
    backbone = config.whole("backbone_hidden_size")
    vocabulary = read_vocabulary(folder, config.values)
    own = {name: tensor for name, tensor in tensors.items() if not name.startswith(drafter.SKIPPED)}
    targets, notes = _match(folder, drafter.wanted(shape, backbone, len(vocabulary.tokens)), own, file_type)
    freqs = shape.rope_freqs()
    targets.insert(0, Target(text.ROPE_FREQS, (len(freqs),), "F32", values=freqs))
    info = general(folder, config.values, drafter.ARCHITECTURE, "model", _parameters(targets))
    body = (*drafter.metadata(shape, backbone, TYPES[file_type]), _QUANTIZATION_VERSION, *vocabulary.metadata())
    return _Plan("drafter", info.name, (*info.entries, *body), tuple(targets), notes, False)


def _vision(folder: Path, config: Config, tensors: dict[str, Stored], file_type: str) -> _Plan:
    config.must_be("audio_config", None)
    projection = config.section("text_config").whole("hidden_size")
    shape = vision.read_shape(config.section("vision_config"), projection, _processor(folder))
    own = {name: tensor for name, tensor in tensors.items() if name.startswith(_OTHER_PREFIXES)}
    targets, notes = _match(folder, vision.wanted(shape), own, file_type)
    info = general(folder, config.values, vision.ARCHITECTURE, "mmproj", _parameters(targets))
    entries = (*info.entries, *vision.metadata(shape, TYPES[file_type]), _QUANTIZATION_VERSION)
    return _Plan("vision", info.name, entries, tuple(targets), notes, True)


_QUANTIZATION_VERSION: Entry = ("general.quantization_version", "u32", 2)  # GGML_QNT_VERSION of ggml.h


def _processor(folder: Path) -> dict[str, Any]:
    """Settings of the picture processor, from either of its files."""
    found: dict[str, Any] = {}
    for name in ("preprocessor_config.json", "processor_config.json"):
        try:
            values = read_json(folder / name, "picture processor's configuration")
        except NotFound:
            continue
        nested = values.get("image_processor")
        found |= values | (nested if isinstance(nested, dict) else {})
    return found


def _match(
    folder: Path, wanted: Iterable[Wanted], own: dict[str, Stored], file_type: str
) -> tuple[list[Target], tuple[str, ...]]:
    """The tensors to write, in the order of the checkpoint; BadModelFile where it has other ones or other shapes."""
    by_source = {one.source: one for one in wanted}
    for one in by_source.values():
        if one.source not in own:
            raise BadModelFile(f"{folder} lacks the tensor {one.source!r}, which its config.json calls for.", AGAIN)
    targets, halves = [], 0
    for name, stored in own.items():
        if name not in by_source:
            raise stored.bad("is none that this kind of model has", UNSUPPORTED)
        one = by_source[name]
        if stored.shape != one.shape:
            raise stored.bad(f"has the shape {list(stored.shape)}, and config.json calls for {list(one.shape)}", UNSUPPORTED)
        if stored.dtype not in SOURCE_SIZES:
            raise stored.bad(f"has the type {stored.dtype}, and only {', '.join(SOURCE_SIZES)} can be converted", UNSUPPORTED)
        target = _target(one, stored, file_type.upper())
        halves += file_type == "q8_0" and target.type == "F16"
        targets.append(target)
    notes = (f"{halves} tensors whose rows are no multiple of {QK8_0} are F16.",) if halves else ()
    return targets, notes


def _target(one: Wanted, stored: Stored, file_type: str) -> Target:
    """The tensor in its type: as asked for, unless llama.cpp wants another."""
    shape, chosen = one.written_shape, one.keep or file_type
    if chosen == "patch":  # a convolution, which llama.cpp runs in F16 or F32 only
        chosen = "F16" if file_type == "F16" else "F32"
    elif chosen == "Q8_0" and shape[-1] % QK8_0:
        chosen = "F16"
    return Target(one.name, shape, chosen, stored, patch=one.patch)


def _parameters(targets: Sequence[Target]) -> int:
    return sum(prod(target.shape) for target in targets)
