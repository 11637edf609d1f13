"""Brings a model to this machine: what is missing of its text model, projector and drafter, and the corrected projector."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from localgemma import settings
from localgemma.engine import CancelToken
from localgemma.errors import BadModelFile, ChecksumError, DiskError
from localgemma.files import hub, ledger, store
from localgemma.files.cache import present
from localgemma.files.catalog import File, Variant
from localgemma.files.download import Demand, Transferred, cached, demand, download
from localgemma.files.header import read_header
from localgemma.files.hub import RemoteFile, Resolved
from localgemma.files.projector import SPARE, corrected, lacks_activation, planned
from localgemma.files.remote import fetch_header
from localgemma.units import format_size
from localgemma.whole import disk_errors


@dataclass(frozen=True, slots=True)
class Item:
    """One file of a pull: where it is (`here`), or what the hub has of it."""

    file: File
    here: Path | None
    remote: Resolved | None

    @property
    def size(self) -> int:
        """Bytes."""
        return self.remote.size if self.remote else self.here.stat().st_size if self.here else 0


@dataclass(frozen=True, slots=True)
class PullPlan:
    """What a pull of a variant would do. `copy` are the bytes of the corrected projector that it would make, 0 for none."""

    variant: Variant
    items: tuple[Item, ...]
    demand: Demand
    copy: int
    copy_folder: Path

    @property
    def fetches(self) -> tuple[Resolved, ...]:
        """What would be fetched."""
        return tuple(item.remote for item in self.items if item.remote)


@dataclass(frozen=True, slots=True)
class Pulled:
    """Where everything is; `copy` is the corrected projector, if there is one."""

    text: Path
    projector: Path | None
    drafter: Path | None
    copy: Path | None


def plan(variant: Variant, *, latest: bool = False) -> PullPlan:
    """Look what is here and ask the hub for the rest; without anything missing no connection is opened.

    `latest` takes the newest commit of each repository instead of the catalogue's. Raises DiskError where it would not
    fit, ChecksumError where hub and catalogue contradict each other, and what `hub.resolve` raises.
    """
    items = [_item(file, latest) for file in (variant.text[0], *variant.projectors[:1], *variant.drafters[:1])]
    if items[0].remote:
        items += [Item(part, None, hub.resolve(remote_of(part, latest=latest))) for part in variant.text[1:]]
    folder = store.projectors_folder()
    wanted = demand([item.remote for item in items if item.remote])
    result = PullPlan(variant, tuple(items), wanted, sum(_copy_size(item, folder) for item in items), folder)
    _check_room(result)
    return result


def run(plan: PullPlan, *, progress: Callable[[Transferred], None] | None = None, cancel: CancelToken | None = None) -> Pulled:
    """Fetch what is missing and make the corrected projector; raises as `download` does."""
    arrived = fetch(plan.items, progress=progress, cancel=cancel)
    where: dict[str, Path] = {}
    for item in plan.items:
        where.setdefault(item.file.role, item.here or arrived[item])
    copy = None
    if "projector" in where:
        made, note = corrected(where["projector"], plan.copy_folder)
        copy = made if note else None
    return Pulled(where["text"], where.get("projector"), where.get("drafter"), copy)


def fetch(
    items: Sequence[Item], *, progress: Callable[[Transferred], None] | None = None, cancel: CancelToken | None = None
) -> dict[Item, Path]:
    """Download what is not here yet and remember what came; raises as `download` does."""
    wanted = [(item, item.remote) for item in items if item.remote]
    for _, resolved in wanted:
        _drop_damaged(resolved)
    paths = download([resolved for _, resolved in wanted], progress=progress, cancel=cancel) if wanted else []
    for (item, resolved), path in zip(wanted, paths, strict=True):
        if resolved.sha256 and present(resolved) == path:  # else the hub replaced it under way
            known = item.file.sha256
            ledger.record(path, resolved.sha256, fetched=True, supersedes=known if known != resolved.sha256 else None)
    return {item: path for (item, _), path in zip(wanted, paths, strict=True)}


def remote_of(file: File, *, latest: bool = False) -> RemoteFile:
    """How the hub calls a catalogue's file."""
    return RemoteFile(file.repository, "main" if latest else file.revision or "main", file.path)


def _item(file: File, latest: bool) -> Item:
    if file.folder:
        return Item(file, file.folder / file.path, None)
    here = store.copies(file)
    if here and here[0].version != "older" and not latest:
        return Item(file, here[0].path, None)
    resolved = hub.resolve(remote_of(file, latest=latest))
    for item in here:
        if resolved.sha256 and item.sha256 == resolved.sha256:
            return Item(file, item.path, None)
    if not latest and file.sha256 and resolved.sha256 and file.sha256 != resolved.sha256:
        raise ChecksumError(
            f"{file.repository} has other bytes under {file.path} than the catalogue says.",
            "See what changed with: localgemma models outdated",
        )
    return Item(file, None, resolved)


def _drop_damaged(resolved: Resolved) -> None:
    """Remove a cached blob that is not what its name says, so that it is fetched anew."""
    path = cached(RemoteFile(resolved.remote.repository, resolved.commit, resolved.remote.path))
    if path is None:
        return
    record = ledger.recall(path)
    try:
        sound = read_header(path).file_size == resolved.size and (record is None or record.intact)
    except BadModelFile:
        sound = False
    if not sound:
        with disk_errors(f"The damaged {path.name}", path.parent):
            path.resolve().unlink()
            path.unlink(missing_ok=True)


def _copy_size(item: Item, folder: Path) -> int:
    """Bytes of the corrected copy that has still to be made of this file."""
    if item.file.role != "projector":
        return 0
    if item.here:
        copy = planned(item.here, folder)
        return copy.size if copy and not copy.is_whole else 0
    header = fetch_header(item.remote) if item.remote else None
    return header.file_size if header and lacks_activation(header) else 0


def _check_room(plan: PullPlan) -> None:
    """DiskError where download and copy together do not fit; they may be on two disks."""
    cache = _existing(settings.load().hub_cache)
    copies = _existing(plan.copy_folder)
    same = cache.stat().st_dev == copies.stat().st_dev
    for folder, size in ((cache, plan.demand.missing + (plan.copy if same else 0)), (copies, plan.copy)):
        free = shutil.disk_usage(folder).free
        if size and size + SPARE > free:
            raise DiskError(
                f"{plan.variant.name} needs {format_size(size + SPARE)} in {folder}, and {format_size(free)} are free.",
                f"Free {format_size(size + SPARE - free)} there, or choose a smaller file: localgemma models list",
            )


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next((path for path in (folder, *folder.parents) if path.is_dir()), Path.cwd())
