"""Tools of the command line: `--tool MODULE:FUNCTION`, `--mcp CONFIG`, and the question before a call runs."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import signal
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import click

from localgemma.cli.output import Output, call_line, clean
from localgemma.errors import Cancelled, NotFound, UsageError
from localgemma.messages import ToolCall

if TYPE_CHECKING:
    from localgemma.chat.functions import Tool
    from localgemma.chat.mcp.servers import Servers
    from localgemma.chat.tool_loop import Toolbox

_ABOUT = 100  # characters of a description in a list
_HOW = "Write --tool MODULE:FUNCTION or --tool FILE.py:FUNCTION."


def toolbox_of(specs: Sequence[str], allow: Collection[str], servers: Servers | None = None) -> Toolbox:
    """The tools that the flags name, asked for on the terminal unless they are allowed.

    Raises NotFound and UsageError, also where a question would be needed and there is no terminal to ask on.
    """
    from localgemma.chat.tool_loop import Toolbox

    box = Toolbox.of([*(_load(spec) for spec in specs), *([servers] if servers is not None else [])])
    names = {tool.name for tool in box.tools}
    for name in allow:
        if name != "all" and name not in names:
            raise UsageError(f"--allow {name} is none of the tools.", f"They are: {', '.join(sorted(names)) or 'none'}.")
    if "all" in allow:
        return box
    asked = names - set(allow)
    terminal = sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()
    if asked and not terminal:
        raise UsageError(f"There is no terminal to ask on before {min(asked)} runs.", f"Allow it: --allow {min(asked)}")
    return replace(box, approve=Asker(names - asked) if terminal else frozenset(names))


@contextmanager
def tools_of(
    specs: Sequence[str], config: str | None, allow: Collection[str], output: Output, *, partial: bool
) -> Iterator[tuple[Toolbox, Servers | None]]:
    """The tools of the flags, and the MCP servers of `config`, which run while the block does.

    A server that does not start is an error, or with `partial` a note. Raises as `toolbox_of` and `localgemma.mcp` do.
    """
    if config is None:
        yield toolbox_of(specs, allow), None
        return
    from localgemma import runtime

    with runtime.mcp(config, partial=partial) as servers:
        box = toolbox_of(specs, allow, servers)
        for note in (*servers.notes, *servers.news(), *(str(each.error) for each in servers.servers if each.error)):
            output.note(note)
        yield box, servers


def listed(box: Toolbox, servers: Servers | None) -> str:
    """All tools with what they do, those of MCP servers below their server and its state."""
    theirs = {tool.name for tool in servers.tools()} if servers is not None else set()
    lines = [_line(tool) for tool in box.tools if tool.name not in theirs]
    for server in servers.servers if servers is not None else ():
        why = f": {server.error.message}" if server.error is not None else ""
        lines.append(f"{server.name} ({server.config}), {server.state}{why}")
        lines += [f"  {_line(tool)}" for tool in server.tools]
    return "\n".join(lines) or "There are no tools. Start with --tool MODULE:FUNCTION or --mcp CONFIG."


def _line(tool: Tool) -> str:
    about = " ".join(str(tool.declaration["function"].get("description", "")).split())
    return f"{tool.name}  {about if len(about) <= _ABOUT else about[:_ABOUT] + '…'}".rstrip()


class Asker:
    """Asks before each call of a tool that is not yet allowed; "a" allows a tool for the rest of the chat."""

    def __init__(self, allowed: Collection[str], read: Callable[[], str] = lambda: sys.stdin.readline()) -> None:
        self._allowed = set(allowed)
        self._read = read

    def __call__(self, call: ToolCall) -> bool:
        """Whether the call may run. Raises Cancelled at Ctrl-C and at the end of input."""
        if call.name in self._allowed:
            return True
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            while True:
                click.echo(f"Run {clean(call_line(call))}? [y]es, [n]o, [a]lways: ", nl=False, err=True)
                line = self._read()
                answer = line.strip().lower()
                if not line:
                    raise KeyboardInterrupt
                if answer in ("a", "always"):
                    self._allowed.add(call.name)
                if answer in ("y", "yes", "a", "always"):
                    return True
                if answer in ("n", "no"):
                    return False
        except KeyboardInterrupt:
            click.echo(err=True)  # the question's line ends here
            raise Cancelled("Cancelled.") from None
        finally:
            signal.signal(signal.SIGINT, before)


def _load(spec: str) -> Any:
    """The function that a flag names."""
    where, _, name = spec.rpartition(":")
    if not where or not name.isidentifier():
        raise UsageError(f"--tool cannot be {spec!r}.", _HOW)
    module = _module(where)
    if not hasattr(module, name):
        near = difflib.get_close_matches(name, dir(module), 1)
        raise NotFound(f"{where} has no {name}.", f"Did you mean {near[0]}?" if near else _HOW)
    return getattr(module, name)


def _module(where: str) -> ModuleType:
    """The module of this name, looked for in the current folder too, or of this file."""
    try:
        if not where.endswith(".py"):
            if (folder := str(Path.cwd())) not in sys.path:
                sys.path.insert(0, folder)
            return importlib.import_module(where)
        path = Path(where).expanduser()
        name = f"localgemma_tool_{path.stem}"  # a name of its own, that hides no other module
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None  # it has the ending of a Python file
        module = sys.modules[name] = importlib.util.module_from_spec(spec)  # where type hints are looked up
        spec.loader.exec_module(module)
        return module
    except FileNotFoundError:
        raise NotFound(f"There is no file {where}.", _HOW) from None
    except ModuleNotFoundError as error:
        raise NotFound(f"{where} cannot be imported: {error}.", _HOW) from None
    except Exception as error:
        raise UsageError(f"{where} cannot be imported ({type(error).__name__}: {error}).", "Correct it first.") from error
