"""What gets out of a sandbox: ordinary programs inside, the real proxy, and real TLS servers on the host.

The servers are reached by names that the operator's settings give them, on an address that the settings allow.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from corral.config_sections import SandboxSettings
from corral.domain.environment import SEALED, Limited, Recipe
from corral.errors import MachineUnfit, SandboxUnavailable
from corral.sandboxes.process import ProcessSandboxes
from tests import docker_engine
from tests.contracts.egress_hosts import ALLOWED, OTHER, Hosts, hosts
from tests.contracts.egress_world import ONE_HOST, Server, bounded

pytestmark = pytest.mark.requirement("F035")


@pytest.fixture
def world(root: Path) -> Iterator[Hosts]:
    with hosts(root) as found:
        yield found


@pytest.fixture(params=["bubblewrap", "docker"])
async def server(request: pytest.FixtureRequest, root: Path, world: Hosts) -> AsyncIterator[Server]:
    """With each backend that isolates."""
    if request.param == "docker" and (reason := docker_engine.why_not()):
        pytest.skip(reason)
    server = Server(root, world.settings(), backend=request.param)
    try:
        await server.sandboxes.start()
    except MachineUnfit as error:
        pytest.skip(error.message)
    yield server
    for place in (root / "sessions").glob("*"):
        await server.sandboxes.destroy(place.name)
    await server.sandboxes.close()


@bounded
async def test_curl_and_urllib_reach_the_allowed_host_and_no_other(server: Server, world: Hosts) -> None:
    shell = await server.open()
    url, other = f"https://{ALLOWED}:{world.allowed.port}/", f"https://{OTHER}:{world.other.port}/"
    assert await shell(f"curl -sS {url}") == f"hello from {ALLOWED}"
    fetch = "import urllib.request as u; print(u.urlopen('%s').read().decode())"
    assert await shell.python(fetch % url) == f"hello from {ALLOWED}"
    assert await shell(f"curl -sS http://{ALLOWED}:{world.plain.port}/") == "hello from plain"
    assert await shell(f"curl -sS {other}") == "curl: (56) CONNECT tunnel failed, response 403\nexit 56"
    said = await shell.python(fetch % other)
    assert f"{OTHER}:{world.other.port} is not among the hosts" in said and "allowed_hosts" in said
    plain = await shell(f"curl -sSi http://{OTHER}:{world.other.port}/secret?token=1")
    assert "403" in plain and "x-corral-egress: host_not_allowed" in plain
    assert world.other.seen == []
    await server.counted("host_not_allowed")


@bounded
async def test_names_that_lead_to_private_addresses_are_refused(server: Server, world: Hosts) -> None:
    recipe = Recipe(networking=Limited(allowed_hosts=("inner.test", "meta.test", "127.0.0.2", "169.254.169.254")))
    for shell in (await server.open("sesn_1", recipe), await server.open("sesn_2", Recipe())):
        for host in ("inner.test", "127.0.0.2", "127.2", "0x7f000002", "2130706434", "[::ffff:127.0.0.2]"):
            said = await shell(f"curl -sSi http://{host}:{world.plain.port}/")
            assert "x-corral-egress: own_address" in said, (host, said)
            assert (await shell(f"curl -sS https://{host}:{world.allowed.port}/")).endswith("exit 56")
        for host in ("meta.test", "169.254.169.254"):
            assert "x-corral-egress: metadata_address" in await shell(f"curl -sSi http://{host}/latest/")
    await server.counted("own_address")
    await server.counted("metadata_address")


@bounded
async def test_unrestricted_reaches_private_addresses_only_where_the_operator_allows_them(
    server: Server, world: Hosts
) -> None:
    shell = await server.open(recipe=Recipe())
    assert await shell(f"curl -sS https://{ALLOWED}:{world.allowed.port}/") == f"hello from {ALLOWED}"
    assert await shell(f"curl -sS https://{OTHER}:{world.other.port}/") == f"hello from {OTHER}"
    for address in ("10.0.0.1", "192.168.0.1", "100.64.0.1", "[fd00::1]", "[::ffff:10.0.0.1]", "[64:ff9b::a00:1]"):
        assert "x-corral-egress: private_address" in await shell(f"curl -sSi http://{address}/"), address


@bounded
async def test_the_name_must_be_the_same_in_the_tunnel_the_handshake_and_the_request(
    server: Server, world: Hosts
) -> None:
    shell = await server.open()
    port = world.allowed.port
    fronted = await shell(f"curl -sSi -H 'Host: {OTHER}' https://{ALLOWED}:{port}/")
    assert "x-corral-egress: host_mismatch" in fronted
    assert "x-corral-egress: host_mismatch" in await shell(
        f"curl -sSi -H 'Host: {OTHER}' http://{ALLOWED}:{world.plain.port}/"
    )
    mismatched = await shell(f"curl -sSi --connect-to {OTHER}:443:{ALLOWED}:{port} https://{OTHER}/")
    assert "x-corral-egress: sni_mismatch" in mismatched
    assert world.allowed.seen == [] and world.plain.seen == []
    await server.counted("host_mismatch")
    await server.counted("sni_mismatch")


@bounded
async def test_a_redirect_to_another_host_is_refused(server: Server, world: Hosts) -> None:
    shell = await server.open()
    target = f"{OTHER}:{world.other.port}/"
    said = await shell(f"curl -sSL https://{ALLOWED}:{world.allowed.port}/redirect/{target}")
    assert said.endswith("exit 56") and world.other.seen == []


@bounded
async def test_raw_sockets_udp_and_dns_go_nowhere(server: Server, world: Hosts) -> None:
    shell = await server.open()
    said = await shell.python(
        "import socket\n"
        "def attempt(name, what):\n"
        "    try: what(); print(name, 'got through')\n"
        "    except OSError as error: print(name, 'failed')\n"
        f"attempt('tcp', lambda: socket.create_connection(('127.0.0.1', {world.plain.port}), 2))\n"
        "attempt('outside', lambda: socket.create_connection(('1.1.1.1', 443), 2))\n"
        "attempt('udp', lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('1.1.1.1', 53)))\n"
        f"attempt('dns', lambda: socket.getaddrinfo('{ALLOWED}', 443))\n"
    )
    assert said.splitlines() == ["tcp failed", "outside failed", "udp failed", "dns failed"]


@bounded
async def test_a_sandbox_without_network_has_no_proxy_either(server: Server) -> None:
    shell = await server.open(recipe=SEALED)
    assert await shell("env | grep -i proxy; ls /opt/corral/egress") == (
        "ls: cannot access '/opt/corral/egress': No such file or directory\nexit 2"
    )
    assert server.sandboxes.egress.proxy_pid is None


@bounded
async def test_a_killed_proxy_is_started_again_and_nothing_is_lost(server: Server, world: Hosts) -> None:
    shell = await server.open()
    url = f"https://{ALLOWED}:{world.allowed.port}/"
    assert await shell(f"curl -sS {url}") == f"hello from {ALLOWED}"
    for _ in range(2):
        killed = server.sandboxes.egress.proxy_pid
        assert killed is not None
        os.kill(killed, signal.SIGKILL)
        assert await shell(f"curl -sS {url}") == f"hello from {ALLOWED}"
        assert server.sandboxes.egress.proxy_pid not in (None, killed)


@bounded
async def test_sandboxes_under_different_policies_do_not_mix(server: Server, world: Hosts) -> None:
    one = await server.open("sesn_1")
    two = await server.open("sesn_2", Recipe(networking=Limited(allowed_hosts=(OTHER,))))
    urls = f"https://{ALLOWED}:{world.allowed.port}/", f"https://{OTHER}:{world.other.port}/"
    answers = [await shell(f"curl -sS {url}") for shell in (one, two) for url in urls]
    assert [answer.startswith("hello") for answer in answers] == [True, False, False, True]


@bounded
async def test_a_sandbox_that_outlived_its_server_is_served_as_it_was_made(
    server: Server, root: Path, world: Hosts
) -> None:
    shell = await server.open()
    url, other = f"https://{ALLOWED}:{world.allowed.port}/", f"https://{OTHER}:{world.other.port}/"
    assert await shell("kept=1; curl -sS " + url) == f"hello from {ALLOWED}"
    await server.sandboxes.close()
    later = Server(root, world.settings(), backend=server.backend)
    try:
        # The environment allows another host by now; that is for sandboxes to come.
        shell = await later.open(recipe=Recipe(networking=Limited(allowed_hosts=(OTHER,))))
        assert await shell("echo $kept; curl -sS " + url) == f"1\nhello from {ALLOWED}"
        assert (await shell("curl -sS " + other)).endswith("exit 56")
    finally:
        await later.sandboxes.destroy("sesn_1")
        await later.sandboxes.close()


@bounded
async def test_large_bodies_stream_through_and_the_proxy_stays_small(server: Server, world: Hosts) -> None:
    shell = await server.open()
    size = 200 * 1024 * 1024
    base = f"https://{ALLOWED}:{world.allowed.port}"
    assert await shell(f"curl -sS {base}/") == f"hello from {ALLOWED}"
    pid = server.sandboxes.egress.proxy_pid
    before = resident_bytes(pid)
    assert await shell(f"curl -sS {base}/bytes/{size} | wc -c") == str(size)
    assert (
        await shell(
            f"head -c {size // 4} /dev/zero | curl -sS -T - -X POST -H 'Expect:' "
            f"-H 'Transfer-Encoding:' -H 'Content-Length: {size // 4}' {base}/"
        )
        == f"took {size // 4}"
    )
    assert server.sandboxes.egress.proxy_pid == pid
    assert resident_bytes(pid) - before < 64 * 1024 * 1024


def resident_bytes(pid: int | None) -> int:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


@bounded
async def test_websockets_pass_where_the_host_is_allowed(server: Server, world: Hosts) -> None:
    shell = await server.open()
    program = (
        "import socket, ssl\n"
        "s = socket.create_connection(('127.0.0.1', 3128))\n"
        f"s.sendall(b'CONNECT {ALLOWED}:{world.allowed.port} HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n')\n"
        "assert b' 200 ' in s.recv(4096)\n"
        f"s = ssl.create_default_context().wrap_socket(s, server_hostname='{ALLOWED}')\n"
        f"s.sendall(b'GET /ws HTTP/1.1\\r\\nHost: {ALLOWED}:{world.allowed.port}\\r\\nConnection: Upgrade\\r\\n'\n"
        "          b'Upgrade: websocket\\r\\n\\r\\n')\n"
        "assert b' 101 ' in s.recv(4096)\n"
        "for word in (b'one', b'two'):\n"
        "    s.sendall(word); print(s.recv(4096).decode())\n"
    )
    assert await shell.python(program) == "one\ntwo"


@bounded
async def test_the_servers_own_port_is_refused_though_its_address_is_allowed(root: Path, world: Hosts) -> None:
    server = Server(root, world.settings(), own_ports=(world.plain.port,))
    try:
        shell = await server.open()
        said = await shell(f"curl -sSi http://{ALLOWED}:{world.plain.port}/")
        assert "x-corral-egress: own_server" in said and world.plain.seen == []
    finally:
        await server.sandboxes.destroy("sesn_1")
        await server.sandboxes.close()


@bounded
async def test_the_process_backend_refuses_what_it_cannot_enforce(tmp_path: Path) -> None:
    sandboxes = ProcessSandboxes(SandboxSettings(), tmp_path)
    try:
        with pytest.raises(SandboxUnavailable, match="cannot limit networking"):
            await sandboxes.open("sesn_1", ONE_HOST)
        with pytest.raises(SandboxUnavailable, match="cannot limit networking"):
            await sandboxes.open("sesn_1", Recipe(networking=Limited()))
    finally:
        await sandboxes.destroy("sesn_1")
        await sandboxes.close()
