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
from typing import Any, Literal, TypeAlias

import sqlalchemy as sa
from msgspec import Struct
from sqlalchemy.engine import Connection, RowMapping

from millstream.database import Database, streams
from millstream.errors import NotFound, Overloaded, whereabouts
from millstream.events import FinishReason, Group, Usage, UsageSource
from millstream.prices import to_dollars, to_picodollars

log = logging.getLogger("millstream.ledger")

Status: TypeAlias = Literal["running", "completed", "cancelled", "failed", "interrupted"]

LEASE_SECONDS = 15.0
_RETRY_SECONDS = 0.5
# An opening is waited for and goes at once; what need not be waited for goes with it, or after this.
_SETTLE_SECONDS = 0.02


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


class _Batch:
    """What one transaction will carry."""

    def __init__(self) -> None:
        self.openings: list[dict[str, Any]] = []
        self.opened: list[asyncio.Future[None]] = []
        self.settlements: list[dict[str, Any]] = []
        self.settled: list[asyncio.Future[None]] = []
        self.checkpoints: dict[str, dict[str, Any]] = {}

    def __bool__(self) -> bool:
        return bool(self.openings or self.settlements or self.checkpoints)

    def write(self, connection: Connection) -> None:
        if self.openings:
            connection.execute(_INSERT, self.openings)
        if self.checkpoints:
            connection.execute(_UPDATE, list(self.checkpoints.values()))
        if self.settlements:
            connection.execute(_UPDATE, self.settlements)


class Ledger:
    """Has to be entered (``async with``) before rows are written; leaving it writes what is pending."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._next = _Batch()
        self._writing = False
        self._idle = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> "Ledger":
        self._idle.set()
        return self

    async def __aexit__(self, *_: object) -> None:
        while self._writing or self._next:
            self._write_soon(0)
            self._idle.clear()
            await self._idle.wait()

    # -- one stream -------------------------------------------------------------------------

    async def open(self, opening: Opening) -> None:
        """Returns when the row is committed. Raises ``Overloaded`` where it could not be."""
        written = asyncio.get_running_loop().create_future()
        self._next.openings.append(_opened(opening))
        self._next.opened.append(written)
        self._write_soon(0)
        await written

    async def settle(self, settlement: Settlement) -> None:
        """Closes the row, once: a row that is no longer running stays as it is. Returns when that is
        committed, however long the database is away.
        """
        written = asyncio.get_running_loop().create_future()
        self._next.checkpoints.pop(settlement.stream_id, None)
        self._next.settlements.append(_settled(settlement))
        self._next.settled.append(written)
        self._write_soon(_SETTLE_SECONDS)
        await written

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
        checkpoint. Returns how many there were.
        """
        now = time.time()
        stale = (
            sa.update(streams)
            .where(streams.c.alive_at < now - LEASE_SECONDS)  # null where it has ended
            .values(status="interrupted", ended_at=now, alive_at=None)
        )
        return await self._db.write(lambda connection: connection.execute(stale).rowcount)

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
        self._db.submit(batch.write, lambda error: loop.call_soon_threadsafe(self._written, batch, error))

    def _written(self, batch: _Batch, error: BaseException | None) -> None:
        self._writing = False
        seconds = 0.0 if self._next.openings else _SETTLE_SECONDS
        if error is None:
            _resolve(batch.opened)
            _resolve(batch.settled)
        else:
            log.error("the ledger cannot be written: %s", whereabouts(error))
            _resolve(batch.opened, Overloaded("the ledger cannot be written; nothing was started"))
            # Money waits for the database. A checkpoint does not: a better one is on its way.
            self._next.settlements[:0] = batch.settlements
            self._next.settled[:0] = batch.settled
            seconds = _RETRY_SECONDS
        self._write_soon(seconds)
        if not self._next:
            self._idle.set()


def _resolve(waiting: list[asyncio.Future[None]], error: Exception | None = None) -> None:
    for future in waiting:
        if future.done():
            continue
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)


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
