"""Pictures from the web: for addresses that a person or a document hands over, and never from the local network."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import threading
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urljoin, urlsplit

from localgemma.errors import BadMedia, Interrupted, NotFound, TransferError
from localgemma.net.http import CONNECT_SECONDS, MAX_REDIRECTS, require_online, translated
from localgemma.units import MIB, format_size

if TYPE_CHECKING:
    import httpcore2

MAX_BYTES, MAX_SECONDS = 50 * MIB, 30.0
_TIMEOUTS = {"timeout": dict.fromkeys(("connect", "read", "write", "pool"), CONNECT_SECONDS)}
_HEADERS = ((b"User-Agent", b"localgemma"), (b"Accept", b"image/*, */*;q=0.5"), (b"Accept-Encoding", b"identity"))
_REDIRECTS = (301, 302, 303, 307, 308)
_HINT = "Download the picture and give its path."


def fetch_picture(url: str, *, allow_local: bool = False) -> bytes:
    """The bytes behind an https address on the public network: at most 50 MiB, 30 seconds and 5 redirects.

    Every address that a name stands for is checked before it is connected to, redirects too, so no document can make this
    process read the local network. Proxies are not used: they would look names up themselves. `allow_local` is for tests: it
    admits this machine alone, also by http. Raises BadMedia, NotFound, OfflineError, TransferError.
    """
    import httpcore2

    require_online("A picture's web address")
    guard = _Guard(allow_local)
    backend = cast("httpcore2.NetworkBackend", guard)
    timer = threading.Timer(MAX_SECONDS, guard.hang_up)  # a host that trickles keeps every timeout of a single read
    timer.start()
    try:
        with translated(url), httpcore2.ConnectionPool(network_backend=backend) as pool:
            for _ in range(MAX_REDIRECTS + 1):
                target = _checked_address(url, allow_local)
                with pool.stream("GET", target, headers=_HEADERS, extensions=_TIMEOUTS) as response:
                    found = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
                    if response.status not in _REDIRECTS:
                        return _picture_body(url, response, found)
                url = urljoin(url, found.get("location", ""))
    finally:
        timer.cancel()
        guard.forget()
    raise BadMedia("The picture's address redirects in circles.", _HINT)


def _checked_address(url: str, allow_local: bool) -> httpcore2.URL:
    """The address, if its form is one that may be fetched."""
    import httpcore2
    import httpx2

    try:
        parts = httpx2.URL(url)
    except (httpx2.InvalidURL, UnicodeError) as error:
        raise BadMedia(f"{url[:200]!r} is not a web address: {error}.", "Give it as https://host/path.") from error
    local = allow_local and parts.scheme == "http" and parts.host in ("127.0.0.1", "localhost")
    if not parts.host or parts.userinfo or not (parts.scheme == "https" or local):
        raise BadMedia(f"{url[:200]!r} is not an https address of a picture.", _HINT)
    return httpcore2.URL(scheme=parts.raw_scheme, host=parts.raw_host, port=parts.port, target=parts.raw_path)


def _picture_body(url: str, response: httpcore2.Response, headers: Mapping[str, str]) -> bytes:
    host = urlsplit(url).hostname
    if response.status == 404:
        raise NotFound(f"There is no picture at {url[:200]}.", "Check the address.")
    if response.status != 200:
        raise TransferError(f"{host} answered {response.status}, not a picture.", _HINT)
    limit = BadMedia(f"The picture at {host} is larger than {format_size(MAX_BYTES)}.", "Give a smaller one.")
    length = headers.get("content-length", "")
    if length.isdecimal() and int(length) > MAX_BYTES:
        raise limit
    found = bytearray()
    for chunk in response.iter_stream():
        found += chunk
        if len(found) > MAX_BYTES:
            raise limit
    return bytes(found)


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public network, also where it is written inside an IPv6 address."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is None and ip in ipaddress.IPv6Network("64:ff9b::/96"):  # NAT64, RFC 6052
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    if isinstance(ip, ipaddress.IPv6Address) and ip.is_site_local:
        return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


class _Guard:
    """httpcore's network backend that looks a name up once and connects to an address that passed, so that a second look-up
    cannot give another."""

    def __init__(self, allow_local: bool) -> None:
        self._allow_local = allow_local
        self._sockets: list[socket.socket] = []

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.NetworkStream:
        """A connection to `host`; BadMedia where any of its addresses is not of the public network."""
        import httpcore2

        try:
            found = [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
        except OSError as error:
            raise Interrupted(f"The host {host} was not found: {error.strerror or error}.") from error
        if not all(is_public(address) or (self._allow_local and _is_loopback(address)) for address in found):
            raise BadMedia(f"{host} is an address of a local network, which pictures are not fetched from.", _HINT)
        stream = httpcore2.SyncBackend().connect_tcp(found[0], port, timeout, local_address, socket_options)
        self._sockets.append(stream.get_extra_info("socket").dup())  # TLS takes the original away
        return stream

    def hang_up(self) -> None:
        """Break every connection, from another thread."""
        for each in list(self._sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def forget(self) -> None:
        """Close what this object holds."""
        for each in self._sockets:
            each.close()


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def is_loopback_name(host: str) -> bool:
    """Whether a host's name or address is this machine's own, as far as the name alone tells."""
    try:
        return host.lower() == "localhost" or _is_loopback(host)
    except ValueError:
        return False
