"""Replicas: streams of other workers -> this worker's memory, once for all their readers here.

One blocking read brings the entries of all streams that are followed, and the signals. Entries have to join
without a gap: what Redis lost, in a failover say, is found there.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec
from redis.exceptions import RedisError

from millstream.errors import StreamGone, safe_traceback
from millstream.events import Position, StreamInfo, from_json
from millstream.journals import READING_LAPSES_SECONDS, StreamState
from millstream.journals.memory import MemoryJournal
from millstream.journals.redis import signals
from millstream.journals.redis.connection import (
    RETRY_SECONDS,
    STREAM_PREFIX,
    UNREACHABLE,
    Connection,
    Timeouts,
    position,
    unreachable,
    what_is_wrong,
)
from millstream.journals.redis.signals import Signals

log = logging.getLogger("millstream.journals")

_AHEAD = 4096  # how far a reader that comes from the producer's worker may be ahead of Redis
_ENTRIES_PER_READ = 64  # of a stream
_BLOCK_SECONDS = 2.0  # of the blocking read, or half of what an answer may take
# One key of a blocking read takes Redis 0.8 µs, each time. A pause of so much for each key bounds what the
# reads of a worker cost it to a twenty-fifth of its core, however much the worker follows.
_PAUSE_SECONDS = 20e-6
_FEW = 50  # keys for which there is no pause: it would be shorter than a timer is
_ANNOUNCE_SECONDS = READING_LAPSES_SECONDS / 3
_STREAMS_PER_SIGNAL = 256

_to_info = msgspec.json.Decoder(StreamInfo).decode


class _Replica:
    """A stream of another worker that is read here. ``loaded`` is done once it has reached ``target``."""

    __slots__ = ("closed", "last_id", "loaded", "readers", "target")

    def __init__(self, target: Position) -> None:
        self.target = target
        self.loaded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.readers = 0
        self.last_id = b"0-0"
        self.closed = False


class Replicas:
    """Copies other workers' streams. Its tasks are ``run`` and ``announce``."""

    def __init__(
        self, client: Any, connection: Connection, said: Signals, timeouts: Timeouts, *, max_stream_bytes: int
    ) -> None:
        self._client = client
        self._connection = connection
        self._signals = said
        self._answer_seconds = timeouts.answer
        block = round(min(_BLOCK_SECONDS, timeouts.answer / 2) * 1000)
        self._blocking_read = ("XREAD", "BLOCK", block, "COUNT", _ENTRIES_PER_READ, "STREAMS")
        self._journal = MemoryJournal(max_stream_bytes=max_stream_bytes, ahead=_AHEAD)
        self._replicas: dict[str, _Replica] = {}

    def __contains__(self, stream_id: str) -> bool:
        return stream_id in self._journal

    def count(self) -> int:
        return self._journal.count()

    def is_empty(self) -> bool:
        """Whether nothing is left of any stream."""
        return not self._replicas and self._journal.is_empty()

    async def state(self, stream_id: str) -> StreamState:
        """As Redis has it. Raises ``StreamGone`` or ``Overloaded``."""
        key = STREAM_PREFIX + stream_id
        try:
            first = await self._client.xrange(key, count=1)
            last = await self._client.xrevrange(key, count=1)
        except UNREACHABLE as error:
            raise unreachable() from error
        if not (first and last and b"info" in first[0][1]):
            raise StreamGone(f"the stream '{stream_id}' is not here")
        return StreamState(_to_info(first[0][1][b"info"]), position(last[0][0]), b"end" in last[0][1])

    @asynccontextmanager
    async def following(self, stream_id: str) -> AsyncGenerator[MemoryJournal]:
        """To be held while somebody here reads a stream; gives where it is. Raises like ``state``."""
        replica = self._replicas.get(stream_id)
        if replica is None:
            state = await self.state(stream_id)
            replica = self._replicas.setdefault(stream_id, _Replica(state.last))
        replica.readers += 1
        try:
            await self._load(stream_id, replica)
            yield self._journal
        finally:
            replica.readers -= 1
            if not replica.readers and self._replicas.get(stream_id) is replica:
                del self._replicas[stream_id]
                await self._journal.forget(stream_id)
                self._signals.send_soon("left", stream_id)

    async def lose(self, stream_id: str) -> None:
        """Tells whoever reads a replica that there is no more of it to be had."""
        replica = self._replicas.pop(stream_id, None)
        await self._journal.forget(stream_id)
        if replica is not None and not replica.loaded.done():
            replica.loaded.set_exception(StreamGone(f"a part of '{stream_id}' was lost"))
            replica.loaded.exception()  # looked at, should nobody wait for it any more

    async def run(self) -> None:
        """Redis -> the replicas here and the signals: the one blocking read of this worker."""
        delay = RETRY_SECONDS[0]
        while True:
            followed = {name: replica for name, replica in self._replicas.items() if not replica.closed}
            after = {signals.KEY: self._signals.last_id}
            after |= {STREAM_PREFIX + name: replica.last_id for name, replica in followed.items()}
            try:
                (found,) = await self._connection.ask([(*self._blocking_read, *after, *after.values())])
                if isinstance(found, RedisError):
                    raise found
                if not found:
                    await self._signals.find_again()
                delay = RETRY_SECONDS[0]
            except Exception as error:  # it goes on when Redis is back
                log.error("the journal's Redis: %s", what_is_wrong(error))
                await asyncio.sleep(delay)
                delay = min(2 * delay, RETRY_SECONDS[1])
                continue
            for key, listed in found or ():
                name, entries = key.decode(), [(entry_id, _fields(words)) for entry_id, words in listed]
                if name == signals.KEY:
                    self._signals.take_in(entries)
                    continue
                stream_id = name.removeprefix(STREAM_PREFIX)
                replica = followed[stream_id]
                if self._replicas.get(stream_id) is not replica:
                    continue  # its readers have left since
                try:
                    await self._take_in(stream_id, replica, entries)
                except Exception as error:  # its readers are told; the others go on
                    log.error("stream %s: %s", stream_id, safe_traceback(error))
                    await self.lose(stream_id)
            if len(after) > _FEW:
                await asyncio.sleep(_PAUSE_SECONDS * len(after))

    async def announce(self) -> None:
        """Repeats which streams are read here; what a worker stops repeating lapses after 12 s."""
        while True:
            await asyncio.sleep(_ANNOUNCE_SECONDS)
            followed = list(self._replicas)
            for start in range(0, len(followed), _STREAMS_PER_SIGNAL):
                with suppress(*UNREACHABLE):
                    await self._signals.send("reading", followed[start : start + _STREAMS_PER_SIGNAL])

    async def _load(self, stream_id: str, replica: _Replica) -> None:
        if replica.loaded.done() and replica.loaded.exception() is None:
            return
        try:
            async with asyncio.timeout(self._answer_seconds):
                # Tells the producer to send at once, and wakes our blocking read so that it adds the stream.
                await self._signals.send("reading", [stream_id])
                await asyncio.shield(replica.loaded)
        except UNREACHABLE as error:
            raise unreachable() from error

    async def _take_in(
        self, stream_id: str, replica: _Replica, entries: Iterable[tuple[bytes, dict[bytes, bytes]]]
    ) -> None:
        """Entries of a stream -> its replica. Raises ``StreamGone`` where something is missing."""
        for entry_id, fields in entries:
            if b"info" in fields:
                await self._journal.create(_to_info(fields[b"info"]))
            else:
                events, (epoch, seq) = from_json(fields[b"events"]), position(entry_id)
                if epoch == 2:
                    await self._journal.end_in_second_epoch(stream_id, events)
                else:
                    known = (await self._journal.state(stream_id)).last.seq
                    missing = seq - known
                    if missing > len(events):
                        raise StreamGone(f"a part of '{stream_id}' was lost")
                    await self._journal.append(stream_id, events[-missing:])
                replica.closed = b"end" in fields
            replica.last_id = entry_id
            if not replica.loaded.done() and position(entry_id) >= replica.target:
                replica.loaded.set_result(None)


def _fields(words: Sequence[bytes]) -> dict[bytes, bytes]:
    return dict(zip(words[::2], words[1::2], strict=True))
