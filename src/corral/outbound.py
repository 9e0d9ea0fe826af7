"""The HTTP transport for servers that others name: MCP servers, and the token endpoints of their credentials.

An address counts where a connection is made, after its name was resolved, so a name cannot lead somewhere else between
the check and the connection. Redirects are never followed here. Requests of sandboxes have a proxy of their own.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterable, Sequence
from functools import cache
from ipaddress import ip_address, ip_network

import anyio
import httpcore2
import httpx2

from corral.domain.egress import embedded

DENIED = "its address is one that `denied` under `[mcp]` in corral.toml rules out"
CONNECTIONS_MAX, CONNECTIONS_KEPT_MAX, KEPT_SECONDS_MAX = 100, 20, 5.0
"""For one session and one MCP server; as httpx2 has it."""
COMPRESSED = "the answer is compressed, though that was not asked for"


class OutboundTransport(httpx2.AsyncHTTPTransport):
    """Connects to no address of the `denied` networks, and takes no compressed answers: small here, large afterwards.

    Proxies that the environment names are not used: what they connect to could not be checked."""

    def __init__(self, denied: Sequence[str]) -> None:
        super().__init__(verify=_tls())
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=_tls(),
            network_backend=_Checked(denied),
            max_connections=CONNECTIONS_MAX,
            max_keepalive_connections=CONNECTIONS_KEPT_MAX,
            keepalive_expiry=KEPT_SECONDS_MAX,
        )

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """See `httpx2.AsyncBaseTransport`."""
        request.headers["accept-encoding"] = "identity"
        response = await super().handle_async_request(request)
        if response.headers.get("content-encoding", "identity").lower() not in ("", "identity"):
            await response.aclose()
            raise httpx2.DecodingError(COMPRESSED, request=request)
        return response


class _Checked(httpcore2.AsyncNetworkBackend):
    """Resolves names itself, and connects only to addresses that are not denied."""

    def __init__(self, denied: Sequence[str]) -> None:
        self._denied = [ip_network(text, strict=False) for text in denied]
        inner = httpcore2.AnyIOBackend()
        # httpcore2 declares an empty class of this name, too, for machines without anyio.
        assert isinstance(inner, httpcore2.AsyncNetworkBackend)
        self._inner = inner

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """See `httpcore2.AsyncNetworkBackend`."""
        addresses = await self._resolve(host, port, timeout)
        allowed = [address for address in addresses if not self._is_denied(address)]
        if not allowed:
            raise httpcore2.ConnectError(DENIED)
        failure: Exception | None = None
        for address in allowed:
            share = None if timeout is None else timeout / len(allowed)
            try:
                return await self._inner.connect_tcp(address, port, share, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = failure or error
        assert failure is not None
        raise failure

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None
    ) -> httpcore2.AsyncNetworkStream:
        """Never."""
        raise httpcore2.ConnectError(DENIED)

    async def sleep(self, seconds: float) -> None:
        """See `httpcore2.AsyncNetworkBackend`."""
        await self._inner.sleep(seconds)

    async def _resolve(self, host: str, port: int, timeout: float | None) -> list[str]:
        try:
            with anyio.fail_after(timeout):
                found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except TimeoutError as error:
            raise httpcore2.ConnectTimeout("its name was not resolved in time") from error
        except (OSError, UnicodeError) as error:
            raise httpcore2.ConnectError("its name cannot be resolved") from error
        return list(dict.fromkeys(str(place[0]) for *_, place in found))

    def _is_denied(self, text: str) -> bool:
        address = ip_address(text.partition("%")[0])
        return any(each in network for each in (address, *embedded(address)) for network in self._denied)


@cache
def _tls() -> ssl.SSLContext:
    """One for all connections: it takes long to make."""
    return httpx2.create_ssl_context()
