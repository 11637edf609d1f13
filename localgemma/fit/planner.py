"""The best plan for a machine: quantisation, layers on each GPU, context, KV type, pictures, all decided together.

Every way to load gets a cost that does not depend on the other ways, so that more memory, which only adds ways, never
gives a worse plan. The cost counts in the scale of the weights' measured loss; the rates of exchange are below.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import log2
from pathlib import Path

from localgemma.errors import UsageError
from localgemma.files.catalog_records import Entry, Variant
from localgemma.fit import drafts
from localgemma.fit.buffers import Compute
from localgemma.fit.hardware import Machine
from localgemma.fit.memory import Need, Setup, Weights, need, split_shares
from localgemma.fit.place import fastest
from localgemma.fit.quality import Standing, kv_loss
from localgemma.fit.speed import BESIDE, Rates, pace_key, seconds_a_byte, tokens_per_second
from localgemma.options import KvType, LoadOptions

WANTED_CONTEXT = 32_768  # tokens: a long talk with thoughts and some pictures or a paper
COMFORT = 15.0  # tokens a second at which waiting for an answer with thoughts stops being a burden
SPEED_COST = 0.6  # a halving of the speed below COMFORT; at 4 bits on a CPU, about what going to 8 bits gains
SPEED_GAIN = 0.05  # a doubling above it, up to four times COMFORT
CONTEXT_COST = 0.25  # a halving of the context below what is wanted
PICTURES = ((1120, True, 0.0), (560, True, 0.02), (1120, False, 0.06), (280, True, 0.08), (560, False, 0.09), (0, False, 0.5))
CONTEXTS = (32_768, 24_576, 16_384, 12_288, 8192, 4096)


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user asked for; None is left to the plan. `reserve` bytes of each GPU are left free."""

    ctx: int | None = None
    kv: KvType | None = None
    gpu_layers: int | None = None
    devices: tuple[str, ...] | None = None
    reserve: int = 0
    min_speed: float | None = None
    pictures: bool = True
    image_tokens: int | None = None
    draft: bool = True
    base: LoadOptions = field(default_factory=LoadOptions)

    @classmethod
    def of(cls, options: LoadOptions) -> Wishes:
        """What load options ask for: every field that is not at its default."""
        usual = LoadOptions()
        tokens = options.image_tokens
        return cls(
            ctx=options.ctx,
            kv=options.kv if options.kv != usual.kv else None,
            gpu_layers=options.gpu_layers,
            devices=options.devices,
            pictures=tokens > 0,
            image_tokens=tokens if tokens not in (0, usual.image_tokens) else None,
            base=options,
        )


@dataclass(frozen=True, slots=True)
class Candidate:
    """One text model that could be loaded: weights, what is known of its quality, bytes of projector and drafter (or 0)."""

    name: str
    weights: Weights
    standing: Standing
    projector: int = 0
    size: int = 0
    drafter: int = 0
    variant: Variant | None = None
    path: Path | None = None


@dataclass(frozen=True, slots=True)
class Way:
    """A way to load a candidate, what it takes, how fast it is, and its cost (lower is better)."""

    candidate: Candidate
    setup: Setup
    need: Need
    speed: float
    cost: float

    @property
    def load(self) -> LoadOptions:
        """The options that open it."""
        return self.options_of(self.setup)

    @staticmethod
    def options_of(setup: Setup) -> LoadOptions:
        """The options that load a setup."""
        split = split_shares(setup.placement) if len(setup.placement) > 1 and setup.on_gpu else None
        split = setup.options.tensor_split or split
        return replace(setup.options, ctx=setup.tokens, gpu_layers=setup.on_gpu, tensor_split=split)


class Planner:
    """Searches the ways to load candidates on a machine."""

    def __init__(
        self, machine: Machine, compute: Compute, wishes: Wishes, rates: Rates | None = None, entry: Entry | None = None
    ) -> None:
        self.whole = machine
        machine = machine.reserving(wishes.reserve)
        if wishes.devices is not None:
            known = [gpu.name for gpu in machine.gpus]
            for name in wishes.devices:
                if name not in (*known, "CPU"):
                    raise UsageError(f"There is no device {name!r}.", f"There are: {', '.join([*known, 'CPU'])}.")
            machine = machine.only(wishes.devices)
        self.machine, self.compute, self.wishes, self.rates, self.entry = machine, compute, wishes, rates or {}, entry
        self.devices = wishes.devices and tuple(name for name in wishes.devices if name != "CPU")
        self.gains: Mapping[str, float] = {}  # of drafters, as measured on this machine; see drafts.key
        self.paces: Mapping[str, float] = {}  # of loads seen on this machine; see measured.Measured

    def best(self, candidates: Sequence[Candidate]) -> Way | None:
        """The way with the lowest cost, or None where nothing fits."""
        found: Way | None = None
        bounds = {candidate.name: self._least(candidate.weights) for candidate in candidates}
        for candidate in sorted(candidates, key=lambda c: c.standing.place + bounds[c.name]):
            for cost, setup in sorted(self._sketches(candidate), key=lambda sketch: sketch[0]):
                if found and cost + bounds[candidate.name] >= found.cost:
                    break
                way = self.way(candidate, setup, cost)
                if way and (found is None or way.cost < found.cost):
                    found = way
        return found

    def _least(self, weights: Weights) -> float:
        """The least that speed can add to the cost of these weights: as if they filled the fastest memory to the brim."""
        beside, *gpus = self._paces(weights)
        cpu = min(beside, seconds_a_byte(weights, "CPU", self.machine.ram_bandwidth, self.rates))
        left, time = weights.total, 0.0
        for pace, gpu in sorted(zip(gpus, self.machine.gpus, strict=True), key=lambda pair: pair[0]):
            taken = min(left, gpu.free)
            left, time = left - taken, time + taken * min(pace, cpu)
        return speed_cost(max((1.0, *self.paces.values())) / max(1e-9, time + left * cpu))

    def _sketches(self, candidate: Candidate) -> Iterator[tuple[float, Setup]]:
        """(cost without speed, setup without placement) of every way to load the candidate, wishes obeyed."""
        wishes, weights = self.wishes, candidate.weights
        trained = weights.shape.trained_context
        wanted = min(WANTED_CONTEXT, trained)
        contexts = [wishes.ctx] if wishes.ctx else [ctx for ctx in CONTEXTS if ctx <= wanted] or [wanted]
        kinds: list[KvType] = [wishes.kv] if wishes.kv else ["f16", "q8_0"]
        # The projector goes to the first GPU that llama.cpp sees, whichever the layers may use.
        first = bool(self.machine.gpus) and self.machine.gpus[0].name == self.whole.gpus[0].name
        gpu_may = first and wishes.base.projector_on_gpu
        for tokens, on_gpu, picture_cost in self._pictures(candidate):
            for kv in kinds:
                loss = kv_loss(self.entry, kv)[0]
                for ctx in contexts:
                    cost = candidate.standing.place + loss + picture_cost + CONTEXT_COST * max(0.0, log2(wanted / ctx))
                    options = replace(wishes.base, kv=kv, image_tokens=tokens, projector_on_gpu=on_gpu and gpu_may, ctx=ctx)
                    yield cost, Setup(weights, options, ctx, (), candidate.projector if tokens else 0)

    def _pictures(self, candidate: Candidate) -> Sequence[tuple[int, bool, float]]:
        wishes = self.wishes
        if not candidate.projector or not wishes.pictures:
            return ((0, False, 0.0),)
        if wishes.image_tokens is not None:
            return tuple(way for way in PICTURES if way[0] == wishes.image_tokens) or ((wishes.image_tokens, True, 0.0),)
        return PICTURES

    def way(self, candidate: Candidate, setup: Setup, cost: float = 0.0) -> Way | None:
        """The setup with as many layers on the GPUs as fit, or None where it does not fit or is too slow."""
        placed = self.place(setup)
        if placed is None:
            return None
        speed = tokens_per_second(placed, self.machine, self.rates) * self.paces.get(pace_key(placed), 1.0)
        if self.wishes.min_speed and speed < self.wishes.min_speed:
            return None
        return Way(candidate, placed, need(placed, self.compute), speed, cost + speed_cost(speed))

    def place(self, setup: Setup) -> Setup | None:
        """The setup with its layers where they run fastest and fit, or None. A GPU is used wherever it can be."""
        asked = self.wishes.gpu_layers
        if self.machine.gpus and asked != 0:
            every = len(setup.weights.layers) + 1
            count = None if asked is None else every if asked < 0 else min(asked, every)
            ready = replace(setup, options=replace(setup.options, devices=self.devices))
            fixed = need(replace(ready, placement=(every, *[0] * (len(self.machine.gpus) - 1))), self.compute).host_total
            ram = self.machine.ram_free - fixed
            placed = fastest(ready, self.machine, self.compute, self._paces(setup.weights), count, ram)
            if placed and self.fits(placed):
                return placed
            if asked is not None:
                return None
        # Without a layer on it, a GPU that llama.cpp may use would still get compute buffers: it is hidden from it.
        hidden = () if self.whole.gpus else setup.options.devices
        placed = replace(setup, options=replace(setup.options, devices=hidden), placement=(0,) * len(self.machine.gpus))
        return placed if self.fits(placed) else None

    def _paces(self, weights: Weights) -> list[float]:
        """Seconds that a byte of this model's weights takes on the CPU beside GPUs and on each GPU."""
        devices = [(BESIDE, self.machine.ram_bandwidth), *((gpu.name, gpu.bandwidth) for gpu in self.machine.gpus)]
        return [seconds_a_byte(weights, name, bandwidth, self.rates) for name, bandwidth in devices]

    def with_drafter(self, way: Way) -> Way:
        """The way with the candidate's drafter, where it fits beside all the rest; it takes nothing away from it.

        Not where it was measured on this machine that it does not pay, unless the user gave it.
        """
        gain = self.gains.get(drafts.key(way), drafts.PAYS)
        pays = gain >= drafts.PAYS or self.wishes.base.drafter is not None
        if not way.candidate.drafter or not self.wishes.draft or not pays:
            return way
        setup = replace(way.setup, drafter=way.candidate.drafter)
        return replace(way, setup=setup, need=need(setup, self.compute)) if self.fits(setup) else way

    def with_checkpoints(self, way: Way) -> Way:
        """The way with the checkpoints' share of RAM: as the options say, and never more than is left beside all the rest."""
        options = way.setup.options
        if options.checkpoint_bytes is not None:
            return way
        shared = sum(way.need.gpu(i) for i in range(len(way.need.gpus))) if self.machine.unified else 0
        left = max(0, self.machine.ram_free - way.need.host_total - shared)
        size = min(options.checkpoint_limit(self.machine.ram_free), left)
        setup = replace(way.setup, options=replace(options, checkpoint_bytes=size))
        return replace(way, setup=setup, need=need(setup, self.compute))

    def fits(self, setup: Setup) -> bool:
        """Whether every device can hold its share."""
        return not self.over(need(setup, self.compute))

    def over(self, taken: Need) -> Mapping[str, int]:
        """Bytes too many, by device."""
        machine, result = self.machine, {}
        for index, gpu in enumerate(machine.gpus[: len(taken.gpus)]):
            if (size := taken.gpu(index)) > gpu.free:
                result[gpu.name] = size - gpu.free
        host = taken.host_total + (sum(taken.gpu(i) for i in range(len(taken.gpus))) if machine.unified else 0)
        if host > machine.ram_free:
            result["RAM"] = host - machine.ram_free
        return result

    def largest_context(self, way: Way, step: int = 256) -> int:
        """The most tokens that fit with everything else of this way unchanged."""
        kept = replace(way.setup.options, checkpoint_bytes=self.wishes.base.checkpoint_bytes)  # checkpoints give way
        way = replace(way, setup=replace(way.setup, options=kept))
        low, high = way.setup.tokens // step, max(way.setup.tokens, way.setup.weights.shape.trained_context) // step
        while low < high:
            middle = (low + high + 1) // 2
            if self.fits(replace(way.setup, tokens=middle * step)):
                low = middle
            else:
                high = middle - 1
        return max(way.setup.tokens, low * step)


def speed_cost(speed: float) -> float:
    """What a speed in tokens a second costs; above COMFORT it gains a little."""
    doublings = log2(max(speed, 1e-6) / COMFORT)
    return -SPEED_COST * doublings if doublings < 0 else -SPEED_GAIN * min(doublings, 2.0) - min(speed, 1000) * 1e-6
