"""Built-in tools: of the sandbox, and of the server."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol

from corral.domain.content import JsonObject
from corral.domain.inference import ToolSpec
from corral.domain.toolset import ToolConfig
from corral.domain.url import Url
from corral.domain.web import Source
from corral.interfaces.sandbox import SandboxCall, SandboxReply


class Tool(Protocol):
    """A built-in tool of `agent_toolset_20260401` that runs in the sandbox."""

    @property
    def spec(self) -> ToolSpec:
        """What the model is told. All descriptions together stay under 900 tokens."""
        ...

    def call(self, call_id: str, arguments: JsonObject) -> SandboxCall:
        """Check the model's arguments and make the sandbox call. Raises `Invalid`, worded for the model."""
        ...


class WebTool(Protocol):
    """A built-in tool that runs on the server, whatever the networking of the session's environment is.

    It only reads, so a call that a worker did not see the end of is made again."""

    @property
    def spec(self) -> ToolSpec:
        """What the model is told; counts like that of a `Tool`."""
        ...

    @property
    def offered(self) -> bool:
        """Whether models are told of it. One that is not still answers, with the reason."""
        ...

    async def run(
        self, arguments: JsonObject, config: ToolConfig | None, shown: Callable[[Url], Collection[Source]]
    ) -> SandboxReply:
        """Run the call within the agent's settings for the tool; `shown` says where the conversation showed a URL.
        Failures are error results for the model. Raises `Invalid`, worded for it, for arguments that make no sense."""
        ...

    async def close(self) -> None:
        """Drop connections. Idempotent."""
        ...
