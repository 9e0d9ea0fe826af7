"""Sessions that are to survive a death at any write: what the client does in each, and what must have come of it.

Effects outside the log are counted where they happen: in a file that commands append to, and on a real MCP server.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from corral.domain import environment as environments
from corral.domain import event as ev
from corral.domain import turn
from corral.domain.agent import McpServer, ModelConfig
from corral.domain.environment import ENVIRONMENT_KIND, CloudParams, EnvironmentCreate, PackagesParams
from corral.domain.ids import new_id
from corral.domain.lifecycle import Append
from corral.domain.model import ListPrice
from corral.domain.query import Record
from corral.domain.session import Session, SessionState
from corral.domain.toolset import AgentToolset, AlwaysAllow, AlwaysAsk, DefaultConfig, McpToolset, ToolEntry
from corral.domain.usage import BudgetLimit, MonetaryAmount
from corral.interfaces.event_log import Decision
from tests.crash.mortal_world import Act, Sends
from tests.unit import builders as make

LONG = "echo long >> ran; head -c 101000 /dev/zero | tr '\\0' y"
"""Its result is too long for the log and goes to a file."""
DOLLARS = ListPrice(input=100, output=100, cache_read=100, cache_write_5m=100, cache_write_1h=100)
DOLLAR = {"input_tokens": 10_000, "output_tokens": 0}
MCP_LOST = "unknown whether"


class Ending(NamedTuple):
    """What there is when the session rests for good."""

    events: Sequence[Mapping[str, Any]]
    workspace: Path
    directory: Path
    called: Sequence[str]
    """Tools that the MCP server has run."""

    def of(self, *types: str) -> list[Mapping[str, Any]]:
        """Events of these types."""
        return [event for event in self.events if event["type"] in types]

    def ran(self) -> list[str]:
        """What commands have left behind."""
        file = self.workspace / "ran"
        return sorted(file.read_text(encoding="utf-8").split()) if file.exists() else []


class Scenario(NamedTuple):
    """A session, its client, and what is true at its end whenever somebody dies."""

    acts: tuple[Act, ...]
    check: Callable[[Ending], None]
    tools: tuple[ToolEntry, ...] = ()
    environment: EnvironmentCreate | None = None
    budget: BudgetLimit | None = None
    price: Callable[[str], ListPrice | None] | None = None

    def session(self, mcp_url: str) -> Session:
        """The session as its client makes it."""
        servers = (McpServer(name="tests", url=mcp_url),) if any(isinstance(t, McpToolset) for t in self.tools) else ()
        agent = msgspec.structs.replace(
            make.agent(), model=ModelConfig(id="scripted"), tools=self.tools, mcp_servers=servers
        )
        return msgspec.structs.replace(make.session(), agent=agent, budget=self.budget)

    def environment_record(self, session: Session) -> Record | None:
        """The session's environment, if it is not the default one."""
        if self.environment is None:
            return None
        made = environments.create(self.environment, environment_id=session.environment_id, now=make.START)
        body, kind = msgspec.json.encode(made), ENVIRONMENT_KIND
        return Record(kind=kind, id=made.id, workspace_id=session.workspace_id, created_at=made.created_at, body=body)


def toolset(policy: Literal["allow", "ask"] = "allow") -> AgentToolset:
    """All built-in tools under one policy."""
    chosen = AlwaysAllow() if policy == "allow" else AlwaysAsk()
    return AgentToolset(configs=(), default_config=DefaultConfig(enabled=True, permission_policy=chosen))


def bash(command: str) -> dict[str, object]:
    """A part of a script."""
    return {"tool": "bash", "input": {"command": command}}


def sends(make_events: Sends, once_seen: str | None = None) -> Act:
    """The client sends these events."""
    return Act(make_events, once_seen)


def says(*steps: object) -> Act:
    """The client sends a script for the model, when the session rests."""
    text = f"```script\n{json.dumps(steps)}\n```"
    return sends(lambda session, state: [make.message(text)])


def answers(event: Callable[[str], ev.ClientEvent]) -> Act:
    """The client answers everything that the session waits for."""
    return sends(lambda session, state: [event(call.id) for call in state.pending])


def interrupts(once_seen: str) -> Act:
    """The client interrupts when there is such an event."""
    return sends(lambda session, state: [make.interrupt()], once_seen)


def _ends(ending: Ending, reason: str = "end_turn") -> None:
    assert ending.of("session.status_idle")[-1]["stop_reason"]["type"] == reason


def _no_errors(ending: Ending, *types: str) -> None:
    assert not any(event["is_error"] for event in ending.of(*(types or ("agent.tool_result",))))


# -------------------------------------------------------------------------------------------------- what is checked


def _tools(ending: Ending) -> None:
    _ends(ending)
    _no_errors(ending)
    assert ending.ran() == ["first", "second", "third"]
    assert len(ending.of("agent.tool_use")) == 3


def _asked(ending: Ending) -> None:
    _ends(ending)
    assert ending.ran() == ["allowed"]
    assert [event["is_error"] for event in ending.of("agent.tool_result")] == [False]
    assert len(ending.of("user.tool_confirmation")) == 1


def _custom(ending: Ending) -> None:
    _ends(ending)
    assert len(ending.of("agent.custom_tool_use")) == 2
    assert len(ending.of("user.custom_tool_result")) == 2


def _mcp(ending: Ending) -> None:
    """A call that nobody knows the fate of is announced; one that has a result ran once."""
    _ends(ending)
    (use,), (result,) = ending.of("agent.mcp_tool_use"), ending.of("agent.mcp_tool_result")
    assert result["mcp_tool_use_id"] == use["id"]
    if result["is_error"]:
        assert MCP_LOST in str(result["content"])
        assert list(ending.called) in ([], ["add"])
    else:
        assert list(ending.called) == ["add"]


def _interrupted(ending: Ending) -> None:
    _ends(ending)
    assert len(ending.of("user.interrupt")) == 1
    assert len(ending.of("user.message")) == 2
    assert [event["content"][0]["text"] for event in ending.of("agent.message")] == ["After it."]


def _condensed(ending: Ending) -> None:
    _ends(ending)
    assert len(ending.of("agent.thread_context_compacted")) == 1
    assert [event["content"][0]["text"] for event in ending.of("agent.message")] == ["Long.", "Short."]


def _spilled(ending: Ending) -> None:
    _ends(ending)
    _no_errors(ending)
    assert ending.ran() == ["long"]
    (use,), (kept,) = ending.of("agent.tool_use"), ending.directory.glob("**/tool_results/*")
    assert (kept.name, kept.read_text(encoding="utf-8")) == (f"{use['id']}.txt", "y" * 101_000)
    shown = str(ending.of("agent.tool_result")[0]["content"])
    assert f"/home/agent/tool_results/{kept.name}" in shown and len(shown) < 6_000


def _unfurnished(ending: Ending) -> None:
    """Packages cannot be installed: the client is told at least once, and the call has an error result."""
    _ends(ending)
    assert [event["is_error"] for event in ending.of("agent.tool_result")] == [True]
    assert 1 <= len(ending.of("session.error")) <= 2
    assert ending.ran() == []


def _budgeted(ending: Ending) -> None:
    """Each finished request is paid once; the session paused once, and went on once."""
    _ends(ending)
    reasons = [event["stop_reason"]["type"] for event in ending.of("session.status_idle")]
    assert reasons == ["requires_action", "budget_reached", "end_turn"], reasons
    assert len(ending.of("session.updated")) == 1
    used = [event["model_usage"]["input_tokens"] for event in ending.of("span.model_request_end")]
    assert ending.of("session.usage")[-1]["usage"]["input_tokens"] == sum(used)
    assert used.count(DOLLAR["input_tokens"]) == 1


def _retried(ending: Ending) -> None:
    _ends(ending)
    assert ending.ran() == ["once"]
    # A retry is announced; a request that a death cut off is asked again under the same count of failures.
    assert 1 <= len(ending.of("session.error")) <= 2


def _unbudget(session: Session, state: SessionState, now: datetime) -> Decision:
    """What `POST /v1/sessions/{id}` with `budget: null` decides."""
    if session.budget is None:
        return Decision(())
    changes = [Append(ev.SessionUpdated(id=new_id("sevt"), budget=None))]
    updated = msgspec.structs.replace(session, budget=None)
    return Decision([*changes, *turn.running(updated, state)], session=updated)


def _dollars(model: str) -> ListPrice:
    return DOLLARS


SCENARIOS: Mapping[str, Scenario] = {
    "tools, two of them at once": Scenario(
        (says([bash("echo first >> ran"), bash("echo second >> ran")], bash("echo third >> ran"), {"say": "Done."}),),
        _tools,
        (toolset(),),
    ),
    "a call that is asked for": Scenario(
        (says(bash("echo allowed >> ran"), {"say": "Done."}), answers(make.confirmation)),
        _asked,
        (toolset("ask"),),
    ),
    "custom tools": Scenario(
        (says([{"tool": "weather"}, {"tool": "weather"}], {"say": "Done."}), answers(make.custom_result)),
        _custom,
        (make.CUSTOM,),
    ),
    "a tool of an MCP server": Scenario(
        (says({"tool": "mcp__tests__add", "input": {"a": 2, "b": 3}}, {"say": "Five."}),),
        _mcp,
        (
            McpToolset(
                mcp_server_name="tests",
                configs=(),
                default_config=DefaultConfig(enabled=True, permission_policy=AlwaysAllow()),
            ),
        ),
    ),
    "an interrupt": Scenario(
        (
            says({"hang": True}),
            interrupts("span.model_request_start"),
            says({"say": "After it."}),
        ),
        _interrupted,
    ),
    "a conversation that is condensed": Scenario(
        (says({"say": "Long.", "usage": {"input_tokens": 190_000}}), says({"say": "Short."})), _condensed
    ),
    "a result that becomes a file": Scenario((says(bash(LONG), {"say": "Done."}),), _spilled, (toolset(),)),
    "packages that cannot be had": Scenario(
        (says(bash("echo no >> ran"), {"say": "Done."}),),
        _unfurnished,
        (toolset(),),
        environment=EnvironmentCreate(name="Furnished", config=CloudParams(packages=PackagesParams(pip=("six",)))),
    ),
    "a budget": Scenario(
        (
            says({"tool": "weather", "usage": DOLLAR}, {"say": "On."}),
            answers(make.custom_result),
            Act(update=_unbudget),
        ),
        _budgeted,
        (make.CUSTOM,),
        budget=BudgetLimit(max_list_cost=MonetaryAmount(amount="50", currency="USD")),
        price=_dollars,
    ),
    "a model that fails at first": Scenario(
        (says({"fail": "overloaded", "attempts": 1, **bash("echo once >> ran")}, {"say": "Done."}),),
        _retried,
        (toolset(),),
    ),
}
