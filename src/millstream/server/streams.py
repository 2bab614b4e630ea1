"""Streams apart from the request that started them (spec/protocol.md §3 and §5)."""

import logging
import re
import time
from typing import Annotated, Any, Literal, get_args
from urllib.parse import quote

import msgspec
from fastapi import APIRouter, Path, Query, Request, Response

from millstream.auth import Principal
from millstream.errors import BadPosition, NotFound, Overloaded
from millstream.events import Position
from millstream.generations import Source
from millstream.messages import ChatRequest, Grace
from millstream.server.chat import BODY, NATIVE, STREAMED, Caller
from millstream.server.dependencies import get_millstream, get_principal
from millstream.server.requests import Route, idempotency_key, read_body
from millstream.server.streaming import STREAM_HEADERS, EventStreamResponse, come_back
from millstream.tickets import FIRST_USE_SECONDS, Purpose

router = APIRouter(route_class=Route)

_STREAM_ID = re.compile(r"[\w-]{1,64}", re.ASCII)
_GRACE = Grace(grace_seconds=30)
_TICKET = re.compile(r"(?<=[?&]ticket=)[^&\s]+")

StreamId = Annotated[str, Path(description="as in `X-Stream-Id` and the first frame")]
Ticket = Annotated[str | None, Query(description="instead of a key, for this one stream")]


@router.post("/v1/streams", status_code=201, openapi_extra=BODY)
async def start(request: Request, response: Response, caller: Caller) -> dict[str, Any]:
    """Starts a stream without following it. Its URLs carry tickets and need no headers: the first is for
    `EventSource`, the second for `sendBeacon`."""
    millstream = get_millstream(request)
    chat = await read_body(request, ChatRequest, millstream.settings.max_body_bytes)
    if "on_disconnect" not in chat.model_fields_set:
        chat = chat.model_copy(update={"on_disconnect": _GRACE})
    source = await millstream.generations.start(caller, chat, idempotency_key(request), unread=True)
    info, signer = source.info, await millstream.keys.signer()
    seconds = millstream.settings.stream_seconds + millstream.settings.resume_window_seconds
    url = f"{quote(request.url.path.rpartition('/v1/')[0])}/v1/streams/{info.stream_id}"
    follow, cancel = (
        signer.ticket(info.stream_id, info.owner_id, purpose, seconds) for purpose in get_args(Purpose)
    )
    response.headers["Location"] = url
    return {
        "stream_id": info.stream_id,
        "events_url": f"{url}/events?ticket={follow}",
        "cancel_url": f"{url}/cancel?ticket={cancel}",
        "expires_at": int(time.time()) + FIRST_USE_SECONDS,
    }


@router.get("/v1/streams/{stream_id}/events", response_class=Response, responses=STREAMED)
async def follow(
    request: Request,
    stream_id: StreamId,
    after: Annotated[str, Query(description="a position; the header `Last-Event-ID` goes first")] = "",
    dialect: Annotated[
        Literal["millstream"], Query(description="the wire format of the frames")
    ] = "millstream",
    ticket: Ticket = None,
) -> Response:
    """What follows a position, then live; 204 where nothing is left."""
    millstream = get_millstream(request)
    caller = await _caller(request, stream_id, ticket, "follow")
    position = _position(request.headers.get("last-event-id") or after)
    if millstream.generations.draining and not millstream.generations.runs(stream_id):
        return _come_back()
    try:
        found = await millstream.generations.follow(caller, stream_id)
    except Overloaded:  # a browser's EventSource gives up for ever on a 503
        return _come_back()
    if found.state.closed and position is not None and position >= found.state.last:
        if position > found.state.last:
            raise BadPosition(f"the stream ends at {found.state.last}")
        return Response(status_code=204)

    async def source() -> Source:
        return found.source

    return EventStreamResponse(request, source, millstream.event_log, NATIVE, followed=True, after=position)


@router.get("/v1/streams/{stream_id}")
async def receipt(request: Request, stream_id: StreamId) -> dict[str, Any]:
    """The stream's receipt. A stream of another key answers like one that does not exist."""
    caller = await _caller(request, stream_id, None, "follow")
    return _shown(await get_millstream(request).generations.receipt(caller, stream_id))


@router.post("/v1/streams/{stream_id}/cancel")
async def cancel(request: Request, stream_id: StreamId, ticket: Ticket = None) -> dict[str, Any]:
    """Stops the stream, whichever worker runs it. As often as you like. Answers the receipt so far."""
    caller = await _caller(request, stream_id, ticket, "cancel")
    return _shown(await get_millstream(request).generations.cancel(caller, stream_id))


async def _caller(request: Request, stream_id: str, ticket: str | None, purpose: Purpose) -> Principal:
    """Whoever asks about a stream: the bearer of a ticket for it, or somebody with a key or a token."""
    if not _STREAM_ID.fullmatch(stream_id):
        raise NotFound(f"there is no stream '{stream_id[:64]}'")
    if ticket is None:
        return await get_principal(request)
    keys = get_millstream(request).keys
    resumes = bool(request.headers.get("last-event-id"))
    owner_id = (await keys.signer()).check_ticket(ticket, stream_id, purpose, resumes=resumes)
    await keys.check(owner_id.partition("/")[0])
    return Principal(owner_id, frozenset())


def _position(text: str) -> Position | None:
    if not text:
        return None
    try:
        return Position.parse(text)
    except ValueError:
        raise BadPosition("a position is <epoch>-<seq>, such as 1-42") from None


def _come_back() -> Response:
    headers = {**NATIVE.headers, **STREAM_HEADERS}
    return Response(come_back(NATIVE), headers=headers)


def _shown(receipt: Any) -> dict[str, Any]:
    shown: dict[str, Any] = msgspec.to_builtins(receipt)
    del shown["owner_id"]
    return shown


class HideTickets(logging.Filter):
    """For the access log: tickets are credentials, though short-lived ones."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(
                _TICKET.sub("…", argument) if isinstance(argument, str) else argument
                for argument in record.args
            )
        return True
