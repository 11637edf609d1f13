"""A machine as the planner sees it: GPUs, memory and how fast each is read. Records only; `probe` fills them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from localgemma.units import GIB, MIB


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU: ggml's `name`, bytes free and in all, and bytes a second that its memory is read at (0: not known)."""

    name: str
    description: str
    free: int
    total: int
    bandwidth: float = 0.0
    integrated: bool = False

    @property
    def backend(self) -> str:
        """The ggml backend, from the device's name: CUDA0 is CUDA."""
        return self.name.rstrip("0123456789")


@dataclass(frozen=True, slots=True)
class Machine:
    """What a plan may use. `ram_free` is what this process may still take, limits of containers included.

    `unified`: GPU and programs share one pool, so a GPU's bytes count against `ram_free` too. `measured` says that
    bandwidths were measured here; `simulated` that the machine was described, not seen.
    """

    gpus: tuple[Gpu, ...]
    ram_free: int
    ram_total: int
    ram_bandwidth: float
    threads: int
    unified: bool = False
    measured: bool = False
    simulated: bool = False
    system: Literal["linux", "darwin", "win32"] = "linux"

    @property
    def key(self) -> str:
        """What names this hardware in the records of measurements."""
        gpus = "+".join(f"{gpu.description} {gpu.total // GIB} GiB" for gpu in self.gpus)
        return f"{gpus or 'no GPU'}, {self.ram_total // GIB} GiB RAM, {self.threads} threads"

    def reserving(self, size: int) -> Machine:
        """The machine with `size` bytes of each GPU left to other programs (of the RAM where there is no GPU)."""
        if not self.gpus or self.unified:
            self = replace(self, ram_free=max(0, self.ram_free - size))
        return replace(self, gpus=tuple(replace(gpu, free=max(0, gpu.free - size)) for gpu in self.gpus))

    def only(self, names: tuple[str, ...]) -> Machine:
        """The machine with these GPUs alone."""
        return replace(self, gpus=tuple(gpu for gpu in self.gpus if gpu.name in names))


# What a card of a size usually reads, bytes a second; the slowest common card of each class (makers' data sheets:
# RX 6600, RTX 3060 12 GB, RTX 4060 Ti 16 GB, RX 7900 XT, RTX 3090, RTX 5090, L40S, RTX PRO 6000).
_TYPICAL = (
    (8, 224e9), (12, 288e9), (16, 288e9), (20, 800e9), (24, 864e9), (32, 864e9), (48, 864e9), (80, 1792e9),
)  # fmt: skip
TYPICAL_RAM = 60e9  # two channels of DDR5-4800, as programs reach it
TYPICAL_UNIFIED = 220e9  # Strix Halo, GB10 and the smaller Max chips


def typical_bandwidth(total: int) -> float:
    """Bytes a second that a card of this size usually reads; never less for a larger card."""
    fitting = [speed for size, speed in _TYPICAL if total >= size * GIB - 512 * MIB]
    return fitting[-1] if fitting else 128e9


def simulated(vram: tuple[int, ...], ram: int, *, unified: bool = False, system_share: float = 0.06) -> Machine:
    """A machine that is only described: typical bandwidths, and what its system usually keeps for itself.

    `vram` are bytes a card. A desktop and its driver hold about 3 % of a card.
    """
    kept = max(2 * GIB, int(ram * system_share))
    if unified:
        free = max(0, ram - kept)
        gpus: tuple[Gpu, ...] = (Gpu("GPU0", "described", min(free, ram * 3 // 4), ram, TYPICAL_UNIFIED, True),)
        return Machine(gpus, free, ram, TYPICAL_UNIFIED * 0.6, 8, unified=True, simulated=True)
    gpus = tuple(
        Gpu(f"GPU{i}", "described", size - max(256 * MIB, size * 3 // 100), size, typical_bandwidth(size))
        for i, size in enumerate(vram)
    )
    return Machine(gpus, max(0, ram - kept), ram, TYPICAL_RAM, 8, simulated=True)
