"""A model's answer, translated into changes for the log.

One answer is one commit: its events, its end with usage and cost, and beside the end the exact blocks for replay, with
each tool call's id replaced by its event's id so that providers and log speak of the same thing. Calls that cannot run
(unknown, disabled, denied by the judge, broken or cut input) get their error result in the same commit and never pause.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import NamedTuple

import msgspec

from corral.domain import event as ev
from corral.domain import turn
from corral.domain.content import AssistantBlock, RedactedThinkingBlock, TextBlock, ThinkingBlock, ToolUseBlock
from corral.domain.ids import new_id
from corral.domain.inference import ModelResponse, ModelUsage, UsedBy
from corral.domain.lifecycle import Append, Change
from corral.domain.model import ListPrice
from corral.domain.session import Session, SessionState
from corral.domain.usage import RequestTokens, prompt_tokens, token_cost_microdollars
from corral.harness.draft import Draft
from corral.harness.permissions import Verdict
from corral.interfaces.mcp import McpTool

_ENCODER = msgspec.json.Encoder()

UNKNOWN_TOOL = "There is no tool named {name}."
DENIED = "Permission to use {name} has been denied."
MALFORMED = "The input of this call was not valid JSON. Call the tool again with a complete JSON object."
CUT = (
    "Your answer reached its limit of length in the middle of this call, so the call was not run. "
    "Make it again, shorter or in parts."
)


class Answer(NamedTuple):
    """An answer, ready to be committed."""

    events: tuple[ev.AnyEvent, ...]
    results: tuple[ev.AgentToolResult | ev.AgentMcpToolResult | ev.UserCustomToolResult, ...]
    """Error results of calls that cannot run."""
    replay: bytes | None
    """The exact blocks; None for an empty answer."""
    tokens: RequestTokens
    refusal: ev.RefusalDetails | None
    model: str | None
    """Who answered, if not the model that was asked."""


def read(
    response: ModelResponse,
    draft: Draft,
    verdicts: Mapping[str, Verdict],
    *,
    custom_tools: frozenset[str],
    known_tools: frozenset[str],
    offered: Mapping[str, McpTool],
    tokens: RequestTokens,
) -> Answer:
    """Translate a response. `verdicts` holds the permission of each call by the model's id for it,
    and `offered` the MCP tools by their names for the model."""
    events: list[ev.AnyEvent] = []
    results: list[ev.AgentToolResult | ev.AgentMcpToolResult | ev.UserCustomToolResult] = []
    replay: list[AssistantBlock] = []
    for index, block in enumerate(response.content):
        match block:
            case TextBlock():
                if block.text:
                    _add_text(events, draft.id_of(index), block)
                    replay.append(block)
            case ThinkingBlock() | RedactedThinkingBlock():
                events.append(ev.AgentThinking(id=draft.id_of(index)))
                replay.append(block)
            case ToolUseBlock():
                call_id = draft.id_of(index)
                replay.append(msgspec.structs.replace(block, id=call_id))
                unusable = _unusable(block, response)
                if block.name in custom_tools:
                    events.append(ev.AgentCustomToolUse(id=call_id, name=block.name, input=block.input))
                    results += _custom_error_result(call_id, unusable)
                    continue
                verdict, tool = verdicts[block.id], offered.get(block.name)
                if tool is not None:
                    events.append(_mcp_call(call_id, tool, block, verdict))
                    denied = DENIED.format(name=tool.name) if verdict.permission == "deny" else None
                    results += _mcp_error_result(call_id, denied or unusable)
                    continue
                events.append(
                    ev.AgentToolUse(
                        id=call_id,
                        name=block.name,
                        input=block.input,
                        evaluated_permission=verdict.permission,
                        evaluation=verdict.evaluation,
                    )
                )
                results += _error_result(call_id, _refused(block, verdict, known_tools) or unusable)
    return Answer(
        tuple(events),
        tuple(results),
        _ENCODER.encode(replay) if replay else None,
        # A pause in which nothing was said would be asked about again and again.
        msgspec.structs.replace(tokens, paused=response.stop_reason == "pause_turn" and bool(replay)),
        _refusal(response),
        response.model,
    )


def commit_answer(
    session: Session, state: SessionState, answer: Answer, request_id: str, now: datetime
) -> list[Change]:
    """The changes that put the answer into the log, and end the turn if the model refused."""
    changes: list[Change] = [Append(event) for event in answer.events]
    usage = msgspec.structs.replace(span_usage(answer.tokens), speed=session.agent.model.speed)
    end = request_end(request_id, usage, answer.model)
    changes.append(Append(end, tokens=answer.tokens, private=answer.replay))
    changes += [Append(result) for result in answer.results]
    if answer.refusal is not None:
        changes += turn.refuse(session, state, changes, answer.refusal, now)
    return changes


def request_end(request_id: str, usage: ev.SpanModelUsage, model: str | None) -> ev.SpanModelRequestEnd:
    """The end of a request; `model` is named when it was a fallback."""
    return ev.SpanModelRequestEnd(
        id=new_id("sevt"),
        model_request_start_id=request_id,
        model_usage=usage,
        model=msgspec.UNSET if model is None else model,
    )


def span_usage(usage: RequestTokens) -> ev.SpanModelUsage:
    """Usage as a span shows it."""
    return ev.SpanModelUsage(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cache_read_input_tokens=usage.cache_read_input_tokens,
        cache_creation_input_tokens=usage.cache_creation_5m_input_tokens + usage.cache_creation_1h_input_tokens,
    )


def total(
    used: Iterable[UsedBy], price: Callable[[str], ListPrice | None], inference_geo: str | None = None
) -> RequestTokens:
    """What several models used, each at its own price. The cost is known only if every price is.

    Tokens that must be spent in the US cost a tenth more.
    """
    sums = RequestTokens(cost_microdollars=0)
    for model, usage in ((each.model, each.usage) for each in used):
        one = cost(usage, price(model))
        counts = {name: getattr(sums, name) + count for name, count in msgspec.structs.asdict(usage).items()}
        known = sums.cost_microdollars is not None and one.cost_microdollars is not None
        money = (sums.cost_microdollars or 0) + (one.cost_microdollars or 0) if known else None
        sums = RequestTokens(**counts, cost_microdollars=money)
    if inference_geo == "us" and sums.cost_microdollars is not None:
        sums = msgspec.structs.replace(sums, cost_microdollars=-(-sums.cost_microdollars * 11 // 10))
    return sums


def cost(usage: ModelUsage, price: ListPrice | None) -> RequestTokens:
    """What a request used, with its list cost if the model has a price."""
    tokens = RequestTokens(**msgspec.structs.asdict(usage))
    if price is None:
        return tokens
    band = price.for_prompt(prompt_tokens(tokens))
    return msgspec.structs.replace(tokens, cost_microdollars=token_cost_microdollars(tokens, band))


def _add_text(events: list[ev.AnyEvent], event_id: str, block: TextBlock) -> None:
    """Text blocks in a row are one message."""
    last = events[-1] if events else None
    if isinstance(last, ev.AgentMessage) and last.id == event_id:
        events[-1] = msgspec.structs.replace(last, content=(*last.content, block))
    else:
        events.append(ev.AgentMessage(id=event_id, content=(block,)))


def _unusable(block: ToolUseBlock, response: ModelResponse) -> str | None:
    """What is wrong with the input of a call that must not run, whoever would run it."""
    if block.id not in response.malformed_tool_inputs:
        return None
    return CUT if response.stop_reason == "max_tokens" else MALFORMED


def _refused(block: ToolUseBlock, verdict: Verdict, known: frozenset[str]) -> str | None:
    if block.name not in known:
        return UNKNOWN_TOOL.format(name=block.name)
    if verdict.permission == "deny":
        return DENIED.format(name=block.name)
    return None


def _error_result(call_id: str, text: str | None) -> list[ev.AgentToolResult]:
    """The error result that says this, if there is anything to say."""
    if text is None:
        return []
    content = (TextBlock(text=text),)
    return [ev.AgentToolResult(id=new_id("sevt"), tool_use_id=call_id, content=content, is_error=True)]


def _mcp_call(call_id: str, tool: McpTool, block: ToolUseBlock, verdict: Verdict) -> ev.AgentMcpToolUse:
    return ev.AgentMcpToolUse(
        id=call_id,
        mcp_server_name=tool.server,
        name=tool.name,
        input=block.input,
        evaluated_permission=verdict.permission,
        evaluation=verdict.evaluation,
    )


def _mcp_error_result(call_id: str, text: str | None) -> list[ev.AgentMcpToolResult]:
    if text is None:
        return []
    content = (TextBlock(text=text),)
    return [ev.AgentMcpToolResult(id=new_id("sevt"), mcp_tool_use_id=call_id, content=content, is_error=True)]


def _custom_error_result(call_id: str, text: str | None) -> list[ev.UserCustomToolResult]:
    """The same in the form that answers a call to the client's tool; the client is never asked."""
    if text is None:
        return []
    content = (TextBlock(text=text),)
    return [ev.UserCustomToolResult(id=new_id("sevt"), custom_tool_use_id=call_id, content=content, is_error=True)]


def _refusal(response: ModelResponse) -> ev.RefusalDetails | None:
    if response.stop_reason != "refusal":
        return None
    categories = ("cyber", "bio", "frontier_llm", "reasoning_extraction", "general_harms")
    category = response.refusal_category
    return ev.RefusalDetails(
        category=category if category in categories else None,
        explanation=response.refusal_explanation,
    )
