"""The streaming edge: a stream -> one HTTP response, watched from its first moment.

Both responses here drive ``send`` themselves. Beside them runs a task that waits for the client to leave,
from before the stream is started, so that leaving is felt before the first token, in silence and in
the middle of a write alike.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing

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

_STREAM_HEADERS = {
    # no-transform keeps proxies from compressing, X-Accel-Buffering nginx from buffering.
    "Cache-Control": "no-store, no-transform",
    "X-Accel-Buffering": "no",
}


class _StreamResponse(Response):
    """Starts a stream when it is sent, and sends what ``_respond`` makes of it."""

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
        self._began_at = self._loop.time()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._send = send
        gone = asyncio.create_task(_disconnected(receive))
        work = asyncio.create_task(self._run())
        try:
            while not work.done() and not gone.done():
                await asyncio.wait(
                    (work, gone),
                    timeout=self._seconds_to_wait(),
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if not work.done() and not gone.done():
                    await self._waited()
        finally:
            work.cancel()
            gone.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)

    async def _run(self) -> None:
        try:
            generation = await self._start()
            with generation.reading():
                stream_id = generation.info.stream_id
                async with aclosing(self._log.read(stream_id)) as batches:
                    async for batch in batches:
                        await self._take(generation, batch)
                await self._ended(generation)
        except MillstreamError as error:
            await self._failed(error)
        except Exception as error:
            log.error("%s: %s", self._request.url.path, whereabouts(error))
            await self._failed(Internal())

    async def _take(self, generation: Generation, batch: Batch) -> None:
        raise NotImplementedError

    async def _ended(self, generation: Generation) -> None:
        raise NotImplementedError

    async def _failed(self, error: MillstreamError) -> None:
        """An error before the response has begun is an HTTP status."""
        identity = request_id(self._request)
        await self._head(error.status, error_headers(error, identity))
        await self._body(self._dialect.error(error, identity), more=False)

    def _seconds_to_wait(self) -> float | None:
        return None

    async def _waited(self) -> None:
        """That time has passed."""

    async def _head(self, status: int, headers: dict[str, str]) -> None:
        raw = [(k.lower().encode("latin-1"), v.encode("latin-1")) for k, v in headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def _body(self, body: bytes, *, more: bool) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": more})


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
        self._sent_at = self._began_at
        # Frames and pings come from two tasks; one at a time may write.
        self._writing = asyncio.Lock()

    async def _take(self, generation: Generation, batch: Batch) -> None:
        self._generation = generation
        if not self._committed:
            first = next((e for e in batch.events if not isinstance(e, StreamStart)), None)
            if isinstance(first, StreamFailed):
                self._failed_first = first
                return
            if first is None:
                self._held += self._dialect.encode(generation.info, batch)
                return
        async with self._writing:
            frames = self._dialect.encode(generation.info, batch)
            await self._body(await self._commit() + frames, more=True)
            self._sent_at = self._loop.time()

    async def _ended(self, generation: Generation) -> None:
        if self._failed_first is not None:
            await self._failed(_failure(self._failed_first))
        else:
            async with self._writing:
                await self._body(b"", more=False)

    async def _failed(self, error: MillstreamError) -> None:
        async with self._writing:
            if self._committed:
                # Too late for a status. No terminal frame: the client sees an interrupted stream.
                await self._body(b"", more=False)
            else:
                self._committed = True
                await super()._failed(error)

    def _seconds_to_wait(self) -> float | None:
        due = self._sent_at + PING_SECONDS if self._committed else self._began_at + HOLD_SECONDS
        return max(due - self._loop.time(), 0.05)

    async def _waited(self) -> None:
        if self._writing.locked() or self._seconds_to_wait() > 0.05:
            return
        async with self._writing:
            if not self._committed and self._generation is not None:
                await self._body(await self._commit(), more=True)
            elif self._committed:
                await self._body(self._dialect.ping, more=True)
            self._sent_at = self._loop.time()

    async def _commit(self) -> bytes:
        """Sends the status line and the headers, once; what was held back has to follow."""
        if self._committed:
            return b""
        assert self._generation is not None
        self._committed = True
        stream_id = self._generation.info.stream_id
        prefix = self._request.url.path.rpartition("/v1/")[0]
        await self._head(
            200,
            {
                **self._dialect.headers,
                **_STREAM_HEADERS,
                "X-Stream-Id": stream_id,
                "Location": f"{prefix}/v1/streams/{stream_id}",
            },
        )
        return self._held


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
        await self._body(msgspec.json.encode(answer), more=False)


def _failure(event: StreamFailed) -> MillstreamError:
    return recorded(event.code, event.message, event.retry_after_seconds)
