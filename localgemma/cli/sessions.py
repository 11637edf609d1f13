"""`localgemma sessions`: the saved chats of this user, to list, show, export and remove."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from urllib.parse import quote

import click

from localgemma.chat import sessions
from localgemma.cli.models_view import JSON, YES, confirm, print_json, print_table
from localgemma.cli.output import clean
from localgemma.errors import DiskError, UsageError
from localgemma.messages import Message, Pixels
from localgemma.units import format_size

_HELP = {"help_option_names": ["-h", "--help"]}


@click.group(context_settings=_HELP)
def command() -> None:
    """Saved chats: `localgemma chat -c` continues the last, `--session NAME` any."""


@command.command("list", context_settings=_HELP)
@JSON
def list_(as_object: bool) -> None:
    """The saved chats, the last one used first."""
    found = [sessions.summary(name) for name in sessions.names()]
    if as_object:
        print_json([asdict(s) | {"updated": s.updated.isoformat()} for s in found])
    elif not found:
        click.echo("There is no saved chat yet. Start one: localgemma chat", err=True)
    else:
        rows = [
            (
                s.name,
                f"{s.updated:%Y-%m-%d %H:%M}",
                f"{s.turns:,}",
                format_size(s.size),
                clean(s.problem or s.title)[:60],
            )
            for s in found
        ]
        print_table(("name", "last used", ">turns", ">size", "begins"), rows)


@command.command(context_settings=_HELP)
@click.argument("name")
def show(name: str) -> None:
    """Print a saved chat."""
    from localgemma.chat.export import as_markdown

    found = sessions.read(name)
    text = as_markdown(found.system, found.messages)
    click.echo(clean(text) if sys.stdout.isatty() else text, nl=False)


@command.command(context_settings=_HELP)
@click.argument("names", nargs=-1, required=True, metavar="NAME…")
@YES
def rm(names: tuple[str, ...], yes: bool) -> None:
    """Remove saved chats with their pictures."""
    found = [sessions.summary(name) for name in names]
    size = format_size(sum(s.size for s in found))
    confirm(f"Remove {', '.join(s.name for s in found)} ({size})?", yes, default=False)
    for s in found:
        sessions.remove(s.name)
    click.echo(f"Removed: {', '.join(s.name for s in found)} ({size})", err=True)


@command.command(context_settings=_HELP)
@click.argument("name")
@click.option("--format", "form", type=click.Choice(["markdown", "json"]), help="Else by the file's ending, else Markdown.")
@click.option("-o", "--output", metavar="FILE", help="A new file; Markdown puts the pictures in a folder beside it.")
def export(name: str, form: str | None, output: str | None) -> None:
    """Write a saved chat as Markdown, or as JSON in OpenAI's message form with its pictures inside."""
    from localgemma.chat.export import as_markdown, as_messages

    if output is None:
        found = sessions.read(name, pictures=form == "json")
        if form == "json":
            click.echo(json.dumps(as_messages(found.system, found.messages), ensure_ascii=False, indent=1))
        else:
            click.echo(as_markdown(found.system, found.messages), nl=False)
        return
    path = Path(output).expanduser()
    found = sessions.read(name, pictures=True)
    save(path, found.system, found.messages, as_json=form == "json" or (form is None and path.suffix.lower() == ".json"))
    click.echo(f"Saved to {path}", err=True)


def save(path: Path, system: str | None, messages: Sequence[Message], *, as_json: bool) -> None:
    """Write a conversation to a new file. Raises UsageError if it exists, DiskError if it cannot be written."""
    from localgemma.chat.export import as_markdown, as_messages
    from localgemma.chat.record import png

    folder = path.with_name(f"{path.stem}-pictures")

    def place(pixels: Pixels) -> str:
        folder.mkdir(exist_ok=True)
        (folder / f"{pixels.sha256[:16]}.png").write_bytes(png(pixels))
        return quote(f"{folder.name}/{pixels.sha256[:16]}.png")

    try:
        with path.open("x", encoding="utf-8", errors="replace") as stream:
            if as_json:
                json.dump(as_messages(system, messages), stream, ensure_ascii=False, indent=1)
            else:
                stream.write(as_markdown(system, messages, place))
    except FileExistsError:
        raise UsageError(f"{path} exists already.", "Choose another name.") from None
    except (OSError, ValueError) as error:
        raise DiskError(f"{path} cannot be written: {error}.", "Choose another place.") from None
