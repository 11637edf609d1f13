"""Connections: none where offline is promised, every failure one of our errors, and no picture from the local network."""

from __future__ import annotations

import inspect
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate

import httpcore2
import httpx2
import pytest
from standin_hub import Fault, Hub

from localgemma import net
from localgemma.errors import BadMedia, LocalgemmaError, NotFound, OfflineError, TransferError
from localgemma.net import http, picture


@contextmanager
def server(answer: bytes, *, pause: float = 0, hold: float = 0) -> Iterator[str]:
    """Something on 127.0.0.1 that answers everyone with these bytes, `pause` seconds between two, and then waits to close."""
    closing = threading.Event()

    def talk(connection: socket.socket) -> None:
        with connection:
            connection.recv(65536)
            try:
                for start in range(0, len(answer), 1 if pause else len(answer) or 1):
                    connection.sendall(answer[start : start + (1 if pause else len(answer))])
                    closing.wait(pause)
                closing.wait(hold)
            except OSError:
                pass

    def listen() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=talk, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=listen, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/x"
        closing.set()


def fetched(url: str, **more: object) -> bytes:
    with net.get(url, **more) as reply:  # type: ignore[arg-type]
        return reply.body(1 << 20)


@pytest.mark.parametrize("variable", ["LOCALGEMMA_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_opens_no_socket(hub: Hub, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "1")
    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(f"socket.{name}", lambda *_, **__: pytest.fail("a socket"))
    with pytest.raises(OfflineError, match=r"127\.0\.0\.1"), net.get(hub.url):
        pass
    with pytest.raises(OfflineError):
        net.fetch_picture("https://example.org/a.png")


def test_a_range_and_its_headers(hub: Hub) -> None:
    hub.add("o/n", "f", bytes(range(100)))
    with net.get(f"{hub.url}/o/n/resolve/main/f", span=(10, 20)) as reply:
        assert reply.status == 206 and reply.body(10) == bytes(range(10, 20))
        assert reply.headers["content-range"] == "bytes 10-19/100"
        assert reply.foreign and "x-linked-etag" in reply.near and "x-linked-etag" not in reply.headers
    with net.get(f"{hub.url}/o/n/resolve/main/f") as reply, pytest.raises(TransferError, match="more than 99 B"):
        reply.body(99)


def test_the_authorization_stays_with_the_host_it_was_meant_for(hub: Hub) -> None:
    hub.add("o/n", "f", b"x")
    with net.get(f"{hub.url}/o/n/resolve/main/f", headers={"Authorization": "Bearer t"}) as reply:
        reply.body(1)
    assert [(each.host, each.headers.get("Authorization")) for each in hub.requests] == [("hub", "Bearer t"), ("store", None)]


def test_head_stops_at_the_border(hub: Hub) -> None:
    hub.add("o/n", "f", b"x")
    with net.get(f"{hub.url}/o/n/resolve/main/f", method="HEAD") as reply:
        assert reply.status == 302 and not reply.foreign and reply.headers["x-linked-size"] == "1"
    assert {each.host for each in hub.requests} == {"hub"}


def test_head_follows_redirects_of_the_same_host_but_not_in_circles() -> None:
    answer = b"HTTP/1.1 307 x\r\nLocation: /y\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    with server(answer) as url, pytest.raises(TransferError, match="circles"), net.get(url, method="HEAD"):
        pass


@pytest.mark.parametrize(
    ("answer", "hold", "error", "says"),
    [
        (b"", 0, net.Interrupted, "failed"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n123", 0, net.Interrupted, "failed"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n123", 9, net.Interrupted, "in time"),
        (b"", 9, net.Interrupted, "in time"),
        (b"nonsense\r\n\r\n", 0, net.Interrupted, "failed"),
        (
            b"HTTP/1.1 302 Found\r\nLocation: /x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
            0,
            TransferError,
            "cannot be fetched",
        ),
        (b"HTTP/1.1 302 Found\r\nLocation: ftp://x/\r\nContent-Length: 0\r\n\r\n", 0, TransferError, "cannot be fetched"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://[/\r\nContent-Length: 0\r\n\r\n", 0, TransferError, "failed"),
    ],
)
def test_what_a_server_does_wrong_is_one_of_our_errors(answer: bytes, hold: float, error: type[Exception], says: str) -> None:
    with server(answer, hold=hold) as url, pytest.raises(error, match=says) as raised:
        fetched(url, silence=0.3)
    assert isinstance(raised.value, LocalgemmaError) and raised.value.hint


def test_a_host_that_is_not_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(net.Interrupted, match="failed"):
        fetched(f"http://127.0.0.1:{port}/")


def library_errors() -> list[Exception]:
    """One of every error that the HTTP libraries can raise while a request is under way."""
    found: list[Exception] = []
    for module, bases in ((httpx2, (httpx2.TransportError, httpx2.InvalidURL, httpx2.TooManyRedirects)),
                          (httpcore2, (httpcore2.TimeoutException, httpcore2.NetworkError, httpcore2.ProtocolError,
                                       httpcore2.UnsupportedProtocol))):  # fmt: skip
        found += [value("what") for value in vars(module).values() if inspect.isclass(value) and issubclass(value, bases)]
    return found


@pytest.mark.parametrize("error", library_errors(), ids=lambda error: f"{type(error).__module__}-{type(error).__name__}")
def test_no_error_of_the_libraries_gets_through(error: Exception) -> None:
    with pytest.raises(TransferError), http.translated("https://example.org/"):
        raise error


def test_a_certificate_that_is_not_trusted_is_not_tried_again() -> None:
    with pytest.raises(TransferError, match="certificate") as raised, http.translated("https://example.org/"):
        raise httpx2.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed")
    assert not isinstance(raised.value, net.Interrupted)


def test_an_abort_from_another_thread_ends_a_silent_answer() -> None:
    with server(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n123", hold=30) as url, net.get(url) as reply:
        threading.Timer(0.2, reply.abort).start()
        began = time.monotonic()
        with pytest.raises(net.Interrupted):
            reply.body(9)
        assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("7", 7), ("0.5", 0.5), ("-3", 0), ("", None), ("soon", None), (formatdate(0, usegmt=True), 0), ("inf", float("inf"))],
)
def test_retry_after(value: str, seconds: float | None) -> None:
    assert net.retry_after({"retry-after": value}) == seconds


def test_retry_after_a_date() -> None:
    found = net.retry_after({"retry-after": formatdate(time.time() + 60, usegmt=True)})
    assert found is not None and 55 < found <= 60


# ------------------------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize(
    ("address", "public"),
    [
        *((address, True) for address in ("8.8.8.8", "2001:4860:4860::8888", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8")),
        *(
            (address, False)
            for address in ("127.0.0.1", "127.9.9.9", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254")
        ),
        *(
            (address, False)
            for address in ("100.64.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255", "240.0.0.1", "198.18.0.1")
        ),
        *((address, False) for address in ("::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fec0::1", "ff02::1")),
        *((address, False) for address in ("::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::10.0.0.1", "2002:a00:1::")),
    ],
)
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert picture.is_public(address) == public


REFUSED = [
    *(
        "file:///etc/passwd",
        "http://example.org/a.png",
        "ftp://example.org/a",
        "data:image/png;base64,AA",
        "//example.org/a",
        "",
    ),
    *("https://", "https://user:secret@example.org/a", "https://127.0.0.1/a", "https://localhost/a", "https://[::1]/a"),
    *(
        "https://2130706433/",
        "https://0x7f000001/",
        "https://127.1/",
        "https://169.254.169.254/latest/meta-data/",
        "https://[::ffff:7f00:1]/",
    ),
]


@pytest.mark.parametrize("url", REFUSED)
def test_addresses_that_are_no_public_pictures_are_refused(url: str) -> None:
    with pytest.raises(BadMedia):
        net.fetch_picture(url)


def test_a_picture_comes_as_bytes(hub: Hub) -> None:
    hub.add("o/n", "my picture.png", b"pixels")
    url = f"{hub.url}/o/n/resolve/main/my picture.png"  # the stand-in redirects to its second host
    assert net.fetch_picture(url, allow_local=True) == b"pixels"
    with pytest.raises(BadMedia):
        net.fetch_picture(url)
    with pytest.raises(NotFound):
        net.fetch_picture(f"{hub.url}/o/n/resolve/main/other.png", allow_local=True)
    hub.fault(Fault("status", status=500))
    with pytest.raises(TransferError):
        net.fetch_picture(url, allow_local=True)
    hub.fault(Fault("cut", at=3))
    with pytest.raises(net.Interrupted):
        net.fetch_picture(url, allow_local=True)


@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "http://10.0.0.1/a", "https://10.0.0.1/a", "http://example.org/", "/x", ""]
)
def test_a_redirect_is_checked_like_the_address(target: str) -> None:
    with (
        server(f"HTTP/1.1 302 Found\r\nLocation: {target}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".encode()) as url,
        pytest.raises(BadMedia),
    ):
        net.fetch_picture(url, allow_local=True)


@pytest.mark.parametrize("found", [["10.0.0.1"], ["8.8.8.8", "10.0.0.1"], ["::1", "2001:4860:4860::8888"]])
def test_a_name_is_judged_by_every_address_it_stands_for(monkeypatch: pytest.MonkeyPatch, found: list[str]) -> None:
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: [(0, 0, 0, "", (address, 443)) for address in found])
    monkeypatch.setattr("socket.create_connection", lambda *_, **__: pytest.fail("connected"))
    with pytest.raises(BadMedia, match="local network"):
        net.fetch_picture("https://example.org/a.png")


def test_the_address_that_was_checked_is_the_one_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    connected: list[object] = []

    def look_up(host: str, *_: object, **__: object) -> list[tuple[object, ...]]:
        asked.append(host)
        return [(0, 0, 0, "", ("8.8.8.8", 443))]

    def connect(address: object, *_: object, **__: object) -> None:
        connected.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr("socket.getaddrinfo", look_up)
    monkeypatch.setattr("socket.create_connection", connect)
    with pytest.raises(net.Interrupted):
        net.fetch_picture("https://example.org/a.png")
    assert asked == ["example.org"] and connected == [("8.8.8.8", 443)]


@pytest.mark.parametrize("length", [True, False])
def test_a_picture_has_a_largest_size(monkeypatch: pytest.MonkeyPatch, length: bool) -> None:
    monkeypatch.setattr(picture, "MAX_BYTES", 1000)
    head = b"HTTP/1.1 200 OK\r\n" + (b"Content-Length: 1001\r\n" if length else b"Connection: close\r\n") + b"\r\n"
    with server(head + bytes(1001)) as url, pytest.raises(BadMedia, match="larger than 1000 B"):
        net.fetch_picture(url, allow_local=True)


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n" + bytes(999), b"HTTP/1.1 200 OK\r\nX: " + b"x" * 999]
)
def test_a_host_that_trickles_is_left_in_time(monkeypatch: pytest.MonkeyPatch, answer: bytes) -> None:
    monkeypatch.setattr(picture, "MAX_SECONDS", 0.5)
    began = time.monotonic()
    with server(answer, pause=0.02) as url, pytest.raises(net.Interrupted):
        net.fetch_picture(url, allow_local=True)
    assert time.monotonic() - began < 3
