"""Looks through the stores of other programs for Gemma 4 files that need not be downloaded again.

| program | store | layout |
| --- | --- | --- |
| LM Studio | ~/.lmstudio/models (or as ~/.lmstudio-home-pointer says), ~/.cache/lm-studio/models | publisher/repo/*.gguf |
| Ollama | OLLAMA_MODELS, ~/.ollama/models, its service's /usr/share/ollama/.ollama/models | manifests and blobs |
| llama.cpp | LLAMA_CACHE, llama.cpp in the cache folder; today the Hugging Face cache | *.gguf |
| Jan | Jan/data in the data or the configuration folder, ~/jan | llamacpp/models/name/model.gguf |
| Hugging Face | the hub cache | models--owner--repo/snapshots/revision/*.gguf |

Sources: lmstudio.ai/docs (import model), Ollama's envconfig, llama.cpp's common/common.cpp and hf-cache.cpp, jan.ai/docs (data
folder). Only names that end in .gguf, and blobs that a manifest names, are opened, and of these only the headers are read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from localgemma import settings
from localgemma.errors import LocalgemmaError
from localgemma.files import imports, ollama
from localgemma.files.header import Header, Kind, in_ollama_form, kind_of, read_header
from localgemma.files.pairing import partner

MAX_DEPTH, MAX_FILES = 8, 20_000
LAYERS_31B, WIDTH_31B = 60, 5376  # released config.json of google/gemma-4-31B-it
Form = Literal["plain", "ollama"]


@dataclass(frozen=True, slots=True)
class Store:
    """A folder in which a program keeps models."""

    program: str
    folder: Path


@dataclass(frozen=True, slots=True)
class Found:
    """A Gemma 4 file in a store.

    `form` is "plain" where it can be linked, "ollama" where it must be split first.
    `size` in bytes, of all parts; `projector` and `drafter` are what lies with a language model and fits it.
    """

    program: str
    name: str
    path: Path
    role: Kind
    form: Form
    size: int
    is_31b: bool
    projector: Path | None
    drafter: Path | None
    linked: bool


@dataclass(frozen=True, slots=True)
class Scan:
    """What a search found: Gemma 4 files, how many GGUF files of other models, and those that could not be read.

    `in_pieces` names Gemma models that Ollama keeps without a GGUF file, which nothing here can use.
    """

    stores: tuple[Store, ...]
    found: tuple[Found, ...]
    others: int
    unreadable: tuple[tuple[Path, str], ...]
    in_pieces: tuple[str, ...]


def stores() -> tuple[Store, ...]:
    """The stores of other programs that exist on this machine."""
    place = settings.elsewhere()
    lm_studio = [place.home / ".lmstudio", place.home / ".cache" / "lm-studio"]
    pointer = _first_line(place.home / ".lmstudio-home-pointer")
    folders = [
        *(("LM Studio", home / "models") for home in ([Path(pointer)] if pointer else []) + lm_studio),
        ("Ollama", place.ollama or place.home / ".ollama" / "models"),
        ("Ollama", Path("/usr/share/ollama/.ollama/models")),
        ("llama.cpp", place.llama_cpp or place.cache / "llama.cpp"),
        *(("Jan", base / "Jan" / "data") for base in (place.data, place.config)),
        ("Jan", place.home / "jan"),
        ("Hugging Face", settings.load().hub_cache),
    ]
    seen: set[Path] = set()
    return tuple(Store(program, folder) for program, folder in folders if _is_new(folder, seen))


def scan(where: tuple[Store, ...] | None = None) -> Scan:
    """Read the headers of what lies in these stores (all that exist by default); nothing is changed."""
    where = stores() if where is None else where
    search = _Search()
    for store in where:
        if ollama.is_store(store.folder):
            search.look_through_ollama(store)
        else:
            for name, path in _gguf_files(store.folder):
                search.look(store.program, name, path)
    return Scan(where, tuple(search.found), search.others, tuple(search.unreadable), tuple(search.in_pieces))


class _Search:
    """What was found so far; a file that several names lead to counts once."""

    def __init__(self) -> None:
        self.found: list[Found] = []
        self.others = 0
        self.unreadable: list[tuple[Path, str]] = []
        self.in_pieces: list[str] = []
        self.seen: set[Path] = set()
        self.linked = {item.path for item in imports.imported()}

    def look(self, program: str, name: str, path: Path) -> None:
        """Read one file's header."""
        try:
            real = path.resolve()
            if real in self.seen:
                return
            self.seen.add(real)
            header = read_header(path)
        except (LocalgemmaError, OSError, RuntimeError) as error:  # RuntimeError: symbolic links in a circle
            self.unreadable.append((path, str(getattr(error, "message", error))))
            return
        role = kind_of(header)
        is_gemma = role != "projector" or header.text("clip.vision.projector_type") == "gemma4v"
        if role == "other" or not is_gemma:
            self.others += "split.no" not in header.metadata or header.number("split.no") == 0
            return
        self.found.append(self._found(program, name, header, role))

    def look_through_ollama(self, store: Store) -> None:
        """Read the headers of the blobs that the manifests name."""
        for model in ollama.models(store.folder):
            if model.in_pieces and "gemma" in model.name:
                self.in_pieces.append(model.name)
            for blob, what in ((model.model, ""), (model.projector, " (projector)")):
                if blob:
                    self.look(store.program, model.name + what, blob)

    def _found(self, program: str, name: str, header: Header, role: Kind) -> Found:
        path = header.path
        fused = in_ollama_form(header)
        mates = [partner(header, kind) if role == "text" and not fused else None for kind in ("projector", "drafter")]
        projector, drafter = (mate.path if mate else None for mate in mates)
        size = sum(part.stat().st_size for part in imports.parts_of(path) if part.exists())
        form: Form = "ollama" if fused else "plain"
        return Found(program, name, path, role, form, size, _is_31b(header, role), projector, drafter, path in self.linked)


def _gguf_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Names and paths of the models below a folder; of a model in several parts, the first."""
    for place, names in _walk(folder):
        for name in names:
            path = place / name
            if name.lower().endswith(".gguf") and imports.parts_of(path)[0] == path:
                yield (place.name if name == "model.gguf" else path.stem), path


def _walk(top: Path) -> Iterator[tuple[Path, list[str]]]:
    """Folders below `top` with their files, in order, not through links, to a bounded depth and number of files."""
    left = MAX_FILES
    for folder, folders, names in os.walk(top):
        folders.sort()
        left -= len(names)
        if left < 0:
            return
        if len(Path(folder).relative_to(top).parts) >= MAX_DEPTH:
            folders.clear()
        yield Path(folder), sorted(names)


def _is_31b(header: Header, role: Kind) -> bool:
    """Whether the file is, or belongs to, the 31B."""
    if role == "text":
        return (header.number("gemma4.block_count"), header.number("gemma4.embedding_length")) == (LAYERS_31B, WIDTH_31B)
    key = "clip.vision.projection_dim" if role == "projector" else "gemma4-assistant.embedding_length_out"
    return header.number(key) == WIDTH_31B


def _is_new(folder: Path, seen: set[Path]) -> bool:
    """Whether this folder is there, and no name that was looked at before leads to it."""
    try:
        real = folder.resolve()
        fresh = folder.is_dir() and real not in seen
    except (OSError, RuntimeError):
        return False
    seen.add(real)
    return fresh


def _first_line(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", errors="replace") as stream:
            return stream.readline(4096).strip()
    except OSError:
        return ""
