"""Ids as the wire has them: a prefix that names the kind, then 26 characters that sort by time.

The body is a ULID (48 bits of milliseconds, 80 random bits, Crockford base 32), so keyset pages over ids follow
creation. An id is opaque to clients, and Corral accepts any id it has stored, whatever its form (`corral import`).
"""

from __future__ import annotations

import secrets
import time
from typing import Literal, TypeAlias

Prefix: TypeAlias = Literal[
    "agent", "env", "sesn", "sevt", "sthr", "sesrsc", "apikey", "wrkspc", "req", "outc", "file", "vlt", "vcrd"
]

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_PAIRS = [first + second for first in _ALPHABET for second in _ALPHABET]
"""Ten bits at a time: ids are made for every event."""


def new_id(prefix: Prefix) -> str:
    """A fresh id, for example `sesn_01JDA3…`."""
    number = (time.time_ns() // 1_000_000 << 80) | secrets.randbits(80)
    return prefix + "_" + "".join([_PAIRS[number >> shift & 1023] for shift in range(120, -1, -10)])
