"""The sums of hours: every settled stream is in them once, whatever settles it. Run against every database."""

import asyncio
import math
import random
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from millstream import database, schema
from millstream.api_keys import Changes
from millstream.auth import Keys
from millstream.database import Database, DatabaseAway
from millstream.errors import InvalidRequest
from millstream.events import StreamEnd
from millstream.ledger import Ledger, reports
from millstream.ledger.reports import Asked, Total
from millstream.ledger.rows import Opening, Settlement
from millstream.meter import Meter
from millstream.schema import FIRST_EVENT_SECONDS, hours, key_hours, user_hours
from millstream.usage import UNKNOWN, Charge, Usage

DAY = 1_767_225_600.0  # 2026-01-01, UTC
KNOWN = Charge(Decimal("0.1"), Decimal("0.3"))


def opening(stream_id: str, at: float = DAY, **more: Any) -> Opening:
    values: dict[str, Any] = {"key_id": "k", "model": "m", "user": None, **more}
    owner_id = values.pop("owner_id", values["key_id"])
    return Opening(stream_id, owner_id, provider="p", created_at=at, **values)


def settlement(stream_id: str, **more: Any) -> Settlement:
    values: dict[str, Any] = {
        "stream_id": stream_id,
        "status": "completed",
        "finish_reason": "stop",
        "error_code": None,
        "usage": Usage(10, 5, "provider_final", 4, 3, 2, 1).with_media((1, 1), (1, 1)),
        "charge": KNOWN,
        "first_event_at": None,
        "ended_at": DAY + 9,
        "provider": "p",
    }
    return Settlement(**{**values, **more})


async def settled(ledger: Ledger, stream_id: str, at: float = DAY, **more: Any) -> None:
    """A stream that was opened and settled."""
    of_opening = {name: more.pop(name) for name in ("key_id", "model", "user", "test") if name in more}
    await ledger.open(opening(stream_id, at, **of_opening))
    await ledger.settle(settlement(stream_id, **more))


async def proven(ledger: Ledger) -> int:
    """How many settled streams the sums have, which are those of the rows."""
    verified = await ledger.verify()
    assert verified.differences == []
    return verified.streams


async def kept(db: Database, table: sa.Table = hours) -> Sequence[sa.RowMapping]:
    return await db.read(lambda c: c.execute(sa.select(table).order_by(table.c.hour)).mappings().all())


# -- once ------------------------------------------------------------------------------------------


async def test_every_sum_of_a_stream_is_kept(db: Database) -> None:
    async with Ledger(db) as ledger:
        await settled(ledger, "s", DAY + 3700, user="u", first_event_at=DAY + 3700.4)
        assert await proven(ledger) == 1
        assert (await ledger.receipt("s")).usage == settlement("s").usage
    for table in (hours, key_hours, user_hours):
        (row,) = await kept(db, table)
        assert row["hour"] * 3600 == DAY + 3600
        assert (row["streams"], row["prompt_tokens"], row["completion_tokens"]) == (1, 10, 5)
        assert (row["cached_tokens"], row["reasoning_tokens"], row["cache_write_tokens"]) == (4, 3, 2)
        assert (row["prompt_audio_tokens"], row["completion_image_tokens"]) == (1, 1)
        assert (row["cost_picodollars"], row["price_picodollars"]) == (10**11, 3 * 10**11)
        bucket = FIRST_EVENT_SECONDS.index(0.5)
        assert [row[name] for name in schema.FIRST_EVENTS] == [
            int(number == bucket) for number in range(len(FIRST_EVENT_SECONDS) + 1)
        ]
    assert (await kept(db, user_hours))[0]["user"] == "u"


async def test_a_running_stream_is_in_no_sum_and_a_checkpoint_adds_nothing(db: Database) -> None:
    async with Ledger(db) as ledger:
        await ledger.open(opening("s"))
        ledger.checkpoint("s", Usage(9, 9, "checkpoint"), KNOWN, "p")
        await ledger.open(opening("other"))  # after the checkpoint is written
        assert await kept(db) == []
        for stream_id in ("s", "other"):
            await ledger.settle(settlement(stream_id))
        assert await proven(ledger) == 2


async def test_a_settlement_that_is_repeated_counts_once(db: Database) -> None:
    async with Ledger(db) as ledger:
        await settled(ledger, "s")
        for _ in range(3):
            await ledger.settle(settlement("s", usage=Usage(99, 99, "counted"), status="failed"))
            await ledger.settle_orphan(settlement("s", status="interrupted"))
        assert await proven(ledger) == 1
    assert (await kept(db))[0]["prompt_tokens"] == 10


async def test_a_settlement_whose_commit_fails_or_whose_answer_is_lost_counts_once(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millstream.ledger.writer._RETRY_SECONDS", 0.01)
    async with Ledger(db) as ledger:
        for lost in ("before", "after"):
            await ledger.open(opening(lost))
            real = db.run_by_hand
            failed: list[str] = []

            def run(work: Any, lost: str = lost, real: Any = real, failed: list[str] = failed) -> Any:
                if failed:
                    return real(work)
                failed.append(lost)

                def then_fail(connection: Any) -> None:
                    work(connection)
                    raise DatabaseAway("the connection broke before the commit")

                real(then_fail if lost == "before" else work)
                raise DatabaseAway("the answer to the commit was lost")

            monkeypatch.setattr(db, "run_by_hand", run)
            await ledger.settle(settlement(lost))
            monkeypatch.setattr(db, "run_by_hand", real)
            assert failed
        assert await proven(ledger) == 2


async def test_money_that_nobody_knows_is_not_zero(db: Database) -> None:
    async with Ledger(db) as ledger:
        for stream_id, model, charge in (
            ("a", "known", None),
            ("b", "known", UNKNOWN),
            ("c", "other", UNKNOWN),
        ):
            await ledger.open(opening(stream_id, model=model))
            await ledger.settle(settlement(stream_id, **({} if charge is None else {"charge": charge})))
        totals = {one.group["model"]: one for one in await ledger.totals(Asked(("model",)))}
    known, other = totals["known"], totals["other"]
    assert (known.cost_usd, known.price_usd, known.unpriced) == ("0.100000", "0.300000", 1)
    assert (other.cost_usd, other.price_usd, other.unpriced) == (None, None, 1)


async def test_streams_without_a_price_are_told_apart_by_their_tier_and_their_kinds_of_tokens(
    db: Database,
) -> None:
    text = Usage(10, 5, "provider_final")
    sound = text.with_media((1, 0), (0, 0))
    async with Ledger(db) as ledger:
        for stream_id, usage, prices in (
            ("a", text, None),
            ("b", text, '{"date":"2026-01-01","tier":"flex"}'),
            ("c", text, '{"date":"2026-01-02","tier":"flex"}'),
            ("d", sound, None),
        ):
            await settled(ledger, stream_id, usage=usage, charge=Charge(unit_prices=prices))
        await settled(ledger, "known")
        found = await ledger.unpriced(DAY)
        assert await ledger.unpriced(DAY + 1) == []
    assert {(one.tier, one.kinds): (one.streams, one.tokens) for one in found} == {
        (None, ()): (1, 15),
        ("flex", ()): (2, 30),
        (None, ("prompt_audio_tokens",)): (1, 15),
    }


async def test_rows_that_are_settled_one_by_one_count_once(db: Database) -> None:
    async with Ledger(db) as ledger:
        for stream_id in ("good", "bad", "fine"):
            await ledger.open(opening(stream_id))
        impossible = settlement("bad", usage=Usage(1, 2**70, "counted"))
        await asyncio.gather(
            ledger.settle(settlement("good")), ledger.settle(impossible), ledger.settle(settlement("fine"))
        )
        assert await proven(ledger) == 2


async def test_an_orphan_counts_once_and_its_correction_replaces_it(db: Database) -> None:
    async with Ledger(db) as dead, Ledger(db) as sweeper:
        await dead.open(opening("s", user="u"))
        dead.checkpoint("s", Usage(10, 3, "checkpoint"), Charge(Decimal("0.5"), Decimal(1)), "p")
        await dead.open(opening("after", user="u"))
        await dead.leases.leave()  # it is thought to be dead
        for orphan in await sweeper.leases.orphans():
            assert orphan.provider == "p"
            end = StreamEnd("stop", orphan.bill)
            await sweeper.settle_orphan(Settlement.of(orphan, end, DAY + 20))
            await sweeper.settle_orphan(Settlement.of(orphan, end, DAY + 21))
        assert await proven(sweeper) == 2
        assert (await kept(db))[0]["completion_tokens"] == 3

    async with Ledger(db) as dead, Ledger(db) as sweeper:
        await dead.open(opening("t", DAY + 7200))
        interrupted = settlement("t", status="interrupted", usage=Usage(1, 1, "checkpoint"), charge=UNKNOWN)
        await sweeper.settle_orphan(interrupted)
        assert await proven(sweeper) == 3
        (row,) = [row for row in await kept(db) if row["hour"] * 3600 == DAY + 7200]
        assert (row["streams"], row["failed"], row["unpriced"], row["completion_tokens"]) == (1, 1, 1, 1)
        # Its producer wakes up, and another deployment had answered.
        for _ in range(2):
            own = settlement(
                "t", status="interrupted", provider="q", corrects=True, first_event_at=DAY + 7201
            )
            await dead.settle(own)
        assert await proven(sweeper) == 3
        (before, after) = [row for row in await kept(db) if row["hour"] * 3600 == DAY + 7200]
        assert {row["provider"]: (row["streams"], row["completion_tokens"]) for row in (before, after)} == {
            "p": (0, 0),
            "q": (1, 5),
        }
        assert [one.streams for one in await Meter(sweeper).totals("provider", since=DAY + 7200)] == [1]


async def test_workers_that_settle_at_once_lose_nothing_and_wait_for_nobody(db: Database) -> None:
    """One of them stops in the middle of its transaction, as a frozen process does."""
    async with Ledger(db) as here, Ledger(db) as there:
        ledgers = [here, there] * 100
        await asyncio.gather(
            *(settled(ledger, f"s{i}", user=f"u{i % 3}") for i, ledger in enumerate(ledgers))
        )
        assert await proven(here) == 200
        assert sum(row["streams"] for row in await kept(db)) == 200
        if db.is_sqlite:
            return  # whose writers wait for each other anyway
        await here.open(opening("frozen"))
        held, go_on = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()

        def freeze(connection: sa.Connection) -> None:
            connection.execute(
                sa.update(schema.streams).where(schema.streams.c.id == "frozen").values(status="completed")
            )
            loop.call_soon_threadsafe(held.set)
            asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result(10)

        frozen = asyncio.create_task(db.read(freeze))
        async with asyncio.timeout(3):
            await held.wait()
            await settled(there, "others")
        go_on.set()
        await frozen
        assert await proven(here) == 202


async def test_no_two_connections_write_the_same_sums(db: Database) -> None:
    """Whatever the ids of their processes are, which here differ by a multiple of a power of two."""
    if db.is_sqlite:
        return  # whose writers wait for each other anyway
    async with Ledger(db) as ledger:
        for stream_id in ("s", "t"):
            await ledger.open(opening(stream_id))
    engine = sa.create_engine(db._engine.url, poolclass=sa.NullPool)  # noqa: SLF001  # connections of its own
    pid = sa.text("SELECT pg_backend_pid()")
    with engine.connect() as first, ExitStack() as others:
        at = first.scalar(pid)
        second = others.enter_context(engine.connect())
        while (second.scalar(pid) - at) % 32:
            others.close()
            second = others.enter_context(engine.connect())
        second.execute(sa.text("SET LOCAL lock_timeout = '5s'"))
        for connection, stream_id in ((first, "s"), (second, "t")):
            end = sa.update(schema.streams).where(schema.streams.c.id == stream_id)
            connection.execute(end.values(status="completed", worker_id=None))
        first.commit()
        second.commit()
    assert await proven(ledger) == 2


async def test_random_lives_of_streams_add_up(db: Database) -> None:
    chance = random.Random(17)
    async with Ledger(db) as here, Ledger(db) as there:

        async def live(number: int) -> None:
            stream_id, at = f"s{number}", DAY + chance.uniform(0, 5 * 3600)
            of_whom = {
                "key_id": chance.choice("ab"),
                "model": chance.choice("mn"),
                "test": chance.random() < 0.2,
            }
            await here.open(opening(stream_id, at, user=chance.choice([None, "u", "v"]), **of_whom))
            if chance.random() < 0.5:
                charge = chance.choice([KNOWN, UNKNOWN])
                here.checkpoint(stream_id, Usage(number, 1, "checkpoint"), charge, "p")
            endings = [
                settlement(
                    stream_id,
                    status=chance.choice(["completed", "cancelled", "failed", "interrupted"]),
                    usage=Usage(chance.randrange(99), chance.randrange(99), "counted"),
                    charge=chance.choice([KNOWN, UNKNOWN]),
                    provider=chance.choice("pq"),
                    first_event_at=chance.choice([None, at + chance.expovariate(0.3)]),
                )
                for _ in range(chance.randint(1, 3))
            ]
            for end in endings:
                await (here.settle(end) if chance.random() < 0.5 else there.settle_orphan(end))

        await asyncio.gather(*(live(number) for number in range(150)))
        assert await proven(here) == 150
        for table in (hours, key_hours, user_hours):
            assert sum(row["streams"] for row in await kept(db, table)) == 150


async def test_what_is_recorded_counts(db: Database) -> None:
    async with Ledger(db) as ledger:
        await Meter(ledger).record("k", 7, model="m", record_id="r")
        with pytest.raises(sa.exc.IntegrityError):
            await Meter(ledger).record("k", 7, record_id="r")
        assert await proven(ledger) == 1


async def test_rows_of_the_version_before_are_summed_when_it_is_migrated(database_url: str) -> None:
    from alembic import command
    from alembic.config import Config

    db = Database(database_url)
    config = Config()
    config.set_main_option("script_location", str(Path(database.__file__).parent / "migrations"))
    config.attributes["engine"] = db._engine  # noqa: SLF001  # as it migrates itself
    command.upgrade(config, "0006")

    def fill(connection: sa.Connection) -> None:
        for number, status in enumerate(["completed", "failed", "running"]):
            connection.execute(
                sa.text(
                    "INSERT INTO streams (id, owner_id, key_id, model, provider, status, prompt_tokens, "
                    "completion_tokens, cached_tokens, reasoning_tokens, usage_source, created_at, worker_id) "
                    f"VALUES ('s{number}', 'k', 'k', 'm', 'p', '{status}', 3, 4, 0, 0, 'counted', {DAY}, "
                    f"{chr(39) + 'w' + chr(39) if status == 'running' else 'NULL'})"
                )
            )

    db.run(fill)
    db.migrate()
    ledger = Ledger(db)
    assert await proven(ledger) == 2
    # A worker of the version before goes on with the stream that it runs.
    old = "UPDATE streams SET status = 'completed', prompt_tokens = 9, worker_id = NULL WHERE id = 's2'"
    await db.write(lambda connection: connection.execute(sa.text(old)))
    assert await proven(ledger) == 3
    (total,) = await Meter(ledger).totals()
    assert (total.streams, total.failed, total.prompt_tokens) == (3, 1, 15)
    db.close()


async def test_a_sum_that_is_wrong_is_found(db: Database) -> None:
    async with Ledger(db) as ledger:
        await settled(ledger, "s", DAY)
        await settled(ledger, "t", DAY + 86_400)
        await db.write(
            lambda c: c.execute(sa.update(key_hours).where(key_hours.c.hour == DAY // 3600).values(streams=7))
        )
        verified = await ledger.verify()
        (found,) = verified.differences
        assert (found.table, found.hour, found.what, found.rows, found.sums) == (
            "key_hours",
            DAY,
            "streams",
            1,
            7,
        )
        assert found.of == {"key_id": "k", "model": "m", "provider": "p", "is_test": False}
        assert (await ledger.verify(since=DAY + 3600)).differences == []
        assert (await ledger.verify(until=DAY + 1)).differences == [found]


async def test_a_large_ledger_is_verified_a_day_at_a_time(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = 0
    real = db.report

    async def report(work: Any) -> Any:
        nonlocal reads
        reads += 1
        return await real(work)

    async with Ledger(db) as ledger:
        for day in range(3):
            await settled(ledger, f"s{day}", DAY + day * 86_400)
        await db.write(lambda c: c.execute(sa.update(hours).values(prompt_tokens=7)))
        monkeypatch.setattr(db, "report", report)
        verified = await ledger.verify()
    assert reads >= 3
    assert (verified.since, verified.until, verified.streams) == (DAY, DAY + 2 * 86_400 + 3600, 3)
    assert [one.hour for one in verified.differences] == [DAY + day * 86_400 for day in range(3)]


# -- retention -------------------------------------------------------------------------------------


async def test_old_rows_go_a_few_at_a_time_and_the_sums_stay(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millstream.ledger.retention.DELETED_AT_ONCE", 3)
    async with Ledger(db) as ledger:
        for number in range(5):
            await settled(ledger, f"old{number}", DAY + number)
        await ledger.open(opening("runs", DAY))
        await settled(ledger, "new", DAY + 7200)
        (before,) = await Meter(ledger).totals()
        deleted = [await ledger.delete_rows(DAY + 7199) for _ in range(3)]
        assert deleted == [3, 2, 0]
        assert await ledger.delete_rows(DAY + 7201) == 0  # its hour is not over
        (after,) = await Meter(ledger).totals()
        assert before == after
        ids = await db.read(lambda c: set(c.scalars(sa.select(schema.streams.c.id))))
        assert ids == {"runs", "new"}
        await settled(ledger, "newer", DAY + 4 * 3600)
        assert await proven(ledger) == 2  # whose hours have all of their rows
        await ledger.settle(settlement("runs"))


async def test_sums_that_are_made_one_row_are_the_same(db: Database) -> None:
    async with Ledger(db) as ledger:
        for number in range(4):
            await settled(ledger, f"s{number}", user="u")

        def apart(connection: sa.Connection) -> None:
            """As if other connections had written them."""
            for table in (hours, key_hours, user_hours):
                (row,) = connection.execute(sa.select(table)).mappings().all()
                other = dict(row) | {"shard": row["shard"] + 1}
                connection.execute(sa.insert(table).values(**other))

        if ledger.is_sharded:
            await db.write(apart)
        (before,) = await Meter(ledger).totals()
        await ledger.fold_hour(int(DAY // 3600))
        await ledger.fold_hour(int(DAY // 3600))
        (after,) = await Meter(ledger).totals()
        assert before == after
        assert [row["shard"] for row in await kept(db)] == [0]
        await settled(ledger, "later")
        await ledger.fold_hour(int(DAY // 3600))
        assert len(await kept(db)) == 1
        assert (await Meter(ledger).totals())[0].streams == before.streams + 1


# -- reports ---------------------------------------------------------------------------------------


def shown(totals: Sequence[Total]) -> dict[tuple[str | None, ...], int]:
    return {tuple(total.group.values()): total.streams for total in totals}


async def test_a_report_is_crossed_by_what_is_asked(db: Database) -> None:
    keys = Keys(db)
    async with Ledger(db) as ledger:
        key, _ = await keys.create("n", ["chat"], owner="acme")
        other, _ = await keys.create("m", ["chat"])
        await settled(ledger, "a", DAY, key_id=key.id, model="m", user="u")
        await settled(ledger, "b", DAY + 3600, key_id=key.id, model="n")
        await settled(ledger, "c", DAY + 40 * 86_400, key_id=other.id, model="m", provider="q")
        meter = Meter(ledger)
        for by, expected in {
            "day,model": {("2026-01-01", "m"): 1, ("2026-01-01", "n"): 1, ("2026-02-10", "m"): 1},
            "month": {("2026-01",): 2, ("2026-02",): 1},
            "model,month": {("m", "2026-01"): 1, ("m", "2026-02"): 1, ("n", "2026-01"): 1},
            "owner": {(None,): 1, ("acme",): 2},
            "provider": {("p",): 2, ("q",): 1},
            "user,model": {(None, "m"): 1, (None, "n"): 1, ("u", "m"): 1},
            "hour": {
                ("2026-01-01T00:00+00:00",): 1,
                ("2026-01-01T01:00+00:00",): 1,
                ("2026-02-10T00:00+00:00",): 1,
            },
        }.items():
            assert shown(await meter.totals(by)) == expected, by
        assert shown(await meter.totals("model", owner="acme")) == {("m",): 1, ("n",): 1}
        await keys.change(other.id, Changes(owner="acme"))
        assert shown(await meter.totals("owner")) == {("acme",): 3}
        for wrong in ("planet", "", "day,day", "day,month", "model,"):
            with pytest.raises(InvalidRequest):
                await meter.totals(wrong)


async def test_a_group_may_have_more_than_a_column_holds(db: Database) -> None:
    """In sums that are kept, in rows that run, and in a part of an hour."""
    dear = Charge(Decimal("6000000.000000000007"), Decimal("7000000.999999999999"))
    async with Ledger(db) as ledger:
        for number in range(5):
            await settled(ledger, f"s{number}", DAY + 3600 * number, charge=dear)
        meter = Meter(ledger)
        for since, count in ((None, 5), (DAY + 1800, 4)):
            (total,) = await meter.totals("month", since=since)
            assert Decimal(total.cost_usd or 0) == count * (dear.cost or 0)
            assert Decimal(total.price_usd or 0) == count * (dear.price or 0)
        for number in (5, 6):
            await ledger.open(opening(f"s{number}", DAY + 3600 * number))
            ledger.checkpoint(f"s{number}", Usage(9, 9, "checkpoint"), dear, "p")
        await ledger.open(opening("other"))  # after the checkpoints are written
        (total,) = await meter.totals("month")
        assert Decimal(total.cost_usd or 0) == 7 * (dear.cost or 0)
        assert await proven(ledger) == 5


async def test_a_report_of_any_period_is_what_its_rows_are(db: Database) -> None:
    chance = random.Random(3)
    async with Ledger(db) as ledger:
        created = {f"s{number}": DAY + chance.uniform(0, 6 * 3600) for number in range(60)}
        created |= {f"edge{number}": DAY + number * 3600.0 for number in range(7)}
        await asyncio.gather(*(settled(ledger, stream_id, at) for stream_id, at in created.items()))
        await ledger.open(opening("runs", DAY + 5000))
        everything = sorted([*created.values(), DAY + 5000])
        for _ in range(30):
            since, until = sorted(
                chance.choice(
                    [*everything, DAY + chance.randrange(7) * 3600.0, DAY + chance.uniform(0, 21_600)]
                )
                for _ in range(2)
            )
            for start, end in ((since, until), (None, until), (since, None)):
                totals = await Meter(ledger).totals("key", since=start, until=end)
                expected = sum((start or 0) <= at < (end or math.inf) for at in everything)
                assert sum(total.streams for total in totals) == expected, (start, end)
        assert (await Meter(ledger).totals(since=DAY + 1))[0].streams == len(everything) - 1
        await ledger.settle(settlement("runs"))


async def test_a_stream_that_is_settled_while_a_report_reads_is_in_it(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Ledger(db) as ledger:
        await settled(ledger, "first")
        await ledger.open(opening("s"))
        loop = asyncio.get_running_loop()
        real = reports._queries  # noqa: SLF001

        def queries(*arguments: Any) -> Any:
            """One by one, as they are executed."""
            for one in real(*arguments):
                yield one
                if not settled_in_between:
                    settled_in_between.append(True)
                    asyncio.run_coroutine_threadsafe(ledger.settle(settlement("s")), loop).result(10)

        settled_in_between: list[bool] = []
        monkeypatch.setattr(reports, "_queries", queries)
        (total,) = await Meter(ledger).totals()
        assert settled_in_between
        assert total.streams == 2


@pytest.mark.parametrize(
    ("zone", "moments", "days"),
    [
        # Clocks go forward on 29 March 2026 at 01:00 UTC, and back on 25 October.
        (
            "Europe/Paris",
            ["2026-03-28T22:59", "2026-03-28T23:00", "2026-03-29T21:59", "2026-03-29T22:00"],
            "28 29 29 30",
        ),
        (
            "Europe/Paris",
            ["2026-10-24T21:59", "2026-10-24T22:00", "2026-10-25T22:59", "2026-10-25T23:00"],
            "24 25 25 26",
        ),
        ("America/New_York", ["2026-01-01T04:59", "2026-01-01T05:00"], "31 01"),
        # These are not whole hours from UTC: a day of theirs begins within one.
        ("Asia/Kolkata", ["2026-01-01T18:29:59", "2026-01-01T18:30", "2026-01-02T18:31"], "01 02 03"),
        ("Asia/Kathmandu", ["2026-01-01T18:14:59", "2026-01-01T18:15", "2026-01-02T18:14"], "01 02 02"),
        ("America/St_Johns", ["2026-06-01T02:29:59", "2026-06-01T02:30", "2026-12-01T03:29"], "31 01 30"),
        ("Asia/Tokyo", ["2026-01-01T14:59", "2026-01-01T15:00"], "01 02"),
        ("UTC", ["2026-01-01T23:59", "2026-01-02T00:00"], "01 02"),
    ],
)
async def test_days_are_those_of_the_zone(db: Database, zone: str, moments: list[str], days: str) -> None:
    from datetime import UTC, datetime

    async with Ledger(db) as ledger:
        for number, moment in enumerate(moments):
            at = datetime.fromisoformat(moment).replace(tzinfo=UTC).timestamp()
            await settled(ledger, f"s{number}", at)
        found: list[str] = []
        for total in await Meter(ledger).totals("day", zone=zone):
            found += [str(total.group["day"])[-2:]] * total.streams
        assert found == days.split()
        months = await Meter(ledger).totals("month", zone=zone)
        assert sum(total.streams for total in months) == len(moments)


@pytest.mark.parametrize(
    "zone", ["Asia/Kolkata", "Asia/Kathmandu", "Pacific/Chatham", "Australia/Lord_Howe", "Europe/Paris"]
)
async def test_a_report_by_days_of_any_zone_is_what_its_rows_are(db: Database, zone: str) -> None:
    from datetime import datetime
    from zoneinfo import ZoneInfo

    chance = random.Random(5)
    keys = Keys(db)
    async with Ledger(db) as ledger:
        key, _ = await keys.create("n", ["chat"], owner="acme")
        # Around the days on which clocks are changed, in the south and in the north.
        created = [
            DAY + day * 86_400 + chance.uniform(0, 86_400) for day in (*range(89, 98), 290) for _ in range(12)
        ]
        await asyncio.gather(
            *(settled(ledger, f"s{number}", at, key_id=key.id) for number, at in enumerate(created))
        )
        await ledger.open(opening("runs", created[0] + 1, key_id=key.id))
        rows = [*created, created[0] + 1]
        for since, until in ((None, None), (DAY + 90.3 * 86_400, DAY + 95 * 86_400), (None, created[7])):
            for owner, key_id in ((None, None), ("acme", None), (None, key.id)):
                expected: Counter[str] = Counter()
                for at in rows:
                    if (since or 0) <= at < (until or math.inf):
                        expected[datetime.fromtimestamp(at, ZoneInfo(zone)).date().isoformat()] += 1
                found = await Meter(ledger).totals(
                    "day", since=since, until=until, zone=zone, owner=owner, key_id=key_id
                )
                assert {str(total.group["day"]): total.streams for total in found} == expected
        await ledger.settle(settlement("runs"))


async def test_days_whose_rows_are_not_kept_are_told(db: Database) -> None:
    async with Ledger(db) as ledger:
        await settled(ledger, "s", DAY + 18.6 * 3600)
        await settled(ledger, "t", DAY + 40 * 86_400)
        assert await ledger.delete_rows(DAY + 30 * 86_400) == 1
        assert len(await Meter(ledger).totals("day", zone="Asia/Kolkata", since=DAY + 86_400)) == 1
        assert len(await Meter(ledger).totals("day", zone="Asia/Tokyo")) == 2
        with pytest.raises(InvalidRequest, match="not kept any more"):
            await Meter(ledger).totals("day", zone="Asia/Kolkata")


async def test_how_a_zone_was_before_there_was_a_stream_is_no_matter(db: Database) -> None:
    """Singapore was half an hour off until 1982."""
    async with Ledger(db) as ledger:
        asked = [Asked(("day",), since, zone="Asia/Singapore") for since in (None, 0.0, 86_400.0, DAY + 5)]
        assert [await ledger.totals(one) for one in asked] == [[]] * 4
        await settled(ledger, "s", DAY + 16 * 3600)
        await ledger.open(opening("older", DAY + 15 * 3600))
        days = [shown(await ledger.totals(one)) for one in asked]
        assert days == [{("2026-01-01",): 1, ("2026-01-02",): 1}] * 4
        await ledger.settle(settlement("older"))
        await settled(ledger, "oldest", 86_400.0)
        old, *_ = [total.group["day"] for total in await ledger.totals(asked[0])]
        assert old == "1970-01-02"


@pytest.mark.parametrize("zone", ["Nowhere/City", "", "../etc/passwd", "a\0b"])
async def test_a_zone_that_sums_of_hours_cannot_have_is_refused(db: Database, zone: str) -> None:
    async with Ledger(db) as ledger:
        await settled(ledger, "s", DAY)
        with pytest.raises(InvalidRequest):
            await Meter(ledger).totals("day", zone=zone)


async def test_percentiles_come_from_the_counts(db: Database) -> None:
    async with Ledger(db) as ledger:
        for number in range(100):
            await settled(ledger, f"s{number}", DAY, first_event_at=DAY + (number + 0.5) / 100)
        (total,) = await Meter(ledger).totals(percentiles=True)
        assert total.first_event_seconds is not None
        assert total.first_event_seconds.p50 == pytest.approx(0.5, abs=0.02)
        assert total.first_event_seconds.p90 == pytest.approx(0.9, abs=0.03)
        await settled(ledger, "slow", DAY + 86_400, first_event_at=DAY + 86_400 + 90)
        await settled(ledger, "silent", DAY + 2 * 86_400)
        *_, slow, silent = await Meter(ledger).totals("day", percentiles=True)
        assert slow.first_event_seconds is not None
        assert silent.first_event_seconds is not None
        assert (slow.first_event_seconds.p50, silent.first_event_seconds.p50) == (None, None)
        assert (await Meter(ledger).totals())[0].first_event_seconds is None


async def test_reports_of_a_month_read_no_rows_of_streams(db: Database) -> None:
    """But those that run, and those of hours that are not whole."""
    asked: list[str] = []
    async with Ledger(db) as ledger:
        await settled(ledger, "s", DAY + 5)

        def asks(connection: object, cursor: object, statement: str, *_: object) -> None:
            asked.append(statement)

        sa.event.listen(sa.Engine, "before_cursor_execute", asks)
        try:
            await Meter(ledger).totals("day,model", since=DAY, until=DAY + 31 * 86_400)
        finally:
            sa.event.remove(sa.Engine, "before_cursor_execute", asks)
    of_streams = [statement for statement in asked if "FROM streams" in statement]
    assert of_streams
    assert all("worker_id >" in statement for statement in of_streams)
