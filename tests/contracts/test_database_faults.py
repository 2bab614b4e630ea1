"""What happens to money when the database cannot be had: it waits, it is said, and nothing waits without end."""

import asyncio
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from decimal import Decimal
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa

from descriptors import no_descriptors
from millstream.database import Database, DatabaseAway, RowTaken
from millstream.driver import DriverConnection, Prepared
from millstream.errors import ConfigurationError, Overloaded, TooManyStreams
from millstream.ledger import Ledger
from millstream.ledger.leases import LEASE_SECONDS
from millstream.ledger.rows import Claim, Opening, Settlement
from millstream.schema import streams, workers
from millstream.usage import UNKNOWN, Charge, Usage
from services import Postgres, postgres_server

_INSERT = Prepared(sa.insert(workers), ("id", "beat"))


def opening(
    stream_id: str, owner_id: str = "k", max_open: int | None = None, claim: Claim | None = None
) -> Opening:
    return Opening(stream_id, owner_id, "k", "m", "p", time.time(), max_open=max_open, claim=claim)


def settlement(stream_id: str, usage: Usage | None = None, *, interrupted: bool = False) -> Settlement:
    usage = usage or Usage(10, 5, "provider_final")
    if interrupted:
        return Settlement(
            stream_id, "interrupted", None, "interrupted", usage, UNKNOWN, None, time.time(), "p"
        )
    charge = Charge(Decimal("0.1"), Decimal("0.2"))
    return Settlement(stream_id, "completed", "stop", None, usage, charge, time.time(), time.time(), "p")


@pytest.fixture(scope="session")
def own_postgres() -> Iterator[Postgres]:
    """A PostgreSQL to be mistreated."""
    with postgres_server() as server:
        yield server


@pytest.fixture
def postgres_db(own_postgres: Postgres) -> Iterator[Database]:
    db = Database(own_postgres.url, answer_seconds=1.0)
    db.migrate()
    db.run(lambda connection: connection.execute(sa.delete(streams)))
    yield db
    db.close()


@pytest.fixture
def sqlite_db(tmp_path: Path) -> Iterator[Database]:
    db = Database(f"sqlite:///{tmp_path / 'x.db'}", answer_seconds=3.0)
    db.migrate()
    yield db
    db.close()


def administer(url: str, *statements: str) -> None:
    engine = sa.create_engine(
        sa.make_url(url).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT"
    )
    with engine.connect() as connection:
        for statement in statements:
            connection.execute(sa.text(statement))
    engine.dispose()


# -- how it is connected -------------------------------------------------------------------------


@pytest.mark.parametrize("variable", [False, True])
def test_options_of_postgres_are_kept(
    own_postgres: Postgres, variable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = own_postgres.url
    if variable:
        monkeypatch.setenv("PGOPTIONS", "-c work_mem=5MB -c statement_timeout=1")
    else:
        url += "&options=-c%20work_mem%3D5MB"
    db = Database(url)
    names = ("work_mem", "statement_timeout", "lock_timeout")
    shown = db.run(lambda connection: [connection.scalar(sa.text(f"SHOW {name}")) for name in names])
    db.close()
    assert shown == ["5MB", "30s", "4s"]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("tcp_user_timeout=9&connect_timeout=9", "leave out connect_timeout, tcp_user_timeout; Millstream"),
        ("client_encoding=latin1", "leave out client_encoding; Millstream"),
        ("options=-c%20statement_timeout%3D9%20--lock-timeout%3D9", "leave out lock-timeout, statement_time"),
    ],
)
def test_options_that_are_not_ones_own_are_refused(query: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        Database(f"postgresql://x/y?{query}")


def test_options_that_are_ones_own_or_change_nothing_are_taken() -> None:
    Database("postgresql://x/y?client_encoding=utf8&options=-c%20deadlock_timeout%3D2s").close()


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_a_database_of_another_encoding_is_refused_in_words(own_postgres: Postgres, encoding: str) -> None:
    name = encoding.lower()
    administer(
        own_postgres.url,
        f"CREATE DATABASE {name} ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0",
    )
    db = Database(own_postgres.url.replace("/postgres?", f"/{name}?"))
    with pytest.raises(ConfigurationError, match=f"{name} keeps its texts in {encoding}"):
        db.migrate()
    db.close()


def test_the_encoding_of_a_client_does_not_matter(
    own_postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", "SQL_ASCII")
    db = Database(own_postgres.url)
    assert db.run(lambda connection: connection.scalar(sa.text("SELECT 'ä'"))) == "ä"
    db.close()


def test_a_session_that_was_ended_while_idle_is_no_error(
    own_postgres: Postgres, postgres_db: Database, caplog: pytest.LogCaptureFixture
) -> None:
    def use() -> None:
        postgres_db.run(lambda connection: connection.scalar(sa.text("SELECT 1")))
        postgres_db.run_by_hand(lambda _: None)

    use()
    administer(
        own_postgres.url,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'",
    )
    use()
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


# -- settlements wait ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("breaks", "mends"),
    [
        (
            "ALTER SYSTEM SET default_transaction_read_only = on",
            "ALTER SYSTEM SET default_transaction_read_only = off",
        ),
        ("ALTER TABLE streams RENAME TO elsewhere", "ALTER TABLE elsewhere RENAME TO streams"),
    ],
)
async def test_what_postgres_does_not_take_for_now_is_kept_until_it_does(
    own_postgres: Postgres,
    postgres_db: Database,
    breaks: str,
    mends: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    url = own_postgres.url
    async with Ledger(postgres_db) as ledger:
        await ledger.open(opening("s"))
        await asyncio.to_thread(administer, url, breaks, "SELECT pg_reload_conf()")
        try:
            async with asyncio.timeout(10):
                settling = asyncio.create_task(ledger.settle(settlement("s")))
                while not ledger.is_away:
                    await asyncio.sleep(0)
                with pytest.raises(Overloaded):
                    await ledger.open(opening("other"))
                assert not settling.done()
        finally:
            mend = (mends, "SELECT pg_reload_conf()")
            await asyncio.to_thread(administer, url, "SET default_transaction_read_only = off", *mend)
        async with asyncio.timeout(10):
            await settling
        assert (await ledger.receipt("s")).status == "completed"
        assert "the ledger cannot be written" in caplog.text
        await ledger.open(opening("after"))
        await ledger.settle(settlement("after"))


async def test_a_damaged_file_of_sqlite_is_away_and_not_the_rows_fault(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    db = Database(f"sqlite:///{path}")
    db.migrate()
    db.close()
    with path.open("r+b") as file:  # every page but the first
        file.seek(4096)
        file.write(os.urandom(path.stat().st_size - 4096))
    db = Database(f"sqlite:///{path}")
    with pytest.raises(DatabaseAway, match="damaged"):
        db.run(lambda connection: connection.execute(sa.insert(streams).values(id="x")))
    db.close()


def test_a_connection_that_is_given_up_keeps_no_file_open(sqlite_db: Database) -> None:
    """Its error has the frames that had it."""
    insert = Prepared(sa.insert(workers).prefix_with("OR ROLLBACK"), ("id", "beat"))

    def fail(connection: DriverConnection) -> None:
        for _ in range(2):  # the second one ends the transaction by itself, as a full disk does
            connection.run(insert, [{"id": "w", "beat": 1}])

    errors: list[RowTaken] = []
    open_files = []
    for _ in range(10):
        try:
            sqlite_db.run_by_hand(fail)
        except RowTaken as error:
            errors.append(error)
        open_files.append(len(psutil.Process().open_files()))
    assert len(errors) == 10
    assert max(open_files) <= open_files[0] + 1


async def test_a_connection_that_postgres_ended_while_nobody_used_it_refuses_no_start(
    own_postgres: Postgres, postgres_db: Database, caplog: pytest.LogCaptureFixture
) -> None:
    ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
    async with Ledger(postgres_db) as ledger:
        await ledger.open(opening("s"))
        await asyncio.to_thread(administer, own_postgres.url, ended)
        await ledger.open(opening("after"))
        for stream_id in ("s", "after"):
            await ledger.settle(settlement(stream_id))
    assert "cannot be written" not in caplog.text


# -- no wait without end ---------------------------------------------------------------------------


async def test_a_frozen_database_is_waited_for_no_longer_than_its_clock(
    own_postgres: Postgres, postgres_db: Database
) -> None:
    await postgres_db.ping()
    own_postgres.freeze()
    began = time.monotonic()
    waits = [postgres_db.read(lambda c: c.execute(sa.select(streams)).all()) for _ in range(20)]
    results = await asyncio.gather(*waits, postgres_db.ping(), return_exceptions=True)
    assert {type(result) for result in results} == {DatabaseAway}
    assert time.monotonic() - began < 3
    own_postgres.thaw()
    async with asyncio.timeout(20):
        while True:  # its threads come back, with new connections
            with suppress(DatabaseAway):
                await postgres_db.read(lambda c: c.execute(sa.select(streams)).all())
                break


async def test_leaving_a_frozen_database_has_a_bound(
    own_postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millstream.ledger.LEAVE_SECONDS", 0.5)
    db = Database(own_postgres.url, answer_seconds=1.0)
    async with Ledger(db) as ledger:
        await ledger.open(opening("frozen"))
        own_postgres.freeze()
        settling = asyncio.create_task(ledger.settle(settlement("frozen")))
        await asyncio.sleep(0)
        began = time.monotonic()
    await asyncio.to_thread(db.close)
    assert time.monotonic() - began < 6
    own_postgres.thaw()
    settling.cancel()


async def test_what_nobody_waits_for_any_more_is_not_written_later(
    tmp_path: Path, sqlite_db: Database
) -> None:
    """Whoever was told that the database is away must not find it done."""
    let_go, done = threading.Event(), asyncio.Event()
    sqlite_db.submit(let_go.wait, lambda *_: done.set())
    insert = sa.insert(workers).values(id="w", beat=0)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await sqlite_db.write(lambda connection: connection.execute(insert))
    let_go.set()
    await done.wait()
    await sqlite_db.write(lambda connection: None)
    found = await sqlite_db.read(lambda connection: connection.execute(sa.select(workers)).all())
    assert found == []


async def test_work_for_a_closed_database_is_answered(tmp_path: Path) -> None:
    db = Database(f"sqlite:///{tmp_path / 'x.db'}")
    begun, let_go = threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        let_go.wait()

    errors: asyncio.Queue[BaseException | None] = asyncio.Queue()

    def submit(work: Callable[[], None]) -> None:
        db.submit(work, lambda _, error: errors.put_nowait(error))

    submit(wait)
    submit(lambda: None)
    await asyncio.to_thread(begun.wait)
    closing = asyncio.create_task(asyncio.to_thread(db.close))
    async with asyncio.timeout(5):
        while not db.is_closed:
            await asyncio.sleep(0)
        let_go.set()
        await closing
        submit(lambda: None)
        found = [await errors.get() for _ in range(3)]
    assert [type(error) for error in found] == [type(None), DatabaseAway, DatabaseAway]
    for ask in (db.read, db.report):
        with pytest.raises(DatabaseAway, match="it is closed"):
            await ask(lambda connection: None)


async def test_reports_hold_up_nobody_at_the_door(sqlite_db: Database) -> None:
    def slow(connection: sa.Connection) -> None:
        count = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000000)"
        connection.execute(sa.text(f"{count} SELECT count(*) FROM n"))

    reports = [asyncio.create_task(sqlite_db.report(slow)) for _ in range(4)]
    await asyncio.sleep(0)
    await sqlite_db.read(lambda connection: None)
    assert not reports[-1].done()
    await asyncio.gather(*reports)


@pytest.mark.parametrize("left", range(5))
async def test_without_descriptors_the_database_is_away_and_nothing_else(
    database_url: str, left: int
) -> None:
    """Each of the few that a connection needs is missed somewhere else."""
    db = Database(database_url)
    db.migrate()
    await db.close_idle_connections()
    works: list[Callable[[], Awaitable[object]]] = [
        lambda: db.read(lambda connection: connection.execute(sa.select(workers.c.id)).all()),
        lambda: db.write(lambda connection: connection.execute(sa.delete(workers))),
        lambda: db.write_by_hand(lambda connection: connection.run(_INSERT, [{"id": "w", "beat": 1}])),
    ]
    for work in works:
        with no_descriptors(but=left), suppress(DatabaseAway):
            await work()
    await db.write(lambda connection: connection.execute(sa.delete(workers)))
    for work in works:
        await work()
    db.close()


def test_what_a_failure_kept_the_server_from_preparing_is_prepared_later(db: Database) -> None:
    """PostgreSQL skips what was sent behind an error. Its driver prepares each statement for each size of its
    numbers.
    """

    def write(**beats: int) -> None:
        rows = [{"id": worker_id, "beat": beat} for worker_id, beat in beats.items()]
        db.run_by_hand(lambda connection: connection.run(_INSERT, rows))

    write(taken=1)
    for beat in (1, 1 << 16, 1 << 32):
        with pytest.raises(RowTaken):
            write(taken=1)
        write(**{f"before{beat}": beat})
        with pytest.raises(RowTaken):
            write(taken=1, skipped=beat)
        write(**{f"after{beat}": beat})


# -- overload and limits ---------------------------------------------------------------------------


async def test_while_sqlite_is_locked_openings_are_refused_at_once_and_nothing_of_them_stays(
    tmp_path: Path, sqlite_db: Database
) -> None:
    async with Ledger(sqlite_db) as ledger:
        await ledger.open(opening("s"))
        other = sa.create_engine(f"sqlite:///{tmp_path / 'x.db'}")
        with other.connect() as locking:
            locking.exec_driver_sql("BEGIN IMMEDIATE")
            began = time.monotonic()
            first = await asyncio.gather(
                *(ledger.open(opening(f"a{i}")) for i in range(20)), return_exceptions=True
            )
            assert {type(error) for error in first} == {Overloaded}
            assert time.monotonic() - began < 2
            began = time.monotonic()
            with pytest.raises(Overloaded):
                await ledger.open(opening("later"))
            assert time.monotonic() - began < 0.1
        other.dispose()
        async with asyncio.timeout(10):
            while ledger.is_away:  # until the next attempt
                await asyncio.sleep(0.01)
        await ledger.open(opening("after"))
        for stream_id in ("s", "after"):
            await ledger.settle(settlement(stream_id))


@pytest.mark.parametrize("refusal", ["one too many", "a taken idempotency key"])
async def test_checkpoints_are_written_beside_an_opening_that_is_refused(
    sqlite_db: Database, refusal: str
) -> None:
    claim = Claim("key", b"d" * 32)
    async with Ledger(sqlite_db) as ledger:
        await ledger.open(opening("running"))
        await ledger.open(opening("first", "owner", max_open=1, claim=claim))
        ledger.checkpoint("running", Usage(7, 3, "checkpoint"), UNKNOWN, "p")
        refused = (
            opening("second", "owner", max_open=1)
            if refusal == "one too many"
            else opening("second", "owner", claim=claim)
        )
        with pytest.raises(Exception):  # noqa: B017  # which one is tested elsewhere
            await ledger.open(refused)
        receipt = await ledger.receipt("running")
        assert (receipt.usage.prompt_tokens, receipt.usage.completion_tokens) == (7, 3)
        for stream_id in ("running", "first"):
            await ledger.settle(settlement(stream_id))


async def test_one_too_many_does_not_fail_the_others_of_its_batch(sqlite_db: Database) -> None:
    async with Ledger(sqlite_db) as ledger:
        opened = await asyncio.gather(
            *(ledger.open(opening(f"o{i}", "owner", max_open=2)) for i in range(5)),
            *(ledger.open(opening(f"f{i}")) for i in range(5)),
            return_exceptions=True,
        )
        assert [type(result) for result in opened] == [type(None)] * 2 + [TooManyStreams] * 3 + [
            type(None)
        ] * 5
        for stream_id in ("o0", "o1", *(f"f{i}" for i in range(5))):
            await ledger.settle(settlement(stream_id))


# -- who is dead, and what it says then ------------------------------------------------------------


async def test_nobody_is_judged_while_ones_own_beat_cannot_be_written(sqlite_db: Database) -> None:
    now = 1000.0
    async with Ledger(sqlite_db), Ledger(sqlite_db, lambda: now) as sweeper:
        for _ in range(20):  # the database is read and not written: no beat of anybody's
            now += 3
            assert await sweeper.leases.remove_expired() == 0
        for _ in range(int(LEASE_SECONDS // 3)):  # it is written again, and the other one needs a moment
            assert await sweeper.leases.beat()
            assert await sweeper.leases.remove_expired() == 0
            now += 3
        now += 3
        assert await sweeper.leases.beat()
        assert await sweeper.leases.remove_expired() == 1


async def test_a_late_settlement_of_the_producer_replaces_the_numbers_of_a_checkpoint_once(
    sqlite_db: Database,
) -> None:
    async with Ledger(sqlite_db) as producer, Ledger(sqlite_db) as sweeper:
        await producer.open(opening("s"))
        await sweeper.settle_orphan(settlement("s", Usage(10, 15, "checkpoint"), interrupted=True))
        assert (await sweeper.receipt("s")).corrected_at is None
        await producer.settle(settlement("s", Usage(10, 65, "provider_final")))
        receipt = await sweeper.receipt("s")
        assert (receipt.status, receipt.error_code, receipt.finish_reason) == (
            "interrupted",
            "interrupted",
            None,
        )
        assert receipt.bill.usage == Usage(10, 65, "provider_final")
        assert receipt.corrected_at is not None
        await producer.settle(settlement("s", Usage(10, 99, "provider_final")))
        await sweeper.settle_orphan(settlement("s", Usage(10, 15, "checkpoint"), interrupted=True))
        assert await sweeper.receipt("s") == receipt


async def test_a_settlement_whose_answer_was_lost_corrects_nothing(sqlite_db: Database) -> None:
    async with Ledger(sqlite_db) as ledger:
        await ledger.open(opening("s"))
        for tokens in (5, 6):
            await ledger.settle(settlement("s", Usage(10, tokens, "provider_final")))
        receipt = await ledger.receipt("s")
        assert (receipt.usage.completion_tokens, receipt.corrected_at) == (5, None)
