"""`web_search` with each engine, over HTTP as its documentation has it; and what it does without one."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from typing import get_args

import anyio
import pytest

from corral.config_sections import SearchBackend, WebSettings
from corral.domain.content import SearchResultBlock, TextBlock
from corral.domain.toolset import AlwaysAllow, ToolConfig, UserLocation
from corral.domain.url import Url
from corral.domain.web import Source
from corral.errors import MachineUnfit
from corral.interfaces.sandbox import SandboxReply
from corral.tools import SearchKeys, open_web_tools
from corral.tools.web_search import NO_ENGINE
from tests.contracts.search_engines import Asked, Engines, engines

pytestmark = pytest.mark.requirement("F021")
SECONDS_MAX = 60
KEYS = SearchKeys("key-of-brave", "key-of-tavily")
BERGEN = UserLocation(city="Bergen", region="Vestland", country="NO", timezone="Europe/Oslo")
each_engine = pytest.mark.parametrize("name", get_args(SearchBackend))


@pytest.fixture
def engine() -> Iterator[Engines]:
    with engines() as running:
        yield running


def settings(name: str | None, url: str | None = None, **changes: object) -> WebSettings:
    values: dict[str, object] = {"search": name, "search_url": url, **changes}
    return WebSettings(**values)  # pyright: ignore[reportArgumentType]  # checked by the struct


def config(**fields: object) -> ToolConfig:
    values: dict[str, object] = {"name": "web_search", "type": "web_search", "enabled": True, **fields}
    return ToolConfig(permission_policy=AlwaysAllow(), **values)  # pyright: ignore[reportArgumentType]  # checked by msgspec elsewhere


def search(chosen: WebSettings, query: str = "how it begins", about: ToolConfig | None = None) -> SandboxReply:
    async def run() -> SandboxReply:
        tools = open_web_tools(chosen, KEYS)
        with anyio.fail_after(SECONDS_MAX):
            try:
                return await tools["web_search"].run({"query": query}, about, nowhere)
            finally:
                for tool in tools.values():
                    await tool.close()

    return asyncio.run(run())


def nowhere(url: Url) -> Collection[Source]:
    return ()


def sources(reply: SandboxReply) -> list[str]:
    assert not reply.is_error, reply
    return [block.source for block in reply.content if isinstance(block, SearchResultBlock)]


def failure(reply: SandboxReply) -> str:
    (block,) = reply.content
    assert reply.is_error and isinstance(block, TextBlock)
    return block.text


def query_of(asked: Asked) -> str:
    return asked.params.get("q") or str(asked.body["query"])


@each_engine
def test_results_are_blocks_that_can_be_cited_each_page_once(name: str, engine: Engines) -> None:
    reply = search(settings(name, engine.url))
    assert sources(reply) == [
        "https://docs.good.example/guide/intro", "https://bad.example/", "https://good.example/other"
    ]  # fmt: skip
    first, _, last = reply.content
    assert isinstance(first, SearchResultBlock) and isinstance(last, SearchResultBlock)
    assert (first.title, first.content[0].text, first.citations.enabled) == ("Intro", "How it begins.", True)
    assert last.title == "Other page"
    assert query_of(engine.asked[0]) == "how it begins"


@each_engine
def test_lists_of_domains_are_passed_on_and_held(name: str, engine: Engines) -> None:
    chosen = settings(name, engine.url)
    within = search(chosen, about=config(allowed_domains=("docs.good.example/guide",)))
    assert sources(within) == ["https://docs.good.example/guide/intro"]
    without = search(chosen, about=config(blocked_domains=("bad.example",)))
    assert sources(without) == ["https://docs.good.example/guide/intro", "https://good.example/other"]
    allowed, blocked = engine.asked
    if name == "tavily":
        assert allowed.body["include_domains"] == ["docs.good.example/guide"]
        assert blocked.body["exclude_domains"] == ["bad.example"]
    else:
        assert query_of(allowed) == "how it begins (site:docs.good.example/guide)"
        assert query_of(blocked) == "how it begins -site:bad.example"
    many = tuple(f"site-{number}.example.org" for number in range(64))
    assert sources(search(chosen, about=config(allowed_domains=many))) == []
    assert name == "tavily" or query_of(engine.asked[-1]) == "how it begins"


@each_engine
def test_the_location_is_passed_on(name: str, engine: Engines) -> None:
    search(settings(name, engine.url), about=config(user_location=BERGEN))
    (asked,) = engine.asked
    if name == "brave":
        given = {key: value for key, value in asked.headers.items() if key.startswith("x-loc-")}
        assert given == {
            "x-loc-city": "Bergen", "x-loc-state-name": "Vestland", "x-loc-country": "NO",
            "x-loc-timezone": "Europe/Oslo",
        }  # fmt: skip
    else:
        assert query_of(asked) == "how it begins Bergen, Vestland, NO"


def test_keys_go_where_the_engines_want_them(engine: Engines) -> None:
    search(settings("brave", engine.url))
    search(settings("tavily", engine.url))
    search(settings("searxng", engine.url + "/"))
    brave, tavily, searxng = engine.asked
    assert (brave.path, brave.headers["x-subscription-token"]) == ("/web/search", "key-of-brave")
    assert (tavily.path, tavily.headers["authorization"]) == ("/search", "Bearer key-of-tavily")
    assert (searxng.path, searxng.params["format"]) == ("/search", "json")
    assert "key-of" not in str(searxng) and "key-of" not in repr(KEYS)


def test_there_are_no_more_results_than_the_operator_wants(engine: Engines) -> None:
    assert len(sources(search(settings("searxng", engine.url, search_results_max=1)))) == 1


@each_engine
@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (429, b"{}", "too_many_requests: The search engine answers with HTTP 429."),
        (401, b'{"message": "key-of-brave is wrong"}', "unavailable: The search engine answers with HTTP 401."),
        (200, b"<html>", "unavailable: The search engine's answer cannot be read."),
        (200, b'{"results": 5, "web": 5}', "unavailable: The search engine's answer cannot be read."),
        (200, b'{"results": "' + b"x" * 5_000_000 + b'"}', "unavailable: The search engine's answer is too long."),
    ],
)
def test_an_engine_that_fails_is_an_error_result(
    name: str, status: int, body: bytes, said: str, engine: Engines
) -> None:
    engine.instead = (status, body)
    assert failure(search(settings(name, engine.url))) == said


@each_engine
def test_an_engine_that_is_gone_or_finds_nothing_is_said_so(name: str, engine: Engines) -> None:
    engine.instead = (200, b'{"results": []}')
    (nothing,) = search(settings(name, engine.url)).content
    assert nothing == TextBlock(text="No results.")
    with engines() as gone:
        url = gone.url
    assert failure(search(settings(name, url))) == "unavailable: The search engine cannot be reached."


def test_without_an_engine_the_tool_is_not_offered_and_says_why() -> None:
    tools = open_web_tools(settings(None), SearchKeys())
    assert [tools[name].offered for name in ("web_search", "web_fetch")] == [False, True]
    assert failure(search(settings(None))) == NO_ENGINE


@pytest.mark.parametrize(
    ("name", "said"), [("searxng", "search_url"), ("brave", "BRAVE_API"), ("tavily", "TAVILY_API")]
)
def test_an_engine_without_what_it_needs_stops_the_server(name: str, said: str) -> None:
    with pytest.raises(MachineUnfit, match=said):
        open_web_tools(settings(name), SearchKeys())
