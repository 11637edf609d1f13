"""The servers of one configuration: started together, spoken with from any thread, and all gone at the end."""

from __future__ import annotations

import atexit
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import ExitStack
from types import TracebackType
from typing import Any

from anyio.from_thread import start_blocking_portal

from localgemma import settings
from localgemma.chat.functions import Tool
from localgemma.chat.mcp.config import Config
from localgemma.chat.mcp.guard import Guard
from localgemma.chat.mcp.server import Server
from localgemma.chat.results import ToolFailed
from localgemma.chat.tool_loop import RUNNING
from localgemma.errors import LocalgemmaError, NotFound
from localgemma.options import ServerLimits


class Servers:
    """Running MCP servers, a source of tools for `tools=`. A context manager; `close` ends them.

    A server that ended is started again by the next call of one of its tools. What `tools` gives changes where a server says
    so; a conversation takes the change up before its next turn.
    """

    def __init__(self, configs: Sequence[Config], limits: ServerLimits | None = None, notes: Sequence[str] = ()) -> None:
        self.notes = tuple(notes)  # what of the configuration has no effect
        if logging.getLogger("mcp").level == logging.NOTSET and settings.load().log_level not in ("debug", "info"):
            logging.getLogger("mcp").setLevel(logging.CRITICAL)  # it prints tracebacks for what is an answer here
        self._guard = Guard()
        self._stack = ExitStack()
        self._portal = self._stack.enter_context(start_blocking_portal("asyncio", name="mcp"))
        atexit.register(self.close)
        self._servers = {
            config.name: Server(config, self._guard, limits or ServerLimits(), self._runner(config.name)) for config in configs
        }
        self._closed = False

    def start(self) -> list[LocalgemmaError]:
        """Start all of them at once, and wait; what kept some of them from it."""
        try:
            return [error for each in [self._submit(s.start) for s in self.servers] if (error := _failure(each))]
        except BaseException:  # Ctrl-C while they start
            self.close()
            raise

    @property
    def servers(self) -> tuple[Server, ...]:
        """Each with its name, state, error and tools."""
        return tuple(self._servers.values())

    def tools(self) -> tuple[Tool, ...]:
        """What all of them offer now, with names `SERVER__TOOL`; a list that is being fetched is waited for."""
        if not self._closed:
            for each in [self._submit(server.settled) for server in self.servers]:
                each.result()
        return tuple(tool for server in self.servers for tool in server.tools)

    def news(self) -> list[str]:
        """What is to be said once about them: tools that were left out, and lists that did not come."""
        said = [note for server in self.servers for note in server.notes]
        for server in self.servers:
            server.notes.clear()
        return said

    def restart(self, name: str) -> None:
        """Stop a server and start it again. Raises NotFound for a name that none has, and what keeps it from starting."""
        server = self._servers.get(name)
        if server is None:
            raise NotFound(f"There is no MCP server {name[:80]}.", f"The names are: {', '.join(self._servers)}.")
        self._submit(server.stop).result()
        self._submit(server.start).result()

    def close(self) -> None:
        """End every server and wait until it is gone; what is not gone after that is killed."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        for each in [self._submit(server.stop) for server in self.servers]:
            each.result()
        self._stack.close()
        self._guard.close()

    def __enter__(self) -> Servers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        return self._portal.start_task_soon(work, *arguments)

    def _runner(self, name: str) -> Callable[[str, dict[str, Any]], Any]:
        """What runs the calls of one server's tools, in the thread of the call; stopping that stops the call at the server."""

        def run(tool: str, arguments: dict[str, Any]) -> Any:
            if self._closed:
                raise ToolFailed(f"The MCP server {name} was closed.")
            token = RUNNING.get()
            future = self._submit(self._servers[name].call, tool, arguments)

            def stop() -> None:
                future.cancel()

            if token is not None:
                token.watch(stop)
            try:
                return future.result()
            except CancelledError:
                raise ToolFailed("The call was stopped.") from None
            finally:
                if token is not None:
                    token.watch(None)

        return run


def _failure(future: Future[Any]) -> LocalgemmaError | None:
    try:
        future.result()
    except LocalgemmaError as error:
        return error
    return None
