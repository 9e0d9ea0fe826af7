"""The HTTP transport for servers that others name: MCP servers, and the token endpoints of their credentials.

An address counts where a connection is made, after its name was resolved, so a name cannot lead somewhere else between
the check and the connection. Redirects are never followed here. Requests of sandboxes have a proxy of their own.
Proxies that the environment names are not used unless the operator says so, and then they are told addresses.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Sequence
from functools import cache

import anyio
import httpcore2
import httpx2

from corral.config_sections import McpSettings
from corral.domain.address import for_tool_servers, goes_direct
from corral.domain.host import Address, as_address
from corral.outbound.addresses import addresses_of
from corral.outbound.tunnel import TcpOnly, Tunnels, plain_backend

DENIED = "its address is one that `denied` under `[mcp]` in corral.toml rules out"
CONNECTIONS_MAX, CONNECTIONS_KEPT_MAX, KEPT_SECONDS_MAX = 100, 20, 5.0
"""For one session and one MCP server; as httpx2 has it."""
LOOKUPS_MAX = 4
"""At once, for one session and one MCP server."""
COMPRESSED = "the answer is compressed, though that was not asked for"


class OutboundTransport(httpx2.AsyncHTTPTransport):
    """Connects to no address of the `denied` networks. Takes no compressed answers: small here, large afterwards."""

    def __init__(self, settings: McpSettings) -> None:
        super().__init__(verify=_tls())
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=_tls(),
            network_backend=_Checked(settings),
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


class _Checked(TcpOnly):
    """Resolves names itself, and connects only to addresses that are not denied."""

    def __init__(self, settings: McpSettings) -> None:
        super().__init__(plain_backend())
        self._ground = for_tool_servers(settings.denied)
        proxy, self._direct = settings.upstream_proxy, settings.upstream_proxy_not_for
        self._proxied = None if proxy is None else Tunnels(self._inner, proxy)
        self._limiter = anyio.CapacityLimiter(LOOKUPS_MAX)

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """See `httpcore2.AsyncNetworkBackend`."""
        addresses = await self._resolve(host, timeout)
        # None of this machine's ports is closed to tool servers, so it does not matter which addresses are its own.
        allowed = [each for each in addresses if self._ground.refuses(each, port, own=False) is None]
        if not allowed:
            raise httpcore2.ConnectError(DENIED)
        way = self._inner if self._proxied is None or self._goes_direct(host, port) else self._proxied
        failure: Exception | None = None
        for address in allowed:
            share = None if timeout is None else timeout / len(allowed)
            try:
                return await way.connect_tcp(str(address), port, share, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = failure or error
        assert failure is not None
        raise failure

    async def _resolve(self, host: str, timeout: float | None) -> Sequence[Address]:
        literal = as_address(host)
        if literal is not None:
            return [literal]
        try:
            return await addresses_of(host, seconds_max=timeout, limiter=self._limiter)
        except TimeoutError as error:
            raise httpcore2.ConnectTimeout("its name was not resolved in time") from error
        except OSError as error:
            raise httpcore2.ConnectError("its name cannot be resolved") from error

    def _goes_direct(self, host: str, port: int) -> bool:
        return any(goes_direct(host.lower(), port, entry) for entry in self._direct)


@cache
def _tls() -> ssl.SSLContext:
    """One for all connections: it takes long to make."""
    return httpx2.create_ssl_context()
