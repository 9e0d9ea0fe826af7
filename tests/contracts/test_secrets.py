"""Secrets behind placeholders: ordinary programs inside, the real proxy, and real TLS servers that keep what they get.

What the server got is what left; what a program prints is what came back in.
"""

from __future__ import annotations

import base64
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote_plus

import pytest

from corral.domain.environment import Limited, Recipe
from corral.domain.placeholder import Substitution, placeholder
from corral.errors import MachineUnfit
from tests.contracts.egress_hosts import ALLOWED, OTHER, Host, Hosts, hosts
from tests.contracts.egress_world import Server, Shell, bounded

pytestmark = pytest.mark.requirement("F129")
SECRET = "sk-l1ve+quite/a=\"secret&'one'\\"
HELD = placeholder(b"twenty bytes of mark")
RECIPE = Recipe(networking=Limited(allowed_hosts=(ALLOWED, OTHER)))


def secret(value: str = SECRET, **changes: object) -> Substitution:
    fields: dict[str, object] = {
        "name": "API_KEY",
        "placeholder": HELD,
        "secret": value,
        "hosts": (ALLOWED,),
        "header": True,
        "body": True,
        "credential_id": "vcrd_1",
        "vault_id": "vlt_1",
    }
    return Substitution(**(fields | changes))  # pyright: ignore[reportArgumentType]  # a test's own


class World:
    """A server, its hosts, and shells in sandboxes that hold secrets."""

    def __init__(self, server: Server, hosts: Hosts) -> None:
        self.server, self.hosts = server, hosts

    async def shell(self, *secrets: Substitution, session_id: str = "sesn_1", recipe: Recipe = RECIPE) -> Shell:
        return Shell(await self.server.sandboxes.open(session_id, recipe, secrets))

    async def post(self, shell: Shell, host: Host, data: bytes, *options: str, how: str = "plain") -> bytes:
        """Send a body with `{}` for the placeholder; what the host got."""
        text = data.replace(b"{}", HELD.encode()).decode()
        await shell(f"cat > body <<'END'\n{text}\nEND")
        said = await shell(f"curl -sS --data-binary @body {' '.join(options)} {url(host)}/echo/{how}")
        assert SECRET not in said and HELD in said, said
        return host.requests.pop().body.removesuffix(b"\n")

    async def destroy(self, session_id: str) -> None:
        await self.server.sandboxes.destroy(session_id)


def url(host: Host) -> str:
    scheme, name = ("http", ALLOWED) if host.name == "plain" else ("https", host.name)
    return f"{scheme}://{name}:{host.port}"


@pytest.fixture
async def world(root: Path) -> AsyncIterator[World]:
    with hosts(root) as found:
        server = Server(root, found.settings())
        try:
            await server.sandboxes.start()
        except MachineUnfit as error:
            pytest.skip(error.message)
        yield World(server, found)
        for place in (root / "sessions").glob("*"):
            await server.sandboxes.destroy(place.name)
        await server.sandboxes.close()


@bounded
async def test_the_sandbox_holds_a_placeholder_and_the_host_gets_the_secret(world: World) -> None:
    shell = await world.shell(secret())
    assert await shell("echo $API_KEY; python3 -c 'import os; print(os.environ[\"API_KEY\"])'") == f"{HELD}\n{HELD}"
    allowed = world.hosts.allowed
    said = await shell(f'curl -sSi -H "Authorization: Bearer $API_KEY" {url(allowed)}/echo/plain')
    assert allowed.requests[-1].headers["authorization"] == f"Bearer {SECRET}"
    # Both in the headers and in the body of the answer.
    assert SECRET not in said and said.count(f"Bearer {HELD}") == 2
    said = await shell(f'curl -sS -u "user:$API_KEY" {url(allowed)}/echo/plain')
    pair = base64.b64decode(allowed.requests[-1].headers["authorization"].removeprefix("Basic "))
    assert pair.decode() == f"user:{SECRET}"
    assert base64.b64encode(pair).decode() not in said


@bounded
async def test_bodies_are_written_so_that_they_are_read_as_the_secret(world: World) -> None:
    shell, allowed = await world.shell(secret()), world.hosts.allowed
    got = await world.post(shell, allowed, b'{"key": "{}", "n": 1}', "-H content-type:application/json")
    assert json.loads(got) == {"key": SECRET, "n": 1}
    assert await world.post(shell, allowed, b"a=1&key={}") == f"a=1&key={quote_plus(SECRET)}".encode()
    assert await world.post(shell, allowed, b"<{}>", "-H content-type:text/plain") == f"<{SECRET}>".encode()
    chunked = "-H transfer-encoding:chunked -H content-type:text/plain"
    assert await world.post(shell, allowed, b"<{}{}>", chunked) == f"<{SECRET}{SECRET}>".encode()
    said = await shell(f'curl -sS -F "key=$API_KEY" -F "file=@/etc/hosts" {url(allowed)}/echo/plain')
    assert SECRET.encode() in allowed.requests[-1].body and SECRET not in said


@bounded
async def test_long_bodies_stream_with_the_secret_in_them(world: World) -> None:
    shell, allowed = await world.shell(secret()), world.hosts.allowed
    program = "import os, sys\nfor _ in range(50_000): sys.stdout.write('x' * 50 + os.environ['API_KEY'])"
    await shell(f"cat > make.py <<'END'\n{program}\nEND")
    post = f"curl -sS -H content-type:text/plain -H Expect: --data-binary @- {url(allowed)}/echo/plain"
    for how in ("", " -H transfer-encoding:chunked"):
        said = await shell(f"python3 make.py | {post}{how} | sed '0,/text.plain/d' | tee got | wc -c; grep -c l1ve got")
        assert allowed.requests.pop().body == ("x" * 50 + SECRET).encode() * 50_000
        assert said.split()[1] == "0", said
    assert HELD in await shell("tail -c 100 got")


@bounded
async def test_a_host_that_the_credential_does_not_permit_gets_the_placeholder(world: World) -> None:
    shell, other = await world.shell(secret()), world.hosts.other
    await shell(f'curl -sS -H "x-key: $API_KEY" -d "$API_KEY" {url(other)}/echo/plain')
    assert other.requests[-1].headers["x-key"] == HELD and other.requests[-1].body == HELD.encode()
    shell = await world.shell(secret(hosts=("*.allowed.test",)))
    for apex in (world.hosts.allowed, other):
        await shell(f'curl -sS -H "x-key: $API_KEY" {url(apex)}/echo/plain')
        assert apex.requests[-1].headers["x-key"] == HELD
    shell = await world.shell(secret(hosts=("*.test",)))
    await shell(f'curl -sS -H "x-key: $API_KEY" {url(other)}/echo/plain')
    assert other.requests[-1].headers["x-key"] == SECRET


@bounded
async def test_without_tls_a_secret_is_not_sent(world: World) -> None:
    shell, plain = await world.shell(secret(hosts=None)), world.hosts.plain
    await shell(f'curl -sS -H "x-key: $API_KEY" -d "$API_KEY" {url(plain)}/echo/plain')
    assert plain.requests[-1].headers["x-key"] == HELD and plain.requests[-1].body == HELD.encode()


@bounded
async def test_a_location_that_is_switched_off_passes_the_placeholder(world: World) -> None:
    allowed = world.hosts.allowed
    for header, body in ((True, False), (False, True)):
        shell = await world.shell(secret(header=header, body=body))
        await shell(f'curl -sS -H "x-key: $API_KEY" -H content-type:text/plain -d "$API_KEY" {url(allowed)}/echo/plain')
        got = allowed.requests.pop()
        assert got.headers["x-key"] == (SECRET if header else HELD)
        assert got.body.decode() == (SECRET if body else HELD)


@bounded
async def test_paths_and_compressed_bodies_are_left_alone(world: World) -> None:
    shell, allowed = await world.shell(secret()), world.hosts.allowed
    await shell(f'curl -sS "{url(allowed)}/?key=$API_KEY"')
    assert allowed.seen[-1].endswith(f"?key={HELD}")
    await shell(
        'echo "$API_KEY" | gzip > body.gz; '
        f"curl -sS -H content-encoding:gzip --data-binary @body.gz {url(allowed)}/echo/plain; cat body.gz | base64 -w0"
    )
    assert allowed.requests[-1].body[:2] == b"\x1f\x8b"


@bounded
async def test_an_answer_that_repeats_the_secret_is_cleaned(world: World) -> None:
    shell, allowed = await world.shell(secret()), world.hosts.allowed
    plain = "-H content-type:text/plain"
    for how in ("pieces", "gzip"):
        said = await shell(f'curl -sS --compressed {plain} -d "<$API_KEY>" {url(allowed)}/echo/{how}')
        assert SECRET in allowed.requests[-1].body.decode()
        assert "accept-encoding: identity" in said and f"<{HELD}>" in said and "l1ve" not in said
    said = await shell(f'curl -sS {plain} -d "$API_KEY" {url(allowed)}/echo/base64')
    assert SECRET[3:-3] not in base64.b64decode(said + "==", validate=False).decode("latin-1")
    refused = await shell(f'curl -sSi {plain} -d "$API_KEY" {url(allowed)}/echo/br')
    assert "502" in refused and "x-corral-egress: unreadable_encoding" in refused and "l1ve" not in refused
    ranged = await shell(f'curl -sS -r 0-9 -H "x-key: $API_KEY" {url(allowed)}/echo/plain')
    assert "range" not in {name.lower() for name in allowed.requests[-1].headers} and "l1ve" not in ranged


@bounded
async def test_a_websocket_that_repeats_the_secret_is_masked(world: World) -> None:
    shell, allowed = await world.shell(secret("sk-123456789")), world.hosts.allowed
    program = (
        "import os, socket, ssl\n"
        "s = socket.create_connection(('127.0.0.1', 3128))\n"
        f"s.sendall(b'CONNECT {ALLOWED}:{allowed.port} HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n')\n"
        "assert b' 200 ' in s.recv(4096)\n"
        f"s = ssl.create_default_context().wrap_socket(s, server_hostname='{ALLOWED}')\n"
        f"s.sendall(b'GET /ws HTTP/1.1\\r\\nHost: {ALLOWED}:{allowed.port}\\r\\nConnection: Upgrade\\r\\n'\n"
        "          b'Upgrade: websocket\\r\\n\\r\\n')\n"
        "assert b' 101 ' in s.recv(4096)\n"
        "s.sendall(b'<sk-123456789>'); print(s.recv(4096).decode())\n"
    )
    assert await shell.python(program) == "<************>"


@bounded
async def test_a_secret_with_a_line_break_never_gets_into_a_header(world: World) -> None:
    shell, allowed = await world.shell(secret("first\r\nx-evil: 1")), world.hosts.allowed
    said = await shell(f'curl -sSi -H "x-key: $API_KEY" {url(allowed)}/echo/plain')
    assert "502" in said and "x-corral-egress: secret_not_a_header" in said and "evil" not in said
    assert allowed.requests == []


@bounded
async def test_a_host_that_says_nothing_is_an_error_and_the_proxy_goes_on(world: World) -> None:
    shell, allowed = await world.shell(secret()), world.hosts.allowed
    for _ in range(2):
        assert "x-corral-egress: broken" in await shell(f'curl -sSi -H "x-key: $API_KEY" {url(allowed)}/rude')
    assert await shell(f"curl -sS {url(allowed)}/") == f"hello from {ALLOWED}"


@bounded
async def test_a_secret_that_is_changed_or_withdrawn_counts_at_once_in_a_sandbox_that_runs(world: World) -> None:
    allowed = world.hosts.allowed
    for given, wanted in (((secret(),), SECRET), ((secret("sk-rotated"),), "sk-rotated"), ((), HELD)):
        shell = await world.shell(*given)
        await shell(f'curl -sS -H "x-key: $API_KEY" {url(allowed)}/echo/plain')
        assert allowed.requests[-1].headers["x-key"] == wanted


@bounded
async def test_a_placeholder_is_worth_nothing_in_another_session_or_after_its_own(world: World) -> None:
    allowed = world.hosts.allowed
    other = placeholder(b"another mark, twenty"), "sk-the-other-secret"
    one = await world.shell(secret())
    two = await world.shell(secret(other[1], placeholder=other[0]), session_id="sesn_2")
    for shell, held in ((two, HELD), (one, other[0])):
        await shell(f'curl -sS -H "x-key: {held}" -d "{held}" {url(allowed)}/echo/plain')
        got = allowed.requests.pop()
        assert got.headers["x-key"] == held and got.body == held.encode()
    await world.destroy("sesn_1")
    again = await world.shell(session_id="sesn_1")
    await again(f'curl -sS -H "x-key: {HELD}" {url(allowed)}/echo/plain')
    assert allowed.requests.pop().headers["x-key"] == HELD


@bounded
async def test_secrets_outlive_the_proxy_and_are_on_no_disk_and_in_no_core(world: World, root: Path) -> None:
    shell, allowed = await world.shell(secret()), world.hosts.allowed
    egress = world.server.sandboxes.egress
    for _ in range(2):
        await shell(f'curl -sS -H "x-key: $API_KEY" {url(allowed)}/echo/plain')
        assert allowed.requests.pop().headers["x-key"] == SECRET
        pid = egress.proxy_pid
        assert pid is not None
        assert what_the_host_shows(pid) == []
        os.kill(pid, signal.SIGKILL)
    assert files_with(root, b"l1ve") == []


def what_the_host_shows(pid: int) -> list[str]:
    """What is wrong with how this process keeps its memory to itself."""
    process = Path(f"/proc/{pid}")
    wrong: list[str] = []
    if (process / "mem").stat().st_uid != 0:
        wrong.append("its own user may look into its memory")
    limits = (process / "limits").read_text(encoding="ascii").splitlines()
    if next(line.split() for line in limits if line.startswith("Max core"))[4:6] != ["0", "0"]:
        wrong.append("a core of it may be written")
    if os.geteuid() == 0 and b"l1ve" in (process / "cmdline").read_bytes() + (process / "environ").read_bytes():
        wrong.append("it was started with a secret")
    return wrong


def files_with(root: Path, text: bytes) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file() and text in path.read_bytes()]
