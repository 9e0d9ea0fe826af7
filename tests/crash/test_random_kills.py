"""Any process, killed at any moment: nothing accepted is lost, and no effect happens twice without a word.

In each round a session runs through tools of every kind, driven by the official SDK, and one process that it needs
gets SIGKILL at a random moment: the server, a worker, the sandbox's first process, the egress proxy, PostgreSQL,
Temporal. Other sessions on the same lane suffer with it. What died is started again, the session is driven to its rest,
and its log, streams and effects are compared. Lanes are one server on SQLite, one on PostgreSQL, and an installation of
many processes, where a worker may also stay away until the session has ended without it.

`CORRAL_TEST_KILLS` says how many rounds, `CORRAL_TEST_SEED` which ones; both are in the summary. Which process is
killed at which step is decided by the seed alone, not how far others have come at that instant.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import NamedTuple, TypeAlias

import pytest

from tests import postgres_server, temporal_server
from tests.crash.cluster_lane import lane_on_cluster
from tests.crash.counting import Counting, counting
from tests.crash.lanes import Lane, lane_on_postgres, lane_on_sqlite
from tests.crash.stubborn_client import StubbornClient

OpenLane: TypeAlias = Callable[[Counting], AbstractContextManager[Lane]]

ROUNDS = int(os.environ.get("CORRAL_TEST_KILLS", "50"))
SECONDS_MAX = 30.0 if "CORRAL_TEST_KILLS" not in os.environ else float("inf")
"""No round but the first begins later than this, counted from before there are servers."""
LANE_SECONDS = 12.0
"""But what took long to start has this much time for rounds."""
SEED = int(os.environ.get("CORRAL_TEST_SEED") or random.SystemRandom().randrange(1_000_000))
TRACKS = 2
STEPS_MAX = 22
"""Events of a session, about."""
DELAY_SECONDS_MAX = 0.1
ROUND_SECONDS_MAX = 120
ROUNDS_SECONDS_MAX = 300
"""What is there besides the rounds; ten seconds are added for each."""
EVERY_MCP = 5
"""One session in so many calls an MCP server as well: the first connection costs a new server two seconds."""


class Round(NamedTuple):
    """What was killed, and what was found."""

    killed: str | None
    lost: list[str]
    repeated: list[str]


def play(lane: Lane, counting: Counting, number: int) -> Round:
    """One round; raises when its session ends in any other way than it should."""
    chance = random.Random(f"{SEED} {number}")
    victim = chance.choice(lane.victims)
    with_mcp = chance.randrange(EVERY_MCP) == 0
    client = StubbornClient(lane.client(number), lane.up, counting, f"t{number}")
    with ThreadPoolExecutor(1) as pool:
        driven = pool.submit(client.drive, lane.agents[with_mcp], lane.environment_id, with_mcp=with_mcp)
        client.wait_for(chance.randrange(STEPS_MAX), ROUND_SECONDS_MAX)
        time.sleep(chance.random() * DELAY_SECONDS_MAX)  # the random moment itself, not a wait for anything
        killed = lane.kill(victim, client.session_id, number)
        try:
            driven.result(ROUND_SECONDS_MAX)
        except BaseException as error:
            error.add_note(client.described())
            raise
        finally:
            lane.over(number)
    found = client.judge(lane.workspaces, with_mcp=with_mcp)
    return Round(victim if killed else None, found.lost, found.repeated)


def rounds_on(opening: OpenLane, counting: Counting, numbers: Sequence[int], deadline: float) -> list[Round]:
    """On a lane of their own as many as there is time for, a few at once: who is killed is killed for all of them."""
    with opening(counting) as lane, ThreadPoolExecutor(TRACKS) as pool:
        deadline = max(deadline, time.monotonic() + LANE_SECONDS)

        def rounds(track: int) -> list[Round]:
            played: list[Round] = []
            for number in numbers[track::TRACKS]:
                if played and time.monotonic() > deadline:
                    break
                try:
                    played.append(play(lane, counting, number))
                except BaseException as error:
                    error.add_note(f"in round {number} of seed {SEED}")
                    error.add_note(lane.log_text())
                    raise
            return played

        running = [pool.submit(rounds, track) for track in range(TRACKS)]
        return [each for one in running for each in one.result()]


def shares() -> dict[OpenLane, list[int]]:
    """Which rounds are played on which lane, of those that have the programs of what they kill. On the last they take
    longer: one in five."""
    turns: list[OpenLane] = [lane_on_sqlite]
    if postgres_server.programs() is not None:
        turns.append(lane_on_postgres)
        if temporal_server.program() is not None:
            turns += [*turns, lane_on_cluster]
    every = [(number, turns[number % len(turns)]) for number in range(ROUNDS)]
    return {lane: [number for number, its in every if its is lane] for _, lane in every}


@pytest.mark.timeout(ROUNDS_SECONDS_MAX + ROUNDS * 10)
@pytest.mark.requirement("F069")
def test_whatever_is_killed_nothing_is_lost_and_nothing_is_repeated(
    record_property: Callable[[str, object], None],
) -> None:
    deadline = time.monotonic() + SECONDS_MAX
    record_property("kill seed", SEED)
    shared = shares()
    with counting() as counted, ThreadPoolExecutor(len(shared)) as pool:
        playing = [pool.submit(rounds_on, lane, counted, numbers, deadline) for lane, numbers in shared.items()]
        every = [each for one in playing for each in one.result()]
    for each in every:
        if each.killed is not None:
            record_property("killed", each.killed)
    for name in ("lost", "repeated"):
        for what in (what for each in every for what in getattr(each, name)):
            record_property(name, what)
    assert not any(each.lost or each.repeated for each in every), f"seed {SEED}: {every}"
    assert any(each.killed for each in every)
