"""A second model for requests that the first one refuses or cannot answer: asked once, and never mixed with the first.

The first model is a real HTTP server that answers with hand-written bytes; the second one is scripted.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Literal

import anyio
import msgspec
import pytest

from corral.app.providers import make_provider
from corral.config import load
from corral.config_sections import ModelRoute
from corral.domain.content import TextBlock
from corral.domain.inference import (
    AnswerRestarted,
    BlockStarted,
    Effort,
    ModelChunk,
    ModelRequest,
    ModelResponse,
    ModelUsage,
    PromptMessage,
    TextDelta,
    UsedBy,
)
from corral.domain.model import ListPrice
from corral.errors import MachineUnfit, ProviderBilling, ProviderError, ProviderOverloaded, ProviderRefused
from corral.harness.answer import total
from corral.providers.openai import OpenAIProvider
from corral.providers.routing import RoutedProvider, supported_effort
from corral.providers.scripted import ScriptedProvider
from tests.counterpart import KEY, Counterpart
from tests.unit.openai_words import CHAT_HELLO, chat, chat_chunk

pytestmark = [pytest.mark.anyio, pytest.mark.requirement("F068")]


def routed(server: Counterpart, *on: Literal["refusal", "outage"], fallback: str | None = "second") -> RoutedProvider:
    routes = (
        ModelRoute(pattern="first", provider="openai", fallback=fallback, fallback_on=on),
        ModelRoute(pattern="second", provider="scripted", fallback="first"),
    )

    def openai() -> OpenAIProvider:
        return OpenAIProvider(api_key=KEY, base_url=f"{server.url}/v1")

    return RoutedProvider(routes, {"openai": openai, "scripted": ScriptedProvider})


@pytest.fixture
async def provider(server: Counterpart) -> AsyncIterator[RoutedProvider]:
    provider = routed(server, "refusal", "outage")
    yield provider
    await provider.close()


def asking(text: str = "hi", model: str = "first") -> ModelRequest:
    message = PromptMessage(role="user", content=(TextBlock(text=text),))
    return ModelRequest(model=model, system="", messages=(message,), tools=(), output_tokens_max=10)


async def chunks_of(provider: RoutedProvider, request: ModelRequest) -> list[ModelChunk]:
    with anyio.fail_after(30):
        return [chunk async for chunk in provider.stream(request)]


def refusal(**usage: int) -> str:
    return chat(*CHAT_HELLO, chat_chunk("content_filter"), usage={**usage})


async def test_an_outage_is_answered_by_the_second_model(server: Counterpart, provider: RoutedProvider) -> None:
    server.answers('{"error": {"message": "later"}}', status=503, kind="application/json")
    restarted, *previews, response = await chunks_of(provider, asking())
    assert isinstance(restarted, AnswerRestarted) and restarted.model == "second" and "later" in restarted.reason
    assert isinstance(response, ModelResponse)
    assert response.content == (TextBlock(text="You said: hi"),)
    assert (response.model, response.others) == ("second", ())
    assert previews[0] == BlockStarted(0, "text")
    assert len(server.bodies) == 1


async def test_half_an_answer_is_void_before_the_second_begins(server: Counterpart, provider: RoutedProvider) -> None:
    server.answers(chat(*CHAT_HELLO, done=False))
    chunks = await chunks_of(provider, asking())
    place = next(place for place, chunk in enumerate(chunks) if isinstance(chunk, AnswerRestarted))
    assert chunks[:place] == [BlockStarted(0, "text"), TextDelta(0, "Hel"), TextDelta(0, "lo")]
    assert chunks[place + 1] == BlockStarted(0, "text")
    last = chunks[-1]
    assert isinstance(last, ModelResponse) and last.content == (TextBlock(text="You said: hi"),)


@pytest.mark.requirement("F086", "F143")
async def test_a_refusal_is_answered_by_the_second_model_and_paid_for(
    server: Counterpart, provider: RoutedProvider
) -> None:
    server.answers(refusal(prompt_tokens=40, completion_tokens=2))
    response = (await chunks_of(provider, asking()))[-1]
    assert isinstance(response, ModelResponse)
    assert (response.stop_reason, response.model) == ("end_turn", "second")
    assert response.others == (UsedBy("first", ModelUsage(input_tokens=40, output_tokens=2)),)
    prices = {
        "first": ListPrice(input=1, output=10, cache_read=0, cache_write_5m=0, cache_write_1h=0),
        "second": ListPrice(input=100, output=1000, cache_read=0, cache_write_5m=0, cache_write_1h=0),
    }
    used = response.used("first")
    tokens = total(used, prices.get)
    assert tokens.input_tokens == 40 + response.usage.input_tokens
    assert tokens.cost_microdollars == 60 + 100 * response.usage.input_tokens + 1000 * response.usage.output_tokens
    assert total(used, {"first": prices["first"]}.get).cost_microdollars is None
    there = total(used, prices.get, "us").cost_microdollars
    assert there is not None and tokens.cost_microdollars is not None
    assert there * 10 >= tokens.cost_microdollars * 11 > (there - 1) * 10


@pytest.mark.requirement("F002")
async def test_who_cannot_promise_a_place_is_not_asked(server: Counterpart) -> None:
    provider = routed(server, "outage")
    with pytest.raises(ProviderRefused, match="certain place"):
        await chunks_of(provider, msgspec.structs.replace(asking(), inference_geo="eu"))
    await provider.close()
    assert server.bodies == []


@pytest.mark.requirement("F086")
async def test_a_refusal_stands_when_the_second_model_fails(server: Counterpart, provider: RoutedProvider) -> None:
    server.answers(refusal())
    chunks = await chunks_of(provider, asking('```script\n[{"fail": "refused", "after": "so"}]\n```'))
    last = chunks[-1]
    assert isinstance(last, ModelResponse)
    assert (last.stop_reason, last.model) == ("refusal", None)
    assert [chunk.model for chunk in chunks if isinstance(chunk, AnswerRestarted)] == ["second", "first"]


async def test_an_outage_stands_when_the_second_model_fails(server: Counterpart, provider: RoutedProvider) -> None:
    server.answers('{"error": {"message": "later"}}', status=503, kind="application/json")
    with pytest.raises(ProviderOverloaded, match="later"):
        await chunks_of(provider, asking('```script\n[{"fail": "refused"}]\n```'))
    # The second model has a fallback of its own, the first: nobody is asked twice.
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    ("on", "status", "error"),
    [
        (("refusal",), 503, ProviderOverloaded),
        (("outage", "refusal"), 400, ProviderRefused),
        (("outage", "refusal"), 402, ProviderBilling),
    ],
)
async def test_other_failures_are_the_first_models_own(
    server: Counterpart, on: tuple[Literal["refusal", "outage"], ...], status: int, error: type[ProviderError]
) -> None:
    server.answers('{"error": {"message": "no"}}', status=status, kind="application/json")
    provider = routed(server, *on)
    with pytest.raises(error):
        await chunks_of(provider, asking())
    await provider.close()


async def test_a_refusal_is_an_answer_where_only_outages_count(server: Counterpart) -> None:
    server.answers(refusal())
    provider = routed(server, "outage")
    last = (await chunks_of(provider, asking()))[-1]
    assert isinstance(last, ModelResponse) and last.stop_reason == "refusal"
    await provider.close()


async def test_without_a_fallback_nobody_else_is_asked(server: Counterpart) -> None:
    server.answers('{"error": {"message": "later"}}', status=503, kind="application/json")
    provider = routed(server, "refusal", "outage", fallback=None)
    with pytest.raises(ProviderOverloaded):
        await chunks_of(provider, asking())
    await provider.close()


def test_a_fallback_that_goes_nowhere_is_refused_at_once() -> None:
    route = ModelRoute(pattern="first", provider="scripted", fallback="nobody")
    with pytest.raises(MachineUnfit, match="`nobody`"):
        RoutedProvider((route,), {"scripted": ScriptedProvider})


async def test_a_provider_that_cannot_be_made_fails_the_request_and_no_more() -> None:
    provider = make_provider(
        load(environ={"HOME": "/nonexistent"}, overrides={"models": [{"pattern": "g", "provider": "openai"}]})
    )
    with pytest.raises(ProviderRefused, match="OPENAI_API_KEY"):
        await chunks_of(provider, asking(model="g"))


# ------------------------------------------------------------------------------------------------- effort


@pytest.mark.requirement("F002")
@pytest.mark.parametrize(
    ("asked", "levels", "sent"),
    [
        ("max", ("low", "medium", "high"), "high"),
        ("xhigh", ("low", "medium", "high", "max"), "high"),
        ("low", ("medium", "high"), "medium"),
        ("high", ("high",), "high"),
        ("high", (), None),
        ("max", None, "max"),
        (None, ("low",), None),
    ],
)
def test_effort_is_brought_down_to_what_the_model_has(
    asked: Effort | None, levels: tuple[Effort, ...] | None, sent: Effort | None
) -> None:
    assert supported_effort(asked, levels) == sent


@pytest.mark.requirement("F002")
@pytest.mark.parametrize(
    ("model", "sent"),
    [("claude-opus-4-6", "high"), ("claude-opus-5", "xhigh"), ("claude-haiku-4-5", None), ("m", "xhigh")],
)
async def test_the_catalogue_knows_the_levels_of_a_model(server: Counterpart, model: str, sent: str | None) -> None:
    server.answers(chat(*CHAT_HELLO, chat_chunk("stop")))
    environ = {"HOME": "/nonexistent", "OPENAI_BASE_URL": f"{server.url}/v1"}
    provider = make_provider(load(environ=environ, overrides={"models": ()}))
    await chunks_of(provider, msgspec.structs.replace(asking(model=model), effort="xhigh"))
    await provider.close()
    body = msgspec.json.decode(server.bodies[-1], type=dict[str, object])
    assert body.get("reasoning_effort") == sent
