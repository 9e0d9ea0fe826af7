"""Models as the API lists them, with their list prices: data and look-ups, no opinions.

What is listed is what this server knows, not what a provider would answer to: any model id may be used, and one that is
not here has no price, so no session on it can have a budget. The table comes from `model_prices.json` and
`corral.toml`; `catalogue.py` reads it.

Source: the API's public documentation; SDK types `beta_model_info`, `beta_model_capabilities`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import datetime
from typing import Literal, TypeAlias

import msgspec

from corral.domain.inference import Effort
from corral.domain.usage import Price

Lifecycle: TypeAlias = Literal["active", "deprecated", "retired"]
ModelLine: TypeAlias = Literal["haiku", "sonnet", "opus", "fable", "mythos"]


class LongPromptPrice(Price, frozen=True, kw_only=True):
    """What every token of a request costs once its prompt is longer than `above_tokens`."""

    above_tokens: int


class ListPrice(Price, frozen=True, kw_only=True):
    """A price that may rise with the length of the prompt."""

    long_prompt: LongPromptPrice | None = None

    def for_prompt(self, tokens: int) -> Price:
        """The price of a request whose prompt, cache reads and writes included, is this long."""
        if self.long_prompt is not None and tokens > self.long_prompt.above_tokens:
            return self.long_prompt
        return self


class Support(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the model has a capability."""

    supported: bool = False


class CompactionSupport(msgspec.Struct, frozen=True, kw_only=True):
    """Compaction on the model provider's side."""

    supported: bool = False
    summarize: Support = Support()


class ContextManagementSupport(msgspec.Struct, frozen=True, kw_only=True):
    """Context editing on the model provider's side. Corral manages contexts itself."""

    supported: bool = False
    clear_thinking_20251015: Support | None = None
    clear_tool_uses_20250919: Support | None = None
    compact_20260112: Support | None = None


class EffortSupport(msgspec.Struct, frozen=True, kw_only=True):
    """Levels of `effort`."""

    supported: bool = False
    low: Support = Support()
    medium: Support = Support()
    high: Support = Support()
    xhigh: Support = Support()
    max: Support = Support()


class ServerToolsSupport(msgspec.Struct, frozen=True, kw_only=True):
    """Tools on the model provider's side."""

    supported: bool = False
    code_execution: Support = Support()
    web_search: Support = Support()


class ThinkingTypes(msgspec.Struct, frozen=True, kw_only=True):
    """Accepted values of `thinking.type`."""

    adaptive: Support = Support()
    between_tools: Support = Support()
    disabled: Support = Support()
    enabled: Support = Support()


class ThinkingSupport(msgspec.Struct, frozen=True, kw_only=True):
    """Thinking."""

    supported: bool = False
    types: ThinkingTypes = ThinkingTypes()


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What the model can do *through this server*: capabilities of other products' endpoints are not claimed."""

    batch: Support = Support()
    citations: Support = Support()
    code_execution: Support = Support()
    compaction: CompactionSupport = CompactionSupport()
    context_management: ContextManagementSupport = ContextManagementSupport()
    effort: EffortSupport = EffortSupport()
    image_input: Support = Support()
    pdf_input: Support = Support()
    server_tools: ServerToolsSupport = ServerToolsSupport()
    structured_outputs: Support = Support()
    thinking: ThinkingSupport = ThinkingSupport()


class Model(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="model"):
    """A model as the wire shows it."""

    id: str
    display_name: str
    created_at: datetime
    """When the model was released; the epoch when that is not known."""
    lifecycle: Lifecycle = "active"
    line: ModelLine | None = None
    max_input_tokens: int | None = None
    max_tokens: int | None = None
    capabilities: Capabilities | None = None
    allowed_fallback_models: tuple[str, ...] | None = None
    deprecated_at: datetime | None = None
    retires_at: datetime | None = None


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """A model of the catalogue with what the wire does not show."""

    model: Model
    aliases: tuple[str, ...] = ()
    price: ListPrice | None = None
    system_messages: bool = True
    """Whether it takes system messages in mid-conversation."""


class Catalogue:
    """The models that this server knows, newest first."""

    def __init__(self, listed: Iterable[Listed]) -> None:
        self._listed = tuple(sorted(listed, key=lambda each: (each.model.created_at, each.model.id), reverse=True))
        self._by_name = {name: each for each in self._listed for name in (each.model.id, *each.aliases)}

    def find(self, model_id: str) -> Model | None:
        """The model by id or alias."""
        listed = self._by_name.get(model_id)
        return None if listed is None else listed.model

    def models(self, lifecycles: Collection[Lifecycle] = ("active", "deprecated")) -> list[Model]:
        """Models in these stages of life."""
        return [each.model for each in self._listed if each.model.lifecycle in lifecycles]

    def price(self, model_id: str) -> ListPrice | None:
        """List price of a model id or alias; None when nobody knows it."""
        listed = self._by_name.get(model_id)
        return None if listed is None else listed.price

    def window(self, model_id: str) -> int | None:
        """Tokens that a model id or alias can take in; None when nobody knows."""
        listed = self._by_name.get(model_id)
        return None if listed is None else listed.model.max_input_tokens

    def efforts(self, model_id: str) -> tuple[Effort, ...] | None:
        """Levels of effort that a model id or alias takes, lowest first; None when nobody knows."""
        listed = self._by_name.get(model_id)
        if listed is None or listed.model.capabilities is None:
            return None
        support = listed.model.capabilities.effort
        levels: dict[Effort, Support] = {
            "low": support.low,
            "medium": support.medium,
            "high": support.high,
            "xhigh": support.xhigh,
            "max": support.max,
        }
        return tuple(level for level, each in levels.items() if each.supported)

    def supports_system_messages(self, model_id: str) -> bool:
        """Whether the model takes system messages in mid-conversation. Only models known not to are refused."""
        listed = self._by_name.get(model_id)
        return listed is None or listed.system_messages
