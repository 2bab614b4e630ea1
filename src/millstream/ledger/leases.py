"""Leases: which workers live, so that the streams of those that do not can be ended for them.

A worker raises its beat as long as it lives. A worker whose beat has stood still for a lease is removed by
another one; its running rows are orphans then (docs/decisions/0006-leases-in-the-ledger.md).
"""

import secrets
from collections.abc import Callable

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from millstream.database import Database
from millstream.ledger.rows import Orphan, to_orphan
from millstream.schema import streams, workers

LEASE_SECONDS = 15.0  # how long a worker's beat may stand still
_ORPHANS = 500


class Leases:
    """The lease of this worker, and its view of the others'. ``clock`` is monotonic, in seconds."""

    def __init__(self, db: Database, clock: Callable[[], float]) -> None:
        self._db = db
        self._clock = clock
        self.worker_id = ""
        # Other workers' beats: the last one seen, and since when it has not changed, by this worker's
        # monotonic clock. No other clock is used.
        self._beats: dict[str, tuple[int, float]] = {}
        self._looked_at = 0.0
        self._beaten_at = 0.0  # when a beat of ours was last written
        self.has_company = False  # another worker's beat was seen to rise

    async def enlist(self) -> None:
        """Makes this a new worker."""
        self.worker_id = f"wrk_{secrets.token_urlsafe(12)}"
        row = {"id": self.worker_id, "beat": 0}
        await self._db.write(lambda connection: connection.execute(sa.insert(workers), row))
        self._beaten_at = self._clock()

    async def leave(self) -> None:
        """To be called when all rows of this worker are settled."""
        mine = sa.delete(workers).where(workers.c.id == self.worker_id)
        await self._db.write(lambda connection: connection.execute(mine))

    async def beat(self) -> bool:
        """Raises this worker's beat. Returns False if another worker has deleted its row; its running streams
        are orphans then, and it has enlisted again under a new id."""
        mine = sa.update(workers).where(workers.c.id == self.worker_id).values(beat=workers.c.beat + 1)
        written = await self._db.write(lambda connection: connection.execute(mine).rowcount)
        self._beaten_at = self._clock()
        if written:
            return True
        await self.enlist()
        return False

    async def holds(self, worker_id: str) -> bool:
        """Whether that worker has its lease, whether or not it is this one."""
        its = sa.select(workers.c.id).where(workers.c.id == worker_id)
        return await self._db.read(lambda connection: connection.scalar(its)) is not None

    async def remove_expired(self) -> int:
        """Deletes each worker whose beat has not changed for a lease; returns how many. After a pause of half
        a lease it forgets what it has seen and starts over. To be called every few seconds.

        Nobody is judged by beats while our own cannot be written: then those of the others cannot either.
        """
        now = self._clock()
        if now - self._looked_at > LEASE_SECONDS / 2 or now - self._beaten_at > LEASE_SECONDS / 2:
            self._beats.clear()
        found = await self._db.read(lambda c: c.execute(sa.select(workers.c.id, workers.c.beat)).all())
        known, self._beats, self._looked_at = self._beats, {}, now
        expired: list[tuple[str, int]] = []
        for worker_id, beat in found:
            last, since = known.get(worker_id, (None, now))
            self._beats[worker_id] = (beat, since if beat == last else now)
            if last not in (None, beat) and worker_id != self.worker_id:
                self.has_company = True
            if beat == last and now - since > LEASE_SECONDS and worker_id != self.worker_id:
                expired.append((worker_id, beat))

        def delete(connection: Connection) -> int:
            return sum(
                connection.execute(
                    sa.delete(workers).where(workers.c.id == worker_id, workers.c.beat == beat)
                ).rowcount
                for worker_id, beat in expired
            )

        return await self._db.write(delete) if expired else 0

    async def orphans(self) -> list[Orphan]:
        """Running rows whose worker has no row any more, 500 at most."""
        query = (
            sa.select(streams)
            .where(streams.c.worker_id.is_not(None), streams.c.worker_id.not_in(sa.select(workers.c.id)))
            .limit(_ORPHANS)
        )
        found = await self._db.read(lambda connection: connection.execute(query).mappings().all())
        return [to_orphan(row) for row in found]
