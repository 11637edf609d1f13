"""One MCP server as a task of the event loop: started, spoken with, started again where it ended, and stopped."""

from __future__ import annotations

import contextlib
import logging
from asyncio import Task, get_running_loop
from collections.abc import AsyncGenerator
from typing import Any, Literal

import anyio
import mcp.types as types
from mcp import MCPError
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.client.subscriptions import ListenNotSupportedError, SubscriptionLost

from localgemma import __version__
from localgemma.chat.functions import Tool
from localgemma.chat.mcp.config import Address, Config
from localgemma.chat.mcp.guard import Guard
from localgemma.chat.mcp.offers import tools_of
from localgemma.chat.mcp.process import Running
from localgemma.chat.mcp.results import value_of
from localgemma.chat.results import ToolFailed
from localgemma.errors import LocalgemmaError, ToolServerError
from localgemma.options import ServerLimits

State = Literal["starting", "running", "ended"]
_log = logging.getLogger(__name__)
_PAGES = 100  # of a list of tools
_NO_SESSION = "Session terminated"  # what the mcp package makes of 404: the server was started anew and knows us no more
_NEXT = "Check its entry in the configuration."


class Server:
    """A server's state and tools. Its methods run in the event loop, its attributes may be read from any thread."""

    def __init__(self, config: Config, guard: Guard, limits: ServerLimits, call: Any) -> None:
        self.config, self.name = config, config.name
        self.state: State = "ended"
        self.error: LocalgemmaError | None = None  # why it is not running
        self.tools: tuple[Tool, ...] = ()
        self.notes: list[str] = []  # what is to be said about it once
        self._guard, self._limits, self._call = guard, limits, call
        self._client: Client | None = None
        self._running: Running | None = None
        self._task: Task[None] | None = None
        self._calls: set[anyio.CancelScope] = set()
        self._lock = anyio.Lock()  # one start or stop at a time
        self._listing = anyio.Lock()
        self._end = anyio.Event()

    async def start(self) -> None:
        """Start or connect, and list the tools. Raises a LocalgemmaError; `error` keeps it."""
        async with self._lock:
            if self.state != "running":
                await self._halt()
                await self._start()

    async def stop(self) -> None:
        """End the connection, and the process if there is one; a start under way ends too."""
        self._end.set()
        async with self._lock:
            await self._halt()

    async def call(self, tool: str, arguments: dict[str, Any]) -> Any:
        """Run a tool by the server's own name for it; a server that ended is started first. Raises ToolFailed."""
        for last in (False, True):
            try:
                await self.start()
            except LocalgemmaError as error:
                raise ToolFailed(error.message) from None
            try:
                return value_of(await self._request(tool, arguments))
            except MCPError as error:
                if last or error.message != _NO_SESSION:
                    raise ToolFailed(error.message) from None
                await self.stop()  # it read nothing of the call, which may be made again
        raise AssertionError("the last attempt returns or raises")

    async def settled(self) -> None:
        """Wait until a list of tools that is being fetched is here."""
        async with self._listing:
            pass

    async def _start(self) -> None:
        self.state, self.error, self._end = "starting", None, anyio.Event()
        started = anyio.Event()
        self._task = get_running_loop().create_task(self._run(started), name=f"mcp {self.name}")
        with anyio.move_on_after(self._limits.start_seconds):
            await started.wait()
        if not started.is_set():
            words = self._running.last_words() if self._running is not None else ""
            await self._halt()
            seconds = f"{self._limits.start_seconds:g} seconds"
            self.error = ToolServerError(_sentence(f"The MCP server {self.name} was not ready after {seconds}", words), _NEXT)
        elif self.error is None and self._client is None:
            self.error = ToolServerError(f"The MCP server {self.name} was stopped.", "Start it again.")
        if self.error is not None:
            raise self.error

    async def _halt(self) -> None:
        self._end.set()
        if self._task is not None:
            while not self._task.done():  # its own clean-up is bounded, and must not be cut off
                await anyio.sleep(0.01)
            self._task = None
        self.state = "ended"

    async def _run(self, started: anyio.Event) -> None:
        """The server's life. However it ends, the calls under way end with it."""
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._live, started, group.cancel_scope)
                await self._end.wait()
                group.cancel_scope.cancel()
        except BaseException as error:
            self.error = self._explained(error)
            _log.info("%s: %r", self.name, error)
        if self.error is None and self._running is not None and self._running.ended.is_set():
            self.error = self._ended()
        self.state, self._client = "ended", None
        for scope in list(self._calls):
            scope.cancel()
        started.set()

    async def _live(self, started: anyio.Event, whole: anyio.CancelScope) -> None:
        async with self._connected() as client:
            self._client = client
            await self._list()
            self.state = "running"
            started.set()
            async with anyio.create_task_group() as group:
                group.start_soon(self._watch_tools, client)
                if self._running is not None:
                    await self._running.ended.wait()
                else:
                    await anyio.sleep_forever()
                group.cancel_scope.cancel()
        whole.cancel()

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncGenerator[Client]:
        info = types.Implementation(name="localgemma", version=__version__)
        async with contextlib.AsyncExitStack() as stack:
            if isinstance(self.config, Address):
                from localgemma.net.tool_server import tool_client

                limit = self._limits.message_bytes
                http = await stack.enter_async_context(tool_client(self.config.url, self.config.headers, limit))
                transport: Any = streamable_http_client(self.config.url, http_client=http, max_sse_event_size=limit)
            else:
                self._running = Running(self.config, self._guard, self._limits)
                transport = self._running.connect()
            client = Client(transport, client_info=info, message_handler=self._heard, cache=None)
            yield await stack.enter_async_context(client)

    async def _list(self) -> None:
        """Fetch the tools that it offers, all pages."""
        assert self._client is not None
        async with self._listing:
            found: list[types.Tool] = []
            cursor: str | None = None
            for _ in range(_PAGES):
                page = await self._client.list_tools(cursor=cursor)
                found += page.tools
                if (cursor := page.next_cursor) is None or len(found) > self._limits.tools:
                    break
            self.tools, notes = tools_of(self.name, found, self._call, self._limits)
            self.notes += [note for note in notes if note not in self.notes]

    async def _heard(self, message: Any) -> None:
        """A server of the earlier protocol says that its tools changed."""
        if isinstance(message, types.ToolListChangedNotification) and self._client is not None:
            await self._list_again()

    async def _watch_tools(self, client: Client) -> None:
        """The same for the protocol of 2026, where a client asks to be told."""
        try:
            async with client.listen(tools_list_changed=True) as changes:
                async for _ in changes:
                    await self._list_again()
        except (ListenNotSupportedError, SubscriptionLost, MCPError, TimeoutError) as error:
            _log.info("%s: changes of tools are not told: %s", self.name, error)

    async def _list_again(self) -> None:
        try:
            await self._list()
        except (MCPError, ValueError) as error:
            self.notes.append(f"The MCP server {self.name} changed its tools, but does not list them: {_line(error)}.")

    async def _request(self, tool: str, arguments: dict[str, Any]) -> types.CallToolResult:
        """Make one call; it ends with the server at the latest."""
        assert self._client is not None
        request = types.CallToolRequest(params=types.CallToolRequestParams(name=tool, arguments=arguments))
        scope = anyio.CancelScope()
        self._calls.add(scope)
        try:
            with scope:
                return await self._client.session.send_request(request, types.CallToolResult)
        except MCPError:
            if not await self._ends():
                raise
        except ValueError as error:
            raise ToolFailed(f"The MCP server {self.name} answered what is no result: {_line(error)}.") from None
        finally:
            self._calls.discard(scope)
        await self._ends()
        raise ToolFailed((self.error or self._ended()).message + " It is started again for the next call.")

    async def _ends(self) -> bool:
        """Whether the server is ending, after a moment for the news of it to arrive."""
        if self._running is not None and not self._running.ended.is_set():
            return False
        with anyio.move_on_after(self._limits.stop_seconds * 2 if self._running is not None else 0.2):
            while self.state == "running":
                await anyio.sleep(0.01)
        return self.state != "running"

    def _ended(self) -> ToolServerError:
        words = self._running.last_words() if self._running is not None else ""
        return ToolServerError(_sentence(f"The MCP server {self.name} ended", words), _NEXT)

    def _explained(self, error: BaseException) -> LocalgemmaError:
        """Why it could not be started, or ended."""
        while isinstance(error, BaseExceptionGroup):
            error = next((each for each in error.exceptions if isinstance(each, LocalgemmaError)), error.exceptions[0])
        if isinstance(error, LocalgemmaError):
            return error
        if self._running is not None and self._running.ended.is_set():
            return self._ended()
        where = f" at {self.config}" if isinstance(self.config, Address) else ""
        return ToolServerError(f"The MCP server {self.name}{where} cannot be used: {_line(error)}.", _NEXT)


def _line(error: BaseException) -> str:
    return (" ".join(str(error).split())[:300] or type(error).__name__).rstrip(".")


def _sentence(text: str, words: str) -> str:
    return f"{text} ({words})." if words else f"{text}."
