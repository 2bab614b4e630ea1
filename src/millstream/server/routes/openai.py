"""Chat Completions, for OpenAI's SDKs and all that follow them (spec/protocol.md §6)."""

from fastapi import APIRouter, Request, Response

from millstream.dialects.openai import OPENAI
from millstream.server import openapi
from millstream.server.errors import route_in
from millstream.server.routes.chat import Caller, speak

router = APIRouter(route_class=route_in(OPENAI), responses=openapi.FOREIGN, tags=openapi.TAGS)


@router.post(
    "/v1/chat/completions",
    response_class=Response,
    openapi_extra=openapi.ANY_BODY,
    responses=openapi.STREAMED_OR_WHOLE,
)
async def chat_completions(request: Request, caller: Caller) -> Response:
    """A body of OpenAI's Chat Completions, answered as that API does, streaming or not."""
    return await speak(request, caller, OPENAI)
