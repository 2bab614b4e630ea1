"""Anybody may ask whether the worker is ready; the stores are asked once a second. spec/faults.md: A18."""

import asyncio

import pytest

from application import Run, Running
from asgi import get
from millstream.database import DatabaseAway
from millstream.errors import Overloaded


class Stores:
    """Counts how often the stores are asked, and says what they answer."""

    def __init__(self, app: Running, monkeypatch: pytest.MonkeyPatch) -> None:
        self.database = self.journal = 0
        self.away: str | None = None
        self.slow: asyncio.Event | None = None
        monkeypatch.setattr(app.millstream.database, "ping", self._ping_database)
        monkeypatch.setattr(app.millstream.journal, "ping", self._ping_journal)

    async def _ping_database(self) -> None:
        self.database += 1
        if self.slow is not None:
            await self.slow.wait()
        if self.away == "database":
            raise DatabaseAway("it is away")

    async def _ping_journal(self) -> None:
        self.journal += 1
        if self.away == "journal":
            raise Overloaded("it is away")


async def ready(app: Running) -> tuple[int | None, str]:
    async with get(app.app, "/readyz") as call:
        await call.finished()
        return call.status, call.json["status"]


async def test_a_thousand_who_ask_at_once_are_one_question(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream.runtime.readiness.KEPT_SECONDS", 600)
    async with run() as app:
        stores = Stores(app, monkeypatch)
        stores.slow = asyncio.Event()
        asking = [asyncio.create_task(ready(app)) for _ in range(1000)]
        async with asyncio.timeout(10):
            while not stores.database:
                await asyncio.sleep(0)
        stores.slow.set()
        assert set(await asyncio.gather(*asking)) == {(200, "ok")}
        assert await ready(app) == (200, "ok")
        assert (stores.database, stores.journal) == (1, 1)


async def test_an_answer_is_a_second_old_at_most(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async with run() as app:
        stores = Stores(app, monkeypatch)
        assert await ready(app) == (200, "ok")
        for away, words in (
            ("database", "the database does not answer"),
            ("journal", "the journal does not answer"),
        ):
            stores.away = away
            async with asyncio.timeout(1.5):
                while (found := await ready(app)) != (503, words):
                    await asyncio.sleep(0.01)
            assert found == (503, words)
        assert stores.database <= 5


async def test_what_the_worker_knows_by_itself_is_never_old(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millstream.runtime.readiness.KEPT_SECONDS", 600)
    async with run() as app:
        assert await ready(app) == (200, "ok")
        app.millstream.streams.draining = True
        assert await ready(app) == (503, "draining")


async def test_who_gives_up_leaves_the_question_to_the_next(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with run() as app:
        stores = Stores(app, monkeypatch)
        stores.slow = asyncio.Event()
        impatient = asyncio.create_task(app.millstream.readiness.problem())
        async with asyncio.timeout(10):
            while not stores.database:
                await asyncio.sleep(0)
        patient = asyncio.create_task(ready(app))
        impatient.cancel()
        stores.slow.set()
        async with asyncio.timeout(10):
            assert await patient == (200, "ok")
