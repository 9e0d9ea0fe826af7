"""One model request: send the conversation, show previews, and read the answer.

Nothing is committed here; a request that fails or is cut off leaves no trace but its previews, which the end of its
span closes. A failure is returned, not raised, because requests run inside task groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import aclosing

import anyio
import msgspec
import structlog

from corral.domain import event as ev
from corral.domain.agent import DEFAULT_EFFORT
from corral.domain.content import ToolUseBlock
from corral.domain.inference import (
    AnswerRestarted,
    BlockStarted,
    ModelChunk,
    ModelRequest,
    ModelResponse,
    PromptMessage,
    TextDelta,
    UsedBy,
)
from corral.domain.session import Session, SessionState
from corral.domain.toolset import CustomTool
from corral.domain.usage import RequestTokens, prompt_tokens
from corral.errors import ProviderError, ProviderUnreachable
from corral.harness import answer as answers
from corral.harness.context import Context
from corral.harness.draft import Draft
from corral.harness.judge import judge
from corral.harness.parts import Parts
from corral.harness.permissions import Verdict, evaluate
from corral.harness.prompt import sandbox_tools, system_text, tool_specs, web_tools
from corral.interfaces.mcp import McpTool

log = structlog.get_logger(__name__)


async def ask(
    parts: Parts, session: Session, state: SessionState, context: Context, offered: Sequence[McpTool]
) -> answers.Answer | ProviderError:
    """The model's answer to the conversation so far, or why there is none. `offered` are the MCP servers' tools."""
    model = session.agent.model
    request = ModelRequest(
        model=model.id,
        system=system_text(session.agent, parts.tools, session.vault_ids),
        messages=await _messages(parts, session, context),
        tools=tool_specs(session.agent, parts.tools, parts.web, offered),
        output_tokens_max=parts.settings.output_tokens_max,
        effort=None if model.effort == DEFAULT_EFFORT else model.effort.type,
        speed=model.speed,
        inference_geo=model.inference_geo,
        answer_bytes_max=parts.settings.answer_bytes_max,
        attempt=state.attempt,
    )
    by_name = {tool.spec.name: tool for tool in offered}
    draft = Draft(session.id, parts.bus)
    try:
        response = await _stream(parts, request, draft)
    except ProviderError as error:
        return error
    verdicts, judging = await _judged(parts, session, context, response, by_name)
    return answers.read(
        response,
        draft,
        verdicts,
        custom_tools=frozenset(tool.name for tool in session.agent.tools if isinstance(tool, CustomTool)),
        known_tools=frozenset((*parts.tools, *parts.web)),
        offered=by_name,
        tokens=_tokens(parts, model.id, response, judging, model.inference_geo),
    )


def _tokens(parts: Parts, asked: str, response: ModelResponse, judging: list[UsedBy], geo: str | None) -> RequestTokens:
    """All that the answer took; beside it the length of the conversation, of which other requests are no part."""
    tokens = answers.total([*response.used(asked), *judging], parts.price, geo)
    alone = answers.cost(response.usage, None)
    return msgspec.structs.replace(tokens, conversation_tokens=prompt_tokens(alone) + alone.output_tokens)


async def _messages(parts: Parts, session: Session, context: Context) -> tuple[PromptMessage, ...]:
    """The conversation with its files in place; most have none, and then nobody need look for them."""
    if not context.refers_to_files:
        return tuple(context.messages)
    return await parts.attachments.resolved(session.workspace_id, context.messages)


async def _stream(parts: Parts, request: ModelRequest, draft: Draft) -> ModelResponse:
    """Follow the stream to its end; one that falls silent is cut."""
    async with aclosing(parts.provider.stream(request)) as chunks:
        while True:
            chunk: ModelChunk | None = None
            with anyio.move_on_after(parts.settings.model_idle_seconds_max) as patience:
                chunk = await anext(chunks, None)
            if patience.cancelled_caught:
                seconds = parts.settings.model_idle_seconds_max
                raise ProviderUnreachable(f"The model sent nothing for {seconds:g} seconds.")
            match chunk:
                case BlockStarted():
                    draft.started(chunk)
                case TextDelta():
                    draft.text(chunk)
                case AnswerRestarted():
                    draft.restarted()
                    log.warning("model_fallback", asked=request.model, model=chunk.model, reason=chunk.reason)
                case ModelResponse():
                    return chunk
                case None:
                    raise ProviderUnreachable("The model's stream ended without an answer.")


async def _judged(
    parts: Parts, session: Session, context: Context, response: ModelResponse, offered: Mapping[str, McpTool]
) -> tuple[dict[str, Verdict], list[UsedBy]]:
    """The permission of each call of the answer, and what asking the judge took."""
    available = frozenset((*sandbox_tools(session.agent, parts.tools), *web_tools(session.agent, parts.web)))
    verdicts: dict[str, Verdict] = {}
    used: list[UsedBy] = []

    async def ask_judge(call: ToolUseBlock) -> ev.AutoAllow | ev.AutoAsk | ev.AutoDeny:
        judgement = await judge(parts.provider, session.agent, context.messages, call)
        used.extend(judgement.used)
        return judgement.verdict

    for block in response.content:
        if isinstance(block, ToolUseBlock):
            verdicts[block.id] = await evaluate(session.agent, block, available, offered, ask_judge)
    return verdicts, used
