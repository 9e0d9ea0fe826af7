"""`web_fetch`: read one page of the web."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial

from msgspec import UNSET

from corral.config_sections import WebSettings
from corral.domain.content import JsonObject, TextBlock
from corral.domain.inference import ToolSpec
from corral.domain.toolset import ToolConfig
from corral.domain.url import Url, parsed
from corral.domain.web import Source, domains_refuse
from corral.errors import Invalid
from corral.interfaces.sandbox import SandboxReply
from corral.tools.arguments import Arguments, parse, require
from corral.tools.web import pages
from corral.tools.web.converting import Converter
from corral.tools.web.failure import WebFailure
from corral.tools.web.fetching import Fetcher, Page

ERROR_CHARACTERS_MAX = 2_000
"""Of the page that comes with an HTTP error."""


class WebFetchArguments(Arguments, frozen=True):
    """See the schema."""

    url: str


class WebFetch:
    """See `WebTool`."""

    spec = ToolSpec(
        name="web_fetch",
        description="Read a web page as Markdown, or a text, image or PDF on the web. Only public pages; no login.",
        input_schema={
            "type": "object",
            "properties": {"url": {"type": "string", "description": "http or https URL"}},
            "required": ["url"],
        },
    )
    offered = True

    def __init__(self, settings: WebSettings, own_ports: Sequence[int] = ()) -> None:
        self._settings = settings
        self._fetcher = Fetcher(settings, own_ports)
        self._converter = Converter(settings)

    async def run(
        self, arguments: JsonObject, config: ToolConfig | None, shown: Callable[[Url], Collection[Source]]
    ) -> SandboxReply:
        """See `WebTool.run`."""
        given = parse("web_fetch", WebFetchArguments, arguments)
        require("web_fetch", url=given.url.strip())
        try:
            url = _permitted(given.url.strip(), config, shown)
            check = partial(_check_domain, config)
            page = await self._fetcher.get(url, check, partial(pages.bytes_max, settings=self._settings))
            return await self._reply(url, page, config)
        except WebFailure as failure:
            return failure.reply()

    async def _reply(self, url: Url, page: Page, config: ToolConfig | None) -> SandboxReply:
        tokens = UNSET if config is None else config.max_content_tokens
        limit = None if tokens is UNSET else tokens * pages.CHARACTERS_PER_TOKEN
        if page.status >= 400:
            code = "too_many_requests" if page.status == 429 else "url_not_accessible"
            failure = WebFailure(code, f"{page.url.host} answers with HTTP {page.status} {page.reason}.")
            blocks = await self._explanation(page)
            return SandboxReply(content=(*failure.reply().content, *blocks), is_error=True)
        blocks = await pages.shown(page, self._converter, limit)
        if page.url == url:
            return SandboxReply(content=blocks)
        return SandboxReply(content=(TextBlock(text=f"[Redirected to {page.url}]"), *blocks))

    async def _explanation(self, page: Page) -> Sequence[TextBlock]:
        """What the error's page says, if it is text."""
        try:
            blocks = await pages.shown(page, self._converter, ERROR_CHARACTERS_MAX)
        except WebFailure:
            return ()
        return [block for block in blocks if isinstance(block, TextBlock)]

    async def close(self) -> None:
        """See `WebTool.close`."""
        await self._fetcher.close()


def _permitted(text: str, config: ToolConfig | None, shown: Callable[[Url], Collection[Source]]) -> Url:
    try:
        url = parsed(text)
    except Invalid as error:
        raise WebFailure("url_not_allowed", error.message) from error
    _check_domain(config, url)
    sources = None if config is None else config.sources
    if sources is not None and not sources.allow(shown(url)):
        sentence = "Only URLs that this conversation has shown, in the sources that the agent may use, can be fetched."
        raise WebFailure("url_not_allowed", sentence)
    return url


def _check_domain(config: ToolConfig | None, url: Url) -> None:
    if config is None:
        return
    allowed = None if config.allowed_domains is UNSET else config.allowed_domains
    blocked = None if config.blocked_domains is UNSET else config.blocked_domains
    if domains_refuse(url, allowed, blocked):
        raise WebFailure("url_not_allowed", f"The agent's settings do not let it fetch pages of {url.host}.")
