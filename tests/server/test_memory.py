"""What a worker does about its memory."""

import asyncio
import time

import pytest

from millstream import Millstream, Settings
from millstream.events import StreamInfo
from millstream.server import memory


class Looks:
    """Lets ``give_back`` look once at a time, and notes what it does."""

    def __init__(self, monkeypatch, millstream):
        self.rests = 0
        self._turn, self._over = asyncio.Event(), asyncio.Event()
        monkeypatch.setattr(memory.asyncio, "sleep", self._sleep)
        monkeypatch.setattr(millstream.database, "rest", self._rest)

    async def _sleep(self, _seconds):
        self._over.set()
        await self._turn.wait()
        self._turn.clear()

    async def _rest(self):
        self.rests += 1

    async def one(self):
        self._over.clear()
        self._turn.set()
        async with asyncio.timeout(10):
            await self._over.wait()


@pytest.fixture
def millstream():
    made = Millstream(Settings(providers={"demo": {"type": "scripted"}}))
    yield made
    made.database.close()


async def test_memory_is_given_back_once_when_many_streams_have_gone(monkeypatch, millstream):
    looks = Looks(monkeypatch, millstream)
    looking = asyncio.create_task(memory.give_back(millstream))
    event_log = millstream.event_log
    names = [f"s{i}" for i in range(memory._RUSH)]
    for name in names:
        await event_log.create(StreamInfo(name, "o", "m", time.time()))
    await looks.one()
    for name in names[200:]:
        await event_log.forget(name)
    await looks.one()
    assert looks.rests == 0  # many are still there
    for name in names[100:200]:
        await event_log.forget(name)
    await looks.one()
    await looks.one()
    assert looks.rests == 1
    looking.cancel()


async def test_a_few_streams_are_not_worth_it(monkeypatch, millstream):
    looks = Looks(monkeypatch, millstream)
    looking = asyncio.create_task(memory.give_back(millstream))
    names = [f"s{i}" for i in range(memory._RUSH - 1)]
    for name in names:
        await millstream.event_log.create(StreamInfo(name, "o", "m", time.time()))
    await looks.one()
    for name in names:
        await millstream.event_log.forget(name)
    await looks.one()
    assert looks.rests == 0
    looking.cancel()
