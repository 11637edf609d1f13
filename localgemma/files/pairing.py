"""Which projector and drafter belong to a language model: those that came with it, and never one that does not fit it."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from localgemma.errors import LocalgemmaError
from localgemma.files import imports, ollama
from localgemma.files.header import Header, Kind, check_drafter, check_projector, read_header

# What is part of such a file's name, whoever published it; only these are opened.
_NAMES: dict[Kind, tuple[str, ...]] = {"projector": ("mmproj",), "drafter": ("mtp", "assistant", "draft")}
_TRAINED = ("bf16", "f16", "f32", "q8_0")  # the trained values first, then what comes nearest in as few bytes
_PLAIN = re.compile(r"[-_.]*(mmproj|mtp|bf16|f16|f32|q8_0)[-_.]*")  # says nothing of which model a file belongs to


@dataclass(frozen=True, slots=True)
class Partner:
    """A projector or drafter that fits, and why it was chosen."""

    path: Path
    why: str


def partner(text: Header, role: Kind) -> Partner | None:
    """The projector or drafter (`role`) for this language model, or None.

    Looked for in this order: Ollama's manifest, beside the model, among the linked files. One fits if its header says
    that it is of Gemma 4 and made for this model's width; of several, the one for the same training (QAT or not), then the
    one whose name is most like the model's.
    """
    for candidates, why in (
        (_of_manifest(text.path, role), "is in the same model of Ollama's"),
        (_beside(text.path, role), f"lies beside {text.path.name}"),
        (_linked(role), "is linked"),
    ):
        fitting = [path for path in candidates if path != text.path and fits(path, text, role)]
        if fitting:
            return Partner(min(fitting, key=lambda path: _distance(path, text.path)), why)
    return None


def fits(path: Path, text: Header, role: Kind) -> bool:
    """Whether the file is a projector or drafter for this language model; one that cannot be read is not."""
    width = text.number("gemma4.embedding_length") or 0
    try:
        header = read_header(path)
        if role == "projector":
            check_projector(header, width)
            return True
        check_drafter(header)
    except LocalgemmaError:
        return False
    return header.number("gemma4-assistant.embedding_length_out") == width


def _of_manifest(text: Path, role: Kind) -> Iterator[Path]:
    model = ollama.user_of(text) if role == "projector" else None
    if model and model.model == text and model.projector:
        yield model.projector


def _beside(text: Path, role: Kind) -> Iterator[Path]:
    try:
        names = sorted(os.listdir(text.parent))
    except OSError:
        return
    for name in names:
        if name.lower().endswith(".gguf") and any(part in name.lower() for part in _NAMES[role]):
            yield text.parent / name


def _linked(role: Kind) -> Iterable[Path]:
    return [item.path for item in imports.imported() if item.role == role and item.state == "present"]


def _distance(path: Path, text: Path) -> tuple[bool, float, int, str]:
    """How far a candidate is from the model: another training, then an unlike name, then other weights than were trained."""
    qat = ["qat" in str(name).lower() for name in (path, text)]
    name, wanted = (_PLAIN.sub("", each.stem.lower()) for each in (path, text))
    likeness = difflib.SequenceMatcher(None, name, wanted, autojunk=False).ratio()
    found = [place for place, kind in enumerate(_TRAINED) if kind in path.stem.lower()]
    return qat[0] != qat[1], -likeness, min(found, default=len(_TRAINED)), path.name
