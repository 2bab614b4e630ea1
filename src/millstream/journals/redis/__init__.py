"""The journal in Redis or Valkey: every worker finds every stream, and streams survive their worker.

A worker keeps the streams that it produces in its own memory, where its own readers follow them, and copies
them to Redis. A stream of another worker is copied from Redis into this worker's memory, once for all its
readers here. So every read is a read of a ``MemoryJournal``, and readers of own streams never wait for Redis.

One Redis stream per stream of ours. Its first entry, ``1-0``, is the ``StreamInfo``; the others carry events.
One more Redis stream carries signals between the workers.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from importlib import resources

from millstream.answer import ends_of_open_parts
from millstream.errors import StreamGone
from millstream.events import (
    TERMINAL_TYPES,
    Batch,
    EndedBy,
    Event,
    Position,
    StreamFailed,
    StreamInfo,
    Terminal,
    from_json,
    to_json,
)
from millstream.journals import Push, Signal, StreamState
from millstream.journals.memory import MemoryJournal
from millstream.journals.redis import connection
from millstream.journals.redis.connection import STREAM_PREFIX, UNREACHABLE, Connection, Timeouts, unreachable
from millstream.journals.redis.outbox import Outbox
from millstream.journals.redis.replicas import Replicas
from millstream.journals.redis.signals import Signals


class RedisJournal:
    """``url`` is of a Redis ≥ 6.2 or a Valkey that evicts nothing. ``window_seconds`` is how long a finished
    stream can be read, ``lifetime_seconds`` how long one can run, ``max_bytes`` what this worker keeps
    in its own memory beside those that run.
    """

    is_shared = True

    def __init__(
        self,
        url: str,
        *,
        window_seconds: float = 300,
        lifetime_seconds: float = 3600,
        max_bytes: int = 512 << 20,
        max_stream_bytes: int = 32 << 20,
        timeouts: Timeouts | None = None,
    ) -> None:
        self._url = url
        self._timeouts = timeouts or Timeouts()
        self._window = max(1, round(window_seconds))
        self._lifetime = round(lifetime_seconds) + self._window
        self._max_stream_bytes = max_stream_bytes
        self._own = MemoryJournal(
            window_seconds=window_seconds, max_bytes=max_bytes, max_stream_bytes=max_stream_bytes
        )

    def check(self) -> None:
        """Blocking, for the start. Raises ``ConfigurationError`` where this Redis cannot be the journal."""
        connection.check(self._url)

    async def __aenter__(self) -> "RedisJournal":
        self._client = client = connection.client(self._url, self._timeouts)
        # A connection of its own for each of the two ways of every event.
        self._out, self._in = (Connection(self._url, self._timeouts) for _ in range(2))
        self.outbox = Outbox(
            self._own,
            self._out,
            client,
            self._timeouts,
            lifetime_seconds=self._lifetime,
            window_seconds=self._window,
        )
        self._signals = Signals(client, self.outbox.on_signal)
        self.replicas = Replicas(
            client, self._in, self._signals, self._timeouts, max_stream_bytes=2 * self._max_stream_bytes
        )
        script = resources.files(__package__).joinpath("interrupt.lua").read_bytes()
        self._interrupt = client.register_script(script)
        await self._signals.start()
        self._tasks = [
            asyncio.create_task(work(), name=f"redis-journal-{work.__qualname__}")
            for work in (self.outbox.run, self.replicas.run, self.replicas.announce)
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._timeouts.leave):
                await self.outbox.flush_all()
        await self._stop()
        await self._close()

    async def _close(self) -> None:
        for close in (self._out.close, self._in.close, self._client.aclose):
            with suppress(*UNREACHABLE):
                await close()

    async def crash(self) -> None:
        """Says and copies nothing from now on, as if the worker had been killed. For tests of what others do
        then."""
        self.outbox.forget_all()
        await self._stop()
        await self._close()

    async def _stop(self) -> None:
        running = set(self._tasks)
        while running:  # the library can swallow a cancellation
            for task in running:
                task.cancel()
            _, running = await asyncio.wait(running, timeout=0.1)
        await self._signals.stop()

    # -- streams of this worker -------------------------------------------------------------

    async def create(self, info: StreamInfo) -> None:
        await self._own.create(info)
        self.outbox.add(info.stream_id)
        await self.flush(info.stream_id)  # without Redis too: readers on this worker can still follow it

    async def flush(self, stream_id: str) -> None:
        await self.outbox.flush(stream_id)

    async def append(self, stream_id: str, events: Sequence[Event]) -> Position:
        # Nobody sees an end before Redis has it: others may have ended the stream while this worker slept.
        if isinstance(events[-1], TERMINAL_TYPES) and await self.outbox.end(stream_id, events):
            return await self._own.append(stream_id, events)
        appended = await self._own.append(stream_id, events)
        self.outbox.appended(stream_id)
        return appended

    def expire(self) -> None:
        self._own.expire()

    def count(self) -> int:
        return self._own.count() + self.replicas.count()

    async def forget(self, stream_id: str) -> None:
        await self._own.forget(stream_id)
        await self.outbox.forget(stream_id)

    # -- streams of all workers -------------------------------------------------------------

    async def state(self, stream_id: str) -> StreamState:
        if stream_id in self._own:
            return await self._own.state(stream_id)
        return await self.replicas.state(stream_id)

    async def read(
        self, stream_id: str, after: Position | None = None, push: Push | None = None
    ) -> AsyncGenerator[Batch]:
        async with self._following(stream_id) as here, aclosing(here.read(stream_id, after, push)) as batches:
            async for batch in batches:
                yield batch

    @asynccontextmanager
    async def _following(self, stream_id: str) -> AsyncGenerator[MemoryJournal]:
        if stream_id in self._own:
            yield self._own
        else:
            async with self.replicas.following(stream_id) as replicas:
                yield replicas

    async def interrupt(self, stream_id: str, failure: StreamFailed) -> Terminal:
        async with self._following(stream_id) as here:
            if here is self._own:
                return await here.interrupt(stream_id, failure)
            try:
                async with asyncio.timeout(self._timeouts.answer):
                    while True:
                        last = (await here.state(stream_id)).last
                        events = [*ends_of_open_parts(here.events(stream_id)), failure]
                        stands = await self._interrupt(
                            keys=[STREAM_PREFIX + stream_id],
                            args=[f"2-{len(events)}", to_json(events), self._window, str(last)],
                        )
                        if stands != b"":
                            break
                        async with aclosing(here.read(stream_id, last)) as batches:  # what has come since
                            await anext(batches)
            except UNREACHABLE as error:
                raise unreachable() from error
        if stands is None:
            await self.replicas.lose(stream_id)
            raise StreamGone(f"the stream '{stream_id}' is not here")
        end = from_json(stands)[-1]
        assert isinstance(end, TERMINAL_TYPES)
        return end

    # -- signals ----------------------------------------------------------------------------

    async def request_cancel(self, stream_id: str, by: EndedBy = "client") -> None:
        try:
            await self._signals.send("cancel", [stream_id], by)
        except UNREACHABLE as error:
            raise unreachable() from error

    def signals(self) -> AsyncGenerator[Signal]:
        return self._signals.listen()

    async def ping(self) -> None:
        if self.outbox.failing:  # it may answer, and take nothing
            raise unreachable()
        try:
            await self._client.ping()
        except UNREACHABLE as error:
            raise unreachable() from error
