"""`localgemma models list`: what is on this machine, and what could be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from localgemma import runtime
from localgemma.cli.models_view import (
    JSON,
    ORIGINS,
    held_json,
    print_json,
    print_note,
    print_table,
    quality_text,
    shortened,
    size_text,
    variant_json,
)
from localgemma.errors import LocalgemmaError
from localgemma.files import catalog, store
from localgemma.units import format_size

if TYPE_CHECKING:
    from localgemma.files.catalog import Catalog, Variant
    from localgemma.files.store import Held, Inventory
    from localgemma.fit.planner import Way

_ROLES = {"text": "text", "projector": "pictures", "drafter": "drafter"}
_VERSIONS = {"newer": "newer", "older": "replaced", "other": "differs"}


@click.command(name="list", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("name", required=False)
@click.option("--here", "only_here", is_flag=True, help="Only what is on this machine.")
@click.option("--all", "every", is_flag=True, help="Also files whose size nobody has published.")
@JSON
def command(name: str | None, only_here: bool, every: bool, as_object: bool) -> None:
    """List what is on this machine and what could be; NAME narrows what could be.

    It opens no connection.
    """
    known = catalog.load()
    found = store.inventory(known)
    variants = list(known.find(name).variants) if name else list(known.variants())
    if as_object:
        print_json(
            {
                "here": [held_json(item) for item in found.held],
                "damaged": found.damaged,
                "available": [] if only_here else _available(variants, found, known),
            }
        )
        return
    _show_here(found, known)
    if not only_here:
        _show_available(variants, found, known, every)


def _available(variants: list[Variant], found: Inventory, known: Catalog) -> list[dict[str, Any]]:
    """Published variants as --json says them; `fits` is None where that is not known."""
    here, ways = {item.file for item in found.held}, _ways(known)
    result = []
    for variant in variants:
        way = ways.get(variant.name)
        fits = way is not None if variant.name in ways else None
        speed = round(way.speed, 2) if way else None
        result.append(variant_json(variant) | {"here": variant.text[0] in here, "fits": fits, "tokens_per_second": speed})
    return result


def _show_here(found: Inventory, known: Catalog) -> None:
    click.echo("On this machine:")
    rows = [
        (name_of(item, known), _ROLES.get(item.role, item.role), format_size(item.size), _state(item), ORIGINS[item.origin])
        for item in found.held
    ]
    print_table(("name", "for", ">size", "state", "from"), rows)
    for damaged in found.damaged:
        print_note(f"Damaged, and not used: {shortened(damaged.path)}: {damaged.reason}")


def name_of(item: Held, known: Catalog) -> str:
    """How a person names a file that is here."""
    if item.origin == "corrected":
        return f"{item.name.rpartition('-gelu-')[0]}, corrected"
    if item.file is None:
        return item.name
    if item.role != "text":
        return f"{item.name} @{item.file.publisher}"
    for variant in known.variants():
        if item.file in variant.text:
            return variant.model if len(known.entries[variant.model].variants) == 1 else variant.name
    return item.name


def _state(item: Held) -> str:
    return ", ".join(filter(None, ("checked" if item.verified else "not checked", _VERSIONS.get(item.version, ""))))


def _show_available(variants: list[Variant], found: Inventory, known: Catalog, every: bool) -> None:
    here = {item.file for item in found.held}
    could = [variant for variant in variants if variant.text[0] not in here]
    sized = sorted((v for v in could if v.size), key=lambda v: v.size or 0)
    unsized = [variant for variant in could if not variant.size]
    if not could:
        return
    click.echo("\nCould be here:")
    ways = _ways(known)
    shown = (*sized, *(unsized if every else ()))
    rows = [(v.name, size_text(v.text), _bits(v), quality_text(v.quality), _speed(v, ways)) for v in shown]
    print_table(("name", ">size", ">bits", "quality", "here"), rows)
    if unsized and not every:
        click.echo(f"And {len(unsized)} whose size nobody has published: --all")
    click.echo()
    for model in dict.fromkeys(variant.model for variant in could):
        variant, why = runtime.choose(known.find(model))
        print_note(f"{model} alone means {variant.name} here: {why}.")
    for measure in {q.measure.name: q.measure for v in sized for q in v.quality}.values():
        better = "lower" if measure.lower_is_better else "higher"
        print_note(f"{measure.name}: {measure.metric}; {better} is better. {measure.caution}")
    click.echo("Download one with: localgemma models pull NAME")


def _ways(known: Catalog) -> dict[str, Way | None]:
    """How each could be loaded here; nothing where llama.cpp cannot be asked for this machine's devices."""
    from localgemma.fit.pick import fits

    try:
        return fits(list(known.entries.values()))
    except LocalgemmaError:
        return {}


def _speed(variant: Variant, ways: dict[str, Way | None]) -> str:
    if variant.name not in ways:
        return ""
    way = ways[variant.name]
    return f"{way.speed:.1f} tok/s" if way else "too large"


def _bits(variant: Variant) -> str:
    return f"{variant.bits_per_weight:.2f}" if variant.bits_per_weight else ""
