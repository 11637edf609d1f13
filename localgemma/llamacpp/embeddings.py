"""Pictures as the projector sees them: embeddings kept in RAM, bounded by bytes, and on disk where that was asked for."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

from localgemma.llamacpp import log
from localgemma.messages import Pixels
from localgemma.whole import whole_file

CACHE_BYTES = 256 << 20  # embeddings in RAM: 11 pictures of 1,120 tokens for the 31B
DISK_BYTES = 2 << 30  # and on disk, of all models together: 89 such pictures
_ENDING = ".rows"


class Embeddings:
    """float32 [tokens, width] by the picture's hash, the longest unused first out; one thread at a time.

    `folder` holds one file a picture, its bytes followed by their SHA-256, and has a name that stands for the projector, so
    that nothing of another model is ever taken.
    """

    def __init__(self, width: int, folder: Path | None = None) -> None:
        self._width, self._folder = width, folder
        self._kept: OrderedDict[str, Any] = OrderedDict()

    def get(self, picture: Pixels) -> Any:
        """The picture's embedding, or None."""
        key = picture.sha256
        if (rows := self._kept.get(key)) is not None:
            self._kept.move_to_end(key)
        elif self._folder is not None and (rows := self._read(picture, self._folder / f"{key}{_ENDING}")) is not None:
            self._keep(key, rows)
        return rows

    def put(self, picture: Pixels, rows: Any) -> None:
        """Keep an embedding. A disk that does not take it is no failure."""
        self._keep(picture.sha256, rows)
        if self._folder is None:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            data = memoryview(rows).cast("B")
            with whole_file(self._folder / f"{picture.sha256}{_ENDING}") as file:
                file.write(data)
                file.write(hashlib.sha256(data).digest())
            _shrink(self._folder.parent)
        except OSError as error:
            log.LOGGER.warning("A picture's embedding cannot be kept on disk: %s", error)

    def _keep(self, key: str, rows: Any) -> None:
        self._kept[key] = rows
        while len(self._kept) > 1 and sum(kept.nbytes for kept in self._kept.values()) > CACHE_BYTES:
            self._kept.popitem(last=False)

    def _read(self, picture: Pixels, path: Path) -> Any:
        """What a whole file holds; a damaged one is deleted."""
        import numpy as np

        size = picture.tokens * self._width * 4
        try:
            data = path.read_bytes()
            if len(data) != size + 32 or hashlib.sha256(memoryview(data)[:size]).digest() != data[size:]:
                path.unlink(missing_ok=True)
                return None
            os.utime(path)
        except OSError:
            return None
        return np.frombuffer(data, np.float32, size // 4).reshape(picture.tokens, self._width)


def _shrink(root: Path) -> None:
    """Delete the files that were unused longest until the rest is within the bound."""
    found = []
    for path in root.glob(f"*/*{_ENDING}"):
        with contextlib.suppress(OSError):  # another process may have deleted it
            facts = path.stat()
            found.append((facts.st_mtime_ns, facts.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= DISK_BYTES:
            break
        path.unlink(missing_ok=True)
        total -= size
