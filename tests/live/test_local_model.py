"""The real model: llama.cpp serving SmolLM2, which says exactly how many tokens it made."""

import asyncio
import json
import sys
import urllib.request
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import pytest

from application import Run
from asgi import post
from live.conftest import Serve
from millstream.events import TextDelta
from millstream.prompt import Message, Prompt, Text
from millstream.providers import Finish, UsageReport
from millstream.providers.anthropic import AnthropicProvider
from millstream.providers.local import LocalProvider, weights
from millstream.providers.openai import OpenAIProvider
from millstream.providers.responses import ResponsesProvider
from millstream.providers.upstream import Upstream

MODEL = "smollm2-135m"
QUESTION = "Why is the sky blue?"
BODY = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}]}
ASKED = (Message("user", (Text(QUESTION),)),)


@pytest.fixture
async def model() -> AsyncGenerator[LocalProvider]:
    provider = LocalProvider(weights())
    yield provider
    await provider.close()


async def test_every_running_count_is_exact_and_the_last_is_the_final_one(model: LocalProvider) -> None:
    prompt = Prompt(ASKED, max_tokens=24, temperature=0)
    counts: list[int] = []
    pieces = 0
    finish: Finish | None = None
    async for batch in model.stream(prompt, MODEL):
        for item in batch:
            if isinstance(item, UsageReport):
                counts.append(item.usage.completion_tokens)
            elif isinstance(item, TextDelta):
                pieces += 1
            elif isinstance(item, Finish):
                finish = item
    assert finish is not None
    assert finish.usage is not None
    assert counts == sorted(counts)
    assert counts[-1] == finish.usage.completion_tokens == 24
    assert pieces <= 24
    assert (finish.reason, finish.usage.source) == ("length", "provider_final")


@pytest.fixture
async def address() -> AsyncGenerator[str]:
    """Of llama.cpp's server, which speaks all three formats."""
    command = (sys.executable, "-m", "millstream.providers.local", str(weights()))
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
    try:
        assert process.stdout is not None
        async with asyncio.timeout(60):
            yield (await process.stdout.readline()).decode().strip()
    finally:
        process.kill()
        await process.wait()


@pytest.mark.parametrize("kind", [OpenAIProvider, ResponsesProvider, AnthropicProvider])
async def test_the_same_server_is_understood_in_each_format_that_it_speaks(address: str, kind: Any) -> None:
    provider = kind("llama", f"{address}/v1", Upstream("llama", {"Connection": "close"}, pings=True))
    try:
        for most, reason in ((16, "length"), (200, "stop")):
            asked = ASKED if reason == "length" else (Message("user", (Text("Say hello."),)),)
            prompt = Prompt(asked, max_tokens=most, temperature=0)
            produced = [item async for batch in provider.stream(prompt, MODEL) for item in batch]
            finish = produced[-1]
            assert isinstance(finish, Finish)
            if kind is ResponsesProvider:  # in which that server calls every end complete
                reason = "stop"
            assert finish.reason == reason
            assert finish.usage is not None
            assert finish.usage.source == "provider_final"
            assert 0 < finish.usage.completion_tokens <= most
            assert "".join(item.text for item in produced if isinstance(item, TextDelta)).strip()
    finally:
        await provider.close()


async def test_a_cut_answer_is_settled_with_the_models_own_count(run: Run, model: LocalProvider) -> None:
    async with run({"local": model}) as app:
        await app.millstream.llm_service.discover()
        # The same long answer every time: it must not end by itself before it is cut.
        story = [{"role": "user", "content": "Tell me a long story about a river."}]
        body = {"model": MODEL, "messages": story, "temperature": 0, "seed": 1}
        async with post(app.app, "/v1/chat/stream", body, app.key) as call:
            await call.until(lambda c: len(c.frames) > 8, seconds=60)
        (row,) = await app.receipts()
    words = sum(1 for frame in call.frames if frame != "[DONE]" and frame.get("delta"))
    assert (row["status"], row["usage_source"]) == ("cancelled", "provider_partial")
    assert row["prompt_tokens"] > 10
    assert words <= row["completion_tokens"] <= words + 3  # what came while it was being closed


async def test_our_tokenizer_is_near_another_models_count(run: Run, model: LocalProvider) -> None:
    """What ``counted`` is worth for a model whose vocabulary we do not have."""
    prompt = Prompt(ASKED, max_tokens=60, temperature=0)
    text = ""
    finish: Finish | None = None
    async with aclosing(model.stream(prompt, MODEL)) as batches:
        async for batch in batches:
            text += "".join(item.text for item in batch if isinstance(item, TextDelta))
            finish = next((item for item in batch if isinstance(item, Finish)), finish)
    from millstream import tokens

    counted = (await tokens.load("o200k_base")).count(text)
    assert finish is not None
    assert finish.usage is not None
    assert abs(counted - finish.usage.completion_tokens) <= 0.2 * finish.usage.completion_tokens


async def test_stopping_is_felt_by_the_model(model: LocalProvider) -> None:
    """After a cut the model's one thread is free again: the next answer begins at once."""
    long = Prompt(ASKED, max_tokens=2000)
    for _ in range(3):
        async with aclosing(model.stream(long, MODEL)) as batches:
            await anext(batches)
    short = Prompt(ASKED, max_tokens=2)
    async with asyncio.timeout(10):
        assert [item async for batch in model.stream(short, MODEL) for item in batch]


async def test_answers_that_follow_each_other_at_once_are_all_whole(model: LocalProvider) -> None:
    for _ in range(4):
        batches = [batch async for batch in model.stream(Prompt(ASKED, max_tokens=3), MODEL)]
        assert isinstance(batches[-1][-1], Finish)


def test_without_any_key_the_local_model_serves(serve: Serve) -> None:
    with serve() as server:
        assert "local: smollm2-135m" in server.printed
        request = urllib.request.Request(
            f"{server.url}/v1/chat",
            json.dumps({**BODY, "max_tokens": 8}).encode(),
            {"Authorization": f"Bearer {server.key}"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            reply = json.load(answer)
        assert reply["content"].strip()
        assert reply["usage"]["completion_tokens"] == 8


async def test_a_model_process_that_died_is_started_again(model: LocalProvider) -> None:
    prompt = Prompt(ASKED, max_tokens=2)
    async for _ in model.stream(prompt, MODEL):
        pass
    assert model.process is not None
    model.process.kill()
    await model.process.wait()
    assert [item async for batch in model.stream(prompt, MODEL) for item in batch]
