"""An MCP server of the standard library alone, which speaks the protocol of 2025 and behaves as badly as its argument says.

python tests/mcp_odd.py mute | dies | stubborn | child | garbage | endless | many | changes | nested | pages | odd
python tests/mcp_odd.py markers TEXT
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

KIND = sys.argv[1]
tools: list[dict[str, Any]] = [
    {"name": "echo", "description": "Echo.", "inputSchema": {"type": "object", "properties": {"text": {"type": "string"}}}}
]


def send(message: dict[str, Any]) -> None:
    """One line to the client."""
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def nested(depth: int) -> dict[str, Any]:
    """A schema with an object in an object in an object …"""
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def answer(method: str, params: dict[str, Any]) -> dict[str, Any] | None:
    """The result of a request; None for one that is not known."""
    if method == "initialize":
        told = {"tools": {"listChanged": True}}
        return {
            "protocolVersion": params["protocolVersion"],
            "capabilities": told,
            "serverInfo": {"name": "odd", "version": "1"},
        }
    if method == "tools/list":
        if KIND == "pages":
            page = int(params.get("cursor") or 0)
            listed = [{**tools[0], "name": f"echo{page}"}]
            return {"tools": listed} | ({"nextCursor": str(page + 1)} if page < 4 else {})
        return {"tools": tools}
    if method == "tools/call":
        return call(params["name"], params.get("arguments") or {})
    return None


def call(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Run a tool."""
    if KIND == "endless":
        for _ in range(50):
            sys.stdout.write("x" * (1 << 20))
        sys.stdout.write("\n")
    if KIND == "nested":
        data: Any = "deep"
        for _ in range(150):
            data = {"a": data}
        return {"content": [], "structuredContent": data}
    if KIND == "changes":
        tools.append({"name": "more", "inputSchema": {"type": "object"}})
        send({"method": "notifications/tools/list_changed"})
    if KIND == "odd":
        return {"content": "no list"}
    return {"content": [{"type": "text", "text": f"{name}: {arguments.get('text', '')}"}]}


def main() -> None:
    """Answer until the input ends, or not."""
    print("hello from stderr", file=sys.stderr, flush=True)
    if KIND == "dies":
        print("Traceback: no such table", file=sys.stderr)
        sys.exit(3)
    if KIND in ("stubborn", "child"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if KIND == "child":
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)  # mcp-orphan"])
    if KIND == "garbage":
        print("Server listening!", flush=True)
        print('{"jsonrpc": "2.0", "id": 99}', flush=True)
    if KIND == "many":
        tools[:] = [{**tools[0], "name": f"echo {number}"} for number in range(300)]
        tools[1:4] = [
            {**tools[0], "name": "echo-0"},
            {**tools[0], "name": "huge", "inputSchema": {"type": "object", "description": "x" * 30_000}},
            {**tools[0], "name": "lost", "inputSchema": {"type": "object", "properties": {"a": {"$ref": "#/$defs/nowhere"}}}},
        ]
    if KIND == "nested":
        tools.append({"name": "deep", "inputSchema": nested(60)})
    if KIND == "markers":
        text = sys.argv[2]
        properties = {
            text: {"type": "string", "description": text, "enum": [text]},
            "text": {"anyOf": [{"const": text}, {"const": 1}]},
        }
        schema = {"type": "object", "properties": properties, "required": [text], "description": text}
        tools[:] = [{"name": f"echo{text}", "title": text, "description": text, "inputSchema": schema}]
    if KIND == "mute":
        time.sleep(600)
    for line in sys.stdin:
        message = json.loads(line)
        if "id" not in message:
            continue
        result = answer(message["method"], message.get("params") or {})
        if result is None:
            send({"id": message["id"], "error": {"code": -32601, "message": "not known"}})
        else:
            send({"id": message["id"], "result": result})
    if KIND in ("stubborn", "child"):
        time.sleep(600)


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")
    main()
    os._exit(0)
