"""The registry of linked files: model files that lie elsewhere on this machine and are used where they are.

Nothing is copied. `imports.json` in the data folder keeps each file's path with the size and time it had when it was
linked, so that a file that is gone or was replaced is noticed. A model in several parts is one entry: its first part.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from localgemma import settings
from localgemma.errors import BadModelFile, DiskError, UsageError
from localgemma.files.header import Header, Kind, check_drafter, check_projector, check_text_model, kind_of, read_header
from localgemma.whole import disk_errors, whole_file

REGISTRY = "imports.json"
State = Literal["present", "changed", "gone"]
_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)
_MAX_NAME = 100
# Which metadata key holds the width of the language model that a file of this kind is, or belongs to.
_WIDTH = {
    "text": "gemma4.embedding_length",
    "projector": "clip.vision.projection_dim",
    "drafter": "gemma4-assistant.embedding_length_out",
}


@dataclass(frozen=True, slots=True)
class Imported:
    """One linked file as it was when it was linked.

    `width` is the embedding length of the language model that it is or belongs to; `size` in bytes, of all its parts;
    `mtime_ns` in nanoseconds, of its newest part; `sha256` where it is known.
    """

    name: str
    role: Kind
    path: Path
    size: int
    mtime_ns: int
    width: int
    sha256: str | None = None

    @property
    def state(self) -> State:
        """Whether the file is still there, and the same; one stat call a part."""
        try:
            return "present" if _measure(parts_of(self.path)) == (self.size, self.mtime_ns) else "changed"
        except (OSError, ValueError):
            return "gone"


def imported() -> tuple[Imported, ...]:
    """Every linked file, in the order of the names, whatever its state; UsageError for a registry that is broken."""
    path = registry()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return tuple(sorted(map(_record, content["files"]), key=lambda item: item.name))
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise DiskError(f"{path} could not be read: {error.strerror or error}.", "Check its permissions.") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(
            f"The list of linked files, {path}, is damaged ({error}).", "Delete it, then import again."
        ) from error


def link(path: Path | str, *, name: str | None = None, sha256: str | None = None) -> Imported:
    """Link the GGUF file at `path` under `name` (its own file name by default); linked before, its record is renewed.

    Raises NotFound, BadModelFile where it is no Gemma 4 file that llama.cpp can load, UsageError where another file has
    the given name, DiskError.
    """
    first = parts_of(Path(path).expanduser().absolute())[0]
    header = read_header(first)
    parts = _whole_set(header)
    role, width = _checked(header)
    size, mtime_ns = _measure(parts)
    item = Imported(_clean(name or first.stem), role, first, size, mtime_ns, width, sha256)
    with _changed() as items:
        known = next((other for other in items if other.path == first), None)
        if known and not name:
            item = replace(item, name=known.name)
        if known and sha256 is None and (known.size, known.mtime_ns) == (size, mtime_ns):
            item = replace(item, sha256=known.sha256)
        others = {other.name for other in items if other.path != first}
        if item.name in others and name:
            raise UsageError(f"Another linked file is called {item.name!r}.", "Choose another name with --name.")
        item = replace(item, name=_free(item.name, others))
        items[:] = [*(other for other in items if other.path != first), item]
    return item


def forget(item: Imported) -> None:
    """Take the record out of the registry; the file itself is not touched."""
    with _changed() as items:
        items[:] = [other for other in items if other.path != item.path]


def models_folder() -> Path:
    """Where models that localgemma unpacked or made lie, each in a folder of its own; it need not exist."""
    return settings.load().data_dir / "models"


def registry() -> Path:
    """The registry's file; it need not exist."""
    return settings.load().data_dir / REGISTRY


def parts_of(path: Path) -> tuple[Path, ...]:
    """All files of the set that `path` names a part of (`…-00001-of-00003.gguf`), in order; most often itself alone."""
    found = _PART.fullmatch(path.name)
    count = int(found[3]) if found else 0
    if not found or not 1 <= int(found[2]) <= count <= 1000:
        return (path,)
    return tuple(path.with_name(f"{found[1]}-{index:05}-of-{count:05}.gguf") for index in range(1, count + 1))


def _whole_set(header: Header) -> tuple[Path, ...]:
    """The parts of the model whose first part has this header; NotFound or BadModelFile where they do not go together."""
    parts, count = parts_of(header.path), header.number("split.count") or 1
    if count != len(parts):
        raise BadModelFile(
            f"{header.path.name} is part of a set of {count}, and its name does not say so.",
            "Give the set its original names back: NAME-00001-of-0000N.gguf.",
        )
    for index, part in enumerate(parts[1:], 1):
        other = read_header(part)
        if (other.number("split.no"), other.number("split.count")) != (index, count):
            raise BadModelFile(f"{part.name} is not part {index + 1} of {header.path.name}.", "Download the set again.")
    return parts


def linkable(header: Header) -> Kind:
    """The file's role; BadModelFile where localgemma cannot use it."""
    return _checked(header)[0]


def _checked(header: Header) -> tuple[Kind, int]:
    """The file's role and width; BadModelFile where localgemma cannot use it."""
    role = kind_of(header)
    width = header.number(_WIDTH.get(role, "")) or 0
    checks: dict[Kind, Callable[[Header], None]] = {
        "drafter": check_drafter,
        "projector": lambda it: check_projector(it, width),
    }
    checks.get(role, check_text_model)(header)
    return role, width


def _measure(parts: tuple[Path, ...]) -> tuple[int, int]:
    """Bytes of all parts, and the time of the newest."""
    stats = [part.stat() for part in parts]
    return sum(stat.st_size for stat in stats), max(stat.st_mtime_ns for stat in stats)


def _clean(name: str) -> str:
    """A name that can be typed and shown: letters, digits, dots, dashes and underscores."""
    return re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-.")[:_MAX_NAME] or "model"


def _free(name: str, taken: set[str]) -> str:
    """The name, with a number where it is taken."""
    return next(found for n in range(1, len(taken) + 2) if (found := f"{name}-{n}" if n > 1 else name) not in taken)


def _record(raw: Any) -> Imported:
    """One record of the registry; KeyError, TypeError or ValueError where it is not one."""
    item = Imported(**{**raw, "path": Path(raw["path"])})
    texts = (item.name, item.role) + ((item.sha256,) if item.sha256 is not None else ())
    numbers = (item.size, item.mtime_ns, item.width)
    if not all(isinstance(text, str) for text in texts) or not all(type(number) is int for number in numbers):
        raise ValueError(f"a field of {str(item.name)[:64]!r} is of a wrong type")
    if item.role not in get_args(Kind) or not item.path.is_absolute():
        raise ValueError(f"{item.name[:64]!r} has no valid role or path")
    return item


@contextlib.contextmanager
def _changed() -> Iterator[list[Imported]]:
    """The records, to be changed in place and written back whole; other processes wait meanwhile."""
    import filelock

    path = registry()
    with disk_errors("The list of linked files", path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(path.with_suffix(".lock")):
            items = list(imported())
            yield items
            files = [{**asdict(item), "path": str(item.path)} for item in items]
            with whole_file(path) as stream:
                stream.write(json.dumps({"version": 1, "files": files}, indent=1).encode())
