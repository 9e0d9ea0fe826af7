"""Tools from elsewhere."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from corral.domain.content import JsonObject
from corral.domain.inference import ToolSpec
from corral.domain.session import Session
from corral.interfaces.sandbox import SandboxReply


class McpTool(NamedTuple):
    """A tool of an MCP server, as its server and as models name it."""

    server: str
    name: str
    spec: ToolSpec


class McpFailure(NamedTuple):
    """A server that could not be reached, and why, in a sentence without secrets."""

    server: str
    message: str
    is_authentication: bool


class McpOffer(NamedTuple):
    """What the MCP servers of a session have to offer now."""

    tools: tuple[McpTool, ...] = ()
    """By server in the agent's order, then by name. Disabled tools are left out."""
    failures: tuple[McpFailure, ...] = ()


class McpServers(Protocol):
    """Connections to the MCP servers of sessions. Kept between turns, dropped when idle; a cache, never a fact."""

    async def offer(self, session: Session, *, retry: bool) -> McpOffer:
        """Connect to what is not connected yet and list the tools. On `retry`, which each turn begins with, servers
        that failed are tried again and lists are read anew. Bounded in time; never raises."""
        ...

    async def call(self, session: Session, server: str, name: str, arguments: JsonObject) -> SandboxReply:
        """Call a tool. What goes wrong is an error reply, worded for the model. Cancelling tells the server."""
        ...

    async def forget(self, session_id: str) -> None:
        """Drop the session's connections. Idempotent."""
        ...

    async def close(self) -> None:
        """Drop all connections. Idempotent."""
        ...
