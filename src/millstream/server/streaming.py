"""The streaming edge: a stream, from any position -> one HTTP response, watched from its first moment.

Both responses here drive ``send`` themselves. Beside them runs a task that waits for the client to leave,
from before the stream is started, so that leaving is felt before the first token, in silence and in
the middle of a write alike.
"""

import asyncio
import logging
import random
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from urllib.parse import quote

import msgspec
from fastapi import Request, Response
from starlette.types import Receive, Scope, Send

from millstream.dialects import Dialect
from millstream.dialects.native import usage_json
from millstream.errors import Draining, Internal, MillstreamError, Overloaded, recorded, whereabouts
from millstream.events import (
    Batch,
    Position,
    ReasoningDelta,
    RefusalDelta,
    StreamEnd,
    StreamFailed,
    StreamStart,
    TextDelta,
    ToolCallEnd,
)
from millstream.generations import Source
from millstream.logs import EventLog
from millstream.server.requests import error_headers, request_id

log = logging.getLogger("millstream.server")

HOLD_SECONDS = 10.0  # how long the status line waits for a provider's first event
FOLLOW_SECONDS = 0.2  # and for the log's, where a stream is followed that was started before
PING_SECONDS = 15.0  # the longest silence on a connection
LOOK_SECONDS = 1.0  # how exactly these two are kept

_COME_BACK_MILLISECONDS = (200, 2000)

STREAM_HEADERS = {
    # no-transform keeps proxies from compressing, X-Accel-Buffering nginx from buffering.
    "Cache-Control": "no-store, no-transform",
    "X-Accel-Buffering": "no",
}


class _StreamResponse(Response, ABC):
    """Starts (or finds) a stream when it is sent, and sends what ``_take`` and ``_ended`` make of it."""

    def __init__(
        self,
        request: Request,
        start: Callable[[], Awaitable[Source]],
        event_log: EventLog,
        dialect: Dialect,
    ) -> None:
        # Not calling super().__init__(): nothing of a response is known before its stream is.
        self.background = None
        self._request = request
        self._start = start
        self._log = event_log
        self._dialect = dialect
        self._source: Source | None = None
        self._after: Position | None = None
        self._loop = asyncio.get_running_loop()
        self._complete = False
        self._departs = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._send = send
        gone = asyncio.create_task(_disconnected(receive))
        try:
            async with asyncio.timeout(None) as self._present:

                def leave(watcher: asyncio.Task[None]) -> None:
                    if not watcher.cancelled():
                        self._leave()

                gone.add_done_callback(leave)
                await self._run()
        except TimeoutError:
            if self._departs and not gone.done():
                await self._departed()
        finally:
            self._complete = True
            gone.cancel()

    def _leave(self) -> None:
        if not (self._complete or self._present.expired()):
            self._present.reschedule(self._loop.time())

    def _depart(self) -> None:
        """Ends the response early, so that its reader comes back to another process."""
        self._departs = True
        self._leave()

    async def _departed(self) -> None:
        await self._failed(Draining("the server is shutting down; try again"))

    async def _run(self) -> None:
        try:
            source = self._source = await self._start()
            with source.reading(self._depart):
                async with aclosing(self._log.read(source.info.stream_id, self._after)) as batches:
                    async for batch in batches:
                        await self._take(source, batch)
                await self._ended(source)
        except MillstreamError as error:
            await self._failed(error)
        except Exception as error:
            log.error("%s: %s", self._request.url.path, whereabouts(error))
            await self._failed(Internal())

    @abstractmethod
    async def _take(self, source: Source, batch: Batch) -> None:
        """Does what is to be done with events of the stream."""

    @abstractmethod
    async def _ended(self, source: Source) -> None:
        """The stream has had its terminal event."""

    async def _failed(self, error: MillstreamError) -> None:
        """An error before the response has begun is an HTTP status."""
        identity = request_id(self._request)
        await self._head(error.status, error_headers(error, identity))
        await self._finish(self._dialect.error(error, identity))

    async def _head(self, status: int, headers: Mapping[str, str]) -> None:
        raw = [(k.lower().encode("latin-1"), v.encode("latin-1")) for k, v in headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def _body(self, body: bytes) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def _finish(self, body: bytes = b"") -> None:
        self._complete = True
        await self._send({"type": "http.response.body", "body": body, "more_body": False})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStreamResponse(_StreamResponse):
    """A stream as Server-Sent Events.

    The status line is held until the provider has produced something or has failed, at the most
    ``HOLD_SECONDS``: a failure before the first event is a real HTTP status. Where the stream is
    ``followed``, from ``after`` on, the status only says that it was found.
    """

    def __init__(
        self,
        request: Request,
        start: Callable[[], Awaitable[Source]],
        event_log: EventLog,
        dialect: Dialect,
        *,
        followed: bool = False,
        after: Position | None = None,
    ) -> None:
        super().__init__(request, start, event_log, dialect)
        self._followed = followed
        self._after = after
        self._hold = FOLLOW_SECONDS if followed else HOLD_SECONDS
        self._committed = False
        self._failed_first: StreamFailed | None = None
        self._held = b""
        self._sent_at = self._loop.time()
        # Frames go out from the request's task, a held status line and pings from a timer's. Each
        # keeps out of the other's way: ``_busy`` is the first at work, ``_tick`` the second.
        self._busy = False
        self._tick: asyncio.Task[None] | None = None

    async def _departed(self) -> None:
        if self._committed:
            await self._finish(come_back(self._dialect))
        else:
            await super()._departed()

    async def _run(self) -> None:
        self._timer = self._loop.call_later(self._hold, self._look)
        try:
            await super()._run()
        finally:
            self._timer.cancel()
            if self._tick is not None:
                self._tick.cancel()

    async def _take(self, source: Source, batch: Batch) -> None:
        if self._tick is not None:
            await self._tick
        self._busy = True
        if not self._committed:
            first = next((e for e in batch.events if type(e) is not StreamStart), None)
            if self._followed:
                await self._commit(self._dialect.encode(source.info, batch))
            elif first is None:
                self._held += self._dialect.encode(source.info, batch)
            elif isinstance(first, StreamFailed):
                self._failed_first = first
            else:
                await self._commit(self._dialect.encode(source.info, batch))
        else:
            frames = self._dialect.encode(source.info, batch)
            await self._send({"type": "http.response.body", "body": frames, "more_body": True})
            self._sent_at = self._loop.time()
        self._busy = False

    async def _ended(self, source: Source) -> None:
        if not self._committed and self._followed:
            await self._commit(b"")
        if self._failed_first is None:
            await self._finish()
        else:
            await self._failed(_failure(self._failed_first))

    async def _failed(self, error: MillstreamError) -> None:
        if self._committed:
            # Too late for a status. Without a terminal frame the client sees an interrupted stream.
            await self._finish()
        elif self._followed and isinstance(error, Overloaded):
            await self._commit(come_back(self._dialect))  # an EventSource gives up for ever on a 503
            await self._finish()
        else:
            self._committed = True
            await super()._failed(error)

    def _look(self) -> None:
        """The one timer of a connection: when it fires, it looks whether there was a silence, and
        sets itself to when the next one could be over.
        """
        due = self._sent_at + (PING_SECONDS if self._committed else self._hold)
        silent = self._loop.time() >= due and not self._busy and self._tick is None
        if silent and self._source is not None:
            self._tick = asyncio.create_task(self._break_silence())
            due = self._loop.time() + PING_SECONDS
        self._timer = self._loop.call_at(max(due, self._loop.time() + LOOK_SECONDS), self._look)

    async def _break_silence(self) -> None:
        try:
            if self._committed:
                await self._body(self._dialect.ping)
            else:
                await self._commit(b"")
            self._sent_at = self._loop.time()
        finally:
            self._tick = None

    async def _commit(self, frames: bytes) -> None:
        """The status line, the headers, what was held back, and ``frames``."""
        assert self._source is not None
        self._committed = True
        stream_id = self._source.info.stream_id
        prefix = quote(self._request.url.path.rpartition("/v1/")[0])
        headers = {
            **self._dialect.headers,
            **STREAM_HEADERS,
            "X-Stream-Id": stream_id,
            "Location": f"{prefix}/v1/streams/{stream_id}",
        }
        await self._head(200, headers)
        frames = self._held + frames
        if self._followed and not frames.startswith(self._dialect.resume):
            frames = self._dialect.resume + frames
        await self._body(frames)
        self._sent_at = self._loop.time()


class AnswerResponse(_StreamResponse):
    """A stream's whole answer as one JSON object."""

    def __init__(
        self,
        request: Request,
        start: Callable[[], Awaitable[Source]],
        event_log: EventLog,
        dialect: Dialect,
    ) -> None:
        super().__init__(request, start, event_log, dialect)
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._refusal: list[str] = []
        self._calls: list[ToolCallEnd] = []
        self._terminal: StreamEnd | StreamFailed | None = None

    async def _take(self, source: Source, batch: Batch) -> None:
        for event in batch.events:
            match event:
                case TextDelta():
                    self._text.append(event.text)
                case ReasoningDelta():
                    self._reasoning.append(event.text)
                case RefusalDelta():
                    self._refusal.append(event.text)
                case ToolCallEnd():
                    self._calls.append(event)
                case StreamEnd() | StreamFailed():
                    self._terminal = event
                case _:
                    pass

    async def _ended(self, source: Source) -> None:
        end = self._terminal
        if isinstance(end, StreamFailed):
            await self._failed(_failure(end))
            return
        assert end is not None
        info = source.info
        answer: dict[str, object] = {
            "stream_id": info.stream_id,
            "model": info.model,
            "content": "".join(self._text),
        }
        if self._reasoning:
            answer["reasoning"] = "".join(self._reasoning)
        if self._refusal:
            answer["refusal"] = "".join(self._refusal)
        if self._calls:
            answer["tool_calls"] = [
                {
                    "id": call.call_id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in self._calls
            ]
        answer |= {"finish_reason": end.finish_reason, "usage": usage_json(end.bill)}
        headers = {
            "Content-Type": "application/json",
            "Cache-Control": "no-store",
            "X-Stream-Id": info.stream_id,
        }
        await self._head(200, headers)
        await self._finish(msgspec.json.encode(answer))


def come_back(dialect: Dialect) -> bytes:
    """The last frame of a response that its reader should continue elsewhere. Everybody waits for a time of
    their own, so that they do not come all at once."""
    return dialect.retry(random.randint(*_COME_BACK_MILLISECONDS))  # noqa: S311  # no secret


def _failure(event: StreamFailed) -> MillstreamError:
    return recorded(event.code, event.message, event.retry_after_seconds)
