"""What is asked of a model and what it answers: the shapes that the harness and every provider share.

Data only. Who asks is `harness/`, who answers is `providers/`; the seam between them is `interfaces.provider.Provider`.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from corral.domain.content import AssistantBlock, JsonObject, PromptBlock

ANSWER_BYTES_MAX = 64 * 1024 * 1024
Effort: TypeAlias = Literal["low", "medium", "high", "xhigh", "max"]


class ToolSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A tool as a model sees it."""

    name: str
    description: str
    input_schema: JsonObject


class PromptMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One message of a conversation, in the Messages API's form."""

    role: Literal["user", "assistant", "system"]
    content: tuple[PromptBlock, ...]


class ModelRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request to a model."""

    model: str
    system: str
    messages: tuple[PromptMessage, ...]
    tools: tuple[ToolSpec, ...]
    output_tokens_max: int
    effort: Effort | None = None
    """None leaves the model's own default."""
    speed: Literal["standard", "fast"] = "standard"
    inference_geo: str | None = None
    """Where the model must run; None for wherever its provider likes."""
    answer_bytes_max: int = ANSWER_BYTES_MAX
    """An answer that is longer, as the server sends it, is a fault of the server. One event has a sixteenth of this."""
    once: bool = False
    """Nothing will be asked that begins like this, so that a cache would keep it for nobody."""
    attempt: int = 0
    """How many times this same request has failed before. For back-off; it never changes the prompt."""


class ModelUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of one request. `input_tokens` are the uncached ones only."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_input_tokens: int = 0
    cache_creation_5m_input_tokens: int = 0
    cache_creation_1h_input_tokens: int = 0


class BlockStarted(msgspec.Struct, frozen=True):
    """A block of the answer opens at `index`."""

    index: int
    kind: Literal["text", "thinking", "tool_use"]


class TextDelta(msgspec.Struct, frozen=True):
    """More text for the text block at `index`."""

    index: int
    text: str


class AnswerRestarted(msgspec.Struct, frozen=True):
    """All that came so far is void: `model` answers from the beginning, because of `reason`."""

    model: str
    reason: str


class UsedBy(msgspec.Struct, frozen=True):
    """What one model took."""

    model: str
    usage: ModelUsage


class ModelResponse(msgspec.Struct, frozen=True, kw_only=True):
    """The whole answer; always the last chunk of a successful stream."""

    content: tuple[AssistantBlock, ...]
    stop_reason: Literal["end_turn", "tool_use", "max_tokens", "stop_sequence", "pause_turn", "refusal"]
    usage: ModelUsage
    refusal_category: str | None = None
    refusal_explanation: str | None = None
    malformed_tool_inputs: tuple[str, ...] = ()
    """Ids of tool calls whose input the model wrote as broken JSON; their `input` is empty."""
    model: str | None = None
    """Who answered, if not the model that was asked but its fallback."""
    others: tuple[UsedBy, ...] = ()
    """What models took for this request whose answers were not used."""

    def used(self, asked: str) -> tuple[UsedBy, ...]:
        """What every model took for this request; `asked` is the model that it named."""
        return (*self.others, UsedBy(self.model or asked, self.usage))


ModelChunk: TypeAlias = BlockStarted | TextDelta | AnswerRestarted | ModelResponse
