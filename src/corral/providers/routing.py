"""Which provider answers which model id.

The routes come from `[[models]]` in `corral.toml`, or from `default_routes` when there are none; the first whose
pattern matches wins. Providers are made on first use, so a route that nobody takes costs nothing.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

import msgspec

from corral.config import ModelRoute
from corral.domain.inference import ModelChunk, ModelRequest
from corral.errors import MachineUnfit, ProviderRefused
from corral.interfaces import Provider


def default_routes(*, anthropic: bool, openai: bool = False, openai_model: str | None = None) -> tuple[ModelRoute, ...]:
    """The routes of a server whose `corral.toml` names none.

    `anthropic` and `openai`: is there a key or a base URL for it? `openai_model` stands in for Claude, which is what
    programs written for the hosted service ask for.
    """
    if anthropic:
        return (ModelRoute(pattern="*", provider="anthropic"),)
    if not openai:
        return (ModelRoute(pattern="*", provider="local"),)
    everything = ModelRoute(pattern="*", provider="openai")
    if openai_model is None:
        return (everything,)
    return ModelRoute(pattern="claude-*", provider="openai", model=openai_model), everything


def route_of(routes: Iterable[ModelRoute], model: str) -> ModelRoute | None:
    """The first route whose pattern matches."""
    return next((route for route in routes if fnmatchcase(model, route.pattern)), None)


class RoutedProvider:
    """Passes each request on to the provider that its model id is routed to."""

    def __init__(self, routes: Sequence[ModelRoute], providers: Mapping[str, Callable[[], Provider]]) -> None:
        """Raises `MachineUnfit` when a route names a provider that this server does not have."""
        for route in routes:
            if route.provider not in providers:
                known = ", ".join(sorted(providers))
                raise MachineUnfit(
                    f"corral.toml routes `{route.pattern}` to `{route.provider}`, which this release does not have. "
                    f"It has: {known}."
                )
        self._routes = tuple(routes)
        self._factories = providers
        self._made: dict[str, Provider] = {}

    def stream(self, request: ModelRequest) -> AsyncGenerator[ModelChunk]:
        """Ask the model where it lives; see `Provider.stream`. Raises `ProviderRefused` when no route matches."""
        route = self.route(request.model)
        if route.model is not None:
            request = msgspec.structs.replace(request, model=route.model)
        return self._provider(route.provider).stream(request)

    def route(self, model: str) -> ModelRoute:
        """The first route that matches. Raises `ProviderRefused` naming the model when there is none."""
        route = route_of(self._routes, model)
        if route is not None:
            return route
        raise ProviderRefused(f"No provider serves the model `{model}`. Add a [[models]] route to corral.toml.")

    async def close(self) -> None:
        """Close every provider that was used. Idempotent."""
        made, self._made = self._made, {}
        for provider in made.values():
            await provider.close()

    def _provider(self, name: str) -> Provider:
        if name not in self._made:
            self._made[name] = self._factories[name]()
        return self._made[name]
