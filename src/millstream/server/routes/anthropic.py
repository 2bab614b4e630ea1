"""Messages, for Anthropic's SDKs and all that follow them (spec/protocol.md §6)."""

import msgspec
from fastapi import APIRouter, Request, Response

from millstream import tokens
from millstream.dialects.anthropic import ANTHROPIC
from millstream.prompt import Message, Text
from millstream.server import openapi
from millstream.server.answers import OneLineJSON
from millstream.server.dependencies import get_runtime
from millstream.server.errors import route_in
from millstream.server.requests import read_body
from millstream.server.routes.chat import Caller, speak

router = APIRouter(
    route_class=route_in(ANTHROPIC),
    default_response_class=OneLineJSON,
    responses=openapi.FOREIGN,
    tags=openapi.TAGS,
)


@router.post(
    "/v1/messages",
    response_class=Response,
    openapi_extra=openapi.ANY_BODY,
    responses=openapi.STREAMED_OR_WHOLE,
)
async def messages(request: Request, caller: Caller) -> Response:
    """A body of Anthropic's Messages, answered as that API does, streaming or not."""
    return await speak(request, caller, ANTHROPIC)


@router.post(
    "/v1/messages/count_tokens",
    openapi_extra=openapi.ANY_BODY,
    responses=openapi.answer("An estimate", openapi.COUNTED),
)
async def count_tokens(request: Request, caller: Caller) -> dict[str, int]:
    """How many tokens a body of Messages has, as our tokenizer counts its words and tools: an estimate, since
    each model has a tokenizer of its own. Images and documents count nothing. No model is asked."""
    runtime = get_runtime(request)
    runtime.streams.admit()
    prompt = await read_body(request, ANTHROPIC.parse_prompt, runtime.settings.max_body_bytes)
    model = await runtime.llm_service.resolve(prompt.model)
    tokenizer = await tokens.load(model.deployments[0].encoding)
    tools = tuple(Text(msgspec.json.encode(tool).decode()) for tool in prompt.tools)
    counted = [*prompt.messages, *([Message("system", tools)] if tools else ())]
    return {"input_tokens": await tokens.count_prompt(tokenizer, counted)}
