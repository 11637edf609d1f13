"""What the `models` commands share: tables that fit the terminal, sizes, questions, one progress bar, JSON."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import click

from localgemma.cli.output import clean
from localgemma.errors import UsageError
from localgemma.files.catalog import total
from localgemma.units import format_duration, format_size

if TYPE_CHECKING:
    from localgemma.files.catalog import File, Quality, Variant
    from localgemma.files.store import Held

PIPE_WIDTH = 200  # columns of a table that nobody's terminal limits
JSON = click.option("--json", "as_object", is_flag=True, help="Print one JSON object instead of text.")
YES = click.option("-y", "--yes", is_flag=True, help="Do not ask.")
DRY_RUN = click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
ORIGINS = {"shipped": "localgemma itself", "hub": "hub cache", "linked": "linked", "corrected": "made here"}


class Bar(Protocol):
    """One bar over everything; `told` counts bytes on, `at` sets them, both move it."""

    def told(self, count: int) -> None:
        """So many bytes more are done."""

    def at(self, done: int, speed: float, seconds_left: float | None) -> None:
        """So many bytes are done."""


def print_json(value: object) -> None:
    """One JSON object to stdout; paths as text, records as objects."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=2, default=_plain))


def _plain(value: Any) -> Any:
    return asdict(value) if hasattr(value, "__dataclass_fields__") else str(value)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "") -> None:
    """A table without lines; a column whose name begins with > is aligned to the right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), title=title or None, title_justify="left")
    for name in columns:
        right = name.startswith(">")
        table.add_column(name.lstrip(">"), justify="right" if right else "left", no_wrap=right, overflow="fold")
    for row in rows:
        table.add_row(*(Text(clean(cell)) for cell in row))
    Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False).print(table)


def print_facts(pairs: Sequence[tuple[str, str]]) -> None:
    """Names and values, one a line; what is empty is left out."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in pairs:
        if value:
            table.add_row(name, Text(clean(value)))
    Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False).print(table)


def size_text(files: Sequence[File]) -> str:
    """The size of published files together; ~ marks a rounded one."""
    size = total(files)
    exact = all(file.bytes for file in files)
    return "unknown" if size is None else format_size(size) if exact else f"~{format_size(size)}"


def quality_text(quality: Sequence[Quality]) -> str:
    """Published figures, each with the short name of who measured it."""
    return ", ".join(f"{figure.value:g} {figure.measure.name}" for figure in quality)


def held_json(item: Held) -> dict[str, Any]:
    """A file on this machine, as --json says it."""
    return {
        "name": item.name, "role": item.role, "path": str(item.path), "bytes": item.size, "quant": item.quant,
        "origin": item.origin, "ours": item.ours, "verified": item.verified, "version": item.version,
        "sha256": item.sha256, "commit": item.commit or None,
        "repository": item.file.repository or None if item.file else None,
    }  # fmt: skip


def variant_json(variant: Variant) -> dict[str, Any]:
    """A published variant, as --json says it."""
    return {
        "name": variant.name, "bytes": variant.size, "exact": all(file.bytes for file in variant.text),
        "bits_per_weight": variant.bits_per_weight, "qat": variant.qat,
        "quality": [{"value": q.value, "measure": q.measure.name, "lower_is_better": q.measure.lower_is_better} for q in
                    variant.quality],
    }  # fmt: skip


def confirm(question: str, yes: bool, *, default: bool = True) -> None:
    """Ask on a terminal; UsageError where nobody can answer, Abort where the answer is no."""
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError("This needs a yes, and nobody is there to ask.", "Add --yes to do it without asking.")
    if not click.confirm(question, default=default, err=True):
        raise click.Abort


@contextmanager
def progress_bar(what: str, total: int, *, shown: bool = True) -> Iterator[Bar]:
    """One bar on stderr with speed and time left; nothing where stderr is no terminal."""
    if not shown or not sys.stderr.isatty() or total <= 0:
        yield _Nothing()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True), expand=True, transient=True) as progress:
        yield _Shown(progress, progress.add_task(what, total=total, note=""), total)


class _Nothing:
    def told(self, count: int) -> None:
        """Nothing."""

    def at(self, done: int, speed: float, seconds_left: float | None) -> None:
        """Nothing."""


class _Shown:
    def __init__(self, progress: Any, task: Any, total: int) -> None:
        import time

        self._progress, self._task, self._total, self._done = progress, task, total, 0
        self._clock = time.monotonic
        self._start = self._clock()

    def told(self, count: int) -> None:
        """So many bytes more are done."""
        self._done += count
        speed = self._done / max(1e-3, self._clock() - self._start)
        self.at(self._done, speed, (self._total - self._done) / speed if speed else None)

    def at(self, done: int, speed: float, seconds_left: float | None) -> None:
        """So many bytes are done."""
        left = f", {format_duration(seconds_left)} left" if seconds_left is not None else ""
        note = f"{format_size(done)} of {format_size(self._total)}, {format_size(speed)}/s{left}"
        self._progress.update(self._task, completed=done, note=note)


def print_note(text: str) -> None:
    """A sentence to stdout, wrapped where a terminal limits its width."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else PIPE_WIDTH
    click.echo(click.wrap_text(clean(text), width))


def shortened(path: Path) -> str:
    """A path with the home folder as ~."""
    try:
        return f"~/{path.relative_to(Path.home())}"
    except (ValueError, RuntimeError):
        return str(path)
