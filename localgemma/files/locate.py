"""Which files a name opens: the text model, and the projector and drafter that belong to it, all on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from localgemma.errors import NotDownloaded, NotFound
from localgemma.files import store
from localgemma.files.catalog import Catalog, File, Found, Name, Role, Variant, total
from localgemma.files.pairing import partner
from localgemma.files.store import Held
from localgemma.units import format_size


@dataclass(frozen=True, slots=True)
class Local:
    """A model on this machine. Each file comes with the reason why it was taken, empty where there is none."""

    name: str
    text: Path
    why: str
    projector: Path | None = None
    projector_why: str = ""
    drafter: Path | None = None
    drafter_why: str = ""


Choose = Callable[[Found], tuple[Variant, str]]


def locate(name: str, catalog: Catalog, choose: Choose = Found.choose) -> Local:
    """The files that `name` means, a linked file's own name included.

    `choose` decides where the name leaves it open: among what is here or, for the error, among what could be. Raises
    UsageError, NotFound, and NotDownloaded with size and command.
    """
    wanted = Name.parse(name)
    links = [item for item in store.linked() if item.role == "text"]
    try:
        found = catalog.find(wanted)
    except NotFound:
        if item := _linked(wanted, links, catalog):
            return _local(item, item.name, "linked under that name or shape", None, catalog)
        raise
    if here := present(found):
        variant, why = choose(Found(found.entry, tuple(_sized(variant, item) for variant, item in here)))
        if len(here) == 1 and len(found.entry.variants) > 1:
            why = "the one that is on this machine"
        text = {each.name: item for each, item in here}[variant.name]
        return _local(text, found.entry.name if len(found.entry.variants) == 1 else variant.name, why, variant, catalog)
    if item := _linked(wanted, links, catalog):
        return _local(item, item.name, f"linked, and of {found.entry.name}'s shape", None, catalog)
    raise missing(found, choose)


def present(found: Found) -> list[tuple[Variant, Held]]:
    """The variants whose text model is here, each with its best copy."""
    return [(variant, items[0]) for variant in found.variants if (items := store.copies(variant.text[0]))]


def missing(found: Found, choose: Choose = Found.choose) -> NotDownloaded:
    """The error for a model that is known and not here: which one a pull would bring, its size, the command."""
    variant, why = choose(found)
    size = total(variant.files)
    about = f"{format_size(size)} with projector and drafter" if size else "its hub knows the size"
    is_default = f"{variant.quant}@{variant.publisher}" == found.entry.default
    command = found.entry.name if is_default and len(found.variants) == len(found.entry.variants) else variant.name
    which = variant.name if len(found.variants) == 1 else f"{variant.name} ({why})"
    return NotDownloaded(f"{which} is not on this machine; {about}.", f"Get it with: localgemma models pull {command}")


def _sized(variant: Variant, item: Held) -> Variant:
    """The variant with the size of the file that is here, where nobody has published one."""
    if variant.size is not None:
        return variant
    return replace(variant, text=(replace(variant.text[0], bytes=item.size),))


def _linked(wanted: Name, links: list[Held], catalog: Catalog) -> Held | None:
    """The linked text model of that very name; else the largest of the wanted model's width and quantisation."""
    for item in links:
        if wanted == Name(wanted.model) and item.name.casefold() == wanted.model.casefold():
            return item
    if wanted.publisher and wanted.publisher.casefold() != "linked":
        return None
    try:
        width = catalog.entry(wanted.model).width
    except NotFound:
        return None
    quant = (wanted.quant or "").casefold()
    fitting = [item for item in links if item.width == width and quant in ("", item.quant.casefold())]
    return max(fitting, key=lambda item: item.size, default=None)


def _local(text: Held, name: str, why: str, variant: Variant | None, catalog: Catalog) -> Local:
    projector = next(_companions("projector", text, variant, catalog), (None, ""))
    drafter = next(_companions("drafter", text, variant, catalog), (None, ""))
    return Local(name, text.path, why, *projector, *drafter)


def of_path(path: Path) -> Local:
    """A file given by its path, with the projector and drafter that fit it; raises as `read_header` does."""
    header = store.header_of(path)
    projector, drafter = partner(header, "projector"), partner(header, "drafter")
    return Local(
        path.stem, path, "you gave it",
        projector.path if projector else None, projector.why if projector else "",
        drafter.path if drafter else None, drafter.why if drafter else "",
    )  # fmt: skip


def _companions(role: Role, text: Held, variant: Variant | None, catalog: Catalog) -> Iterator[tuple[Path, str]]:
    """What goes with a text model, best first.

    The publisher's own; for a linked model what lies beside it or is linked; another publisher's, made from the same
    weights. Of a file that no catalogue knows, it is not known whether its weights are quantisation-aware ones.
    """
    if variant:
        for file in variant.projectors if role == "projector" else variant.drafters:
            for item in store.copies(file)[:1]:
                yield item.path, "ships with the model" if file.folder else f"belongs to {variant.name}"
    if text.origin == "linked" and (found := partner(store.header_of(text.path), role)):
        yield found.path, found.why
    for file in dict.fromkeys(_same_weights(role, text.width, bool(variant and variant.qat), catalog)):
        for item in store.copies(file)[:1]:
            yield item.path, f"{file.publisher}'s, made from the same weights"
    if text.origin != "linked" and (found := partner(store.header_of(text.path), role)):
        yield found.path, found.why


def _same_weights(role: Role, width: int, qat: bool, catalog: Catalog) -> Iterator[File]:
    """Files of this role by every publisher of weights of this width and training."""
    for variant in catalog.variants():
        if catalog.entries[variant.model].width == width and variant.qat == qat:
            yield from variant.projectors if role == "projector" else variant.drafters
