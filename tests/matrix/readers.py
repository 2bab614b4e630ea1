"""Readers: what a client of each dialect understands of an answer.

Those of OpenAI's and Anthropic's formats are the official SDKs. The others are the least that reads the format.
"""

import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import anthropic
import openai
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI

from application import Running
from asgi import Exchange, post
from matrix.meaning import Failed, Understood
from matrix.scenarios import Counts
from millstream.sse import Decoder


class Heard:
    """An ``Understood`` while it is put together."""

    def __init__(self) -> None:
        self.text = self.reasoning = self.refusal = self.finish = ""
        self.calls: dict[Any, list[str]] = {}  # id, name, arguments
        self.counts: Counts | None = None
        self.failed: Failed | None = None

    def understood(self) -> Understood:
        calls = tuple((call_id, name, json.loads(said)) for call_id, name, said in self.calls.values())
        return Understood(
            self.text, self.reasoning, self.refusal, calls, self.finish, self.counts, self.failed
        )


class Clients(NamedTuple):
    """An application with the SDKs before it."""

    running: Running
    openai: AsyncOpenAI
    anthropic: AsyncAnthropic


@asynccontextmanager
async def clients(running: Running, url: str) -> AsyncGenerator[Clients]:
    async with (
        AsyncOpenAI(base_url=f"{url}/v1", api_key=running.key, max_retries=0) as of_openai,
        AsyncAnthropic(base_url=url, api_key=running.key, max_retries=0) as of_anthropic,
    ):
        yield Clients(running, of_openai, of_anthropic)


# -- OpenAI's Chat Completions ---------------------------------------------------------------------

HELLO: Any = [{"role": "user", "content": "Hello"}]


async def chat_completions(clients: Clients, model: str, heard: Heard) -> None:
    create = clients.openai.chat.completions.create
    try:
        options: Any = {"include_usage": True}
        async for chunk in await create(model=model, messages=HELLO, stream=True, stream_options=options):
            if chunk.usage is not None:
                heard.counts = _of_openai(chunk.usage)
            for choice in chunk.choices:
                _add_message(choice.delta, heard)
                heard.finish = choice.finish_reason or heard.finish
    except openai.APIError as error:
        heard.failed = _of_openai_error(error)


async def whole_chat_completions(clients: Clients, model: str, heard: Heard) -> None:
    try:
        whole = await clients.openai.chat.completions.create(model=model, messages=HELLO)
    except openai.APIError as error:
        heard.failed = _of_openai_error(error)
        return
    (choice,) = whole.choices
    _add_message(choice.message, heard)
    heard.finish, heard.counts = choice.finish_reason, _of_openai(whole.usage)


def _add_message(message: Any, heard: Heard) -> None:
    heard.text += message.content or ""
    heard.reasoning += getattr(message, "reasoning_content", None) or ""
    heard.refusal += message.refusal or ""
    for place, call in enumerate(message.tool_calls or ()):
        found = heard.calls.setdefault(getattr(call, "index", place), ["", "", ""])
        found[0] += call.id or ""
        found[1] += call.function.name or ""
        found[2] += call.function.arguments or ""


def _of_openai(usage: Any) -> Counts:
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    cached, reasoning = (
        usage.prompt_tokens_details.cached_tokens,
        usage.completion_tokens_details.reasoning_tokens,
    )
    return Counts(usage.prompt_tokens, usage.completion_tokens, cached, reasoning)


def _of_openai_error(error: openai.APIError) -> Failed:
    # Of an error's body LangChain sees the message alone.
    assert ("prompt is too long" in error.message) == (error.code == "context_length_exceeded")
    if not isinstance(error, openai.APIStatusError):
        return Failed(str(error.code))
    return Failed(str(error.code), error.status_code, error.response.headers.get("retry-after"))


# -- OpenAI's Responses ----------------------------------------------------------------------------


async def responses(clients: Clients, model: str, heard: Heard) -> None:
    """By the SDK's helper, which puts the response together of what comes before its end."""
    try:
        async with clients.openai.responses.stream(model=model, input="Hello") as stream:
            async for event in stream:
                if event.type in ("response.completed", "response.incomplete", "response.failed"):
                    _add_response(event.response, heard)
                elif event.type == "response.output_text.delta":
                    heard.text += event.delta
                elif event.type == "response.refusal.delta":
                    heard.refusal += event.delta
                elif event.type == "response.reasoning_summary_text.delta":
                    heard.reasoning += event.delta
    except openai.APIError as error:
        heard.failed = _of_openai_error(error)


async def whole_responses(clients: Clients, model: str, heard: Heard) -> None:
    try:
        whole = await clients.openai.responses.create(model=model, input="Hello")
    except openai.APIError as error:
        heard.failed = _of_openai_error(error)
        return
    for item in whole.output:
        if item.type == "reasoning":
            heard.reasoning += "".join(part.text for part in item.summary)
        elif item.type == "message":
            heard.refusal += "".join(part.refusal for part in item.content if part.type == "refusal")
    heard.text = whole.output_text
    _add_response(whole, heard)


_RESPONSE_ENDS = {"max_output_tokens": "length", "content_filter": "content_filter"}


def _add_response(response: Any, heard: Heard) -> None:
    for item in response.output:
        if item.type == "function_call":
            heard.calls[item.id] = [item.call_id, item.name, item.arguments]
    if response.error is not None:
        heard.failed = Failed(response.error.code)
        return
    why = response.incomplete_details and response.incomplete_details.reason
    assert response.status == ("incomplete" if why else "completed")
    heard.finish = _RESPONSE_ENDS[why] if why else "tool_calls" if heard.calls else "stop"
    usage, of_input = response.usage, response.usage.input_tokens_details
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    heard.counts = Counts(
        usage.input_tokens,
        usage.output_tokens,
        of_input.cached_tokens,
        usage.output_tokens_details.reasoning_tokens,
        of_input.cache_write_tokens,
    )


# -- Anthropic's Messages --------------------------------------------------------------------------

_STOP_REASONS = {
    "end_turn": "stop",
    "max_tokens": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}


async def messages(clients: Clients, model: str, heard: Heard) -> None:
    try:
        async with clients.anthropic.messages.stream(model=model, max_tokens=99, messages=HELLO) as stream:
            async for event in stream:
                if event.type == "text":
                    heard.text += event.text
                elif event.type == "thinking":
                    heard.reasoning += event.thinking
            _add_calls(await stream.get_final_message(), heard)
    except anthropic.APIStatusError as error:
        heard.failed = _of_anthropic_error(error)


async def whole_messages(clients: Clients, model: str, heard: Heard) -> None:
    try:
        whole = await clients.anthropic.messages.create(model=model, max_tokens=99, messages=HELLO)
    except anthropic.APIStatusError as error:
        heard.failed = _of_anthropic_error(error)
        return
    heard.text = "".join(block.text for block in whole.content if block.type == "text")
    heard.reasoning = "".join(block.thinking for block in whole.content if block.type == "thinking")
    _add_calls(whole, heard)


def _add_calls(message: Any, heard: Heard) -> None:
    for block in message.content:
        if block.type == "tool_use":
            heard.calls[block.id] = [block.id, block.name, json.dumps(block.input)]
    heard.finish = _STOP_REASONS[message.stop_reason]
    usage = message.usage
    cached, written = usage.cache_read_input_tokens, usage.cache_creation_input_tokens
    reasoning = usage.output_tokens_details.thinking_tokens if usage.output_tokens_details else 0
    prompt = usage.input_tokens + cached + written
    heard.counts = Counts(prompt, usage.output_tokens, cached, reasoning, written)


def _of_anthropic_error(error: anthropic.APIStatusError) -> Failed:
    body: Any = error.body
    code = body["error"]["details"]["error_code"]
    assert ("prompt is too long" in error.message) == (code == "context_length_exceeded")
    if error.status_code == 200:
        return Failed(code)
    return Failed(code, error.status_code, error.response.headers.get("retry-after"))


# -- the others ------------------------------------------------------------------------------------


async def native(clients: Clients, model: str, heard: Heard) -> None:
    for frame in await _frames(clients, "/v1/chat/stream", {"model": model, "messages": HELLO}, heard):
        if "error" in frame:
            heard.failed = Failed(frame["error"]["code"])
            continue
        heard.text += frame["delta"]
        heard.reasoning += frame.get("reasoning", "")
        heard.refusal += frame.get("refusal", "")
        if (call := frame.get("tool_call")) is not None:
            found = heard.calls.setdefault(call["index"], ["", "", ""])
            for place, name in enumerate(("id", "name", "arguments")):
                found[place] += call.get(name, "")
        if frame["finish_reason"]:
            heard.finish, heard.counts = frame["finish_reason"], _of_native(frame["usage"])


async def whole_native(clients: Clients, model: str, heard: Heard) -> None:
    exchange = await _posted(clients, "/v1/chat", {"model": model, "messages": HELLO}, heard)
    if heard.failed is not None:
        return
    said = exchange.json
    heard.text, heard.reasoning = said["content"], said.get("reasoning", "")
    heard.refusal, heard.finish = said.get("refusal", ""), said["finish_reason"]
    for call in said.get("tool_calls", ()):
        function = call["function"]
        heard.calls[call["id"]] = [call["id"], function["name"], function["arguments"]]
    heard.counts = _of_native(said["usage"])


def _of_native(usage: Any) -> Counts:
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    details = (usage.get(name, 0) for name in ("cached_tokens", "reasoning_tokens", "cache_write_tokens"))
    return Counts(usage["prompt_tokens"], usage["completion_tokens"], *details)


async def ai_sdk(clients: Clients, model: str, heard: Heard) -> None:
    """As the AI SDK reads it: parts are open or are not, and an input counts once it is available."""
    body = {
        "id": f"chat-{model}",
        "model": model,
        "messages": [{"id": "1", "role": "user", "parts": [{"type": "text", "text": "Hello"}]}],
    }
    opened: set[str] = set()
    metadata: dict[str, Any] = {}
    for chunk in await _frames(clients, "/api/chat", body, heard):
        metadata |= chunk.get("messageMetadata", {})
        match chunk["type"]:
            case "text-start" | "reasoning-start":
                assert chunk["id"] not in opened
                opened.add(chunk["id"])
            case "text-delta":
                assert chunk["id"] in opened
                heard.text += chunk["delta"]
            case "reasoning-delta":
                assert chunk["id"] in opened
                heard.reasoning += chunk["delta"]
            case "text-end" | "reasoning-end":
                opened.remove(chunk["id"])
            case "tool-input-available":
                said = json.dumps(chunk["input"])
                heard.calls[chunk["toolCallId"]] = [chunk["toolCallId"], chunk["toolName"], said]
            case "finish":
                heard.finish = chunk["finishReason"].replace("-", "_")
                usage = metadata["usage"]
                heard.counts = Counts(
                    usage["inputTokens"],
                    usage["outputTokens"],
                    usage["cachedInputTokens"],
                    usage["reasoningTokens"],
                )
            case "error":
                heard.failed = Failed(metadata["errorCode"])
    assert not opened


async def ag_ui(clients: Clients, model: str, heard: Heard) -> None:
    """As AG-UI's client checks it: messages and calls are open while something is added to them."""
    body = {
        "threadId": f"thread-{model}",
        "runId": "run-1",
        "messages": [{"id": "1", "role": "user", "content": "Hello"}],
        "tools": [],
        "context": [],
        "state": {},
        "forwardedProps": {"model": model},
    }
    opened: set[str] = set()
    for event in await _frames(clients, "/ag-ui", body, heard):
        match event["type"]:
            case "TEXT_MESSAGE_START" | "REASONING_MESSAGE_START":
                opened.add(event["messageId"])
            case "TEXT_MESSAGE_CONTENT":
                assert event["messageId"] in opened
                heard.text += event["delta"]
            case "REASONING_MESSAGE_CONTENT":
                assert event["messageId"] in opened
                heard.reasoning += event["delta"]
            case "TEXT_MESSAGE_END" | "REASONING_MESSAGE_END":
                opened.remove(event["messageId"])
            case "TOOL_CALL_START":
                opened.add(event["toolCallId"])
                heard.calls[event["toolCallId"]] = [event["toolCallId"], event["toolCallName"], ""]
            case "TOOL_CALL_ARGS":
                assert event["toolCallId"] in opened
                heard.calls[event["toolCallId"]][2] += event["delta"]
            case "TOOL_CALL_END":
                opened.remove(event["toolCallId"])
            case "RUN_FINISHED":
                heard.finish = event["metadata"]["millstream"]["finishReason"]
                outcome = event["outcome"]
                assert outcome["type"] == "success"
                assert outcome.get("pendingToolCallIds", []) == list(heard.calls)
                (usage,) = event["usage"]
                heard.counts = Counts(
                    usage["inputTokens"],
                    usage["outputTokens"],
                    usage.get("cachedInputTokens", 0),
                    usage.get("reasoningTokens", 0),
                    usage.get("cacheWriteInputTokens", 0),
                )
            case "RUN_ERROR":
                heard.failed = Failed(event["code"])
    assert not opened


async def _posted(clients: Clients, path: str, body: object, heard: Heard) -> Exchange:
    """The whole exchange. An error that is its status is heard."""
    async with post(clients.running.app, path, body, clients.running.key) as exchange:
        await exchange.finished()
    if exchange.status != 200:
        code = exchange.json["error"]["code"]
        heard.failed = Failed(code, exchange.status, exchange.response_headers.get("retry-after"))
    return exchange


async def _frames(clients: Clients, path: str, body: object, heard: Heard) -> list[Any]:
    """The data of all frames; none where there is no stream."""
    exchange = await _posted(clients, path, body, heard)
    if heard.failed is not None:
        return []
    said = [message.data for message in Decoder().feed(exchange.received)]
    return [json.loads(data) for data in said if data != b"[DONE]"]


class Reader(NamedTuple):
    """``tells`` makes of what there is to understand what the format can say of it."""

    read: Callable[[Clients, str, Heard], Awaitable[None]]
    tells: Callable[[Understood], Understood] = lambda understood: understood
    whole: bool = False


def _refusals_as_text(understood: Understood) -> Understood:
    return understood._replace(text=understood.text + understood.refusal, refusal="")


def _of_messages(understood: Understood) -> Understood:
    """A refusal is an end there, whatever its words."""
    finish = "content_filter" if understood.refusal else understood.finish
    return _refusals_as_text(understood)._replace(finish=finish)


def _without_written(understood: Understood) -> Understood:
    counts = understood.counts
    return understood._replace(counts=counts and counts._replace(written=0))


READERS: dict[str, Reader] = {
    "native": Reader(native),
    "native-whole": Reader(whole_native, whole=True),
    "openai": Reader(chat_completions, _without_written),
    "openai-whole": Reader(whole_chat_completions, _without_written, whole=True),
    "anthropic": Reader(messages, _of_messages),
    "anthropic-whole": Reader(whole_messages, _of_messages, whole=True),
    "responses": Reader(responses),
    "responses-whole": Reader(whole_responses, whole=True),
    "ai-sdk": Reader(ai_sdk, lambda said: _refusals_as_text(_without_written(said))),
    "ag-ui": Reader(ag_ui, _refusals_as_text),
}
