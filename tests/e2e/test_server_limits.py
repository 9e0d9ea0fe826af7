"""Limits that the operator sets for everybody in corral.toml; both are off unless asked for."""

from __future__ import annotations

from tests.e2e.conftest import LIVELY, serving
from tests.e2e.sessions import Json, bash, new_session, script, texts, turn, types


def test_a_spend_limit_stops_all_sessions_until_it_is_raised() -> None:
    with serving(LIVELY + "[budget]\norganization_usd_max = 0.01\n") as server:
        with server.client() as client:
            first, second = new_session(client, model="priced"), new_session(client, model="priced")
            spent = turn(client, first.id, script({"say": "Costly.", "usage": {"input_tokens": 20_000}}))
            assert said(spent) == ["Costly."]
            stopped = turn(client, second.id, "Hello?")
            assert stopped[-1].type == "session.status_idle" and stopped[-1].stop_reason.type == "budget_reached"
            assert "span.model_request_start" not in types(stopped)
        server.stop()
        server.config.write_text(
            server.config.read_text(encoding="utf-8").replace("organization_usd_max = 0.01", ""), encoding="utf-8"
        )
        server.start()
        with server.client() as client:
            answered = turn(client, second.id, "And now?")
            assert answered[-1].type == "session.status_idle" and answered[-1].stop_reason.type == "end_turn"
            assert said(answered) == ["You said: And now?"]


def test_a_session_that_runs_too_long_is_stopped_in_the_middle_of_a_command() -> None:
    with serving("[harness]\nsession_seconds_max = 1.0\n") as server, server.client() as client:
        session = new_session(client)
        seen = turn(client, session.id, script(bash("while :; do sleep 0.1; done"), {"say": "Never said."}))
        (error,) = [event for event in seen if event.type == "session.error"]
        assert "running time" in error.error.message and error.error.retry_status.type == "exhausted"
        assert seen[-1].type == "session.status_idle" and seen[-1].stop_reason.type == "retries_exhausted"


def said(events: Json) -> list[str]:
    return [texts(event) for event in events if event.type == "agent.message"]
