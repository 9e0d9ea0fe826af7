"""`created_at[gt]`, `[gte]`, `[lt]`, `[lte]`: what these query parameters mean together.

The stores know one bound at each end, inclusive or not; a client may send two, and then the stricter holds.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, NamedTuple, TypeAlias

import msgspec

Moment: TypeAlias = Annotated[datetime, msgspec.Meta(tz=True)]

RENAMED = {f"created_at_{name}": f"created_at[{name}]" for name in ("gt", "gte", "lt", "lte")}
"""Names of the fields in query strings."""


class Bound(NamedTuple):
    """One end of a period."""

    at: datetime | None
    inclusive: bool


def after(gt: datetime | None, gte: datetime | None) -> Bound:
    """The stricter of the two."""
    if gt is not None and (gte is None or gt >= gte):
        return Bound(gt, False)
    return Bound(gte, True)


def before(lt: datetime | None, lte: datetime | None) -> Bound:
    """The stricter of the two."""
    if lt is not None and (lte is None or lt <= lte):
        return Bound(lt, False)
    return Bound(lte, True)
