"""`localgemma imatrix`: what every weight of a model sees of your texts and chats, for better quantisation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from localgemma import settings
from localgemma.cli.output import Output, interruptible
from localgemma.engine import CancelToken
from localgemma.errors import UsageError
from localgemma.options import LoadOptions

if TYPE_CHECKING:
    from localgemma.files.locate import Local
    from localgemma.make.calibration import Piece

_PATH = click.Path(path_type=Path)
_USE = "Write: localgemma imatrix MODEL -o FILE --data FILE"
OUTPUTS = 3 << 30  # bytes of a GPU kept for logits of every row, which a chat does not need and the plan does not count
CONTEXT = 4096  # tokens of a chat that are read; what is longer is cut


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", metavar="MODEL [FILE]...", nargs=-1, required=True)
@click.option("-o", "--output", "target", metavar="FILE", type=_PATH, help="The imatrix to write.")
@click.option(
    "--data", multiple=True, metavar="FILE", help="Text, chats (.jsonl), or a saved chat by name or folder; repeatable."
)
@click.option("--merge", is_flag=True, help="Add up the imatrix files named instead of a model.")
@click.option("--stats", is_flag=True, help="Describe the imatrix file named instead of a model.")
@click.option("--mmproj", metavar="FILE", type=_PATH, help="Projector for the pictures; default: the model's own.")
@click.option("--ctx", default=CONTEXT, show_default=True, type=click.IntRange(512), help="Longest chat in tokens.")
@click.option("--gpu-layers", type=int, metavar="N", help="Layers on the GPU; 0 is none, -1 all.")
@click.option("--threads", type=click.IntRange(1), metavar="N", help="Default: what suits this machine.")
@click.option("--force", is_flag=True, help="Replace what is there.")
@click.option("-q", "--quiet", is_flag=True, help="Say only errors.")
def command(
    names: tuple[str, ...],
    target: Path | None,
    data: tuple[str, ...],
    merge: bool,
    stats: bool,
    mmproj: Path | None,
    ctx: int,
    gpu_layers: int | None,
    threads: int | None,
    force: bool,
    quiet: bool,
) -> None:
    """Read data with a model and write its importance matrix, or merge or describe such files."""
    from localgemma.make import whole

    output = Output(quiet=quiet)
    if stats:
        if len(names) != 1 or target or data or merge:
            raise UsageError("--stats takes one imatrix.", "Write: localgemma imatrix --stats FILE")
        _describe(Path(names[0]))
        return
    if target is None:
        raise UsageError("The output is not named.", _USE)
    whole.check_target(None, target, 1 << 20, replace=force)
    if merge:
        _merge([Path(name) for name in names], target, output)
        return
    files = [*data, *names[1:]]  # --data A B reaches us as the option A and the argument B
    if not files:
        raise UsageError("There is no data to read.", _USE)
    _collect(names[0], files, mmproj, Loading(ctx, gpu_layers, threads), target, output)


@dataclass(frozen=True, slots=True)
class Loading:
    """What the user said about loading a model that is read with; the machine's plan decides the rest."""

    ctx: int
    gpu_layers: int | None
    threads: int | None

    def options(self, text: Path, projector: Path | None) -> LoadOptions:
        """How to load. Raises what making a plan does; with --gpu-layers there is none."""
        tokens = LoadOptions().image_tokens if projector else 0
        if self.gpu_layers is not None:
            return LoadOptions(ctx=self.ctx, gpu_layers=self.gpu_layers, threads=self.threads, image_tokens=tokens)
        from localgemma.fit import prepare
        from localgemma.fit.planner import Wishes

        wishes = Wishes(self.ctx, "f16", reserve=OUTPUTS, pictures=projector is not None, image_tokens=tokens or None)
        load = prepare.load_plan(text, projector, text.stem, "you gave it", wishes).way.load
        return replace(load, threads=self.threads or load.threads)


def find_model(name: str) -> Local:
    """The files of a model by name or path; NotFound, NotDownloaded, BadModelFile."""
    from localgemma.files import catalog
    from localgemma.files.locate import locate, of_path

    path = Path(name).expanduser()
    return of_path(path) if name.endswith(".gguf") or path.is_file() else locate(name, catalog.load())


def read_pieces(files: Sequence[str]) -> list[Piece]:
    """The data of all files and saved chats in order; UsageError, NotFound, DiskError, BadMedia."""
    from localgemma.chat import data, record, sessions

    pieces: list[Piece] = []
    for name in files:
        path = Path(name).expanduser()
        if not path.exists() and path.name == name and (sessions.home() / name / record.FILE).is_file():
            path = sessions.home() / name
        if (path / record.FILE).is_file():
            saved, _ = record.read(path)
            system: list[Any] = [{"role": "system", "content": saved.system}] if saved.system else []
            messages, thinking = [*system, *saved.messages], saved.options.thinking
            pieces.append(data.finished(messages, tools=saved.tools, thinking=thinking))
        else:
            pieces += data.read_pieces(path)
    return pieces


def _collect(name: str, files: Sequence[str], mmproj: Path | None, loading: Loading, target: Path, output: Output) -> None:
    from localgemma.files.header import check_text_model, read_header
    from localgemma.make import calibration, imatrix

    found = find_model(name)
    check_text_model(read_header(found.text))
    pieces = read_pieces(files)
    projector = _projector(found, mmproj) if calibration.has_pictures(pieces) else None
    cancel = CancelToken()
    with interruptible(cancel, output):
        made = calibration.collect(
            found.text,
            projector,
            pieces,
            loading.options(found.text, projector),
            datasets=[Path(file).name for file in files],
            progress=output.progress,
            cancel=cancel,
        )
    imatrix.write(target, made)
    output.note(f"{target}: {len(made.entries)} weights from {made.tokens:,} tokens")


def _projector(found: Local, given: Path | None) -> Path:
    from localgemma.files.projector import corrected

    chosen = given or found.projector
    if chosen is None:
        raise UsageError("The data has pictures, and there is no projector.", "Give it with: --mmproj FILE")
    return corrected(chosen, settings.load().cache_dir / "projectors")[0]


def _merge(paths: list[Path], target: Path, output: Output) -> None:
    from localgemma.make import imatrix

    if len(paths) < 2:
        raise UsageError("Merging takes two files or more.", "Write: localgemma imatrix --merge FILE FILE -o FILE")
    merged = imatrix.merge([imatrix.read(path) for path in paths])
    imatrix.write(target, merged)
    output.note(f"{target}: {len(merged.entries)} weights from {merged.tokens:,} tokens")


def _describe(path: Path) -> None:
    from localgemma.make import imatrix

    matrix = imatrix.read(path)
    columns: list[tuple[str, Callable[[Any], str]]] = [
        ("weight", lambda row: f"{row.name:<32}"),
        ("sum", lambda row: f"{row.total:12.2f}"),
        ("min", lambda row: f"{row.least:10.4f}"),
        ("max", lambda row: f"{row.most:12.4f}"),
        ("mean", lambda row: f"{row.mean:10.4f}"),
        ("sd", lambda row: f"{row.deviation:10.4f}"),
        ("active", lambda row: f"{row.active:7.1%}"),
        ("columns", lambda row: f"{row.columns:7d}"),
        ("entropy", lambda row: f"{row.entropy:8.4f}"),
        ("even", lambda row: f"{row.evenness:6.1%}"),
        ("peaks", lambda row: f"{row.peaks:6.1%}"),
        ("similar", lambda row: f"{row.similarity:7.4f}"),
    ]
    rows = [[cell(row) for _, cell in columns] for row in imatrix.statistics(matrix)]
    widths = [len(cell) for cell in rows[0]]
    heads = [
        f"{title:<{width}}" if at == 0 else f"{title:>{width}}"
        for at, ((title, _), width) in enumerate(zip(columns, widths, strict=True))
    ]
    click.echo("  ".join(heads).rstrip())
    for row in rows:
        click.echo("  ".join(row))
    sets = ", ".join(matrix.datasets) or "unnamed"
    click.echo(f"{len(rows)} weights, {matrix.tokens:,} tokens in chunks of {matrix.chunk_size}, from: {sets}")
