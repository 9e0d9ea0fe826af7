"""Agents: a model, a system prompt and tools, under a name and a version.

Every effective change makes a new version; versions never change. This file holds the wire forms, the rules that
decide what a body means (`create`, `update`, `snapshot`), and nothing about HTTP or storage. `UNSET` in a params
struct means the client left the field out, None that it sent null.

Source: the API's public documentation.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import UNSET, UnsetType

from corral.domain import metadata as metadata_rules
from corral.domain.toolset import McpToolset, ToolEntry, ToolParams, Wire, fill
from corral.domain.url import is_url
from corral.errors import Conflict, Invalid

NAME_CHARACTERS_MAX = 256
DESCRIPTION_CHARACTERS_MAX = 2_048
SYSTEM_CHARACTERS_MAX = 100_000
MCP_SERVERS_MAX = 20
MODEL_ID_CHARACTERS_MAX = 256

EffortName: TypeAlias = Literal["low", "medium", "high", "xhigh", "max"]
Speed: TypeAlias = Literal["standard", "fast"]
Version: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]


class Effort(Wire, frozen=True, kw_only=True):
    """How hard the model thinks."""

    type: EffortName


DEFAULT_EFFORT = Effort(type="high")
"""What models do when nobody says otherwise; so it is echoed, and not sent (`providers/`)."""


class ModelConfigParams(Wire, frozen=True, kw_only=True):
    """A model with settings."""

    id: str
    effort: EffortName | Effort | UnsetType | None = UNSET
    inference_geo: str | None = None
    speed: Speed | None = None


class ModelConfig(Wire, frozen=True, kw_only=True):
    """A model with every setting written out."""

    id: str
    effort: Effort = DEFAULT_EFFORT
    inference_geo: str | None = None
    speed: Speed = "standard"


class ServiceAccount(Wire, frozen=True, kw_only=True, tag_field="type", tag="service_account"):
    """Runs carry no identity of the customer's."""


class AwsRole(Wire, frozen=True, kw_only=True, tag_field="type", tag="aws_role"):
    """Runs carry an AWS role. Stored and echoed."""

    role_arn: str


ExecutionIdentity: TypeAlias = ServiceAccount | AwsRole


class McpServer(Wire, frozen=True, kw_only=True, tag_field="type", tag="url"):
    """An MCP server by URL."""

    name: str
    url: str


class SkillParams(Wire, frozen=True, kw_only=True):
    """A skill; refused until skills are built."""

    type: Literal["anthropic", "custom"]
    skill_id: str
    version: str | None = None


class AgentCreate(Wire, frozen=True, kw_only=True):
    """Body of `POST /v1/agents`."""

    model: str | ModelConfigParams
    name: str
    description: str | None = None
    execution_identity: ExecutionIdentity | None = None
    mcp_servers: tuple[McpServer, ...] = ()
    metadata: dict[str, str] = {}
    multiagent: dict[str, object] | None = None
    skills: tuple[SkillParams, ...] = ()
    system: str | None = None
    tools: tuple[ToolParams, ...] = ()


class AgentUpdate(Wire, frozen=True, kw_only=True):
    """Body of `POST /v1/agents/{id}`."""

    description: str | UnsetType | None = UNSET
    execution_identity: ExecutionIdentity | UnsetType | None = UNSET
    mcp_servers: tuple[McpServer, ...] | UnsetType | None = UNSET
    metadata: dict[str, str | None] | UnsetType | None = UNSET
    model: str | ModelConfigParams | UnsetType = UNSET
    multiagent: dict[str, object] | UnsetType | None = UNSET
    name: str | UnsetType = UNSET
    skills: tuple[SkillParams, ...] | UnsetType | None = UNSET
    system: str | UnsetType | None = UNSET
    tools: tuple[ToolParams, ...] | UnsetType | None = UNSET
    version: Version | UnsetType = UNSET


class Agent(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="agent"):
    """One version of an agent, as stored and as the wire shows it."""

    id: str
    version: int
    name: str
    model: ModelConfig
    created_at: datetime
    updated_at: datetime
    archived_at: datetime | None = None
    description: str | None = None
    system: str | None = None
    tools: tuple[ToolEntry, ...] = ()
    mcp_servers: tuple[McpServer, ...] = ()
    skills: tuple[SkillParams, ...] = ()
    metadata: dict[str, str] = {}
    multiagent: None = None
    execution_identity: ExecutionIdentity = ServiceAccount()


class SessionAgent(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="agent"):
    """The agent as a session took it: a snapshot that later versions do not touch."""

    id: str
    version: int
    name: str
    model: ModelConfig
    description: str | None = None
    system: str | None = None
    tools: tuple[ToolEntry, ...] = ()
    mcp_servers: tuple[McpServer, ...] = ()
    skills: tuple[SkillParams, ...] = ()
    multiagent: None = None
    execution_identity: ExecutionIdentity = ServiceAccount()


class AgentReference(Wire, frozen=True, kw_only=True, tag_field="type", tag="agent"):
    """An agent, pinned to a version or not."""

    id: str
    version: Version | None = None


class AgentWithOverrides(Wire, frozen=True, kw_only=True, tag_field="type", tag="agent_with_overrides"):
    """An agent with parts replaced for one session: omitted inherits, null or [] clears, a value replaces."""

    id: str
    version: Version | None = None
    model: str | ModelConfigParams | UnsetType | None = UNSET
    system: str | UnsetType | None = UNSET
    tools: tuple[ToolParams, ...] | UnsetType | None = UNSET
    mcp_servers: tuple[McpServer, ...] | UnsetType | None = UNSET
    skills: tuple[SkillParams, ...] | UnsetType | None = UNSET


def create(body: AgentCreate, *, agent_id: str, now: datetime) -> Agent:
    """Version 1 of a new agent. Raises `Invalid` with the path of what breaks a rule."""
    _refuse_unbuilt(body.skills, body.multiagent)
    agent = Agent(
        id=agent_id,
        version=1,
        name=body.name,
        model=_model(body.model, None),
        created_at=now,
        updated_at=now,
        description=body.description or None,
        system=body.system or None,
        tools=fill(body.tools),
        mcp_servers=body.mcp_servers,
        metadata=metadata_rules.checked(body.metadata),
        execution_identity=body.execution_identity or ServiceAccount(),
    )
    check(agent)
    return agent


def update(agent: Agent, body: AgentUpdate, *, now: datetime) -> Agent:
    """The agent after the update: the same object when nothing changes, else the next version.

    A stale `version` is a `Conflict` even when nothing would change.
    """
    if agent.archived_at is not None:
        raise Invalid(f"agent {agent.id} is archived and cannot be changed")
    if body.version is not UNSET and body.version != agent.version:
        raise Conflict(f"version: the agent is at version {agent.version}, the request was made for {body.version}")
    _refuse_unbuilt(body.skills or (), None if body.multiagent is UNSET else body.multiagent)
    changed = msgspec.structs.replace(
        agent,
        name=agent.name if body.name is UNSET else body.name,
        model=agent.model if body.model is UNSET else _model(body.model, agent.model),
        description=agent.description if body.description is UNSET else body.description or None,
        system=agent.system if body.system is UNSET else body.system or None,
        tools=agent.tools if body.tools is UNSET else fill(body.tools or ()),
        mcp_servers=agent.mcp_servers if body.mcp_servers is UNSET else body.mcp_servers or (),
        metadata=agent.metadata if body.metadata is UNSET else metadata_rules.patched(agent.metadata, body.metadata),
        execution_identity=(
            agent.execution_identity
            if body.execution_identity is UNSET
            else body.execution_identity or ServiceAccount()
        ),
    )
    if changed == agent:
        return agent
    check(changed)
    return msgspec.structs.replace(changed, version=agent.version + 1, updated_at=now)


def snapshot(agent: Agent, overrides: AgentWithOverrides | None = None) -> SessionAgent:
    """The agent as a new session takes it."""
    base = SessionAgent(
        id=agent.id,
        version=agent.version,
        name=agent.name,
        model=agent.model,
        description=agent.description,
        system=agent.system,
        tools=agent.tools,
        mcp_servers=agent.mcp_servers,
        skills=agent.skills,
        execution_identity=agent.execution_identity,
    )
    if overrides is None:
        return base
    if overrides.model is None or overrides.model == "":
        raise Invalid("agent.model: a session's agent needs a model", error_code="agent_model_required")
    _refuse_unbuilt(overrides.skills or (), None)
    changed = msgspec.structs.replace(
        base,
        model=base.model if overrides.model is UNSET else _model(overrides.model, None),
        system=base.system if overrides.system is UNSET else overrides.system or None,
        tools=base.tools if overrides.tools is UNSET else fill(overrides.tools or ()),
        mcp_servers=base.mcp_servers if overrides.mcp_servers is UNSET else overrides.mcp_servers or (),
    )
    check_model(changed.model)
    check_system(changed.system)
    check_mcp(changed.mcp_servers, changed.tools)
    return changed


def replace_tools(
    agent: SessionAgent, tools: tuple[ToolParams, ...] | None, servers: tuple[McpServer, ...] | None
) -> SessionAgent:
    """A session's agent after its tools or servers were replaced; None keeps."""
    changed = msgspec.structs.replace(
        agent,
        tools=agent.tools if tools is None else fill(tools),
        mcp_servers=agent.mcp_servers if servers is None else servers,
    )
    check_mcp(changed.mcp_servers, changed.tools)
    return changed


def check(agent: Agent) -> None:
    """Every limit of one agent. Raises `Invalid` with the path."""
    check_length("name", agent.name, 1, NAME_CHARACTERS_MAX)
    check_length("description", agent.description or "", 0, DESCRIPTION_CHARACTERS_MAX)
    check_system(agent.system)
    check_model(agent.model)
    check_mcp(agent.mcp_servers, agent.tools)
    if isinstance(agent.execution_identity, AwsRole):
        check_length("execution_identity.role_arn", agent.execution_identity.role_arn, 1, 2_048)


def check_system(system: str | None) -> None:
    """The system prompt's limit."""
    check_length("system", system or "", 0, SYSTEM_CHARACTERS_MAX)


def check_model(model: ModelConfig) -> None:
    """The model id's limit."""
    check_length("model.id", model.id, 1, MODEL_ID_CHARACTERS_MAX)


def check_length(path: str, text: str, low: int, high: int) -> None:
    """A text's limits, in characters."""
    if not low <= len(text) <= high:
        bounds = f"at most {high}" if low == 0 else f"{low} to {high}"
        raise Invalid(f"{path}: must be {bounds} characters, got {len(text)}")


def check_mcp(servers: tuple[McpServer, ...], tools: tuple[ToolEntry, ...]) -> None:
    """Servers and toolsets must name each other."""
    if len(servers) > MCP_SERVERS_MAX:
        raise Invalid(f"mcp_servers: at most {MCP_SERVERS_MAX} are allowed, got {len(servers)}")
    names: set[str] = set()
    for index, server in enumerate(servers):
        check_length(f"mcp_servers.{index}.name", server.name, 1, 255)
        check_length(f"mcp_servers.{index}.url", server.url, 1, 2_048)
        if not (server.url.startswith(("http://", "https://")) and is_url(server.url)):
            raise Invalid(f"mcp_servers.{index}.url: must be a URL that starts with http:// or https://")
        if server.name in names:
            raise Invalid(f"mcp_servers.{index}.name: duplicate server `{server.name}`")
        names.add(server.name)
    referenced = {entry.mcp_server_name for entry in tools if isinstance(entry, McpToolset)}
    for name in sorted(names - referenced):
        raise Invalid(f"mcp_servers: server `{name}` is not referenced by any mcp_toolset in tools")
    for name in sorted(referenced - names):
        raise Invalid(f"tools: mcp_toolset names the server `{name}`, which is not in mcp_servers")


def _model(params: str | ModelConfigParams, stored: ModelConfig | None) -> ModelConfig:
    """The same id without `effort` keeps the stored effort; another id goes back to that model's default."""
    if isinstance(params, str):
        params = ModelConfigParams(id=params)
    effort = params.effort
    if effort is UNSET:
        kept = stored.effort if stored is not None and stored.id == params.id else DEFAULT_EFFORT
    else:
        kept = Effort(type=effort) if isinstance(effort, str) else effort or DEFAULT_EFFORT
    return ModelConfig(id=params.id, effort=kept, inference_geo=params.inference_geo, speed=params.speed or "standard")


def _refuse_unbuilt(skills: tuple[SkillParams, ...], multiagent: Mapping[str, object] | None) -> None:
    if skills:
        raise Invalid("skills: this server does not support skills yet")
    if multiagent is not None:
        raise Invalid("multiagent: this server does not support multiagent sessions yet")
