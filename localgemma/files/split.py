"""Makes two files that llama.cpp loads out of one Gemma 4 file in Ollama's own form.

Ollama's converter (convert/convert_gemma4.go) puts the picture tower's tensors beside the text's under the names that
llama.cpp's projectors use, describes them under `gemma4.vision.*`, calls the tokenizer `llama`, and gives its tokens the
types of tokenizer.json. The text copy leaves the tower out and gets llama.cpp's tokenizer name and token types; the
projector copy gets the tower and llama.cpp's `clip.*` entries, `clip.use_gelu` included. Weights are the same bytes, but
for the two tensors of the tower that llama.cpp wants in F32, which F16 and BF16 values fit into exactly.
"""

from __future__ import annotations

import contextlib
import hashlib
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from localgemma.errors import BadModelFile, Cancelled, ChecksumError
from localgemma.files import ledger
from localgemma.files.header import Header, Tensor, check_projector, check_text_model, in_ollama_form, read_header
from localgemma.files.imports import Imported, link, models_folder
from localgemma.files.ollama import digest_of
from localgemma.files.ollama_entries import ALIGNMENT, projector_entries, text_entries
from localgemma.whole import disk_errors, make_room, whole_file

BLOCK = 4 << 20
Progress = Callable[[int, int], bool | None]  # bytes done and in all; False cancels
_F32, _F16, _BF16 = 0, 1, 30
_WHOLE = ("v.patch_embd.weight", "v.position_embd.weight")  # llama.cpp wants them in F32


@dataclass(frozen=True, slots=True)
class Piece:
    """One file to be written: its place, its bytes before the weights, and its tensors as (in the source, in the file)."""

    path: Path
    start: bytes
    tensors: tuple[tuple[Tensor, Tensor], ...]
    size: int


@dataclass(frozen=True, slots=True)
class Split:
    """What will be written out of `source`: show it, then `execute`. Without a tower there is no projector."""

    source: Header
    text: Piece
    projector: Piece | None

    @property
    def size(self) -> int:
        """Bytes that the copies take."""
        return sum(piece.size for piece in self.pieces)

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """The files, the text model first."""
        return (self.text, self.projector) if self.projector else (self.text,)

    @property
    def is_done(self) -> bool:
        """Whether the copies are there: they appear only when they are whole."""
        return all(piece.path.is_file() and piece.path.stat().st_size == piece.size for piece in self.pieces)

    def execute(self, progress: Progress | None = None) -> dict[Path, str]:
        """Write the copies in one pass over the source, check them, and return the sha256 of each.

        Raises DiskError where there is no room, ChecksumError where the source is not what its name promises,
        BadModelFile where a copy came out wrong, Cancelled; in each case no file is left.
        """
        folder = self.text.path.parent
        make_room(folder, self.size, f"The copy of {self.source.path.name}")
        with disk_errors(f"The copy of {self.source.path.name}", folder), contextlib.ExitStack() as stack:
            writers = [_Writer(stack.enter_context(whole_file(piece.path)), piece) for piece in self.pieces]
            _copy(self.source, writers, progress)
            for writer in writers:
                writer.finish()
            return {writer.piece.path: writer.digest.hexdigest() for writer in writers}


def copies_folder(source: Path, name: str) -> Path:
    """Where the copies of a file belong: a folder of its own for each content, or each place of an unnamed content."""
    digest = digest_of(source) or hashlib.sha256(str(source.resolve()).encode("utf-8", "surrogateescape")).hexdigest()
    return models_folder() / f"{name}-{digest[:8]}"


def link_copies(plan: Split, hashes: Mapping[Path, str]) -> list[Imported]:
    """Link the copies, with the sha256 that `execute` gave; their records say that localgemma made them."""
    for path, sha256 in hashes.items():
        ledger.record(path, sha256, fetched=True)
    return [link(piece.path, sha256=hashes.get(piece.path)) for piece in plan.pieces]


def plan_split(path: Path, folder: Path, name: str) -> Split:
    """How the file at `path` is split into `folder`/`name`.gguf and its mmproj; BadModelFile where it cannot be."""
    header = read_header(path)
    if not in_ollama_form(header):
        raise BadModelFile(f"{path.name} is not in Ollama's form; nothing needs to be split.", "Import it as it is.")
    if any("_exps" in tensor.name for tensor in header.tensors):
        raise BadModelFile(f"{path.name} is a mixture of experts.", "localgemma runs the dense Gemma 4 31B.")
    with path.open("rb") as stream:
        start = stream.read(header.header_end)
    tower = [t for t in header.tensors if t.name.startswith(("v.", "mm.")) and not t.name.startswith(("v.clamp", "mm.a."))]
    text = [t for t in header.tensors if not t.name.startswith(("v.", "mm.", "a."))]
    projector = _piece(folder / f"mmproj-{name}.gguf", projector_entries(header), tower) if tower else None
    return Split(header, _piece(folder / f"{name}.gguf", text_entries(header, start), text), projector)


def _piece(path: Path, entries: list[bytes], tensors: Sequence[Tensor]) -> Piece:
    """The file with these metadata entries and these tensors, laid out as GGUF demands."""
    placed, offset, infos = [], 0, b""
    for tensor in tensors:
        new = replace(tensor, offset=offset)
        if tensor.name in _WHOLE and tensor.type_id in (_F16, _BF16):
            new = replace(new, type_id=_F32, nbytes=2 * tensor.nbytes)
        placed.append((tensor, new))
        offset += new.nbytes + -new.nbytes % ALIGNMENT
        name = new.name.encode()
        infos += struct.pack("<Q", len(name)) + name
        infos += struct.pack(f"<I{len(new.shape)}QIQ", len(new.shape), *new.shape, new.type_id, new.offset)
    start = b"GGUF" + struct.pack("<IQQ", 3, len(placed), len(entries)) + b"".join(entries) + infos
    start += bytes(-len(start) % ALIGNMENT)
    return Piece(path, start, tuple(placed), len(start) + offset)


class _Writer:
    """Writes one piece, front to back, and hashes what it writes."""

    def __init__(self, stream: BinaryIO, piece: Piece) -> None:
        self.stream, self.piece, self.written, self.digest = stream, piece, 0, hashlib.sha256()
        self.write(piece.start)

    def write(self, data: bytes) -> None:
        self.stream.write(data)
        self.digest.update(data)
        self.written += len(data)

    def start_tensor(self, tensor: Tensor) -> None:
        """Fill up to where the tensor begins."""
        self.write(bytes(len(self.piece.start) + tensor.offset - self.written))

    def finish(self) -> None:
        """Fill up the end, and read back what the file says of itself; BadModelFile where it is wrong."""
        self.write(bytes(self.piece.size - self.written))
        self.stream.flush()
        header = read_header(self.stream.name)
        if header.tensors != tuple(new for _, new in self.piece.tensors) or header.file_size != self.piece.size:
            raise BadModelFile(f"The copy {self.piece.path.name} came out wrong.", "Please report it.")
        width = header.number("clip.vision.projection_dim")
        check_projector(header, width or 0) if width else check_text_model(header)


def _copy(header: Header, writers: Sequence[_Writer], progress: Progress | None) -> None:
    """Read the source once, from its first byte to its last, and give each tensor's bytes to the writer that wants it."""
    wanted = {old.name: (writer, new) for writer in writers for old, new in writer.piece.tensors}
    with header.path.open("rb") as stream:
        source = _Source(stream, header, progress)
        source.skip_to(header.data_offset)
        for tensor in header.tensors:
            source.skip_to(header.data_offset + tensor.offset)
            writer, new = wanted.get(tensor.name, (None, tensor))
            if writer:
                writer.start_tensor(new)
            for block in source.blocks(tensor.nbytes):
                if writer:
                    writer.write(block if new.type_id == tensor.type_id else _as_f32(block, tensor.type_id))
        source.skip_to(header.file_size)
        promised = digest_of(header.path)
        if promised and source.digest.hexdigest() != promised:
            raise ChecksumError(f"{header.path.name} is damaged: its sha256 is another.", "Pull it again with: ollama pull")


class _Source:
    """The source, read front to back and hashed."""

    def __init__(self, stream: BinaryIO, header: Header, progress: Progress | None) -> None:
        self.stream, self.header, self.progress = stream, header, progress
        self.done, self.digest = 0, hashlib.sha256()

    def skip_to(self, place: int) -> None:
        for _ in self.blocks(place - self.done):
            pass

    def blocks(self, count: int) -> Iterator[bytes]:
        while count:
            block = self.stream.read(min(count, BLOCK))
            if not block:
                raise BadModelFile(f"{self.header.path.name} became shorter while it was read.", "Try again.")
            self.digest.update(block)
            self.done, count = self.done + len(block), count - len(block)
            if self.progress and self.progress(self.done, self.header.file_size) is False:
                raise Cancelled("The copy was not made.", "Import it again when you like.")
            yield block


def _as_f32(block: bytes, type_id: int) -> bytes:
    """F16 or BF16 values as F32, which holds them exactly."""
    import numpy as np

    if type_id == _F16:
        return np.frombuffer(block, "<f2").astype("<f4").tobytes()
    return (np.frombuffer(block, "<u2").astype("<u4") << 16).tobytes()
