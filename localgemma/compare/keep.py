"""What is finished of a comparison, kept on disk part by part, so that a run that was cut off goes on where it was.

A part is found again only under a key of everything that it depends on: texts, files, load and library.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, BinaryIO

from localgemma.compare.metrics import Tokens
from localgemma.errors import DiskError
from localgemma.whole import whole_file

KEPT_DAYS = 30  # finished parts are of use only while somebody still asks for them


@contextmanager
def whole(target: Path) -> Iterator[BinaryIO]:
    """A file to write that appears under its name when the block ends without an error. Raises DiskError."""
    try:
        with whole_file(target) as stream:
            yield stream
    except OSError as error:
        raise DiskError(
            f"{target} could not be written: {error.strerror or error}.",
            "Free some space or choose another folder, then run the same command again: what is done is kept.",
        ) from error


def key_of(*what: Any) -> str:
    """A short name for everything that a part depends on."""
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:24]


class Store:
    """Finished parts in `folder`; a damaged part is as good as none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._sweep()

    def _sweep(self) -> None:
        with contextlib.suppress(OSError):
            for kept in self.folder.iterdir():
                if kept.is_dir() and time.time() - kept.stat().st_mtime > KEPT_DAYS * 86400:
                    shutil.rmtree(kept, ignore_errors=True)

    def _path(self, key: str, name: str) -> Path:
        return self.folder / key / name

    def put(self, key: str, name: str, data: bytes) -> None:
        """Keep a part. Raises DiskError."""
        path = self._path(key, name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DiskError(f"{path.parent} could not be made: {error.strerror}.", "Check the folder.") from error
        with whole(path) as stream:
            stream.write(hashlib.sha256(data).digest() + data)

    def get(self, key: str, name: str) -> bytes | None:
        """A part that is there and sound."""
        try:
            data = self._path(key, name).read_bytes()
        except OSError:
            return None
        return data[32:] if hashlib.sha256(data[32:]).digest() == data[:32] else None

    def put_tokens(self, key: str, segment: int, tokens: Tokens) -> None:
        """Keep one segment's tokens. Raises DiskError."""
        import numpy as np

        buffer = io.BytesIO()
        np.savez(buffer, **{f.name: getattr(tokens, f.name) for f in fields(tokens)})
        self.put(key, f"{segment:05d}.npz", buffer.getvalue())

    def get_tokens(self, key: str, segment: int) -> Tokens | None:
        """One segment's tokens."""
        import numpy as np

        data = self.get(key, f"{segment:05d}.npz")
        if data is None:
            return None
        with np.load(io.BytesIO(data)) as kept:
            return Tokens(*(kept[f.name] for f in fields(Tokens)))
