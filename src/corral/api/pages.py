"""Pages of lists, and the cursors between them.

A cursor is opaque to clients: base64url of a small JSON array that says which list it belongs to, in which order and
under which filters, and behind which row to go on. Used with another list, order or filter it is refused, since it
would silently skip rows.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from datetime import datetime
from typing import Generic, TypeVar

import msgspec

from corral.api.periods import Moment
from corral.domain.query import Record, RecordsQuery
from corral.errors import Invalid
from corral.interfaces.records import Records

T = TypeVar("T")

CURSOR_CHARACTERS_MAX = 1_024


class Page(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """A page of a list."""

    data: tuple[T, ...]
    next_page: str | None


class Cursor(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """A place in a list."""

    kind: str
    """Which list."""
    binding: str
    """Digest of the order and filters."""
    at: Moment | None = None
    """Creation time of the row to go on behind, in lists that are sorted by it."""
    id: str = ""
    """Its id."""
    seq: int = 0
    """Its position, in histories."""
    queued: bool = False
    """Whether it waits to be processed; such events come last."""
    backwards: bool = False


def encode(cursor: Cursor) -> str:
    """What the client gets."""
    return base64.urlsafe_b64encode(msgspec.json.encode(cursor)).rstrip(b"=").decode()


def decode(page: str | None, kind: str, binding: str) -> Cursor | None:
    """The cursor that the client sent back; None for the first page. Raises `Invalid`."""
    if not page:
        return None
    try:
        if len(page) > CURSOR_CHARACTERS_MAX:
            raise ValueError("too long")
        raw = base64.b64decode(page + "=" * (-len(page) % 4), altchars=b"-_", validate=True)
        cursor = msgspec.json.decode(raw, type=Cursor)
    except (ValueError, msgspec.DecodeError) as error:
        raise Invalid("page: not a cursor of this list") from error
    if cursor.kind != kind:
        raise Invalid("page: not a cursor of this list")
    if cursor.binding != binding:
        raise Invalid("page: the cursor was made for another order or other filters; start again without `page`")
    if not -(2**62) < cursor.seq < 2**62:
        raise Invalid("page: not a cursor of this list")
    return cursor


def binding_of(query: msgspec.Struct) -> str:
    """A digest of everything in a list's query but `page` and `limit`."""
    fields = msgspec.structs.asdict(query)
    bound = {name: value for name, value in sorted(fields.items()) if name not in ("page", "limit")}
    return hashlib.sha256(msgspec.json.encode(bound)).hexdigest()[:16]


def beyond(cursor: Cursor | None) -> tuple[datetime, str] | None:
    """Behind which creation time and id to go on."""
    return None if cursor is None or cursor.at is None else (cursor.at, cursor.id)


async def of_records(
    records: Records, asked: RecordsQuery, read: Callable[[Record], T], *, page: str | None, binding: str
) -> Page[T]:
    """The page of the records `asked` for that the cursor `page` leads to. Raises `Invalid`."""
    cursor = decode(page, asked.kind, binding)
    # One more than is shown tells whether there is another page.
    found = await records.page(msgspec.structs.replace(asked, limit=asked.limit + 1, beyond=beyond(cursor)))
    shown = found[: asked.limit]
    following = None
    if len(found) > len(shown):
        following = encode(Cursor(kind=asked.kind, binding=binding, at=shown[-1].created_at, id=shown[-1].id))
    return Page(data=tuple(map(read, shown)), next_page=following)
