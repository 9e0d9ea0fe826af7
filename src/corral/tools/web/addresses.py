"""Where a name leads, as far as that is allowed.

A name is looked up once and every address is judged by `domain/address.py`; whoever connects does so to one of these
addresses and asks no resolver again, so a name that changes in between gains nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import anyio
import structlog

from corral.domain.address import Ground
from corral.domain.host import Address, as_address, normal
from corral.domain.url import Url
from corral.outbound.addresses import addresses_of, is_own
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
        verdicts = [self._ground.refuses(each, url.port, own=is_own(each)) for each in found]
        permitted = [each for each, verdict in zip(found, verdicts, strict=True) if verdict is None]
        if not permitted:
            reasons = sorted({verdict.reason for verdict in verdicts if verdict is not None})
            log.info("web_address_refused", host=url.host, reasons=reasons)
            # Not which address: what a name means inside this network is nobody's business outside it.
            raise WebFailure("url_not_allowed", f"{url.host} is not on the public internet. Pages there are refused.")
        return permitted[:ADDRESSES_MAX]

    async def _looked_up(self, host: str) -> Sequence[Address]:
        try:
            return await addresses_of(host, seconds_max=self._seconds_max, limiter=self._limiter)
        except TimeoutError as error:
            raise WebFailure("url_not_accessible", f"The address of {host} was not found in time.") from error
        except OSError as error:
            raise WebFailure("url_not_accessible", f"There is no host {host}.") from error
