"""Models: the providers that this program has, which of them a model id means, and how much that one takes in."""

from __future__ import annotations

from collections.abc import Callable

from corral.catalogue import load_catalogue
from corral.config import Settings
from corral.config_sections import ModelRoute
from corral.domain.model import Catalogue
from corral.interfaces.provider import Provider
from corral.providers.anthropic import AnthropicProvider
from corral.providers.messages_clouds import Cloud
from corral.providers.openai import OpenAIProvider
from corral.providers.routing import RoutedProvider, default_routes, route_of
from corral.providers.scripted import ScriptedProvider


def make_provider(settings: Settings) -> RoutedProvider:
    """Providers behind the routes of `corral.toml`, or behind the default ones."""
    secrets = settings.secrets
    factories: dict[str, Callable[[], Provider]] = {
        "anthropic": lambda: AnthropicProvider(
            api_key=secrets.anthropic_api_key,
            auth_token=secrets.anthropic_auth_token,
            base_url=settings.anthropic_base_url,
            cloud=_cloud(settings),
            idle_seconds=settings.harness.model_idle_seconds_max,
            encoded_bytes_max=settings.harness.messages_cached_bytes_max,
        ),
        "openai": lambda: OpenAIProvider(
            api_key=secrets.openai_api_key,
            base_url=settings.openai_base_url,
            wire=settings.openai.wire,
            system_role=settings.openai.system_messages,
            idle_seconds=settings.harness.model_idle_seconds_max,
        ),
        "local": lambda: _local_provider(settings),
        "litellm": lambda: _litellm_provider(settings),
        "scripted": ScriptedProvider,
    }
    catalogue = load_catalogue(settings.prices, settings.models)
    return RoutedProvider(model_routes(settings), factories, efforts=catalogue.efforts)


def _cloud(settings: Settings) -> Cloud | None:
    chosen = settings.anthropic
    if chosen.platform == "anthropic":
        return None
    token = settings.secrets.bedrock_token if chosen.platform == "bedrock" else None
    return Cloud(chosen.platform, chosen.region, chosen.project, chosen.platform_url, token)


def _litellm_provider(settings: Settings) -> Provider:
    from corral.providers.openai_litellm import LiteLLMProvider

    return LiteLLMProvider(idle_seconds=settings.harness.model_idle_seconds_max)


def _local_provider(settings: Settings) -> Provider:
    from corral.providers.local import LocalProvider

    return LocalProvider(settings.local_model, cache_dir=settings.cache_dir)


def model_routes(settings: Settings) -> tuple[ModelRoute, ...]:
    """Which provider serves which model id, with nothing said: Anthropic or OpenAI if there is a key, else `local`."""
    secrets = settings.secrets
    addressed = bool(settings.anthropic_base_url) or settings.anthropic.platform != "anthropic"
    has_anthropic = bool(secrets.anthropic_api_key or secrets.anthropic_auth_token or addressed)
    scripted = ModelRoute(pattern="scripted*", provider="scripted")
    has_openai = bool(secrets.openai_api_key or settings.openai_base_url)
    default = default_routes(anthropic=has_anthropic, openai=has_openai, openai_model=settings.openai.model)
    return (*settings.models, scripted, *default)


def window_of(settings: Settings, catalogue: Catalogue) -> Callable[[str], int]:
    """What a model id can take in, by where it is routed: the local model answers to any name with its own window."""
    routes = model_routes(settings)

    def window(model: str) -> int:
        first, fallback = alone(model), None
        if (route := route_of(routes, model)) is not None:
            fallback = route.fallback
        # A conversation must fit into whichever model is asked.
        return first if fallback is None else min(first, alone(fallback))

    def alone(model: str) -> int:
        route = route_of(routes, model)
        if route is not None and route.provider == "local":
            return settings.local_model.context_tokens
        if route is not None and route.provider in ("openai", "litellm") and route.model is not None:
            # Another model answers to this id; what the id's own model can take in says nothing about it.
            return catalogue.window(route.model) or settings.harness.context_tokens
        sent = model if route is None or route.model is None else route.model
        return catalogue.window(sent) or catalogue.window(model) or settings.harness.context_tokens

    return window
