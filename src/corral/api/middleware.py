"""What happens around every request, as one ASGI app: its id, its route, its log line, and the envelope for errors.

One layer and no more: each would stay on the stack of every open stream. What an answer is made of is the handlers'
business; who may come in is `admission.py`'s.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from http import HTTPStatus

import msgspec
import structlog
from starlette.datastructures import Headers
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bind_contextvars, clear_contextvars

from corral.api import errors
from corral.api.admission import Endpoint, admit
from corral.api.call import Call, Disconnected
from corral.api.decoding import NoQuery
from corral.api.dependencies import Services
from corral.api.metrics import Metrics
from corral.api.rates import Rates
from corral.domain.ids import new_id
from corral.errors import NotFound

log = structlog.get_logger(__name__)

PATH_PART_CHARACTERS_MAX = 256
CLIENT_CLOSED_REQUEST = 499
"""For logs only: the client was gone before there was an answer."""


class Exchange:
    """One request and its answer: what the log line and the metrics will say of it."""

    __slots__ = ("_send", "opened", "request_id", "route", "started", "status", "stream")

    def __init__(self, send: Send) -> None:
        self._send = send
        self.request_id = new_id("req")
        self.route = "other"
        self.started = time.perf_counter()
        self.status = 0
        """0 until the answer begins."""
        self.stream = False
        self.opened = False

    async def send(self, message: Message) -> None:
        """Send, with the request's id among the headers."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), (b"request-id", self.request_id.encode())]
        await self._send(message)


class Gateway:
    """The API."""

    def __init__(self, endpoints: Sequence[Endpoint], services: Services, metrics: Metrics, fallback: ASGIApp) -> None:
        self._services = services
        self._metrics = metrics
        self._rates = Rates(services.settings)
        self._fallback = fallback
        """Lifespan and websockets."""
        by_path: dict[str, dict[str, Endpoint]] = {}
        for endpoint in endpoints:
            by_path.setdefault(endpoint.path, {})[endpoint.method] = endpoint
        self._routes = [(Route(path, fallback, methods=None), methods) for path, methods in by_path.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, whatever happens."""
        if scope["type"] != "http":
            await self._fallback(scope, receive, send)
            return
        exchange = Exchange(send)
        # Each request is a task of its own, with a context of its own; nothing need be unbound.
        clear_contextvars()
        bind_contextvars(request_id=exchange.request_id)
        try:
            answer = await self._answer(scope, receive, exchange)
            if exchange.stream:
                self._metrics.streams.inc()
                exchange.opened = True
            await answer(scope, receive, exchange.send)
        except Disconnected:
            exchange.status = exchange.status or CLIENT_CLOSED_REQUEST
        except Exception as error:  # noqa: BLE001  # the top of the app: whatever it is, the client gets an envelope
            await self._refuse(error, scope, exchange)
        finally:
            self._record(scope, exchange)

    async def _answer(self, scope: Scope, receive: Receive, exchange: Exchange) -> ASGIApp:
        endpoint, path = self._route(scope)
        exchange.route, exchange.stream = endpoint.path, endpoint.is_stream
        if "session_id" in path:
            bind_contextvars(session_id=path["session_id"])
        headers = Headers(scope=scope)
        key = await admit(self._services, self._rates, endpoint, headers)
        call = Call(
            self._services,
            key,
            path=path,
            headers=headers,
            query_string=scope["query_string"],
            receive=receive,
            request_id=exchange.request_id,
        )
        if endpoint.query is None:
            call.query(NoQuery)
        answer = await endpoint.handler(call)
        return _Json(answer) if isinstance(answer, msgspec.Struct) else answer

    def _route(self, scope: Scope) -> tuple[Endpoint, Mapping[str, str]]:
        for route, methods in self._routes:
            match, found = route.matches(scope)
            if match is Match.NONE:
                continue
            endpoint = methods.get(scope["method"])
            if endpoint is None:
                raise errors.MethodNotAllowed(scope["method"], tuple(methods))
            path: Mapping[str, str] = found["path_params"]
            if not all(len(part) <= PATH_PART_CHARACTERS_MAX and part.isprintable() for part in path.values()):
                raise NotFound
            return endpoint, path
        raise NotFound("Not found: there is no such URL.")

    async def _refuse(self, error: Exception, scope: Scope, exchange: Exchange) -> None:
        if errors.is_bug(error):
            log.error("request_failed", path=scope["path"], exc_info=error)
        if exchange.status and not exchange.stream:
            return  # a file broke off: the server cuts the connection, and the client misses bytes it was promised
        if exchange.status:
            # A stream broke: its status is out, so the envelope goes where the next frame would.
            frame = b"event: error\ndata: " + errors.envelope(error, exchange.request_id) + b"\n\n"
            await exchange.send({"type": "http.response.body", "body": frame})
            return
        response = errors.response(error, exchange.request_id)
        headers = [*response.headers, (b"content-length", str(len(response.body)).encode())]
        if response.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            headers.append((b"connection", b"close"))
        await exchange.send({"type": "http.response.start", "status": response.status, "headers": headers})
        await exchange.send({"type": "http.response.body", "body": response.body})

    def _record(self, scope: Scope, exchange: Exchange) -> None:
        seconds = time.perf_counter() - exchange.started
        method = scope["method"] if exchange.route != "other" else "other"
        self._metrics.requests.labels(method, exchange.route, exchange.status).inc()
        if exchange.opened:
            self._metrics.streams.dec()
        if not exchange.stream:
            self._metrics.seconds.labels(method, exchange.route).observe(seconds)
        log.info(
            "request",
            method=scope["method"],
            path=scope["path"],
            status=exchange.status,
            ms=round(seconds * 1000, 1),
        )


class _Json:
    """A struct as a response."""

    def __init__(self, answer: msgspec.Struct) -> None:
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = msgspec.json.encode(self._answer)
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})
