"""The web tools through the official SDK: offered, allowed, refused, interrupted and repeated."""

from __future__ import annotations

import anthropic
import pytest
from anthropic import Anthropic

from tests.contracts.search_engines import engines
from tests.contracts.web_site import Site, site
from tests.e2e.conftest import serving
from tests.e2e.sessions import (
    GATE_SECONDS_MAX,
    TOOLSET,
    Json,
    answer,
    history,
    new_agent,
    new_session,
    policies,
    reading,
    results,
    script,
    send,
    texts,
    turn,
    wait_until_idle,
)

LOOPBACK = '[web]\nallowed_private = ["127.0.0.1/32"]\n'


def fetch(url: str) -> dict[str, object]:
    return {"tool": "web_fetch", "input": {"url": url}}


def look_for(query: str) -> dict[str, object]:
    return {"tool": "web_search", "input": {"query": query}}


def configured(name: str, **fields: Json) -> Json:
    return {**TOOLSET, "configs": [{"name": name, **fields}]}


def at(web: Site, path: str) -> str:
    return f"http://127.0.0.1:{web.port}{path}"


def only_result(client: Anthropic, tools: Json, *steps: Json) -> Json:
    seen = turn(client, new_session(client, tools).id, script(*steps, {"say": "Done."}))
    (result,) = [event for event in seen if event.type == "agent.tool_result"]
    return result


@pytest.mark.requirement("F022")
def test_private_pages_are_refused_unless_the_operator_allows_them(client: Anthropic) -> None:
    result = only_result(client, TOOLSET, fetch("http://169.254.169.254/latest/meta-data/"))
    assert result.is_error and texts(result).startswith("url_not_allowed: ")


@pytest.mark.requirement("F021")
def test_without_an_engine_a_search_says_so_and_is_not_offered(client: Anthropic) -> None:
    result = only_result(client, TOOLSET, look_for("corral"))
    assert result.is_error and "no search engine" in texts(result)
    seen = turn(client, new_session(client).id, script({"echo": "prompt"}))
    (said,) = [texts(event) for event in seen if event.type == "agent.message"]
    assert "web_fetch" in said and "web_search" not in said


@pytest.mark.requirement("F021", "F022", "F023")
def test_an_agent_searches_and_reads_what_it_found() -> None:
    with engines() as engine, site() as web:
        toml = f'{LOOPBACK}search = "searxng"\nsearch_url = "{engine.url}"\n'
        toml += 'hosts = { "docs.good.example" = "127.0.0.1" }\n'
        with serving(toml) as server, server.client() as client:
            session = new_session(client)
            found = turn(client, session.id, script(look_for("how"), {"say": "Done."}))
            used = client.beta.sessions.retrieve(session.id).usage.server_tool_use
            assert used is not None and (used.web_search_requests, used.web_fetch_requests) == (1, 0)
            (result,) = [event for event in found if event.type == "agent.tool_result"]
            assert [block.type for block in result.content or []] == ["search_result"] * 3
            _only_shown_urls_are_fetched(client, web)
            _policies_hold(client, web)
            _limits_hold(client, web)
            _an_interrupt_ends_a_fetch(client, web)


def _only_shown_urls_are_fetched(client: Anthropic, web: Site) -> None:
    # The script is no part of the conversation here, so what shows a URL is the message and the pages.
    steps = script(*(fetch(at(web, path)) for path in ("/more", "/", "/more", "/json")), {"say": "Done."})

    def read(**sources: str) -> list[str]:
        agent = new_agent(client, tools=[configured("web_fetch", url_sources=sources)], system=steps)
        seen = turn(client, new_session(client, agent=agent).id, f"Read {at(web, '/')}, please.")
        return [result.partition(":")[0].partition("\n")[0] for result in results(seen)]

    refused = "url_not_allowed"
    assert read() == [refused, "# A page", "more", refused]
    assert read(server_tool_results="none") == [refused, "# A page", refused, refused]
    assert read(user_input="none") == [refused] * 4


def _policies_hold(client: Anthropic, web: Site) -> None:
    session = new_session(client, policies(web_fetch="always_ask"))
    before = len(web.seen)
    with reading(client, session.id) as reader:
        send(client, session.id, script(fetch(at(web, "/more")), {"say": "Done."}))
        assert reader.idle().type == "requires_action"
        (use,) = reader.of("agent.tool_use")
        assert len(web.seen) == before
        answer(client, session.id, {"type": "user.tool_confirmation", "tool_use_id": use.id, "result": "allow"})
        assert reader.idle().type == "end_turn"
    assert results(history(client, session.id)) == ["more"] and len(web.seen) == before + 1
    disabled = only_result(client, configured("web_fetch", enabled=False), fetch(at(web, "/more")))
    assert disabled.is_error and texts(disabled) == "Permission to use web_fetch has been denied."


def _limits_hold(client: Anthropic, web: Site) -> None:
    cut = only_result(client, configured("web_fetch", max_content_tokens=5), fetch(at(web, "/long")))
    assert texts(cut).startswith("0123456789" * 2 + "\n\n[…")
    blocked = only_result(client, configured("web_fetch", blocked_domains=["good.example"]),
                          fetch(f"http://docs.good.example:{web.port}/more"))  # fmt: skip
    assert blocked.is_error and texts(blocked).startswith("url_not_allowed: ")
    long = texts(only_result(client, TOOLSET, fetch(at(web, "/links"))))
    assert "/home/agent/tool_results/" in long and "word 19999" in long and len(long) < 6_000
    pixel = only_result(client, TOOLSET, fetch(at(web, "/pixel")))
    assert pixel.content[0].type == "image"


def _an_interrupt_ends_a_fetch(client: Anthropic, web: Site) -> None:
    session = new_session(client)
    with reading(client, session.id) as reader:
        send(client, session.id, script(fetch(at(web, "/drip/body")), {"say": "Never said."}))
        reader.until("agent.tool_use")
        answer(client, session.id, {"type": "user.interrupt"})
        assert reader.idle().type == "end_turn"
    assert "Never said." not in [texts(event) for event in reader.of("agent.message")]


@pytest.mark.requirement("F022")
def test_a_page_is_read_again_when_the_server_died_over_it() -> None:
    with site() as web, serving(LOOPBACK) as server:
        with server.client() as client:
            session = new_session(client)
            send(client, session.id, script(fetch(at(web, "/once/")), {"say": "Done."}))
            assert web.visited.wait(GATE_SECONDS_MAX)
        server.kill()
        server.start()
        with server.client() as client:
            seen = wait_until_idle(client, session.id)
        assert results(seen) == ["visit 2"]
        assert [texts(event) for event in seen if event.type == "agent.message"] == ["Done."]


@pytest.mark.requirement("F023")
def test_an_agent_that_may_fetch_nothing_is_refused(client: Anthropic) -> None:
    none = dict.fromkeys(("user_input", "server_tool_results", "client_tool_results"), "none")
    with pytest.raises(anthropic.BadRequestError, match="at least one source"):
        new_session(client, configured("web_fetch", url_sources=none))
