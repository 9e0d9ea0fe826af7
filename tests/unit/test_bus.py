"""The bus of one process: who gets which frames."""

from __future__ import annotations

import anyio
import pytest

from corral.engines.bus import LocalBus, LocalSubscription
from corral.interfaces.bus import Frame

TAKE_SECONDS_MAX = 5


def start(event_id: str) -> Frame:
    return Frame("sesn_1", "event_start", b"start", "agent.message", event_id)


def delta(event_id: str) -> Frame:
    return Frame("sesn_1", "event_delta", b"delta", "agent.message", event_id)


def fact(event_type: str) -> Frame:
    return Frame("sesn_1", event_type, b"{}")


async def take(reader: LocalSubscription, last: str) -> list[str]:
    """Types of frames up to the first of type `last`."""
    taken: list[str] = []
    with anyio.fail_after(TAKE_SECONDS_MAX):
        async for frame in reader:
            taken.append(frame.type)
            if frame.type == last:
                return taken
    return taken


@pytest.mark.anyio
@pytest.mark.requirement("F090")
async def test_a_reader_that_comes_in_the_middle_of_a_preview_is_spared_the_rest_of_it() -> None:
    bus = LocalBus(frames_max=100, bytes_max=1_000)
    bus.publish([start("sevt_1"), delta("sevt_1")])
    late = bus.subscribe("sesn_1", previews=["agent.message"])
    bus.publish([delta("sevt_1"), fact("agent.message"), fact("span.model_request_end")])
    bus.publish([start("sevt_2"), delta("sevt_2"), fact("session.status_idle")])
    assert await take(late, "session.status_idle") == [
        "agent.message",
        "span.model_request_end",
        "event_start",
        "event_delta",
        "session.status_idle",
    ]


@pytest.mark.anyio
@pytest.mark.requirement("F090")
async def test_a_preview_that_did_not_fit_is_shed_to_its_end_and_the_next_one_is_shown() -> None:
    bus = LocalBus(frames_max=3, bytes_max=1_000)
    slow = bus.subscribe("sesn_1", previews=["agent.message"])
    bus.publish([start("sevt_1"), delta("sevt_1"), delta("sevt_1"), delta("sevt_1")])
    assert await take(slow, "event_delta") == ["event_start", "event_delta"]
    bus.publish([delta("sevt_1"), fact("span.model_request_end")])
    assert await take(slow, "span.model_request_end") == ["event_delta", "span.model_request_end"]
    bus.publish([start("sevt_2"), delta("sevt_2")])
    assert await take(slow, "event_delta") == ["event_start", "event_delta"]


@pytest.mark.anyio
async def test_frames_that_wait_are_taken_together_up_to_a_size_and_never_the_last_one_of_a_session() -> None:
    bus = LocalBus(frames_max=100, bytes_max=100)
    reader = bus.subscribe("sesn_1")
    assert reader.waiting(10) == []
    bus.publish([fact("agent.message"), fact("agent.thinking"), fact("session.usage"), fact("session.deleted")])
    assert [frame.type for frame in reader.waiting(3)] == ["agent.message", "agent.thinking"]
    assert [frame.type for frame in reader.waiting(100)] == ["session.usage"]
    assert reader.waiting(100) == []
    assert await take(reader, "session.deleted") == ["session.deleted"]
    for _ in range(3):  # what was taken is not counted any more
        bus.publish([Frame("sesn_1", "agent.message", bytes(80))])
        assert len(reader.waiting(1)) == 1
