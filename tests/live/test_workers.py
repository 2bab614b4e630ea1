"""Several workers on one Redis and one database: streams that are followed, stopped and ended from others."""

import asyncio
import json
import random
import signal
import sqlite3
import time
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import aiohttp
import pytest

from client import Stream
from live.conftest import Serve, Server, running
from live.test_nginx import Proxy, nginx
from oracle import Handler, Oracle, Request, oracle

MESSAGES = [{"role": "user", "content": "Hello"}]
WORDS = [f"wörd{i} " for i in range(12)]

# Of the ledger, by stream.
Rows: TypeAlias = dict[str, dict[str, Any]]
Entered = TypeVar("Entered")


class Provider:
    """Says its words, as fast as it is let."""

    def __init__(self, words: Sequence[str] = WORDS, pace: float = 0.0) -> None:
        self.words, self.pace = words, pace

    async def __call__(self, request: Request) -> None:
        if request.path.endswith("/models"):
            return await request.answer(200, {"data": [{"id": "m"}]})
        await request.head()
        for word in self.words:
            await request.say(word)
            if self.pace:
                await asyncio.sleep(self.pace)
        await request.finish(usage={"prompt_tokens": 7, "completion_tokens": 60})


@asynccontextmanager
async def fleet(
    tmp_path: Path, provider: Handler, count: int, *, redis_url: str | None = None, **environment: str
) -> AsyncGenerator["Fleet"]:
    """``count`` servers, a proxy before them that takes turns, and a client session."""
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(oracle(provider))
        environment |= {"OPENAI_BASE_URL": upstream.base_url, "OPENAI_API_KEY": "sk-test"}
        if redis_url:
            environment["MILLSTREAM_JOURNAL_URL"] = redis_url

        async def enter(context: AbstractContextManager[Entered]) -> Entered:
            entered = await asyncio.to_thread(context.__enter__)
            stack.push_async_callback(asyncio.to_thread, context.__exit__, None, None, None)
            return entered

        first = await enter(running(tmp_path / "server", **environment))
        others = [enter(running(tmp_path / "server", **environment)) for _ in range(count - 1)]
        servers = [first, *await asyncio.gather(*others)]
        proxy = await enter(nginx(tmp_path / "nginx", *(server.port for server in servers)))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        yield Fleet(upstream, servers, proxy, session, tmp_path)


class Fleet:
    def __init__(
        self,
        upstream: Oracle,
        servers: Sequence[Server],
        proxy: Proxy,
        session: aiohttp.ClientSession,
        tmp_path: Path,
    ) -> None:
        self.upstream, self.servers, self.proxy, self.session = upstream, servers, proxy, session
        self.url = f"http://127.0.0.1:{proxy.port}"
        self.key = servers[0].key
        self._database = tmp_path / "server" / "millstream-data" / "millstream.db"

    def stream(self, server: Server | None = None) -> Stream:
        return Stream(self.session, server.url if server else self.url, self.key)

    def body(self, grace: float = 20) -> dict[str, object]:
        return {"model": "m", "messages": MESSAGES, "on_disconnect": {"grace_seconds": grace}}

    def asked(self) -> list[Request]:
        return [request for request in self.upstream.requests if request.path.endswith("completions")]

    async def rows(self, seconds: float = 40) -> Rows:
        """The ledger, once nothing runs."""
        async with asyncio.timeout(seconds):
            while True:
                with sqlite3.connect(self._database) as connection:
                    connection.row_factory = sqlite3.Row
                    rows = {row["id"]: dict(row) for row in connection.execute("select * from streams")}
                if all(row["status"] != "running" for row in rows.values()):
                    return rows
                await asyncio.sleep(0.1)


@pytest.mark.parametrize("log", ["memory", "redis"])
async def test_cut_anywhere_and_resumed_elsewhere_the_answer_is_whole(
    tmp_path: Path, request: pytest.FixtureRequest, log: str
) -> None:
    """spec/faults.md: R1 and R4."""
    redis_url = request.getfixturevalue("redis_url") if log == "redis" else None
    chance = random.Random(5)
    async with fleet(tmp_path, Provider(pace=0.01), 2 if redis_url else 1, redis_url=redis_url) as it:
        whole = it.stream()
        await whole.start(it.body())
        size = 1400
        # Live: each client is cut at another place, and again and again after that.

        async def client(cut: int) -> Stream:
            stream = it.stream()
            await stream.start(it.body(), cut_after=cut)
            for _ in range(3):
                if stream.end is None and stream.stream_id:
                    await stream.follow(cut_after=chance.randrange(1, 400))
            await stream.to_the_end()
            return stream

        streams = [whole, *await asyncio.gather(*(client(cut) for cut in range(200, size, 20)))]
        # From the journal: every cut of the finished answer.

        async def replay(cut: int) -> Stream:
            stream = it.stream()
            stream.stream_id = whole.stream_id
            await stream.follow(cut_after=cut)
            if stream.end is None:
                await stream.follow()
            return stream

        for start in range(1, size, 100):
            streams += await asyncio.gather(*(replay(cut) for cut in range(start, start + 100)))
        rows = await it.rows()
        started = {stream.stream_id for stream in streams}
        for stream in streams:
            assert stream.text == "".join(WORDS)
            assert stream.end is not None
            assert stream.end["finish_reason"] == "stop"
        assert len(it.asked()) == len(started) == len(rows)
        assert {row["status"] for row in rows.values()} == {"completed"}


async def test_a_cancel_from_another_worker_reaches_the_provider(tmp_path: Path, redis_url: str) -> None:
    async with fleet(tmp_path, Provider(["x "] * 1000, pace=0.02), 2, redis_url=redis_url) as it:
        here, there = it.servers
        delays: list[float] = []

        async def one() -> None:
            stream = it.stream(here)
            reading = asyncio.create_task(stream.start(it.body()))
            async with asyncio.timeout(20):
                while not stream.pieces:
                    await asyncio.sleep(0.01)
            (request,) = (request for request in it.asked() if not request.gone.is_set())
            asked_at = time.monotonic()
            url = f"{there.url}/v1/streams/{stream.stream_id}/cancel"
            async with it.session.post(url, headers=stream.headers) as answer:
                assert answer.status == 200
            async with asyncio.timeout(20):
                await reading
                await request.gone.wait()
            assert request.closed_at is not None
            delays.append(request.closed_at - asked_at)
            assert stream.end is not None
            assert stream.end["finish_reason"] == "cancelled"

        for _ in range(20):
            await one()
        delays.sort()
        assert delays[-1] < 2  # the figure itself is measured, not tested
        rows = await it.rows()
        assert [row["status"] for row in rows.values()] == ["cancelled"] * 20


async def test_the_streams_of_a_dead_and_of_a_sleeping_worker_are_ended_by_another(
    tmp_path: Path, redis_url: str
) -> None:
    """spec/faults.md: P1 and P6."""
    provider = Provider(["x "] * 2000, pace=0.02)
    async with fleet(tmp_path, provider, 3, redis_url=redis_url) as it:
        dead, asleep, alive = it.servers
        streams = [it.stream(server) for server in (dead, asleep)]
        reading = [asyncio.create_task(stream.start(it.body())) for stream in streams]
        elsewhere = [it.stream(alive) for _ in streams]
        for stream, other in zip(streams, elsewhere, strict=True):
            async with asyncio.timeout(20):
                while len(stream.pieces) < 20:
                    await asyncio.sleep(0.01)
            other.stream_id = stream.stream_id
            reading.append(asyncio.create_task(other.follow()))
        await asyncio.sleep(1.5)  # a checkpoint, by the clock
        dead.process.send_signal(signal.SIGKILL)
        asleep.process.send_signal(signal.SIGSTOP)
        try:
            ended_at = time.monotonic()
            async with asyncio.timeout(40):
                await asyncio.gather(*reading[2:], reading[0], return_exceptions=True)
                rows = await it.rows()
            assert time.monotonic() - ended_at < 30
        finally:
            asleep.process.send_signal(signal.SIGCONT)
        for other in elsewhere:
            assert other.end is not None
            assert other.end["error"]["code"] == "interrupted"
            assert other.positions[-1][0] == 2
            assert "x x x " in other.text
            assert other.stream_id is not None
            row = rows[other.stream_id]
            assert (row["status"], row["usage_source"], row["error_code"]) == (
                "interrupted",
                "checkpoint",
                "interrupted",
            )
            assert row["completion_tokens"] == other.end["usage"]["completion_tokens"] > 0
        # The sleeper wakes up: what it says is void, its provider is let go, its reader is told.
        async with asyncio.timeout(20):
            await reading[1]
            if streams[1].end is None:
                await streams[1].to_the_end()
            await asyncio.gather(*(request.gone.wait() for request in it.asked()))
        assert streams[1].end is not None
        assert streams[1].end["error"]["code"] == "interrupted"
        # The ends stand; the sleeper may have corrected its checkpoint's numbers with its own by now.
        for stream_id, row in (await it.rows()).items():
            ends = ("status", "error_code", "ended_at")
            assert [row[name] for name in ends] == [rows[stream_id][name] for name in ends]
            assert row["completion_tokens"] >= rows[stream_id]["completion_tokens"]
        # And it serves again.
        again = it.stream(asleep)
        provider.words = WORDS
        await again.start(it.body())
        assert again.text == "".join(WORDS)
        # Whoever was with the dead one is told as well, elsewhere.
        streams[0].url = alive.url
        await streams[0].to_the_end()
        assert streams[0].end is not None
        assert streams[0].end["error"]["code"] == "interrupted"


async def test_a_reader_elsewhere_counts_for_the_disconnect_policy(tmp_path: Path, redis_url: str) -> None:
    async with fleet(tmp_path, Provider(["x "] * 500, pace=0.02), 2, redis_url=redis_url) as it:
        here, there = it.servers
        stream = it.stream(here)
        await stream.start(it.body(grace=1), cut_after=600)
        following = asyncio.create_task(stream.follow(there.url, cut_after=8000))
        async with asyncio.timeout(20):
            await following  # for longer than the grace
        left_at = time.monotonic()
        (request,) = it.asked()
        async with asyncio.timeout(10):
            await request.gone.wait()
        assert request.closed_at is not None
        assert request.closed_at - left_at > 0.5
        (row,) = (await it.rows()).values()
        assert row["status"] == "cancelled"


async def roll(tmp_path: Path, redis_url: str, workers: int, clients: int) -> None:
    """Replaces all workers while streams run whose clients come back."""
    provider = Provider([f"{i} " for i in range(150)], pace=0.05)
    environment = {"MILLSTREAM_DRAIN_SECONDS": "30", "MILLSTREAM_WORKERS": str(workers)}
    async with fleet(tmp_path, provider, 1, redis_url=redis_url, **environment) as it:
        (server,) = it.servers

        async def client() -> Stream:
            stream = it.stream()
            await asyncio.sleep(random.uniform(0, 2))
            headers = stream.headers | {"Idempotency-Key": f"k{random.getrandbits(64)}"}
            stream.headers = headers
            async with asyncio.timeout(120):
                while stream.stream_id is None:
                    with suppress(aiohttp.ClientError):
                        await stream.start(it.body())
                    if stream.stream_id is None:
                        await asyncio.sleep(random.uniform(0.05, 0.2))
            await stream.to_the_end(120)
            return stream

        running_clients = [asyncio.create_task(client()) for _ in range(clients)]
        await asyncio.sleep(3)
        server.process.send_signal(signal.SIGHUP)
        streams = await asyncio.gather(*running_clients)
        expected = "".join(provider.words)
        for stream in streams:
            assert stream.text == expected
            assert stream.end is not None
            assert stream.end["finish_reason"] == "stop"
        rows = await it.rows()
        assert len(rows) == len(it.asked()) == clients
        assert {row["status"] for row in rows.values()} == {"completed"}
        # Every worker has been replaced, and the last of them serve.
        again = it.stream()
        provider.words = WORDS
        await again.start(it.body())
        assert again.text == "".join(WORDS)
        assert await asyncio.to_thread(server.terminate, 40) == 0


async def test_workers_are_replaced_under_running_streams(tmp_path: Path, redis_url: str) -> None:
    """spec/faults.md: P5."""
    await roll(tmp_path, redis_url, 2, 30)


@pytest.mark.faults
@pytest.mark.timeout(400)
async def test_three_workers_are_replaced_under_two_hundred_running_streams(
    tmp_path: Path, redis_url: str
) -> None:
    await roll(tmp_path, redis_url, 3, 200)


async def test_a_worker_that_dies_is_replaced(serve: Serve, redis_url: str) -> None:
    import psutil

    environment = {"MILLSTREAM_JOURNAL_URL": redis_url, "MILLSTREAM_PROVIDERS": '{"d": {"type": "scripted"}}'}
    context = serve("--workers", "2", **environment)
    server = await asyncio.to_thread(context.__enter__)

    def is_worker(process: psutil.Process) -> bool:
        try:
            return "spawn_main" in " ".join(process.cmdline())
        except (psutil.ZombieProcess, psutil.NoSuchProcess):
            return False

    try:

        async def workers(count: int, but: Collection[int] = ()) -> set[int]:
            async with asyncio.timeout(40):
                while True:
                    found = {c.pid for c in psutil.Process(server.pid).children() if is_worker(c)} - set(but)
                    if len(found) == count:
                        return found
                    await asyncio.sleep(0.1)

        before = await workers(2)
        psutil.Process(min(before)).kill()
        assert await workers(1, before)
        async with aiohttp.ClientSession() as session:
            stream = Stream(session, server.url, server.key)
            await stream.start({"messages": MESSAGES})
            assert "script" in stream.text
        # Should the supervisor be killed, its workers do not serve on unseen.
        left = await workers(2)
        server.process.kill()
        async with asyncio.timeout(30):
            while any(psutil.pid_exists(pid) and is_worker(psutil.Process(pid)) for pid in left):
                await asyncio.sleep(0.1)
    finally:
        await asyncio.to_thread(context.__exit__, None, None, None)


def test_several_workers_without_a_shared_journal_are_refused(tmp_path: Path) -> None:
    from live.test_serve import command

    refused = command("serve", "--workers", "2", cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "MILLSTREAM_JOURNAL_URL" in refused.stderr
    assert json.dumps("memory") not in refused.stderr
