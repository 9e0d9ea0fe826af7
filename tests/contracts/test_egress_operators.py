"""What operators set about the way out: a proxy of their own in front, indexes with passwords, and limits."""

from __future__ import annotations

import base64
import http.server
import os
import shutil
import socket
from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import anyio
import pytest
from structlog.testing import capture_logs

from corral.config_sections import EgressSettings
from corral.domain.environment import Limited, Recipe
from corral.errors import SandboxUnavailable
from corral.sandboxes.directory import SessionDirectory
from corral.sandboxes.egress.outlet import LINES_PER_MINUTE_MAX
from tests.contracts.egress_hosts import ALLOWED, Hosts, hosts
from tests.contracts.egress_world import Server, bounded
from tests.listening import pass_on, served

pytestmark = pytest.mark.requirement("F035")
HIDDEN, DIRECT = "hidden.test", "near.direct.test"
"""Names that nothing here resolves: only the operator's proxy knows the first, and nobody the second."""
PASSWORD = "pass-of-the-operator"
WAIT_SECONDS = 30


class OperatorsProxy(http.server.ThreadingHTTPServer):
    """A proxy as companies have them: CONNECT and whole URLs, with a user name and a password."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        self.target, self.seen = ("127.0.0.1", port), list[str]()
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def port(self) -> int:
        """Where it listens."""
        return self.socket.getsockname()[1]


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_CONNECT(self) -> None:
        assert isinstance(self.server, OperatorsProxy)
        self.server.seen.append(f"CONNECT {self.path}")
        if not self._welcome():
            return
        with socket.create_connection(self.server.target) as there:
            self.send_response(200)
            self.end_headers()
            pass_on(self.connection, there, WAIT_SECONDS)

    def do_GET(self) -> None:
        assert isinstance(self.server, OperatorsProxy)
        self.server.seen.append(f"GET {self.path}")
        if self._welcome():
            self.send_response(200)
            self.send_header("content-length", "5")
            self.end_headers()
            self.wfile.write(b"plain")

    def _welcome(self) -> bool:
        pair = base64.b64encode(f"corral:{PASSWORD}".encode()).decode()
        if self.headers.get("proxy-authorization") == f"Basic {pair}":
            return True
        self.send_error(407)
        return False

    def log_message(self, format: str, *args: object) -> None:
        return


@contextmanager
def operators_proxy(port: int) -> Generator[OperatorsProxy]:
    """One that takes every tunnel to `port` here."""
    proxy = OperatorsProxy(port)
    with served(proxy):
        yield proxy


@pytest.fixture
def world(root: Path) -> Iterator[Hosts]:
    with hosts(root) as found:
        yield found


@asynccontextmanager
async def serving(root: Path, settings: EgressSettings) -> AsyncGenerator[Server]:
    server = Server(root, settings)
    try:
        yield server
    finally:
        for place in (root / "sessions").glob("*"):
            await server.sandboxes.destroy(place.name)
        await server.sandboxes.close()


@bounded
async def test_hosts_are_reached_through_the_operators_proxy(root: Path, world: Hosts) -> None:
    with operators_proxy(world.allowed.port) as proxy:
        settings = world.settings(
            upstream_proxy=f"http://corral:{PASSWORD}@127.0.0.1:{proxy.port}", upstream_proxy_not_for=(".direct.test",)
        )
        async with serving(root, settings) as server:
            shell = await server.open(recipe=Recipe(networking=Limited(allowed_hosts=(HIDDEN, DIRECT))))
            assert await shell(f"curl -sS https://{HIDDEN}/") == f"hello from {ALLOWED}"
            assert await shell(f"curl -sS http://{HIDDEN}/x") == "plain"
            assert proxy.seen == [f"CONNECT {HIDDEN}:443", f"GET http://{HIDDEN}:80/x"]
            # It is not asked about what the environment forbids, nor about what is reached without it.
            assert "not among the hosts" in await shell("curl -sS http://other.test/")
            assert "has no address" in await shell(f"curl -sS http://{DIRECT}/")
            assert len(proxy.seen) == 2
            assert PASSWORD not in await shell("env; cat /proc/*/environ 2>/dev/null | tr '\\0' '\\n'")


@bounded
async def test_an_operators_proxy_that_refuses_is_said_without_its_password(root: Path, world: Hosts) -> None:
    with operators_proxy(world.allowed.port) as proxy:
        settings = world.settings(upstream_proxy=f"http://corral:wrong-{PASSWORD}@127.0.0.1:{proxy.port}")
        async with serving(root, settings) as server:
            shell = await server.open(recipe=Recipe(networking=Limited(allowed_hosts=(HIDDEN,))))
            said = await shell(f"curl -sSv https://{HIDDEN}/")
            assert "upstream proxy" in said and PASSWORD not in said
            assert proxy.seen == [f"CONNECT {HIDDEN}:443"]


@bounded
async def test_passwords_of_package_indexes_are_added_outside_and_only_there(root: Path, world: Hosts) -> None:
    index = f"http://someone:{PASSWORD}@{ALLOWED}:{world.plain.port}/simple"
    (root / ".gemrc").write_text(f":sources:\n- {index}\n")
    (root / ".cargo").mkdir()
    (root / ".cargo" / "config.toml").write_text(
        f'[source.crates-io]\nreplace-with = "own"\n[source.own]\nregistry = "sparse+{index}/"\n'
    )
    settings = world.settings(machine={"PIP_INDEX_URL": index, "HOME": str(root)})
    async with serving(root, settings) as server:
        installing = Recipe(networking=Limited(allow_package_managers=True))
        shell = await server.open("sesn_1", installing)
        bare = f"http://{ALLOWED}:{world.plain.port}/simple"
        assert await shell("echo $PIP_INDEX_URL") == bare
        assert await shell("cat $GEMRC; tail -n 1 /.cargo/config.toml") == (
            f':sources:\n- {bare}\nregistry = "sparse+{bare}/"'
        )
        assert await shell(f"curl -sS {bare}") == "hello from plain"
        basic = base64.b64encode(f"someone:{PASSWORD}".encode()).decode()
        assert world.plain.authorizations == [f"Basic {basic}"]
        assert await shell(f"curl -sS -u me:mine {bare}") == "hello from plain"
        for method in ("DELETE", "TRACE"):
            await shell(f"curl -sS -X {method} {bare}")
            assert world.plain.authorizations.pop() is None
        assert await shell(
            f"curl -sS https://{ALLOWED}:{world.allowed.port}/"
        ) == "curl: (56) CONNECT tunnel failed, " + ("response 403\nexit 56")
        # An environment that may not install has the host only by name, and nothing of what the operator has there.
        other = await server.open("sesn_2")
        assert await other(f"curl -sS {bare}") == "hello from plain"
        mine = base64.b64encode(b"me:mine").decode()
        assert world.plain.authorizations[1:] == [f"Basic {mine}", None]
        for each in (shell, other):
            looked = await each(f"grep -rls {PASSWORD} /opt /etc /proc/*/environ ~ /workspace 2>/dev/null | head")
            assert looked in ("(no output)", "exit 2"), looked


@bounded
async def test_a_password_for_https_is_not_sent_in_the_clear(root: Path, world: Hosts) -> None:
    index = f"https://someone:{PASSWORD}@{ALLOWED}:{world.plain.port}/simple"
    async with serving(root, world.settings(machine={"PIP_INDEX_URL": index, "HOME": str(root)})) as server:
        shell = await server.open("sesn_1", Recipe(networking=Limited(allow_package_managers=True)))
        for how in ("", "--proxytunnel"):
            assert await shell(f"curl -sS {how} http://{ALLOWED}:{world.plain.port}/") == "hello from plain"
        assert world.plain.authorizations == [None, None]


HOLD = """
import socket, time
held = []
for _ in range(6):
    s = socket.create_connection(("127.0.0.1", 3128), 30)
    s.sendall(b"GET http://%s:%d/ HTTP/1.1\\r\\nHost: %s:%d\\r\\n\\r\\n")
    answer = b""
    try:
        answer = s.recv(4096)
    except OSError:
        pass
    held.append(s)
    print("served" if b" 200 " in answer else "cut")
"""


ASK = """
import socket
for number in range(%d):
    with socket.create_connection(("127.0.0.1", 3128), 30) as s:
        s.sendall(b"CONNECT %%d.refused.test:443 HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n" %% number)
        assert b" 403 " in s.recv(4096)
"""


@bounded
async def test_a_sandbox_that_is_refused_over_and_over_does_not_fill_the_log(root: Path, world: Hosts) -> None:
    count = 4 * LINES_PER_MINUTE_MAX
    with capture_logs() as lines:
        async with serving(root, world.settings()) as server:
            shell = await server.open(recipe=Recipe(networking=Limited(allowed_hosts=(HIDDEN,))))
            assert await shell.python(ASK % count) == "(no output)"
            await server.counted("host_not_allowed", count)
    told = [line for line in lines if line["event"] == "egress_refused"]
    # A minute may end meanwhile.
    assert LINES_PER_MINUTE_MAX <= len(told) <= 2 * LINES_PER_MINUTE_MAX
    assert any(line["event"] == "egress_not_logged" for line in lines)


@bounded
async def test_connections_of_one_sandbox_are_limited_and_others_are_served(root: Path, world: Hosts) -> None:
    async with serving(root, world.settings(connections_max=3)) as server:
        greedy, other = await server.open("sesn_1"), await server.open("sesn_2")
        place = (ALLOWED, world.plain.port)
        assert (await greedy.python(HOLD % (*place, *place))).split() == 3 * ["served"] + 3 * ["cut"]
        await server.counted("too_many_connections")
        # They end with the program that held them.
        for shell in (other, greedy):
            assert await shell(f"curl -sS --retry 9 --retry-all-errors http://{ALLOWED}:{world.plain.port}/") == (
                "hello from plain"
            )


@bounded
async def test_a_connection_that_carries_nothing_is_closed(root: Path, world: Hosts) -> None:
    async with serving(root, world.settings(idle_seconds_max=0.5)) as server:
        shell = await server.open()
        program = (
            "import socket\n"
            "for begun in (b'', b'GET http://', b'CONNECT %s:%d HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n'):\n"
            "    s = socket.create_connection(('127.0.0.1', 3128), 60)\n"
            "    s.sendall(begun)\n"
            "    while s.recv(4096): pass\n"
            "    print('closed')\n"
        )
        assert await shell.python(program % (ALLOWED, world.allowed.port)) == "closed\nclosed\nclosed"


@bounded
async def test_a_sandbox_that_does_not_start_is_not_served(root: Path, world: Hosts) -> None:
    async with serving(root, world.settings()) as server:
        await server.sandboxes.start()
        (daemon,) = (root / "programs").glob("daemon-*")
        daemon.rename(daemon.with_name("away"))
        with pytest.raises(SandboxUnavailable):
            await server.open()
        assert not server.sandboxes.egress.serves("sesn_1")
        daemon.with_name("away").rename(daemon)
        shell = await server.open()
        assert server.sandboxes.egress.serves("sesn_1")
        assert (await shell(f"curl -sS http://{ALLOWED}:{world.plain.port}/")).endswith("hello from plain")


@bounded
async def test_another_sandboxs_socket_is_out_of_reach(root: Path, world: Hosts) -> None:
    async with serving(root, world.settings()) as server:
        await server.open("sesn_1")
        shell = await server.open("sesn_2", Recipe(networking=Limited(allowed_hosts=("nothing.test",))))
        theirs = SessionDirectory(root, "sesn_1").egress / "egress.sock"
        assert theirs.is_socket()
        program = (
            "import glob, socket\n"
            f"for place in ['{theirs}', *glob.glob('/proc/*/root{theirs}'), '/opt/corral/egress/../../../{theirs}']:\n"
            "    s = socket.socket(socket.AF_UNIX)\n"
            "    try: s.connect(place); print('got through', place)\n"
            "    except OSError as error: print(type(error).__name__)\n"
        )
        assert set((await shell.python(program)).split()) == {"FileNotFoundError"}
        own = "/opt/corral/egress/egress.sock"
        assert set((await shell("find / -type s 2>/dev/null")).splitlines()) <= {own, "exit 1"}
        if os.geteuid() == 0:
            # Even who could see it as another sandbox's user cannot connect.
            uid = SessionDirectory(root, "sesn_2").owner()
            connect = f"import socket; socket.socket(socket.AF_UNIX).connect({str(theirs)!r})"
            python = shutil.which("python3", path="/usr/bin:/usr/local/bin")
            assert python is not None
            done = await anyio.run_process(
                [python, "-c", connect], user=uid, group=uid, extra_groups=(), check=False, cwd="/"
            )
            assert b"PermissionError" in done.stderr, done
