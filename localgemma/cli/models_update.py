"""`localgemma models outdated` and `update`: what publishers have replaced since, and whether it is worth a download."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from localgemma import settings
from localgemma.cli.models_list import name_of
from localgemma.cli.models_view import (
    DRY_RUN,
    JSON,
    YES,
    confirm,
    print_json,
    print_note,
    print_table,
    progress_bar,
)
from localgemma.cli.output import Output, interruptible
from localgemma.engine import CancelToken
from localgemma.files import catalog, store
from localgemma.files.download import demand
from localgemma.files.outdated import Finding, compare, newest_of, rebuild
from localgemma.files.pull import Item, fetch
from localgemma.units import format_size

if TYPE_CHECKING:
    from localgemma.files.catalog import Catalog
    from localgemma.files.store import Held

_NOTHING = "Nothing here comes from a publisher. Download a model with: localgemma models pull NAME"
_QUICK = click.option("--quick", is_flag=True, help="Do not read the weights here to prove that only the header changed.")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", nargs=-1, metavar="[NAME]…")
@_QUICK
@JSON
def outdated(names: tuple[str, ...], quick: bool, as_object: bool) -> None:
    """Compare what is here with what its publishers offer now, and say what changed.

    Offline it compares with the catalogue alone.
    """
    known = catalog.load()
    held = _published(names, known)
    if settings.load().offline:
        _offline(held, known, as_object)
        return
    findings = _compared(held, quick, as_object)
    if as_object:
        print_json({"files": [_as_json(finding) for finding in findings]})
        return
    _show(findings, known)
    if any(finding.needs_download or finding.needs_rebuild for finding in findings):
        print_note("Get the newest with: localgemma models update")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", nargs=-1, metavar="[NAME]…")
@DRY_RUN
@YES
@JSON
def update(names: tuple[str, ...], dry_run: bool, yes: bool, as_object: bool) -> None:
    """Download the newest of what is here, where more than the chat template changed.

    Where only the header is new, the file is made from it and the weights that are here. What is replaced stays until:
    localgemma models prune
    """
    known = catalog.load()
    findings = _compared(_published(names, known), False, as_object)
    wanted = [Item(f.held.file, None, f.newest) for f in findings if f.needs_download and f.held.file and f.newest]
    rebuilt = [finding for finding in findings if finding.needs_rebuild]
    if not as_object:
        _show(findings, known)
    need = demand([item.remote for item in wanted if item.remote])
    if wanted and not dry_run:
        confirm(f"Download {format_size(need.missing)}?", yes or as_object)
    if not dry_run:
        _bring(wanted, need.total, rebuilt, not as_object)
    if as_object:
        files = [_as_json(finding) for finding in findings]
        print_json({"files": files, "download_bytes": need.missing, "dry_run": dry_run})
    elif dry_run and (wanted or rebuilt):
        print_note(f"To download: {format_size(need.missing)}; to make anew from what is here: {len(rebuilt)} files.")
    elif wanted or rebuilt:
        print_note("Updated. Remove the old with: localgemma models prune")


def _bring(wanted: list[Item], size: int, rebuilt: list[Finding], shown: bool) -> None:
    """Make what can be made here, download the rest."""
    token = CancelToken()
    with interruptible(token, Output(quiet=not shown)):
        work = sum(finding.held.size for finding in rebuilt)
        with progress_bar("Making anew", work, shown=shown) as bar:
            for finding in rebuilt:
                rebuild(finding, told=bar.told, cancel=token)
        with progress_bar("Downloading", size, shown=shown) as bar:
            fetch(wanted, progress=lambda now: bar.at(now.done, now.bytes_per_second, now.seconds_left), cancel=token)


def _published(names: tuple[str, ...], known: Catalog) -> list[Held]:
    """What is here and has a publisher, of each file the copy in use; with names, only of those models."""
    best: dict[catalog.File, Held] = {}
    for item in sorted(store.inventory(known).held, key=lambda item: item.rank):
        if item.file and item.file.repository:
            best.setdefault(item.file, item)
    held = list(best.values())
    if not names:
        return held
    files = {f for name in names for v in known.find(name).variants for f in (*v.text, *v.projectors, *v.drafters)}
    return [item for item in held if item.file in files]


def _compared(held: list[Held], quick: bool, as_object: bool) -> list[Finding]:
    newest = newest_of(held)
    token = CancelToken()
    with (
        interruptible(token, Output(quiet=as_object)),
        progress_bar("Comparing", sum(item.size for item in held), shown=not as_object) as bar,
    ):
        findings = []
        for item in held:
            there = newest.get((item.file.repository, item.file.path)) if item.file else None
            findings.append(compare(item, there, prove=not quick, told=bar.told, cancel=token))
    return findings


def _show(findings: list[Finding], known: Catalog) -> None:
    if not findings:
        print_note(_NOTHING)
        return
    changed = [finding for finding in findings if finding.change != "none"]
    if not changed:
        print_note(f"All {len(findings)} files here are what their publishers offer now.")
        return
    rows = [
        (name_of(f.held, known), format_size(f.newest.size) if f.needs_download and f.newest else "–", f.detail)
        for f in changed
    ]
    print_table(("name", ">download", "what changed"), rows)
    if any(f.change == "template" for f in changed):
        print_note("localgemma has a chat template of its own: a change of the file's template alone needs no download.")


def _offline(held: list[Held], known: Catalog, as_object: bool) -> None:
    """What the catalogue alone can tell."""
    rows = [(item, {"older": "replaced since", "other": "not the catalogue's content"}.get(item.version, "")) for item in held]
    if as_object:
        print_json(
            {"offline": True, "files": [{"name": name_of(i, known), "path": i.path, "version": i.version} for i in held]}
        )
        return
    print_note("Offline: compared with the catalogue alone.")
    if not held:
        print_note(_NOTHING)
        return
    print_table(("name", "state"), [(name_of(item, known), said or "as the catalogue says") for item, said in rows])


def _as_json(finding: Finding) -> dict[str, Any]:
    newest = finding.newest
    return {
        "name": finding.held.name, "path": finding.held.path, "sha256": finding.held.sha256, "change": finding.change,
        "detail": finding.detail, "needs_download": finding.needs_download, "needs_rebuild": finding.needs_rebuild,
        "newest": {"commit": newest.commit, "sha256": newest.sha256, "bytes": newest.size} if newest else None,
    }  # fmt: skip
