"""Reads the models this server knows: the table that ships with Corral, and what `corral.toml` adds to it.

`model_prices.json` is data on purpose: prices change without a release. `[prices."some-model"]` in `corral.toml`
replaces a price or adds a model. What the table means is in `domain/model.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import UTC, date, datetime, time
from importlib.resources import files
from typing import Literal

import msgspec

from corral.config_sections import ModelPrice, ModelRoute
from corral.domain.model import (
    Capabilities,
    Catalogue,
    EffortSupport,
    Listed,
    ListPrice,
    Model,
    ModelLine,
    Support,
    ThinkingSupport,
    ThinkingTypes,
)

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
YES = Support(supported=True)


class _Row(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model in `model_prices.json`."""

    id: str
    display_name: str
    line: ModelLine | None
    released: date | None
    input_tokens_max: int
    output_tokens_max: int
    system_messages: bool
    effort: tuple[Literal["low", "medium", "high", "xhigh", "max"], ...]
    thinking: tuple[Literal["adaptive", "between_tools", "disabled", "enabled"], ...]
    price: ListPrice | None
    aliases: tuple[str, ...] = ()


class _Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    about: str
    models: tuple[_Row, ...]


def load_catalogue(prices: Mapping[str, ModelPrice], routes: Iterable[ModelRoute] = ()) -> Catalogue:
    """The catalogue of a server with these `[prices]` and `[[models]]`."""
    raw = files("corral").joinpath("model_prices.json").read_bytes()
    table = msgspec.json.decode(raw, type=_Table)
    return Catalogue(_listed(table, prices, routes))


def _listed(table: _Table, prices: Mapping[str, ModelPrice], routes: Iterable[ModelRoute]) -> Iterator[Listed]:
    named = {name for row in table.models for name in (row.id, *row.aliases)}
    for row in table.models:
        override = next((prices[name] for name in (row.id, *row.aliases) if name in prices), None)
        yield Listed(
            model=_model(row),
            aliases=row.aliases,
            price=row.price if override is None else _price(override),
            system_messages=row.system_messages,
        )
    for model_id, price in prices.items():
        if model_id not in named:
            yield Listed(model=_unlisted(model_id, price.context_tokens), price=_price(price))
    named |= prices.keys()
    # A route for exactly one id is a model that the operator has; one with a wildcard says nothing about ids.
    for route in routes:
        if route.pattern not in named and not set(route.pattern) & set("*?["):
            named.add(route.pattern)
            yield Listed(model=_unlisted(route.pattern, None))


def _model(row: _Row) -> Model:
    return Model(
        id=row.id,
        display_name=row.display_name,
        created_at=EPOCH if row.released is None else datetime.combine(row.released, time(), UTC),
        line=row.line,
        max_input_tokens=row.input_tokens_max,
        max_tokens=row.output_tokens_max,
        capabilities=Capabilities(
            effort=EffortSupport(supported=bool(row.effort), **_supports(row.effort)),
            image_input=YES,
            pdf_input=YES,
            thinking=ThinkingSupport(supported=bool(row.thinking), types=ThinkingTypes(**_supports(row.thinking))),
        ),
    )


def _supports(names: Collection[str]) -> dict[str, Support]:
    return dict.fromkeys(names, YES)


def _unlisted(model_id: str, context_tokens: int | None) -> Model:
    return Model(id=model_id, display_name=model_id, created_at=EPOCH, max_input_tokens=context_tokens)


def _price(price: ModelPrice) -> ListPrice:
    return ListPrice(
        input=price.input,
        output=price.output,
        cache_read=price.cache_read,
        cache_write_5m=price.cache_write_5m,
        cache_write_1h=price.cache_write_1h,
    )
