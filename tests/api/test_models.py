from __future__ import annotations

import anthropic
import pytest
from anthropic.types.beta import BetaModelInfo

from corral.catalogue import load_catalogue
from corral.config_sections import ModelPrice, ModelRoute
from tests.api.live_server import Server
from tests.api.sdk_types import assert_is

PRICE = ModelPrice(input=1, output=2, cache_read=0.1, cache_write_5m=1.25, cache_write_1h=2, context_tokens=32_000)


def test_every_model_is_listed_as_the_sdk_knows_it(server: Server) -> None:
    page = server.http.get("/v1/models?limit=1000").json()
    assert (page["has_more"], page["first_id"], page["last_id"]) == (
        False,
        page["data"][0]["id"],
        page["data"][-1]["id"],
    )
    for model in page["data"]:
        assert_is(model, BetaModelInfo)
    released = [model["created_at"] for model in page["data"]]
    assert released == sorted(released, reverse=True)


def test_models_page_both_ways(server: Server) -> None:
    everything = [model["id"] for model in server.http.get("/v1/models?limit=1000").json()["data"]]
    assert [model.id for model in server.client.beta.models.list(limit=5)] == everything
    before = server.http.get("/v1/models", params={"before_id": everything[7], "limit": 3}).json()
    assert [model["id"] for model in before["data"]] == everything[4:7]
    assert before["has_more"] is True
    for query in ("after_id=nobody", "after_id=a&before_id=b", "lifecycle=ancient", "limit=1001"):
        assert server.http.get(f"/v1/models?{query}").status_code == 400


def test_models_are_filtered_by_stage_of_life(server: Server) -> None:
    assert server.client.beta.models.list(lifecycle=["retired"]).data == []
    assert len(server.client.beta.models.list(lifecycle=["active", "deprecated"]).data) > 3


def test_an_alias_finds_its_model(server: Server) -> None:
    assert server.client.beta.models.retrieve("claude-haiku-4-5").id == "claude-haiku-4-5-20251001"
    with pytest.raises(anthropic.NotFoundError):
        server.client.beta.models.retrieve("gpt-nothing")


def test_the_operators_prices_win_and_add_models() -> None:
    catalogue = load_catalogue(
        {"claude-haiku-4-5": PRICE, "my-model": PRICE},
        [ModelRoute(pattern="house-model", provider="local"), ModelRoute(pattern="claude-*", provider="anthropic")],
    )
    for name in ("claude-haiku-4-5", "claude-haiku-4-5-20251001", "my-model"):
        price = catalogue.price(name)
        assert price is not None
        assert (price.input, price.output) == (1, 2)
    mine = catalogue.find("my-model")
    assert mine is not None
    assert mine.max_input_tokens == 32_000
    assert catalogue.find("house-model") is not None
    assert catalogue.price("house-model") is None
    assert catalogue.find("claude-*") is None


def test_long_prompts_of_some_models_cost_more() -> None:
    price = load_catalogue({}).price("claude-haiku-5-5")
    assert price is not None
    assert price.for_prompt(100_000).input == 0.1
    assert price.for_prompt(100_001).input == 0.5


def test_only_models_known_not_to_take_system_messages_are_refused() -> None:
    catalogue = load_catalogue({})
    assert not catalogue.supports_system_messages("claude-sonnet-4-5")
    assert catalogue.supports_system_messages("claude-opus-5-5")
    assert catalogue.supports_system_messages("anything-else")
