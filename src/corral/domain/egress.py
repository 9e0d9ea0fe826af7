"""Which way out a sandbox has: pure decisions about names and ports.

Two questions are asked of every connection, and both must be answered with None. `EgressPolicy.refuses` is asked about
the name that the inside wrote (of a CONNECT, a URL, an SNI or a Host header); `Ground.refuses` (`address.py`) about
each address that the name resolved to, so that a name which is allowed cannot lead to a place that is not. The proxy
that asks is `sandboxes/egress`; nothing here resolves, connects or waits.

Source: the API's public documentation.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from corral.domain.address import Refusal
from corral.domain.environment import Limited, Recipe
from corral.domain.host import as_address, authority, normal, shown

DEFAULT_PORTS = (80, 443)


class Endpoint(msgspec.Struct, frozen=True):
    """A host that may be reached whatever the list of hosts says."""

    host: str
    """Normalised."""
    port: int | None = None
    """None for the ports of http and https."""
    private: bool = False
    """Whether its addresses may be private: the machine itself is set up to use it."""

    def covers(self, host: str, port: int) -> bool:
        """Whether it is the one that is meant."""
        return host == self.host and (port in DEFAULT_PORTS if self.port is None else port == self.port)


class EgressPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """What one sandbox may reach. Made by `policy_of`."""

    unrestricted: bool = False
    hosts: tuple[str, ...] = ()
    """Normalised names, exact or `*.` and a name; on any port."""
    endpoints: tuple[Endpoint, ...] = ()

    @property
    def reaches_nothing(self) -> bool:
        """Whether the sandbox needs no way out at all."""
        return not (self.unrestricted or self.hosts or self.endpoints)

    def refuses(self, host: str, port: int) -> Refusal | None:
        """The verdict on a name; `host` is normalised."""
        if self.unrestricted or self._listed(host) or any(each.covers(host, port) for each in self.endpoints):
            return None
        return Refusal(
            "host_not_allowed",
            f"{shown(host)}:{port} is not among the hosts that this session's environment allows. "
            "Whoever manages the environment can add it to `networking.allowed_hosts`.",
        )

    def reaches_some(self, entry: str) -> bool:
        """Whether any host is allowed that an entry means: normalised, exact or `*.` and a name; on whatever port."""
        if self.unrestricted or any(each.host == entry for each in self.endpoints) or self._listed(entry):
            return True
        if not entry.startswith("*."):
            return False
        below = (*self.hosts, *(each.host for each in self.endpoints))
        return any(each.endswith(entry[1:]) for each in below)

    def may_be_private(self, host: str, port: int) -> bool:
        """Whether this host's addresses may be private ones."""
        return any(each.private and each.covers(host, port) for each in self.endpoints)

    def _listed(self, host: str) -> bool:
        if host in self.hosts:
            return True
        if as_address(host) is not None:
            return False
        labels = host.split(".")
        return any(f"*.{'.'.join(labels[index:])}" in self.hosts for index in range(1, len(labels)))


def policy_of(recipe: Recipe, package_hosts: Iterable[Endpoint] = ()) -> EgressPolicy:
    """The policy of a sandbox. `package_hosts` are the package managers', as this machine is set up to use them."""
    networking = recipe.networking
    if not isinstance(networking, Limited):
        return EgressPolicy(unrestricted=True, endpoints=tuple(each for each in package_hosts if each.private))
    endpoints: list[Endpoint] = []
    if networking.allow_package_managers:
        endpoints += package_hosts
    if networking.allow_mcp_servers:
        endpoints += filter(None, map(endpoint, recipe.mcp_hosts))
    hosts = (pattern(host) for host in networking.allowed_hosts)
    return EgressPolicy(hosts=tuple(host for host in hosts if host is not None), endpoints=tuple(endpoints))


def installs(recipe: Recipe) -> bool:
    """Whether a sandbox may reach package managers."""
    return not isinstance(recipe.networking, Limited) or recipe.networking.allow_package_managers


def endpoint(text: str, *, private: bool = False) -> Endpoint | None:
    """`host` or `host:port` as an endpoint; None when it is neither."""
    split = authority(text)
    return None if split is None else Endpoint(split[0], split[1], private)


def pattern(text: str) -> str | None:
    """An entry of `allowed_hosts`, normalised."""
    star, name = ("*.", text[2:]) if text.startswith("*.") else ("", text)
    host = normal(name)
    return None if host is None or (star and as_address(host) is not None) else star + host
