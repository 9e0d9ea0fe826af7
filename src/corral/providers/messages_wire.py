"""Talking to any server that speaks the Messages API, through the official SDK.

`anthropic.py` and `local.py` are built on it. The SDK brings transport, authentication and headers; body and answer
are ours (`messages_request.py`, `messages_answer.py`), as are the errors (`messages_errors.py`). Nothing is retried
here: the harness owns retries. The SDK takes two seconds to import, so that happens in a thread, on the first request.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from types import ModuleType
from typing import TYPE_CHECKING, cast

import anyio
import anyio.to_thread
import msgspec

from corral.domain.inference import ModelChunk
from corral.errors import ProviderRefused, ProviderUnreachable
from corral.providers.messages_answer import Answer
from corral.providers.messages_body import Bounded, cut_at_the_end, instead_of_events, shorten_error
from corral.providers.messages_clouds import AMAZON_EVENTS, Cloud
from corral.providers.messages_errors import clean, http_error, stream_error, unreachable
from corral.providers.messages_request import WireRequest

if TYPE_CHECKING:
    import httpx2
    from anthropic import AsyncAnthropic, AsyncStream
    from anthropic._streaming import ServerSentEvent
    from anthropic.lib.bedrock import AsyncAnthropicBedrock
    from anthropic.lib.vertex import AsyncAnthropicVertex


class _EventType(msgspec.Struct, frozen=True):
    type: str = ""


class MessagesClient:
    """A connection pool to one Messages API server."""

    def __init__(
        self,
        *,
        base_url: str | None = None,
        cloud: Cloud | None = None,
        api_key: str | None = None,
        auth_token: str | None = None,
        idle_seconds: float = 600.0,
        connect_seconds: float = 10.0,
        proxies: bool = True,
    ) -> None:
        self._base_url = base_url
        self._cloud = cloud
        self._api_key = api_key
        self._auth_token = auth_token
        self._idle_seconds = idle_seconds
        self._connect_seconds = connect_seconds
        self._proxies = proxies
        self._client: AsyncAnthropic | AsyncAnthropicBedrock | AsyncAnthropicVertex | None = None
        secrets = (api_key, auth_token, cloud.token if cloud else None)
        self._secrets = [secret for secret in secrets if secret and len(secret) >= 8]

    async def stream(self, request: WireRequest) -> AsyncGenerator[ModelChunk]:
        """Send the request; yield previews as they come and the whole answer last. Raises `ProviderError` only."""
        answer = Answer()
        async with self._exchange(request) as events:
            async for event in events:
                for chunk in self._read(answer, event):
                    yield chunk
                if answer.complete:
                    break
        if not answer.complete:
            raise ProviderUnreachable("The model server ended its answer in the middle.")
        yield answer.response()

    async def close(self) -> None:
        """Drop all connections. Idempotent."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    @asynccontextmanager
    async def _exchange(self, request: WireRequest) -> AsyncGenerator[AsyncGenerator[ServerSentEvent]]:
        """The server's events. Leaving closes the connection; what the SDK or the transport raise becomes ours."""
        anthropic, transport = await anyio.to_thread.run_sync(_import_sdk)
        misused, unreached = await anyio.to_thread.run_sync(self._cloud.failures) if self._cloud else ((), ())
        try:
            stream = await self._send(anthropic, request)
            async with cut_at_the_end(stream):
                await self._expect_events(stream)
                async with aclosing(self._events(stream, request.answer_bytes_max)) as events:
                    yield events
        except anthropic.APIStatusError as error:
            raise http_error(error, self._secrets) from error
        except (anthropic.AnthropicError, transport.HTTPError, transport.StreamError, transport.InvalidURL) as error:
            raise unreachable(error, self._secrets) from error
        except unreached as error:
            raise unreachable(error, self._secrets) from error
        except misused as error:
            raise self._no_access(error) from error
        except UnicodeDecodeError as error:
            raise ProviderUnreachable("The model server's answer is not UTF-8.") from error

    async def _send(self, anthropic: ModuleType, request: WireRequest) -> AsyncStream[object]:
        stream_cls = cast("type[AsyncStream[object]]", anthropic.AsyncStream[object])
        if self._cloud is not None:
            return await self._send_to_cloud(anthropic, request, stream_cls)
        if self._client is None:
            self._client = self._connect(anthropic)
        return await self._client.post(
            "/v1/messages",
            content=request.body,
            cast_to=object,
            options={"headers": {"content-type": "application/json", **request.headers}},
            stream=True,
            stream_cls=stream_cls,
        )

    async def _send_to_cloud(
        self, anthropic: ModuleType, request: WireRequest, stream_cls: type[AsyncStream[object]]
    ) -> AsyncStream[object]:
        """The cloud clients take the body apart, to put the model into the address, so they must have it unencoded."""
        try:
            if self._client is None:
                self._client = self._connect(anthropic)
            return await self._client.post(
                "/v1/messages",
                body=msgspec.json.decode(request.body, type=dict[str, object]),
                cast_to=object,
                options={"headers": request.headers},
                stream=True,
                stream_cls=stream_cls,
            )
        except (ValueError, RuntimeError) as error:
            # No region, no project, no credentials: this is how the SDK says so.
            raise self._no_access(error) from error

    def _no_access(self, error: Exception) -> ProviderRefused:
        place = self._cloud.name if self._cloud else ""
        return ProviderRefused(clean(f"There is no access to {place}: {error}", self._secrets))

    def _connect(self, anthropic: ModuleType) -> AsyncAnthropic | AsyncAnthropicBedrock | AsyncAnthropicVertex:
        timeout = anthropic.Timeout(self._idle_seconds, connect=self._connect_seconds)
        http_client = anthropic.DefaultAsyncHttpxClient(
            timeout=timeout, trust_env=self._proxies, event_hooks={"response": [shorten_error]}
        )
        if self._cloud is not None:
            return self._cloud.client(anthropic, timeout, http_client)
        return anthropic.AsyncAnthropic(
            # The SDK would look for keys of its own in the environment and in the home directory.
            api_key=self._api_key if self._api_key or self._auth_token else "none",
            auth_token=self._auth_token,
            base_url=self._base_url,
            max_retries=0,
            timeout=timeout,
            http_client=http_client,
        )

    def _events(self, stream: AsyncStream[object], bytes_max: int) -> AsyncGenerator[ServerSentEvent]:
        if self._cloud is not None and self._cloud.framed:
            events = self._cloud.events(Bounded(stream.response, bytes_max, framed=True).aiter_bytes())
        else:
            events = stream.raw_events(cast("httpx2.Response", Bounded(stream.response, bytes_max)))
        return cast("AsyncGenerator[ServerSentEvent]", events)

    async def _expect_events(self, stream: AsyncStream[object]) -> None:
        framed = self._cloud is not None and self._cloud.framed
        instead = await instead_of_events(stream.response, AMAZON_EVENTS if framed else "text/event-stream")
        if instead is None:
            return
        if instead.value is not None and "error" in instead.value:
            raise stream_error(instead.value, self._secrets)
        raise ProviderUnreachable(clean(str(instead), self._secrets))

    def _read(self, answer: Answer, event: ServerSentEvent) -> list[ModelChunk]:
        try:
            kind = event.event or msgspec.json.decode(event.data or "{}", type=_EventType).type
            if kind == "error":
                raise stream_error(_json_or_text(event.data), self._secrets)
            return list(answer.read(kind, event.data))
        except ValueError as error:
            raise ProviderUnreachable(f"The model server's answer cannot be read: {error}") from error


def _import_sdk() -> tuple[ModuleType, ModuleType]:
    import anthropic
    import httpx2

    return anthropic, httpx2


def _json_or_text(data: str) -> object:
    try:
        return msgspec.json.decode(data)
    except ValueError:
        return {"error": data}
