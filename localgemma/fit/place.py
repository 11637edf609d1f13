"""Which layers go where: the fastest way to share a model out to the CPU and the GPUs in order, within every memory.

Layers are cut into consecutive ranges, the CPU's first, then each GPU's, as llama.cpp does it. The best cut is found step
by step: the least time for the first `e` layers on the first devices, for every `e`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from localgemma.fit.buffers import Compute
from localgemma.fit.hardware import Machine
from localgemma.fit.memory import Setup, layer_sums, need

NEVER = float("inf")
_BY_LAYER = ("weights", "KV cache")


@dataclass(frozen=True, slots=True)
class Device:
    """What a GPU may hold beyond its fixed share, and seconds a byte of weights takes on it."""

    room: int
    pace: float


def fastest(
    setup: Setup, machine: Machine, compute: Compute, paces: Sequence[float], asked: int | None, ram: int
) -> Setup | None:
    """The setup with its layers placed so that a token takes the least time, or None where no cut fits.

    `paces` are seconds a byte, the CPU's first. `asked` layers are put on the GPUs where it is not None. `ram` bytes are
    what the layers on the CPU may take, weights and KV together.
    """
    every = len(setup.weights.layers) + 1
    if asked is not None:
        return _cut(setup, machine, compute, paces, asked, asked, ram)
    whole = _cut(setup, machine, compute, paces, every, every, ram)  # buffers are smaller where nothing stays on the CPU
    return whole or _cut(setup, machine, compute, paces, 1, every - 1, ram)


def _cut(
    setup: Setup, machine: Machine, compute: Compute, paces: Sequence[float], least: int, most: int, ram: int
) -> Setup | None:
    """The best cut with `least` to `most` layers on the GPUs (at least one), or None."""
    every, gpus = len(setup.weights.layers) + 1, len(machine.gpus)
    weights, held = _running(setup)
    starts = range(every - most, every - least + 1)
    times = [weights[p] * paces[0] if p in starts and held[p] <= ram else NEVER for p in range(every + 1)]
    choices: list[list[int]] = []
    for device in _devices(setup, machine, compute, paces, most):
        times, chosen = _step(times, weights, held, device)
        choices.append(chosen)
    if times[every] == NEVER:
        return None
    ends = [every]
    for chosen in reversed(choices):
        ends.append(chosen[ends[-1]])
    ends.reverse()
    placement = tuple(ends[i + 1] - ends[i] for i in range(gpus))
    return replace(setup, placement=placement)


def _step(times: list[float], weights: list[int], held: list[int], device: Device) -> tuple[list[float], list[int]]:
    """The least times with one device more, and for each end where that device's range starts."""
    result: list[float] = []
    chosen: list[int] = []
    window: list[int] = []
    low = 0
    for end in range(len(times)):
        best, start = times[end], end  # nothing on this device
        while window and held[end] - held[window[low]] > device.room:
            low += 1
            if low == len(window):
                window, low = [], 0
        if window:
            value = times[window[low]] + (weights[end] - weights[window[low]]) * device.pace
            if value < best:
                best, start = value, window[low]
        result.append(best)
        chosen.append(start)
        if times[end] < NEVER:
            score = times[end] - weights[end] * device.pace
            while len(window) > low and times[window[-1]] - weights[window[-1]] * device.pace >= score:
                window.pop()
            window.append(end)
    return result, chosen


def _running(setup: Setup) -> tuple[list[int], list[int]]:
    """Running sums over the layers and the output: of weights, and of weights and KV together."""
    options = setup.options
    layers, kv = layer_sums(setup.weights, options.kv, setup.tokens, options.physical_batch, options.sequences)
    weights = [*layers, layers[-1] + setup.weights.output]
    return weights, [size + cache for size, cache in zip(weights, [*kv, kv[-1]], strict=True)]


def _devices(setup: Setup, machine: Machine, compute: Compute, paces: Sequence[float], on_gpu: int) -> list[Device]:
    """Each GPU's room once buffers, projector and driver have their share; these hardly depend on the cut."""
    gpus = len(machine.gpus)
    spread = tuple(1 if i < min(gpus, on_gpu) - 1 else 0 for i in range(gpus - 1))
    trial = replace(setup, placement=(on_gpu - sum(spread), *spread))
    taken = need(trial, compute)
    every = [sum(item.size for item in items if item.what not in _BY_LAYER) for items in taken.gpus]
    usual = max(every[1:], default=every[0])  # a GPU that the trial left empty has buffers too, once it gets a layer
    fixed = [size or usual for size in every]
    return [Device(gpu.free - size, pace) for gpu, size, pace in zip(machine.gpus, fixed, paces[1:], strict=True)]
