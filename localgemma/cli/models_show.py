"""`localgemma models show`: what a model's header says, downloaded or not."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from localgemma import runtime
from localgemma.cli.models_view import (
    JSON,
    print_facts,
    print_json,
    print_note,
    print_table,
    quality_text,
    shortened,
    size_text,
)
from localgemma.errors import BadModelFile, NotDownloaded
from localgemma.files import catalog, ledger, store
from localgemma.files.facts import facts_of
from localgemma.files.imports import parts_of
from localgemma.files.locate import locate, of_path
from localgemma.files.projector import planned
from localgemma.gemma4 import shape as shapes
from localgemma.units import format_size

if TYPE_CHECKING:
    from localgemma.files.catalog import Catalog, File, Variant
    from localgemma.files.facts import Facts
    from localgemma.files.header import Header
    from localgemma.files.locate import Local

_CANONICAL = {  # sha256 of chat templates that are known, by their first published day
    "ae53464bf3be25802b3a5b37def7fd89667067d7577049b3b2d74c4d8de4c6d4": "Google's of 2026-07-09, the current one",
    "6a1015c47ccfcfa67c3b772385bccee357a4d37c3cda37bd202e9047f391ab82": "Google's of 2026-07-09, the current one",
    "85a08664d16d8f3be4416c92427b3ac10df1024ac566cc0b4bc3bab409393f98": "Google's of April 2026",
    "845f1ee48e39fc942fe190da9df6a1c5db229e17a96ea08966ad1c9274e73d1b": "Unsloth's",
}


@click.command(name="show", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("name")
@JSON
def command(name: str, as_object: bool) -> None:
    """Show what is known of NAME (a model's name or a .gguf file).

    Of a file that is not on this machine it reads the header alone, about 16 MiB by HTTP range, and keeps it.
    """
    known = catalog.load()
    local = _local(name, known)
    variant = _variant(name, local, known)
    headers = [store.header_of(part) for part in parts_of(local.text)] if local else _fetched(variant)
    facts, kv = facts_of(*headers), _kv(headers[0])
    if as_object:
        print_json(_as_json(variant, local, facts, kv))
        return
    if variant:
        entry = known.entries[variant.model]
        click.echo(f"{local.name if local else variant.name}: {entry.title}")
        print_note(entry.description)
        click.echo()
    print_facts([*_origin(variant, local), *_figures(facts, kv), *_quality(variant), *_companions(variant, local, facts)])
    click.echo()
    rows = [
        (share.name, f"{share.tensors:,}", format_size(share.nbytes), f"{share.nbytes * 8 / share.values:.2f}")
        for share in facts.types
    ]
    print_table(("tensors", ">count", ">size", ">bits"), rows)


def _local(name: str, known: Catalog) -> Local | None:
    """The model's files here, or None for one that is known and not here."""
    if name.endswith(".gguf"):
        return of_path(Path(name).expanduser())
    try:
        return locate(name, known, runtime.choose)
    except NotDownloaded:
        return None


def _variant(name: str, local: Local | None, known: Catalog) -> Variant | None:
    if local is None:
        return runtime.choose(known.find(name))[0]
    return next((variant for variant in known.variants() if local.name in (variant.name, variant.model)), None)


def _fetched(variant: Variant | None) -> list[Header]:
    """The headers of a text model's parts, by range."""
    from localgemma.files.pull import remote_of
    from localgemma.files.remote import fetch_header

    return [fetch_header(remote_of(part)) for part in variant.text] if variant else []


def _origin(variant: Variant | None, local: Local | None) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    file = variant.text[0] if variant else None
    if file and file.repository:
        pairs.append(("published", f"{file.repository} @{(file.revision or 'main')[:12]}, {file.path}"))
    if file and not local:
        pairs.append(("size", size_text(variant.text if variant else ())))
        pairs.append(("sha256", file.sha256 or "known to its hub"))
        pairs.append(("here", "no, this is its header alone"))
    if local:
        record = ledger.recall(local.text)
        pairs.append(("here", f"{shortened(local.text)} ({local.why})"))
        pairs.append(("sha256", f"{record.sha256}, checked here" if record else "not checked: localgemma models verify"))
    return pairs


def _figures(facts: Facts, kv: dict[str, int]) -> list[tuple[str, str]]:
    template = facts.template_sha256 or ""
    return [
        ("architecture", facts.architecture),
        ("quantisation", f"{facts.quant}, {facts.bits_per_weight:.3f} bits per weight"),
        ("parameters", f"{facts.parameters:,}"),
        ("file", format_size(facts.file_size)),
        ("context", f"{facts.context:,} tokens" if facts.context else ""),
        ("KV cache", _kv_text(kv) if kv else ""),
        ("template", f"{_CANONICAL.get(template, 'of its own')} ({template[:12]}…)" if template else ""),
    ]


def _kv(header: Header) -> dict[str, int]:
    """Bytes of an f16 KV cache: `per_token` of context, and `fixed` of the sliding layers at a ubatch of 512."""
    try:
        shape = shapes.from_metadata(header.metadata, header.array_length("tokenizer.ggml.tokens"))
    except BadModelFile:
        return {}
    far = shape.trained_context
    full = [layer for layer in shape.layers if not layer.sliding]
    sliding = [layer for layer in shape.layers if layer.sliding]
    return {
        "per_token": sum(layer.kv_values * 2 for layer in full),
        "fixed": sum(shape.kv_bytes(layer, "f16", far, 512) for layer in sliding),
        "window": shape.window,
    }


def _kv_text(kv: dict[str, int]) -> str:
    return (
        f"{format_size(kv['per_token'])} a token of context, and {format_size(kv['fixed'])} for the layers that see "
        f"{kv['window']:,} tokens (f16)"
    )


def _quality(variant: Variant | None) -> list[tuple[str, str]]:
    if not variant or not variant.quality:
        return []
    lines = [f"{quality_text([q])}: {q.measure.metric}. {q.measure.caution}" for q in variant.quality]
    return [("quality", "\n".join(lines))]


def _companions(variant: Variant | None, local: Local | None, facts: Facts) -> list[tuple[str, str]]:
    """What goes with a text model."""
    if facts.role != "text":
        return []
    if local:
        pictures = f"{shortened(local.projector)} ({local.projector_why})" if local.projector else "no projector here"
        pairs = [("pictures", pictures), ("corrected", _corrected(local.projector))]
        return [*pairs, ("drafter", f"{shortened(local.drafter)} ({local.drafter_why})" if local.drafter else "none here")]
    if not variant:
        return []
    files: tuple[tuple[str, tuple[File, ...]], ...] = (("pictures", variant.projectors), ("drafter", variant.drafters))
    return [(role, f"{found[0].repository}, {found[0].path}, {size_text(found[:1])}") for role, found in files if found]


def _corrected(projector: Path | None) -> str:
    """What is said of the corrected copy; nothing where the projector needs none."""
    copy = planned(projector, store.projectors_folder()) if projector else None
    if copy is None:
        return ""
    if copy.is_whole:
        return f"{shortened(copy.path)}, because the projector does not say which activation it needs"
    return f"a copy of {format_size(copy.size)} will be made: the projector does not say which activation it needs"


def _as_json(variant: Variant | None, local: Local | None, facts: Facts, kv: dict[str, int]) -> dict[str, Any]:
    file = variant.text[0] if variant else None
    copy = planned(local.projector, store.projectors_folder()) if local and local.projector else None
    return {
        "name": local.name if local else variant.name if variant else "",
        "here": local is not None,
        "path": local.text if local else None,
        "projector": local.projector if local else None,
        "corrected_projector": copy.path if copy and copy.is_whole else None,
        "drafter": local.drafter if local else None,
        "published": {"repository": file.repository, "revision": file.revision, "path": file.path, "bytes": file.bytes,
                      "sha256": file.sha256} if file and file.repository else None,
        "quality": [{"value": q.value, **asdict(q.measure)} for q in variant.quality] if variant else [],
        "facts": facts,
        "kv_f16_bytes": kv,
    }  # fmt: skip
