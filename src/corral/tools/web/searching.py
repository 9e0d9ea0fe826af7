"""The seam of search engines, and what they share: one request, a bounded answer, and JSON that is read strictly.

An engine's address is the operator's choice, so it may be a private one. Engines take domain filters as far as their
API goes; `web_search.py` holds them afterwards whatever an engine did.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from typing import NamedTuple, Protocol, TypeVar

import anyio
import httpx2
import msgspec
import structlog

from corral.domain.toolset import UserLocation
from corral.tools.web.failure import WebFailure

log = structlog.get_logger(__name__)

ANSWER_BYTES_MAX = 4 * 1024 * 1024
TOKENS_MAX = 8_192
"""Of what a model says of the pages it found."""
SEARCH_AND_SAY = (
    "Search the web once for the query below. Then write one short paragraph for each page that you found, best page "
    "first: what it says about the query, close to its own words, with a citation of that page alone.\n\n{query}"
)
NOT_SEARCHED = "The model that `search_model` names did not search; its provider may have no search of its own."
OPERATORS_CHARACTERS_MAX = 250
"""Of `site:` operators in a query; engines cut queries off, and results are filtered here in any case."""


class Search(NamedTuple):
    """What is looked for."""

    query: str
    allowed: Sequence[str] | None
    blocked: Sequence[str] | None
    location: UserLocation | None
    results_max: int

    @property
    def with_operators(self) -> str:
        """The query with the domains as operators that most engines know, if they are few."""
        if self.allowed is not None:
            operators = "(" + " OR ".join(f"site:{each}" for each in self.allowed) + ")"
        else:
            operators = " ".join(f"-site:{each}" for each in self.blocked or ())
        short = operators and len(operators) <= OPERATORS_CHARACTERS_MAX
        return f"{self.query} {operators}" if short else self.query

    @property
    def place(self) -> str:
        """The location in words, for engines that take it no other way."""
        given = self.location
        return "" if given is None else ", ".join(filter(None, (given.city, given.region, given.country)))


def place_of(location: UserLocation) -> dict[str, str]:
    """The location as providers of models take it."""
    fields = {name: getattr(location, name) for name in ("city", "region", "country", "timezone")}
    return {"type": "approximate", **{name: value for name, value in fields.items() if value}}


class _Kind(msgspec.Struct):
    type: str = ""


def of_kinds(parts: Sequence[msgspec.Raw], kinds: Set[str]) -> list[msgspec.Raw]:
    """Those parts of a model's answer that are of these types; servers add new ones. Raises what msgspec does."""
    return [part for part in parts if msgspec.json.decode(part, type=_Kind).type in kinds]


class Found(NamedTuple):
    """One result, as the engine gave it."""

    url: str
    title: str
    text: str


class SearchEngine(Protocol):
    """Somebody who answers searches."""

    async def search(self, search: Search) -> Sequence[Found]:
        """Results in the engine's order. Raises `WebFailure`."""
        ...

    async def close(self) -> None:
        """Drop connections. Idempotent."""
        ...


A = TypeVar("A")
B = TypeVar("B")


class Asker:
    """Requests to one engine."""

    def __init__(self, name: str, seconds_max: float) -> None:
        self._name, self._seconds_max = name, seconds_max
        self._opened: httpx2.AsyncClient | None = None

    async def ask(
        self,
        kind: type[A],
        url: str,
        *,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: Mapping[str, object] | None = None,
    ) -> A:
        """Get, or with a body post, and read the answer as a `kind`. Raises `WebFailure`."""
        if self._opened is None:
            self._opened = httpx2.AsyncClient(timeout=self._seconds_max)
        encoded = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
        request = self._opened.build_request(
            "GET" if body is None else "POST", url, params=params, headers=encoded, json=body
        )
        try:
            with anyio.fail_after(self._seconds_max):
                response = await self._opened.send(request, stream=True)
                try:
                    return self._read(response.status_code, await _bounded(response), kind)
                finally:
                    await response.aclose()
        except (TimeoutError, httpx2.HTTPError, httpx2.InvalidURL) as error:
            log.warning("web_search_failed", engine=self._name, reason=type(error).__name__)
            raise WebFailure("unavailable", "The search engine cannot be reached.") from error

    def _read(self, status: int, body: bytes, kind: type[A]) -> A:
        if status != 200:
            log.warning("web_search_failed", engine=self._name, status=status)
            code = "too_many_requests" if status == 429 else "unavailable"
            raise WebFailure(code, f"The search engine answers with HTTP {status}.")
        return self.parsed(lambda text: msgspec.json.decode(text, type=kind), body)

    def parsed(self, parse: Callable[[B], A], what: B) -> A:
        """What `parse` makes of an answer or a part of it. Raises `WebFailure` if it is not what the API would send."""
        try:
            return parse(what)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            log.warning("web_search_failed", engine=self._name, reason="not the JSON of its API")
            raise WebFailure("unavailable", "The search engine's answer cannot be read.") from error

    async def close(self) -> None:
        """Drop connections. Idempotent."""
        if self._opened is not None:
            await self._opened.aclose()
            self._opened = None


async def _bounded(response: httpx2.Response) -> bytes:
    body = bytearray()
    async for piece in response.aiter_bytes():
        body += piece
        if len(body) > ANSWER_BYTES_MAX:
            raise WebFailure("unavailable", "The search engine's answer is too long.")
    return bytes(body)
