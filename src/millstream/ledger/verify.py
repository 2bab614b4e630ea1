"""Verification: the sums of hours, and what exporters were given, are those of the rows, proven by adding up
the rows again.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from typing import Any, TypeAlias

import sqlalchemy as sa
from msgspec import Struct
from sqlalchemy.engine import Connection

from millstream import schema
from millstream.database import snapshot
from millstream.ledger import exports, reports
from millstream.ledger.periods import HOUR
from millstream.schema import DELIVERED, SUMS, delivered, hours, key_hours, streams, user_hours

_HOURS_AT_ONCE = 24

_IS_SETTLED = streams.c.status != "running"

_Sums: TypeAlias = dict[int, Counter[str]]  # by hour
_Conditions: TypeAlias = tuple[sa.ColumnElement[bool], ...]


class Difference(Struct, frozen=True):
    """A sum that is not that of its rows. ``hour`` is in Unix seconds; ``of`` names what the streams have in
    common, and ``what`` the sum. Those of the table ``exports`` are what ``of`` an exporter has delivered, or
    has still to deliver.
    """

    table: str
    hour: int
    of: dict[str, Any]
    what: str
    rows: int
    sums: int


class Verified(Struct, frozen=True):
    """What was looked at, in Unix seconds: hours before ``since`` have lost rows to retention. Of the streams
    that were settled since there has been one of the ``exporters``, it was given each.
    """

    since: int = 0
    until: int = 0
    streams: int = 0
    exporters: list[str] = []
    differences: list[Difference] = []

    def and_then(self, later: "Verified") -> "Verified":
        """Both, of which the ``later`` begins where this one ends, or after that."""
        return Verified(
            self.since or later.since,
            later.until,
            self.streams + later.streams,
            later.exporters,
            [*self.differences, *later.differences],
        )


def day(
    connection: Connection, since: float | None, until: float | None, exporters: Collection[str] = ()
) -> Verified:
    """Adds up the settled rows of the first whole hours, of a day at most, in which there are any of [since,
    until). ``until`` of what it returns is 0 where there are none.
    """
    snapshot(connection)
    start, last = _range(connection, since, until)
    end = min(start + _HOURS_AT_ONCE, last)
    begun = _beginnings(connection, exporters)
    if start >= end:
        return Verified(exporters=list(begun))
    counted = 0
    found: list[Difference] = []
    for table in (hours, key_hours, user_hours):
        rows, sums = _of_rows(connection, table, start, end), _of_sums(connection, table, start, end)
        found += _differences(table, rows, sums)
        if table is hours:
            counted = sum(values[0] for values in rows.values())
    for exporter, began in begun.items():
        found += _not_exported(connection, exporter, began, start, end)
    return Verified(start * HOUR, end * HOUR, counted, list(begun), found)


def _range(connection: Connection, since: float | None, until: float | None) -> tuple[int, int]:
    """The whole hours to look at: from the first one to before the last one."""
    at, hour = streams.c.created_at, hours.c.hour
    ends = [
        connection.scalar(query)
        for end in (sa.func.min, sa.func.max)
        for query in (sa.select(end(at)).where(_IS_SETTLED), sa.select(end(hour)))
    ]
    oldest, first, newest, last = ends
    if oldest is None or newest is None:  # there is no row that could prove anything
        return 0, 0
    row_first, row_last = int(oldest // HOUR), int(newest // HOUR)
    first = row_first if first is None else min(first, row_first)
    last = max(row_last, -1 if last is None else last) + 1
    if since is not None:
        first = max(first, math.floor(since / HOUR))
    if until is not None:
        last = min(last, math.ceil(until / HOUR))
    lost = _last_lost(connection, first, row_last)
    return first if lost is None else lost + 1, last


def _last_lost(connection: Connection, first: int, row_last: int) -> int | None:
    """The newest hour from ``first`` on that has lost rows to retention, if there is one.

    Rows are deleted the oldest first, but for those that have still to be exported: before the oldest of the
    others, any may be gone.
    """
    waiting = schema.exports
    oldest = (
        sa.select(streams.c.created_at)
        .outerjoin(waiting, waiting.c.stream_id == streams.c.id)
        .where(_IS_SETTLED, waiting.c.stream_id.is_(None))
        .order_by(streams.c.created_at)
        .limit(1)
    )
    found = connection.scalar(oldest)
    border = row_last if found is None else int(found // HOUR)
    hour = reports.hour_of_row(connection)
    at = streams.c.created_at
    counts = (
        sa.select(hour, sa.func.count())
        .where(_IS_SETTLED, at >= first * HOUR, at < (border + 1) * HOUR)
        .group_by(sa.literal_column("1"))
    )
    rows = {row[0]: row[1] for row in connection.execute(counts)}
    sums = (
        sa.select(hours.c.hour, sa.func.sum(hours.c.streams))
        .where(hours.c.hour >= first, hours.c.hour <= border)
        .group_by(hours.c.hour)
    )
    lost = [row[0] for row in connection.execute(sums) if row[1] > rows.get(row[0], 0)]
    return max(lost, default=None)


def _names(table: sa.Table) -> list[str]:
    return [str(column.name) for column in table.primary_key if column.name != "shard"]


def _of_sums(connection: Connection, table: sa.Table, start: int, end: int) -> dict[Any, list[int]]:
    names = [table.c[name] for name in _names(table)]
    query = (
        sa.select(*names, *reports.added_up({name: table.c[name] for name in SUMS}))
        .where(table.c.hour >= start, table.c.hour < end)
        .group_by(*names)
    )
    return _read(connection, query, len(names), SUMS)


def _of_rows(connection: Connection, table: sa.Table, start: int, end: int) -> dict[Any, list[int]]:
    of_row: dict[str, sa.ColumnElement[Any]] = {column.name: column for column in streams.columns}
    of_row |= {"hour": reports.hour_of_row(connection), "user": sa.func.coalesce(streams.c.user, "")}
    names = [of_row[name] for name in _names(table)]
    query = (
        sa.select(*names, *reports.added_up({name: reports.of_row(name) for name in SUMS}))
        .where(
            streams.c.created_at >= start * HOUR,
            streams.c.created_at < end * HOUR,
            _IS_SETTLED,
        )
        .group_by(*(sa.literal_column(str(place)) for place in range(1, len(names) + 1)))
    )
    return _read(connection, query, len(names), SUMS)


def _read(
    connection: Connection, query: sa.Select[Any], names: int, sums: Sequence[str]
) -> dict[Any, list[int]]:
    """What is ``added_up`` in a query behind so many names, by these."""
    rows = connection.execute(query)
    return {tuple(row[:names]): reports.sums_of(sums, row[names:]) for row in rows}


def _differences(
    table: sa.Table, rows: dict[Any, list[int]], sums: dict[Any, list[int]]
) -> Iterator[Difference]:
    nothing = [0] * len(SUMS)
    for key in sorted(rows.keys() | sums.keys()):
        of = dict(zip(_names(table), key, strict=True))
        hour = of.pop("hour") * HOUR
        for what, row, kept in zip(SUMS, rows.get(key, nothing), sums.get(key, nothing), strict=True):
            if row != kept:
                yield Difference(str(table.name), hour, of, what, row, kept)


# -- exports ---------------------------------------------------------------------------------------


def _not_exported(
    connection: Connection, exporter: str, since: float, start: int, end: int
) -> Iterator[Difference]:
    created = (streams.c.created_at >= start * HOUR, streams.c.created_at < end * HOUR)
    rows = _to_export(connection, since, created)
    sent = _delivered(connection, exporter, start, end)
    for hour, sums in _waiting(connection, exporter, since, created):
        sent[hour].update(sums)
    for hour in sorted(rows.keys() | sent.keys()):
        for what in DELIVERED:
            row, kept = rows[hour][what], sent[hour][what]
            if row != kept:
                yield Difference("exports", hour * HOUR, {"exporter": exporter}, what, row, kept)


def _beginnings(connection: Connection, names: Collection[str]) -> dict[str, float]:
    """Since when there has been which exporter."""
    table = schema.exporters
    query = sa.select(table.c.name, table.c.since).where(table.c.name.in_(names)).order_by(table.c.name)
    return {row.name: row.since for row in connection.execute(query)}


def _to_export(connection: Connection, since: float, created: _Conditions) -> _Sums:
    """What was settled from ``since`` on."""
    amounts = reports.added_up({name: streams.c[name] for name in exports.AMOUNTS})
    query = (
        sa.select(reports.hour_of_row(connection), sa.func.count(), *amounts)
        .where(*created, _IS_SETTLED, streams.c.ended_at >= since, exports.IS_BILLED)
        .group_by(sa.literal_column("1"))
    )
    return _by_hour(connection, query)


def _delivered(connection: Connection, exporter: str, start: int, end: int) -> _Sums:
    query = (
        sa.select(delivered.c.hour, *reports.added_up({name: delivered.c[name] for name in DELIVERED}))
        .where(delivered.c.exporter == exporter, delivered.c.hour >= start, delivered.c.hour < end)
        .group_by(delivered.c.hour)
    )
    return _by_hour(connection, query)


def _by_hour(connection: Connection, query: sa.Select[Any]) -> _Sums:
    found: _Sums = defaultdict(Counter)
    for (hour,), values in _read(connection, query, 1, DELIVERED).items():
        found[hour].update(dict(zip(DELIVERED, values, strict=True)))
    return found


def _waiting(
    connection: Connection, exporter: str, since: float, created: _Conditions
) -> Iterator[tuple[int, dict[str, int]]]:
    """What each export that has still to be delivered adds, and to which hour."""
    waiting = schema.exports
    query = (
        sa.select(waiting.c.is_correction, waiting.c.replaced, streams)
        .join(streams, streams.c.id == waiting.c.stream_id)
        .where(waiting.c.exporter == exporter, waiting.c.settled_at >= since, *created)
        .execution_options(yield_per=1000)
    )
    for row in connection.execute(query).mappings():
        amounts = exports.amounts_of(row, row)
        yield int(row["created_at"] // HOUR), exports.sums_of(amounts, is_correction=row["is_correction"])
