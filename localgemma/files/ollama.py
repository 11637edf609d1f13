"""What lies in Ollama's store: manifests that name blobs by their sha256 (its manifest/paths.go and manifest/layer.go).

A store is a folder with `manifests/HOST/NAMESPACE/MODEL/TAG` and `blobs/sha256-HEX`. Models pulled from a hub have one
layer for the text model and one for the projector, plain GGUF files both; Ollama's own Gemma 4 has one layer for both.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localgemma.errors import BadModelFile

MAX_MANIFEST = 1 << 20  # bytes; a real one has about one thousand
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")
_LAYERS = {"application/vnd.ollama.image.model": "model", "application/vnd.ollama.image.projector": "projector"}
_TENSORS = ("application/vnd.ollama.image.tensor", "application/vnd.ollama.image.draft")


@dataclass(frozen=True, slots=True)
class OllamaModel:
    """One manifest: the model's name as Ollama shows it, and the blobs it names; they need not exist.

    `in_pieces` says that it has no GGUF file but a blob for each tensor, Ollama's form for its MLX engine.
    """

    name: str
    manifest: Path
    model: Path | None
    projector: Path | None
    in_pieces: bool = False


def is_store(folder: Path) -> bool:
    """Whether the folder is laid out as Ollama's store."""
    return (folder / "manifests").is_dir() and (folder / "blobs").is_dir()


def models(store: Path) -> Iterator[OllamaModel]:
    """Every model of the store, in the order of the manifests' paths; a manifest that cannot be read is passed over."""
    manifests = store / "manifests"
    for path in sorted(manifests.glob("*/*/*/*")):
        try:
            yield read_manifest(path, store)
        except (BadModelFile, OSError):
            continue


def read_manifest(path: Path, store: Path) -> OllamaModel:
    """The model that a manifest describes; BadModelFile where it is none, OSError where it cannot be read."""
    with path.open("rb") as stream:
        text = stream.read(MAX_MANIFEST + 1)
    try:
        raw: Any = json.loads(text) if len(text) <= MAX_MANIFEST else None
        layers = [(str(layer["mediaType"]), str(layer["digest"])) for layer in raw["layers"]]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise BadModelFile(f"{path} is no manifest of Ollama's.", "Pull the model again with: ollama pull") from error
    blobs: dict[str, Path] = {}
    for kind, digest in layers:
        if kind in _LAYERS and (found := _DIGEST.fullmatch(digest)):  # anything else could name a path outside the store
            blobs.setdefault(_LAYERS[kind], store / "blobs" / f"sha256-{found[1]}")
    in_pieces = any(kind in _TENSORS for kind, _ in layers)
    return OllamaModel(
        _name(path.relative_to(store / "manifests")), path, blobs.get("model"), blobs.get("projector"), in_pieces
    )


def store_of(blob: Path) -> Path | None:
    """The store that a blob lies in, or None."""
    store = blob.parent.parent
    return store if blob.parent.name == "blobs" and is_store(store) else None


def user_of(blob: Path) -> OllamaModel | None:
    """The first model of its store that uses this blob; None where none does."""
    store = store_of(blob)
    return next((model for model in models(store) if blob in (model.model, model.projector)), None) if store else None


def digest_of(blob: Path) -> str | None:
    """The sha256 that a blob's name promises, in hexadecimal digits."""
    found = _DIGEST.fullmatch(blob.name)
    return found[1] if found else None


def _name(manifest: Path) -> str:
    """`gemma4:31b` for registry.ollama.ai/library/gemma4/31b; other hosts and namespaces stay in the name."""
    host, namespace, model, tag = manifest.parts
    parts = [model] if (host, namespace) == ("registry.ollama.ai", "library") else [namespace, model]
    return "/".join(parts if host == "registry.ollama.ai" else [host, *parts]) + f":{tag}"
