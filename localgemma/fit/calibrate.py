"""After a load: what it really took, kept for the next plan, and the steps down where it fails for memory all the same."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

from localgemma import measured
from localgemma.engine import Control, Engine, Media, Prompt, Request, Text
from localgemma.errors import DoesNotFit
from localgemma.fit import probe
from localgemma.fit.buffers import Table
from localgemma.fit.explain import Decision
from localgemma.fit.hardware import Machine
from localgemma.fit.memory import LATER, Setup, need
from localgemma.fit.planner import Wishes
from localgemma.fit.speed import pace_key
from localgemma.gemma4.tokens import BOS, IMAGE_BEGIN, IMAGE_END
from localgemma.gemma4.vision import from_rgb, target_size
from localgemma.llamacpp import devices
from localgemma.options import LoadOptions, Sampling
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


def after(before: Before, decision: Decision) -> measured.Load:
    """What the load took beside what was predicted, kept for this machine."""
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
    return load


def spilled(before: Before, decision: Decision, options: LoadOptions, *, pictures: bool = False) -> str:
    """A sentence where a GPU's driver put much of a load elsewhere, which on Windows gives no error, only slowness; or "".

    `pictures`: a picture of the largest size was seen since, so its working memory should be there too.
    """
    machine = before.machine
    if machine.system != "win32":
        return ""
    later = tuple(what for what in LATER if not (pictures and what == "pictures"))
    taken = need(_setup(decision, options), Table(tuple(gpu.backend for gpu in machine.gpus)))
    for gpu, items, was, now in zip(machine.gpus, taken.gpus, before.free, _free(machine), strict=False):
        wanted = sum(item.size for item in items if item.what not in (*later, "driver"))
        missing = wanted - max(0, was - now)
        if missing > max(GIB, wanted // 10):
            when = "With a picture, Windows" if pictures else "Windows"
            return (
                f"{when} moved about {format_size(missing)} of {gpu.name}'s share into ordinary memory, which is slow. "
                f"Close programs that use the GPU, or load with --reserve {format_size(missing + GIB).replace(' ', '')}."
            )
    return ""


def show_a_picture(engine: Engine) -> None:
    """Have the engine see a grey picture of the largest size, so that all memory it will ever take is taken."""
    high, wide = target_size(1000, 1000, engine.info.image_tokens)
    grey = from_rgb(b"\x80" * (high * wide * 3), wide, high)
    prompt = Prompt((Control(BOS), Media("", (Control(IMAGE_BEGIN), grey, Control(IMAGE_END))), Text("\n")))
    for _ in engine.generate(Request(prompt, Sampling(temperature=0, max_tokens=1))):
        pass


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
    """Keep the speed that the load of this plan really had, in tokens a second, and by how much it corrects the next plan's.

    A later load moves the correction half way: a machine is not always equally busy.
    """
    kept, way = measured.load(decision.machine.key), decision.way
    key, ratio = pace_key(way.setup), speed / way.speed
    pace = min(4.0, max(0.1, kept.paces[key] * ratio**0.5 if key in kept.paces else ratio))
    loads = [replace(load, seen_speed=speed) if load.model == way.candidate.name else load for load in kept.loads[-1:]]
    paces = {**kept.paces, key: pace}
    measured.save(decision.machine.key, replace(kept, loads=(*kept.loads[:-1], *loads), paces=paces))


def lacking(decision: Decision, options: LoadOptions) -> str:
    """What is too little at this very moment for these options, as a sentence; empty where nothing is.

    Programs come and go between plan and load, and llama.cpp ends the process where a small allocation fails. Of the
    mapped file nothing is counted: its pages can wait.
    """
    taken = need(_setup(decision, options), Table(tuple(gpu.backend for gpu in decision.machine.gpus)))
    spared = ("margin", "program", "pictures seen", "checkpoints", *(("weights",) if options.mmap else ()))
    wanted = sum(item.size for item in taken.host if item.what not in spared) + taken.droppable + probe.LEAST_RAM
    free, _ = probe.memory()
    if free < wanted:
        return f"It needs {format_size(wanted)} of RAM, and {format_size(free)} are free."
    return ""


def _setup(decision: Decision, options: LoadOptions) -> Setup:
    """The plan's setup with what was given up since."""
    setup = decision.way.setup
    drafter = setup.drafter if options.drafter else 0
    projector = setup.projector if options.image_tokens else 0
    setup = replace(setup, options=options, tokens=options.ctx or setup.tokens, drafter=drafter, projector=projector)
    if options.gpu_layers != setup.on_gpu:
        setup = replace(setup, placement=(options.gpu_layers or 0, *[0] * (len(setup.placement) - 1))[: len(setup.placement)])
    return setup


def load(
    decision: Decision,
    options: LoadOptions,
    wishes: Wishes,
    attempt: Callable[[LoadOptions], _T],
    slow: Callable[[_T, LoadOptions, bool], str] = lambda engine, options, last: "",
) -> tuple[_T, LoadOptions, tuple[str, ...]]:
    """Attempt the load; where memory does not suffice after all, with less and less. Raises DoesNotFit where nothing helps.

    The sentences say what was given up and why. `slow` looks at what was loaded, and says in a sentence why it is no good;
    it has closed it then, unless it was told that this is the last way there is.
    """
    first = ""
    ways = ((options, ""), *smaller(options, wishes))
    for index, (reduced, what) in enumerate(ways):
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
                last = index == len(ways) - 1
                reason = slow(engine, reduced, last)
                if not reason or last:
                    told = f"It did not fit as planned ({first.rstrip('.')}); loaded with {what}."
                    return engine, reduced, tuple(said for said in (told if first else "", reason) if said)
        first = first or reason
        LOGGER.info("with %s: %s", what or "the plan", reason)
    raise DoesNotFit(first, "Close other programs, choose a smaller file, or ask for less: --ctx, --gpu-layers.")
