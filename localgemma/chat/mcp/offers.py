"""What MCP servers offer, as tools: names of their own that Gemma can call, and declarations that it can read."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from typing import Any

import mcp.types as types

from localgemma.chat.declare import declared
from localgemma.chat.functions import Tool
from localgemma.errors import UsageError
from localgemma.options import ServerLimits

_LONGEST = 64  # characters of a name
Call = Callable[[str, dict[str, Any]], Any]


def tools_of(
    server: str, offered: Iterable[types.Tool], call: Call, limits: ServerLimits
) -> tuple[tuple[Tool, ...], list[str]]:
    """The tools of one server, called `SERVER__TOOL`, and sentences about those that are left out.

    `call(name, arguments)` runs one by the server's own name for it.
    """
    found: dict[str, Tool] = {}
    notes: list[str] = []
    offers = list(offered)
    for offer in offers[: limits.tools]:
        name = _name(server, offer.name, found)
        try:
            found[name] = _tool(name, offer, call, limits)
        except (UsageError, RecursionError) as error:
            reason = error.message if isinstance(error, UsageError) else "Its schema is nested too deeply."
            notes.append(f"The tool {name} of the MCP server {server} is left out. {reason}")
    if len(offers) > limits.tools:
        notes.append(f"The MCP server {server} offers {len(offers):,} tools, and {limits.tools:,} of them are taken.")
    return tuple(found.values()), notes


def plain(name: str) -> str:
    """A name with nothing in it but ASCII letters, digits and _."""
    return re.sub(r"\W", "_", name, flags=re.ASCII)


def _name(server: str, tool: str, taken: Iterable[str]) -> str:
    first = f"{plain(server)}__{plain(tool)}"[:_LONGEST]
    name, number = first, 1
    while name in taken:
        number += 1
        name = f"{first[: _LONGEST - 4]}_{number}"
    return name


def _tool(name: str, offer: types.Tool, call: Call, limits: ServerLimits) -> Tool:
    description = offer.description or offer.title or ""
    schema = offer.input_schema
    size = len(json.dumps(schema, ensure_ascii=False))
    if size > limits.tool_characters:
        raise UsageError(f"Its schema has {size:,} characters, and {limits.tool_characters:,} are allowed.", "")
    if len(description) > limits.tool_characters:
        description = f"{description[: limits.tool_characters]}…"
    function = {"name": name, "description": description, "parameters": declared(schema)}
    own = offer.name

    def run(**arguments: Any) -> Any:
        return call(own, arguments)

    return Tool({"type": "function", "function": function}, run, None, schema)
