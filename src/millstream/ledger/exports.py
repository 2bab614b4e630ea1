"""Exports: settled streams on their way to exporters.

An export is a row that is written in the transaction that settles its stream, and deleted when the receiver
has it: what crashes in between is sent again, under the same id. A correction is an export of its own with
the difference, since a receiver that adds up has the first numbers already.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import msgspec
import sqlalchemy as sa
from msgspec import Struct
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Connection

from millstream.database import Database
from millstream.driver import DriverConnection, Prepared
from millstream.ledger.periods import HOUR
from millstream.schema import DELIVERED, delivered, exporters, exports, keys, streams
from millstream.usage import SUMMED_KINDS

# What an export counts. Costs are in picodollars, and None where no price is known.
AMOUNTS = (*SUMMED_KINDS, "cost_picodollars", "price_picodollars")

MAX_PAUSE_SECONDS = 3600.0  # between two attempts
MAX_ERROR = 256

# A test key is never billed, nor what was recorded for one.
IS_BILLED = sa.and_(~streams.c.is_test, ~sa.exists().where(keys.c.id == streams.c.key_id, keys.c.is_test))
_IS_RUNNING = streams.c.status == sa.literal_column("'running'")
_IS_TO_BE_CORRECTED = sa.and_(
    streams.c.status == sa.literal_column("'interrupted'"), streams.c.corrected_at.is_(None)
)
# It was exported, as far as is known: what was settled before the exporter was there was not.
_IS_OF_EXPORTER = ~sa.exists().where(
    exporters.c.name == sa.bindparam("exporter", type_=sa.String), exporters.c.since > streams.c.ended_at
)
_THIS = streams.c.id == sa.bindparam("stream_id", type_=sa.String)


def _json_of_amounts() -> sa.ColumnElement[str]:
    """The row's amounts, as the database writes them."""
    text: sa.ColumnElement[str] = sa.literal_column("'{'", sa.Text)
    for number, name in enumerate(AMOUNTS):
        value = sa.func.coalesce(sa.cast(streams.c[name], sa.Text), sa.literal_column("'null'"))
        text = text + sa.literal_column(f"'{',' if number else ''}\"{name}\":'", sa.Text) + value
    return text + sa.literal_column("'}'", sa.Text)


def _insert(
    *conditions: sa.ColumnElement[bool], corrects: bool = False, replaced: sa.ColumnElement[Any] | None = None
) -> sa.Insert:
    """An export of the stream, where the conditions hold. One that is there already stays."""
    columns = {
        "exporter": sa.bindparam("exporter", type_=sa.String),
        "stream_id": streams.c.id,
        "is_correction": sa.true() if corrects else sa.false(),
        "settled_at": sa.bindparam("settled_at", type_=sa.Float),
        "due_at": sa.bindparam("settled_at", type_=sa.Float),
        "attempts": sa.literal_column("0"),
        "replaced": sa.null() if replaced is None else replaced,
    }
    query = sa.select(*columns.values()).where(_THIS, IS_BILLED, *conditions)
    insert = postgresql.insert(exports).from_select(list(columns), query, include_defaults=False)
    return insert.on_conflict_do_nothing()


_SETTLED = Prepared(_insert(_IS_RUNNING), ())
_RECORDED = _insert()
_CORRECTED = Prepared(
    _insert(_IS_TO_BE_CORRECTED, _IS_OF_EXPORTER, corrects=True, replaced=_json_of_amounts()), ()
)
# What has not left yet keeps its numbers: the correction says the rest.
_KEEP = Prepared(
    sa.update(exports)
    .where(
        exports.c.stream_id == sa.bindparam("stream_id"),
        exports.c.is_correction == sa.false(),
        sa.exists().where(_THIS, _IS_TO_BE_CORRECTED),
    )
    .values(replaced=sa.select(_json_of_amounts()).where(_THIS).scalar_subquery()),
    (),
)


def before_settling(
    connection: DriverConnection, exporters: Sequence[str], rows: Iterable[Mapping[str, Any]]
) -> None:
    """Exports those of the rows that run, which are the ones that their settlement will change."""
    _run(_SETTLED, connection, exporters, rows)


def before_correcting(
    connection: DriverConnection, exporters: Sequence[str], rows: Sequence[Mapping[str, Any]]
) -> None:
    """Exports the difference of those of the rows that will be corrected."""
    if exporters:
        connection.run(_KEEP, rows)
    _run(_CORRECTED, connection, exporters, rows)


def after_recording(connection: Connection, exporters: Sequence[str], row: Mapping[str, Any]) -> None:
    """Exports a row that was settled when it was inserted."""
    if exporters:
        connection.execute(_RECORDED, _parameters(exporters, [row]))


def _run(
    statement: Prepared,
    connection: DriverConnection,
    exporters: Sequence[str],
    rows: Iterable[Mapping[str, Any]],
) -> None:
    if exporters:
        connection.run(statement, _parameters(exporters, rows))


def _parameters(exporters: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"exporter": name, "stream_id": row["stream_id"], "settled_at": row["ended_at"]}
        for row in rows
        for name in exporters
    ]


class Export(Struct, frozen=True):
    """A settled stream, or the correction of one, that is leased to be sent. ``sent_at`` is since when it may
    have arrived, by an earlier attempt. Times are in Unix seconds.
    """

    stream_id: str
    is_correction: bool
    created_at: float
    settled_at: float
    attempts: int  # with this one
    sent_at: float | None
    leased_until: float
    amounts: dict[str, int | None]
    key_id: str
    owner: str | None  # of the key
    user: str | None
    model: str
    provider: str
    status: str
    usage_source: str

    @property
    def id(self) -> str:
        """The same at every attempt, and of no other export."""
        return f"{self.stream_id}.correction" if self.is_correction else self.stream_id


class Kept(Struct, frozen=True):
    """An export that was not delivered. It is due again at ``due_at``, or waits for an operator where that is
    None. ``is_attempt`` is False where nothing was sent this time.
    """

    export: Export
    due_at: float | None
    error: str | None
    may_have_arrived: bool
    is_attempt: bool = True


class ExporterState(Struct, frozen=True):
    """The exports of one exporter. ``lag_seconds`` is the age of the oldest that waits."""

    exporter: str
    waiting: int = 0
    failed: int = 0
    lag_seconds: float = 0.0
    last_error: str | None = None


_DUE = (
    sa.select(exports.c.stream_id, exports.c.is_correction)
    .where(exports.c.exporter == sa.bindparam("name"), exports.c.due_at <= sa.bindparam("now"))
    .order_by(exports.c.due_at)
)
_THIS_EXPORT = (
    exports.c.exporter == sa.bindparam("name"),
    exports.c.stream_id == sa.bindparam("of_stream"),
    exports.c.is_correction == sa.bindparam("corrects"),
)
_BEGIN = postgresql.insert(exporters).on_conflict_do_nothing()
_DELIVER = postgresql.insert(delivered)
_DELIVER = _DELIVER.on_conflict_do_update(
    index_elements=["exporter", "hour"],
    set_={name: delivered.c[name] + _DELIVER.excluded[name] for name in DELIVERED},
)
_KEEP_WAITING = sa.update(exports).where(*_THIS_EXPORT, exports.c.due_at == sa.bindparam("leased_until"))


class Exports:
    """The exports of a database. ``clock`` is in Unix seconds. Everything here raises ``DatabaseAway``."""

    def __init__(self, db: Database, clock: Callable[[], float] = time.time) -> None:
        self._db = db
        self.clock = clock

    async def begin(self, exporter: str) -> None:
        """Notes since when the exporter has been there, if that is not known yet."""
        values = {"name": exporter, "since": self.clock()}
        await self._db.write(lambda connection: connection.execute(_BEGIN, values))

    async def are_due(self, exporter: str) -> bool:
        """Whether there is something to lease."""
        query = _DUE.limit(1)
        values = {"name": exporter, "now": self.clock()}
        return await self._db.read(lambda connection: connection.execute(query, values).first() is not None)

    async def lease(self, exporter: str, most: int, seconds: float) -> list[Export]:
        """The exports that have been due for longest. Nobody else is given them for ``seconds``."""
        now = self.clock()
        due = _DUE.limit(most).with_for_update(skip_locked=True).cte("due")
        update = (
            sa.update(exports)
            .where(
                exports.c.exporter == exporter,
                sa.tuple_(exports.c.stream_id, exports.c.is_correction).in_(sa.select(due)),
            )
            .values(
                due_at=now + seconds,
                attempts=exports.c.attempts + 1,
                sent_at=sa.func.coalesce(exports.c.sent_at, now),
            )
            .returning(
                exports.c.stream_id,
                exports.c.is_correction,
                exports.c.settled_at,
                exports.c.attempts,
                exports.c.sent_at,
                exports.c.replaced,
            )
        )

        def lease(connection: Connection) -> list[Export]:
            leased = connection.execute(update, {"name": exporter, "now": now}).mappings().all()
            ids = {row["stream_id"] for row in leased}
            of_key = keys.c.id == streams.c.key_id
            query = sa.select(streams, keys.c.owner).outerjoin(keys, of_key).where(streams.c.id.in_(ids))
            found = {row["id"]: row for row in connection.execute(query).mappings()}
            return [
                _export(row, found[row["stream_id"]], now, now + seconds)
                for row in sorted(leased, key=lambda row: cast(float, row["settled_at"]))
            ]

        return await self._db.write(lease)

    async def finish(self, exporter: str, done: Sequence[Export], kept: Sequence[Kept]) -> None:
        """Deletes what was delivered and adds it to the sums, and notes why the others were not. Of these,
        one that somebody else has leased by now is theirs.
        """

        def key(export: Export) -> dict[str, Any]:
            return {"name": exporter, "of_stream": export.stream_id, "corrects": export.is_correction}

        def finish(connection: Connection) -> None:
            _deliver(connection, exporter, done)
            for one in kept:
                export = one.export
                values = {
                    "due_at": one.due_at,
                    "attempts": export.attempts if one.is_attempt else export.attempts - 1,
                    "sent_at": export.sent_at or (self.clock() if one.may_have_arrived else None),
                    **({} if one.error is None else {"last_error": one.error[:MAX_ERROR]}),
                }
                update = _KEEP_WAITING.values(**values)
                connection.execute(update, key(export) | {"leased_until": export.leased_until})

        await self._db.write(finish)

    async def mend_clock(self, exporter: str) -> None:
        """Makes due what is due later than any pause lasts: the clock was set back since."""
        now = self.clock()
        far = sa.update(exports).where(
            exports.c.exporter == exporter, exports.c.due_at > now + MAX_PAUSE_SECONDS * 1.5
        )
        await self._db.write(lambda connection: connection.execute(far.values(due_at=now)))

    async def retry(self, exporter: str) -> int:
        """Makes due what the receiver has refused, and returns how many those are."""
        failed = sa.update(exports).where(exports.c.exporter == exporter, exports.c.due_at.is_(None))
        again = failed.values(due_at=self.clock(), attempts=0, sent_at=None)
        return await self._db.write(lambda connection: connection.execute(again).rowcount)

    async def drop(self, exporter: str) -> int:
        """Forgets the exporter: deletes what waits for it or was refused, and what is known of what it has
        delivered. Returns how many exports those were.
        """

        def drop(connection: Connection) -> int:
            connection.execute(sa.delete(exporters).where(exporters.c.name == exporter))
            connection.execute(sa.delete(delivered).where(delivered.c.exporter == exporter))
            return connection.execute(sa.delete(exports).where(exports.c.exporter == exporter)).rowcount

        return await self._db.write(drop)

    async def states(self, exporter: str | None = None) -> list[ExporterState]:
        """Of one exporter, or of every one, by name: those that something waits for."""
        waits = exports.c.due_at.is_not(None)
        counts = (
            sa.select(
                exports.c.exporter,
                sa.func.count(exports.c.due_at).label("waiting"),
                (sa.func.count() - sa.func.count(exports.c.due_at)).label("failed"),
                sa.func.min(sa.case((waits, exports.c.settled_at))).label("oldest"),
            )
            .where(sa.true() if exporter is None else exports.c.exporter == exporter)
            .group_by(exports.c.exporter)
            .order_by(exports.c.exporter)
        )

        def states(connection: Connection) -> list[ExporterState]:
            return [
                ExporterState(
                    row["exporter"],
                    row["waiting"],
                    row["failed"],
                    0.0 if row["oldest"] is None else max(self.clock() - row["oldest"], 0.0),
                    connection.scalar(_last_error(row["exporter"])),
                )
                for row in connection.execute(counts).mappings().all()
            ]

        return await self._db.report(states)


def _deliver(connection: Connection, exporter: str, done: Sequence[Export]) -> None:
    """Deletes them, and adds those that nobody else has deleted to the sums."""
    by_key = {(export.stream_id, export.is_correction): export for export in done}
    if not by_key:
        return
    columns = (exports.c.stream_id, exports.c.is_correction)
    these = (exports.c.exporter == exporter, sa.tuple_(*columns).in_(list(by_key)))
    deleted = connection.execute(sa.delete(exports).where(*these).returning(*columns)).all()
    since = connection.scalar(sa.select(exporters.c.since).where(exporters.c.name == exporter))
    if since is None:
        return
    sums: dict[int, Counter[str]] = defaultdict(Counter)  # by hour
    for stream_id, is_correction in deleted:
        export = by_key[stream_id, bool(is_correction)]
        if export.settled_at >= since:
            sums[int(export.created_at // HOUR)].update(sums_of(export.amounts, is_correction=is_correction))
    nothing = dict.fromkeys(DELIVERED, 0)
    for hour, added in sums.items():
        connection.execute(_DELIVER, {"exporter": exporter, "hour": hour, **nothing, **added})


def sums_of(amounts: Mapping[str, int | None], *, is_correction: bool) -> dict[str, int]:
    """What an export adds to the sums."""
    known = {name: amount or 0 for name, amount in amounts.items()}
    return {"streams": 0 if is_correction else 1, **known}


def _last_error(exporter: str) -> sa.Select[Any]:
    """Of the newest that has one."""
    return (
        sa.select(exports.c.last_error)
        .where(exports.c.exporter == exporter, exports.c.last_error.is_not(None))
        .order_by(exports.c.settled_at.desc())
        .limit(1)
    )


def _export(row: Mapping[Any, Any], stream: Mapping[Any, Any], now: float, leased_until: float) -> Export:
    return Export(
        row["stream_id"],
        row["is_correction"],
        stream["created_at"],
        row["settled_at"],
        row["attempts"],
        None if row["sent_at"] == now else row["sent_at"],
        leased_until,
        amounts_of(row, stream),
        stream["key_id"],
        stream["owner"],
        stream["user"],
        stream["model"],
        stream["provider"],
        stream["status"],
        stream["usage_source"],
    )


def amounts_of(row: Mapping[Any, Any], stream: Mapping[Any, Any]) -> dict[str, int | None]:
    """What this export counts: the row's numbers, or those before or beyond its correction."""
    now = _due({name: stream[name] for name in AMOUNTS})
    if row["replaced"] is None:
        return now
    before = _due(msgspec.json.decode(row["replaced"], type=dict[str, int | None]))
    if not row["is_correction"]:
        return before
    return {name: _difference(now[name], before[name]) for name in AMOUNTS}


def _due(amounts: dict[str, int | None]) -> dict[str, int | None]:
    """The same, but that no token costs nothing, whether its price is known or not."""
    if any(amounts[kind] for kind in SUMMED_KINDS):
        return amounts
    return {name: amount or 0 for name, amount in amounts.items()}


def _difference(now: int | None, before: int | None) -> int | None:
    return None if now is None or before is None else now - before
