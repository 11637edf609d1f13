"""Predicted tokens a second: bytes that a token reads on each device, over how fast that device reads them."""

from __future__ import annotations

from collections.abc import Mapping

from localgemma.fit.hardware import Machine
from localgemma.fit.memory import Setup, Weights

DEPTH = 1024  # tokens of context at which a speed is told
# Share of a memory's bandwidth that decoding reaches. Published: RTX 4090 79 %, 5090 80 %, 3090 65 %, R9700 81 %, 7900 XT
# 67 %, M5 Max 77 %, Strix Halo 83 % (Q4); used only where this machine was not measured.
REACH = 0.7
CPU_LAYER = 50e-6  # seconds a layer takes on a CPU beyond its reading, as threads wait for each other; small models feel it
# A load that uses a GPU leaves the CPU's layers as the file has them, in mapped pages; one without copies them into layouts
# that the processor reads faster or slower (AMX, repack.cpp). So the CPU has two speeds.
BESIDE = "CPU beside a GPU"
# Two layers decoded again and again are read faster than a whole model: 0.75 to 0.99 of it was left in nine loads of the 31B's
# shape on two machines (2 and 16 cores, three quantisations, 0 to 45 layers on a GPU), 0.88 in the middle.
WHOLE = 0.88
Rates = Mapping[tuple[str, int], float]  # (device, ggml type id): bytes of weights a second, measured by decoding


def tokens_per_second(setup: Setup, machine: Machine, rates: Rates | None = None, depth: int = DEPTH) -> float:
    """Decode speed at `depth` tokens of context. Devices work one after the other."""
    weights, shape, count = setup.weights, setup.weights.shape, len(setup.weights.layers)
    known = rates or {}

    def seconds(device: str, bandwidth: float, layers: range, output: bool) -> float:
        size = sum(weights.layers[i] for i in layers)
        total = size * seconds_a_byte(weights, device, bandwidth, known)
        if output:
            total += weights.output / _rate(known, device, weights.output_type, bandwidth)
        read = sum(shape.kv_read_layer(shape.layers[i], setup.options.kv, min(depth, setup.tokens)) for i in layers)
        return total + read / (bandwidth * REACH)

    first = max(0, min(count, count + 1 - setup.on_gpu))
    cpu = BESIDE if setup.on_gpu else "CPU"
    time = seconds(cpu, machine.ram_bandwidth, range(first), setup.on_gpu == 0) + first * CPU_LAYER
    for gpu, (start, end) in zip(machine.gpus, setup.ranges(), strict=False):
        if end > start:
            time += seconds(gpu.name, gpu.bandwidth, range(start, min(end, count)), end > count)
    return 1 / time if time > 0 else 0.0


def pace_key(setup: Setup) -> str:
    """What loads share one correction: all on the CPU, in part, all on GPUs; and of weights within a factor of two."""
    where = "CPU" if not setup.on_gpu else "all" if setup.on_gpu > len(setup.weights.layers) else "part"
    return f"{where}:{setup.weights.total.bit_length()}"


def seconds_a_byte(weights: Weights, device: str, bandwidth: float, rates: Rates) -> float:
    """Seconds that a byte of the layers takes on a device, by the types that the layers have."""
    types = weights.types or ((12, 1),)
    every = sum(size for _, size in types)
    return sum(size / every / _rate(rates, device, kind, bandwidth) for kind, size in types)


def _rate(rates: Rates, device: str, kind: int, bandwidth: float) -> float:
    """Bytes a second for this type: measured, or as the nearest measured type of the device, or a share of the bandwidth."""
    on_cpu = device in ("CPU", BESIDE)
    others = [rate for (name, _), rate in rates.items() if name == device]
    if not others and device == BESIDE:
        return _rate(rates, "CPU", kind, bandwidth)
    if not others:
        return bandwidth * (0.85 if on_cpu else REACH)
    return rates.get((device, kind), min(others)) * (WHOLE if on_cpu else 1.0)
