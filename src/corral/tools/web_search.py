"""`web_search`: ask a search engine, if the operator has chosen one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from msgspec import UNSET

from corral.config_sections import WebSettings
from corral.domain.content import (
    JsonObject,
    SearchResultBlock,
    SearchResultCitations,
    SearchResultText,
    TextBlock,
)
from corral.domain.inference import ToolSpec
from corral.domain.toolset import ToolConfig
from corral.domain.url import Url, parsed
from corral.domain.web import Source, domains_refuse
from corral.errors import Invalid
from corral.interfaces.sandbox import SandboxReply
from corral.tools.arguments import Arguments, parse, require
from corral.tools.web.failure import WebFailure
from corral.tools.web.searching import Found, Search, SearchEngine

NO_ENGINE = "unavailable: This server has no search engine; its operator can set one with `search` under `[web]`."
NOTHING = "No results."
QUERY_CHARACTERS_MAX = 1_000
TITLE_CHARACTERS_MAX = 300
TEXT_CHARACTERS_MAX = 2_000


class WebSearchArguments(Arguments, frozen=True):
    """See the schema."""

    query: str


class WebSearch:
    """See `WebTool`."""

    spec = ToolSpec(
        name="web_search",
        description="Search the web; returns titles, URLs and passages. Read a page with web_fetch.",
        input_schema={
            "type": "object",
            "properties": {"query": {"type": "string"}},
            "required": ["query"],
        },
    )

    def __init__(self, settings: WebSettings, engine: SearchEngine | None) -> None:
        self._settings, self._engine = settings, engine

    @property
    def offered(self) -> bool:
        """See `WebTool.offered`."""
        return self._engine is not None

    async def run(
        self, arguments: JsonObject, config: ToolConfig | None, shown: Callable[[Url], Collection[Source]]
    ) -> SandboxReply:
        """See `WebTool.run`."""
        given = parse("web_search", WebSearchArguments, arguments)
        require("web_search", query=given.query.strip())
        if self._engine is None:
            return SandboxReply(content=(TextBlock(text=NO_ENGINE),), is_error=True)
        search = _search(
            " ".join(given.query.split())[:QUERY_CHARACTERS_MAX], config, self._settings.search_results_max
        )
        try:
            found = await self._engine.search(search)
        except WebFailure as failure:
            return failure.reply()
        blocks = _blocks(found, search)
        return SandboxReply(content=blocks or (TextBlock(text=NOTHING),))

    async def close(self) -> None:
        """See `WebTool.close`."""
        if self._engine is not None:
            await self._engine.close()


def _search(query: str, config: ToolConfig | None, count: int) -> Search:
    if config is None:
        return Search(query, None, None, None, count)
    return Search(
        query,
        None if config.allowed_domains is UNSET else config.allowed_domains,
        None if config.blocked_domains is UNSET else config.blocked_domains,
        None if config.user_location is UNSET else config.user_location,
        count,
    )


def _blocks(found: Iterable[Found], search: Search) -> tuple[SearchResultBlock, ...]:
    """What the lists of domains let through, each URL once."""
    blocks: dict[str, SearchResultBlock] = {}
    for each in found:
        try:
            url = parsed(each.url.strip())
        except Invalid:
            continue
        if len(blocks) < search.results_max and not domains_refuse(url, search.allowed, search.blocked):
            blocks.setdefault(str(url), _block(url, each))
    return tuple(blocks.values())


def _block(url: Url, found: Found) -> SearchResultBlock:
    title = " ".join(found.title.split())[:TITLE_CHARACTERS_MAX] or url.host
    text = found.text.strip()[:TEXT_CHARACTERS_MAX] or title
    return SearchResultBlock(
        source=str(url),
        title=title,
        content=(SearchResultText(text=text),),
        citations=SearchResultCitations(enabled=True),
    )
