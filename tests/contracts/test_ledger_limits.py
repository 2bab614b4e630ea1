"""Limits in the ledger, run against every database: what starts reserves, what ends gives back."""

import asyncio
import os
import random
import sys
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack
from decimal import Decimal
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from ledger_rows import opening, settlement
from millstream.auth import Keys
from millstream.database import Database
from millstream.driver import DriverConnection, Prepared, Row
from millstream.errors import BudgetExceeded, MillstreamError, RateLimited, TooManyStreams
from millstream.events import TextDelta
from millstream.journals.memory import MemoryJournal
from millstream.ledger import Ledger
from millstream.ledger.rows import Opening, Settlement
from millstream.limits import Applied, Demand, Hold, Limit, narrowest, window
from millstream.prices import Rates, SetPrices, Tariff, UnitPrices
from millstream.schema import counters, streams
from millstream.streams.allowance import Allowance
from millstream.streams.upkeep import Upkeep
from millstream.usage import UNKNOWN, Charge, Usage

DAY = 86_400
PICO = 10**12


def limited(
    stream_id: str,
    *limits: Limit,
    tokens: int = 10,
    least: int | None = None,
    picodollars: int = 0,
    subject: str = "k",
) -> Opening:
    wanted = (tokens, picodollars)
    demand = Demand(
        tuple(Applied(subject, limit) for limit in limits),
        wanted if least is None else (least, picodollars),
        wanted,
    )
    return opening(stream_id, demand=demand)


def settled(stream_id: str, tokens: int, cost: Decimal | None = Decimal(0), **more: Any) -> Settlement:
    usage = Usage(tokens, 0, "provider_final")
    return settlement(stream_id, usage=usage, charge=Charge(cost, cost), is_limited=True, **more)


async def rows_of(db: Database) -> list[tuple[str, int, int]]:
    query = sa.select(counters.c.id, counters.c.used, counters.c.reserved).order_by(counters.c.id)
    return [tuple(row) for row in await db.read(lambda connection: connection.execute(query).all())]


@pytest.fixture
async def databases(database_url: str) -> AsyncGenerator[list[Database]]:
    """The same database three times, as three workers have it."""
    first = Database(database_url)
    first.migrate()
    several = [first, Database(database_url), Database(database_url)]
    yield several
    for db in several:
        await asyncio.to_thread(db.close)


@pytest.fixture
async def ledgers(databases: list[Database]) -> AsyncGenerator[list[Ledger]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(Ledger(db)) for db in databases]


async def outcomes(
    ledgers: Sequence[Ledger], openings: Sequence[Opening]
) -> tuple[list[Opening], list[MillstreamError]]:
    """Those that started, and the errors of the others."""
    found = await asyncio.gather(
        *(ledgers[i % len(ledgers)].open(one) for i, one in enumerate(openings)), return_exceptions=True
    )
    errors = [error for error in found if isinstance(error, MillstreamError)]
    assert len(errors) + sum(not isinstance(one, BaseException) for one in found) == len(found), found
    started = [one for one, got in zip(openings, found, strict=True) if not isinstance(got, BaseException)]
    return started, errors


async def test_what_is_reserved_becomes_what_was_used(
    ledgers: list[Ledger], databases: list[Database]
) -> None:
    ledger = ledgers[0]
    limits = Limit("requests", "day", 5), Limit("tokens", "month", 100), Limit("usd", "total", 2 * PICO)
    opened = await ledger.open(limited("s", *limits, tokens=30, picodollars=PICO))
    assert opened is not None
    assert (opened.hold.tokens, opened.hold.picodollars) == (30, PICO)
    assert [(one.what, one.left) for one in opened.standings] == [
        ("requests", 4),
        ("tokens", 70),
        ("usd", PICO),
    ]
    kinds = {name.split()[0]: (used, reserved) for name, used, reserved in await rows_of(databases[0])}
    assert kinds == {"requests": (1, 0), "tokens": (0, 30), "usd": (0, PICO)}
    await ledger.settle(settled("s", 12, Decimal("0.25")))
    kinds = {name.split()[0]: (used, reserved) for name, used, reserved in await rows_of(databases[0])}
    assert kinds == {"requests": (1, 0), "tokens": (12, 0), "usd": (PICO // 4, 0)}


async def test_an_unknown_price_counts_as_what_was_reserved(
    ledgers: list[Ledger], databases: list[Database]
) -> None:
    limit = Limit("usd", "day", 5 * PICO)
    for stream_id, tokens in (("s", 5), ("without a word", 0)):
        await ledgers[0].open(limited(stream_id, limit, picodollars=PICO))
        await ledgers[0].settle(settled(stream_id, tokens, None))
    ((_, used, reserved),) = await rows_of(databases[0])
    assert (used, reserved) == (PICO, 0)


async def test_an_unknown_price_of_a_tier_counts_as_the_standard_one(
    ledgers: list[Ledger], databases: list[Database]
) -> None:
    """And a correction finds what was counted, whoever has ended the stream before."""
    for number, ends in enumerate([(3,), (None, 3), (3, 4), (3, None)]):
        subject, stream_id = f"k{number}", f"s{number}"
        await ledgers[0].open(
            limited(stream_id, Limit("usd", "day", 9 * PICO), picodollars=PICO, subject=subject)
        )
        for dollars in ends:
            charge = Charge(estimate=None if dollars is None else Decimal(dollars))
            usage = Usage(9, 9, "provider_final")
            await ledgers[0].settle(
                settlement(stream_id, status="interrupted", usage=usage, charge=charge, is_limited=True)
            )
    used = {name[-2:]: (used // PICO, reserved) for name, used, reserved in await rows_of(databases[0])}
    assert used == {"k0": (3, 0), "k1": (3, 0), "k2": (4, 0), "k3": (3, 0)}


class Growing:
    """A stream whose answer has ``tokens``, in a tier that the list lacks."""

    def __init__(self, rate: int, tier: str | None) -> None:
        rates = UnitPrices("v", Rates(input=Decimal(rate), output=Decimal(rate)), all_tiers=True)
        self.tokens, self._tariff, self._tier = 0, Tariff(SetPrices(rates)), tier

    async def usage(self, *, accepted: bool) -> Usage:
        return Usage(0, self.tokens, "counted")

    def charge(self, usage: Usage) -> Charge:
        return self._tariff.charge(usage, 0.0, self._tier)


async def grown(ledger: Ledger, stream: Growing, dollars: str, most: int) -> int:
    """After how many tokens the budget is used up, if that is before ``most``."""
    limit = Limit("usd", "day", int(Decimal(dollars) * PICO))
    opened = await ledger.open(limited("s", limit))
    assert opened is not None
    demand = Demand((Applied("k", limit),))
    allowance = Allowance("s", demand, opened.hold, ledger, stream)
    while stream.tokens < most and await allowance.allows([TextDelta("x" * 400)]):
        stream.tokens += 100
    return stream.tokens


@pytest.mark.parametrize("tier", [None, "unlisted"])
async def test_a_budget_holds_in_a_tier_whose_price_nobody_knows(
    ledgers: list[Ledger], databases: list[Database], tier: str | None
) -> None:
    stream = Growing(10, tier)
    assert await grown(ledgers[0], stream, "0.05", 20_000) == 5100  # for 5,000 tokens
    usage = await stream.usage(accepted=True)
    await ledgers[0].settle(settlement(usage=usage, charge=stream.charge(usage), is_limited=True))
    ((_, used, reserved),) = await rows_of(databases[0])
    assert (used, reserved) == (PICO * 51 // 1000, 0)


async def test_what_costs_nothing_asks_for_nothing(
    ledgers: list[Ledger], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledgers[0], "extend", None)
    assert await grown(ledgers[0], Growing(0, None), "0.05", 5000) == 5000
    await ledgers[0].settle(settled("s", 1))


async def test_a_second_settlement_gives_nothing_back_twice(
    ledgers: list[Ledger], databases: list[Database]
) -> None:
    limit = Limit("tokens", "day", 100)
    await ledgers[0].open(limited("s", limit, tokens=40))
    await ledgers[0].open(limited("other", limit, tokens=40))
    await asyncio.gather(
        *(ledgers[i].settle_orphan(settled("s", 5)) for i in range(3)), ledgers[0].settle(settled("s", 5))
    )
    ((_, used, reserved),) = await rows_of(databases[0])
    assert (used, reserved) == (5, 40)
    await ledgers[0].settle(settled("other", 1))


async def test_a_late_settlement_corrects_what_was_used(
    ledgers: list[Ledger], databases: list[Database]
) -> None:
    limits = Limit("tokens", "day", 100), Limit("usd", "day", PICO)
    await ledgers[0].open(limited("s", *limits, tokens=40, picodollars=PICO // 2))
    await ledgers[1].settle_orphan(settled("s", 5, Decimal("0.1"), status="interrupted"))
    await ledgers[0].settle(settled("s", 25, Decimal("0.3")))
    await ledgers[0].settle(settled("s", 99, Decimal("0.9")))
    kinds = {name.split()[0]: (used, reserved) for name, used, reserved in await rows_of(databases[0])}
    assert kinds == {"tokens": (25, 0), "usd": (3 * PICO // 10, 0)}


async def test_what_has_no_limit_writes_no_counter(ledgers: list[Ledger], databases: list[Database]) -> None:
    await ledgers[0].open(opening("s"))
    await ledgers[0].settle(settlement("s"))
    assert await rows_of(databases[0]) == []


async def test_where_no_limit_applies_there_is_no_statement_more(
    ledgers: list[Ledger], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    real = DriverConnection.run

    def run(self: DriverConnection, statement: Prepared, rows: Sequence[Row]) -> int:
        said.append(statement.compiled(self._dialect)[0].split()[0])
        return real(self, statement, rows)

    monkeypatch.setattr(DriverConnection, "run", run)
    monkeypatch.setattr(DriverConnection, "first", None)
    monkeypatch.setattr(DriverConnection, "all", None)
    await ledgers[0].open(opening("s"))
    ledgers[0].checkpoint("s", Usage(1, 1, "checkpoint"), UNKNOWN, "p")
    await ledgers[0].settle(settlement("s"))
    assert said == ["INSERT", "UPDATE"]


@pytest.mark.parametrize(
    ("limit", "error", "words"),
    [
        (Limit("requests", "minute", 1), RateLimited, "1 requests a minute; 0 requests are left; the next"),
        (Limit("requests", "day", 1, "m"), RateLimited, "1 requests of m a day"),
        (Limit("tokens", "minute", 12), RateLimited, "; 2 tokens are left, and this needs 10 tokens; the"),
        (Limit("tokens", "hour", 12), BudgetExceeded, "2 tokens are left, and this needs 10 tokens"),
        (Limit("usd", "month", PICO), BudgetExceeded, r"\$0.400000 are left, and this needs \$0.600000"),
        (Limit("usd", "total", PICO), BudgetExceeded, r"in all; \$0.400000 are left"),
        (Limit("streams", "total", 1), TooManyStreams, "may have 1 streams open; end one"),
    ],
)
async def test_a_limit_that_is_used_up_refuses(
    ledgers: list[Ledger], databases: list[Database], limit: Limit, error: type[Exception], words: str
) -> None:
    more: dict[str, Any] = {"tokens": 10, "picodollars": 6 * PICO // 10}
    await ledgers[0].open(limited("s", limit, **more))
    before = await rows_of(databases[0])
    with pytest.raises(error, match=words) as refused:
        await ledgers[1].open(limited("second", limit, **more))
    retry = getattr(refused.value, "retry_after_seconds", None)
    assert (retry is not None and 0 < retry <= DAY) == (error is RateLimited)
    assert await rows_of(databases[0]) == before  # nothing of it stays
    await ledgers[1].open(limited("another's", limit, **more, subject="another"))
    for stream_id in ("s", "another's"):
        await ledgers[1].settle(settled(stream_id, 1))


async def test_a_stream_begins_with_what_is_left(ledgers: list[Ledger]) -> None:
    limit = Limit("tokens", "day", 100)
    first = await ledgers[0].open(limited("first", limit, tokens=70, least=20))
    second = await ledgers[0].open(limited("second", limit, tokens=70, least=20))
    assert [one and one.hold.tokens for one in (first, second)] == [70, 30]
    with pytest.raises(BudgetExceeded):
        await ledgers[0].open(limited("third", limit, tokens=70, least=20))
    for stream_id in ("first", "second"):
        await ledgers[0].settle(settled(stream_id, 1))


async def test_what_costs_nothing_starts_when_a_budget_is_overdrawn(
    ledgers: list[Ledger], databases: list[Database]
) -> None:
    limit = Limit("usd", "day", PICO)
    await ledgers[0].open(limited("dear", limit, picodollars=PICO))
    await ledgers[0].settle(settled("dear", 1, Decimal("1.000001")))
    opened = await ledgers[0].open(limited("free", limit))
    assert opened is not None
    assert (opened.hold.picodollars, opened.standings[0].left) == (0, 0)
    with pytest.raises(BudgetExceeded):
        await ledgers[0].open(limited("dear, too", limit, picodollars=1))
    await ledgers[0].settle(settled("free", 1))
    ((_, used, reserved),) = await rows_of(databases[0])
    assert (used, reserved) == (PICO + PICO // 1_000_000, 0)


async def test_what_a_limit_refuses_takes_up_no_place(ledgers: list[Ledger]) -> None:
    refused = msgspec.structs.replace(limited("refused", Limit("requests", "day", 0)), max_open=1)
    found = await asyncio.gather(
        *(ledgers[0].open(one) for one in (refused, *(opening(name, max_open=1) for name in "ab"))),
        return_exceptions=True,
    )
    assert [type(one) for one in found] == [RateLimited, type(None), TooManyStreams]
    await ledgers[0].settle(settlement("a"))


async def test_a_running_stream_gets_more_as_long_as_there_is_more(
    ledgers: list[Ledger], databases: list[Database]
) -> None:
    limits = Limit("tokens", "day", 100), Limit("tokens", "minute", 50)
    await ledgers[0].open(limited("s", *limits, tokens=20))
    found = [await ledgers[0].extend("s", wanted, 0, {"k"}) for wanted in (60, 40, 500)]
    assert [hold and hold.tokens for hold in found] == [60, 60, 100]
    assert {(used, reserved) for _, used, reserved in await rows_of(databases[0])} == {(0, 100)}
    await ledgers[0].settle(settled("s", 7))
    assert {(used, reserved) for _, used, reserved in await rows_of(databases[0])} == {(7, 0)}
    assert await ledgers[0].extend("s", 900, 0, {"k"}) is None
    assert {(used, reserved) for _, used, reserved in await rows_of(databases[0])} == {(7, 0)}


@pytest.mark.parametrize("each_user", [False, True])
@pytest.mark.parametrize("model", [None, "a model/1*"])
async def test_a_running_stream_gets_more_by_the_limits_of_its_key_as_they_are_now(
    ledgers: list[Ledger], databases: list[Database], each_user: bool, model: str | None
) -> None:
    keys = Keys(databases[0])
    key, _ = await keys.create("k", ["chat"])
    subject = f"{key.id}/some user" if each_user else key.id

    async def budget(tokens: int | None) -> list[Limit]:
        made = [] if tokens is None else [Limit("tokens", "day", tokens, model, each_user)]
        await keys.set_limits(key.id, made, replace=True)
        return made

    async def held_of(wanted: int) -> int:
        hold = await ledgers[0].extend("s", wanted, 0, {subject})
        assert hold is not None
        return hold.tokens

    (first,) = await budget(100)
    demand = Demand((Applied(subject, first, of_key=True),), (20, 0), (20, 0))
    await ledgers[0].open(opening("s", key_id=key.id, demand=demand))
    assert await held_of(60) == 60
    await budget(50)
    assert await held_of(70) == 60
    await budget(1000)
    assert await held_of(2000) == 1000
    await budget(None)
    assert await held_of(2000) == 2000
    await ledgers[0].settle(settled("s", 7))


async def test_an_end_beside_an_extension_leaves_nothing_reserved(
    ledgers: list[Ledger], databases: list[Database]
) -> None:
    await ledgers[0].open(limited("s", Limit("tokens", "day", 100), tokens=20))
    extended = ledgers[0].extend("s", 60, 0, {"k"})
    await ledgers[0].settle(settled("s", 7))
    await extended
    ((_, used, reserved),) = await rows_of(databases[0])
    assert (used, reserved) == (7, 0)


async def test_a_budget_for_ten_is_for_ten(ledgers: list[Ledger], databases: list[Database]) -> None:
    """1,000 starts at once, on three workers: never over at any instant, and nobody is refused for nothing."""
    limits = Limit("tokens", "total", 100), Limit("streams", "total", 50), Limit("requests", "day", 2000)
    worst, done = 0, False

    async def watch() -> None:
        nonlocal worst
        query = sa.select(counters.c.used + counters.c.reserved).where(counters.c.id.like("tokens %"))
        while not done:
            worst = max(worst, await databases[2].read(lambda c: c.scalar(query)) or 0)

    watching = asyncio.create_task(watch())
    try:
        async with asyncio.timeout(60):
            started, errors = await outcomes(ledgers, [limited(f"s{i}", *limits) for i in range(1000)])
            assert len(started) == 10
            assert {type(error) for error in errors} == {BudgetExceeded}
            await asyncio.gather(*(ledgers[0].settle(settled(one.stream_id, 4)) for one in started))
            # 40 are used: there is room for six more.
            again, _ = await outcomes(ledgers, [limited(f"t{i}", *limits) for i in range(100)])
            assert len(again) == 6
            await asyncio.gather(*(ledgers[1].settle(settled(one.stream_id, 10)) for one in again))
            assert not (await outcomes(ledgers, [limited("last", *limits)]))[0]
    finally:
        done = True
        await watching
    assert 0 < worst <= 100
    found = {name.split()[0]: (used, reserved) for name, used, reserved in await rows_of(databases[0])}
    assert found == {"tokens": (100, 0), "streams": (0, 0), "requests": (16, 0)}


async def test_three_processes_start_no_more_than_there_is_a_budget_for(
    databases: list[Database], database_url: str
) -> None:
    command = [sys.executable, "-m", "racer"]
    racers = [
        await asyncio.create_subprocess_exec(
            *command,
            database_url,
            name,
            "334",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        for name in "abc"
    ]
    worst, done = 0, False

    async def watch() -> None:
        nonlocal worst
        query = sa.select(counters.c.used + counters.c.reserved)
        while not done:
            worst = max(worst, await databases[0].read(lambda c: c.scalar(query)) or 0)

    async def answers() -> list[str]:
        lines = [await asyncio.wait_for(one.stdout.readline(), 60) for one in racers if one.stdout]
        return [line.decode().strip() for line in lines]

    def go() -> None:
        for one in racers:
            assert one.stdin
            one.stdin.write(b"\n")

    try:
        assert await answers() == ["ready"] * 3
        watching = asyncio.create_task(watch())
        go()
        assert sum(map(int, await answers())) == 10
        go()
        assert [await asyncio.wait_for(one.wait(), 60) for one in racers] == [0, 0, 0]
        done = True
        await watching
    finally:
        for one in racers:
            if one.returncode is None:
                one.kill()
    assert 0 < worst <= 100
    ((_, used, reserved),) = await rows_of(databases[0])
    assert (used, reserved) == (50, 0)


async def test_what_dead_workers_held_is_free_when_their_streams_are_ended(
    databases: list[Database],
) -> None:
    """1,000 of them, whose worker dies after it has reserved. Its lease takes the other 15 s of 30."""
    limits = Limit("tokens", "day", 10**6), Limit("usd", "day", 1000 * PICO), Limit("streams", "total", 1000)
    dead = Ledger(databases[0])
    await dead.__aenter__()  # and never leaves
    more: dict[str, Any] = {"tokens": 1000, "picodollars": PICO}
    await asyncio.gather(*(dead.open(limited(f"s{i}", *limits, **more)) for i in range(1000)))
    dead.crash()
    await dead.leases.leave()
    async with AsyncExitStack() as stack:
        journal = await stack.enter_async_context(MemoryJournal())
        ledger = await stack.enter_async_context(Ledger(databases[1]))
        with pytest.raises(MillstreamError):
            await ledger.open(limited("one more", *limits, **more))
        began = time.monotonic()
        await stack.enter_async_context(Upkeep(journal, ledger, Keys(databases[1]), {}, list))
        async with asyncio.timeout(15):
            while any(reserved for _, _, reserved in await rows_of(databases[2])):
                pass
        print(f"{time.monotonic() - began:.1f} s")
        await ledger.open(limited("one more", *limits, **more))
        await ledger.settle(settled("one more", 1))
    kinds = {name.split()[0]: (used, reserved) for name, used, reserved in await rows_of(databases[2])}
    assert kinds == {"tokens": (1, 0), "usd": (0, 0), "streams": (0, 0)}


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_happens_in_whatever_order_the_books_balance(
    ledgers: list[Ledger], databases: list[Database], seed: int
) -> None:
    """Streams start, get more and end on three workers, some of them twice and some for a worker that seemed
    dead; in the end counters say what the rows say. At no instant a budget is exceeded, but by what is
    corrected for a worker that was not dead.
    """
    seemingly_dead = 0.3 if seed % 2 else 0.0
    chance = random.Random(seed)  # no secret
    limits = [
        Limit("tokens", "day", 400),
        Limit("tokens", "total", 900, "m"),
        Limit("usd", "month", 500 * PICO),
        Limit("streams", "total", 12),
        Limit("requests", "day", 10**6),
    ]
    worst: dict[str, int] = {}
    done = False

    async def watch() -> None:
        while not done:
            for name, used, reserved in await rows_of(databases[2]):
                kind = " ".join(name.split()[:2])
                worst[kind] = max(worst.get(kind, 0), used + reserved)

    async def live(i: int) -> int:
        own, other = chance.sample(ledgers, 2)
        stream_id, some = f"s{i}", chance.sample(limits, chance.randint(1, len(limits)))
        tokens = chance.randint(1, 20)
        try:
            opened = await own.open(
                limited(stream_id, *some, tokens=tokens, least=1, picodollars=tokens * PICO)
            )
        except MillstreamError:
            return 0
        assert opened is not None
        held = opened.hold
        for _ in range(chance.randint(0, 3)):
            more = chance.randint(1, 40)
            held = await own.extend(stream_id, more, more * PICO, {"k"}) or held
        used = min(chance.randint(0, held.tokens), held.picodollars // PICO)
        if chance.random() < seemingly_dead:  # it is ended by somebody who knows less
            await other.settle_orphan(settled(stream_id, used // 2, Decimal(used // 2), status="interrupted"))
        ends = [own.settle(settled(stream_id, used, Decimal(used))) for _ in range(chance.randint(1, 2))]
        await asyncio.gather(*ends)
        return used

    watching = asyncio.create_task(watch())
    try:
        async with asyncio.timeout(60):
            for start in range(0, 160, 40):
                await asyncio.gather(*(live(i) for i in range(start, start + 40)))
    finally:
        done = True
        await watching
    sums: dict[str, int] = {}
    query = sa.select(streams.c.held, streams.c.prompt_tokens, streams.c.price_picodollars)
    for held, tokens, cost in await databases[0].read(lambda c: c.execute(query).all()):
        for counter in Hold.of(held).counters:
            added = {"tokens": tokens, "usd": cost, "requests": 1, "streams": 0}[counter.what]
            sums[counter.id] = sums.get(counter.id, 0) + added
    assert {name: (used, reserved) for name, used, reserved in await rows_of(databases[0])} == {
        name: (used, 0) for name, used in sums.items()
    }
    for limit in () if seemingly_dead else limits:
        assert worst.get(f"{limit.what} {limit.per}", 0) <= limit.amount


async def test_who_shares_counters_in_another_order_waits_for_nobody(ledgers: list[Ledger]) -> None:
    """Two limits, asked for in both orders by three workers at once, with ends in between: no deadlock."""
    limits = [Limit("tokens", "day", 10**9), Limit("requests", "day", 10**9), Limit("streams", "total", 500)]

    async def one(i: int) -> None:
        ordered = limits if i % 2 else limits[::-1]
        subject = f"k{i % 3}"
        await ledgers[i % 3].open(limited(f"s{i}", *ordered, subject=subject))
        await ledgers[i % 3].extend(f"s{i}", 30, 0, {subject})
        await ledgers[(i + 1) % 3].settle(settled(f"s{i}", 3))

    async with asyncio.timeout(60):
        await asyncio.gather(*(one(i) for i in range(300)))
    found = [
        reading
        for i in range(3)
        for reading in await ledgers[0].usage_of([Applied(f"k{i}", limit) for limit in limits])
    ]
    assert {(one.limit.what, one.used, one.reserved) for one in found} == {
        ("tokens", 300, 0),
        ("requests", 100, 0),
        ("streams", 0, 0),
    }


async def test_a_clock_that_is_set_moves_no_window(
    ledgers: list[Ledger], databases: list[Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = Limit("requests", "day", 1)
    await ledgers[0].open(limited("s", limit))
    real = time.time
    for jump in (DAY, -DAY):
        monkeypatch.setattr(time, "time", lambda jump=jump: real() + jump)
        with pytest.raises(RateLimited):
            await ledgers[0].open(limited("second", limit))
    monkeypatch.undo()
    await ledgers[0].settle(settled("s", 1))
    assert len(await rows_of(databases[0])) == 1


async def test_counters_go_when_their_windows_are_long_over(
    ledgers: list[Ledger], databases: list[Database]
) -> None:
    await ledgers[0].open(limited("s", Limit("requests", "minute", 9), Limit("streams", "total", 9)))
    await ledgers[0].settle(settled("s", 1))
    assert await ledgers[0].prune() == 0
    old = sa.update(counters).where(counters.c.ends_at.is_not(None)).values(ends_at=time.time() - 2 * DAY)
    await databases[0].write(lambda connection: connection.execute(old))
    assert await ledgers[0].prune() == 1
    assert [name.split()[0] for name, _, _ in await rows_of(databases[0])] == ["streams"]


@pytest.mark.parametrize(
    ("per", "at", "begins", "ends"),
    [
        ("minute", "2026-02-28T23:59:59", "2026-02-28T23:59:00", "2026-03-01T00:00:00"),
        ("hour", "2026-02-28T23:00:00", "2026-02-28T23:00:00", "2026-03-01T00:00:00"),
        ("day", "2028-02-29T12:00:00", "2028-02-29T00:00:00", "2028-03-01T00:00:00"),
        ("month", "2026-12-31T23:59:59", "2026-12-01T00:00:00", "2027-01-01T00:00:00"),
        ("month", "2026-11-30T00:00:00", "2026-11-01T00:00:00", "2026-12-01T00:00:00"),
    ],
)
def test_windows_are_those_of_the_calendar_in_utc(per: Any, at: str, begins: str, ends: str) -> None:
    from datetime import datetime

    def moment(text: str) -> float:
        return datetime.fromisoformat(text + "+00:00").timestamp()

    assert window(per, moment(at)) == (moment(begins), moment(ends))


def test_of_limits_that_share_a_counter_the_smallest_holds() -> None:
    limits = [
        Limit("tokens", "day", 5, each_user=True),
        Limit("tokens", "day", 3),
        Limit("tokens", "day", 4, "m"),
    ]
    kept = narrowest([Applied("k/u", limit) for limit in limits])
    assert [one.limit.amount for one in kept] == [3, 4]
