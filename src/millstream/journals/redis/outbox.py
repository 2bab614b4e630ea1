"""The outbox: streams that this worker produces -> Redis, in batches.

Each entry carries events that follow each other, and has the position of the last of them for its id: Redis
refuses an id that is not greater than all before, so a repeated append changes nothing, and what a producer
appends after others have ended its stream (at epoch 2) is refused.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec
from redis.exceptions import ResponseError

from millstream.errors import JournalError, StreamClosed
from millstream.events import TERMINAL_TYPES, Event, from_json, to_json
from millstream.journals import Signal
from millstream.journals.memory import MemoryJournal
from millstream.journals.redis.connection import (
    RETRY_SECONDS,
    STREAM_PREFIX,
    UNREACHABLE,
    Connection,
    Timeouts,
    position,
    what_is_wrong,
)

log = logging.getLogger("millstream.journals")

_FLUSH_SECONDS = 0.02  # how long events are gathered if no other worker reads the stream
_EVENTS_PER_ENTRY = 512
BYTES_PER_FLUSH = 4 << 20  # which a slow network can take within the clock of an answer
_STREAMS_PER_FLUSH = 256
# How long Redis is taken for away after a try: longer than it takes to try again, shorter than a lease. A
# worker that has slept since then may have been thought dead, and has to ask.
_BELIEVED_SECONDS = 12.0

_to_json = msgspec.json.Encoder().encode


class _Copy:
    """How much of a stream of ours Redis has."""

    __slots__ = ("count", "created", "done", "end", "ended", "followed")

    def __init__(self) -> None:
        self.created = False
        self.end: Sequence[Event] = ()  # what is to follow, if Redis takes it
        self.ended: asyncio.Future[bool | None] | None = None  # whether it has
        self.count = 0
        self.followed = False  # another worker reads it: send at once
        self.done = asyncio.Event()


class _Command(NamedTuple):
    """A command for one stream; ``copied`` is how many events Redis has after it, None if no append."""

    stream_id: str
    copied: int | None
    words: tuple[str | bytes | int, ...]

    @property
    def size(self) -> int:
        """Bytes of events in it."""
        return sum(len(word) for word in self.words if isinstance(word, bytes))


class Outbox:
    """Copies what is appended to ``own``. ``run`` is its task.

    ``lifetime_seconds`` is how long Redis keeps a stream that runs, ``window_seconds`` one that has ended.
    """

    def __init__(
        self,
        own: MemoryJournal,
        connection: Connection,
        client: Any,
        timeouts: Timeouts,
        *,
        lifetime_seconds: int,
        window_seconds: int,
    ) -> None:
        self._failed_at: float | None = None  # when the last flush began, if it failed
        self._own = own
        self._connection = connection
        self._client = client
        self._patience_seconds = timeouts.connect
        self._lifetime = lifetime_seconds
        self._window = window_seconds
        self._copies: dict[str, _Copy] = {}
        self._dirty: set[str] = set()
        self._flush_now = asyncio.Event()
        self._flush_timer: asyncio.TimerHandle | None = None

    @property
    def failing(self) -> bool:
        """Whether Redis cannot be had, as far as is known."""
        return self._failed_at is not None and time.monotonic() - self._failed_at < _BELIEVED_SECONDS

    @property
    def transport(self) -> asyncio.BaseTransport | None:
        """Of the connection to Redis, while there is one."""
        return self._connection.transport

    def add(self, stream_id: str) -> None:
        """Takes a new stream in."""
        copy = self._copies[stream_id] = _Copy()
        self._copy_soon(stream_id, copy)

    def appended(self, stream_id: str) -> None:
        """Something was appended to the stream."""
        if copy := self._copies.get(stream_id):
            self._copy_soon(stream_id, copy)

    async def end(self, stream_id: str, events: Sequence[Event]) -> bool:
        """Appends the end of a stream to Redis before anybody sees it: whether Redis has it now. Raises
        ``StreamClosed`` where other workers have ended the stream, to which this one seemed dead.
        """
        copy = self._copies.get(stream_id)
        if copy is None or self.failing:
            return False
        copy.end, copy.ended = events, asyncio.get_running_loop().create_future()
        copy.done.clear()
        self._dirty.add(stream_id)
        self._flush_now.set()
        try:
            async with asyncio.timeout(self._patience_seconds):
                taken = await copy.ended
        except TimeoutError:
            taken = None
        finally:
            copy.end, copy.ended = (), None
        if taken is False:
            raise StreamClosed(f"the stream '{stream_id}' was ended by another worker")
        if taken:
            self._copies.pop(stream_id, None)
            copy.done.set()
        return bool(taken)

    async def flush(self, stream_id: str) -> None:
        """Returns when Redis has all of the stream, or when that cannot be had for the moment."""
        copy = self._copies.get(stream_id)
        if copy is None or self.failing:
            return
        self._flush_now.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._patience_seconds):
                await copy.done.wait()

    async def flush_all(self) -> None:
        """Returns when Redis has everything."""
        for copy in list(self._copies.values()):
            self._flush_now.set()
            await copy.done.wait()

    async def forget(self, stream_id: str) -> None:
        self._copies.pop(stream_id, None)
        self._dirty.discard(stream_id)
        with suppress(*UNREACHABLE):
            await self._client.delete(STREAM_PREFIX + stream_id)

    def forget_all(self) -> None:
        """Copies nothing of what there is."""
        self._copies.clear()

    def copied(self, stream_id: str) -> int | None:
        """How many events of the stream Redis has; None where there is nothing left to copy of it."""
        copy = self._copies.get(stream_id)
        return None if copy is None else copy.count

    def on_signal(self, signal: Signal) -> None:
        """Notes whether another worker reads a stream: its events are then sent at once."""
        for stream_id in signal.stream_ids:
            if copy := self._copies.get(stream_id):
                copy.followed = signal.kind == "reading" or (copy.followed and signal.kind != "left")
                self._flush_now.set()

    def _copy_soon(self, stream_id: str, copy: _Copy) -> None:
        copy.done.clear()
        self._dirty.add(stream_id)
        if copy.followed or not copy.created:
            self._flush_now.set()
        elif self._flush_timer is None:
            self._flush_timer = asyncio.get_running_loop().call_later(_FLUSH_SECONDS, self._flush_now.set)

    async def run(self) -> None:
        """Sends all that is due at once, with whatever has come up while the last was on its way."""
        delay = RETRY_SECONDS[0]
        while True:
            await self._flush_now.wait()
            self._flush_now.clear()
            if self._flush_timer is not None:
                self._flush_timer.cancel()
                self._flush_timer = None
            due = list(self._dirty)
            self._dirty.clear()
            began = time.monotonic()
            try:
                while due:
                    await self._flush(due[:_STREAMS_PER_FLUSH])
                    del due[:_STREAMS_PER_FLUSH]
                if self._failed_at is not None:
                    log.warning("the journal's Redis is there again")
                self._failed_at, delay = None, RETRY_SECONDS[0]
            except Exception as error:  # it goes on when Redis is back; nothing is lost until then
                self._failed_at = began
                self._dirty.update(due)
                log.error("the journal's Redis: %s", what_is_wrong(error))
                if self.failing:  # else this worker has slept since it began, and tries again at once
                    for copy in self._copies.values():
                        _resolve(copy, None)
                    await asyncio.sleep(delay)
                    delay = min(2 * delay, RETRY_SECONDS[1])
                self._flush_now.set()

    async def _flush(self, stream_ids: list[str]) -> None:
        sent: list[_Command] = []
        room = BYTES_PER_FLUSH
        for stream_id in stream_ids:
            copy = self._copies.get(stream_id)
            if room > 0 and copy is not None and stream_id in self._own:
                due = await self._due(stream_id, copy, room)
                sent += due
                room -= sum(command.size for command in due)
        answers = await self._connection.ask([command.words for command in sent]) if sent else []
        failure: Exception | None = None
        broken: set[str] = set()  # an append failed
        torn: set[str] = set()  # an append failed and a later one succeeded: Redis has a gap
        for (stream_id, count, _), answer in zip(sent, answers, strict=True):
            copy = self._copies.get(stream_id)
            if isinstance(answer, ResponseError) and "equal or smaller" in str(answer):
                if copy is not None and stream_id not in broken:
                    await self._refused(stream_id, copy)
            elif isinstance(answer, Exception):
                failure = answer
                if count is not None:
                    broken.add(stream_id)
            elif count is None or copy is None:
                continue
            elif answer is None:  # there is no such stream any more: Redis was emptied
                broken.add(stream_id)
                copy.created, copy.count = False, 0
            elif stream_id in broken:
                torn.add(stream_id)
            else:
                copy.created, copy.count = True, max(count, copy.count)
        for stream_id in torn:
            await self._client.delete(STREAM_PREFIX + stream_id)
            if copy := self._copies.get(stream_id):
                copy.created, copy.count = False, 0
        for stream_id in stream_ids:
            await self._copied(stream_id)
        if failure is not None:
            raise failure

    async def _due(self, stream_id: str, copy: _Copy, room: int) -> list[_Command]:
        """What brings Redis's copy of a stream up to date, or so much of it as there is room for."""
        key, state = STREAM_PREFIX + stream_id, await self._own.state(stream_id)
        due: list[_Command] = []
        if not copy.created:
            due.append(_Command(stream_id, 0, ("XADD", key, "1-0", "info", _to_json(state.info))))
            due.append(_Command(stream_id, None, ("EXPIRE", key, self._lifetime)))
        count = copy.count
        while room > 0 and (events := self._following(stream_id, copy, count)):
            count += len(events)
            said = to_json(events)
            room -= len(said)
            ends = isinstance(events[-1], TERMINAL_TYPES)
            fields = ("events", said, "end", "1") if ends else ("events", said)
            due.append(_Command(stream_id, count, ("XADD", key, "NOMKSTREAM", f"1-{count}", *fields)))
            if ends:
                due.append(_Command(stream_id, None, ("EXPIRE", key, self._window)))
        return due

    def _following(self, stream_id: str, copy: _Copy, count: int) -> Sequence[Event]:
        """What comes after the first ``count`` events: appended ones, then those of an end to be taken."""
        appended = self._own.events(stream_id, count, _EVENTS_PER_ENTRY)
        if appended or not copy.end:
            return appended
        start = count - len(self._own.events(stream_id))
        return copy.end[start : start + _EVENTS_PER_ENTRY]

    async def _copied(self, stream_id: str) -> None:
        """Looks whether Redis has all of the stream now."""
        copy = self._copies.get(stream_id)
        if copy is None:
            return
        if stream_id not in self._own:  # its window has passed
            del self._copies[stream_id]
        elif copy.count < len(self._own.events(stream_id)) + len(copy.end) or not copy.created:
            self._copy_soon(stream_id, copy)
            return
        elif copy.end:
            _resolve(copy, True)
            return
        elif (await self._own.state(stream_id)).closed:
            del self._copies[stream_id]
        copy.done.set()

    async def _refused(self, stream_id: str, copy: _Copy) -> None:
        """Redis has an id at or after ours: our append, whose answer was lost, or an end at epoch 2."""
        found = await self._client.xrevrange(STREAM_PREFIX + stream_id, count=1)
        if not found:
            copy.created, copy.count = False, 0
            return
        epoch, seq = position(found[0][0])
        if epoch == 1:
            copy.created, copy.count = True, seq
            return
        del self._copies[stream_id]
        copy.done.set()
        with suppress(JournalError):  # it has ended here as well
            await self._own.end_in_second_epoch(stream_id, from_json(found[0][1][b"events"]))
        _resolve(copy, False)
        log.warning("stream %s was ended by another worker, to which this one seemed dead", stream_id)


def _resolve(copy: _Copy, taken: bool | None) -> None:
    """Tells whoever waits for the end of a stream; None where Redis cannot be reached."""
    if copy.ended is not None and not copy.ended.done():
        copy.ended.set_result(taken)
