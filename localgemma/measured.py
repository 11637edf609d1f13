"""What this machine measured: how fast it reads weights, what a driver takes, what loads really took, what files lose.

One JSON file for all machines that share a home folder, by a key that names the hardware; divergences under a key of their
own, since the hardware changes them no more than the noise floor says. A damaged file is as good as none: it is only a
memory of what can be measured again.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from localgemma import settings
from localgemma.whole import whole_file

KEPT_LOADS = 20
KEPT_LOSSES = 500
_LOSSES = "losses"


@dataclass(frozen=True, slots=True)
class Load:
    """One load: bytes predicted and taken by device (`RAM` is the computer's), and tokens a second, predicted and seen."""

    model: str
    predicted: Mapping[str, int]
    taken: Mapping[str, int]
    speed: float = 0.0
    seen_speed: float = 0.0


@dataclass(frozen=True, slots=True)
class Measured:
    """`rates` are bytes of weights a second by `device:ggml type id`, `driver` bytes by device, `program` bytes of RAM.

    `paces` are how many times faster decoding was than bandwidths foretell, by placement and size (fit.speed.pace_key).
    `drafts` are how many times faster a drafter made decoding, by model, drafter and placement (fit.drafts.key). `reading` are
    the tokens of words a second, and those of pictures, by model.
    """

    rates: Mapping[str, float] = field(default_factory=dict)
    driver: Mapping[str, int] = field(default_factory=dict)
    program: int = 0
    paces: Mapping[str, float] = field(default_factory=dict)
    drafts: Mapping[str, float] = field(default_factory=dict)
    loads: tuple[Load, ...] = ()
    reading: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def with_load(self, load: Load) -> Measured:
        """The record with one more load, the oldest forgotten."""
        return replace(self, loads=(*self.loads, load)[-KEPT_LOADS:])


@dataclass(frozen=True, slots=True)
class Loss:
    """How far a file's predictions were from a reference's: mean KL in nats with its 95 % interval, and its conditions.

    Two losses are on one scale where `scale` is equal: only then one may be called smaller than the other.
    """

    sha256: str
    name: str
    quant: str
    publisher: str
    kv: str
    kl: float
    low: float
    high: float
    reference: str
    reference_sha256: str
    family: str
    set: str
    positions: int
    noise: float = 0.0
    build: str = ""
    date: str = ""

    @property
    def scale(self) -> tuple[str, str, str, int]:
        """Reference, family, set and positions: what must be equal before two figures can be compared."""
        return self.reference_sha256 or self.reference, self.family, self.set, self.positions


def file() -> Path:
    """Where it is kept."""
    return settings.load().data_dir / "measured.json"


def load(key: str) -> Measured:
    """What the machine of this key measured; empty where nothing is known."""
    raw = _all().get(key)
    if not isinstance(raw, dict):
        return Measured()
    try:
        return Measured(
            rates={str(name): float(value) for name, value in raw.get("rates", {}).items() if float(value) > 0},
            driver={str(name): int(value) for name, value in raw.get("driver", {}).items()},
            program=int(raw.get("program", 0)),
            paces={str(name): float(value) for name, value in raw.get("paces", {}).items() if float(value) > 0},
            drafts={str(name): float(value) for name, value in raw.get("drafts", {}).items()},
            loads=tuple(Load(**item) for item in raw.get("loads", ()))[-KEPT_LOADS:],
            reading={str(name): (float(pair[0]), float(pair[1])) for name, pair in raw.get("reading", {}).items()},
        )
    except (TypeError, ValueError, AttributeError, LookupError):
        return Measured()


def save(key: str, measured: Measured) -> None:
    """Keep it; where the disk does not let it, it is forgotten."""
    _write(_all() | {key: asdict(measured)})


def _write(everything: Mapping[str, Any]) -> None:
    path = file()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as stream:
            stream.write(json.dumps(everything, indent=1).encode())


def losses() -> tuple[Loss, ...]:
    """Every loss that was kept, the newest last; those that cannot be read are left out."""
    found = []
    raw = _all().get(_LOSSES)
    for item in raw if isinstance(raw, list) else ():
        with contextlib.suppress(TypeError, ValueError):
            loss = Loss(**item)
            if isinstance(loss.kl, int | float) and 0 <= loss.kl < float("inf"):
                found.append(loss)
    return tuple(found)


def keep_losses(new: Sequence[Loss]) -> None:
    """Keep what was found; the same file under the same conditions is replaced."""
    again = {(loss.sha256 or loss.name, loss.kv, loss.scale) for loss in new}
    before = [loss for loss in losses() if (loss.sha256 or loss.name, loss.kv, loss.scale) not in again]
    _write(_all() | {_LOSSES: [asdict(loss) for loss in (*before, *new)][-KEPT_LOSSES:]})


def _all() -> dict[str, Any]:
    try:
        found = json.loads(file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
