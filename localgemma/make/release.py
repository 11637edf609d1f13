"""A whole release: one source in several types, with standard names, checksums and a card that says how it was made."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from localgemma import __version__
from localgemma.engine import CancelToken
from localgemma.errors import Cancelled, UsageError
from localgemma.files.header import Header
from localgemma.make import imatrix as matrices
from localgemma.make import quantize, types, whole
from localgemma.make.quantize import Plan, Told, Wish
from localgemma.messages import Progress
from localgemma.units import format_size

SUMS, CARD = "SHA256SUMS", "README.md"
_PLAIN_END = re.compile(r"[-._]?(bf16|f16|f32)$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Item:
    """One file of the release, planned."""

    path: Path
    plan: Plan


def make_plans(source: Path, folder: Path, names: Sequence[str], wish: Wish) -> list[Item]:
    """The files of a release in order; `wish` gives everything but the type. Raises what quantize.make_plan raises."""
    header = quantize.readable(source)
    wanted = list(dict.fromkeys(types.file_type(name) for name in names))
    if not wanted:
        raise UsageError("No type is named.", "Give them like: --types Q8_0,Q6_K,Q4_K_M")
    base = base_name(header)
    items = []
    for name in wanted:
        one = Wish(name, wish.overrides, wish.imatrix, wish.requantize, wish.threads)
        items.append(Item(folder / f"{base}-{name}.gguf", quantize.make_plan(source, one)))
    return items


def base_name(header: Header) -> str:
    """What a release's file names start with: the source's without its type, else the model's name."""
    stem = _PLAIN_END.sub("", header.path.stem)
    return stem or re.sub(r"[^A-Za-z0-9.]+", "-", header.text("general.name")).strip("-") or "model"


def check(items: Sequence[Item], folder: Path, *, card: bool, replace: bool = False) -> None:
    """Refuse the release before its first byte: UsageError or DiskError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise whole.disk_error(folder, error) from error
    for item in items:
        quantize.check_possible(item.plan)
        whole.check_target(item.plan.source.path, item.path, item.plan.size, replace=replace)
    for name in [SUMS, CARD] if card else [SUMS]:
        whole.check_target(None, folder / name, 1 << 20, replace=replace)
    whole.need_room(folder, sum(item.plan.size for item in items))


def build(
    items: Sequence[Item],
    folder: Path,
    *,
    card: bool,
    replace: bool = False,
    progress: Told | None = None,
    cancel: CancelToken | None = None,
) -> dict[str, str]:
    """Write every file, then SHA256SUMS and the card; sha256 by file name. Files finished before an error stay."""
    check(items, folder, card=card, replace=replace)
    sums: dict[str, str] = {}
    for item in items:
        quantize.run_plan(item.plan, item.path, replace=replace, progress=progress, cancel=cancel)
        sums[item.path.name] = sha256(item.path, progress, cancel)
    _write(folder / SUMS, "".join(f"{digest}  {name}\n" for name, digest in sums.items()))
    if card:
        _write(folder / CARD, card_text(items, sums))
    return sums


def sha256(path: Path, progress: Told | None = None, cancel: CancelToken | None = None) -> str:
    """The file's sha256 in hexadecimal."""
    digest, done, total = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as stream:
        while block := stream.read(16 << 20):
            if cancel is not None and cancel.cancelled:
                raise Cancelled("Making the checksums was cancelled.")
            digest.update(block)
            done += len(block)
            if progress is not None:
                progress(Progress("checksum", done, total))
    return digest.hexdigest()


def card_text(items: Sequence[Item], sums: dict[str, str]) -> str:
    """The model card: files, sizes and checksums, and where the imatrix came from."""
    header, wish = items[0].plan.source, items[0].plan.wish
    name = header.text("general.name") or base_name(header)
    licence = header.text("general.license")
    lines = ["---", *([f"license: {licence}"] if licence else []), "library_name: gguf", "tags: [gguf, quantized]", "---", ""]
    lines += [f"# {name}: quantisations", ""]
    lines += [f"Made from `{header.path.name}` ({format_size(header.file_size)}) by localgemma {__version__}", ""]
    lines += ["| file | type | size | bits a weight | sha256 |", "| --- | --- | --- | --- | --- |"]
    for item in items:
        row = (item.path.name, item.plan.wish.file_type, format_size(item.plan.size), f"{item.plan.bits:.2f}")
        lines.append(f"| {' | '.join(row)} | `{sums[item.path.name]}` |")
    lines += ["", *_origin(wish)]
    return "\n".join(lines) + "\n"


def _origin(wish: Wish) -> list[str]:
    if wish.imatrix is None:
        return ["No imatrix was used."]
    matrix = matrices.read(wish.imatrix)
    sets = ", ".join(f"`{name}`" for name in matrix.datasets) or "an unnamed data set"
    return [
        f"Importance matrix: `{wish.imatrix.name}` (sha256 `{sha256(wish.imatrix)}`), {matrix.tokens:,} tokens of {sets}, "
        f"{len(matrix.entries)} weights."
    ]


def _write(path: Path, text: str) -> None:
    with whole.draft(path) as draft:
        draft.path.write_text(text, encoding="utf-8")
        draft.keep()
