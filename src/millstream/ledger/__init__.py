"""The ledger: one row a stream, opened before the provider is called, settled once."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from decimal import Decimal

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from millstream.database import Database, DatabaseAway, streams
from millstream.errors import IdempotencyConflict, NotFound
from millstream.ledger import exports, reports, rows
from millstream.ledger.leases import Leases
from millstream.ledger.reports import Total
from millstream.ledger.rows import Claim, Opening, Receipt, Settlement
from millstream.ledger.writer import Writer, not_opened
from millstream.usage import Group, Usage

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

    async def open(self, opening: Opening) -> None:
        """Returns when the row is committed.

        Raises ``Overloaded`` where it could not be, ``TooManyStreams``, and where its idempotency key is
        taken ``Claimed`` or, if that was by another request, ``IdempotencyConflict``.
        """
        try:
            await self._writer.open(rows.opening_values(opening, self.leases.worker_id), opening.max_open)
        except sa.exc.IntegrityError:
            if opening.claim is None:
                raise
            raise await self.claim_error(opening.owner_id, opening.claim) from None

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
        await self._writer.settle(rows.settlement_values(settlement), corrects=True)

    async def settle_orphan(self, settlement: Settlement) -> None:
        """The same for a stream whose worker is gone. A row that is no longer running stays as it is."""
        await self._writer.settle(rows.settlement_values(settlement), corrects=False)

    def checkpoint(self, stream_id: str, usage: Usage, cost: Decimal | None) -> None:
        """Notes what a running stream has used so far."""
        self._writer.checkpoint(stream_id, rows.usage_values(usage, cost))

    async def receipt(self, stream_id: str) -> Receipt:
        """Raises ``NotFound``."""
        query = sa.select(streams).where(streams.c.id == stream_id)
        row = await self._db.read(lambda connection: connection.execute(query).mappings().first())
        if row is None:
            raise NotFound(f"there is no stream '{stream_id}'")
        return rows.to_receipt(row)

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
        """A row that is opened and settled at once."""
        row = rows.opening_values(opening, None) | rows.settlement_values(settlement)

        def record(connection: Connection) -> None:
            connection.execute(sa.insert(streams), {k: v for k, v in row.items() if k != "stream_id"})
            exports.after_recording(connection, self._exporters, row)

        await self._db.write(record)

    async def totals(
        self,
        by: Group = "key",
        *,
        since: float | None = None,
        until: float | None = None,
        key_id: str | None = None,
    ) -> list[Total]:
        """Sums of settled and running streams that were created in [since, until)."""
        return await self._db.report(lambda connection: reports.totals(connection, by, since, until, key_id))

    def crash(self) -> None:
        """Writes nothing from now on, as if the worker had been killed. For tests of what others do then."""
        self._writer.crash()
