"""Requests for pages: http and https, GET, with limits on everything.

Each hop is judged anew, by name and by address, and connects to an address that was judged; TLS and the Host header
still speak of the name. Nothing is kept between requests: no cookies, no credentials, and no open connections, which
could otherwise serve another name on the same address.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import NamedTuple

import anyio
import httpcore2
import httpx2

from corral.config_sections import WebSettings
from corral.domain.address import for_pages, goes_direct
from corral.domain.host import Address, shown
from corral.domain.url import Url
from corral.errors import Invalid
from corral.outbound.tunnel import REFUSED, UNREACHED, Tunnels, plain_backend
from corral.tools.web.addresses import Addresses
from corral.tools.web.failure import WebFailure

REDIRECTS = frozenset({301, 302, 303, 307, 308})
ACCEPT = "text/html,application/xhtml+xml,text/markdown;q=0.9,text/plain;q=0.9,*/*;q=0.5"
ENCODINGS = frozenset({"", "identity", "gzip", "deflate"})
"""One at a time: decoders in a row could spin on a few bytes and never hand any out."""


class Page(NamedTuple):
    """An answer that is not a redirect."""

    url: Url
    """Where it came from in the end."""
    status: int
    reason: str
    content_type: str
    body: bytes
    """Unpacked."""
    is_cut: bool


class Fetcher:
    """See the module. One for each server."""

    def __init__(self, settings: WebSettings, own_ports: Sequence[int]) -> None:
        self._settings = settings
        ground = for_pages(settings.allowed_private, own_ports)
        self._addresses = Addresses(ground, settings.hosts, seconds_max=settings.connect_seconds_max)
        self._limiter = anyio.CapacityLimiter(settings.fetches_parallel_max)
        self._agent = f"corral/{version('corral')}"
        self._opened: dict[bool, httpx2.AsyncHTTPTransport] = {}
        """With and without the operator's proxy."""

    async def get(self, url: Url, check: Callable[[Url], None], bytes_max: Callable[[str], int]) -> Page:
        """The page at a URL. `check` is asked about each hop and raises `WebFailure` to refuse it; `bytes_max` says
        how much of a body of a content type to read, and raises it for one that is of no use. Raises `WebFailure`."""
        async with self._limiter:
            try:
                with anyio.fail_after(self._settings.fetch_seconds_max):
                    return await self._followed(url, check, bytes_max)
            except TimeoutError as error:
                raise WebFailure("url_not_accessible", f"{url.host} did not answer in time.") from error
            except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError) as error:
                raise WebFailure("url_not_accessible", _explained(url, error)) from error

    async def _followed(self, url: Url, check: Callable[[Url], None], bytes_max: Callable[[str], int]) -> Page:
        for _ in range(self._settings.redirects_max + 1):
            check(url)
            response = await self._answer(url, await self._addresses.of(url))
            try:
                location = response.headers.get("location")
                if response.status_code not in REDIRECTS or not location:
                    return await _read(url, response, bytes_max)
            finally:
                await response.aclose()
            try:
                url = url.joined(location)
            except Invalid as error:
                raise WebFailure("url_not_allowed", f"{url.host} redirects elsewhere. {error.message}") from error
        raise WebFailure("url_not_accessible", f"More than {self._settings.redirects_max} redirects.")

    async def _answer(self, url: Url, addresses: Sequence[Address]) -> httpx2.Response:
        for address in addresses[:-1]:
            try:
                return await self._asked(url, address)
            except (httpx2.ConnectError, httpx2.ConnectTimeout):
                continue
        return await self._asked(url, addresses[-1])

    async def _asked(self, url: Url, address: Address) -> httpx2.Response:
        seconds = self._settings.fetch_seconds_max
        timeout = {"connect": self._settings.connect_seconds_max, "read": seconds, "write": seconds, "pool": seconds}
        request = httpx2.Request(
            "GET",
            f"{url.scheme}://{shown(str(address))}:{url.port}{url.target}",
            headers={
                "host": url.place,
                "user-agent": self._agent,
                "accept": ACCEPT,
                "accept-encoding": "gzip, deflate",
            },
            extensions={"sni_hostname": url.host, "timeout": timeout},
        )
        response = await self._transport(self._is_proxied(url)).handle_async_request(request)
        response.request = request
        return response

    def _is_proxied(self, url: Url) -> bool:
        direct = any(goes_direct(url.host, url.port, entry) for entry in self._settings.upstream_proxy_not_for)
        return self._settings.upstream_proxy is not None and not direct

    def _transport(self, proxied: bool) -> httpx2.AsyncHTTPTransport:
        if proxied not in self._opened:
            context = ssl.create_default_context()
            if self._settings.ca_file is not None:
                context.load_verify_locations(self._settings.ca_file)
            self._opened[proxied] = _Once(context, self._settings.upstream_proxy if proxied else None)
        return self._opened[proxied]

    async def close(self) -> None:
        """Drop connections. Idempotent."""
        while self._opened:
            await self._opened.popitem()[1].aclose()


class _Once(httpx2.AsyncHTTPTransport):
    """A connection for each request, to an address that was judged, through the operator's proxy if there is one."""

    def __init__(self, context: ssl.SSLContext, proxy: str | None) -> None:
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
        super().__init__(verify=context, trust_env=False, limits=limits)
        if proxy is not None:
            backend = Tunnels(plain_backend(), proxy)
            self._pool = httpcore2.AsyncConnectionPool(
                ssl_context=context, network_backend=backend, max_connections=None, max_keepalive_connections=0
            )


async def _read(url: Url, response: httpx2.Response, bytes_max: Callable[[str], int]) -> Page:
    encoding = response.headers.get("content-encoding", "").strip().lower()
    if encoding not in ENCODINGS:
        raise WebFailure("unsupported_content_type", f"{url.host} packs the page in a way that was not asked for.")
    content_type = response.headers.get("content-type", "")
    limit = bytes_max(content_type)
    body = bytearray()
    async for piece in response.aiter_bytes():
        body += piece
        if len(body) > limit:
            break
    is_cut = len(body) > limit
    return Page(url, response.status_code, response.reason_phrase, content_type, bytes(body[:limit]), is_cut)


def _explained(url: Url, error: Exception) -> str:
    match error:
        case httpx2.TimeoutException():
            return f"{url.host} did not answer in time."
        case httpx2.ConnectError() if "certificate" in str(error).lower():
            return f"The certificate of {url.host} cannot be trusted."
        case httpx2.ConnectError() if str(error) in (UNREACHED, REFUSED):
            return f"The operator's proxy opens no connection to {url.host}."
        case httpx2.ConnectError():
            return f"{url.host} cannot be reached."
        case httpx2.DecodingError():
            return f"What {url.host} sends cannot be unpacked."
        case _:
            return f"{url.host} does not answer as HTTP servers do."
