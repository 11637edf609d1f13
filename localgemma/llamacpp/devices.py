"""The devices that this build of llama.cpp sees, with their memory."""

from __future__ import annotations

import ctypes
import functools
import os
from dataclasses import dataclass
from typing import Any

from localgemma.errors import UsageError
from localgemma.llamacpp import library

_KINDS = {0: "cpu", 1: "gpu", 2: "igpu", 3: "accel", 4: "meta"}


@dataclass(frozen=True, slots=True)
class Device:
    """A ggml device; `free` and `total` are bytes. The CPU's free memory is not reliable inside a container."""

    name: str
    description: str
    kind: str
    free: int
    total: int


def list_devices() -> tuple[Device, ...]:
    """Every device, GPUs and CPU, in ggml's order; works before any model is loaded."""
    base, registry = _functions()
    found = []
    for index in range(registry.ggml_backend_dev_count()):
        handle = ctypes.c_void_p(registry.ggml_backend_dev_get(index))
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        base.ggml_backend_dev_memory(handle, ctypes.byref(free), ctypes.byref(total))
        found.append(
            Device(
                base.ggml_backend_dev_name(handle).decode(),
                base.ggml_backend_dev_description(handle).decode(),
                _KINDS.get(base.ggml_backend_dev_type(handle), "other"),
                free.value,
                total.value,
            )
        )
    return tuple(found)


def system_info() -> str:
    """What this build and this CPU have, as llama.cpp prints it: `AVX2 = 1 | …`."""
    text: bytes = library.load().llama_print_system_info()
    return text.decode("utf-8", "replace")


def has_gpu() -> bool:
    """Whether a layer could be put on a GPU."""
    return any(device.kind in ("gpu", "igpu") for device in list_devices())


def default_threads() -> int:
    """Threads for evaluation: the CPUs this process may use, half of them where there are more than 8 (they come in pairs).

    llama.cpp's own default is 4, which on 2 cores is slower than 2.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return usable if usable <= 8 else usable // 2


def free_memory() -> int:
    """Bytes of RAM that a process could still use: the kernel's estimate on Linux, else the CPU device's."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return next((device.free for device in list_devices() if device.kind == "cpu"), 0)


def handles(names: tuple[str, ...]) -> Any:
    """A NULL-ended C array of the named devices; UsageError names those that exist."""
    _, registry = _functions()
    array = (ctypes.c_void_p * (len(names) + 1))()
    for index, name in enumerate(names):
        handle = registry.ggml_backend_dev_by_name(name.encode())
        if not handle:
            known = ", ".join(device.name for device in list_devices())
            raise UsageError(f"There is no device {name!r}.", f"This build sees: {known}.")
        array[index] = handle
    return array


@functools.cache
def _functions() -> tuple[ctypes.CDLL, ctypes.CDLL]:
    base, registry = library.shared_object("ggml-base"), library.shared_object("ggml")
    registry.ggml_backend_dev_count.restype = ctypes.c_size_t
    registry.ggml_backend_dev_get.restype = ctypes.c_void_p
    registry.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    registry.ggml_backend_dev_by_name.restype = ctypes.c_void_p
    registry.ggml_backend_dev_by_name.argtypes = [ctypes.c_char_p]
    base.ggml_backend_dev_name.restype = base.ggml_backend_dev_description.restype = ctypes.c_char_p
    for name in ("name", "description", "type"):
        getattr(base, f"ggml_backend_dev_{name}").argtypes = [ctypes.c_void_p]
    base.ggml_backend_dev_memory.argtypes = [ctypes.c_void_p, ctypes.POINTER(ctypes.c_size_t), ctypes.POINTER(ctypes.c_size_t)]
    return base, registry
