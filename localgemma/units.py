"""Bytes and durations: parse what a person types, print what a person reads.

`24`, `24G`, `24GB` and `24GiB` all mean GiB (people mean memory as the driver prints it), and are echoed as such.
"""

from __future__ import annotations

import re

from localgemma.errors import UsageError

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*(?:([kmgt])(?:i?b)?)?\s*", re.IGNORECASE)
_POWER = {"k": KIB, "m": MIB, "g": GIB, "t": TIB}
_LARGEST = 1 << 50  # a pebibyte: beyond it a size is a typing error


def parse_size(text: str, *, default_unit: str = "g") -> int:
    """Bytes of a size such as `24`, `24GiB`, `512M`; a bare number counts in `default_unit`.

    Raises UsageError for anything else.
    """
    found = _SIZE.fullmatch(text)
    if not found:
        raise UsageError(f"{text!r} is not a size.", "Write it like 24GiB, 512MiB or 24 (GiB).")
    size = float(found[1]) * _POWER[(found[2] or default_unit).lower()]
    if size > _LARGEST:
        raise UsageError(f"{text!r} is larger than any memory.", "Write it like 24GiB, 512MiB or 24 (GiB).")
    return int(size)


def format_size(size: float) -> str:
    """A size in binary units with three significant digits at most: `17.4 GiB`, `512 MiB`, `80 B`."""
    sign, size = ("-", -size) if size < 0 else ("", size)
    for unit, scale in (("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if size >= scale:
            value = size / scale
            digits = 2 if value < 10 else 1 if value < 100 else 0
            number = f"{value:,.{digits}f}"
            return f"{sign}{number.rstrip('0').rstrip('.') if '.' in number else number} {unit}"
    return f"{sign}{size:.0f} B"


def format_duration(seconds: float) -> str:
    """A duration as a person says it: `0.4 s`, `12 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        minutes, rest = divmod(whole, 60)
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"
