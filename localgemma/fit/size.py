"""The size that a text model should be quantised to for this machine: what the plan takes where every size can be had."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from localgemma.errors import NotFound
from localgemma.files import catalog
from localgemma.files.catalog_records import Entry
from localgemma.files.header import read_header
from localgemma.fit import prepare, probe
from localgemma.fit.decide import decide
from localgemma.fit.explain import Decision
from localgemma.fit.hardware import Machine
from localgemma.fit.memory import FILE_OVERHEAD, weights_estimate, weights_of
from localgemma.fit.planner import Candidate, Wishes
from localgemma.fit.quality import BELOW, Standing, standings
from localgemma.gemma4.shape import Shape, layer_values

MODEL = "gemma-4-31b"  # whose measured quantisations say what a bit is worth
LEAST, MOST, STEP = 2.3, 8.5, 0.1  # bits a weight that are tried


def best_size(source: Path, wishes: Wishes | None = None, described: Machine | None = None) -> Decision:
    """The plan for a quantisation of `source` to the best size; `way.candidate.size` is its bytes.

    Raises NotFound, BadModelFile, DoesNotFit and UsageError.
    """
    whole = prepare.of_file(source)
    header = read_header(source)
    machine = described or probe.machine()
    return decide(
        candidates(weights_of(header).shape, whole.projector, header.data_offset),
        wishes or Wishes(),
        machine,
        prepare.rates_of(machine),
    )


def candidates(shape: Shape, projector: int, beside: int = FILE_OVERHEAD) -> tuple[Candidate, ...]:
    """One candidate a size, each with the place that the measured quantisations around it suggest.

    `beside` is what a file holds besides its weights.
    """
    values = shape.vocabulary * shape.hidden + sum(layer_values(shape, index) for index in range(len(shape.layers)))
    known = _places()
    found = []
    for step in range(round((MOST - LEAST) / STEP) + 1):
        bits = LEAST + step * STEP
        size = int(values * bits / 8)
        standing = Standing(_place(bits, known), None, "between the measured sizes")
        found.append(
            Candidate(
                f"{bits:.1f} bits",
                weights_estimate(size + FILE_OVERHEAD, _usual(bits), shape),
                standing,
                projector,
                size + beside,
            )
        )
    return tuple(found)


def _usual(bits: float) -> str:
    """The standard type of that many bits, which says how fast the weights are read and how large the embedding is."""
    return next(name for name, most in (("IQ2_M", 2.9), ("IQ3_S", 4.0), ("Q4_K_M", 5.2), ("Q5_K_M", 6.1), ("Q6_K", 7.2),
                                        ("Q8_0", 99.0)) if bits < most)  # fmt: skip


def _places() -> list[tuple[float, float]]:
    """(bits, place) of the catalogue's measured quantisations, best first to that size, so that no larger one is worse."""
    try:
        entry: Entry = catalog.load().entry(MODEL)
    except NotFound:
        return [(LEAST, BELOW * (MOST - LEAST)), (MOST, 0.0)]
    places = standings(entry)
    rated = sorted((v.bits_per_weight, places[v.name].place) for v in entry.variants
                   if v.bits_per_weight and v.name in places and (places[v.name].figure or v.quant == "BF16"))  # fmt: skip
    line: list[tuple[float, float]] = []
    for bits, place in rated:
        if not line or place < line[-1][1]:
            line.append((bits, place))
    return line


def _place(bits: float, line: list[tuple[float, float]]) -> float:
    """Linear between the points, and with quality.BELOW a bit below the first."""
    first, place = line[0]
    if bits <= first:
        return place + BELOW * (first - bits)
    for (low, here), (high, there) in pairwise(line):
        if bits <= high:
            return here + (there - here) * (bits - low) / (high - low)
    return line[-1][1]
