"""What clients see and what the ledger says, whatever happens in whatever order.

A machine of rules starts streams on several workers, lets their provider say words, reads, drops and resumes
anywhere, stops streams and kills workers. In the end every client comes back, and what it has must agree with what
the provider said; every start has one settled row.
"""

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any, ClassVar, TypeAlias, TypeVar

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from millstream.auth import Keys, Principal
from millstream.catalog import LLMService
from millstream.database import Database
from millstream.dialects.native import ask_of
from millstream.errors import BadPosition, StreamGone
from millstream.events import TERMINAL_TYPES, Event, Position, StreamEnd, Terminal, TextDelta
from millstream.journals.memory import MemoryJournal
from millstream.journals.redis import RedisJournal
from millstream.ledger import Ledger, leases
from millstream.listings import ProviderEntry
from millstream.messages import ChatRequest
from millstream.prompt import Prompt
from millstream.providers import Finish, Produced
from millstream.streams import upkeep
from millstream.streams.registry import Limits, Streams
from millstream.usage import Usage

EXAMPLES = int(os.environ.get("EXAMPLES", "25"))  # make faults runs more
KEY = Principal("key_1", frozenset({"chat"}))

Journal: TypeAlias = MemoryJournal | RedisJournal
Result = TypeVar("Result")


class Provider:
    """Says what it is told to, stream by stream, and notes what it has said."""

    def __init__(self) -> None:
        self.words: dict[str, asyncio.Queue[str | None]] = {}
        self.said: dict[str, str] = {}

    async def stream(self, prompt: Prompt, model: str) -> AsyncGenerator[Sequence[Produced]]:
        name = prompt.user
        assert name is not None
        while (word := await self.words[name].get()) is not None:
            self.said[name] += word
            yield [TextDelta(word)]
        yield [Finish("stop", Usage(1, 1, "provider_final"))]

    async def models(self) -> list[str]:
        return ["m"]

    async def close(self) -> None:
        pass


class Worker:
    def __init__(self, db: Database, journal: Journal, provider: Provider) -> None:
        self.db, self.journal = db, journal
        self.ledger = Ledger(db)
        self.streams = Streams(
            LLMService({"p": ProviderEntry(provider, models=("m",))}),
            journal,
            self.ledger,
            Keys(db),
            Limits(lag_seconds=3600),  # a machine that is late is not what this is about
        )
        self.alive = True

    async def start(self, stack: AsyncExitStack) -> None:
        await stack.enter_async_context(self.journal)
        await self.ledger.__aenter__()
        await self.streams.__aenter__()

    async def kill(self) -> None:
        """As SIGKILL would: nothing is said, written or settled any more."""
        self.alive = False
        self.ledger.crash()
        if not isinstance(self.journal, MemoryJournal):
            await self.journal.crash()
        await self.streams.crash()

    async def stop(self) -> None:
        if self.alive:
            await self.streams.__aexit__()
            await self.ledger.__aexit__()


class Client:
    """Knows what it has seen, and nothing else."""

    def __init__(self, stream_id: str) -> None:
        self.stream_id = stream_id
        self.position: Position | None = None
        self.text = ""
        self.end: Terminal | None = None
        self.gone = False

    async def read(self, worker: Worker, events: int | None = None, seconds: float = 30.0) -> None:
        """Reads ``events`` more, or up to the end. A time-out is a client that leaves."""
        try:
            async with asyncio.timeout(seconds):
                found = await worker.streams.follow(KEY, self.stream_id)
                with found.source.reading(lambda: None):
                    async with aclosing(worker.journal.read(self.stream_id, self.position)) as batches:
                        async for batch in batches:
                            for i, event in enumerate(batch.events):
                                self.see(Position(batch.first.epoch, batch.first.seq + i), event)
                                if events is not None and (events := events - 1) <= 0:
                                    return
        except TimeoutError:
            pass
        except StreamGone:
            self.gone = True

    def see(self, position: Position, event: Event) -> None:
        if self.position is not None:
            epoch, seq = self.position
            assert position in ((epoch, seq + 1), (epoch + 1, 1)), (self.position, position)
        assert self.end is None, "something came after the end"
        self.position = position
        if isinstance(event, TextDelta):
            self.text += event.text
        if isinstance(event, TERMINAL_TYPES):
            self.end = event


class Survival(RuleBasedStateMachine):
    make_journal: ClassVar[Callable[[], Journal]]
    count = 1
    workers: list[Worker]

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = Path(tempfile.mkdtemp())
        self.db = Database(f"sqlite:///{self.folder / 'x.db'}")
        self.db.migrate()
        self.provider = Provider()
        self.streams: list[str] = []
        self.owner: dict[str, Worker] = {}
        self.open: set[str] = set()
        self.clients: list[Client] = []
        self.stopped: set[str] = set()
        self.expired: set[str] = set()
        self.stack = AsyncExitStack()

        async def begin() -> None:
            self.workers = [
                Worker(self.db, type(self).make_journal(), self.provider) for _ in range(self.count)
            ]
            for worker in self.workers:
                await worker.start(self.stack)

        self.run(begin())

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        return self.loop.run_until_complete(asyncio.wait_for(work, 60))

    def living(self, number: int) -> Worker:
        living = [worker for worker in self.workers if worker.alive]
        return living[number % len(living)]

    @rule(worker=st.integers(0, 5), policy=st.sampled_from(["continue", {"grace_seconds": 60}]))
    @precondition(lambda self: len(self.streams) < 6)
    def start(self, worker: int, policy: object) -> None:
        async def go() -> None:
            name = str(len(self.streams))
            self.provider.words[name], self.provider.said[name] = asyncio.Queue(), ""
            asked = ChatRequest.model_validate(
                {
                    "model": "m",
                    "messages": [{"role": "user", "content": "x"}],
                    "user": name,
                    "on_disconnect": policy,
                }
            )
            ask = ask_of(asked)
            where = self.living(worker)
            source = await where.streams.start(KEY, ask, f"key-{name}", unread=True)
            again = await self.living(worker + 1).streams.start(KEY, ask, f"key-{name}")
            assert again.info.stream_id == source.info.stream_id
            self.streams.append(source.info.stream_id)
            self.owner[source.info.stream_id] = where
            self.open.add(source.info.stream_id)
            self.clients += [Client(source.info.stream_id) for _ in range(2)]

        self.run(go())

    @rule(stream=st.integers(0, 5), words=st.integers(1, 40))
    @precondition(lambda self: self.streams)
    def say(self, stream: int, words: int) -> None:
        name = stream % len(self.streams)
        for i in range(words):
            self.provider.words[str(name)].put_nowait(f"{name}.{i} ")
        self.run(asyncio.sleep(0))

    @rule(client=st.integers(0, 11), worker=st.integers(0, 5), events=st.integers(1, 30))
    @precondition(lambda self: self.clients)
    def read(self, client: int, worker: int, events: int) -> None:
        reader = self.clients[client % len(self.clients)]
        if reader.end is None and not reader.gone:
            self.run(reader.read(self.living(worker), events, 0.1))

    @rule(stream=st.integers(0, 5))
    @precondition(lambda self: self.open)
    def finish(self, stream: int) -> None:
        stream_id = sorted(self.open)[stream % len(self.open)]
        self.open.discard(stream_id)
        self.provider.words[str(self.streams.index(stream_id))].put_nowait(None)

    @rule(stream=st.integers(0, 5), worker=st.integers(0, 5))
    @precondition(lambda self: self.streams)
    def stop(self, stream: int, worker: int) -> None:
        stream_id = self.streams[stream % len(self.streams)]
        self.stopped.add(stream_id)
        self.run(self.living(worker).streams.cancel(KEY, stream_id))

    @rule(stream=st.integers(0, 5))
    @precondition(lambda self: self.streams)
    def expire(self, stream: int) -> None:
        """The window of a stream that has ended is over."""

        async def go() -> None:
            stream_id = self.streams[stream % len(self.streams)]
            if stream_id in [row.id for row in await self.rows() if row.status != "running"]:
                self.expired.add(stream_id)
                for worker in self.workers:
                    if worker.alive:
                        await worker.journal.forget(stream_id)

        self.run(go())

    @rule(worker=st.integers(0, 5))
    @precondition(lambda self: sum(worker.alive for worker in self.workers) > 1)
    def kill(self, worker: int) -> None:
        self.run(self.living(worker).kill())

    def teardown(self) -> None:
        async def finish() -> None:
            for stream_id in self.open:
                self.provider.words[str(self.streams.index(stream_id))].put_nowait(None)
            for i, client in enumerate(self.clients):
                while client.end is None and not client.gone:
                    before = client.position
                    try:
                        await client.read(self.living(i))
                    except BadPosition:  # it had seen more than the dead worker could pass on
                        await asyncio.sleep(0)
                        continue
                    assert client.end or client.gone or client.position != before, "it hangs"
            while [row for row in await self.rows() if row.status == "running"]:
                pass
            rows = {row.id: row for row in await self.rows()}
            assert set(rows) == set(self.streams)
            for client in self.clients:
                said = self.provider.said[str(self.streams.index(client.stream_id))]
                row, end = rows[client.stream_id], client.end
                assert said.startswith(client.text)
                if client.gone:
                    assert client.stream_id in self.expired
                    continue
                assert end is not None
                if isinstance(end, StreamEnd):
                    assert row.finish_reason == end.finish_reason
                    if end.finish_reason == "stop":
                        assert client.text == said
                    else:
                        assert client.stream_id in self.stopped
                else:
                    assert end.code == row.error_code == "interrupted"
                    assert not self.owner[client.stream_id].alive
                usage = end.bill.usage
                assert (row.completion_tokens, row.usage_source) == (usage.completion_tokens, usage.source)

        try:
            if self.streams:
                self.run(finish())
        finally:

            async def end() -> None:
                for worker in self.workers:
                    await worker.stop()
                await self.stack.aclose()
                await self.loop.shutdown_asyncgens()

            self.run(end())
            self.loop.close()
            self.db.close()
            shutil.rmtree(self.folder)

    async def rows(self) -> Sequence[sa.Row[Any]]:
        from millstream.schema import streams

        return await self.db.read(lambda connection: connection.execute(sa.select(streams)).all())


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("journal", ["memory", "redis"])
def test_nothing_gets_lost(
    journal: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "LEASE_SECONDS", 0.4)
    monkeypatch.setattr(upkeep, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(upkeep, "SWEEP_SECONDS", 0.05)
    make: Callable[[], Journal] = MemoryJournal
    workers = 1
    if journal == "redis":
        url = request.getfixturevalue("redis_url")
        make, workers = lambda: RedisJournal(url), 3

    class Machine(Survival):
        make_journal = staticmethod(make)
        count = workers

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
