"""`localgemma doctor`: what this machine has, what stands in the way, and what to type against it."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click

from localgemma.units import format_size

_MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "problem": ("✗", "red")}
_TYPES = (2, 8, 12, 14)  # ggml type ids of the usual quantisations: Q4_0, Q8_0, Q4_K, Q6_K


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--no-measure", is_flag=True, help="Do not measure how fast memory is read.")
@click.option("--json", "as_object", is_flag=True, help="Print one JSON object instead of text.")
def command(no_measure: bool, as_object: bool) -> None:
    """Look at this machine and name what stands in the way, with the fix to type.

    The exit code is 0 where a model can be loaded, 4 where memory is too small for it, 6 where llama.cpp does not work.
    """
    from localgemma.fit import doctor, rates

    facts = doctor.gather()
    found = doctor.examine(facts)
    speeds: dict[str, float] = {}
    busy = False
    if facts.machine and not no_measure:
        busy = rates.busy()
        speeds = rates.measure(facts.machine, _TYPES, again=True)
    if as_object:
        click.echo(json.dumps(_as_json(facts, found, speeds), ensure_ascii=False))
    else:
        for finding in found:
            mark, colour = _MARKS[finding.level]
            click.echo(f"{click.style(mark, fg=colour)} {finding.what}")
            if finding.fix:
                click.echo(f"  {finding.fix}")
        for name, told in _speeds(speeds):
            click.echo(f"{click.style('✓', fg='green')} {name} reads weights at {told}")
        if busy:
            click.echo(f"{click.style('!', fg='yellow')} Other programs were busy while this was measured.")
            click.echo("  For true speeds, run localgemma doctor again when the machine is quiet.")
    click.get_current_context().exit(max((finding.code for finding in found), default=0))


def _speeds(speeds: dict[str, float]) -> list[tuple[str, str]]:
    """(device, its speeds by type) as a person reads them."""
    from localgemma.files.facts import TYPES

    devices: dict[str, list[str]] = {}
    for key, rate in sorted(speeds.items()):
        device, _, kind = key.rpartition(":")
        devices.setdefault(device, []).append(f"{format_size(rate)}/s ({TYPES.get(int(kind), kind)})")
    return [(device, ", ".join(told)) for device, told in devices.items()]


def _as_json(facts: Any, found: Any, speeds: dict[str, float]) -> dict[str, Any]:
    from localgemma import measured

    machine = facts.machine
    return {
        "findings": [asdict(finding) for finding in found],
        "machine": asdict(machine) if machine else None,
        "cards": [asdict(card) for card in facts.cards],
        "rates": speeds,
        "loads": [asdict(load) for load in measured.load(machine.key).loads] if machine else [],
    }
