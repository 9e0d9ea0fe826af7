"""Which addresses may be connected to: one rule, and a policy for each of those who connect.

    for_sandboxes      what a sandbox asks its proxy for: the public internet, and what the operator adds
    for_pages          what `web_fetch` reads: the same
    for_tool_servers   MCP servers and the token endpoints of their credentials: private ones too, since tools on the
                       internal network are why people run this themselves; not what the operator denies

An address is judged in every way that it can be written: an IPv6 address also as the IPv4 addresses that it stands for.
Nothing here resolves or connects; `outbound/addresses.py` does.

Source: the API's public documentation; RFC 6890 (special addresses).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv6Network, ip_address, ip_network
from typing import NamedTuple

import msgspec

from corral.domain.host import Address, as_address, embedded, shown

METADATA = frozenset(map(ip_address, ("169.254.169.254", "168.63.129.16", "100.100.100.200", "fd00:ec2::254")))
"""Where clouds answer questions about a machine, credentials included; one of them looks like any public address."""

GIVEN_OUT = IPv6Network("2000::/3")
"""The unicast addresses of IPv6 that registries give out: https://www.iana.org/assignments/ipv6-address-space"""
STANDING_FOR_IPV4 = tuple(map(IPv6Network, ("64:ff9b::/96", "::ffff:0:0/96")))
"""Whose IPv4 addresses `embedded` finds."""


class Refusal(NamedTuple):
    """Why not. The reason is a label of metrics; the sentence is for the agent and names who can change it."""

    reason: str
    sentence: str


class Ground(msgspec.Struct, frozen=True, kw_only=True):
    """A policy: what the operator says about addresses."""

    allowed_private: tuple[str, ...] = ()
    """Networks as `10.0.0.0/8`, or single addresses."""
    denied: tuple[str, ...] = ()
    """The same; refused whatever else is allowed."""
    public_only: bool = True
    """Whether private addresses, and this machine's, need to be allowed."""
    own_ports: tuple[int, ...] = ()
    """Where this server itself listens."""
    section: str = "egress"
    """Of `corral.toml`, where the operator can change it."""

    def refuses(self, address: Address, port: int, *, own: bool, private_allowed: bool = False) -> Refusal | None:
        """The verdict on an address. `own` says that it is one of this machine's."""
        place = f"{shown(str(address))}:{port}"
        if own and port in self.own_ports:
            return Refusal("own_server", f"{place} is this server itself, and is refused.")
        faces = [address, *embedded(address)]
        if _any_within(faces, self.denied):
            denied = f"{place} is an address that `denied` under `[{self.section}]` in corral.toml rules out."
            return Refusal("denied_address", denied)
        if private_allowed or not self.public_only or _any_within(faces, self.allowed_private):
            return None
        operator = f" The operator can allow it with `allowed_private` under `[{self.section}]` in corral.toml."
        if any(each in METADATA for each in faces):
            return Refusal("metadata_address", f"{place} answers for the machine's cloud, and is refused.{operator}")
        if own:
            return Refusal("own_address", f"{place} is the machine that this server runs on.{operator}")
        if not all(map(_is_public, faces)):
            return Refusal("private_address", f"{place} is not an address of the public internet.{operator}")
        return None


def for_sandboxes(allowed_private: Sequence[str], own_ports: Sequence[int]) -> Ground:
    """What sandboxes may reach, where their environments allow the host."""
    return Ground(allowed_private=tuple(allowed_private), own_ports=tuple(own_ports))


def for_pages(allowed_private: Sequence[str], own_ports: Sequence[int]) -> Ground:
    """Where pages may come from."""
    return Ground(allowed_private=tuple(allowed_private), own_ports=tuple(own_ports), section="web")


def for_tool_servers(denied: Sequence[str]) -> Ground:
    """Where MCP servers and token endpoints may be."""
    return Ground(denied=tuple(denied), public_only=False, section="mcp")


def goes_direct(host: str, port: int, entry: str) -> bool:
    """Whether an entry of NO_PROXY is about a host: `*`, a name or a domain (with `.`, `*.` or neither), an address, a
    network as `10.0.0.0/8`, each also with a port. What curl, Python and Go understand; they differ, we take all."""
    name, _, given_port = entry.lower().rpartition(":")
    if not given_port.isdigit() or (":" in name and not name.startswith("[")):
        name, given_port = entry.lower(), ""
    address = as_address(host)
    if given_port and int(given_port) != port:
        return False
    if name == "*":
        return True
    if address is not None:
        try:
            return address in ip_network(name.strip("[]"), strict=False)
        except ValueError:
            return False
    domain = name.removeprefix("*").removeprefix(".")
    return bool(domain) and (host == domain or host.endswith(f".{domain}"))


def _is_public(address: Address) -> bool:
    """Whether it is of the public internet, or another way to write an address that is judged beside it.

    Of IPv6, only what has been given out: libraries call the rest global too, old site-local networks among it."""
    if address.version == 6 and address not in GIVEN_OUT:
        return any(address in network for network in STANDING_FOR_IPV4)
    return address.is_global and not address.is_multicast


def _any_within(addresses: Iterable[Address], networks: Sequence[str]) -> bool:
    within = [ip_network(text, strict=False) for text in networks]
    return any(address in network for address in addresses for network in within)
