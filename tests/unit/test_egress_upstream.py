"""Where the egress proxy connects: to the addresses that it checked, and past the operator's own proxy if told so."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator
from pathlib import Path

import anyio
import h11
import pytest
from anyio.abc import SocketAttribute

from corral.config_sections import EgressSettings
from corral.domain.address import Ground, Refusal
from corral.domain.egress import EgressPolicy
from corral.sandboxes.egress.authority import Authority, make_authority
from corral.sandboxes.egress.exchange import Exchange, Rules
from corral.sandboxes.egress.line import Limits
from corral.sandboxes.egress.rewriting import Rewriting
from corral.sandboxes.egress.secrets import Secrets
from corral.sandboxes.egress.upstream import Origin, Outside, Turned

SECONDS_MAX = 60
NAME = "rebinding.test"
HERE, METADATA, PRIVATE = "127.0.0.1", "169.254.169.254", "10.1.2.3"
ANYBODY = EgressPolicy(hosts=(NAME,))
LIMITS = Limits(65_536, 30.0)


class Resolver:
    """Stands in for this machine's resolver: answers differently each time, and counts."""

    def __init__(self, *answers: Iterable[str]) -> None:
        self.answers: Iterator[Iterable[str]] = iter(answers)
        self.asked = 0

    def __call__(self, host: str, *_: object, **__: object) -> list[tuple[object, ...]]:
        assert host == NAME
        self.asked += 1
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in next(self.answers)]


def outside(certificates: Path) -> Outside:
    return Outside(
        Ground(allowed_private=(f"{HERE}/32",)), {}, trusted=str(certificates), proxy=None, direct=(), seconds_max=30.0
    )


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    path = tmp_path / "trusted.pem"
    path.write_text(make_authority().certificate, encoding="ascii")
    return path


@pytest.mark.anyio
@pytest.mark.requirement("F035")
async def test_a_name_that_changes_its_address_is_looked_up_once_and_reached_where_it_was_checked(
    certificates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolver = Resolver([HERE], [METADATA], [METADATA])
    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    told: list[str] = []

    def report(kind: str, reason: str, host: str) -> None:
        assert (reason, host) == ("", "")
        told.append(kind)

    with anyio.fail_after(SECONDS_MAX), socket.create_server((HERE, 0)) as host:
        port = host.getsockname()[1]
        rules = Rules(
            ANYBODY,
            Authority(make_authority(), tmp_path),
            outside(certificates),
            Rewriting(()),
            Secrets(),
            LIMITS,
            anyio.CapacityLimiter(1),
            report,
        )
        near, far = socket.socketpair()
        async with anyio.create_task_group() as tasks, await anyio.abc.UNIXSocketStream.from_socket(near) as client:
            tasks.start_soon(Exchange(rules).attend, await anyio.abc.UNIXSocketStream.from_socket(far))
            place = f"{NAME}:{port}"
            for target in (f"CONNECT {place}", "GET /one", "GET /two"):
                await client.send(f"{target} HTTP/1.1\r\nHost: {place}\r\n\r\n".encode())
                if not target.startswith("CONNECT"):
                    await anyio.to_thread.run_sync(answer, host)
                assert b" 200 " in await client.receive()
            await client.send_eof()
    assert resolver.asked == 1
    assert told == ["connected", "connected"]


def answer(host: socket.socket) -> None:
    """One request, after which a new connection is needed."""
    connection, _ = host.accept()
    with connection:
        connection.recv(65_536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


@pytest.mark.anyio
@pytest.mark.requirement("F035")
async def test_of_several_addresses_only_those_that_are_allowed_are_tried(
    certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", Resolver([METADATA, HERE, PRIVATE], [PRIVATE, METADATA]))
    way, limiter = outside(certificates), anyio.CapacityLimiter(1)
    with anyio.fail_after(SECONDS_MAX), socket.create_server((HERE, 0)) as host:
        origin = Origin(NAME, host.getsockname()[1], False)
        found = await way.addresses(origin, ANYBODY, limiter)
        assert list(map(str, found)) == [HERE]
        upstream = await way.connect(origin, found, LIMITS)
        assert upstream.line.stream.extra(SocketAttribute.remote_address) == (HERE, origin.port)
        assert isinstance(upstream.line.http, h11.Connection)
        await upstream.line.stream.aclose()
        with pytest.raises(Turned) as caught:
            await way.addresses(origin, ANYBODY, limiter)
    assert isinstance(caught.value.refusal, Refusal)
    assert caught.value.refusal.reason == "private_address"


def test_networks_that_are_none_are_refused_where_they_are_set() -> None:
    with pytest.raises(ValueError, match="not-a-network"):
        EgressSettings(allowed_private=("not-a-network",))
