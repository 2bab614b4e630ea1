"""Keys and ledger, run against every database."""

import asyncio
import threading
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any, NoReturn

import psutil
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from ledger_rows import opening, settlement
from millstream import database, schema
from millstream.api_keys import Changes, is_wellformed
from millstream.auth import Keys
from millstream.database import Database, DatabaseAway
from millstream.errors import (
    ConfigurationError,
    IdempotencyConflict,
    InvalidRequest,
    Misuse,
    NotFound,
    Overloaded,
    TooManyStreams,
    Unauthorized,
)
from millstream.ledger import Claimed, Ledger
from millstream.ledger.rows import Claim, Orphan
from millstream.limits import make
from millstream.meter import Meter
from millstream.signing import SigningSecrets
from millstream.tickets import Signer
from millstream.usage import UNKNOWN, Bill, Charge, Usage

# -- migrations ------------------------------------------------------------------------------------


def test_the_migrations_make_the_tables_that_the_code_uses(db: Database) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    def differences(connection: Connection) -> object:
        return compare_metadata(MigrationContext.configure(connection), schema.metadata)

    assert db.run(differences) == []


def test_migrating_again_changes_nothing(db: Database) -> None:
    def tables(connection: sa.Connection) -> object:
        inspector = sa.inspect(connection)
        return {name: inspector.get_columns(name) for name in inspector.get_table_names()}

    before = repr(db.run(tables))
    db.migrate()
    assert repr(db.run(tables)) == before


def test_who_comes_while_another_one_migrates_waits_for_it(database_url: str) -> None:
    first, second = Database(database_url), Database(database_url)
    writes = threading.Event()

    def executes(connection: object, cursor: object, statement: str, *_: object) -> None:
        begins = statement.lstrip().startswith(("BEGIN IMMEDIATE", "SELECT pg_advisory", "CREATE"))
        if threading.current_thread() is other and begins:
            writes.set()

    def migrate_between(connection: Connection) -> None:
        database.migrate_alone(connection)
        schema.metadata.create_all(connection)
        connection.execute(sa.text("CREATE TABLE alembic_version (version_num VARCHAR(32) PRIMARY KEY)"))
        connection.execute(sa.text(f"INSERT INTO alembic_version VALUES ('{schema.REVISION}')"))
        other.start()
        assert writes.wait(20)

    failures: list[BaseException] = []

    def migrate() -> None:
        try:
            second.migrate()
        except BaseException as error:
            failures.append(error)

    other = threading.Thread(target=migrate)
    sa.event.listen(sa.Engine, "before_cursor_execute", executes)
    try:
        first.run(migrate_between)
        other.join(20)
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", executes)
        first.close()
        second.close()
    assert not other.is_alive()
    assert failures == []


async def test_a_worker_goes_on_when_a_newer_one_has_migrated_and_no_older_one_starts(db: Database) -> None:
    def newer(connection: Connection) -> None:
        connection.execute(sa.text("ALTER TABLE streams ADD COLUMN of_a_later_version VARCHAR(8)"))
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))

    db.run(newer)
    async with Ledger(db) as ledger:
        await ledger.open(opening())
        await ledger.settle(settlement())
        assert (await ledger.receipt("s")).status == "completed"
    with pytest.raises(ConfigurationError, match="made by a newer version of Millstream; use that one"):
        db.migrate()


# -- keys ------------------------------------------------------------------------------------------


async def test_a_key_is_verified_until_it_is_revoked(db: Database) -> None:
    keys = Keys(db)
    key, secret = await keys.create("n", ["usage", "chat"])
    assert is_wellformed(secret)
    principal = await keys.verify(secret)
    assert (principal.id, principal.scopes) == (key.id, frozenset({"chat", "usage"}))
    assert await keys.refused_among({key.id}) == set()
    assert (await keys.revoke(key.id)).revoked_at is not None
    assert (await keys.revoke(key.id)).revoked_at is not None
    assert await keys.refused_among({key.id, "other"}) == {key.id}
    with pytest.raises(Unauthorized):
        await keys.verify(secret)


async def test_nothing_of_a_key_but_its_digest_is_stored(db: Database) -> None:
    _, secret = await Keys(db).create("n", ["chat"])
    (row,) = await db.read(lambda c: c.execute(sa.select(schema.keys)).all())
    assert secret not in str(row)
    assert secret[12:-4] not in str(row)


async def test_a_revocation_elsewhere_is_felt(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream.auth.CACHE_SECONDS", 0)
    here, elsewhere = Keys(db), Keys(db)
    key, secret = await here.create("n", ["chat"])
    await here.verify(secret)
    await elsewhere.revoke(key.id)
    with pytest.raises(Unauthorized):
        await here.verify(secret)


async def test_what_is_known_of_a_key_is_kept(db: Database) -> None:
    keys = Keys(db)
    expires_at = time.time() + 3600
    made, _ = await keys.create(
        "n", ["chat"], test=True, owner="acme", labels={"team": "search"}, expires_at=expires_at
    )
    (key,) = await keys.all()
    assert key == made
    assert (key.owner, key.labels, key.expires_at, key.test) == ("acme", {"team": "search"}, expires_at, True)
    changed = await keys.change(key.id, Changes(name="m", labels={}, expires_at=None))
    assert (changed.name, changed.labels, changed.expires_at, changed.owner) == ("m", {}, None, "acme")
    assert await keys.all() == [changed]


async def test_an_owner_is_given_once(db: Database) -> None:
    keys = Keys(db)
    key, _ = await keys.create("n", ["chat"])
    assert (await keys.change(key.id, Changes(owner="acme"))).owner == "acme"
    assert (await keys.change(key.id, Changes(owner="acme"))).owner == "acme"
    for other in ("emca", None):
        with pytest.raises(InvalidRequest, match="keeps it"):
            await keys.change(key.id, Changes(owner=other))
    with pytest.raises(NotFound):
        await keys.change("key_x", Changes(owner="acme"))


async def test_a_key_is_refused_from_the_moment_at_which_it_expires(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, clock = time.time(), 0.0
    monkeypatch.setattr("time.time", lambda: now)
    monkeypatch.setattr("time.monotonic", lambda: clock)
    keys = Keys(db)
    key, secret = await keys.create("n", ["chat"], expires_at=now + 1)
    assert (await keys.verify(secret)).id == key.id
    assert await keys.refused_among({key.id}) == set()
    now, clock = now + 1, clock + 1  # it was verified less than 2 s ago
    with pytest.raises(Unauthorized):
        await keys.verify(secret)
    assert await keys.refused_among({key.id}) == {key.id}


async def test_a_rotated_key_has_two_secrets_until_the_overlap_is_over(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, clock = time.time(), 0.0
    monkeypatch.setattr("time.time", lambda: now)
    monkeypatch.setattr("time.monotonic", lambda: clock)
    keys, elsewhere = Keys(db), Keys(db)
    key, old = await keys.create("n", ["chat"], test=True)
    rotated, new = await keys.rotate(key.id, 60)
    assert new.startswith("ms_test_")
    assert (rotated.id, rotated.hint[-4:]) == (key.id, new[-4:])
    for one in (keys, elsewhere):
        assert {(await one.verify(secret)).id for secret in (old, new)} == {key.id}
    now, clock = now + 60, clock + 60
    for one in (keys, elsewhere):
        assert (await one.verify(new)).id == key.id
        with pytest.raises(Unauthorized):
            await one.verify(old)


async def test_what_two_change_of_a_key_at_once_is_changed_one_after_the_other(
    db: Database, database_url: str
) -> None:
    other = Database(database_url)
    both = Keys(db), Keys(other)
    try:
        key, first = await both[0].create("n", ["chat"])
        secrets = {first}
        limits = [
            [make("requests", per, Decimal(number)) for per in ("minute", "day")] for number in range(2)
        ]
        for _ in range(10):
            await asyncio.gather(
                *(keys.set_limits(key.id, some) for keys, some in zip(both, limits, strict=True))
            )
            assert list(await both[0].limits(key.id)) in [
                sorted(some, key=lambda one: one.per) for some in limits
            ]
            rotated = await asyncio.gather(*(keys.rotate(key.id, 60) for keys in both))
            secrets |= {secret for _, secret in rotated}
        assert {(await Keys(db).verify(secret)).id for secret in secrets} == {key.id}
    finally:
        other.close()


async def test_a_secret_that_leaked_ends_at_once_and_so_do_those_before_it(db: Database) -> None:
    keys = Keys(db)
    key, first = await keys.create("n", ["chat"])
    _, second = await keys.rotate(key.id, 3600)
    assert {(await keys.verify(secret)).id for secret in (first, second)} == {key.id}
    _, third = await keys.rotate(key.id, 0)
    for old in (first, second):
        with pytest.raises(Unauthorized):
            await keys.verify(old)
    assert (await keys.verify(third)).id == key.id


async def test_a_revoked_key_has_no_good_secret_and_gets_none(db: Database) -> None:
    keys = Keys(db)
    key, old = await keys.create("n", ["chat"])
    _, new = await keys.rotate(key.id, 3600)
    await keys.revoke(key.id)
    for secret in (old, new):
        with pytest.raises(Unauthorized):
            await Keys(db).verify(secret)
    with pytest.raises(InvalidRequest):
        await keys.rotate(key.id, 3600)
    with pytest.raises(NotFound):
        await keys.rotate("key_x", 3600)


async def test_last_use_is_written_when_it_is_asked_for_and_never_goes_back(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now)
    keys, elsewhere = Keys(db), Keys(db)
    _, secret = await keys.create("n", ["chat"])
    await keys.verify(secret)
    assert [one.last_used_at for one in await keys.all()] == [None]
    now += 5
    await elsewhere.verify(secret)
    await elsewhere.write_uses()
    await keys.write_uses()
    assert [one.last_used_at for one in await keys.all()] == [now]


@pytest.mark.parametrize(
    "more",
    [
        {"owner": ""},
        {"owner": "a\nb"},
        {"labels": {"": "x"}},
        {"labels": {"x": "v" * 257}},
        {"labels": {str(i): "x" for i in range(17)}},
        {"expires_at": 1.0},
        {"expires_at": 1_795_651_200_000.0},  # milliseconds
        {"expires_at": float("inf")},
        {"expires_at": float("nan")},
    ],
)
async def test_what_a_key_cannot_have_is_refused(db: Database, more: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        await Keys(db).create("n", ["chat"], **more)
    assert await Keys(db).all() == []


async def test_keys_and_streams_of_the_version_before_are_known_as_tests(database_url: str) -> None:
    from alembic import command
    from alembic.config import Config

    db = Database(database_url)
    config = Config()
    config.set_main_option("script_location", str(Path(database.__file__).parent / "migrations"))
    config.attributes["engine"] = db._engine  # noqa: SLF001  # as it migrates itself
    command.upgrade(config, "0006")

    def fill(connection: Connection) -> None:
        for kind in ("test", "live"):
            connection.execute(
                sa.text(
                    "INSERT INTO keys (id, name, digest, hint, scopes, created_at) "
                    f"VALUES ('{kind}', 'n', :digest, 'ms_{kind}_abcd…wxyz', 'chat', 1)"
                ),
                {"digest": kind.encode()},
            )
            connection.execute(
                sa.text(
                    "INSERT INTO streams (id, owner_id, key_id, model, provider, status, prompt_tokens, "
                    "completion_tokens, cached_tokens, reasoning_tokens, usage_source, created_at, "
                    f"cost_picodollars) VALUES ('{kind}', '{kind}', '{kind}', 'm', 'p', 'completed', 1, 1, 0, 0, "
                    "'counted', 1, 7000000)"
                )
            )

    db.run(fill)
    db.migrate()
    assert {key.id: key.test for key in await Keys(db).all()} == {"test": True, "live": False}
    meter = Meter(Ledger(db))
    (live,), (test,) = await meter.totals(), await meter.totals(test=True)
    assert (live.group["key"], test.group["key"]) == ("live", "test")
    assert live.price_usd == live.cost_usd == "0.000007"
    db.close()


async def test_usage_of_test_keys_is_in_no_other_sums(db: Database) -> None:
    meter = Meter(Ledger(db))
    await meter.record("k", 5)
    await meter.record("k", 7, test=True)
    key, _ = await Keys(db).create("t", ["chat"], test=True)
    await meter.record(key.id, 9)
    (billed,), tests = await meter.totals(), await meter.totals(test=True)
    assert billed.completion_tokens == 5
    assert sorted(total.completion_tokens for total in tests) == [7, 9]


@pytest.mark.parametrize(
    ("name", "scopes"),
    [("", ["chat"]), ("n" * 129, ["chat"]), ("a\nb", ["chat"]), ("n", []), ("n", ["root"])],
)
async def test_a_key_that_makes_no_sense_is_refused(db: Database, name: str, scopes: list[str]) -> None:
    with pytest.raises(InvalidRequest):
        await Keys(db).create(name, scopes)


async def test_the_first_key_is_made_once(db: Database) -> None:
    keys = Keys(db)
    secret = await keys.ensure_first()
    assert secret is not None
    assert (await keys.verify(secret)).scopes == {"chat", "usage", "admin"}
    assert await keys.ensure_first() is None
    assert [key.name for key in await keys.all()] == ["admin"]


async def test_an_unknown_key_is_not_found(db: Database) -> None:
    with pytest.raises(NotFound):
        await Keys(db).revoke("key_x")


# -- ledger ----------------------------------------------------------------------------------------


async def test_a_stream_is_opened_and_settled(db: Database) -> None:
    async with Ledger(db) as ledger:
        await ledger.open(opening(user="u"))
        assert (await ledger.receipt("s")).status == "running"
        await ledger.settle(settlement())
        receipt = await ledger.receipt("s")
        assert (receipt.status, receipt.finish_reason, receipt.cost_usd) == ("completed", "stop", "0.000142")
        assert receipt.usage == Usage(10, 5, "provider_final", 2, 1)
        assert (receipt.user, receipt.key_id) == ("u", "k")
        with pytest.raises(NotFound):
            await ledger.receipt("other")


async def test_a_row_settles_once(db: Database) -> None:
    async with Ledger(db) as ledger:
        await ledger.open(opening())
        await ledger.settle(settlement())
        await ledger.settle(settlement(usage=Usage(99, 99, "counted"), status="failed"))
        ledger.checkpoint("s", Usage(77, 77, "checkpoint"), UNKNOWN, "p")
    receipt = await Ledger(db).receipt("s")
    assert (receipt.status, receipt.usage.prompt_tokens) == ("completed", 10)


async def test_many_streams_at_once_are_all_written(db: Database) -> None:
    async with Ledger(db) as ledger:

        async def one(i: int) -> None:
            await ledger.open(opening(f"s{i}"))
            ledger.checkpoint(f"s{i}", Usage(1, 1, "checkpoint"), UNKNOWN, "p")
            await ledger.settle(settlement(f"s{i}"))

        await asyncio.gather(*(one(i) for i in range(300)))
        (total,) = await Meter(ledger).totals()
    assert (total.streams, total.prompt_tokens, total.cost_usd) == (300, 3000, "0.042600")


async def test_leaving_writes_what_is_pending(db: Database) -> None:
    async with Ledger(db) as ledger:
        await ledger.open(opening())
        settling = asyncio.create_task(ledger.settle(settlement()))
        await asyncio.sleep(0)
    await settling
    assert (await ledger.receipt("s")).status == "completed"


async def test_a_stream_whose_worker_died_is_an_orphan_with_its_checkpoint(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millstream.ledger.leases.LEASE_SECONDS", 0.2)
    dead, alive, sweeper = Ledger(db), Ledger(db), Ledger(db)
    async with alive, sweeper:
        await dead.__aenter__()  # and never leaves
        await dead.open(opening("dead"))
        await alive.open(opening("alive"))
        charge = Charge(Decimal("0.5"), Decimal(1), "{}")
        dead.checkpoint("dead", Usage(10, 3, "checkpoint"), charge, "fallback", "m-2")
        await dead.open(opening("after"))
        assert await sweeper.leases.orphans() == []
        async with asyncio.timeout(5):
            while not await sweeper.leases.remove_expired():
                assert await alive.leases.beat()
                assert await sweeper.leases.beat()
        orphans = {orphan.stream_id: orphan for orphan in await sweeper.leases.orphans()}
        assert orphans == {
            "dead": Orphan(
                "dead", Bill(Usage(10, 3, "checkpoint"), "0.500000", "1.000000"), "fallback", "m-2", "{}"
            ),
            "after": Orphan("after", Bill(Usage(0, 0, "checkpoint"), None), "p"),
        }
        await sweeper.settle_orphan(settlement("dead", status="interrupted"))
        await sweeper.settle_orphan(settlement("after", status="interrupted"))
        assert await sweeper.leases.orphans() == []
        # The dead one was only asleep: what it says now is not taken, and it starts anew.
        await dead.settle(settlement("dead"))
        assert (await dead.receipt("dead")).status == "interrupted"
        assert not await dead.leases.beat()
        assert await dead.leases.beat()
        await dead.open(opening("new"))
        assert await sweeper.leases.orphans() == []
        await dead.settle(settlement("new"))
        await alive.settle(settlement("alive"))


async def test_after_a_pause_nobody_is_thought_dead_at_once(db: Database) -> None:
    now = 1000.0
    async with Ledger(db), Ledger(db, lambda: now) as sweeper:
        assert await sweeper.leases.remove_expired() == 0
        now += 60  # the sweeper was the one that slept: all it remembers is old
        assert await sweeper.leases.remove_expired() == 0
        for _ in range(3):
            now += 5  # it looks every few seconds, and they stand still
            assert await sweeper.leases.beat()
            assert await sweeper.leases.remove_expired() == 0
        now += 5
        assert await sweeper.leases.beat()
        assert await sweeper.leases.remove_expired() == 1


async def test_a_worker_that_leaves_is_not_missed(db: Database) -> None:
    async with Ledger(db):
        pass
    assert await db.read(lambda c: c.scalar(sa.select(sa.func.count()).select_from(schema.workers))) == 0


async def test_an_idempotency_key_is_claimed_once(db: Database) -> None:
    async with Ledger(db) as here, Ledger(db) as there:
        claim = Claim("key", b"d" * 32)
        ledgers = [here, there] * 5
        opened = await asyncio.gather(
            *(ledger.open(opening(f"s{i}", claim=claim)) for i, ledger in enumerate(ledgers)),
            return_exceptions=True,
        )
        (winner,) = [i for i, outcome in enumerate(opened) if outcome is None]
        others = [outcome for outcome in opened if outcome is not None]
        assert [type(other) for other in others] == [Claimed] * 9
        assert {other.stream_id for other in others if isinstance(other, Claimed)} == {f"s{winner}"}
        with pytest.raises(IdempotencyConflict):
            await here.open(opening("other", claim=Claim("key", b"e" * 32)))
        await here.open(opening("another's", owner_id="another", claim=claim))
        for stream_id in (f"s{winner}", "another's"):
            await here.settle(settlement(stream_id))
        with pytest.raises(Claimed):  # for ever, not for as long as it runs
            await here.open(opening("later", claim=claim))
        assert len(await Meter(here).totals("key")) == 1


async def test_no_more_streams_of_a_token_are_opened_than_it_allows(db: Database) -> None:
    async with Ledger(db) as here, Ledger(db) as there:
        ledgers = [here, there] * 5
        opened = await asyncio.gather(
            *(some.open(opening(f"s{i}", owner_id="u", max_open=3)) for i, some in enumerate(ledgers)),
            return_exceptions=True,
        )
        winners = [i for i, outcome in enumerate(opened) if outcome is None]
        assert len(winners) == 3
        assert {type(outcome) for outcome in opened if outcome is not None} == {TooManyStreams}
        await here.settle(settlement(f"s{winners[0]}"))
        await here.open(opening("next", owner_id="u", max_open=3))
        for stream_id in ("next", *(f"s{i}" for i in winners[1:])):
            await here.settle(settlement(stream_id))


async def test_while_the_database_is_away_nothing_starts_and_settlements_wait(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Ledger(db) as ledger:
        await ledger.open(opening())
        real = db.run_by_hand

        def away(work: object) -> NoReturn:
            raise DatabaseAway("away")

        monkeypatch.setattr(db, "run_by_hand", away)
        settling = asyncio.create_task(ledger.settle(settlement()))
        with pytest.raises(Overloaded):
            await ledger.open(opening("other"))
        assert not settling.done()
        monkeypatch.setattr(db, "run_by_hand", real)
        async with asyncio.timeout(5):
            await settling
        assert (await ledger.receipt("s")).status == "completed"


async def test_a_row_that_cannot_be_written_does_not_hold_up_the_others(db: Database) -> None:
    async with asyncio.timeout(10), Ledger(db) as ledger:
        await ledger.open(opening("good"))
        await ledger.open(opening("bad"))
        impossible = settlement("bad", usage=Usage(1, 2**70, "counted"))
        await asyncio.gather(ledger.settle(impossible), ledger.settle(settlement("good")))
        await ledger.open(opening("after"))
    assert (await ledger.receipt("good")).status == "completed"
    assert (await ledger.receipt("bad")).status == "running"


async def test_leaving_does_not_wait_for_ever_for_a_database_that_is_away(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millstream.ledger.LEAVE_SECONDS", 0.05)

    def away(work: object) -> NoReturn:
        raise DatabaseAway("away")

    async with asyncio.timeout(5), Ledger(db) as ledger:
        await ledger.open(opening())
        monkeypatch.setattr(db, "run_by_hand", away)
        monkeypatch.setattr(db, "run", away)
        settling = asyncio.create_task(ledger.settle(settlement()))
        await asyncio.sleep(0)
    settling.cancel()
    monkeypatch.undo()
    await db.write(lambda connection: None)  # behind what was still being written
    assert not ledger.is_writing


@pytest.mark.parametrize("by", ["key", "model", "day", "user"])
async def test_totals_add_up_by_what_is_asked(db: Database, by: str) -> None:
    day = 1_767_225_600  # 2026-01-01
    async with Ledger(db) as ledger:
        for i, (key, model, user, at) in enumerate(
            [("a", "m", None, 0), ("a", "n", "u", 86_399.999), ("b", "m", "u", 86_400)]
        ):
            await ledger.open(opening(f"s{i}", key_id=key, model=model, user=user, created_at=day + at))
            await ledger.settle(
                settlement(f"s{i}", charge=UNKNOWN if i == 2 else Charge(Decimal("0.1"), Decimal("0.1")))
            )
        meter = Meter(ledger)
        totals = await meter.totals(by)
        assert {total.group[by]: (total.streams, total.unpriced) for total in totals} == {
            "key": {"a": (2, 0), "b": (1, 1)},
            "model": {"m": (2, 1), "n": (1, 0)},
            "day": {"2026-01-01": (2, 0), "2026-01-02": (1, 1)},
            "user": {None: (1, 0), "u": (2, 1)},
        }[by]
        assert len(await meter.totals(by, since=day + 86_400)) == 1
        assert await meter.totals(by, until=day) == []
        assert sum(total.streams for total in await meter.totals(by, key_id="a")) == 2


async def test_who_pays_may_have_a_long_id(db: Database) -> None:
    """That of a user, in an application with a login of its own."""
    payer = "82d2f0e9-674c-41f4-b118-194bd13ae66d".ljust(schema.PAYER_LENGTH, "x")
    async with Ledger(db) as ledger:
        await ledger.open(opening(key_id=payer))
        await ledger.settle(settlement())
        meter = Meter(ledger)
        await meter.record(payer, 5, model="m", record_id="r" * schema.RECORD_LENGTH)
        (total,) = await meter.totals()
        assert (total.group["key"], total.streams) == (payer, 2)
        for wrong, record_id in ((payer + "x", None), ("a/b", None), ("k", "r" * 65), ("k", "")):
            with pytest.raises(Misuse):
                await meter.record(wrong, 5, record_id=record_id)


@pytest.mark.parametrize(
    "wrong",
    [
        {"usage": -1},
        {"usage": True},
        {"usage": 1.5},
        {"usage": 10**13},
        {"usage": Usage(5, 5, "counted", -1)},
        {"usage": Usage(5, 2**70, "counted")},
        {"cost_usd": Decimal(-1)},
        {"cost_usd": Decimal("NaN")},
        {"cost_usd": Decimal("Infinity")},
        {"cost_usd": Decimal(1_000_001)},
        {"cost_usd": 0.1},
        {"cost_usd": Decimal(1), "price_usd": Decimal("sNaN")},
        {"user": "\x1b[31mred"},
        {"user": "a\0b"},
        {"user": "\ud800"},
        {"user": "x" * 257},
        {"model": "m\n"},
        {"model": "m" * 257},
        {"provider": "p" * 65},
        {"record_id": "r\0"},
    ],
    ids=str,
)
async def test_what_no_ledger_can_have_is_not_recorded(db: Database, wrong: dict[str, Any]) -> None:
    async with Ledger(db) as ledger:
        meter = Meter(ledger)
        given: dict[str, Any] = {"usage": 5, **wrong}
        with pytest.raises(Misuse):
            await meter.record("k", **given)
        assert await meter.totals() == []


async def test_the_most_that_is_recorded_is_added_up(db: Database) -> None:
    most: dict[str, Any] = {
        "usage": Usage(10**12, 10**12, "counted"),
        "cost_usd": Decimal(1_000_000),
        "user": "u" * 256,
        "model": "m" * 256,
        "provider": "p" * 64,
    }
    async with Ledger(db) as ledger:
        for _ in range(3):
            await Meter(ledger).record("k", **most)
        (total,) = await Meter(ledger).totals()
    assert (total.prompt_tokens, total.cost_usd) == (3 * 10**12, "3000000.000000")


async def test_the_meter_records_once_for_each_id(db: Database) -> None:
    async with Ledger(db) as ledger:
        meter = Meter(ledger)
        await meter.record("k", 7)
        await meter.record(
            "k", Usage(1, 2, "provider_final"), model="m", cost_usd=Decimal("0.25"), record_id="r"
        )
        with pytest.raises(sa.exc.IntegrityError):
            await meter.record("k", 7, record_id="r")
        (total,) = await meter.totals()
    assert (total.streams, total.prompt_tokens, total.completion_tokens, total.cost_usd) == (
        2,
        1,
        9,
        "0.250000",
    )


async def test_a_database_at_rest_holds_no_connections_and_goes_on_when_asked(db: Database) -> None:
    def descriptors() -> int:
        return int(psutil.Process().num_fds())

    await db.read(lambda connection: None)
    open_before = descriptors()
    await db.close_idle_connections()
    assert descriptors() < open_before
    assert await Keys(db).create("n", ["chat"])


# -- the signing secret ----------------------------------------------------------------------------


def token(signer: Signer) -> str:
    return signer.token("k", user=None, models=(), max_streams=1, max_tokens=None, seconds=86_400)[0]


async def test_all_workers_sign_with_the_secret_that_the_first_of_them_made(db: Database) -> None:
    here, there = await asyncio.gather(*(SigningSecrets(db).signer() for _ in range(2)))
    assert here.check_token(token(there)).key_id == "k"
    assert there.check_token(token(here)).key_id == "k"


async def test_what_was_signed_before_a_rotation_is_believed_for_as_long_as_it_may_live(
    db: Database,
) -> None:
    secrets = SigningSecrets(db)
    signer = await secrets.signer()
    text, ticket = token(signer), signer.ticket("s", "k", "follow", 900)
    assert await secrets.rotate() > time.time() + 86_400
    await secrets.rotate()
    for some in (secrets, SigningSecrets(db)):
        signer = await some.signer()
        assert signer.check_token(text).key_id == "k"
        assert signer.check_ticket(ticket, "s", "follow") == "k"


async def test_a_secret_that_was_replaced_is_refused_when_its_time_is_over(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millstream.signing.KEPT_SECONDS", -1)
    monkeypatch.setattr("millstream.signing.LEARN_SECONDS", 0)
    secrets = SigningSecrets(db)
    signer = await secrets.signer()
    text, ticket = token(signer), signer.ticket("s", "k", "follow", 900)
    await secrets.rotate()
    signer = await secrets.signer()
    assert signer.check_token(token(signer)).key_id == "k"
    with pytest.raises(Unauthorized):
        signer.check_token(text)
    with pytest.raises(Unauthorized):
        signer.check_ticket(ticket, "s", "follow")
    for _ in range(3):
        await secrets.rotate()
    assert await db.read(lambda c: c.scalar(sa.select(sa.func.count()).select_from(schema.secrets))) == 2


async def test_a_new_secret_is_known_to_every_worker_before_it_signs(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millstream.signing.LOOK_SECONDS", 1e9)
    here, elsewhere = SigningSecrets(db), SigningSecrets(db)
    await elsewhere.signer()
    await here.rotate()
    assert (await elsewhere.signer()).check_token(token(await here.signer()))
    with monkeypatch.context() as patch:
        patch.setattr("millstream.signing.LEARN_SECONDS", 0)
        await here.rotate()
    text = token(await here.signer())
    with pytest.raises(Unauthorized):
        (await elsewhere.signer()).check_token(text)
    monkeypatch.setattr("millstream.signing.LOOK_SECONDS", 0)
    assert (await elsewhere.signer()).check_token(text)


async def test_a_rotation_at_once_ends_all_that_was_signed_before_it(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millstream.signing.LOOK_SECONDS", 0)
    here, elsewhere = SigningSecrets(db), SigningSecrets(db)
    texts = [token(await here.signer())]
    await here.rotate()
    texts.append(token(await elsewhere.signer()))
    assert await here.rotate(at_once=True) <= time.time()
    for some in (here, elsewhere, SigningSecrets(db)):
        signer = await some.signer()
        for text in texts:
            with pytest.raises(Unauthorized):
                signer.check_token(text)
        assert (await elsewhere.signer()).check_token(token(signer))


async def test_rotations_that_race_each_other_lose_nothing(db: Database) -> None:
    several = [SigningSecrets(db) for _ in range(5)]
    text = token(await several[0].signer())
    await asyncio.gather(*(some.rotate() for some in several))
    texts = [text, *[token(await some.signer()) for some in several]]
    for some in (*several, SigningSecrets(db)):
        signer = await some.signer()
        assert {signer.check_token(text).key_id for text in texts} == {"k"}


async def test_while_the_database_is_away_the_secrets_hold_that_are_known(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millstream.signing.LOOK_SECONDS", 0)
    secrets = SigningSecrets(db)
    text = token(await secrets.signer())

    def away(work: object) -> NoReturn:
        raise DatabaseAway("away")

    with monkeypatch.context() as patch:
        patch.setattr(db, "run", away)
        for _ in range(2):
            signer = await secrets.signer()
            assert signer.check_token(text)
            assert signer.check_token(token(signer))
        with pytest.raises(DatabaseAway):
            await SigningSecrets(db).signer()
    await SigningSecrets(db).rotate(at_once=True)
    with pytest.raises(Unauthorized):
        (await secrets.signer()).check_token(text)


async def test_nobody_else_waits_for_whoever_looks_for_a_new_secret(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millstream.signing.LOOK_SECONDS", 0)
    secrets, asked = SigningSecrets(db), asyncio.Event()
    text = token(await secrets.signer())

    async def read(work: object) -> NoReturn:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr(db, "read", read)
        looking = asyncio.create_task(secrets.signer())
        async with asyncio.timeout(5):
            await asked.wait()
            assert (await secrets.signer()).check_token(text)
        assert not looking.done()
        looking.cancel()  # as the client leaves whose request it was
        await asyncio.gather(looking, return_exceptions=True)
    await SigningSecrets(db).rotate(at_once=True)
    with pytest.raises(Unauthorized):
        (await secrets.signer()).check_token(text)


async def test_whoever_has_not_looked_for_long_waits_to_hear_of_a_new_secret(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets, asked, known = SigningSecrets(db), asyncio.Event(), asyncio.Event()
    await secrets.signer()
    monkeypatch.setattr("millstream.signing.LEARN_SECONDS", 0)
    await SigningSecrets(db).rotate()
    text = token(await SigningSecrets(db).signer())
    real = db.read

    async def read(work: Callable[[sa.Connection], object]) -> object:
        asked.set()
        await known.wait()
        return await real(work)

    monkeypatch.setattr(db, "read", read)
    first, second = (asyncio.create_task(secrets.signer()) for _ in range(2))
    async with asyncio.timeout(5):
        await asked.wait()
        known.set()
        for signer in await asyncio.gather(first, second):
            assert signer.check_token(text)
