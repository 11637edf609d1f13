"""Requests by HTTP: whole files and ranges, streamed, with redirects and time limits, and every error one of ours."""

from __future__ import annotations

import contextlib
import email.utils
import functools
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from localgemma import settings
from localgemma.errors import Interrupted, OfflineError, TransferError
from localgemma.options import TransferOptions
from localgemma.units import format_size

if TYPE_CHECKING:
    import httpx2

CONNECT_SECONDS = 10.0
MAX_REDIRECTS = 5


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer: `status`, `headers` with names in lower case, and `near`, the headers of the last answer of the host that was
    asked; `foreign` says that it pointed to another host, whose answer this is.
    """

    status: int
    headers: Mapping[str, str]
    near: Mapping[str, str]
    foreign: bool
    _response: httpx2.Response

    def chunks(self) -> Iterator[bytes]:
        """The body as it comes in; raises Interrupted where it ends early."""
        with translated(str(self._response.url)):
            yield from self._response.iter_raw()

    def body(self, limit: int) -> bytes:
        """The whole body; TransferError where it is longer than `limit` bytes."""
        found = bytearray()
        for chunk in self.chunks():
            found += chunk
            if len(found) > limit:
                raise TransferError(f"{self._response.url.host} sent more than {format_size(limit)}.", "Try again later.")
        return bytes(found)

    def abort(self) -> None:
        """Break the connection from another thread: whoever reads `chunks` gets Interrupted at once."""
        with contextlib.suppress(OSError, KeyError):
            self._response.extensions["network_stream"].get_extra_info("socket").shutdown(socket.SHUT_RDWR)


def require_online(what: str) -> None:
    """OfflineError, naming `what` is needed, where connections are forbidden."""
    if settings.load().offline:
        raise OfflineError(f"{what} needs the network, and offline mode forbids it.")


@contextlib.contextmanager
def get(
    url: str,
    *,
    method: str = "GET",
    span: tuple[int, int] | None = None,
    headers: Mapping[str, str] | None = None,
    silence: float | None = None,
) -> Iterator[Reply]:
    """Ask for `url`, or for the bytes of `span` (start, stop); the reply streams inside the block, whatever its status.

    Redirects are followed; an Authorization header stays with the host it was meant for. A HEAD stops at the border: an answer
    that points to another host is returned as it is. `silence` is how many seconds may pass without a byte. Raises
    OfflineError, Interrupted, TransferError.
    """
    require_online(urlsplit(url).hostname or url)
    given = {"Accept-Encoding": "identity", "User-Agent": "localgemma", **(headers or {})}
    if span is not None:
        given["Range"] = f"bytes={span[0]}-{span[1] - 1}"
    with translated(url):
        client = _client()
        request = client.build_request(method, url, headers=given, timeout=_timeout(silence))
        response = _send(client, request)
    try:
        near = [each for each in (*response.history, response) if _origin(str(each.url)) == _origin(url)][-1]
        yield Reply(response.status_code, dict(response.headers), dict(near.headers), near is not response, response)
    finally:
        with translated(url):
            response.close()


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the other side asks to wait (a number or a date), or None."""
    value = headers.get("retry-after", "").strip()
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _send(client: httpx2.Client, request: httpx2.Request) -> httpx2.Response:
    if request.method != "HEAD":
        return client.send(request, stream=True, follow_redirects=True)
    response = client.send(request, follow_redirects=False)
    for _ in range(MAX_REDIRECTS):
        after = response.next_request
        if after is None or _origin(str(after.url)) != _origin(str(request.url)):
            return response
        response = client.send(after, follow_redirects=False)
    raise TransferError(f"{request.url.host} redirects in circles.", "Check HF_ENDPOINT, or try again later.")


@functools.cache
def _client() -> httpx2.Client:
    import httpx2

    try:
        return httpx2.Client(max_redirects=MAX_REDIRECTS)
    except ValueError as error:
        raise TransferError(f"The proxy settings cannot be used: {error}.", "Check HTTPS_PROXY and HTTP_PROXY.") from error


def _timeout(silence: float | None) -> httpx2.Timeout:
    import httpx2

    silence = TransferOptions().silence if silence is None else silence
    return httpx2.Timeout(silence, connect=min(silence, CONNECT_SECONDS))


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or {"http": 80, "https": 443}.get(parts.scheme)


@contextlib.contextmanager
def translated(url: str) -> Iterator[None]:
    """Every error of the HTTP libraries becomes one of ours."""
    import httpcore2
    import httpx2

    host = urlsplit(url).hostname or url
    try:
        yield
    except (httpx2.TimeoutException, httpcore2.TimeoutException) as error:
        raise Interrupted(f"{host} did not answer in time.") from error
    except (httpx2.TooManyRedirects, httpx2.InvalidURL, httpx2.UnsupportedProtocol, httpcore2.UnsupportedProtocol) as error:
        raise TransferError(f"{url[:200]!r} cannot be fetched: {error}.", "Check the address (and HF_ENDPOINT).") from error
    except (httpx2.TransportError, httpcore2.NetworkError, httpcore2.ProtocolError, UnicodeError) as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            hint = "Check the clock and the proxy; SSL_CERT_FILE names certificates of your own."
            raise TransferError(f"The certificate of {host} is not trusted.", hint) from error
        raise Interrupted(f"The connection to {host} failed: {str(error) or type(error).__name__}.") from error
