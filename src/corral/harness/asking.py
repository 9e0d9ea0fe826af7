"""One model request: send the conversation, show previews, and read the answer.

Nothing is committed here; a request that fails or is cut off leaves no trace but its previews, which the end of its
span closes. A failure is returned, not raised, because requests run inside task groups.
"""

from __future__ import annotations

from contextlib import aclosing

import anyio
import msgspec

from corral.domain import event as ev
from corral.domain.agent import DEFAULT_EFFORT
from corral.domain.content import ToolUseBlock
from corral.domain.inference import (
    BlockStarted,
    ModelChunk,
    ModelRequest,
    ModelResponse,
    ModelUsage,
    PromptMessage,
    TextDelta,
)
from corral.domain.session import Session, SessionState
from corral.domain.toolset import CustomTool
from corral.errors import ProviderError, ProviderUnreachable
from corral.harness import answer as answers
from corral.harness.context import Context
from corral.harness.draft import Draft
from corral.harness.judge import judge
from corral.harness.parts import Parts
from corral.harness.permissions import Verdict, evaluate
from corral.harness.prompt import sandbox_tools, system_text, tool_specs


async def ask(parts: Parts, session: Session, state: SessionState, context: Context) -> answers.Answer | ProviderError:
    """The model's answer to the conversation so far, or why there is none."""
    model = session.agent.model
    request = ModelRequest(
        model=model.id,
        system=system_text(session.agent, parts.tools),
        messages=await _messages(parts, session, context),
        tools=tool_specs(session.agent, parts.tools),
        output_tokens_max=parts.settings.output_tokens_max,
        effort=None if model.effort == DEFAULT_EFFORT else model.effort.type,
        speed=model.speed,
        answer_bytes_max=parts.settings.answer_bytes_max,
        attempt=state.attempt,
    )
    draft = Draft(session.id, parts.bus)
    try:
        response = await _stream(parts, request, draft)
    except ProviderError as error:
        return error
    verdicts, usage = await _judged(parts, session, context, response)
    return answers.read(
        msgspec.structs.replace(response, usage=usage),
        draft,
        verdicts,
        custom_tools=frozenset(tool.name for tool in session.agent.tools if isinstance(tool, CustomTool)),
        known_tools=frozenset(parts.tools),
        price=parts.price(session.agent.model.id),
    )


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
                case ModelResponse():
                    return chunk
                case None:
                    raise ProviderUnreachable("The model's stream ended without an answer.")


async def _judged(
    parts: Parts, session: Session, context: Context, response: ModelResponse
) -> tuple[dict[str, Verdict], ModelUsage]:
    """The permission of each built-in call of the answer, and what all of it took, the judge's requests included."""
    available = frozenset(sandbox_tools(session.agent, parts.tools))
    verdicts: dict[str, Verdict] = {}
    usage = response.usage

    async def ask_judge(call: ToolUseBlock) -> ev.AutoAllow | ev.AutoAsk | ev.AutoDeny:
        nonlocal usage
        judgement = await judge(parts.provider, session.agent, context.messages, call)
        usage = sum_of(usage, judgement.usage)
        return judgement.verdict

    for block in response.content:
        if isinstance(block, ToolUseBlock):
            verdicts[block.id] = await evaluate(session.agent, block, available, ask_judge)
    return verdicts, usage


def sum_of(one: ModelUsage, other: ModelUsage) -> ModelUsage:
    """Tokens of two requests together."""
    added = {name: count + getattr(other, name) for name, count in msgspec.structs.asdict(one).items()}
    return ModelUsage(**added)
