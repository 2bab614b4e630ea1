"""A stream's whole answer as one JSON object: 200 with the answer, or the HTTP status of what ended it."""

import asyncio
from collections.abc import Mapping
from contextlib import aclosing, suppress

from fastapi import Request, Response
from starlette.types import Receive, Scope, Send

from millstream.answer import Answer
from millstream.dialects import Dialect
from millstream.errors import Draining, MillstreamError
from millstream.events import Batch, StreamEnd, StreamFailed, StreamInfo
from millstream.journals import Journal
from millstream.log_ids import STREAM_ID
from millstream.server.errors import end_of_stream, error_response, fault_of, request_id, unread_response
from millstream.server.streaming.client_watch import ClientWatch
from millstream.streams.audience import ReadableStream


class AnswerResponse(Response):
    """Reads ``source`` to its end, then sends the answer or the error."""

    def __init__(
        self,
        request: Request,
        client: ClientWatch,
        source: ReadableStream,
        journal: Journal,
        dialect: Dialect,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        # Not calling super().__init__(): nothing of the response is known before its stream is read.
        self.background = None
        self._request = request
        self._client = client
        self._source = source
        self._journal = journal
        self._dialect = dialect
        self._more_headers = headers or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        STREAM_ID.set(self._source.info.stream_id)
        try:
            async with self._client as client:
                try:
                    response = await self._whole()
                except MillstreamError as error:
                    response = self._error_response(error)
                except Exception as error:
                    stream_id = self._source.info.stream_id
                    response = self._error_response(fault_of(self._request, error, stream_id=stream_id))
                client.served()
                await response(scope, receive, send)
                return
            if client.sent_away:
                async with client.goodbye():
                    await self._error_response(Draining())(scope, receive, send)
            else:
                await unread_response()(scope, receive, send)
        finally:
            self._client.stop()

    async def _whole(self) -> Response:
        info, answer = self._source.info, Answer()

        def take(batch: Batch) -> bool:
            answer.add(batch.events)
            return True

        with self._source.reading(self._client.send_away):
            async with aclosing(self._journal.read(info.stream_id, push=take)) as batches:
                async for batch in batches:
                    answer.add(batch.events)
        try:
            if isinstance(answer.terminal, StreamFailed):
                raise answer.terminal.error
            if (
                isinstance(answer.terminal, StreamEnd)
                and answer.terminal.because
                and not self._dialect.tells_cuts
            ):
                raise Draining
            return _response(self._request, info, answer, self._dialect, self._more_headers)
        except MillstreamError as error:
            raise end_of_stream(error, self._request) from None

    def _error_response(self, error: MillstreamError) -> Response:
        return error_response(error, self._request, self._dialect, self._source.info.stream_id)


async def unfinished_answer(
    request: Request,
    info: StreamInfo,
    journal: Journal,
    dialect: Dialect,
    headers: Mapping[str, str] | None = None,
    *,
    within_seconds: float = 0,
) -> Response:
    """The answer as far as it is now, where ``dialect`` can say so of one; or its end, if that comes
    ``within_seconds``. A stream that has failed is an answer too. Raises ``StreamGone``, ``Overloaded``.
    """
    answer = await answer_so_far(journal, info.stream_id, within_seconds=within_seconds)
    return _response(request, info, answer, dialect, headers or {})


async def answer_so_far(journal: Journal, stream_id: str, *, within_seconds: float = 0) -> Answer:
    """The answer as far as it is now, or its end, if that comes ``within_seconds``. Raises as above."""
    answer, last = Answer(), (await journal.state(stream_id)).last
    loop = asyncio.get_running_loop()
    until = loop.time() + within_seconds
    with suppress(TimeoutError):
        async with asyncio.timeout(None) as clock, aclosing(journal.read(stream_id)) as batches:
            async for batch in batches:
                answer.add(batch.events)
                if batch.last >= last:  # all that was there
                    if not within_seconds:
                        break
                    clock.reschedule(until)
    return answer


def _response(
    request: Request, info: StreamInfo, answer: Answer, dialect: Dialect, headers: Mapping[str, str]
) -> Response:
    headers = {
        "Content-Type": "application/json",
        "Cache-Control": "no-store",
        **headers,
        dialect.request_id_header: request_id(request),
        "X-Stream-Id": info.stream_id,
    }
    return Response(dialect.answer(info, answer), headers=headers)
