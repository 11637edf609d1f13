"""`localgemma plan`: the best this machine can do with a model, before anything is downloaded."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from localgemma.errors import UsageError
from localgemma.options import KV_TYPES
from localgemma.units import GIB, MIB, format_size, parse_size

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from localgemma.fit.explain import Decision
    from localgemma.fit.hardware import Machine
    from localgemma.fit.memory import Item
    from localgemma.fit.planner import Wishes

WIDTH = 100
_FLAGS: tuple[Callable[[Any], Any], ...] = (
    click.option("--ctx", type=int, metavar="N", help="Context in tokens."),
    click.option("--kv", type=click.Choice(KV_TYPES), help="Type of the KV cache; the plan takes f16 where it can."),
    click.option("--gpu-layers", type=int, metavar="N", help="Layers on the GPU; 0 is none, -1 all."),
    click.option("--device", "devices", multiple=True, metavar="NAME", help="Use only this GPU (again for more), or CPU."),
    click.option("--reserve", metavar="SIZE", help="Memory of each GPU to leave free, such as 2GiB."),
    click.option("--min-speed", type=float, metavar="N", help="The lowest acceptable speed in tokens a second."),
    click.option("--no-pictures", is_flag=True, help="Load no projector."),
    click.option("--no-draft", is_flag=True, help="Load no drafter."),
)


def plan_flags(command: Any) -> Any:
    """The plan's own choices as options of a command."""
    for flag in reversed(_FLAGS):
        command = flag(command)
    return command


def wishes_of(
    ctx: int | None, kv: Any, gpu_layers: int | None, devices: tuple[str, ...], reserve: str | None, min_speed: float | None,
    no_pictures: bool = False, no_draft: bool = False,
) -> Wishes:  # fmt: skip
    """The flags as wishes; UsageError for a value that makes no sense."""
    from localgemma.fit.planner import Wishes
    from localgemma.options import LoadOptions

    LoadOptions(ctx=ctx, gpu_layers=gpu_layers)  # its own limits
    if min_speed is not None and not 0 < min_speed < 10_000:
        raise UsageError(f"--min-speed cannot be {min_speed:g}.", "Give tokens a second, such as 5.")
    kept = parse_size(reserve) if reserve is not None else 0
    return Wishes(ctx, kv, gpu_layers, devices or None, kept, min_speed, not no_pictures, draft=not no_draft)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-m", "--model", default="gemma-4-31b", show_default=True, help="A model's name, or the path of a .gguf file.")
@plan_flags
@click.option("--vram", multiple=True, metavar="SIZE", help="Plan for a computer with such a GPU (again for more).")
@click.option("--ram", metavar="SIZE", help="Plan for a computer with so much memory.")
@click.option("--unified", is_flag=True, help="With --ram: GPU and programs share it, as on a Mac.")
@click.option("--json", "as_object", is_flag=True, help="Print one JSON object instead of text.")
def command(model: str, vram: tuple[str, ...], ram: str | None, unified: bool, as_object: bool, **flags: Any) -> None:
    """Say what this machine, or the one described by --vram and --ram, can do with MODEL, and why.

    Nothing is downloaded and nothing is loaded. Sizes count in GiB: 24, 24GB and 24GiB are the same.
    """
    wishes = wishes_of(**flags)
    described = described_machine(vram, ram, unified)
    from localgemma.fit import prepare

    decision = prepare.plan(model, wishes, described)
    if as_object:
        click.echo(json.dumps(decision.as_json(), ensure_ascii=False))
    else:
        show(decision)


def described_machine(vram: tuple[str, ...], ram: str | None, unified: bool) -> Machine | None:
    """The machine of --vram and --ram, or None for this one."""
    if not vram and ram is None:
        if unified:
            raise UsageError("--unified needs the size of the memory.", "Give it: --ram 64GiB --unified")
        return None
    from localgemma.fit.hardware import simulated

    cards = tuple(parse_size(size) for size in vram)
    memory = parse_size(ram) if ram is not None else 32 * GIB
    if unified and cards:
        raise UsageError("--unified and --vram do not go together.", "A machine with one pool has --ram only.")
    if any(size < 512 * MIB for size in (*cards, memory)):
        raise UsageError("A GPU or memory of less than 512 MiB is no use here.", "Write sizes like 24GiB or 24.")
    return simulated(cards, memory, unified=unified)


def show(decision: Decision) -> None:
    """The decision as a person reads it: the machine, the choices with their reasons, the memory, what was not chosen."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, width=None if Console().is_terminal else WIDTH)
    console.print(_machine(decision.machine), soft_wrap=False)
    console.print()
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(style="bold", max_width=40, overflow="fold")
    table.add_column()
    for choice in decision.choices:
        table.add_row(choice.what, choice.chosen, choice.reason)
    console.print(table)
    console.print()
    need, machine = decision.way.need, decision.machine
    memory = Table.grid(padding=(0, 2))
    memory.add_column(style="dim", no_wrap=True)
    memory.add_column(no_wrap=True)
    memory.add_column()
    for index, gpu in enumerate(machine.gpus[: len(need.gpus)]):
        if need.gpus[index]:
            memory.add_row(gpu.name, _share(need.gpu(index), gpu.free), _parts(need.gpus[index]))
    free = machine.ram_free - (sum(need.gpu(i) for i in range(len(need.gpus))) if machine.unified else 0)
    memory.add_row("RAM", _share(need.host_total, free), _parts(need.host))
    console.print(memory)
    if last := _last_load(decision):
        console.print(last)
    console.print()
    console.print(_next_step(decision))
    if decision.alternatives:
        console.print()
        console.print("Not chosen:")
        others = Table.grid(padding=(0, 2))
        others.add_column(style="dim", no_wrap=True)
        others.add_column(max_width=46, overflow="fold")
        others.add_column()
        for other in decision.alternatives:
            others.add_row(f"  {other.kind}", other.what, other.why)
        console.print(others)


def _machine(machine: Machine) -> str:
    whose = "A computer as described" if machine.simulated else "This computer"
    memory = f"{format_size(machine.ram_free)} of {format_size(machine.ram_total)} RAM free"
    if machine.unified:
        return f"{whose}: {memory}, shared with its GPU (which may use {format_size(machine.gpus[0].free)})"
    cards = [
        f"{gpu.name}{'' if machine.simulated else f' {gpu.description}'}, "
        f"{format_size(gpu.free)} of {format_size(gpu.total)} free"
        for gpu in machine.gpus
    ]
    return f"{whose}: {'; '.join([*cards, memory])}" + ("" if cards else "; no GPU that llama.cpp can use")


def _last_load(decision: Decision) -> str:
    """What this file's last load took here, beside what was predicted for it; empty where it was never loaded."""
    from localgemma import measured

    if decision.machine.simulated:
        return ""
    loads = [load for load in measured.load(decision.machine.key).loads if load.model == decision.way.candidate.name]
    if not loads:
        return ""
    told = [
        f"{format_size(taken)} on {device} (predicted {format_size(loads[-1].predicted.get(device, 0))})".replace(
            "on RAM", "of RAM"
        )
        for device, taken in loads[-1].taken.items()
    ]
    if loads[-1].seen_speed:
        told.append(f"{loads[-1].seen_speed:,.1f} tokens/s (predicted {loads[-1].speed:,.1f})")
    return f"Its last load here took {', '.join(told)}."


def _next_step(decision: Decision) -> str:
    candidate = decision.way.candidate
    if decision.machine.simulated:
        return "Speeds and free memory are those that such a computer usually has; run this on it for its own."
    if candidate.path:
        return f"Start it: localgemma chat -m {candidate.path if candidate.name.endswith('.gguf') else candidate.name}"
    return f"Get it: localgemma models pull {candidate.name}"


def _share(size: int, free: int) -> str:
    return f"{format_size(size)} of {format_size(free)}"


def _parts(items: Sequence[Item]) -> str:
    return ", ".join(f"{item.what} {format_size(item.size)}" for item in items if item.size >= 16 * MIB)
