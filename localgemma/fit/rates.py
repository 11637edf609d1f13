"""Measures how fast this machine's devices read weights, type by type, and keeps it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import replace

from localgemma import measured
from localgemma.errors import LocalgemmaError
from localgemma.files.header import TYPE_SIZES
from localgemma.fit import stub
from localgemma.fit.hardware import Machine
from localgemma.fit.speed import BESIDE
from localgemma.gemma4.shape import metadata_of
from localgemma.llamacpp.trial import seconds_a_token
from localgemma.options import LoadOptions

LAYERS_GPU, LAYERS_CPU = (2, 8), (2,)  # on a GPU the difference of two counts, so that what is per token drops out
USUAL = (12, 8)  # Q4_K and Q8_0: a plan measures these, `doctor` more; types in between are taken as the slower


def busy() -> bool:
    """Whether other programs use so much of the CPU that a measurement would say little."""
    import psutil

    return bool(psutil.getloadavg()[0] > 0.6 * (psutil.cpu_count() or 1))


def measure(machine: Machine, kinds: Iterable[int] = USUAL, *, again: bool = False) -> dict[str, float]:
    """Bytes of weights a second by `device:ggml type id`.

    What this machine knew already is not measured again, and on a busy one nothing is, unless `again`. Other programs only
    make it slower: what is measured beside them is told, but kept only where it is more than was known.
    """
    kept = measured.load(machine.key)
    found = dict(kept.rates)
    crowded = busy()
    if crowded and not again:
        return found
    beside = (BESIDE,) if machine.gpus else ()
    for device in ("CPU", *beside, *(gpu.name for gpu in machine.gpus)):
        for kind in dict.fromkeys(kinds):
            key = f"{device}:{kind}"
            if (key in found and not again) or kind not in TYPE_SIZES:
                continue
            with contextlib.suppress(LocalgemmaError):  # stays unknown
                found[key] = _rate(device, kind, machine)
    keep = {key: max(rate, found[key]) for key, rate in kept.rates.items()} if crowded else found
    if keep != dict(kept.rates):
        measured.save(machine.key, replace(kept, rates=keep, paces={}))  # which corrected the old ones
    return found


def _rate(device: str, kind: int, machine: Machine) -> float:
    on_cpu = device in ("CPU", BESIDE)
    seen = () if device == "CPU" else (machine.gpus[0].name if on_cpu else device,)
    options = LoadOptions(
        gpu_layers=0 if on_cpu else -1, devices=seen, threads=machine.threads, image_tokens=0, ctx=256, mmap=on_cpu
    )
    sizes, seconds = [], []
    for count in LAYERS_CPU if on_cpu else LAYERS_GPU:
        shape = stub.layers_only(count)
        tensors = stub.tensors_of(shape, kind, kind)
        sizes.append(sum(tensor.nbytes for tensor in tensors))
        seconds.append(seconds_a_token(metadata_of(shape), tensors, shape.vocabulary, options))
    if len(sizes) == 1 or seconds[1] <= seconds[0]:
        return sizes[-1] / seconds[-1]
    return (sizes[1] - sizes[0]) / (seconds[1] - seconds[0])
