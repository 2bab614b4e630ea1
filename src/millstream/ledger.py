"""The ledger: one row a stream, opened before the provider is called, settled once.

Rows are written by one transaction at a time, which takes whatever has come up during the one before:
under load it carries many. While the database is away openings fail, so nothing starts that could not
be billed, and settlements wait.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from typing import Any, Literal, TypeAlias

import sqlalchemy as sa
from msgspec import Struct
from sqlalchemy.engine import Connection, RowMapping

from millstream.database import AWAY, Database, streams
from millstream.errors import NotFound, Overloaded, whereabouts
from millstream.events import FinishReason, Group, Usage, UsageSource
from millstream.prices import to_dollars, to_picodollars

log = logging.getLogger("millstream.ledger")

Status: TypeAlias = Literal["running", "completed", "cancelled", "failed", "interrupted"]

LEASE_SECONDS = 15.0
_SWEEP_ROWS = 500
_LEAVE_SECONDS = 10.0
_RETRY_SECONDS = 0.5
# An opening is waited for and goes at once; what need not be waited for goes with it, or after this.
_SETTLE_SECONDS = 0.02


def _not_opened() -> Overloaded:
    return Overloaded("the ledger cannot be written; nothing was started")


class Opening(Struct, frozen=True):
    """A stream that is about to call a provider."""

    stream_id: str
    key_id: str
    model: str
    provider: str
    created_at: float
    user: str | None = None


class Settlement(Struct, frozen=True):
    """How a stream ended, and what it used."""

    stream_id: str
    status: Status
    finish_reason: FinishReason | None
    error_code: str | None
    usage: Usage
    cost: Decimal | None
    first_event_at: float | None
    ended_at: float


class Receipt(Struct, frozen=True):
    """The ledger's row of a stream. Times are in Unix seconds; ``cost_usd`` is a decimal string."""

    stream_id: str
    key_id: str
    user: str | None
    model: str
    provider: str
    status: Status
    finish_reason: str | None
    error_code: str | None
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    usage_source: UsageSource
    cost_usd: str | None
    created_at: float
    first_event_at: float | None
    ended_at: float | None


class Total(Struct, frozen=True):
    """Sums over the streams of one group. ``unpriced`` of them have no known price and are not in
    ``cost_usd``.
    """

    group: str
    streams: int
    prompt_tokens: int
    completion_tokens: int
    cost_usd: str
    unpriced: int


class _Row:
    """A row on its way to the database, and who waits for it."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values
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
            for statement, rows in ((_INSERT, self.openings), (_UPDATE, self.settlements)):
                for row in rows:
                    try:
                        db.run(partial(_execute, statement=statement, values=row.values))
                    except AWAY:
                        raise
                    except Exception as error:
                        row.error = error

    def _write_all(self, connection: Connection) -> None:
        if self.openings:
            connection.execute(_INSERT, [row.values for row in self.openings])
        if self.checkpoints:
            connection.execute(_UPDATE, list(self.checkpoints.values()))
        if self.settlements:
            connection.execute(_UPDATE, [row.values for row in self.settlements])


def _execute(connection: Connection, statement: Any, values: dict[str, Any]) -> None:
    connection.execute(statement, values)


class Ledger:
    """Has to be entered (``async with``) before rows are written. Leaving it writes what is pending, for as
    long as ``_LEAVE_SECONDS``; what the database did not take by then is settled by a later sweep."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._next = _Batch()
        self._writing = False
        self._idle = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._mine: set[str] = set()  # rows that are ours to settle

    async def __aenter__(self) -> "Ledger":
        self._idle.set()
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            async with asyncio.timeout(_LEAVE_SECONDS):
                while self._writing or self._next:
                    self._write_soon(0)
                    self._idle.clear()
                    await self._idle.wait()
        except TimeoutError:
            log.error("the database is away; open rows will be settled from their checkpoints")

    # -- one stream -------------------------------------------------------------------------

    async def open(self, opening: Opening) -> None:
        """Returns when the row is committed. Raises ``Overloaded`` where it could not be."""
        row = _Row(_opened(opening))
        self._mine.add(opening.stream_id)
        self._next.openings.append(row)
        self._write_soon(0)
        try:
            await row.written
        except Overloaded:
            self._mine.discard(opening.stream_id)
            raise

    async def settle(self, settlement: Settlement) -> None:
        """Closes the row, once: a row that is no longer running stays as it is. Returns when that is
        committed, however long the database is away."""
        row = _Row(_settled(settlement))
        self._next.checkpoints.pop(settlement.stream_id, None)
        self._next.settlements.append(row)
        self._write_soon(_SETTLE_SECONDS)
        await row.written
        self._mine.discard(settlement.stream_id)

    def checkpoint(self, stream_id: str, usage: Usage, cost: Decimal | None) -> None:
        """Notes what a running stream has used so far and that its owner is alive."""
        self._next.checkpoints[stream_id] = {
            "stream_id": stream_id,
            **_usage_columns(usage, cost),
            "alive_at": time.time(),
        }
        self._write_soon(_SETTLE_SECONDS)

    async def receipt(self, stream_id: str) -> Receipt:
        """Raises ``NotFound``."""
        query = sa.select(streams).where(streams.c.id == stream_id)
        row = await self._db.read(lambda connection: connection.execute(query).mappings().first())
        if row is None:
            raise NotFound(f"there is no stream '{stream_id}'")
        return _receipt(row)

    # -- all of them ------------------------------------------------------------------------

    async def sweep(self) -> int:
        """Settles streams whose owner has not been heard of for the length of a lease, from their last
        checkpoint. Returns how many there were. Our own are never among them, however late we are."""
        now = time.time()
        stale = streams.c.alive_at < now - LEASE_SECONDS  # null where it has ended

        def settle_others(connection: Connection) -> int:
            found = connection.scalars(sa.select(streams.c.id).where(stale).limit(_SWEEP_ROWS))
            others = [stream_id for stream_id in found if stream_id not in self._mine]
            if others:
                connection.execute(
                    sa.update(streams)
                    .where(streams.c.id.in_(others), stale)
                    .values(status="interrupted", ended_at=now, alive_at=None)
                )
            return len(others)

        return await self._db.write(settle_others)

    async def record(self, settlement: Settlement, opening: Opening) -> None:
        """A row that is opened and settled at once."""
        row = _opened(opening) | _settled(settlement)
        row.pop("stream_id")
        await self._db.write(lambda connection: connection.execute(sa.insert(streams), row))

    async def totals(
        self,
        by: Group = "key",
        *,
        since: float | None = None,
        until: float | None = None,
        key_id: str | None = None,
    ) -> list[Total]:
        """Sums of settled and running streams that were created in [since, until)."""
        return await self._db.read(lambda connection: totals(connection, by, since, until, key_id))

    # -- the writer -------------------------------------------------------------------------

    def _write_soon(self, seconds: float) -> None:
        """Plans a transaction for ``seconds`` from now, or for when the running one has ended."""
        if self._writing or not self._next:
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
        seconds = 0.0 if self._next.openings else _SETTLE_SECONDS
        if error is None:
            for row in batch.openings:
                row.resolve(_not_opened() if row.error else None)
            for row in batch.settlements:
                row.resolve()
            for row in (*batch.openings, *batch.settlements):
                if row.error is not None:
                    log.error("a row of the ledger was refused: %s", whereabouts(row.error))
        else:
            log.error("the ledger cannot be written: %s", whereabouts(error))
            for row in batch.openings:
                row.resolve(_not_opened())
            # Money waits for the database. A checkpoint does not: a better one is on its way.
            self._next.settlements[:0] = batch.settlements
            seconds = _RETRY_SECONDS
        self._write_soon(seconds)
        if not self._next:
            self._idle.set()


def _opened(opening: Opening) -> dict[str, Any]:
    return {
        "id": opening.stream_id,
        "key_id": opening.key_id,
        "user": opening.user,
        "model": opening.model,
        "provider": opening.provider,
        "status": "running",
        "prompt_tokens": 0,
        "completion_tokens": 0,
        "cached_tokens": 0,
        "reasoning_tokens": 0,
        "usage_source": "checkpoint",
        "created_at": opening.created_at,
        "alive_at": time.time(),
    }


def _settled(settlement: Settlement) -> dict[str, Any]:
    return {
        "stream_id": settlement.stream_id,
        "status": settlement.status,
        "finish_reason": settlement.finish_reason,
        "error_code": settlement.error_code,
        **_usage_columns(settlement.usage, settlement.cost),
        "first_event_at": settlement.first_event_at,
        "ended_at": settlement.ended_at,
        "alive_at": None,
    }


def _usage_columns(usage: Usage, cost: Decimal | None) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "cached_tokens": usage.cached_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
        "usage_source": usage.source,
        "cost_picodollars": None if cost is None else to_picodollars(cost),
    }


_INSERT = sa.insert(streams)
_UPDATE = sa.update(streams).where(streams.c.id == sa.bindparam("stream_id"), streams.c.status == "running")


def _receipt(row: RowMapping) -> Receipt:
    values = {name: row[name] for name in Receipt.__struct_fields__ if name in row}
    picodollars = row["cost_picodollars"]
    return Receipt(
        **values,
        stream_id=row["id"],
        cost_usd=None if picodollars is None else to_dollars(picodollars),
    )


def totals(
    connection: Connection,
    by: Group,
    since: float | None = None,
    until: float | None = None,
    key_id: str | None = None,
) -> list[Total]:
    """``Ledger.totals`` on a connection of one's own."""
    column: sa.ColumnElement[Any]
    if by == "day":
        days = streams.c.created_at / 86400
        # PostgreSQL rounds where it casts, SQLite may lack floor() and cuts where it casts.
        column = sa.cast(days if connection.dialect.name == "sqlite" else sa.func.floor(days), sa.Integer)
    else:
        column = {"key": streams.c.key_id, "model": streams.c.model, "user": streams.c.user}[by]
    query = sa.select(
        column.label("group"),
        sa.func.count().label("streams"),
        sa.func.sum(streams.c.prompt_tokens).label("prompt_tokens"),
        sa.func.sum(streams.c.completion_tokens).label("completion_tokens"),
        sa.func.coalesce(sa.func.sum(streams.c.cost_picodollars), 0).label("picodollars"),
        (sa.func.count() - sa.func.count(streams.c.cost_picodollars)).label("unpriced"),
    )
    conditions: Sequence[sa.ColumnElement[bool]] = [
        *([streams.c.created_at >= since] if since is not None else []),
        *([streams.c.created_at < until] if until is not None else []),
        *([streams.c.key_id == key_id] if key_id is not None else []),
    ]
    # By its place: the same expression with other parameters would be another one to PostgreSQL.
    query = query.where(*conditions).group_by(sa.literal_column("1")).order_by(sa.literal_column("1"))
    return [
        Total(
            _group(row["group"], by),
            row["streams"],
            int(row["prompt_tokens"]),
            int(row["completion_tokens"]),
            to_dollars(int(row["picodollars"])),
            row["unpriced"],
        )
        for row in connection.execute(query).mappings()
    ]


def _group(value: Any, by: Group) -> str:
    if value is None:
        return ""
    if by == "day":
        return datetime.fromtimestamp(value * 86400, UTC).date().isoformat()
    return str(value)
