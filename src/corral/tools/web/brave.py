"""Brave Search: https://api-dashboard.search.brave.com/app/documentation/web-search."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from corral.tools.web.searching import Asker, Found, Search

URL = "https://api.search.brave.com/res/v1"
COUNT_MAX = 20
QUERY_CHARACTERS_MAX = 400


class _Result(msgspec.Struct):
    url: str = ""
    title: str = ""
    description: str | None = None
    extra_snippets: list[str] | None = None


class _Web(msgspec.Struct):
    results: list[_Result] = []


class _Answer(msgspec.Struct):
    web: _Web | None = None
    """Missing when nothing was found."""


class Brave:
    """See `SearchEngine`."""

    def __init__(self, key: str, url: str | None, seconds_max: float) -> None:
        self._key, self._url = key, f"{(url or URL).rstrip('/')}/web/search"
        self._asker = Asker("brave", seconds_max)

    async def search(self, search: Search) -> Sequence[Found]:
        """See `SearchEngine.search`."""
        headers = {"accept": "application/json", "x-subscription-token": self._key}
        if search.location is not None:
            given = search.location
            named = {
                "city": given.city,
                "state-name": given.region,
                "country": given.country,
                "timezone": given.timezone,
            }
            headers |= {f"x-loc-{name}": value for name, value in named.items() if value}
        query = search.with_operators
        params = {
            "q": (query if len(query) <= QUERY_CHARACTERS_MAX else search.query)[:QUERY_CHARACTERS_MAX],
            "count": str(min(search.results_max, COUNT_MAX)),
            "text_decorations": "false",
        }
        answer = await self._asker.ask(_Answer, self._url, params=params, headers=headers)
        return [_found(each) for each in (answer.web.results if answer.web else ())]

    async def close(self) -> None:
        """See `SearchEngine.close`."""
        await self._asker.close()


def _found(result: _Result) -> Found:
    return Found(
        result.url, result.title, "\n".join(filter(None, (result.description, *(result.extra_snippets or ()))))
    )
