"""The journal in this worker's memory: survives reconnects, not the worker."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import msgspec

from millstream.answer import ends_of_open_parts
from millstream.errors import BadPosition, StreamClosed, StreamFull, StreamGone
from millstream.events import (
    TERMINAL_TYPES,
    Batch,
    EndedBy,
    Event,
    File,
    Position,
    ReasoningDelta,
    RefusalDelta,
    StreamFailed,
    StreamInfo,
    Terminal,
    TextDelta,
    ToolCallDelta,
    WholePart,
)
from millstream.journals import Push, Signal, StreamState

_PUSHED = 8  # readers that an append serves itself; more of them get turns of their own
_EVENTS_PER_READ = 512  # so that a reader with much to catch up on lets others go on
_EVENT_BYTES = 110  # an event, its text's header and its place in the list (sys.getsizeof)


class _Stream:
    """A stream's events: the first ``first_epoch_count`` are of epoch 1, the others of epoch 2."""

    __slots__ = ("bytes", "closed_at", "events", "first_epoch_count", "gone", "info", "readers", "waiting")

    def __init__(self, info: StreamInfo) -> None:
        self.info = info
        self.events: list[Event] = []
        self.bytes = 0
        self.first_epoch_count: int | None = None
        self.closed_at: float | None = None
        self.gone = False
        self.readers = 0
        self.waiting: list[_Reader] = []

    def position(self, count: int) -> Position:
        """Of the last of the first ``count`` events."""
        if self.first_epoch_count is None or count <= self.first_epoch_count:
            return Position(1, count)
        return Position(2, count - self.first_epoch_count)

    def wake(self) -> None:
        waiting, self.waiting = self.waiting, []
        for number, reader in enumerate(waiting):
            if number < _PUSHED and reader.push is not None and self._is_pushed(reader, reader.push):
                self.waiting.append(reader)
            elif not reader.woken.done():
                reader.woken.set_result(None)

    def _is_pushed(self, reader: "_Reader", push: Push) -> bool:
        """Whether the reader has taken what is new, and waits for more."""
        events = self.events[reader.count :]
        if not 0 < len(events) <= _EVENTS_PER_READ or self.first_epoch_count is not None or self.gone:
            return False
        try:
            taken = push(Batch(self.position(reader.count + 1), events))
        except Exception:  # it comes again where the reader can deal with it
            return False
        if taken:
            reader.count += len(events)
        return taken and self.closed_at is None


class _Reader:
    """Who waits for what follows the first ``count`` events."""

    __slots__ = ("count", "push", "woken")

    def __init__(self, count: int, push: Push | None) -> None:
        self.count = count
        self.push = push
        self.woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class MemoryJournal:
    """``window_seconds`` is how long a finished stream can still be read. Over ``max_bytes`` the finished
    streams go earlier, oldest first; what readers hold of them counts until they leave, and over the limit
    they are made to. A single stream is refused more than ``max_stream_bytes``. A reader may ask for up to
    ``ahead`` events more than there are: then it waits for them. ``clock`` is monotonic, in seconds.
    """

    is_shared = False

    def __init__(
        self,
        *,
        window_seconds: float = 300,
        max_bytes: int = 512 << 20,
        max_stream_bytes: int = 32 << 20,
        ahead: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._window_seconds = window_seconds
        self._max_bytes = max_bytes
        self._max_stream_bytes = max_stream_bytes
        self._ahead = ahead
        self._clock = clock
        self._streams: dict[str, _Stream] = {}
        self._closed: dict[str, _Stream] = {}  # oldest first
        self._held: dict[_Stream, None] = {}  # dropped ones that somebody still reads, oldest first
        self._bytes = 0

    async def __aenter__(self) -> "MemoryJournal":
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    def __contains__(self, stream_id: str) -> bool:
        return stream_id in self._streams

    async def create(self, info: StreamInfo) -> None:
        if info.stream_id in self._streams:
            raise StreamClosed(f"the stream '{info.stream_id}' exists")
        self.expire()
        stream = self._streams[info.stream_id] = _Stream(info)
        if info.echo:
            stream.bytes = _encoded_bytes(info.echo)
            self._bytes += stream.bytes

    async def state(self, stream_id: str) -> StreamState:
        stream = self._stream(stream_id)
        last = stream.position(len(stream.events))
        return StreamState(stream.info, last, stream.closed_at is not None)

    async def append(self, stream_id: str, events: Sequence[Event]) -> Position:
        stream = self._stream(stream_id)
        if stream.closed_at is not None:
            raise StreamClosed(f"the stream '{stream_id}' has ended")
        size = sum(map(_size, events))
        closing = bool(events) and isinstance(events[-1], TERMINAL_TYPES)
        if stream.bytes + size > self._max_stream_bytes and not closing:
            raise StreamFull(f"the stream '{stream_id}' is over {self._max_stream_bytes} bytes")
        stream.events.extend(events)
        stream.bytes += size
        self._bytes += size
        if closing:
            stream.closed_at = self._clock()
            self._closed[stream_id] = stream
        if self._bytes > self._max_bytes:
            self.expire()
        stream.wake()
        return stream.position(len(stream.events))

    async def flush(self, stream_id: str) -> None:
        pass

    async def interrupt(self, stream_id: str, failure: StreamFailed) -> Terminal:
        stream = self._stream(stream_id)
        if stream.closed_at is None:
            await self.end_in_second_epoch(stream_id, [*ends_of_open_parts(stream.events), failure])
        last = stream.events[-1]
        assert isinstance(last, TERMINAL_TYPES)
        return last

    async def end_in_second_epoch(self, stream_id: str, events: Sequence[Event]) -> None:
        """Ends the stream with ``events``, as its second epoch."""
        stream = self._stream(stream_id)
        stream.first_epoch_count = len(stream.events)
        await self.append(stream_id, events)

    async def read(
        self, stream_id: str, after: Position | None = None, push: Push | None = None
    ) -> AsyncGenerator[Batch]:
        stream = self._stream(stream_id)
        epoch, seq = after or Position(1, 0)
        end = stream.position(len(stream.events))
        ahead = self._ahead if stream.closed_at is None else 0
        beyond = seq > end.seq + ahead if epoch == end.epoch else epoch != 1
        if beyond or seq < 0 or (epoch == 2 and seq == 0):
            raise BadPosition(f"the stream has no position {after}")
        count = seq + (stream.first_epoch_count or 0 if epoch == 2 else 0)
        stream.readers += 1
        try:
            while not stream.gone:
                events, first_epoch = stream.events, stream.first_epoch_count
                if first_epoch is not None and epoch == 1 and count >= first_epoch:
                    epoch, count = 2, first_epoch  # positions of epoch 1 end here; reading goes on at 2-1
                if count < len(events):
                    most = first_epoch if first_epoch is not None and epoch == 1 else len(events)
                    batch = Batch(
                        stream.position(count + 1), events[count : min(count + _EVENTS_PER_READ, most)]
                    )
                    count += len(batch.events)
                    del events  # a reader that is stuck here keeps no stream that was dropped
                    yield batch
                elif stream.closed_at is not None:
                    return
                else:
                    # Until something has happened to the stream that the reader has not taken. Here, since a
                    # coroutine of its own would be kept by every open stream.
                    reader = _Reader(count, push)
                    stream.waiting.append(reader)
                    try:
                        await reader.woken
                    finally:
                        if not reader.woken.done() or reader.woken.cancelled():
                            stream.waiting = [other for other in stream.waiting if other is not reader]
                    count = reader.count
        finally:
            stream.readers -= 1
            if not stream.readers and stream in self._held:
                self._release(stream)
        raise StreamGone(f"the stream '{stream_id}' is not kept any more")

    async def forget(self, stream_id: str) -> None:
        """Readers that wait for more of it get ``StreamGone``."""
        stream = self._streams.pop(stream_id, None)
        self._closed.pop(stream_id, None)
        if stream is not None:
            self._bytes -= stream.bytes
            stream.bytes = 0
            stream.gone = True
            stream.wake()

    def count(self) -> int:
        return len(self._streams)

    def is_empty(self) -> bool:
        """Whether nothing is left of any stream."""
        return not (self._streams or self._closed or self._held or self._bytes)

    async def request_cancel(self, stream_id: str, by: EndedBy = "client") -> None:
        """Every stream here is produced by this worker, which cancels it itself."""

    async def signals(self) -> AsyncGenerator[Signal]:
        await asyncio.Event().wait()  # there are no other workers
        yield Signal("left", "", ())

    async def ping(self) -> None:
        pass

    def events(self, stream_id: str, start: int = 0, most: int | None = None) -> Sequence[Event]:
        """The events of epoch 1 from the ``start``-th on. Raises ``StreamGone``."""
        stream = self._stream(stream_id)
        end = len(stream.events) if stream.first_epoch_count is None else stream.first_epoch_count
        return stream.events[start : end if most is None else min(start + most, end)]

    def _stream(self, stream_id: str) -> _Stream:
        stream = self._streams.get(stream_id)
        if stream is None:
            raise StreamGone(f"the stream '{stream_id}' is not here")
        return stream

    def expire(self) -> None:
        past = self._clock() - self._window_seconds
        while self._closed:
            stream_id, oldest = next(iter(self._closed.items()))
            assert oldest.closed_at is not None
            if oldest.closed_at > past and self._bytes <= self._max_bytes:
                return
            del self._closed[stream_id], self._streams[stream_id]
            self._held[oldest] = None
            if not oldest.readers:
                self._release(oldest)
        while self._bytes > self._max_bytes and self._held:
            self._release(next(iter(self._held)))

    def _release(self, stream: _Stream) -> None:
        """Parts with the events of a stream that was dropped; who still reads it gets ``StreamGone``."""
        del self._held[stream]
        self._bytes -= stream.bytes
        stream.bytes, stream.events, stream.gone = 0, [], True
        stream.wake()


def _size(event: Event) -> int:
    if isinstance(event, (TextDelta, ReasoningDelta, RefusalDelta)):
        size = _EVENT_BYTES + _text_bytes(event.text)
        return size if event.extra is None else size + _encoded_bytes(event.extra)
    if isinstance(event, ToolCallDelta):
        return 3 * _EVENT_BYTES + _text_bytes(event.arguments) + _extra_bytes(event.extra)
    if isinstance(event, WholePart) and isinstance(event.content, File):
        return 3 * _EVENT_BYTES + _text_bytes(event.content.url) + _extra_bytes(event.content.extra)
    return 3 * _EVENT_BYTES + _encoded_bytes(event)


def _extra_bytes(extra: dict[str, Any] | None) -> int:
    return 0 if extra is None else _encoded_bytes(extra)


def _encoded_bytes(value: object) -> int:
    """Of what is rare, at the most: its strings take up to four bytes for a character."""
    return 4 * len(msgspec.json.encode(value))


def _text_bytes(text: str) -> int:
    """At the most: Python takes up to four bytes for a character that is not ASCII."""
    return len(text) if text.isascii() else 4 * len(text)
