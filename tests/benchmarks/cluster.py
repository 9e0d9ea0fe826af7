"""Many processes over one PostgreSQL and one Temporal: turns a second, delivery at another server, and take-over.

Two servers that only serve and four workers, as in the end-to-end tests. The model is scripted and answers at once,
so a turn is what Corral, the store and the engine cost. Workers are killed on the way, so rates are measured with four,
two and one; beside them stands one process with the local engine on the same PostgreSQL. All share the cores of one
machine with this client, PostgreSQL and Temporal's development server: where those are few, more workers bring no more
turns.

Every wait is bounded, and what was started ends with the run, however that ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import statistics
import time
from collections.abc import Awaitable, Sequence
from contextlib import AsyncExitStack
from typing import NamedTuple, TypeVar

from temporalio.client import Client

from tests import postgres_server, temporal_server
from tests.benchmarks.server_process import HANG, Address, Connection, message
from tests.benchmarks.store_appends import Row
from tests.contracts.bucket import serving_bucket
from tests.e2e.clusters import Cluster, Process, cluster
from tests.e2e.conftest import API_KEY

T = TypeVar("T")

NAME = "A cluster: two servers and up to four workers, PostgreSQL, Temporal"
WORKERS = 4
AT_ONCE = 16
"""Sessions that take their turns side by side."""
RATE_SECONDS = 4.0
DELIVERIES = 250
DELIVERY_SECONDS = 5.0
STUCK = 4
"""Sessions of each kind that are amid a turn when their worker goes."""
WAIT_SECONDS_MAX = 60.0
"""For any one thing that is waited for."""
RUN_SECONDS_MAX = 240.0
WORKS = HANG.replace(
    "[", '[{"tool": "bash", "input": {"command": "true"}}, {"tool": "bash", "input": {"command": "sleep 600"}}, '
)
MARK = re.compile(rb"#(\d+)#")
CORES = "all on this machine's cores"


class Rate(NamedTuple):
    """Turns of `AT_ONCE` sessions."""

    per_second: float
    p50_seconds: float


class Stuck(NamedTuple):
    """A session amid a turn, and a stream that has shown all of it so far."""

    session_id: str
    stream: Connection
    has_sandbox: bool


def run() -> list[Row]:
    """Measure everything, once."""
    if why := postgres_server.unavailable() or temporal_server.unavailable():
        return [Row("cluster", 0, "", why)]
    server = postgres_server.Server(fsync="on")
    try:
        with serving_bucket() as bucket, cluster(bucket, workers=WORKERS, postgres=server.url) as made:
            return asyncio.run(_bounded(made, server.url))
    finally:
        server.close()


async def _bounded(made: Cluster, postgres: str) -> list[Row]:
    async with asyncio.timeout(RUN_SECONDS_MAX), AsyncExitStack() as stack:
        servers = [_address(process) for process in made.servers]
        rows = await _delivery(servers)
        rates = {4: await _rate(servers)}
        rows += await _take_over(made, servers, signal.SIGKILL)
        rows += await _take_over(made, servers, signal.SIGTERM)
        rates[2] = await _rate(servers)
        await asyncio.to_thread(next(worker for worker in made.workers if worker.pid).end)
        rates[1] = await _rate(servers)
        url = await stack.enter_async_context(postgres_server.database(postgres))
        return [*await _local(made, url, rates[1]), *_rates(rates), *rows]


def _address(process: Process) -> Address:
    return Address(int(process.base_url.rpartition(":")[2]), API_KEY)


# ----------------------------------------------------------------------------------------------------------- turns


def _rates(rates: dict[int, Rate]) -> list[Row]:
    rows: list[Row] = []
    for count, rate in sorted(rates.items()):
        who = "1 worker" if count == 1 else f"{count} workers"
        rows.append(Row(f"Temporal, {who}", rate.per_second, "turns/s", _note(rate)))
        if count > 1:
            ratio = rate.per_second / max(rates[1].per_second, 0.01)
            rows.append(Row(f"{who} beside 1", ratio, "x", CORES))
    return rows


def _note(rate: Rate) -> str:
    return f"{AT_ONCE} sessions at once, a turn's p50 {rate.p50_seconds * 1000:.0f} ms"


async def _local(made: Cluster, url: str, one: Rate) -> list[Row]:
    """The same by one process, on a database of its own."""
    process = Process(made, "local", "serve", "--engine", "local", "--database", url)
    try:
        await asyncio.to_thread(process.start)
        rate = await _rate([_address(process)])
    finally:
        await asyncio.to_thread(process.end)
    ratio = 100 * one.per_second / max(rate.per_second, 0.01)
    return [
        Row("local engine, one process", rate.per_second, "turns/s", _note(rate)),
        Row("Temporal with 1 worker beside local", ratio, "%", "same run, same PostgreSQL server"),
    ]


async def _rate(servers: Sequence[Address]) -> Rate:
    """Sessions that take turn after turn, each through one of the servers."""
    asking = await servers[0].connect()
    sessions = await _within(servers[0].sessions(asking, AT_ONCE))
    asking.close()
    ready, times = asyncio.Barrier(AT_ONCE), list[float]()
    await asyncio.gather(
        *(_turns(servers[n % len(servers)], session_id, ready, times) for n, session_id in enumerate(sessions))
    )
    return Rate(len(times) / RATE_SECONDS, statistics.median(times or [0.0]))


async def _turns(server: Address, session_id: str, ready: asyncio.Barrier, times: list[float]) -> None:
    """One turn to begin with, and then, when all have had theirs, as many as end in time."""
    asking, stream = await server.connect(), await server.connect()
    try:
        await _within(stream.open_stream(server, session_id))
        await _within(_turn(server, session_id, asking, stream))
        await _within(ready.wait())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RATE_SECONDS):
                while True:
                    times.append(await _turn(server, session_id, asking, stream))
    finally:
        asking.close()
        stream.close()


async def _turn(server: Address, session_id: str, asking: Connection, stream: Connection) -> float:
    """Seconds from the message to the session's rest on the stream."""
    begun = time.perf_counter()
    await asking.ask(server.request("POST", f"/v1/sessions/{session_id}/events", {"events": [message("Hello.")]}))
    await _frame(stream, b'"session.status_idle"')
    return time.perf_counter() - begun


async def _frame(stream: Connection, mark: bytes) -> None:
    """Read up to the end of the next frame that has the mark."""
    await stream.reader.readuntil(mark)
    await stream.reader.readuntil(b"\n\n")


# -------------------------------------------------------------------------------------------------------- delivery


async def _delivery(servers: Sequence[Address]) -> list[Row]:
    """A session's events, appended through one server and read from streams of both."""
    asking = await servers[0].connect()
    (session_id,) = await _within(servers[0].sessions(asking, 1))
    streams = [await server.connect() for server in servers]
    for server, stream in zip(servers, streams, strict=True):
        await _within(stream.open_stream(server, session_id))
    sent: list[float] = []
    reading = [asyncio.create_task(_arrivals(stream)) for stream in streams]
    begun = time.perf_counter()
    try:
        for number in range(DELIVERIES):
            await asyncio.sleep(begun + DELIVERY_SECONDS * number / DELIVERIES - time.perf_counter())
            sent.append(time.perf_counter())
            request = servers[0].request("POST", f"/v1/sessions/{session_id}", {"title": f"#{number}#"})
            await _within(asking.ask(request))
        came = await _within(asyncio.gather(*reading))
    finally:
        for task in reading:
            task.cancel()
        for connection in (asking, *streams):
            connection.close()
    rows: list[Row] = []
    medians: list[float] = []
    for where, aim, arrivals in (("same", "", came[0]), ("other", "aim: p99 < 50", came[1])):
        late = [(arrivals[number] - at) * 1000 for number, at in enumerate(sent)]
        cuts = statistics.quantiles(late, n=100)
        medians.append(cuts[49])
        rows += [
            Row(f"POST sent → frame read, {where} server, p50", cuts[49], "ms", f"{DELIVERIES} events, fsync included"),
            Row(f"POST sent → frame read, {where} server, p99", cuts[98], "ms", aim),
        ]
    return [*rows, Row("other server beside same, p50", medians[1] / medians[0], "x", "")]


async def _arrivals(stream: Connection) -> dict[int, float]:
    """When each of the numbered events came."""
    came: dict[int, float] = {}
    while len(came) < DELIVERIES:
        frame = await stream.reader.readuntil(b"\n\n")
        for number in MARK.findall(frame):
            came.setdefault(int(number), time.perf_counter())
    return came


# ------------------------------------------------------------------------------------------------------- take-over


async def _take_over(made: Cluster, servers: Sequence[Address], how: signal.Signals) -> list[Row]:
    """Seconds from the signal until another worker asks the model again, for the turns of the worker that has most."""
    stuck = [await _within(_amid_a_turn(servers[n % 2], has_sandbox=bool(n // STUCK % 2))) for n in range(2 * STUCK)]
    client = await Client.connect(temporal_server.shared())
    homes = {each.session_id: await _within(_home(client, made, each.session_id)) for each in stuck}
    victim = max(made.workers, key=lambda worker: sum(home is worker for home in homes.values()))
    theirs = [each for each in stuck if homes[each.session_id] is victim]
    begun = time.perf_counter()
    ending = asyncio.create_task(asyncio.to_thread(victim.end, how))
    try:
        seconds = await asyncio.gather(*(_within(_asked_again(each, begun)) for each in theirs))
    finally:
        await ending
    rows: list[Row] = []
    for has_sandbox in (False, True):
        late = [took for each, took in zip(theirs, seconds, strict=True) if each.has_sandbox is has_sandbox]
        if late:
            what = "with a sandbox" if has_sandbox else "without one"
            note = f"{'aim: <= 5; ' if how is signal.SIGKILL else 'drain of 1 s included; '}the slowest of {len(late)}"
            rows.append(Row(f"{how.name} of a worker → resumed, {what}", max(late), "s", note))
    await asyncio.gather(*(_within(_interrupt(servers[0], each)) for each in stuck))
    return rows


async def _amid_a_turn(server: Address, *, has_sandbox: bool) -> Stuck:
    """A session whose model is silent, or whose command runs."""
    asking, stream = await server.connect(), await server.connect()
    tools = [{"type": "agent_toolset_20260401"}] if has_sandbox else []
    agent = await server.create(asking, "/v1/agents", {"name": "bench", "model": "scripted", "tools": tools})
    environment = await server.create(asking, "/v1/environments", {"name": f"bench {agent}"})
    session_id = await server.create(asking, "/v1/sessions", {"agent": agent, "environment_id": environment})
    await stream.open_stream(server, session_id)
    text = WORKS if has_sandbox else HANG
    await asking.ask(server.request("POST", f"/v1/sessions/{session_id}/events", {"events": [message(text)]}))
    if has_sandbox:
        await _frame(stream, b'"agent.tool_result"')
        await _frame(stream, b'"span.model_request_end"')
    else:
        await _frame(stream, b'"span.model_request_start"')
    asking.close()
    return Stuck(session_id, stream, has_sandbox)


async def _home(client: Client, made: Cluster, session_id: str) -> Process:
    """The worker that has the session's turn; Temporal knows."""
    described = await client.get_workflow_handle(session_id).describe()
    (activity,) = described.raw_description.pending_activities
    pid = int(activity.last_worker_identity.partition("@")[0])
    return next(worker for worker in made.workers if worker.pid == pid)


async def _asked_again(stuck: Stuck, begun: float) -> float:
    await _frame(stuck.stream, b'"span.model_request_start"')
    return time.perf_counter() - begun


async def _interrupt(server: Address, stuck: Stuck) -> None:
    """Let the session rest."""
    asking = await server.connect()
    events = {"events": [{"type": "user.interrupt"}]}
    await asking.ask(server.request("POST", f"/v1/sessions/{stuck.session_id}/events", events))
    await _frame(stuck.stream, b'"session.status_idle"')
    asking.close()
    stuck.stream.close()


async def _within(what: Awaitable[T]) -> T:
    """The result, in bounded time. Raises `TimeoutError`."""
    return await asyncio.wait_for(what, WAIT_SECONDS_MAX)


if __name__ == "__main__":
    for row in run():
        print(f"{row.label:52} {row.value:10,.2f} {row.unit:8} {row.note}")
