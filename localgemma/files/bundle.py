"""One file that carries a model to a machine without a network: model, projector, drafter, and a manifest of their sha256.

A bundle is an uncompressed tar of plain files, so any tar can unpack it. Its first member, `manifest.json`, says what follows:

    {"format": 1, "name": …, "files": [{"name": …, "role": …, "size": …, "sha256": …, "catalogue": {…}}]}

`catalogue` is what models.toml says of a file: where it was published, its quantisation, its quality. Reading one back:
unbundle.py.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from localgemma.errors import BadModelFile, Cancelled, ChecksumError, DiskError, UsageError
from localgemma.files import ledger
from localgemma.files.catalog import Catalog, File
from localgemma.files.header import read_header
from localgemma.files.imports import parts_of
from localgemma.files.locate import Local
from localgemma.units import format_size
from localgemma.whole import disk_errors, make_room, whole_file

FORMAT = 1
MANIFEST = "manifest.json"
MAX_NAME = 100  # bytes that a tar header has for a name
RECORD = 512
BLOCK = 1 << 20
Role = Literal["text", "projector", "drafter"]
Progress = Callable[[int, int], bool | None]  # bytes done and in all; False cancels
_UNKNOWN = "0" * 64  # stands for a sha256 until the bytes were read
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Member:
    """One file of a bundle; `size` in bytes, `expected` is the sha256 that it should have, where that is known."""

    name: str
    role: Role
    path: Path
    size: int
    expected: str | None
    catalogue: File | None


@dataclass(frozen=True, slots=True)
class BundlePlan:
    """What will be written where: show it, then `execute`."""

    name: str
    members: tuple[Member, ...]
    target: Path

    @property
    def size(self) -> int:
        """Bytes of the bundle."""
        return (
            sum(RECORD + _padded(member.size) for member in self.members)
            + RECORD
            + _padded(len(self.manifest({})))
            + 2 * RECORD
        )

    def manifest(self, hashes: dict[str, str]) -> bytes:
        """The manifest with these sha256; its length does not depend on them."""
        files = [
            {
                "name": member.name,
                "role": member.role,
                "size": member.size,
                "sha256": hashes.get(member.name, _UNKNOWN),
                "catalogue": _facts(member.catalogue),
            }
            for member in self.members
        ]
        return json.dumps({"format": FORMAT, "name": self.name, "files": files}, indent=1).encode()

    def execute(self, progress: Progress | None = None) -> dict[str, str]:
        """Write the bundle in one pass over the files, and return the sha256 of each by its name in the bundle.

        Raises DiskError where there is no room, ChecksumError where a file is not what it should be, Cancelled; in each
        case no bundle is left.
        """
        what = f"The bundle {self.target.name}"
        make_room(self.target.parent, self.size, what)
        hashes: dict[str, str] = {}
        done = 0
        try:
            with disk_errors(what, self.target.parent), whole_file(self.target) as stream:
                start = _write_header(stream, MANIFEST, len(self.manifest({})))
                stream.write(_filled(self.manifest({})))
                for member in self.members:
                    _write_header(stream, member.name, member.size)
                    digest = hashlib.sha256()
                    for block in _blocks(member):
                        stream.write(block)
                        digest.update(block)
                        done += len(block)
                        if progress and progress(done, sum(m.size for m in self.members)) is False:
                            raise Cancelled("The bundle was not written.")
                    stream.write(bytes(-member.size % RECORD))
                    hashes[member.name] = _proven(member, digest.hexdigest())
                stream.write(bytes(2 * RECORD))
                stream.seek(start)
                stream.write(self.manifest(hashes))
        except DiskError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EFBIG:
                hint = f"Its file system holds no file of {format_size(self.size)} (FAT32 ends at 4 GiB): use exFAT."
                raise DiskError(error.message, hint) from error
            raise
        return hashes


def plan_bundle(local: Local, catalog: Catalog, target: Path, *, drafter: bool = True) -> BundlePlan:
    """What a bundle of this model holds; UsageError where `target` is there already or a folder."""
    target = target.expanduser().absolute()
    if target.exists():
        what = "a folder" if target.is_dir() else "already there"
        raise UsageError(f"{target} is {what}.", "Give the name of a new file: -o FILE")
    chosen: list[tuple[Role, Path]] = [("text", part) for part in parts_of(local.text)]
    chosen += [("projector", local.projector)] if local.projector else []
    chosen += [("drafter", local.drafter)] if drafter and local.drafter else []
    names: set[str] = set()
    return BundlePlan(local.name, tuple(_member(role, path, catalog, names) for role, path in chosen), target)


def _member(role: Role, path: Path, catalog: Catalog, names: set[str]) -> Member:
    """The file as a member, under a name that no member before it has."""
    size = read_header(path).file_size
    record, real = ledger.recall(path), path.resolve().name
    expected = record.sha256 if record else real if _SHA256.fullmatch(real) else None
    name = re.sub(r"[^A-Za-z0-9._-]", "-", path.name).lstrip(".-")[-MAX_NAME:] or f"{role}.gguf"
    if not name.endswith(".gguf"):
        name = f"{role}.gguf"  # a blob that is named by its sha256
    if name.casefold() in names:
        name = f"{role}-{name}"[:MAX_NAME]
    names.add(name.casefold())
    return Member(name, role, path, size, expected, _published(path, role, size, expected, catalog))


def _published(path: Path, role: Role, size: int, sha256: str | None, catalog: Catalog) -> File | None:
    """The catalogue's record of the file: by its sha256, or where one is unknown by name and exact size."""
    for file in catalog.files():
        same = sha256 == file.sha256 if sha256 and file.sha256 else (Path(file.path).name, file.bytes) == (path.name, size)
        if same and file.role == role:
            return file
    return None


def _facts(file: File | None) -> dict[str, object]:
    """What the catalogue says of a file, as JSON can hold it."""
    if file is None:
        return {}
    quality = [{"value": found.value, "measure": found.measure.title} for found in file.quality]
    return {key: value for key, value in asdict(file).items() if key not in ("quality", "folder", "role")} | {
        "quality": quality
    }


def _blocks(member: Member) -> Iterator[bytes]:
    """The file's bytes; BadModelFile where it is shorter or longer than it was when the bundle was planned."""
    left = member.size
    with member.path.open("rb") as stream:
        while left > 0 and (block := stream.read(min(BLOCK, left))):
            left -= len(block)
            yield block
        if left or stream.read(1):
            raise BadModelFile(f"{member.path.name} changed while it was read.", "Try again when nothing writes to it.")


def _proven(member: Member, found: str) -> str:
    if member.expected and found != member.expected:
        raise ChecksumError(
            f"{member.path.name} is damaged: its sha256 is {found[:16]}…, not {member.expected[:16]}….",
            "Check it with: localgemma models verify",
        )
    return found


def _write_header(stream: BinaryIO, name: str, size: int) -> int:
    """Write a tar header and return where the member's bytes start."""
    info = tarfile.TarInfo(name)
    info.size = size
    stream.write(info.tobuf(tarfile.GNU_FORMAT, "ascii", "strict"))
    return stream.tell()


def _padded(size: int) -> int:
    return size + -size % RECORD


def _filled(data: bytes) -> bytes:
    return data + bytes(-len(data) % RECORD)
