"""Installs a bundle: everything is checked before anything of it counts, and nothing of it is trusted.

A member may only be a plain file that the manifest names, in the manifest's order, with the manifest's size and sha256, and
a whole GGUF file of its role. Links, devices, folders, extended headers, paths, unknown or doubled names, sizes that lie,
and anything after the end are refused while no byte is written. What is written goes into a folder of its own, which gets
its name when all of it is proven.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, get_args

from localgemma.errors import Cancelled, ChecksumError, DiskError, NotFound, UsageError
from localgemma.files import ledger
from localgemma.files.bundle import BLOCK, FORMAT, MANIFEST, MAX_NAME, RECORD, Progress, Role
from localgemma.files.header import check_drafter, check_projector, check_text_model, read_header
from localgemma.files.imports import Imported, link, models_folder
from localgemma.whole import disk_errors, make_room

MAX_FILES, MAX_MANIFEST, MAX_SIZE, MAX_PADDING = 64, 1 << 20, 1 << 44, 64 << 10
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.gguf")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)\..*", re.IGNORECASE)  # names that mean devices on Windows
_HINT = "Make the bundle again with: localgemma models bundle"


@dataclass(frozen=True, slots=True)
class Content:
    """One file of the bundle; `offset` is where its bytes start in it."""

    name: str
    role: Role
    size: int
    sha256: str
    offset: int
    catalogue: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose form was checked; its bytes were not read yet. `folder` is where it will be installed."""

    path: Path
    name: str
    contents: tuple[Content, ...]
    folder: Path
    manifest: bytes

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(content.size for content in self.contents)


def read_bundle(path: Path) -> Bundle:
    """Check the bundle's form from its first to its last header; UsageError where anything is not as it should be."""
    try:
        if not path.is_file():
            raise NotFound(f"There is no bundle {path}.", "Give the file that `localgemma models bundle` wrote.")
        with path.open("rb") as stream:
            return _read(path, stream)
    except (OSError, ValueError) as error:
        raise DiskError(f"{str(path)!r} could not be read: {error}.", "Check its permissions and the disk.") from error


def install(bundle: Bundle, progress: Progress | None = None) -> tuple[Imported, ...]:
    """Unpack, prove and link the bundle's files; installed before, they are only linked again.

    Raises DiskError where there is no room, ChecksumError and BadModelFile where a file is not what it should be, Cancelled;
    in each case nothing of it is installed.
    """
    what = f"The bundle {bundle.path.name}"
    if not _is_installed(bundle):
        make_room(bundle.folder.parent, bundle.size, what)
        with disk_errors(what, bundle.folder.parent), _new_folder(bundle.folder) as folder:
            _unpack(bundle, folder, progress)
            _check_together(bundle, folder)
            (folder / MANIFEST).write_bytes(bundle.manifest)
    linked: list[Imported] = []
    for content in bundle.contents:
        ledger.record(bundle.folder / content.name, content.sha256, fetched=True)
    first = {content.role: content for content in reversed(bundle.contents)}  # of a text model in parts, the first
    for content in first.values():
        alone = sum(other.role == content.role for other in bundle.contents) == 1
        linked.append(link(bundle.folder / content.name, sha256=content.sha256 if alone else None))
    return tuple(sorted(linked, key=lambda item: item.role, reverse=True))


def _read(path: Path, stream: BinaryIO) -> Bundle:
    end = os.fstat(stream.fileno()).st_size
    members = _members(path, stream, end)
    name, size, offset = next(members, ("", 0, 0))
    if name != MANIFEST or size > MAX_MANIFEST:
        _refuse(path, "does not start with a manifest")
    stream.seek(offset)
    manifest = stream.read(size)
    title, files = _manifest(path, manifest)
    contents: list[Content] = []
    for raw, (name, size, offset) in zip(files, members, strict=False):  # in this order, no member is lost
        if (name, size) != (raw["name"], raw["size"]):
            _refuse(path, f"holds {name[:64]!r} of {size:,} bytes where its manifest has {raw['name']!r} of {raw['size']:,}")
        contents.append(Content(name, raw["role"], size, raw["sha256"], offset, raw["catalogue"]))
    if len(contents) != len(files):
        _refuse(path, f"is cut off: {files[len(contents)]['name']} is missing")
    for extra, _, _ in members:
        _refuse(path, f"holds {extra[:64]!r}, which its manifest does not name")
    digest = hashlib.sha256("".join(content.sha256 for content in contents).encode()).hexdigest()
    folder = models_folder() / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', title).strip('.-')[:60] or 'model'}-{digest[:8]}"
    return Bundle(path, title, tuple(contents), folder, manifest)


def _members(path: Path, stream: BinaryIO, end: int) -> Iterator[tuple[str, int, int]]:
    """Name, size and offset of each member; a header that is not a plain file's is refused before it is followed."""
    place = 0
    while True:
        stream.seek(place)
        block = stream.read(RECORD)
        if block == bytes(RECORD):
            break
        try:
            info = tarfile.TarInfo.frombuf(block, "ascii", "strict")
        except (tarfile.HeaderError, ValueError) as error:
            _refuse(path, f"is no bundle, or cut off or damaged at byte {place:,} ({error})")
        if info.type != tarfile.REGTYPE or info.linkname:
            _refuse(path, f"holds {info.name[:64]!r}, which is not a plain file")
        start, place = place + RECORD, place + RECORD + info.size + -info.size % RECORD
        if not 0 <= info.size <= MAX_SIZE or place > end:
            _refuse(path, f"is cut off or damaged: {info.name[:64]!r} claims {info.size:,} bytes")
        yield info.name, info.size, start
    rest = stream.read(MAX_PADDING + 1)
    if rest.strip(b"\0") or len(rest) > MAX_PADDING:
        _refuse(path, "goes on after its end")


def _manifest(path: Path, text: bytes) -> tuple[str, list[dict[str, Any]]]:
    """The bundle's name and its files' records, each checked."""
    try:
        raw: Any = json.loads(text)
        form, title, files = raw["format"], raw["name"], list(raw["files"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        _refuse(path, f"has a manifest that cannot be read ({type(error).__name__})")
    if form != FORMAT:
        _refuse(
            path, f"is of format {str(form)[:20]}, and this localgemma knows {FORMAT}", "Update localgemma, then try again."
        )
    if not isinstance(title, str) or not 1 <= len(files) <= MAX_FILES:
        _refuse(path, f"has a manifest of {len(files):,} files, where 1 to {MAX_FILES} are allowed")
    seen: set[str] = set()
    for record in files:
        name = record.get("name") if isinstance(record, dict) else None
        if not isinstance(name, str) or len(name) > MAX_NAME or not _NAME.fullmatch(name) or _DEVICES.fullmatch(name):
            _refuse(path, f"has a file with the forbidden name {str(name)[:64]!r}")
        if name.casefold() in seen:  # one file on disks that ignore case
            _refuse(path, f"has two files named {name!r}")
        seen.add(name.casefold())
        right = type(record.get("size")) is int and 0 < record["size"] <= MAX_SIZE and record.get("role") in get_args(Role)
        if not right or not isinstance(record.get("sha256"), str) or not _SHA256.fullmatch(record["sha256"]):
            _refuse(path, f"does not say size, role and sha256 of {name!r}")
        if not isinstance(record.setdefault("catalogue", {}), dict):
            _refuse(path, f"has a damaged record of {name!r}")
    roles = [record["role"] for record in files]
    if roles.count("text") < 1 or roles.count("projector") > 1 or roles.count("drafter") > 1:
        _refuse(path, "does not hold one model with at most one projector and one drafter")
    return title, files


def _unpack(bundle: Bundle, folder: Path, progress: Progress | None) -> None:
    """Write each file and prove its sha256."""
    done = 0
    with bundle.path.open("rb") as stream:
        for content in bundle.contents:
            stream.seek(content.offset)
            left, digest = content.size, hashlib.sha256()
            with (folder / content.name).open("xb") as target:
                while left:
                    block = stream.read(min(BLOCK, left))
                    if not block:
                        raise ChecksumError(f"{bundle.path.name} became shorter while it was read.", "Copy it again.")
                    target.write(block)
                    digest.update(block)
                    left, done = left - len(block), done + len(block)
                    if progress and progress(done, bundle.size) is False:
                        raise Cancelled("The bundle was not installed.")
                target.flush()
                os.fsync(target.fileno())
            if digest.hexdigest() != content.sha256:
                raise ChecksumError(
                    f"{content.name} in {bundle.path.name} is damaged: its sha256 is not that of the manifest.",
                    "Copy the bundle again from where it was made.",
                )


def _check_together(bundle: Bundle, folder: Path) -> None:
    """BadModelFile where a file is not what its role says, or does not fit the text model."""
    headers = [(content.role, read_header(folder / content.name)) for content in bundle.contents]
    text = next(header for role, header in headers if role == "text")
    check_text_model(text)
    for role, header in headers:
        if role == "projector":
            check_projector(header, text.number("gemma4.embedding_length") or 0)
        elif role == "drafter":
            check_drafter(header)


def _is_installed(bundle: Bundle) -> bool:
    """Whether all its files lie there in their sizes, as an installation left them."""
    try:
        same = all((bundle.folder / content.name).stat().st_size == content.size for content in bundle.contents)
        return same and (bundle.folder / MANIFEST).read_bytes() == bundle.manifest
    except OSError:
        return False


@contextlib.contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill that becomes `folder` when the block ends without an error, and is gone otherwise."""
    part = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.part")
    try:
        part.mkdir()
        yield part
        if folder.exists():  # an installation that is not whole, or was changed
            os.replace(folder, part.with_suffix(".old.part"))
        os.replace(part, folder)
    finally:
        for left in (part, part.with_suffix(".old.part")):
            shutil.rmtree(left, ignore_errors=True)


def _refuse(path: Path, what: str, hint: str = _HINT) -> NoReturn:
    raise UsageError(f"{path.name} {what}.", hint)
