"""`web_search` with each engine, over HTTP as its documentation has it; and what it does without one."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Literal, get_args

import anyio
import msgspec
import pytest

from corral.config_sections import SearchBackend, WebSettings
from corral.domain.content import SearchResultBlock, TextBlock
from corral.domain.toolset import AlwaysAllow, ToolConfig, UserLocation
from corral.domain.url import Url
from corral.domain.web import Source
from corral.errors import MachineUnfit
from corral.interfaces.sandbox import SandboxReply
from corral.tools import SearchAccess, open_web_tools
from corral.tools.web_search import NO_ENGINE
from tests.contracts.search_engines import Asked, Engines, engines

pytestmark = pytest.mark.requirement("F021")
SECONDS_MAX = 60
NOTHING = msgspec.json.encode(
    {
        "results": [],
        "content": [{"type": "web_search_tool_result", "tool_use_id": "s", "content": []}],
        "output": [{"type": "web_search_call", "status": "completed", "action": {"type": "search", "query": "q"}}],
    }
)
"""What each engine takes for an answer without pages."""
KEYS = SearchAccess("key-of-brave", "key-of-tavily", anthropic="key-of-anthropic", openai="key-of-openai")
BERGEN = UserLocation(city="Bergen", region="Vestland", country="NO", timezone="Europe/Oslo")
PROVIDERS = ("anthropic", "openai")
each_engine = pytest.mark.parametrize("name", get_args(SearchBackend))


@pytest.fixture
def engine() -> Iterator[Engines]:
    with engines() as running:
        yield running


def settings(name: str | None, url: str | None = None, **changes: object) -> WebSettings:
    values: dict[str, object] = {"search": name, "search_url": url, "search_model": "small", **changes}
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
    """What was searched for; to a provider's model it is said at the end of the prompt."""
    prompt = asked.body.get("input") or asked.body.get("messages")
    if prompt is not None:
        text = prompt if isinstance(prompt, str) else msgspec.convert(prompt, list[Prompt])[0].content
        return text.rpartition("\n")[2]
    return asked.params.get("q") or str(asked.body["query"])


class Prompt(msgspec.Struct):
    role: Literal["user"]
    content: str


def tool_of(asked: Asked) -> dict[str, object]:
    (tool,) = msgspec.convert(asked.body["tools"], list[dict[str, object]])
    return tool


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
    if name == "anthropic":
        assert tool_of(allowed)["allowed_domains"] == ["docs.good.example/guide"]
        assert tool_of(blocked)["blocked_domains"] == ["bad.example"]
    elif name == "openai":
        assert tool_of(allowed)["filters"] == {"allowed_domains": ["docs.good.example"]}
        assert "filters" not in tool_of(blocked)
    elif name == "tavily":
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
    elif name in PROVIDERS:
        place = {"city": "Bergen", "region": "Vestland", "country": "NO", "timezone": "Europe/Oslo"}
        assert tool_of(asked)["user_location"] == {"type": "approximate", **place}
    else:
        assert query_of(asked) == "how it begins Bergen, Vestland, NO"


def test_keys_go_where_the_engines_want_them(engine: Engines) -> None:
    search(settings("brave", engine.url))
    search(settings("tavily", engine.url))
    search(settings("searxng", engine.url + "/"))
    search(settings("anthropic", engine.url))
    search(settings("openai", engine.url))
    brave, tavily, searxng, anthropic, openai = engine.asked
    assert (brave.path, brave.headers["x-subscription-token"]) == ("/web/search", "key-of-brave")
    assert (tavily.path, tavily.headers["authorization"]) == ("/search", "Bearer key-of-tavily")
    assert (searxng.path, searxng.params["format"]) == ("/search", "json")
    assert (anthropic.path, anthropic.headers["x-api-key"]) == ("/v1/messages", "key-of-anthropic")
    assert anthropic.headers["anthropic-version"] == "2023-06-01"
    assert (openai.path, openai.headers["authorization"]) == ("/responses", "Bearer key-of-openai")
    assert (anthropic.body["model"], openai.body["model"], openai.body["store"]) == ("small", "small", False)
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
        (
            200,
            b'{"results": 5, "web": 5, "content": 5, "output": 5}',
            "unavailable: The search engine's answer cannot be read.",
        ),
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
    engine.instead = (200, NOTHING)
    (nothing,) = search(settings(name, engine.url)).content
    assert nothing == TextBlock(text="No results.")
    with engines() as gone:
        url = gone.url
    assert failure(search(settings(name, url))) == "unavailable: The search engine cannot be reached."


def test_without_an_engine_the_tool_is_not_offered_and_says_why() -> None:
    tools = open_web_tools(settings(None), SearchAccess())
    assert [tools[name].offered for name in ("web_search", "web_fetch")] == [False, True]
    assert failure(search(settings(None))) == NO_ENGINE


NO_SEARCH = (
    "unavailable: The model that `search_model` names did not search; its provider may have no search of its own."
)
FAILED = "unavailable: The model provider's search failed."
SAID: Mapping[str, object] = {"type": "text", "text": "From what I know:", "citations": None}
ERROR: Mapping[str, object] = {"type": "web_search_tool_result_error"}


def refused(code: str) -> object:
    return {"type": "web_search_tool_result", "tool_use_id": "s", "content": {**ERROR, "error_code": code}}


DID_NOT: Sequence[tuple[str, object, str]] = [
    ("anthropic", {"content": [SAID]}, NO_SEARCH),
    ("anthropic", {"content": list[object]()}, NO_SEARCH),
    ("anthropic", {"content": [refused("unavailable"), SAID]}, FAILED),
    ("anthropic", {"content": [refused("too_many_requests")]}, f"too_many_requests: {FAILED.partition(': ')[2]}"),
    ("openai", {"output": [{"type": "message", "content": [{"type": "output_text", "text": "Hm."}]}]}, NO_SEARCH),
    ("openai", {"output": list[object]()}, NO_SEARCH),
    ("openai", {"output": [{"type": "web_search_call", "status": "failed", "action": {"type": "search"}}]}, FAILED),
]


@pytest.mark.parametrize(("name", "answer", "said"), DID_NOT)
def test_a_provider_that_did_not_search_is_no_success(name: str, answer: object, said: str, engine: Engines) -> None:
    engine.instead = (200, msgspec.json.encode(answer))
    assert failure(search(settings(name, engine.url))) == said


def test_pages_that_a_provider_saw_and_did_not_cite_are_results(engine: Engines) -> None:
    sources_only = {"sources": [{"type": "url", "url": "https://good.example/seen"}]}
    call = {"type": "web_search_call", "status": "completed", "action": sources_only}
    engine.instead = (200, msgspec.json.encode({"output": [call]}))
    (block,) = search(settings("openai", engine.url)).content
    assert isinstance(block, SearchResultBlock)
    assert (block.source, block.title) == ("https://good.example/seen", "good.example")


def test_a_server_of_ones_own_needs_no_key_and_a_token_may_stand_for_it(engine: Engines) -> None:
    async def run(name: str, access: SearchAccess) -> SandboxReply:
        tool = open_web_tools(settings(name), access)["web_search"]
        try:
            return await tool.run({"query": "q"}, None, nowhere)
        finally:
            await tool.close()

    for name, access in (
        ("anthropic", SearchAccess(anthropic_url=engine.url)),
        ("anthropic", SearchAccess(anthropic_url=engine.url, anthropic_token="token")),
        ("openai", SearchAccess(openai_url=engine.url)),
    ):
        assert len(sources(asyncio.run(run(name, access)))) == 3
    plain, token, openai = (asked.headers for asked in engine.asked)
    assert (plain["x-api-key"], token["authorization"], openai["authorization"]) == (
        "none",
        "Bearer token",
        "Bearer none",
    )
    assert "x-api-key" not in token


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("searxng", "search_url"),
        ("brave", "BRAVE_API"),
        ("tavily", "TAVILY_API"),
        ("anthropic", "ANTHROPIC_API"),
        ("openai", "OPENAI_API"),
    ],
)
def test_an_engine_without_what_it_needs_stops_the_server(name: str, said: str) -> None:
    with pytest.raises(MachineUnfit, match=said):
        open_web_tools(settings(name), SearchAccess())


@pytest.mark.parametrize("name", PROVIDERS)
def test_a_provider_needs_a_model_that_searches(name: str) -> None:
    with pytest.raises(MachineUnfit, match=f'`search = "{name}"` under `.web.` needs `search_model`'):
        open_web_tools(settings(name, search_model=None), KEYS)
