"""Ids as the wire has them: a prefix that names the kind, then 26 characters that sort by time.

The body is a ULID (48 bits of milliseconds, 80 random bits, Crockford base 32), so keyset pages over ids follow
creation. An id is opaque to clients, and Corral accepts any id it has stored, whatever its form (`corral import`).
"""

from __future__ import annotations

import secrets
import time
from functools import lru_cache
from typing import Literal, TypeAlias

Prefix: TypeAlias = Literal[
    "agent", "env", "sesn", "sevt", "sthr", "sesrsc", "apikey", "wrkspc", "req", "outc", "file", "vlt", "vcrd"
]

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_PAIRS = [first + second for first in _ALPHABET for second in _ALPHABET]
"""Ten bits at a time: ids are made for every event."""


def new_id(prefix: Prefix) -> str:
    """A fresh id, for example `sesn_01JDA3…`."""
    random = secrets.token_bytes(10)
    high, low = int.from_bytes(random[:5], "big"), int.from_bytes(random[5:], "big")
    return (
        f"{prefix}_{_moment(time.time_ns() // 1_000_000)}"
        f"{_PAIRS[high >> 30]}{_PAIRS[high >> 20 & 1023]}{_PAIRS[high >> 10 & 1023]}{_PAIRS[high & 1023]}"
        f"{_PAIRS[low >> 30]}{_PAIRS[low >> 20 & 1023]}{_PAIRS[low >> 10 & 1023]}{_PAIRS[low & 1023]}"
    )


@lru_cache(maxsize=1)
def _moment(milliseconds: int) -> str:
    """The first ten characters. Many ids are made in a millisecond."""
    return "".join([_PAIRS[milliseconds >> shift & 1023] for shift in range(40, -1, -10)])
