"""One connection from a sandbox: requests to a proxy, tunnels, and the TLS inside them.

Every name that the inside writes is held against the policy: of a CONNECT or an absolute URL, then the SNI and each
Host header, which must name the same place again. Nothing but TLS or HTTP passes a tunnel. Refusals are answers that
a person can read; nothing is forwarded that was not parsed and written anew.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypeAlias

import anyio
import h11
from anyio.abc import ByteStream
from anyio.streams.tls import TLSAttribute, TLSStream

from corral.domain.address import Refusal
from corral.domain.egress import EgressPolicy
from corral.domain.host import Address, authority
from corral.sandboxes.egress.authority import Authority, answered_as
from corral.sandboxes.egress.line import STREAM_ERRORS, Header, Limits, Line, Rejoined, end_to_end, wants_websocket
from corral.sandboxes.egress.replacing import Replacer
from corral.sandboxes.egress.rewriting import Rewriting
from corral.sandboxes.egress.secrets import Compressed, Plain, Secrets, Treatment
from corral.sandboxes.egress.upstream import Origin, Outside, Turned, Unreached, Upstream

Report: TypeAlias = Callable[[Literal["refused", "failed", "connected"], str, str], None]
URL = re.compile(r"http://([^/?#]+)((?:/|\?).*)?", re.IGNORECASE)
TLS_BEGINS = 0x16
BODILESS = (204, 304)
SHORT_ANSWER_BYTES_MAX = 64 * 1024
"""Of an answer that is searched: it is sent with its length; longer ones are chunked."""
GATHERED_BYTES_MAX = 256 * 1024
"""Of a request's body whose length is not known before secrets are in it; what is longer is sent chunked."""
DRAIN_BYTES_MAX = 1024 * 1024
DRAIN_SECONDS_MAX = 2.0
VERSION_2 = "HTTP/2 does not pass this proxy; HTTP/1.1 does."


class Rules(NamedTuple):
    """What is the same for all connections of one sandbox."""

    policy: EgressPolicy
    authority: Authority
    outside: Outside
    rewriting: Rewriting
    secrets: Secrets
    limits: Limits
    resolving: anyio.CapacityLimiter
    report: Report
    """Told of refusals, failures and new connections: kind, reason, host."""


class Found(NamedTuple):
    """Where a name leads."""

    host: str
    port: int
    addresses: Sequence[Address]


class Asked(NamedTuple):
    """A request and what it is for."""

    request: h11.Request
    origin: Origin
    target: bytes
    """In origin form."""


class Outgoing(NamedTuple):
    """What is to be done with a request's body."""

    replacer: Replacer | None = None
    begun: bytes = b""
    """To send first; it was read already."""
    complete: bool = False
    """Whether that is all."""


class Exchange:
    """See the module."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._found: Found | None = None
        self._upstream: tuple[Origin, Upstream] | None = None

    async def attend(self, stream: ByteStream) -> None:
        """Serve a connection until it ends. Never raises for what the other side does."""
        try:
            await self._serve(Line(stream, h11.SERVER, self._rules.limits), None)
        except (h11.ProtocolError, ssl.SSLError, TimeoutError, *STREAM_ERRORS):
            return
        finally:
            with anyio.CancelScope(shield=True):
                await self._drop_upstream()
                await _close(stream)

    async def _serve(self, front: Line, tunnel: Origin | None, refusal: Refusal | None = None) -> None:
        """Answer requests; in a tunnel, those for its origin alone, and with `refusal` none at all."""
        going_on = True
        while going_on:
            try:
                event = await front.next_event()
            except h11.RemoteProtocolError as error:
                return await self._refuse(front, _unreadable(error), "")
            if not isinstance(event, h11.Request):
                return
            if refusal is not None:
                return await self._refuse(front, refusal, tunnel.host if tunnel else "")
            if event.method == b"CONNECT" and tunnel is None:
                return await self._connect(front, event)
            asked = _in_tunnel(event, tunnel) if tunnel else _by_url(event)
            if isinstance(asked, Refusal):
                return await self._refuse(front, asked, tunnel.host if tunnel else "")
            going_on = await self._forward(front, asked)

    # ------------------------------------------------------------------------------------------------ tunnels

    async def _connect(self, front: Line, request: h11.Request) -> None:
        place = authority(request.target.decode("latin-1"))
        if place is None or place[1] is None:
            return await self._refuse(front, Refusal("bad_request", "CONNECT needs a host and a port."), "")
        host, port = place[0], place[1]
        try:
            # Looked up before the answer, so that what is refused is refused where clients look for it.
            await self._look_up(Origin(host, port, True))
        except Turned as turned:
            return await self._refuse(front, turned.refusal, host)
        except Unreached as failure:
            return await self._fail(front, failure, host)
        await self._end_of_request(front)
        await front.send(h11.Response(status_code=200, reason=b"Connection established", headers=[]))
        await self._tunnel(Rejoined(front.stream, front.taken_over()), host, port)

    async def _look_up(self, origin: Origin) -> Sequence[Address]:
        """The addresses of a host that is allowed, asked for once in a connection and kept for it."""
        host, port = origin.host, origin.port
        if self._found is None or self._found[:2] != (host, port):
            rules = self._rules
            refusal = rules.policy.refuses(host, port)
            if refusal is not None:
                raise Turned(refusal)
            self._found = Found(host, port, await rules.outside.addresses(origin, rules.policy, rules.resolving))
        return self._found.addresses

    async def _end_of_request(self, front: Line) -> None:
        while not isinstance(await front.next_event(), h11.EndOfMessage):
            pass

    async def _tunnel(self, stream: Rejoined, host: str, port: int) -> None:
        with anyio.fail_after(self._rules.limits.idle_seconds_max):
            first = await stream.receive()
        stream = Rejoined(stream, first)
        if first[0] != TLS_BEGINS:
            return await self._serve(Line(stream, h11.SERVER, self._rules.limits), Origin(host, port, False))
        context = self._rules.authority.context(host)
        with anyio.fail_after(self._rules.limits.idle_seconds_max):
            secured = await TLSStream.wrap(stream, server_side=True, ssl_context=context, standard_compatible=False)
        named = answered_as(secured.extra(TLSAttribute.ssl_object))
        refusal = None
        if named != host:
            refusal = Refusal("sni_mismatch", f"The TLS name is {named}, but the tunnel was opened to {host}.")
        try:
            await self._serve(Line(secured, h11.SERVER, self._rules.limits), Origin(host, port, True), refusal)
        finally:
            await _close(secured)

    # ----------------------------------------------------------------------------------------------- requests

    async def _forward(self, front: Line, asked: Asked) -> bool:
        """Send a request on and its answer back; whether another may follow."""
        origin = asked.origin
        try:
            upstream = await self._reach(origin)
        except Turned as turned:
            await self._refuse(front, turned.refusal, origin.host)
            return False
        except Unreached as failure:
            await self._fail(front, failure, origin.host)
            return False
        try:
            await self._pass_on(front, upstream, asked)
        except Unreached as failure:
            await self._fail(front, failure, origin.host)
            await self._drop_upstream()
            return False
        except (h11.ProtocolError, TimeoutError, *STREAM_ERRORS):
            if front.http.our_state is h11.SEND_RESPONSE:
                await self._fail(
                    front, Unreached("broken", f"{origin.place} broke off before it answered."), origin.host
                )
            return False
        if not (front.reusable and upstream.line.reusable):
            await self._drop_upstream()
        else:
            upstream.line.next_cycle()
        if not front.reusable:
            return False
        front.next_cycle()
        return True

    async def _reach(self, origin: Origin) -> Upstream:
        if self._upstream is not None:
            kept, upstream = self._upstream
            if kept == origin and not upstream.line.has_ended():
                return upstream
            await self._drop_upstream()
        upstream = await self._rules.outside.connect(origin, await self._look_up(origin), self._rules.limits)
        self._upstream = (origin, upstream)
        self._rules.report("connected", "", "")
        return upstream

    async def _drop_upstream(self) -> None:
        if self._upstream is not None:
            stream = self._upstream[1].line.stream
            self._upstream = None
            await _close(stream)

    async def _pass_on(self, front: Line, upstream: Upstream, asked: Asked) -> None:
        request, origin, back = asked.request, asked.origin, upstream.line
        websocket = wants_websocket(request.headers)
        headers = end_to_end(list(request.headers), upgrading=websocket)
        headers = self._rules.rewriting.headers(origin, self._rules.policy, request.method, headers)
        treatment = self._rules.secrets.towards(origin)
        body = Outgoing()
        if treatment is not None:
            replacer = treatment.body(headers)
            headers = treatment.headers(headers)
            if replacer is not None:
                headers, body = await _begun(front, headers, replacer)
        target = b"http://" + origin.place.encode("ascii") + asked.target if upstream.absolute else asked.target
        headers += upstream.headers
        await back.send(h11.Request(method=request.method, target=target, headers=headers))
        problem: Exception | None = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_send_body, front, back, body)
            try:
                upgraded = await _send_answer(front, back, treatment, bare=request.method == b"HEAD")
            except (h11.ProtocolError, TimeoutError, Unreached, *STREAM_ERRORS) as error:
                # Raised below: the group would wrap it.
                problem, upgraded = error, False
            if upgraded:
                tasks.start_soon(_relay, front, back, treatment)
            else:
                # An answer may come before all of the request is there; the rest is not wanted then.
                tasks.cancel_scope.cancel()
        if problem is not None:
            raise problem

    # ---------------------------------------------------------------------------------------------- refusals

    async def _refuse(self, front: Line, refusal: Refusal, host: str) -> None:
        self._rules.report("refused", refusal.reason, host)
        status = 400 if refusal.reason == "bad_request" else 403
        await _answer(front, status, refusal.reason, refusal.sentence)

    async def _fail(self, front: Line, failure: Unreached, host: str) -> None:
        self._rules.report("failed", failure.reason, host)
        await _answer(front, 504 if failure.reason == "timeout" else 502, failure.reason, failure.message)


async def _answer(front: Line, status: int, reason: str, sentence: str) -> None:
    """Answer instead of the host, close, and let the other side read it first."""
    if front.http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
        return
    body = f"Corral's egress proxy: {sentence}\n".encode("ascii", "replace")
    headers = [
        ("content-type", "text/plain; charset=us-ascii"),
        ("content-length", str(len(body))),
        ("x-corral-egress", reason),
        ("connection", "close"),
    ]
    # Clients show the reason of a refused CONNECT and not its body.
    said = body.decode("ascii").strip()
    await front.send(h11.Response(status_code=status, headers=headers, reason=said))
    await front.send(h11.Data(data=body))
    await front.send(h11.EndOfMessage())
    left = DRAIN_BYTES_MAX
    with anyio.move_on_after(DRAIN_SECONDS_MAX):
        while left > 0 and (piece := await front.receive()):
            left -= len(piece)


async def _begun(front: Line, headers: list[Header], replacer: Replacer) -> tuple[list[Header], Outgoing]:
    """A request whose body's length may change: a short body is read whole, to say how long; a long one is chunked."""
    if not any(name == b"content-length" for name, _ in headers):
        return headers, Outgoing(replacer)
    rest = [each for each in headers if each[0] != b"content-length"]
    if front.http.they_are_waiting_for_100_continue:
        await front.send(h11.InformationalResponse(status_code=100, headers=[]))
    gathered = bytearray()
    while len(gathered) <= GATHERED_BYTES_MAX:
        event = await front.next_event()
        if isinstance(event, h11.Data):
            gathered += replacer.feed(event.data)
        elif isinstance(event, h11.EndOfMessage):
            gathered += replacer.finish()
            rest.append((b"content-length", str(len(gathered)).encode("ascii")))
            return rest, Outgoing(None, bytes(gathered), True)
        else:
            raise h11.RemoteProtocolError("the request broke off")
    return [*rest, (b"transfer-encoding", b"chunked")], Outgoing(replacer, bytes(gathered))


async def _send_body(front: Line, back: Line, body: Outgoing) -> None:
    """The request's body. What breaks here shows in the answer, so nothing is raised."""
    try:
        if body.begun:
            await back.send(h11.Data(data=body.begun))
        if body.complete:
            return await back.send(h11.EndOfMessage())
        if front.http.they_are_waiting_for_100_continue:
            await front.send(h11.InformationalResponse(status_code=100, headers=[]))
        while True:
            event = await front.next_event()
            if isinstance(event, h11.Data):
                await _send_piece(back, body.replacer.feed(event.data) if body.replacer else event.data)
            else:
                break
        if isinstance(event, h11.EndOfMessage):
            if body.replacer is not None:
                await _send_piece(back, body.replacer.finish())
            await back.send(h11.EndOfMessage())
        else:
            await back.stream.aclose()
    except (h11.ProtocolError, TimeoutError, *STREAM_ERRORS):
        if front.http.their_state in (h11.ERROR, h11.CLOSED):
            await back.stream.aclose()


async def _send_piece(line: Line, piece: bytes) -> None:
    if piece:
        await line.send(h11.Data(data=piece))


async def _send_answer(front: Line, back: Line, treatment: Treatment | None, *, bare: bool) -> bool:
    """The answer; whether it changed the protocol. A `bare` one has no body, whatever its headers say."""
    answer = await _head_of_answer(back)
    upgraded = isinstance(answer, h11.InformationalResponse)
    headers, reason = end_to_end(list(answer.headers), upgrading=upgraded), answer.reason
    search, short = None, None
    if treatment is not None:
        headers, reason = treatment.head(headers, reason)
        if isinstance(answer, h11.Response) and not bare and answer.status_code not in BODILESS:
            search = treatment.body_of_answer(headers)
            short = await _short_body(back, headers, search)
            # It may be another by now.
            headers = [each for each in headers if each[0] != b"content-length"]
    if upgraded:
        await front.send(h11.InformationalResponse(status_code=101, headers=headers, reason=reason))
        return True
    if short is not None:
        headers.append((b"content-length", str(len(short)).encode("ascii")))
    await front.send(h11.Response(status_code=answer.status_code, headers=headers, reason=reason))
    if short is not None:
        await _send_piece(front, short)
    else:
        await _send_body_of_answer(front, back, search)
    await front.send(h11.EndOfMessage())
    return False


async def _head_of_answer(back: Line) -> h11.Response | h11.InformationalResponse:
    """The answer's beginning, or the change of protocols; other news before it is left out."""
    while True:
        event = await back.next_event()
        if isinstance(event, h11.ConnectionClosed):
            raise h11.RemoteProtocolError("closed before an answer")
        if isinstance(event, h11.Response) or (
            isinstance(event, h11.InformationalResponse) and event.status_code == 101
        ):
            return event


async def _short_body(back: Line, headers: list[Header], search: Plain | Compressed) -> bytes | None:
    """A body that is short enough to be read whole, so that its length can be said; None for others."""
    length = next((value for name, value in headers if name == b"content-length"), None)
    if length is None or int(length) > SHORT_ANSWER_BYTES_MAX or not isinstance(search, Plain):
        return None
    gathered = bytearray()
    while isinstance(event := await back.next_event(), h11.Data):
        gathered += b"".join(search.feed(event.data))
    if not isinstance(event, h11.EndOfMessage):
        raise h11.RemoteProtocolError("the answer broke off")
    return bytes(gathered + b"".join(search.finish()))


async def _send_body_of_answer(front: Line, back: Line, search: Plain | Compressed | None) -> None:
    while isinstance(event := await back.next_event(), h11.Data):
        for piece in search.feed(event.data) if search else (event.data,):
            await _send_piece(front, piece)
    if not isinstance(event, h11.EndOfMessage):
        raise h11.RemoteProtocolError("the answer broke off")
    for piece in search.finish() if search else ():
        await _send_piece(front, piece)


async def _relay(front: Line, back: Line, treatment: Treatment | None) -> None:
    """Bytes in both directions until either side ends or nothing comes from both for too long."""
    last = [anyio.current_time()]
    hiding = treatment.frames() if treatment else None

    async def one_way(source: Line, sink: Line, first: bytes, scope: anyio.CancelScope) -> None:
        piece = first
        try:
            while True:
                if piece:
                    last[0] = anyio.current_time()
                    if passing := hiding.feed(piece) if hiding and source is back else piece:
                        await sink.send_bytes(passing)
                piece = await source.receive_within(lambda: last[0])
                if not piece:
                    break
        except (TimeoutError, *STREAM_ERRORS):
            pass
        scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one_way, back, front, back.taken_over(), tasks.cancel_scope)
        tasks.start_soon(one_way, front, back, front.taken_over(), tasks.cancel_scope)


def _by_url(request: h11.Request) -> Asked | Refusal:
    """A request as clients make it to a proxy: for a whole URL."""
    match = URL.fullmatch(request.target.decode("latin-1"))
    place = authority(match[1]) if match else None
    if match is None or place is None:
        return Refusal("bad_request", "This is a proxy: it takes CONNECT, or requests for an http:// URL.")
    origin = Origin(place[0], place[1] or 80, False)
    rest = match[2] or "/"
    target = (rest if rest.startswith("/") else f"/{rest}").encode("latin-1")
    return _fronted(request, origin) or Asked(request, origin, target)


def _in_tunnel(request: h11.Request, origin: Origin) -> Asked | Refusal:
    """A request as clients make it to a host."""
    if request.method == b"CONNECT" or not (request.target == b"*" or request.target.startswith(b"/")):
        return Refusal("bad_request", "Requests in a tunnel are for a path.")
    return _fronted(request, origin) or Asked(request, origin, request.target)


def _fronted(request: h11.Request, origin: Origin) -> Refusal | None:
    """Whether the Host header names another place than the connection."""
    named = [value.decode("latin-1") for name, value in request.headers if name == b"host"]
    place = authority(named[0]) if len(named) == 1 else None
    default = 443 if origin.tls else 80
    if place is not None and (place[0], place[1] or default) == (origin.host, origin.port):
        return None
    shown = named[0][:100] if named else "missing"
    sentence = f"The Host header ({shown}) names another place than the connection to {origin.place}."
    return Refusal("host_mismatch", sentence)


def _unreadable(error: h11.RemoteProtocolError) -> Refusal:
    about_2 = "HTTP/2" in str(error) or "PRI" in str(error)
    return Refusal("bad_request", VERSION_2 if about_2 else "The request cannot be read as HTTP/1.1.")


async def _close(stream: ByteStream) -> None:
    with anyio.move_on_after(DRAIN_SECONDS_MAX):
        try:
            await stream.aclose()
        except (ssl.SSLError, *STREAM_ERRORS):
            return
