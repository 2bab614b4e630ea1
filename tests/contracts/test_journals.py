"""The rules of ``Journal``, run against every implementation."""

import asyncio
import re
import socket
import struct
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, suppress
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeVar, cast

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st
from redis import Redis as BlockingRedis
from redis.asyncio import Redis

from millstream.errors import (
    BadPosition,
    ConfigurationError,
    Overloaded,
    StreamClosed,
    StreamFull,
    StreamGone,
)
from millstream.events import (
    Batch,
    Event,
    File,
    PartEnd,
    PartStart,
    Position,
    StreamEnd,
    StreamFailed,
    StreamInfo,
    StreamStart,
    Text,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    WholePart,
    to_json,
)
from millstream.journals import StreamState
from millstream.journals.memory import MemoryJournal
from millstream.journals.redis import RedisJournal, outbox
from millstream.journals.redis.connection import Connection, Timeouts
from millstream.usage import Bill, Usage
from services import RedisServers, redis_programs, redis_server

BILL = Bill(Usage(1, 1, "counted"), None)
END = StreamEnd("stop", BILL)
START = StreamStart("s", "m")

Journal: TypeAlias = MemoryJournal | RedisJournal
SomeJournal = TypeVar("SomeJournal", bound=Journal)
Two: TypeAlias = tuple[RedisJournal, RedisJournal]


class MakeJournal(Protocol):
    """The fixture ``make_journal``."""

    async def __call__(self, *, max_stream_bytes: int = ...) -> Journal: ...


@pytest.fixture(params=["memory", *redis_programs()])
async def make_journal(
    request: pytest.FixtureRequest, redis_servers: RedisServers
) -> AsyncGenerator[MakeJournal]:
    """Makes journals of one kind that are closed after the test. Those of one test share their Redis."""
    async with AsyncExitStack() as stack:
        if request.param != "memory":
            url = redis_servers(request.param)

        async def make(*, max_stream_bytes: int = 32 << 20) -> Journal:
            if request.param == "memory":
                return await stack.enter_async_context(MemoryJournal(max_stream_bytes=max_stream_bytes))
            return await stack.enter_async_context(RedisJournal(url, max_stream_bytes=max_stream_bytes))

        yield make


@pytest.fixture(params=redis_programs())
def shared_url(request: pytest.FixtureRequest, redis_servers: RedisServers) -> str:
    """Of a Redis, for several workers."""
    return redis_servers(request.param)


@pytest.fixture
async def two(shared_url: str) -> AsyncGenerator[Two]:
    """The journals of two workers."""
    async with RedisJournal(shared_url) as here, RedisJournal(shared_url) as there:
        yield here, there


@pytest.fixture
async def redis(shared_url: str) -> AsyncGenerator[Redis]:
    """The Redis that the two share, for what happens to it."""
    async with Redis.from_url(shared_url) as client:
        yield client


async def started(made: SomeJournal | Awaitable[SomeJournal], stream_id: str = "s") -> SomeJournal:
    journal = await made if isinstance(made, Awaitable) else made
    await journal.create(StreamInfo(stream_id, "key", "m", 1.0))
    return journal


async def read(
    journal: Journal, after: Position | None = None, stream_id: str = "s"
) -> list[tuple[int, Event]]:
    """What a reader gets, as (seq, event), up to the end of the stream."""
    found: list[tuple[int, Event]] = []
    async with asyncio.timeout(5), aclosing(journal.read(stream_id, after)) as batches:
        async for batch in batches:
            found += [(batch.first.seq + i, event) for i, event in enumerate(batch.events)]
            assert batch.last.seq == found[-1][0]
    return found


def words(n: int) -> list[TextDelta]:
    return [TextDelta(f"{i} ") for i in range(n)]


async def test_everything_appended_is_read_in_order(make_journal: MakeJournal) -> None:
    journal = await started(make_journal())
    assert await journal.append("s", [START]) == Position(1, 1)
    assert await journal.append("s", words(3)) == Position(1, 4)
    await journal.append("s", [END])
    assert await read(journal) == list(enumerate([START, *words(3), END], 1))


@pytest.mark.parametrize("seq", range(6))
async def test_a_read_after_a_position_gives_exactly_the_rest(make_journal: MakeJournal, seq: int) -> None:
    journal = await started(make_journal())
    await journal.append("s", [START, *words(3), END])
    everything = await read(journal)
    assert await read(journal, Position(1, seq)) == everything[seq:]


async def test_a_reader_follows_live_and_ends_with_the_terminal_event(make_journal: MakeJournal) -> None:
    journal = await started(make_journal())
    readers = [asyncio.create_task(read(journal)) for _ in range(20)]
    said: list[Event] = [START, *words(50), END]
    for event in said:
        await journal.append("s", [event])
        await asyncio.sleep(0)
    expected = list(enumerate(said, 1))
    assert await asyncio.gather(*readers) == [expected] * 20


@pytest.mark.parametrize("takes", ["all", "none", "every other", "until it breaks"])
async def test_what_is_pushed_is_not_yielded_and_nothing_is_lost(
    make_journal: MakeJournal, takes: str
) -> None:
    """Whatever a reader takes in the turn of an append, it has everything once and in order."""
    journal = await started(make_journal())
    found: list[tuple[Position, Event]] = []
    calls = pushed = 0

    def push(batch: Batch) -> bool:
        nonlocal calls, pushed
        calls += 1
        if takes == "until it breaks" and calls > 5:
            raise RuntimeError
        if takes == "none" or (takes == "every other" and calls % 2):
            return False
        keep(batch)
        pushed += 1
        return True

    def keep(batch: Batch) -> None:
        found.extend(
            (Position(batch.first.epoch, batch.first.seq + i), event) for i, event in enumerate(batch.events)
        )

    async def follow() -> None:
        async with aclosing(journal.read("s", push=push)) as batches:
            async for batch in batches:
                keep(batch)

    following = [asyncio.create_task(follow())]
    said: list[Event] = [START, *words(20), END]
    for number, event in enumerate(said):
        if number % 3:
            await asyncio.sleep(0)
        await journal.append("s", [event])
    await asyncio.wait_for(following[0], 5)
    assert found == [(Position(1, i), event) for i, event in enumerate(said, 1)]
    assert (pushed > 0) == (takes != "none")


async def test_a_crowd_of_readers_has_turns_of_its_own(make_journal: MakeJournal) -> None:
    """An append serves a few itself, and wakes the others."""
    journal = await started(make_journal())
    in_append = 0
    appending = False

    def push(_: Batch) -> bool:
        nonlocal in_append
        in_append += appending
        return True

    async def follow() -> None:
        async with aclosing(journal.read("s", push=push)) as batches:
            async for _ in batches:
                pass

    readers = [asyncio.create_task(follow()) for _ in range(100)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    appending = True
    await journal.append("s", words(1))
    appending = False
    assert in_append == 8
    await journal.append("s", [END])
    await asyncio.wait_for(asyncio.gather(*readers), 5)


async def test_a_long_stream_comes_in_slices_that_let_others_go_on(make_journal: MakeJournal) -> None:
    journal = await started(make_journal())
    await journal.append("s", [*words(5000), END])
    sizes = [len(batch.events) async for batch in journal.read("s")]
    assert sum(sizes) == 5001
    assert max(sizes) <= 1000


async def test_nothing_follows_a_terminal_event(make_journal: MakeJournal) -> None:
    for terminal in (END, StreamFailed("internal", "x", False, BILL)):
        journal = await started(make_journal())
        await journal.append("s", [*words(1), terminal])
        with pytest.raises(StreamClosed):
            await journal.append("s", words(1))
        with pytest.raises(StreamClosed):
            await journal.append("s", [END])
        assert len(await read(journal)) == 2


async def test_a_stream_is_made_once(make_journal: MakeJournal) -> None:
    journal = await started(make_journal())
    with pytest.raises(StreamClosed):
        await started(journal)


async def test_what_is_not_there_is_gone(make_journal: MakeJournal) -> None:
    journal = await make_journal()
    with pytest.raises(StreamGone):
        await journal.state("s")
    with pytest.raises(StreamGone):
        await journal.append("s", [END])
    with pytest.raises(StreamGone):
        await read(journal)


@pytest.mark.parametrize("after", [Position(1, 3), Position(2, 1), Position(0, 0), Position(1, -1)])
async def test_a_position_that_is_not_there_is_refused(make_journal: MakeJournal, after: Position) -> None:
    journal = await started(make_journal())
    await journal.append("s", words(2))
    with pytest.raises(BadPosition):
        await read(journal, after)


async def test_the_state_says_where_a_stream_is(make_journal: MakeJournal) -> None:
    journal = await started(make_journal())
    info = StreamInfo("s", "key", "m", 1.0)
    assert await journal.state("s") == StreamState(info, Position(1, 0), False)
    await journal.append("s", words(2))
    assert await journal.state("s") == StreamState(info, Position(1, 2), False)
    await journal.append("s", [END])
    assert await journal.state("s") == StreamState(info, Position(1, 3), True)


INTERRUPTED = StreamFailed("interrupted", "x", True, BILL)


async def test_an_interrupted_stream_ends_in_its_second_epoch_with_its_parts_closed(
    make_journal: MakeJournal,
) -> None:
    journal = await started(make_journal())
    await journal.append("s", [START, PartStart(0, Text()), *words(3), PartStart(1, ToolCall(0, "c", "f"))])
    await journal.append("s", [ToolCallDelta(0, "c", "{", 1)])
    reading = asyncio.create_task(read(journal))
    await asyncio.sleep(0)
    assert await journal.interrupt("s", INTERRUPTED) == INTERRUPTED
    assert await journal.interrupt("s", StreamFailed("internal", "y", False, BILL)) == INTERRUPTED
    end = [
        (1, PartEnd(0, Text(), cut=True)),
        (2, PartEnd(1, ToolCall(0, "c", "f", "{"), cut=True)),
        (3, INTERRUPTED),
    ]
    assert (await reading)[7:] == end
    assert await journal.state("s") == StreamState(StreamInfo("s", "key", "m", 1.0), Position(2, 3), True)
    assert await read(journal, Position(1, 7)) == end
    assert await read(journal, Position(1, 6)) == [(7, ToolCallDelta(0, "c", "{", 1)), *end]
    assert await read(journal, Position(2, 2)) == end[2:]
    assert await read(journal, Position(2, 3)) == []
    with pytest.raises(StreamClosed):
        await journal.append("s", words(1))


async def test_a_stream_that_has_ended_is_not_interrupted(make_journal: MakeJournal) -> None:
    journal = await started(make_journal())
    await journal.append("s", [*words(2), END])
    assert await journal.interrupt("s", INTERRUPTED) == END
    assert len(await read(journal)) == 3


async def test_a_forgotten_stream_is_gone(make_journal: MakeJournal) -> None:
    journal = await started(make_journal())
    assert journal.count() == 1
    await journal.forget("s")
    assert journal.count() == 0
    with pytest.raises(StreamGone):
        await journal.state("s")


async def test_a_stream_over_its_limit_takes_only_its_end(make_journal: MakeJournal) -> None:
    journal = await started(make_journal(max_stream_bytes=2000))
    with pytest.raises(StreamFull):
        for _ in range(100):
            await journal.append("s", [TextDelta("x" * 100)])
    await journal.append("s", [END])
    assert (await read(journal))[-1][1] == END


async def test_a_picture_counts_what_it_takes() -> None:
    journal = await started(MemoryJournal(max_stream_bytes=10_000))
    await journal.append("s", [WholePart(0, File("image/png", "data:image/png;base64," + "A" * 9000))])
    with pytest.raises(StreamFull):
        await journal.append("s", [TextDelta("x" * 1000)])
    with pytest.raises(StreamFull):
        await journal.append("s", [WholePart(1, File("image/png", "data:", {"revised_prompt": "x" * 1000}))])


async def test_a_reader_that_is_stuck_keeps_nothing_of_a_stream_that_was_dropped() -> None:
    journal = await started(MemoryJournal())
    await journal.append("s", words(9))
    reading = journal.read("s")
    await anext(reading)
    assert "events" not in cast("Any", reading).ag_frame.f_locals
    await reading.aclose()


async def test_over_the_limit_finished_streams_go_oldest_first() -> None:
    journal = MemoryJournal(max_bytes=50_000)
    await started(journal, "running")
    await journal.append("running", words(1))
    for i in range(20):
        await started(journal, f"s{i}")
        await journal.append(f"s{i}", [TextDelta("x" * 5000), END])
    assert (await read(journal, stream_id="s19"))[-1][1] == END
    with pytest.raises(StreamGone):
        await journal.state("s0")
    await journal.append("running", [END])


async def test_a_finished_stream_is_kept_for_its_window() -> None:
    now = 1000.0
    journal = await started(MemoryJournal(window_seconds=300, clock=lambda: now))
    await journal.append("s", [END])
    reading = journal.read("s")
    await anext(reading)
    now += 299
    journal.expire()
    assert "s" in journal
    now += 2
    journal.expire()
    assert "s" not in journal
    assert [batch async for batch in reading] == []  # who is in the middle of it goes on


async def test_a_reader_that_leaves_is_forgotten(make_journal: MakeJournal) -> None:
    journal = await started(make_journal())
    waiting = [asyncio.create_task(read(journal)) for _ in range(10)]
    await asyncio.sleep(0)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    await journal.append("s", [END])
    assert len(await read(journal)) == 1


@given(st.lists(st.integers(1, 7), max_size=20), st.lists(st.integers(0, 100), min_size=1, max_size=5))
def test_readers_from_anywhere_at_any_time_get_what_they_missed(
    sizes: list[int], positions: list[int]
) -> None:
    async def go() -> None:
        journal = await started(MemoryJournal())
        events = [TextDelta(str(i)) for i in range(sum(sizes))]
        readers: list[tuple[int, asyncio.Task[list[tuple[int, Event]]]]] = []
        done = 0
        for turn, size in enumerate(sizes):
            await journal.append("s", events[done : done + size])
            done += size
            seq = min(positions[turn % len(positions)], done)
            readers.append((seq, asyncio.create_task(read(journal, Position(1, seq)))))
            await asyncio.sleep(0)
        await journal.append("s", [END])
        everything = list(enumerate([*events, END], 1))
        for seq, reader in readers:
            assert await reader == everything[seq:]

    asyncio.run(go())


# -- several workers -------------------------------------------------------------------------------


async def test_a_stream_is_read_on_another_worker_as_in_its_own(two: Two) -> None:
    here, there = two
    await started(here)
    readers = [asyncio.create_task(read(journal)) for journal in (here, there, there)]
    said: list[Event] = [START, *words(50), END]
    for event in said:
        await here.append("s", [event])
        await asyncio.sleep(0)
    expected = list(enumerate(said, 1))
    assert await asyncio.gather(*readers) == [expected] * 3
    assert await there.state("s") == await here.state("s")


@pytest.mark.parametrize("seq", range(0, 2001, 199))
async def test_another_worker_reads_exactly_the_rest(two: Two, seq: int) -> None:
    here, there = two
    await started(here)
    await here.append("s", [START, *words(1500)])
    reading = asyncio.create_task(read(there, Position(1, min(seq, 1501))))
    for word in words(499):
        await here.append("s", [word])
        await asyncio.sleep(0)
    await here.append("s", [END])
    everything = list(enumerate([START, *words(1500), *words(499), END], 1))
    assert await reading == everything[min(seq, 1501) :]


async def test_a_position_far_ahead_is_refused_on_another_worker_and_a_near_one_waits(
    two: Two,
) -> None:
    here, there = two
    await started(here)
    await here.append("s", words(2))
    with pytest.raises(BadPosition):
        await read(there, Position(1, 100_000))
    reading = asyncio.create_task(read(there, Position(1, 4)))  # its reader saw more before it came here
    await here.append("s", words(4))
    await here.append("s", [END])
    assert [seq for seq, _ in await reading] == [5, 6, 7]


async def test_what_a_producer_says_after_its_stream_was_ended_for_it_is_void(
    two: Two,
) -> None:
    zombie, other = two
    await started(zombie)
    await zombie.append("s", [START, PartStart(0, Text()), *words(3)])
    local, remote = (asyncio.create_task(read(journal)) for journal in (zombie, other))
    await until(lambda: zombie.outbox.copied("s") == 5)
    assert await other.interrupt("s", INTERRUPTED) == INTERRUPTED
    with pytest.raises(StreamClosed):
        async with asyncio.timeout(5):
            while True:
                await zombie.append("s", words(1))
                await asyncio.sleep(0)
    assert (await remote)[-2:] == [(1, PartEnd(0, Text(), cut=True)), (2, INTERRUPTED)]
    assert (await local)[-2:] == [(1, PartEnd(0, Text(), cut=True)), (2, INTERRUPTED)]
    assert len(await remote) == 7


async def test_what_a_worker_knew_of_redis_before_it_slept_is_found_out_again(
    two: Two, redis: Redis, shared_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others may have ended its streams meanwhile, in a Redis that takes writes again."""
    monkeypatch.setattr(outbox, "RETRY_SECONDS", (0.2, 0.2))
    monkeypatch.setattr(outbox, "_BELIEVED_SECONDS", 0.3)
    zombie, _ = two
    await started(zombie)
    await zombie.append("s", [START])
    await until(lambda: zombie.outbox.copied("s") == 1)
    await redis.config_set("maxmemory", 1)
    await zombie.append("s", words(1))
    await until(lambda: zombie.outbox.failing)
    with BlockingRedis.from_url(shared_url) as others:
        others.config_set("maxmemory", 0)
        others.xadd("millstream:stream:s", {"events": to_json([INTERRUPTED]), "end": "1"}, id="2-1")
    time.sleep(0.4)  # the event loop sleeps with the worker
    with pytest.raises(StreamClosed):
        await zombie.append("s", [END])
    assert (await read(zombie))[-1] == (1, INTERRUPTED)


async def test_workers_hear_each_other(two: Two) -> None:
    here, there = two
    await started(here)
    heard = here.signals()
    first = asyncio.create_task(anext(heard))
    await asyncio.sleep(0)
    await there.request_cancel("s")
    async with asyncio.timeout(5):
        assert (await first).kind == "cancel"
        reading = asyncio.create_task(read(there))
        signal = await anext(heard)
        assert (signal.kind, signal.stream_ids) == ("reading", ("s",))
        reading.cancel()
        assert (await anext(heard)).kind == "left"


async def test_a_redis_that_was_emptied_gets_the_running_streams_again(two: Two, redis: Redis) -> None:
    here, there = two
    await started(here)
    await here.append("s", [START, *words(10)])
    await until(lambda: here.outbox.copied("s") == 11)
    await redis.flushall()
    with pytest.raises(StreamGone):
        await there.state("s")
    await here.append("s", words(1))
    await until(lambda: here.outbox.copied("s") == 12)
    reading = asyncio.create_task(read(there))
    await here.append("s", [END])
    assert len(await reading) == 13


async def test_a_part_that_was_lost_is_found_out(two: Two, redis: Redis) -> None:
    here, there = two
    await started(here)
    await here.append("s", words(10))
    await until(lambda: here.outbox.copied("s") == 10)
    reading = asyncio.create_task(read(there))
    await until(lambda: "s" in there.replicas)
    await redis.xadd("millstream:stream:s", {"events": b"[]"}, id="1-15")
    with pytest.raises(StreamGone):
        await reading


async def test_what_a_full_redis_did_not_take_is_copied_when_there_is_room(
    two: Two, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    here, there = two
    await started(here)
    await here.append("s", [START])
    await until(lambda: here.outbox.copied("s") == 1)
    reading = asyncio.create_task(read(there))
    await until(lambda: "s" in there.replicas)
    await redis.config_set("maxmemory", 1)
    try:
        await here.append("s", [*words(2000), END])
        await until(lambda: here.outbox.failing)
        assert here.outbox.copied("s") is not None
    finally:
        await redis.config_set("maxmemory", 0)
    assert len(await reading) == 2002
    assert re.search(r"Redis: its memory is full(?s:.)*Redis is there again", caplog.text)


async def test_what_is_sent_to_redis_at_once_is_bounded(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "BYTES_PER_FLUSH", 10_000)
    here, there = two
    ask = Connection.ask
    sent: list[int] = []

    async def noted(connection: Connection, commands: Sequence[Sequence[Any]]) -> list[Any]:
        sent.append(sum(len(word) for command in commands for word in command if isinstance(word, bytes)))
        return await ask(connection, commands)

    monkeypatch.setattr(Connection, "ask", noted)
    names = [f"s{i}" for i in range(10)]
    for name in names:
        await started(here, name)
    for name in names:
        await here.append(name, [*words(3000), END])
    for name in names:
        await here.flush(name)
        assert len(await read(there, stream_id=name)) == 3001
    assert max(sent) < 10_000 + 512 * 40  # and an entry
    assert sum(sent) < 2_000_000  # nothing twice


async def test_connections_that_redis_closed_are_made_again_without_a_word(
    two: Two, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    here, there = two
    await started(here)
    reading = asyncio.create_task(read(there))
    await here.append("s", [START])
    await until(lambda: "s" in there.replicas and here.outbox.copied("s") == 1)
    await redis.execute_command("CLIENT", "KILL", "TYPE", "normal")  # type: ignore[no-untyped-call]  # redis has no types for it
    await here.append("s", [*words(10), END])
    assert len(await reading) == 12
    assert not caplog.records


async def test_a_stream_that_redis_lost_with_its_end_still_to_come_is_written_again(
    two: Two, redis: Redis
) -> None:
    here, there = two
    await started(here)
    await here.append("s", words(3))
    await until(lambda: here.outbox.copied("s") == 3)
    await redis.flushall()
    await here.append("s", [END])
    await until(lambda: here.outbox.copied("s") is None)
    assert len(await read(there)) == 4


async def test_a_replica_that_nobody_reads_leaves_nothing_behind(two: Two) -> None:
    here, there = two
    await started(here)
    await here.append("s", [*words(50), END])
    await here.flush("s")
    for _ in range(3):
        assert len(await read(there)) == 51
    assert there.count() == 0
    assert there.replicas.is_empty()


async def test_a_signal_of_another_version_is_passed_over(two: Two, redis: Redis) -> None:
    here, there = two
    await redis.xadd("millstream:signals", {"signal": b'{"kind":"new"}'})
    heard = here.signals()
    first = asyncio.create_task(anext(heard))
    await asyncio.sleep(0)
    await there.request_cancel("s")
    async with asyncio.timeout(5):
        assert (await first).kind == "cancel"


async def test_without_redis_streams_go_on_and_are_there_again_when_it_is_back(tmp_path: Path) -> None:
    socket = tmp_path / "redis.sock"
    with redis_server(socket):
        here = await RedisJournal(f"unix://{socket}").__aenter__()
    async with asyncio.timeout(20):
        await started(here)
        await here.append("s", [START, *words(3)])
        reading = asyncio.create_task(read(here))
        await asyncio.sleep(0)
        await here.append("s", words(3))
        with pytest.raises(Overloaded):
            await here.state("other")
        with pytest.raises(Overloaded):
            await here.ping()
        with redis_server(socket):
            async with RedisJournal(f"unix://{socket}") as there:
                await until(lambda: here.outbox.copied("s") == 7)
                await here.append("s", [END])
                assert await read(there) == await reading
            await here.__aexit__()


async def test_a_redis_that_takes_connections_and_never_answers_is_away(tmp_path: Path) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    socket = tmp_path / "redis.sock"
    async with (
        asyncio.timeout(10),
        await asyncio.start_unix_server(silent, socket),
        RedisJournal(f"unix://{socket}", timeouts=Timeouts(connect=0.1, answer=0.1, leave=0.1)) as here,
    ):
        reading = asyncio.create_task(started(here))  # it waits for Redis as long as it takes to connect
        await until(lambda: here.outbox.failing)
        await reading
        await here.append("s", [START, END])
        assert len(await read(here)) == 2


def test_connections_that_were_reset_are_made_again(redis_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """On the loop that the server runs on, which has its own word for it."""

    async def scenario() -> None:
        ends: set[asyncio.StreamWriter] = set()

        async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            there = await asyncio.open_unix_connection(redis_url.removeprefix("unix://"))
            ends.add(writer)
            await asyncio.gather(pump(reader, there[1]), pump(there[0], writer))

        async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(OSError):
                while data := await reader.read(65_536):
                    writer.write(data)
            writer.close()

        async with await asyncio.start_server(carry, "127.0.0.1", 0) as proxy:
            port = proxy.sockets[0].getsockname()[1]
            async with RedisJournal(f"redis://127.0.0.1:{port}") as here:
                await started(here)
                await until(lambda: here.outbox.transport is not None and len(ends) >= 3)
                await here.ping()
                kept = here.outbox.transport
                for end in ends:
                    linger = struct.pack("ii", 1, 0)
                    end.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    end.transport.abort()
                assert kept is not None
                await until(kept.is_closing)
                with pytest.raises(StreamGone):
                    await here.state("other")
                await here.append("s", [START, END])
                await here.flush("s")
                assert here.outbox.copied("s") is None
        assert "outbox" not in caplog.text

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(scenario(), 20))


@pytest.mark.parametrize("option", ["protocol=3", "socket_timeout=1", "decode_responses=true"])
def test_what_is_set_for_redis_cannot_be_set_by_its_url(option: str) -> None:
    with pytest.raises(ConfigurationError, match=option.partition("=")[0]):
        RedisJournal(f"redis://127.0.0.1:1/0?{option}").check()


async def test_a_redis_that_may_drop_streams_is_refused(tmp_path: Path) -> None:
    socket = tmp_path / "redis.sock"
    with redis_server(socket, "--maxmemory-policy", "allkeys-lru"):
        with pytest.raises(ConfigurationError, match="noeviction"):
            await asyncio.to_thread(RedisJournal(f"unix://{socket}").check)
    with pytest.raises(ConfigurationError, match="cannot use"):
        await asyncio.to_thread(RedisJournal(f"unix://{socket}").check)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)


async def test_nobody_sees_an_end_that_came_after_others_had_ended_the_stream(two: Two) -> None:
    sleeper, other = two
    await started(sleeper)
    await sleeper.append("s", [START, PartStart(0, Text()), *words(3)])
    await sleeper.flush("s")
    reading = asyncio.create_task(read(sleeper))
    assert await other.interrupt("s", INTERRUPTED) == INTERRUPTED
    with pytest.raises(StreamClosed):
        await sleeper.append("s", [*words(2), PartEnd(0, Text()), END])
    assert [event for _, event in await reading] == [
        START,
        PartStart(0, Text()),
        *words(3),
        PartEnd(0, Text(), cut=True),
        INTERRUPTED,
    ]
    assert (await sleeper.state("s")).closed


async def test_the_end_of_a_stream_that_redis_lost_is_written_with_all_before_it(
    two: Two, redis: Redis
) -> None:
    here, there = two
    await started(here)
    await here.append("s", words(3))
    await here.flush("s")
    await redis.flushall()
    await here.append("s", [*words(1), END])
    assert len(await read(there)) == len(await read(here)) == 5


async def test_an_end_does_not_wait_for_a_redis_that_is_away(tmp_path: Path) -> None:
    socket = tmp_path / "redis.sock"
    with redis_server(socket):
        here = await RedisJournal(f"unix://{socket}").__aenter__()
        await started(here)
    async with asyncio.timeout(5):
        await here.append("s", [START, END])
        assert len(await read(here)) == 2
    await here.crash()


async def test_signals_are_heard_again_after_redis_comes_back_with_an_earlier_clock(
    shared_url: str, redis: Redis
) -> None:
    timeouts = Timeouts(answer=0.4)
    async with (
        RedisJournal(shared_url, timeouts=timeouts) as here,
        RedisJournal(shared_url, timeouts=timeouts) as there,
    ):
        heard = here.signals()
        hearing = asyncio.ensure_future(anext(heard))
        await asyncio.sleep(0)
        await there.request_cancel("first")
        async with asyncio.timeout(5):
            assert (await hearing).stream_ids == ("first",)
            entries: Any = await redis.xrange("millstream:signals")
            await redis.delete("millstream:signals")
            again = entries[-1][1][b"signal"].replace(b"first", b"again")
            await redis.xadd("millstream:signals", {"signal": again}, id="5-1")
            assert (await anext(heard)).stream_ids == ("again",)


async def test_what_slow_readers_hold_of_finished_streams_counts_and_is_bounded() -> None:
    journal = MemoryJournal(max_bytes=100_000)
    readers = []
    for i in range(20):
        await started(journal, f"s{i}")
        await journal.append(f"s{i}", [TextDelta("x" * 20_000)])
        reader = journal.read(f"s{i}")
        await anext(reader)
        await journal.append(f"s{i}", [END])
        readers.append(reader)
    outcomes: list[list[Event] | None] = []
    for reader in readers:
        try:
            outcomes.append([event for batch in [b async for b in reader] for event in batch.events])
        except StreamGone:
            outcomes.append(None)
    assert outcomes[0] is None  # the oldest had to leave
    assert outcomes[-1] == [END]  # the newest goes on
    assert sum(outcome is not None for outcome in outcomes) <= 5
    for i in range(20):
        await journal.forget(f"s{i}")
    assert journal.is_empty()


async def test_a_dropped_stream_counts_until_its_last_reader_leaves() -> None:
    now = 1000.0
    journal = await started(MemoryJournal(window_seconds=10, clock=lambda: now))
    await journal.append("s", [TextDelta("x" * 1000), END])
    readers = [journal.read("s") for _ in range(2)]
    for reader in readers:
        await anext(reader)
    now += 11
    journal.expire()
    assert "s" not in journal
    await readers[0].aclose()
    assert not journal.is_empty()
    await readers[1].aclose()
    assert journal.is_empty()
