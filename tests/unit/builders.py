"""Small sessions and events for tests of the rules."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

from corral.config_sections import McpSettings
from corral.domain import environment as environments
from corral.domain import event as ev
from corral.domain.agent import ModelConfig, SessionAgent
from corral.domain.content import TextBlock
from corral.domain.environment import ENVIRONMENT_KIND, EnvironmentCreate
from corral.domain.ids import new_id
from corral.domain.query import Record
from corral.domain.session import Session, SessionState
from corral.domain.toolset import AgentToolset, AlwaysAllow, CustomTool, DefaultConfig
from corral.interfaces.clock import Clock
from corral.interfaces.records import Records
from corral.mcp.servers import SessionServers
from corral.vaults.credentials import VaultCredentials
from corral.vaults.master_key import new_master_key
from corral.vaults.sealing import LocalKeyWrapper, VaultSealing

START = datetime(2026, 1, 1, tzinfo=UTC)

CUSTOM = CustomTool(name="weather", description="Weather.", input_schema={"type": "object"})


def agent() -> SessionAgent:
    toolset = AgentToolset(configs=(), default_config=DefaultConfig(enabled=True, permission_policy=AlwaysAllow()))
    return SessionAgent(
        id="agent_1", version=1, name="Agent", model=ModelConfig(id="scripted"), tools=(toolset, CUSTOM)
    )


def session() -> Session:
    return Session(
        id="sesn_1",
        workspace_id="wrkspc_1",
        agent=agent(),
        environment_id="env_1",
        created_at=START,
        updated_at=START,
    )


def environment(session: Session) -> Record:
    """The record of the session's environment: the default one."""
    made = environments.create(EnvironmentCreate(name="Default"), environment_id=session.environment_id, now=START)
    return Record(
        kind=ENVIRONMENT_KIND,
        id=made.id,
        workspace_id=session.workspace_id,
        created_at=made.created_at,
        body=msgspec.json.encode(made),
    )


def mcp_servers(records: Records, clock: Clock) -> SessionServers:
    """MCP servers as a server has them, with a master key of their own."""
    return SessionServers(credentials(records, clock), McpSettings())


def credentials(records: Records, clock: Clock) -> VaultCredentials:
    """What vaults hold, with a master key of their own."""
    keys = (new_master_key(),)
    return VaultCredentials(records, VaultSealing(LocalKeyWrapper(lambda: keys)), clock)


def state() -> SessionState:
    return SessionState(thread_id="sthr_1")


def message(text: str = "hello") -> ev.UserMessage:
    return ev.UserMessage(id=new_id("sevt"), content=(TextBlock(text=text),))


def interrupt() -> ev.UserInterrupt:
    return ev.UserInterrupt(id=new_id("sevt"))


def tool_use(permission: ev.Permission = "allow", name: str = "bash") -> ev.AgentToolUse:
    return ev.AgentToolUse(id=new_id("sevt"), name=name, input={}, evaluated_permission=permission)


def custom_use() -> ev.AgentCustomToolUse:
    return ev.AgentCustomToolUse(id=new_id("sevt"), name="weather", input={})


def result(call_id: str) -> ev.AgentToolResult:
    return ev.AgentToolResult(id=new_id("sevt"), tool_use_id=call_id)


def custom_result(call_id: str) -> ev.UserCustomToolResult:
    return ev.UserCustomToolResult(id=new_id("sevt"), custom_tool_use_id=call_id)


def confirmation(call_id: str, *, allow: bool = True) -> ev.UserToolConfirmation:
    return ev.UserToolConfirmation(id=new_id("sevt"), tool_use_id=call_id, result="allow" if allow else "deny")


def answer_end(request_id: str) -> ev.SpanModelRequestEnd:
    return ev.SpanModelRequestEnd(id=new_id("sevt"), model_request_start_id=request_id)
