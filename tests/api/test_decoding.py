"""Strict reading, without a server: whatever comes in, it is understood or refused, and never anything else."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from corral.api import decoding, pages, periods
from corral.api.agents import ListQuery as AgentsQuery
from corral.api.event_params import to_events
from corral.api.events import EventsSend
from corral.api.events import ListQuery as EventsQuery
from corral.api.pages import Cursor
from corral.api.rates import Rates
from corral.api.sessions import ListQuery as SessionsQuery
from corral.api.sessions import SessionCreate
from corral.config_sections import ServerSettings
from corral.domain.agent import AgentCreate, AgentUpdate
from corral.domain.environment import EnvironmentCreate
from corral.errors import Invalid, RateLimited

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SHAPES: list[type[msgspec.Struct]] = [AgentCreate, AgentUpdate, EnvironmentCreate, SessionCreate, EventsSend]

quick = settings(max_examples=60, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
fields = st.sampled_from(
    ["name", "model", "tools", "metadata", "type", "agent", "environment_id", "events", "content", "config", "version"]
)


@pytest.mark.parametrize("shape", SHAPES)
@quick
@given(raw=st.binary(max_size=200))
def test_bytes_are_understood_or_refused(shape: type[msgspec.Struct], raw: bytes) -> None:
    try:
        decoding.body(raw, shape)
    except Invalid as error:
        assert error.message.partition(": ")[0]


@pytest.mark.parametrize("shape", SHAPES)
@quick
@given(value=st.dictionaries(fields, json_values, max_size=5))
def test_json_is_understood_or_refused(shape: type[msgspec.Struct], value: dict[str, Any]) -> None:
    try:
        decoding.body(msgspec.json.encode(value), shape)
    except Invalid as error:
        assert len(error.message) < 1_000


@quick
@given(raw=st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=80))
def test_query_strings_are_understood_or_refused(raw: str) -> None:
    for shape in (AgentsQuery, SessionsQuery, EventsQuery):
        try:
            decoding.query(raw.encode(), shape)
        except Invalid as error:
            assert error.message


@quick
@given(page=st.text(max_size=60))
def test_cursors_are_understood_or_refused(page: str) -> None:
    try:
        assert pages.decode(page, "k", "b") is None
    except Invalid as error:
        assert error.message.startswith("page: ")


def test_a_cursor_comes_back_as_it_was() -> None:
    cursor = Cursor(kind="k", binding="b", at=NOW + timedelta(microseconds=7), id="x_1", seq=9, queued=True)
    assert pages.decode(pages.encode(cursor), "k", "b") == cursor
    for kind, binding in (("other", "b"), ("k", "other")):
        with pytest.raises(Invalid, match="page: "):
            pages.decode(pages.encode(cursor), kind, binding)
    for forged in ({"seq": 2**70}, {"at": NOW.replace(tzinfo=None)}):
        with pytest.raises(Invalid, match="page: "):
            pages.decode(pages.encode(msgspec.structs.replace(cursor, **forged)), "k", "b")


def test_a_binding_ignores_where_and_how_much() -> None:
    query = SessionsQuery(limit=5, page="x", statuses=("idle",))
    assert pages.binding_of(query) == pages.binding_of(SessionsQuery(limit=9, statuses=("idle",)))
    assert pages.binding_of(query) != pages.binding_of(SessionsQuery(statuses=("running",)))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b'{"events":[{"type":"user.message","content":[{"type":"text","text":7}]}]}', "events.0.content.0.text: "),
        (b'{"events":[{"type":"user.message","content":[],"id":"x"}]}', "events.0.id: unknown field"),
        (b'{"events":[{"type":"user.message"}]}', "events.0.content: field required"),
        (b'{"events":[{}]}', "events.0.type: field required"),
        (b'{"events":{}}', "events: expected `array`, got `object`"),
        (b"{}", "events: field required"),
        (b"[]", "body: expected `object`, got `array`"),
        (b'{"events":[{"type":"' + b"x" * 9_000 + b'"}]}', "events.0.type: "),
    ],
)
def test_a_refusal_begins_with_the_path_of_the_field(raw: bytes, message: str) -> None:
    with pytest.raises(Invalid) as caught:
        decoding.body(raw, EventsSend)
    assert caught.value.message.startswith(message)
    assert len(caught.value.message) < 300


def test_of_two_bounds_the_stricter_holds() -> None:
    later = NOW + timedelta(seconds=1)
    assert periods.after(NOW, None) == (NOW, False)
    assert periods.after(None, NOW) == (NOW, True)
    assert periods.after(NOW, later) == (later, True)
    assert periods.after(NOW, NOW) == (NOW, False)
    assert periods.before(NOW, later) == (NOW, False)
    assert periods.before(later, NOW) == (NOW, True)
    assert periods.after(None, None).at is None


def test_each_event_gets_an_id_of_its_own() -> None:
    raw = b'{"events":[{"type":"user.interrupt"},{"type":"user.interrupt","session_thread_id":null}]}'
    events = to_events(decoding.body(raw, EventsSend).events, "events")
    assert len({event.id for event in events}) == 2


def test_a_bucket_fills_again_with_time_and_no_further_than_its_size() -> None:
    rates = Rates(ServerSettings(rate_limits=True, read_requests_per_minute=60))
    for _ in range(60):
        rates.take("key", "read", NOW)
    with pytest.raises(RateLimited) as caught:
        rates.take("key", "read", NOW)
    assert 0 < caught.value.retry_after_seconds <= 1
    rates.take("key", "read", NOW + timedelta(seconds=1))
    rates.take("other", "read", NOW)
    hour = NOW + timedelta(hours=1)
    for _ in range(60):
        rates.take("key", "read", hour)
    with pytest.raises(RateLimited):
        rates.take("key", "read", hour)
    with pytest.raises(RateLimited):
        rates.take("key", "read", NOW)  # a clock that was set back gives nothing away
