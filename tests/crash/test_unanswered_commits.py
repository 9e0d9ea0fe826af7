"""A request whose commit reached PostgreSQL while the answer was lost: stored once, answered, and acted upon.

The clients are the official SDK with its own retries, which say nothing that tells a retry from a second request. So
the server has to find out what became of a commit before it answers; and when it cannot, it has to say so in a way that
the SDK does not repeat the request, and still take up what may have been accepted.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from itertools import count

import anthropic
import anyio.from_thread
import pytest

from tests import postgres_server
from tests.crash.cutting_proxy import CuttingProxy, cutting
from tests.e2e.conftest import serving
from tests.e2e.sessions import Json, answer, custom_tool, history, message, new_session, reading, script, texts

pytestmark = [
    pytest.mark.skipif(postgres_server.unavailable() is not None, reason=str(postgres_server.unavailable())),
    pytest.mark.requirement("F069"),
]

WRITER = b"corral writer"
STRIDE = 131
TOML = "\n[server]\nping_seconds = 0.5\ndoubt_seconds_max = {}\n"


@pytest.fixture
def wire() -> Generator[tuple[CuttingProxy, str]]:
    """A wire to a database, that can be cut, and the database's URL through it."""
    with anyio.from_thread.start_blocking_portal() as portal:
        with portal.wrap_async_context_manager(postgres_server.database()) as url:
            with portal.wrap_async_context_manager(cutting(url)) as wired:
                yield wired


def says(events: Sequence[Json], event_type: str) -> list[str]:
    return [texts(event) for event in events if event.type == event_type]


def test_a_message_whose_commit_was_not_answered_is_stored_once_and_processed(wire: tuple[CuttingProxy, str]) -> None:
    proxy, url = wire
    sent: list[str] = []
    with serving(TOML.format(60), database=url) as server, server.client().with_options(max_retries=2) as client:
        session = new_session(client, custom_tool())
        for place in count(1, STRIDE):
            sent.append(script({"say": f"Number {place}."}))
            before = proxy.cuts
            with reading(client, session.id) as stream:
                proxy.cut_after(place, "answered", of=WRITER)
                (echo,) = answer(client, session.id, message(sent[-1]))
                stream.idle()
            proxy.disarm()
            assert echo.id in [event.id for event in history(client, session.id)]
            if proxy.cuts == before:
                break
        events = history(client, session.id)
    assert proxy.cuts >= 3
    assert says(events, "user.message") == sent
    assert len(says(events, "agent.message")) == len(sent)


def test_a_session_whose_creation_was_not_answered_is_made_once_and_begins(wire: tuple[CuttingProxy, str]) -> None:
    proxy, url = wire
    begin = message(script({"say": "Begun."}))
    with serving(TOML.format(60), database=url) as server, server.client().with_options(max_retries=2) as client:
        first = new_session(client, custom_tool())
        made: list[str] = []
        for place in count(1, STRIDE):
            before = proxy.cuts
            proxy.cut_after(place, "answered", of=WRITER)
            session = client.beta.sessions.create(
                agent=first.agent.id, environment_id=first.environment_id, initial_events=[begin]
            )
            made.append(session.id)
            wait_until_idle(client, session.id)
            proxy.disarm()
            assert says(history(client, session.id), "agent.message") == ["Begun."]
            if proxy.cuts == before:
                break
        assert proxy.cuts >= 3
        assert {each.id for each in client.beta.sessions.list(limit=100)} == {first.id, *made}


def test_what_may_have_been_accepted_is_not_asked_for_again_and_is_taken_up(wire: tuple[CuttingProxy, str]) -> None:
    proxy, url = wire
    words = script({"say": "Taken up."})
    with serving(TOML.format(0), database=url) as server, server.client().with_options(max_retries=2) as client:
        session = new_session(client, custom_tool())
        answer(client, session.id, message(script({"say": "Before."})))
        wait_until_idle(client, session.id)
        proxy.cut_after(1, "answered", of=WRITER, gone=True)
        with pytest.raises(anthropic.APIStatusError) as caught:
            client.beta.sessions.events.send(session.id, events=[message(words)])
        proxy.disarm()
        assert caught.value.status_code == 529
        assert "unknown whether it happened" in caught.value.message
        assert caught.value.response.request.headers["x-stainless-retry-count"] == "0"
        wait_until_idle(client, session.id)
        events = history(client, session.id)
    assert says(events, "user.message")[1:] == [words]
    assert says(events, "agent.message") == ["Before.", "Taken up."]


def wait_until_idle(client: anthropic.Anthropic, session_id: str) -> None:
    with reading(client, session_id) as stream:
        if client.beta.sessions.retrieve(session_id).status != "idle":
            stream.idle()
