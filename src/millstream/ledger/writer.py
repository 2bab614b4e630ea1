"""The writer: rows that come up at any time -> one transaction after the other.

A transaction takes whatever has come up during the one before: under load it carries many rows. While the
database is away openings are refused at once, so nothing starts that could not be billed and nothing of it is
kept; settlements wait.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextvars import copy_context
from functools import partial
from typing import Any

import sqlalchemy as sa
from msgspec import Struct

from millstream.database import Database, DatabaseAway, RowTaken
from millstream.driver import DriverConnection, Prepared
from millstream.errors import (
    BudgetExceeded,
    MillstreamError,
    Overloaded,
    RateLimited,
    TooManyStreams,
    safe_traceback,
)
from millstream.ledger import exports
from millstream.ledger.limits import Books, Clock, running_among
from millstream.ledger.rows import REPORTED_COLUMNS, USAGE_COLUMNS
from millstream.limits import Demand, Hold, Standing
from millstream.schema import streams, workers

log = logging.getLogger("millstream.ledger")

_RETRY_SECONDS = 0.5
# Openings are written at once. Settlements and checkpoints wait so long, to share a transaction.
_GATHER_SECONDS = 0.02

# Errors of an opening that the caller is told; all others become ``Overloaded``.
_REFUSED = (TooManyStreams, RateLimited, BudgetExceeded, RowTaken)

_ENDED = (
    *("finish_reason", "error_code", "tokenizer", "cost_picodollars", "price_picodollars"),
    *("called_at", "first_event_at", "ended_at", "ended_by", "corrected_at"),
    *REPORTED_COLUMNS,
)
_RUNNING = sa.update(streams).where(
    streams.c.id == sa.bindparam("stream_id"), streams.c.status == sa.literal_column("'running'")
)
_OPEN = Prepared(sa.insert(streams), [c.name for c in streams.columns if c.name not in _ENDED])
_CHECKPOINT = Prepared(_RUNNING, [*USAGE_COLUMNS, "provider", "upstream_model"])
_SETTLE = Prepared(
    _RUNNING,
    [
        "status",
        "finish_reason",
        "error_code",
        *USAGE_COLUMNS,
        *REPORTED_COLUMNS,
        "provider",
        "upstream_model",
        "called_at",
        "first_event_at",
        "ended_at",
        "ended_by",
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
    [
        *USAGE_COLUMNS,
        *REPORTED_COLUMNS,
        *("provider", "upstream_model", "called_at", "first_event_at", "corrected_at"),
    ],
)
# What is written to see whether anything is. The first changes nothing and needs no room on a disk; the
# others write a row that nobody sees.
_PROBE = Prepared(sa.update(streams).where(sa.false()), ["status"])
_ENLIST_PROBE = Prepared(sa.insert(workers), ["id", "beat"])
_REMOVE_PROBE = Prepared(sa.delete(workers).where(workers.c.id == sa.bindparam("worker_id")), ["worker_id"])
_COUNT_OPEN = Prepared(
    sa.select(sa.func.count())
    .select_from(streams)
    .where(streams.c.owner_id == sa.bindparam("owner_id"), streams.c.worker_id.is_not(None)),
    ["owner_id"],
)
# PostgreSQL's; SQLite has one writer anyway.
_LOCK_OWNER = Prepared(
    sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtext(sa.bindparam("owner_id", type_=sa.String)))),
    ["owner_id"],
)
# Two workers that insert the same values here wait for each other.
_LOCKED = ("owner_id", "idempotency_key")


_NOT_OPENED = "the ledger cannot be written; nothing was started"


class NeverWritten(Overloaded):
    """An opening that was not even sent to the database: there is no row that has to be settled."""


def not_opened() -> Overloaded:
    """For an opening whose row may have been written all the same, where only the answer was lost."""
    return Overloaded(_NOT_OPENED)


class Opened(Struct, frozen=True):
    """What a stream holds that has started, and how its limits stand."""

    hold: Hold
    standings: tuple[Standing, ...]


class _Row:
    """A row on its way to the database, and who waits for it. ``result`` is what they get."""

    def __init__(
        self,
        values: dict[str, Any],
        *,
        max_open: int | None = None,
        demand: Demand | None = None,
        corrects: bool = False,
        is_limited: bool = False,
    ) -> None:
        self.values = values
        self.max_open = max_open
        self.demand = demand
        self.corrects = corrects
        self.is_limited = is_limited or demand is not None
        self.written: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.result: Any = None
        self.error: Exception | None = None

    def resolve(self, error: Exception | None = None) -> None:
        if self.written.done():
            return
        if error is None:
            self.written.set_result(self.result)
        else:
            self.written.set_exception(error)


class _Extension(_Row):
    """More for a stream that runs, of the budgets of ``subjects``."""

    def __init__(self, stream_id: str, tokens: int, picodollars: int, subjects: Iterable[str]) -> None:
        super().__init__({"stream_id": stream_id})
        self.tokens = tokens
        self.picodollars = picodollars
        self.subjects = subjects


class _Transaction:
    """The rows that one transaction writes, with what ``exporters`` are to be sent of them."""

    def __init__(self, exporters: Sequence[str]) -> None:
        self.exporters = exporters
        self.openings: list[_Row] = []
        self.settlements: list[_Row] = []
        self.extensions: list[_Extension] = []
        self.checkpoints: dict[str, dict[str, Any]] = {}
        self.probes = False  # whether it shows that the database takes writes, whatever its rows are

    def __bool__(self) -> bool:
        return bool(self.openings or self.settlements or self.extensions or self.checkpoints)

    @property
    def rows(self) -> list[_Row]:
        """Those that somebody waits for."""
        return [*self.openings, *self.settlements, *self.extensions]

    def write(self, db: Database, clock: Clock) -> None:
        """Writes all rows in one transaction. If the database refuses one of them, writes them one by one and
        keeps the error of each. Raises ``DatabaseAway``.
        """
        try:
            db.run_by_hand(partial(self._write_all, clock))
        except DatabaseAway:
            raise
        except Exception:
            self._write_singly(db, clock)

    def _write_all(self, clock: Clock, connection: DriverConnection) -> None:
        # In one order everywhere: two workers that wait for each other's rows would be a deadlock.
        self.openings.sort(key=lambda row: [row.values[name] or "" for name in _LOCKED])
        self.settlements.sort(key=lambda row: row.values["stream_id"])
        self.extensions.sort(key=lambda row: row.values["stream_id"])
        if self.probes:
            connection.run(_PROBE, [{"status": "running"}])
            connection.run(_ENLIST_PROBE, [{"id": "probe", "beat": 0}])
            connection.run(_REMOVE_PROBE, [{"worker_id": "probe"}])
        books = self._books(clock, connection)
        if books is not None:
            # What ends makes room for what starts.
            books.release([row.values for row in self.settlements if row.is_limited])
        _insert(connection, self.openings, books)
        _note(connection, [row for _, row in sorted(self.checkpoints.items())])
        if books is not None:
            ends = {row.values["stream_id"] for row in self.settlements}
            for row in self.extensions:
                if (stream_id := row.values["stream_id"]) not in ends:
                    row.result = books.extend(stream_id, row.tokens, row.picodollars)
        _update(connection, self.settlements, books, self.exporters)
        if books is not None:
            books.write()

    def _books(self, clock: Clock, connection: DriverConnection) -> Books | None:
        """None where no limit applies to anything here."""
        limited = [row for row in (*self.openings, *self.settlements) if row.is_limited]
        if not limited and not self.extensions:
            return None
        subjects = {one.subject for row in limited if row.demand is not None for one in row.demand.applied}
        for row in self.extensions:
            subjects.update(row.subjects)
        return Books(connection, clock, subjects)

    def _write_singly(self, db: Database, clock: Clock) -> None:
        for row in self.rows:
            alone = _Transaction(self.exporters)
            for rows in ("openings", "settlements", "extensions"):
                if row in getattr(self, rows):
                    getattr(alone, rows).append(row)
            _try(db, partial(alone._write_all, clock), row)
        for checkpoint in self.checkpoints.values():
            _try(db, partial(_note, rows=[checkpoint]))


def _try(db: Database, write: Callable[[DriverConnection], None], row: _Row | None = None) -> None:
    try:
        db.run_by_hand(write)
    except DatabaseAway:
        raise
    except Exception as error:
        if row is not None:
            row.error, row.result = error, None


def _insert(connection: DriverConnection, rows: Sequence[_Row], books: Books | None) -> None:
    """Refuses those of the rows that would be one too many, or that a limit does not allow; the others go
    on.
    """
    are_open = _count_open(connection, {row.values["owner_id"] for row in rows if row.max_open is not None})
    holds: list[tuple[_Row, Hold]] = []
    for row in rows:
        row.error = None
        owner_id = row.values["owner_id"]
        try:
            if row.max_open is not None and are_open[owner_id] >= row.max_open:
                raise TooManyStreams(row.max_open)
            if books is not None and row.demand is not None:
                hold = books.reserve(row.demand)
                row.values["held"] = hold.json()
                holds.append((row, hold))
        except MillstreamError as error:
            row.error = error
        else:
            are_open[owner_id] += 1
    if books is not None:
        for row, hold in holds:
            row.result = Opened(hold, books.standings(hold))
    if admitted := [row.values for row in rows if row.error is None]:
        connection.run(_OPEN, admitted)


def _count_open(connection: DriverConnection, owners: Iterable[str]) -> Counter[str]:
    """How many streams of these owners are open. Nobody else opens one of theirs in this transaction."""
    are_open: Counter[str] = Counter()
    for owner_id in sorted(owners):
        if connection.is_postgres:
            connection.first(_LOCK_OWNER, {"owner_id": owner_id})
        (are_open[owner_id],) = connection.first(_COUNT_OPEN, {"owner_id": owner_id}) or (0,)
    return are_open


def _note(connection: DriverConnection, rows: Sequence[dict[str, Any]]) -> None:
    if rows:
        connection.run(_CHECKPOINT, rows)


def _update(
    connection: DriverConnection, rows: Sequence[_Row], books: Books | None, exporters: Sequence[str]
) -> None:
    if not rows:
        return
    exports.before_settling(connection, exporters, [row.values for row in rows])
    running = _running(connection, rows)
    settled = connection.run(_SETTLE, [row.values for row in rows])
    if settled == len(rows):
        return
    late = _late(rows, running)
    if books is not None:
        books.correct([row.values for row in late if row.is_limited])
    if late:
        exports.before_correcting(connection, exporters, [row.values for row in late])
        corrected = [row.values | {"corrected_at": row.values["ended_at"]} for row in late]
        connection.run(_CORRECT, corrected)


def _running(connection: DriverConnection, rows: Sequence[_Row]) -> set[str]:
    """Which of their streams run, where one of the rows would be taken for its own correction: afterwards a
    stream that it has interrupted looks like one that others had.
    """
    if not any(row.corrects and row.values["status"] == "interrupted" for row in rows):
        return set()
    ids = dict.fromkeys(row.values["stream_id"] for row in rows)
    return {stream_id for stream_id, _ in running_among(connection, [*ids])}


def _late(rows: Sequence[_Row], running: set[str]) -> list[_Row]:
    """Those that correct a stream which had ended before. One that was ``running`` is ended by its first."""
    late: list[_Row] = []
    for row in rows:
        stream_id = row.values["stream_id"]
        if stream_id in running:
            running.remove(stream_id)
        elif row.corrects:
            late.append(row)
    return late


class Writer:
    """Writes the rows of one worker, one transaction at a time."""

    def __init__(self, db: Database, exporters: Sequence[str] = ()) -> None:
        self._db = db
        self.clock = Clock()
        self._exporters = exporters
        self._next = _Transaction(exporters)
        self._writing = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._planned: asyncio.Handle | None = None
        self._due = 0.0  # when the planned one begins, by the loop's clock
        self._crashed = False
        self.is_away = False  # the last transaction could not be had
        self._context = copy_context()  # for what is of no stream, though one of them is what starts it

    @property
    def busy(self) -> bool:
        """Whether a transaction is running."""
        return self._writing

    async def open(
        self, values: dict[str, Any], max_open: int | None, demand: Demand | None = None
    ) -> Opened | None:
        """Returns when the row is committed, with what was reserved of the limits in ``demand``. Raises
        ``Overloaded`` where it could not be, ``TooManyStreams`` where it would be one more than ``max_open``
        of its token, ``RowTaken``, and what a limit says (``limits.Books.reserve``).
        """
        if self.is_away:
            raise NeverWritten(_NOT_OPENED)
        row = _Row(values, max_open=max_open, demand=demand)
        self._next.openings.append(row)
        self._write_soon(0)
        opened: Opened | None = await row.written
        return opened

    def extend(
        self, stream_id: str, tokens: int, picodollars: int, subjects: Iterable[str]
    ) -> asyncio.Future[Hold | None]:
        """Reserves more for a stream that runs, up to so many in all, as far as there is more. Done when that
        is committed, however long the database is away, with what the stream holds then, or None where it
        does not run any more.
        """
        row = _Extension(stream_id, tokens, picodollars, subjects)
        self._next.extensions.append(row)
        self._write_soon(0)
        return row.written

    async def settle(self, values: dict[str, Any], *, corrects: bool, is_limited: bool = False) -> None:
        """Returns when that is committed, however long the database is away. Where others have ended the
        stream, the row keeps that end, and gets these numbers if this ``corrects`` it. What it holds of its
        limits is given back where it ``is_limited``.
        """
        row = _Row(values, corrects=corrects, is_limited=is_limited)
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

    def doubt(self) -> None:
        """Something else could not be written: openings are refused until a transaction succeeds."""
        self.is_away = True
        self._write_soon(_RETRY_SECONDS)

    def crash(self) -> None:
        """Writes nothing from now on, as if the worker had been killed. For tests of what others do then."""
        self._crashed = True

    def _write_soon(self, seconds: float) -> None:
        """Plans a transaction for ``seconds`` from now, or for when the running one has ended. With 0 it
        begins after this step of the loop, with all that comes up in it.
        """
        if self._writing or self._crashed or not (self._next or self.is_away):
            return
        loop = asyncio.get_running_loop()
        due = loop.time() + seconds
        if self._planned is not None:
            if self._due <= due:
                return
            self._planned.cancel()
        self._due = due
        if seconds == 0:
            self._planned = loop.call_soon(self._write, context=self._context)
        else:
            self._planned = loop.call_later(seconds, self._write, context=self._context)

    def _write(self) -> None:
        self._planned = None
        if self._crashed:
            return
        batch, self._next = self._next, _Transaction(self._exporters)
        batch.probes = self.is_away
        self._writing = True
        self._idle.clear()
        self._db.submit(
            partial(batch.write, self._db, self.clock),
            partial(self._written, batch),
            context=self._context,
        )

    def _written(self, batch: _Transaction, _: None, error: BaseException | None) -> None:
        self._writing = False
        if error is None:
            seconds = 0.0 if self._next.openings or self._next.extensions else _GATHER_SECONDS
            if self.is_away:
                log.warning("the ledger is written again")
                self.is_away = False
            for row in batch.openings:
                row.resolve(
                    row.error if row.error is None or isinstance(row.error, _REFUSED) else not_opened()
                )
            for row in (*batch.settlements, *batch.extensions):
                row.resolve()
            for row in batch.rows:
                if row.error is not None and not isinstance(row.error, _REFUSED):
                    log.error("a row of the ledger was refused: %s", safe_traceback(row.error))
        else:
            seconds = _RETRY_SECONDS
            self.is_away = True
            # Money waits for the database. A checkpoint does not: a better one is on its way.
            self._next.settlements[:0] = batch.settlements
            self._next.extensions[:0] = batch.extensions
            why = error if isinstance(error, DatabaseAway) else safe_traceback(error)
            log.error("the ledger cannot be written: %s; %d rows wait", why, len(self._next.settlements))
            for row in batch.openings:
                row.resolve(not_opened())
            for row in self._next.openings:
                row.resolve(NeverWritten(_NOT_OPENED))
            self._next.openings = []
        self._write_soon(seconds)
        if not self._next:
            self._idle.set()
