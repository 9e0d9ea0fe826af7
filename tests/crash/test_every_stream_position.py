"""A model server breaks its answer at every position, in every way: the log stays legal and the answer comes once.

Nothing is stood in for but the model: real bytes over HTTP, the providers with their SDKs, the loop, a store on disk.
A session asks a server that breaks its first answer, or all of them. Afterwards its history is exactly one of: the
answer; a failure, a retry and the answer; failures until the attempts are used up. Then the session goes on, and what
the model is sent holds the answer once.
"""

from __future__ import annotations

import resource
import tempfile
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from corral.config_sections import HarnessSettings
from corral.domain import event as ev
from corral.domain.content import TextBlock
from corral.domain.event import StoredEvent
from corral.domain.lifecycle import TRANSITIONS
from corral.domain.session import Status
from tests.contracts.raw_server import Play, RawServer, http, serving
from tests.crash.broken_streams import (
    SAID,
    WIRES,
    Fault,
    Outcome,
    Wire,
    at_bytes,
    at_every_event,
    floods,
    in_disorder,
    in_odd_pieces,
    instead,
    silences,
)
from tests.crash.stream_world import StreamWorld, world
from tests.unit import builders as make

pytestmark = [pytest.mark.anyio, pytest.mark.requirement("F068")]

Json = dict[str, Any]
SECONDS_MAX = 120
SIDE_BY_SIDE = 24
MEGABYTE = 1024 * 1024
ALWAYS = "always "
"""Begins the name of a model all of whose answers are broken."""

BEGINS = ["session.status_running", "session.thread_status_running", "user.message"]
ANSWERED = ["agent.thinking", "agent.message", "agent.custom_tool_use"]
FAILED = ["span.model_request_start", "span.model_request_end", "session.error"]
AGAIN = [
    "session.status_rescheduled",
    "session.thread_status_rescheduled",
    "session.status_running",
    "session.thread_status_running",
]
RESTS = ["session.thread_status_idle", "session.usage", "session.status_idle"]
ANSWER = [*BEGINS, "span.model_request_start", *ANSWERED, "span.model_request_end", *RESTS]
RETRY = [*BEGINS, *FAILED, *AGAIN, *ANSWER[len(BEGINS) :]]
GIVEN_UP = [*BEGINS, *FAILED, *AGAIN, *FAILED, *RESTS]


class Place:
    """A world whose models play the faults that carry their names."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.plays: dict[str, Play] = {}
        self.talking: set[str] = set()
        """Models that are past their fault."""
        self.world: StreamWorld
        self.server: RawServer

    def play(self, model: str, asked: Sequence[Json]) -> Play:
        """See `serving`."""
        if self.wire.has_result(asked[-1]):
            return Play(http(self.wire.done))
        first = len(asked) == 1 or model.startswith(ALWAYS) or model in self.talking
        return self.plays[model] if first else self.wire.clean()

    async def hold(self, faults: Iterable[Fault], *, always: bool = False) -> None:
        """Try all faults side by side."""
        limiter = anyio.CapacityLimiter(SIDE_BY_SIDE)

        async def one(fault: Fault) -> None:
            async with limiter:
                await self._once(fault, ALWAYS + fault.name if always else fault.name)

        with anyio.fail_after(SECONDS_MAX):
            async with anyio.create_task_group() as tasks:
                for fault in faults:
                    tasks.start_soon(one, fault)

    async def _once(self, fault: Fault, model: str) -> None:
        session_id = f"sesn_{len(self.plays)}"
        self.plays[model] = fault.play
        await self.world.create(session_id, model)
        await self.world.send(session_id, make.message("What is the weather in Bergen?"))
        events = await self.world.events(session_id)
        check_legal(events)
        if model.startswith(ALWAYS):
            assert types(events) == GIVEN_UP, fault.name
            assert retries(events) == ["retrying", "exhausted"], fault.name
        else:
            check_outcome(fault.outcome, events, fault.name)
        await self._goes_on(session_id, model, fault.outcome)

    async def _goes_on(self, session_id: str, model: str, outcome: Outcome) -> None:
        """The next input is answered, and the model sees what was said before once."""
        calls = (await self.world.state(session_id)).pending
        for call in calls:
            await self.world.send(session_id, make.custom_result(call.id))
        if not calls:
            self.plays[model] = Play(http(self.wire.done))
            self.talking.add(model)
            await self.world.send(session_id, make.message("Are you there?"))
        events = await self.world.events(session_id)
        check_legal(events)
        assert said(events)[-1] == "Done.", (model, said(events))
        if outcome != "legal" and calls:
            newest = self.server.bodies[model][-1]
            sent = str(newest)
            assert sent.count("".join(SAID)) == 1 and self.wire.has_result(newest), model


@asynccontextmanager
async def placed(
    name: str, *, idle_seconds: float = 600.0, answer_bytes_max: int = 64 * 1024 * 1024
) -> AsyncGenerator[Place]:
    place = Place(WIRES[name])
    limits = HarnessSettings(
        model_attempts_max=2,
        backoff_seconds=0.001,
        model_idle_seconds_max=idle_seconds,
        answer_bytes_max=answer_bytes_max,
    )
    with tempfile.TemporaryDirectory(prefix="corral-streams-") as made:
        async with serving(place.play) as place.server:
            async with world(Path(made), place.wire.make(place.server.url), limits) as place.world:
                yield place


# ------------------------------------------------------------------------------------------------ the checks


def types(events: Iterable[StoredEvent]) -> list[str]:
    return [str(event.__struct_config__.tag) for event in events]


def retries(events: Iterable[StoredEvent]) -> list[str]:
    errors = [event.error for event in events if isinstance(event, ev.SessionError)]
    return [str(error.retry_status.__struct_config__.tag) for error in errors]


def said(events: Iterable[StoredEvent]) -> list[str]:
    messages = [event for event in events if isinstance(event, ev.AgentMessage)]
    return ["".join(block.text for block in each.content if isinstance(block, TextBlock)) for each in messages]


def check_outcome(outcome: Outcome, events: Sequence[StoredEvent], name: str) -> None:
    if outcome == "legal":
        # One answer; a second only where the first held a call that could not be run, and the model was told so.
        assert retries(events) in ([], ["retrying"]), name
        good = [event for event in events if isinstance(event, ev.SpanModelRequestEnd) and not event.is_error]
        told = [event for event in events if isinstance(event, ev.UserCustomToolResult | ev.AgentToolResult)]
        assert len(good) == 1 or (told and len(good) == 2), name
        assert all(event.is_error for event in told), name
        return
    expected = {"answer": [ANSWER], "retry": [RETRY], "either": [ANSWER, RETRY]}[outcome]
    assert types(events) in expected, (name, types(events))
    assert said(events) == ["".join(SAID)], name
    (call,) = [event for event in events if isinstance(event, ev.AgentCustomToolUse)]
    assert call.input == {"city": "Bergen"}, name


def check_legal(events: Sequence[StoredEvent]) -> None:
    """Statuses follow the table, spans do not overlap, and an answer stands in the span that did not fail."""
    status: Status = "idle"
    open_span: str | None = None
    within = 0
    for event in events:
        kind = str(event.__struct_config__.tag)
        if kind in {"session.status_running", "session.status_idle", "session.status_rescheduled"}:
            assert kind in TRANSITIONS[status], (status, kind)
            status = TRANSITIONS[status][kind]
        match event:
            case ev.SpanModelRequestStart():
                assert open_span is None
                open_span, within = event.id, 0
            case ev.SpanModelRequestEnd():
                assert open_span == event.model_request_start_id
                assert not (event.is_error and within), "nothing of a failed answer is kept"
                open_span = None
            case ev.AgentMessage() | ev.AgentThinking() | ev.AgentCustomToolUse():
                assert open_span is not None
                within += 1
            case _:
                pass
    assert (status, open_span) == ("idle", None)


# ------------------------------------------------------------------------------------------------- the tests


@pytest.mark.parametrize("name", list(WIRES))
async def test_before_and_after_every_event(name: str) -> None:
    async with placed(name) as place:
        await place.hold(at_every_event(place.wire))


@pytest.mark.parametrize(("name", "stride"), [("messages", 11), ("chat", 17), ("responses", 17)])
async def test_the_connection_ends_at_any_byte(name: str, stride: int) -> None:
    async with placed(name) as place:
        await place.hold(at_bytes(place.wire, stride))


@pytest.mark.parametrize("name", list(WIRES))
async def test_events_that_are_missing_or_come_twice_or_too_early(name: str) -> None:
    async with placed(name) as place:
        await place.hold(in_disorder(place.wire))


@pytest.mark.parametrize("name", list(WIRES))
async def test_the_right_bytes_in_odd_pieces(name: str) -> None:
    async with placed(name) as place:
        await place.hold(in_odd_pieces(place.wire))


@pytest.mark.parametrize("name", list(WIRES))
async def test_something_else_than_a_stream(name: str) -> None:
    async with placed(name) as place:
        await place.hold(instead(place.wire))


@pytest.mark.parametrize("name", list(WIRES))
async def test_a_server_that_never_gets_it_right_is_given_up_once(name: str) -> None:
    async with placed(name) as place:
        faults = [*at_every_event(place.wire), *instead(place.wire)]
        await place.hold([fault for fault in faults if fault.outcome == "retry"][::3], always=True)


async def test_silence_at_every_event() -> None:
    """On all wires side by side, since it is waiting that takes the time."""

    async def on(name: str) -> None:
        async with placed(name, idle_seconds=3.0) as place:
            await place.hold(silences(place.wire))

    async with anyio.create_task_group() as tasks:
        for name in WIRES:
            tasks.start_soon(on, name)


@pytest.mark.parametrize("name", list(WIRES))
async def test_a_hundred_megabytes_are_refused_and_never_held(name: str) -> None:
    async with placed(name, answer_bytes_max=4 * MEGABYTE) as place:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for fault in floods(place.wire):
            await place.hold([fault])
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        assert grown < 64 * MEGABYTE
