"""Usage and what it costs: tokens and active time of a session, list prices, budgets.

Token counts are kept as whole numbers, money as micro-dollars in whole numbers while it is summed; only the wire
form rounds to cents. `input_tokens` are the uncached ones. Prices are data (`catalogue.py` builds the table from
`model_prices.json` and `corral.toml`); a model without a price makes a budget impossible, never free.

Source: the API's public documentation.
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec

SESSION_HOUR_MICRODOLLARS = 80_000
"""0.08 USD for one hour of running."""
WEB_SEARCH_MICRODOLLARS = 10_000
"""10 USD for 1,000 searches, whoever answers them."""


class MonetaryAmount(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Money in minor units, as a decimal string: "2500" is 25 USD."""

    amount: str
    currency: Literal["USD"] = "USD"


class BudgetLimit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="limit"):
    """A cap on the list cost of a session."""

    max_list_cost: MonetaryAmount


class CacheCreation(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens written to the prompt cache, by lifetime."""

    ephemeral_1h_input_tokens: int = 0
    ephemeral_5m_input_tokens: int = 0


class ServerToolUse(msgspec.Struct, frozen=True, kw_only=True):
    """Requests that the server made for the agent."""

    web_fetch_requests: int = 0
    web_search_requests: int = 0


class UsageSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Usage as the wire shows it."""

    active_seconds: float = 0.0
    cache_creation: CacheCreation = CacheCreation()
    cache_read_input_tokens: int = 0
    input_tokens: int = 0
    list_cost: MonetaryAmount | None = None
    output_tokens: int = 0
    server_tool_use: ServerToolUse = ServerToolUse()


class UsageTotals(msgspec.Struct, frozen=True, kw_only=True):
    """What a session has used, in exact units."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_input_tokens: int = 0
    cache_creation_5m_input_tokens: int = 0
    cache_creation_1h_input_tokens: int = 0
    web_fetch_requests: int = 0
    web_search_requests: int = 0
    token_cost_microdollars: int | None = 0
    """None once a request ran on a model without a list price: the sum is unknown from then on."""


class Price(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """List price of a model in USD per million tokens, which is micro-dollars per token."""

    input: float
    output: float
    cache_read: float
    cache_write_5m: float
    cache_write_1h: float


class RequestTokens(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of one model request and what they cost at list price; kept beside the span's end event."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_input_tokens: int = 0
    cache_creation_5m_input_tokens: int = 0
    cache_creation_1h_input_tokens: int = 0
    cost_microdollars: int | None = None
    overflowed: bool = False
    """The request was refused because the prompt did not fit."""
    paused: bool = False
    """The model stopped in the middle (`pause_turn`) and goes on when it is asked again."""
    conversation_tokens: int | None = None
    """Prompt and answer of the conversation alone, where the counts are of more than one request."""


def token_cost_microdollars(tokens: RequestTokens, price: Price) -> int:
    """List cost of one request; USD per million tokens is exactly micro-dollars per token."""
    return math.ceil(
        tokens.input_tokens * price.input
        + tokens.output_tokens * price.output
        + tokens.cache_read_input_tokens * price.cache_read
        + tokens.cache_creation_5m_input_tokens * price.cache_write_5m
        + tokens.cache_creation_1h_input_tokens * price.cache_write_1h
    )


def prompt_tokens(tokens: RequestTokens) -> int:
    """The length of the prompt, whether it was read from a cache, written to one, or neither."""
    return (
        tokens.input_tokens
        + tokens.cache_read_input_tokens
        + tokens.cache_creation_5m_input_tokens
        + tokens.cache_creation_1h_input_tokens
    )


def add(totals: UsageTotals, tokens: RequestTokens) -> UsageTotals:
    """The totals after one more request."""
    known = totals.token_cost_microdollars is not None and tokens.cost_microdollars is not None
    return msgspec.structs.replace(
        totals,
        input_tokens=totals.input_tokens + tokens.input_tokens,
        output_tokens=totals.output_tokens + tokens.output_tokens,
        cache_read_input_tokens=totals.cache_read_input_tokens + tokens.cache_read_input_tokens,
        cache_creation_5m_input_tokens=totals.cache_creation_5m_input_tokens + tokens.cache_creation_5m_input_tokens,
        cache_creation_1h_input_tokens=totals.cache_creation_1h_input_tokens + tokens.cache_creation_1h_input_tokens,
        token_cost_microdollars=(
            (totals.token_cost_microdollars or 0) + (tokens.cost_microdollars or 0) if known else None
        ),
    )


def with_web_request(totals: UsageTotals, tool: str) -> UsageTotals:
    """The totals after a web tool did what it was asked for."""
    if tool == "web_search":
        return msgspec.structs.replace(totals, web_search_requests=totals.web_search_requests + 1)
    return msgspec.structs.replace(totals, web_fetch_requests=totals.web_fetch_requests + 1)


def list_cost_microdollars(totals: UsageTotals, active_milliseconds: int) -> int | None:
    """Tokens at list price plus running time and searches; None when a model had no list price."""
    if totals.token_cost_microdollars is None:
        return None
    running = active_milliseconds * SESSION_HOUR_MICRODOLLARS // 3_600_000
    return totals.token_cost_microdollars + running + totals.web_search_requests * WEB_SEARCH_MICRODOLLARS


def snapshot(totals: UsageTotals, active_milliseconds: int) -> UsageSnapshot:
    """The wire form. Cents are rounded up, so a cap is never passed unseen."""
    cost = list_cost_microdollars(totals, active_milliseconds)
    return UsageSnapshot(
        active_seconds=active_milliseconds / 1000,
        cache_creation=CacheCreation(
            ephemeral_1h_input_tokens=totals.cache_creation_1h_input_tokens,
            ephemeral_5m_input_tokens=totals.cache_creation_5m_input_tokens,
        ),
        cache_read_input_tokens=totals.cache_read_input_tokens,
        input_tokens=totals.input_tokens,
        list_cost=None if cost is None else MonetaryAmount(amount=str(-(-cost // 10_000))),
        output_tokens=totals.output_tokens,
        server_tool_use=ServerToolUse(
            web_fetch_requests=totals.web_fetch_requests, web_search_requests=totals.web_search_requests
        ),
    )


def totals_of(usage: UsageSnapshot) -> UsageTotals:
    """Totals that give this snapshot again. Cents are all that is known of the cost, so they are taken as exact."""
    cost = None if usage.list_cost is None else int(usage.list_cost.amount) * 10_000
    searched = UsageTotals(web_search_requests=usage.server_tool_use.web_search_requests)
    beside_tokens = list_cost_microdollars(searched, active_milliseconds_of(usage)) or 0
    return UsageTotals(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cache_read_input_tokens=usage.cache_read_input_tokens,
        cache_creation_5m_input_tokens=usage.cache_creation.ephemeral_5m_input_tokens,
        cache_creation_1h_input_tokens=usage.cache_creation.ephemeral_1h_input_tokens,
        web_fetch_requests=usage.server_tool_use.web_fetch_requests,
        web_search_requests=usage.server_tool_use.web_search_requests,
        token_cost_microdollars=None if cost is None else cost - beside_tokens,
    )


def active_milliseconds_of(usage: UsageSnapshot) -> int:
    """The running time that a snapshot shows."""
    return round(usage.active_seconds * 1000)


def reached(budget: BudgetLimit | None, totals: UsageTotals, active_milliseconds: int) -> bool:
    """Whether the cap is spent. Checked before each model request."""
    if budget is None:
        return False
    cost = list_cost_microdollars(totals, active_milliseconds)
    return cost is not None and cost >= int(budget.max_list_cost.amount) * 10_000
