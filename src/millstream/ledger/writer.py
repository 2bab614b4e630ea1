"""The writer: rows that come up at any time -> one transaction after the other.

A transaction takes whatever has come up during the one before: under load it carries many rows. While the
database is away openings are refused at once, so nothing starts that could not be billed and nothing of it is
kept; settlements wait.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextvars import copy_context
from functools import partial
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from millstream.database import Database, DatabaseAway, Prepared, streams
from millstream.errors import Overloaded, TooManyStreams, safe_traceback
from millstream.ledger import exports
from millstream.ledger.rows import REPORTED_COLUMNS, USAGE_COLUMNS

log = logging.getLogger("millstream.ledger")

_RETRY_SECONDS = 0.5
# Openings are written at once. Settlements and checkpoints wait so long, to share a transaction.
_GATHER_SECONDS = 0.02

# Errors of an opening that the caller is told; all others become ``Overloaded``.
_REFUSED = (TooManyStreams, sa.exc.IntegrityError)

_ENDED = (
    *("finish_reason", "error_code", "cost_picodollars", "first_event_at", "ended_at", "corrected_at"),
    *REPORTED_COLUMNS,
)
_RUNNING = sa.update(streams).where(
    streams.c.id == sa.bindparam("stream_id"), streams.c.status == sa.literal_column("'running'")
)
_OPEN = Prepared(sa.insert(streams), [c.name for c in streams.columns if c.name not in _ENDED])
_CHECKPOINT = Prepared(_RUNNING, USAGE_COLUMNS)
_SETTLE = Prepared(
    _RUNNING,
    [
        "status",
        "finish_reason",
        "error_code",
        *USAGE_COLUMNS,
        *REPORTED_COLUMNS,
        "first_event_at",
        "ended_at",
        "corrected_at",
        "worker_id",
    ],
)
# The numbers of a stream's own producer, after others had ended it from its last checkpoint: once.
_CORRECT = Prepared(
    sa.update(streams).where(
        streams.c.id == sa.bindparam("stream_id"),
        streams.c.status == sa.literal_column("'interrupted'"),
        streams.c.corrected_at.is_(None),
    ),
    [*USAGE_COLUMNS, *REPORTED_COLUMNS, "first_event_at", "corrected_at"],
)
# What is written where there is nothing to write, to see whether it would be.
_PROBE = sa.update(streams).where(sa.false()).values(status="running")
# Two workers that insert the same values here wait for each other.
_LOCKED = ("owner_id", "idempotency_key")


def not_opened() -> Overloaded:
    return Overloaded("the ledger cannot be written; nothing was started")


class _Row:
    """A row on its way to the database, and who waits for it."""

    def __init__(
        self, values: dict[str, Any], *, max_open: int | None = None, corrects: bool = False
    ) -> None:
        self.values = values
        self.max_open = max_open
        self.corrects = corrects
        self.written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.error: Exception | None = None

    def resolve(self, error: Exception | None = None) -> None:
        if self.written.done():
            return
        if error is None:
            self.written.set_result(None)
        else:
            self.written.set_exception(error)


class _Transaction:
    """The rows that one transaction writes, with what ``exporters`` are to be sent of them."""

    def __init__(self, exporters: Sequence[str]) -> None:
        self.exporters = exporters
        self.openings: list[_Row] = []
        self.settlements: list[_Row] = []
        self.checkpoints: dict[str, dict[str, Any]] = {}

    def __bool__(self) -> bool:
        return bool(self.openings or self.settlements or self.checkpoints)

    def write(self, db: Database) -> None:
        """Writes all rows in one transaction. If the database refuses one of them, writes them one by one and
        keeps the error of each. Raises ``DatabaseAway``.
        """
        try:
            db.run(self._write_all)
        except DatabaseAway:
            raise
        except Exception:
            self._write_singly(db)

    def _write_all(self, connection: Connection) -> None:
        # In one order everywhere: two workers that wait for each other's rows would be a deadlock.
        self.openings.sort(key=lambda row: [row.values[name] or "" for name in _LOCKED])
        self.settlements.sort(key=lambda row: row.values["stream_id"])
        if not self:
            connection.execute(_PROBE)
        _insert(connection, self.openings)
        _note(connection, [row for _, row in sorted(self.checkpoints.items())])
        _update(connection, self.settlements, self.exporters)

    def _write_singly(self, db: Database) -> None:
        for row in self.openings:
            _try(db, partial(_insert, rows=[row]), row)
        for checkpoint in self.checkpoints.values():
            _try(db, partial(_note, rows=[checkpoint]))
        for row in self.settlements:
            _try(db, partial(_update, rows=[row], exporters=self.exporters), row)


def _try(db: Database, write: Callable[[Connection], None], row: _Row | None = None) -> None:
    try:
        db.run(write)
    except DatabaseAway:
        raise
    except Exception as error:
        if row is not None:
            row.error = error


def _insert(connection: Connection, rows: Sequence[_Row]) -> None:
    for row in rows:
        row.error = None
    _check_open(connection, [row for row in rows if row.max_open is not None])
    if admitted := [row.values for row in rows if row.error is None]:
        _OPEN.run(connection, admitted)


def _note(connection: Connection, rows: Sequence[dict[str, Any]]) -> None:
    if rows:
        _CHECKPOINT.run(connection, rows)


def _update(connection: Connection, rows: Sequence[_Row], exporters: Sequence[str]) -> None:
    if not rows:
        return
    exports.before_settling(connection, exporters, [row.values for row in rows])
    settled = _SETTLE.run(connection, [row.values for row in rows])
    if settled < len(rows) and (late := [row.values for row in rows if row.corrects]):
        exports.before_correcting(connection, exporters, late)
        _CORRECT.run(connection, [values | {"corrected_at": values["ended_at"]} for values in late])


def _check_open(connection: Connection, rows: Sequence[_Row]) -> None:
    """Refuses those of the rows that would be more than their owner may have open; the others go on."""
    if not rows:
        return
    owners = sorted({row.values["owner_id"] for row in rows})
    if connection.dialect.name == "postgresql":  # SQLite has one writer anyway
        for owner_id in owners:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtext(owner_id))))
    query = (
        sa.select(streams.c.owner_id, sa.func.count().label("open"))
        .where(streams.c.owner_id.in_(owners), streams.c.worker_id.is_not(None))
        .group_by(streams.c.owner_id)
    )
    are_open = {row.owner_id: int(row.open) for row in connection.execute(query)}
    for row in rows:
        owner_id, most = row.values["owner_id"], row.max_open or 0
        if are_open.get(owner_id, 0) >= most:
            row.error = TooManyStreams(most)
        else:
            are_open[owner_id] = are_open.get(owner_id, 0) + 1


class Writer:
    """Writes the rows of one worker, one transaction at a time."""

    def __init__(self, db: Database, exporters: Sequence[str] = ()) -> None:
        self._db = db
        self._exporters = exporters
        self._next = _Transaction(exporters)
        self._writing = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._timer: asyncio.TimerHandle | None = None
        self._crashed = False
        self.is_away = False  # the last transaction could not be had
        self._context = copy_context()  # for what is of no stream, though one of them is what starts it

    @property
    def busy(self) -> bool:
        """Whether a transaction is running."""
        return self._writing

    async def open(self, values: dict[str, Any], max_open: int | None) -> None:
        """Returns when the row is committed. Raises ``Overloaded`` where it could not be, ``TooManyStreams``
        where it would be one more than ``max_open`` of its token, and ``IntegrityError``.
        """
        if self.is_away:
            raise not_opened()
        row = _Row(values, max_open=max_open)
        self._next.openings.append(row)
        self._write_soon(0)
        await row.written

    async def settle(self, values: dict[str, Any], *, corrects: bool) -> None:
        """Returns when that is committed, however long the database is away. Where others have ended the
        stream, the row keeps that end, and gets these numbers if this ``corrects`` it.
        """
        row = _Row(values, corrects=corrects)
        self._next.checkpoints.pop(values["stream_id"], None)
        self._next.settlements.append(row)
        self._write_soon(_GATHER_SECONDS)
        await row.written

    def checkpoint(self, stream_id: str, values: dict[str, Any]) -> None:
        """Replaces a checkpoint of the stream that is not written yet."""
        self._next.checkpoints[stream_id] = {"stream_id": stream_id, **values}
        self._write_soon(_GATHER_SECONDS)

    async def flush(self) -> None:
        """Returns when nothing is left to write."""
        while self._writing or self._next:
            self._write_soon(0)
            self._idle.clear()
            await self._idle.wait()

    def crash(self) -> None:
        """Writes nothing from now on, as if the worker had been killed. For tests of what others do then."""
        self._crashed = True

    def _write_soon(self, seconds: float) -> None:
        """Plans a transaction for ``seconds`` from now, or for when the running one has ended."""
        if self._writing or self._crashed or not (self._next or self.is_away):
            return
        loop = asyncio.get_running_loop()
        if self._timer is not None:
            if self._timer.when() <= loop.time() + seconds:
                return
            self._timer.cancel()
        if seconds == 0:
            self._write()
        else:
            self._timer = loop.call_later(seconds, self._write)

    def _write(self) -> None:
        self._timer = None
        if self._crashed:
            return
        batch, self._next = self._next, _Transaction(self._exporters)
        self._writing = True
        self._idle.clear()
        self._db.submit(
            partial(batch.write, self._db), lambda error: self._context.run(self._written, batch, error)
        )

    def _written(self, batch: _Transaction, error: BaseException | None) -> None:
        self._writing = False
        if error is None:
            seconds = 0.0 if self._next.openings else _GATHER_SECONDS
            if self.is_away:
                log.warning("the ledger is written again")
                self.is_away = False
            for row in batch.openings:
                row.resolve(
                    row.error if row.error is None or isinstance(row.error, _REFUSED) else not_opened()
                )
            for row in batch.settlements:
                row.resolve()
            for row in (*batch.openings, *batch.settlements):
                if row.error is not None and not isinstance(row.error, _REFUSED):
                    log.error("a row of the ledger was refused: %s", safe_traceback(row.error))
        else:
            seconds = _RETRY_SECONDS
            self.is_away = True
            # Money waits for the database. A checkpoint does not: a better one is on its way.
            self._next.settlements[:0] = batch.settlements
            why = error if isinstance(error, DatabaseAway) else safe_traceback(error)
            log.error("the ledger cannot be written: %s; %d rows wait", why, len(self._next.settlements))
            for row in (*batch.openings, *self._next.openings):
                row.resolve(not_opened())
            self._next.openings = []
        self._write_soon(seconds)
        if not self._next:
            self._idle.set()
