"""Compute buffers, projector's working memory and the driver's own: from a dry run here, or from a table for elsewhere.

The table is what a graph of this family needs, found by dry runs over contexts, batches and KV types: a fixed share a
token of the batch, and the attention mask. On CUDA a quantised KV cache is turned into f16 for attention, one layer at a
time, which takes its size in f16 (fattn.cu). Where layers stay on the CPU, the GPU also holds a copy of the matrix at hand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, Protocol

from localgemma.gemma4.shape import padded
from localgemma.units import MIB

if TYPE_CHECKING:
    from localgemma.fit.memory import Setup, Source

TOKEN_BYTES = 355_380  # of the 31B's graph for a token of the batch (dry runs, ubatch 512 to 2,048: 0.33892 MiB each)
SMALL_BYTES = 151_520  # the same while the output rows lie beside it, which decides below 400 tokens (dry runs, 16 to 320)
HIDDEN = 5376  # the width it was measured at; other widths are scaled
DRIVER = {"CUDA": 600 * MIB, "ROCm": 700 * MIB, "Metal": 128 * MIB, "Vulkan": 200 * MIB}  # context and kernels, at most
DRIVER_UNKNOWN = 700 * MIB
REPACKED = (2, 12, 20)  # Q4_0, Q4_K, IQ4_NL: copied into another layout on CPUs with AVX2 and on ARM (repack.cpp)
PROGRAM = 110 * MIB  # this program with llama.cpp and numpy loaded, before a model; measured
# Working memory of the projector by the largest picture, in tokens (27 layers share one buffer; 1,120 took 830 MiB on CUDA).
PROJECTOR = {0: 0, 70: 60 * MIB, 140: 110 * MIB, 280: 200 * MIB, 560: 400 * MIB, 1120: 832 * MIB}

BufferSource = Literal["dry run", "table"]


@dataclass(frozen=True, slots=True)
class Buffers:
    """Bytes of compute buffers: on each GPU of the placement, and in the computer's memory (output rows included)."""

    gpus: tuple[int, ...]
    host: int
    source: BufferSource


class Compute(Protocol):
    """Where the memory that is neither weights nor KV comes from."""

    driver_source: Source
    program: int
    program_source: Source

    def __call__(self, setup: Setup) -> Buffers:
        """The compute buffers of a setup."""
        ...

    def projector(self, image_tokens: int) -> int:
        """The projector's working memory for pictures of so many tokens."""
        ...

    def driver(self, index: int) -> int:
        """What the driver takes on a GPU for itself."""
        ...

    def repacked(self, kind: int) -> float:
        """Bytes of the copy that a load without a GPU makes of a byte of weights of this ggml type; 0 where it makes none."""
        ...


@dataclass
class Table:
    """The measured table, for backends that are not on this machine or before any dry run."""

    backends: tuple[str, ...] = ()
    drivers: dict[int, int] = field(default_factory=dict)
    program: int = PROGRAM
    program_source: Source = "table"
    driver_source: Source = "table"

    def __call__(self, setup: Setup) -> Buffers:
        """See Compute."""
        options, shape, weights = setup.options, setup.weights.shape, setup.weights
        ubatch = options.physical_batch
        cells = padded(setup.tokens) + padded(min(padded(setup.tokens), shape.window * options.sequences + ubatch))
        mask = 2 * ubatch * cells
        rows = min(options.outputs, ubatch) * shape.vocabulary * 4
        width = shape.hidden / HIDDEN
        graph = max(int(ubatch * TOKEN_BYTES * width), rows + int(ubatch * SMALL_BYTES * width)) + mask
        host = graph if setup.on_gpu == 0 else mask + ubatch * shape.hidden * 4 + 16 * MIB
        extra = 0
        if options.kv not in ("f16", "bf16"):
            full = max((layer.kv_values for layer in shape.layers if not layer.sliding), default=0)
            extra += padded(setup.tokens) * full * 2
        if setup.on_gpu <= len(weights.layers):
            extra += weights.largest
            host += graph - mask if setup.on_gpu else 0  # layers on the CPU need their own results
        gpus = tuple(graph + extra if count else 0 for count in setup.placement)
        return Buffers(gpus, host + shape.vocabulary * 4, "table")

    def projector(self, image_tokens: int) -> int:
        """See Compute."""
        return next((size for tokens, size in PROJECTOR.items() if tokens >= image_tokens), PROJECTOR[1120])

    def driver(self, index: int) -> int:
        """See Compute."""
        if index in self.drivers:
            return self.drivers[index]
        return DRIVER.get(self.backends[index], DRIVER_UNKNOWN) if index < len(self.backends) else DRIVER_UNKNOWN

    def repacked(self, kind: int) -> float:
        """See Compute."""
        return float(kind in REPACKED)


class Dry(Table):
    """Llama.cpp's own answers, kept; for a setup that was not asked about, those of one that differs only in its cut.

    Where there is none either, the table. `copies` says what becomes of weights of a type without a GPU, None if unknown.
    """

    def __init__(
        self, ask: Callable[[Setup], Buffers], backends: tuple[str, ...], copies: Callable[[int], float | None]
    ) -> None:
        super().__init__(backends)
        self._ask = ask
        self._copies = copies
        self._ratios: dict[int, float] = {}
        self._known: dict[Setup, Buffers] = {}
        self._alike: dict[tuple[object, ...], Buffers] = {}

    def __call__(self, setup: Setup) -> Buffers:
        """See Compute."""
        if found := self._known.get(_alone(setup)):
            return found
        if alike := self._alike.get(_but_for_the_cut(setup)):
            return Buffers(tuple(max(alike.gpus) if count else 0 for count in setup.placement), alike.host, "dry run")
        return super().__call__(setup)

    def repacked(self, kind: int) -> float:
        """See Compute."""
        if kind not in self._ratios:
            told = self._copies(kind)
            self._ratios[kind] = super().repacked(kind) if told is None else told
        return self._ratios[kind]

    def knows(self, setup: Setup) -> bool:
        """Whether llama.cpp was asked about this setup."""
        return _alone(setup) in self._known

    def settle(self, setup: Setup) -> Buffers:
        """Ask llama.cpp about this setup, and remember it."""
        setup = _alone(setup)
        if setup not in self._known:
            self._known[setup] = self._ask(setup)
            self._alike[_but_for_the_cut(setup)] = self._known[setup]
        return self._known[setup]


def _alone(setup: Setup) -> Setup:
    """The setup without what lies beside the model and does not change its buffers."""
    return replace(setup, drafter=0, options=replace(setup.options, checkpoint_bytes=None))


def _but_for_the_cut(setup: Setup) -> tuple[object, ...]:
    options, every = setup.options, len(setup.weights.layers) + 1
    state = "none" if not setup.on_gpu else "all" if setup.on_gpu == every else "some"
    return (setup.weights, setup.tokens, options.kv, options.physical_batch, options.outputs, options.sequences, state)
