"""The prompt around a conversation: system text and tools, in a fixed order and small.

A pure function of the session's agent, so that it is the same bytes in every request of a session. The harness adds
only what the agent could not know: where it works and what that place is like.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from corral.domain.agent import SessionAgent
from corral.domain.content import JsonObject
from corral.domain.inference import ToolSpec
from corral.domain.toolset import CustomTool, resolve
from corral.interfaces.mcp import McpTool
from corral.interfaces.tool import Tool, WebTool

SANDBOX_NOTE = (
    "Your tools work in a Linux sandbox of this session, in /workspace. Network access, if the "
    "environment allows any, is by HTTP through the proxy in HTTPS_PROXY; a host that is not allowed is answered with "
    "403 and the reason. "
    "Put files for the user to download into /mnt/session/outputs."
)

SECRETS_NOTE = (
    "Environment variables whose values begin with corral-secret- stand for secrets. Use them as they are in headers "
    "and bodies of HTTPS requests; for the hosts they are meant for, the secret takes their place on the way."
)


def sandbox_tools(agent: SessionAgent, tools: Mapping[str, Tool]) -> list[str]:
    """Names of the built-in tools that this agent may call in its sandbox, in a fixed order."""
    return _enabled(agent, tools)


def web_tools(agent: SessionAgent, web: Mapping[str, WebTool]) -> list[str]:
    """Names of the built-in tools that this agent may call outside it, in a fixed order."""
    return _enabled(agent, web)


def tool_specs(
    agent: SessionAgent, tools: Mapping[str, Tool], web: Mapping[str, WebTool], offered: Sequence[McpTool]
) -> tuple[ToolSpec, ...]:
    """Everything the model may call: built-in tools, then the agent's own in their order, then MCP servers'."""
    built_in = [tools[name].spec for name in sandbox_tools(agent, tools)]
    built_in += [web[name].spec for name in web_tools(agent, web) if web[name].offered]
    custom = [
        ToolSpec(name=tool.name, description=tool.description, input_schema=_schema(tool))
        for tool in agent.tools
        if isinstance(tool, CustomTool)
    ]
    return (*built_in, *custom, *(tool.spec for tool in offered))


def system_text(agent: SessionAgent, tools: Mapping[str, Tool], vault_ids: Sequence[str]) -> str:
    """The agent's own prompt, then the notes on the sandbox if it has tools there. A session's vaults never change."""
    parts = [agent.system] if agent.system else []
    if sandbox_tools(agent, tools):
        parts.append(SANDBOX_NOTE)
        parts += [SECRETS_NOTE] if vault_ids else []
    return "\n\n".join(parts)


def _enabled(agent: SessionAgent, names: Iterable[str]) -> list[str]:
    resolved = ((name, resolve(agent.tools, name)) for name in names)
    return [name for name, settings in resolved if settings is not None and settings.enabled]


def _schema(tool: CustomTool) -> JsonObject:
    return tool.input_schema
