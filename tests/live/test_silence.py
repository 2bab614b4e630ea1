"""Many open streams in which nothing happens: pings on time, memory bounded, everything given back."""

import asyncio
import json
import re
import time
from pathlib import Path

import psutil
import pytest
from redis.asyncio import Redis

from live.conftest import running

PING_SECONDS = 15
WORKERS = 2


async def hold(
    tmp_path: Path, redis_url: str, count: int, seconds: float, remains: float | None = None, **more: str
) -> dict[str, float]:
    """Opens ``count`` silent streams on two workers for ``seconds``; what it cost, in KiB a stream.

    Of the memory they took no more than the share ``remains`` may stay, where it is given.
    """
    environment = {
        "MILLSTREAM_JOURNAL_URL": redis_url,
        "MILLSTREAM_PROVIDERS": '{"scripted": {"type": "scripted"}}',
        "MILLSTREAM_MAX_STREAMS": "20000",
        "MILLSTREAM_RESUME_WINDOW_SECONDS": "5",
        **more,
    }
    context = running(tmp_path / "server", "--workers", str(WORKERS), **environment)
    server = await asyncio.to_thread(context.__enter__)
    redis = Redis.from_url(redis_url)
    try:
        # The second word comes after everything is over.
        body = json.dumps(
            {"model": "scripted/2x900000", "messages": [{"role": "user", "content": "x"}]}
        ).encode()
        head = (
            f"POST /v1/chat/stream HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.key}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        ).encode()
        opening = asyncio.Semaphore(64)
        late: list[float] = []
        streams: set[str] = set()
        opened = 0
        stop = asyncio.Event()

        async def client(number: int) -> None:
            nonlocal opened
            async with opening:
                # More than one address, so that ports do not run out.
                local = (f"127.0.0.{number % 8 + 2}", 0)
                reader, writer = await asyncio.open_connection("127.0.0.1", server.port, local_addr=local)
                writer.write(head + body)
                said = await reader.readuntil(b'"delta":"stream')
                match = re.search(rb'"stream_id":"(\w[\w-]*)"', said)
                assert match is not None
                streams.add(match[1].decode())
                opened += 1
            heard_at = time.monotonic()
            ended = asyncio.create_task(stop.wait())
            while not stop.is_set():
                heard = asyncio.create_task(reader.readuntil(b": ping\n"))
                await asyncio.wait({heard, ended}, return_when=asyncio.FIRST_COMPLETED)
                if heard.done():
                    heard.result()
                    now = time.monotonic()
                    late.append(now - heard_at - PING_SECONDS)
                    heard_at = now
                else:
                    heard.cancel()
            ended.cancel()
            writer.close()

        def family() -> list[psutil.Process]:
            return [p for p in psutil.Process(server.pid).children() if "spawn_main" in " ".join(p.cmdline())]

        def served(process: psutil.Process) -> int:
            return sum(c.status == psutil.CONN_ESTABLISHED for c in process.net_connections("tcp"))

        def memory() -> int:
            return sum(p.memory_info().rss for p in family())

        # What is loaded once is loaded before it is measured, in both.
        warm: list[asyncio.Task[None]] = []
        async with asyncio.timeout(60):
            while len(family()) < 2 or min(served(p) for p in family()) < 20:
                warm.append(asyncio.create_task(client(len(warm))))
                while opened < len(warm):
                    await asyncio.sleep(0.01)
        stop.set()
        await asyncio.gather(*warm)
        stop.clear()
        late.clear()
        streams.clear()
        opened = 0
        async with asyncio.timeout(30):
            while any(served(p) for p in family()):
                await asyncio.sleep(0.1)
        before, descriptors = memory(), sum(p.num_fds() for p in family())
        threads = sum(p.num_threads() for p in family())
        clients = [asyncio.create_task(client(i)) for i in range(count)]
        while opened < count:
            await asyncio.sleep(0.2)
            assert not [c for c in clients if c.done()]
        assert await redis.exists(*[f"millstream:stream:{stream_id}" for stream_id in streams]) == count
        each = (memory() - before) / count / 1024
        await asyncio.sleep(seconds)
        assert not [c for c in clients if c.done()]
        assert len(late) >= count * (seconds // (PING_SECONDS + 2))
        assert max(late) < 2
        stop.set()
        await asyncio.gather(*clients)
        async with asyncio.timeout(60):
            while sum(p.num_fds() for p in family()) > descriptors + 20:
                await asyncio.sleep(0.2)
            while await redis.exists(*[f"millstream:stream:{stream_id}" for stream_id in streams]):
                await asyncio.sleep(0.2)
        # The pools of readers make their threads when they are first needed, at the most two a worker.
        assert sum(p.num_threads() for p in family()) <= threads + 2 * WORKERS
        if remains is not None:  # when the resume window has passed
            async with asyncio.timeout(60):
                while (memory() - before) / count / 1024 > remains * each:
                    await asyncio.sleep(0.5)
        after = (memory() - before) / count / 1024
        assert await asyncio.to_thread(server.terminate, 40) == 0
        return {"KiB a stream": each, "KiB a stream afterwards": after, "latest ping s": max(late)}
    finally:
        await redis.aclose()
        await asyncio.to_thread(context.__exit__, None, None, None)


async def test_silent_streams_are_pinged_on_time_and_given_back(tmp_path: Path, redis_url: str) -> None:
    await hold(tmp_path, redis_url, 300, 18)


@pytest.mark.faults
@pytest.mark.timeout(1200)
async def test_ten_thousand_silent_streams_for_ten_minutes(
    tmp_path: Path, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the guide has it for many silent streams: with the C library's allocator, which can part with what
    is free between what is not."""
    figures = await hold(tmp_path, redis_url, 10_000, 600, remains=0.1, PYTHONMALLOC="malloc")
    with capsys.disabled():
        print(figures)


@pytest.mark.faults
@pytest.mark.timeout(300)
async def test_ten_thousand_silent_streams_with_the_allocator_of_python(
    tmp_path: Path, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = await hold(tmp_path, redis_url, 10_000, 18, remains=0.6)
    with capsys.disabled():
        print(figures)
