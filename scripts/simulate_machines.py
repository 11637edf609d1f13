"""Forty machines and what the plan gives each: writes the table of docs/machines.md, or checks it with --check.

    python scripts/simulate_machines.py [--check]

The machines are described, not seen: bandwidths are those that such machines usually have (localgemma/fit/hardware.py).
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from localgemma.errors import DoesNotFit
from localgemma.files import catalog
from localgemma.fit.decide import decide, from_entry
from localgemma.fit.explain import Decision
from localgemma.fit.hardware import Machine, simulated
from localgemma.fit.planner import Wishes

GIB = 1 << 30
PAGE = Path(__file__).resolve().parent.parent / "docs" / "machines.md"
CPU = [("laptop or desktop without a GPU", (), ram, False) for ram in (8, 16, 24, 32, 48, 64, 96, 128)]
ONE = [
    ("6 GB card", (6,), 16, False), ("6 GB card", (6,), 32, False), ("8 GB card", (8,), 16, False),
    ("8 GB card", (8,), 32, False), ("8 GB card", (8,), 64, False), ("10 GB card", (10,), 32, False),
    ("12 GB card", (12,), 16, False), ("12 GB card", (12,), 32, False), ("12 GB card", (12,), 64, False),
    ("16 GB card", (16,), 16, False), ("16 GB card", (16,), 32, False), ("16 GB card", (16,), 64, False),
    ("20 GB card", (20,), 32, False), ("24 GB card", (24,), 16, False), ("24 GB card", (24,), 32, False),
    ("24 GB card", (24,), 64, False), ("32 GB card", (32,), 32, False), ("32 GB card", (32,), 64, False),
    ("48 GB card", (48,), 64, False), ("80 GB card", (80,), 128, False), ("96 GB card", (96,), 128, False),
]  # fmt: skip
TWO = [
    ("two 12 GB cards", (12, 12), 32, False), ("two 16 GB cards", (16, 16), 64, False),
    ("24 GB and 8 GB card", (24, 8), 64, False), ("24 GB and 12 GB card", (24, 12), 64, False),
    ("two 24 GB cards", (24, 24), 64, False),
]  # fmt: skip
POOL = [("one pool (Mac, Strix Halo)", (), ram, True) for ram in (16, 24, 32, 48, 64, 96)]
MACHINES = [*CPU, *ONE, *TWO, *POOL]
HEAD = """# Forty machines

What `localgemma plan` gives machines that are described by their memory alone, without wishes. Made by
`python scripts/simulate_machines.py`; a test holds it to the program. Speeds are estimates: they take the bandwidth that
such a machine usually has (the slowest common card of each size, DDR5 in two channels), where `localgemma doctor` measures.
A context of 32,768 tokens is what a plan aims at, "up to" is what would fit. Layers count the output as one more than 60.

| machine | RAM | file | layers on GPU | context (up to) | KV | pictures | tokens/s | GPU memory | RAM taken |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""


def main() -> None:
    """Write the page, or fail where it is not what the program says."""
    text = page()
    if "--check" in sys.argv:
        sys.exit(0 if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text else f"{PAGE} is out of date")
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(text, encoding="utf-8")
    print(text)


def page() -> str:
    """The whole page."""
    entry = catalog.load().entry("gemma-4-31b")
    candidates = from_entry(entry)
    rows = []
    for name, cards, ram, unified in MACHINES:
        machine = simulated(tuple(card * GIB for card in cards), ram * GIB, unified=unified)
        try:
            rows.append(row(name, ram, decide(candidates, Wishes(), machine, None, entry)))
        except DoesNotFit:
            rows.append(f"| {name} | {ram} GiB | nothing fits: the demo | | | | | | | |")
    return HEAD + "\n".join(rows) + "\n"


def row(name: str, ram: int, decision: Decision) -> str:
    """One machine."""
    way, machine = decision.way, decision.machine
    options, count = way.setup.options, len(way.setup.weights.layers) + 1
    layers = " + ".join(map(str, way.setup.placement)) + f" of {count}" if machine.gpus else "no GPU"
    where = "" if not machine.gpus or not options.image_tokens else " on GPU" if options.projector_on_gpu else " on CPU"
    context = f"{way.setup.tokens:,}"
    if decision.largest_context > way.setup.tokens:
        context += f" ({decision.largest_context:,})"
    return (
        f"| {name} | {ram} GiB | {way.candidate.name.split(':', 1)[1]} | {layers} | {context} | {options.kv} "
        f"| {f'{options.image_tokens:,}' if options.image_tokens else 'none'}{where} | {way.speed:.1f} "
        f"| {held(decision)} | {way.need.host_total / GIB:.1f} of {machine.ram_free / GIB:.1f} GiB |"
    )


def held(decision: Decision) -> str:
    """GiB on each GPU, of those free."""
    machine: Machine = decision.machine
    need = decision.way.need
    return "; ".join(f"{need.gpu(i) / GIB:.1f} of {gpu.free / GIB:.1f}" for i, gpu in enumerate(machine.gpus))


if __name__ == "__main__":
    main()
