"""A real MCP server, written with the `mcp` package: the demo model's weather and stocks, and tools that try a client.

python tests/mcp_world.py                  over its input and output
python tests/mcp_world.py --http PORT      streamable HTTP at http://127.0.0.1:PORT/mcp, until its input ends
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import os
import sys
import threading
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from mcp.server.mcpserver import Context, Image, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import AudioContent, CallToolResult, EmbeddedResource, ResourceLink, TextContent, TextResourceContents
from PIL import Image as Picture
from pydantic import BaseModel, Field

server = MCPServer("world")


@server.tool()
def get_weather(
    city: Annotated[str, Field(description="City name")], unit: Literal["celsius", "fahrenheit"] = "celsius"
) -> dict[str, Any]:
    """Get the weather of a city."""
    return {"temperature": 21, "condition": "sunny"}


@server.tool()
def get_stock_price(symbol: Annotated[str, Field(description="Ticker symbol")]) -> dict[str, Any]:
    """Get the price of a stock."""
    return {"price": 826}


class Place(BaseModel):
    """Where."""

    street: str
    number: int | None = None
    inner: Place | None = None


@dataclass
class Seen:
    """What came in."""

    text: str
    amount: int


@server.tool(name="take-order!")
def take_order(place: Place, kind: Literal["a", "b"] | None = None, counts: list[int] | str = "") -> Seen:
    """Take an order."""
    return Seen(place.street, place.number or 0)


@server.tool()
def say(text: str) -> str:
    """Say it back."""
    print("said", text, file=sys.stderr)
    return text


@server.tool()
def fail(text: str) -> str:
    """Fail."""
    raise ToolError(text)


@server.tool(structured_output=False)
def picture(color: str) -> list[Any]:
    """Draw a square."""
    data = io.BytesIO()
    Picture.new("RGB", (96, 96), color).save(data, "PNG")
    return ["Here it is:", Image(data=data.getvalue())]


@server.tool()
def mixed() -> CallToolResult:
    """Everything else that a tool may answer."""
    page = TextResourceContents(uri="memo://1", text="A page.")
    sound = AudioContent(type="audio", data=base64.b64encode(b"x" * 3000).decode(), mime_type="audio/wav")
    link = ResourceLink(type="resource_link", name="Report", uri="https://example.org/report")
    content = [TextContent(type="text", text="One."), EmbeddedResource(type="resource", resource=page), link, sound]
    return CallToolResult(content=content)


@server.tool()
def large(megabytes: int) -> str:
    """Say a lot at once."""
    return "x" * (megabytes << 20)


@server.tool()
async def sleep(seconds: float, ctx: Context) -> str:
    """Sleep. A file named by SLEEP_LOG notes how it went."""
    try:
        _note("began")
        await asyncio.sleep(seconds)
        _note("slept")
    except BaseException:
        _note("stopped")
        raise
    return "awake"


@server.tool()
def crash(code: int) -> str:
    """End the server."""
    print("I have had enough", file=sys.stderr, flush=True)
    os._exit(code)


@server.tool()
async def change(ctx: Context) -> str:
    """Offer another tool, and take one away."""

    def now() -> str:
        return "12:00"

    server.add_tool(now, description="Tell the time.")
    server.remove_tool("fail")
    await ctx.notify_tools_changed()
    return "changed"


def _note(text: str) -> None:
    if path := os.environ.get("SLEEP_LOG"):
        with open(path, "a") as file:
            file.write(f"{text}\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--http", type=int, metavar="PORT")
    parser.add_argument("--json", action="store_true", help="answer as one JSON document instead of an event stream")
    arguments = parser.parse_args()
    if arguments.http is None:
        server.run()
    else:
        threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
        server.run("streamable-http", port=arguments.http, json_response=arguments.json)
