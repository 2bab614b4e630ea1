"""Chat: starting a stream and following it (spec/protocol.md §3)."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from millstream.auth import Principal
from millstream.dialects.native import NativeDialect
from millstream.generation import Generation
from millstream.messages import ChatRequest
from millstream.server.dependencies import get_millstream, require_api_key
from millstream.server.requests import Route, read_body
from millstream.server.streaming import AnswerResponse, EventStreamResponse

router = APIRouter(route_class=Route)

_NATIVE = NativeDialect()
_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": ChatRequest.model_json_schema()}},
    }
}

Caller = Annotated[Principal, Depends(require_api_key(scopes=["chat"]))]


@router.post(
    "/v1/chat/stream",
    response_class=Response,
    openapi_extra=_BODY,
    responses={
        200: {
            "description": "The answer as Server-Sent Events, ended by `[DONE]` or an error frame.",
            "content": {"text/event-stream": {"itemSchema": {"type": "object"}}},
        }
    },
)
async def stream(request: Request, caller: Caller) -> Response:
    """Starts a stream and follows it."""
    return await _respond(request, caller, EventStreamResponse)


@router.post("/v1/chat", response_class=Response, openapi_extra=_BODY)
async def answer(request: Request, caller: Caller) -> Response:
    """The whole answer at once, as JSON."""
    return await _respond(request, caller, AnswerResponse)


async def _respond(
    request: Request,
    caller: Principal,
    response: type[EventStreamResponse] | type[AnswerResponse],
) -> Response:
    millstream = get_millstream(request)
    chat = await read_body(request, ChatRequest, millstream.settings.max_body_bytes)

    async def start() -> Generation:
        return await millstream.generations.start(caller, chat)

    return response(request, start, millstream.event_log, _NATIVE)


@router.get("/v1/models")
async def models(request: Request, caller: Caller) -> dict[str, Any]:
    """The models that are ready, the default first."""
    found = get_millstream(request).llm_service.models
    return {
        "object": "list",
        "data": [
            {"id": name, "object": "model", "created": 0, "owned_by": provider}
            for name, provider in found.items()
        ],
    }
