"""What is on this machine: the hub's cache, linked files, the demo and our corrected projectors; and which file a name opens.

Nothing here opens a connection. A file counts as present only where its header is whole, every tensor lies inside the
file, its size is the published one, and no check of ours found it damaged.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Literal

from localgemma import settings
from localgemma.errors import LocalgemmaError
from localgemma.files import ledger
from localgemma.files.catalog import Catalog, File
from localgemma.files.facts import quant_of
from localgemma.files.header import Header, kind_of, read_header
from localgemma.files.imports import Imported, imported, parts_of

Origin = Literal["shipped", "hub", "linked", "corrected"]
Version = Literal["same", "newer", "older", "other", "unknown"]
_AGAIN = "Get it again with: localgemma models pull NAME"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ORDER: dict[Version, int] = {"newer": 0, "same": 1, "unknown": 2, "other": 3, "older": 4}


@dataclass(frozen=True, slots=True)
class Held:
    """One model file on this machine; a model in several parts is one, `path` its first part and `size` that of all.

    `file` is what the catalogue says of it, None for a file of no catalogue. `commit` is the hub's, empty elsewhere.
    `sha256` is what its content is believed to be: as computed here (`verified`), as the cache names it, or None.
    `version` compares that with the catalogue's content: "other" differs, and which is newer is not known. `ours` says that
    localgemma brought or made it, so that it may remove it.
    """

    role: str
    name: str
    path: Path
    size: int
    quant: str
    width: int
    origin: Origin
    ours: bool
    verified: bool
    sha256: str | None = None
    file: File | None = None
    commit: str = ""
    version: Version = "unknown"

    @property
    def rank(self) -> tuple[int, float]:
        """Sorts copies of one file: newer than the catalogue first, older last; of equals the one that came last first."""
        return _ORDER[self.version], -_mtime(self.path)


@dataclass(frozen=True, slots=True)
class Damaged:
    """A file that is there and cannot be used, and why."""

    path: Path
    size: int
    origin: Origin
    reason: str


@dataclass(frozen=True, slots=True)
class Inventory:
    """Everything that was found, sound and not."""

    held: tuple[Held, ...]
    damaged: tuple[Damaged, ...]

    def of(self, role: str) -> tuple[Held, ...]:
        """The sound files of a role."""
        return tuple(item for item in self.held if item.role == role)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a file may be: found by its place alone, nothing read yet."""

    path: Path
    origin: Origin
    file: File | None = None
    commit: str = ""
    name: str = ""
    sha256: str | None = None


def projectors_folder() -> Path:
    """Where corrected projectors are kept."""
    return settings.load().cache_dir / "projectors"


def inventory(catalog: Catalog) -> Inventory:
    """Look everywhere and read every header; about 0.1 s a file of the real model's size."""
    held: list[Held] = []
    damaged: list[Damaged] = []
    for place in _places(catalog):
        try:
            held.append(_examine(place))
        except LocalgemmaError as error:
            damaged.append(Damaged(place.path, _size(place.path), place.origin, error.message))
    return Inventory(tuple(held), tuple(damaged))


def copies(file: File) -> list[Held]:
    """Sound copies of a catalogue's file: newer than the catalogue first, then the catalogue's own, older ones last."""
    found: list[Held] = []
    for place in (*_published(file), *_linked_as(file, imported())):
        try:
            found.append(_examine(place))
        except LocalgemmaError:
            continue
    return sorted(found, key=lambda item: item.rank)


def linked() -> list[Held]:
    """Linked files that are there and unchanged."""
    found: list[Held] = []
    for place in _linked_places(imported()):
        try:
            found.append(_examine(place))
        except LocalgemmaError:
            continue
    return found


def header_of(path: Path) -> Header:
    """A file's header as `read_header` gives it, read once while the file stays the same."""
    try:
        stat = path.stat()
    except (OSError, ValueError):
        return read_header(path)  # says why
    return _header(path, stat.st_size, stat.st_mtime_ns, stat.st_ino)


@lru_cache(maxsize=16)
def _header(path: Path, size: int, mtime_ns: int, inode: int) -> Header:
    return read_header(path)


def claimed_sha256(path: Path) -> str | None:
    """The sha256 that the hub's cache names a file by, None where it does not."""
    real = path.resolve()
    return real.name if real.parent.name == "blobs" and _SHA256.fullmatch(real.name) else None


def _places(catalog: Catalog) -> Iterator[_Place]:
    links, seen = imported(), set[Path]()
    for file in catalog.files():
        for place in (*_published(file), *_linked_as(file, links)):
            if (real := place.path.resolve()) not in seen:
                seen.add(real)
                yield place
    for place in _linked_places(links):
        if place.path.resolve() not in seen:
            yield place
    for path in sorted(_gguf(projectors_folder())):
        yield _Place(path, "corrected")


def _published(file: File) -> Iterator[_Place]:
    """Where a catalogue's file may be in the hub's cache or the package; nothing for later parts of a model in parts."""
    if parts_of(Path(file.path))[0] != Path(file.path):
        return
    if file.folder:
        yield _Place(file.folder / file.path, "shipped", file)
        return
    snapshots = settings.load().hub_cache / f"models--{file.repository.replace('/', '--')}" / "snapshots"
    blobs: set[Path] = set()
    for folder in _folders(snapshots):
        path = folder / file.path
        if path.is_file() and (real := path.resolve()) not in blobs:
            blobs.add(real)
            yield _Place(path, "hub", file, folder.name, sha256=claimed_sha256(path))


def _linked_places(links: Iterable[Imported]) -> Iterator[_Place]:
    for item in links:
        if item.state != "gone":
            yield _Place(item.path, "linked", name=item.name, sha256=item.sha256)


def _linked_as(file: File, links: Iterable[Imported]) -> Iterator[_Place]:
    """Linked files that are this published one: by their sha256, or where it is unknown by name and exact size."""
    for item in links:
        if item.sha256 and file.sha256:
            same = item.sha256 == file.sha256
        else:
            same = item.path.name == PurePosixPath(file.path).name and item.size == file.bytes
        if same and item.state != "gone" and item.role == file.role:
            yield _Place(item.path, "linked", file, name=item.name, sha256=item.sha256)


def _examine(place: _Place) -> Held:
    """The file at a place; LocalgemmaError where it is not sound."""
    parts = parts_of(place.path)
    headers = [header_of(part) for part in parts]
    if place.file and kind_of(headers[0]) != place.file.role:
        raise LocalgemmaError(f"{place.path.name} is not a {place.file.role} file, as the catalogue says.", _AGAIN)
    for part, header in zip(parts, headers, strict=True):
        _check(place, part, header, alone=len(parts) == 1)
    records = [ledger.recall(part) for part in parts]
    first = records[0]
    sha256 = (first.sha256 if first and len(parts) == 1 else None) or place.sha256
    role = kind_of(headers[0])
    return Held(
        role=role,
        name=place.name or place.path.name,
        path=place.path,
        size=sum(header.file_size for header in headers),
        quant=place.file.quant if place.file else quant_of(headers[0]),
        width=width_of(headers[0]),
        origin=place.origin,
        ours=place.origin == "corrected" or (place.origin == "hub" and all(r is not None and r.fetched for r in records)),
        verified=all(record is not None for record in records),
        sha256=sha256,
        file=place.file,
        commit=place.commit,
        version=_version(place.file, sha256, first.supersedes if first else None),
    )


def _version(file: File | None, sha256: str | None, supersedes: str | None) -> Version:
    if not file or not sha256 or not file.sha256:
        return "unknown"
    if sha256 == file.sha256:
        return "same"
    if supersedes == file.sha256:
        return "newer"
    return "older" if sha256 in {old.sha256 for old in file.replaced} else "other"


def _check(place: _Place, part: Path, header: Header, *, alone: bool) -> None:
    """LocalgemmaError where a sound header belongs to the wrong or a damaged file."""
    wanted = place.file
    same = wanted is not None and alone and wanted.sha256 is not None and place.sha256 in (None, wanted.sha256)
    if wanted and same and wanted.bytes not in (None, header.file_size):
        raise LocalgemmaError(f"{part.name} has {header.file_size:,} bytes, not {wanted.bytes:,}.", _AGAIN)
    record = ledger.recall(part)
    if record and not record.intact:
        raise LocalgemmaError(f"{part.name} is damaged: a check found other bytes than there should be.", _AGAIN)


def width_of(header: Header) -> int:
    """The embedding length of the language model that the file is, or belongs to."""
    keys: dict[str, str] = {
        "text": "gemma4.embedding_length",
        "projector": "clip.vision.projection_dim",
        "drafter": "gemma4-assistant.embedding_length_out",
    }
    return header.number(keys.get(kind_of(header), "")) or 0


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(child for child in folder.iterdir() if child.is_dir())
    except OSError:
        return []


def _gguf(folder: Path) -> list[Path]:
    try:
        return [child for child in folder.iterdir() if child.suffix == ".gguf" and not child.name.startswith(".")]
    except OSError:
        return []


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
