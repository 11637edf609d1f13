"""What localgemma knows from its own work about files on this machine: their sha256 as computed here, and who fetched them.

One small record a file, in the data folder, written whole or not at all. A record counts only while the file's size and
time are those it was made with.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from localgemma import settings
from localgemma.whole import whole_file


@dataclass(frozen=True, slots=True)
class Record:
    """`sha256` was computed here or while the file was fetched; `intact` says whether it was what it should be.

    `fetched` says that localgemma brought the file to this machine, so that it may remove it. `supersedes` is the sha256
    that the catalogue had when the hub had this newer content.
    """

    path: str
    size: int
    mtime_ns: int
    sha256: str
    intact: bool
    fetched: bool
    supersedes: str | None = None


def recall(path: Path) -> Record | None:
    """The record of a file, None where there is none or the file changed since; a damaged record counts as none."""
    try:
        real = path.resolve(strict=True)
        raw = json.loads(_place(real).read_text(encoding="utf-8"))
        record, stat = Record(**raw), real.stat()
    except (OSError, ValueError, TypeError):
        return None
    same = (record.path, record.size, record.mtime_ns) == (str(real), stat.st_size, stat.st_mtime_ns)
    return record if same and isinstance(record.sha256, str) else None


def record(path: Path, sha256: str, *, intact: bool = True, fetched: bool = False, supersedes: str | None = None) -> None:
    """Remember a file's sha256; what was known of its origin stays known. A disk that takes no record is not an error."""
    before = recall(path)
    with contextlib.suppress(OSError):
        real = path.resolve(strict=True)
        stat = real.stat()
        fetched = fetched or bool(before and before.fetched)
        supersedes = supersedes or (before.supersedes if before else None)
        new = Record(str(real), stat.st_size, stat.st_mtime_ns, sha256, intact, fetched, supersedes)
        place = _place(real)
        place.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(place) as stream:
            stream.write(json.dumps(asdict(new), indent=1).encode())


def forget(path: Path) -> None:
    """Drop the record of a file that is removed."""
    with contextlib.suppress(OSError):
        _place(path.resolve()).unlink()


def _place(real: Path) -> Path:
    return (
        settings.load().data_dir
        / "files"
        / f"{hashlib.sha256(str(real).encode('utf-8', 'surrogateescape')).hexdigest()[:32]}.json"
    )
