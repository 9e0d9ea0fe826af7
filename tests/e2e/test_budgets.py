"""Budgets and usage: what was used is counted, the cap stops the session, and more money sets it going again."""

from __future__ import annotations

import anthropic
import pytest
from anthropic import Anthropic
from anthropic.types.beta import BetaManagedAgentsSession

from tests.e2e.sessions import (
    Json,
    answer,
    custom_tool,
    error_code,
    history,
    message,
    new_session,
    policies,
    reading,
    refused,
    script,
    send,
    texts,
    turn,
    types,
)

DOLLAR = {"input_tokens": 10_000, "output_tokens": 0}
"""What a dollar buys of the model "priced"."""


def cents(amount: int) -> Json:
    return {"type": "limit", "max_list_cost": {"amount": str(amount), "currency": "USD"}}


def capped(client: Anthropic, amount: int, *tools: Json) -> BetaManagedAgentsSession:
    return new_session(client, *tools, model="priced", budget=cents(amount))


CALL = {"tool": "glob", "input": {"pattern": "*"}}


@pytest.mark.requirement("F141")
def test_a_session_pauses_at_its_cap_and_goes_on_when_it_is_raised(client: Anthropic) -> None:
    session = capped(client, 50)
    with reading(client, session.id) as reader:
        send(client, session.id, script([{**CALL, "usage": DOLLAR}], {"say": "Where was I?"}))
        assert reader.idle().type == "budget_reached"
        assert len(reader.of("span.model_request_start")) == 1
        thread, usage, idle = reader.seen[-3:]
        assert types([thread, usage, idle]) == [
            "session.thread_status_idle",
            "session.usage",
            "session.status_idle",
        ]
        assert thread.stop_reason.type == "budget_reached"
        # A dollar of tokens; the running time is less than a cent, and cents are rounded up.
        assert usage.usage.list_cost.amount in ("100", "101")
        assert usage.budget.max_list_cost.amount == "50"
        client.beta.sessions.update(session.id, budget=cents(500))
        assert reader.idle().type == "end_turn"
    assert types(reader.of("session.updated", "session.status_running")) == [
        "session.status_running",
        "session.updated",
        "session.status_running",
    ]
    (updated,) = reader.of("session.updated")
    assert updated.budget.max_list_cost.amount == "500"
    assert texts(reader.of("agent.message")[-1]) == "Where was I?"


@pytest.mark.requirement("F141")
def test_without_its_budget_a_session_goes_on_for_good(client: Anthropic) -> None:
    session = capped(client, 50)
    with reading(client, session.id) as reader:
        send(client, session.id, script([{**CALL, "usage": DOLLAR}], [{**CALL, "usage": DOLLAR}], {"say": "Done."}))
        assert reader.idle().type == "budget_reached"
        client.beta.sessions.update(session.id, budget=None)
        assert reader.idle().type == "end_turn"
    (updated,) = reader.of("session.updated")
    assert updated.to_dict()["budget"] is None
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.beta.sessions.update(session.id, budget=cents(900))
    assert error_code(caught.value) == "budget_create_only"


@pytest.mark.requirement("F141")
def test_a_last_request_over_the_cap_ends_the_thread_and_pauses_the_session(client: Anthropic) -> None:
    session = capped(client, 50)
    seen = turn(client, session.id, script({"say": "All done, at a price.", "usage": DOLLAR}))
    thread, _, idle = seen[-3:]
    assert thread.type == "session.thread_status_idle" and idle.type == "session.status_idle"
    assert (thread.stop_reason.type, idle.stop_reason.type) == ("end_turn", "budget_reached")
    assert "budget" in refused(client, session.id, message("More!"))
    with reading(client, session.id) as reader:
        client.beta.sessions.update(session.id, budget=cents(500))
        assert reader.idle().type == "end_turn"
        assert reader.of("span.model_request_start") == []
        send(client, session.id, "More!")
        assert reader.idle().type == "end_turn"
    assert texts(reader.of("agent.message")[-1]) == "You said: More!"


@pytest.mark.requirement("F141", "F083")
def test_at_its_cap_a_session_takes_no_messages_and_ignores_interrupts(client: Anthropic) -> None:
    session = capped(client, 50)
    turn(client, session.id, script([{**CALL, "usage": DOLLAR}], {"say": "Never said."}))
    assert "budget" in refused(client, session.id, message("More!"))
    before = types(history(client, session.id))
    answer(client, session.id, {"type": "user.interrupt"})
    assert types(history(client, session.id)) == before


@pytest.mark.requirement("F141", "F079")
def test_questions_come_before_the_cap_and_their_answers_are_still_taken(client: Anthropic) -> None:
    session = capped(client, 50, policies(glob="always_ask"), custom_tool())
    calls = [{**CALL, "usage": DOLLAR}, {"tool": "weather", "input": {"city": "Bergen"}}]
    with reading(client, session.id) as reader:
        send(client, session.id, script(calls, {"say": "Never said."}))
        assert reader.idle().type == "requires_action"
        (asked,), (custom,) = reader.of("agent.tool_use"), reader.of("agent.custom_tool_use")
        answer(client, session.id, {"type": "user.tool_confirmation", "tool_use_id": asked.id, "result": "allow"})
        assert reader.idle().type == "requires_action"
        answer(client, session.id, {"type": "user.custom_tool_result", "custom_tool_use_id": custom.id})
        assert reader.idle().type == "budget_reached"
    assert [result.tool_use_id for result in reader.of("agent.tool_result")] == [asked.id]


@pytest.mark.requirement("F142")
def test_each_budget_that_cannot_be_is_refused_with_its_reason(client: Anthropic) -> None:
    uncapped = new_session(client, model="priced")
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.beta.sessions.update(uncapped.id, budget=cents(100))
    assert error_code(caught.value) == "budget_create_only"

    session = capped(client, 300)
    turn(client, session.id, script({"say": "Hm.", "usage": DOLLAR}))
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.beta.sessions.update(session.id, budget=cents(100))
    assert error_code(caught.value) == "budget_not_raised"
    assert client.beta.sessions.update(session.id, budget=cents(200)).budget is not None

    with pytest.raises(anthropic.BadRequestError) as caught:
        new_session(client, model="scripted", budget=cents(100))
    assert error_code(caught.value) == "model_not_budgetable"

    for amount in ("0", "-5", "1.5", "many", ""):
        with pytest.raises(anthropic.BadRequestError, match="amount"):
            new_session(
                client, model="priced", budget={**cents(1), "max_list_cost": {"amount": amount, "currency": "USD"}}
            )


@pytest.mark.requirement("F143", "F085", "F060")
def test_usage_adds_up_and_stands_before_every_idle(client: Anthropic) -> None:
    session = new_session(client, policies(glob="always_ask"), model="priced")
    used = {
        "input_tokens": 1_000,
        "output_tokens": 200,
        "cache_read_input_tokens": 30,
        "cache_creation_5m_input_tokens": 4,
        "cache_creation_1h_input_tokens": 5,
    }
    with reading(client, session.id) as reader:
        send(client, session.id, script([{**CALL, "usage": used}], {"say": "Done.", "usage": used}))
        (event_id,) = reader.idle().event_ids
        answer(client, session.id, {"type": "user.tool_confirmation", "tool_use_id": event_id, "result": "allow"})
        reader.idle()
    order = types(reader.seen)
    idles = [index for index, kind in enumerate(order) if kind == "session.status_idle"]
    assert [order[index - 1] for index in idles] == ["session.usage", "session.usage"]
    spans = [event.model_usage for event in reader.of("span.model_request_end")]
    assert [span.cache_creation_input_tokens for span in spans] == [9, 9]
    last = reader.of("session.usage")[-1].usage
    stored: Json = client.beta.sessions.retrieve(session.id).usage
    for usage in (last, stored):
        assert usage.input_tokens == sum(span.input_tokens for span in spans) == 2_000
        assert usage.output_tokens == sum(span.output_tokens for span in spans) == 400
        assert usage.cache_read_input_tokens == sum(span.cache_read_input_tokens for span in spans) == 60
        assert usage.cache_creation.ephemeral_5m_input_tokens == 8
        assert usage.cache_creation.ephemeral_1h_input_tokens == 10
        assert usage.list_cost.amount == "25"
        assert usage.active_seconds > 0


@pytest.mark.requirement("F143")
def test_without_a_list_price_usage_has_no_cost(client: Anthropic) -> None:
    session = new_session(client)
    turn(client, session.id, "Hello.")
    assert client.beta.sessions.retrieve(session.id).usage.list_cost is None
