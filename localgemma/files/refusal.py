"""What a hub's refusal stands for, and what a person can do about it."""

from __future__ import annotations

from localgemma import net, settings
from localgemma.errors import AccessError, LocalgemmaError, NotFound, TransferError


class Busy(net.Interrupted):
    """The hub answers and cannot serve now; `after` is the number of seconds that it asks to wait, or None."""

    def __init__(self, message: str, hint: str | None = None, after: float | None = None) -> None:
        self.after = after
        super().__init__(message, hint)


def refusal(reply: net.Reply, repository: str, revision: str, path: str) -> LocalgemmaError:
    """The error for an answer whose status is no success: NotFound, AccessError, Busy or TransferError.

    Codes are the hub's X-Error-Code header, as huggingface_hub reads it (utils/_http.py).
    """
    code, page = reply.near.get("x-error-code", ""), f"{settings.load().hub_endpoint}/{repository}"
    if code == "GatedRepo":
        return _gated(repository, page)
    if code == "RevisionNotFound":
        return NotFound(f"{repository} has no revision {revision!r}.", f"See {page}/tree/main for what it has.")
    if code == "EntryNotFound":
        return NotFound(f"{repository} has no file {path!r}.", f"See {page}/tree/main for what it has.")
    if reply.status == 404 or code == "RepoNotFound":
        if settings.load().hub_token:
            return NotFound(f"The hub has no repository {repository} for this token.", "Check the name and HF_TOKEN.")
        return NotFound(f"The hub has no public repository {repository}.", "Check the name; a private one needs HF_TOKEN.")
    return _by_status(reply, repository)


def _gated(repository: str, page: str) -> AccessError:
    then = "with the account of your token" if settings.load().hub_token else "and set HF_TOKEN to a token of your account"
    hint = f"Open {page}, accept them {then}, and try again."
    return AccessError(f"{repository} is gated: its owner asks you to accept conditions first.", hint)


def _by_status(reply: net.Reply, repository: str) -> LocalgemmaError:
    status, after = reply.status, net.retry_after(reply.headers)
    said = reply.near.get("x-error-message", "")[:300].rstrip(".")
    detail = f"status {status}: {said}" if said else f"status {status}"
    if status == 429:
        wait = f" and asks to wait {after:.0f} seconds" if after is not None else ""
        hint = "Wait and run the same command again; HF_TOKEN raises the limit."
        return Busy(f"The hub has too many requests{wait}.", hint, after)
    expired = reply.foreign and status in (400, 401, 403)  # a signed address of a second host runs out after a while
    if status == 408 or status >= 500 or expired:
        return Busy(f"The hub could not serve {repository} ({detail}).", "Run the same command again later.", after)
    if status in (401, 403):
        if settings.load().hub_token:
            hint = f"Check HF_TOKEN; tokens are made at {settings.load().hub_endpoint}/settings/tokens."
        else:
            hint = "Set HF_TOKEN to a token of an account that may read it."
        return AccessError(f"The hub does not hand out {repository} ({detail}).", hint)
    return TransferError(
        f"The hub answered a request for {repository} with {detail}.", "Check HF_ENDPOINT, or try again later."
    )
