"""llama.cpp's library through its low-level bindings, loaded at first use and never at import."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import glob
import os.path
import site
import sys
from types import ModuleType
from typing import Any

from localgemma import settings
from localgemma.errors import LibraryError
from localgemma.llamacpp import log

_SOFT = 1  # omp_pause_soft: settings stay


@functools.cache
def load() -> Any:
    """The module `llama_cpp.llama_cpp` with its log caught and its backends ready; LibraryError without it."""
    settings.set_default_environment("GGML_NO_BACKTRACE", "1")  # an abort would start a debugger and print pages
    _preload()
    try:
        from llama_cpp import llama_cpp as bindings
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise LibraryError(f"llama.cpp cannot be loaded: {error}.") from error
    log.install(bindings, vision())
    bindings.llama_backend_init()
    return bindings


@functools.cache
def vision() -> Any:
    """The module `llama_cpp.mtmd_cpp`; LibraryError without it. It lies beside the library that LLAMA_CPP_LIB_PATH names."""
    if own := settings.variable("LLAMA_CPP_LIB_PATH"):
        settings.set_default_environment("MTMD_CPP_LIB", own)
    try:
        from llama_cpp import mtmd_cpp
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise LibraryError(f"llama.cpp's vision library cannot be loaded: {error}.") from error
    return mtmd_cpp


def build() -> str:
    """The versions of the bindings and of ggml, and ggml's commit."""
    import llama_cpp

    base = shared_object("ggml-base")
    base.ggml_version.restype = base.ggml_commit.restype = ctypes.c_char_p
    return f"{llama_cpp.__version__} {base.ggml_version().decode()} {base.ggml_commit().decode()}"


def shared_object(name: str) -> ctypes.CDLL:
    """The loaded ggml library `name` (ggml, ggml-base): device functions are not bound by llama_cpp."""
    bindings: ModuleType = load()
    loaded: ctypes.CDLL = bindings._lib
    folder = os.path.dirname(loaded._name)
    for pattern in (f"lib{name}.so", f"lib{name}.dylib", f"{name}.dll", f"lib{name}.dll"):
        path = os.path.join(folder, pattern)
        if os.path.exists(path):
            return ctypes.CDLL(path)
    return loaded


def release_threads() -> None:
    """End the threads that OpenMP keeps waiting for the calling thread, which will not compute again.

    GNU's OpenMP counts those of all threads that ever computed. Where they are more than the cores, no thread spins at a
    barrier any more but sleeps, and decoding takes twice as long: a load that converts weights (for AMX) leaves such threads.
    """
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as lines:
            found = {line.split()[-1] for line in lines if "/libgomp" in line}
    except OSError:  # not Linux
        return
    for path in found:
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(path).omp_pause_resource_all(_SOFT)


def _preload() -> None:
    """Symbols that the library needs in the process before it: the C++ runtime first, then CUDA's from its wheels.

    Where numpy comes before a stripped CUDA build, loading a model crashes unless libstdc++ is global. Windows searches no
    wheel's folder, but takes a library that is loaded already.
    """
    windows = sys.platform == "win32"
    if not windows and not sys.platform.startswith("linux"):
        return
    if not windows:
        _open("libstdc++.so.6")
    for folder in [*site.getsitepackages(), site.getusersitepackages()]:
        for name in ("cudart", "cublasLt", "cublas"):
            pattern = ("bin", "**", f"{name}64_*.dll") if windows else ("lib", f"lib{name}.so.*")
            for path in sorted(glob.glob(os.path.join(folder, "nvidia", "*", *pattern), recursive=True)):
                _open(path)


def _open(path: str) -> None:
    try:
        ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        log.LOGGER.debug("not preloaded: %s (%s)", path, error)
