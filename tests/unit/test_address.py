"""One rule about addresses, and what it comes to for each of those who connect."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from corral.config_sections import McpSettings
from corral.domain.address import Ground, for_pages, for_sandboxes, for_tool_servers, goes_direct
from corral.outbound.addresses import is_own

pytestmark = pytest.mark.requirement("F022", "F030", "F035")
OPERATOR = ("10.20.0.0/16",)
POLICIES = {
    "sandboxes": for_sandboxes(OPERATOR, (8700,)),
    "pages": for_pages(OPERATOR, (8700,)),
    "tool servers": for_tool_servers(McpSettings().denied),
}
VERDICTS = [
    ("1.1.1.1", "", "", ""),
    ("10.20.1.1", "", "", ""),
    ("::ffff:10.20.1.1", "", "", ""),
    ("10.1.1.1", "private_address", "private_address", ""),
    ("127.0.0.1", "own_address", "own_address", ""),
    ("::1", "own_address", "own_address", ""),
    ("fc00::1", "private_address", "private_address", ""),
    ("224.0.0.1", "private_address", "private_address", ""),
    ("64:ff9b::a00:1", "private_address", "private_address", ""),
    ("169.254.169.254", "metadata_address", "metadata_address", "denied_address"),
    ("::ffff:169.254.169.254", "metadata_address", "metadata_address", "denied_address"),
    ("64:ff9b::a9fe:a9fe", "metadata_address", "metadata_address", "denied_address"),
    ("168.63.129.16", "metadata_address", "metadata_address", "denied_address"),
    ("100.100.100.200", "metadata_address", "metadata_address", "denied_address"),
    ("fd00:ec2::254", "metadata_address", "metadata_address", "denied_address"),
    ("169.254.1.1", "private_address", "private_address", "denied_address"),
]


def reason(ground: Ground, text: str, port: int = 443) -> str:
    address = ip_address(text)
    refusal = ground.refuses(address, port, own=is_own(address))
    return "" if refusal is None else refusal.reason


@pytest.mark.parametrize(("text", "sandboxes", "pages", "tool_servers"), VERDICTS)
def test_what_each_of_them_may_reach(text: str, sandboxes: str, pages: str, tool_servers: str) -> None:
    assert [reason(ground, text) for ground in POLICIES.values()] == [sandboxes, pages, tool_servers]


def test_this_server_is_closed_to_sandboxes_and_pages_wherever_it_listens() -> None:
    open_ground = [for_sandboxes(["127.0.0.0/8"], [8700]), for_pages(["127.0.0.0/8"], [8700])]
    assert [reason(ground, "127.0.0.1", 8700) for ground in open_ground] == ["own_server"] * 2
    assert [reason(ground, "127.0.0.1", 8701) for ground in open_ground] == ["", ""]


def test_what_is_denied_is_so_whatever_else_is_allowed() -> None:
    ground = Ground(allowed_private=("10.0.0.0/8",), denied=("10.1.0.0/16",))
    assert (reason(ground, "10.2.0.1"), reason(ground, "10.1.0.1")) == ("", "denied_address")
    refusal = ground.refuses(ip_address("::ffff:10.1.0.1"), 80, own=False, private_allowed=True)
    assert refusal is not None and refusal.reason == "denied_address"
    assert reason(for_tool_servers(["1.1.1.1"]), "1.1.1.1") == "denied_address"


def test_a_refusal_names_the_section_where_the_operator_can_change_it() -> None:
    for name, section in (("sandboxes", "egress"), ("pages", "web"), ("tool servers", "mcp")):
        refusal = POLICIES[name].refuses(ip_address("169.254.169.254"), 80, own=False)
        assert refusal is not None and f"under `[{section}]` in corral.toml" in refusal.sentence


@pytest.mark.parametrize(
    ("entry", "yes", "no"),
    [
        ("*", ["a.test", "10.0.0.1", "fd00::1"], []),
        ("a.test", ["a.test", "b.a.test"], ["ba.test", "a.test.evil.test"]),
        (".a.test", ["a.test", "b.a.test"], ["ba.test"]),
        ("*.a.test", ["c.b.a.test"], ["ba.test"]),
        ("A.Test", ["a.test"], []),
        ("a.test:443", ["a.test"], ["b.test"]),
        ("a.test:80", [], ["a.test"]),
        ("10.0.0.0/8", ["10.255.0.1"], ["11.0.0.1", "a.test"]),
        ("10.0.0.1", ["10.0.0.1"], ["10.0.0.2"]),
        ("fd00::/8", ["fd00::1"], ["fe80::1", "10.0.0.1"]),
        ("[fd00::1]:443", ["fd00::1"], ["fd00::2"]),
        ("fd00::1", ["fd00::1"], ["fd00::2"]),
        ("", [], ["a.test", "10.0.0.1"]),
        (".", [], ["a.test"]),
        (":443", [], ["a.test"]),
    ],
)
def test_entries_of_no_proxy(entry: str, yes: list[str], no: list[str]) -> None:
    assert [host for host in yes if not goes_direct(host, 443, entry)] == []
    assert [host for host in no if goes_direct(host, 443, entry)] == []
