"""A server with the local engine that is killed in mid-turn: how soon the turn goes on after it is started again.

Twice the same server on the same data: once to be killed with SIGKILL while its model is silent, once to find that
turn. A turn goes on when the model is asked again, by the time that the log gives it. Most of it is what Python needs
to load the program, so what a start takes stands beside it.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
from datetime import UTC, datetime
from typing import NamedTuple

from tests.benchmarks.server_process import Server, serving
from tests.benchmarks.store_appends import Row

NAME = "Recovery after kill -9 with the local engine"
ROUNDS = 3
WAIT_SECONDS_MAX = 60.0


class Round(NamedTuple):
    """Seconds from the launch of a process."""

    first: float
    """Until the first server listened."""
    again: float
    """Until the second one did."""
    resumed: float
    """Until the second one asked the model."""


def run() -> list[Row]:
    """Measure a few restarts; medians."""
    rounds = [_round() for _ in range(ROUNDS)]
    first, again, resumed = (statistics.median(each[n] for each in rounds) for n in range(3))
    return [
        Row("launched again → turn resumed", resumed, "s", f"aim: <= 1; median of {ROUNDS}"),
        Row("launched again → it listens", again, "s", "the same launches"),
        Row("launched first → it listens", first, "s", "nothing to resume, a database to make"),
        Row("resumed beside listening", resumed / again, "x", "what recovery adds to a start"),
    ]


def _round() -> Round:
    with tempfile.TemporaryDirectory() as directory:
        begun = datetime.now(UTC)
        with serving(directory=directory) as server:
            first = _seconds(begun)
            session_id = asyncio.run(asyncio.wait_for(_amid_a_turn(server), WAIT_SECONDS_MAX))
            server.kill()
        begun = datetime.now(UTC)
        with serving(directory=directory) as server:
            again = _seconds(begun)
            asked = asyncio.run(asyncio.wait_for(_asked_again(server, session_id), WAIT_SECONDS_MAX))
        return Round(first, again, (asked - begun).total_seconds())


def _seconds(since: datetime) -> float:
    return (datetime.now(UTC) - since).total_seconds()


async def _amid_a_turn(server: Server) -> str:
    asking = await server.connect()
    (session_id,) = await server.busy_sessions(asking, 1)
    asking.close()
    return session_id


async def _asked_again(server: Server, session_id: str) -> datetime:
    """When the model was asked for the second time. It may have been before anybody could open a stream."""
    asking = await server.connect()
    try:
        while True:
            page = json.loads(await asking.ask(server.request("GET", f"/v1/sessions/{session_id}/events")))
            asked = [event for event in page["data"] if event["type"] == "span.model_request_start"]
            if len(asked) > 1:
                return datetime.fromisoformat(asked[1]["processed_at"])
            await asyncio.sleep(0.02)
    finally:
        asking.close()


if __name__ == "__main__":
    for row in run():
        print(f"{row.label:40} {row.value:10,.2f} {row.unit:8} {row.note}")
