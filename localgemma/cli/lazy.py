"""A group of commands whose modules are imported only when one of them runs, so that help and start stay fast."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import Any

import click

from localgemma import settings


def _offline() -> click.Option:
    def go(context: click.Context, option: click.Parameter, value: bool) -> None:
        if value:
            settings.go_offline()

    return click.Option(
        ["--offline"], is_flag=True, is_eager=True, expose_value=False, callback=go, help="Open no connection."
    )


class LazyGroup(click.Group):
    """Commands by name: (`module` or `module:attribute`, what it does); without an attribute it is called `command`."""

    table: Mapping[str, tuple[str, str]] = {}

    def __init__(self, *args: Any, table: Mapping[str, tuple[str, str]] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.table = table or self.table

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of the help."""
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module. Every command promises to open no connection where --offline is given."""
        if cmd_name not in self.table:
            return None
        module, _, attribute = self.table[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute or "command")
        if not isinstance(command, click.Group) and all(option.name != "offline" for option in command.params):
            command.params.append(_offline())
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that the arguments begin with; one that is none is told with the nearest that is."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = difflib.get_close_matches(args[0], self.table, 1)
            if not near or "Did you mean" in error.message:
                raise
            raise click.UsageError(f"{error.message.rstrip('.')}. Did you mean {near[0]!r}?", ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self.table.items()])
