"""SearXNG, which needs no key: https://docs.searxng.org/dev/search_api.html. Its `json` format must be enabled."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from corral.tools.web.searching import Asker, Found, Search


class _Result(msgspec.Struct):
    url: str = ""
    title: str | None = None
    content: str | None = None


class _Answer(msgspec.Struct):
    results: list[_Result] = []


class SearXNG:
    """See `SearchEngine`."""

    def __init__(self, url: str, seconds_max: float) -> None:
        self._url = f"{url.rstrip('/')}/search"
        self._asker = Asker("searxng", seconds_max)

    async def search(self, search: Search) -> Sequence[Found]:
        """See `SearchEngine.search`."""
        query = f"{search.with_operators} {search.place}".strip()
        answer = await self._asker.ask(_Answer, self._url, params={"q": query, "format": "json"})
        return [Found(each.url, each.title or "", each.content or "") for each in answer.results]

    async def close(self) -> None:
        """See `SearchEngine.close`."""
        await self._asker.close()
