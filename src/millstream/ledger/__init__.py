"""The ledger: one row a stream, opened before the provider is called, settled once."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from functools import partial

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from millstream.database import Database, DatabaseAway, RowTaken
from millstream.errors import BudgetExceeded, IdempotencyConflict, NotFound, RateLimited, TooManyStreams
from millstream.ledger import exports, invoices, limits, receipts, reports, retention, rows, verify
from millstream.ledger.invoices import Difference, Invoice
from millstream.ledger.leases import Leases
from millstream.ledger.receipts import Page, Wanted
from millstream.ledger.reports import Asked, Total, Unpriced
from millstream.ledger.rows import Claim, Opening, Receipt, Settlement
from millstream.ledger.verify import Verified
from millstream.ledger.writer import Opened, Writer, not_opened
from millstream.limits import Applied, Hold, Limit, limit_shown
from millstream.schema import keys, streams, workers
from millstream.usage import Charge, Usage

log = logging.getLogger("millstream.ledger")

LEAVE_SECONDS = 1.5


class Claimed(Exception):
    """The idempotency key belongs to a stream already, which was asked for with the same request."""

    def __init__(self, stream_id: str) -> None:
        super().__init__(stream_id)
        self.stream_id = stream_id


class Ledger:
    """Has to be entered (``async with``) before rows are written. Leaving it writes what is pending, for as
    long as ``LEAVE_SECONDS``; what the database did not take by then is settled by others.

    ``leases`` says which workers live, by ``clock``: monotonic, in seconds. What is settled is also exported
    to each of the ``exporters``, in the same transaction.
    """

    def __init__(
        self,
        db: Database,
        clock: Callable[[], float] = time.monotonic,
        *,
        exporters: Sequence[str] = (),
    ) -> None:
        self._db = db
        self._exporters = exporters
        self._writer = Writer(db, exporters)
        self.leases = Leases(db, clock)

    @property
    def is_away(self) -> bool:
        """Whether rows cannot be written just now: openings are refused, settlements wait."""
        return self._writer.is_away

    @property
    def is_writing(self) -> bool:
        """Whether a transaction is running."""
        return self._writer.busy

    @property
    def is_sharded(self) -> bool:
        """Whether an hour's sums are written in several rows, which ``fold_hour`` makes one."""
        return not self._db.is_sqlite

    async def __aenter__(self) -> "Ledger":
        await self.leases.enlist()
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            async with asyncio.timeout(LEAVE_SECONDS):
                await self._writer.flush()
                await self.leases.leave()
        except (TimeoutError, DatabaseAway):
            log.error("the database is away; open rows will be settled from their checkpoints")

    async def beat(self) -> bool:
        """As ``Leases.beat``. While that cannot be written, no row is taken to be."""
        try:
            return await self.leases.beat()
        except DatabaseAway:
            self._writer.doubt()
            raise

    async def open(self, opening: Opening) -> Opened | None:
        """Returns when the row is committed, with what it has reserved of its limits, where it has any.

        Raises ``Overloaded`` where it could not be, ``TooManyStreams``, ``RateLimited`` or ``BudgetExceeded``
        where a limit does not allow it, and where its idempotency key is taken ``Claimed`` or, if that was by
        another request, ``IdempotencyConflict``.
        """
        values = rows.opening_values(opening, self.leases.worker_id)
        try:
            return await self._writer.open(values, opening.max_open, opening.demand)
        except RowTaken:
            if opening.claim is None:
                raise
            raise await self.claim_error(opening.owner_id, opening.claim) from None
        except (TooManyStreams, RateLimited, BudgetExceeded):
            # Who repeats a start is after its stream, and asks for nothing more.
            if opening.claim and (first := await self.claimed(opening.owner_id, opening.claim)):
                raise Claimed(first) from None
            raise

    async def claim_error(self, owner_id: str, claim: Claim) -> Exception:
        """The error for an opening whose claim the database refused: who has the claim already."""
        try:
            stream_id = await self.claimed(owner_id, claim)
        except IdempotencyConflict as conflict:
            return conflict
        except DatabaseAway:
            stream_id = None
        return not_opened() if stream_id is None else Claimed(stream_id)

    async def claimed(self, owner_id: str, claim: Claim) -> str | None:
        """The stream that has the claim. Raises ``IdempotencyConflict`` where it was started by another
        request, ``DatabaseAway``.
        """
        query = sa.select(streams.c.id, streams.c.request_digest).where(
            streams.c.owner_id == owner_id, streams.c.idempotency_key == claim.key
        )
        found = await self._db.read(lambda connection: connection.execute(query).first())
        if found is None:
            return None
        if found.request_digest != claim.digest:
            raise IdempotencyConflict("this Idempotency-Key was used for another request; take a new one")
        return str(found.id)

    async def settle(self, settlement: Settlement) -> None:
        """Closes the row, once, for the stream's own producer. Returns when that is committed, however long
        the database is away.

        A row that others have ended in the meantime, because this worker seemed dead, keeps that end; the
        numbers of its last checkpoint are replaced by these, once, and ``corrected_at`` says when.
        """
        values = rows.settlement_values(settlement)
        await self._writer.settle(values, corrects=True, is_limited=settlement.is_limited)

    async def settle_orphan(self, settlement: Settlement) -> None:
        """The same for a stream whose worker is gone. A row that is no longer running stays as it is."""
        values = rows.settlement_values(settlement)
        await self._writer.settle(values, corrects=False, is_limited=settlement.is_limited)

    def extend(
        self, stream_id: str, tokens: int, picodollars: int, subjects: Iterable[str]
    ) -> asyncio.Future[Hold | None]:
        """Reserves more of its budgets for a stream that runs, up to so many in all and as far as there is
        more. Done when that is committed, however long the database is away; None where it does not run.
        """
        return self._writer.extend(stream_id, tokens, picodollars, subjects)

    async def usage_of(self, applied: Sequence[Applied]) -> list[limits.Reading]:
        """How these limits stand now. Raises ``DatabaseAway``."""
        return await self._db.write_by_hand(partial(limits.read, self._writer.clock, applied))

    async def standing(
        self, key_id: str, held: Iterable[Limit], user: str | None = None
    ) -> list[dict[str, str | int | bool | None]]:
        """These limits of a key as they are told, with how they stand; of those for each end user only where
        a ``user`` is named. Raises ``DatabaseAway``.
        """
        of_user = None if user is None else f"{key_id}/{user}"
        subjects = [(limit, of_user if limit.each_user else key_id) for limit in held]
        applied = [Applied(subject, limit) for limit, subject in subjects if subject is not None]
        readings = iter(await self.usage_of(applied))
        return [
            limit_shown(limit) if subject is None else next(readings).shown() for limit, subject in subjects
        ]

    async def prune(self) -> int:
        """Deletes counters of windows that are long over; how many. Raises ``DatabaseAway``."""
        return await self._db.write_by_hand(partial(limits.prune, self._writer.clock))

    def checkpoint(
        self, stream_id: str, usage: Usage, charge: Charge, provider: str, upstream_model: str | None = None
    ) -> None:
        """Notes what a running stream has used so far, and of whom: another may answer than was asked
        first.
        """
        answering = {"provider": provider, "upstream_model": upstream_model}
        self._writer.checkpoint(stream_id, rows.usage_values(usage, charge) | answering)

    async def receipt(self, stream_id: str) -> Receipt:
        """Raises ``NotFound``."""
        query = sa.select(streams).where(streams.c.id == stream_id)
        row = await self._db.read(lambda connection: connection.execute(query).mappings().first())
        if row is None:
            raise NotFound(f"there is no stream '{stream_id}'")
        return rows.to_receipt(row)

    async def is_run(self, stream_id: str) -> bool:
        """Whether a worker runs the stream that has its lease. Raises ``DatabaseAway``."""
        its = sa.select(workers.c.id).join(streams, streams.c.worker_id == workers.c.id)
        query = its.where(streams.c.id == stream_id)
        return await self._db.read(lambda connection: connection.scalar(query)) is not None

    async def receipts(self, wanted: Wanted, cursor: str | None = None, size: int = 50) -> Page:
        """A page of receipts, the newest first. Raises ``InvalidRequest``."""
        return await self._db.report(lambda connection: receipts.page(connection, wanted, cursor, size))

    async def every_receipt(self, wanted: Wanted) -> AsyncGenerator[list[Receipt]]:
        """All of them, the oldest first, by pages."""
        cursor: str | None = None
        while True:
            page = await self._db.report(
                partial(receipts.page, wanted=wanted, cursor=cursor, size=1000, oldest_first=True)
            )
            yield page.data
            cursor = page.next_cursor
            if cursor is None:
                return

    async def latest(self, owner_id: str, thread_id: str) -> str | None:
        """The newest stream of a conversation. Raises ``DatabaseAway``."""
        query = (
            sa.select(streams.c.id)
            .where(streams.c.owner_id == owner_id, streams.c.thread_id == thread_id)
            .order_by(streams.c.created_at.desc())
            .limit(1)
        )
        found = await self._db.read(lambda connection: connection.execute(query).first())
        return None if found is None else str(found.id)

    async def record(self, settlement: Settlement, opening: Opening) -> None:
        """A row that is opened and settled at once. What is of a test key is not billed, whoever says so."""
        row = rows.opening_values(opening, None) | rows.settlement_values(settlement)

        is_of_test_key = sa.select(keys.c.is_test).where(keys.c.id == opening.key_id)

        def record(connection: Connection) -> None:
            row["is_test"] = opening.test or bool(connection.scalar(is_of_test_key))
            connection.execute(sa.insert(streams), {k: v for k, v in row.items() if k in streams.c})
            exports.after_recording(connection, self._exporters, row)

        await self._db.write(record)

    async def totals(self, asked: Asked) -> list[Total]:
        """Sums of settled and running streams. Raises ``InvalidRequest``."""
        return await self._db.report(lambda connection: reports.totals(connection, asked))

    async def delete_rows(self, before: float) -> int:
        """Deletes some of the settled rows that were created before that; their sums stay. Returns how many:
        none is left where that is less than ``DELETED_AT_ONCE``.
        """
        return await self._db.write(lambda connection: retention.delete(connection, before))

    async def fold_hour(self, hour: int) -> None:
        """Makes the sums of an hour that is over as few rows as they can be."""
        await self._db.write(lambda connection: retention.fold(connection, hour))

    async def unpriced(self, since: float | None = None) -> list[Unpriced]:
        """Models that were used from ``since`` on, but by test keys, and whose streams have no price."""
        return await self._db.report(lambda connection: reports.unpriced(connection, since))

    async def verify(self, since: float | None = None, until: float | None = None) -> Verified:
        """Adds the rows up again, and compares that with the sums of their hours and with what the exporters
        were given. Each day of a large ledger is read by itself: what is said of it is of one moment, and not
        of the same as for the others.
        """
        found = Verified()
        while True:
            day = await self._db.report(
                partial(verify.day, since=since, until=until, exporters=self._exporters)
            )
            if not day.until:
                return found if found.until else day
            found, since = found.and_then(day), day.until

    async def compare(self, invoice: Invoice, provider: str | None = None) -> list[Difference]:
        """Where a provider's invoice and the rows of its streams do not agree."""
        return await self._db.report(lambda connection: invoices.compare(connection, invoice, provider))

    def crash(self) -> None:
        """Writes nothing from now on, as if the worker had been killed. For tests of what others do then."""
        self._writer.crash()
