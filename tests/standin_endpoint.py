"""A completions endpoint on 127.0.0.1 that answers from made-up rows, and misbehaves on request."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

Fault = tuple[int, dict[str, str], bytes]


@dataclass
class Standin:
    """`row(ids)` are logits of the next token, `pieces` the tokens' bytes; `faults` are answered first, one a request.

    `form` is content (llama-server's), bytes (the same without ids), text (vLLM's) or none. `hang` is in seconds.
    """

    row: Callable[[Sequence[int]], np.ndarray]
    pieces: list[bytes]
    form: str = "content"
    key: str = ""
    extra_tokens: int = 0
    hang: float = 0.0
    faults: list[Fault] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)

    def __enter__(self) -> Standin:
        standin = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                standin.answer(self)

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._lock = threading.Lock()
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        """Up to /v1."""
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """One request."""
        question = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self._lock:
            self.asked.append(question)
            fault = self.faults.pop(0) if self.faults else None
        if self.hang:
            time.sleep(self.hang)
        if self.key and handler.headers.get("Authorization") != f"Bearer {self.key}":
            fault = 401, {}, b'{"error": {"message": "no"}}'
        if handler.path != "/v1/completions":
            fault = 404, {}, b"{}"
        status, headers, body = fault or (200, {}, json.dumps(self._completion(question)).encode())
        try:
            handler.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(body)
        except OSError:
            return  # it did not wait

    def _completion(self, question: dict[str, Any]) -> dict[str, Any]:
        ids, count = question["prompt"], question["logprobs"]
        row = self.row(ids).astype(np.float64)
        log = row - row.max()
        log -= np.log(np.exp(log).sum())
        some = [(int(token), float(log[token])) for token in np.argsort(-log)[:count]]
        logs: Any = None
        if self.form == "text":
            logs = {"tokens": ["x"], "top_logprobs": [{self.pieces[t].decode("utf-8", "replace"): p for t, p in some}]}
        elif self.form != "none":
            tops = [
                {"id": t, "token": self.pieces[t].decode("utf-8", "replace"), "bytes": list(self.pieces[t]), "logprob": p}
                for t, p in some
            ]
            if self.form == "bytes":
                tops = [{name: value for name, value in top.items() if name != "id"} for top in tops]
            logs = {"content": [{**tops[0], "top_logprobs": tops}]}
        usage = {"prompt_tokens": len(ids) + self.extra_tokens, "completion_tokens": 1}
        return {"choices": [{"text": "x", "logprobs": logs}], "usage": usage}
