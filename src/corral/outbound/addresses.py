"""Names looked up, once: whoever asks judges the addresses and connects to one of them, and asks no resolver again."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from ipaddress import ip_address

import anyio
import anyio.to_thread

from corral.domain.host import Address, embedded


async def addresses_of(host: str, *, seconds_max: float | None, limiter: anyio.CapacityLimiter) -> Sequence[Address]:
    """At least one address, each once. Raises `TimeoutError`, and `OSError` when there is none."""
    try:
        with anyio.fail_after(seconds_max):
            found = await anyio.to_thread.run_sync(_looked_up, host, limiter=limiter, abandon_on_cancel=True)
    except UnicodeError as error:
        raise OSError("the name cannot be written as names of hosts are") from error
    if not found:
        raise OSError("the name has no address")
    return found


def _looked_up(host: str) -> list[Address]:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    texts = dict.fromkeys(str(address[0]).partition("%")[0] for *_, address in found)
    return [ip_address(text) for text in texts]


def is_own(address: Address) -> bool:
    """Whether an address is this machine's: what would be sent there would come from there. Nothing is sent."""
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
