"""The process that quantises: an order as JSON on stdin, one JSON line a tensor on stdout, and it ends when stdin does."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

from localgemma import settings
from localgemma.errors import LocalgemmaError
from localgemma.llamacpp import quantize
from localgemma.make import imatrix


def main() -> None:
    """Run the order; the last line is {"done": true} or {"error": class, "message", "hint"}."""
    if settings.load().log_level == "debug":
        logging.basicConfig(level=logging.DEBUG, format="%(name)s: %(message)s")
    order = json.loads(sys.stdin.readline())
    leftover = order.pop("leftover")
    threading.Thread(target=_end_with_parent, args=(leftover,), daemon=True).start()
    try:
        quantize.run(_order(order), lambda name, new: _say({"tensor": name, "type": new}))
    except LocalgemmaError as error:
        _say({"error": type(error).__name__, "message": error.message, "hint": error.hint})
    else:
        _say({"done": True})


def _order(fields: dict[str, Any]) -> quantize.Order:
    matrix = fields.pop("imatrix")
    fields["overrides"] = tuple((pattern, number) for pattern, number in fields["overrides"])
    order = quantize.Order(**fields)
    if matrix is None:
        return order
    return replace(order, imatrix={name: entry.mean() for name, entry in imatrix.read(Path(matrix)).entries.items()})


def _end_with_parent(leftover: str | None) -> None:
    """Whoever gave the order is gone, even if killed: end at once, and take a half-written file along."""
    sys.stdin.read()
    if leftover is not None and os.path.exists(leftover):
        os.unlink(leftover)
    os._exit(1)


def _say(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
