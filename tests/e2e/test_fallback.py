"""A second model takes over in a real server: what a client sees of it, and what it costs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.counterpart import Counterpart
from tests.e2e.conftest import ServerProcess, serving
from tests.e2e.sessions import history, new_session, reading, send, texts
from tests.unit.openai_words import CHAT_HELLO, chat, chat_chunk

TOML = """
openai_base_url = "{url}/v1"
[[models]]
pattern = "first"
provider = "openai"
fallback = "scripted"
[prices.first]
input = 1_000_000
output = 0
cache_read = 0
cache_write_5m = 0
cache_write_1h = 0
[prices.scripted]
input = 0
output = 0
cache_read = 0
cache_write_5m = 0
cache_write_1h = 0
"""


@pytest.fixture
def first(counterpart: Counterpart) -> Counterpart:
    """The server of the first model."""
    return counterpart


@pytest.fixture
def server(first: Counterpart) -> Iterator[ServerProcess]:
    with serving(TOML.format(url=first.url), models="") as running:
        yield running
        # The name of the model that answered is the one thing here that the official types do not have.
        assert all("model" in problem for problem in running.watch.problems)
        assert running.watch.problems
        running.watch.problems.clear()


@pytest.mark.requirement("F068")
def test_half_an_answer_leaves_no_event_and_the_span_names_who_answered(
    first: Counterpart, server: ServerProcess
) -> None:
    first.answers(chat(*CHAT_HELLO, done=False))
    with server.client() as client:
        session = new_session(client, model="first")
        with reading(client, session.id, "agent.message") as reader:
            send(client, session.id, "hi")
            assert reader.idle().type == "end_turn"
        events = history(client, session.id)
    orphan, kept = [event.event.id for event in reader.of("event_start")]
    (answer,) = reader.of("agent.message")
    assert answer.id == kept and texts(answer) == "You said: hi"
    assert orphan not in {event.id for event in events}
    previewed = [event for event in reader.of("event_delta") if event.event_id == kept]
    assert "".join(event.delta.content.text for event in previewed) == "You said: hi"
    (end,) = reader.of("span.model_request_end")
    assert (end.is_error, end.to_dict()["model"]) == (False, "scripted")
    assert not reader.of("session.error", "session.status_rescheduled")


@pytest.mark.requirement("F086", "F143")
def test_a_refused_request_is_paid_to_the_model_that_refused(first: Counterpart, server: ServerProcess) -> None:
    usage: dict[str, object] = {"prompt_tokens": 3, "completion_tokens": 0}
    first.answers(chat(*CHAT_HELLO, chat_chunk("content_filter"), usage=usage))
    with server.client() as client:
        session = new_session(client, model="first")
        with reading(client, session.id) as reader:
            send(client, session.id, "hi")
            assert reader.idle().type == "end_turn"
    (end,) = reader.of("span.model_request_end")
    assert end.to_dict()["model"] == "scripted"
    assert end.model_usage.input_tokens > 3
    # Three tokens of the first model at a dollar each; the second one is free, and time is less than a cent.
    assert reader.of("session.usage")[-1].usage.list_cost.amount in ("300", "301")
