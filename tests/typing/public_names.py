"""The public names as their users write them. mypy checks this file; nothing runs it.

Each ``assert_type`` says what a user gets. Each ``type: ignore`` says that a mistake is found: mypy complains of
one that is not needed.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, assert_type

from fastapi import APIRouter, Depends, FastAPI
from starlette.requests import HTTPConnection

from millstream import (
    ChatMessage,
    ChatRequest,
    ChunkResponse,
    LLMService,
    Meter,
    Millstream,
    Principal,
    Settings,
    __version__,
    create_app,
    get_api_key,
    get_llm_service,
    get_meter,
    require_api_key,
    require_principal,
)
from millstream.api_keys import Scope
from millstream.client import AsyncClient, Failure, Frame, ToolCallPiece, Unreachable
from millstream.errors import MillstreamError
from millstream.events import FinishReason, TextDelta
from millstream.ledger.reports import Total
from millstream.prompt import Prompt
from millstream.providers import Finish, Produced, Provider
from millstream.usage import Usage

assert_type(__version__, str)


# -- an application --------------------------------------------------------------------------------


def settings() -> Settings:
    read = Settings.load(port=0)
    assert_type(read, Settings)
    assert_type(read.port, int)
    assert_type(read.default_model, str | None)
    assert_type(read.resolved_database_url, str)
    Settings(prot=8000)  # type: ignore[call-arg]  # a misspelt setting
    return Settings(data_dir=Path("data"), default_model="m", stream_seconds=60, cors_origins=("*",))


def mounted() -> FastAPI:
    millstream = Millstream(settings(), providers={"echo": Echo()})
    assert_type(millstream.router, APIRouter)
    app = FastAPI(lifespan=millstream.lifespan)
    app.include_router(millstream.router)
    return app


def whole() -> FastAPI:
    return create_app(Millstream())


# -- dependencies ----------------------------------------------------------------------------------

router = APIRouter()
assert_type(require_api_key(), Callable[[HTTPConnection], Awaitable[Principal]])
assert_type(require_api_key(scopes=["usage", "admin"]), Callable[[HTTPConnection], Awaitable[Principal]])
assert_type(require_principal(), Callable[[HTTPConnection], Awaitable[Principal]])
require_api_key(scopes="chat")  # type: ignore[arg-type]  # a text is no list of scopes
require_api_key(scopes=["root"])  # type: ignore[list-item]  # there is no such scope


@router.get("/whoami")
async def whoami(key: Annotated[Principal, Depends(get_api_key)]) -> dict[str, object]:
    assert_type(key.id, str)
    assert_type(key.scopes, frozenset[Scope])
    assert_type(key.owner_id, str)
    assert_type(key.may(["chat"]), bool)
    return {"key": key.id}


@router.post("/summary")
async def summary(
    key: Annotated[Principal, Depends(require_api_key(scopes=["chat"]))],
    llm: Annotated[LLMService, Depends(get_llm_service)],
    meter: Annotated[Meter, Depends(get_meter)],
) -> str:
    message = ChatMessage(role="user", content="Why?")
    answer = llm.stream_chat([message, {"role": "user", "content": "Go on."}], "m", max_tokens=60)
    assert_type(answer, AsyncGenerator[ChunkResponse, None])
    text, tokens = "", 0
    async with aclosing(answer) as chunks:
        async for chunk in chunks:
            assert_type(chunk, ChunkResponse)
            assert_type(chunk.content, str)
            assert_type(chunk.finish_reason, FinishReason | None)
            assert_type(chunk.token_count, int | None)
            text += chunk.content
            tokens = chunk.token_count or tokens
    assert_type(await meter.record(key.id, tokens), str)
    usage = Usage(9, tokens, "counted")
    await meter.record(key.id, usage, model="m", user="u", cost_usd=Decimal("0.1"), record_id="r")
    await meter.record(key.id, "7")  # type: ignore[arg-type]  # a count is a number
    for total in await meter.totals("model", key_id=key.id):
        assert_type(total, Total)
        assert_type(total.completion_tokens, int)
    return text


# -- requests, and a provider of one's own ---------------------------------------------------------


def request() -> ChatRequest:
    asked = ChatRequest(messages=[ChatMessage(role="user", content="Hello")], max_tokens=5)
    assert_type(asked.messages, list[ChatMessage])
    assert_type(asked.messages[0].text, str)
    assert_type(asked.max_tokens, int | None)
    ChatRequest(messages=[], max_token=5)  # type: ignore[call-arg]  # a misspelt field
    return ChatRequest.model_validate({"messages": [{"role": "user", "content": "Hello"}]})


class Echo:
    """Says the question again. It inherits nothing."""

    async def stream(self, prompt: Prompt, model: str) -> AsyncGenerator[Sequence[Produced]]:
        yield [TextDelta(prompt.messages[-1].text)]
        yield [Finish("stop", Usage(1, 1, "provider_final"))]

    async def models(self) -> list[str]:
        return ["echo"]

    async def close(self) -> None:
        pass


class Unclosed:
    """Lacks ``close``."""

    async def stream(self, prompt: Prompt, model: str) -> AsyncGenerator[list[Finish]]:
        yield [Finish("stop", None)]

    async def models(self) -> list[str]:
        return []


def provided() -> Provider:
    Millstream(providers={"unclosed": Unclosed()})  # type: ignore[dict-item]  # it cannot be closed
    return Echo()


# -- the client ------------------------------------------------------------------------------------


async def talk() -> str:
    text = ""
    messages = [{"role": "user", "content": "Hello"}]
    try:
        async with AsyncClient("http://localhost:8000", "ms_live_x", attempts=3) as client:
            assert_type(client, AsyncClient)
            async with aclosing(client.stream(messages, model="m", max_tokens=5)) as frames:
                async for frame in frames:
                    assert_type(frame, Frame)
                    assert_type(frame.delta, str)
                    assert_type(frame.tool_call, ToolCallPiece | None)
                    assert_type(frame.usage, dict[str, Any] | None)
                    assert_type(frame.error, Failure | None)
                    assert_type(frame.is_last, bool)
                    text += frame.delta
            async for frame in client.stream(stream_id="str_x", after="1-3"):
                assert_type(frame.position, str)
            assert_type(await client.receipt("str_x"), dict[str, Any])
            assert_type(await client.cancel("str_x"), dict[str, Any])
    except Unreachable as error:
        assert_type(error.retryable, bool)
    except MillstreamError as error:
        assert_type(error.code, str)
        assert_type(error.status, int)
        assert_type(error.retry_after_seconds, int | None)
    return text
