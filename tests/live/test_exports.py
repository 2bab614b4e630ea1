"""Exporters in processes of their own, which are killed at any moment."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from functools import partial
from pathlib import Path
from random import Random

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

import exporting
from billing_servers import Stripe, serving
from millstream import schema
from millstream.database import Database
from millstream.ledger import Ledger
from millstream.ledger.exports import Exports
from services import postgres_server

CUSTOMERS = 500


@pytest.fixture(scope="module")
def postgres() -> Generator[str]:
    with postgres_server() as server:
        yield server.url


def settled(db: Database, number: int) -> dict[str, int]:
    """So many settled streams that wait for Stripe; what each of them is to count there."""
    now = time.time()
    values: dict[str, int] = {}
    for start in range(0, number, 10_000):
        rows = [
            {
                "id": f"str_{index:07}",
                "owner_id": "k",
                "key_id": "k",
                "user": f"cus_{index % CUSTOMERS}",
                "model": "m",
                "provider": "p",
                "status": "completed",
                "usage_source": "provider_final",
                "prompt_tokens": index % 1000,
                "completion_tokens": 1 + index % 77,
                "cached_tokens": 0,
                "reasoning_tokens": 0,
                "created_at": now,
                "ended_at": now,
            }
            for index in range(start, min(start + 10_000, number))
        ]
        waiting = [
            {
                "exporter": "stripe",
                "stream_id": row["id"],
                "is_correction": False,
                "settled_at": now,
                "due_at": now,
                "attempts": 0,
            }
            for row in rows
        ]
        for table, some in ((schema.streams, rows), (schema.exports, waiting)):
            db.run(partial(Connection.execute, statement=sa.insert(table), parameters=some))
        values |= {
            f"{row['id']}.tokens": row["prompt_tokens"] + row["completion_tokens"]  # type: ignore[operator]
            for row in rows
        }
    return values


class Worker:
    """An exporting process, and when it is to be killed: after so many events that reached Stripe."""

    def __init__(self, url: str, service: Stripe, events: int) -> None:
        command = [sys.executable, exporting.__file__, url, service.url]
        self.process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
        self.dies_at = sum(service.statuses.values()) + events

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)


async def export_through_kills(
    url: str, service: Stripe, random: Random, events: Callable[[], int], kills: int
) -> int:
    """Two workers export until nothing waits. Each is killed when so many ``events`` have come, and replaced,
    until there were so many kills; how many there were."""
    db, killed = Database(url), 0
    workers = [Worker(url, service, events()) for _ in range(2)]
    try:
        while await Exports(db).states():
            for place, worker in enumerate(workers):
                assert worker.process.poll() is None, "a worker ended by itself"
                if killed < kills and sum(service.statuses.values()) >= worker.dies_at:
                    worker.kill()
                    killed += 1
                    workers[place] = Worker(url, service, events())
            await asyncio.sleep(0.005)
    finally:
        for worker in workers:
            with suppress(ProcessLookupError):
                worker.kill()
        db.close()
    return killed


async def check_books(db: Database, url: str, number: int, kills: int, random: Random) -> Stripe:
    await Exports(db).begin("stripe")
    expected = settled(db, number)
    async with serving(service := Stripe(faults=random)):
        service.keeps_requests = False
        most = number // kills

        def events() -> int:
            return random.randrange(1, most)

        assert await export_through_kills(url, service, random, events, kills) >= kills // 2
    assert {name: len(times) for name, times in service.books.items()} == dict.fromkeys(expected, 1)
    assert service.counted == expected
    assert (await Ledger(db, exporters=("stripe",)).verify()).differences == []
    return service


@pytest.mark.parametrize(("kind", "number"), [("sqlite", 2500), ("postgres", 1000)])
async def test_every_stream_is_once_in_stripes_books_whatever_is_killed(
    kind: str, number: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """spec/faults.md: T7"""
    url = f"sqlite:///{tmp_path / 'x.db'}" if kind == "sqlite" else request.getfixturevalue("postgres")
    db = Database(url)
    db.migrate()
    try:
        service = await check_books(db, url, number, 5, Random(7))
    finally:
        db.close()
    # What was counted before its sender died was sent again, and refused.
    assert service.statuses[400] > 0


@pytest.mark.faults
@pytest.mark.timeout(7200)
async def test_a_million_streams_are_once_in_stripes_books_whatever_is_killed(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'x.db'}"
    db = Database(url)
    db.migrate()
    try:
        service = await check_books(db, url, 1_000_000, 100, Random(8))
    finally:
        db.close()
    print(dict(service.statuses))
