"""The ledger: one row a stream, opened before the provider is called, settled once.

Rows are written by one transaction at a time, which takes whatever has come up during the one before:
under load it carries many. While the database is away openings fail, so nothing starts that could not
be billed, and settlements wait.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from typing import Any, Literal, TypeAlias

import sqlalchemy as sa
from msgspec import Struct
from sqlalchemy.engine import Connection, RowMapping

from millstream.database import AWAY, Database, Prepared, streams, workers
from millstream.errors import IdempotencyConflict, NotFound, Overloaded, TooManyStreams, whereabouts
from millstream.events import FinishReason, Group, Usage, UsageSource
from millstream.prices import from_picodollars, to_dollars, to_picodollars

log = logging.getLogger("millstream.ledger")

Status: TypeAlias = Literal["running", "completed", "cancelled", "failed", "interrupted"]

LEASE_SECONDS = 15.0  # how long a worker's beat may stand still
_ORPHANS = 500
_LEAVE_SECONDS = 10.0
_RETRY_SECONDS = 0.5
# An opening is waited for and goes at once; what need not be waited for goes with it, or after this.
_SETTLE_SECONDS = 0.02


# What an opening can meet that is the caller's to know.
_REFUSED = (TooManyStreams, sa.exc.IntegrityError)


def _not_opened() -> Overloaded:
    return Overloaded("the ledger cannot be written; nothing was started")


class Claimed(Exception):
    """The idempotency key belongs to a stream already, which was asked for with the same request."""

    def __init__(self, stream_id: str) -> None:
        super().__init__(stream_id)
        self.stream_id = stream_id


class Claim(Struct, frozen=True):
    """An idempotency key, and the SHA-256 digest of the request that it stands for."""

    key: str
    digest: bytes


class Opening(Struct, frozen=True):
    """A stream that is about to call a provider. ``max_open`` is how many of its token may be open."""

    stream_id: str
    owner_id: str
    key_id: str
    model: str
    provider: str
    created_at: float
    user: str | None = None
    token_id: str | None = None
    max_open: int | None = None
    claim: Claim | None = None


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


class Orphan(Struct, frozen=True):
    """A running row whose worker is gone, with its last checkpoint."""

    stream_id: str
    usage: Usage
    cost: Decimal | None


class Receipt(Struct, frozen=True):
    """The ledger's row of a stream. Times are in Unix seconds; ``cost_usd`` is a decimal string."""

    stream_id: str
    owner_id: str
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


class Ledger:
    """Has to be entered (``async with``) before rows are written. Leaving it writes what is pending, for as
    long as ``_LEAVE_SECONDS``; what the database did not take by then is settled by others."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._next = _Batch()
        self._writing = False
        self._idle = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._worker_id = ""
        # The beats of the other workers: the last one seen, and since when it stands, by our own clock.
        # Nobody else's clock and no wall clock has a say in who is dead.
        self._beats: dict[str, tuple[int, float]] = {}
        self._looked_at = 0.0

    async def __aenter__(self) -> "Ledger":
        self._idle.set()
        await self._enlist()
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            async with asyncio.timeout(_LEAVE_SECONDS):
                while self._writing or self._next:
                    self._write_soon(0)
                    self._idle.clear()
                    await self._idle.wait()
            await self._db.write(
                lambda c: c.execute(sa.delete(workers).where(workers.c.id == self._worker_id))
            )
        except (TimeoutError, *AWAY):
            log.error("the database is away; open rows will be settled from their checkpoints")

    # -- one stream -------------------------------------------------------------------------

    async def open(self, opening: Opening) -> None:
        """Returns when the row is committed.

        Raises ``Overloaded`` where it could not be, ``TooManyStreams``, and where its idempotency key is
        taken ``Claimed`` or, if that was by another request, ``IdempotencyConflict``.
        """
        row = _Row(_opened(opening) | {"worker_id": self._worker_id}, opening.max_open)
        self._next.openings.append(row)
        self._write_soon(0)
        try:
            await row.written
        except sa.exc.IntegrityError:
            if opening.claim is None:
                raise
            raise await self._claimed(opening.owner_id, opening.claim) from None

    async def _claimed(self, owner_id: str, claim: Claim) -> Exception:
        query = sa.select(streams.c.id, streams.c.request_digest).where(
            streams.c.owner_id == owner_id, streams.c.idempotency_key == claim.key
        )
        try:
            found = await self._db.read(lambda connection: connection.execute(query).first())
        except AWAY:
            found = None
        if found is None:
            return _not_opened()
        if found.request_digest != claim.digest:
            return IdempotencyConflict("this Idempotency-Key was used for another request; take a new one")
        return Claimed(found.id)

    async def settle(self, settlement: Settlement) -> None:
        """Closes the row, once: a row that is no longer running stays as it is. Returns when that is
        committed, however long the database is away."""
        row = _Row(_settled(settlement))
        self._next.checkpoints.pop(settlement.stream_id, None)
        self._next.settlements.append(row)
        self._write_soon(_SETTLE_SECONDS)
        await row.written

    def checkpoint(self, stream_id: str, usage: Usage, cost: Decimal | None) -> None:
        """Notes what a running stream has used so far."""
        self._next.checkpoints[stream_id] = {"stream_id": stream_id, **_usage_columns(usage, cost)}
        self._write_soon(_SETTLE_SECONDS)

    async def receipt(self, stream_id: str) -> Receipt:
        """Raises ``NotFound``."""
        query = sa.select(streams).where(streams.c.id == stream_id)
        row = await self._db.read(lambda connection: connection.execute(query).mappings().first())
        if row is None:
            raise NotFound(f"there is no stream '{stream_id}'")
        return _receipt(row)

    # -- workers ----------------------------------------------------------------------------

    async def _enlist(self) -> None:
        self._worker_id = f"wrk_{secrets.token_urlsafe(12)}"
        row = {"id": self._worker_id, "beat": 0}
        await self._db.write(lambda connection: connection.execute(sa.insert(workers), row))

    async def beat(self) -> bool:
        """Says that this worker lives. False where the others have given it up: its running streams were
        theirs to settle, and from now on it is a new worker."""
        mine = sa.update(workers).where(workers.c.id == self._worker_id).values(beat=workers.c.beat + 1)
        if await self._db.write(lambda connection: connection.execute(mine).rowcount):
            return True
        await self._enlist()
        return False

    async def bury(self) -> int:
        """Deletes the workers whose beat has stood still for a lease; how many there were. To be called every
        few seconds: after a pause of its own it begins to look anew.
        """
        now = time.monotonic()
        if now - self._looked_at > LEASE_SECONDS / 2:
            self._beats.clear()
        found = await self._db.read(lambda c: c.execute(sa.select(workers.c.id, workers.c.beat)).all())
        known, self._beats, self._looked_at = self._beats, {}, now
        dead: list[tuple[str, int]] = []
        for worker_id, beat in found:
            last, since = known.get(worker_id, (None, now))
            self._beats[worker_id] = (beat, since if beat == last else now)
            if beat == last and now - since > LEASE_SECONDS and worker_id != self._worker_id:
                dead.append((worker_id, beat))

        def delete(connection: Connection) -> int:
            return sum(
                connection.execute(
                    sa.delete(workers).where(workers.c.id == worker_id, workers.c.beat == beat)
                ).rowcount
                for worker_id, beat in dead
            )

        return await self._db.write(delete) if dead else 0

    async def orphans(self) -> list[Orphan]:
        """Running rows whose worker is not there any more, some of them if they are many."""
        query = (
            sa.select(streams)
            .where(streams.c.worker_id.is_not(None), streams.c.worker_id.not_in(sa.select(workers.c.id)))
            .limit(_ORPHANS)
        )
        rows = await self._db.read(lambda connection: connection.execute(query).mappings().all())
        return [_orphan(row) for row in rows]

    # -- all of them ------------------------------------------------------------------------

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
                row.resolve(
                    row.error if row.error is None or isinstance(row.error, _REFUSED) else _not_opened()
                )
            for row in batch.settlements:
                row.resolve()
            for row in (*batch.openings, *batch.settlements):
                if row.error is not None and not isinstance(row.error, _REFUSED):
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
        "owner_id": opening.owner_id,
        "key_id": opening.key_id,
        "token_id": opening.token_id,
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
        "worker_id": None,
        "idempotency_key": opening.claim and opening.claim.key,
        "request_digest": opening.claim and opening.claim.digest,
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
        "worker_id": None,
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


_USAGE = (
    "prompt_tokens",
    "completion_tokens",
    "cached_tokens",
    "reasoning_tokens",
    "usage_source",
    "cost_picodollars",
)
_LOCKED = ("token_id", "owner_id", "idempotency_key")
_ENDED = ("finish_reason", "error_code", "cost_picodollars", "first_event_at", "ended_at")
_RUNNING = sa.update(streams).where(
    streams.c.id == sa.bindparam("stream_id"), streams.c.status == sa.literal_column("'running'")
)
_OPEN = Prepared(sa.insert(streams), [c.name for c in streams.columns if c.name not in _ENDED])
_CHECKPOINT = Prepared(_RUNNING, _USAGE)
_SETTLE = Prepared(
    _RUNNING,
    ["status", "finish_reason", "error_code", *_USAGE, "first_event_at", "ended_at", "worker_id"],
)


def _orphan(row: RowMapping) -> Orphan:
    usage = Usage(
        row["prompt_tokens"],
        row["completion_tokens"],
        row["usage_source"],
        row["cached_tokens"],
        row["reasoning_tokens"],
    )
    picodollars = row["cost_picodollars"]
    return Orphan(row["id"], usage, None if picodollars is None else from_picodollars(picodollars))


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
