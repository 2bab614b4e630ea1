"""Upkeep: what happens to streams by the clock.

Running streams are checkpointed, and stopped when their key is revoked or expires. This worker's beat is
raised. Streams whose worker is gone, and streams that could not be ended while the journal was away, are
ended here. When keys were last used is written, and old rows are deleted.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress

from millstream.auth import Keys
from millstream.database import DatabaseAway
from millstream.errors import Interrupted, MillstreamError, StreamGone, Unauthorized, safe_traceback
from millstream.events import StreamFailed, Terminal
from millstream.journals import Journal
from millstream.ledger import Ledger
from millstream.ledger.rows import Orphan, Settlement
from millstream.streams.producer import Producer

log = logging.getLogger("millstream.streams")

CHECKPOINT_SECONDS = 1.0
BEAT_SECONDS = 2.0
SWEEP_SECONDS = 3.0
_REFUSED_SECONDS = 2.0
_USES_SECONDS = 60.0
OLD_ROWS_SECONDS = 1.0
_FOLD_SECONDS = 600.0
_FOLDED_HOURS = 48  # back, where a worker starts
_PRUNE_SECONDS = 3600.0
REPAIR_SECONDS = 5.0
_TURN_SECONDS = 0.002  # what of a round is done without letting others go on
_MAX_POSTPONED = 10_000


class Upkeep:
    """To be entered (``async with``) for as long as streams run. ``running`` are the producers of this
    worker, ``followed`` gives the ids of other workers' streams that are read here. Rows of the ledger are
    deleted after ``kept_seconds``.
    """

    def __init__(
        self,
        journal: Journal,
        ledger: Ledger,
        keys: Keys,
        running: Mapping[str, Producer],
        followed: Callable[[], Collection[str]],
        kept_seconds: float | None = None,
    ) -> None:
        self._journal = journal
        self._ledger = ledger
        self._keys = keys
        self._running = running
        self._followed = followed
        self._kept_seconds = kept_seconds
        self._folded_to = int(time.time() // 3600) - _FOLDED_HOURS
        self._postponed: dict[str, StreamFailed] = {}  # terminal events that the journal could not take yet
        self._suspects: set[str] = set()  # followed here, settled in the ledger, still open in the journal
        self._has_warned = False  # of company that cannot see our streams
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "Upkeep":
        jobs = {
            self._beat: BEAT_SECONDS,
            self._remove_expired_workers: SWEEP_SECONDS,
            self._end_orphans: SWEEP_SECONDS,
            self._end_postponed: REPAIR_SECONDS,
            self._end_settled: REPAIR_SECONDS,
            self._checkpoint: CHECKPOINT_SECONDS,
            self._expire: CHECKPOINT_SECONDS,
            self._stop_refused: _REFUSED_SECONDS,
            self._keys.write_uses: _USES_SECONDS,
            self._delete_old_rows: OLD_ROWS_SECONDS,
            self._fold_hours: _FOLD_SECONDS,
            self._ledger.prune: _PRUNE_SECONDS,
        }
        self._tasks = [asyncio.create_task(_every(seconds, job)) for job, seconds in jobs.items()]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with suppress(DatabaseAway):
            await self._keys.write_uses()

    # -- streams of this worker -------------------------------------------------------------

    async def _checkpoint(self) -> None:
        clock = asyncio.get_running_loop().time
        began = clock()
        for producer in list(self._running.values()):
            producer.audience.forget_silent_workers()
            if producer.has_grown:
                try:
                    await producer.checkpoint()
                except Exception as error:  # the others' must not wait for it
                    log.error("stream %s: %s", producer.info.stream_id, safe_traceback(error))
            if clock() - began > _TURN_SECONDS:
                await asyncio.sleep(0)  # counting takes time, and events come in between
                began = clock()

    async def _stop_refused(self) -> None:
        refused = await self._keys.refused_among({p.key_id for p in self._running.values()})
        for producer in list(self._running.values()):
            if producer.key_id in refused:
                producer.cancel(Unauthorized(), by="operator")

    async def _expire(self) -> None:
        self._journal.expire()

    # -- the ledger --------------------------------------------------------------------------

    async def _delete_old_rows(self) -> None:
        """A few at a time: streams that are opened wait for them."""
        if self._kept_seconds is not None:
            await self._ledger.delete_rows(time.time() - self._kept_seconds)

    async def _fold_hours(self) -> None:
        """Those that have been over for a while."""
        if not self._ledger.is_sharded:
            return
        for hour in range(self._folded_to, int(time.time() // 3600) - 1):
            await self._ledger.fold_hour(hour)
            self._folded_to = hour + 1

    # -- workers ----------------------------------------------------------------------------

    async def _beat(self) -> None:
        if not await self._ledger.beat():
            log.error("this worker was thought dead; its streams were ended by others")
            for producer in list(self._running.values()):
                producer.cancel(Interrupted(), by="crash")

    async def _remove_expired_workers(self) -> None:
        if expired := await self._ledger.leases.remove_expired():
            log.warning("workers that have died: %d", expired)
        if self._ledger.leases.has_company and not self._journal.is_shared and not self._has_warned:
            self._has_warned = True
            log.error(
                "another worker uses the same database, and each of the two keeps its streams in its "
                "own memory: a stream cannot be followed or stopped at the other one. Set "
                "MILLSTREAM_JOURNAL_URL to a Redis, or run one worker"
            )

    # -- streams without a producer ---------------------------------------------------------

    async def _end_orphans(self) -> None:
        """All of them at once, some at a time. What could not be ended waits for the next round."""
        tried: set[str] = set()
        while orphans := [o for o in await self._ledger.leases.orphans() if o.stream_id not in tried]:
            log.warning("ending %d streams of workers that are gone", len(orphans))
            tried.update(orphan.stream_id for orphan in orphans)
            for ended in await asyncio.gather(*map(self._end_orphan, orphans), return_exceptions=True):
                if isinstance(ended, Exception):
                    log.error("a stream cannot be ended: %s", safe_traceback(ended))

    async def _end_orphan(self, orphan: Orphan) -> None:
        """The journal ends before the row: if this worker dies in between, another one finds the row."""
        stands = await self._interrupt(orphan.stream_id, StreamFailed.of(Interrupted(), orphan.bill))
        await self._ledger.settle_orphan(Settlement.of(orphan, stands, time.time()))

    async def _end_postponed(self) -> None:
        """Appends the postponed terminal events, until one fails."""
        for stream_id, failed in list(self._postponed.items()):
            await self._interrupt(stream_id, failed)
            if stream_id in self._postponed:
                return

    async def _end_settled(self) -> None:
        """Ends streams that are followed here, are settled in the ledger and stay open in the journal for two
        rounds, without a worker that will end them: it stopped while the journal could not be reached.
        """
        suspects: set[str] = set()
        for stream_id in set(self._followed()) - self._running.keys():
            with suppress(MillstreamError):
                receipt = await self._ledger.receipt(stream_id)
                if receipt.status == "running" or await self._needs_no_end(stream_id):
                    continue
                if stream_id in self._suspects:
                    await self._interrupt(stream_id, StreamFailed.of(Interrupted(), receipt.bill))
                else:
                    suspects.add(stream_id)
        self._suspects = suspects

    async def _needs_no_end(self, stream_id: str) -> bool:
        """Whether it has its end in the journal, or has a worker that appends it when the journal is back."""
        try:
            state = await self._journal.state(stream_id)
        except StreamGone:
            return False
        return state.closed or await self._ledger.leases.holds(state.info.worker_id)

    async def _interrupt(self, stream_id: str, failed: StreamFailed) -> Terminal:
        """The terminal event to settle with: the journal's, or ``failed`` if the journal cannot say."""
        self._postponed.pop(stream_id, None)
        try:
            return await self._journal.interrupt(stream_id, failed)
        except StreamGone:
            pass
        except Exception as error:
            log.error("stream %s cannot be ended: %s", stream_id, safe_traceback(error))
            if len(self._postponed) < _MAX_POSTPONED:
                self._postponed[stream_id] = failed
        return failed


async def _every(seconds: float, job: Callable[[], Awaitable[object]]) -> None:
    while True:
        try:
            await job()
        except Exception as error:  # the next round may succeed
            log.error("%s: %s", getattr(job, "__name__", job), safe_traceback(error))
        await asyncio.sleep(seconds)
