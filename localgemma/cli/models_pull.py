"""`localgemma models pull`: download a model with its projector and drafter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from localgemma import runtime, settings
from localgemma.cli.models_view import (
    DRY_RUN,
    JSON,
    YES,
    confirm,
    print_json,
    print_note,
    print_table,
    progress_bar,
    shortened,
)
from localgemma.cli.output import Output, clean, interruptible
from localgemma.engine import CancelToken
from localgemma.files import catalog
from localgemma.files import pull as pulling
from localgemma.units import format_size

if TYPE_CHECKING:
    from localgemma.files.pull import Item, Pulled, PullPlan


@click.command(name="pull", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("name")
@click.option("--latest", is_flag=True, help="The repository's newest commit instead of the catalogue's.")
@DRY_RUN
@YES
@JSON
def command(name: str, latest: bool, dry_run: bool, yes: bool, as_object: bool) -> None:
    """Download NAME with its projector and drafter into the hub's cache.

    What is already on this machine is not downloaded again, and a download that was cut goes on where it ended.
    """
    variant, why = runtime.choose(catalog.load().find(name))
    if not as_object:
        _say(f"{variant.name}: {why}.")
    plan = pulling.plan(variant, latest=latest)
    if not as_object:
        _show(plan)
    if dry_run:
        if as_object:
            print_json(_as_json(plan) | {"dry_run": True})
        return
    if plan.fetches:
        confirm(f"Download {format_size(plan.demand.missing)}?", yes or as_object)
    pulled = fetch(plan, shown=not as_object)
    if as_object:
        print_json(_as_json(plan) | {"dry_run": False, "text": pulled.text, "projector": pulled.copy or pulled.projector,
                                     "drafter": pulled.drafter})  # fmt: skip
        return
    if pulled.copy:
        _say(f"The projector does not say which activation it needs; a corrected copy is used: {shortened(pulled.copy)}")
    _say(f"Ready. Talk with it: localgemma chat -m {name}")


def fetch(plan: PullPlan, *, shown: bool = True) -> Pulled:
    """Run a plan with a bar on stderr; Ctrl-C ends it, and the next try goes on from there."""
    token = CancelToken()
    with interruptible(token, Output(quiet=not shown)), progress_bar("Downloading", plan.demand.total, shown=shown) as bar:
        return pulling.run(
            plan,
            progress=lambda now: bar.at(now.done, now.bytes_per_second, now.seconds_left),
            cancel=token,
        )


def _show(plan: PullPlan) -> None:
    rows = [(_role(item), item.file.path, format_size(item.size), _source(item)) for item in plan.items]
    if plan.copy:
        rows.append(("pictures", "corrected copy", format_size(plan.copy), f"made here, in {shortened(plan.copy_folder)}"))
    print_table(("for", "file", ">size", "from"), rows)
    if not plan.fetches:
        click.echo("Everything is here.")
        return
    need = plan.demand
    partly = f", besides {format_size(need.partial)} that are here already," if need.partial else ""
    print_note(
        f"To download: {format_size(need.missing)}{partly} into {shortened(need.folder)}, {format_size(need.free)} free."
    )


def _role(item: Item) -> str:
    return {"projector": "pictures"}.get(item.file.role, item.file.role)


def _source(item: Item) -> str:
    if item.remote is None:
        return "here already"
    return f"{settings.load().hub_endpoint.split('//')[-1]}/{item.file.repository} @{item.remote.commit[:12]}"


def _as_json(plan: PullPlan) -> dict[str, Any]:
    return {
        "name": plan.variant.name,
        "files": [
            {
                "role": item.file.role, "repository": item.file.repository or None, "path": item.file.path,
                "commit": item.remote.commit if item.remote else None, "bytes": item.size,
                "sha256": item.remote.sha256 if item.remote else item.file.sha256, "here": item.here,
            }
            for item in plan.items
        ],
        "download_bytes": plan.demand.missing, "partial_bytes": plan.demand.partial, "free_bytes": plan.demand.free,
        "folder": plan.demand.folder, "corrected_projector_bytes": plan.copy,
    }  # fmt: skip


def _say(text: str) -> None:
    click.echo(clean(text), err=True)
