"""What an agent's settings may say about the web, how they are echoed, and what they let through."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import pytest
from anthropic.types.beta import BetaManagedAgentsAgentToolset20260401

from corral.domain.content import SearchResultBlock, SearchResultCitations, SearchResultText, TextBlock
from corral.domain.toolset import AgentToolsetParams, CustomTool, ToolParams, fill
from corral.domain.url import Url, parsed, urls_in
from corral.domain.web import Source, domains_refuse
from corral.errors import Invalid
from corral.harness.shown_urls import URLS_MAX, ShownUrls
from tests.api.sdk_types import assert_is

WEATHER = CustomTool(name="weather", description="Weather.", input_schema={"type": "object"})
FETCH, SEARCH = "web_fetch", "web_search"


def echo(tool: str, *others: ToolParams, **fields: object) -> dict[str, object]:
    """The settings of one tool as they are echoed, once the SDK's own type has been compared with them."""
    params = msgspec.convert(
        {"configs": [{"name": tool, **fields}], "type": "agent_toolset_20260401"}, AgentToolsetParams
    )
    toolset = msgspec.json.decode(msgspec.json.encode(fill([params, *others])[0]))
    assert_is(toolset, BetaManagedAgentsAgentToolset20260401)
    return toolset["configs"][0]


def refusal(tool: str, *others: ToolParams, **fields: object) -> str:
    with pytest.raises((Invalid, msgspec.ValidationError)) as refused:
        echo(tool, *others, **fields)
    return str(refused.value)


def only(*names: str, kind: str = "only") -> dict[str, object]:
    return {"type": kind, "tools": [{"type": "tool_reference", "name": name} for name in names]}


@pytest.mark.requirement("F021", "F022")
def test_settings_are_echoed_with_their_defaults() -> None:
    policy = {"type": "always_allow"}
    plain = {"enabled": True, "permission_policy": policy}
    assert echo(FETCH) == {"name": FETCH, "type": FETCH, "url_sources": None, **plain}
    assert echo(SEARCH) == {"name": SEARCH, "type": SEARCH, **plain}
    given = {"allowed_domains": ["Docs.example.com", "a.b.example"], "max_content_tokens": 5_000}
    assert echo(FETCH, **given) == {**echo(FETCH), **given}
    location = {"type": "approximate", "city": "S\xe3o Paulo", "country": "BR", "region": None, "timezone": None}
    wanted = {"blocked_domains": ["x.org", "example.com/a~b/c-d"], "user_location": location}
    assert echo(SEARCH, **wanted) == {**echo(SEARCH), **wanted}


@pytest.mark.requirement("F023")
def test_sources_are_echoed_as_objects() -> None:
    assert echo(FETCH, url_sources={})["url_sources"] == {
        "user_input": None, "server_tool_results": None, "client_tool_results": None
    }  # fmt: skip
    given: Mapping[str, object] = {
        "user_input": "none",
        "server_tool_results": only(SEARCH),
        "client_tool_results": only("weather", kind="except"),
    }
    assert echo(FETCH, WEATHER, url_sources=given)["url_sources"] == {**given, "user_input": {"type": "none"}}
    short = echo(FETCH, url_sources={"server_tool_results": "all", "client_tool_results": {"type": "none"}})
    assert short["url_sources"] == {
        "user_input": None, "server_tool_results": {"type": "all"}, "client_tool_results": {"type": "none"}
    }  # fmt: skip


@pytest.mark.requirement("F023")
@pytest.mark.parametrize(
    ("sources", "said"),
    [
        ({"user_input": "none", "server_tool_results": "none", "client_tool_results": "none"}, "at least one source"),
        ({"user_input": "some"}, "user_input"),
        ({"user_input": only(SEARCH)}, "user_input"),
        ({"server_tool_results": only()}, "must hold 1 to 128"),
        ({"server_tool_results": only(*["web_fetch"] * 2)}, "named once"),
        ({"server_tool_results": only("bash")}, "neither web_search nor web_fetch"),
        ({"client_tool_results": only("Weather")}, "no custom tool `Weather`"),
        ({"client_tool_results": {"type": "only", "tools": ["weather"]}}, "tools"),
        ({"elsewhere": "all"}, "elsewhere"),
    ],
)
def test_sources_that_make_no_sense_are_refused(sources: dict[str, object], said: str) -> None:
    assert said in refusal(FETCH, WEATHER, url_sources=sources)


@pytest.mark.requirement("F021", "F022")
@pytest.mark.parametrize(
    "domain",
    ["", "com", "localhost", "x.localhost", "10.0.0.1", "1.2.3.0x4", "[::1]", "http://a.example", "a.example:80",
     "a.example/x", "*.example.com", ".example.com", "example.com.", "a..example", "b\xfccher.example", "a b.example",
     "-a.example", "a.example\n", "x" * 64 + ".example", "a." * 126 + "example"],
)  # fmt: skip
def test_domains_are_plain_host_names(domain: str) -> None:
    assert "plain host name" in refusal(FETCH, allowed_domains=[domain])
    if domain != "a.example/x":
        assert "plain host name" in refusal(SEARCH, blocked_domains=[domain])


@pytest.mark.requirement("F021", "F022")
@pytest.mark.parametrize(
    ("tool", "fields", "said"),
    [
        (FETCH, {"allowed_domains": []}, "1 to 64"),
        (FETCH, {"blocked_domains": [f"a{n}.example" for n in range(65)]}, "1 to 64"),
        (FETCH, {"allowed_domains": ["a.example"], "blocked_domains": ["b.example"]}, "not both"),
        (FETCH, {"max_content_tokens": 0}, "positive"),
        (FETCH, {"user_location": {"type": "approximate"}}, "no such field"),
        (SEARCH, {"max_content_tokens": 5}, "no such field"),
        (SEARCH, {"url_sources": {}}, "no such field"),
        (SEARCH, {"allowed_domains": ["a.example/?q"]}, "plain host name"),
        (SEARCH, {"user_location": {"type": "exact"}}, "approximate"),
        (SEARCH, {"user_location": {"type": "approximate", "country": "Norway"}}, "two-letter"),
        (SEARCH, {"user_location": {"type": "approximate", "city": "x\r\nx-evil: 1"}}, "printable"),
        ("bash", {"url_sources": {}}, "no such field"),
    ],
)
def test_other_settings_that_make_no_sense_are_refused(tool: str, fields: dict[str, object], said: str) -> None:
    assert said in refusal(tool, **fields).replace("Invalid value", "approximate")


def test_domains_match_hosts_below_them_and_paths_by_whole_segments() -> None:
    def refused(url: str, *domains: str) -> bool:
        return domains_refuse(parsed(url), domains, None)

    assert not refused("https://a.docs.example.com./x", "DOCS.example.com")
    assert refused("https://notexample.com/", "example.com")
    assert not refused("https://example.com/docs/a?b", "example.com/docs/")
    assert refused("https://example.com/docsearch", "example.com/docs")
    assert not refused("https://b\xfccher.example/", "xn--bcher-kva.example")
    assert not domains_refuse(parsed("https://example.com/"), None, None)


@pytest.mark.parametrize(
    "path",
    ["/docs/../private", "/docs/%2e%2e/private", "/docs/..%2fprivate", "/docs/x/../../private", "/docs/..%5cprivate"],
)
def test_a_path_that_leads_out_of_what_is_allowed_is_refused(path: str) -> None:
    assert domains_refuse(parsed(f"https://example.com{path}"), ["example.com/docs"], None)
    assert not domains_refuse(parsed("https://example.com/docs/a/../b"), ["example.com/docs"], None)


@pytest.mark.parametrize("path", ["/private", "/%70rivate/x", "//private", "/docs/../private/", "/./private"])
def test_a_path_that_is_blocked_is_so_however_it_is_written(path: str) -> None:
    assert domains_refuse(parsed(f"https://example.com{path}"), None, ["example.com/private"])
    assert not domains_refuse(parsed("https://example.com/private2"), None, ["example.com/private"])


def test_a_url_has_one_form() -> None:
    assert parsed("HTTP://EXAMPLE.com.:80") == Url("http", "example.com", 80, "/")
    assert str(parsed("https://example.com:443/a b#part".replace(" ", "%20"))) == "https://example.com/a%20b"
    assert str(parsed("http://2130706433:8080?q=\xe9")) == "http://127.0.0.1:8080/?q=%C3%A9"
    assert str(parsed("http://[::FFFF:1.2.3.4]/")) == "http://1.2.3.4/"


def test_urls_are_found_where_texts_show_them() -> None:
    text = (
        "See https://a.example/one, (https://a.example/two) or [three](https://a.example/three?q=1#x). "
        'Also "https://a.example/four", <https://a.example/five> and https://a.example/six_(b)! '
        '{"u":"https://a.example/seven"} http://user@a.example/ not ftp://a.example/eight **https://a.example/nine**'
    )
    found = set(urls_in(text))
    names = ("one", "two", "three?q=1", "four", "five", "six_(b)", "seven", "nine")
    assert {f"https://a.example/{name}" for name in names} <= found
    assert not any("user" in url or "eight" in url for url in found)


@pytest.mark.requirement("F023")
def test_a_conversation_knows_where_it_showed_a_url_and_forgets_the_oldest() -> None:
    shown = ShownUrls()
    user, search = Source("user_input"), Source("server_tool_results", "web_search")
    shown.add("https://a.example", user)
    shown.add("again https://A.example/.", search)
    assert set(shown.sources(parsed("https://a.example/#top"))) == {user, search}
    assert not shown.sources(parsed("https://b.example/"))
    passage = SearchResultBlock(
        source="https://c.example/",
        title="C",
        content=(SearchResultText(text="or http://d.example"),),
        citations=SearchResultCitations(enabled=True),
    )
    shown.add_blocks((passage, TextBlock(text="and https://e.example/x")), search)
    for url in ("https://c.example/", "http://d.example/", "https://e.example/x"):
        assert set(shown.sources(parsed(url))) == {search}
    shown.add(" ".join(f"https://many.example/{number}" for number in range(URLS_MAX)), user)
    assert not shown.sources(parsed("https://a.example/"))
    assert shown.sources(parsed(f"https://many.example/{URLS_MAX - 1}"))


def test_looking_for_urls_takes_no_longer_than_the_text_is_long() -> None:
    assert len(list(urls_in("https://" * 200_000))) < 1_000
    assert len(list(urls_in("https://a.example/" + ")" * 100_000))) <= 8
    assert len(set(urls_in("x" * 1_000_000 + " https://a.example"))) == 1
