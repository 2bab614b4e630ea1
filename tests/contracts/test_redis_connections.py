"""How many connections a worker has to its Redis, whatever comes at once. spec/faults.md: I6, D3."""

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from millstream.errors import Overloaded
from millstream.events import Position, StreamInfo, StreamStart
from millstream.journals.redis import RedisJournal
from millstream.journals.redis.connection import MAX_CONNECTIONS, Timeouts
from services import redis_programs

OWN = 2  # of each worker: what it sends and what it reads goes over a connection of its own
# A thousand look-ups on a machine that has other work: how long they take is not what is asked here.
PATIENT = Timeouts(connect=30, answer=30)


@pytest.fixture(params=redis_programs())
def url(request: pytest.FixtureRequest, redis_servers: Any) -> str:
    found: str = redis_servers(request.param)
    return found


async def produce(journal: RedisJournal) -> None:
    await journal.create(StreamInfo("s", "key", "m", 1.0))
    await journal.append("s", [StreamStart("s", "m")])
    await journal.flush("s")


async def test_a_rush_of_look_ups_leaves_few_connections_behind(url: str) -> None:
    async with (
        RedisJournal(url) as producer,
        RedisJournal(url, timeouts=PATIENT) as here,
        Redis.from_url(url) as redis,
    ):
        await produce(producer)
        before = len(await redis.client_list())
        async with asyncio.timeout(30):
            states = await asyncio.gather(*(here.state("s") for _ in range(1000)))
        assert {state.last for state in states} == {Position(1, 1)}
        assert len(await redis.client_list()) <= before + MAX_CONNECTIONS
        assert len(await redis.client_list()) <= 2 * (MAX_CONNECTIONS + OWN) + 1


async def test_look_ups_that_were_given_up_take_no_place_from_others(url: str) -> None:
    async with RedisJournal(url) as producer, RedisJournal(url) as here, Redis.from_url(url) as redis:
        await produce(producer)
        for round_ in range(5):
            chance = random.Random(round_)
            looks = [asyncio.create_task(here.state("s")) for _ in range(200)]
            for look in looks:
                asyncio.get_running_loop().call_later(chance.uniform(0, 0.1), look.cancel)
            await asyncio.gather(*looks, return_exceptions=True)
        async with asyncio.timeout(5):
            await asyncio.gather(*(here.state("s") for _ in range(MAX_CONNECTIONS)))
        assert len(await redis.client_list()) <= 2 * (MAX_CONNECTIONS + OWN) + 1


async def test_who_waits_too_long_for_a_connection_is_told_that_the_journal_is_away(tmp_path: Path) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    socket = tmp_path / "redis.sock"
    timeouts = Timeouts(connect=0.2, answer=0.2, leave=0.2)
    async with (
        asyncio.timeout(20),
        await asyncio.start_unix_server(silent, socket),
        RedisJournal(f"unix://{socket}", timeouts=timeouts) as here,
    ):
        started = asyncio.get_running_loop().time()
        found = await asyncio.gather(*(here.state("s") for _ in range(300)), return_exceptions=True)
        assert {type(outcome) for outcome in found} == {Overloaded}
        # Its turn, and what a command may take with its one repetition.
        assert asyncio.get_running_loop().time() - started < 3
