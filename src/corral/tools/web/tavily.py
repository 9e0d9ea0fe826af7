"""Tavily: https://docs.tavily.com/documentation/api-reference/endpoint/search."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from corral.tools.web.searching import Asker, Found, Search

URL = "https://api.tavily.com"
COUNT_MAX = 20


class _Result(msgspec.Struct):
    url: str = ""
    title: str | None = None
    content: str | None = None


class _Answer(msgspec.Struct):
    results: list[_Result] = []


class Tavily:
    """See `SearchEngine`."""

    def __init__(self, key: str, url: str | None, seconds_max: float) -> None:
        self._key, self._url = key, f"{(url or URL).rstrip('/')}/search"
        self._asker = Asker("tavily", seconds_max)

    async def search(self, search: Search) -> Sequence[Found]:
        """See `SearchEngine.search`."""
        # Its own `country` takes names of a list, and not the codes that an agent's settings have.
        query = f"{search.query} {search.place}".strip()
        body: dict[str, object] = {"query": query, "max_results": min(search.results_max, COUNT_MAX)}
        if search.allowed is not None:
            body["include_domains"] = list(search.allowed)
        if search.blocked is not None:
            body["exclude_domains"] = list(search.blocked)
        headers = {"authorization": f"Bearer {self._key}"}
        answer = await self._asker.ask(_Answer, self._url, headers=headers, body=body)
        return [Found(each.url, each.title or "", each.content or "") for each in answer.results]

    async def close(self) -> None:
        """See `SearchEngine.close`."""
        await self._asker.close()
