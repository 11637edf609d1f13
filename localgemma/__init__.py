"""localgemma: Gemma 4 31B on your own computer. `open()` a model, `chat()` with it; see README.md.

Importing this loads no library and opens nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "mcp", "open", "pull"]

if TYPE_CHECKING:
    from localgemma.runtime import mcp, open, pull


def __getattr__(name: str) -> Any:
    if name in ("mcp", "open", "pull"):
        from localgemma import runtime

        return getattr(runtime, name)
    raise AttributeError(f"module 'localgemma' has no attribute {name!r}")
