"""`localgemma quantize`: a smaller model file of a standard type, of a given size, or a whole release."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from localgemma.cli.output import Output, interruptible
from localgemma.engine import CancelToken
from localgemma.errors import UsageError
from localgemma.units import format_size

if TYPE_CHECKING:
    from localgemma.make.quantize import Plan, Wish

_PATH = click.Path(path_type=Path)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("source", metavar="IN", type=_PATH)
@click.argument("target", metavar="[OUT]", required=False, type=_PATH)
@click.option("--type", "file_type", metavar="TYPE", help="A standard type, such as Q4_K_M.")
@click.option("--types", metavar="TYPE,…", help="Several types at once, into the folder of -o.")
@click.option("-o", "--output", "folder", metavar="DIR", type=_PATH, help="The folder for --types.")
@click.option("--card", is_flag=True, help="Write a README.md with sizes, checksums and the imatrix' origin.")
@click.option("--imatrix", metavar="FILE", type=_PATH, help="Importance matrix: see localgemma imatrix.")
@click.option("--tensor-type", "exceptions", multiple=True, metavar="REGEX=TYPE", help="Another type for some tensors.")
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
    dry_run: bool,
    force: bool,
    allow_requantize: bool,
    threads: int | None,
    quiet: bool,
) -> None:
    """Quantise the model file IN to OUT, or to several types with --types and -o."""
    from localgemma.make.quantize import Wish
    from localgemma.make.recipe import parse_pair

    output = Output(quiet=quiet)
    wish = Wish(
        file_type or "",
        tuple(parse_pair(text, "--tensor-type") for text in exceptions),
        imatrix,
        allow_requantize,
        threads or 0,
    )
    if types is not None:
        if folder is None or target is not None or file_type is not None:
            raise UsageError("--types makes several files.", "Write: localgemma quantize IN -o DIR --types Q8_0,Q4_K_M")
        _release(source, folder, types, wish, output, card=card, dry=dry_run, force=force)
        return
    if file_type is None or card or folder is not None:
        raise UsageError("What to make is not clear.", "Write: localgemma quantize IN OUT --type Q4_K_M")
    if target is None and not dry_run:
        raise UsageError("The output is not named.", "Write: localgemma quantize IN OUT --type Q4_K_M")
    _one(source, target, wish, output, dry=dry_run, force=force)


def _one(source: Path, target: Path | None, wish: Wish, output: Output, *, dry: bool, force: bool) -> None:
    from localgemma.make import quantize

    plan = quantize.make_plan(source, wish)
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
