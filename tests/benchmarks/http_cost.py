"""What a request costs the server in processor time: its own user and system time, whatever the clients do.

The rounds take turns between the kinds of request, since a machine's weather changes within seconds. Messages are
posted to a session that waits for an answer from its model, so that the cost is that of accepting and storing, not of a
turn.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Callable

from tests.benchmarks.server_process import Connection, Server, message, serving

NAME = "A request's cost in the server's processor time"
ROUNDS = 5
REQUESTS = 400
CONNECTIONS = 8
QUEUE_MAX = 900
"""Fewer messages than may wait in one session."""


def run() -> list[tuple[str, float, str, str]]:
    with serving() as server:
        return asyncio.run(_measure(server))


async def _measure(server: Server) -> list[tuple[str, float, str, str]]:
    connections = [await server.connect() for _ in range(CONNECTIONS)]
    count = ROUNDS * REQUESTS // QUEUE_MAX + 2
    sessions = await server.busy_sessions(connections[0], count)
    body = {"events": [message("Please look at the build.")]}

    def post(number: int) -> bytes:
        return server.request("POST", f"/v1/sessions/{sessions[number // QUEUE_MAX]}/events", body)

    def get(number: int) -> bytes:
        return server.request("GET", f"/v1/sessions/{sessions[-1]}")

    def health(number: int) -> bytes:
        return server.request("GET", "/healthz")

    kinds = {"POST events (one message, durable)": post, "GET session": get, "GET healthz": health}
    costs: dict[str, list[float]] = {kind: [] for kind in kinds}
    for turn in range(ROUNDS):
        for kind, make in kinds.items():
            costs[kind].append(await _round(server, connections, make, turn * REQUESTS))
    for connection in connections:
        connection.close()
    return [
        (kind, statistics.median(found), "µs", f"{min(found):,.0f} to {max(found):,.0f}; {CONNECTIONS} clients at once")
        for kind, found in costs.items()
    ]


async def _round(server: Server, connections: list[Connection], make: Callable[[int], bytes], first: int) -> float:
    """Microseconds of processor time for each request."""
    requests = [make(number) for number in range(first, first + REQUESTS)]

    async def ask(connection: Connection, mine: list[bytes]) -> None:
        for request in mine:
            await connection.ask(request)

    before = server.cpu_seconds()
    await asyncio.gather(*(ask(each, requests[number::CONNECTIONS]) for number, each in enumerate(connections)))
    return (server.cpu_seconds() - before) / REQUESTS * 1e6
