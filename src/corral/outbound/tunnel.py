"""Connections through an HTTP proxy of the operator's, by CONNECT.

The proxy is told an address and never a name, so that what was judged here is what is reached: a proxy that looked the
name up again could come to another answer. Both http and https go that way, and TLS is between us and the host.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from urllib.parse import unquote, urlsplit

import anyio
import httpcore2

from corral.domain.host import shown

PORT = 3128
HEAD_BYTES_MAX = 16 * 1024
OPENED = re.compile(rb"HTTP/1\.[01] 2[0-9][0-9](?: |\r\n)")
UNREACHED = "the proxy that `upstream_proxy` names cannot be reached"
REFUSED = "the proxy that `upstream_proxy` names does not open this connection"


def plain_backend() -> httpcore2.AsyncNetworkBackend:
    """Connections without anything in between."""
    inner = httpcore2.AnyIOBackend()
    # httpcore2 declares an empty class of this name, too, for machines without anyio.
    assert isinstance(inner, httpcore2.AsyncNetworkBackend)
    return inner


class TcpOnly(httpcore2.AsyncNetworkBackend):
    """Stands around a backend, and has an opinion on how TCP connections are made. There are no others."""

    def __init__(self, inner: httpcore2.AsyncNetworkBackend) -> None:
        self._inner = inner

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None
    ) -> httpcore2.AsyncNetworkStream:
        """Never."""
        raise httpcore2.ConnectError("connections are by TCP only")

    async def sleep(self, seconds: float) -> None:
        """See `httpcore2.AsyncNetworkBackend`."""
        await self._inner.sleep(seconds)


class Tunnels(TcpOnly):
    """Opens each connection through one proxy."""

    def __init__(self, inner: httpcore2.AsyncNetworkBackend, proxy: str) -> None:
        """`proxy` as `http://user:password@host:port`."""
        super().__init__(inner)
        place = urlsplit(proxy if "//" in proxy else f"http://{proxy}")
        self._host, self._port, self._headers = place.hostname or "", place.port or PORT, b""
        if place.username is not None:
            pair = f"{unquote(place.username)}:{unquote(place.password or '')}".encode()
            self._headers = b"Proxy-Authorization: Basic " + base64.b64encode(pair) + b"\r\n"

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """See `httpcore2.AsyncNetworkBackend`. `host` is an address."""
        try:
            with anyio.fail_after(timeout):
                stream = await self._inner.connect_tcp(self._host, self._port, None, local_address, socket_options)
                await self._open(stream, f"{shown(host)}:{port}".encode("ascii"))
                return stream
        except TimeoutError as error:
            raise httpcore2.ConnectTimeout(UNREACHED) from error
        except (httpcore2.NetworkError, httpcore2.TimeoutException) as error:
            raise httpcore2.ConnectError(str(error) if str(error) == REFUSED else UNREACHED) from error

    async def _open(self, stream: httpcore2.AsyncNetworkStream, place: bytes) -> None:
        opened = False
        try:
            await stream.write(b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n%b\r\n" % (place, place, self._headers))
            head = bytearray()
            while b"\r\n\r\n" not in head and len(head) <= HEAD_BYTES_MAX and (chunk := await stream.read(4_096)):
                head += chunk
            # No host speaks before it is spoken to, so nothing stands behind the proxy's answer.
            opened = head.endswith(b"\r\n\r\n") and OPENED.match(head) is not None
        finally:
            if not opened:
                with anyio.CancelScope(shield=True):
                    await stream.aclose()
        if not opened:
            raise httpcore2.ConnectError(REFUSED)
