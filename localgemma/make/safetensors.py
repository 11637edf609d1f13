"""Reads the headers of safetensors files, one or several shards by an index, and never their weights.

Each claim of a header is checked against the file before it is used: places inside the file, no holes, no overlap, as
many bytes as shape and type need. What is wrong is a BadModelFile that names the file and the tensor.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, TypeGuard

from localgemma.errors import BadModelFile, DiskError, NotFound, UsageError

INDEX = "model.safetensors.index.json"
MAX_HEADER = 100_000_000  # bytes; the limit of the format's own library
MAX_JSON = 1 << 28  # bytes of a configuration or index; a tokenizer.json of 262,144 tokens has 32 MB
SIZES = {  # bits of a value, as the format names its types
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16,
    "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4,
}  # fmt: skip
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_SHARD = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors")
AGAIN = "Download this file again."


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor in a file: `offset` and `nbytes` are bytes in that file, `dtype` the format's name of the type."""

    name: str
    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    def bad(self, what: str, hint: str = AGAIN) -> BadModelFile:
        """The error that names this tensor and its file."""
        return BadModelFile(f"{self.path.name}: the tensor {self.name[:128]!r} {what}.", hint)


def read_json(path: Path, what: str) -> dict[str, Any]:
    """The object in a JSON file; NotFound where there is no file, BadModelFile where it is no JSON object."""
    data = read_bytes(path, what)
    return _parse(data, path.name)


def read_bytes(path: Path, what: str) -> bytes:
    """All bytes of a small file; NotFound where there is none, named as `what`."""
    try:
        if path.stat().st_size > MAX_JSON:
            raise BadModelFile(f"{path.name} is larger than any {what}.", AGAIN)
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(f"There is no {path.name} in {path.parent}.", f"Download the {what} of the model as well.") from None
    except (OSError, ValueError) as error:
        raise DiskError(f"{str(path)!r} could not be read: {error}.", "Check its permissions and the disk.") from error


def read_checkpoint(folder: Path) -> dict[str, Stored]:
    """Every tensor of the checkpoint in `folder`: shards by name, in each the tensors by name.

    Raises NotFound, UsageError (pickled weights), BadModelFile or DiskError.
    """
    paths, index = _shards(folder)
    tensors: dict[str, Stored] = {}
    for path in paths:
        for tensor in read_header(path):
            if tensor.name in tensors:
                raise tensor.bad(f"is also in {tensors[tensor.name].path.name}")
            tensors[tensor.name] = tensor
    for name, file in (index or {}).items():
        if name not in tensors or tensors[name].path.name != file:
            raise BadModelFile(f"{INDEX} says that {file} holds the tensor {name[:128]!r}, which it does not.", AGAIN)
    for name, tensor in tensors.items():
        if index is not None and name not in index:
            raise tensor.bad(f"is not in {INDEX}")
    return tensors


def _shards(folder: Path) -> tuple[list[Path], Mapping[str, str] | None]:
    """The files to read, sorted, and the index's map of tensor to file name where there is an index."""
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(f"There is no folder {folder}.", "Give the folder of a downloaded model.") from None
    except (OSError, ValueError) as error:
        raise DiskError(f"{str(folder)!r} could not be read: {error}.", "Check its permissions.") from error
    if INDEX in names:
        index = _index(folder / INDEX)
        files = sorted(set(index.values()))
        for file in files:
            if file not in names:
                raise NotFound(f"{folder} lacks {file}, which {INDEX} names.", "Download that file as well.")
        return [folder / file for file in files], index
    if "model.safetensors" in names:
        return [folder / "model.safetensors"], None
    shards = [name for name in names if _SHARD.fullmatch(name)]
    if shards:
        raise NotFound(f"There is no {INDEX} in {folder}, only {shards[0]} and the like.", "Download the index as well.")
    pickled = [name for name in names if name.endswith(_PICKLES)]
    if pickled:
        raise UsageError(
            f"{folder} holds its weights as {pickled[0]}, a pickle, which can run any program when it is opened.",
            "Get the model as .safetensors files.",
        )
    raise NotFound(f"There is no model.safetensors in {folder}.", "Give the folder of a downloaded model.")


def _index(path: Path) -> dict[str, str]:
    """The index's map of tensor name to file name, with plain file names only."""
    entries = read_json(path, "index").get("weight_map")
    if not isinstance(entries, dict) or not entries:
        raise BadModelFile(f"{path.name} has no weight_map.", AGAIN)
    for name, file in entries.items():
        plain = isinstance(file, str) and file.endswith(".safetensors") and not set("/\\:\0") & set(file)
        if not plain:
            raise BadModelFile(
                f"{path.name} gives the tensor {name[:128]!r} the impossible file name {str(file)[:128]!r}.", AGAIN
            )
    return entries


def read_header(path: Path) -> list[Stored]:
    """The tensors of one file, by name; BadModelFile unless they fill it exactly."""
    try:
        with path.open("rb") as stream:
            size = path.stat().st_size
            start = stream.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > size - 8:
                raise BadModelFile(f"{path.name} is cut off or no safetensors file: its header does not fit into it.", AGAIN)
            if length > MAX_HEADER:
                raise BadModelFile(f"{path.name} is damaged: its header claims {length:,} bytes.", AGAIN)
            header = _parse(stream.read(length), path.name)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(f"There is no file {path}.", "Download that file as well.") from None
    except OSError as error:
        raise DiskError(f"{str(path)!r} could not be read: {error.strerror or error}.", "Check its permissions.") from error
    tensors = [_stored(path, name, entry, 8 + length) for name, entry in header.items() if name != "__metadata__"]
    _check_places(path, tensors, 8 + length, size)
    return sorted(tensors, key=lambda tensor: tensor.name)


def _parse(data: bytes, name: str) -> dict[str, Any]:
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_no_doubles)
    except (ValueError, RecursionError) as error:
        reason = str(error) or type(error).__name__
        raise BadModelFile(f"{name} is damaged: it holds no valid JSON ({reason[:120]}).", AGAIN) from None
    if not isinstance(value, dict):
        raise BadModelFile(f"{name} is damaged: it holds no JSON object.", AGAIN)
    return value


def _no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        double = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"{double[:64]!r} is in it twice")
    return found


def _stored(path: Path, name: str, entry: object, data: int) -> Stored:
    """One header entry, checked by itself; its offsets count from `data`."""
    blank = Stored(name, path, "", (), 0, 0)
    if not isinstance(entry, dict):
        raise blank.bad("has no description")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in SIZES:
        raise blank.bad(f"has the unknown type {str(dtype)[:32]!r}")
    if not _whole_numbers(shape) or not _whole_numbers(offsets) or len(offsets) != 2 or len(shape) > 8:
        raise blank.bad("has no valid shape and place")
    start, end = offsets
    needs = prod(shape) * SIZES[dtype]
    if end < start or needs != (end - start) * 8:
        raise blank.bad(f"of type {dtype} and shape {list(shape)} needs {needs // 8:,} bytes and claims {end - start:,}")
    return Stored(name, path, dtype, tuple(shape), data + start, end - start)


def _whole_numbers(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 60 for item in value)


def _check_places(path: Path, tensors: list[Stored], data: int, size: int) -> None:
    """The tensors one right after the other, from the header's end to the file's."""
    expected = data
    for tensor in _by_place(tensors):
        if tensor.offset < expected:
            raise tensor.bad("overlaps another one")
        if tensor.offset > expected:
            raise tensor.bad(f"leaves a hole of {tensor.offset - expected:,} bytes before it")
        expected = tensor.offset + tensor.nbytes
        if expected > size:
            raise tensor.bad(f"is cut off: the file is {expected - size:,} bytes too short for it")
    if expected != size:
        raise BadModelFile(f"{path.name} is {size - expected:,} bytes longer than its header says.", AGAIN)


def _by_place(tensors: list[Stored]) -> Iterator[Stored]:
    yield from sorted(tensors, key=lambda tensor: (tensor.offset, tensor.nbytes))
