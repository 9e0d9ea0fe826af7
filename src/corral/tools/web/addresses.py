"""Where a name leads, as far as that is allowed.

A name is looked up once and every address is judged by `domain/egress.py`; whoever connects does so to one of these
addresses and asks no resolver again, so a name that changes in between gains nothing.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from ipaddress import ip_address

import anyio
import anyio.to_thread
import structlog

from corral.domain.egress import Ground
from corral.domain.host import Address, as_address, embedded, normal
from corral.domain.url import Url
from corral.tools.web.failure import WebFailure

log = structlog.get_logger(__name__)

ADDRESSES_MAX = 3
"""Tried one after another."""
LOOKUPS_MAX = 16


class Addresses:
    """See the module."""

    def __init__(self, ground: Ground, hosts: Mapping[str, str], *, seconds_max: float) -> None:
        self._ground, self._seconds_max = ground, seconds_max
        self._hosts = {normal(name) or name: address for name, address in hosts.items()}
        self._limiter = anyio.CapacityLimiter(LOOKUPS_MAX)

    async def of(self, url: Url) -> Sequence[Address]:
        """At least one address. Raises `WebFailure`."""
        literal = as_address(self._hosts.get(url.host, url.host))
        found = [literal] if literal else await self._looked_up(url.host)
        verdicts = [self._ground.refuses(each, url.port, own=_is_own(each)) for each in found]
        permitted = [each for each, verdict in zip(found, verdicts, strict=True) if verdict is None]
        if not permitted:
            reasons = sorted({verdict.reason for verdict in verdicts if verdict is not None})
            log.info("web_address_refused", host=url.host, reasons=reasons)
            # Not which address: what a name means inside this network is nobody's business outside it.
            raise WebFailure("url_not_allowed", f"{url.host} is not on the public internet. Pages there are refused.")
        return permitted[:ADDRESSES_MAX]

    async def _looked_up(self, host: str) -> Sequence[Address]:
        try:
            with anyio.fail_after(self._seconds_max):
                found = await anyio.to_thread.run_sync(_lookup, host, limiter=self._limiter, abandon_on_cancel=True)
        except TimeoutError as error:
            raise WebFailure("url_not_accessible", f"The address of {host} was not found in time.") from error
        except (OSError, UnicodeError) as error:
            raise WebFailure("url_not_accessible", f"There is no host {host}.") from error
        if not found:
            raise WebFailure("url_not_accessible", f"There is no host {host}.")
        return found


def _lookup(host: str) -> list[Address]:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    texts = dict.fromkeys(str(address[0]).partition("%")[0] for *_, address in found)
    return [ip_address(text) for text in texts]


def _is_own(address: Address) -> bool:
    """Whether what is sent there would come from there: the address is this machine's. Nothing is sent."""
    faces = [address, *embedded(address)]
    return any(each.is_loopback or each.is_unspecified or _comes_from(each) for each in faces)


def _comes_from(address: Address) -> bool:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((str(address), 9))
        except OSError:
            return False
        return ip_address(str(probe.getsockname()[0]).partition("%")[0]) == address
