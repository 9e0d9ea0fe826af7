"""What a turn costs the server in a session with a short and with a long past.

A real server in this process; its model answers at once, so what is measured is the server's own work for a turn:
take the message, wake, read what is new, decide, store, tell the stream. The client is a socket and costs both arms the
same. The arms take turns. A session's first turn after a start reads its whole history; that is a row of its own.
"""

from __future__ import annotations

import asyncio
import logging
import statistics
import tempfile
import time
from datetime import datetime

import msgspec
import structlog
import uvloop

from corral import config
from corral.app.server import Corral, open_corral
from corral.domain import event as ev
from corral.domain.content import TextBlock
from corral.domain.ids import new_id
from corral.domain.lifecycle import Append, Change
from corral.domain.session import Session, SessionState
from corral.interfaces.event_log import Decision
from corral.serving import bind, serving
from tests.benchmarks.server_process import Address, Connection, message
from tests.benchmarks.temporary import overrides
from tests.benchmarks.turn_latency import InstantModel

NAME = "A turn in a session with a past"
LENGTHS = (10, 1_000, 10_000)
"""Earlier events, at least; the first is what the others are held against."""
ROUNDS = 30
TURNS = 10
TEXT = TextBlock(text="The build is green: 412 tests passed in 38 s, none were skipped and nothing was left running.")


def run() -> list[tuple[str, float, str, str]]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_measure())


async def _measure() -> list[tuple[str, float, str, str]]:
    with tempfile.TemporaryDirectory() as directory, bind("127.0.0.1", 0) as listener:
        settings = config.load(environ={}, overrides=overrides(directory))
        async with open_corral(settings, provider=InstantModel()) as corral, serving(corral, listener) as url:
            address = Address(int(url.rpartition(":")[2]), corral.api_key)
            asking = await address.connect()
            sessions = await address.sessions(asking, len(LENGTHS))
            streams: list[Connection] = []
            for session_id, length in zip(sessions, LENGTHS, strict=True):
                await _live(corral, session_id, length)
                streams.append(await address.connect())
                await streams[-1].open_stream(address, session_id)
            first, later = await _turns(address, asking, sessions, streams)
            for connection in (asking, *streams):
                connection.close()
    rows: list[tuple[str, float, str, str]] = []
    for length, costs in zip(LENGTHS, later, strict=True):
        note = "median; client and server in one process" if length == LENGTHS[0] else ""
        rows.append((f"a turn after {length:,} events", statistics.median(costs), "ms CPU", note))
    for length, costs in list(zip(LENGTHS, later, strict=True))[1:]:
        ratio = statistics.median(long / short for short, long in zip(later[0], costs, strict=True))
        rows.append((f"ratio, {length:,} to {LENGTHS[0]}", ratio, "", "aim: <= 1.2; median of the rounds' ratios"))
    note = f"{first[0]:.1f} ms after {LENGTHS[0]}"
    return [*rows, (f"first turn after a start, {LENGTHS[-1]:,} events", first[-1], "ms CPU", note)]


async def _turns(
    address: Address, asking: Connection, sessions: list[str], streams: list[Connection]
) -> tuple[list[float], list[list[float]]]:
    """Milliseconds of processor time: for each arm's first turn, and for a turn in each round."""
    arms = list(zip(sessions, streams, strict=True))
    first = [await _cost(address, asking, *arm, 1) for arm in arms]
    later: list[list[float]] = [[] for _ in arms]
    for _ in range(ROUNDS):
        for arm, costs in zip(arms, later, strict=True):
            costs.append(await _cost(address, asking, *arm, TURNS))
    return first, later


async def _cost(address: Address, asking: Connection, session_id: str, stream: Connection, turns: int) -> float:
    request = address.request("POST", f"/v1/sessions/{session_id}/events", {"events": [message("Go on.")]})
    before = time.process_time()
    for _ in range(turns):
        await asking.ask(request)
        await stream.reader.readuntil(b'"type":"session.status_idle"')
        await stream.reader.readuntil(b"\n\n")
    return (time.process_time() - before) / turns * 1000


async def _live(corral: Corral, session_id: str, length: int) -> None:
    """Give a session a past, as turns would have left it."""
    answer = msgspec.json.encode([TEXT])

    def talk(session: Session, state: SessionState, now: datetime) -> Decision:
        changes: list[Change] = []
        while len(changes) < min(length, 1_000):
            start = ev.SpanModelRequestStart(id=new_id("sevt"))
            end = ev.SpanModelRequestEnd(id=new_id("sevt"), model_request_start_id=start.id)
            changes += [
                Append(ev.SessionStatusRunning(id=new_id("sevt"))),
                Append(ev.UserMessage(id=new_id("sevt"), content=(TEXT,))),
                Append(start),
                Append(ev.AgentMessage(id=new_id("sevt"), content=(TEXT,))),
                Append(end, private=answer),
                Append(ev.SessionStatusIdle(id=new_id("sevt"), stop_reason=ev.EndTurn())),
            ]
        return Decision(changes)

    for _ in range(max(1, length // 1_000)):
        await corral.log.transact(session_id, talk)
