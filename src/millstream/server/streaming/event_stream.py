"""A stream as Server-Sent Events.

How a response ends:

    held       the status line is not sent      -> committed, complete
    committed  frames and pings are sent        -> complete
    complete   the last byte is handed over

    what happens                        held                                  committed
    the stream's first event            kept                                  -
    another event                       200, what was kept, its frames        its frames
    the stream fails                    its HTTP status: complete             its frames: complete
    the stream ends                     200, its frames: complete             its frames: complete
    silence                             after 10 s: 200, what was kept        every 15 s: a ping
    the journal fails                       its HTTP status: complete             no terminal frame: complete
    the client is sent away,
      or its request is cancelled       503: complete                         a retry frame: complete
    the client leaves                   499, which no server sends: complete  nothing more is sent

A response to a reader that joins (``followed``) is held for 0.2 s. A failure of the stream is a frame there,
never an HTTP status. If the journal cannot be reached, or the client is sent away, it gets 200 and a retry
frame, because a browser's EventSource does not reconnect after a 503.
"""

import asyncio
import random
import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from enum import Enum

from fastapi import Request, Response
from starlette.types import Receive, Scope, Send

from millstream import deadlines
from millstream.answer import Answer, Fold
from millstream.dialects import Dialect
from millstream.errors import BadPosition, Draining, MillstreamError, Overloaded
from millstream.events import TERMINAL_TYPES, AnswerStart, Batch, Position, StreamFailed, StreamStart
from millstream.journals import Journal
from millstream.log_ids import STREAM_ID
from millstream.server.errors import end_of_stream, error_response, fault_of, request_id, unread_response
from millstream.server.root_path import stream_url
from millstream.server.streaming.client_watch import ClientWatch, client_of
from millstream.streams.audience import ReadableStream

HOLD_SECONDS = 10.0  # how long the status line waits for a provider's first event
FOLLOW_SECONDS = 0.2  # and for the journal's, where a stream is followed that was started before
PING_SECONDS = 15.0  # the longest silence on a connection
LOOK_SECONDS = 1.0  # the timer fires this often at most: holds and pings may be so late

_RECONNECT_MILLISECONDS = (200, 2000)
_ID = re.compile(rb"^id: [\d-]+$", re.MULTILINE)

_BEFORE_A_WORD = (StreamStart, AnswerStart)  # for these alone no status is sent

_HEADERS = {
    # no-transform keeps proxies from compressing, X-Accel-Buffering nginx from buffering.
    "Cache-Control": "no-store, no-transform",
    "X-Accel-Buffering": "no",
}


class State(Enum):
    """How much of the response has been sent."""

    HELD = "held"
    COMMITTED = "committed"
    COMPLETE = "complete"


class EventStreamResponse(Response):
    """Sends ``source`` from the position ``after`` on; ``followed`` where it was started before. A ``proof``
    goes into the id of each frame, behind its position.
    """

    def __init__(
        self,
        request: Request,
        client: ClientWatch,
        source: ReadableStream,
        journal: Journal,
        dialect: Dialect,
        *,
        followed: bool = False,
        after: Position | None = None,
        proof: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        # Not calling super().__init__(): nothing of the response is known before its stream is read.
        self.background = None
        self._request = request
        self._client = client
        self._source = source
        self._journal = journal
        self._dialect = dialect
        self._followed = followed
        self._after = after
        self._proof = proof.encode()
        self._more_headers = headers or {}
        looks_back = dialect.looks_back or source.info.choices > 1
        self._before = Fold() if looks_back else None
        self._hold = FOLLOW_SECONDS if followed else HOLD_SECONDS
        self._state = State.HELD
        self._held_frames = b""
        self._failure: StreamFailed | None = None  # set if the stream's first event was its failure
        self._loop = asyncio.get_running_loop()
        self._sent_at = self._loop.time()
        # Frames go out from the request's task, a held status line and pings from a task of their own.
        self._sending = asyncio.Lock()
        self._breaking_silence: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        STREAM_ID.set(self._source.info.stream_id)
        self._send = send
        self._writer = client_of(scope)
        self._timer = deadlines.at(self._loop.time() + self._hold, self._check_silence)
        try:
            async with self._client:
                try:
                    await self._relay()
                except MillstreamError as error:
                    await self._fail(error)
                except Exception as error:
                    stream_id = self._source.info.stream_id
                    await self._fail(fault_of(self._request, error, stream_id=stream_id))
            if self._client.sent_away:
                async with self._client.goodbye():
                    await self._fail(Draining(), reconnect=True)
            elif self._state is State.HELD:
                self._mark_complete()
                await unread_response()(scope, receive, send)
        finally:
            self._client.stop()
            self._timer.cancel()
            if self._breaking_silence is not None:
                self._breaking_silence.cancel()

    async def _relay(self) -> None:
        """The stream -> the client, to the stream's end."""
        with self._source.reading(self._client.send_away):
            async with aclosing(self._batches()) as batches:
                async for batch in batches:
                    async with self._sending:
                        await self._send_batch(batch)
        if self._failure is not None:
            await self._fail(end_of_stream(self._failure.error, self._request))
            return
        async with self._sending:
            if self._state is State.HELD:
                await self._commit(b"", last=True)
            elif self._state is State.COMMITTED:
                await self._body(b"", last=True)

    def _batches(self) -> AsyncGenerator[Batch]:
        """What follows the position. For a dialect that looks back everything is read."""
        if self._before is None or self._after is None:
            return self._journal.read(self._source.info.stream_id, self._after, self._push)
        return self._batches_after(self._after, self._before)

    async def _batches_after(self, after: Position, before: Fold) -> AsyncGenerator[Batch]:
        stream_id = self._source.info.stream_id
        last = (await self._journal.state(stream_id)).last
        if after > last:
            raise BadPosition(f"the stream is at {last}")
        async with aclosing(self._journal.read(stream_id, push=self._push)) as batches:
            async for batch in batches:
                epoch, seq = batch.first
                known = 0 if epoch > after.epoch else min(max(0, after.seq - seq + 1), len(batch.events))
                before.add(batch.events[:known])
                if known < len(batch.events):
                    yield Batch(Position(epoch, seq + known), batch.events[known:])

    async def _send_batch(self, batch: Batch) -> None:
        last = isinstance(batch.events[-1], TERMINAL_TYPES)
        if self._state is State.COMMITTED:
            frames = self._encode(batch)  # of some events a format says nothing
            if frames or last:
                await self._body(frames, last=last)
            return
        first = next((event for event in batch.events if not isinstance(event, _BEFORE_A_WORD)), None)
        if isinstance(first, StreamFailed) and not self._followed:
            self._failure = first
            return
        frames = self._encode(batch)
        if first is None and not self._followed:
            self._held_frames += frames
        else:
            await self._commit(frames, last=last)

    def _push(self, batch: Batch) -> bool:
        """Sends a batch in the turn that appends it, where the server and the response allow that."""
        if (
            self._writer is None
            or self._state is not State.COMMITTED
            or self._sending.locked()
            or (self._after is not None and batch.first <= self._after)  # of a copy that lags behind
            or isinstance(batch.events[-1], TERMINAL_TYPES)
            or not self._writer.is_ready
        ):
            return False
        if frames := self._encode(batch):
            self._writer.write(frames)
            self._sent_at = self._loop.time()
        return True

    def _encode(self, batch: Batch) -> bytes:
        before = self._before
        if before is None:
            frames = self._dialect.encode(self._source.info, batch, Answer)
        else:
            frames = self._dialect.encode(self._source.info, batch, before)
            before.add(batch.events)
        return _ID.sub(rb"\g<0>." + self._proof, frames) if self._proof else frames

    async def _fail(self, error: MillstreamError, *, reconnect: bool = False) -> None:
        """Ends the response for another reason than the stream's end. With ``reconnect`` a client that reads
        frames is told when to come back.
        """
        async with self._sending:
            if self._state is State.COMMITTED:
                # Too late for a status. Without a terminal frame the client sees an interrupted stream.
                frames = reconnect_frame(self._dialect) if reconnect else self._dialect.goodbye(None)
                await self._body(frames, last=True)
            elif self._state is State.HELD and self._followed and isinstance(error, Overloaded):
                await self._commit(reconnect_frame(self._dialect), last=True)
            elif self._state is State.HELD:
                await self._send_error_status(error)

    def _check_silence(self) -> None:
        """Called by the connection's one timer. Starts a task that sends a ping, or the held status line, if
        nothing was sent for long enough; then sets the timer again.
        """
        now = self._loop.time()
        due = self._sent_at + (PING_SECONDS if self._state is State.COMMITTED else self._hold)
        if now >= due and not self._sending.locked():
            self._breaking_silence = asyncio.create_task(self._break_silence())
            due = now + PING_SECONDS
        self._timer = deadlines.at(max(due, now + LOOK_SECONDS), self._check_silence)

    async def _break_silence(self) -> None:
        async with self._sending:
            if self._state is State.COMMITTED:
                await self._body(self._dialect.ping)
            elif self._state is State.HELD:
                await self._commit(b"")

    # -- what is sent -----------------------------------------------------------------------

    async def _commit(self, frames: bytes, *, last: bool = False) -> None:
        """The status line, the headers, what was kept, and ``frames``."""
        self._state = State.COMMITTED
        stream_id = self._source.info.stream_id
        headers = {
            **self._dialect.headers,
            **_HEADERS,
            **self._more_headers,
            self._dialect.request_id_header: request_id(self._request),
            "X-Stream-Id": stream_id,
            "Location": stream_url(self._request, stream_id),
        }
        raw = [(k.lower().encode("latin-1"), v.encode("latin-1")) for k, v in headers.items()]
        await self._send({"type": "http.response.start", "status": 200, "headers": raw})
        frames = self._held_frames + frames
        if self._followed and not frames.startswith(self._dialect.preamble):
            frames = self._dialect.preamble + frames
        await self._body(frames, last=last)

    async def _body(self, frames: bytes, *, last: bool = False) -> None:
        if last:
            self._mark_complete()
        await self._send({"type": "http.response.body", "body": frames, "more_body": not last})
        self._sent_at = self._loop.time()

    async def _send_error_status(self, error: MillstreamError) -> None:
        """An error before the response has begun is an HTTP status."""
        self._mark_complete()
        response = error_response(error, self._request, self._dialect, self._source.info.stream_id)
        await response(self._request.scope, self._request.receive, self._send)

    def _mark_complete(self) -> None:
        self._state = State.COMPLETE
        self._client.served()


def reconnect_frame(dialect: Dialect) -> bytes:
    """The last frame of a response that its reader should continue elsewhere. Everybody waits for a time of
    their own, so that they do not come all at once."""
    return dialect.goodbye(random.randint(*_RECONNECT_MILLISECONDS))  # noqa: S311  # no secret


def reconnect_response(dialect: Dialect) -> Response:
    """A whole response that says only that."""
    return Response(reconnect_frame(dialect), headers={**dialect.headers, **_HEADERS})
