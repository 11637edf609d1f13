"""One JSON question to an API and its answer, whole: the offline promise, no redirects, a limit on what comes back."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from localgemma.errors import TransferError
from localgemma.net.http import CONNECT_SECONDS, require_online, translated
from localgemma.net.picture import is_loopback_name
from localgemma.units import format_size

if TYPE_CHECKING:
    import httpx2


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: `status`, `headers` with names in lower case, and the whole body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def post(url: str, question: Any, *, key: str | None, limit: int, silence: float) -> Answer:
    """Send `question` as JSON, with `key` as bearer token; the answer, whatever its status.

    `silence` is how many seconds may pass without a byte, `limit` how many bytes may come. A redirect is an error, since the
    key and the question are for this host alone. Raises OfflineError, Interrupted, TransferError.
    """
    host = urlsplit(url).hostname or url
    require_online(host)
    import httpx2

    headers = {"Accept-Encoding": "identity", "User-Agent": "localgemma", "Content-Type": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    found = bytearray()
    with translated(url):
        timeout = httpx2.Timeout(silence, connect=min(silence, CONNECT_SECONDS))
        data = json.dumps(question).encode()
        with _client(is_loopback_name(host)).stream("POST", url, content=data, headers=headers, timeout=timeout) as response:
            if response.is_redirect:
                raise TransferError(f"{host} points to another address.", "Give the address that it points to.")
            for chunk in response.iter_raw():
                found += chunk
                if len(found) > limit:
                    raise TransferError(f"{host} sent more than {format_size(limit)}.", "Check the address.")
            return Answer(response.status_code, dict(response.headers), bytes(found))


@functools.cache
def _client(near: bool) -> httpx2.Client:
    """Proxies are for other machines only."""
    import httpx2

    try:
        return httpx2.Client(follow_redirects=False, trust_env=not near)
    except ValueError as error:
        raise TransferError(f"The proxy settings cannot be used: {error}.", "Check HTTPS_PROXY and HTTP_PROXY.") from error
