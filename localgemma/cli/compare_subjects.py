"""From names and files to the subjects of a comparison: what each is, how all are loaded, and the machine that does it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from localgemma import settings
from localgemma.compare.records import Conditions, Subject
from localgemma.engine import Engine
from localgemma.errors import UsageError
from localgemma.options import IMAGE_BUDGETS, LoadOptions
from localgemma.units import MIB

if TYPE_CHECKING:
    from localgemma.files.header import Header
    from localgemma.fit.hardware import Machine

ROWS = 128 * MIB  # of logits a batch: llama.cpp holds them twice, and a walk stays below the model and 600 MiB
MOST_ROWS = 512
SEQUENCES = 8  # texts that share a batch
LEAST_CONTEXT = 4096
ANSWER = 2048  # positions left for an answer after the longest prompt
_TOKENIZER = ("tokenizer.ggml.model", "tokenizer.ggml.tokens")


@dataclass(slots=True)
class Files:
    """Where the subjects' files are, by their sha256; `any_architecture` opens other models than Gemma 4, as text."""

    any_architecture: bool = False
    text: dict[str, Path] = field(default_factory=dict)
    projector: dict[str, Path | None] = field(default_factory=dict)

    def subject(self, name: str, kv: str = "f16") -> Subject:
        """What a name or path means. Raises NotFound, NotDownloaded, BadModelFile, DiskError."""
        from localgemma.cli.imatrix import find_model
        from localgemma.files.facts import facts_of
        from localgemma.files.header import check_text_model, read_header
        from localgemma.files.imports import parts_of

        if self.any_architecture and (path := Path(name).expanduser()).is_file():
            text, projector = path, None
        else:
            found = find_model(name)
            text, projector = found.text, found.projector
        header = read_header(text)
        if not self.any_architecture:
            check_text_model(header)
        parts = parts_of(text)
        facts = facts_of(header, *(read_header(part) for part in parts[1:]))
        sha256 = _sha256(parts)
        self.text[sha256], self.projector[sha256] = text, projector
        publisher = name.rpartition("@")[2] if "@" in name and not Path(name).exists() else ""
        return Subject(
            label=facts.quant if kv == "f16" else f"{facts.quant}, KV {kv}",
            name=facts.name or text.stem,
            quant=facts.quant,
            bytes=facts.file_size,
            sha256=sha256,
            bits_per_weight=facts.bits_per_weight,
            kv=kv,
            publisher=publisher,
            family="qat" if "qat" in f"{name} {text.name} {facts.name}".lower() else "",
            vocabulary=_vocabulary(header),
            vocabulary_size=header.array_length("tokenizer.ggml.tokens"),
            template=facts.template_sha256 or "",
        )

    def open(self, subject: Subject, load: LoadOptions) -> Engine:
        """Load a subject for walking. Raises what loading raises."""
        from localgemma import runtime

        others = (each for each in self.projector.values() if each)
        projector = self.projector[subject.sha256] or next(others, None) if load.image_tokens else None
        if load.image_tokens and projector is None:
            raise UsageError("The data has pictures, and there is no projector.", "Put the mmproj file beside the model's.")
        kv = replace(load, kv=subject.kv)  # type: ignore[arg-type]
        return runtime.open_for_reading(self.text[subject.sha256], projector, kv, any_architecture=self.any_architecture)


def _sha256(parts: Sequence[Path]) -> str:
    """The sha256 of a file, of several that of their sums together; computed once and remembered."""
    from localgemma.files import ledger
    from localgemma.files.verify import sha256_of

    sums = []
    for part in parts:
        known = ledger.recall(part)
        if known is None:
            sums.append(sha256_of(part))
            ledger.record(part, sums[-1])
        else:
            sums.append(known.sha256)
    return sums[0] if len(sums) == 1 else hashlib.sha256("".join(sums).encode()).hexdigest()


def _vocabulary(header: Header) -> str:
    """A hash of the tokens in their order, as they stand in the file."""
    total = hashlib.sha256()
    with header.path.open("rb") as stream:
        for key in _TOKENIZER:
            start, end = header.places.get(key, (0, 0))
            stream.seek(start)
            total.update(stream.read(end - start))
    return total.hexdigest()


def unique(subjects: Sequence[Subject]) -> list[Subject]:
    """The subjects with labels that tell them apart: by publisher or name where the quantisation alone does not."""
    done: list[Subject] = []
    for each in subjects:
        same = [other for other in subjects if other.label == each.label and other is not each]
        label = each.label
        if same:
            more = each.publisher or each.name
            label = f"{label} ({more})" if all((o.publisher or o.name) != more for o in same) else f"{label} #{len(done) + 1}"
        done.append(replace(each, label=label))
    return done


def layout(vocabulary: int, longest: int, pictures: int, ubatch: int | None = None) -> LoadOptions:
    """How all subjects are loaded: rows of logits by the vocabulary's size, room for the longest text and picture."""
    rows = max(16, min(MOST_ROWS, ROWS // (4 * max(1, vocabulary))))
    budget = next((each for each in IMAGE_BUDGETS if each >= pictures), IMAGE_BUDGETS[-1]) if pictures else 0
    physical = max(ubatch or rows, budget)
    return LoadOptions(
        ctx=max(LEAST_CONTEXT, longest + ANSWER), ubatch=physical, outputs=min(rows, physical), sequences=SEQUENCES,
        image_tokens=budget, checkpoint_bytes=0,
    )  # fmt: skip


def room(machine: Machine) -> int:
    """Bytes that models may take together: of the GPUs where there are some, else of the RAM."""
    return sum(gpu.free for gpu in machine.gpus) or machine.ram_free


def needed(subject: Subject, load: LoadOptions) -> int:
    """Bytes that a subject takes while it is walked, generously: weights, rows, and what a context has beside them."""
    rows = 2 * 4 * subject.vocabulary_size * load.outputs
    return subject.bytes + rows + max(64 * MIB, subject.bytes // 10)


def around(machine: Machine, load: LoadOptions, template: str) -> Conditions:
    """What is known of the conditions before anything is walked."""
    from localgemma import runtime

    gpus = [gpu.description or gpu.name for gpu in machine.gpus] if load.gpu_layers != 0 else []
    backend = machine.gpus[0].backend if gpus else "CPU"
    return Conditions(
        set="", positions=0, items=0, build=runtime.build(), backend=backend, ubatch=load.ubatch or 0, template=template,
        machine=machine.key, memory_limit=room(machine), date=datetime.now(UTC).strftime("%Y-%m-%d"),
    )  # fmt: skip


def memory() -> dict[str, int]:
    """Bytes that this process holds: of RAM, and of each GPU by what others cannot have."""
    from localgemma.fit import probe

    gpus = {gpu.name: gpu.total - gpu.free for gpu in probe.machine().gpus}
    return {"RAM": probe.resident(), **gpus}


def folder() -> Path:
    """Where finished parts are kept."""
    return settings.load().cache_dir / "compare"


def check_output(path: Path) -> Path:
    """A file to be written at the end, refused now where it could not be. UsageError."""
    if path.is_dir() or not path.parent.is_dir():
        raise UsageError(f"{path} cannot be written there.", "Give the name of a file in a folder that exists.")
    return path
