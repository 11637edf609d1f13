"""MCP servers as sources of tools: `open_servers` starts those of a configuration, `Servers` keeps them.

The `mcp` package is asynchronous: one thread with an event loop runs it, and everything here waits for that thread.
"""
