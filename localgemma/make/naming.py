"""The `general.*` metadata: names, licence and origin from the model card, sampling defaults from generation_config.json."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localgemma.errors import BadModelFile, NotFound
from localgemma.make.plan import Entry, Kind
from localgemma.make.safetensors import read_json
from localgemma.options import Sampling

_KINDS: dict[str, Kind] = {"STRING": "str", "UINT32": "u32", "INT32": "i32", "FLOAT32": "f32", "BOOL": "bool"}
_SAMPLING = {  # field of gguf.Metadata: name in generation_config.json
    "sampling_top_k": "top_k",
    "sampling_top_p": "top_p",
    "sampling_min_p": "min_p",
    "sampling_temp": "temperature",
    "sampling_penalty_repeat": "repetition_penalty",
}


@dataclass(frozen=True, slots=True)
class General:
    """The entries, and the model's name among them."""

    entries: tuple[Entry, ...]
    name: str


def general(folder: Path, config: dict[str, Any], architecture: str, kind: str, parameters: int) -> General:
    """The entries for a file of `kind` model or mmproj with that many `parameters`; BadModelFile for a broken model card."""
    import gguf

    folder = folder.absolute()
    name = _hub_name(folder)
    try:
        card = gguf.Metadata.load_model_card(folder)
        known = {**config, "_name_or_path": name} if name else config
        title = Path(name.rpartition("/")[2] or folder.name)
        metadata = gguf.Metadata.apply_metadata_heuristic(gguf.Metadata(), card, known, title, parameters)
    except Exception as error:  # of a YAML parser, and of code that expects other types
        reason = " ".join(str(error).split())[:200]
        raise BadModelFile(f"The model card README.md cannot be read ({reason}).", "Correct or remove it.") from error
    metadata.name = metadata.name or folder.name or "gemma-4"
    metadata.size_label = metadata.size_label or gguf.size_label(parameters, parameters, 0, 0)
    for field, value in _sampling(folder, kind == "model" and architecture == "gemma4"):
        setattr(metadata, field, value)
    collector = gguf.GGUFWriter(None, architecture)
    collector.add_type(kind)
    metadata.set_gguf_meta_model(collector)
    return General(tuple(_entries(collector.kv_data[0])), str(metadata.name))


def _hub_name(folder: Path) -> str:
    """`google/gemma-4-31B-it` for a folder of the hub's cache, whose own name is a commit; else nothing."""
    repository = folder.parent.parent.name
    if folder.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.removeprefix("models--").replace("--", "/", 1)
    return ""


def _sampling(folder: Path, needed: bool) -> Iterator[tuple[str, int | float]]:
    """Sampling defaults of the folder; for a language model without any, those of the release."""
    try:
        config = read_json(folder / "generation_config.json", "generation settings")
    except NotFound:
        release = Sampling()
        config = {"top_k": release.top_k, "top_p": release.top_p, "temperature": release.temperature} if needed else {}
    for field, key in _SAMPLING.items():
        value = config.get(key)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            yield field, int(value) if key == "top_k" else float(value)


def _entries(collected: dict[str, Any]) -> Iterator[Entry]:
    for key, item in collected.items():
        if item.type.name == "ARRAY":
            yield key, "str[]", [str(value) for value in item.value]
        else:
            kind = _KINDS[item.type.name]
            yield key, kind, str(item.value) if kind == "str" else item.value
