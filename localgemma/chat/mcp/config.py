"""The configuration of MCP servers, in the JSON form that other clients read: {"mcpServers": {"name": {…}}}."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeAlias
from urllib.parse import urlsplit

from localgemma import settings
from localgemma.errors import NotFound, UsageError

_KINDS = {"stdio": "stdio", "http": "http", "streamable-http": "http", "streamableHttp": "http", "streamable_http": "http"}
_STDIO, _HTTP, _BOTH = ("command", "args", "env", "cwd"), ("url", "headers"), ("type", "disabled")
# What other clients keep in the same file, and what means nothing here: approvals are the user's of this program.
_FOREIGN = {"alwaysAllow", "autoApprove", "description", "disabledTools", "envFile", "icon", "name", "timeout", "trust"}
_VARIABLE = re.compile(r"\$\{(?:env:)?([A-Za-z_]\w*)(?::-([^}]*))?\}")
_NAME = re.compile(r"[^\x00-\x1f\x7f]{1,64}")
_LARGEST = 1 << 20  # bytes of a configuration


@dataclass(frozen=True, slots=True)
class Command:
    """A server that is started here and spoken with through its input and output."""

    name: str
    command: str
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str | None = None

    def __str__(self) -> str:
        return " ".join(("stdio:", self.command, *self.args))


@dataclass(frozen=True, slots=True)
class Address:
    """A server that runs already and is spoken with by streamable HTTP."""

    name: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = urlsplit(self.url)  # a query or a user's name in it may be a secret
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


Config: TypeAlias = Command | Address


def read_config(source: str | Path | Mapping[str, Any]) -> tuple[tuple[Config, ...], tuple[str, ...]]:
    """The servers of a configuration (a file, or what is in one), and sentences about what of it has no effect here.

    `${NAME}` and `${NAME:-else}` stand for environment variables. Raises NotFound and UsageError, which name file and field.
    """
    where = "the MCP configuration" if isinstance(source, Mapping) else str(source)
    data = source if isinstance(source, Mapping) else _parsed(Path(source).expanduser())
    servers = data.get("mcpServers")
    if not isinstance(servers, Mapping):
        near = difflib.get_close_matches("mcpServers", [str(key) for key in data], 1, 0.5)
        hint = f"Did you write {near[0]!r} for it?" if near else _example()
        raise UsageError(f'In {where}, "mcpServers" is {"no object" if "mcpServers" in data else "missing"}.', hint)
    found: list[Config] = []
    notes: list[str] = []
    for name, entry in servers.items():
        reader = _Entry(where, str(name), entry)
        notes += [f"{where}: {name}.{key} has no effect here." for key in reader.foreign]
        if (server := reader.server()) is not None:
            found.append(server)
    if not found:
        raise UsageError(f"{where} names no MCP server that is switched on.", _example())
    return tuple(found), tuple(notes)


def _example() -> str:
    return 'Write: {"mcpServers": {"name": {"command": "…", "args": ["…"]}}}, or "url" in place of "command".'


def _parsed(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > _LARGEST:
            raise UsageError(f"{path} is too large for an MCP configuration.", _example())
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise NotFound(f"There is no file {path}.", "Check its name: --mcp FILE") from None
    except json.JSONDecodeError as error:
        raise UsageError(f"{path}, line {error.lineno}, is not JSON: {error.msg}.", "Correct it there.") from None
    except (OSError, ValueError, RecursionError):
        raise UsageError(f"{path} cannot be read as JSON.", _example()) from None
    if not isinstance(data, Mapping):
        raise UsageError(f"{path} holds no JSON object.", _example())
    return data


class _Entry:
    """One server's entry; every error says where it stands."""

    def __init__(self, where: str, name: str, entry: Any) -> None:
        self._where, self._name = where, name
        if not _NAME.fullmatch(name):
            self._wrong("", "has a name that is empty, too long or unprintable", "Give it a short name.")
        if not isinstance(entry, Mapping):
            self._wrong("", "is no object", _example())
        self._entry = entry
        self.foreign = [str(key) for key in entry if key in _FOREIGN]

    def server(self) -> Config | None:
        """The server; None for one that is switched off."""
        kind = self._kind()
        allowed = (*_BOTH, *(_STDIO if kind == "stdio" else _HTTP))
        for key in self._entry:
            if key not in allowed and key not in _FOREIGN:
                near = difflib.get_close_matches(str(key), allowed, 1)
                hint = f"Did you mean {near[0]!r}?" if near else f"It takes: {', '.join(allowed)}."
                self._wrong(str(key), "is not known", hint)
        disabled = self._entry.get("disabled", False)
        if not isinstance(disabled, bool):
            self._wrong("disabled", "is neither true nor false", "Correct it.")
        if disabled:
            return None
        if kind == "http":
            return Address(self._name, self._url(), self._texts("headers"))
        args = self._entry.get("args", [])
        if not isinstance(args, list) or not all(isinstance(each, str) for each in args):
            self._wrong("args", "is no list of strings", 'Write: "args": ["…"].')
        filled = tuple(self._filled("args", each) for each in args)
        cwd = self._text("cwd") if "cwd" in self._entry else None
        if cwd is not None and not Path(cwd).expanduser().is_dir():
            self._wrong("cwd", f"names no folder: {cwd[:200]}", "Correct it, or leave it out.")
        place = str(Path(cwd).expanduser()) if cwd is not None else None
        return Command(self._name, self._text("command"), filled, self._texts("env"), place)

    def _kind(self) -> str:
        kind = self._entry.get("type", "http" if "url" in self._entry else "stdio")
        if kind == "sse":
            self._wrong("type", "is sse, a transport of the past", 'Give the address of streamable HTTP: "type": "http".')
        if not isinstance(kind, str) or kind not in _KINDS:
            self._wrong("type", f"cannot be {str(kind)[:80]!r}", 'It takes "stdio" or "http".')
        key = "url" if _KINDS[kind] == "http" else "command"
        if key not in self._entry:
            self._wrong(key, "is missing", _example())
        return _KINDS[kind]

    def _url(self) -> str:
        url = self._text("url")
        try:
            parts = urlsplit(url)
            known = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
        except ValueError:
            known = False
        if not known:
            self._wrong("url", "is no http address", 'Write: "url": "https://host/mcp".')
        return url

    def _text(self, key: str) -> str:
        value = self._entry[key]
        if not isinstance(value, str) or not value or "\0" in value:
            self._wrong(key, "is no text", f'Write: "{key}": "…".')
        return self._filled(key, value)

    def _texts(self, key: str) -> dict[str, str]:
        found = self._entry.get(key, {})
        if not isinstance(found, Mapping) or not all(isinstance(each, str) for each in found.values()):
            self._wrong(key, "is no object of strings", f'Write: "{key}": {{"NAME": "…"}}.')
        for name, value in found.items():
            if not name or any(char in name + value for char in "\0\r\n") or (key == "env" and "=" in name):
                self._wrong(f"{key}.{name[:40]!r}", "has characters that are not allowed", "Correct it.")
        return {name: self._filled(f"{key}.{name}", value) for name, value in found.items()}

    def _filled(self, key: str, text: str) -> str:
        """The text with its variables' values."""

        def value(match: Any) -> str:
            name, other = match[1], match[2]
            if (found := settings.variable(name)) is None and other is None:
                self._wrong(key, f"needs the variable {name}, which is not set", f"Set it: export {name}=…")
            return found if found is not None else str(other)

        return _VARIABLE.sub(value, text)

    def _wrong(self, key: str, what: str, hint: str) -> NoReturn:
        name = self._name[:64] if self._name.isprintable() else repr(self._name[:64])
        place = ".".join(filter(None, ("mcpServers", name, key)))
        raise UsageError(f"In {self._where}, {place} {what}.", hint)
