"""Which of the files that a name allows this machine loads best, and which fit at all."""

from __future__ import annotations

from collections.abc import Sequence

from localgemma import measured
from localgemma.errors import LocalgemmaError
from localgemma.files.catalog_records import Entry, Found, Variant
from localgemma.fit import probe
from localgemma.fit.buffers import Table
from localgemma.fit.decide import decide, from_entry
from localgemma.fit.planner import Planner, Way, Wishes
from localgemma.fit.prepare import rates_of


def pick(found: Found) -> tuple[Variant, str]:
    """The variant that this machine's plan takes, and why; the catalogue's own choice where there is no plan."""
    chosen, why = found.choose()
    if len(found.variants) == 1 or chosen.folder:
        return chosen, why
    allowed = {variant.name for variant in found.variants}
    candidates = [candidate for candidate in from_entry(found.entry, losses=measured.losses()) if candidate.name in allowed]
    if not candidates:
        return chosen, why
    try:
        machine = probe.machine()
        decision = decide(candidates, Wishes(), machine, rates_of(machine), found.entry)
    except LocalgemmaError as error:
        return chosen, f"{why}; {error.message.rstrip('.')}"
    best = next((variant for variant in found.variants if variant.name == decision.way.candidate.name), chosen)
    return best, f"the best for this machine: {decision.choices[0].reason}"


def fits(entries: Sequence[Entry]) -> dict[str, Way | None]:
    """How this machine would load each published variant of known size, by name; None where its memory cannot hold it.

    Compute buffers are those of a table, so this loads nothing; a plan asks llama.cpp. Raises LibraryError.
    """
    machine, losses = probe.machine(), measured.losses()
    found: dict[str, Way | None] = {}
    for entry in entries:
        if all(variant.folder for variant in entry.variants):
            continue
        table = Table(tuple(gpu.backend for gpu in machine.gpus))
        planner = Planner(machine, table, Wishes(), rates_of(machine), entry)
        found.update((candidate.name, planner.best([candidate])) for candidate in from_entry(entry, losses=losses))
    return found
