"""A remote model by the completions API of OpenAI's form: the likeliest next tokens after some token ids.

`prompt` is the ids themselves, so that nothing is tokenised, or given a <bos>, a second time; llama-server and vLLM
take it so. One token is asked for, at temperature 1, with `logprobs`; its log-probabilities may come as
`content[].top_logprobs` (llama-server, OpenAI's chat form) or as `top_logprobs: [{text: ln p}]` (vLLM, the older form).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from localgemma import net
from localgemma.engine import CancelToken
from localgemma.errors import AccessError, Cancelled, Interrupted, NotFound, TransferError, UsageError

LIKELIEST = 20  # vLLM gives no more unless it was started to
_LARGEST = 1 << 20  # bytes of an answer of one token
_LONGEST_WAIT = 60.0  # seconds, whatever Retry-After asks
_LEAST = -60.0  # ln p below which a token is none: OpenAI writes -9999 for "not among them"
_USE = "Write it so: --reference https://HOST/v1#MODEL"
_SERVER = "Serve the model with llama-server or vLLM, whose /v1/completions takes token ids and gives log-probabilities."


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An API's address up to /v1, the model's name there, how long an answer may be silent and how often it is asked again.

    After a failed try it waits what the other side asks, else `pause` seconds, doubling.
    """

    url: str
    model: str
    key: str | None = None
    silence: float = 120.0
    tries: int = 5
    pause: float = 1.0

    @property
    def host(self) -> str:
        """The host, for sentences."""
        return urlsplit(self.url).netloc


@dataclass(frozen=True, slots=True)
class Likely:
    """A token that may come next: ln p, its bytes (None: it cannot be told which), its id where the endpoint gives one."""

    log: float
    data: bytes | None
    token: int | None = None


def is_address(text: str) -> bool:
    """Whether a reference is meant as an endpoint."""
    return text.lower().startswith(("http://", "https://"))


def parse(text: str, key: str | None = None) -> Endpoint:
    """`https://HOST/v1#MODEL`; http for this machine only. Raises UsageError."""
    try:
        parts = urlsplit(text)
        host = parts.hostname or ""
        _ = parts.port
    except ValueError:
        raise UsageError(f"{text[:200]!r} is no address.", _USE) from None
    if not host or not parts.fragment or parts.query:
        raise UsageError(f"{text[:200]!r} {'lacks the model' if host else 'is no address'}.", _USE)
    if parts.username or parts.password:
        raise UsageError("An address is no place for a password.", "Put the key into LOCALGEMMA_API_KEY.")
    if parts.scheme.lower() != "https" and not net.is_loopback_name(host):
        raise UsageError(f"What is said to {host} by http can be read on the way.", "Use https.")
    url = f"{parts.scheme.lower()}://{parts.netloc}{parts.path.rstrip('/')}"
    return Endpoint(url, parts.fragment, key)


def next_tokens(endpoint: Endpoint, ids: Sequence[int], cancel: CancelToken) -> list[Likely]:
    """The likeliest tokens after `ids`, most likely first.

    Raises AccessError, NotFound, UsageError, Interrupted (the last try failed too), TransferError, OfflineError, Cancelled.
    """
    question = {
        "model": endpoint.model, "prompt": list(ids), "max_tokens": 1, "logprobs": LIKELIEST, "temperature": 1.0, "top_p": 1.0,
        "seed": 0, "stream": False,
    }  # fmt: skip
    for number in range(1, endpoint.tries + 1):
        if cancel.cancelled:
            raise _stopped()
        wait: float | None = None
        try:
            answer = net.post(
                f"{endpoint.url}/completions", question, key=endpoint.key, limit=_LARGEST, silence=endpoint.silence
            )
            if answer.status == 200:
                return _read(answer.body, len(ids), endpoint)
            _refused(answer, endpoint)
            wait = net.retry_after(answer.headers)
            what = "is asked too often" if answer.status == 429 else "failed"
            raise Interrupted(f"{endpoint.host} {what} ({answer.status}).", "Wait a while, then run the same command again.")
        except Interrupted:
            if number == endpoint.tries:
                raise
        _pause(endpoint.pause * 2 ** (number - 1) if wait is None else wait, cancel)
    raise AssertionError("the last try returns or raises")


def _refused(answer: net.Answer, endpoint: Endpoint) -> None:
    """Raise for a status that another try will not change."""
    status, host = answer.status, endpoint.host
    if status in (401, 403):
        raise AccessError(f"{host} refuses this client ({status}).", "Put the key that it wants into LOCALGEMMA_API_KEY.")
    if status == 404:
        raise NotFound(
            f"{host} has no completions at {endpoint.url}, or no model {endpoint.model!r} (404).", f"Check both. {_SERVER}"
        )
    if status != 429 and status < 500:
        raise UsageError(f"{host} does not take the question ({status}{_said(answer.body)}).", _SERVER)


def _said(body: bytes) -> str:
    """What an error's body says, in short."""
    try:
        error = json.loads(body)["error"]
        text = error["message"] if isinstance(error, dict) else error
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    return ": " + "".join(c if c.isprintable() else " " for c in str(text)[:200])


def _stopped() -> Cancelled:
    return Cancelled("The comparison was stopped; what is done is kept.", "Run the same command again to go on.")


def _pause(seconds: float, cancel: CancelToken) -> None:
    """Wait, but not past the user's patience."""
    end = time.monotonic() + min(seconds, _LONGEST_WAIT)
    while (left := end - time.monotonic()) > 0:
        if cancel.cancelled:
            raise _stopped()
        time.sleep(min(left, 0.1))


def _read(body: bytes, sent: int, endpoint: Endpoint) -> list[Likely]:
    """The log-probabilities of an answer. Raises UsageError without any, TransferError for what is no answer."""
    try:
        answer = json.loads(body)
        choice, usage = answer["choices"][0], answer.get("usage") or {}
        logs, read = choice.get("logprobs"), usage.get("prompt_tokens")
        if type(read) is int and read != sent:
            raise UsageError(
                f"{endpoint.host} read {read:,} tokens where {sent:,} were sent, so it changes what it is asked.", _SERVER
            )
        found = _entries(logs) if isinstance(logs, Mapping) else []
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise TransferError(f"{endpoint.host} sent what is no completion: {error!r:.100}.", "Check the address.") from None
    if not found:
        raise UsageError(f"{endpoint.host} gives no log-probabilities.", _SERVER)
    found.sort(key=lambda each: -each.log)
    if sum(math.exp(each.log) for each in found[:LIKELIEST]) > 1.01:
        raise UsageError(f"{endpoint.host} gives log-probabilities whose sum is above 1.", _SERVER)
    return [each for each in found[:LIKELIEST] if each.log > _LEAST]


def _entries(logs: Mapping[str, Any]) -> list[Likely]:
    if content := logs.get("content"):
        return [_likely(each) for each in content[0].get("top_logprobs") or ()]
    several = logs.get("top_logprobs")
    if not several or not several[0]:
        return []
    return [Likely(_log(value), _bytes(text)) for text, value in several[0].items()]


def _likely(each: Mapping[str, Any]) -> Likely:
    listed, token = each.get("bytes"), each.get("id")
    data = bytes(listed) if listed else _bytes(each["token"])
    return Likely(_log(each["logprob"]), data, token if type(token) is int else None)


def _log(value: Any) -> float:
    if value is None:
        return -math.inf
    number = float(value)
    if math.isnan(number) or number > 1e-3:
        raise ValueError("no log-probability")
    return min(number, 0.0)


def _bytes(text: str) -> bytes | None:
    """A token's bytes by its text; nothing where a part of a character was replaced."""
    return None if "\ufffd" in text else text.encode("utf-8", "surrogatepass")
