"""`localgemma models bundle, unbundle, rm, prune`: what is done with files that are here."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

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
from localgemma.cli.output import Output, interruptible
from localgemma.engine import CancelToken
from localgemma.errors import UsageError
from localgemma.units import format_size

if TYPE_CHECKING:
    from localgemma.files.imports import Imported
    from localgemma.files.removal import Removal

_PATH = click.Path(path_type=Path)
_HELP = {"help_option_names": ["-h", "--help"]}


@click.command(context_settings=_HELP)
@click.argument("name")
@click.option("-o", "--output", "target", type=_PATH, metavar="FILE", help="Default: the model's name, here.")
@click.option("--no-drafter", is_flag=True, help="Leave the drafter out.")
@DRY_RUN
@JSON
def bundle(name: str, target: Path | None, no_drafter: bool, dry_run: bool, as_object: bool) -> None:
    """Pack the model NAME (or a file) into one file for a machine without a network.

    It holds the model, its projector and drafter, and the sha256 of each; unbundle checks them there.
    """
    from localgemma.files import catalog
    from localgemma.files.bundle import plan_bundle
    from localgemma.files.locate import locate, of_path

    known = catalog.load()
    is_path = name.endswith(".gguf") or "/" in name or os.sep in name
    local = of_path(Path(name).expanduser()) if is_path else locate(name, known)
    plan = plan_bundle(local, known, target or Path(_file_name(local.name)), drafter=not no_drafter)
    if not as_object:
        rows = [(member.role, member.name, format_size(member.size), shortened(member.path)) for member in plan.members]
        print_table(("file", "name", ">size", "from"), rows)
        print_note(f"{'Would write' if dry_run else 'Writing'} {shortened(plan.target)}, {format_size(plan.size)}.")
    hashes: dict[str, str] = {}
    if not dry_run:
        with work("Packing", plan.size, shown=not as_object) as told:
            hashes = plan.execute(told)
    if as_object:
        files = [
            {"name": m.name, "role": m.role, "bytes": m.size, "sha256": hashes.get(m.name, m.expected), "from": m.path}
            for m in plan.members
        ]
        print_json({"name": plan.name, "bundle": plan.target, "bytes": plan.size, "files": files, "dry_run": dry_run})
    elif not dry_run:
        print_note(f"Carry it over, then type there: localgemma models unbundle {plan.target.name}")


@click.command(context_settings=_HELP)
@click.argument("file", type=_PATH)
@DRY_RUN
@JSON
def unbundle(file: Path, dry_run: bool, as_object: bool) -> None:
    """Check the bundle FILE, byte by byte, and install what is in it."""
    from localgemma.files.unbundle import install, read_bundle

    found = read_bundle(file)
    if not as_object:
        print_note(f"{found.name}, {format_size(found.size)}, into {shortened(found.folder)}:")
        rows = [(content.role, content.name, format_size(content.size), content.sha256[:16]) for content in found.contents]
        print_table(("file", "name", ">size", "sha256"), rows)
    linked: tuple[Imported, ...] = ()
    if not dry_run:
        with work("Checking and installing", found.size, shown=not as_object) as told:
            linked = install(found, told)
    if as_object:
        files = [
            {"name": c.name, "role": c.role, "bytes": c.size, "sha256": c.sha256, "catalogue": c.catalogue}
            for c in found.contents
        ]
        installed = [{"name": item.name, "role": item.role, "path": item.path} for item in linked]
        print_json({"name": found.name, "folder": found.folder, "files": files, "installed": installed, "dry_run": dry_run})
    elif linked:
        print_note(f"Ready. Talk with it: localgemma chat -m {linked[0].name}")


@click.command(context_settings=_HELP)
@click.argument("names", nargs=-1, required=True)
@DRY_RUN
@YES
@JSON
def rm(names: tuple[str, ...], dry_run: bool, yes: bool, as_object: bool) -> None:
    """Remove the models NAMES from this machine, with what only they need.

    A linked file is only forgotten: it belongs to whoever put it there. In the hub's cache, which other programs share, only
    what localgemma fetched is deleted, or a file that is given by its path.
    """
    from localgemma.files import catalog
    from localgemma.files.removal import plan_removal

    _remove(plan_removal(names, catalog.load()), dry_run, yes, as_object)


@click.command(context_settings=_HELP)
@DRY_RUN
@YES
@JSON
def prune(dry_run: bool, yes: bool, as_object: bool) -> None:
    """Remove what is no longer needed: replaced files, copies without their original, dead links, unfinished work."""
    from localgemma.files import catalog
    from localgemma.files.prune import plan_prune

    _remove(plan_prune(catalog.load()), dry_run, yes, as_object)


def _remove(plan: Removal, dry_run: bool, yes: bool, as_object: bool) -> None:
    """Show the plan, ask, do it."""
    if as_object and plan.steps and not (yes or dry_run):
        raise UsageError("With --json nobody is asked.", "Add --yes to do it, or --dry-run to see it.")
    if not as_object:
        rows: list[tuple[str, ...]] = [
            (step.what, format_size(step.size) if step.size else "", shortened(step.path), step.why) for step in plan.steps
        ]
        rows += [("keep", "", shortened(kept.path), kept.why) for kept in plan.kept]
        if rows:
            print_table(("", ">frees", "file", "why"), rows)
        if not plan.steps:
            print_note("There is nothing to remove.")
    done = bool(plan.steps) and not dry_run
    if done:
        question = f"Remove this, and free {format_size(plan.freed)}?" if plan.freed else "Forget these links?"
        confirm(question, yes, default=False)
        plan.execute()
    if as_object:
        print_json({"steps": plan.steps, "kept": plan.kept, "freed": plan.freed, "done": done})
    elif done:
        print_note(f"Done; {format_size(plan.freed)} are free again." if plan.freed else "Done.")


@contextmanager
def work(what: str, total: int, *, shown: bool) -> Iterator[Callable[[int, int], bool]]:
    """A bar to tell of bytes done and in all; it answers False once Ctrl-C was pressed."""
    token, start = CancelToken(), time.monotonic()
    with interruptible(token, Output(quiet=not shown)), progress_bar(what, total, shown=shown) as bar:

        def told(done: int, all_of: int) -> bool:
            speed = done / max(1e-3, time.monotonic() - start)
            bar.at(done, speed, (all_of - done) / speed if speed else None)
            return not token.cancelled

        yield told


def _file_name(name: str) -> str:
    """`gemma-4-31b-Q4_K_M-unsloth.tar` for `gemma-4-31b:Q4_K_M@unsloth`."""
    return "".join(char if char.isalnum() or char in "._-" else "-" for char in name).strip("-.") + ".tar"
