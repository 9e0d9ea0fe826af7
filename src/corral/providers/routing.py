"""Which provider answers which model id.

The routes come from `[[models]]` in `corral.toml`, or from `default_routes` when there are none; the first whose
pattern matches wins. Providers are made on first use, so a route that nobody takes costs nothing. A route may name a
second model, which is asked once, for a request that the first one refuses or does not answer.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from fnmatch import fnmatchcase
from typing import TypeGuard

import msgspec

from corral.config_sections import ModelRoute
from corral.domain.inference import AnswerRestarted, Effort, ModelChunk, ModelRequest, ModelResponse
from corral.errors import MachineUnfit, ProviderError, ProviderRefused
from corral.interfaces.provider import Provider

ELSEWHERE = frozenset({"openai", "litellm"})
"""Providers that take no `inference_geo`; to ask them without it would break a promise."""
LEVELS: tuple[Effort, ...] = ("low", "medium", "high", "xhigh", "max")


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


def supported_effort(asked: Effort | None, levels: Sequence[Effort] | None) -> Effort | None:
    """What to ask of a model with these levels: the asked one, else the next lower, else the lowest it has.

    `levels` None: nobody knows, and the model is asked as it was meant. Empty: it has none and is not asked for any.
    """
    if asked is None or levels is None or asked in levels:
        return asked
    lower: list[Effort] = [level for level in LEVELS[: LEVELS.index(asked)] if level in levels]
    return lower[-1] if lower else next(iter(levels), None)


def _effort_unknown(model: str) -> Sequence[Effort] | None:
    return None


class RoutedProvider:
    """Passes each request on to the provider that its model id is routed to."""

    def __init__(
        self,
        routes: Sequence[ModelRoute],
        providers: Mapping[str, Callable[[], Provider]],
        *,
        efforts: Callable[[str], Sequence[Effort] | None] = _effort_unknown,
    ) -> None:
        """`efforts` tells the levels of a model, as in `supported_effort`.

        Raises `MachineUnfit` when a route names a provider that this server does not have, or a fallback that goes
        nowhere.
        """
        for route in routes:
            if route.fallback is not None and route_of(routes, route.fallback) is None:
                raise MachineUnfit(f"corral.toml falls back to `{route.fallback}`, which no [[models]] route serves.")
            if route.provider not in providers:
                known = ", ".join(sorted(providers))
                raise MachineUnfit(
                    f"corral.toml routes `{route.pattern}` to `{route.provider}`, which this release does not have. "
                    f"It has: {known}."
                )
        self._routes = tuple(routes)
        self._factories = providers
        self._efforts = efforts
        self._made: dict[str, Provider] = {}

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelChunk]:
        """Ask the model where it lives; see `Provider.stream`. Raises `ProviderRefused` when no route matches."""
        route = self.route(request.model)
        answer = self._ask if route.fallback is None else self._ask_two
        async with aclosing(answer(route, request)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _ask(self, route: ModelRoute, request: ModelRequest) -> AsyncGenerator[ModelChunk]:
        model = route.model or request.model
        if request.inference_geo is not None and route.provider in ELSEWHERE:
            raise ProviderRefused(f"The provider `{route.provider}` cannot promise to run a model in a certain place.")
        request = msgspec.structs.replace(
            request, model=model, effort=supported_effort(request.effort, self._efforts(model))
        )
        async with aclosing(self._provider(route.provider).stream(request)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _ask_two(self, route: ModelRoute, request: ModelRequest) -> AsyncGenerator[ModelChunk]:
        """Ask the first model and, if that comes to nothing, the second, whose own fallback is not asked."""
        failed: ModelResponse | ProviderError | None = None
        try:
            async with aclosing(self._ask(route, request)) as chunks:
                async for chunk in chunks:
                    if _refused(chunk) and "refusal" in route.fallback_on:
                        failed = chunk
                        break
                    yield chunk
        except ProviderError as error:
            if not error.retryable or "outage" not in route.fallback_on:
                raise
            failed = error
        if failed is not None:
            async with aclosing(self._ask_second(route, request, failed)) as chunks:
                async for chunk in chunks:
                    yield chunk

    async def _ask_second(
        self, route: ModelRoute, request: ModelRequest, failed: ModelResponse | ProviderError
    ) -> AsyncGenerator[ModelChunk]:
        """The second model's answer. If it fails as well, what the first one said stands."""
        second = route.fallback or ""
        others = failed.used(request.model) if isinstance(failed, ModelResponse) else ()
        yield AnswerRestarted(second, failed.message if isinstance(failed, ProviderError) else "It refused.")
        try:
            asked = msgspec.structs.replace(request, model=second)
            async with aclosing(self._ask(self.route(second), asked)) as chunks:
                async for chunk in chunks:
                    answered = isinstance(chunk, ModelResponse)
                    yield msgspec.structs.replace(chunk, model=second, others=others) if answered else chunk
        except ProviderError as error:
            if isinstance(failed, ProviderError):
                raise failed from error
            yield AnswerRestarted(request.model, error.message)
            yield failed

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
            try:
                self._made[name] = self._factories[name]()
            except MachineUnfit as error:
                raise ProviderRefused(error.message) from error
        return self._made[name]


def _refused(chunk: ModelChunk) -> TypeGuard[ModelResponse]:
    return isinstance(chunk, ModelResponse) and chunk.stop_reason == "refusal"
