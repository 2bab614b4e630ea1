"""The provider for Anthropic's Messages, against a server that does what each test says."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millstream.answer import Answer
from millstream.dialects.anthropic import ANTHROPIC
from millstream.errors import ProviderError, RequestRefused, UpstreamError
from millstream.events import (
    AnswerStart,
    Event,
    Reasoning,
    ReasoningDelta,
    Source,
    StreamEnd,
    StreamInfo,
    Text,
    TextDelta,
)
from millstream.prompt import (
    BETAS,
    File,
    Image,
    Message,
    NamedTool,
    OutputFormat,
    Prompt,
    Tool,
    ToolCall,
    ToolResult,
)
from millstream.prompt import Reasoning as Thought
from millstream.prompt import Refusal as Refused
from millstream.prompt import Text as Words
from millstream.providers import Finish, PartBreak, PartOpen, Produced, ToolCallPiece, UsageReport
from millstream.providers.anthropic import AnthropicProvider, Reading, models
from millstream.providers.anthropic.request import API, body
from millstream.providers.clocks import Clocks
from millstream.providers.upstream import Upstream
from millstream.sse import Decoder
from millstream.sse import Message as Sent
from millstream.streams.parts import Assembler
from millstream.usage import Bill, Usage
from oracle import Handler, Request, oracle

RECORDINGS = Path(__file__).parent / "recordings" / "anthropic"
HELLO = Prompt((Message("user", (Words("Hello"),)),))
OLD, BOTH, NEW = (models.of_name(f"claude-sonnet-{version}") for version in ("4-5", "4-6", "5"))


def recorded(name: str) -> Any:
    return json.loads((RECORDINGS / f"{name}.json").read_text(encoding="utf-8"))


def recordings() -> list[str]:
    return sorted(path.stem for path in RECORDINGS.glob("*.json"))


def event(kind: str, **fields: object) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n"


BEGUN = event(
    "message_start", message={"id": "msg_1", "model": "m", "usage": {"input_tokens": 9, "output_tokens": 1}}
)
SAID = event("content_block_start", index=0, content_block={"type": "text", "text": ""}) + event(
    "content_block_delta", index=0, delta={"type": "text_delta", "text": "Hello"}
)
STOPPED = event("content_block_stop", index=0)
ENDED = event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 5}) + event(
    "message_stop"
)


def read(*pieces: bytes) -> list[Produced]:
    reading, decoder, produced = Reading("p"), Decoder(), []
    for piece in pieces:
        produced += reading.read(decoder.feed(piece))
    assert reading.fault is None
    assert reading.is_done
    return produced


def assembled(produced: Sequence[Produced]) -> Answer:
    """The answer of a stream that produced this."""
    assembler, answer = Assembler(), Answer()
    events: list[Event] = [*assembler.feed(produced), *assembler.close()]
    finish, report = assembler.finish, assembler.report
    assert finish is not None
    bill = Bill(finish.usage or Usage(0, 0, "counted"), None)
    raw = report.raw if report is not None else None
    end = StreamEnd(finish.reason, bill, finish.word, finish.stop_sequence, raw, finish.extra)
    answer.add([*events, end])
    return answer


async def produce(
    handler: Handler, prompt: Prompt = HELLO, **clocks: float
) -> list[Produced | ProviderError]:
    """Everything the provider produced, or the error it ended with as the last item."""
    async with oracle(handler) as server:
        asked = AnthropicProvider("p", server.base_url, Upstream("p", {}, Clocks(**clocks), pings=True))
        produced: list[Produced | ProviderError] = []
        try:
            async for batch in asked.stream(prompt, "claude-sonnet-4-5"):
                produced += batch
        except ProviderError as error:
            produced.append(error)
        finally:
            await asked.close()
        return produced


def saying(*pieces: str, cut: bool = False) -> Handler:
    async def handler(request: Request) -> None:
        await request.head()
        for piece in pieces:
            await request.chunk(piece.encode())
        if cut:
            request.cut()
        else:
            await request.end()

    return handler


# -- what is read ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", recordings())
def test_a_recording_makes_the_answer_that_is_not_streamed(name: str) -> None:
    recording = recorded(name)
    answer = assembled(read(recording["stream"].encode()))
    shown = json.loads(ANTHROPIC.answer(StreamInfo("str_1", "key_1", "ours", 5.0), answer))
    expected = recording["message"]
    for block in expected["content"]:
        if block.get("citations", 1) is None:  # which a client of the AI SDK refuses
            del block["citations"]
    assert shown == expected


@pytest.mark.parametrize("name", recordings())
def test_a_recording_that_is_cut_anywhere_is_the_same(name: str) -> None:
    stream = recorded(name)["stream"].encode()
    whole = read(stream)
    assert read(*(stream[i : i + 1] for i in range(len(stream)))) == whole
    for at in range(len(stream)):
        assert read(stream[:at], stream[at:]) == whole


@pytest.mark.parametrize("name", recordings())
def test_an_answer_that_is_whole_json_is_an_answer(name: str) -> None:
    message = recorded(name)["message"]
    answer = assembled(read(event("message", **{**message, "type": "message"}).encode()))
    shown = json.loads(ANTHROPIC.answer(StreamInfo("str_1", "key_1", "ours", 5.0), answer))
    assert shown["content"] == [
        {name: value for name, value in block.items() if value is not None} for block in message["content"]
    ]
    assert {**shown, "content": None} == {**message, "content": None}


def test_everything_that_was_recorded_is_understood() -> None:
    produced = read(recorded("everything")["stream"].encode())
    start, report, *parts = produced
    counted = Usage(4625, 3, "provider_partial", 3400, cache_write_tokens=1200)
    assert isinstance(start, AnswerStart)
    assert (start.api, start.response_id) == ("anthropic", "msg_01XFDUDYJgAACzvnptvVoYEL")
    assert start.usage == counted
    assert isinstance(report, UsageReport)
    thought = Reasoning("EqQBCgIYAhIM1gbcDa9GJwZA2b3h")
    assert parts[:5] == [
        PartOpen(Reasoning()),
        ReasoningDelta("The document "),
        ReasoningDelta("says it — "),
        ReasoningDelta("“blue”."),
        PartBreak(thought),
    ]
    assert parts[5] == Reasoning(redacted="EmwKAhgBEgy3va3pzix/LafPsn4a")
    # The page that is cited comes behind the text that cites it, which stays whole.
    source = parts.index(Source("https://grass.example/", "Grass"))
    assert parts[source - 1] == PartBreak()
    assert parts[9:12] == [
        PartBreak(),
        PartOpen(Text({"citations": []})),
        TextDelta("the sky is blue, "),
    ]
    calls = [item for item in parts if isinstance(item, ToolCallPiece)]
    assert calls[0] == ToolCallPiece(
        0, "", "toolu_01A", "get_weather", {"anthropic": {"caller": {"type": "direct"}}}
    )
    assert calls[-1] == ToolCallPiece(1, "{}")
    finish = parts[-1]
    assert isinstance(finish, Finish)
    assert (finish.reason, finish.word) == ("tool_calls", "tool_use")
    assert finish.usage == Usage(4625, 97, "provider_final", 3400, 41, 1200)


@pytest.mark.parametrize(
    ("name", "reason", "word", "sequence"),
    [
        ("stop-sequence", "stop", "stop_sequence", "four"),
        ("refusal", "content_filter", "refusal", None),
        ("length", "length", "max_tokens", None),
        ("pause", "stop", "pause_turn", None),
        ("nothing", "stop", "end_turn", None),
    ],
)
def test_every_end_has_a_reason_and_its_word(name: str, reason: str, word: str, sequence: str | None) -> None:
    finish = read(recorded(name)["stream"].encode())[-1]
    assert isinstance(finish, Finish)
    assert (finish.reason, finish.word, finish.stop_sequence) == (reason, word, sequence)
    assert finish.usage == Usage(9, 5, "provider_final")


@pytest.mark.parametrize(
    "odd",
    [
        event("vertex_event", anything=1),
        "event: vertex_event\ndata: no json\n\n",
        "event: ping\ndata: no json\n\n",
        "event: ping\ndata:\n\n",
        ": a comment\n\n",
        event("content_block_start", index=7, content_block={"type": "server_tool_use", "name": "web_search"})
        + event("content_block_delta", index=7, delta={"type": "input_json_delta", "partial_json": "{}"})
        + event("content_block_stop", index=7),
        event("content_block_delta", index=0, delta={"type": "odd_delta"}),
        event("content_block_delta", index=0, delta={"type": "text_delta", "text": None}),
        event("content_block_delta", index=0, delta=None),
        event("content_block_stop", index=9),
        event("message_delta", delta={}, usage=None),
        event("message_delta", delta={}, usage={"output_tokens": "many", "input_tokens": -1}),
    ],
)
def test_what_nobody_here_knows_is_passed_over(odd: str) -> None:
    stream = f"{BEGUN}{SAID}{odd}{STOPPED}{ENDED}".encode()
    answer = assembled(read(stream))
    assert answer.text == "Hello"
    assert isinstance(answer.terminal, StreamEnd)
    assert answer.terminal.bill.usage == Usage(9, 5, "provider_final")


def test_zeros_at_the_end_take_no_counts_back() -> None:
    """Gateways send them for what they do not know there."""
    begun = BEGUN.replace('"input_tokens": 9', '"input_tokens": 9, "cache_read_input_tokens": 100')
    ended = ENDED.replace(
        '"output_tokens": 5', '"output_tokens": 5, "input_tokens": 0, "cache_read_input_tokens": 0'
    )
    answer = assembled(read(f"{begun}{SAID}{STOPPED}{ended}".encode()))
    assert isinstance(answer.terminal, StreamEnd)
    assert answer.terminal.bill.usage == Usage(109, 5, "provider_final", 100)


@pytest.mark.parametrize("at_the_end", ["", ', "cache_creation": {"ephemeral_1h_input_tokens": 0}'])
def test_what_the_cache_keeps_for_an_hour_is_counted_apart(at_the_end: str) -> None:
    split = '{"ephemeral_5m_input_tokens": 40, "ephemeral_1h_input_tokens": 60}'
    written = f'"cache_creation_input_tokens": 100, "cache_creation": {split}'
    begun = BEGUN.replace('"input_tokens": 9', f'"input_tokens": 9, {written}')
    ended = ENDED.replace('"output_tokens": 5', f'"output_tokens": 5{at_the_end}')
    answer = assembled(read(f"{begun}{SAID}{STOPPED}{ended}".encode()))
    assert isinstance(answer.terminal, StreamEnd)
    assert answer.terminal.bill.usage == Usage(109, 5, "provider_final", 0, 0, 100, 60)


def test_half_a_character_costs_that_character() -> None:
    broken = SAID.replace("Hello", "Hel\\ud83d")
    assert assembled(read(f"{BEGUN}{broken}{STOPPED}{ENDED}".encode())).text == "Hel\ufffd"


def test_a_server_that_counts_only_what_it_writes_and_names_no_block() -> None:
    """llama.cpp's /v1/messages, roughly."""
    delta = event("content_block_delta", index=0, delta={"type": "text_delta", "text": "Hello"})
    answer = assembled(read(f"{BEGUN}{delta}{ENDED}".encode()))
    assert answer.text == "Hello"
    assert isinstance(answer.terminal, StreamEnd)
    assert answer.terminal.bill.usage == Usage(9, 5, "provider_final")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(data=st.data())
def test_whatever_stands_in_an_event_is_read_or_is_the_fault(data: st.DataObject) -> None:
    """A recording that is right but for one value, anywhere in it, which may be anything."""
    messages = Decoder().feed(recorded("everything")["stream"].encode())
    at = data.draw(st.integers(0, len(messages) - 1))
    changed = json.loads(messages[at].data)
    value = changed
    while True:
        key = data.draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
        if not isinstance(value[key], (dict, list)) or not value[key] or data.draw(st.booleans()):
            break
        value = value[key]
    value[key] = data.draw(json_values)
    messages[at] = Sent(json.dumps(changed).encode(), messages[at].event)
    reading = Reading("p")
    produced = reading.read(messages)
    # Neither: no end is there, and the provider says that the answer was cut.
    assert not (reading.is_done and reading.fault is not None)
    assembler = Assembler()
    answer = Answer()
    answer.add([*assembler.feed(produced), *assembler.close()])
    assert answer.start is not None or at == 0


# -- faults ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("handler", "code", "words"),
    [
        (saying(BEGUN, SAID), "upstream_error", "cut its answer off"),
        (saying(BEGUN, SAID, STOPPED, ENDED.partition("event: message_stop")[0]), "upstream_error", "cut"),
        (saying(BEGUN, SAID, cut=True), "upstream_error", "broke the connection"),
        (saying(BEGUN, SAID + "data: {no json\n\n"), "upstream_error", "cannot be read"),
        (saying(BEGUN, SAID + "event: message_delta\ndata: []\n\n"), "upstream_error", "cannot be read"),
        (
            saying(BEGUN, SAID + event("error", error={"type": "overloaded_error", "message": "Overloaded"})),
            "upstream_error",
            "it is overloaded",
        ),
        (
            saying(BEGUN, SAID + event("error", error={"type": "rate_limit_error", "message": "x"})),
            "upstream_rate_limited",
            "rate limit",
        ),
        (saying(BEGUN, SAID + event("message_stop")), "upstream_error", "without a reason"),
        (
            saying(
                BEGUN,
                SAID
                + event(
                    "content_block_delta", index=3, delta={"type": "input_json_delta", "partial_json": "1"}
                ),
            ),
            "upstream_error",
            "no start",
        ),
        (
            saying(
                BEGUN,
                SAID + event("content_block_start", index=1, content_block={"type": "tool_use", "id": "t"}),
            ),
            "upstream_error",
            "without a name",
        ),
    ],
)
async def test_what_was_understood_comes_before_the_fault(handler: Handler, code: str, words: str) -> None:
    *produced, error = await produce(handler)
    assert isinstance(error, ProviderError)
    assert (error.code, words in error.message) == (code, True), error.message
    assert TextDelta("Hello") in produced


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [
        (400, "invalid_request_error", "upstream_refused"),
        (401, "authentication_error", "upstream_refused"),
        (404, "not_found_error", "model_not_found"),
        (429, "rate_limit_error", "upstream_rate_limited"),
        (500, "api_error", "upstream_error"),
        (504, "timeout_error", "upstream_timeout"),
        (529, "overloaded_error", "upstream_error"),
    ],
)
async def test_a_refusal_has_our_code_and_the_time_to_come_back(status: int, kind: str, code: str) -> None:
    async def handler(request: Request) -> None:
        said = {"type": "error", "error": {"type": kind, "message": "model: x"}, "request_id": "req_1"}
        await request.answer(status, said, ["retry-after: 7"])

    (error,) = await produce(handler)
    assert isinstance(error, ProviderError)
    assert error.code == code
    assert error.retry_after_seconds == (None if status == 404 else 7)


async def test_an_error_in_one_object_is_an_error() -> None:
    async def handler(request: Request) -> None:
        await request.answer(200, {"type": "error", "error": {"type": "overloaded_error", "message": "x"}})

    (error,) = await produce(handler)
    assert isinstance(error, UpstreamError)
    assert "overloaded" in error.message


async def test_pings_are_life() -> None:
    async def handler(request: Request) -> None:
        await request.head()
        await request.chunk(BEGUN.encode())
        for _ in range(6):
            await request.chunk(event("ping").encode())
            try:
                await asyncio.wait_for(request.gone.wait(), 0.1)
            except TimeoutError:
                continue
        await request.chunk(f"{SAID}{STOPPED}{ENDED}".encode())
        await request.end()

    import asyncio

    produced = await produce(handler, first_content=0.3)
    assert isinstance(produced[-1], Finish)


# -- what is asked ---------------------------------------------------------------------------------


async def test_the_request_is_a_stream_of_that_model_and_has_its_headers() -> None:
    seen: list[Request] = []

    async def handler(request: Request) -> None:
        seen.append(request)
        await saying(BEGUN, SAID, STOPPED, ENDED)(request)

    async with oracle(handler) as server:
        for base_url in (server.base_url, server.base_url.removesuffix("/v1")):
            asked = AnthropicProvider(
                "p", base_url, Upstream("p", {"x-api-key": "sk"}), extra={"speed": "fast"}
            )
            assert [batch async for batch in asked.stream(HELLO, "claude-haiku-4-5")]
            await asked.close()
    for request in seen:
        assert request.path == "/v1/messages"
        assert request.headers["x-api-key"] == "sk"
        assert request.json == {
            "model": "claude-haiku-4-5",
            "messages": [{"role": "user", "content": "Hello"}],
            "max_tokens": 32_000,
            "stream": True,
            "speed": "fast",
        }


async def test_the_operator_and_the_client_say_what_is_tried() -> None:
    handler = saying(BEGUN, SAID, STOPPED, ENDED)
    asking = Prompt(HELLO.messages, extra={API: {BETAS: ("mine", "ours")}})
    async with oracle(handler) as server:
        for betas in ((), ("ours", "yours")):
            asked = AnthropicProvider("p", server.base_url, Upstream("p", {}), betas=betas)
            for prompt in (HELLO, asking):
                assert [batch async for batch in asked.stream(prompt, "claude-haiku-4-5")]
            await asked.close()
        tried = [request.headers.get("anthropic-beta") for request in server.requests]
        assert tried == [None, "mine, ours", "ours, yours", "ours, yours, mine"]
        assert all(BETAS not in request.json for request in server.requests)


async def test_models_are_listed_page_by_page_and_say_what_they_take() -> None:
    pages = {
        "/v1/models?limit=1000": {
            "data": [{"id": "a/1", "max_tokens": 77}],
            "has_more": True,
            "last_id": "a/1",
        },
        "/v1/models?limit=1000&after_id=a%2F1": {"data": [{"id": "b"}, {"x": 1}], "has_more": False},
    }
    bodies: list[Any] = []

    async def handler(request: Request) -> None:
        if request.path in pages:
            return await request.answer(200, pages[request.path])
        bodies.append(request.json)
        await saying(BEGUN, SAID, STOPPED, ENDED)(request)

    async with oracle(handler) as server:
        asked = AnthropicProvider("p", server.base_url, Upstream("p", {}))
        assert await asked.models() == ["a/1", "b"]
        for model in ("a/1", "b"):
            assert [batch async for batch in asked.stream(HELLO, model)]
        await asked.close()
    assert [sent["max_tokens"] for sent in bodies] == [77, 8192]


async def test_a_list_that_never_ends_is_left() -> None:
    async def handler(request: Request) -> None:
        await request.answer(200, {"data": [{"id": "a"}], "has_more": True, "last_id": "a"})

    async with oracle(handler) as server:
        asked = AnthropicProvider("p", server.base_url, Upstream("p", {}))
        assert await asked.models() == ["a"]
        await asked.close()
        assert len(server.requests) == 10


def test_a_conversation_as_it_wants_it() -> None:
    prompt = Prompt(
        (
            Message("developer", (Words("Be brief."),)),
            Message(
                "user", (Words("Look"), Image("data:image/png;base64,AA=="), Image("https://a.example/b"))
            ),
            Message(
                "user", (File("application/pdf", "data:application/pdf;base64,JVBE", "a.pdf"), Words(""))
            ),
            Message(
                "assistant",
                (Thought("hm", "sig"), Thought("unsigned"), Thought(redacted="x"), Words("So")),
            ),
            Message("assistant", (ToolCall("c1", "look", '{"a": 1}'), ToolCall("c2", "look", ""))),
            Message("tool", (ToolResult("c1", (Words("A"),)),)),
            Message("tool", (ToolResult("c2", (Words("B"), Image("https://a.example/c")), is_error=True),)),
            Message("user", (File("text/plain", "data:text/plain;base64,SGk="),)),
            Message("system", (Words("Still brief."),)),
        ),
        tools=(Tool("look", "looks", {"type": "object"}, strict=True), Tool("now")),
        tool_choice="required",
        parallel_tool_calls=False,
        stop=("\n", "END"),
        temperature=1.7,
        top_p=0.5,
        top_k=3,
        user="u",
        max_tokens=5,
        seed=1,
    )
    assert body("p", prompt, OLD) == {
        "system": [{"type": "text", "text": "Be brief."}, {"type": "text", "text": "Still brief."}],
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "Look"},
                    {
                        "type": "image",
                        "source": {"type": "base64", "media_type": "image/png", "data": "AA=="},
                    },
                    {"type": "image", "source": {"type": "url", "url": "https://a.example/b"}},
                    {
                        "type": "document",
                        "title": "a.pdf",
                        "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBE"},
                    },
                ],
            },
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "sig"},
                    {"type": "redacted_thinking", "data": "x"},
                    {"type": "text", "text": "So"},
                    {"type": "tool_use", "id": "c1", "name": "look", "input": {"a": 1}},
                    {"type": "tool_use", "id": "c2", "name": "look", "input": {}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "c1", "content": "A"},
                    {
                        "type": "tool_result",
                        "tool_use_id": "c2",
                        "content": [
                            {"type": "text", "text": "B"},
                            {"type": "image", "source": {"type": "url", "url": "https://a.example/c"}},
                        ],
                        "is_error": True,
                    },
                    {
                        "type": "document",
                        "source": {"type": "text", "media_type": "text/plain", "data": "Hi"},
                    },
                ],
            },
        ],
        "tools": [
            {"name": "look", "description": "looks", "strict": True, "input_schema": {"type": "object"}},
            {"name": "now", "input_schema": {"type": "object", "properties": {}}},
        ],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
        "stop_sequences": ["END"],
        "temperature": 1,
        "top_k": 3,
        "metadata": {"user_id": "u"},
        "max_tokens": 5,
    }


ASKED = HELLO.messages
LOOP = (
    *ASKED,
    Message("assistant", (ToolCall("c", "look", "{}"),)),
    Message("tool", (ToolResult("c", (Words("A"),)),)),
)
SIGNED = (
    *ASKED,
    Message("assistant", (Thought("hm", "sig"), ToolCall("c", "look", "{}"))),
    Message("tool", (ToolResult("c", (Words("A"),)),)),
)


@pytest.mark.parametrize(
    ("traits", "prompt", "thinking", "effort"),
    [
        (OLD, Prompt(ASKED), None, None),
        (OLD, Prompt(ASKED, reasoning_effort="low"), {"type": "enabled", "budget_tokens": 2048}, None),
        (OLD, Prompt(ASKED, reasoning_effort="xhigh"), {"type": "enabled", "budget_tokens": 16_000}, None),
        (OLD, Prompt(ASKED, reasoning_effort="max"), {"type": "enabled", "budget_tokens": 16_000}, None),
        (OLD, Prompt(ASKED, reasoning_effort="high", max_tokens=1500), None, None),
        (OLD, Prompt(ASKED, reasoning_tokens=5000), {"type": "enabled", "budget_tokens": 5000}, None),
        (OLD, Prompt(ASKED, reasoning_effort="none"), {"type": "disabled"}, None),
        (OLD, Prompt(LOOP, reasoning_effort="low"), None, None),
        (OLD, Prompt(SIGNED, reasoning_effort="low"), {"type": "enabled", "budget_tokens": 2048}, None),
        (OLD, Prompt(ASKED, reasoning_effort="low", tool_choice=NamedTool("a")), None, None),
        (BOTH, Prompt(ASKED, reasoning_effort="none"), {"type": "disabled"}, None),
        (NEW, Prompt(ASKED, reasoning_effort="none"), None, "low"),
        (
            NEW,
            Prompt(ASKED, reasoning_effort="minimal"),
            {"type": "adaptive", "display": "summarized"},
            "low",
        ),
        (NEW, Prompt(LOOP, reasoning_effort="high"), None, "high"),
        (NEW, Prompt(LOOP, reasoning_effort="xhigh"), None, "xhigh"),
        (NEW, Prompt(LOOP, reasoning_effort="max"), None, "max"),
        (BOTH, Prompt(LOOP, reasoning_effort="xhigh"), None, "max"),
        (NEW, Prompt(ASKED, reasoning_tokens=5000), {"type": "adaptive", "display": "summarized"}, None),
        (
            NEW,
            Prompt(ASKED, reasoning_effort="low", extra={API: {"thinking": {"type": "adaptive"}}}),
            {"type": "adaptive"},
            None,
        ),
    ],
)
def test_how_a_model_is_told_to_think(
    traits: models.Traits, prompt: Prompt, thinking: dict[str, Any] | None, effort: str | None
) -> None:
    sent = body("p", prompt, traits)
    assert sent.get("thinking") == thinking
    assert sent.get("output_config", {}).get("effort") == effort


@pytest.mark.parametrize(("traits", "kept"), [(OLD, True), (BOTH, True), (NEW, False)])
def test_models_that_refuse_sampling_are_not_sent_it(traits: models.Traits, kept: bool) -> None:
    assert ("temperature" in body("p", Prompt(ASKED, temperature=0.5), traits)) is kept
    # Nor is any of them while it thinks.
    assert "temperature" not in body("p", Prompt(ASKED, temperature=0.5, reasoning_effort="low"), traits)


@pytest.mark.parametrize(
    ("model", "given", "sent"),
    [
        ("claude-opus-4-20250514", {"temperature": 0.7, "top_p": 0.9}, {"temperature": 0.7, "top_p": 0.9}),
        ("claude-opus-4-1", {"temperature": 0.7, "top_p": 0.9, "top_k": 3}, {"temperature": 0.7, "top_k": 3}),
        ("claude-opus-4-1", {"top_p": 0.9}, {"top_p": 0.9}),
    ],
)
def test_later_models_take_one_of_temperature_and_top_p(model: str, given: Any, sent: Any) -> None:
    asked = body("p", Prompt(ASKED, **given), models.of_name(model))
    assert {name: asked[name] for name in ("temperature", "top_p", "top_k") if name in asked} == sent


def test_texts_without_a_word_are_left_out() -> None:
    found = {"type": "search_result", "source": "s", "title": "t", "content": []}
    blank = Words("\n\n", {API: {"cache_control": {"type": "ephemeral"}}})
    history = (
        Message("system", (Words(" "),)),
        Message("user", (Words("\t"), Words("Look"), Words("", {API: found}))),
        Message("assistant", (blank, Refused(" "), ToolCall("c", "look", "{}"))),
        Message("tool", (ToolResult("c", (Words(" \n"),)),)),
    )
    assert body("p", Prompt(history, max_tokens=5), OLD) == {
        "max_tokens": 5,
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Look"}, found]},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "look", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c"}]},
        ],
    }


def test_ids_of_calls_that_would_be_refused_are_others_that_differ() -> None:
    given = ("functions.get:0", "functions_get_0", "functions.get.0", "näme", "", "x" * 65, "x" * 64)
    history = (
        *ASKED,
        Message("assistant", tuple(ToolCall(name, "get", "{}") for name in given)),
        Message("tool", tuple(ToolResult(name, ()) for name in given)),
    )
    called, answered = (one["content"] for one in body("p", Prompt(history), OLD)["messages"][1:])
    ids = [call["id"] for call in called]
    assert ids == [result["tool_use_id"] for result in answered]
    assert all(re.fullmatch("[a-zA-Z0-9_-]{1,64}", name) for name in ids)
    assert len({*ids}) == len(given)
    assert (ids[1], ids[-1]) == (given[1], given[-1])
    # A call has its id in a shorter conversation as well, or a cache of the prompt would miss.
    alone = Prompt((*ASKED, Message("assistant", (ToolCall(given[0], "get", "{}"),))))
    assert body("p", alone, OLD)["messages"][1]["content"][0]["id"] == ids[0]


def test_a_picture_has_the_type_that_the_api_knows() -> None:
    sent = body("p", Prompt((Message("user", (Image("data:image/jpg;base64,AA=="),)),)), OLD)
    assert sent["messages"][0]["content"][0]["source"]["media_type"] == "image/jpeg"


def test_files_of_an_assistant_are_shown_by_the_user_behind_all_results() -> None:
    """In turns of an assistant they are refused."""
    picture = Image("https://a.example/b")
    block = {"type": "image", "source": {"type": "url", "url": "https://a.example/b"}}
    shown = {"type": "text", "text": "Files of what is above:"}
    history = (
        *ASKED,
        Message("assistant", (Words("So:"), picture, ToolCall("c", "look", "{}"), ToolCall("d", "look", ""))),
        Message("tool", (ToolResult("c", (Words("A"),)),)),
        Message("tool", (ToolResult("d", (picture,)),)),
        Message("assistant", (Thought("hm", "sig"), Words(""), picture)),
        *ASKED,
    )
    _, said, answered, drawn, again = body("p", Prompt(history), OLD)["messages"]
    assert [block["type"] for block in said["content"]] == ["text", "tool_use", "tool_use"]
    assert (answered["role"], answered["content"][2:]) == ("user", [shown, block])
    assert answered["content"][1] == {"type": "tool_result", "tool_use_id": "d", "content": [block]}
    assert [one.get("thinking") or one["text"] for one in drawn["content"]] == ["hm", "See the files below."]
    assert again["content"][:2] == [shown, block]
    assert again["content"][2]["text"] == HELLO.messages[0].text


@pytest.mark.parametrize(
    ("part", "source"),
    [
        (
            Image("DATA:image/png;charset=utf-8;base64,AA=="),
            {"type": "base64", "media_type": "image/png", "data": "AA=="},
        ),
        (Image("HTTPS://a.example/b"), {"type": "url", "url": "HTTPS://a.example/b"}),
        (
            File("text/plain", "data:text/plain;charset=utf-8;base64,SGk="),
            {"type": "text", "media_type": "text/plain", "data": "Hi"},
        ),
        (
            File("text/plain", "data:text/plain,Hi%21"),
            {"type": "text", "media_type": "text/plain", "data": "Hi!"},
        ),
    ],
)
def test_a_url_has_parameters_and_no_case(part: Image | File, source: dict[str, Any]) -> None:
    (sent,) = body("p", Prompt((Message("user", (part,)),)), OLD)["messages"]
    assert [block["source"] for block in sent["content"]] == [source]


def test_an_answer_to_a_schema() -> None:
    schema = {"type": "object", "properties": {}}
    sent = body("p", Prompt(ASKED, output=OutputFormat(schema), reasoning_effort="high"), NEW)
    assert sent["output_config"] == {"effort": "high", "format": {"type": "json_schema", "schema": schema}}


@pytest.mark.parametrize(
    "prompt",
    [
        Prompt(ASKED, choices=2),
        Prompt(ASKED, output=OutputFormat()),
        Prompt((Message("user", (File("audio/wav", "data:audio/wav;base64,AA=="),)),)),
        Prompt((Message("user", (File("text/plain", "data:text/plain;base64,?"),)),)),
        Prompt((Message("user", (Image("ftp://a.example/b"),)),)),
        Prompt((Message("user", (Image("data:image/png;base64"),)),)),
        Prompt((Message("user", (Image("data:;base64,AA=="),)),)),
        Prompt((Message("assistant", (ToolCall("c", "look", "{half"),)),)),
        Prompt((Message("assistant", (ToolCall("c", "look", '{"a":1e400}'),)),)),
        Prompt((Message("assistant", (ToolCall("c", "look", '{"a":"\\ud800"}'),)),)),
        Prompt((Message("assistant", (ToolCall("c", "look", '{"a":1}x'),)),)),
        Prompt((Message("assistant", (ToolCall("c", "look", "[1]"),)),)),
    ],
)
async def test_what_it_cannot_be_asked_is_refused_with_words(prompt: Prompt) -> None:
    async def handler(request: Request) -> None:
        raise AssertionError("nothing is sent")

    (error,) = await produce(handler, prompt)
    assert isinstance(error, RequestRefused)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("claude-3-5-haiku-20241022", (8192, False, False, True, True, False)),
        ("claude-3-7-sonnet-20250219", (8192, False, True, True, True, False)),
        ("claude-opus-4-20250514", (32_000, False, True, True, True, False)),
        ("claude-opus-4-1-20250805", (32_000, False, True, True, False, False)),
        ("claude-haiku-4-5-20251001", (32_000, False, True, True, False, False)),
        ("anthropic.claude-opus-4-6-v1", (32_000, True, True, True, False, False)),
        ("claude-opus-4.7", (32_000, True, False, False, False, True)),
        ("claude-sonnet-5-5", (32_000, True, False, False, False, True)),
        ("qwen3-30b", (8192, False, False, True, True, False)),
    ],
)
def test_what_a_model_takes_its_name_says(
    name: str, expected: tuple[int, bool, bool, bool, bool, bool]
) -> None:
    assert models.of_name(name) == models.Traits(*expected)


def test_what_a_model_takes_the_list_says_better() -> None:
    types = {"adaptive": {"supported": True}, "enabled": {"supported": False}}
    listed = {
        "id": "claude-x",
        "max_tokens": 64_000,
        "capabilities": {
            "thinking": {"supported": True, "types": types},
            "effort": {"supported": True, "xhigh": {"supported": True}},
        },
    }
    assert models.of_listing(listed) == models.Traits(64_000, True, False, True, True, True)
    assert models.of_listing({"id": "claude-sonnet-5", "max_tokens": None}) == NEW


@pytest.mark.parametrize(
    "thought",
    [
        Thought("hm", "gemini:c2lnbmVk"),
        Thought("hm", "c2VhbGVk", extra={"responses": {"id": "rs_1"}}),
        Thought("hm", "responses:c2VhbGVk", extra={API: {"id": "rs_1"}}),
        Thought(redacted="responses:c2VhbGVk"),
        Thought("hm"),
    ],
)
def test_a_thought_of_another_provider_is_left_out(thought: Thought) -> None:
    history = (*ASKED, Message("assistant", (thought, Words("Yes."))), *ASKED)
    said = body("p", Prompt(history), OLD)["messages"][1]
    assert said == {"role": "assistant", "content": "Yes."}
