"""MCP over a server's input and output: one JSON message a line, each bounded, its stderr kept apart.

The transport of the `mcp` package holds a line of any length and shows the server's stderr on the terminal; this one drops a
line that is too long, answers the calls that wait for it with an error, and keeps the last words of stderr for error messages.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any

import anyio
import mcp.types as types
from mcp.client.stdio import get_default_environment
from mcp.shared.message import SessionMessage

from localgemma import settings
from localgemma.chat.mcp.config import Command
from localgemma.chat.mcp.guard import Guard
from localgemma.errors import NotFound, ToolServerError
from localgemma.options import ServerLimits
from localgemma.units import format_size

if TYPE_CHECKING:
    from anyio.abc import Process
    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

    Incoming = SessionMessage | Exception
    Streams = tuple[MemoryObjectReceiveStream[Incoming], MemoryObjectSendStream[SessionMessage]]

_log = logging.getLogger(__name__)
_WORDS = 4000  # bytes of stderr that are kept
TOO_LONG = -32099  # JSON-RPC leaves -32000 to -32099 to implementations


class Running:
    """One run of a server's process."""

    def __init__(self, server: Command, guard: Guard, limits: ServerLimits) -> None:
        self._server, self._guard, self._limits = server, guard, limits
        self._words = b""
        self._asked: set[str | int] = set()  # requests that wait for an answer
        self._process: Process | None = None
        self._stopping = False
        self.ended = anyio.Event()  # by itself

    def last_words(self) -> str:
        """How the process ended, if it did, and the last line of its stderr."""
        code = self._process.returncode if self._process is not None else None
        lines = [line.strip() for line in self._words.decode("utf-8", "replace").splitlines() if line.strip()]
        how = [] if code is None else [f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"]
        return ": ".join([*how, *(line[:300] for line in lines[-1:])])

    @contextlib.asynccontextmanager
    async def connect(self) -> AsyncGenerator[Streams]:
        """Start the process and yield its streams of messages; it is gone when this ends, whatever happens."""
        process = self._process = await self._start()
        self._guard.watch(process.pid)
        to_us, incoming = anyio.create_memory_object_stream[SessionMessage | Exception](0)
        outgoing, from_us = anyio.create_memory_object_stream[SessionMessage](0)
        async with anyio.create_task_group() as group:
            group.start_soon(self._listen, process, to_us)
            group.start_soon(self._overhear, process)
            group.start_soon(self._speak, process, from_us, to_us)
            try:
                yield incoming, outgoing
            finally:
                with anyio.CancelScope(shield=True):
                    incoming.close()
                    outgoing.close()
                    await self._stop(process)
                group.cancel_scope.cancel()

    async def _start(self) -> Process:
        server = self._server
        environment = {**get_default_environment(), **settings.offline_variables(), **server.env}
        program = shutil.which(server.command, path=environment.get("PATH"))
        if program is None:
            hint = "Install it, or correct `command` in the configuration."
            raise NotFound(f"There is no program {server.command[:200]!r}, which the MCP server {server.name} needs.", hint)
        try:
            if sys.platform == "win32":
                from mcp.os.win32.utilities import create_windows_process

                process: Any = await create_windows_process(program, [*server.args], environment, None, server.cwd)
                return process
            pipe = subprocess.PIPE
            return await anyio.open_process(
                [program, *server.args], stdin=pipe, stdout=pipe, stderr=pipe, env=environment, cwd=server.cwd,
                start_new_session=True,  # Ctrl-C is meant for the answer, not for the server
            )  # fmt: skip
        except (OSError, ValueError) as error:
            hint = "Correct `command` and `args` in the configuration."
            raise ToolServerError(f"The MCP server {server.name} cannot be started: {error}.", hint) from None

    async def _listen(self, process: Process, to_us: MemoryObjectSendStream[Incoming]) -> None:
        """Its output, line by line; a line beyond the limit is dropped while it comes in."""
        assert process.stdout is not None
        parts: list[bytes] = []
        size = 0
        with contextlib.suppress(anyio.ClosedResourceError, anyio.BrokenResourceError, OSError):
            async for chunk in process.stdout:
                first, *rest = chunk.split(b"\n")
                for piece, begins in ((first, False), *((each, True) for each in rest)):
                    if begins:
                        await self._take(b"".join(parts), size, to_us)
                        parts, size = [], 0
                    size += len(piece)
                    if size <= self._limits.message_bytes:
                        parts.append(piece)
                    else:
                        parts.clear()
        with contextlib.suppress(anyio.ClosedResourceError, anyio.BrokenResourceError):
            await to_us.aclose()
        self._over()

    async def _take(self, line: bytes, size: int, to_us: MemoryObjectSendStream[Incoming]) -> None:
        """One whole line: a message, too much, or words that a server should have said on its stderr."""
        if size > self._limits.message_bytes:
            text = f"The server sent {format_size(size)} at once, and {format_size(self._limits.message_bytes)} are allowed."
            data = types.ErrorData(code=TOO_LONG, message=text)
            for number in list(self._asked):
                await to_us.send(SessionMessage(types.JSONRPCError(jsonrpc="2.0", id=number, error=data)))
            self._asked.clear()
            return
        if not line.strip():
            return
        try:
            message = types.jsonrpc_message_adapter.validate_json(line, by_name=False)
        except ValueError:
            _log.info("%s: no message: %r", self._server.name, line[:200])
            return
        if isinstance(message, (types.JSONRPCResponse, types.JSONRPCError)) and message.id is not None:
            self._asked.discard(message.id)
        await to_us.send(SessionMessage(message))

    async def _overhear(self, process: Process) -> None:
        """Its stderr, of which the last words are kept."""
        with contextlib.suppress(anyio.ClosedResourceError, anyio.BrokenResourceError, OSError):
            async for chunk in process.stderr or ():  # type: ignore[union-attr]  # Windows has none
                self._words = (self._words + chunk)[-_WORDS:]
                _log.debug("%s: %s", self._server.name, chunk.decode("utf-8", "replace").rstrip())

    async def _speak(
        self,
        process: Process,
        from_us: MemoryObjectReceiveStream[SessionMessage],
        to_us: MemoryObjectSendStream[Incoming],
    ) -> None:
        """What is said to it."""
        assert process.stdin is not None
        try:
            async for outgoing in from_us:
                message = outgoing.message
                if isinstance(message, types.JSONRPCRequest) and not isinstance(message.id, str):
                    self._asked.add(message.id)  # ids of text are subscriptions, which nobody waits for
                await process.stdin.send(message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n")
        except (anyio.ClosedResourceError, anyio.BrokenResourceError, OSError):
            with contextlib.suppress(anyio.ClosedResourceError, anyio.BrokenResourceError):
                await to_us.aclose()  # a server that hears nothing answers nothing
            self._over()

    def _over(self) -> None:
        if not self._stopping:
            self.ended.set()

    async def _stop(self, process: Process) -> None:
        """Close its input, and end it and what it started if it does not go."""
        self._stopping = True
        with contextlib.suppress(OSError, anyio.BrokenResourceError, anyio.ClosedResourceError):
            if process.stdin is not None:
                await process.stdin.aclose()
        if not await _gone(process, self._limits.stop_seconds):
            self._guard.end(process.pid)
            if sys.platform == "win32":
                process.kill()
            await _gone(process, self._limits.stop_seconds)
        self._guard.forget(process.pid)
        # anyio offers no way to close the transport, which complains when it outlives the loop
        transport = getattr(getattr(process, "_process", None), "_transport", None)
        if transport is not None:
            with contextlib.suppress(PermissionError):  # Python up to 3.12 may try to kill what is gone
                transport.close()


async def _gone(process: Process, seconds: float) -> bool:
    """Whether the process ends in time; `wait` would also wait for what holds its pipes."""
    with anyio.move_on_after(seconds):
        while process.returncode is None:
            await anyio.sleep(0.01)
    return process.returncode is not None
