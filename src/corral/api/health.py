"""`GET /healthz`: the server answers."""

from __future__ import annotations

from typing import Literal

import msgspec

from corral.api.call import Call


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """All is well."""

    status: Literal["ok"] = "ok"


async def show(call: Call) -> Health:
    """`GET /healthz`."""
    return Health()
