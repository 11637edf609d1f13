"""`localgemma compare`: what each quantisation costs against a reference, in numbers that can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from localgemma.cli.compare_obtain import Obtain
from localgemma.cli.output import Output, interruptible
from localgemma.engine import CancelToken
from localgemma.errors import UsageError
from localgemma.options import KV_TYPES

if TYPE_CHECKING:
    from localgemma.cli.compare_subjects import Files
    from localgemma.compare.corpus import Corpus
    from localgemma.compare.lgref import Reference
    from localgemma.compare.records import Comparison, Subject

_PATH = click.Path(path_type=Path)
_USE = "Write: localgemma compare A B --reference R"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", metavar="NAME[:QUANT][@PUBLISHER]|FILE|TYPE...", nargs=-1)
@click.option(
    "--reference", metavar="NAME|FILE|FILE.lgref|URL#MODEL", help="What the others are measured against; default: the best."
)
@click.option("--positions", type=click.IntRange(1), metavar="N", help="Positions asked of a URL#MODEL; default: 1000.")
@click.option("--save-reference", metavar="FILE.lgref", type=_PATH, help="Keep the walked reference, to hand it round.")
@click.option("--set", "set_name", metavar="small|full", help="A built-in set; default: small (the demo model has its own).")
@click.option("--data", multiple=True, metavar="FILE", help="Own texts, chats (.jsonl), saved chats, pictures; repeatable.")
@click.option("--raw", is_flag=True, help="Text as llama-perplexity reads it; other architectures too.")
@click.option("--make", is_flag=True, help="Make quantisations that are named by type alone from the reference.")
@click.option("--pull", is_flag=True, help="Download models that are named and not here.")
@click.option("--kv", multiple=True, type=click.Choice(KV_TYPES), help="Types of the KV cache to compare; repeatable.")
@click.option("--ubatch", type=click.IntRange(16, 4096), metavar="N", help="Tokens a batch; default: what memory allows.")
@click.option("--ctx", type=click.IntRange(512), metavar="N", help="Context; default: what the longest text needs.")
@click.option("--gpu-layers", type=int, metavar="N", help="Layers on the GPU; 0 is none, -1 all.")
@click.option("--threads", type=click.IntRange(1), metavar="N", help="Default: what suits this machine.")
@click.option("--only-walk", is_flag=True, help="Divergence alone: no tasks, answers or speed.")
@click.option("--report", metavar="FILE.html", type=_PATH, help="Write a report that opens offline.")
@click.option("--markdown", is_flag=True, help="Print Markdown instead of a table.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@click.option("--json", "as_object", is_flag=True, help="Print everything as one JSON object.")
@click.option("-q", "--quiet", is_flag=True, help="Say only the result and errors.")
def command(
    names: tuple[str, ...],
    reference: str | None,
    positions: int | None,
    save_reference: Path | None,
    set_name: str | None,
    data: tuple[str, ...],
    raw: bool,
    make: bool,
    pull: bool,
    kv: tuple[str, ...],
    ubatch: int | None,
    ctx: int | None,
    gpu_layers: int | None,
    threads: int | None,
    only_walk: bool,
    report: Path | None,
    markdown: bool,
    as_csv: bool,
    as_object: bool,
    quiet: bool,
) -> None:
    """Compare model files with a reference: KL divergence, perplexity, tasks and speed, token by token."""
    from localgemma import measured
    from localgemma.cli import compare_subjects as subjects
    from localgemma.cli.compare_remote import answered, endpoint_of
    from localgemma.compare import lgref, recommend, run
    from localgemma.fit import probe

    output = Output(quiet=quiet)
    if sum((markdown, as_csv, as_object)) > 1:
        raise UsageError("--markdown, --csv and --json are three forms of one result.", "Choose one of them.")
    _check_outputs(report, save_reference, reference)
    files, endpoint = subjects.Files(any_architecture=raw), endpoint_of(reference, positions)
    obtain = Obtain(output, None if endpoint or reference is None or lgref.is_name(reference) else reference, make, pull)
    base, candidates, notes = _subjects(files, obtain, names, reference, kv)
    corpus = _corpus(set_name, data, base, raw=raw, pictures=endpoint is None and any(files.projector.values()))
    machine = probe.machine()
    load = _load(base, corpus, subjects, ubatch, raw=raw)
    load = replace(load, ctx=ctx or load.ctx, gpu_layers=gpu_layers, threads=threads or machine.threads)
    limit = subjects.room(machine)

    def together(some: Sequence[Subject], how: Any) -> bool:
        return sum(subjects.needed(each, how) for each in some) <= limit * 0.8

    cancel = CancelToken()
    job = run.Job(
        corpus, base, tuple(candidates), load, subjects.folder(),
        subjects.around(machine, load, _template(base)), save_reference, not (raw or only_walk), notes,
    )  # fmt: skip
    with interruptible(cancel, output):
        hands = run.Hands(files.open, together, subjects.memory, output.progress, cancel)
        found = run.compare(answered(job, endpoint, positions, hands) if endpoint else job, hands)
    measured.keep_losses(recommend.losses(found))  # for the next plan
    output.note(f"Compared over {found.conditions.positions:,} tokens.")
    if report is not None:
        _write(found, report)
        output.note(f"The report is in {report}.")
    _show(found, "markdown" if markdown else "csv" if as_csv else "json" if as_object else "table")


def _check_outputs(report: Path | None, save_reference: Path | None, reference: str | None) -> None:
    """UsageError or DiskError, before anything is opened, for a file that could not be written."""
    from localgemma.cli.compare_subjects import check_output
    from localgemma.compare import lgref

    for path in filter(None, (report, save_reference)):
        check_output(path)
    if save_reference is not None and reference is not None and lgref.is_name(reference):
        raise UsageError(f"{reference} is a kept reference already.", "Leave out --save-reference.")


def _corpus(set_name: str | None, data: Sequence[str], base: Subject | Reference, *, raw: bool, pictures: bool) -> Corpus:
    from localgemma.compare import corpus
    from localgemma.compare.records import Subject

    if set_name is not None and data:
        raise UsageError("--set and --data are two choices of what to read.", "Give one of them.")
    if raw:
        if not data:
            raise UsageError("--raw reads your own text.", "Give it with: --data FILE")
        return _raw(data)
    vocabulary = base.vocabulary_size if isinstance(base, Subject) else base.origin.vocabulary_size
    return corpus.from_data(data) if data else corpus.load_set(set_name or corpus.default_set(vocabulary), pictures=pictures)


def _raw(files: Sequence[str]) -> Corpus:
    """Files as plain text, whatever they hold. Raises NotFound, DiskError, UsageError."""
    from localgemma.chat.data import read_text
    from localgemma.compare.corpus import Corpus
    from localgemma.compare.samples import raw_item

    items = [raw_item(Path(file).name, read_text(Path(file).expanduser())) for file in files]
    return Corpus(f"{', '.join(item.id for item in items)}, raw", tuple(items))


def _subjects(
    files: Files, obtain: Obtain, names: Sequence[str], reference: str | None, kv: Sequence[str]
) -> tuple[Subject | Reference, list[Subject], tuple[str, ...]]:
    """The reference, the candidates, and what must be said about the choice."""
    from localgemma.cli.compare_subjects import unique
    from localgemma.compare import endpoint, lgref

    if not names:
        raise UsageError("No file to compare is named.", _USE)
    kinds = dict.fromkeys(("f16", *kv))
    found = [files.subject(obtain.path(name), each) for name in names for each in kinds]
    if reference is not None and lgref.is_name(reference):
        opened = lgref.read(Path(reference).expanduser())
        return opened, unique(found), ()
    if reference is not None and endpoint.is_address(reference):
        found = unique(found)
        return found[0], found, ()  # the first stands for its tokens and template until it has answered
    if reference is not None:
        found = [*(files.subject(obtain.path(reference), each) for each in kinds), *found]
        base, *rest = unique(list({(each.sha256, each.kv): each for each in found}.values()))
        if not rest:
            raise UsageError("The reference is the only file named.", _USE)
        return base, rest, ()
    if len(found) < 2:
        raise UsageError("There is nothing to compare it with.", _USE)
    found = unique(found)
    best = max(found, key=lambda each: (each.bits_per_weight, each.kv in ("f32", "f16", "bf16")))
    note = f"No reference was given: {best.label}, the best of these files, stands for it; what it lost itself is not seen."
    return best, [each for each in found if each is not best], (note,)


def _load(base: Subject | Reference, corpus: Corpus, subjects: Any, ubatch: int | None, *, raw: bool) -> Any:
    """How all are loaded: as the reference file was walked, or as the vocabulary and the texts ask."""
    from localgemma.compare.records import Subject
    from localgemma.compare.samples import largest
    from localgemma.options import LoadOptions

    if isinstance(base, Subject):
        longest, pictures = largest(corpus)
        load: LoadOptions = subjects.layout(base.vocabulary_size, longest, pictures, ubatch)
        return replace(load, sequences=1) if raw else load  # one chunk after the other, as llama-perplexity -b 512 does
    origin = base.origin
    if ubatch is not None and ubatch != origin.ubatch:
        raise UsageError(f"{base.path.name} was walked with a ubatch of {origin.ubatch}.", "Leave out --ubatch.")
    longest = max(len(sample.passage) for sample in base.samples)
    load = subjects.layout(origin.vocabulary_size, longest, 0, origin.ubatch)
    return replace(load, outputs=origin.outputs, sequences=origin.sequences, image_tokens=origin.image_tokens)


def _template(base: Subject | Reference) -> str:
    from localgemma.compare.records import Subject

    return base.template if isinstance(base, Subject) else base.origin.template


def _write(found: Comparison, report: Path) -> None:
    from localgemma.compare.keep import whole
    from localgemma.compare.report_html import html

    with whole(report) as stream:
        stream.write(html(found).encode())


def _show(found: Comparison, form: str) -> None:
    from localgemma.compare import report as reports

    shown = {"table": reports.table, "markdown": reports.markdown, "csv": reports.csv, "json": reports.to_json}[form]
    click.echo(shown(found), nl=False)
