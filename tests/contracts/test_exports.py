"""Exports: what is written of them with a settlement, and who is given them, run against every database."""

import asyncio
import secrets
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from msgspec.structs import replace

from millstream import schema
from millstream.auth import Keys
from millstream.database import Database
from millstream.ledger import Ledger
from millstream.ledger.exports import MAX_PAUSE_SECONDS, Export, Exports, Kept
from millstream.ledger.rows import Opening, Settlement
from millstream.meter import Meter
from millstream.usage import UNKNOWN, Charge, Usage

NOW = 1_790_000_000.0
AT_CHECKPOINT = Usage(10, 3, "checkpoint")
AT_THE_END = Usage(11, 8, "provider_final", 2)


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


def opening(stream_id: str, key_id: str = "k") -> Opening:
    return Opening(stream_id, key_id, key_id, "m", "p", NOW - 1)


def settlement(stream_id: str, usage: Usage = AT_THE_END, **more: Any) -> Settlement:
    values: dict[str, Any] = {
        "stream_id": stream_id,
        "status": "completed",
        "finish_reason": "stop",
        "error_code": None,
        "usage": usage,
        "charge": Charge(Decimal(usage.completion_tokens), Decimal(usage.completion_tokens)),
        "provider": "p",
        "first_event_at": NOW,
        "ended_at": NOW,
    }
    return Settlement(**{**values, **more})


def interrupted(stream_id: str, usage: Usage = AT_CHECKPOINT, **more: Any) -> Settlement:
    """What another worker settles an orphan with."""
    ended = {"status": "interrupted", "finish_reason": None, "error_code": "interrupted"}
    return settlement(stream_id, usage, **ended, **more)


def corrected(stream_id: str, usage: Usage = AT_THE_END, **more: Any) -> Settlement:
    """What the producer itself settles it with, late."""
    ended = {"status": "interrupted", "finish_reason": None, "corrects": True, "ended_at": NOW + 5}
    return settlement(stream_id, usage, **ended, **more)


async def waiting(db: Database) -> list[tuple[str, str, bool]]:
    columns = (schema.exports.c.exporter, schema.exports.c.stream_id, schema.exports.c.is_correction)
    query = sa.select(*columns).order_by(*columns)
    return await db.read(lambda connection: [(a, b, c) for a, b, c in connection.execute(query)])


async def settle(db: Database, *stream_ids: str, exporters: tuple[str, ...] = ("one",)) -> None:
    async with Ledger(db, exporters=exporters) as ledger:
        await asyncio.gather(*(ledger.open(opening(stream_id)) for stream_id in stream_ids))
        await asyncio.gather(*(ledger.settle(settlement(stream_id)) for stream_id in stream_ids))


# -- with the settlement ---------------------------------------------------------------------------


async def test_what_is_settled_is_exported_to_each_exporter_once(db: Database) -> None:
    async with Ledger(db, exporters=("one", "two")) as ledger:
        await ledger.open(opening("s"))
        assert await waiting(db) == []
        await ledger.settle(settlement("s"))
        assert await waiting(db) == [("one", "s", False), ("two", "s", False)]
        await Exports(db).finish("one", await Exports(db, lambda: NOW).lease("one", 9, 60), [])
        await ledger.settle(settlement("s"))  # as after a commit whose answer was lost
        assert await waiting(db) == [("two", "s", False)]


async def test_without_an_exporter_nothing_is_written(db: Database) -> None:
    await settle(db, "s", exporters=())
    assert await waiting(db) == []


async def test_rows_that_are_settled_together_are_exported_together(db: Database) -> None:
    names = [f"s{number:03}" for number in range(100)]
    await settle(db, *names)
    assert await waiting(db) == [("one", name, False) for name in names]


async def test_a_settlement_that_is_not_committed_exports_nothing(db: Database) -> None:
    """A row that the database refuses is written alone, and so is what it exports."""
    async with Ledger(db, exporters=("one",)) as ledger:
        await asyncio.gather(*(ledger.open(opening(name)) for name in ("bad", "good")))
        too_much = settlement("bad", Usage(2**70, 0, "counted"))
        await asyncio.gather(ledger.settle(too_much), ledger.settle(settlement("good")))
    assert await waiting(db) == [("one", "good", False)]


async def test_an_orphan_is_exported_by_whoever_settles_it(db: Database) -> None:
    async with Ledger(db, exporters=("one",)) as dead, Ledger(db, exporters=("one",)) as other:
        await dead.open(opening("s"))
        await other.settle_orphan(interrupted("s"))
        assert await waiting(db) == [("one", "s", False)]
        await other.settle_orphan(interrupted("s"))
        assert await waiting(db) == [("one", "s", False)]


async def test_two_workers_that_settle_one_stream_at_once_export_it_once(db: Database) -> None:
    names = [f"s{number}" for number in range(50)]
    async with Ledger(db, exporters=("one",)) as first, Ledger(db, exporters=("one",)) as second:
        await asyncio.gather(*(first.open(opening(name)) for name in names))
        shuffled = sorted(names, key=lambda _: secrets.randbits(32))
        await asyncio.gather(
            *(first.settle_orphan(settlement(name)) for name in names),
            *(second.settle_orphan(settlement(name)) for name in shuffled),
        )
    assert await waiting(db) == [("one", name, False) for name in sorted(names)]


async def test_what_an_application_meters_itself_is_exported(db: Database) -> None:
    async with Ledger(db, exporters=("one",)) as ledger:
        record_id = await Meter(ledger).record("k", 7, user="ann")
    (export,) = await Exports(db).lease("one", 9, 60)
    assert (export.id, export.user, export.amounts["completion_tokens"]) == (record_id, "ann", 7)


async def test_streams_of_a_test_key_are_never_exported(db: Database) -> None:
    keys = Keys(db)
    test, _ = await keys.create("t", ["chat"], test=True)
    live, _ = await keys.create("l", ["chat"])
    async with Ledger(db, exporters=("one",)) as ledger:
        for key in (test, live):
            await ledger.open(opening(f"of-{key.name}", key.id))
            await ledger.settle(settlement(f"of-{key.name}"))
        await Meter(ledger).record(test.id, 7)
    assert await waiting(db) == [("one", "of-l", False)]


# -- corrections -----------------------------------------------------------------------------------


async def test_what_is_settled_beside_a_late_one_is_not_corrected(db: Database) -> None:
    interrupted: dict[str, Any] = {
        "status": "interrupted",
        "error_code": "interrupted",
        "finish_reason": None,
    }
    async with Ledger(db, exporters=("one",)) as ledger:
        for name in ("late", "orphan", "own"):
            await ledger.open(opening(name))
        await ledger.settle_orphan(settlement("late", **interrupted))
        await asyncio.gather(
            ledger.settle_orphan(settlement("orphan", **interrupted)),
            *(ledger.settle(settlement(name, **interrupted)) for name in ("late", "orphan", "own")),
        )
        receipts = [await ledger.receipt(name) for name in ("late", "orphan", "own")]
    assert [one.corrected_at is not None for one in receipts] == [True, True, False]
    corrections = [("one", name, True) for name in ("late", "orphan")]
    assert sorted(one for one in await waiting(db) if one[2]) == corrections


@pytest.mark.parametrize("is_delivered", [False, True])
async def test_a_correction_is_the_difference_whenever_the_first_numbers_go_out(
    db: Database, is_delivered: bool
) -> None:
    exports = Exports(db)
    async with Ledger(db, exporters=("one",)) as dead, Ledger(db, exporters=("one",)) as other:
        await dead.open(opening("s"))
        await other.settle_orphan(interrupted("s"))
        sent: list[Export] = []
        if is_delivered:
            sent += await exports.lease("one", 9, 60)
            await exports.finish("one", sent, [])
        await dead.settle(corrected("s"))
        await dead.settle(corrected("s"))
    sent += await exports.lease("one", 9, 60)
    assert [(e.id, e.amounts["prompt_tokens"], e.amounts["completion_tokens"]) for e in sent] == [
        ("s", 10, 3),
        ("s.correction", 1, 5),
    ]
    assert [e.amounts["cost_picodollars"] for e in sent] == [3 * 10**12, 5 * 10**12]


async def test_a_correction_of_what_has_no_price_has_none(db: Database) -> None:
    async with Ledger(db, exporters=("one",)) as dead, Ledger(db, exporters=("one",)) as other:
        await dead.open(opening("s"))
        await other.settle_orphan(interrupted("s", charge=UNKNOWN))
        await dead.settle(corrected("s"))
    first, second = await Exports(db).lease("one", 9, 60)
    assert (first.amounts["cost_picodollars"], second.amounts["cost_picodollars"]) == (None, None)


NOTHING = Usage(0, 0, "checkpoint")


async def test_who_has_used_no_token_owes_nothing_whatever_the_price_is(db: Database) -> None:
    """Of an orphan without a checkpoint no price is known: its correction has all of the money."""
    async with Ledger(db, exporters=("one",)) as dead, Ledger(db, exporters=("one",)) as other:
        await dead.open(opening("s"))
        await other.settle_orphan(interrupted("s", NOTHING, charge=UNKNOWN))
        await dead.settle(corrected("s"))
        await dead.open(opening("t"))
        await other.settle_orphan(interrupted("t"))
        await dead.settle(corrected("t", NOTHING, charge=UNKNOWN))
    sent = {
        export.id: export.amounts["price_picodollars"] for export in await Exports(db).lease("one", 9, 60)
    }
    assert sent == {
        "s": 0,
        "s.correction": 8 * 10**12,
        "t": 3 * 10**12,
        "t.correction": -3 * 10**12,
    }


async def test_what_was_settled_before_its_exporter_was_there_is_not_corrected_there(db: Database) -> None:
    async with Ledger(db) as before:
        await before.open(opening("s"))
        await before.settle_orphan(interrupted("s"))
    await Exports(db, lambda: NOW + 1).begin("one")
    async with Ledger(db, exporters=("one", "two")) as ledger:
        await ledger.settle(corrected("s"))
    assert await waiting(db) == [("two", "s", True)]  # of which nobody knows since when it has been there
    assert await differences(db) == []


# -- leases ----------------------------------------------------------------------------------------


async def test_what_is_leased_is_given_to_nobody_else_until_the_lease_ends(db: Database) -> None:
    clock = Clock()
    exports = Exports(db, clock)
    await settle(db, *"abcde")
    first = await exports.lease("one", 3, 60)
    second = await exports.lease("one", 3, 60)
    assert sorted(e.stream_id for e in (*first, *second)) == list("abcde")
    assert await exports.lease("one", 3, 60) == []
    assert not await exports.are_due("one")
    clock.now += 61
    assert await exports.are_due("one")
    again = await exports.lease("one", 9, 60)
    assert [(e.stream_id, e.attempts, e.sent_at) for e in sorted(again, key=lambda e: e.id)] == [
        (name, 2, NOW) for name in "abcde"
    ]


async def test_workers_that_lease_at_once_share_what_is_due(db: Database) -> None:
    await settle(db, *(f"s{number}" for number in range(60)))
    leased = await asyncio.gather(*(Exports(db).lease("one", 10, 60) for _ in range(12)))
    ids = [export.id for some in leased for export in some]
    assert sorted(ids) == sorted(set(ids))
    while more := await Exports(db).lease("one", 10, 60):  # of those who came when all was locked
        ids += [export.id for export in more]
    assert sorted(ids) == sorted(f"s{number}" for number in range(60))


async def test_each_exporter_has_exports_of_its_own(db: Database) -> None:
    await settle(db, "s", exporters=("one", "two"))
    await Exports(db).finish("one", await Exports(db).lease("one", 9, 60), [])
    assert [export.id for export in await Exports(db).lease("two", 9, 60)] == ["s"]


async def test_what_was_given_back_unsent_is_as_it_was(db: Database) -> None:
    clock = Clock()
    exports = Exports(db, clock)
    await settle(db, "s")
    leased = await exports.lease("one", 9, 60)
    clock.now += 1
    await exports.finish("one", [], [Kept(leased[0], clock.now, "closed", False, is_attempt=False)])
    (export,) = await exports.lease("one", 9, 60)
    assert (export.attempts, export.sent_at) == (1, None)


async def test_that_something_may_have_arrived_is_not_forgotten(db: Database) -> None:
    clock = Clock()
    exports = Exports(db, clock)
    await settle(db, "s")
    for may_have_arrived in (True, False):
        (export,) = await exports.lease("one", 9, 60)
        await exports.finish("one", [], [Kept(export, clock.now, "no answer", may_have_arrived)])
        clock.now += 100
    (export,) = await exports.lease("one", 9, 60)
    assert export.sent_at == NOW


async def test_who_comes_too_late_changes_nothing_of_what_another_has_leased(db: Database) -> None:
    clock = Clock()
    exports = Exports(db, clock)
    await settle(db, "s")
    (late,) = await exports.lease("one", 9, 60)
    clock.now += 61
    await exports.lease("one", 9, 60)
    await exports.finish("one", [], [Kept(late, clock.now, "no answer", True)])
    assert await exports.lease("one", 9, 60) == []
    await exports.finish("one", [late], [])  # delivered is delivered
    assert await waiting(db) == []


async def test_a_refused_one_waits_for_an_operator(db: Database) -> None:
    clock = Clock()
    exports = Exports(db, clock)
    await settle(db, "a", "b")
    a, b = sorted(await exports.lease("one", 9, 60), key=lambda export: export.id)
    await exports.finish("one", [], [Kept(a, None, "400 no", False), Kept(b, clock.now, "503", True)])
    clock.now += 10
    (state,) = await exports.states()
    assert (state.waiting, state.failed, state.lag_seconds) == (1, 1, 10.0)
    assert state.last_error in ("400 no", "503")
    assert [export.id for export in await exports.lease("one", 9, 60)] == ["b"]
    assert await exports.retry("two") == 0
    assert await exports.retry("one") == 1
    (again,) = await exports.lease("one", 9, 60)
    assert (again.id, again.attempts, again.sent_at) == ("a", 1, None)


async def test_an_exporter_that_is_forgotten_leaves_nothing(db: Database) -> None:
    exports = Exports(db)
    await exports.begin("one")
    await settle(db, "a", "b", "c")
    done, refused, _ = await exports.lease("one", 9, 60)
    await exports.finish("one", [done], [Kept(refused, None, "400 no", False)])
    assert await exports.drop("one") == 2
    assert await exports.states() == []
    assert await waiting(db) == []
    assert (await Ledger(db).verify()).differences == []
    assert await exports.drop("one") == 0


async def test_what_is_due_is_found_after_the_clock_was_set_back(db: Database) -> None:
    clock = Clock()
    exports = Exports(db, clock)
    await settle(db, "s")
    (export,) = await exports.lease("one", 9, 60)
    await exports.finish("one", [], [Kept(export, clock.now + MAX_PAUSE_SECONDS, "later", False)])
    await exports.mend_clock("one")
    assert not await exports.are_due("one")
    clock.now -= 86_400
    await exports.mend_clock("one")
    assert await exports.are_due("one")


async def test_an_error_of_any_length_is_kept_in_part(db: Database) -> None:
    await settle(db, "s")
    (export,) = await Exports(db).lease("one", 9, 60)
    await Exports(db).finish("one", [], [Kept(export, None, "x" * 10_000, False)])
    (state,) = await Exports(db).states()
    assert state.last_error is not None
    assert set(state.last_error) == {"x"}


# -- the proof -------------------------------------------------------------------------------------


async def differences(db: Database) -> list[tuple[str, int, int]]:
    """What is exported otherwise than the rows say, and how: what, by the rows, by the exports."""
    found = (await Ledger(db, exporters=("one",)).verify()).differences
    return [(one.what, one.rows, one.sums) for one in found if one.table == "exports"]


async def deliver(db: Database, *stream_ids: str) -> None:
    exports = Exports(db, lambda: NOW + 10)
    leased = await exports.lease("one", 99, 60)
    delivered = [export for export in leased if export.stream_id in stream_ids]
    kept = [Kept(export, NOW, None, False) for export in leased if export.stream_id not in stream_ids]
    await exports.finish("one", delivered, kept)


async def test_what_was_delivered_and_what_waits_are_the_rows(db: Database) -> None:
    await settle(db, "before")
    await Exports(db, lambda: NOW).begin("one")
    async with Ledger(db, exporters=("one",)) as ledger:
        for name in ("a", "b", "c"):
            await ledger.open(opening(name))
        await ledger.settle(settlement("a"))
        await ledger.settle_orphan(interrupted("b"))
        await ledger.settle_orphan(interrupted("c"))
        assert await differences(db) == []
        await deliver(db, "a", "b", "before")
        await ledger.settle(corrected("b"))  # behind its delivery
        await ledger.settle(corrected("c"))  # before it
        assert await differences(db) == []
        await deliver(db, "b", "c")
        assert await differences(db) == []
    assert await waiting(db) == []


async def test_what_two_have_delivered_counts_once(db: Database) -> None:
    clock = Clock()
    exports = Exports(db, clock)
    await exports.begin("one")
    await settle(db, "s")
    first = await exports.lease("one", 9, 60)
    clock.now += 61
    second = await exports.lease("one", 9, 60)
    for leased in (first, second):
        await exports.finish("one", leased, [])
    assert await differences(db) == []


async def test_what_was_not_exported_is_found(db: Database) -> None:
    await Exports(db, lambda: NOW).begin("one")
    await settle(db, "s", exporters=())  # by a worker that does not know the exporter
    found = await differences(db)
    assert ("streams", 1, 0) in found
    assert ("completion_tokens", AT_THE_END.completion_tokens, 0) in found
    await settle(db, "t")
    await db.write(lambda connection: connection.execute(sa.delete(schema.exports)))  # by hand
    assert ("streams", 2, 0) in await differences(db)


async def test_a_row_that_retention_leaves_because_it_waits_does_not_hide_those_that_it_took(
    db: Database,
) -> None:
    await Exports(db, lambda: NOW).begin("one")
    hours = [f"s{hour}" for hour in range(6)]
    async with Ledger(db, exporters=("one",)) as ledger:
        for number, name in enumerate(hours):
            await ledger.open(replace(opening(name), created_at=NOW + 3600 * number))
            await ledger.settle(settlement(name))
        await deliver(db, *hours[1:])
        assert await ledger.delete_rows(NOW + 3600 * 4) == 3
        verified = await ledger.verify()
        assert (verified.streams, verified.differences) == (2, [])
        await db.write(lambda connection: connection.execute(sa.update(schema.hours).values(streams=2)))
        (found,) = (await ledger.verify()).differences  # an hour that has lost rows is like the oldest one
        assert found.hour == (NOW + 3600 * 5) // 3600 * 3600
