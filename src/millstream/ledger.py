"""The ledger: one row a stream, opened before the provider is called, settled once.

All rows go through one writer, which takes whatever has come up while it was busy: under load one
transaction carries many rows. While the database is away openings fail, so nothing starts that could not
be billed, and settlements wait.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Literal, TypeAlias

import sqlalchemy as sa
from msgspec import Struct
from sqlalchemy.engine import Connection, RowMapping

from millstream.database import Database, streams
from millstream.errors import NotFound, Overloaded
from millstream.events import FinishReason, Usage, UsageSource
from millstream.prices import to_dollars, to_picodollars

log = logging.getLogger("millstream.ledger")

Status: TypeAlias = Literal["running", "completed", "cancelled", "failed", "interrupted"]
Group: TypeAlias = Literal["key", "model", "day", "user"]

LEASE_SECONDS = 15.0
_RETRY_SECONDS = 0.5


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
    ``cost_usd``."""

    group: str
    streams: int
    prompt_tokens: int
    completion_tokens: int
    cost_usd: str
    unpriced: int


class _Write:
    """A row on its way to the database, and who waits for it."""

    def __init__(self, row: dict[str, Any]) -> None:
        self.row = row
        self.written: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def done(self, error: BaseException | None = None) -> None:
        if self.written.done():
            return
        if error is None:
            self.written.set_result(None)
        else:
            self.written.set_exception(error)


class Ledger:
    """Has to be entered (``async with``) before rows are written; leaving it writes what is pending."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._openings: list[_Write] = []
        self._settlements: list[_Write] = []
        self._checkpoints: dict[str, dict[str, Any]] = {}
        self._work = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Ledger":
        self._writer = asyncio.create_task(self._write_forever(), name="ledger-writer")
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._writer is not None
        self._work.set()
        while self._openings or self._settlements or self._checkpoints:
            if not await self._write_once():
                await asyncio.sleep(_RETRY_SECONDS)
        self._writer.cancel()
        await asyncio.gather(self._writer, return_exceptions=True)

    # -- one stream -------------------------------------------------------------------------

    async def open(self, opening: Opening) -> None:
        """Returns when the row is committed. Raises ``Overloaded`` where it could not be."""
        row = _opened(opening)
        write = _Write(row)
        self._openings.append(write)
        self._work.set()
        await write.written

    async def settle(self, settlement: Settlement) -> None:
        """Closes the row, once: a row that is no longer running stays as it is. Returns when that is
        committed, however long the database is away."""
        self._checkpoints.pop(settlement.stream_id, None)
        write = _Write(_settled(settlement))
        self._settlements.append(write)
        self._work.set()
        await write.written

    def checkpoint(self, stream_id: str, usage: Usage, cost: Decimal | None) -> None:
        """Notes what a running stream has used so far and that its owner is alive."""
        self._checkpoints[stream_id] = {
            "stream_id": stream_id,
            **_usage_columns(usage, cost),
            "alive_at": time.time(),
        }
        self._work.set()

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
        checkpoint. Returns how many there were."""
        now = time.time()
        stale = (
            sa.update(streams)
            .where(streams.c.status == "running", streams.c.alive_at < now - LEASE_SECONDS)
            .values(status="interrupted", ended_at=now)
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

    async def _write_forever(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            while self._openings or self._settlements or self._checkpoints:
                if not await self._write_once():
                    await asyncio.sleep(_RETRY_SECONDS)

    async def _write_once(self) -> bool:
        """Writes all that is pending; whether the database took it."""
        openings, self._openings = self._openings, []
        settlements, self._settlements = self._settlements, []
        checkpoints, self._checkpoints = list(self._checkpoints.values()), {}
        try:
            await self._db.write(
                _writing(
                    [write.row for write in openings],
                    [write.row for write in settlements],
                    checkpoints,
                )
            )
        except sa.exc.DBAPIError as error:
            log.error("the ledger cannot be written: %s", type(error.orig).__name__)
            for write in openings:
                write.done(Overloaded("the ledger cannot be written; nothing was started"))
            # Money waits for the database; a checkpoint is soon followed by a better one.
            self._settlements = settlements + self._settlements
            return False
        except asyncio.CancelledError:
            self._openings = openings + self._openings
            self._settlements = settlements + self._settlements
            raise
        for write in (*openings, *settlements):
            write.done()
        return True


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
_UPDATE = sa.update(streams).where(
    streams.c.id == sa.bindparam("stream_id"), streams.c.status == "running"
)


def _writing(
    openings: list[dict[str, Any]],
    settlements: list[dict[str, Any]],
    checkpoints: list[dict[str, Any]],
) -> Callable[[Connection], None]:
    def write(connection: Connection) -> None:
        if openings:
            connection.execute(_INSERT, openings)
        if checkpoints:
            connection.execute(_UPDATE, checkpoints)
        if settlements:
            connection.execute(_UPDATE, settlements)

    return write


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
        column = sa.cast(
            days if connection.dialect.name == "sqlite" else sa.func.floor(days), sa.Integer
        )
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
    query = query.where(*conditions).group_by(column).order_by(column)
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
