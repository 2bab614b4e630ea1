"""The faults: how each begins, how it ends, and what it lies on. What is allowed meanwhile is in ``checker``.

A fault holds what it lies on, so two faults of one worker or store come one after the other, while faults of
different ones overlap. Every fault ends what it began, also where the run is broken off.
"""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import TypeAlias

import sqlalchemy as sa

from nemesis.plans import FaultPlan, SetUp
from nemesis.records import Fault
from nemesis.servers import Cluster, Worker

LEASE_SECONDS = 15.0
LONG_SECONDS = LEASE_SECONDS + 4.0  # what is surely longer than a lease, with the sweep that finds it
DATABASE, LOG = "database", "log"

Begin: TypeAlias = Callable[[Cluster, FaultPlan], AbstractAsyncContextManager[str]]


def worker_of(cluster: Cluster, plan: FaultPlan) -> Worker:
    return cluster.workers[plan.target % len(cluster.workers)]


@asynccontextmanager
async def kill(cluster: Cluster, plan: FaultPlan) -> AsyncGenerator[str]:
    """SIGKILL. It is started again after a while, as a supervisor would."""
    worker = worker_of(cluster, plan)
    worker.held = True
    worker.kill()
    try:
        yield ""
    finally:
        worker.held = False
        await _serves(worker)


@asynccontextmanager
async def terminate(cluster: Cluster, plan: FaultPlan) -> AsyncGenerator[str]:
    """SIGTERM, and a successor."""
    worker = worker_of(cluster, plan)
    worker.held = True
    try:
        await worker.terminate()
        yield ""
    finally:
        worker.held = False
        await _serves(worker)


async def _serves(worker: Worker) -> None:
    """Waits, not for ever, until it serves: what else is broken may keep it from it."""
    limit = time.monotonic() + 25
    while time.monotonic() < limit and not (worker.alive and worker.has_served()):
        await asyncio.sleep(0.1)


@asynccontextmanager
async def pause(cluster: Cluster, plan: FaultPlan) -> AsyncGenerator[str]:
    """SIGSTOP and SIGCONT, for less than a lease."""
    worker = worker_of(cluster, plan)
    process = worker.pid
    worker.send(signal.SIGSTOP)
    try:
        yield ""
    finally:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGCONT)


@asynccontextmanager
async def exhaust_descriptors(cluster: Cluster, plan: FaultPlan) -> AsyncGenerator[str]:
    worker = worker_of(cluster, plan)
    worker.limit_descriptors(plan.target % 5)
    try:
        yield ""
    finally:
        worker.limit_descriptors(None)


@asynccontextmanager
async def jump_clock(cluster: Cluster, plan: FaultPlan) -> AsyncGenerator[str]:
    """The wall clock of one worker goes ahead or back, and comes right again. Monotonic clocks do not move.

    What a process is told by ``time.time`` is changed in the process. libfaketime is not used: it holds the
    threads of a worker up for seconds, which is a fault of another kind.
    """
    worker = worker_of(cluster, plan)
    by = ("3600", "-3600", "86400", "-86400", "2")[round(plan.seconds * 1000) % 5]
    worker.clock.write_text(by, encoding="utf-8")
    yield by
    worker.clock.write_text("0", encoding="utf-8")


@asynccontextmanager
async def kill_redis(cluster: Cluster, plan: FaultPlan) -> AsyncGenerator[str]:
    """It comes back empty."""
    redis = cluster.redis
    assert redis is not None
    await asyncio.to_thread(redis.kill)
    try:
        yield ""
    finally:
        await asyncio.to_thread(redis.start)


@asynccontextmanager
async def freeze_redis(cluster: Cluster, plan: FaultPlan) -> AsyncGenerator[str]:
    redis = cluster.redis
    assert redis is not None
    redis.send(signal.SIGSTOP)
    try:
        yield ""
    finally:
        redis.send(signal.SIGCONT)


@asynccontextmanager
async def pause_redis(cluster: Cluster, plan: FaultPlan) -> AsyncGenerator[str]:
    """It takes connections and commands, and answers none."""
    redis = cluster.redis
    assert redis is not None
    await asyncio.to_thread(redis.command, "CLIENT", "PAUSE", round(plan.seconds * 1000), "ALL")
    yield ""


@asynccontextmanager
async def fill_redis(cluster: Cluster, plan: FaultPlan) -> AsyncGenerator[str]:
    redis = cluster.redis
    assert redis is not None
    await asyncio.to_thread(redis.command, "CONFIG", "SET", "maxmemory", "1")
    try:
        yield ""
    finally:
        await asyncio.to_thread(redis.command, "CONFIG", "SET", "maxmemory", "0")


@asynccontextmanager
async def refuse_redis(cluster: Cluster, plan: FaultPlan) -> AsyncGenerator[str]:
    """It takes no writes, as after it has lost its replicas."""
    redis = cluster.redis
    assert redis is not None
    await asyncio.to_thread(redis.command, "CONFIG", "SET", "min-replicas-to-write", "1")
    try:
        yield ""
    finally:
        await asyncio.to_thread(redis.command, "CONFIG", "SET", "min-replicas-to-write", "0")


@asynccontextmanager
async def cut_redis(cluster: Cluster, plan: FaultPlan) -> AsyncGenerator[str]:
    """All its connections are closed, once."""
    redis = cluster.redis
    assert redis is not None
    await asyncio.to_thread(redis.command, "CLIENT", "KILL", "TYPE", "normal")
    yield ""


@asynccontextmanager
async def kill_postgres(cluster: Cluster, plan: FaultPlan) -> AsyncGenerator[str]:
    postgres = cluster.postgres
    assert postgres is not None
    await asyncio.to_thread(postgres.kill)
    try:
        yield ""
    finally:
        await asyncio.to_thread(postgres.start)


@asynccontextmanager
async def freeze_postgres(cluster: Cluster, plan: FaultPlan) -> AsyncGenerator[str]:
    postgres = cluster.postgres
    assert postgres is not None
    postgres.freeze()
    try:
        yield ""
    finally:
        postgres.thaw()


@asynccontextmanager
async def refuse_postgres(cluster: Cluster, plan: FaultPlan) -> AsyncGenerator[str]:
    """It takes no writes."""

    def allow(writes: bool) -> None:
        value = "off" if writes else "on"
        cluster.run(
            "SET default_transaction_read_only = off",
            f"ALTER SYSTEM SET default_transaction_read_only = {value}",
            "SELECT pg_reload_conf()",
        )

    await asyncio.to_thread(allow, False)
    try:
        yield ""
    finally:
        await asyncio.to_thread(allow, True)


@asynccontextmanager
async def cut_postgres(cluster: Cluster, plan: FaultPlan) -> AsyncGenerator[str]:
    """All its connections but ours are closed, once."""
    ours = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
    await asyncio.to_thread(cluster.run, f"{ours} AND backend_type = 'client backend'")
    yield ""


@asynccontextmanager
async def lock_table(cluster: Cluster, plan: FaultPlan) -> AsyncGenerator[str]:
    table = ("streams", "workers", "keys")[plan.target % 3]
    connection = await asyncio.to_thread(cluster.engine.connect)
    try:
        await asyncio.to_thread(connection.exec_driver_sql, f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        yield table
    finally:
        with suppress(sa.exc.DBAPIError):  # it was killed meanwhile
            await asyncio.to_thread(connection.rollback)
        with suppress(sa.exc.DBAPIError):
            await asyncio.to_thread(connection.close)


@asynccontextmanager
async def lock_sqlite(cluster: Cluster, plan: FaultPlan) -> AsyncGenerator[str]:
    with contextlib.closing(cluster.engine.raw_connection()) as connection:
        cursor = connection.cursor()
        cursor.execute("PRAGMA busy_timeout=10000")
        await asyncio.to_thread(cursor.execute, "BEGIN IMMEDIATE")
        try:
            yield ""
        finally:
            cursor.execute("ROLLBACK")


@asynccontextmanager
async def fill_disk(cluster: Cluster, plan: FaultPlan) -> AsyncGenerator[str]:
    """The disk that the SQLite database is on has no room left."""
    filler = cluster.disk / "filler"
    await asyncio.to_thread(_fill, filler)
    try:
        yield ""
    finally:
        filler.unlink()


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file, suppress(OSError):
        for size in (1 << 20, 1 << 12, 1):
            with suppress(OSError):
                while file.write(b"\0" * size) == size:
                    pass


class Kind:
    """A fault that there is: how often it comes, for how long, and where."""

    def __init__(
        self,
        begin: Begin,
        touches: str,
        weight: int,
        set_ups: Sequence[SetUp] = ("single", "fleet"),
        *,
        seconds: float | None = None,
    ) -> None:
        self.begin, self.touches, self.weight, self.set_ups = begin, touches, weight, set_ups
        self.seconds = seconds  # where it has a length of its own


WORKER = "worker"
_DOWN_SECONDS = 1.5  # until a worker that was ended is started again
_REST_SECONDS = 3.0  # what a worker or a store has before the next fault of its own
KINDS: dict[str, Kind] = {
    "kill": Kind(kill, WORKER, 8, seconds=_DOWN_SECONDS),
    "terminate": Kind(terminate, WORKER, 4, seconds=0.0),
    "pause": Kind(pause, WORKER, 7),
    "pause-lease": Kind(pause, WORKER, 3, seconds=LONG_SECONDS),
    "descriptors": Kind(exhaust_descriptors, WORKER, 4),
    "clock": Kind(jump_clock, WORKER, 4),
    "redis-kill": Kind(kill_redis, LOG, 5, ("fleet",)),
    "redis-freeze": Kind(freeze_redis, LOG, 4, ("fleet",)),
    "redis-pause": Kind(pause_redis, LOG, 2, ("fleet",)),
    "redis-full": Kind(fill_redis, LOG, 3, ("fleet",)),
    "redis-readonly": Kind(refuse_redis, LOG, 3, ("fleet",)),
    "redis-cut": Kind(cut_redis, LOG, 2, ("fleet",), seconds=0.1),
    "postgres-kill": Kind(kill_postgres, DATABASE, 4, ("fleet",)),
    "postgres-freeze": Kind(freeze_postgres, DATABASE, 4, ("fleet",)),
    "postgres-readonly": Kind(refuse_postgres, DATABASE, 3, ("fleet",)),
    "postgres-cut": Kind(cut_postgres, DATABASE, 2, ("fleet",), seconds=0.1),
    "postgres-lock": Kind(lock_table, DATABASE, 4, ("fleet",)),
    "sqlite-lock": Kind(lock_sqlite, DATABASE, 8, ("single",)),
    "disk-full": Kind(fill_disk, DATABASE, 8, ("single",)),
}


def available(cluster: Cluster) -> tuple[list[str], dict[str, str]]:
    """The faults that can be made here, and why others cannot."""
    absent: dict[str, str] = {}
    if cluster.set_up == "single" and not os.path.ismount(cluster.disk):
        absent["disk-full"] = "no file system may be mounted here"
    names = [name for name, kind in KINDS.items() if cluster.set_up in kind.set_ups]
    return [name for name in names if name not in absent], {n: why for n, why in absent.items() if n in names}


class Nemesis:
    """Makes the faults of a plan, each at its time, and notes when it began and ended."""

    def __init__(self, cluster: Cluster) -> None:
        self.faults: list[Fault] = []
        self.failed: list[str] = []
        self._cluster = cluster
        self._locks: dict[str, asyncio.Lock] = {}

    async def make(self, plan: FaultPlan) -> None:
        kind = KINDS[plan.name]
        lies_on = kind.touches
        if lies_on == WORKER:
            lies_on = f"worker:{worker_of(self._cluster, plan).number}"
        async with self._locks.setdefault(lies_on, asyncio.Lock()):
            if lies_on.startswith("worker") and not worker_of(self._cluster, plan).alive:
                return
            fault = Fault(plan.name, frozenset({lies_on}), time.monotonic())
            self.faults.append(fault)
            try:
                async with kind.begin(self._cluster, plan) as fault.note:
                    await asyncio.sleep(plan.seconds if kind.seconds is None else kind.seconds)
            except (OSError, sa.exc.DBAPIError, TimeoutError) as error:  # another fault was in its way
                self.failed.append(f"{plan.name}: {type(error).__name__}")
            fault.ended_at = time.monotonic()
            await asyncio.sleep(_REST_SECONDS)
