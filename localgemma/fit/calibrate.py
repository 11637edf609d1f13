"""After a load: what it really took, kept for the next plan, and the steps down where it fails for memory all the same."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

from localgemma import measured
from localgemma.errors import DoesNotFit
from localgemma.fit import probe
from localgemma.fit.buffers import Table
from localgemma.fit.explain import Decision
from localgemma.fit.hardware import Machine
from localgemma.fit.memory import LATER, need
from localgemma.fit.planner import Wishes
from localgemma.llamacpp import devices
from localgemma.options import LoadOptions
from localgemma.units import GIB, MIB, format_size

LOGGER = logging.getLogger("localgemma.fit")
LEAST_CONTEXT = 2048
LEAST_DRIVER = 64 * MIB
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Before:
    """The memory before a load: bytes free on each GPU, bytes this process holds."""

    machine: Machine
    resident: int
    free: tuple[int, ...]

    @classmethod
    def now(cls, machine: Machine) -> Before:
        """The memory at this moment."""
        return cls(machine, probe.resident(), _free(machine))


def _free(machine: Machine) -> tuple[int, ...]:
    if not machine.gpus:
        return ()
    now = {device.name: device.free for device in devices.list_devices()}
    return tuple(now.get(gpu.name, gpu.free) for gpu in machine.gpus)


def after(before: Before, decision: Decision) -> tuple[measured.Load, tuple[str, ...]]:
    """What the load took beside what was predicted, kept for this machine; and sentences that the user should see."""
    machine, need = before.machine, decision.way.need
    taken = {gpu.name: max(0, was - now) for gpu, was, now in zip(machine.gpus, before.free, _free(machine), strict=True)}
    taken["RAM"] = max(0, probe.resident() - before.resident)
    used = list(zip(machine.gpus, need.gpus, strict=False))
    predicted = {gpu.name: sum(item.size for item in items if item.what not in LATER) for gpu, items in used}
    # Buffers in RAM are only touched by the first evaluation.
    there = [item.size for item in need.host if item.what not in (*LATER, "compute buffer", "drafter's buffers")]
    predicted["RAM"] = sum(there) + need.droppable
    load = measured.Load(decision.way.candidate.name, predicted, taken, decision.way.speed)
    kept = measured.load(machine.key)
    drivers = dict(kept.driver)
    for gpu, items in used:
        if items:
            known = sum(item.size for item in items if item.what not in (*LATER, "driver"))
            drivers[gpu.name] = max(LEAST_DRIVER, taken[gpu.name] - known)
    measured.save(machine.key, replace(kept.with_load(load), driver=drivers, program=before.resident))
    LOGGER.info("predicted %s, took %s", predicted, taken)
    return load, tuple(spilled(machine, predicted, taken))


def spilled(machine: Machine, predicted: dict[str, int], taken: dict[str, int]) -> Iterator[str]:
    """A sentence for each GPU whose driver put much of the load elsewhere: on Windows that gives no error, only slowness."""
    if machine.system != "win32":
        return
    for gpu in machine.gpus:
        missing = predicted.get(gpu.name, 0) - taken.get(gpu.name, 0)
        if missing > max(GIB, predicted.get(gpu.name, 0) // 10):
            yield (
                f"Windows moved about {format_size(missing)} of {gpu.name}'s share into ordinary memory, which is slow. "
                f"Close programs that use the GPU, or load with --reserve {format_size(missing + GIB).replace(' ', '')}."
            )


def smaller(options: LoadOptions, wishes: Wishes) -> Iterator[tuple[LoadOptions, str]]:
    """Options that take less, step by step, each with what was given up; what the user asked for is not touched."""
    if options.drafter is not None:
        options = replace(options, drafter=None)
        yield options, "no drafter"
    for tokens in (560, 280):
        if options.image_tokens > tokens and wishes.image_tokens is None:
            options = replace(options, image_tokens=tokens)
            yield options, f"pictures up to {tokens} tokens"
    while wishes.ctx is None and (options.ctx or 0) > LEAST_CONTEXT:
        options = replace(options, ctx=max(LEAST_CONTEXT, (options.ctx or 0) // 2))
        yield options, f"a context of {options.ctx:,} tokens"
    while wishes.gpu_layers is None and (options.gpu_layers or 0) > 0:
        layers = (options.gpu_layers or 0) * 3 // 4
        options = replace(options, gpu_layers=layers, tensor_split=None, devices=() if not layers else options.devices)
        yield options, f"{layers} layers on the GPU"


def saw(decision: Decision, speed: float) -> None:
    """Keep the speed that the load of this plan really had, in tokens a second."""
    kept = measured.load(decision.machine.key)
    loads = [
        replace(load, seen_speed=speed) if load.model == decision.way.candidate.name else load for load in kept.loads[-1:]
    ]
    measured.save(decision.machine.key, replace(kept, loads=(*kept.loads[:-1], *loads)))


def lacking(decision: Decision, options: LoadOptions) -> str:
    """What is too little at this very moment for these options, as a sentence; empty where nothing is.

    Programs come and go between plan and load, and llama.cpp ends the process where a small allocation fails. Of the
    mapped file nothing is counted: its pages can wait.
    """
    drafter = decision.way.setup.drafter if options.drafter else 0
    setup = replace(decision.way.setup, options=options, tokens=options.ctx or decision.way.setup.tokens, drafter=drafter)
    if options.gpu_layers != setup.on_gpu:
        setup = replace(setup, placement=(options.gpu_layers or 0, *[0] * (len(setup.placement) - 1))[: len(setup.placement)])
    taken = need(setup, Table(tuple(gpu.backend for gpu in decision.machine.gpus)))
    spared = ("margin", "program", "pictures seen", *(("weights",) if options.mmap else ()))
    wanted = sum(item.size for item in taken.host if item.what not in spared) + taken.droppable + probe.LEAST_RAM
    free, _ = probe.memory()
    if free < wanted:
        return f"It needs {format_size(wanted)} of RAM, and {format_size(free)} are free."
    return ""


def load(
    decision: Decision, options: LoadOptions, wishes: Wishes, attempt: Callable[[LoadOptions], _T]
) -> tuple[_T, LoadOptions, tuple[str, ...]]:
    """Attempt the load; where memory does not suffice after all, with less and less. Raises DoesNotFit where nothing helps.

    The sentences say what was given up and why.
    """
    first = ""
    for reduced, what in ((options, ""), *smaller(options, wishes)):
        reason = lacking(decision, reduced)
        if not reason:
            try:
                engine = attempt(reduced)
            except DoesNotFit as error:
                reason = error.message
            except (MemoryError, RuntimeError) as error:  # RuntimeError: no room for a thread's stack
                if isinstance(error, RuntimeError) and "thread" not in str(error):
                    raise
                reason = "There is not enough memory to load the model."
            else:
                told = f"It did not fit as planned ({first.rstrip('.')}); loaded with {what}."
                return engine, reduced, (told,) if first else ()
        first = first or reason
        LOGGER.info("with %s: %s", what or "the plan", reason)
    raise DoesNotFit(first, "Close other programs, choose a smaller file, or ask for less: --ctx, --gpu-layers.")
