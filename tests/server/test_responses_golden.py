"""OpenAI's SDK through us says the same as the SDK directly before a server of the same API."""

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from openai import AsyncOpenAI

from application import Run
from listening import listening
from millstream.providers.responses import ResponsesProvider
from millstream.providers.upstream import Upstream
from oracle import Oracle, Request, oracle

MESSAGE: dict[str, Any] = {
    "id": "msg_9",
    "type": "message",
    "status": "completed",
    "role": "assistant",
    "phase": "commentary",
    "content": [
        {
            "type": "output_text",
            "text": "It is so.",
            "annotations": [
                {
                    "type": "url_citation",
                    "url": "https://a.example/",
                    "title": "A",
                    "start_index": 3,
                    "end_index": 8,
                }
            ],
            "logprobs": [{"token": "It", "logprob": -0.5, "bytes": [73, 116], "top_logprobs": []}],
        }
    ],
}
THOUGHT: dict[str, Any] = {
    "id": "rs_9",
    "type": "reasoning",
    "summary": [{"type": "summary_text", "text": "Hm."}, {"type": "summary_text", "text": "So."}],
    "encrypted_content": "sealed",
}
PICTURE = {
    "id": "ig_9",
    "type": "image_generation_call",
    "status": "completed",
    "result": "UklGRiQA",
    "action": "generate",
    "background": "opaque",
    "output_format": "webp",
    "quality": "high",
    "revised_prompt": "A cat.",
    "size": "1024x1536",
}
RAW_THOUGHT: dict[str, Any] = {
    "id": "rs_8",
    "type": "reasoning",
    "summary": [],
    "content": [{"type": "reasoning_text", "text": "So it is."}],
}
CALL = {
    "id": "fc_9",
    "type": "function_call",
    "status": "completed",
    "call_id": "call_9",
    "name": "look",
    "arguments": '{"a":1}',
}
ANSWER: dict[str, Any] = {
    "id": "resp_9",
    "object": "response",
    "created_at": 1,
    "status": "completed",
    "error": None,
    "incomplete_details": None,
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "model": "m-2026",
    "output": [THOUGHT, MESSAGE, CALL, RAW_THOUGHT, PICTURE],
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "reasoning": {"effort": "low", "summary": "auto"},
    "service_tier": "default",
    "store": False,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [{"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": None}],
    "top_p": 1.0,
    "truncation": "disabled",
    "usage": {
        "input_tokens": 9,
        "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
        "output_tokens": 12,
        "output_tokens_details": {"reasoning_tokens": 3},
        "total_tokens": 21,
    },
}
ASKED: Mapping[str, Any] = {
    "model": "m",
    "temperature": 1.0,
    "top_p": 1.0,
    "reasoning": {"effort": "low", "summary": "auto"},
    "include": ["reasoning.encrypted_content", "message.output_text.logprobs"],
    "service_tier": "default",
    "prompt_cache_key": "cache",
    "text": {"verbosity": "low"},
    "tools": [{"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": None}],
    "store": False,
}


def events() -> list[dict[str, Any]]:
    """The frames of that answer, as OpenAI sends them."""
    begun = {**ANSWER, "status": "in_progress", "output": [], "usage": None}
    (text,) = MESSAGE["content"]
    thought = {"item_id": "rs_9", "output_index": 0}
    said = {"item_id": "msg_9", "output_index": 1, "content_index": 0}
    called = {"item_id": "fc_9", "output_index": 2}
    raw = {"item_id": "rs_8", "output_index": 3, "content_index": 0}
    empty = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    found: list[dict[str, Any]] = [
        {"type": "response.created", "response": begun},
        {"type": "response.in_progress", "response": begun},
        {"type": "response.output_item.added", "output_index": 0, "item": {**THOUGHT, "summary": []}},
    ]
    for index, part in enumerate(THOUGHT["summary"]):
        at = thought | {"summary_index": index}
        found += [
            {"type": "response.reasoning_summary_part.added", **at, "part": {**part, "text": ""}},
            {"type": "response.reasoning_summary_text.delta", **at, "delta": part["text"]},
            {"type": "response.reasoning_summary_text.done", **at, "text": part["text"]},
            {"type": "response.reasoning_summary_part.done", **at, "part": part},
        ]
    found += [
        {"type": "response.output_item.done", "output_index": 0, "item": THOUGHT},
        {
            "type": "response.output_item.added",
            "output_index": 1,
            "item": {**MESSAGE, "status": "in_progress", "content": []},
        },
        {"type": "response.content_part.added", **said, "part": empty},
        {"type": "response.output_text.delta", **said, "delta": "It ", "logprobs": text["logprobs"]},
        {"type": "response.output_text.delta", **said, "delta": "is so.", "logprobs": []},
        {
            "type": "response.output_text.annotation.added",
            **said,
            "annotation_index": 0,
            "annotation": text["annotations"][0],
        },
        {"type": "response.output_text.done", **said, "text": text["text"], "logprobs": text["logprobs"]},
        {"type": "response.content_part.done", **said, "part": text},
        {"type": "response.output_item.done", "output_index": 1, "item": MESSAGE},
        {
            "type": "response.output_item.added",
            "output_index": 2,
            "item": {**CALL, "status": "in_progress", "arguments": ""},
        },
        {"type": "response.function_call_arguments.delta", **called, "delta": '{"a"'},
        {"type": "response.function_call_arguments.delta", **called, "delta": ":1}"},
        {"type": "response.function_call_arguments.done", **called, "arguments": CALL["arguments"]},
        {"type": "response.output_item.done", "output_index": 2, "item": CALL},
        {"type": "response.output_item.added", "output_index": 3, "item": {**RAW_THOUGHT, "content": []}},
        {"type": "response.content_part.added", **raw, "part": {"type": "reasoning_text", "text": ""}},
        {"type": "response.reasoning_text.delta", **raw, "delta": "So it "},
        {"type": "response.reasoning_text.delta", **raw, "delta": "is."},
        {"type": "response.reasoning_text.done", **raw, "text": "So it is."},
        {"type": "response.content_part.done", **raw, "part": RAW_THOUGHT["content"][0]},
        {"type": "response.output_item.done", "output_index": 3, "item": RAW_THOUGHT},
        {"type": "response.output_item.added", "output_index": 4, "item": PICTURE},
        {"type": "response.output_item.done", "output_index": 4, "item": PICTURE},
        {"type": "response.completed", "response": ANSWER},
    ]
    return [{**event, "sequence_number": number} for number, event in enumerate(found)]


async def upstream(request: Request) -> None:
    if request.path.endswith("/models"):
        await request.answer(200, {"data": [{"id": "m"}]})
        return
    if not request.json.get("stream"):
        await request.answer(200, ANSWER)
        return
    await request.head()
    for event in events():
        await request.chunk(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
    await request.end()


@asynccontextmanager
async def both(run: Run) -> AsyncGenerator[tuple[Oracle, AsyncOpenAI, AsyncOpenAI]]:
    """The server, the SDK before it, and the SDK before us before it."""
    async with oracle(upstream) as server:
        provider = ResponsesProvider("up", server.base_url, Upstream("up", {}))
        async with (
            run({"up": provider}) as running,
            listening(running) as url,
            AsyncOpenAI(base_url=server.base_url, api_key="k") as direct,
            AsyncOpenAI(base_url=f"{url}/v1", api_key=running.key) as through,
        ):
            yield server, direct, through


def comparable(value: Any) -> Any:
    """Without what is ours: the response's id and time, and the ids of calls, which nobody wants back."""
    if isinstance(value, list):
        return [comparable(item) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {name: comparable(item) for name, item in value.items() if name != "created_at"}
    for name in ("id", "item_id"):
        if str(kept.get(name)).startswith(("resp_", "fc_")):
            del kept[name]
    if value.get("type") == "response.output_item.added":
        kept["item"] = {"type": value["item"]["type"]}
    return kept


def said(event: Any) -> Any:
    shown = comparable(event.to_dict())
    if event.type in ("response.created", "response.in_progress"):
        shown["response"] = {"status": shown["response"]["status"], "output": shown["response"]["output"]}
    if event.type == "response.completed":
        shown["response"] = answered(event.response)
    return shown


def answered(response: Any) -> Any:
    """The fields that the server has; ours has more, of those that are null."""
    return {name: value for name, value in comparable(response.to_dict()).items() if name in ANSWER}


async def test_frames_and_answers_are_the_same(run: Run) -> None:
    async with both(run) as (_, direct, through):
        asked: Any = {"input": "Hello", **ASKED, "text": {"format": {"type": "text"}}}
        expected = [said(event) async for event in await direct.responses.create(**asked, stream=True)]
        found = [said(event) async for event in await through.responses.create(**asked, stream=True)]
        assert found == expected
        whole = answered(await direct.responses.create(**asked))
        assert answered(await through.responses.create(**asked)) == whole


async def test_what_is_sent_back_reaches_the_server_as_it_was(run: Run) -> None:
    async with both(run) as (server, direct, through):
        for client in (direct, through):
            async with client.responses.stream(input="Hello", **ASKED) as stream:
                answer = await stream.get_final_response()
            result = {"type": "function_call_output", "call_id": "call_9", "output": "1"}
            history: Any = [{"role": "user", "content": "Hello"}, *answer.output, result]
            await client.responses.create(input=history, instructions="Be short.", **ASKED)
        asked = [request.json for request in server.requests if request.path.endswith("/responses")]
        _, expected, _, found = asked
        for name in {*ASKED, "instructions"} - {"tools"}:
            assert found[name] == expected[name], name
        assert found["tools"] == [{**tool, "strict": None} for tool in expected["tools"]]
        question, thought, message, call, raw, answered_call, shown = found["input"]
        assert question["content"] == [{"type": "input_text", "text": "Hello"}]
        sent = expected["input"]
        assert thought == {name: value for name, value in sent[1].items() if value is not None}
        assert (message["phase"], message["content"][0]["text"]) == ("commentary", "It is so.")
        assert call == {name: sent[3][name] for name in ("type", "call_id", "name", "arguments")}
        assert raw == {name: value for name, value in sent[4].items() if value is not None}
        assert answered_call == result
        assert shown["content"][1]["image_url"] == f"data:image/webp;base64,{PICTURE['result']}"
