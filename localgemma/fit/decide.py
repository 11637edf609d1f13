"""From files and wishes to a decision: candidates, the right source of buffer sizes, and a refusal that helps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NoReturn

from localgemma import measured
from localgemma.errors import DoesNotFit, LocalgemmaError, UsageError
from localgemma.files.catalog_records import Entry, Variant
from localgemma.files.header import Header, check_text_model
from localgemma.fit import probe, stub
from localgemma.fit.buffers import Buffers, Dry, Table
from localgemma.fit.explain import Decision, explain
from localgemma.fit.hardware import Machine
from localgemma.fit.memory import Setup, Weights, weights_estimate, weights_of
from localgemma.fit.planner import Candidate, Planner, Way, Wishes
from localgemma.fit.quality import Standing, standings
from localgemma.fit.speed import Rates
from localgemma.gemma4.shape import PROJECTOR_31B_BYTES, metadata_of
from localgemma.llamacpp.dryrun import DryRun
from localgemma.options import LoadOptions
from localgemma.units import format_size

ROUNDS = 8  # of asking llama.cpp about the best plan; each settles one more plan


def from_header(
    header: Header, projector: int = 0, name: str = "", standing: Standing | None = None, drafter: int = 0
) -> Candidate:
    """A file that is here, or whose header is. Raises BadModelFile."""
    check_text_model(header)
    size = header.file_size
    known = standing or Standing(0.0, None, "you chose it")
    return Candidate(name or header.path.name, weights_of(header), known, projector, size, drafter, path=header.path)


def from_entry(
    entry: Entry, headers: Callable[[Variant], Header | None] = lambda variant: None, losses: Sequence[measured.Loss] = ()
) -> tuple[Candidate, ...]:
    """Every quantisation of a catalogue entry whose size is known.

    `headers` gives the headers that are at hand, `losses` are what was compared here.
    """
    places, found = standings(entry, losses), []
    for variant in entry.variants:
        if variant.size is None or variant.name not in places:
            continue
        standing = places[variant.name]
        if f"{variant.quant}@{variant.publisher}" == entry.default:
            standing = replace(standing, place=standing.place - 0.025)  # of equals, the catalogue's default
        projector = (variant.projectors[0].size or PROJECTOR_31B_BYTES) if variant.projectors else 0
        drafter = (variant.drafters[0].size or 0) if variant.drafters else 0
        header = headers(variant)
        weights = weights_of(header) if header else weights_estimate(variant.size, variant.quant)
        path = header.path if header else None
        found.append(Candidate(variant.name, weights, standing, projector, variant.size, drafter, variant, path))
    return tuple(found)


def decide(
    candidates: Sequence[Candidate], wishes: Wishes, machine: Machine, rates: Rates | None = None, entry: Entry | None = None
) -> Decision:
    """The best way to load one of the candidates on this machine. Raises DoesNotFit and UsageError."""
    if not candidates:
        raise DoesNotFit("No file of this model has a known size, so nothing can be planned.", "Give a .gguf file: -m FILE.")
    base = replace(wishes.base, threads=wishes.base.threads or machine.threads)
    wishes = replace(wishes, base=base)
    trained = max(candidate.weights.shape.trained_context for candidate in candidates)
    if wishes.ctx is not None and wishes.ctx > trained:
        raise UsageError(
            f"A context of {wishes.ctx:,} tokens is more than the {trained:,} of the model.", f"Give --ctx {trained} or less."
        )
    planner = Planner(machine, Table(), wishes, rates, entry)
    with Here(planner.machine) as here:
        planner.compute, planner.gains, planner.paces = here.compute, here.gains, here.paces
        way = here.settled(planner, candidates)
        if way is None:
            _refuse(planner, here, candidates)
        return explain(planner, planner.with_checkpoints(planner.with_drafter(way)), candidates)


class Here:
    """Where buffer sizes come from: llama.cpp's dry runs for this machine, the table for one that is only described."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        kept = measured.Measured() if machine.simulated else measured.load(machine.key)
        self.gains, self.paces = kept.drafts, kept.paces
        described = "Metal" if machine.unified else "CUDA"
        backends = tuple(described if machine.simulated else gpu.backend for gpu in machine.gpus)
        self.compute: Table = Table(backends) if machine.simulated else Dry(self._ask, backends, _copies)
        for index, gpu in enumerate(machine.gpus):
            if gpu.name in kept.driver:
                self.compute.drivers[index] = kept.driver[gpu.name]
        if kept.program:
            self.compute.program, self.compute.program_source = kept.program, "measured here"
        self._runs: dict[Weights, DryRun] = {}

    def settled(self, planner: Planner, candidates: Sequence[Candidate]) -> Way | None:
        """The best way, its buffers told by llama.cpp where that can be asked."""
        way = planner.best(candidates)
        for _ in range(ROUNDS):
            if way is None or not isinstance(self.compute, Dry) or self.compute.knows(way.setup):
                break
            try:
                self.compute.settle(way.setup)
            except LocalgemmaError:
                break  # the table stands
            way = planner.best(candidates)
        return way

    def _ask(self, setup: Setup) -> Buffers:
        weights = setup.weights
        if probe.memory()[0] < probe.LEAST_RAM:
            raise DoesNotFit("There is too little memory left even to ask llama.cpp.")
        if weights not in self._runs:
            metadata, tensors = stub.for_weights(weights)
            self._runs[weights] = DryRun(metadata, tensors, weights.shape.vocabulary)
        options = Way.options_of(setup)
        found = self._runs[weights].measure(options, setup.tokens)
        names = [gpu.name for gpu in self.machine.gpus][: len(setup.placement)]
        host = sum(size for name, size in found.compute.items() if name not in names)
        return Buffers(tuple(found.compute.get(name, 0) for name in names), host + found.output, "dry run")

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *_: object) -> None:
        for run in self._runs.values():
            run.close()


def _copies(kind: int) -> float | None:
    """How many bytes llama.cpp's CPU backend copies a byte of this type into; None where it cannot be asked.

    It depends on the processor: AVX2 and NEON copy three types, AMX nearly all, and makes Q8_0 an eighth larger.
    """
    shape = stub.layers_only(2)  # llama.cpp aborts where no layer has a window
    tensors = stub.tensors_of(shape, kind, kind)
    options = LoadOptions(gpu_layers=0, devices=(), image_tokens=0)
    if probe.memory()[0] < probe.LEAST_RAM:
        return None
    try:
        with DryRun(metadata_of(shape), tensors, shape.vocabulary) as run:
            found = run.measure(options, 256).weights
    except LocalgemmaError:
        return None
    copied = sum(size for name, size in found.items() if name != "CPU")
    return copied / sum(tensor.nbytes for tensor in tensors if len(tensor.shape) > 1) if found else None


def _refuse(planner: Planner, here: Here, candidates: Sequence[Candidate]) -> NoReturn:
    """DoesNotFit with what would fit instead."""
    wishes, machine = planner.wishes, planner.machine
    memory = ", ".join(
        [f"{format_size(gpu.free)} on {gpu.name}" for gpu in machine.gpus] + [f"{format_size(machine.ram_free)} of RAM"]
    )
    if wishes.min_speed is not None:
        slower = _instead(planner, here, candidates, replace(wishes, min_speed=None))
        if slower:
            raise DoesNotFit(
                f"Nothing here reaches {wishes.min_speed:g} tokens/s; {slower.candidate.name} has about {slower.speed:.1f}.",
                f"Ask for less: --min-speed {max(0.1, slower.speed * 0.95):.1f}",
            )
    if wishes.ctx is not None:
        less = _instead(planner, here, candidates, replace(wishes, ctx=None))
        if less:
            most = planner.largest_context(less)
            raise DoesNotFit(
                f"A context of {wishes.ctx:,} tokens does not fit into {memory} free.", f"Up to --ctx {most} does."
            )
    if wishes.gpu_layers is not None:
        other = _instead(planner, here, candidates, replace(wishes, gpu_layers=None))
        if other:
            raise DoesNotFit(
                f"{wishes.gpu_layers} layers on the GPU do not fit into {memory} free.",
                f"--gpu-layers {other.setup.on_gpu} does.",
            )
    small = min(candidates, key=lambda c: c.size)
    raise DoesNotFit(
        f"{small.name} is {format_size(small.size)} and does not fit into {memory} free"
        + (", with room for a context." if len(candidates) == 1 else ", and it is the smallest."),
        "Close other programs, choose a smaller file, or try the demo: localgemma chat -m demo",
    )


def _instead(planner: Planner, here: Here, candidates: Sequence[Candidate], wishes: Wishes) -> Way | None:
    other = Planner(planner.machine, here.compute, replace(wishes, reserve=0, devices=None), planner.rates, planner.entry)
    other.devices, other.whole, other.paces = planner.devices, planner.whole, planner.paces
    return here.settled(other, candidates)
