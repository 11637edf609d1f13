"""The whole error tree: every error that localgemma raises on purpose.

LocalgemmaError                exit 1
├── UsageError                 2   wrong option or bad input
│   ├── BadMedia               2   a picture, video or document that cannot be read
│   │   └── LockedDocument     2   one that wants a password, or another one
│   ├── PictureTooLarge        2   more picture tokens than this load allows
│   ├── BadModelFile           2   not a GGUF, damaged, or of another architecture
│   ├── ContextOverflow        2   the prompt needs more tokens than the context has
│   ├── BadReference           2   an .lgref file that is damaged, or of another program or version
│   ├── BadState               2   a saved KV state that does not belong here, or is damaged
│   └── BadConversation        2   messages that no template can render
├── NotFound                   3   no such model, file, session …
│   └── NotDownloaded          3   known, but not on this machine
├── DoesNotFit                 4   this machine's memory cannot hold it
├── TransferError              5   download, checksum or disk
│   ├── Interrupted            5   a connection that broke or fell silent: worth another try
│   ├── OfflineError           5   the network is needed and not allowed
│   ├── AccessError            5   the hub knows the file and will not hand it out: gated, private, bad token
│   ├── ChecksumError          5   bytes that are not what they should be
│   └── DiskError              5   full, read-only or failing disk
├── ToolServerError            6   an MCP server that did not start, or ended
├── BackendError               6   llama.cpp could not be loaded or failed
│   ├── LibraryError           6   no usable llama.cpp library
│   └── DecodeError            6   an evaluation returned an error code
└── Cancelled                  130 the user stopped it

`str(error)` is one sentence that says what happened, followed by the hint: the next step to take.
"""

from __future__ import annotations

from typing import ClassVar


class LocalgemmaError(Exception):
    """Base of all errors; `message` says what happened, `hint` the next step."""

    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500
    default_hint: ClassVar[str] = ""

    def __init__(self, message: str, hint: str | None = None) -> None:
        self.message = message
        self.hint = self.default_hint if hint is None else hint
        super().__init__(message, hint)

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip() if self.hint else self.message


class UsageError(LocalgemmaError):
    """A wrong option or bad input."""

    exit_code = 2
    http_status = 400


class BadMedia(UsageError):
    """A picture, video or document that cannot be read."""


class LockedDocument(BadMedia):
    """A document that wants a password, or another one than it was given."""


class PictureTooLarge(UsageError):
    """A picture with more tokens than this load allows; `tokens` and `limit` are token counts."""

    def __init__(self, tokens: int, limit: int, hint: str | None = None) -> None:
        self.tokens, self.limit = tokens, limit
        super().__init__(
            f"The picture takes {tokens:,} tokens, and this load allows {limit:,}.",
            hint or f"Give it a budget of at most {limit:,}, or load with a larger picture budget.",
        )

    def __reduce__(self) -> tuple[type[PictureTooLarge], tuple[int, int, str]]:
        return type(self), (self.tokens, self.limit, self.hint)


class BadModelFile(UsageError):
    """A file that is not a usable GGUF of this model family."""

    default_hint = "Give the path of a Gemma 4 .gguf file: localgemma chat -m FILE."


class ContextOverflow(UsageError):
    """A prompt that needs `needed` tokens where the context has `available`."""

    def __init__(self, needed: int, available: int, hint: str | None = None) -> None:
        self.needed, self.available = needed, available
        super().__init__(
            f"The conversation needs {needed:,} tokens, and the context holds {available:,}.",
            hint or "Start a new chat (/clear), or load with a larger context: --ctx N.",
        )

    def __reduce__(self) -> tuple[type[ContextOverflow], tuple[int, int, str]]:
        return type(self), (self.needed, self.available, self.hint)


class BadState(UsageError):
    """A saved KV state that is damaged, or of another model file, llama.cpp build or KV cache; nothing of it was loaded."""

    default_hint = "The conversation will be read again from its text."


class BadReference(UsageError):
    """A reference file (.lgref) that is damaged, or that this version cannot read."""

    default_hint = "Make it again with: localgemma compare --reference MODEL --save-reference FILE"


class BadConversation(UsageError):
    """Messages that cannot be rendered."""


class NotFound(LocalgemmaError):
    """No such model, file or session."""

    exit_code = 3
    http_status = 404


class NotDownloaded(NotFound):
    """A model that is known but not on this machine."""


class DoesNotFit(LocalgemmaError):
    """This machine's memory cannot hold what was asked for."""

    exit_code = 4
    http_status = 507
    default_hint = "Ask for a smaller context (--ctx) or a smaller quantisation."


class TransferError(LocalgemmaError):
    """Download, checksum or disk."""

    exit_code = 5
    http_status = 502


class Interrupted(TransferError):
    """A connection that could not be made, broke or fell silent: worth another try."""

    default_hint = "Check the connection and try again."


class OfflineError(TransferError):
    """The network is needed, and offline mode forbids it."""

    default_hint = "Allow the network (no --offline, LOCALGEMMA_OFFLINE unset) and try again."


class AccessError(TransferError):
    """The hub will not hand out the file: a gated or private repository, or a bad token."""


class ChecksumError(TransferError):
    """Bytes that are not what they should be."""


class DiskError(TransferError):
    """A full, read-only or failing disk."""


class BackendError(LocalgemmaError):
    """llama.cpp failed."""

    exit_code = 6
    default_hint = "Try again with --gpu-layers 0; if that fails too, run scripts/bootstrap."


class LibraryError(BackendError):
    """No usable llama.cpp library."""

    default_hint = "Run scripts/bootstrap to install it."


class DecodeError(BackendError):
    """An evaluation returned an error; `status` is llama_decode's code."""

    def __init__(self, message: str, status: int = 0, hint: str | None = None) -> None:
        self.status = status
        super().__init__(message, hint)

    def __reduce__(self) -> tuple[type[DecodeError], tuple[str, int, str]]:
        return type(self), (self.message, self.status, self.hint)


class ToolServerError(LocalgemmaError):
    """An MCP server that did not start, ended, or speaks another protocol."""

    exit_code = 6
    http_status = 502


class Cancelled(LocalgemmaError):
    """The user stopped it."""

    exit_code = 130
    http_status = 499
