"""llama.cpp's own quantisation. It may abort and cannot be stopped, so it is run in a process of its own."""

from __future__ import annotations

import ctypes
import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from localgemma.errors import BackendError, BadModelFile, DiskError
from localgemma.llamacpp import library, log

if TYPE_CHECKING:
    import numpy as np

BUFFER = 1 << 30  # bytes of rows held at once; llama.cpp's default is 8 GiB
_LINE = re.compile(r"\[\s*(\d+)/\s*(\d+)\] (\S+)\s+- \[.*?\], type =\s*(\S+), (.*)")
_NEW = re.compile(r"\((\w+)\)\s*$")
_STRING, _INTEGER = 3, 0  # llama.h enum llama_model_kv_override_type


@dataclass(frozen=True, slots=True)
class Order:
    """What to quantise and how.

    `file_type` is llama.h's llama_ftype; `overrides` are (regular expression on the tensor's name, ggml type), the first
    that matches counts; `imatrix` is mean squared input per column by tensor; `entries` go into the new file's metadata.
    """

    source: str
    target: str
    file_type: int
    imatrix: Mapping[str, np.ndarray] = field(default_factory=dict)
    overrides: tuple[tuple[str, int], ...] = ()
    entries: Mapping[str, str | int] = field(default_factory=dict)
    threads: int = 0
    requantize: bool = False
    dry: bool = False


Report = Callable[[str, str], None]


def run(order: Order, report: Report) -> None:
    """Quantise; `report` gets each tensor's name when it is done and, in a dry run, the name of its new type.

    Raises BadModelFile, DiskError or BackendError; what was written of the target stays.
    """
    c = library.load()
    params = c.llama_model_quantize_default_params()
    params.nthread, params.ftype, params.max_buf_size = order.threads, order.file_type, BUFFER
    params.allow_requantize, params.dry_run = order.requantize, order.dry
    keep: list[Any] = [_overrides(c, order), _entries(c, order), *_imatrix(c, order)]
    if order.overrides:
        params.tt_overrides = keep[0]
    if order.entries:
        params.kv_overrides = keep[1]
    if order.imatrix:
        params.imatrix = keep[2]
    watcher = _Lines(report)
    level, log.LOGGER.level = log.LOGGER.level, logging.DEBUG
    log.LOGGER.addHandler(watcher)
    log.clear()
    try:
        status = c.llama_model_quantize(os.fsencode(order.source), os.fsencode(order.target), ctypes.byref(params))
    finally:
        log.LOGGER.removeHandler(watcher)
        log.LOGGER.setLevel(level)
    if status:
        raise _failure(log.last_error() or "no reason given")


def _failure(reason: str) -> BackendError | BadModelFile | DiskError:
    reason = reason.split("failed to quantize: ")[-1].strip()
    if "basic_ios" in reason or "iostream" in reason:
        return DiskError("The new file could not be written.", "Check the disk's free space, or choose another folder.")
    if re.search(
        r"not within|corrupted|incomplete|failed to load|failed to open|invalid magic|key not found|unknown model", reason
    ):
        return BadModelFile(f"llama.cpp cannot read the model: {reason}.")
    return BackendError(f"llama.cpp could not quantise the model: {reason}.", "See its log with: LOCALGEMMA_LOG=debug")


class _Lines(logging.Handler):
    """Reads which tensor is done off llama.cpp's log."""

    def __init__(self, report: Report) -> None:
        super().__init__(logging.DEBUG)
        self._report = report

    def emit(self, record: logging.LogRecord) -> None:
        found = _LINE.search(record.getMessage())
        if found:
            new = _NEW.search(found[5])
            self._report(found[3], new[1] if new else found[4])


def _overrides(c: Any, order: Order) -> Any:
    array = (c.llama_model_tensor_override * (len(order.overrides) + 1))()
    for slot, (pattern, number) in zip(array, order.overrides, strict=False):
        slot.pattern, slot.type = pattern.encode(), number
    return array


def _entries(c: Any, order: Order) -> Any:
    array = (c.llama_model_kv_override * (len(order.entries) + 1))()
    for slot, (key, value) in zip(array, order.entries.items(), strict=False):
        slot.key = key.encode()
        if isinstance(value, str):
            slot.tag, slot.value.val_str = _STRING, value.encode()[:127]
        else:
            slot.tag, slot.value.val_i64 = _INTEGER, value
    return array


def _imatrix(c: Any, order: Order) -> list[Any]:
    """The array llama.cpp reads, and what it points into."""
    import numpy as np

    kept = {name: np.ascontiguousarray(values, np.float32).ravel() for name, values in order.imatrix.items()}
    array = (c.llama_model_imatrix_data * (len(kept) + 1))()
    for slot, (name, values) in zip(array, kept.items(), strict=False):
        slot.name, slot.size = name.encode(), values.size
        slot.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    return [array, kept]
