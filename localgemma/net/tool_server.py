"""The HTTP client through which an MCP server is spoken with: it keeps the offline promise and bounds what comes back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from urllib.parse import urlsplit

import httpx2

from localgemma.errors import AccessError, TransferError
from localgemma.net.http import CONNECT_SECONDS, require_online
from localgemma.net.picture import is_loopback_name
from localgemma.units import format_size


class TooLong(httpx2.StreamError):
    """A body beyond its limit, as an error that the `mcp` package turns into the answer to the one call."""


def tool_client(url: str, headers: Mapping[str, str], limit: int) -> httpx2.AsyncClient:
    """A client for one server. Every request, also of a reconnection, is refused with OfflineError in offline mode.

    That holds for servers on this machine too: offline mode opens no socket at all. A whole body may have `limit` bytes; of an
    event stream, which never ends, whoever reads it limits each event. Proxies are for other machines only.
    """
    host = urlsplit(url).hostname or url

    async def ask(request: httpx2.Request) -> None:
        require_online(f"The MCP server at {host}")

    async def bound(response: httpx2.Response) -> None:
        if response.status_code in (401, 403):
            hint = 'Give it what it asks for: "headers": {"Authorization": "Bearer …"}.'
            raise AccessError(f"The MCP server at {host} refuses this client ({response.status_code}).", hint)
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            raise TransferError(f"{host} sent a compressed answer that was not asked for.", "Use another MCP server.")
        if not response.headers.get("content-type", "").lower().startswith("text/event-stream"):
            assert isinstance(response.stream, httpx2.AsyncByteStream)
            response.stream = _Bounded(response.stream, limit)

    try:
        return httpx2.AsyncClient(
            headers={"User-Agent": "localgemma", **headers, "Accept-Encoding": "identity"},
            timeout=httpx2.Timeout(CONNECT_SECONDS, read=None),  # a call has a limit of its own, and events may take hours
            event_hooks={"request": [ask], "response": [bound]},
            trust_env=not is_loopback_name(host),
        )
    except ValueError as error:
        raise TransferError(f"The proxy settings cannot be used: {error}.", "Check HTTPS_PROXY and HTTP_PROXY.") from error


class _Bounded(httpx2.AsyncByteStream):
    """A body that fails when it is longer than its limit."""

    def __init__(self, inner: httpx2.AsyncByteStream, limit: int) -> None:
        self._inner, self._limit = inner, limit

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = self._limit
        async for chunk in self._inner:
            left -= len(chunk)
            if left < 0:
                raise TooLong(f"more than {format_size(self._limit)} at once")
            yield chunk

    async def aclose(self) -> None:
        """Close the connection's side."""
        await self._inner.aclose()
