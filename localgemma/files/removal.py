"""Removes models and what is no longer needed: planned and shown first, and never a file that another program owns.

What may be deleted lies in the folders that localgemma keeps itself, or in the hub cache, which it shares with other
programs: there only what localgemma fetched, or what was named by its own path. A linked file is somebody else's: its link
is removed and the file stays.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from localgemma import settings
from localgemma.errors import DiskError, LocalgemmaError, NotFound, UsageError
from localgemma.files import imports, ledger, store
from localgemma.files.bundle import MANIFEST
from localgemma.files.catalog import Catalog, File
from localgemma.files.download import interrupted
from localgemma.files.imports import Imported, models_folder, parts_of
from localgemma.files.pieces import JOURNAL, PART, Unfinished
from localgemma.files.projector import planned
from localgemma.files.store import Held


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that will be done to `path`: "delete" frees `size` bytes, "unlink" only forgets where the file is."""

    what: Literal["delete", "unlink"]
    path: Path
    size: int
    why: str


@dataclass(frozen=True, slots=True)
class Kept:
    """A file that stays although it was meant, and why."""

    path: Path
    why: str


@dataclass(frozen=True, slots=True)
class Removal:
    """What will be done, and what stays: show it, then `execute`."""

    steps: tuple[Step, ...]
    kept: tuple[Kept, ...] = ()

    @property
    def freed(self) -> int:
        """Bytes that become free."""
        return sum(step.size for step in self.steps)

    def execute(self) -> None:
        """Do it; DiskError names the first file that could not be removed, what came before it is done."""
        for step in self.steps:
            try:
                _delete(step.path) if step.what == "delete" else _unlink(step.path)
            except OSError as error:
                raise DiskError(
                    f"{step.path} could not be removed: {error.strerror or error}.",
                    "Close what uses it, or make its folder writable, then try again.",
                ) from error


@dataclass
class Draft:
    """A plan while it grows; nothing is in it twice."""

    steps: dict[tuple[str, Path], Step] = field(default_factory=dict)
    kept: dict[Path, Kept] = field(default_factory=dict)

    def delete(self, path: Path, why: str) -> None:
        """Delete a model's file, or all its parts, with the corrected copy that was made of a projector."""
        for part in parts_of(path):
            self.steps.setdefault(("delete", part), Step("delete", part, _size(part), why))
        with contextlib.suppress(LocalgemmaError):  # a file that cannot be read has no copy
            if (copy := planned(path, store.projectors_folder())) and copy.path.exists():
                self.delete(copy.path, "its corrected copy")

    def abandon(self, download: Unfinished, why: str) -> None:
        """Delete what an interrupted download left."""
        for end in (PART, JOURNAL):
            path = download.blob.with_name(download.blob.name + end)
            if path.exists():
                self.steps.setdefault(("delete", path), Step("delete", path, _size(path), why))

    def unlink(self, item: Imported, why: str) -> None:
        """Forget a link."""
        self.steps.setdefault(("unlink", item.path), Step("unlink", item.path, 0, why))

    def keep(self, path: Path, why: str) -> None:
        """Say that a file stays."""
        self.kept.setdefault(path, Kept(path, why))

    def done(self) -> Removal:
        """The plan; what is deleted is not kept."""
        deleted = {path for what, path in self.steps if what == "delete"}
        return Removal(tuple(self.steps.values()), tuple(kept for path, kept in self.kept.items() if path not in deleted))


def plan_removal(names: Sequence[str], catalog: Catalog) -> Removal:
    """What removing these models does: each a catalogue's name, a linked file's name, or a path.

    Raises NotFound where a name means nothing that is here, UsageError for a path that is not ours to delete.
    """
    draft = Draft()
    for name in names:
        link = next((item for item in imports.imported() if name in (item.name, str(item.path))), None)
        if link:
            _plan_link(link, draft)
        elif "/" in name or "\\" in name or name.endswith(".gguf"):
            _plan_path(Path(name).expanduser().absolute(), draft)
        else:
            _plan_name(name, catalog, draft)
    return draft.done()


def is_ours(path: Path) -> bool:
    """Whether localgemma keeps this file itself: unpacked, split, corrected, or fetched by it into the hub cache."""
    own = (models_folder(), store.projectors_folder())
    if any(_inside(path, folder) for folder in own):
        return True
    record = ledger.recall(path)
    return _inside(path, settings.load().hub_cache) and record is not None and record.fetched


def _plan_link(item: Imported, draft: Draft) -> None:
    draft.unlink(item, "you named it")
    if item.state == "gone":
        return
    if _inside(item.path, models_folder()):
        draft.delete(item.path, "localgemma unpacked or made it")
    else:
        draft.keep(item.path, "linked only; its owner keeps it")


def _plan_path(path: Path, draft: Draft) -> None:
    if not path.exists():
        raise NotFound(f"There is no file {path}.", "See what is here with: localgemma models list")
    if not any(_inside(path, folder) for folder in (models_folder(), store.projectors_folder(), settings.load().hub_cache)):
        raise UsageError(f"{path} is not localgemma's to delete.", "Delete it yourself where you manage your files.")
    draft.delete(path, "you named its path")


def _plan_name(name: str, catalog: Catalog, draft: Draft) -> None:
    found = catalog.find(name)
    meant = {file for variant in found.variants for file in (*variant.text, *variant.projectors, *variant.drafters)}
    texts = {file for file in meant if file.role == "text"}
    others = [v for v in catalog.variants() if v.text[0] not in texts and any(map(store.copies, v.text))]
    needed = {file for variant in others for file in (*variant.projectors, *variant.drafters)}
    present = [(file, item) for file in meant for item in store.copies(file)]
    cut = [
        each for each in interrupted() if any((f.repository, f.path) == (each.repository, each.path) for f in meant - needed)
    ]
    for each in cut:
        draft.abandon(each, "its download was begun and not finished")
    if not present and not cut:
        raise NotFound(f"{name} is not on this machine.", "See what is here with: localgemma models list")
    for file, item in sorted(present, key=lambda pair: (pair[0].role != "text", str(pair[1].path))):
        _plan_held(file, item, draft, needed=file in needed)


def _plan_held(file: File, item: Held, draft: Draft, *, needed: bool) -> None:
    if item.origin == "shipped":
        draft.keep(item.path, "it comes with localgemma")
    elif needed:
        draft.keep(item.path, "another model here needs it")
    elif item.origin == "linked":
        link = next((link for link in imports.imported() if link.path == item.path), None)
        if link:
            _plan_link(link, draft)
    elif is_ours(item.path):
        draft.delete(item.path, f"the {file.role} file of {file.publisher}, fetched by localgemma")
    else:
        draft.keep(item.path, f"another program fetched it; delete it with: localgemma models rm {item.path}")


def _delete(path: Path) -> None:
    """Delete a file of ours; in the hub cache its blob and every name of it."""
    cache = settings.load().hub_cache
    folder = next((f for f in (models_folder(), store.projectors_folder(), cache) if _inside(path, f)), None)
    if folder is None:  # it was moved, or a link was put in its way, since the plan was shown
        raise DiskError(f"{path} is not where localgemma keeps files.", "Plan again.")
    with _nobody_fetches(path, cache) if path.name.endswith((PART, JOURNAL)) else contextlib.nullcontext():
        names = _names_in_hub(path, cache) if folder == cache else [path]
        ledger.forget(path)
        for name in names:
            name.unlink(missing_ok=True)
            _tidy(name.parent, folder)
    for item in imports.imported():
        if item.path == path:
            imports.forget(item)


def _unlink(path: Path) -> None:
    for item in imports.imported():
        if item.path == path:
            imports.forget(item)


@contextlib.contextmanager
def _nobody_fetches(path: Path, cache: Path) -> Iterator[None]:
    """Hold the lock of whoever fetches this file (huggingface_hub's own); DiskError while somebody does."""
    name = path.name.removesuffix(PART).removesuffix(JOURNAL)
    lock = cache / ".locks" / _repository(path, cache).name / f"{name}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock, timeout=0):
            yield
    except Timeout as error:
        raise DiskError(
            f"{path.name} is being downloaded now.", "Stop that download, or let it end, then try again."
        ) from error


def _names_in_hub(path: Path, cache: Path) -> list[Path]:
    """Every name of the file in its repository: those in snapshots, be they symbolic or hard links, and its blob last."""
    repository = _repository(path, cache)
    names = [path]
    try:
        stat = path.stat()
    except OSError:
        return names
    for name in (*(repository / "snapshots").rglob("*"), *(repository / "blobs").glob("*")):
        with contextlib.suppress(OSError):
            other = name.stat()
            if stat.st_ino and (other.st_dev, other.st_ino) == (stat.st_dev, stat.st_ino) and name != path:
                names.append(name)
    return names


def _repository(path: Path, cache: Path) -> Path:
    """The folder of the file's repository, whatever links lead to the file or to the cache."""
    return cache.resolve() / (path.parent.resolve() / path.name).relative_to(cache.resolve()).parts[0]


def _tidy(folder: Path, top: Path) -> None:
    """Remove folders that became empty, or hold only a bundle's manifest, up to `top`."""
    while folder != top and top in folder.parents:
        try:
            left = [child.name for child in folder.iterdir()]
            if left == [MANIFEST] and folder.parent == models_folder():
                (folder / MANIFEST).unlink()
            folder.rmdir()
        except OSError:
            return
        folder = folder.parent


def _inside(path: Path, folder: Path) -> bool:
    """Whether the name `path` lies below `folder`, links on the way followed, the file itself not."""
    try:
        return folder.resolve() in (path.parent.resolve() / path.name).parents
    except (OSError, RuntimeError):
        return False


def _size(path: Path) -> int:
    """Bytes that the file takes on the disk; a download that is not finished has holes."""
    try:
        stat = path.stat()
    except OSError:
        return 0
    blocks: int = getattr(stat, "st_blocks", 1 << 62)  # Windows counts none
    return min(stat.st_size, 512 * blocks)
