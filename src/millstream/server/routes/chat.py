"""Chat: starting a stream and following it, or having it whole (spec/protocol.md §3)."""

import re
from collections.abc import Mapping
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from starlette.requests import ClientDisconnect

from millstream.auth import Principal
from millstream.dialects import Ask, Dialect
from millstream.dialects.native import NATIVE
from millstream.errors import Draining
from millstream.messages import ChatRequest
from millstream.server import openapi
from millstream.server.answers import OneLineJSON
from millstream.server.dependencies import get_runtime, require_principal
from millstream.server.errors import Route
from millstream.server.requests import betas, idempotency_key, last_event_id, position, read_body
from millstream.server.streaming.answer import AnswerResponse, unfinished_answer
from millstream.server.streaming.client_watch import ClientWatch
from millstream.server.streaming.event_stream import EventStreamResponse
from millstream.streams.audience import ReadableStream
from millstream.streams.producer import Producer

router = APIRouter(
    route_class=Route, default_response_class=OneLineJSON, responses=openapi.CHAT, tags=openapi.TAGS
)

authenticate = require_principal(scopes=["chat"])
Caller = Annotated[Principal, Depends(authenticate)]
BODY = openapi.body(ChatRequest)

_PLAIN = re.compile(r"[\w.-]{1,64}", re.ASCII)
_MAX_IGNORED = 32


@router.post(
    "/v1/chat/stream",
    response_class=Response,
    openapi_extra=BODY,
    responses=openapi.STREAMED,
)
async def stream(request: Request, caller: Caller) -> Response:
    """Starts a stream and follows it. Repeated with its `Idempotency-Key` and a `Last-Event-ID`, goes on
    after that position."""
    runtime = get_runtime(request)
    seen = position(last_event_id(request))
    client, source, _ = await start(request, caller, NATIVE, resumes=seen is not None)
    headers = limit_headers(source, NATIVE)
    return EventStreamResponse(
        request,
        client,
        source,
        runtime.journal,
        NATIVE,
        followed=seen is not None,
        after=seen,
        headers=headers,
    )


@router.post(
    "/v1/chat",
    response_class=Response,
    openapi_extra=BODY,
    responses=openapi.answer("The whole answer", openapi.ANSWER),
)
async def answer(request: Request, caller: Caller) -> Response:
    """The whole answer at once, as JSON."""
    client, source, _ = await start(request, caller, NATIVE)
    headers = limit_headers(source, NATIVE)
    return AnswerResponse(request, client, source, get_runtime(request).journal, NATIVE, headers)


async def speak(request: Request, caller: Principal, dialect: Dialect) -> Response:
    """Starts what the body asks for and answers in the body's format, streaming or whole, or in the
    background with what is there so far. Repeated with its ``Idempotency-Key`` and a ``Last-Event-ID``, goes
    on after that position.
    """
    seen = position(last_event_id(request))
    client, source, ask = await start(request, caller, dialect, resumes=seen is not None)
    journal, reply = get_runtime(request).journal, ask.reply or dialect
    left_out = source.left_out if isinstance(source, Producer) else ()
    ignored = list(filter(_PLAIN.fullmatch, (*ask.ignored, *left_out)))
    headers = limit_headers(source, reply)
    if ignored:
        headers = {**headers, "Millstream-Ignored": ", ".join(ignored[:_MAX_IGNORED])}
    if ask.whole and ask.background:
        client.stop()
        return await unfinished_answer(request, source.info, journal, reply, headers)
    if ask.whole:
        return AnswerResponse(request, client, source, journal, reply, headers)
    # One in the background is there before its provider has said anything, and fails in a frame.
    followed = seen is not None or ask.background
    return EventStreamResponse(
        request, client, source, journal, reply, followed=followed, after=seen, headers=headers
    )


def limit_headers(source: ReadableStream, dialect: Dialect) -> Mapping[str, str]:
    """How the limits of a stream stand that was started here."""
    standings = source.standings if isinstance(source, Producer) else ()
    return dialect.limit_headers(standings) if standings else {}


async def start(
    request: Request, caller: Principal, dialect: Dialect, *, resumes: bool = False
) -> tuple[ClientWatch, ReadableStream, Ask]:
    """Starts what the body asks for in ``dialect``, or finds it where it ``resumes``. Raises
    ``ClientDisconnect`` where the client leaves first; the stream's policy then applies.
    """
    runtime = get_runtime(request)
    with runtime.streams.arriving():
        ask = await read_body(request, dialect.parse, runtime.settings.max_body_bytes)
    if dialect.beta_header and (names := betas(request, dialect.beta_header)):
        ask = ask.trying(dialect.name, names)
    key = idempotency_key(request)
    client = ClientWatch.of(request)
    try:
        async with client:
            if resumes:
                return client, await runtime.streams.started(caller, ask, key), ask
            return client, await runtime.streams.start(caller, ask, key, unread=ask.background), ask
        raise Draining() if client.sent_away else ClientDisconnect()
    except BaseException:
        client.stop()
        raise
