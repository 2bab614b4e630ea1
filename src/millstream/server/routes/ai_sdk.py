"""Chats of the Vercel AI SDK, for ``useChat`` and what is built on it (spec/protocol.md §6)."""

from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response

from millstream.auth import Principal
from millstream.dialects.ai_sdk import AI_SDK
from millstream.errors import NotFound, Overloaded, StreamGone
from millstream.server import openapi
from millstream.server.dependencies import get_runtime
from millstream.server.errors import route_in
from millstream.server.routes.chat import Caller, speak
from millstream.server.streaming.client_watch import ClientWatch
from millstream.server.streaming.event_stream import EventStreamResponse, reconnect_response

router = APIRouter(route_class=route_in(AI_SDK), responses=openapi.FOREIGN, tags=openapi.TAGS)

ChatId = Annotated[str, Path(max_length=128, description="of the page's chat, or a stream's own")]


@router.post(
    "/api/chat",
    response_class=Response,
    openapi_extra=openapi.ANY_BODY,
    responses=openapi.STREAMED,
)
async def chat(request: Request, caller: Caller) -> Response:
    """The messages of a page, answered as a UI message stream."""
    return await speak(request, caller, AI_SDK)


@router.get(
    "/api/chat/{chat_id}/stream",
    response_class=Response,
    responses=openapi.STREAMED | {204: {"description": "Nothing runs in this chat"}},
)
async def resume(request: Request, chat_id: ChatId, caller: Caller) -> Response:
    """The answer that is being given in this chat, from its start; 204 where none is."""
    runtime = get_runtime(request)
    stream_id = await _running(request, caller, chat_id)
    if stream_id is None:
        return Response(status_code=204)
    try:
        found = await runtime.streams.follow(caller, stream_id)
    except Overloaded:
        return reconnect_response(AI_SDK)
    except (NotFound, StreamGone):
        return Response(status_code=204)
    if found.state.closed:
        return Response(status_code=204)
    client = ClientWatch.of(request)
    return EventStreamResponse(request, client, found.source, runtime.journal, AI_SDK, followed=True)


@router.post("/api/chat/{chat_id}/stop", responses=openapi.answer("What was stopped", openapi.STOPPED))
async def stop(request: Request, chat_id: ChatId, caller: Caller) -> dict[str, Any]:
    """Stops the answer that is being given in this chat. As often as you like."""
    stream_id = await _running(request, caller, chat_id)
    if stream_id is not None:
        with suppress(NotFound):
            receipt = await get_runtime(request).streams.cancel(caller, stream_id)
            return {"stream_id": stream_id, "status": receipt.status}
    return {"stream_id": None, "status": None}


async def _running(request: Request, caller: Principal, chat_id: str) -> str | None:
    """The newest stream of a chat, which may have been started in another format and be named itself."""
    streams = get_runtime(request).streams
    if not chat_id.isprintable():  # which no chat of ours can be called
        return None
    return await streams.latest(caller, chat_id) or (chat_id if chat_id.startswith("str_") else None)
