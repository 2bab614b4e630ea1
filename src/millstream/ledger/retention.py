"""Retention: rows that are old enough are deleted, a few at a time; the sums of their hours stay.

On PostgreSQL, sums of hours that are over are made one row of what connections have written apart.
"""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine import Connection

from millstream.ledger.periods import HOUR
from millstream.schema import SUMS, exports, hours, key_hours, streams, user_hours

DELETED_AT_ONCE = 500


def delete(connection: Connection, before: float) -> int:
    """Deletes settled rows that were created before the hour of ``before``, the oldest first, so many at
    once; returns how many.
    """
    oldest = (
        sa.select(streams.c.id)
        .where(
            streams.c.created_at < before // HOUR * HOUR,
            streams.c.status != "running",
            ~sa.exists().where(exports.c.stream_id == streams.c.id),  # which are not sent yet
        )
        .order_by(streams.c.created_at)
        .limit(DELETED_AT_ONCE)
    )
    return connection.execute(sa.delete(streams).where(streams.c.id.in_(oldest))).rowcount


def fold(connection: Connection, hour: int) -> None:
    """Makes one row of the shards of each sum of that hour. Whatever is added meanwhile, or later, counts."""
    if connection.dialect.name == "sqlite":
        return  # which has one writer, and one shard
    for table in (hours, key_hours, user_hours):
        _fold(connection, table, hour)


def _fold(connection: Connection, table: sa.Table, hour: int) -> None:
    names = [column.name for column in table.primary_key if column.name != "shard"]
    apart = sa.delete(table).where(table.c.hour == hour, table.c.shard != 0).returning(*table.c).cte("apart")
    together: sa.Select[Any] = sa.select(
        *(apart.c[name] for name in names),
        sa.literal_column("0"),
        *(sa.func.sum(apart.c[name]) for name in SUMS),
    ).group_by(*(apart.c[name] for name in names))
    adds = insert(table).from_select([*names, "shard", *SUMS], together)
    added = {name: table.c[name] + adds.excluded[name] for name in SUMS}
    connection.execute(adds.on_conflict_do_update(index_elements=[*names, "shard"], set_=added))
