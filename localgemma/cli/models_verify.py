"""`localgemma models verify`: every byte of what is here, against what it should be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from localgemma.cli.models_list import name_of
from localgemma.cli.models_view import JSON, print_json, print_note, print_table, progress_bar, shortened
from localgemma.cli.output import Output, interruptible
from localgemma.engine import CancelToken
from localgemma.errors import ChecksumError, LocalgemmaError, NotFound
from localgemma.files import catalog, store
from localgemma.files.imports import link, parts_of
from localgemma.files.projector import Copy, planned
from localgemma.files.store import claimed_sha256
from localgemma.files.verify import Verdict, verify, verify_copy
from localgemma.units import format_size

if TYPE_CHECKING:
    from localgemma.files.catalog import Catalog
    from localgemma.files.store import Damaged, Held


@dataclass(frozen=True, slots=True)
class _Job:
    """One file to check: against a sha256 or, a corrected copy, against its original.

    `named` says that `expected` comes from its publisher, not from an earlier check.
    """

    name: str
    path: Path
    size: int
    expected: str | None = None
    bytes: int | None = None
    original: Path | None = None
    copy: Copy | None = None
    named: bool = True

    @property
    def work(self) -> int:
        """Bytes to read."""
        return 2 * self.size if self.copy else self.size


@click.command(name="verify", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", nargs=-1, metavar="[NAME|FILE]…")
@JSON
def command(names: tuple[str, ...], as_object: bool) -> None:
    """Check the sha256 and the structure of every file here, or of those named.

    A file whose sha256 nobody has published is only checked for its structure, and that is said. Exit code 5 where
    something is damaged.
    """
    known = catalog.load()
    found = store.inventory(known)
    held, damaged, others = _chosen(names, found, known)
    jobs = [job for item in held for job in _jobs(item, found, known)]
    jobs += [_Job(path.name, path, path.stat().st_size, claimed_sha256(path), named=False) for path in others]
    token, verdicts = CancelToken(), []
    with interruptible(token, Output(quiet=as_object)), progress_bar("Checking", sum(job.work for job in jobs)) as bar:
        for job in jobs:
            if job.copy and job.original:
                verdicts.append(verify_copy(job.original, job.copy, told=bar.told, cancel=token))
            else:
                verdicts.append(verify(job.path, job.expected, size=job.bytes, told=bar.told, cancel=token))
    for item in held:
        _remember(item, verdicts)
    bad = [item.path for item in damaged] + [verdict.path for verdict in verdicts if not verdict.intact]
    if as_object:
        print_json({"files": verdicts, "damaged": damaged})
    else:
        published = {file.sha256: f"{file.path} of {file.publisher}" for file in known.files() if file.sha256}
        rows = [(j.name, format_size(j.size), _said(j, v, published)) for j, v in zip(jobs, verdicts, strict=True)]
        print_table(("name", ">size", "result"), rows)
        for broken in damaged:
            print_note(f"Damaged: {shortened(broken.path)}: {broken.reason}")
    if bad:
        raise ChecksumError(
            f"{len(bad)} of {len(jobs) + len(damaged)} files are damaged: {', '.join(path.name for path in bad[:3])}.",
            "Get them again with: localgemma models pull NAME",
        )


def _said(job: _Job, verdict: Verdict, published: Mapping[str, str]) -> str:
    short = f"({verdict.sha256[:12]}…)"
    if not verdict.intact:
        return f"damaged: {verdict.problem}"
    if job.named:
        return f"sha256 and structure are right {short}"
    if verdict.sha256 in published:
        return f"sha256 and structure are right: {published[verdict.sha256]} {short}"
    before = " and unchanged since the last check" if verdict.expected else ""
    return f"structure is right{before}; its sha256 is of no file in the catalogue {short}"


def _remember(item: Held, verdicts: list[Verdict]) -> None:
    """Write the sha256 of a linked file into its record, by which it is recognised from now on."""
    for verdict in verdicts:
        if item.origin == "linked" and verdict.path == item.path and verdict.intact and len(parts_of(item.path)) == 1:
            link(item.path, sha256=verdict.sha256)


def _chosen(names: tuple[str, ...], found: store.Inventory, known: Catalog) -> tuple[list[Held], list[Damaged], list[Path]]:
    """The files that the names mean, sound, damaged, and of nobody's; NotFound for a name that means none."""
    if not names:
        return list(found.held), list(found.damaged), []
    held: list[Held] = []
    damaged: list[Damaged] = []
    others: list[Path] = []
    for name in names:
        wanted, path = _files_of(name, known), _path_of(name)
        some = [
            item for item in found.held if item.file in wanted or name == item.name or path in (item.path, item.path.resolve())
        ]
        paths = {Path(file.path).name for file in wanted}
        broken = [item for item in found.damaged if item.path == path or item.path.name in paths]
        if not some and not broken:
            if not path.is_file():
                hint = "See what is with: localgemma models list --here"
                raise NotFound(f"Nothing of {name[:80]!r} is on this machine.", hint)
            others.append(path)
        held += [item for item in some if item not in held]
        damaged += [item for item in broken if item not in damaged]
    copies = {copy.path for item in held if (copy := _copy_of(item))}
    held += [item for item in found.held if item.path in copies and item not in held]
    return held, damaged, others


def _path_of(name: str) -> Path:
    try:
        return Path(name).expanduser().resolve()
    except (OSError, ValueError, RuntimeError):
        return Path()


def _copy_of(item: Held) -> Copy | None:
    """The corrected copy that a projector has or would get."""
    return planned(item.path, store.projectors_folder()) if item.role == "projector" else None


def _files_of(name: str, known: Catalog) -> set[catalog.File]:
    try:
        variants = known.find(name).variants
    except LocalgemmaError:
        return set()
    return {file for variant in variants for file in (*variant.text, *variant.projectors, *variant.drafters)}


def _jobs(item: Held, found: store.Inventory, known: Catalog) -> list[_Job]:
    """What is to be checked of one file; a model in parts has one job a part."""
    name = name_of(item, known)
    if item.origin == "corrected":
        for other in found.of("projector"):
            copy = planned(other.path, item.path.parent) if other.origin != "corrected" else None
            if copy and copy.path == item.path:
                return [_Job(name, item.path, item.size, original=other.path, copy=copy)]
        return [_Job(name, item.path, item.size, item.sha256, named=False)]
    file = item.file
    if parts := [part for part in parts_of(item.path) if part != item.path]:
        return [_Job(f"{name} {part.name}", part, part.stat().st_size, claimed_sha256(part)) for part in (item.path, *parts)]
    named = claimed_sha256(item.path)
    if file and not named and (item.origin == "shipped" or (item.commit and item.commit == file.revision)):
        named = file.sha256
    exact = file.bytes if file and named and named == file.sha256 else None
    return [_Job(name, item.path, item.size, named or item.sha256, exact, named=named is not None)]
