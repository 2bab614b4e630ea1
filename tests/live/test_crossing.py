"""Anthropic's SDK before a model of OpenAI's, and OpenAI's before one of Anthropic's: what both know crosses."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from typing import Any

import anthropic
import openai
import pytest
import pytest_asyncio

from live.conftest import running
from oracle import Request, oracle

pytestmark = pytest.mark.asyncio(loop_scope="module")

HELLO: Any = [{"role": "user", "content": "Hello"}]
LOOK: Any = {"type": "object", "properties": {"at": {"type": "string"}}}


def of_anthropic(kind: str, **fields: object) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


def block(index: int, begun: dict[str, object], *deltas: dict[str, object]) -> bytes:
    return b"".join(
        (
            of_anthropic("content_block_start", index=index, content_block=begun),
            *(of_anthropic("content_block_delta", index=index, delta=delta) for delta in deltas),
            of_anthropic("content_block_stop", index=index),
        )
    )


def text_block(index: int, *pieces: str) -> bytes:
    deltas: list[dict[str, object]] = [{"type": "text_delta", "text": piece} for piece in pieces]
    return block(index, {"type": "text", "text": ""}, *deltas)


def call_block(index: int, name: str, *pieces: str) -> bytes:
    deltas: list[dict[str, object]] = [{"type": "input_json_delta", "partial_json": p} for p in pieces]
    begun: dict[str, object] = {"type": "tool_use", "id": f"toolu_{name}", "name": name, "input": {}}
    return block(index, begun, *deltas)


THOUGHT = block(
    0,
    {"type": "thinking", "thinking": "", "signature": ""},
    {"type": "thinking_delta", "thinking": "hm"},
    {"type": "signature_delta", "signature": "sig"},
)
USED = {"input_tokens": 9, "cache_creation_input_tokens": 4, "cache_read_input_tokens": 2, "output_tokens": 1}
# Blocks, and why they end.
OF_ANTHROPIC = {
    "text": (THOUGHT + text_block(1, "Hel", "lo"), "end_turn"),
    "one-call": (text_block(0, "So") + call_block(1, "look", '{"at"', ':"sky"}'), "tool_use"),
    "two-calls": (call_block(0, "look", '{"at":"sky"}') + call_block(1, "now"), "tool_use"),
    "refusal": (text_block(0, "I can"), "refusal"),
    "length": (text_block(0, "Once"), "max_tokens"),
}


def of_openai(delta: dict[str, object], finish: str | None = None) -> dict[str, object]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": "chatcmpl-1", "model": "gpt-x-0", "choices": [choice]}


def call(index: int, name: str, arguments: str) -> dict[str, object]:
    function = {"name": name, "arguments": ""} if not arguments else {"arguments": arguments}
    first = {"id": f"call_{name}", "type": "function"} if not arguments else {}
    return of_openai({"tool_calls": [{"index": index, **first, "function": function}]})


OF_OPENAI = {
    "text": (
        [of_openai({"reasoning_content": "hm"}), *(of_openai({"content": t}) for t in ("Hel", "lo"))],
        "stop",
    ),
    "one-call": (
        [of_openai({"content": "So"}), call(0, "look", ""), call(0, "look", '{"at":"sky"}')],
        "tool_calls",
    ),
    "two-calls": (
        [call(0, "look", ""), call(0, "look", '{"at":"sky"}'), call(1, "now", ""), call(1, "now", "{}")],
        "tool_calls",
    ),
    "refusal": ([of_openai({"refusal": "I cannot"})], "stop"),
    "length": ([of_openai({"content": "Once"})], "length"),
}
COUNTED = {
    "prompt_tokens": 15,
    "completion_tokens": 7,
    "prompt_tokens_details": {"cached_tokens": 2},
    "completion_tokens_details": {"reasoning_tokens": 3},
}


class Models:
    """Both servers in one. A model's name says what it does; ``bodies`` are what was asked last."""

    def __init__(self) -> None:
        self.body: Any = None

    async def __call__(self, request: Request) -> None:
        path = request.path.partition("?")[0]
        if path.endswith("/models"):
            side = "a" if "x-api-key" in request.headers else "o"
            names = [*OF_ANTHROPIC, "fails", "fails-late"]
            return await request.answer(200, {"data": [{"id": f"{side}-{name}"} for name in names]})
        self.body = request.json
        name = self.body["model"][2:]
        if name == "fails":
            error = {"type": "rate_limit_error", "message": "slow down"}
            return await request.answer(429, {"type": "error", "error": error}, ["retry-after: 3"])
        await request.head()
        if path.endswith("/messages"):
            await self._as_anthropic(request, name)
        else:
            await self._as_openai(request, name)

    async def _as_anthropic(self, request: Request, name: str) -> None:
        began = {"id": "msg_1", "model": "claude-x-0", "usage": USED}
        await request.chunk(of_anthropic("message_start", message=began))
        if name == "fails-late":
            await request.chunk(text_block(0, "Hel"))
            await request.chunk(of_anthropic("error", error={"type": "overloaded_error", "message": "x"}))
            return await request.end()
        said, reason = OF_ANTHROPIC[name]
        await request.chunk(said)
        counted = {"output_tokens": 7, "output_tokens_details": {"thinking_tokens": 3}}
        await request.chunk(of_anthropic("message_delta", delta={"stop_reason": reason}, usage=counted))
        await request.chunk(of_anthropic("message_stop"))
        await request.end()

    async def _as_openai(self, request: Request, name: str) -> None:
        if name == "fails-late":
            await request.event(of_openai({"content": "Hel"}))
            await request.event({"error": {"message": "x", "type": "server_error"}})
            return await request.end()
        said, reason = OF_OPENAI[name]
        for chunk in said:
            await request.event(chunk)
        await request.event(of_openai({}, reason))
        await request.event({"choices": [], "usage": COUNTED})
        await request.event(b"[DONE]")
        await request.end()


class Sides:
    def __init__(self, models: Models, url: str, key: str) -> None:
        self.models = models
        self.anthropic = anthropic.AsyncAnthropic(base_url=url, api_key=key, max_retries=0)
        self.openai = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sides(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Sides]:
    """One server for all tests, which change nothing of it."""
    async with AsyncExitStack() as stack:
        models = Models()
        upstream = await stack.enter_async_context(oracle(models))
        variables = {
            "OPENAI_BASE_URL": upstream.base_url,
            "OPENAI_API_KEY": "sk-test",
            "ANTHROPIC_BASE_URL": upstream.base_url,
            "ANTHROPIC_API_KEY": "sk-test",
        }
        context = running(tmp_path_factory.mktemp("server"), **variables)
        server = await asyncio.to_thread(context.__enter__)
        stack.push_async_callback(asyncio.to_thread, context.__exit__, None, None, None)
        sides = Sides(models, server.url, server.key)
        await stack.enter_async_context(sides.anthropic)
        await stack.enter_async_context(sides.openai)
        yield sides


async def messages(sides: Sides, name: str, **more: Any) -> tuple[Any, Any]:
    """The message of a model of OpenAI's, collected from a stream and whole."""
    body: Any = {"model": f"o-{name}", "max_tokens": 9, "messages": HELLO, **more}
    async with sides.anthropic.messages.stream(**body) as stream:
        collected = await stream.get_final_message()
    whole = await sides.anthropic.messages.create(**body)
    shown = [
        {name: value for name, value in found.model_dump(exclude_none=True).items() if name != "id"}
        for found in (collected, whole)
    ]
    return shown[0], shown[1]


async def test_anthropics_sdk_before_a_model_of_openai(sides: Sides) -> None:
    look = {"type": "tool_use", "id": "call_look", "name": "look", "input": {"at": "sky"}}
    now = {"type": "tool_use", "id": "call_now", "name": "now", "input": {}}
    expected: dict[str, tuple[list[dict[str, Any]], str]] = {
        "text": (
            [
                {"type": "thinking", "thinking": "hm", "signature": ""},
                {"type": "text", "text": "Hello"},
            ],
            "end_turn",
        ),
        "one-call": ([{"type": "text", "text": "So"}, look], "tool_use"),
        "two-calls": ([look, now], "tool_use"),
        "refusal": ([{"type": "text", "text": "I cannot"}], "refusal"),
        "length": ([{"type": "text", "text": "Once"}], "max_tokens"),
    }
    for name, (content, reason) in expected.items():
        collected, whole = await messages(sides, name)
        for found in (collected, whole):
            assert (found["content"], found["stop_reason"]) == (content, reason), name
            assert found["model"] == "gpt-x-0"
            assert found["usage"] == {
                "input_tokens": 13,
                "cache_read_input_tokens": 2,
                "cache_creation_input_tokens": 0,
                "output_tokens": 7,
            }
    tools: Any = [{"name": "look", "input_schema": LOOK, "cache_control": {"type": "ephemeral"}}]
    history: Any = [
        *HELLO,
        {"role": "assistant", "content": [{**look}]},
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "call_look", "content": "blue"},
                {"type": "text", "text": "And now?"},
            ],
        },
    ]
    await sides.anthropic.messages.create(
        model="o-text",
        max_tokens=9,
        system="Be brief.",
        messages=history,
        tools=tools,
        tool_choice={"type": "any"},
    )
    asked = sides.models.body
    assert asked["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "call_look",
                    "type": "function",
                    "function": {"name": "look", "arguments": '{"at":"sky"}'},
                }
            ],
        },
        {"role": "tool", "content": "blue", "tool_call_id": "call_look"},
        {"role": "user", "content": "And now?"},
    ]
    assert asked["tools"] == [{"type": "function", "function": {"name": "look", "parameters": LOOK}}]
    assert asked["tool_choice"] == "required"


async def test_openais_sdk_before_a_model_of_anthropic(sides: Sides) -> None:
    look = ("toolu_look", "look", '{"at":"sky"}')
    expected: dict[str, tuple[str | None, str | None, list[tuple[str, str, str]], str]] = {
        "text": ("Hello", "hm", [], "stop"),
        "one-call": ("So", None, [look], "tool_calls"),
        "two-calls": (None, None, [look, ("toolu_now", "now", "{}")], "tool_calls"),
        "refusal": ("I can", None, [], "content_filter"),
        "length": ("Once", None, [], "length"),
    }
    for name, (content, reasoning, calls, reason) in expected.items():
        whole = await sides.openai.chat.completions.create(model=f"a-{name}", messages=HELLO)
        choice = whole.choices[0]
        said = choice.message
        assert (said.content, getattr(said, "reasoning_content", None)) == (content, reasoning), name
        found = [(one.id, one.function.name, one.function.arguments) for one in said.tool_calls or ()]  # type: ignore[union-attr]
        assert (found, choice.finish_reason) == (calls, reason), name
        assert whole.model == "claude-x-0"
        async with sides.openai.chat.completions.stream(
            model=f"a-{name}", messages=HELLO, stream_options={"include_usage": True}
        ) as stream:
            async for _ in stream:
                pass
        try:
            collected = await stream.get_final_completion()
        except (openai.LengthFinishReasonError, openai.ContentFilterFinishReasonError):
            continue  # which is how this helper says so
        streamed = collected.choices[0].message
        assert (streamed.content or None, collected.choices[0].finish_reason) == (content, reason), name
        for usage in (whole.usage, collected.usage):
            assert usage is not None
            assert usage.prompt_tokens_details is not None
            assert usage.completion_tokens_details is not None
            assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (15, 7, 22)
            assert usage.prompt_tokens_details.cached_tokens == 2
            assert usage.completion_tokens_details.reasoning_tokens == 3


async def test_errors_cross_before_the_first_word_and_after(sides: Sides) -> None:
    body: Any = {"messages": HELLO, "stream": True}
    with pytest.raises(anthropic.RateLimitError) as theirs:
        await sides.anthropic.messages.create(model="o-fails", max_tokens=9, **body)
    with pytest.raises(openai.RateLimitError) as ours:
        await sides.openai.chat.completions.create(model="a-fails", **body)
    for error in (theirs.value, ours.value):
        assert error.response.headers["retry-after"] == "3"
    text = ""
    with pytest.raises(anthropic.APIStatusError):
        async for event in await sides.anthropic.messages.create(model="o-fails-late", max_tokens=9, **body):
            if event.type == "content_block_delta" and event.delta.type == "text_delta":
                text += event.delta.text
    with pytest.raises(openai.APIError):
        async for chunk in await sides.openai.chat.completions.create(model="a-fails-late", **body):
            text += chunk.choices[0].delta.content or ""
    assert text == "HelHel"
