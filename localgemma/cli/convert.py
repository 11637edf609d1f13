"""`localgemma convert`: a published checkpoint (safetensors) becomes a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from localgemma.cli.output import Output, interruptible
from localgemma.engine import CancelToken
from localgemma.units import format_duration, format_size

_PATH = click.Path(path_type=Path)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("folder", metavar="DIR", type=_PATH)
@click.option("-o", "--output", "target", metavar="FILE", type=_PATH, required=True, help="The GGUF file to write.")
@click.option("--part", metavar="text|vision|drafter", help="Default: the language model, or the drafter where DIR has one.")
@click.option(
    "--type", "file_type", metavar="bf16|f16|f32|q8_0", default="bf16", show_default=True, help="Type of the weights."
)
@click.option("--force", is_flag=True, help="Replace what is there.")
@click.option("-q", "--quiet", is_flag=True, help="Say only errors.")
def command(folder: Path, target: Path, part: Any, file_type: str, force: bool, quiet: bool) -> None:
    """Convert the checkpoint in DIR, as its publisher has it, to FILE."""
    from localgemma.make.convert import convert

    output, cancel = Output(quiet=quiet), CancelToken()
    with interruptible(cancel, output):
        done = convert(folder, target, part=part, file_type=file_type, replace=force, progress=output.progress, cancel=cancel)
    for note in done.notes:
        output.note(note)
    if done.part == "text" and done.has_vision:
        output.note(f"Pictures need the vision part too: localgemma convert {folder} -o mmproj.gguf --part vision")
    what = f"{done.part} of {done.name}, {done.type.upper()}, {done.tensors:,} tensors"
    output.note(f"{target}: {format_size(done.nbytes)}, {what}, in {format_duration(done.seconds)}")
