"""The writer: rows that come up at any time -> one transaction after the other.

A transaction takes whatever has come up during the one before: under load it carries many rows. While the
database is away openings fail, so nothing starts that could not be billed, and settlements wait.
"""

import asyncio
import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from millstream.database import AWAY, Database, Prepared, streams
from millstream.errors import Overloaded, TooManyStreams, safe_traceback
from millstream.ledger.rows import USAGE_COLUMNS

log = logging.getLogger("millstream.ledger")

_RETRY_SECONDS = 0.5
# An opening is waited for and goes at once; what need not be waited for goes with it, or after this.
_COMPANY_SECONDS = 0.02

# What an opening can meet that is the caller's to know.
_REFUSED = (TooManyStreams, sa.exc.IntegrityError)

_ENDED = ("finish_reason", "error_code", "cost_picodollars", "first_event_at", "ended_at")
_RUNNING = sa.update(streams).where(
    streams.c.id == sa.bindparam("stream_id"), streams.c.status == sa.literal_column("'running'")
)
_OPEN = Prepared(sa.insert(streams), [c.name for c in streams.columns if c.name not in _ENDED])
_CHECKPOINT = Prepared(_RUNNING, USAGE_COLUMNS)
_SETTLE = Prepared(
    _RUNNING,
    ["status", "finish_reason", "error_code", *USAGE_COLUMNS, "first_event_at", "ended_at", "worker_id"],
)
# Two workers that insert the same values here wait for each other.
_LOCKED = ("token_id", "owner_id", "idempotency_key")


def not_opened() -> Overloaded:
    return Overloaded("the ledger cannot be written; nothing was started")


class _Row:
    """A row on its way to the database, and who waits for it."""

    def __init__(self, values: dict[str, Any], max_open: int | None = None) -> None:
        self.values = values
        self.max_open = max_open
        self.written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.error: Exception | None = None

    def resolve(self, error: Exception | None = None) -> None:
        if self.written.done():
            return
        if error is None:
            self.written.set_result(None)
        else:
            self.written.set_exception(error)


class _Batch:
    """What one transaction will carry."""

    def __init__(self) -> None:
        self.openings: list[_Row] = []
        self.settlements: list[_Row] = []
        self.checkpoints: dict[str, dict[str, Any]] = {}

    def __bool__(self) -> bool:
        return bool(self.openings or self.settlements or self.checkpoints)

    def write(self, db: Database) -> None:
        """Raises where the database is away. A row that it will never take does not hold up the others:
        then they go one by one, and each keeps its error."""
        try:
            db.run(self._write_all)
        except AWAY:
            raise
        except Exception:
            for write, rows in ((_insert, self.openings), (_update, self.settlements)):
                for row in rows:
                    try:
                        db.run(partial(write, rows=[row]))
                    except AWAY:
                        raise
                    except Exception as error:
                        row.error = error

    def _write_all(self, connection: Connection) -> None:
        # In one order everywhere: two workers that wait for each other's rows would be a deadlock.
        self.openings.sort(key=lambda row: [row.values[name] or "" for name in _LOCKED])
        self.settlements.sort(key=lambda row: row.values["stream_id"])
        _insert(connection, self.openings)
        if self.checkpoints:
            _CHECKPOINT.run(connection, [row for _, row in sorted(self.checkpoints.items())])
        _update(connection, self.settlements)


def _insert(connection: Connection, rows: Sequence[_Row]) -> None:
    if rows:
        _OPEN.run(connection, [row.values for row in rows])
    for row in rows:
        if row.max_open is not None:
            _check_open(connection, row.values["token_id"], row.max_open)


def _update(connection: Connection, rows: Sequence[_Row]) -> None:
    if rows:
        _SETTLE.run(connection, [row.values for row in rows])


def _check_open(connection: Connection, token_id: str, most: int) -> None:
    """Takes the row that was just inserted back (by raising) where it is one too many."""
    if connection.dialect.name == "postgresql":  # SQLite has one writer anyway
        lock = sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtext(token_id)))
        connection.execute(lock)
    query = sa.select(sa.func.count()).where(streams.c.token_id == token_id, streams.c.worker_id.is_not(None))
    if (connection.scalar(query) or 0) > most:
        raise TooManyStreams(f"{most} streams of this token are open; end one or try again later")


class Writer:
    """Writes the rows of one worker, in the order in which they came."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._next = _Batch()
        self._writing = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._timer: asyncio.TimerHandle | None = None
        self._crashed = False

    @property
    def busy(self) -> bool:
        """Whether a transaction is running."""
        return self._writing

    async def open(self, values: dict[str, Any], max_open: int | None) -> None:
        """Returns when the row is committed. Raises ``Overloaded`` where it could not be, ``TooManyStreams``
        where it would be one more than ``max_open`` of its token, and ``IntegrityError``.
        """
        row = _Row(values, max_open)
        self._next.openings.append(row)
        self._write_soon(0)
        await row.written

    async def settle(self, values: dict[str, Any]) -> None:
        """Returns when that is committed, however long the database is away."""
        row = _Row(values)
        self._next.checkpoints.pop(values["stream_id"], None)
        self._next.settlements.append(row)
        self._write_soon(_COMPANY_SECONDS)
        await row.written

    def checkpoint(self, stream_id: str, values: dict[str, Any]) -> None:
        """Replaces a checkpoint of the stream that is not written yet."""
        self._next.checkpoints[stream_id] = {"stream_id": stream_id, **values}
        self._write_soon(_COMPANY_SECONDS)

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
        if self._writing or self._crashed or not self._next:
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
        batch, self._next = self._next, _Batch()
        self._writing = True
        self._idle.clear()
        loop = asyncio.get_running_loop()
        self._db.submit(
            partial(batch.write, self._db),
            lambda error: loop.call_soon_threadsafe(self._written, batch, error),
        )

    def _written(self, batch: _Batch, error: BaseException | None) -> None:
        self._writing = False
        seconds = 0.0 if self._next.openings else _COMPANY_SECONDS
        if error is None:
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
            log.error("the ledger cannot be written: %s", safe_traceback(error))
            for row in batch.openings:
                row.resolve(not_opened())
            # Money waits for the database. A checkpoint does not: a better one is on its way.
            self._next.settlements[:0] = batch.settlements
            seconds = _RETRY_SECONDS
        self._write_soon(seconds)
        if not self._next:
            self._idle.set()
