"""Feeds damaged and hostile GGUF headers to the reader, in a process of its own: `fuzz_headers.py FOLDER FIRST COUNT`.

Prints one JSON object: how many were read, refused, and came to another end; the longest time of one in seconds (of CPU,
so that a busy machine does not count) with its number; the highest resident memory in MiB. Each file is made from its
number alone, so that any can be made again.
"""

from __future__ import annotations

import json
import os
import random
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

from localgemma.errors import LocalgemmaError
from localgemma.files import header as h

DEMO = Path(h.__file__).parent.parent / "assets" / "demo"
ABSURD = (
    *(0, 1, 2, 7, 63, 64, 255, 1023, 1024, 1025, 16_383, 16_384, 16_385, 65_535, 65_536, 2**24, 2**31 - 1, 2**31, 2**32 - 1),
    *(2**32, 2**40, 2**48, 2**62, 2**63 - 1, 2**63, 2**64 - 1),
)


def text(value: str) -> bytes:
    """A string as GGUF stores it."""
    return struct.pack("<Q", len(value.encode())) + value.encode()


def small() -> bytes:
    """A header with every type of value and of array, and tensors."""
    entries = [text("general.architecture") + struct.pack("<I", 8) + text("gemma4")]
    for kind, scalar in h.SCALARS.items():
        entries.append(text(f"scalar.{kind}") + struct.pack("<I", kind) + bytes(scalar.size))
        entries.append(text(f"array.{kind}") + struct.pack("<IIQ", 9, kind, 1100) + bytes(1100 * scalar.size))
        entries.append(text(f"short.{kind}") + struct.pack("<IIQ", 9, kind, 3) + bytes(3 * scalar.size))
    words = b"".join(text(f"word{i}") for i in range(1500))
    entries.append(text("tokens") + struct.pack("<IIQ", 9, 8, 1500) + words)
    tensors = [text(f"t{i}") + struct.pack("<IQQIQ", 2, 32, 4, 8, i * 160) for i in range(12)]
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(entries)) + b"".join(entries) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + bytes(12 * 160)


def seeds() -> list[bytes]:
    """Sound files to damage: the small one, and the demo's, their weights left out (the reader must say so)."""
    demos = []
    for name in ("text", "mmproj", "drafter"):
        path = DEMO / f"{name}.gguf"
        with path.open("rb") as stream:
            demos.append(stream.read(h.read_header(path).data_offset))
    return [small(), small(), *demos]


def damage(data: bytearray, rng: random.Random) -> None:
    """One kind of damage, anywhere, most often near the start."""
    end = len(data) if rng.random() < 0.5 else min(len(data), 4096)
    place = rng.randrange(end)
    kind = rng.randrange(7)
    if kind == 0:
        for _ in range(rng.randint(1, 64)):
            data[rng.randrange(end)] ^= 1 << rng.randrange(8)
    elif kind == 1:
        data[place : place + 8] = struct.pack("<Q", rng.choice(ABSURD))
    elif kind == 2:
        data[place : place + 4] = struct.pack("<I", rng.choice(ABSURD) & 0xFFFFFFFF)
    elif kind == 3:
        del data[place:]
    elif kind == 4:
        data[place:place] = rng.randbytes(rng.randint(1, 64))
    elif kind == 5:
        del data[place : place + rng.randint(1, 64)]
    else:
        other = rng.randrange(len(data))
        data[place : place + 64] = data[other : other + 64]


def make(number: int, path: Path, sound: list[bytes]) -> None:
    """The file of that number."""
    rng = random.Random(number)
    data = bytearray(rng.choice(sound))
    for _ in range(rng.randint(1, 3)):
        if data:
            damage(data, rng)
    if rng.random() < 0.3:  # the two counts and a length, which everything hangs on
        field = rng.choice((8, 16, 24))
        data[field : field + 8] = struct.pack("<Q", rng.choice(ABSURD))
    path.write_bytes(data)
    if rng.random() < 0.25:  # a sparse file, so that absurd counts fit into it
        os.truncate(path, rng.choice((1 << 20, 100 << 20, 3 << 30, 1 << 40)))


def entries(*raw: bytes) -> bytes:
    """A header with these entries."""
    return b"GGUF" + struct.pack("<IQQ", 3, 0, len(raw)) + b"".join(raw)


WORST: dict[str, Callable[[], bytes]] = {  # the dearest header for each limit
    "bad UTF-8, 47 MiB": lambda: entries(
        *(text(f"k{i}") + struct.pack("<IQ", 8, 47 << 18) + b"\xff" * (47 << 18) for i in range(4))
    ),
    "a key of 16 MiB": lambda: entries(struct.pack("<Q", 16 << 20) + b"k" * (16 << 20) + struct.pack("<IB", 0, 1)),
    "4 million empty texts": lambda: entries(text("k") + struct.pack("<IIQ", 9, 8, 4 << 20) + bytes(8 << 22)),
    "short arrays everywhere": lambda: entries(
        *(text(f"k{i}") + struct.pack("<IIQ", 9, 7, 1024) + bytes(1024) for i in range(16_384))
    ),
    "short arrays of texts": lambda: entries(
        *(text(f"k{i}") + struct.pack("<IIQ", 9, 8, 300) + bytes(8 * 300) for i in range(16_384))
    ),
    "16,384 tensors": lambda: (
        b"GGUF"
        + struct.pack("<IQQ", 3, 16_384, 0)
        + b"".join(text(f"tensor{i}") + struct.pack("<I4QIQ", 4, 1, 1, 1, 8, 0, i * 32) for i in range(16_384))
        + bytes(32 * 16_385)
    ),
}


def run(folder: Path, first: int, count: int) -> dict[str, object]:
    """Read them all."""
    path, sound = folder / "fuzzed.gguf", seeds()
    result: dict[str, object] = {"read": 0, "refused": 0, "other": [], "longest": 0.0, "longest_of": ""}
    for name in [*map(str, range(first, first + count)), *WORST]:
        path.unlink(missing_ok=True)  # a file that is written over is flushed to the disk by some file systems
        if name in WORST:
            path.write_bytes(WORST[name]())
        else:
            make(int(name), path, sound)
        start = time.process_time()
        try:
            header = h.read_header(path)
            assert all(header.data_offset + t.offset + t.nbytes <= header.file_size for t in header.tensors)
            h.kind_of(header)
            end = "read"
        except LocalgemmaError as error:
            end = "refused" if error.message and error.hint and len(str(error)) < 1000 else "other"
        except BaseException as error:
            result["other"] = [*result["other"], f"{name}: {error!r}"]  # type: ignore[misc]
            continue
        took = time.process_time() - start
        result[end] += 1  # type: ignore[operator]
        if took > result["longest"]:  # type: ignore[operator]
            result |= {"longest": took, "longest_of": name}
    return result | {"peak_mib": round(peak_bytes() / (1 << 20), 1)}


def peak_bytes() -> int:
    """The most memory this program held; Linux's ru_maxrss also has what its parent held when it started it."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM:")) << 10
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
