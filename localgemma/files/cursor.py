"""A place in a GGUF file's start that only moves on after a check, with limits on what one header may cost.

The limits bound a hostile header to about a second and 200 MB. The real model's header is 16 MB with 1.3 million texts
(llama.cpp's models/ggml-vocab-gemma-4.gguf), so each leaves room for three of it.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import BinaryIO, NoReturn

from localgemma.errors import BadModelFile

MAX_HEADER, MAX_STRING, BLOCK = 48 << 20, 16 << 20, 4 << 20
MAX_STRINGS = 4 << 20  # texts in all arrays together
SCALARS = {kind: struct.Struct("<" + code) for kind, code in enumerate("BbHhIif?__Qqd") if code != "_"}
U32, U64 = SCALARS[4], SCALARS[10]
AGAIN = "Download it again with: localgemma models pull NAME"


class Cursor:
    """The file's start, read block by block as it is needed; `pos` is where the next value is."""

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self.path, self.stream, self.pos = path, stream, 0
        self.size = os.fstat(stream.fileno()).st_size
        self.buffer = bytearray()
        self.strings_left = MAX_STRINGS

    def bad(self, what: str, hint: str = AGAIN) -> NoReturn:
        """BadModelFile: the file's name, then what it is."""
        raise BadModelFile(f"{self.path.name} {what}.", hint)

    def need(self, count: int) -> None:
        """Have the `count` bytes after `pos` in the buffer, or raise."""
        end = self.pos + count
        if end <= len(self.buffer):
            return
        if end > self.size:
            self.bad(f"is cut off or damaged: its header needs {end - self.size:,} bytes more than the file has")
        if end > MAX_HEADER:
            self.bad(f"is damaged: its header would be larger than {MAX_HEADER >> 20} MiB")
        goal = min(self.size, MAX_HEADER, end + BLOCK)
        while len(self.buffer) < goal:
            block = self.stream.read(goal - len(self.buffer))
            self.buffer += block or self.bad("became shorter while it was read", "Wait for its download, then try again.")

    def scalar(self, kind: struct.Struct) -> int:
        """The next number of this kind."""
        self.skip(kind.size)
        value: int = kind.unpack_from(self.buffer, self.pos - kind.size)[0]
        return value

    def skip(self, count: int) -> None:
        """Step over `count` bytes."""
        self.need(count)
        self.pos += count

    def string(self) -> str:
        """The next string; bytes that are not UTF-8 become replacement characters."""
        length = self.scalar(U64)
        self.skip(length if length <= MAX_STRING else self.bad(f"is cut off or damaged: it claims a text of {length:,} bytes"))
        return self.buffer[self.pos - length : self.pos].decode("utf-8", "replace")

    def skip_strings(self, count: int) -> None:
        """Step over `count` strings: about 0.1 microseconds each."""
        self.strings_left -= count
        if self.strings_left < 0:
            self.bad(f"is damaged: it holds more than {MAX_STRINGS:,} texts")
        read, left, buffer, pos = U64.unpack_from, count, self.buffer, self.pos
        while left:
            try:
                while left:
                    pos += read(buffer, pos)[0] + 8
                    left -= 1
            except (struct.error, OverflowError):
                self.need(pos + 8 - self.pos)  # more of the file, or an error where the file ends before
        self.need(pos - self.pos)
        self.pos = pos
