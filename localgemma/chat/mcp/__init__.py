"""MCP servers as sources of tools: `mcp` starts those of a configuration, `Servers` keeps them.

The `mcp` package is asynchronous: one thread with an event loop runs it, and everything here waits for that thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localgemma.errors import UsageError
from localgemma.options import ServerLimits

if TYPE_CHECKING:
    from localgemma.chat.mcp.servers import Servers


def mcp(config: str | Path | Mapping[str, Any], *, limits: ServerLimits | None = None, partial: bool = False) -> Servers:
    """Start the MCP servers of a configuration file (or of what is in one), for `tools=[…]`; close them, or use `with`.

    Where one does not start, its error is raised and none stays; `partial` keeps the others, as long as there is one. Servers
    that are reached by HTTP are connections: offline mode refuses them, on this machine too. Raises NotFound, UsageError,
    ToolServerError and OfflineError.
    """
    from localgemma.chat.mcp.config import read_config

    configs, notes = read_config(config)
    try:
        from localgemma.chat.mcp.servers import Servers
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("mcp", "anyio"):
            raise
        raise UsageError("MCP servers need one more package.", "Run: pip install 'localgemma[mcp]'") from None
    servers = Servers(configs, limits, notes)
    errors = servers.start()
    if errors and (not partial or len(errors) == len(configs)):
        servers.close()
        raise errors[0]
    return servers
