"""Hosts in the one form in which they are compared, and what an address is another way to write.

Source: RFC 6890 (special addresses), the WHATWG URL standard (odd IPv4 forms).
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address

NAME_CHARACTERS_MAX = 253
LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
NUMBER = re.compile(r"0[xX][0-9a-fA-F]*|[0-9]+")
NAT64 = tuple(IPv6Network(text) for text in ("64:ff9b::/96", "64:ff9b:1::/48"))


def authority(text: str) -> tuple[str, int | None] | None:
    """`host`, `host:port`, `[v6]` or `[v6]:port` as a normalised host and a port; None when it is none of these.

    User names, paths, spaces and zones are refused rather than cut off: two programs that cut differently is how a
    proxy is led astray."""
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^\[\]:@/?#\\%\s]+)(?::([0-9]{1,5}))?", text)
    host = normal(match[1]) if match else None
    if match is None or host is None:
        return None
    port = int(match[2]) if match[2] else None
    return None if port is not None and not 0 < port < 65_536 else (host, port)


def normal(host: str) -> str | None:
    """A host in the one form in which hosts are compared: lower case, no dot at the end, punycode, plain addresses."""
    if host.startswith("[") and host.endswith("]"):
        return _parsed(host[1:-1], only_v6=True)
    if ":" in host:
        return _parsed(host, only_v6=True)
    name = host.removesuffix(".").lower()
    if not name.isascii():
        try:
            name = name.encode("idna").decode("ascii").lower()
        except UnicodeError:
            return None
    if NUMBER.fullmatch(name.rpartition(".")[2]):
        return _old_ipv4(name)
    fits = len(name) <= NAME_CHARACTERS_MAX and all(LABEL.fullmatch(label) for label in name.split("."))
    return name if fits else None


def as_address(host: str) -> Address | None:
    """The address that a normalised host is, if it is one."""
    try:
        return ip_address(host)
    except ValueError:
        return None


def shown(host: str) -> str:
    """A host as it stands before a port."""
    return f"[{host}]" if ":" in host else host


def embedded(address: Address) -> list[Address]:
    """The IPv4 addresses that an IPv6 address is another way to write or to reach."""
    if isinstance(address, IPv4Address):
        return []
    found: list[Address | None] = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if any(address in network for network in NAT64):
        found.append(IPv4Address(int(address) & 0xFFFFFFFF))
    if int(address) >> 32 == 0 and int(address) > 1:
        # The old way to write an IPv4 address.
        found.append(IPv4Address(int(address)))
    return [each for each in found if each is not None]


def _parsed(text: str, *, only_v6: bool) -> str | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if only_v6 and isinstance(address, IPv4Address):
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return None if "%" in text else str(mapped or address)


def _old_ipv4(name: str) -> str | None:
    """Dotted, short, octal and hexadecimal forms, as the C library reads them; None for what it would not."""
    parts = name.split(".")
    if len(parts) > 4 or not all(NUMBER.fullmatch(part) for part in parts):
        return None
    try:
        numbers = [_number(part) for part in parts]
    except ValueError:
        return None
    *firsts, last = numbers
    if any(number > 255 for number in firsts) or last >= 256 ** (5 - len(parts)):
        return None
    value = last + sum(number << 8 * (3 - index) for index, number in enumerate(firsts))
    return str(IPv4Address(value))


def _number(text: str) -> int:
    if text[:2] in ("0x", "0X"):
        return int(text[2:] or "0", 16)
    return int(text, 8) if len(text) > 1 and text.startswith("0") else int(text)
