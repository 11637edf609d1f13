"""A walked reference in a file (.lgref) that can be handed round, so that nobody needs the large model again.

8 bytes of magic, the length of a JSON header (uint64, little-endian), the header with the texts' tokens and pictures, one
record a token (see reference), sha256 of everything before it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from localgemma.compare import reference
from localgemma.compare.keep import whole
from localgemma.compare.reference import Compact
from localgemma.compare.samples import Sample
from localgemma.errors import BadReference, DiskError, NotFound
from localgemma.messages import Pixels
from localgemma.passages import Passage

MAGIC = b"LGREF\0\1\n"
ENDING = ".lgref"
_LARGEST_HEADER = 1 << 30
_LARGEST_SIDE = 1 << 14


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a reference comes from and how it was walked; what a candidate must share with it, or say that it does not."""

    set: str
    model: str
    label: str
    sha256: str
    vocabulary: str
    template: str
    family: str
    build: str
    backend: str
    ubatch: int
    outputs: int
    sequences: int
    vocabulary_size: int
    image_tokens: int = 0
    bytes: int = 0
    bits_per_weight: float = 0.0
    quant: str = ""
    kv: str = "f16"
    date: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reference:
    """An opened file: where it comes from, its texts, and its tokens' records, read when they are needed."""

    path: Path
    origin: Origin
    samples: tuple[Sample, ...]
    start: int

    def tokens(self, first: int, last: int) -> Compact:
        """The distributions of tokens `first` to `last` (not included). DiskError."""
        size = reference.record_type().itemsize
        try:
            with self.path.open("rb") as stream:
                stream.seek(self.start + first * size)
                return reference.unpacked(stream.read((last - first) * size))
        except OSError as error:
            raise DiskError(f"{self.path} could not be read: {error.strerror}.", "Check the disk.") from error


def write(target: Path, origin: Origin, samples: Sequence[Sample], records: Iterable[bytes]) -> None:
    """Write the file, whole or not at all. Raises DiskError."""
    pictures = {run.sha256: run for sample in samples for run in sample.passage.runs if isinstance(run, Pixels)}
    header = {
        "origin": asdict(origin),
        "texts": [_sample_json(sample) for sample in samples],
        "pictures": {name: _picture_json(pixels) for name, pixels in pictures.items()},
    }
    data = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    total = hashlib.sha256()
    with whole(target) as stream:
        for piece in (MAGIC, struct.pack("<Q", len(data)), data, *records):
            stream.write(piece)
            total.update(piece)
        stream.write(total.digest())


def read(path: Path) -> Reference:
    """Open a file; every byte is checked. Raises NotFound, DiskError and BadReference."""
    try:
        with path.open("rb") as stream:
            begin = stream.read(16)
            if begin[:8] != MAGIC:
                same = begin[:5] == MAGIC[:5]
                raise BadReference(f"{path.name} is {'of another version' if same else 'no reference file'}.")
            length = struct.unpack("<Q", begin[8:].ljust(8, b"\0"))[0]
            size = path.stat().st_size
            if length > min(_LARGEST_HEADER, size):
                raise BadReference(f"{path.name} is cut off or damaged.")
            data = stream.read(length)
            total = hashlib.sha256(begin + data)
            left = size - 16 - length - 32
            while left > 0 and (piece := stream.read(min(left, 1 << 20))):
                total.update(piece)
                left -= len(piece)
            if left or stream.read() != total.digest():
                raise BadReference(f"{path.name} is cut off or damaged.")
        return _parsed(path, data, size)
    except FileNotFoundError:
        raise NotFound(f"There is no file {path}.", "Check its name.") from None
    except OSError as error:
        raise DiskError(f"{path} could not be read: {error.strerror}.", "Check its name and permissions.") from error


def _parsed(path: Path, data: bytes, size: int) -> Reference:
    try:
        header = json.loads(data)
        known = {f.name for f in fields(Origin)}
        origin = Origin(**{name: value for name, value in header["origin"].items() if name in known})
        pictures = {name: _picture(name, kept) for name, kept in header["pictures"].items()}
        samples = tuple(_sample(item, pictures, origin.vocabulary_size) for item in header["texts"])
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, zlib.error) as error:
        raise BadReference(f"{path.name} is damaged: {error!r:.100}.") from error
    start = 16 + len(data)
    count = sum(len(sample.targets) for sample in samples)
    if size != start + count * reference.record_type().itemsize + 32:
        raise BadReference(f"{path.name} is damaged: its records do not belong to its texts.")
    return Reference(path, origin, samples, start)


def _sample_json(sample: Sample) -> dict[str, Any]:
    runs = [run.sha256 if isinstance(run, Pixels) else list(run) for run in sample.passage.runs]
    return {
        "id": sample.id, "category": sample.category, "runs": runs, "first": sample.passage.first,
        "targets": list(sample.targets),
    }  # fmt: skip


def _sample(item: Mapping[str, Any], pictures: Mapping[str, Pixels], vocabulary: int) -> Sample:
    runs = tuple(pictures[run] if isinstance(run, str) else _ids(run, vocabulary) for run in item["runs"])
    passage = Passage(runs, int(item["first"]))
    targets = _ids(item["targets"], vocabulary)
    if not passage.first >= 0 or not 0 <= len(passage) - passage.first - len(targets) <= 1 or not targets:
        raise ValueError("a text and its scored tokens do not agree")
    return Sample(str(item["id"]), str(item["category"]), passage, targets)


def _ids(values: Any, vocabulary: int) -> tuple[int, ...]:
    if not all(type(value) is int and 0 <= value < vocabulary for value in values):
        raise ValueError("a token outside the vocabulary")
    return tuple(values)


def _picture_json(pixels: Pixels) -> dict[str, Any]:
    data = base64.b64encode(zlib.compress(pixels.rgb, 9)).decode("ascii")
    return {"width": pixels.width, "height": pixels.height, "tokens": pixels.tokens, "rgb": data}


def _picture(name: str, kept: Mapping[str, Any]) -> Pixels:
    width, height, tokens = int(kept["width"]), int(kept["height"]), int(kept["tokens"])
    if not 0 < width <= _LARGEST_SIDE or not 0 < height <= _LARGEST_SIDE or tokens * 48 * 48 != width * height:
        raise ValueError("a picture of an impossible size")
    size = width * height * 3
    rgb = zlib.decompressobj().decompress(base64.b64decode(kept["rgb"]), size + 1)
    if len(rgb) != size:
        raise ValueError("a picture of the wrong length")
    return Pixels(rgb, width, height, tokens, name)


def is_name(text: str) -> bool:
    """Whether a reference is meant as such a file."""
    return text.lower().endswith(ENDING)
