"""The rules of the way out: names in every spelling, addresses in every disguise."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.domain.address import Ground
from corral.domain.egress import EgressPolicy, Endpoint, endpoint, policy_of
from corral.domain.environment import SEALED, Limited, Recipe
from corral.domain.host import as_address, authority, embedded, normal

pytestmark = pytest.mark.requirement("F035")
PRIVATE = [
    "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "100.100.100.200",
    "168.63.129.16", "0.0.0.0", "224.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1", "::1", "::", "fe80::1",
    "fc00::1", "fd00:ec2::254", "ff02::1", "::ffff:10.0.0.1", "64:ff9b::a00:1", "64:ff9b:1::7f00:1", "2002:7f00:1::",
    "2001:0:7f00:1::", "::127.0.0.1", "2001:db8::1", "fec0::1", "::ffff:0:7f00:1", "1::1", "5f00::1", "4000::1",
]  # fmt: skip
LABELS = st.from_regex(r"[a-z][a-z0-9]{0,10}", fullmatch=True)
NAMES = st.lists(LABELS, min_size=2, max_size=4).map(".".join)


def limited(*hosts: str) -> EgressPolicy:
    return policy_of(Recipe(networking=Limited(allowed_hosts=hosts)))


@pytest.mark.parametrize("text", PRIVATE)
def test_addresses_that_are_not_public_are_refused_unless_the_operator_allows_them(text: str) -> None:
    address = ip_address(text)
    refusal = Ground().refuses(address, 80, own=False)
    assert refusal is not None and "corral.toml" in refusal.sentence
    assert Ground(allowed_private=(text,)).refuses(address, 80, own=False) is None


@pytest.mark.parametrize(
    "text", ["1.1.1.1", "93.184.215.14", "2606:4700:4700::1111", "64:ff9b::101:101", "::ffff:1.1.1.1"]
)
def test_public_addresses_are_not_refused(text: str) -> None:
    assert Ground().refuses(ip_address(text), 443, own=False) is None


def test_the_servers_own_ports_stay_closed_even_where_its_address_is_allowed() -> None:
    ground = Ground(allowed_private=("127.0.0.0/8",), own_ports=(8700,))
    loopback = ip_address("127.0.0.1")
    assert ground.refuses(loopback, 9000, own=True) is None
    refusal = ground.refuses(loopback, 8700, own=True)
    assert refusal is not None and refusal.reason == "own_server"
    public = Ground().refuses(ip_address("1.1.1.1"), 80, own=True)
    assert public is not None and public.reason == "own_address"


@given(st.integers(0, 2**32 - 1))
def test_an_ipv4_address_is_judged_alike_in_every_ipv6_disguise(number: int) -> None:
    plain = IPv4Address(number)
    verdict = Ground().refuses(plain, 80, own=False)
    mapped = IPv6Address(f"::ffff:{plain}")
    assert plain in embedded(mapped)
    if verdict is not None:
        for disguise in (mapped, IPv6Address(int(IPv6Address("64:ff9b::")) + number)):
            assert Ground().refuses(disguise, 80, own=False) is not None


@given(st.integers(0, 2**32 - 1))
def test_every_notation_of_an_ipv4_address_is_the_same_host(number: int) -> None:
    plain = str(IPv4Address(number))
    parts = plain.split(".")
    spellings = [
        str(number), hex(number), f"0{number:o}", ".".join(hex(int(part)) for part in parts),
        ".".join(f"0{int(part):o}" for part in parts), f"{parts[0]}.{number & 0xFFFFFF}", f"{plain}.",
        f"[::ffff:{plain}]",
    ]  # fmt: skip
    assert {normal(spelling) for spelling in spellings} == {plain}
    assert as_address(plain) is not None


@given(st.text(max_size=40))
def test_normalising_never_fails_and_is_done_once(text: str) -> None:
    once = normal(text)
    if once is not None:
        assert normal(once) == once
        assert once.isascii() and not set(once) & set(" /@#?\\%\r\n\t\0")


@given(st.text(max_size=40))
def test_an_authority_is_understood_or_refused(text: str) -> None:
    split = authority(text)
    if split is not None:
        assert normal(split[0]) == split[0]


@pytest.mark.parametrize(
    "text",
    [
        "", ".", "a b", "user@allowed.test", "allowed.test/", "allowed.test#@evil.test", "allowed.test:0",
        "allowed.test:99999", "allowed.test:", "[::1", "[fe80::1%25eth0]", "fe80::1", "a..b", "-a.test", "1.2.3.4.5",
        "999.1.1.1", "0x100000000", "08.1.1.1", "allowed.test\\.evil.test", "allowed.test%2eevil.test", "a\r\nb",
        "[1.2.3.4]",
    ],
)  # fmt: skip
def test_what_is_no_host_and_port_is_refused(text: str) -> None:
    assert authority(text) is None


@given(NAMES)
def test_an_exact_host_admits_itself_in_any_spelling_and_nothing_else(name: str) -> None:
    policy = limited(name)
    for spelling in (name, name.upper(), f"{name}."):
        assert policy.refuses(normal(spelling) or "", 443) is None
    for other in (f"x.{name}", f"x{name}", f"{name}x", name.split(".", 1)[1]):
        assert policy.refuses(normal(other) or "", 443) is not None


@given(NAMES, LABELS)
def test_a_wildcard_admits_what_is_below_it_and_not_the_name_itself(name: str, label: str) -> None:
    policy = limited(f"*.{name}")
    assert policy.refuses(f"{label}.{name}", 443) is None
    assert policy.refuses(f"{label}.{label}.{name}", 443) is None
    assert policy.refuses(name, 443) is not None
    assert policy.refuses(f"{label}{name}", 443) is not None


def test_names_of_other_scripts_are_compared_in_punycode() -> None:
    assert limited("xn--bcher-kva.example").refuses(normal("BÜCHER.example") or "", 443) is None


def test_an_address_is_reached_by_an_allow_list_only_when_it_is_on_it() -> None:
    assert limited("*.test").refuses("1.1.1.1", 443) is not None
    assert limited("1.1.1.1").refuses("1.1.1.1", 443) is None


def test_a_refusal_says_what_to_change() -> None:
    refusal = limited("a.test").refuses("b.test", 443)
    assert refusal is not None and refusal.reason == "host_not_allowed"
    assert "b.test:443" in refusal.sentence and "allowed_hosts" in refusal.sentence


@pytest.mark.requirement("F037")
def test_hosts_of_mcp_servers_are_open_where_the_environment_says_so() -> None:
    hosts = ("mcp.test", "other.test:8443")
    closed = policy_of(Recipe(networking=Limited(), mcp_hosts=hosts))
    opened = policy_of(Recipe(networking=Limited(allow_mcp_servers=True), mcp_hosts=hosts))
    assert closed.reaches_nothing and closed.refuses("mcp.test", 443) is not None
    assert opened.refuses("mcp.test", 443) is None and opened.refuses("other.test", 8443) is None
    assert opened.refuses("other.test", 443) is not None and opened.refuses("mcp.test", 22) is not None


@pytest.mark.requirement("F036")
def test_hosts_of_package_managers_are_open_where_the_environment_says_so() -> None:
    managers = (Endpoint("pypi.org"), Endpoint("10.0.0.9", 3141, private=True))
    recipe = Recipe(networking=Limited(allow_package_managers=True))
    policy = policy_of(recipe, managers)
    assert policy.refuses("pypi.org", 443) is None and not policy.may_be_private("pypi.org", 443)
    assert policy.refuses("10.0.0.9", 3141) is None and policy.may_be_private("10.0.0.9", 3141)
    assert policy_of(SEALED, managers).reaches_nothing
    assert policy_of(Recipe(), managers).may_be_private("10.0.0.9", 3141)


def test_an_endpoint_is_written_as_in_a_url() -> None:
    assert endpoint("[2001:DB8::1]:8080") == Endpoint("2001:db8::1", 8080)
    assert endpoint("A.test.") == Endpoint("a.test")
    assert endpoint("a b") is None
