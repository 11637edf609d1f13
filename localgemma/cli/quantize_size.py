"""The plan of `localgemma quantize --target-size`: sensitivities measured or read, and the recipe that they give."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from localgemma.cli.imatrix import Loading, read_pieces
from localgemma.cli.output import Output, interruptible
from localgemma.engine import CancelToken
from localgemma.units import format_size

if TYPE_CHECKING:
    from localgemma.make.quantize import Plan, Wish
    from localgemma.make.sensitivity import Table

RECIPE, TABLE = ".recipe.txt", ".sensitivities.csv"  # what is written beside the model file
SAMPLE = Path(__file__).parent.parent / "assets" / "sample.jsonl"
_CONTEXT = 2048  # tokens of a prompt to measure with


@dataclass(frozen=True, slots=True)
class Measuring:
    """What the user said about measuring; a `table` that is there is used, another is written."""

    data: list[str]
    table: Path | None
    bands: int | None
    gpu_layers: int | None


def beside(target: Path, ending: str) -> Path:
    """A file that goes with the model file."""
    return target.with_name(target.name + ending)


def fitting_size(source: Path, output: Output) -> int:
    """Bytes that this machine's plan would choose, were every size to be had; DoesNotFit where even the least is too large."""
    from localgemma.fit.size import best_size

    way = best_size(source).way
    output.note(f"This machine's plan wants {format_size(way.candidate.size)}, for about {way.speed:.1f} tokens/s.")
    return way.candidate.size


def plan_of_size(
    source: Path, target: Path | None, budget: int, wish: Wish, measuring: Measuring, output: Output, *, force: bool
) -> Plan:
    """The plan of the best file within `budget` bytes; a table that was measured is kept in its file first."""
    from localgemma.make import recipe, sensitivity, whole

    weights = sensitivity.quantisable(source)
    if measuring.table is not None and measuring.table.exists():
        table = sensitivity.read_table(measuring.table, weights)
        return recipe.plan_for_size(source, table, budget, wish)
    recipe.check_budget(source, weights, budget, wish)
    kept = measuring.table or (beside(target, TABLE) if target else None)
    if target is not None:
        whole.check_target(source, target, budget, replace=force)
        whole.check_target(None, beside(target, RECIPE), 1 << 20, replace=force)
    if kept is not None:
        whole.check_target(None, kept, 1 << 20, replace=force)
    table = _measured(source, wish, measuring, output)
    if kept is not None:
        sensitivity.write_table(kept, table)
    return recipe.plan_for_size(source, table, budget, wish)


def _measured(source: Path, wish: Wish, measuring: Measuring, output: Output) -> Table:
    from localgemma.files.header import read_header
    from localgemma.make import sensitivity

    pieces = read_pieces(measuring.data or [str(SAMPLE)])
    trained = read_header(source).number("gemma4.context_length") or _CONTEXT
    loading = Loading(min(_CONTEXT, trained), measuring.gpu_layers, wish.threads or None)
    settings = sensitivity.Settings(load=loading.options(source, None))
    if measuring.bands is not None:
        settings = replace(settings, bands=measuring.bands)
    cancel = CancelToken()
    with interruptible(cancel, output):
        return sensitivity.measure(source, pieces, wish.imatrix, settings, progress=output.progress, cancel=cancel)
