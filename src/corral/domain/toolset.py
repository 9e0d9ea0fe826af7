"""Tools as an agent declares them: toolsets, their per-tool settings and policies, custom tools.

`resolve` answers the question the harness asks: may this tool be called, and who decides? The wire's request forms
(`*Params`) and response forms stand side by side; `fill` turns the first into the second with every default
written out, because clients read the echo. What a tool *does* is in `tools/`.

Source: the API's public documentation; SDK types `beta_managed_agents_agent_toolset20260401*`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal, TypeAlias, cast

import msgspec
from msgspec import UNSET, UnsetType

from corral.domain.web import UrlSources, UrlSourcesParams, check_client_tools, check_domains, url_sources
from corral.errors import Invalid

BUILT_IN_TOOLS = ("bash", "edit", "read", "write", "glob", "grep", "web_fetch", "web_search")
TOOLS_ENTRIES_MAX = 128
TOOLS_EFFECTIVE_MAX = 256
CUSTOM_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")
PROPERTY_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
DESCRIPTION_CHARACTERS_MAX = 1024
LOCATION_CHARACTERS_MAX = 255
MCP_NAME_CHARACTERS_MAX = 128


class Wire(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of what this file reads and writes."""


class AlwaysAllow(Wire, frozen=True, kw_only=True, tag_field="type", tag="always_allow"):
    """Run the call."""


class AlwaysAsk(Wire, frozen=True, kw_only=True, tag_field="type", tag="always_ask"):
    """Pause until the user confirms."""


class Auto(Wire, frozen=True, kw_only=True, tag_field="type", tag="auto"):
    """Let a judge decide each call."""


Policy: TypeAlias = AlwaysAllow | AlwaysAsk | Auto


class UserLocation(Wire, frozen=True, kw_only=True, tag_field="type", tag="approximate"):
    """Where the user is, for searches."""

    city: str | None = None
    country: str | None = None
    region: str | None = None
    timezone: str | None = None


class ToolConfigParams(Wire, frozen=True, kw_only=True):
    """Settings of one built-in tool. The web tools' own fields are checked against `name`."""

    name: Literal["bash", "edit", "read", "write", "glob", "grep", "web_fetch", "web_search"]
    type: str | None = None
    enabled: bool | None = None
    permission_policy: Policy | None = None
    allowed_domains: tuple[str, ...] | None = None
    blocked_domains: tuple[str, ...] | None = None
    max_content_tokens: int | None = None
    url_sources: UrlSourcesParams | None = None
    user_location: UserLocation | None = None


class DefaultConfigParams(Wire, frozen=True, kw_only=True):
    """What holds for tools without settings of their own."""

    enabled: bool | None = None
    permission_policy: Policy | None = None


class ToolConfig(Wire, frozen=True, kw_only=True):
    """Settings of one built-in tool, every default written out."""

    name: Literal["bash", "edit", "read", "write", "glob", "grep", "web_fetch", "web_search"]
    type: str
    enabled: bool
    permission_policy: Policy
    allowed_domains: tuple[str, ...] | UnsetType = UNSET
    blocked_domains: tuple[str, ...] | UnsetType = UNSET
    max_content_tokens: int | UnsetType = UNSET
    url_sources: UrlSources | UnsetType | None = UNSET
    """Of web_fetch alone, and there always: None allows every source."""
    user_location: UserLocation | UnsetType = UNSET

    @property
    def sources(self) -> UrlSources | None:
        """Which URLs may be fetched; None for any."""
        return self.url_sources or None


class DefaultConfig(Wire, frozen=True, kw_only=True):
    """What holds for tools without settings of their own, written out."""

    enabled: bool
    permission_policy: Policy


class AgentToolsetParams(Wire, frozen=True, kw_only=True, tag_field="type", tag="agent_toolset_20260401"):
    """The built-in tools."""

    configs: tuple[ToolConfigParams, ...] = ()
    default_config: DefaultConfigParams | None = None


class AgentToolset(Wire, frozen=True, kw_only=True, tag_field="type", tag="agent_toolset_20260401"):
    """The built-in tools, every default written out."""

    configs: tuple[ToolConfig, ...]
    default_config: DefaultConfig


class McpToolConfigParams(Wire, frozen=True, kw_only=True):
    """Settings of one tool of an MCP server."""

    name: str
    enabled: bool | None = None
    permission_policy: Policy | None = None


class McpToolConfig(Wire, frozen=True, kw_only=True):
    """Settings of one tool of an MCP server, written out."""

    name: str
    enabled: bool
    permission_policy: Policy


class McpToolsetParams(Wire, frozen=True, kw_only=True, tag_field="type", tag="mcp_toolset"):
    """The tools of one MCP server."""

    mcp_server_name: str
    configs: tuple[McpToolConfigParams, ...] = ()
    default_config: DefaultConfigParams | None = None


class McpToolset(Wire, frozen=True, kw_only=True, tag_field="type", tag="mcp_toolset"):
    """The tools of one MCP server, written out."""

    mcp_server_name: str
    configs: tuple[McpToolConfig, ...]
    default_config: DefaultConfig


class CustomTool(Wire, frozen=True, kw_only=True, tag_field="type", tag="custom"):
    """A tool that the client runs. Request and response have the same form."""

    name: str
    description: str
    input_schema: dict[str, object]


ToolParams: TypeAlias = AgentToolsetParams | McpToolsetParams | CustomTool
ToolEntry: TypeAlias = AgentToolset | McpToolset | CustomTool


class Resolved(Wire, frozen=True, kw_only=True):
    """What holds for one tool of one agent."""

    enabled: bool
    policy: Policy


def fill(tools: Iterable[ToolParams]) -> tuple[ToolEntry, ...]:
    """Write out every default. Raises `Invalid` with the path of the first entry that breaks a rule."""
    entries = tuple(tools)
    if len(entries) > TOOLS_ENTRIES_MAX:
        raise Invalid(f"tools: at most {TOOLS_ENTRIES_MAX} entries are allowed, got {len(entries)}")
    filled = tuple(_fill_entry(entry, f"tools.{index}") for index, entry in enumerate(entries))
    _check_names(filled)
    _check_sources(filled)
    return filled


def _fill_entry(entry: ToolParams, path: str) -> ToolEntry:
    match entry:
        case AgentToolsetParams():
            default = _default(entry.default_config, AlwaysAllow())
            _check_distinct((config.name for config in entry.configs), f"{path}.configs")
            configs = (_fill_config(c, default, f"{path}.configs.{i}") for i, c in enumerate(entry.configs))
            return AgentToolset(configs=tuple(configs), default_config=default)
        case McpToolsetParams():
            default = _default(entry.default_config, AlwaysAsk())
            _check_mcp_names(entry, f"{path}.configs")
            return McpToolset(
                mcp_server_name=entry.mcp_server_name,
                default_config=default,
                configs=tuple(
                    McpToolConfig(
                        name=config.name,
                        enabled=default.enabled if config.enabled is None else config.enabled,
                        permission_policy=config.permission_policy or default.permission_policy,
                    )
                    for config in entry.configs
                ),
            )
        case CustomTool():
            tool = msgspec.structs.replace(entry, input_schema=_without_nulls(entry.input_schema))
            _check_custom(tool, path)
            return tool


def _default(params: DefaultConfigParams | None, policy: Policy) -> DefaultConfig:
    given = params or DefaultConfigParams()
    return DefaultConfig(
        enabled=given.enabled is not False,
        permission_policy=given.permission_policy or policy,
    )


def _fill_config(config: ToolConfigParams, default: DefaultConfig, path: str) -> ToolConfig:
    if config.type not in (None, config.name):
        raise Invalid(f"{path}.type: must equal the tool's name, `{config.name}`")
    _check_web_fields(config, path)
    return ToolConfig(
        name=config.name,
        type=config.name,
        enabled=default.enabled if config.enabled is None else config.enabled,
        permission_policy=config.permission_policy or default.permission_policy,
        allowed_domains=UNSET if config.allowed_domains is None else config.allowed_domains,
        blocked_domains=UNSET if config.blocked_domains is None else config.blocked_domains,
        max_content_tokens=UNSET if config.max_content_tokens is None else config.max_content_tokens,
        url_sources=_sources(config, path),
        user_location=UNSET if config.user_location is None else config.user_location,
    )


def _sources(config: ToolConfigParams, path: str) -> UrlSources | UnsetType | None:
    if config.url_sources is not None:
        return url_sources(config.url_sources, f"{path}.url_sources")
    return None if config.name == "web_fetch" else UNSET


_WEB_FIELDS: Mapping[str, tuple[str, ...]] = {
    "web_fetch": ("allowed_domains", "blocked_domains", "max_content_tokens", "url_sources"),
    "web_search": ("allowed_domains", "blocked_domains", "user_location"),
}


def _check_web_fields(config: ToolConfigParams, path: str) -> None:
    allowed = _WEB_FIELDS.get(config.name, ())
    for field in ("allowed_domains", "blocked_domains", "max_content_tokens", "url_sources", "user_location"):
        if getattr(config, field) is not None and field not in allowed:
            raise Invalid(f"{path}.{field}: `{config.name}` has no such field")
    if config.allowed_domains is not None and config.blocked_domains is not None:
        raise Invalid(f"{path}: give allowed_domains or blocked_domains, not both")
    for field in ("allowed_domains", "blocked_domains"):
        domains = cast(tuple[str, ...] | None, getattr(config, field))
        if domains is not None:
            check_domains(domains, f"{path}.{field}", with_path=config.name == "web_search")
    if config.max_content_tokens is not None and config.max_content_tokens < 1:
        raise Invalid(f"{path}.max_content_tokens: must be positive")
    if config.user_location is not None:
        _check_location(config.user_location, f"{path}.user_location")


def _check_location(location: UserLocation, path: str) -> None:
    for field in ("city", "country", "region", "timezone"):
        value = cast(str | None, getattr(location, field))
        if value is not None and not (1 <= len(value) <= LOCATION_CHARACTERS_MAX and value.isprintable()):
            raise Invalid(f"{path}.{field}: must be 1 to {LOCATION_CHARACTERS_MAX} printable characters")
    if location.country is not None and not re.fullmatch("[A-Z]{2}", location.country):
        raise Invalid(f"{path}.country: must be a two-letter ISO 3166-1 code such as US")


def _check_mcp_names(toolset: McpToolsetParams, path: str) -> None:
    for index, config in enumerate(toolset.configs):
        if not 1 <= len(config.name) <= MCP_NAME_CHARACTERS_MAX:
            raise Invalid(f"{path}.{index}.name: must be 1 to {MCP_NAME_CHARACTERS_MAX} characters")
    _check_distinct((config.name for config in toolset.configs), path)


def _check_custom(tool: CustomTool, path: str) -> None:
    if not CUSTOM_NAME.fullmatch(tool.name):
        raise Invalid(f"{path}.name: must be 1 to 128 of the characters a-z A-Z 0-9 _ -")
    if tool.name in BUILT_IN_TOOLS or tool.name.startswith("mcp__"):
        raise Invalid(f"{path}.name: `{tool.name}` is reserved")
    if not 1 <= len(tool.description) <= DESCRIPTION_CHARACTERS_MAX:
        raise Invalid(f"{path}.description: must be 1 to {DESCRIPTION_CHARACTERS_MAX} characters")
    _check_schema(tool.input_schema, f"{path}.input_schema")


def _check_schema(schema: Mapping[str, object], path: str) -> None:
    if schema.get("type") != "object":
        raise Invalid(f'{path}.type: must be "object"')
    for keyword in ("oneOf", "anyOf", "allOf"):
        if keyword in schema:
            raise Invalid(f"{path}.{keyword}: not allowed at the top level")
    properties = schema.get("properties", {})
    if not isinstance(properties, dict):
        raise Invalid(f"{path}.properties: must be an object")
    for name in cast(dict[str, object], properties):
        if not PROPERTY_NAME.fullmatch(name):
            raise Invalid(f"{path}.properties: `{name}` must be 1 to 64 of the characters A-Z a-z 0-9 _ . -")
    required = schema.get("required", [])
    if not isinstance(required, list) or not all(isinstance(n, str) for n in cast(list[object], required)):
        raise Invalid(f"{path}.required: must be a list of names")
    _check_no_reference(schema, path)


def _without_nulls(schema: Mapping[str, object]) -> dict[str, object]:
    """The SDK's type lets these two be null, which JSON Schema and so some models' servers do not."""
    return {key: value for key, value in schema.items() if value is not None or key not in ("properties", "required")}


def _check_no_reference(value: object, path: str) -> None:
    """`$ref` anywhere is refused; the walk is over a body that has already passed the size limit."""
    stack: list[tuple[object, str]] = [(value, path)]
    while stack:
        node, where = stack.pop()
        if where.endswith(".$ref"):
            raise Invalid(f"{where}: references are not supported")
        if isinstance(node, dict):
            stack += [(child, f"{where}.{key}") for key, child in cast(dict[str, object], node).items()]
        elif isinstance(node, list):
            stack += [(child, f"{where}.{i}") for i, child in enumerate(cast(list[object], node))]


def _check_names(entries: tuple[ToolEntry, ...]) -> None:
    _check_distinct((e.name for e in entries if isinstance(e, CustomTool)), "tools", "custom tool")
    _check_distinct((e.mcp_server_name for e in entries if isinstance(e, McpToolset)), "tools", "mcp_toolset for")
    if sum(isinstance(entry, AgentToolset) for entry in entries) > 1:
        raise Invalid("tools: at most one agent_toolset_20260401 is allowed")
    effective = sum(len(BUILT_IN_TOOLS) if isinstance(e, AgentToolset) else 1 for e in entries)
    if effective > TOOLS_EFFECTIVE_MAX:
        raise Invalid(f"tools: at most {TOOLS_EFFECTIVE_MAX} tools are allowed, got {effective}")


def _check_sources(entries: tuple[ToolEntry, ...]) -> None:
    custom = {entry.name for entry in entries if isinstance(entry, CustomTool)}
    for index, entry in enumerate(entries):
        for at, config in enumerate(entry.configs if isinstance(entry, AgentToolset) else ()):
            if config.sources is not None:
                check_client_tools(config.sources, custom, f"tools.{index}.configs.{at}.url_sources")


def _check_distinct(names: Iterable[str], path: str, what: str = "tool") -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise Invalid(f"{path}: duplicate {what} `{name}`")
        seen.add(name)


def resolve_mcp(tools: Iterable[ToolEntry], server: str, name: str) -> Resolved | None:
    """What holds for a tool of an MCP server: its own settings over the toolset's; None without a toolset."""
    for entry in tools:
        if isinstance(entry, McpToolset) and entry.mcp_server_name == server:
            own = next((config for config in entry.configs if config.name == name), None)
            settings = own or entry.default_config
            return Resolved(enabled=settings.enabled, policy=settings.permission_policy)
    return None


def own_config(tools: Iterable[ToolEntry], name: str) -> ToolConfig | None:
    """The settings that a built-in tool has of its own."""
    toolset = next((entry for entry in tools if isinstance(entry, AgentToolset)), None)
    return None if toolset is None else next((each for each in toolset.configs if each.name == name), None)


def resolve(tools: Iterable[ToolEntry], name: str) -> Resolved | None:
    """What holds for the built-in tool `name`: its own settings over the toolset's; None without a toolset."""
    toolset = next((entry for entry in tools if isinstance(entry, AgentToolset)), None)
    if toolset is None or name not in BUILT_IN_TOOLS:
        return None
    own = next((config for config in toolset.configs if config.name == name), None)
    settings = own or toolset.default_config
    return Resolved(enabled=settings.enabled, policy=settings.permission_policy)
