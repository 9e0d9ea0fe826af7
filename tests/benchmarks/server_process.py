"""A real `corral serve` in a process of its own, and the least that can talk to it: sockets and bytes.

Clients share the machine's cores with the server, so they must cost little: no HTTP library, no JSON where a substring
will do. Everything stays on 127.0.0.1.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from tests.benchmarks.temporary import passable

KEY = "sk-corral-benchmark-key"
BETA = "managed-agents-2026-04-01"
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
STOP_SECONDS_MAX = 20
FILES_MAX = 8_192
HANG = '```script\n[{"hang": true}]\n```'
"""A message after which the scripted model says nothing any more."""
SOURCE = Path(__file__).parents[2] / "src"


class Address:
    """Where a server listens, and how to ask it."""

    def __init__(self, port: int, key: str = KEY) -> None:
        self.port = port
        self._key = key

    def request(self, method: str, path: str, body: Any = None) -> bytes:
        """The bytes of a request."""
        content = b"" if body is None else json.dumps(body).encode()
        head = (
            f"{method} {path} HTTP/1.1\r\nhost: bench\r\n"
            f"authorization: Bearer {self._key}\r\nanthropic-beta: {BETA}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
        )
        return head.encode() + content

    async def connect(self) -> Connection:
        """A connection to keep."""
        return Connection(*await asyncio.open_connection("127.0.0.1", self.port))

    async def create(self, connection: Connection, path: str, body: Any) -> str:
        """Make an object; its id."""
        return json.loads(await connection.ask(self.request("POST", path, body)))["id"]

    async def sessions(self, connection: Connection, count: int) -> list[str]:
        """New sessions of one new agent."""
        agent = await self.create(connection, "/v1/agents", {"name": "bench", "model": "scripted"})
        environment = await self.create(connection, "/v1/environments", {"name": f"bench {agent}"})
        body = {"agent": agent, "environment_id": environment}
        return [await self.create(connection, "/v1/sessions", body) for _ in range(count)]

    async def busy_sessions(self, connection: Connection, count: int) -> list[str]:
        """New sessions whose model never answers, so that messages to them are stored and nothing else happens."""
        sessions = await self.sessions(connection, count)
        for session_id in sessions:
            stream = await self.connect()
            await stream.open_stream(self, session_id)
            events = f"/v1/sessions/{session_id}/events"
            await connection.ask(self.request("POST", events, {"events": [message(HANG)]}))
            await stream.reader.readuntil(b"span.model_request_start")
            stream.close()
        return sessions


class Server(Address):
    """A server process, seen from outside."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, start_seconds: float) -> None:
        super().__init__(port)
        self.start_seconds = start_seconds
        """From the start of its process until it listened."""
        self._pid = process.pid
        self._stat = Path(f"/proc/{process.pid}/stat")
        self._statm = Path(f"/proc/{process.pid}/statm")

    def cpu_seconds(self) -> float:
        """User and system time so far."""
        fields = self._stat.read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND

    def memory_bytes(self) -> int:
        """What is resident."""
        return int(self._statm.read_text(encoding="ascii").split()[1]) * PAGE_BYTES

    def kill(self) -> None:
        """SIGKILL."""
        os.kill(self._pid, signal.SIGKILL)

    def children(self) -> int:
        """How many processes it has started that still run."""
        return len(Path(f"/proc/{self._pid}/task/{self._pid}/children").read_text(encoding="ascii").split())


class Connection:
    """One HTTP connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def ask(self, request: bytes) -> bytes:
        """Send a request and read its answer, which must be 200."""
        self.writer.write(request)
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        body = await self.reader.readexactly(length)
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(body.decode())
        return body

    async def open_stream(self, server: Address, session_id: str) -> None:
        """Turn this connection into an event stream, past its headers."""
        self.writer.write(server.request("GET", f"/v1/sessions/{session_id}/events/stream"))
        head = await self.reader.readuntil(b": open\n\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(head.decode())

    def close(self) -> None:
        """Cut it."""
        self.writer.transport.abort()


def message(text: str) -> dict[str, Any]:
    """A `user.message`."""
    return {"type": "user.message", "content": [{"type": "text", "text": text}]}


@contextmanager
def serving(toml: str = "", *, directory: str | None = None) -> Generator[Server]:
    """A server whose models are scripted, and that may have many connections, on data of its own or in `directory`."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, FILES_MAX), hard))
    with nullcontext(directory) if directory else tempfile.TemporaryDirectory() as directory:
        config = Path(directory) / "corral.toml"
        config.write_text(f'[[models]]\npattern = "*"\nprovider = "scripted"\n{toml}', encoding="utf-8")
        command = [sys.executable, "-m", "corral", "serve", "--port", "0", "--config", str(config)]
        command += ["--data-dir", f"{directory}/data"]
        environment = {"PATH": os.environ["PATH"], "HOME": directory, "CORRAL_API_KEY": KEY, "PYTHONPATH": str(SOURCE)}
        environment["CORRAL_SANDBOX_DIR"] = str(passable(directory) / "sandboxes")
        with (Path(directory) / "log").open("wb") as log:
            began = time.perf_counter()
            process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log)
        try:
            assert process.stdout is not None
            line = process.stdout.readline().decode()
            if "listening on" not in line:
                raise RuntimeError((Path(directory) / "log").read_text(encoding="utf-8"))
            yield Server(process, int(line.strip().rpartition(":")[2]), time.perf_counter() - began)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(STOP_SECONDS_MAX)
            assert process.stdout is not None
            process.stdout.close()
