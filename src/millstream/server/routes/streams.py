"""Streams apart from the request that started them (spec/protocol.md §3 and §5)."""

import re
import time
from typing import Annotated, Any, get_args

from fastapi import APIRouter, Path, Query, Request, Response

from millstream.auth import Principal
from millstream.dialects.native import NATIVE, ask_of
from millstream.dialects.table import DIALECTS, DialectName
from millstream.errors import BadPosition, NotFound, Overloaded
from millstream.ledger.receipts import MOST, Wanted
from millstream.ledger.rows import Receipt, Status
from millstream.messages import ChatRequest, Grace
from millstream.server import openapi
from millstream.server.answers import OneLineJSON
from millstream.server.dependencies import get_runtime, identify
from millstream.server.errors import Route
from millstream.server.requests import Moment, Text, idempotency_key, last_event_id, position, read_model
from millstream.server.root_path import stream_url
from millstream.server.routes.chat import BODY, Caller, limit_headers
from millstream.server.streaming.client_watch import ClientWatch
from millstream.server.streaming.event_stream import EventStreamResponse, reconnect_response
from millstream.tickets import FIRST_USE_SECONDS, Purpose

router = APIRouter(
    route_class=Route,
    default_response_class=OneLineJSON,
    responses=openapi.USUAL,
    tags=openapi.TAGS,
    dependencies=[openapi.KEY],
)
_SHOWN = openapi.of(Receipt, without="owner_id")
_RECEIPT = openapi.errors(404, 422) | openapi.answer("The receipt", _SHOWN)

_STREAM_ID = re.compile(r"[\w-]{1,64}", re.ASCII)
_GRACE = Grace(grace_seconds=30)

StreamId = Annotated[str, Path(description="as in `X-Stream-Id` and the first frame")]
Ticket = Annotated[str | None, Query(description="instead of a key, for this one stream")]


@router.post(
    "/v1/streams",
    status_code=201,
    openapi_extra=BODY,
    responses=openapi.CHAT | openapi.answer("The stream's URLs", openapi.STARTED, status=201),
)
async def start(request: Request, response: Response, caller: Caller) -> dict[str, Any]:
    """Starts a stream without following it. Its URLs carry tickets and need no headers: the first is for
    `EventSource`, the second for `sendBeacon`."""
    runtime = get_runtime(request)
    with runtime.streams.arriving():
        chat = await read_model(request, ChatRequest, runtime.settings.max_body_bytes)
    if "on_disconnect" not in chat.model_fields_set:
        chat = chat.model_copy(update={"on_disconnect": _GRACE})
    source = await runtime.streams.start(caller, ask_of(chat), idempotency_key(request), unread=True)
    info, signer = source.info, await runtime.keys.signer()
    seconds = runtime.settings.stream_seconds + runtime.settings.resume_window_seconds
    url = stream_url(request, info.stream_id)
    follow, cancel = (
        signer.ticket(info.stream_id, info.owner_id, purpose, seconds) for purpose in get_args(Purpose)
    )
    response.headers["Location"] = url
    response.headers.update(limit_headers(source, NATIVE))
    return {
        "stream_id": info.stream_id,
        "events_url": f"{url}/events?ticket={follow}",
        "cancel_url": f"{url}/cancel?ticket={cancel}",
        "expires_at": int(time.time()) + FIRST_USE_SECONDS,
    }


@router.get(
    "/v1/streams",
    responses=openapi.errors(422)
    | openapi.answer("The receipts", openapi.listed(_SHOWN, next_cursor={"type": ["string", "null"]})),
)
async def receipts(
    request: Request,
    status: Status | None = None,
    key: Annotated[Text | None, Query(description="the id of a key")] = None,
    model: Annotated[Text | None, Query()] = None,
    user: Annotated[Text | None, Query(description="an end user")] = None,
    since: Annotated[Moment | None, Query(description="Unix seconds, inclusive")] = None,
    until: Annotated[Moment | None, Query(description="Unix seconds, exclusive")] = None,
    limit: Annotated[int, Query(ge=1, le=MOST)] = 50,
    cursor: Annotated[str | None, Query(description="`next_cursor` of the page before")] = None,
) -> dict[str, Any]:
    """Receipts, the newest first: of all keys with the scope `usage` or `admin`, else of the caller's own."""
    caller = await identify(request)
    owner_id = None if _operates(caller) else caller.owner_id
    wanted = Wanted(owner_id, status, key, model, user, since, until)
    page = await get_runtime(request).ledger.receipts(wanted, cursor, limit)
    return {"data": [_shown(caller, one) for one in page.data], "next_cursor": page.next_cursor}


@router.get(
    "/v1/streams/{stream_id}/events",
    response_class=Response,
    responses=openapi.STREAMED
    | {204: {"description": "Nothing is left to follow"}}
    | openapi.errors(400, 404, 410, 422, 429),
)
async def follow(
    request: Request,
    stream_id: StreamId,
    after: Annotated[str, Query(description="a position")] = "",
    last_id: Annotated[
        str,
        Query(
            alias="lastEventId",
            description="the same, from a polyfill of EventSource; goes before `after`. The header "
            "`Last-Event-ID` goes before both",
        ),
    ] = "",
    dialect: Annotated[DialectName, Query(description="the wire format of the frames")] = "millstream",
    ticket: Ticket = None,
) -> Response:
    """What follows a position, then live; 204 where nothing is left."""
    runtime = get_runtime(request)
    frames = DIALECTS[dialect]
    last_id = last_event_id(request)
    caller = await _caller(request, stream_id, ticket, "follow", proof=last_id.partition(".")[2])
    seen = position(last_id)
    if runtime.streams.draining and stream_id not in runtime.streams:
        return reconnect_response(frames)
    try:
        found = await runtime.streams.follow(caller, stream_id)
    except Overloaded:  # a browser's EventSource gives up for ever on a 503
        return reconnect_response(frames)
    if found.state.closed and seen is not None and seen >= found.state.last:
        if seen > found.state.last:
            raise BadPosition(f"the stream ends at {found.state.last}")
        return Response(status_code=204)

    proof = "" if ticket is None else (await runtime.keys.signer()).proof(ticket)
    client = ClientWatch.of(request)
    return EventStreamResponse(
        request, client, found.source, runtime.journal, frames, followed=True, after=seen, proof=proof
    )


@router.get("/v1/streams/{stream_id}", responses=_RECEIPT)
async def receipt(request: Request, stream_id: StreamId) -> dict[str, Any]:
    """The stream's receipt. A stream of another key answers like one that does not exist."""
    caller = await _caller(request, stream_id, None, "follow")
    return _shown(caller, await get_runtime(request).streams.receipt(caller, stream_id))


@router.post("/v1/streams/{stream_id}/cancel", responses=_RECEIPT)
async def cancel(request: Request, stream_id: StreamId, ticket: Ticket = None) -> dict[str, Any]:
    """Stops the stream, whichever worker runs it. As often as you like. Answers the receipt so far."""
    caller = await _caller(request, stream_id, ticket, "cancel")
    return _shown(caller, await get_runtime(request).streams.cancel(caller, stream_id))


async def _caller(
    request: Request, stream_id: str, ticket: str | None, purpose: Purpose, *, proof: str = ""
) -> Principal:
    """Whoever asks about a stream: the bearer of a ticket for it, or somebody with a key or a token."""
    if not _STREAM_ID.fullmatch(stream_id):
        raise NotFound(f"there is no stream '{stream_id[:64]}'")
    if ticket is None:
        return await identify(request)
    keys = get_runtime(request).keys
    owner_id = (await keys.signer()).check_ticket(ticket, stream_id, purpose, proof=proof)
    await keys.check(owner_id.partition("/")[0])
    return Principal(owner_id, frozenset())


def _operates(caller: Principal) -> bool:
    return caller.may(["usage"]) or caller.may(["admin"])


def _shown(caller: Principal, receipt: Receipt) -> dict[str, Any]:
    return (receipt if _operates(caller) else receipt.for_customer()).shown()
