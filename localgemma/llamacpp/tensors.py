"""ggml tensors from Python: what an evaluation callback is shown, the bytes behind it, and ggml's own quantisers."""

from __future__ import annotations

import ctypes
import functools
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from localgemma.errors import BackendError
from localgemma.llamacpp import devices, library

if TYPE_CHECKING:
    import numpy as np

F32, F16, BF16 = 0, 1, 30  # ggml.h enum ggml_type
_PIECE = 1 << 20  # values quantised at a time, at least a row


class Tensor(ctypes.Structure):
    """struct ggml_tensor of ggml.h; `ne` counts elements and `nb` strides in bytes, fastest first."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
        ("extra", ctypes.c_void_p),
        ("padding", ctypes.c_char * 8),
    ]


class _Traits(ctypes.Structure):
    """The beginning of struct ggml_type_traits of ggml.h."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("block", ctypes.c_int64),
        ("interleave", ctypes.c_int64),
        ("size", ctypes.c_size_t),
        ("quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
    ]


@functools.cache
def ggml() -> Any:
    """libggml-base with the signatures used here."""
    base = library.shared_object("ggml-base")
    pointer, size, whole = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64
    signatures: dict[str, tuple[list[Any], Any]] = {
        "ggml_op_name": ([ctypes.c_int], ctypes.c_char_p),
        "ggml_get_name": ([pointer], ctypes.c_char_p),
        "ggml_nbytes": ([pointer], size),
        "ggml_row_size": ([ctypes.c_int, whole], size),
        "ggml_get_type_traits": ([ctypes.c_int], ctypes.POINTER(_Traits)),
        "ggml_quantize_chunk": ([ctypes.c_int, pointer, pointer, whole, whole, whole, pointer], size),
        "ggml_quantize_init": ([ctypes.c_int], None),
        "ggml_backend_buffer_is_host": ([pointer], ctypes.c_bool),
        "ggml_backend_tensor_get": ([pointer, pointer, size, size], None),
        "ggml_backend_tensor_set": ([pointer, pointer, size, size], None),
    }
    for name, (arguments, result) in signatures.items():
        function = getattr(base, name)
        function.argtypes, function.restype = arguments, result
    return base


@functools.cache
def operation(name: str) -> int:
    """The number of an operation such as MUL_MAT; numbers move between versions. BackendError where there is none."""
    for number in range(256):
        found = ggml().ggml_op_name(number)
        if found == name.encode():
            return number
    raise BackendError(f"This llama.cpp has no operation {name}.", "Run scripts/bootstrap to install the right one.")


def at(address: int) -> Tensor:
    """The tensor at an address; valid while its graph or model is."""
    return Tensor.from_address(address)


def name_of(tensor: Tensor) -> str:
    """A weight's name without the device that a copy of it is on: CUDA0#blk.0.attn_k.weight#0."""
    name: str = tensor.name.decode("utf-8", "replace")
    return name.split("#")[1] if "#" in name else name


def check_layout(address: int) -> None:
    """BackendError where this llama.cpp's struct ggml_tensor is not the one described here."""
    if ggml().ggml_get_name(address) != at(address).name:
        raise BackendError("This llama.cpp's tensors have another layout.", "Run scripts/bootstrap to install the right one.")


def rows(address: int) -> np.ndarray:
    """float32 [rows, columns] of an F32 tensor: its own memory where the host can read it, else a copy."""
    import numpy as np

    tensor = at(address)
    size = ggml().ggml_nbytes(address)
    if ggml().ggml_backend_buffer_is_host(tensor.buffer):
        memory = (ctypes.c_char * size).from_address(tensor.data)
    else:
        memory = (ctypes.c_char * size)()
        ggml().ggml_backend_tensor_get(address, memory, 0, size)
    shape, strides = tuple(tensor.ne)[::-1], tuple(tensor.nb)[::-1]
    return np.ndarray(shape, np.float32, memory, 0, strides).reshape(-1, tensor.ne[0])


def row_count(address: int) -> int:
    """Rows of a weight."""
    tensor = at(address)
    return int(tensor.ne[1] * tensor.ne[2] * tensor.ne[3])


def load(address: int, start: int = 0, count: int | None = None) -> np.ndarray:
    """A copy of some rows' bytes of a contiguous tensor, uint8; all of them by default."""
    import numpy as np

    row = _row_bytes(address)
    data = np.empty(row * (row_count(address) - start if count is None else count), np.uint8)
    ggml().ggml_backend_tensor_get(address, data.ctypes.data, start * row, data.nbytes)
    return data


def store(address: int, data: np.ndarray, start: int = 0) -> None:
    """Overwrite rows of a contiguous tensor from `start` on; BackendError where they would go beyond it."""
    row = _row_bytes(address)
    if data.nbytes % row or start * row + data.nbytes > ggml().ggml_nbytes(address):
        raise BackendError(f"{data.nbytes:,} bytes do not belong into {name_of(at(address))}.")
    ggml().ggml_backend_tensor_set(address, data.ctypes.data, start * row, data.nbytes)


def _row_bytes(address: int) -> int:
    tensor = at(address)
    row = int(ggml().ggml_row_size(tensor.type, tensor.ne[0]))
    if row * row_count(address) != ggml().ggml_nbytes(address):
        raise BackendError(f"The rows of {name_of(tensor)} are not one after another.")
    return row


def decoded(data: np.ndarray, number: int, columns: int) -> np.ndarray:
    """float32 [rows, columns] of a tensor's bytes in ggml type `number`."""
    import numpy as np

    if number == F32:
        return data.view(np.float32).reshape(-1, columns)
    row = ggml().ggml_row_size(number, columns)
    out = np.empty((data.nbytes // row, columns), np.float32)
    convert = ggml().ggml_get_type_traits(number).contents.to_float

    def part(start: int, stop: int) -> None:
        convert(data.ctypes.data + start * row, out[start].ctypes.data, (stop - start) * columns)

    _in_parts(part, len(out), columns)
    return out


def encoded(values: np.ndarray, number: int, importance: np.ndarray | None = None) -> np.ndarray:
    """Bytes, uint8, of float32 [rows, columns] in ggml type `number`, as llama_model_quantize makes them.

    `importance` is float32 [columns]. The caller checks that the type can be written and has the importance it needs.
    """
    import numpy as np

    values = np.ascontiguousarray(values, np.float32)
    count, columns = values.shape
    row = ggml().ggml_row_size(number, columns)
    out = np.empty(count * row, np.uint8)
    weights = None if importance is None else np.ascontiguousarray(importance, np.float32)
    ggml().ggml_quantize_init(number)

    def part(start: int, stop: int) -> None:
        weight = None if weights is None else weights.ctypes.data
        into = out.ctypes.data + start * row
        ggml().ggml_quantize_chunk(number, values[start].ctypes.data, into, 0, stop - start, columns, weight)

    _in_parts(part, count, columns)
    return out


def _in_parts(part: Any, count: int, columns: int) -> None:
    """Call part(start, stop) over all rows on every core; ctypes lets go of the interpreter's lock meanwhile."""
    step = max(1, _PIECE // columns)
    if count <= step:
        part(0, count)
        return
    starts = range(0, count, step)
    with ThreadPoolExecutor(devices.default_threads()) as pool:
        list(pool.map(lambda start: part(start, min(start + step, count)), starts))
