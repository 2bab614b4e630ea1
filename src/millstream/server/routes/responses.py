"""OpenAI's Responses, for its SDKs and all that follow them (spec/protocol.md §6).

An answer can be read again for as long as its stream can be resumed, whether it was to be stored or not.
"""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from millstream.auth import Principal
from millstream.dialects.responses import RESPONSES, ResponsesDialect
from millstream.dialects.responses.ids import stream_id
from millstream.errors import NotFound, StreamGone
from millstream.server import openapi
from millstream.server.dependencies import get_runtime
from millstream.server.errors import route_in
from millstream.server.routes.chat import Caller, speak
from millstream.server.streaming.answer import answer_so_far, unfinished_answer
from millstream.server.streaming.client_watch import ClientWatch
from millstream.server.streaming.event_stream import EventStreamResponse
from millstream.streams.registry import SETTLING_SECONDS, FoundStream

router = APIRouter(route_class=route_in(RESPONSES), responses=openapi.FOREIGN, tags=openapi.TAGS)

_MAX_SHOWN = 80

ResponseId = Annotated[str, Path(max_length=128, description="as in the response: `resp_…`")]


@router.post(
    "/v1/responses",
    response_class=Response,
    openapi_extra=openapi.ANY_BODY,
    responses=openapi.STREAMED_OR_WHOLE,
)
async def create_response(request: Request, caller: Caller) -> Response:
    """A body of OpenAI's Responses, answered as that API does: streaming, whole, or in the background."""
    return await speak(request, caller, RESPONSES)


@router.get("/v1/responses/{response_id}", response_class=Response, responses=openapi.STREAMED_OR_WHOLE)
async def retrieve_response(
    request: Request,
    response_id: ResponseId,
    caller: Caller,
    *,
    stream: Annotated[bool, Query(description="its frames, and then those that come")] = False,
    starting_after: Annotated[int, Query(ge=0, description="the last `sequence_number` seen")] | None = None,
) -> Response:
    """The response as far as it is; 404 where it is no longer kept."""
    found = await _find(request, caller, response_id)
    journal = get_runtime(request).journal
    if not stream:
        return await unfinished_answer(request, found.state.info, journal, RESPONSES)
    dialect = RESPONSES
    if starting_after is not None:
        dialect = ResponsesDialect(after=starting_after)
        info = found.state.info
        dialect.check_position(info, await answer_so_far(journal, info.stream_id))
    client = ClientWatch.of(request)
    return EventStreamResponse(request, client, found.source, journal, dialect, followed=True)


@router.post(
    "/v1/responses/{response_id}/cancel",
    response_class=Response,
    responses=openapi.answer("The response, stopped", {"type": "object"}),
)
async def cancel_response(request: Request, response_id: ResponseId, caller: Caller) -> Response:
    """Stops a response, in the background or not, whichever worker runs it. As often as you like."""
    runtime = get_runtime(request)
    found = await _find(request, caller, response_id)
    info = found.state.info
    await runtime.streams.cancel(caller, info.stream_id)
    return await unfinished_answer(request, info, runtime.journal, RESPONSES, within_seconds=SETTLING_SECONDS)


async def _find(request: Request, caller: Principal, response_id: str) -> FoundStream:
    """Raises ``NotFound`` also where the response is no longer kept: these clients know no 410."""
    try:
        if (identity := stream_id(response_id)) is not None:
            return await get_runtime(request).streams.follow(caller, identity)
    except (NotFound, StreamGone):
        pass
    raise NotFound(f"there is no response '{response_id[:_MAX_SHOWN]}', or it is no longer kept")
