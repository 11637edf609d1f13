"""Importance matrices in llama.cpp's GGUF form: mean squared inputs of every weight, read, written, merged, described."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from localgemma.errors import BadModelFile, UsageError
from localgemma.files.header import Header, read_header
from localgemma.make import whole

if TYPE_CHECKING:
    import numpy as np

CHUNK = 512  # tokens; llama-imatrix's default
_SUMS, _COUNTS = ".in_sum2", ".counts"
_DATASETS, _CHUNK_COUNT, _CHUNK_SIZE = "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"
_LAYER = re.compile(r"blk\.(\d+)\.(.+)")
_MAKE = "Make one with: localgemma imatrix MODEL -o FILE --data FILE"


@dataclass(frozen=True, slots=True)
class Entry:
    """One weight: sums of squared inputs, float64 [matrices, columns], and the rows that were seen, [matrices]."""

    sums: np.ndarray
    counts: np.ndarray

    def mean(self) -> np.ndarray:
        """float32 [matrices, columns] as llama-quantize forms it: 1 where a matrix was never used."""
        import numpy as np

        counts = self.counts.astype(np.float32)[:, None]
        return np.where(counts > 0, self.sums.astype(np.float32) / np.maximum(counts, 1), np.float32(1))


@dataclass(frozen=True, slots=True)
class Imatrix:
    """All entries by weight name, the names of the data sets they came from, and how much of them was read."""

    entries: dict[str, Entry]
    datasets: tuple[str, ...] = ()
    chunk_size: int = CHUNK
    chunks: int = 0

    @property
    def tokens(self) -> int:
        """Rows that the most used weight saw."""
        return max((int(entry.counts.max()) for entry in self.entries.values()), default=0)


def read(path: Path) -> Imatrix:
    """The imatrix at `path`; NotFound, DiskError, or BadModelFile where it is not one or holds impossible values."""
    import numpy as np

    header = _header(path)
    parts: dict[str, np.ndarray] = {}
    with path.open("rb") as stream:
        for tensor in header.tensors:
            stream.seek(header.data_offset + tensor.offset)
            values = np.frombuffer(stream.read(tensor.nbytes), "<f4" if tensor.type_id == 0 else np.uint8)
            if tensor.type_id != 0 or not np.isfinite(values).all() or (values < 0).any():
                raise BadModelFile(f"{path.name} holds values in {tensor.name!r} that no imatrix can have.", _MAKE)
            rows = tensor.shape[1] if len(tensor.shape) > 1 else 1
            parts[tensor.name] = values.reshape(rows, -1).astype(np.float64)
    entries: dict[str, Entry] = {}
    for name in sorted({name.removesuffix(_SUMS).removesuffix(_COUNTS) for name in parts}):
        sums, counts = parts.get(name + _SUMS), parts.get(name + _COUNTS)
        if sums is None or counts is None or counts.size != len(sums):
            raise BadModelFile(f"{path.name} is damaged: its entry {name!r} is incomplete.", _MAKE)
        entries[name] = Entry(sums, np.rint(counts.ravel()).astype(np.int64))
    if not entries:
        raise BadModelFile(f"{path.name} is an imatrix without entries.", _MAKE)
    sets = header.metadata[_DATASETS]
    datasets = tuple(str(name) for name in sets) if isinstance(sets, tuple) else ()
    return Imatrix(entries, datasets, header.number(_CHUNK_SIZE) or CHUNK, header.number(_CHUNK_COUNT) or 0)


def _header(path: Path) -> Header:
    try:
        header = read_header(path)
    except BadModelFile as error:
        hint = "An imatrix in llama.cpp's old form is converted by: llama-imatrix --in-file OLD -o NEW.gguf"
        raise BadModelFile(error.message, hint) from error
    known = all(key in header.metadata for key in (_DATASETS, _CHUNK_COUNT, _CHUNK_SIZE))
    if header.text("general.type") != "imatrix" or not known:
        raise BadModelFile(f"{path.name} is a GGUF file but no imatrix.", _MAKE)
    return header


def write(path: Path, imatrix: Imatrix) -> None:
    """Write it as llama-imatrix would; the file appears whole or not at all. Raises DiskError."""
    import gguf
    import numpy as np

    with whole.draft(path) as draft:
        writer = gguf.GGUFWriter(draft.path, "imatrix")
        writer.kv_data[0].clear()  # llama-imatrix writes no architecture
        writer.add_type("imatrix")
        writer.add_array(_DATASETS, list(imatrix.datasets))
        writer.add_uint32(_CHUNK_COUNT, imatrix.chunks)
        writer.add_uint32(_CHUNK_SIZE, imatrix.chunk_size)
        for name, entry in sorted(imatrix.entries.items()):
            writer.add_tensor(name + _SUMS, entry.sums.astype(np.float32))
            writer.add_tensor(name + _COUNTS, entry.counts.astype(np.float32)[:, None])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        draft.keep()


def merge(parts: Sequence[Imatrix]) -> Imatrix:
    """One imatrix of everything that the parts saw; UsageError where they are of different models."""
    entries: dict[str, Entry] = {}
    for part in parts:
        for name, entry in part.entries.items():
            known = entries.get(name)
            if known is None:
                entries[name] = entry
            elif known.sums.shape != entry.sums.shape:
                raise UsageError(
                    f"These imatrix files are of different models: {name!r} has {known.sums.shape[1]:,} and "
                    f"{entry.sums.shape[1]:,} columns.",
                    "Merge files of one model.",
                )
            else:
                entries[name] = Entry(known.sums + entry.sums, known.counts + entry.counts)
    size = parts[0].chunk_size
    merged = Imatrix(entries, tuple(name for part in parts for name in part.datasets), size)
    return replace(merged, chunks=merged.tokens // size)


def check(imatrix: Imatrix, header: Header, name: str) -> None:
    """BadModelFile unless the imatrix is of the model whose header this is."""
    tensors = {tensor.name: tensor for tensor in header.tensors}
    hint = "Give the imatrix of this model, or make one with: localgemma imatrix MODEL -o FILE --data FILE"
    for weight, entry in imatrix.entries.items():
        tensor = tensors.get(weight)
        if tensor is None:
            raise BadModelFile(f"{name} is of another model: {header.path.name} has no tensor {weight!r}.", hint)
        columns = tensor.shape[0] * (tensor.shape[2] if len(tensor.shape) > 2 else 1)
        if entry.sums.size != columns:
            raise BadModelFile(
                f"{name} is of another model: it has {entry.sums.size:,} values for {weight!r}, and {header.path.name} "
                f"needs {columns:,}.",
                hint,
            )


@dataclass(frozen=True, slots=True)
class Statistics:
    """What the mean squared inputs of one weight are like; the names and formulas of llama-imatrix --show-statistics.

    `active` is the share above 1e-5, `entropy` in bits, `peaks` the share more than one standard deviation above the mean,
    `similarity` the cosine to the same weight of the layer before (0 where there is none).
    """

    name: str
    total: float
    least: float
    most: float
    mean: float
    deviation: float
    active: float
    columns: int
    entropy: float
    peaks: float
    similarity: float

    @property
    def evenness(self) -> float:
        """The entropy as a share of the most that is possible."""
        return self.entropy / math.log2(self.columns) if self.columns > 1 else 0.0


def statistics(imatrix: Imatrix) -> list[Statistics]:
    """One record a weight, in the order of the layers."""
    return [_statistics(name, entry, imatrix) for name, entry in sorted(imatrix.entries.items(), key=lambda e: _order(e[0]))]


def _statistics(name: str, entry: Entry, imatrix: Imatrix) -> Statistics:
    import numpy as np

    used = entry.counts > 0
    values = (entry.sums[used] / entry.counts[used][:, None]).ravel()
    if not values.size:
        return Statistics(name, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    total, mean, deviation = float(values.sum()), float(values.mean()), float(values.std())
    share = values[values > 0] / total if total > 0 else np.zeros(0)
    layer = _LAYER.match(name)
    before = imatrix.entries.get(f"blk.{int(layer[1]) - 1}.{layer[2]}") if layer else None
    similarity = 0.0
    if before is not None and before.sums.size == entry.sums.size:
        a, b = entry.sums.ravel(), before.sums.ravel()
        similarity = float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b) or 1))
    return Statistics(
        name,
        total,
        float(values.min()),
        float(values.max()),
        mean,
        deviation,
        float((values > 1e-5).mean()),
        values.size,
        float(-(share * np.log2(share)).sum()),
        float((values > mean + deviation).mean()) if deviation > 0 else 0.0,
        similarity,
    )


def _order(name: str) -> tuple[int, str]:
    layer = _LAYER.match(name)
    return (int(layer[1]), layer[2]) if layer else (-1, name)
