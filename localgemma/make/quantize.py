"""Quantising a model file: planned to the byte first, then done by llama.cpp in a process of its own."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from localgemma import errors, settings
from localgemma.engine import CancelToken
from localgemma.errors import BackendError, BadModelFile, Cancelled, LocalgemmaError, UsageError
from localgemma.files.header import Header, check_drafter, check_text_model, kind_of, read_header
from localgemma.llamacpp.quantize import Order
from localgemma.make import imatrix as matrices
from localgemma.make import types, whole
from localgemma.messages import Progress

ALIGNMENT = 32  # gguf.h GGUF_DEFAULT_ALIGNMENT, which llama.cpp always writes
_SPLIT = {"split.no": 2, "split.count": 2, "split.tensors.count": 4}  # keys that llama.cpp drops, and bytes of their values
_DEBUG = "See its log with: LOCALGEMMA_LOG=debug"
Told = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Wish:
    """What is wanted: a whole-file type by name, and per tensor (regular expression, ggml type); the first match counts.

    `requantize` allows a source that is quantised already, which costs quality. `threads` 0 is all.
    """

    file_type: str
    overrides: tuple[tuple[str, int], ...] = ()
    imatrix: Path | None = None
    requantize: bool = False
    threads: int = 0


@dataclass(frozen=True, slots=True)
class Planned:
    """One tensor of the new file: its type before and after (ggml ids) and its new bytes."""

    name: str
    shape: tuple[int, ...]
    before: int
    after: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Plan:
    """The new file before a byte of it is written; `size` is exact."""

    source: Header
    wish: Wish
    tensors: tuple[Planned, ...]
    entries: dict[str, str | int]
    size: int

    @property
    def bits(self) -> float:
        """Bits a weight, over all tensors."""
        values = sum(types.values(tensor.shape) for tensor in self.tensors)
        return 8 * sum(tensor.nbytes for tensor in self.tensors) / values

    def by_type(self) -> list[tuple[str, int, int]]:
        """(type, tensors, bytes), largest first."""
        found: dict[int, tuple[int, int]] = {}
        for tensor in self.tensors:
            count, size = found.get(tensor.after, (0, 0))
            found[tensor.after] = count + 1, size + tensor.nbytes
        rows = [(types.type_name(number), count, size) for number, (count, size) in found.items()]
        return sorted(rows, key=lambda row: -row[2])


def make_plan(source: Path, wish: Wish) -> Plan:
    """What quantising would give, by llama.cpp's own choice of types.

    Raises NotFound, BadModelFile, UsageError for a wish that cannot be, BackendError.
    """
    header = readable(source)
    types.file_type(wish.file_type)
    _check_overrides(wish, header)
    entries = _provenance(wish, header)
    chosen = dict(_dry_run(header, wish))
    tensors = []
    for tensor in sorted(header.tensors, key=lambda tensor: tensor.name):
        after = types.tensor_type(chosen[tensor.name]) if tensor.name in chosen else tensor.type_id
        size = tensor.nbytes if after == tensor.type_id else types.nbytes(tensor.shape, after)
        tensors.append(Planned(tensor.name, tensor.shape, tensor.type_id, after, size))
    return Plan(header, wish, tuple(tensors), entries, _file_size(header, tensors, entries))


def bytes_beside(source: Path, wish: Wish, names: Collection[str]) -> int:
    """Bytes of the new file besides those weights, whose types decide the rest."""
    header = readable(source)
    same = [Planned(tensor.name, tensor.shape, tensor.type_id, tensor.type_id, tensor.nbytes) for tensor in header.tensors]
    varied = sum(padded(tensor.nbytes) for tensor in same if tensor.name in names)
    return _file_size(header, same, _provenance(wish, header)) - varied


def run_plan(
    plan: Plan, target: Path, *, replace: bool = False, progress: Told | None = None, cancel: CancelToken | None = None
) -> None:
    """Write the planned file, whole or not at all.

    Raises UsageError or DiskError before the work for a target that cannot be, BackendError, DiskError, Cancelled.
    """
    check_possible(plan)
    whole.check_target(plan.source.path, target, plan.size, replace=replace)
    sizes = {tensor.name: tensor.nbytes for tensor in plan.source.tensors}
    total, done, begun = sum(sizes.values()), 0, time.monotonic()
    with whole.draft(target) as draft:
        for name, _ in _work(_order(plan.source, plan.wish, plan.entries, str(draft.path)), draft, cancel):
            done += sizes.get(name, 0)
            left = (time.monotonic() - begun) / max(done, 1) * (total - done)
            if progress is not None:
                progress(Progress("quantize", done, total, left))
        if draft.size != plan.size:
            raise BackendError(f"llama.cpp wrote {draft.size:,} bytes of {target.name} where {plan.size:,} were planned.")
        draft.keep()


def readable(source: Path) -> Header:
    """The header of a model file that may be quantised; NotFound, BadModelFile."""
    header = read_header(source)
    kind = kind_of(header)
    if kind == "drafter":
        check_drafter(header)
    elif kind != "projector":
        check_text_model(header)
    if (header.number("split.count") or 1) > 1:
        raise BadModelFile(f"{source.name} is one part of several.", "Join them first with: llama-gguf-split --merge")
    return header


def _check_overrides(wish: Wish, header: Header) -> None:
    for pattern, number in wish.overrides:
        try:
            compiled = re.compile(pattern)
        except re.error as error:
            raise UsageError(f"{pattern!r} is not a regular expression: {error}.", "Correct it and try again.") from None
        if not any(compiled.search(tensor.name) for tensor in header.tensors):
            some = ", ".join(tensor.name for tensor in header.tensors if len(tensor.shape) > 1)[:120]
            raise UsageError(f"No tensor of {header.path.name} matches {pattern!r}.", f"There are: {some} …")
        if number not in types.NAMES:
            raise UsageError(f"No tensor can be made of {types.type_name(number)}.", "Choose another type.")
    if wish.overrides and types.FILE_TYPES[types.file_type(wish.file_type)] in (0, 1, 32):
        hint = "Give a quantised type to --type, and the exceptions to --tensor-type."
        raise UsageError(f"llama.cpp takes no exceptions from {wish.file_type}.", hint)


def _provenance(wish: Wish, header: Header) -> dict[str, str | int]:
    """What llama-quantize writes about the imatrix; the file's name without its folders."""
    if wish.imatrix is None:
        return {}
    matrix = matrices.read(wish.imatrix)
    matrices.check(matrix, header, wish.imatrix.name)
    entries: dict[str, str | int] = {"quantize.imatrix.file": wish.imatrix.name}
    if matrix.datasets:
        entries["quantize.imatrix.dataset"] = matrix.datasets[0]
    entries["quantize.imatrix.entries_count"] = len(matrix.entries)
    if matrix.chunks:
        entries["quantize.imatrix.chunks_count"] = matrix.chunks
    return {
        key: value.encode()[:127].decode(errors="ignore") if isinstance(value, str) else value
        for key, value in entries.items()
    }


def check_possible(plan: Plan) -> None:
    """UsageError for what llama.cpp would refuse after minutes, or abort on."""
    known = matrices.read(plan.wish.imatrix).entries if plan.wish.imatrix else {}
    for tensor in plan.tensors:
        if tensor.after == tensor.before:
            continue
        if tensor.before not in types.PLAIN and not plan.wish.requantize:
            raise UsageError(
                f"{plan.source.path.name} is quantised already: {tensor.name} is {types.type_name(tensor.before)}.",
                "Start from BF16, F16 or F32, or accept the loss with --allow-requantize.",
            )
        lowest = plan.wish.file_type.upper() == "Q2_K_S" and tensor.after == types.TENSOR_TYPES["q2_K"]
        needs = tensor.after in types.NEED_IMATRIX or (lowest and tensor.name != "token_embd.weight")
        if needs and tensor.name not in known:
            raise UsageError(
                f"{types.type_name(tensor.after)} needs an imatrix, and there is none for {tensor.name}.",
                "Make one with: localgemma imatrix MODEL -o FILE --data FILE, and give it with --imatrix FILE.",
            )


def _file_size(header: Header, tensors: list[Planned], entries: dict[str, str | int]) -> int:
    """Bytes of the file that llama.cpp will write: metadata, tensor list, and each tensor padded."""
    size = header.metadata_end
    for key, value in _SPLIT.items():
        if key in header.metadata:
            size -= 8 + len(key) + 4 + value
    for key, new in {"general.quantization_version": 2, "general.file_type": 0, **entries}.items():
        size += 8 + len(key) + 4 + _value_size(new)
        if (old := header.metadata.get(key)) is not None:
            size -= 8 + len(key) + 4 + _value_size(old)
    for tensor in tensors:
        shape = list(tensor.shape)
        while len(shape) > 1 and shape[-1] == 1:
            shape.pop()
        size += 8 + len(tensor.name.encode()) + 4 + 8 * len(shape) + 4 + 8
    return padded(size) + sum(padded(tensor.nbytes) for tensor in tensors)


def _value_size(value: object) -> int:
    return 8 + len(value.encode()) if isinstance(value, str) else 4


def padded(size: int) -> int:
    """Bytes that a tensor takes in a file."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def _order(header: Header, wish: Wish, entries: dict[str, str | int], target: str, *, dry: bool = False) -> dict[str, Any]:
    number = types.FILE_TYPES[types.file_type(wish.file_type)]
    order = Order(str(header.path), target, number, {}, wish.overrides, entries, wish.threads, wish.requantize, dry)
    return {**asdict(order), "imatrix": str(wish.imatrix) if wish.imatrix else None}


def _dry_run(header: Header, wish: Wish) -> Iterator[tuple[str, str]]:
    yield from _work(_order(header, wish, {}, "", dry=True), None, None)


def _work(order: dict[str, Any], draft: whole.Draft | None, cancel: CancelToken | None) -> Iterator[tuple[str, str]]:
    """(tensor, type) of each tensor as the worker finishes it; it is killed when this ends for any reason."""
    order["leftover"] = str(draft.leftover) if draft is not None and draft.leftover else None
    handles = (draft.handle,) if draft is not None and draft.handle is not None else ()
    command = [sys.executable, "-m", "localgemma.make.quantize_worker"]
    pipe, cancel, end = subprocess.PIPE, cancel or CancelToken(), None
    debug = settings.load().log_level == "debug"
    with tempfile.TemporaryFile() as talk:
        worker = subprocess.Popen(
            command,
            stdin=pipe,
            stdout=pipe,
            stderr=None if debug else talk,
            text=True,
            pass_fds=handles,
            start_new_session=True,
        )  # a session of its own: the terminal's Ctrl-C reaches only the caller, who ends the worker
        assert worker.stdin is not None and worker.stdout is not None
        try:
            cancel.watch(worker.kill)
            with contextlib.suppress(BrokenPipeError):
                worker.stdin.write(json.dumps(order) + "\n")
                worker.stdin.flush()
            for said in _said(worker.stdout):
                if "tensor" in said:
                    yield said["tensor"], said["type"]
                else:
                    end = said
        finally:
            cancel.watch(None)
            worker.kill()
            worker.wait()
            worker.stdout.close()
            with contextlib.suppress(OSError):
                worker.stdin.close()
        if cancel.cancelled:
            raise Cancelled("Quantising was cancelled.")
        if end is None:
            talk.seek(0)
            last = talk.read()[-4000:].decode("utf-8", "replace").strip().splitlines()[-1:] or ["no reason given"]
            raise BackendError(f"llama.cpp ended while it quantised (exit {worker.returncode}): {last[0][:300]}.", _DEBUG)
        if "error" in end:
            raise _named(end["error"])(end["message"], end["hint"])


def _said(stream: IO[str]) -> Iterator[dict[str, Any]]:
    for line in stream:
        try:
            yield json.loads(line)
        except ValueError:  # the last line of a killed worker
            return


def _named(name: str) -> type[LocalgemmaError]:
    found = getattr(errors, name, BackendError)
    return found if isinstance(found, type) and issubclass(found, LocalgemmaError) else BackendError
