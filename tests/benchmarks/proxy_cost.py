"""What the egress proxy costs: a request over a new connection and over a kept one, beside direct ones in the same run;
the same once more with a placeholder in it that the proxy swaps for a secret.

A client on the host speaks to the proxy's own socket, so what is measured is the proxy and not the programs inside;
hosts are TLS servers on loopback.
"""

from __future__ import annotations

import http.client
import os
import socket
import ssl
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import anyio
import anyio.to_thread

from corral.domain.egress import EgressPolicy
from corral.domain.placeholder import Substitution, placeholder
from corral.sandboxes.egress.outlet import Egress
from tests.benchmarks.temporary import passable
from tests.contracts.egress_hosts import ALLOWED, Hosts, hosts

NAME = "The egress proxy: one small HTTPS request"
NEW, KEPT = 60, 300
SECONDS_MAX = 30.0
SECRET = Substitution(
    name="API_KEY",
    placeholder=placeholder(b"twenty bytes of mark"),
    secret="sk-0123456789abcdef0123456789abcdef",
    hosts=(ALLOWED,),
    header=True,
    body=True,
    credential_id="vcrd_bench",
    vault_id="vlt_bench",
)
PLAIN: dict[str, str] = {}
HELD = {"authorization": f"Bearer {SECRET.placeholder}"}

Row = tuple[str, float, str, str]


def run() -> list[Row]:
    return anyio.run(_measure, backend_options={"use_uvloop": True})


async def _measure() -> list[Row]:
    with tempfile.TemporaryDirectory() as directory:
        root = passable(directory)
        with hosts(root) as world:
            egress = Egress(world.settings(), root / "egress")
            try:
                place = root / "place"
                await egress.attach("bench", place, os.geteuid(), EgressPolicy(hosts=(ALLOWED,)))
                rows = await anyio.to_thread.run_sync(_compare, world, place / "egress.sock", egress.ca_file, PLAIN)
                egress.entrust("bench", (SECRET,))
                rows += await anyio.to_thread.run_sync(_compare, world, place / "egress.sock", egress.ca_file, HELD)
                return [
                    *rows,
                    ("proxy: resident memory", _resident_mib(egress.proxy_pid), "MiB", "one for all sandboxes"),
                ]
            finally:
                await egress.close()


def _compare(world: Hosts, path: Path, ca_file: Path, headers: dict[str, str]) -> list[Row]:
    inside = ssl.create_default_context(cafile=str(ca_file))
    outside = ssl.create_default_context(cafile=str(world.authority))

    def direct() -> http.client.HTTPConnection:
        raw = socket.create_connection(("127.0.0.1", world.allowed.port), SECONDS_MAX)
        return _over(outside.wrap_socket(raw, server_hostname=ALLOWED), world)

    def proxied() -> http.client.HTTPConnection:
        raw = socket.socket(socket.AF_UNIX)
        raw.settimeout(SECONDS_MAX)
        raw.connect(str(path))
        raw.sendall(f"CONNECT {ALLOWED}:{world.allowed.port} HTTP/1.1\r\nHost: {ALLOWED}\r\n\r\n".encode())
        answer = raw.recv(4_096)
        assert b" 200 " in answer, answer
        return _over(inside.wrap_socket(raw, server_hostname=ALLOWED), world)

    _new(proxied, headers)  # the proxy starts, and makes the certificate
    plain, through = [_new(direct, headers) for _ in range(NEW)], [_new(proxied, headers) for _ in range(NEW)]
    plain_kept, through_kept = _kept(direct, headers), _kept(proxied, headers)
    what = "proxied with a secret" if headers else "proxied"
    by = "the proxy with a secret" if headers else "the proxy"
    return [
        ("new connection, direct, p50", statistics.median(plain), "ms", "TCP, TLS, request"),
        (f"new connection, {what}, p50", statistics.median(through), "ms", ""),
        (f"added by {by}, new", statistics.median(through) - statistics.median(plain), "ms", "aim: ≤ 25"),
        ("kept connection, direct, p50", statistics.median(plain_kept), "ms", ""),
        (f"kept connection, {what}, p50", statistics.median(through_kept), "ms", ""),
        (f"added by {by}, kept", statistics.median(through_kept) - statistics.median(plain_kept), "ms", "aim: ≤ 3"),
    ]


def _over(stream: ssl.SSLSocket, world: Hosts) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection(ALLOWED, world.allowed.port)
    connection.sock = stream
    return connection


def _new(connect: Callable[[], http.client.HTTPConnection], headers: dict[str, str]) -> float:
    start = time.perf_counter()
    connection = connect()
    _request(connection, headers)
    elapsed = (time.perf_counter() - start) * 1000
    connection.close()
    return elapsed


def _kept(connect: Callable[[], http.client.HTTPConnection], headers: dict[str, str]) -> list[float]:
    connection = connect()
    _request(connection, headers)
    times: list[float] = []
    for _ in range(KEPT):
        start = time.perf_counter()
        _request(connection, headers)
        times.append((time.perf_counter() - start) * 1000)
    connection.close()
    return times


def _request(connection: http.client.HTTPConnection, headers: dict[str, str]) -> None:
    connection.request("GET", "/", headers=headers)
    answer = connection.getresponse().read()
    assert answer.startswith(b"hello"), answer


def _resident_mib(pid: int | None) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1024 * 1024)
