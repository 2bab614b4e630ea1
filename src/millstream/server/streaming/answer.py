"""A stream's whole answer as one JSON object: 200 with the answer, or the HTTP status of what ended it."""

from collections.abc import Mapping
from contextlib import aclosing

from fastapi import Request, Response
from starlette.types import Receive, Scope, Send

from millstream.answer import Answer
from millstream.dialects import Dialect
from millstream.errors import Draining, MillstreamError
from millstream.events import StreamFailed
from millstream.journals import Journal
from millstream.log_ids import STREAM_ID
from millstream.server.errors import error_response, fault_of, request_id
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
            if client.sent_away:
                response = self._error_response(Draining("the server is shutting down; try again"))
                await response(scope, receive, send)
        finally:
            self._client.stop()

    async def _whole(self) -> Response:
        info, answer = self._source.info, Answer()
        with self._source.reading(self._client.send_away):
            async with aclosing(self._journal.read(info.stream_id)) as batches:
                async for batch in batches:
                    answer.add(batch.events)
        if isinstance(answer.terminal, StreamFailed):
            raise answer.terminal.error
        headers = {
            "Content-Type": "application/json",
            "Cache-Control": "no-store",
            **self._more_headers,
            self._dialect.request_id_header: request_id(self._request),
            "X-Stream-Id": info.stream_id,
        }
        return Response(self._dialect.answer(info, answer), headers=headers)

    def _error_response(self, error: MillstreamError) -> Response:
        return error_response(error, self._request, self._dialect, self._source.info.stream_id)
