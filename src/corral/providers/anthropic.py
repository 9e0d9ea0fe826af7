"""Anthropic's models, there or in a cloud, or any other server that speaks the Messages API at `base_url`.

Only what is peculiar to this API is here; the conversation itself is `messages_wire.py`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping

from corral.domain.inference import ModelChunk, ModelRequest
from corral.errors import MachineUnfit, ProviderRefused
from corral.providers.messages_clouds import Cloud
from corral.providers.messages_request import EncodedMessages, WireRequest, encode_request
from corral.providers.messages_wire import MessagesClient

BASE_URL = "https://api.anthropic.com"
FAST_MODE_BETA = "fast-mode-2026-02-01"


class AnthropicProvider:
    """Asks a Messages API server. One instance serves any number of requests at once."""

    def __init__(
        self,
        *,
        api_key: str | None = None,
        auth_token: str | None = None,
        base_url: str | None = None,
        cloud: Cloud | None = None,
        idle_seconds: float = 600.0,
        encoded_bytes_max: int = 64 * 1024 * 1024,
    ) -> None:
        """With a `cloud`, its own credentials hold. Raises `MachineUnfit` when its library is not installed, and when
        Anthropic itself is to be asked and there is no key."""
        self._cloud = cloud
        self._encoded = EncodedMessages(encoded_bytes_max)
        if cloud is not None:
            cloud.require()
            self._client = MessagesClient(cloud=cloud, idle_seconds=idle_seconds)
            return
        if not (api_key or auth_token or base_url):
            raise MachineUnfit("There is no key for Anthropic. Set ANTHROPIC_API_KEY, or ANTHROPIC_BASE_URL.")
        self._client = MessagesClient(
            base_url=base_url or BASE_URL, api_key=api_key, auth_token=auth_token, idle_seconds=idle_seconds
        )

    def stream(self, request: ModelRequest) -> AsyncGenerator[ModelChunk]:
        """Ask the model; see `Provider.stream`. Raises `ProviderRefused` for what there is not in a cloud."""
        if self._cloud is not None and request.speed == "fast":
            raise ProviderRefused(f"There is no fast mode on {self._cloud.name}.")
        if self._cloud is not None and request.inference_geo is not None:
            raise ProviderRefused(
                f"Where {self._cloud.name} runs a model is a matter of its region, not of inference_geo."
            )
        extras, headers = _options(request)
        body = encode_request(request, extras=extras, cached=not request.once, encode=self._encoded.of)
        return self._client.stream(WireRequest(body, headers, request.answer_bytes_max))

    async def close(self) -> None:
        """Drop all connections."""
        await self._client.close()


def _options(request: ModelRequest) -> tuple[Mapping[str, object], Mapping[str, str]]:
    """Effort, speed and place. Sent only when they differ from the default: not every model knows them."""
    extras: dict[str, object] = {}
    headers: dict[str, str] = {}
    if request.effort is not None:
        extras["output_config"] = {"effort": request.effort}
    if request.speed == "fast":
        extras["speed"] = "fast"
        headers["anthropic-beta"] = FAST_MODE_BETA
    if request.inference_geo is not None:
        extras["inference_geo"] = request.inference_geo
    return extras, headers
