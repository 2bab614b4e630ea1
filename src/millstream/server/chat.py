"""Chat: starting a stream and following it (spec/protocol.md §3)."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from millstream.auth import Principal
from millstream.dialects.native import NativeDialect
from millstream.generations import Source
from millstream.messages import ChatRequest
from millstream.server.dependencies import get_millstream, require_principal
from millstream.server.requests import Handler, Route, idempotency_key, read_body, with_errors
from millstream.server.streaming import AnswerResponse, EventStreamResponse

router = APIRouter(route_class=Route)

NATIVE = NativeDialect()
BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": ChatRequest.model_json_schema()}},
    }
}
STREAMED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer as Server-Sent Events, ended by `[DONE]` or an error frame.",
        "content": {"text/event-stream": {"itemSchema": {"type": "object"}}},
    }
}

_chat_caller = require_principal(scopes=["chat"])
Caller = Annotated[Principal, Depends(_chat_caller)]


@router.post(
    "/v1/chat/stream",
    response_class=Response,
    openapi_extra=BODY,
    responses=STREAMED,
)
async def stream(request: Request, caller: Caller) -> Response:
    """Starts a stream and follows it."""
    return await _respond(request, caller, EventStreamResponse)


@router.post("/v1/chat", response_class=Response, openapi_extra=BODY)
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
    claim = idempotency_key(request)

    async def start() -> Source:
        return await millstream.generations.start(caller, chat, claim)

    return response(request, start, millstream.event_log, NATIVE)


class DirectRoutes:
    """The same two routes as a middleware, bare ASGI, for the application that is all ours: what FastAPI
    keeps around a response for as long as it streams is a quarter of an open stream's memory
    (docs/decisions/0005-direct-routes.md).
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._routes = {
            "/v1/chat/stream": _direct(EventStreamResponse),
            "/v1/chat": _direct(AnswerResponse),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        handle = self._routes.get(scope.get("path", ""))
        if handle is None or scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        response = await handle(Request(scope, receive))
        await response(scope, receive, send)


def _direct(response: type[EventStreamResponse] | type[AnswerResponse]) -> Handler:
    async def handle(request: Request) -> Response:
        return await _respond(request, await _chat_caller(request), response)

    return with_errors(handle)


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
