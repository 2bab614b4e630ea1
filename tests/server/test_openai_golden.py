"""OpenAI's SDK through us says the same as the SDK directly before a server of Chat Completions."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from openai import AsyncOpenAI

from application import Run
from listening import listening
from millstream.providers.openai import OpenAIProvider
from millstream.providers.upstream import Upstream
from oracle import Oracle, Request, oracle

ABOUT = {
    "id": "chatcmpl-9",
    "created": 7,
    "model": "m-1",
    "service_tier": "flex",
    "system_fingerprint": "fp_1",
}
USAGE = {
    "prompt_tokens": 11,
    "completion_tokens": 9,
    "total_tokens": 20,
    "prompt_tokens_details": {"cached_tokens": 4, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 2, "accepted_prediction_tokens": 1, "audio_tokens": 0},
}


def token(text: str) -> dict[str, Any]:
    return {"token": text, "logprob": -0.5, "bytes": list(text.encode()), "top_logprobs": []}


def worth(text: str, kind: str = "content") -> dict[str, Any]:
    return {"content": None, "refusal": None, kind: [token(text)]}


def call(**more: Any) -> dict[str, Any]:
    return {"tool_calls": [{"index": 0, **more}]}


# The choice, what is new in it, what that is worth, and why it ends.
CHUNKS: list[tuple[int, dict[str, Any], dict[str, Any] | None, str | None]] = [
    (0, {"role": "assistant", "content": "", "refusal": None}, None, None),
    (0, {"reasoning_content": "So?"}, worth("So?", "reasoning_content"), None),  # as DeepSeek has it
    (0, {"content": "It "}, worth("It "), None),
    (1, {"role": "assistant", "content": ""}, None, None),
    (1, {"refusal": "No."}, worth("No.", "refusal"), None),
    (0, {"content": "is so."}, worth("is so."), None),
    (0, call(id="call_9", type="function", function={"name": "look", "arguments": ""}), None, None),
    (0, call(function={"arguments": '{"a":'}), worth('{"a":'), None),
    (0, call(function={"arguments": "1}"}), worth("1}"), None),
    (1, {}, None, "stop"),
    (0, {}, None, "tool_calls"),
]
WHOLE = {
    **ABOUT,
    "object": "chat.completion",
    "choices": [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "It is so.",
                "refusal": None,
                "annotations": [],
                "reasoning_content": "So?",
                "tool_calls": [
                    {"id": "call_9", "type": "function", "function": {"name": "look", "arguments": '{"a":1}'}}
                ],
            },
            "logprobs": {
                "content": [token("It "), token("is so."), token('{"a":'), token("1}")],
                "refusal": None,
                "reasoning_content": [token("So?")],
            },
            "finish_reason": "tool_calls",
        },
        {
            "index": 1,
            "message": {"role": "assistant", "content": None, "refusal": "No.", "annotations": []},
            "logprobs": {"content": None, "refusal": [token("No.")]},
            "finish_reason": "stop",
        },
    ],
    "usage": USAGE,
}
ASKED: Mapping[str, Any] = {
    "model": "m",
    "messages": [{"role": "user", "content": "Is it so?"}],
    "n": 2,
    "logprobs": True,
    "top_logprobs": 1,
    "service_tier": "flex",
    "verbosity": "low",
    "prediction": {"type": "content", "content": "It is so."},
    "tools": [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}],
}


async def upstream(request: Request) -> None:
    if request.path.endswith("/models"):
        return await request.answer(200, {"data": [{"id": "m"}]})
    if not request.json.get("stream"):
        return await request.answer(200, WHOLE)
    await request.head()
    about = {**ABOUT, "object": "chat.completion.chunk"}
    for index, delta, logprobs, finish in CHUNKS:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        await request.event({**about, "choices": [choice], "usage": None})
    await request.event({**about, "choices": [], "usage": USAGE})
    await request.event(b"[DONE]")
    await request.end()


@asynccontextmanager
async def both(run: Run) -> AsyncGenerator[tuple[AsyncOpenAI, AsyncOpenAI, Oracle]]:
    """The SDK before the server, and before a Millstream whose provider that is."""
    async with oracle(upstream) as server:
        provider = OpenAIProvider("p", server.base_url, Upstream("p", {}))
        async with (
            run({"p": provider}) as running,
            listening(running) as url,
            AsyncOpenAI(base_url=server.base_url, api_key="sk-test", max_retries=0) as direct,
            AsyncOpenAI(base_url=f"{url}/v1", api_key=running.key, max_retries=0) as ours,
        ):
            yield direct, ours, server


async def collected(client: AsyncOpenAI) -> dict[str, Any]:
    """What the SDK makes of a stream."""
    options: Any = {"include_usage": True}
    async with client.chat.completions.stream(**ASKED, stream_options=options) as stream:
        async for _ in stream:
            pass
    return (await stream.get_final_completion()).model_dump()


async def test_the_sdk_sees_no_difference(run: Run) -> None:
    async with both(run) as (direct, ours, server):
        theirs = await direct.chat.completions.create(**ASKED)
        assert (await ours.chat.completions.create(**ASKED)).model_dump() == theirs.model_dump()
        streamed = await collected(direct)
        assert await collected(ours) == streamed
        plain, through, *_ = [request.json for request in server.requests if request.body]
        options = {"stream": True, "stream_options": {"include_usage": True}}
        assert through == {**plain, **options}
