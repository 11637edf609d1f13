"""`localgemma quantize`: a smaller model file of a standard type, of a given size, or a whole release."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from localgemma.cli.output import Output, interruptible
from localgemma.cli.quantize_size import RECIPE, Measuring, beside, fitting_size, plan_of_size
from localgemma.engine import CancelToken
from localgemma.errors import UsageError
from localgemma.units import format_size, parse_size

if TYPE_CHECKING:
    from localgemma.make.quantize import Plan, Wish

_PATH = click.Path(path_type=Path)
_ONE = "localgemma quantize IN OUT --type Q4_K_M"
_SEVERAL = "localgemma quantize IN -o DIR --types Q8_0,Q4_K_M"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("source", metavar="IN", type=_PATH)
@click.argument("target", metavar="[OUT]", required=False, type=_PATH)
@click.option("--type", "file_type", metavar="TYPE", help="A standard type, such as Q4_K_M.")
@click.option("--types", metavar="TYPE,…", help="Several types at once, into the folder of -o.")
@click.option("-o", "--output", "folder", metavar="DIR", type=_PATH, help="The folder for --types.")
@click.option("--card", is_flag=True, help="Write a README.md with sizes, checksums and the imatrix' origin.")
@click.option("--imatrix", metavar="FILE", type=_PATH, help="Importance matrix: see localgemma imatrix.")
@click.option("--tensor-type", "exceptions", multiple=True, metavar="REGEX=TYPE", help="Another type for some tensors.")
@click.option("--recipe", metavar="FILE", type=_PATH, help="A recipe that --target-size wrote.")
@click.option("--target-size", metavar="SIZE", help="The best file of at most this size, by measured sensitivity.")
@click.option("--fit", "fits", is_flag=True, help="--target-size, with the size that this machine's plan wants.")
@click.option("--data", multiple=True, metavar="FILE", help="Texts and chats to measure with; default: a small mixed set.")
@click.option("--sensitivities", metavar="FILE", type=_PATH, help="Use this table, or measure and write it.")
@click.option("--bands", type=click.IntRange(1), metavar="N", help="Bands of layers to measure apart; more is finer.")
@click.option("--gpu-layers", type=int, metavar="N", help="Layers on the GPU while measuring.")
@click.option("--dry-run", is_flag=True, help="Only say what would be written, to the byte.")
@click.option("--force", is_flag=True, help="Replace what is there.")
@click.option("--allow-requantize", is_flag=True, help="Accept a source that is quantised already (worse).")
@click.option("--threads", type=click.IntRange(1), metavar="N", help="Default: all.")
@click.option("-q", "--quiet", is_flag=True, help="Say only errors.")
def command(
    source: Path,
    target: Path | None,
    file_type: str | None,
    types: str | None,
    folder: Path | None,
    card: bool,
    imatrix: Path | None,
    exceptions: tuple[str, ...],
    recipe: Path | None,
    target_size: str | None,
    fits: bool,
    data: tuple[str, ...],
    sensitivities: Path | None,
    bands: int | None,
    gpu_layers: int | None,
    dry_run: bool,
    force: bool,
    allow_requantize: bool,
    threads: int | None,
    quiet: bool,
) -> None:
    """Quantise the model file IN to OUT, to a size with --target-size, or to several types with --types and -o."""
    from localgemma.make.quantize import Wish
    from localgemma.make.recipe import parse_pair, read_recipe, with_recipe, write_recipe

    output = Output(quiet=quiet)
    pairs = tuple(parse_pair(text, "--tensor-type") for text in exceptions)
    wish = Wish(file_type or "", pairs, imatrix, allow_requantize, threads or 0)
    chosen = [word for word in (file_type, types, recipe, target_size, fits or None) if word is not None]
    if len(chosen) != 1 or (types is None) != (folder is None) or (card and types is None):
        raise UsageError("What to make is not clear.", f"Write: {_ONE}, or {_SEVERAL}")
    if types is not None and folder is not None:
        if target is not None:
            raise UsageError("--types makes several files.", f"Write: {_SEVERAL}")
        _release(source, folder, types, wish, output, card=card, dry=dry_run, force=force)
        return
    if target is None and not dry_run:
        raise UsageError("The output is not named.", f"Write: {_ONE}")
    if (recipe or target_size or fits) and pairs:
        raise UsageError("A recipe has a type for every tensor.", "Leave out --tensor-type.")
    if recipe is not None:
        wish = with_recipe(wish, read_recipe(recipe), source)
    if target_size is None and not fits:
        _one(source, target, wish, output, dry=dry_run, force=force)
        return
    measuring = Measuring(list(data), sensitivities, bands, gpu_layers)
    budget = parse_size(target_size) if target_size is not None else fitting_size(source, output)
    plan = plan_of_size(source, target, budget, wish, measuring, output, force=force)
    _finish(plan, target, output, dry=dry_run, force=force)
    if target is not None and not dry_run:
        write_recipe(beside(target, RECIPE), plan)


def _one(source: Path, target: Path | None, wish: Wish, output: Output, *, dry: bool, force: bool) -> None:
    from localgemma.make import quantize

    _finish(quantize.make_plan(source, wish), target, output, dry=dry, force=force)


def _finish(plan: Plan, target: Path | None, output: Output, *, dry: bool, force: bool) -> None:
    """Show the plan, or carry it out."""
    from localgemma.make import quantize

    if dry:
        _show(plan)
        _warn(plan, output)
        return
    assert target is not None
    cancel = CancelToken()
    with interruptible(cancel, output):
        quantize.run_plan(plan, target, replace=force, progress=output.progress, cancel=cancel)
    output.note(f"{target}: {format_size(plan.size)}, {plan.bits:.2f} bits a weight")


def _release(
    source: Path, folder: Path, names: str, wish: Wish, output: Output, *, card: bool, dry: bool, force: bool
) -> None:
    from localgemma.make import release

    items = release.make_plans(source, folder, [name for name in names.split(",") if name.strip()], wish)
    if dry:
        for item in items:
            click.echo(f"{item.path.name}  {item.plan.size:,} bytes  {item.plan.bits:.2f} bits a weight")
            _warn(item.plan, output)
        click.echo(f"together  {sum(item.plan.size for item in items):,} bytes")
        return
    cancel = CancelToken()
    with interruptible(cancel, output):
        sums = release.build(items, folder, card=card, replace=force, progress=output.progress, cancel=cancel)
    for name, digest in sums.items():
        click.echo(f"{digest}  {name}")


def _show(plan: Plan) -> None:
    rows = [(name, f"{count:,}", f"{size:,}") for name, count, size in plan.by_type()]
    data = sum(tensor.nbytes for tensor in plan.tensors)
    rows.append(("header", "", f"{plan.size - data:,}"))
    rows.append(("file", f"{len(plan.tensors):,}", f"{plan.size:,}"))
    click.echo(f"{'type':<8}  {'tensors':>7}  {'bytes':>17}")
    for name, count, size in rows:
        click.echo(f"{name:<8}  {count:>7}  {size:>17}")
    click.echo(f"{format_size(plan.size)}, {plan.bits:.2f} bits a weight")


def _warn(plan: Plan, output: Output) -> None:
    from localgemma.make.quantize import check_possible

    try:
        check_possible(plan)
    except UsageError as error:
        output.note(f"It could not be made yet: {error}")
