"""The rules of ``Provider``, run against every implementation."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import Any, TypeAlias

import pytest

import gemini_server
from gemini_server import counted, said, text
from millstream.errors import ProviderError, UpstreamError
from millstream.events import TextDelta
from millstream.prompt import Message, Prompt, Text, Tool
from millstream.providers import Finish, Provider
from millstream.providers.anthropic import AnthropicProvider
from millstream.providers.chaos import ChaosProvider
from millstream.providers.extra import merged
from millstream.providers.gemini import GeminiProvider
from millstream.providers.local import LocalProvider, weights
from millstream.providers.openai import OpenAIProvider
from millstream.providers.responses import ResponsesProvider
from millstream.providers.scripted import Script, ScriptedProvider
from millstream.providers.upstream import Upstream
from millstream.usage import Usage
from oracle import Request, oracle

PROMPT = Prompt((Message("user", (Text("Count to three."),)),), max_tokens=12, temperature=0)


# The names of its models: one that answers, one that breaks and one that is slow. A model of ours cannot be
# told to break.
Models: TypeAlias = tuple[str, str | None, str]
Case: TypeAlias = tuple[Provider, str, str | None, str]


@asynccontextmanager
async def scripted() -> AsyncGenerator[tuple[Provider, Models]]:
    usage = Usage(3, 3, "provider_final")
    script: Script = [TextDelta("one "), 0.001, TextDelta("two "), TextDelta("three"), Finish("stop", usage)]
    yield (
        ScriptedProvider({"m": script, "broken": [TextDelta("one"), UpstreamError("broke")], "slow": [60.0]}),
        ("m", "broken", "slow"),
    )


@asynccontextmanager
async def openai() -> AsyncGenerator[tuple[Provider, Models]]:
    async def handler(request: Request) -> None:
        model = request.json["model"]
        await request.head()
        if model == "slow":
            await asyncio.Event().wait()
        for word in ("one ", "two ", "three"):
            await request.say(word)
        if model == "broken":
            request.cut()
        else:
            await request.finish(usage={"prompt_tokens": 3, "completion_tokens": 3})

    async with oracle(handler) as server:
        yield OpenAIProvider("p", server.base_url, Upstream("p", {})), ("m", "broken", "slow")


@asynccontextmanager
async def responses() -> AsyncGenerator[tuple[Provider, Models]]:
    async def handler(request: Request) -> None:
        model = request.json["model"]
        await request.head()
        if model == "slow":
            await asyncio.Event().wait()
        for word in ("one ", "two ", "three"):
            await request.event({"type": "response.output_text.delta", "delta": word, "item_id": "msg_1"})
        if model == "broken":
            request.cut()
        else:
            usage = {"input_tokens": 3, "output_tokens": 3}
            await request.event({"type": "response.completed", "response": {"usage": usage}})
            await request.end()

    async with oracle(handler) as server:
        yield ResponsesProvider("p", server.base_url, Upstream("p", {})), ("m", "broken", "slow")


@asynccontextmanager
async def gemini() -> AsyncGenerator[tuple[Provider, Models]]:
    words = [said(text("one "), usageMetadata=counted(3, 1)), said(text("two "))]
    end = said(text("three"), finish="STOP", usageMetadata=counted(3, 3))

    async def handler(request: Request) -> None:
        broken = "/broken:" in request.path
        await gemini_server.gemini(words if broken else [*words, end], cut=broken)(request)

    async with oracle(handler) as server:
        upstream = Upstream("p", {"x-goog-api-key": gemini_server.KEY})
        provider = GeminiProvider("p", server.base_url.removesuffix("/v1"), upstream)
        yield provider, ("gemini-3-flash", "broken", "slow")


@asynccontextmanager
async def chaos() -> AsyncGenerator[tuple[Provider, Models]]:
    yield ChaosProvider(), ("slow@3:1ms", "cut@1:1ms", "silent")


@asynccontextmanager
async def anthropic() -> AsyncGenerator[tuple[Provider, Models]]:
    def event(kind: str, **fields: object) -> bytes:
        return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()

    async def handler(request: Request) -> None:
        model = request.json["model"]
        await request.head()
        if model == "slow":
            await asyncio.Event().wait()
        await request.chunk(
            event("message_start", message={"usage": {"input_tokens": 3, "output_tokens": 1}})
        )
        for word in ("one ", "two ", "three"):
            piece = {"type": "text_delta", "text": word}
            await request.chunk(event("content_block_delta", index=0, delta=piece))
        if model == "broken":
            return request.cut()
        ended = event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 3})
        await request.chunk(ended + event("message_stop"))
        await request.end()

    async with oracle(handler) as server:
        yield AnthropicProvider("p", server.base_url, Upstream("p", {})), ("m", "broken", "slow")


@asynccontextmanager
async def local() -> AsyncGenerator[tuple[Provider, Models]]:
    yield LocalProvider(weights()), ("smollm2-135m", None, "smollm2-135m")


@pytest.fixture(
    params=[scripted, openai, anthropic, responses, gemini, chaos, local], ids=lambda p: p.__name__
)
async def case(request: pytest.FixtureRequest) -> AsyncGenerator[Case]:
    make: Callable[[], AbstractAsyncContextManager[tuple[Provider, Models]]] = request.param
    async with make() as (provider, models):
        try:
            yield provider, *models
        finally:
            await provider.close()


async def test_batches_end_with_one_finish(case: Case) -> None:
    provider, model, *_ = case
    batches = [batch async for batch in provider.stream(PROMPT, model)]
    assert all(len(batch) for batch in batches)
    items = [item for batch in batches for item in batch]
    assert [i for i, item in enumerate(items) if isinstance(item, Finish)] == [len(items) - 1]
    finish = items[-1]
    assert isinstance(finish, Finish)
    assert finish.usage is not None
    assert finish.usage.source == "provider_final"
    assert finish.usage.completion_tokens > 0
    assert "".join(item.text for item in items if isinstance(item, TextDelta)).strip()


async def test_streams_do_not_mix(case: Case) -> None:
    provider, model, *_ = case

    async def text() -> str:
        pieces: list[str] = []
        async for batch in provider.stream(PROMPT, model):
            pieces += [item.text for item in batch if isinstance(item, TextDelta)]
        return "".join(pieces)

    answers = await asyncio.gather(text(), text())
    assert answers[0] == answers[1]


async def test_a_break_is_a_provider_error_after_what_came_before(case: Case) -> None:
    provider, _, broken, _ = case
    if broken is None:
        return  # a model of ours cannot be told to break
    pieces: list[str] = []
    with pytest.raises(ProviderError):
        async for batch in provider.stream(PROMPT, broken):
            pieces += [item.text for item in batch if isinstance(item, TextDelta)]
    assert "".join(pieces).startswith("one")


async def test_closing_and_cancelling_end_at_once(case: Case) -> None:
    provider, model, _, slow = case
    async with asyncio.timeout(60), aclosing(provider.stream(PROMPT, model)) as batches:
        await anext(batches)  # a model of ours is started for it
    waiting = asyncio.create_task(anext(provider.stream(PROMPT, slow)))
    await asyncio.sleep(0)
    waiting.cancel()
    async with asyncio.timeout(5):
        await asyncio.gather(waiting, return_exceptions=True)


EXTRA: Any = {"more": {"deep": [1]}, "tools": [{"type": "operators"}]}


@pytest.mark.parametrize("make", [OpenAIProvider, AnthropicProvider, ResponsesProvider, GeminiProvider])
async def test_what_the_operator_adds_takes_nothing_away(make: Any) -> None:
    prompt = Prompt(PROMPT.messages, tools=(Tool("look", parameters={"type": "object"}),))
    bodies: list[Any] = []

    async def handler(request: Request) -> None:
        bodies.append(request.json)
        await request.answer(400, {})

    async with oracle(handler) as server:
        for extra in (None, EXTRA):
            provider = make("p", server.base_url, Upstream("p", {}), extra=extra)
            with pytest.raises(ProviderError):
                await anext(provider.stream(prompt, "m"))
            await provider.close()
    plain, added = bodies
    assert added == {**plain, **EXTRA, "tools": [*plain["tools"], *EXTRA["tools"]]}


def test_objects_are_merged_to_the_last() -> None:
    sent = {"reasoning": {"effort": "low"}, "a": 1}
    assert merged(sent, {"reasoning": {"summary": "auto"}, "a": 2}) == {
        "reasoning": {"effort": "low", "summary": "auto"},
        "a": 2,
    }


async def test_models_are_named(case: Case) -> None:
    provider, model, *_ = case
    if isinstance(provider, (OpenAIProvider, AnthropicProvider, ResponsesProvider, ChaosProvider)):
        return  # asked of the server, tests/test_*_provider.py; never shown, tests/test_chaos.py
    assert model in await provider.models()
