"""Ten thousand sessions whose sandboxes were used and rest: what they cost a real server, how long it starts with them,
and the call that wakes one.

One session is used and put away by a real server; its rows are then copied, so all of them rest in the same archive.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from pathlib import Path

import anyio
import msgspec

from corral.domain.file import REFERENCE_KIND
from corral.domain.ids import new_id
from corral.domain.query import Record, RecordsQuery
from corral.engines.bus import LocalBus
from corral.interfaces.event_log import nothing
from corral.sandboxes.checkpoints import KIND, Checkpoint, Reference
from corral.storage.sqlite import open_store
from tests.benchmarks.checkpoint import SystemClock
from tests.benchmarks.server_process import Connection, Server, message, serving

NAME = "Idle sessions with used sandboxes"
SESSIONS = 10_000
AT_ONCE = 200
WAIT_SECONDS_MAX = 60.0
USE = '```script\n[{"tool": "bash", "input": {"command": "cat kept || echo kept > kept"}}]\n```'
RESTS = "[sandbox]\npause_seconds = 0.2\ncheckpoint_seconds = 0.4\n"


def run() -> list[tuple[str, float, str, str]]:
    with tempfile.TemporaryDirectory() as directory:
        with serving(RESTS, directory=directory) as server:
            alone, alone_seconds = server.memory_bytes(), server.start_seconds
            session_id = asyncio.run(_use_one(server, directory))
        others = anyio.run(_copy, directory, session_id)
        with serving(directory=directory) as server:
            idle, children, idle_seconds = server.memory_bytes(), server.children(), server.start_seconds
            seconds = asyncio.run(_wake(server, others[0]))
    return [
        (f"a server with {SESSIONS:,} of them", idle / 1024**2, "MiB", "aim: < 1,024"),
        ("a server with none", alone / 1024**2, "MiB", "same run"),
        ("start with them", idle_seconds * 1000, "ms", "from the process's start until it listens"),
        ("start with none", alone_seconds * 1000, "ms", "same run, and an empty database is made"),
        ("processes for all of them", children, "", "aim: 0"),
        ("a turn with one call that brings one back", seconds * 1000, "ms", "from the message to the session's rest"),
    ]


async def _use_one(server: Server, directory: str) -> str:
    connection = await server.connect()
    body = {"name": "bench", "model": "scripted", "tools": [{"type": "agent_toolset_20260401"}]}
    agent = await server.create(connection, "/v1/agents", body)
    environment = await server.create(connection, "/v1/environments", {"name": "bench"})
    wanted = {"agent": agent, "environment_id": environment}
    session_id = await server.create(connection, "/v1/sessions", wanted)
    await _turn(server, connection, session_id)
    rests = Path(directory) / "sandboxes" / "sessions" / session_id
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        while rests.exists():  # noqa: ASYNC110  # a directory that goes has no event
            await asyncio.sleep(0.05)
    connection.close()
    return session_id


async def _turn(server: Server, connection: Connection, session_id: str) -> bytes:
    stream = await server.connect()
    await stream.open_stream(server, session_id)
    events = f"/v1/sessions/{session_id}/events"
    await connection.ask(server.request("POST", events, {"events": [message(USE)]}))
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        seen = await stream.reader.readuntil(b"session.status_idle")
    stream.close()
    return seen


async def _wake(server: Server, session_id: str) -> float:
    connection = await server.connect()
    start = time.perf_counter()
    seen = await _turn(server, connection, session_id)
    seconds = time.perf_counter() - start
    assert b"had rested" in seen, seen[-2_000:]
    connection.close()
    return seconds


async def _copy(directory: str, session_id: str) -> list[str]:
    """More sessions like this one, with checkpoints of their own."""
    bus = LocalBus(frames_max=1, bytes_max=1)
    store = await open_store(f"sqlite:///{directory}/data/corral.db", bus, SystemClock())
    snapshot = await store.log.snapshot(session_id)
    (kept,) = await store.records.page(RecordsQuery(kind=KIND, workspace_id=None, limit=2))
    checkpoint = msgspec.json.decode(kept.body, type=Checkpoint)
    assert checkpoint.archive is not None
    sha256 = checkpoint.archive.sha256

    async def copy(copy_id: str) -> None:
        session = msgspec.structs.replace(snapshot.session, id=copy_id)
        await store.log.create(session, snapshot.state, nothing)
        reference = Reference(f"{copy_id}@1", sha256)
        body = msgspec.json.encode(msgspec.structs.replace(checkpoint, archive=reference))
        claim = Record(
            kind=REFERENCE_KIND,
            id=reference.id,
            workspace_id=kept.workspace_id,
            parent_id=sha256,
            created_at=kept.created_at,
            body=json.dumps({}).encode(),
        )
        await store.records.put(msgspec.structs.replace(kept, id=copy_id, body=body), claim)

    made = [new_id("sesn") for _ in range(SESSIONS)]
    for start in range(0, SESSIONS, AT_ONCE):
        async with anyio.create_task_group() as tasks:
            for copy_id in made[start : start + AT_ONCE]:
                tasks.start_soon(copy, copy_id)
    await store.close()
    return made
