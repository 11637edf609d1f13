"""Finds what is no longer needed: replaced files, corrected copies without their projector, dead links, unfinished work."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from localgemma.errors import LocalgemmaError
from localgemma.files import imports, store
from localgemma.files.catalog import Catalog
from localgemma.files.download import interrupted
from localgemma.files.imports import models_folder
from localgemma.files.pieces import JOURNAL
from localgemma.files.projector import planned
from localgemma.files.removal import Draft, Removal, is_ours
from localgemma.files.store import Held, Inventory

STALE = 24 * 3600  # seconds after which unfinished work is nobody's; a copy of 60 GB takes minutes


def plan_prune(catalog: Catalog) -> Removal:
    """What can go without losing anything that works; nothing that localgemma did not bring or make."""
    draft = Draft()
    inventory = store.inventory(catalog)
    for item in imports.imported():
        if item.state == "gone":
            draft.unlink(item, "the file is gone")
    for old in inventory.held:
        if old.origin == "hub" and old.file and _is_replaced(old, store.copies(old.file)[0]):
            if is_ours(old.path):
                draft.delete(old.path, "replaced by its publisher, and the new one is here")
            else:
                draft.keep(old.path, "replaced by its publisher, but another program fetched it")
    for broken in inventory.damaged:
        if is_ours(broken.path) and broken.origin != "corrected":
            draft.delete(broken.path, f"damaged: {broken.reason}")
    wanted = set(_wanted_copies(inventory))
    for copy in sorted(store.projectors_folder().glob("*.gguf")):
        if copy not in wanted:
            draft.delete(copy, "a corrected copy without its projector; made again where it is needed")
    for download in interrupted():
        if _is_stale(download.blob.with_name(download.blob.name + JOURNAL)):
            draft.abandon(download, f"the download of {download.path} was interrupted over a day ago")
    for left in _unfinished():
        draft.delete(left, "unfinished, and over a day old")
    return draft.done()


def _is_replaced(old: Held, best: Held) -> bool:
    """Whether `best`, the copy that is used, is a newer content of the same published file."""
    if old.sha256 is None or old.sha256 == best.sha256:
        return False
    return best.version == "newer" or (best.version == "same" and old.version in ("older", "other"))


def _wanted_copies(inventory: Inventory) -> Iterator[Path]:
    """The corrected copies of the projectors that are here."""
    for item in inventory.of("projector"):
        try:
            copy = planned(item.path, store.projectors_folder())
        except LocalgemmaError:
            continue
        if copy:
            yield copy.path


def _unfinished() -> Iterator[Path]:
    """Files of unfinished work in our own folders that nobody has written to for a day."""
    for folder in (models_folder(), store.projectors_folder()):
        for part in sorted(folder.glob(".*.part")):
            yield from filter(_is_stale, sorted(part.rglob("*")) if part.is_dir() else [part])


def _is_stale(path: Path) -> bool:
    try:
        return path.is_file() and path.stat().st_mtime < time.time() - STALE
    except OSError:
        return False
