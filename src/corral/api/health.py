"""`GET /healthz`: the server answers.

It says only that the process serves requests, which is what load balancers and start-up scripts ask. Whether this
machine can run sessions is `corral doctor`'s answer.
"""

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
