"""The blocking read of a worker."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, cast

import pytest

from millstream.events import Position
from millstream.journals.redis.connection import Timeouts
from millstream.journals.redis.replicas import Replicas, _Replica
from millstream.journals.redis.signals import Signals

READS = 5


class BusyRedis:
    """One that has something new whenever it is asked."""

    def __init__(self) -> None:
        self.asked_at: list[float] = []
        self.enough = asyncio.Event()

    async def ask(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        self.asked_at.append(asyncio.get_running_loop().time())
        if len(self.asked_at) == READS:
            self.enough.set()
            await asyncio.Event().wait()
        await asyncio.sleep(0)
        return [[(b"millstream:signals", [])]]


@pytest.mark.parametrize(("followed", "seconds"), [(1000, 0.019), (4, 0)])
async def test_who_follows_much_asks_less_often_so_that_it_costs_redis_no_more(
    followed: int, seconds: float
) -> None:
    redis = BusyRedis()
    replicas = Replicas(
        None, cast(Any, redis), Signals(None, lambda _: None), Timeouts(), max_stream_bytes=1 << 20
    )
    for number in range(followed):
        replicas._replicas[f"str_{number}"] = _Replica(Position(1, 1))  # noqa: SLF001  # no Redis is there
    reading = asyncio.create_task(replicas.run())
    async with asyncio.timeout(10):
        await redis.enough.wait()
    reading.cancel()
    with suppress(asyncio.CancelledError):
        await reading
    took = redis.asked_at[-1] - redis.asked_at[0]
    assert took >= seconds * (READS - 1)
    assert len(redis.asked_at) == READS
