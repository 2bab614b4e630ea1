"""The provider for OpenAI-compatible servers, against a server that does what each test says."""

import asyncio
import json
import re
import ssl
from collections.abc import Sequence
from contextlib import aclosing, nullcontext
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trustme

from descriptors import no_descriptors
from millstream.answer import Answer
from millstream.dialects.openai import OPENAI
from millstream.errors import ProviderError, UpstreamRateLimited
from millstream.events import (
    AnswerStart,
    Batch,
    File,
    Position,
    ReasoningDelta,
    RefusalDelta,
    Source,
    StreamEnd,
    StreamInfo,
    TextDelta,
)
from millstream.messages import ChatRequest
from millstream.prompt import Message, NamedTool, Prompt, Text, Tool, ToolCall, ToolResult
from millstream.providers import Finish, InChoice, Produced, ToolCallPiece, UsageReport
from millstream.providers.clocks import Clocks
from millstream.providers.known import KNOWN, Quirks
from millstream.providers.openai import OpenAIProvider
from millstream.providers.upstream import Upstream
from millstream.streams.parts import Assembler
from millstream.usage import Bill, Usage
from oracle import Handler, Request, oracle

RECORDINGS = Path(__file__).parent / "recordings"
OPENAI_WORDS = ("", "stop", "length", "tool_calls", "function_call", "content_filter")
START = AnswerStart("openai")  # of an answer that says nothing of itself
PROMPT = Prompt((Message("user", (Text("Hello"),)),))


def provider(base_url: str, **clocks: float) -> OpenAIProvider:
    return OpenAIProvider(
        "p", base_url, Upstream("p", {"Authorization": "Bearer sk-canary"}, Clocks(**clocks))
    )


async def produce(
    handler: Handler, prompt: Prompt = PROMPT, **clocks: float
) -> list[Produced | ProviderError]:
    """Everything the provider produced, or the error it ended with as the last item."""
    async with oracle(handler) as server:
        asked = provider(server.base_url, **clocks)
        produced: list[Produced | ProviderError] = []
        try:
            async for batch in asked.stream(prompt, "m"):
                produced.extend(batch)
        except ProviderError as error:
            produced.append(error)
        finally:
            await asked.close()
        return produced


def chunk(
    delta: dict[str, Any] | None = None, finish: str | None = None, **more: object
) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": delta or {}, "finish_reason": finish}], **more}


# -- what is read ----------------------------------------------------------------------------------


def recordings() -> list[Path]:
    return sorted(RECORDINGS.glob("*.json"))


@pytest.mark.parametrize("path", recordings(), ids=lambda p: p.stem)
@pytest.mark.parametrize("size", [1, 7, 1_000_000], ids=["bytes", "pieces", "whole"])
async def test_a_recorded_stream_is_read(path: Path, size: int) -> None:
    recording = json.loads(path.read_text(encoding="utf-8"))
    data = recording["stream"].encode()
    if size == 1 and len(data) > 10_000:
        size = 101

    async def handler(request: Request) -> None:
        lines = [f"HTTP/1.1 {recording.get('status', 200)} X", "transfer-encoding: chunked"]
        lines += recording.get("headers", ["content-type: text/event-stream"])
        await request.raw("\r\n".join(lines).encode() + b"\r\n\r\n")
        for start in range(0, len(data), size):
            await request.chunk(data[start : start + size])
        if how := recording.get("end"):
            request.cut(reset=how == "reset")
        else:
            await request.end()

    produced = await produce(handler)
    expected = recording["expected"]
    assert found(produced) == {name: expected.get(name, value) for name, value in found([]).items()} | {
        name: value for name, value in expected.items() if name != "error"
    }
    last = produced[-1]
    if "error" in expected:
        assert isinstance(last, ProviderError)
        assert {name: getattr(last, name) for name in expected["error"]} == expected["error"]
        # No HTTP status is named that nobody sent.
        assert "HTTP" not in str(last)
    else:
        assert isinstance(last, Finish)


def found(produced: Sequence[Produced | ProviderError]) -> dict[str, object]:
    """What a recording says that has to come of it. An id of ours is "*"."""
    calls: dict[int, dict[str, object]] = {}
    for piece in produced:
        if isinstance(piece, ToolCallPiece):
            begun: dict[str, object] = {"id": piece.call_id, "name": piece.name, "arguments": ""}
            if re.fullmatch("call_[0-9a-f]{24}", piece.call_id):
                begun["id"] = "*"
            call = calls.setdefault(piece.index, begun)
            if piece.extra_content:
                call["extra_content"] = piece.extra_content
            call["arguments"] = f"{call['arguments']}{piece.arguments}"
    finish = produced[-1] if produced and isinstance(produced[-1], Finish) else None
    reports = [item for item in produced if isinstance(item, UsageReport)]
    failed = bool(produced) and finish is None
    usage = finish.usage if finish else reports[-1].usage if failed and reports else None
    counts = (
        {}
        if usage is None
        else {k: v for k, v in msgspec.structs.asdict(usage).items() if v or k == "prompt_tokens"}
    )
    if finish and usage:
        assert counts.pop("source") == "provider_final"
    cost = reports[-1].cost if reports else None
    return {
        "text": "".join(p.text for p in produced if isinstance(p, TextDelta)),
        "reasoning": "".join(p.text for p in produced if isinstance(p, ReasoningDelta)),
        "refusal": "".join(p.text for p in produced if isinstance(p, RefusalDelta)),
        "files": [{"media_type": p.media_type, "url": p.url} for p in produced if isinstance(p, File)],
        "tool_calls": list(calls.values()),
        "finish_reason": finish.reason if finish else None,
        **({"word": finish.word} if finish and finish.word not in OPENAI_WORDS else {}),
        "usage": counts or None,
        "cost": None if cost is None else str(cost),
    }


async def test_the_request_asks_for_usage_and_nothing_of_ours_is_in_it() -> None:
    seen: dict[str, Any] = {}

    async def handler(request: Request) -> None:
        seen.update(request.json, headers=request.headers)
        await request.head()
        await request.finish()

    request = ChatRequest.model_validate(
        {
            "model": "ours",
            "messages": [{"role": "user", "content": "Hello"}],
            "max_tokens": 5,
            "on_disconnect": {"grace_seconds": 3},
            "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"a": 1}}},
        }
    )
    await produce(handler, request.to_prompt())
    headers = seen.pop("headers")
    assert seen == {
        "model": "m",
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 5,
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"a": 1}}},
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert headers["authorization"] == "Bearer sk-canary"
    assert headers["accept-encoding"] == "identity"


async def test_what_a_provider_does_differently_is_in_the_request() -> None:
    seen: dict[str, Any] = {}

    async def handler(request: Request) -> None:
        seen.update(request.json)
        await request.head()
        await request.finish()

    quirks = Quirks(stream_options=False, renamed={"max_tokens": "most", "seed": "s"}, refused=("user",))
    request = ChatRequest.model_validate(
        {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5, "seed": 1, "user": "u"}
    )
    async with oracle(handler) as server:
        asked = OpenAIProvider("p", server.base_url, Upstream("p", {}), quirks=quirks)
        assert [batch async for batch in asked.stream(request.to_prompt(), "m")]
        await asked.close()
    del seen["messages"]
    assert seen == {"model": "m", "most": 5, "s": 1, "stream": True}


@pytest.mark.parametrize(
    ("vendor", "wanted"),
    [
        ("deepseek", {"reasoning_content": "hm"}),
        ("openrouter", {"reasoning": "hm"}),
        ("gemini", {"extra_content": {"google": {"thought_signature": "c2ln"}}}),
        ("openai", {}),
        ("mistral", {}),
    ],
)
async def test_in_a_tool_loop_a_provider_gets_back_what_it_wants(vendor: str, wanted: dict[str, Any]) -> None:
    seen: dict[str, Any] = {}

    async def handler(request: Request) -> None:
        seen.update(request.json)
        await request.head()
        await request.finish()

    call = {"id": "call_a", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    extra = {"extra_content": {"google": {"thought_signature": "c2ln"}}}
    answer = {"role": "assistant", "content": None, "reasoning_content": "hm", "refusal": None}
    request = ChatRequest.model_validate(
        {
            "messages": [
                {"role": "user", "content": "Hello"},
                answer | {"tool_calls": [call | extra]},
                {"role": "tool", "tool_call_id": "call_a", "content": "seen"},
            ]
        }
    )
    quirks = next(known.quirks for known in KNOWN if known.name == vendor)
    async with oracle(handler) as server:
        asked = OpenAIProvider("p", server.base_url, Upstream("p", {}), quirks=quirks)
        assert [batch async for batch in asked.stream(request.to_prompt(), "m")]
        await asked.close()
    sent = seen["messages"][1]
    back = {k: v for k, v in sent.items() if k not in ("role", "content", "tool_calls")}
    back |= {k: v for k, v in sent["tool_calls"][0].items() if k not in call}
    assert back == wanted


async def test_what_a_provider_says_differently_can_be_set() -> None:
    quirks = Quirks(
        ends={"wound_up": "length", "gave_up": "failed"}, cached_at="cache.read", models_path="all"
    )
    words = ["wound_up", "gave_up"]

    async def handler(request: Request) -> None:
        if request.path == "/v1/all":
            return await request.answer(200, ["a"])
        await request.head()
        usage = {"prompt_tokens": 9, "completion_tokens": 1, "cache": {"read": 4}}
        await request.event(chunk({"content": "a"}, words.pop(0), usage=usage))
        return await request.end()

    async with oracle(handler) as server:
        asked = OpenAIProvider("p", server.base_url, Upstream("p", {}), quirks=quirks)
        assert await asked.models() == ["a"]
        *_, finish = [item async for batch in asked.stream(PROMPT, "m") for item in batch]
        assert finish == Finish("length", Usage(9, 1, "provider_final", 4), "wound_up")
        with pytest.raises(ProviderError, match="reported an error"):
            assert [batch async for batch in asked.stream(PROMPT, "m")]
        await asked.close()


async def test_what_the_first_chunk_says_of_the_answer_comes_before_it() -> None:
    more: dict[str, Any] = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 7,
        "model": "m-2026",
        "system_fingerprint": "fp_1",
        "service_tier": None,
    }

    async def handler(request: Request) -> None:
        await request.head()
        await request.event(chunk({"role": "assistant", "content": ""}, **more))
        await request.event(chunk({"content": "a"}, **more))
        await request.finish()

    start = AnswerStart("openai", "chatcmpl-1", "m-2026", extra={"created": 7, "system_fingerprint": "fp_1"})
    assert await produce(handler) == [start, TextDelta("a"), Finish("stop", None, "stop")]


@pytest.mark.parametrize("more", [{}, {"id": None, "model": 5}, {"id": ["x"], "created": None}])
async def test_an_answer_that_says_nothing_of_itself_is_an_answer(more: dict[str, Any]) -> None:
    async def handler(request: Request) -> None:
        await request.head()
        await request.event(chunk({"content": "a"}, "stop", **more))
        await request.event(b"[DONE]")
        await request.end()

    assert await produce(handler) == [START, TextDelta("a"), Finish("stop", None, "stop")]


async def test_only_the_first_of_several_choices_is_taken() -> None:
    async def handler(request: Request) -> None:
        await request.head()
        await request.event(
            {"choices": [{"index": 1, "delta": {"content": "b"}}, {"index": 0, "delta": {"content": "a"}}]}
        )
        await request.finish()

    assert await produce(handler) == [START, TextDelta("a"), Finish("stop", None, "stop")]


async def test_several_answers_are_told_apart() -> None:
    seen: dict[str, Any] = {}

    def choice(index: int, finish: str | None = None, **delta: object) -> dict[str, object]:
        return {"index": index, "delta": delta, "finish_reason": finish}

    async def handler(request: Request) -> None:
        seen.update(request.json)
        await request.head()
        call = {"index": 0, "id": "call_1", "function": {"name": "look", "arguments": "{}"}}
        await request.event({"choices": [choice(1, content="B"), choice(0, content="a")]})
        await request.event({"choices": [choice(2, reasoning_content="hm"), choice(3, content="too many")]})
        await request.event({"choices": [choice(1, "length"), choice(2, "stop", tool_calls=[call])]})
        await request.finish()

    assert await produce(handler, Prompt(PROMPT.messages, choices=3)) == [
        START,
        InChoice(1, TextDelta("B")),
        TextDelta("a"),
        InChoice(2, ReasoningDelta("hm")),
        InChoice(2, ToolCallPiece(0, "{}", "call_1", "look")),
        InChoice(1, Finish("length", None)),
        InChoice(2, Finish("tool_calls", None)),
        Finish("stop", None, "stop"),
    ]
    assert seen["n"] == 3


async def test_a_tool_whose_name_is_too_long_is_called_by_another_and_has_its_own_in_the_answer() -> None:
    """As tools of MCP servers have them, of which the clients of Anthropic take 128 characters."""
    long, fits = [f"mcp__{'x' * 70}{end}" for end in "ab"], "y" * 64
    seen: dict[str, Any] = {}

    async def handler(request: Request) -> None:
        seen.update(request.json)
        names = [tool["function"]["name"] for tool in request.json["tools"]]
        calls = [{"index": i, "id": name, "function": {"name": name}} for i, name in enumerate(names)]
        await request.head()
        for index in (0, 1):
            await request.event({"choices": [{"index": index, "delta": {"tool_calls": calls}}]})
        await request.event({"choices": [{"index": 1, "delta": {}, "finish_reason": "tool_calls"}]})
        await request.finish("tool_calls")

    history = (
        Message("assistant", (ToolCall("call_1", long[0], "{}"),)),
        Message("tool", (ToolResult("call_1", (Text("7"),), name=long[0]),)),
    )
    tools, choice = tuple(Tool(name) for name in (*long, fits)), NamedTool(long[1])
    produced = await produce(handler, Prompt((*PROMPT.messages, *history), None, tools, choice, choices=2))
    names = [tool["function"]["name"] for tool in seen["tools"]]
    assert [len(name) for name in names] == [64, 64, 64]
    assert (len(set(names)), names[2]) == (3, fits)
    assert names[0].startswith("mcp__x")
    assert seen["tool_choice"]["function"]["name"] == names[1]
    assert seen["messages"][1]["tool_calls"][0]["function"]["name"] == names[0]
    assert seen["messages"][2]["name"] == names[0]
    of_first = [item.name for item in produced if isinstance(item, ToolCallPiece)]
    others = [item.item for item in produced if isinstance(item, InChoice)]
    assert of_first == [item.name for item in others if isinstance(item, ToolCallPiece)] == [*long, fits]


async def test_an_answer_behind_the_first_one_is_waited_for() -> None:
    """Also where every chunk has usage, so that the first one lacks nothing."""
    usage = {"usage": {"prompt_tokens": 5, "completion_tokens": 2}}

    async def handler(request: Request) -> None:
        await request.head()
        await request.event({"choices": [{"index": 1, "delta": {"content": "The long "}}], **usage})
        await request.event(
            {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}], **usage}
        )
        request.cut(reset=True)

    produced = await produce(handler, Prompt(PROMPT.messages, choices=2))
    assert isinstance(produced[-1], ProviderError)


async def test_several_answers_may_come_whole() -> None:
    async def handler(request: Request) -> None:
        choices = [
            {"index": i, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            for i, text in ((1, "b"), (0, "a"))
        ]
        await request.answer(200, {"id": "chatcmpl-1", "choices": choices})

    assert await produce(handler, Prompt(PROMPT.messages, choices=2)) == [
        AnswerStart("openai", "chatcmpl-1"),
        InChoice(1, TextDelta("b")),
        TextDelta("a"),
        InChoice(1, Finish("stop", None)),
        Finish("stop", None, "stop"),
    ]


async def test_what_text_is_worth_and_what_it_rests_on_is_kept() -> None:
    logprobs = {
        "content": [{"token": "a", "logprob": -0.1, "bytes": [97], "top_logprobs": []}],
        "refusal": None,
    }
    page = {"type": "url_citation", "url_citation": {"url": "https://example.org/", "title": "Example"}}

    async def handler(request: Request) -> None:
        await request.head()
        said = {"index": 0, "delta": {"content": "a"}, "logprobs": logprobs}
        await request.event({"choices": [said]})
        pages: list[object] = [page, {"url_citation": {"url": "https://b.example/", "title": 1}}, {}, None, 1]
        await request.event({"choices": [{"index": 0, "delta": {"annotations": pages}}]})
        await request.finish()

    assert await produce(handler) == [
        START,
        TextDelta("a", extra={"logprobs": logprobs}),
        Source("https://example.org/", "Example"),
        Source("https://b.example/"),
        Finish("stop", None, "stop"),
    ]


async def test_a_source_that_is_repeated_is_one() -> None:
    def cited(number: int) -> dict[str, Any]:
        return {"type": "url_citation", "url_citation": {"url": f"https://{number}.example/", "title": ""}}

    async def handler(request: Request) -> None:
        await request.head()
        for words in ("Hel", "lo", "!"):
            await request.event(chunk({"content": words, "annotations": [cited(1), cited(2)]}))
        await request.event(chunk({"annotations": [cited(2), cited(3)]}, "stop"))
        await request.finish()

    produced = await produce(handler)
    assert [item.url for item in produced if isinstance(item, Source)] == [
        f"https://{number}.example/" for number in (1, 2, 3)
    ]


async def test_sources_without_end_do_not_end_the_answer() -> None:
    def cited(start: int) -> dict[str, Any]:
        place = {"url": "https://a.example/", "title": "", "start_index": start, "end_index": start + 1}
        return {"type": "url_citation", "url_citation": place}

    async def handler(request: Request) -> None:
        await request.head()
        for start in range(0, 3000, 100):
            pages = [cited(place) for place in range(start, start + 100)]
            await request.event(chunk({"content": "x", "annotations": pages}))
        await request.event(chunk({}, "stop"))
        await request.finish()

    produced = await produce(handler)
    assert sum(isinstance(item, Source) for item in produced) == 500
    assert sum(isinstance(item, TextDelta) for item in produced) == 30


async def test_a_page_that_is_cited_in_two_places_is_two_sources() -> None:
    def cited(start: object, end: object) -> dict[str, Any]:
        said = {"url": "https://a.example/", "title": "A", "start_index": start, "end_index": end}
        return {"type": "url_citation", "url_citation": said}

    async def handler(request: Request) -> None:
        await request.head()
        pages = [cited(0, 2), cited(3, 5), cited(0, 2), cited(-1, 10**30), cited("x", None)]
        await request.event(chunk({"content": "Hello", "annotations": pages}, "stop"))
        await request.finish()

    produced = await produce(handler)
    assert [item for item in produced if isinstance(item, Source)] == [
        Source("https://a.example/", "A", 0, 2),
        Source("https://a.example/", "A", 3, 5),
        Source("https://a.example/", "A"),
    ]


async def test_what_tokens_are_worth_is_kept_wherever_they_are() -> None:
    thought, name, arguments, half = (
        {"content": [{"token": token, "logprob": -0.1}], "refusal": None}
        for token in ("So", "look", "{}", "\\xf0")
    )
    first = {"index": 0, "id": "call_1", "function": {"name": "look", "arguments": ""}}
    no = {"content": None, "refusal": [{"token": "No", "logprob": -0.2}], "token_logprob": -0.2}

    async def handler(request: Request) -> None:
        await request.head()
        for delta, logprobs in (
            ({"reasoning_content": "So"}, thought),
            ({"tool_calls": [first]}, name),
            ({"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]}, arguments),
            ({"content": ""}, half),
            ({"content": ""}, {"content": []}),
            ({"refusal": "No"}, no),
        ):
            await request.event({"choices": [{"index": 0, "delta": delta, "logprobs": logprobs}]})
        await request.finish()

    produced = await produce(handler)
    assert produced == [
        START,
        ReasoningDelta("So", extra={"logprobs": thought}),
        ToolCallPiece(0, "", "call_1", "look", extra={"logprobs": name}),
        ToolCallPiece(0, "{}", extra={"logprobs": arguments}),
        TextDelta("", extra={"logprobs": half}),
        RefusalDelta("No", extra={"logprobs": no}),
        Finish("tool_calls", None, "stop"),
    ]
    assembler, answer = Assembler(), Answer()
    answer.add(assembler.feed([item for item in produced if not isinstance(item, ProviderError)]))
    answer.add([*assembler.close(), StreamEnd("stop", Bill(Usage(1, 1, "counted"), None))])
    shown = json.loads(OPENAI.answer(StreamInfo("str_1", "k", "m", 5.0), answer))
    worth = [token for said in (thought, name, arguments, half) for token in said["content"] or ()]
    assert shown["choices"][0]["logprobs"] == {"content": worth, "refusal": no["refusal"]}


def details(kind: str, **said: object) -> dict[str, Any]:
    return {"reasoning_details": [{"type": f"reasoning.{kind}", "index": 0, **said}]}


async def test_details_of_reasoning_go_back_to_the_client_whole() -> None:
    """OpenRouter wants them back in a tool loop, unchanged: https://openrouter.ai/docs/use-cases/reasoning-tokens"""
    so, on = details("text", text="So", signature=None), details("text", text=" on")
    signed, secret = details("text", signature="c2ln"), details("encrypted", data="x", id="call_1")
    both = {"reasoning_details": signed["reasoning_details"] + secret["reasoning_details"]}
    call = {"index": 0, "id": "call_1", "function": {"name": "look", "arguments": "{}"}}

    async def handler(request: Request) -> None:
        await request.head()
        await request.event(chunk({"reasoning": "So", **so}))
        await request.event(chunk({"content": "", **on}))
        await request.event(chunk({"content": "", **signed}))
        await request.event(chunk({"content": "", "reasoning": None, **secret}))
        await request.event(chunk({"tool_calls": [call]}))
        await request.event(chunk({"content": "", **secret}, "tool_calls"))
        await request.finish()

    produced = await produce(handler)
    assert produced[1:-1] == [
        ReasoningDelta("So", extra=so),
        ReasoningDelta(" on", extra=on),
        ToolCallPiece(0, "{}", "call_1", "look", extra=both),
        ToolCallPiece(0, "", extra=secret),
    ]
    info = StreamInfo("str_1", "k", "m", 5.0)
    assembler, answer = Assembler(), Answer()
    events = assembler.feed([item for item in produced if not isinstance(item, ProviderError)])
    events += [*assembler.close(), StreamEnd("stop", Bill(Usage(1, 1, "counted"), None))]
    frames = OPENAI.encode(info, Batch(Position(1, 1), events), Answer).split(b"\n\n")
    chunks = [json.loads(frame[6:]) for frame in frames if frame[6:7] == b"{"]
    deltas = [choice["delta"] for said in chunks for choice in said["choices"]]
    told = [delta["reasoning_details"] for delta in deltas if "reasoning_details" in delta]
    assert told == [said["reasoning_details"] for said in (so, on, both, secret)]
    answer.add(events)
    message = json.loads(OPENAI.answer(info, answer))["choices"][0]["message"]
    whole = details("text", text="So on", signature="c2ln")["reasoning_details"]
    assert message["reasoning_details"] == whole + secret["reasoning_details"] * 2


@pytest.mark.parametrize(
    ("said", "last"),
    [
        ({"content": "a"}, TextDelta("", extra=details("encrypted"))),
        ({"reasoning": "a"}, ReasoningDelta("", extra=details("encrypted"))),
        ({"content": ""}, ReasoningDelta("", extra=details("encrypted"))),
    ],
)
async def test_details_that_no_words_follow_come_with_the_end(said: dict[str, str], last: Produced) -> None:
    async def handler(request: Request) -> None:
        await request.head()
        for index in (0, 1):
            choices = [{"index": index, "delta": delta} for delta in (said, details("encrypted"))]
            await request.event({"choices": choices})
        await request.event(chunk(finish="stop"))
        await request.finish()

    produced = await produce(handler, Prompt(PROMPT.messages, choices=2))
    assert last in produced
    assert InChoice(1, last) in produced  # type: ignore[arg-type]


async def test_a_finish_reason_and_a_clean_end_are_an_end_without_done() -> None:
    async def handler(request: Request) -> None:
        await request.head()
        await request.say("a")
        await request.event(chunk(finish="length"))
        await request.end()

    assert (await produce(handler))[-1] == Finish("length", None, "length")


async def test_an_empty_answer_is_an_answer() -> None:
    async def handler(request: Request) -> None:
        await request.head()
        await request.finish()

    assert await produce(handler) == [START, Finish("stop", None, "stop")]


@pytest.mark.parametrize(
    ("usages", "expected"),
    [
        (
            [{"prompt_tokens": 5, "completion_tokens": 1}, {"prompt_tokens": 5, "completion_tokens": 3}],
            (5, 3),
        ),
        (
            [{"prompt_tokens": 5, "completion_tokens": 3}, {"prompt_tokens": 5, "completion_tokens": -1}],
            None,
        ),
        ([{"prompt_tokens": 5, "completion_tokens": 10**12}], None),
        ([{"prompt_tokens": True, "completion_tokens": 1}], (0, 1)),
        ([{"prompt_tokens": 1.5, "completion_tokens": "x"}], None),
        ([[1, 2]], None),
        (["nonsense"], None),
        ([{}], None),
    ],
)
async def test_usage_is_the_last_that_can_be_true(
    usages: list[object], expected: tuple[int, int] | None
) -> None:
    async def handler(request: Request) -> None:
        await request.head()
        for usage in usages:
            await request.event(chunk({"content": "a"}, usage=usage))
        await request.finish()

    finish = (await produce(handler))[-1]
    assert isinstance(finish, Finish)
    usage = finish.usage
    assert (usage and (usage.prompt_tokens, usage.completion_tokens)) == expected


async def test_usage_that_text_came_after_is_not_final() -> None:
    async def handler(request: Request) -> None:
        await request.head()
        await request.event(chunk({"content": "a"}, usage={"prompt_tokens": 5, "completion_tokens": 1}))
        await request.say("b c d")
        await request.finish()

    finish = (await produce(handler))[-1]
    assert isinstance(finish, Finish)
    assert finish.usage is None


# -- what goes wrong -------------------------------------------------------------------------------


async def cut(request: Request) -> None:
    await request.head()
    await request.say("a")
    request.cut()


async def reset(request: Request) -> None:
    await request.head()
    await request.say("a")
    request.cut(reset=True)


async def unfinished(request: Request) -> None:
    await request.head()
    await request.say("a")
    await request.end()


async def broken_json(request: Request) -> None:
    await request.head()
    await request.say("a")
    await request.event(b"{nonsense")


async def html(request: Request) -> None:
    await request.answer(200, b"<html>", ["content-type: text/html"])


async def plain_json(request: Request) -> None:
    await request.answer(200, {"choices": []})


async def compressed(request: Request) -> None:
    await request.answer(200, b"x", ["content-type: text/event-stream", "content-encoding: gzip"])


async def error_event(request: Request) -> None:
    await request.head()
    await request.say("a")
    await request.event({"error": {"message": "sk-canary is bad", "code": "server_error"}})
    await request.event(b"[DONE]")
    await request.end()


async def error_finish(request: Request) -> None:
    await request.head()
    await request.event(chunk({"content": ""}, finish="error"))


async def endless_line(request: Request) -> None:
    await request.head()
    while True:
        await request.chunk(b"x" * 65_536)


async def endless_event(request: Request) -> None:
    await request.head()
    while True:
        await request.chunk(b"data: x\n" * 8192)


async def redirect(request: Request) -> None:
    await request.answer(302, b"", ["location: http://169.254.169.254/"])


def status(code: int, error: dict[str, str] | None = None, *headers: str) -> Handler:
    async def handler(request: Request) -> None:
        await request.answer(code, {"error": error or {"message": "sk-canary"}}, headers)

    return handler


FAILURES = [
    (cut, "upstream_error", True),
    (reset, "upstream_error", True),
    (unfinished, "upstream_error", True),
    (broken_json, "upstream_error", True),
    (html, "upstream_error", True),
    (plain_json, "upstream_error", True),
    (compressed, "upstream_error", True),
    (error_event, "upstream_error", True),
    (error_finish, "upstream_error", True),
    (endless_line, "upstream_error", True),
    (endless_event, "upstream_error", True),
    (redirect, "upstream_error", True),
    (
        status(400, {"code": "context_length_exceeded", "message": "sk-canary"}),
        "context_length_exceeded",
        False,
    ),
    (status(401), "upstream_refused", False),
    (status(404), "model_not_found", False),
    (status(408), "upstream_timeout", True),
    (status(429), "upstream_rate_limited", True),
    (status(524), "upstream_timeout", True),
    (status(500), "upstream_error", True),
    (status(503), "upstream_error", True),
    (status(529), "upstream_error", True),
]


@pytest.mark.parametrize(
    ("handler", "code", "retryable"), FAILURES, ids=lambda v: getattr(v, "__name__", None)
)
async def test_every_failure_is_one_of_the_list_and_says_nothing_of_the_provider(
    handler: Handler, code: str, retryable: bool
) -> None:
    error = (await produce(handler))[-1]
    assert isinstance(error, ProviderError)
    assert (error.code, error.retryable) == (code, retryable)
    assert "canary" not in str(error)
    assert "127.0.0.1" not in str(error)


@pytest.mark.parametrize("cut", ["", "\n"])
async def test_an_error_that_comes_late_and_outside_of_events_is_an_error(cut: str) -> None:
    """Gemini writes it so, on many lines (google-genai's client reads lines until they are JSON)."""
    error = {"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "no more\n\nfor now"}}

    async def handler(request: Request) -> None:
        await request.head()
        await request.event(chunk({"content": "Hel"}))
        await request.chunk((json.dumps(error, indent=2) + cut).encode())
        await request.end()

    said, failed = (await produce(handler))[-2:]
    assert said == TextDelta("Hel")
    assert isinstance(failed, UpstreamRateLimited)


@pytest.mark.parametrize("odd", ["{", '{"note": 1}\n', "[1]\n\n", '{"error": null}\n', "{" * 100_000 + "\n"])
async def test_what_stands_outside_of_events_and_is_no_error_is_passed_over(odd: str) -> None:
    async def handler(request: Request) -> None:
        await request.head()
        await request.event(chunk({"content": "Hello"}, "stop"))
        await request.chunk(odd.encode())
        await request.end()

    assert isinstance((await produce(handler))[-1], Finish)


async def test_a_whole_answer_with_bytes_that_are_no_characters_is_an_answer() -> None:
    async def handler(request: Request) -> None:
        body = b' \n{"choices":[{"index":0,"message":{"content":"h\xff i"},"finish_reason":"stop"}],"odd":"\xfe"}'
        await request.answer(200, body)

    produced = await produce(handler)
    assert TextDelta("h\ufffd i") in produced
    assert isinstance(produced[-1], Finish)


@pytest.mark.parametrize("body", [b"[" * 30_000, b'{"error":' * 5000, b"\xff", b"1" * 60_000])
async def test_a_refusal_of_any_form_is_a_refusal(body: bytes) -> None:
    async def refuse(request: Request) -> None:
        await request.answer(400, body)

    error = (await produce(refuse))[-1]
    assert isinstance(error, ProviderError)
    assert error.code == "upstream_refused"


async def test_a_flood_of_comments_does_not_hold_up_others() -> None:
    async def flood(request: Request) -> None:
        await request.head()
        for _ in range(64):
            await request.chunk(b":abc\n" * 13_000)
        await request.finish()

    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    others = asyncio.create_task(count())
    await produce(flood)
    others.cancel()
    assert turns > 32  # at least once for each read, of which none is over 128 KiB


async def test_a_known_reason_is_told_in_our_words() -> None:
    error = (await produce(status(400, {"code": "context_length_exceeded"})))[-1]
    assert str(error) == (
        "provider 'p' refused the request (HTTP 400): the prompt is too long for the model's context"
    )


FAR = "Wed, 21 Oct 2015 07:28:00 +99999999999999999"


@pytest.mark.parametrize(
    ("value", "seconds"), [("7", 7), ("1.5", 2), ("999999", 3600), ("soon", None), (FAR, None)]
)
async def test_the_providers_retry_after_is_kept(value: str, seconds: int | None) -> None:
    error = (await produce(status(429, None, f"retry-after: {value}")))[-1]
    assert isinstance(error, ProviderError)
    assert error.retry_after_seconds == seconds


async def test_a_date_to_retry_after_is_told_by_the_providers_own_clock() -> None:
    error = (
        await produce(
            status(
                503,
                None,
                "date: Wed, 21 Oct 2015 07:28:00 GMT",
                "retry-after: Wed, 21 Oct 2015 07:28:30 GMT",
            )
        )
    )[-1]
    assert isinstance(error, ProviderError)
    assert (error.code, error.retry_after_seconds) == ("upstream_error", 30)


async def test_milliseconds_to_retry_after_are_more_exact() -> None:
    error = (await produce(status(429, None, "retry-after: 20", "retry-after-ms: 1500")))[-1]
    assert isinstance(error, ProviderError)
    assert error.retry_after_seconds == 2


@pytest.mark.parametrize(
    ("code", "body", "error_code", "words"),
    [
        (403, {"error": {"code": "unsupported_country_region_territory"}}, "upstream_refused", "region"),
        (403, {"error": {"code": 403, "metadata": {"reasons": ["x"]}}}, "upstream_refused", "content filter"),
        (403, {"error": {"message": "no", "metadata": 7}}, "upstream_refused", "may not do this"),
        (402, {"error": {"message": "no"}}, "upstream_refused", "quota is used up"),
        (404, b"<html>not here</html>", "upstream_refused", "base URL"),
        (404, {"detail": "Not Found"}, "upstream_refused", "base URL"),
        (404, {"error": {"message": "Invalid URL (POST /v1/v1/chat)"}}, "upstream_refused", "base URL"),
        (404, {"error": "model 'x' not found, try pulling it first"}, "model_not_found", "no such model"),
        (404, {"object": "error", "type": "NotFoundError", "code": 404}, "model_not_found", "no such model"),
        (429, {"error": {"code": "insufficient_quota"}}, "upstream_refused", "quota is used up"),
        (429, {"error": {"type": "tokens", "code": "rate_limit_exceeded"}}, "upstream_rate_limited", "limit"),
        (400, {"error": {"type": "invalid_request_error"}}, "upstream_refused", "HTTP 400"),
        (400, [{"error": {"code": 400, "status": "INVALID_ARGUMENT"}}], "upstream_refused", "HTTP 400"),
        (413, b"", "upstream_refused", "longer"),
        (400, {"message": "the maximum context length is 8"}, "context_length_exceeded", "context"),
        (400, {"error": {"code": "string_above_max_length"}}, "upstream_refused", "one of the texts"),
        (400, {"error": {"message": "Your credit balance is too low to…"}}, "upstream_refused", "quota"),
        (503, {"error": {"type": "overloaded_error"}}, "upstream_error", "overloaded"),
        (500, {"error": {"type": "invalid_request_error"}}, "upstream_error", "HTTP 500"),
    ],
)
async def test_a_refusal_is_said_as_what_it_is(code: int, body: object, error_code: str, words: str) -> None:
    async def refuse(request: Request) -> None:
        await request.answer(code, body)

    error = (await produce(refuse))[-1]
    assert isinstance(error, ProviderError)
    assert error.code == error_code
    assert words in str(error)
    assert not error.accepted


@pytest.mark.parametrize(
    "message",
    [
        "prompt is too long: 213462 tokens > 200000 maximum",
        "input length and `max_tokens` exceed context limit: 190000 + 20000 > 200000",
        "The input token count (1196265) exceeds the maximum number of tokens allowed (1048575).",
        "This endpoint's maximum context length is 131072 tokens. However, you requested about 200000.",
        "Prompt contains 65673 tokens and 0 draft tokens, too large for model with 32768 maximum context length",
        "This model's maximum prompt length is 131072 but the request contains 537812 tokens.",
        "Your input exceeds the context window of this model. Please adjust your input and try again.",
        "the request exceeds the available context size. try increasing the context size",
        "`inputs` tokens + `max_new_tokens` must be <= 8193. Given: 9000 `inputs` tokens",
        "Invalid request: Your request exceeded model token limit: 8192",
    ],
)
async def test_a_conversation_that_is_too_long_is_known_by_what_is_said_of_it(message: str) -> None:
    async def refuse(request: Request) -> None:
        await request.answer(400, {"error": {"type": "invalid_request_error", "message": message}})

    async def fail(request: Request) -> None:
        await request.head()
        await request.event({"error": {"message": message, "code": "400"}})
        await request.end()

    async def quote(request: Request) -> None:
        await request.answer(400, {"error": {"message": f"cannot read {'x' * 400}{message}"}})

    errors = [(await produce(handler))[-1] for handler in (refuse, fail, quote)]
    codes = [error.code for error in errors if isinstance(error, ProviderError)]
    assert codes == ["context_length_exceeded", "context_length_exceeded", "upstream_refused"]


async def test_text_before_a_cut_is_kept_whatever_the_byte(tmp_path: Path) -> None:
    """Cut inside an event, inside a character, inside a chunk's header: no piece is half."""
    events = b"".join(
        b"data: " + json.dumps(chunk({"content": text}), ensure_ascii=False).encode() + b"\n\n"
        for text in ("Grüße", "€", "😀")
    )
    for at in range(0, len(events), 5):

        async def handler(request: Request, at: int = at) -> None:
            await request.head()
            await request.chunk(events[:at])
            request.cut()

        produced = await produce(handler)
        error = produced[-1]
        assert isinstance(error, ProviderError)
        assert error.code == "upstream_error"
        text = "".join(p.text for p in produced if isinstance(p, TextDelta))
        assert text in ("", "Grüße", "Grüße€", "Grüße€😀")


async def silent_before_headers(request: Request) -> None:
    await asyncio.Event().wait()


async def silent_before_the_first_byte(request: Request) -> None:
    await request.head()
    await asyncio.Event().wait()


async def silent_between_tokens(request: Request) -> None:
    await request.head()
    await request.say("a")
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("handler", "clocks"),
    [
        (silent_before_headers, {"first_byte": 0.1}),
        (silent_before_the_first_byte, {"first_byte": 0.1}),
        (silent_between_tokens, {"first_byte": 30, "idle": 0.1}),
    ],
)
async def test_silence_ends_when_its_clock_does(handler: Handler, clocks: dict[str, float]) -> None:
    async with asyncio.timeout(5):
        error = (await produce(handler, PROMPT, **clocks))[-1]
    assert isinstance(error, ProviderError)
    assert error.code == "upstream_timeout"


async def role_then_silence(request: Request) -> None:
    await request.head()
    await request.event(chunk({"role": "assistant", "content": ""}))
    await asyncio.Event().wait()


async def test_who_thinks_in_silence_has_the_clock_of_the_first_content() -> None:
    async def think(request: Request) -> None:
        await request.head()
        await request.event(chunk({"role": "assistant", "content": ""}))
        await asyncio.sleep(0.5)
        await request.say("a")
        await request.finish()

    produced = await produce(think, idle=0.1)
    assert isinstance(produced[-1], Finish)
    error = (await produce(role_then_silence, first_content=0.2))[-1]
    assert isinstance(error, ProviderError)
    assert str(error) == "provider 'p' did not begin its answer in 0.2 s"


@pytest.mark.parametrize("ping", [b": still here\n\n", b"event: ping\ndata: {}\n\n"])
@pytest.mark.parametrize("documented", [True, False])
async def test_pings_are_signs_of_life_where_they_are_documented(ping: bytes, documented: bool) -> None:
    async def handler(request: Request) -> None:
        await request.head()
        await request.say("a")
        for _ in range(20):
            await asyncio.sleep(0.05)
            await request.chunk(ping)
        await request.finish()

    async with oracle(handler) as server:
        upstream = Upstream("p", {}, Clocks(idle=0.5), pings=documented)
        asked = OpenAIProvider("p", server.base_url, upstream)
        expected = nullcontext() if documented else pytest.raises(ProviderError, match="was silent for")
        with expected:
            batches = [batch async for batch in asked.stream(PROMPT, "m")]
            assert isinstance(batches[-1][-1], Finish)
        await asked.close()


async def test_an_answer_that_is_complete_does_not_wait_for_its_form() -> None:
    """Finish reason and usage are there; [DONE] and the end of the connection are not."""

    async def handler(request: Request) -> None:
        await request.head()
        await request.event(
            chunk({"content": "a"}, "stop", usage={"prompt_tokens": 1, "completion_tokens": 1})
        )
        await asyncio.Event().wait()

    produced = await produce(handler, idle=0.1)
    assert produced[-1] == Finish("stop", Usage(1, 1, "provider_final"), "stop")


async def test_headers_do_not_start_the_clock_of_the_first_byte_anew() -> None:
    async def late_headers(request: Request) -> None:
        await asyncio.sleep(0.7)
        await request.head()
        await asyncio.Event().wait()

    started = asyncio.get_running_loop().time()
    error = (await produce(late_headers, first_byte=1))[-1]
    assert isinstance(error, ProviderError)
    assert error.code == "upstream_timeout"
    assert asyncio.get_running_loop().time() - started < 1.5


async def test_nobody_listening_is_told_at_once() -> None:
    async with oracle(silent_before_headers) as server:
        url = server.base_url
    asked = provider(url)
    with pytest.raises(ProviderError, match="cannot be reached: the connection was refused") as caught:
        async with aclosing(asked.stream(PROMPT, "m")) as batches:
            await anext(batches)
    assert not caught.value.accepted
    await asked.close()


async def test_a_name_that_does_not_resolve_is_told() -> None:
    asked = provider("http://nowhere.invalid/v1")
    with pytest.raises(ProviderError, match="its host name does not resolve"):
        async with aclosing(asked.stream(PROMPT, "m")) as batches:
            await anext(batches)
    await asked.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "nowhere.invalid"])
async def test_a_worker_without_descriptors_says_so_and_blames_no_provider(host: str) -> None:
    """spec/faults.md: P8."""
    async with oracle(silent_before_headers) as server:
        asked = provider(server.base_url.replace("127.0.0.1", host))
        with no_descriptors(), pytest.raises(ProviderError, match="no connections left") as caught:
            async with aclosing(asked.stream(PROMPT, "m")) as batches:
                await anext(batches)
        await asked.close()
        assert server.requests == []
    error = caught.value
    assert (error.code, error.status, error.retryable, error.accepted) == ("overloaded", 503, True, False)


async def test_a_certificate_that_nobody_vouches_for_is_not_accepted() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    async with oracle(silent_before_headers, tls=context) as server:
        asked = provider(server.base_url.replace("http://", "https://"))
        with pytest.raises(ProviderError, match="its TLS certificate was not accepted") as caught:
            async with aclosing(asked.stream(PROMPT, "m")) as batches:
                await anext(batches)
        assert "127.0.0.1" not in str(caught.value)
        assert server.requests == []
        await asked.close()


# -- letting go ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "handler", [silent_before_headers, silent_before_the_first_byte, silent_between_tokens]
)
async def test_cancelling_closes_the_connection(handler: Handler) -> None:
    async with oracle(handler) as server:
        asked = provider(server.base_url)

        async def read() -> None:
            async with aclosing(asked.stream(PROMPT, "m")) as batches:
                async for _ in batches:
                    pass

        task = asyncio.create_task(read())
        async with asyncio.timeout(5):
            await server.arrived.wait()
            task.cancel()
            await server.requests[0].gone.wait()
        await asyncio.gather(task, return_exceptions=True)
        await asked.close()


async def test_connections_are_used_again_and_survive_thousands_of_cancels() -> None:
    async def handler(request: Request) -> None:
        await request.head()
        await request.say("a")
        await request.finish()

    async with oracle(handler) as server:
        asked = provider(server.base_url)
        for _ in range(5):
            async for _ in asked.stream(PROMPT, "m"):
                pass
        assert server.connections == 1

        async def start_and_cancel() -> None:
            task = asyncio.create_task(anext(asked.stream(PROMPT, "m")))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        for _ in range(100):
            await asyncio.gather(*(start_and_cancel() for _ in range(20)))
        async with asyncio.timeout(5):
            last = [item async for batch in asked.stream(PROMPT, "m") for item in batch][-1]
        assert isinstance(last, Finish)
        assert last.reason == "stop"
        await asked.close()


async def test_a_server_that_keeps_the_connection_open_after_done_does_not_delay_the_end() -> None:
    async def handler(request: Request) -> None:
        await request.head()
        await request.event(chunk(finish="stop"))
        await request.event(b"[DONE]")
        await asyncio.Event().wait()

    async with oracle(handler) as server:
        asked = provider(server.base_url)
        async with asyncio.timeout(2), aclosing(asked.stream(PROMPT, "m")) as batches:
            assert (await anext(batches))[-1] == Finish("stop", None, "stop")
        await asked.close()


@pytest.mark.parametrize(
    "listing",
    [
        {"object": "list", "data": [{"id": "a"}, {"id": "b"}]},
        [{"id": "a"}, {"id": None}, None, {"id": "b"}],
        {"models": [{"name": "models/a"}, {"name": "models/b"}]},
        ["a", "b"],
    ],
)
@pytest.mark.parametrize("content_type", ["application/json", "text/plain"])
async def test_models_are_asked_for(listing: object, content_type: str) -> None:
    async def handler(request: Request) -> None:
        await request.answer(200, listing, [f"content-type: {content_type}"])

    async with oracle(handler) as server:
        asked = provider(server.base_url)
        assert await asked.models() == ["a", "b"]
        await asked.close()
