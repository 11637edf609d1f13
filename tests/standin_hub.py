"""A hub on 127.0.0.1 that misbehaves on request: good enough for huggingface_hub's own client and for ranged GETs.

    with Hub() as hub:                                   # or the fixture `hub`, which also sets HF_ENDPOINT and HF_HOME
        hub.add("owner/name", "model.gguf", data)        # bytes, or the path of a file; lfs=False for a small text file
        hub.fault(Fault("cut", at=1000))                 # the next body ends after 1000 bytes, the one after is whole
        hub.served("model.gguf")                         # ranges of bytes that left this hub, in the order they began to
        hub.requests                                     # every request as Request(method, path, headers)

What can go wrong (`Fault.kind`), each for `times` requests that match `on` ("body": a GET of file bytes, "head", "api") and
`path`:

| kind | what happens |
| --- | --- |
| cut | the connection ends after `at` bytes of the body |
| wrong | the byte at place `at` of the body is flipped |
| short | the body is `at` bytes long, and its length says so |
| status | `status` is answered, with `retry_after` seconds where given |
| hang | after `at` bytes of the body nothing comes for `seconds`, then the connection ends |
| whole | the range that was asked for is ignored: status 200 and the whole file |

Standing properties: `ranges` (False: never serves ranges), `redirect` (file bytes come from a second host, another port),
`xet` (adds Xet headers), `token` (the only one accepted), `gated` repositories. `change()` replaces a file in a new commit, or
under the same commit. The server's threads are daemons and end with the block.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, quote, unquote, urlsplit

BLOCK = 1 << 16
XET_HASH = "a" * 64


@dataclass
class Fault:
    """One thing that goes wrong, `times` times."""

    kind: Literal["cut", "wrong", "short", "status", "hang", "whole"]
    at: int = 0
    status: int = 500
    retry_after: float | None = None
    seconds: float = 60.0
    on: Literal["body", "head", "api"] = "body"
    path: str = ""
    times: int = 1


@dataclass(frozen=True)
class Request:
    """A request as it came in; `path` has its query, `host` is "hub" or "store"."""

    method: str
    path: str
    headers: Mapping[str, str]
    host: str


@dataclass
class Blob:
    """A stored file: bytes in memory or on disk."""

    data: bytes | Path
    lfs: bool
    size: int = 0
    sha256: str = ""
    git: str = ""

    def __post_init__(self) -> None:
        self.size = os.path.getsize(self.data) if isinstance(self.data, Path) else len(self.data)
        sha, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % self.size)
        for start in range(0, self.size, 1 << 22):
            block = self.read(start, min(self.size, start + (1 << 22)))
            sha.update(block)
            if not self.lfs:
                git.update(block)
        self.sha256, self.git = sha.hexdigest(), git.hexdigest()

    @property
    def etag(self) -> str:
        """What names the blob in a cache."""
        return self.sha256 if self.lfs else self.git

    def read(self, start: int, stop: int) -> bytes:
        """The bytes from `start` to `stop`."""
        if isinstance(self.data, bytes):
            return self.data[start:stop]
        with self.data.open("rb") as stream:
            stream.seek(start)
            return stream.read(stop - start)


@dataclass
class Repository:
    """Commits, each a whole set of files, and names for some of them."""

    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    gated: bool = False

    def commit_of(self, revision: str) -> str | None:
        """The full commit that a branch, a tag or a commit names."""
        return self.refs.get(revision) or (revision if revision in self.commits else None)


class Hub:
    """The server; see the module's docstring."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.ranges, self.redirect, self.xet = True, True, False
        self.token: str | None = None
        self.requests: list[Request] = []
        self._served: list[list[Any]] = []  # path, start, stop; kept from its beginning, so that who was killed is in it
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._servers = [_Server(self, "hub"), _Server(self, "store")]
        self.url, self.store_url = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)

    def __enter__(self) -> Hub:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def add(self, repository: str, path: str, data: bytes | Path, *, lfs: bool = True, revision: str = "main") -> Blob:
        """Store a file in a new commit of the repository, which is made where it is missing."""
        repo = self.repositories.setdefault(repository, Repository())
        files = dict(repo.commits[repo.refs[revision]]) if revision in repo.refs else {}
        blob = files[path] = Blob(data, lfs)
        commit = hashlib.sha1(json.dumps([repository, *((p, b.etag) for p, b in sorted(files.items()))]).encode()).hexdigest()
        repo.commits[commit], repo.refs[revision] = files, commit
        return blob

    def change(self, repository: str, path: str, data: bytes, *, same_commit: bool = False) -> Blob:
        """Replace a file of `main`: in a new commit, or under the commit that clients may have seen already."""
        repo = self.repositories[repository]
        lfs = repo.commits[repo.refs["main"]][path].lfs
        if not same_commit:
            return self.add(repository, path, data, lfs=lfs)
        blob = repo.commits[repo.refs["main"]][path] = Blob(data, lfs)
        return blob

    def fault(self, *faults: Fault) -> None:
        """Let these go wrong, in order, on the next requests that match them."""
        with self._lock:
            self._faults += faults

    def calm(self) -> None:
        """Forget the faults that did not happen yet."""
        with self._lock:
            self._faults.clear()

    def served(self, path: str = "") -> list[tuple[int, int]]:
        """(start, stop) of file bytes sent so far, of one file or of all; wrong bytes count."""
        with self._lock:
            return [(start, stop) for name, start, stop in self._served if path in ("", name)]

    def bytes_served(self, path: str = "") -> int:
        """How many file bytes were sent so far."""
        return sum(stop - start for start, stop in self.served(path))

    def _take(self, on: str, path: str) -> Fault | None:
        with self._lock:
            for fault in self._faults:
                if fault.on == on and fault.path in ("", path):
                    fault.times -= 1
                    if fault.times <= 0:
                        self._faults.remove(fault)
                    return fault
        return None

    def _begin(self, path: str, start: int) -> list[Any]:
        with self._lock:
            self._served.append([path, start, start])
            return self._served[-1]


class _Server(ThreadingHTTPServer):
    daemon_threads, block_on_close, request_queue_size = True, False, 128

    def __init__(self, hub: Hub, name: str) -> None:
        self.hub, self.name = hub, name
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is nothing to talk about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version, server_version = "HTTP/1.1", "standin"
    server: _Server

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Silence."""

    def do_HEAD(self) -> None:
        self._route()

    def do_GET(self) -> None:
        self._route()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer(404, {"X-Error-Code": "EntryNotFound"})

    def _route(self) -> None:
        hub, url = self.server.hub, urlsplit(self.path)
        with hub._lock:
            hub.requests.append(Request(self.command, self.path, dict(self.headers.items()), self.server.name))
        if self.server.name == "store":
            repository, commit, path = (parse_qs(url.query)[key][0] for key in ("repository", "commit", "path"))
            self._body(hub.repositories[repository].commits[commit][path], path, {})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+)(?:/(.*))?)?", url.path):
            self._api(found[1], found[2] or "revision", unquote(found[3] or "main"))
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", url.path):
            self._file(found[1], unquote(found[2]), unquote(found[3]))
        else:
            self._answer(404)

    def _repository(self, name: str, revision: str) -> tuple[Repository, str] | None:
        """The repository and the full commit, or None after the refusal was answered."""
        hub = self.server.hub
        repo, given = hub.repositories.get(name), self.headers.get("Authorization", "").removeprefix("Bearer ")
        if repo is None:  # as the hub does: it does not tell strangers what exists
            self._answer(404 if given else 401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        elif hub.token and given and given != hub.token:
            self._answer(401, {"X-Error-Message": "Invalid credentials in Authorization header"})
        elif repo.gated and given != (hub.token or "right"):
            message = f"Access to model {name} is restricted."
            self._answer(403 if given else 401, {"X-Error-Code": "GatedRepo", "X-Error-Message": message})
        elif (commit := repo.commit_of(revision)) is None:
            self._answer(404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": f"Invalid rev id: {revision}"})
        else:
            return repo, commit
        return None

    def _api(self, name: str, what: str, revision: str) -> None:
        if self._fails(self.server.hub._take("api", name)) or not (found := self._repository(name, revision)):
            return
        repo, commit = found
        files = sorted(repo.commits[commit].items())
        if what == "tree":
            entries: list[dict[str, Any]]
            entries = [{"type": "file", "path": p, "size": b.size, "oid": b.git or "0" * 40} for p, b in files]
            for entry, (_, blob) in zip(entries, files, strict=True):
                if blob.lfs:
                    entry["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": 134}
                    entry |= {"xetHash": XET_HASH} if self.server.hub.xet else {}
            self._json(entries)
            return
        siblings = [{"rfilename": p, "size": b.size, "blobId": b.git} for p, b in files]
        for sibling, (_, blob) in zip(siblings, files, strict=True):
            if blob.lfs:
                sibling["lfs"] = {"sha256": blob.sha256, "size": blob.size, "pointerSize": 134}  # type: ignore[assignment]
        self._json({"_id": "0", "id": name, "modelId": name, "sha": commit, "private": False, "gated": repo.gated and "auto",
                    "tags": [], "downloads": 0, "likes": 0, "siblings": siblings})  # fmt: skip

    def _file(self, name: str, revision: str, path: str) -> None:
        hub = self.server.hub
        if self.command == "HEAD" and self._fails(hub._take("head", path)):
            return
        if not (found := self._repository(name, revision)):
            return
        repo, commit = found
        blob = repo.commits[commit].get(path)
        if blob is None:
            self._answer(404, {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found", "X-Repo-Commit": commit})
            return
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if hub.xet and blob.lfs:
            route = f"{hub.url}/api/models/{name}/xet-read-token/{commit}"
            headers |= {"X-Xet-Hash": XET_HASH, "X-Xet-Refresh-Route": route, "Link": f'<{route}>; rel="xet-auth"'}
        if not blob.lfs:
            self._body(blob, path, headers | {"ETag": f'"{blob.git}"'})
            return
        headers |= {"X-Linked-Size": str(blob.size), "X-Linked-Etag": f'"{blob.sha256}"'}
        if hub.redirect:
            query = f"repository={quote(name, '')}&commit={commit}&path={quote(path, '')}"
            self._answer(302, headers | {"Location": f"{hub.store_url}/blob?{query}", "ETag": '"of-the-redirect"'})
        else:
            self._body(blob, path, headers | {"ETag": f'"{blob.sha256}"'})

    def _body(self, blob: Blob, path: str, headers: dict[str, str]) -> None:
        hub = self.server.hub
        fault = hub._take("body", path) if self.command == "GET" else None
        if self._fails(fault):
            return
        start, stop, asked = 0, blob.size, re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        headers = headers | {"ETag": headers.get("ETag", f'"{blob.etag[:32]}-other"')}
        status = 200
        if asked and hub.ranges and not (fault and fault.kind == "whole"):
            start, stop, status = int(asked[1]), min(blob.size, int(asked[2] or blob.size - 1) + 1), 206
            if start >= blob.size:
                self._answer(416, {"Content-Range": f"bytes */{blob.size}"})
                return
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{blob.size}"
        length = min(stop - start, fault.at) if fault and fault.kind == "short" else stop - start
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(length)}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self._send(blob, path, start, start + length, fault)

    def _send(self, blob: Blob, path: str, start: int, stop: int, fault: Fault | None) -> None:
        """The bytes themselves; what really left is recorded, also when the client hangs up."""
        kind, place = (fault.kind, start + fault.at) if fault else ("", stop)
        end = min(stop, place) if kind in ("cut", "hang") else stop
        position, record = start, self.server.hub._begin(path, start)
        try:
            if kind == "" and isinstance(blob.data, Path):
                with blob.data.open("rb") as stream:
                    try:
                        self.connection.sendfile(stream, start, stop - start)
                    finally:
                        position = max(start, stream.tell())  # sendfile leaves it after the last byte that went out
                return
            while position < end:
                block = blob.read(position, min(end, position + BLOCK))
                if kind == "wrong" and position <= place < position + len(block):
                    block = bytearray(block)  # type: ignore[assignment]
                    block[place - position] ^= 0x55  # type: ignore[index]
                self.wfile.write(block)
                position += len(block)
            if kind == "hang":
                self.server.hub._closing.wait(fault.seconds if fault else 0)
        except OSError:
            self.close_connection = True
        finally:
            record[2] = position
            if kind in ("cut", "hang"):
                self.close_connection = True

    def _fails(self, fault: Fault | None) -> bool:
        """Answer a fault that replaces the whole answer."""
        if fault is None:
            return False
        if fault.kind == "status":
            extra = {} if fault.retry_after is None else {"Retry-After": f"{fault.retry_after:g}"}
            self._answer(fault.status, extra)
            return True
        if fault.on == "body":
            return False
        if fault.kind == "hang":
            self.server.hub._closing.wait(fault.seconds)
        self.close_connection = True
        return True

    def _json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self._answer(200, {"Content-Type": "application/json"}, body)

    def _answer(self, status: int, headers: Mapping[str, str] | None = None, body: bytes = b"") -> None:
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def main() -> None:
    """Serve one file as owner/name main until standard input ends: standin_hub.py FILE; prints the endpoint."""
    import sys

    with Hub() as hub:
        hub.redirect = False
        hub.add("owner/name", Path(sys.argv[1]).name, Path(sys.argv[1]))
        print(hub.url, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
