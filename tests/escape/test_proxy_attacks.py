"""Attacks on the egress proxy from inside a sandbox that may reach one host: odd targets, smuggling, floods.

Every attack writes raw bytes to the proxy and asks whether anything got where it must not: a canary on the host, which
no environment allows, hears of none of them, and the proxy serves on.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from corral.config import SandboxSettings
from corral.domain.content import TextBlock
from corral.domain.environment import Limited, Recipe
from corral.interfaces.sandbox import SandboxCall
from corral.sandboxes.bubblewrap import BubblewrapSandboxes
from corral.sandboxes.egress.outlet import Egress
from tests.contracts.egress_hosts import ALLOWED, OTHER, Hosts, hosts
from tests.places import stage

pytestmark = [pytest.mark.anyio, pytest.mark.requirement("F035")]
SECONDS_MAX = 150
RUN = """
import json, socket, sys
answers = {}
for name, request in json.load(open("attacks.json")).items():
    with socket.create_connection(("127.0.0.1", 3128), 20) as s:
        answer = b""
        try:
            s.sendall(request.encode("latin-1"))
            s.shutdown(socket.SHUT_WR)
            while piece := s.recv(65536):
                answer += piece
        except OSError:
            pass
        answers[name] = answer.decode("latin-1")[:2000]
print(json.dumps(answers))
"""


def attacks(world: Hosts) -> dict[str, str]:
    """Raw requests, none of which may reach the canary (`world.other`) or be answered by a host."""
    here, there = f"{ALLOWED}:{world.plain.port}", f"{OTHER}:{world.other.port}"
    get = "GET http://{} HTTP/1.1\r\nHost: {}\r\n{}\r\n"
    targets = {
        "a unix socket": "unix:/opt/corral/egress/egress.sock",
        "a path": "/etc/passwd",
        "a file": "file:///etc/passwd",
        "user names before a host": f"{ALLOWED}@{there}",
        "an encoded dot": f"{ALLOWED}%2e{OTHER}:443",
        "a null byte": f"{ALLOWED}\0.{OTHER}:443",
        "a zone": "[fe80::1%25lo]:443",
        "no port": ALLOWED,
        "port 0": f"{ALLOWED}:0",
        "a huge port": f"{ALLOWED}:99999",
        "another host": there,
        "a look-alike": f"{ALLOWED}.{OTHER}:443",
        "the proxy's own port": "127.0.0.1:3128",
        "the host's loopback": f"127.0.0.1:{world.other.port}",
        "loopback in hexadecimal": f"0x7f000001:{world.other.port}",
        "loopback in octal": f"0177.0.0.1:{world.other.port}",
        "loopback as a number": f"2130706433:{world.other.port}",
        "loopback, short": f"127.1:{world.other.port}",
        "loopback in IPv6": f"[::1]:{world.other.port}",
        "loopback, mapped": f"[::ffff:127.0.0.1]:{world.other.port}",
        "no address": f"0.0.0.0:{world.other.port}",
        "metadata": "169.254.169.254:80",
    }
    found = {f"CONNECT to {name}": f"CONNECT {to} HTTP/1.1\r\nHost: x\r\n\r\n" for name, to in targets.items()}
    return found | {
        "another Host": get.format(f"{here}/", there, ""),
        "two Hosts": get.format(f"{here}/", here, f"Host: {there}\r\n"),
        "no Host": f"GET http://{here}/ HTTP/1.1\r\n\r\n",
        "another scheme": f"GET https://{there}/ HTTP/1.1\r\nHost: {there}\r\n\r\n",
        "ftp": f"GET ftp://{here}/ HTTP/1.1\r\nHost: {here}\r\n\r\n",
        "a Host in the path": get.format(f"{ALLOWED}@{there}/", here, ""),
        "a bare CR": get.format(f"{here}/", here, f"X: a\rHost: {there}\r\n"),
        "a space before the colon": get.format(f"{here}/", here, "Transfer-Encoding : chunked\r\n"),
        "two lengths": get.format(f"{here}/", here, "Content-Length: 0\r\nContent-Length: 50\r\n"),
        "an odd encoding": get.format(f"{here}/", here, "Transfer-Encoding: xchunked\r\n"),
        "a giant header": get.format(f"{here}/", here, f"X: {'a' * 300_000}\r\n"),
        "many headers": get.format(f"{here}/", here, "".join(f"X{n}: a\r\n" for n in range(20_000))),
        "a giant line": f"GET http://{here}/{'a' * 300_000} HTTP/1.1\r\nHost: {here}\r\n\r\n",
        "HTTP/2": "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "an origin form": f"GET / HTTP/1.1\r\nHost: {here}\r\n\r\n",
        "no HTTP": "\x00\x01\x02\x03 SSH-2.0-x\r\n\r\n",
    }


async def test_no_attack_on_the_proxy_gets_anywhere(root: Path, record_property: Callable[[str, object], None]) -> None:
    with hosts(root) as world:
        sandboxes = BubblewrapSandboxes(
            SandboxSettings(directory=str(root)), root, lambda place: Egress(world.settings(), place)
        )
        stage(root)
        await sandboxes.start()
        try:
            with anyio.fail_after(SECONDS_MAX):
                await _attack(sandboxes, world, record_property)
        finally:
            await sandboxes.destroy("sesn_hostile")
            await sandboxes.close()


async def _attack(sandboxes: BubblewrapSandboxes, world: Hosts, record_property: Callable[[str, object], None]) -> None:
    sandbox = await sandboxes.open("sesn_hostile", Recipe(networking=Limited(allowed_hosts=(ALLOWED,))))

    async def call(name: str, operation: str, **arguments: object) -> str:
        assert operation in ("bash", "write")
        reply = await sandbox.call(SandboxCall(call_id=name, operation=operation, arguments=arguments))
        return "".join(block.text for block in reply.content if isinstance(block, TextBlock))

    tried = attacks(world)
    await call("1", "write", file_path="attacks.json", content=json.dumps(tried))
    await call("2", "write", file_path="run.py", content=RUN)
    pid = None
    said = await call("3", "bash", command="python3 run.py > answers.json; wc -c < answers.json")
    pid = sandboxes.egress.proxy_pid
    answers: dict[str, str] = {}
    names = list(tried)
    for index in range(0, len(names), 10):
        chosen = json.dumps(names[index : index + 10])
        show = (
            f"import json; a = json.load(open('answers.json')); print(json.dumps({{n: a[n][:200] for n in {chosen}}}))"
        )
        await call(f"show{index}", "write", file_path="show.py", content=show)
        answers |= json.loads(await call(f"run{index}", "bash", command="python3 show.py"))
    assert set(answers) == set(tried), said
    got_through = [name for name, answer in answers.items() if " 200 " in answer[:40] or "hello" in answer]
    record_property("attacks", f"attacks on the proxy {len(tried)}, blocked {len(tried) - len(got_through)}")
    assert got_through == []
    assert world.other.seen == [] and world.plain.seen == []
    assert pid is not None
    after = await call("4", "bash", command=f"curl -sS http://{ALLOWED}:{world.plain.port}/")
    assert after == "hello from plain" and sandboxes.egress.proxy_pid == pid
