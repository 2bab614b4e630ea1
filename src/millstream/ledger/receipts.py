"""Receipts: pages of them.

A cursor names the last row of the page before: rows that come or go in the meantime move no page.
"""

import base64
import binascii

import msgspec
import sqlalchemy as sa
from msgspec import Struct
from sqlalchemy.engine import Connection

from millstream.errors import InvalidRequest
from millstream.ledger.rows import Receipt, Status, to_receipt
from millstream.schema import streams

MOST = 200  # of a page
_NO_CURSOR = "the cursor is none that a page has given"


class Wanted(Struct, frozen=True):
    """Which streams: those that are all of this. ``owner_id`` is who may see them, with all of its end users
    where it is a key. Times are in Unix seconds, of when they were created: in [since, until).
    """

    owner_id: str | None = None
    status: Status | None = None
    key_id: str | None = None
    model: str | None = None
    user: str | None = None
    since: float | None = None
    until: float | None = None


class Page(Struct, frozen=True):
    """``next_cursor`` is None on the last one."""

    data: list[Receipt]
    next_cursor: str | None


def page(
    connection: Connection, wanted: Wanted, cursor: str | None, size: int, *, oldest_first: bool = False
) -> Page:
    """The newest first, unless it is ``oldest_first``. Raises ``InvalidRequest`` where the cursor is none of
    ours.
    """
    conditions = _conditions(wanted)
    place = (streams.c.created_at, streams.c.id)
    if cursor is not None:
        last, here = sa.tuple_(*map(sa.literal, _read(cursor))), sa.tuple_(*place)
        conditions.append(here > last if oldest_first else here < last)
    order = [column.asc() if oldest_first else column.desc() for column in place]
    query = sa.select(streams).where(*conditions).order_by(*order).limit(size + 1)
    found = [to_receipt(row) for row in connection.execute(query).mappings()]
    more = len(found) > size
    return Page(found[:size], _cursor(found[size - 1]) if more else None)


def _conditions(wanted: Wanted) -> list[sa.ColumnElement[bool]]:
    columns = streams.c
    equal = {"status": columns.status, "key_id": columns.key_id, "model": columns.model, "user": columns.user}
    conditions = [
        column == getattr(wanted, name) for name, column in equal.items() if getattr(wanted, name) is not None
    ]
    if wanted.status == "running":
        conditions.append(columns.worker_id > "")  # there is an index of these
    if wanted.owner_id is not None:
        # A key also has what was started with its tokens.
        key_id, _, user = wanted.owner_id.partition("/")
        conditions.append(columns.key_id == key_id)
        if user:
            conditions.append(columns.owner_id == wanted.owner_id)
    if wanted.since is not None:
        conditions.append(columns.created_at >= wanted.since)
    if wanted.until is not None:
        conditions.append(columns.created_at < wanted.until)
    return conditions


def _cursor(last: Receipt) -> str:
    place = msgspec.json.encode((last.created_at, last.stream_id))
    return base64.urlsafe_b64encode(place).decode().rstrip("=")


def _read(cursor: str) -> tuple[float, str]:
    try:
        place = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        created_at, stream_id = msgspec.json.decode(place, type=tuple[float, str])
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(_NO_CURSOR) from error
    if not stream_id.isprintable():  # which no database would take
        raise InvalidRequest(_NO_CURSOR)
    return created_at, stream_id
