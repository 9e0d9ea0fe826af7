"""May the agent call this tool, and who decides? The policy of one call, as its event will show it.

`always_allow` and `always_ask` are looked up; `auto` is put to a judge (`judge.py`). A tool that the agent does not
have, or that is disabled, is denied before any policy applies: then there is no evaluation.

Source: the API's public documentation.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple, TypeAlias, assert_never

from msgspec import UNSET, UnsetType

from corral.domain import event as ev
from corral.domain.agent import SessionAgent
from corral.domain.content import ToolUseBlock
from corral.domain.toolset import AlwaysAllow, AlwaysAsk, Auto, resolve, resolve_mcp
from corral.interfaces.mcp import McpTool

Judge: TypeAlias = Callable[[ToolUseBlock], Awaitable[ev.AutoAllow | ev.AutoAsk | ev.AutoDeny]]


class Verdict(NamedTuple):
    """The permission of one call."""

    permission: ev.Permission
    evaluation: ev.Evaluation | UnsetType = UNSET


async def evaluate(
    agent: SessionAgent, call: ToolUseBlock, available: frozenset[str], offered: Mapping[str, McpTool], judge: Judge
) -> Verdict:
    """The verdict on a built-in call or an MCP tool's. `available` are the built-in tools that this server can run,
    and `offered` the MCP tools by their names for the model."""
    tool = offered.get(call.name)
    settings = resolve(agent.tools, call.name) if tool is None else resolve_mcp(agent.tools, tool.server, tool.name)
    known = tool is not None or call.name in available
    if settings is None or not settings.enabled or not known:
        return Verdict("deny")
    match settings.policy:
        case AlwaysAllow():
            return Verdict("allow", ev.EvaluatedAllow())
        case AlwaysAsk():
            return Verdict("ask", ev.EvaluatedAsk())
        case Auto():
            return _judged(await judge(call))
        case _:
            assert_never(settings.policy)


def _judged(judgement: ev.AutoAllow | ev.AutoAsk | ev.AutoDeny) -> Verdict:
    evaluation = ev.EvaluatedAuto(evaluated_permission=judgement)
    match judgement:
        case ev.AutoAllow():
            return Verdict("allow", evaluation)
        case ev.AutoAsk():
            return Verdict("ask", evaluation)
        case ev.AutoDeny():
            return Verdict("deny", evaluation)
        case _:
            assert_never(judgement)
