"""The rules of ``EventLog``, run against every implementation."""

import asyncio
from contextlib import aclosing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millstream.errors import StreamClosed, StreamFull, StreamGone
from millstream.events import (
    Bill,
    Position,
    StreamEnd,
    StreamFailed,
    StreamInfo,
    StreamStart,
    TextDelta,
    Usage,
)
from millstream.logs.memory import MemoryLog

BILL = Bill(Usage(1, 1, "counted"), None)
END = StreamEnd("stop", BILL)
START = StreamStart("s", "m")

IMPLEMENTATIONS = {"memory": MemoryLog}


@pytest.fixture(params=IMPLEMENTATIONS)
def make_log(request):
    return IMPLEMENTATIONS[request.param]


async def started(log, stream_id="s"):
    await log.create(StreamInfo(stream_id, "key", "m", 1.0))
    return log


async def read(log, after=None, stream_id="s"):
    """What a reader gets, as (seq, event), up to the end of the stream."""
    found = []
    async with asyncio.timeout(5), aclosing(log.read(stream_id, after)) as batches:
        async for batch in batches:
            found += [(batch.first.seq + i, event) for i, event in enumerate(batch.events)]
            assert batch.last.seq == found[-1][0]
    return found


def words(n):
    return [TextDelta(f"{i} ") for i in range(n)]


async def test_everything_appended_is_read_in_order(make_log):
    log = await started(make_log())
    assert await log.append("s", [START]) == Position(1, 1)
    assert await log.append("s", words(3)) == Position(1, 4)
    await log.append("s", [END])
    assert await read(log) == list(enumerate([START, *words(3), END], 1))


@pytest.mark.parametrize("seq", range(6))
async def test_a_read_after_a_position_gives_exactly_the_rest(make_log, seq):
    log = await started(make_log())
    await log.append("s", [START, *words(3), END])
    everything = await read(log)
    assert await read(log, Position(1, seq)) == everything[seq:]


async def test_a_reader_follows_live_and_ends_with_the_terminal_event(make_log):
    log = await started(make_log())
    readers = [asyncio.create_task(read(log)) for _ in range(20)]
    for event in [START, *words(50), END]:
        await log.append("s", [event])
        await asyncio.sleep(0)
    expected = list(enumerate([START, *words(50), END], 1))
    assert await asyncio.gather(*readers) == [expected] * 20


async def test_a_long_stream_comes_in_slices_that_let_others_go_on(make_log):
    log = await started(make_log())
    await log.append("s", [*words(5000), END])
    sizes = [len(batch.events) async for batch in log.read("s")]
    assert sum(sizes) == 5001
    assert max(sizes) <= 1000


async def test_nothing_follows_a_terminal_event(make_log):
    for terminal in (END, StreamFailed("internal", "x", False, BILL)):
        log = await started(make_log())
        await log.append("s", [*words(1), terminal])
        with pytest.raises(StreamClosed):
            await log.append("s", words(1))
        with pytest.raises(StreamClosed):
            await log.append("s", [END])
        assert len(await read(log)) == 2


async def test_a_stream_is_made_once(make_log):
    log = await started(make_log())
    with pytest.raises(StreamClosed):
        await started(log)


async def test_what_is_not_there_is_gone(make_log):
    log = make_log()
    with pytest.raises(StreamGone):
        await log.info("s")
    with pytest.raises(StreamGone):
        await log.append("s", [END])
    with pytest.raises(StreamGone):
        await read(log)


@pytest.mark.parametrize("after", [Position(1, 3), Position(2, 1), Position(0, 0), Position(1, -1)])
async def test_a_position_that_is_not_there_is_gone(make_log, after):
    log = await started(make_log())
    await log.append("s", words(2))
    with pytest.raises(StreamGone):
        await read(log, after)


async def test_the_info_stays_as_it_was(make_log):
    log = await started(make_log())
    assert await log.info("s") == StreamInfo("s", "key", "m", 1.0)


async def test_a_stream_over_its_limit_takes_only_its_end(make_log):
    log = await started(make_log(max_stream_bytes=2000))
    with pytest.raises(StreamFull):
        for _ in range(100):
            await log.append("s", [TextDelta("x" * 100)])
    await log.append("s", [END])
    assert (await read(log))[-1][1] == END


async def test_over_the_limit_finished_streams_go_oldest_first(make_log):
    log = make_log(max_bytes=50_000)
    await started(log, "running")
    await log.append("running", words(1))
    for i in range(20):
        await started(log, f"s{i}")
        await log.append(f"s{i}", [TextDelta("x" * 5000), END])
    assert (await read(log, stream_id="s19"))[-1][1] == END
    with pytest.raises(StreamGone):
        await log.info("s0")
    await log.append("running", [END])


async def test_a_finished_stream_is_kept_for_its_window(make_log):
    log = await started(make_log(window_seconds=0.001))
    await log.append("s", [END])
    reading = log.read("s")
    await anext(reading)
    async with asyncio.timeout(5):
        while True:  # the window is on the clock; making another stream is when it is looked at
            await asyncio.sleep(0.002)
            await started(log, f"other{asyncio.get_running_loop().time()}")
            try:
                await log.info("s")
            except StreamGone:
                break
    assert [batch async for batch in reading] == []  # who is in the middle of it goes on


async def test_a_reader_that_leaves_is_forgotten(make_log):
    log = await started(make_log())
    waiting = [asyncio.create_task(read(log)) for _ in range(10)]
    await asyncio.sleep(0)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    await log.append("s", [END])
    assert len(await read(log)) == 1


@given(st.lists(st.integers(1, 7), max_size=20), st.lists(st.integers(0, 100), min_size=1, max_size=5))
def test_readers_from_anywhere_at_any_time_get_what_they_missed(sizes, positions):
    async def go():
        log = await started(MemoryLog())
        events = [TextDelta(str(i)) for i in range(sum(sizes))]
        readers, done = [], 0
        for turn, size in enumerate(sizes):
            await log.append("s", events[done : done + size])
            done += size
            seq = min(positions[turn % len(positions)], done)
            readers.append((seq, asyncio.create_task(read(log, Position(1, seq)))))
            await asyncio.sleep(0)
        await log.append("s", [END])
        everything = list(enumerate([*events, END], 1))
        for seq, reader in readers:
            assert await reader == everything[seq:]

    asyncio.run(go())
