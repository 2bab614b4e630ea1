"""The streaming edge: a stream -> one HTTP response, watched from its first moment.

Both responses here drive ``send`` themselves. Beside them runs a task that waits for the client to leave,
from before the stream is started, so that leaving is felt before the first token, in silence and in
the middle of a write alike.
"""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from urllib.parse import quote

import msgspec
from fastapi import Request, Response
from starlette.types import Receive, Scope, Send

from millstream.dialects import Dialect
from millstream.dialects.native import usage_json
from millstream.errors import Internal, MillstreamError, recorded, whereabouts
from millstream.events import (
    Batch,
    ReasoningDelta,
    RefusalDelta,
    StreamEnd,
    StreamFailed,
    StreamStart,
    TextDelta,
    ToolCallEnd,
)
from millstream.generation import Generation
from millstream.logs import EventLog
from millstream.server.requests import error_headers, request_id

log = logging.getLogger("millstream.server")

HOLD_SECONDS = 10.0  # how long the status line waits for a provider's first event
PING_SECONDS = 15.0  # the longest silence on a connection
LOOK_SECONDS = 1.0  # how exactly these two are kept

_STREAM_HEADERS = {
    # no-transform keeps proxies from compressing, X-Accel-Buffering nginx from buffering.
    "Cache-Control": "no-store, no-transform",
    "X-Accel-Buffering": "no",
}


class _StreamResponse(Response, ABC):
    """Starts a stream when it is sent, and sends what ``_take`` and ``_ended`` make of it."""

    def __init__(
        self,
        request: Request,
        start: Callable[[], Awaitable[Generation]],
        event_log: EventLog,
        dialect: Dialect,
    ) -> None:
        # Not calling super().__init__(): nothing of a response is known before its stream is.
        self.background = None
        self._request = request
        self._start = start
        self._log = event_log
        self._dialect = dialect
        self._loop = asyncio.get_running_loop()
        self._complete = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._send = send
        gone = asyncio.create_task(_disconnected(receive))
        try:
            async with asyncio.timeout(None) as present:

                def leave(watcher: asyncio.Task[None]) -> None:
                    if not (watcher.cancelled() or self._complete):
                        present.reschedule(self._loop.time())

                gone.add_done_callback(leave)
                await self._run()
        except TimeoutError:
            pass  # the client has left; there is nobody to tell
        finally:
            self._complete = True
            gone.cancel()

    async def _run(self) -> None:
        try:
            generation = await self._start()
            with generation.reading():
                async with aclosing(self._log.read(generation.info.stream_id)) as batches:
                    async for batch in batches:
                        await self._take(generation, batch)
                await self._ended(generation)
        except MillstreamError as error:
            await self._failed(error)
        except Exception as error:
            log.error("%s: %s", self._request.url.path, whereabouts(error))
            await self._failed(Internal())

    @abstractmethod
    async def _take(self, generation: Generation, batch: Batch) -> None:
        """Does what is to be done with events of the stream."""

    @abstractmethod
    async def _ended(self, generation: Generation) -> None:
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
    ``HOLD_SECONDS``: a failure before the first event is a real HTTP status.
    """

    def __init__(
        self,
        request: Request,
        start: Callable[[], Awaitable[Generation]],
        event_log: EventLog,
        dialect: Dialect,
    ) -> None:
        super().__init__(request, start, event_log, dialect)
        self._committed = False
        self._failed_first: StreamFailed | None = None
        self._held = b""
        self._generation: Generation | None = None
        self._sent_at = self._loop.time()
        # Frames go out from the request's task, a held status line and pings from a timer's. Each
        # keeps out of the other's way: ``_busy`` is the first at work, ``_tick`` the second.
        self._busy = False
        self._tick: asyncio.Task[None] | None = None

    async def _run(self) -> None:
        self._timer = self._loop.call_later(HOLD_SECONDS, self._look)
        try:
            await super()._run()
        finally:
            self._timer.cancel()
            if self._tick is not None:
                self._tick.cancel()

    async def _take(self, generation: Generation, batch: Batch) -> None:
        if self._tick is not None:
            await self._tick
        self._busy = True
        if not self._committed:
            self._generation = generation
            first = next((e for e in batch.events if type(e) is not StreamStart), None)
            if first is None:
                self._held += self._dialect.encode(generation.info, batch)
            elif isinstance(first, StreamFailed):
                self._failed_first = first
            else:
                await self._commit(self._dialect.encode(generation.info, batch))
        else:
            frames = self._dialect.encode(generation.info, batch)
            await self._send({"type": "http.response.body", "body": frames, "more_body": True})
            self._sent_at = self._loop.time()
        self._busy = False

    async def _ended(self, generation: Generation) -> None:
        if self._failed_first is None:
            await self._finish()
        else:
            await self._failed(_failure(self._failed_first))

    async def _failed(self, error: MillstreamError) -> None:
        if self._committed:
            # Too late for a status. Without a terminal frame the client sees an interrupted stream.
            await self._finish()
        else:
            self._committed = True
            await super()._failed(error)

    def _look(self) -> None:
        """The one timer of a connection: when it fires, it looks whether there was a silence, and
        sets itself to when the next one could be over.
        """
        due = self._sent_at + (PING_SECONDS if self._committed else HOLD_SECONDS)
        silent = self._loop.time() >= due and not self._busy and self._tick is None
        if silent and self._generation is not None:
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
        assert self._generation is not None
        self._committed = True
        stream_id = self._generation.info.stream_id
        prefix = quote(self._request.url.path.rpartition("/v1/")[0])
        headers = {
            **self._dialect.headers,
            **_STREAM_HEADERS,
            "X-Stream-Id": stream_id,
            "Location": f"{prefix}/v1/streams/{stream_id}",
        }
        await self._head(200, headers)
        await self._body(self._held + frames)
        self._sent_at = self._loop.time()


class AnswerResponse(_StreamResponse):
    """A stream's whole answer as one JSON object."""

    def __init__(
        self,
        request: Request,
        start: Callable[[], Awaitable[Generation]],
        event_log: EventLog,
        dialect: Dialect,
    ) -> None:
        super().__init__(request, start, event_log, dialect)
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._refusal: list[str] = []
        self._calls: list[ToolCallEnd] = []
        self._terminal: StreamEnd | StreamFailed | None = None

    async def _take(self, generation: Generation, batch: Batch) -> None:
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

    async def _ended(self, generation: Generation) -> None:
        end = self._terminal
        if isinstance(end, StreamFailed):
            await self._failed(_failure(end))
            return
        assert end is not None
        info = generation.info
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


def _failure(event: StreamFailed) -> MillstreamError:
    return recorded(event.code, event.message, event.retry_after_seconds)
