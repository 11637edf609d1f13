"""llama.cpp's log lines through Python's logging, and the last errors kept for messages."""

from __future__ import annotations

import collections
import ctypes
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

LOGGER = logging.getLogger("localgemma.llamacpp")
LOGGER.addHandler(logging.NullHandler())  # a program without a log of its own would get llama.cpp's chatter on stderr
_LEVELS = {1: logging.DEBUG, 2: logging.DEBUG, 3: logging.INFO, 4: logging.WARNING}  # its warnings are chatter to a user
_CONTINUED = 5
_recent: collections.deque[str] = collections.deque(maxlen=20)
_callbacks: list[Any] = []
_collectors: list[list[str]] = []
_partial = ""
_level = logging.DEBUG


def install(bindings: Any, vision: Any) -> None:
    """Send the log of llama.cpp, and of mtmd, which has its own, to Python; the callback lives as long as the process."""
    callback = bindings.llama_log_callback(_receive)
    _callbacks.append(callback)
    bindings.llama_log_set(callback, ctypes.c_void_p(0))
    vision.mtmd_helper_log_set(callback, ctypes.c_void_p(0))


def clear() -> None:
    """Forget the errors kept so far."""
    _recent.clear()


def last_error() -> str:
    """The first error line since `clear`, which names the cause; later ones repeat it."""
    return _recent[0] if _recent else ""


@contextmanager
def collected() -> Iterator[list[str]]:
    """The lines that come in the meantime, of every level."""
    lines: list[str] = []
    _collectors.append(lines)
    try:
        yield lines
    finally:
        _collectors[:] = [kept for kept in _collectors if kept is not lines]


def _receive(level: int, text: bytes | None, _: object) -> None:
    global _partial, _level
    try:  # an exception must not cross into C
        if level != _CONTINUED:
            _level = _LEVELS.get(level, logging.DEBUG)
        *lines, _partial = (_partial + (text or b"").decode("utf-8", "replace")).split("\n")
        for line in lines:
            if line.strip(" ."):
                for collector in _collectors:
                    collector.append(line)
                if _level == logging.WARNING:
                    _recent.append(line.strip())
                LOGGER.log(_level, "%s", line.rstrip())
    except Exception as error:
        LOGGER.debug("log line lost: %s", error)
