"""The log in this process's memory: survives reconnects, not the process."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Sequence

from millstream.errors import StreamClosed, StreamFull, StreamGone
from millstream.events import (
    TERMINAL_TYPES,
    Batch,
    Event,
    Position,
    ReasoningDelta,
    RefusalDelta,
    StreamInfo,
    TextDelta,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
)

_EPOCH = 1  # a stream in memory has one producer, ever
_EVENTS_PER_READ = 512  # so that a reader with much to catch up on lets others go on
_EVENT_BYTES = 110  # an event, its text's header and its place in the list (sys.getsizeof)


class _Stream:
    __slots__ = ("bytes", "closed_at", "events", "info", "waiting")

    def __init__(self, info: StreamInfo) -> None:
        self.info = info
        self.events: list[Event] = []
        self.bytes = 0
        self.closed_at: float | None = None
        self.waiting: list[asyncio.Future[None]] = []


class MemoryLog:
    """``window_seconds`` is how long a finished stream can still be read. Over ``max_bytes`` the finished
    streams go earlier, oldest first; a single stream is refused more than ``max_stream_bytes``.
    """

    def __init__(
        self,
        *,
        window_seconds: float = 300,
        max_bytes: int = 512 << 20,
        max_stream_bytes: int = 32 << 20,
    ) -> None:
        self._window_seconds = window_seconds
        self._max_bytes = max_bytes
        self._max_stream_bytes = max_stream_bytes
        self._streams: dict[str, _Stream] = {}
        self._closed: deque[_Stream] = deque()  # oldest first
        self._bytes = 0

    async def create(self, info: StreamInfo) -> None:
        if info.stream_id in self._streams:
            raise StreamClosed(f"the stream '{info.stream_id}' exists")
        self._forget()
        self._streams[info.stream_id] = _Stream(info)

    async def info(self, stream_id: str) -> StreamInfo:
        return self._stream(stream_id).info

    async def append(self, stream_id: str, events: Sequence[Event]) -> Position:
        stream = self._stream(stream_id)
        if stream.closed_at is not None:
            raise StreamClosed(f"the stream '{stream_id}' has ended")
        closing = bool(events) and isinstance(events[-1], TERMINAL_TYPES)
        size = sum(map(_size, events))
        if stream.bytes + size > self._max_stream_bytes and not closing:
            raise StreamFull(f"the stream '{stream_id}' is over {self._max_stream_bytes} bytes")
        stream.events.extend(events)
        stream.bytes += size
        self._bytes += size
        if closing:
            stream.closed_at = time.monotonic()
            self._closed.append(stream)
        if self._bytes > self._max_bytes:
            self._forget()
        waiting, stream.waiting = stream.waiting, []
        for reader in waiting:
            if not reader.done():
                reader.set_result(None)
        return Position(_EPOCH, len(stream.events))

    async def read(self, stream_id: str, after: Position | None = None) -> AsyncGenerator[Batch]:
        stream = self._stream(stream_id)
        seq = 0 if after is None else after.seq
        if after is not None and (after.epoch != _EPOCH or not 0 <= seq <= len(stream.events)):
            raise StreamGone(f"the stream '{stream_id}' has no position {after}")
        loop = asyncio.get_running_loop()
        while True:
            if seq < len(stream.events):
                events = stream.events[seq : seq + _EVENTS_PER_READ]
                batch = Batch(Position(_EPOCH, seq + 1), events)
                seq += len(events)
                yield batch
            elif stream.closed_at is not None:
                return
            else:
                appended = loop.create_future()
                stream.waiting.append(appended)
                try:
                    await appended
                finally:
                    if not appended.done() or appended.cancelled():
                        stream.waiting = [other for other in stream.waiting if other is not appended]

    def _stream(self, stream_id: str) -> _Stream:
        stream = self._streams.get(stream_id)
        if stream is None:
            raise StreamGone(f"the stream '{stream_id}' is not here")
        return stream

    def _forget(self) -> None:
        """Drops finished streams that are past their window, or the oldest while over the limit."""
        past = time.monotonic() - self._window_seconds
        while self._closed:
            oldest = self._closed[0]
            assert oldest.closed_at is not None
            if oldest.closed_at > past and self._bytes <= self._max_bytes:
                return
            self._closed.popleft()
            del self._streams[oldest.info.stream_id]
            self._bytes -= oldest.bytes


def _size(event: Event) -> int:
    if isinstance(event, (TextDelta, ReasoningDelta, RefusalDelta)):
        return _EVENT_BYTES + _text_bytes(event.text)
    if isinstance(event, (ToolCallDelta, ToolCallEnd)):
        return 3 * _EVENT_BYTES + _text_bytes(event.arguments)
    if isinstance(event, ToolCallStart):
        return 3 * _EVENT_BYTES + _text_bytes(event.call_id) + _text_bytes(event.name)
    return 3 * _EVENT_BYTES


def _text_bytes(text: str) -> int:
    """At the most: Python takes up to four bytes for a character that is not ASCII."""
    return len(text) if text.isascii() else 4 * len(text)
