"""One connection to a host: resolve the name once, check every address, and connect to exactly what was checked.

A name that resolves to something else a moment later gains nothing, because nobody asks again. Behind an operator's
own upstream proxy the last word on addresses is that proxy's; what can be resolved here is still checked here.
"""

from __future__ import annotations

import base64
import ssl
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

import anyio
import h11
from anyio.abc import ByteStream
from anyio.streams.tls import TLSStream

from corral.domain.address import Ground, Refusal, goes_direct
from corral.domain.egress import EgressPolicy
from corral.domain.host import Address, as_address, shown
from corral.errors import CorralError
from corral.outbound.addresses import addresses_of, is_own
from corral.sandboxes.egress.line import STREAM_ERRORS, Limits, Line

ADDRESSES_MAX = 4
"""Tried one after another."""


class Origin(NamedTuple):
    """What a request is for."""

    host: str
    """Normalised."""
    port: int
    tls: bool

    @property
    def place(self) -> str:
        """As in a Host header."""
        return f"{shown(self.host)}:{self.port}"


class Turned(CorralError):
    """No connection, because the rules say so."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.sentence)
        self.refusal = refusal


class Unreached(CorralError):
    """No connection, though the rules would have it."""

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason


class Upstream(NamedTuple):
    """A connection that is open."""

    line: Line
    absolute: bool
    """Whether requests name the whole URL, because a proxy reads them."""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    """To add to each request."""


class Outside:
    """How the proxy reaches hosts."""

    def __init__(
        self,
        ground: Ground,
        names: Mapping[str, str],
        *,
        trusted: str,
        proxy: str | None,
        direct: Sequence[str],
        seconds_max: float,
    ) -> None:
        self._ground, self._names, self._seconds_max = ground, names, seconds_max
        self._context = ssl.create_default_context(cafile=trusted)
        self._context.set_alpn_protocols(["http/1.1"])
        self._proxy = urlsplit(proxy if "//" in proxy else f"http://{proxy}") if proxy else None
        self._direct = direct

    def _proxy_for(self, origin: Origin) -> SplitResult | None:
        """The operator's upstream proxy, unless the host is reached without it."""
        direct = any(goes_direct(origin.host, origin.port, entry) for entry in self._direct)
        return None if direct or origin.host in self._names else self._proxy

    async def addresses(
        self, origin: Origin, policy: EgressPolicy, limiter: anyio.CapacityLimiter
    ) -> Sequence[Address]:
        """Where an allowed name leads, as far as that is allowed; none when only an upstream proxy knows.

        Raises `Turned` or `Unreached`."""
        literal = as_address(self._names.get(origin.host, origin.host))
        found = [literal] if literal else await self._resolve(origin, limiter)
        private = policy.may_be_private(origin.host, origin.port)
        verdicts = [
            self._ground.refuses(each, origin.port, own=is_own(each), private_allowed=private) for each in found
        ]
        permitted = [each for each, verdict in zip(found, verdicts, strict=True) if verdict is None]
        refusal = next((verdict for verdict in verdicts if verdict is not None), None)
        if not permitted and refusal is not None:
            raise Turned(refusal)
        return permitted[:ADDRESSES_MAX]

    async def _resolve(self, origin: Origin, limiter: anyio.CapacityLimiter) -> Sequence[Address]:
        host = origin.host
        try:
            return await addresses_of(host, seconds_max=self._seconds_max, limiter=limiter)
        except TimeoutError as error:
            raise Unreached("timeout", f"The address of {host} was not found in time.") from error
        except OSError as error:
            if self._proxy_for(origin) is not None:
                return ()
            raise Unreached("unresolvable", f"{host} has no address that can be found.") from error

    async def connect(self, origin: Origin, addresses: Sequence[Address], limits: Limits) -> Upstream:
        """Connect to one of the addresses that were checked. Raises `Unreached`."""
        try:
            with anyio.fail_after(self._seconds_max):
                proxy = self._proxy_for(origin)
                if proxy is not None:
                    return await self._through_proxy(proxy, origin, limits)
                stream = await _connect(addresses, origin)
                return Upstream(Line(await self._secured(stream, origin), h11.CLIENT, limits), False)
        except TimeoutError as error:
            raise Unreached("timeout", f"{origin.place} does not answer.") from error

    async def _secured(self, stream: ByteStream, origin: Origin) -> ByteStream:
        if not origin.tls:
            return stream
        try:
            return await TLSStream.wrap(
                stream, hostname=origin.host, ssl_context=self._context, standard_compatible=False
            )
        except ssl.SSLCertVerificationError as error:
            raise Unreached(
                "certificate",
                f"The certificate of {origin.place} cannot be trusted: {error.verify_message}. The operator can "
                "name another authority with `ca_file` under `[egress]` in corral.toml.",
            ) from error
        except (ssl.SSLError, *STREAM_ERRORS) as error:
            raise Unreached("tls", f"{origin.place} speaks no TLS that can be used.") from error
        except BaseException:
            await stream.aclose()
            raise

    async def _through_proxy(self, proxy: SplitResult, origin: Origin, limits: Limits) -> Upstream:
        host, port = proxy.hostname or "", proxy.port or 3128
        added: tuple[tuple[bytes, bytes], ...] = ()
        if proxy.username is not None:
            pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}".encode()
            added = ((b"proxy-authorization", b"Basic " + base64.b64encode(pair)),)
        try:
            stream = await anyio.connect_tcp(host, port)
            if not origin.tls:
                return Upstream(Line(stream, h11.CLIENT, limits), True, added)
            opened = await _open_tunnel(Line(stream, h11.CLIENT, limits), origin, added)
        except (h11.ProtocolError, *STREAM_ERRORS) as error:
            raise Unreached("upstream_proxy", "The operator's upstream proxy cannot be reached.") from error
        if not opened:
            await stream.aclose()
            raise Unreached("upstream_proxy", f"The operator's upstream proxy does not open {origin.place}.")
        return Upstream(Line(await self._secured(stream, origin), h11.CLIENT, limits), False)


async def _open_tunnel(line: Line, origin: Origin, headers: tuple[tuple[bytes, bytes], ...]) -> bool:
    place = origin.place.encode("ascii")
    await line.send(h11.Request(method=b"CONNECT", target=place, headers=[(b"host", place), *headers]))
    await line.send(h11.EndOfMessage())
    answer = await line.next_event()
    return isinstance(answer, h11.Response) and 200 <= answer.status_code < 300 and not line.taken_over()


async def _connect(addresses: Sequence[Address], origin: Origin) -> ByteStream:
    problem: OSError | None = None
    for address in addresses:
        try:
            # An address and not a name, so there is nothing left to resolve.
            return await anyio.connect_tcp(str(address), origin.port)
        except OSError as error:
            problem = error
    raise Unreached("unreachable", f"{origin.place} cannot be reached.") from problem
