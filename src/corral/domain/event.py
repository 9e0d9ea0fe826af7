"""Events: the facts of a session's log, one class for each type, exactly as the wire has them.

`AnyEvent` lists what Corral can write today; the SDK knows more (threads, outcomes, workflow runs), and they come
with the features that emit them. A log that came from elsewhere may hold them already: they are `OtherEvent`. A field
that the contract calls *absent* is `UNSET`; one it calls *null* is None.
Every event has `id` and `processed_at`; a client's event has `processed_at: null` while it is queued.
What an event does to a session is `lifecycle.py`'s business. Previews (`event_start`, `event_delta`) are not facts:
they are in `preview.py`.

Source: the API's public documentation, and the SDK's types, which win.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal, TypeAlias

import msgspec
from msgspec import UNSET, UnsetType

from corral.domain.agent import SessionAgent
from corral.domain.content import JsonObject, MessageBlock, ResultBlock, TextBlock
from corral.domain.usage import BudgetLimit, UsageSnapshot


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """Base of all events. `processed_at` is stamped by the log when it commits."""

    id: str
    processed_at: datetime | None = None


# ------------------------------------------------------------------------------------------- from the client


class UserMessage(Event, frozen=True, kw_only=True, tag="user.message"):
    """A message from the user; starts a turn, or is read at the next turn boundary."""

    content: tuple[MessageBlock, ...]


class SystemMessage(Event, frozen=True, kw_only=True, tag="system.message"):
    """An instruction from the application, appended to the conversation."""

    content: tuple[TextBlock, ...]


class UserInterrupt(Event, frozen=True, kw_only=True, tag="user.interrupt"):
    """Stop what you are doing. Overtakes the queue."""

    session_thread_id: str | None = None


class UserToolConfirmation(Event, frozen=True, kw_only=True, tag="user.tool_confirmation"):
    """Allow or deny a tool call that asked."""

    tool_use_id: str
    result: Literal["allow", "deny"]
    deny_message: str | None = None
    session_thread_id: str | UnsetType = UNSET


class UserCustomToolResult(Event, frozen=True, kw_only=True, tag="user.custom_tool_result"):
    """The answer to a custom tool call."""

    custom_tool_use_id: str
    content: tuple[ResultBlock, ...] = ()
    is_error: bool = False
    session_thread_id: str | UnsetType = UNSET


# -------------------------------------------------------------------------------------------- from the agent


class AutoAllow(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="allow"):
    """The judge let the call through."""


class AutoAsk(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="ask"):
    """The judge was not sure."""

    reason_code: Literal["indeterminate"] = "indeterminate"


class AutoDeny(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="deny"):
    """The judge refused the call; nobody can overrule it."""

    reason_code: Literal["high_risk", "indeterminate"] = "high_risk"


class EvaluatedAllow(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="always_allow"):
    """The policy allows without asking."""


class EvaluatedAsk(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="always_ask"):
    """The policy asks the user."""


class EvaluatedAuto(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="auto"):
    """The policy let a judge decide."""

    evaluated_permission: AutoAllow | AutoAsk | AutoDeny


Evaluation: TypeAlias = EvaluatedAllow | EvaluatedAsk | EvaluatedAuto
Permission: TypeAlias = Literal["allow", "ask", "deny"]


class AgentMessage(Event, frozen=True, kw_only=True, tag="agent.message"):
    """What the agent said."""

    content: tuple[MessageBlock, ...]


class AgentThinking(Event, frozen=True, kw_only=True, tag="agent.thinking"):
    """The agent thought. A bare marker: the text stays on the server."""


class AgentThreadContextCompacted(Event, frozen=True, kw_only=True, tag="agent.thread_context_compacted"):
    """The conversation was condensed for the model; the history here stays whole."""


class AgentToolUse(Event, frozen=True, kw_only=True, tag="agent.tool_use"):
    """The agent calls a built-in tool. `evaluation` is absent when the tool is not enabled."""

    name: str
    input: JsonObject
    evaluated_permission: Permission = "allow"
    evaluation: Evaluation | UnsetType = UNSET
    session_thread_id: str | UnsetType = UNSET


class AgentToolResult(Event, frozen=True, kw_only=True, tag="agent.tool_result"):
    """What a built-in tool returned."""

    tool_use_id: str
    content: tuple[ResultBlock, ...] = ()
    is_error: bool = False


class AgentMcpToolUse(Event, frozen=True, kw_only=True, tag="agent.mcp_tool_use"):
    """The agent calls a tool of an MCP server. `evaluation` is absent when the tool is not enabled."""

    mcp_server_name: str
    name: str
    input: JsonObject
    evaluated_permission: Permission = "allow"
    evaluation: Evaluation | UnsetType = UNSET
    session_thread_id: str | UnsetType = UNSET


class AgentMcpToolResult(Event, frozen=True, kw_only=True, tag="agent.mcp_tool_result"):
    """What a tool of an MCP server returned."""

    mcp_tool_use_id: str
    content: tuple[ResultBlock, ...] = ()
    is_error: bool = False


class AgentCustomToolUse(Event, frozen=True, kw_only=True, tag="agent.custom_tool_use"):
    """The agent calls a tool that the client runs."""

    name: str
    input: JsonObject
    session_thread_id: str | UnsetType = UNSET


# ------------------------------------------------------------------------------------------------ stop reasons


class EndTurn(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="end_turn"):
    """The agent is done, or was interrupted."""


class RequiresAction(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="requires_action"):
    """The session waits for answers to these events."""

    event_ids: tuple[str, ...]


class RetriesExhausted(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="retries_exhausted"):
    """Errors, or a limit, ended the turn."""


class BudgetReached(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="budget_reached"):
    """The session's budget is spent."""


class Refusal(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="refusal"):
    """The model refused."""


StopReason: TypeAlias = EndTurn | RequiresAction | RetriesExhausted | BudgetReached | Refusal


class RefusalDetails(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="refusal"):
    """Why the model refused, as far as it says."""

    category: Literal["cyber", "bio", "frontier_llm", "reasoning_extraction", "general_harms"] | None = None
    explanation: str | None = None


# ------------------------------------------------------------------------------------------------------ errors


class Retrying(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="retrying"):
    """The server tries again by itself."""


class Exhausted(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="exhausted"):
    """The turn is over; the session is not."""


class Terminal(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="terminal"):
    """The session is over."""


class ErrorObject(msgspec.Struct, frozen=True, kw_only=True):
    """The `error` of a `session.error`. Types that have no field of their own share this shape."""

    type: Literal[
        "unknown_error",
        "model_overloaded_error",
        "model_rate_limited_error",
        "model_request_failed_error",
        "billing_error",
        "tool_use_limit_reached_error",
        "compaction_limit_reached_error",
        "mcp_connection_failed_error",
        "mcp_authentication_failed_error",
        "credential_host_unreachable_error",
    ]
    message: str
    retry_status: Retrying | Exhausted | Terminal
    mcp_server_name: str | UnsetType = UNSET
    """Only in, and in all, `mcp_*` errors."""
    credential_id: str | UnsetType = UNSET
    """Only in, and in all, `credential_*` errors; as is the next one."""
    vault_id: str | UnsetType = UNSET


# ------------------------------------------------------------------------------------------------- the session


class SessionError(Event, frozen=True, kw_only=True, tag="session.error"):
    """Something failed; `retry_status` says whether the server tries again."""

    error: ErrorObject


class SessionStatusRunning(Event, frozen=True, kw_only=True, tag="session.status_running"):
    """The session works."""


class SessionStatusRescheduled(Event, frozen=True, kw_only=True, tag="session.status_rescheduled"):
    """The session waits for an automatic retry."""


class SessionStatusIdle(Event, frozen=True, kw_only=True, tag="session.status_idle"):
    """The session waits for the client."""

    stop_reason: StopReason
    stop_details: RefusalDetails | None = None


class SessionStatusTerminated(Event, frozen=True, kw_only=True, tag="session.status_terminated"):
    """The session is over; its history can be read."""


class SessionUpdated(Event, frozen=True, kw_only=True, tag="session.updated"):
    """What an update changed; fields that it did not change are absent."""

    title: str | UnsetType | None = UNSET
    metadata: dict[str, str] | UnsetType = UNSET
    agent: SessionAgent | UnsetType = UNSET
    budget: BudgetLimit | UnsetType | None = UNSET


class SessionUsage(Event, frozen=True, kw_only=True, tag="session.usage"):
    """What the session has used so far; stands right before every `session.status_idle`."""

    usage: UsageSnapshot
    budget: BudgetLimit | None = None


class SessionDeleted(Event, frozen=True, kw_only=True, tag="session.deleted"):
    """The session is gone. Last frame of every open stream; never stored."""


class SessionThreadStatusRunning(Event, frozen=True, kw_only=True, tag="session.thread_status_running"):
    """A thread works."""

    session_thread_id: str
    agent_name: str


class SessionThreadStatusRescheduled(Event, frozen=True, kw_only=True, tag="session.thread_status_rescheduled"):
    """A thread waits for an automatic retry."""

    session_thread_id: str
    agent_name: str


class SessionThreadStatusIdle(Event, frozen=True, kw_only=True, tag="session.thread_status_idle"):
    """A thread waits."""

    session_thread_id: str
    agent_name: str
    stop_reason: StopReason
    stop_details: RefusalDetails | None = None


class SessionThreadStatusTerminated(Event, frozen=True, kw_only=True, tag="session.thread_status_terminated"):
    """A thread is over."""

    session_thread_id: str
    agent_name: str


# ------------------------------------------------------------------------------------------------------- spans


class SpanModelRequestStart(Event, frozen=True, kw_only=True, tag="span.model_request_start"):
    """A model request begins."""


class SpanModelUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of one model request; `input_tokens` are the uncached ones."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_input_tokens: int = 0
    cache_creation_input_tokens: int = 0
    speed: Literal["standard", "fast"] | None = None


class SpanModelRequestEnd(Event, frozen=True, kw_only=True, tag="span.model_request_end"):
    """A model request ended: always written, even on error or interrupt."""

    model_request_start_id: str
    is_error: bool = False
    model_usage: SpanModelUsage = SpanModelUsage()
    model: str | UnsetType = UNSET
    """Ours, not the contract's: who answered, when it was the fallback of the session's model."""


ClientEvent: TypeAlias = UserMessage | SystemMessage | UserInterrupt | UserToolConfirmation | UserCustomToolResult

AnyEvent: TypeAlias = (
    ClientEvent
    | AgentMessage
    | AgentThinking
    | AgentThreadContextCompacted
    | AgentToolUse
    | AgentToolResult
    | AgentMcpToolUse
    | AgentMcpToolResult
    | AgentCustomToolUse
    | SessionError
    | SessionStatusRunning
    | SessionStatusRescheduled
    | SessionStatusIdle
    | SessionStatusTerminated
    | SessionUpdated
    | SessionUsage
    | SessionDeleted
    | SessionThreadStatusRunning
    | SessionThreadStatusRescheduled
    | SessionThreadStatusIdle
    | SessionThreadStatusTerminated
    | SpanModelRequestStart
    | SpanModelRequestEnd
)


class OtherEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An event that Corral cannot write. It came with `corral import`; its body is kept, and nobody acts on it."""

    id: str
    type: str
    processed_at: datetime | None = None


StoredEvent: TypeAlias = AnyEvent | OtherEvent
"""What a log may hold."""
