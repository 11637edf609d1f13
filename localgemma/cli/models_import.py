"""`localgemma models import`: use model files that other programs brought to this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from localgemma.cli.models_local import work
from localgemma.cli.models_view import DRY_RUN, JSON, YES, confirm, print_json, print_note, print_table, shortened
from localgemma.errors import UsageError
from localgemma.units import format_size

if TYPE_CHECKING:
    from localgemma.files.imports import Imported
    from localgemma.files.scan import Found, Scan
    from localgemma.files.split import Split


@click.command(name="import", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("path", required=False, type=click.Path(path_type=Path))
@click.option("--scan", "look", is_flag=True, help="Look through LM Studio, Ollama, llama.cpp, Jan and the hub's cache.")
@click.option("--name", metavar="NAME", help="What to call it; default: its file name.")
@click.option("--split", is_flag=True, help="Make the copy that a file in Ollama's own form needs.")
@DRY_RUN
@YES
@JSON
def command(path: Path | None, look: bool, name: str | None, split: bool, dry_run: bool, yes: bool, as_object: bool) -> None:
    """Use the GGUF file PATH, or those in the folder PATH, where they are: they are linked, not copied.

    What a file is for is read from its header. A projector and a drafter that lie beside it are linked with it.
    """
    if look == (path is not None):
        raise UsageError("What to import is not clear.", "Give a file or a folder, or say --scan.")
    if path is not None and not path.is_dir():
        result = _import_file(path.expanduser().absolute(), name, split or yes, dry_run, as_object)
    else:
        if name:
            raise UsageError("--name names one file.", "Give the path of a file with it.")
        result = _import_found(path, dry_run, yes, as_object)
    if as_object:
        print_json(result | {"dry_run": dry_run})


def _import_file(path: Path, name: str | None, agreed: bool, dry_run: bool, as_object: bool) -> dict[str, Any]:
    """Link one file, or split it where it must be."""
    from localgemma.files import ollama
    from localgemma.files.header import in_ollama_form, read_header
    from localgemma.files.imports import link, linkable
    from localgemma.files.pairing import partner

    header = read_header(path)
    user = ollama.user_of(path)
    name = name or (user.name.replace(":", "-").replace("/", "-") if user else None)
    if in_ollama_form(header):
        return _split(path, name or path.stem, agreed, dry_run, as_object)
    role = linkable(header)
    mates = [partner(header, kind) if role == "text" else None for kind in ("projector", "drafter")]
    paths = [path, *(mate.path for mate in mates if mate)]
    if dry_run:
        if not as_object:
            for each in paths:
                print_note(f"Would link {shortened(each)}.")
        return {"would_link": paths}
    linked = [link(path, name=name, sha256=ollama.digest_of(path))]
    for mate in mates:
        if mate:
            linked.append(link(mate.path, sha256=ollama.digest_of(mate.path)))
    if not as_object:
        _show_linked(linked, header.text("general.name"))
        if role == "text" and mates[0] is None:
            print_note("No projector for it was found: it reads text only, until one is imported too.")
    return {"linked": linked}


def _split(path: Path, name: str, agreed: bool, dry_run: bool, as_object: bool) -> dict[str, Any]:
    """Offer a split and corrected copy of a file in Ollama's own form, make it, link it."""
    from localgemma.files.split import copies_folder, link_copies, plan_split

    plan = plan_split(path, copies_folder(path, name), name)
    where, size = shortened(plan.text.path.parent), format_size(plan.size)
    if not as_object:
        print_note(
            f"{path.name} is Gemma 4 in Ollama's own form: text and pictures lie in one file, and llama.cpp cannot load it. "
            f"A split and corrected copy takes {size} in {where}; Ollama keeps its own."
        )
    if dry_run or plan.is_done:
        linked = [] if dry_run else link_copies(plan, {})
    else:
        if as_object and not agreed:
            raise UsageError(f"A split copy of {path.name} takes {size} in {where}.", "Add --split to make it.")
        confirm(f"Make the copy ({size})?", agreed)
        with work("Copying", plan.source.file_size, shown=not as_object) as told:
            linked = link_copies(plan, plan.execute(told))
    if not as_object and linked:
        _show_linked(linked, name)
    return {"split": _split_json(plan), "linked": linked}


def _import_found(folder: Path | None, dry_run: bool, yes: bool, as_object: bool) -> dict[str, Any]:
    """Show what the stores, or a folder, hold, and link what can be."""
    from localgemma.files.imports import link
    from localgemma.files.ollama import digest_of
    from localgemma.files.scan import Store, scan

    found = scan((Store("folder", folder.expanduser().absolute()),) if folder else None)
    new = [item for item in found.found if item.form == "plain" and not item.linked and (item.is_31b or folder)]
    if not as_object:
        _show_found(found)
    linked: list[Imported] = []
    if new and not dry_run and (yes or not as_object):
        confirm(f"Link {len(new)} of them?", yes)
        linked = [link(item.path, sha256=digest_of(item.path)) for item in new]
        if not as_object:
            _show_linked(linked, "")
    return {
        "stores": found.stores,
        "found": found.found,
        "other_models": found.others,
        "unreadable": [{"path": path, "reason": reason} for path, reason in found.unreadable],
        "in_pieces": found.in_pieces,
        "linked": linked,
    }


def _show_found(found: Scan) -> None:
    """What a search found, as a table, and what it did not."""
    for store in found.stores:
        print_note(f"Looked through {store.program}: {shortened(store.folder)}")
    if found.found:
        rows = [(item.program, item.name, item.role, format_size(item.size), _what(item)) for item in found.found]
        print_table(("program", "name", "file", ">size", ""), rows)
    else:
        print_note("There is no Gemma 4 file.")
    for name in found.in_pieces:
        print_note(f"{name} of Ollama's is for its MLX engine, and no GGUF file: nothing here can use it.")
    for path, reason in found.unreadable:
        print_note(f"Could not be read: {shortened(path)}: {reason}")
    if found.others:
        print_note(f"{found.others:,} other GGUF files are not Gemma 4.")


def _what(item: Found) -> str:
    """What can be done with a file that was found."""
    if item.form == "ollama":
        return f"must be split: localgemma models import --split {item.path}"
    if item.linked:
        return "linked already"
    mates = " and ".join(what for what, mate in (("projector", item.projector), ("drafter", item.drafter)) if mate)
    shape = "Gemma 4 31B" if item.is_31b else "another Gemma 4"
    return f"{shape}, with {mates}" if mates else shape


def _show_linked(linked: list[Imported], title: str) -> None:
    for item in linked:
        print_note(f"Linked as {item.name}: {item.role}, {format_size(item.size)}, {shortened(item.path)}")
    text = next((item for item in linked if item.role == "text"), None)
    if text:
        print_note(f"{title or text.name}: talk with it with: localgemma chat -m {text.name}")


def _split_json(plan: Split) -> dict[str, Any]:
    return {
        "from": plan.source.path,
        "text": plan.text.path,
        "projector": plan.projector and plan.projector.path,
        "bytes": plan.size,
    }
