"""Long sessions: a conversation that outgrows the model's window is condensed, and what matters is not forgotten."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from anthropic import Anthropic

from tests.e2e.conftest import ServerProcess, serving
from tests.e2e.sessions import history, new_agent, new_session, script, send, turn

WINDOW = "[harness]\ncontext_tokens = 16000\nbackoff_seconds = 0.01\n"
TURNS = 500
FACT = "remember: the vault's number is 4711"
PADDING = "The weather is fine and there is nothing to report. " * 12


@pytest.fixture
def small_window() -> Iterator[ServerProcess]:
    with serving(WINDOW) as running:
        yield running


@pytest.mark.requirement("F144")
def test_five_hundred_turns_fit_a_small_window_and_an_early_fact_is_still_known(small_window: ServerProcess) -> None:
    with small_window.client() as client:
        session = new_session(client, agent=new_agent(client, model="scripted", tools=[]))
        run_turns(client, session.id, 0, TURNS // 2)
    small_window.kill()
    small_window.start()
    with small_window.client() as client:
        run_turns(client, session.id, TURNS // 2, TURNS)
        prompt = what_the_model_sees(client, session.id)
        events = history(client, session.id)
    assert FACT in prompt and len(prompt) < 16_000 * 4
    types = [event.type for event in events]
    assert types.count("agent.thread_context_compacted") >= 2
    assert types.count("user.message") == TURNS + 1 and "session.error" not in types


@pytest.mark.requirement("F144")
def test_a_prompt_that_stays_too_long_is_condensed_three_times_and_then_given_up(small_window: ServerProcess) -> None:
    with small_window.client() as client:
        session = new_session(client, agent=new_agent(client, model="scripted", tools=[]))
        turn(client, session.id, f"{FACT}. Hello.")
        seen = turn(client, session.id, script({"fail": "overflow"}, {"say": "never"}))
        types = [event.type for event in seen]
        assert types.count("agent.thread_context_compacted") == 3
        (error,) = [event for event in seen if event.type == "session.error"]
        assert error.error.type == "compaction_limit_reached_error"
        assert seen[-1].type == "session.status_idle" and seen[-1].stop_reason.type == "retries_exhausted"
        assert FACT in what_the_model_sees(client, session.id)


def run_turns(client: Anthropic, session_id: str, first: int, last: int) -> None:
    with client.beta.sessions.events.stream(session_id) as stream:
        for number in range(first, last):
            text = f"{FACT}." if number == 3 else f"Turn {number}. {PADDING}"
            send(client, session_id, text)
            next(event for event in stream if event.type == "session.status_idle")


def what_the_model_sees(client: Anthropic, session_id: str) -> str:
    seen = turn(client, session_id, script({"echo": "messages"}))
    (said,) = [event for event in seen if event.type == "agent.message"]
    return said.to_json()
