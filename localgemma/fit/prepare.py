"""Plans by name: from `gemma-4-31b:Q4_K_M` or a path to candidates, on this machine or a described one. Needs no network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from localgemma import measured
from localgemma.errors import LocalgemmaError, NotFound, UsageError
from localgemma.files import catalog, store
from localgemma.files.catalog_records import Entry, Variant
from localgemma.files.header import Header, check_projector, check_text_model, read_header
from localgemma.files.locate import present
from localgemma.files.pairing import partner
from localgemma.fit import probe, rates
from localgemma.fit.decide import decide, from_entry, from_header
from localgemma.fit.explain import Decision
from localgemma.fit.hardware import Machine
from localgemma.fit.planner import Candidate, Wishes
from localgemma.fit.quality import Standing, with_own_kv
from localgemma.fit.speed import Rates


def plan(name: str | Path, wishes: Wishes, described: Machine | None = None) -> Decision:
    """The best plan for a model's name or a file. Raises NotFound, BadModelFile, DoesNotFit and UsageError."""
    candidates, entry = candidates_of(name)
    machine = described or probe.machine()
    if not machine.simulated and not machine.measured:
        machine = probe.with_rates(machine, rates.measure(machine))
    return decide(candidates, wishes, machine, rates_of(machine), entry)


def load_plan(
    text: Path, projector: Path | None, name: str, why: str, wishes: Wishes, drafter: Path | None = None
) -> Decision:
    """The plan for files that are here; the headers were checked."""
    machine = probe.machine()
    beside = projector if wishes.pictures else None
    sizes = [store.header_of(path).file_size if path else 0 for path in (beside, drafter)]
    standing = Standing(0.0, None, why)
    candidate = from_header(store.header_of(text), sizes[0], name, standing, sizes[1])
    return decide((candidate,), wishes, machine, rates_of(machine))


def candidates_of(name: str | Path) -> tuple[tuple[Candidate, ...], Entry | None]:
    """The files that a name or path means, and the catalogue's entry about them."""
    shown = str(name)
    if isinstance(name, Path) or shown.endswith(".gguf") or "/" in shown or "\\" in shown:
        return (of_file(Path(name).expanduser()),), None
    try:
        found = catalog.load().find(shown)
    except NotFound as error:
        if ":" not in shown:
            raise
        raise UsageError(error.message, error.hint) from None  # the model is known, its quantisation is a typing error
    entry = found.entry
    here = [variant for variant in found.variants if variant.folder]
    if here:
        folder = here[0].folder or Path()
        beside = here[0].projectors[0].path if here[0].projectors else ""
        standing = Standing(0.0, None, "ships with localgemma")
        shown = entry.name if len(entry.variants) == 1 else here[0].name
        return (of_file(folder / here[0].text[0].path, folder / beside, shown, standing),), None
    names = {variant.name for variant in found.variants}
    losses = measured.losses()
    return tuple(c for c in from_entry(entry, header_here, losses) if c.name in names), with_own_kv(entry, losses)


def ranked_here(name: str | Path) -> tuple[str | Path, ...]:
    """The name, or where it leaves open which of several files on this machine is meant: them all, the plan's choice first.

    The others follow by size, the larger first; only those that are smaller than the choice.
    """
    if isinstance(name, Path) or ":" in name or "@" in name:
        return (name,)
    try:
        found = catalog.load().find(name)
        names = {variant.name for variant, _ in present(found)}
        candidates = [c for c in from_entry(found.entry, header_here, measured.losses()) if c.name in names and c.path]
        if len(candidates) < 2:
            return (name,)
        machine = probe.machine()
        chosen = decide(candidates, Wishes(), machine, rates_of(machine), found.entry).way.candidate
    except LocalgemmaError:
        return (name,)
    smaller = sorted((c for c in candidates if c.size < chosen.size), key=lambda c: -c.size)
    return (chosen.name, *(c.name for c in smaller))


def header_here(variant: Variant) -> Header | None:
    """The header of a variant's file where it is on this machine; None where it is not, or is in parts."""
    if len(variant.text) != 1:
        return None
    try:
        return next((store.header_of(item.path) for item in store.copies(variant.text[0])), None)
    except LocalgemmaError:
        return None


def of_file(path: Path, projector: Path | None = None, name: str = "", standing: Standing | None = None) -> Candidate:
    """A file on this machine, with the projector given or beside it, and the drafter that belongs to it."""
    header = read_header(path)
    check_text_model(header)
    if projector is None:
        projector = next(iter(sorted(path.parent.glob("mmproj*.gguf"))), None)
    size = 0
    if projector is not None:
        beside = read_header(projector)
        check_projector(beside, header.number("gemma4.embedding_length") or 0)
        size = beside.file_size
    drafter = partner(header, "drafter")
    return from_header(header, size, name, standing, store.header_of(drafter.path).file_size if drafter else 0)


def rates_of(machine: Machine) -> Rates:
    """What this machine measured, as the speed's arithmetic takes it; nothing for a described one."""
    return {} if machine.simulated else as_rates(measured.load(machine.key).rates)


def as_rates(kept: Mapping[str, float]) -> Rates:
    """Rates by (device, ggml type id) from their kept form `device:type`."""
    split = {key: key.rpartition(":") for key in kept}
    return {(device, int(kind)): kept[key] for key, (device, _, kind) in split.items() if kind.isdigit()}
