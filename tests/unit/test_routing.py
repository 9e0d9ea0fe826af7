"""Model ids find their provider."""

from __future__ import annotations

import pytest

from corral.app.providers import make_provider
from corral.config import load
from corral.config_sections import ModelRoute
from corral.domain.content import TextBlock
from corral.domain.inference import ModelRequest, ModelResponse, PromptMessage
from corral.errors import MachineUnfit, ProviderRefused
from corral.providers.routing import RoutedProvider, default_routes
from corral.providers.scripted import ScriptedProvider

pytestmark = pytest.mark.anyio


class Factory:
    """Makes scripted models and counts them."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self) -> ScriptedProvider:
        self.made += 1
        return ScriptedProvider()


async def model_seen_by(provider: RoutedProvider, model: str) -> str:
    text = TextBlock(text='```script\n[{"echo": "prompt"}]\n```')
    message = PromptMessage(role="user", content=(text,))
    request = ModelRequest(model=model, system="", messages=(message,), tools=(), output_tokens_max=10)
    chunks = [chunk async for chunk in provider.stream(request)]
    response = chunks[-1]
    assert isinstance(response, ModelResponse)
    block = response.content[0]
    assert isinstance(block, TextBlock)
    return block.text


async def test_the_first_matching_route_wins_and_may_rename_the_model() -> None:
    routes = (
        ModelRoute(pattern="claude-*", provider="scripted", model="renamed"),
        ModelRoute(pattern="*", provider="scripted"),
    )
    provider = RoutedProvider(routes, {"scripted": ScriptedProvider})
    assert '"model":"renamed"' in await model_seen_by(provider, "claude-opus-4-6")
    assert '"model":"gpt"' in await model_seen_by(provider, "gpt")


async def test_providers_are_made_once_and_only_when_used() -> None:
    scripted, other = Factory(), Factory()
    routes = (ModelRoute(pattern="a", provider="scripted"), ModelRoute(pattern="b", provider="local"))
    provider = RoutedProvider(routes, {"scripted": scripted, "local": other})
    await model_seen_by(provider, "a")
    await model_seen_by(provider, "a")
    assert (scripted.made, other.made) == (1, 0)
    await provider.close()
    await provider.close()


async def test_a_model_without_a_route_is_refused_by_name() -> None:
    provider = RoutedProvider((ModelRoute(pattern="claude-*", provider="scripted"),), {"scripted": ScriptedProvider})
    with pytest.raises(ProviderRefused, match=r"`gpt-9`.*corral\.toml"):
        await model_seen_by(provider, "gpt-9")


def test_a_route_to_a_provider_we_do_not_have_is_refused_at_once() -> None:
    with pytest.raises(MachineUnfit, match="`openai`"):
        RoutedProvider((ModelRoute(pattern="gpt-*", provider="openai"),), {"scripted": ScriptedProvider})


def test_with_only_an_address_or_a_key_for_openai_everything_goes_there() -> None:
    assert default_routes(anthropic=False, openai=True) == (ModelRoute(pattern="*", provider="openai"),)
    assert default_routes(anthropic=True, openai=True, openai_model="m") == (
        ModelRoute(pattern="*", provider="anthropic"),
    )


@pytest.mark.parametrize(("asked", "sent"), [("claude-opus-4-8", "qwen3"), ("gpt-9", "gpt-9")])
def test_the_environment_can_name_the_model_that_stands_in_for_claude(asked: str, sent: str) -> None:
    environ = {"OPENAI_BASE_URL": "http://127.0.0.1:8000/v1", "OPENAI_MODEL": "qwen3", "HOME": "/nonexistent"}
    settings = load(environ=environ, overrides={"models": ()})
    route = make_provider(settings).route(asked)
    assert (route.provider, route.model or asked) == ("openai", sent)


def test_without_any_key_everything_goes_to_the_local_model() -> None:
    assert [route.provider for route in default_routes(anthropic=False)] == ["local"]
    assert [route.provider for route in default_routes(anthropic=True)] == ["anthropic"]
