"""The tools that a server lists, bounded and with names for models. Their descriptions are passed on, not trusted."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, cast

import structlog

from corral.config_sections import McpSettings
from corral.domain.agent import SessionAgent
from corral.domain.inference import ToolSpec
from corral.domain.mcp import model_name
from corral.domain.toolset import resolve_mcp
from corral.interfaces.mcp import McpTool

log = structlog.get_logger(__name__)

NAME_CHARACTERS_MAX = 128
SCHEMA_DEPTH_MAX = 64


class Listed(NamedTuple):
    """A tool as its server describes it."""

    name: str
    description: str
    schema: dict[str, Any]


def usable(
    server: str, listed: Iterable[Listed], settings: McpSettings, hidden: Callable[[str], str] = str
) -> tuple[McpTool, ...]:
    """What of the list a model can be told, by name; what is too large or oddly named is left out, and logged.
    `hidden` takes secrets out."""
    tools: dict[str, McpTool] = {}
    for tool in listed:
        reason = "its name holds a secret" if hidden(tool.name) != tool.name else _unfit(tool, settings)
        if reason is not None:
            name = hidden(tool.name)[:NAME_CHARACTERS_MAX]
            log.warning("mcp_tool_left_out", server=server, tool=name, reason=reason)
            continue
        spec = ToolSpec(
            name=model_name(server, tool.name),
            description=hidden(tool.description)[: settings.description_characters_max],
            input_schema={"type": "object", **_without(tool.schema, hidden)},
        )
        tools.setdefault(tool.name, McpTool(server, tool.name, spec))
    return tuple(sorted(tools.values(), key=lambda tool: tool.name))


def enabled(agent: SessionAgent, tools: Iterable[McpTool]) -> tuple[McpTool, ...]:
    """Those that the agent may call."""
    resolved = ((tool, resolve_mcp(agent.tools, tool.server, tool.name)) for tool in tools)
    return tuple(tool for tool, settings in resolved if settings is not None and settings.enabled)


def _unfit(tool: Listed, settings: McpSettings) -> str | None:
    if not 1 <= len(tool.name) <= NAME_CHARACTERS_MAX or not tool.name.isprintable():
        return "its name is empty, too long or holds control characters"
    if tool.schema.get("type", "object") != "object":
        return "its input is not an object"
    if _is_deeper(tool.schema, SCHEMA_DEPTH_MAX):
        return "its input schema is nested too deeply"
    try:
        size = len(json.dumps(tool.schema))
    except (TypeError, ValueError, RecursionError):
        return "its input schema is not JSON"
    if size > settings.schema_bytes_max:
        return f"its input schema has {size} bytes"
    return None


def _without(schema: dict[str, Any], hidden: Callable[[str], str]) -> dict[str, Any]:
    """The schema as `hidden` leaves it: it looks at JSON, and takes out what stands in strings."""
    text = json.dumps(schema, ensure_ascii=False)
    shown = hidden(text)
    return schema if shown == text else json.loads(shown)


def _is_deeper(schema: object, levels: int) -> bool:
    """Whether objects and lists are nested more than so many levels deep. Without recursion: it may be very deep."""
    level: list[object] = [schema]
    for _ in range(levels):
        level = [child for each in level for child in _children(each)]
        if not level:
            return False
    return True


def _children(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return cast(dict[str, object], value).values()
    return cast(list[object], value) if isinstance(value, list) else ()
