"""The streams of a worker that died are ended by another one, all of them in one round."""

import asyncio
import time
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import sqlalchemy as sa

from millstream.auth import Keys
from millstream.database import Database
from millstream.events import PartStart, StreamInfo, StreamStart, Text, TextDelta
from millstream.journals import Journal
from millstream.journals.memory import MemoryJournal
from millstream.journals.redis import RedisJournal
from millstream.ledger import Ledger
from millstream.ledger.rows import Opening
from millstream.schema import streams
from millstream.streams.upkeep import Upkeep


async def end_orphans(folder: Path, count: int, redis_url: str | None) -> float:
    """How many seconds it takes from the moment at which their worker is known to be dead."""
    db = Database(f"sqlite:///{folder / 'x.db'}")
    db.migrate()
    async with AsyncExitStack() as stack:
        stack.callback(db.close)
        dead = Ledger(db)
        await dead.__aenter__()  # and never leaves
        if redis_url is not None:
            made_by = await RedisJournal(redis_url).__aenter__()
            for i in range(count):
                await made_by.create(StreamInfo(f"s{i}", "k", "m", 1.0))
                await made_by.append(
                    f"s{i}", [StreamStart(f"s{i}", "m"), PartStart(0, Text()), TextDelta("Hel")]
                )
            await made_by.__aexit__()
        for start in range(0, count, 500):
            await asyncio.gather(
                *(dead.open(Opening(f"s{i}", "k", "k", "m", "p", 1.0)) for i in range(start, start + 500))
            )
        dead.crash()
        await dead.leases.leave()  # its lease is over
        journal: Journal = MemoryJournal() if redis_url is None else RedisJournal(redis_url)
        await stack.enter_async_context(journal)
        ledger = await stack.enter_async_context(Ledger(db))
        began = time.monotonic()
        await stack.enter_async_context(Upkeep(journal, ledger, Keys(db), {}, list))
        running = sa.select(sa.func.count()).where(streams.c.status == "running")
        while await db.read(lambda connection: connection.scalar(running)):
            await asyncio.sleep(0.01)
        seconds = time.monotonic() - began
        ended = await db.read(lambda c: c.execute(sa.select(streams.c.status).distinct()).scalars().all())
        assert list(ended) == ["interrupted"]
        return seconds


@pytest.mark.parametrize("journal", ["memory", "redis"])
async def test_many_orphans_are_ended_in_one_round(
    tmp_path: Path, journal: str, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue("redis_url") if journal == "redis" else None
    async with asyncio.timeout(60):
        await end_orphans(tmp_path, 1500, url)


@pytest.mark.faults
@pytest.mark.timeout(300)
@pytest.mark.parametrize("journal", ["memory", "redis"])
async def test_ten_thousand_orphans_are_ended_within_15_seconds(
    tmp_path: Path, journal: str, request: pytest.FixtureRequest
) -> None:
    """Their worker's lease takes the other 15 of 30."""
    url = request.getfixturevalue("redis_url") if journal == "redis" else None
    seconds = await end_orphans(tmp_path, 10_000, url)
    print(f"{seconds:.1f} s")
    assert seconds < 15
