"""How much each weight's precision matters: the KL divergence that quantising it causes, measured on a small set."""

from __future__ import annotations

import csv
import math
import re
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localgemma.engine import CancelToken
from localgemma.errors import BadModelFile, DiskError, NotFound, UsageError
from localgemma.files.header import TYPE_SIZES
from localgemma.llamacpp.probe import Probe, quantised
from localgemma.make import imatrix as matrices
from localgemma.make import quantize, types, whole
from localgemma.make.calibration import Piece, has_pictures
from localgemma.make.imatrix import CHUNK
from localgemma.make.quantize import Planned, Told, Wish
from localgemma.messages import Progress
from localgemma.options import LoadOptions

if TYPE_CHECKING:
    import numpy as np

CANDIDATES = (  # in blocks of 32 too, for rows that are no multiple of 256
    "q8_0", "q6_K", "q5_K", "q5_1", "q5_0", "q4_K", "q4_1", "q4_0", "iq4_nl", "iq4_xs", "q3_K", "iq3_s", "iq3_xxs",
    "q2_K", "iq2_s", "iq2_xs", "iq2_xxs",
)  # fmt: skip
PROBES = (("q4_K", "q4_0"), ("q2_K", "iq4_nl"))  # measured: a fine and a coarse type, each with its stand-in
TOKENS = 2048  # of the set, over all prompts
BANDS = 12  # bands of neighbouring layers; each kind of weight in each band is one group
_SAMPLE = 256  # rows of a weight from which a type's error is estimated
_LAYER = re.compile(r"blk\.(\d+)\.(.+)")
_LEAST = 1e-12  # a divergence below this is rounding


@dataclass(frozen=True, slots=True)
class Choice:
    """One type that a weight could have: its bytes, and the divergence in nats a token that it is expected to cost."""

    type_id: int
    nbytes: int
    loss: float


Table = dict[str, tuple[Choice, ...]]  # by weight


@dataclass(frozen=True, slots=True)
class Settings:
    """How to measure: tokens of the set, bands of layers that are measured together, and how the model is loaded."""

    tokens: int = TOKENS
    bands: int = BANDS
    load: LoadOptions = field(default_factory=LoadOptions)


def measure(
    source: Path,
    pieces: Sequence[Piece],
    imatrix: Path | None = None,
    settings: Settings | None = None,
    *,
    progress: Told | None = None,
    cancel: CancelToken | None = None,
) -> Table:
    """Every type that every weight of `source` could have, with its expected loss.

    Each group of weights is quantised alone to a fine and to a coarse type, in memory, and the divergence from the whole model
    is measured; the other types lie on the line through both, by the error they make, weighted with the imatrix. Raises
    what loading raises, UsageError for a source that is quantised already, Cancelled.
    """
    settings, cancel = settings or Settings(), cancel or CancelToken()
    weights = quantisable(source)
    known = matrices.read(imatrix).entries if imatrix else {}
    importance = {name: entry.mean()[0] for name, entry in known.items()}

    def loading(done: float) -> bool:
        _tell(progress, Progress("load", done, 1.0))
        return not cancel.cancelled

    with Probe(source, replace(settings.load, mmap=False), [weight.name for weight in weights], loading) as probe:
        groups, table = grouped(weights, settings.bands), Table()
        work = _Work(probe, importance, progress, cancel)
        work.read(pieces, settings.tokens, len(groups))
        for group in groups:
            table |= work.group(group)
    return table


def quantisable(source: Path) -> list[Planned]:
    """The weights that llama.cpp would quantise; UsageError where they are quantised already."""
    plan = quantize.make_plan(source, Wish("Q4_0"))
    quantize.check_possible(plan)
    return [tensor for tensor in plan.tensors if tensor.before in types.PLAIN and tensor.after not in types.PLAIN]


def grouped(weights: Iterable[Planned], bands: int) -> list[list[Planned]]:
    """Weights of one kind in neighbouring layers together; what is in no layer is a group of its own."""
    weights = list(weights)
    layers = 1 + max((int(found[1]) for weight in weights if (found := _LAYER.match(weight.name))), default=0)
    groups: dict[tuple[str, int], list[Planned]] = {}
    for weight in weights:
        found = _LAYER.match(weight.name)
        key = (found[2], int(found[1]) * bands // max(layers, bands)) if found else (weight.name, 0)
        groups.setdefault(key, []).append(weight)
    return [groups[key] for key in sorted(groups)]


def choices(weight: Planned, importance: Collection[str]) -> list[int]:
    """The types that a weight could have: whose blocks divide its rows, and which need no imatrix or find its name in it."""
    numbers = [types.TENSOR_TYPES[name] for name in CANDIDATES]
    fit = [number for number in numbers if weight.shape[0] % TYPE_SIZES[number][0] == 0]
    return [number for number in fit if number not in types.NEED_IMATRIX or weight.name in importance]


class _Work:
    """One measurement: the model, the set and its reference predictions."""

    def __init__(self, probe: Probe, importance: Mapping[str, np.ndarray], progress: Told | None, cancel: CancelToken) -> None:
        self._probe, self._importance, self._progress, self._cancel = probe, importance, progress, cancel
        self._prompts: list[Any] = []
        self._references: list[np.ndarray] = []
        self._done, self._steps, self._begun = 0, 0, time.monotonic()

    def _step(self) -> None:
        """One more prompt was read."""
        self._done += 1
        left = (time.monotonic() - self._begun) / self._done * (self._steps - self._done)
        _tell(self._progress, Progress("measure", self._done, self._steps, left))

    def read(self, pieces: Sequence[Piece], tokens: int, groups: int) -> None:
        """Take prompts without pictures until there are enough tokens, and what the unchanged model predicts for them."""
        observed, left = self._probe.observed, tokens
        for piece in pieces:
            if has_pictures([piece]):
                continue
            runs = [[chunk] for chunk in observed.chunks(piece, CHUNK)] if isinstance(piece, str) else [observed.runs(piece)]
            for run in runs:
                size = sum(len(part) for part in run if isinstance(part, list))
                if left > 0 and size:
                    self._prompts.append([part[:left] if isinstance(part, list) else part for part in run])
                    left -= size
        if not self._prompts:
            raise UsageError("The data holds no text to measure with.", "Give some pages of text with --data.")
        self._steps, self._begun = len(self._prompts) * (1 + len(PROBES) * groups), time.monotonic()
        for runs in self._prompts:
            self._references.append(self._probe.observed.logits(runs, self._cancel))
            self._step()

    def group(self, group: list[Planned]) -> Table:
        """The choices of a group's weights."""
        errors = {weight.name: self._errors(weight) for weight in group}
        points: list[tuple[dict[str, float], float]] = []
        for names in PROBES:
            chosen = {weight.name: _first(names, errors[weight.name]) for weight in group}
            with self._probe.changed({name: (number, self._importance.get(name)) for name, number in chosen.items()}):
                loss = self._probe.divergence(self._prompts, self._references, self._cancel, self._step)
            points.append(({name: errors[name][number] for name, number in chosen.items()}, max(loss, _LEAST)))
        return {weight.name: tuple(_choices(weight, errors[weight.name], points)) for weight in group}

    def _errors(self, weight: Planned) -> dict[int, float]:
        """Relative squared error of each type on a sample of rows, weighted by what the columns see."""
        import numpy as np

        sample = self._probe.sample(weight.name, _SAMPLE)
        seen = self._importance.get(weight.name)
        scale = np.ones(sample.shape[1], np.float32) if seen is None else seen
        total = float(np.einsum("ij,ij,j->", sample, sample, scale, dtype=np.float64)) or 1.0
        found = {}
        for number in choices(weight, self._importance):
            if self._cancel.cancelled:
                break
            lost = sample - quantised(sample, number, seen)
            found[number] = max(float(np.einsum("ij,ij,j->", lost, lost, scale, dtype=np.float64)) / total, _LEAST)
        return found


def _first(names: tuple[str, ...], errors: Mapping[int, float]) -> int:
    return next((types.TENSOR_TYPES[name] for name in names if types.TENSOR_TYPES[name] in errors), max(errors))


def _choices(
    weight: Planned, errors: Mapping[int, float], points: Sequence[tuple[Mapping[str, float], float]]
) -> Iterable[Choice]:
    """A group's loss is shared by its members' errors; types between and beyond the measured ones follow a power law."""
    (fine, fine_loss), (coarse, coarse_loss) = points
    mine = fine[weight.name]
    fine_share = fine_loss * mine / sum(fine.values())
    coarse_share = coarse_loss * coarse[weight.name] / sum(coarse.values())
    ratio = math.log(coarse[weight.name] / mine)
    power = math.log(coarse_share / fine_share) / ratio if ratio > 0.1 else 1.0
    power = min(max(power, 0.5), 2.0)
    yield Choice(weight.before, types.nbytes(weight.shape, weight.before), 0.0)
    for number, error in errors.items():
        grown = error / mine
        yield Choice(number, types.nbytes(weight.shape, number), fine_share * grown ** (power if grown > 1 else 1.0))


def _tell(progress: Told | None, event: Progress) -> None:
    if progress is not None:
        progress(event)


def write_table(path: Path, table: Table) -> None:
    """The table as CSV: tensor, type, bytes, kl (nats a token)."""
    with whole.draft(path) as draft:
        with draft.path.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(("tensor", "type", "bytes", "kl"))
            for name, row in table.items():
                writer.writerows((name, types.type_name(one.type_id), one.nbytes, f"{one.loss:.6g}") for one in row)
        draft.keep()


def read_table(path: Path, weights: Sequence[Planned]) -> Table:
    """A table that `write_table` wrote, for a model with these weights; NotFound, BadModelFile for another's."""
    found: dict[str, list[Choice]] = {}
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream):
                one = Choice(types.tensor_type(row["type"]), int(row["bytes"]), float(row["kl"]))
                found.setdefault(row["tensor"], []).append(one)
    except FileNotFoundError:
        raise NotFound(f"There is no file {path}.", "Leave out --sensitivities to measure.") from None
    except OSError as error:
        raise DiskError(f"{path} could not be read: {error.strerror}.", "Check its permissions.") from error
    except (KeyError, TypeError, ValueError, UsageError, csv.Error):
        raise BadModelFile(f"{path.name} is no table of sensitivities.", "Leave it out to measure anew.") from None
    shapes = {weight.name: weight.shape for weight in weights}
    wrong = set(found) ^ set(shapes) or {
        name for name, row in found.items() if any(types.nbytes(shapes[name], one.type_id) != one.nbytes for one in row)
    }
    if wrong:
        raise BadModelFile(f"{path.name} was measured on another model: see {min(wrong)!r}.", "Leave it out to measure anew.")
    return {name: tuple(row) for name, row in found.items()}
