"""The provider for Gemini's own API. Its judge is google-genai: it reads the same server, and sends the same."""

import asyncio
import json
import re
from collections.abc import Sequence
from contextlib import aclosing, suppress
from typing import Any

import msgspec
import pytest
from google import genai
from google.genai import types
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from application import Run
from asgi import post
from gemini_server import HELLO, KEY, counted, error, gemini, said, text
from millstream import prompt as asked
from millstream.errors import ConfigurationError, ProviderError, RequestRefused
from millstream.events import AnswerStart, File, Reasoning, ReasoningDelta, Source, Text, TextDelta
from millstream.prompt import Message, Prompt
from millstream.providers import Finish, InChoice, PartBreak, Produced, ToolCallPiece, UsageReport
from millstream.providers.clocks import Clocks
from millstream.providers.gemini import GeminiProvider, Reading, body
from millstream.providers.upstream import Upstream
from millstream.runtime.providers import llm_service
from millstream.settings import ProviderSettings, Settings
from millstream.sse import Message as Event
from millstream.usage import Usage
from oracle import Handler, Oracle, Request, oracle

# Their client makes a class of aiohttp's session, which aiohttp warns of.
pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")

HI = Prompt((Message("user", (asked.Text("Hi"),)),))
START = AnswerStart("gemini", "r-1", "gemini-3-flash-001")
PICTURE = "iVBORw0KGgo="


def provider(server: Oracle, key: str = KEY, clocks: Clocks | None = None) -> GeminiProvider:
    base_url = server.base_url.removesuffix("/v1")
    return GeminiProvider("p", base_url, Upstream("p", {"x-goog-api-key": key}, clocks))


async def produce(
    handler: Handler, prompt: Prompt = HI, model: str = "m", **clocks: float
) -> list[Produced | ProviderError]:
    """Everything the provider produced, or the error it ended with as the last item."""
    async with oracle(handler) as server:
        made = provider(server, clocks=Clocks(**clocks))
        produced: list[Produced | ProviderError] = []
        try:
            async for batch in made.stream(prompt, model):
                produced.extend(batch)
        except ProviderError as failed:
            produced.append(failed)
        finally:
            await made.close()
        return produced


def usage(*counts: int) -> Usage:
    prompt, completion, cached, reasoning = [*counts, 0, 0][:4]
    return Usage(prompt, completion, "provider_final", cached, reasoning)


# -- what is read ----------------------------------------------------------------------------------

CALL = {"name": "look", "args": {"at": "Zürich", "n": 1}}

ANSWERS: dict[str, tuple[list[Any], list[Produced]]] = {
    "words": (HELLO, [TextDelta("Hel"), TextDelta("lo"), Finish("stop", usage(5, 2), "STOP")]),
    "thoughts": (
        [
            said(text("Hm.", thought=True), usageMetadata=counted(5, thoughtsTokenCount=7)),
            said(text("", thought=True, thoughtSignature="c2ln")),
            said(text("Yes."), finish="STOP", usageMetadata=counted(5, 2, thoughtsTokenCount=9)),
        ],
        [
            ReasoningDelta("Hm."),
            PartBreak(Reasoning(signature="gemini:c2ln")),
            TextDelta("Yes."),
            Finish("stop", usage(5, 11, 0, 9), "STOP"),
        ],
    ),
    "a signature behind the words": (
        [said(text("Yes.")), said(text("", thoughtSignature="c2ln"), finish="STOP")],
        [
            TextDelta("Yes."),
            PartBreak(Text({"google": {"thought_signature": "c2ln"}})),
            Finish("stop", None, "STOP"),
        ],
    ),
    "calls": (
        [
            said({"functionCall": CALL | {"id": "c-1"}, "thoughtSignature": "c2ln"}, {"functionCall": CALL | {"id": "c-2"}}),
            said(finish="STOP", usageMetadata=counted(5, 3)),
        ],
        [
            ToolCallPiece(
                0, '{"at":"Zürich","n":1}', "c-1", "look", {"google": {"thought_signature": "c2ln"}}
            ),
            PartBreak(index=0),
            ToolCallPiece(1, '{"at":"Zürich","n":1}', "c-2", "look"),
            PartBreak(index=1),
            Finish("tool_calls", usage(5, 3), "STOP"),
        ],
    ),
    "a call without arguments": (
        [said({"functionCall": {"name": "look", "id": "c-1"}}, finish="STOP")],
        [ToolCallPiece(0, "{}", "c-1", "look"), PartBreak(index=0), Finish("tool_calls", None, "STOP")],
    ),
    "pictures": (
        [
            said({"inlineData": {"mimeType": "image/png", "data": PICTURE}, "thought": True}),
            said({"inlineData": {"mimeType": "image/png", "data": PICTURE}}),
            said({"fileData": {"mimeType": "video/mp4", "fileUri": "https://files.example/v"}}, finish="STOP"),
        ],
        [
            File("image/png", f"data:image/png;base64,{PICTURE}"),
            File("video/mp4", "https://files.example/v"),
            Finish("stop", None, "STOP"),
        ],
    ),
    "sources, which are repeated": (
        [
            {"candidates": [{"content": {"parts": [text("So.")]}, "groundingMetadata": {"groundingChunks": [
                {"web": {"uri": "https://a.example", "title": "A"}}, {"maps": {"uri": "https://maps.example"}}]}}],
             "responseId": "r-1", "modelVersion": "gemini-3-flash-001"},
            {"candidates": [{"finishReason": "STOP", "groundingMetadata": {"groundingChunks": [
                {"web": {"uri": "https://a.example", "title": "A"}}, {"web": {"uri": "https://b.example"}}]}}]},
        ],
        [
            TextDelta("So."),
            Source("https://a.example", "A"),
            Source("https://b.example"),
            Finish("stop", None, "STOP"),
        ],
    ),
    "several answers": (
        [
            said(text("a")), said(text("b"), index=1), said({"functionCall": CALL | {"id": "c-1"}}, index=1, finish="STOP"),
            said(text("nobody asked"), index=9), said(text("A"), finish="MAX_TOKENS"),
        ],
        [
            TextDelta("a"),
            InChoice(1, TextDelta("b")),
            InChoice(1, ToolCallPiece(0, '{"at":"Zürich","n":1}', "c-1", "look")),
            TextDelta("A"),
            InChoice(1, Finish("tool_calls", None)),
            Finish("length", None, "MAX_TOKENS"),
        ],
    ),
    "counts of everything": (
        [said(text("a"), finish="STOP", usageMetadata=counted(
            10, 2, cachedContentTokenCount=6, thoughtsTokenCount=4, toolUsePromptTokenCount=3))],
        [TextDelta("a"), Finish("stop", usage(13, 6, 6, 4), "STOP")],
    ),
    "counts before the last word": (
        [said(text("a"), usageMetadata=counted(5, 1)), said(text("b"), finish="STOP")],
        [TextDelta("a"), TextDelta("b"), Finish("stop", None, "STOP")],
    ),
    "counts of nothing": (
        [said(text("a"), finish="STOP", usageMetadata=counted(5, 1)), {"usageMetadata": {"promptTokenCount": True}}],
        [TextDelta("a"), Finish("stop", usage(5, 1), "STOP")],
    ),
    "a filter": ([said(finish="SAFETY")], [Finish("content_filter", None, "SAFETY")]),
    "nothing": ([said(finish="STOP", usageMetadata=counted(5))], [Finish("stop", usage(5, 0), "STOP")]),
    "a reason that says nothing yet": (
        [said(text("a"), finish="FINISH_REASON_UNSPECIFIED"), said(finish="STOP")],
        [TextDelta("a"), Finish("stop", None, "STOP")],
    ),
    "code that ran there": (
        [said({"executableCode": {"language": "PYTHON", "code": "1"}}, text("1")), said(finish="STOP")],
        [TextDelta("1"), Finish("stop", None, "STOP")],
    ),
    "a list of chunks": ([HELLO], [TextDelta("Hel"), TextDelta("lo"), Finish("stop", usage(5, 2), "STOP")]),
}  # fmt: skip


@pytest.mark.parametrize("size", [1, 7, 1_000_000], ids=["bytes", "pieces", "whole"])
@pytest.mark.parametrize("name", ANSWERS)
async def test_an_answer_is_read(name: str, size: int) -> None:
    chunks, expected = ANSWERS[name]
    produced = await produce(gemini(chunks, size=size))
    assert produced[0] == START
    assert [item for item in produced[1:] if not isinstance(item, UsageReport)] == expected


async def test_a_call_without_an_id_gets_one_of_ours() -> None:
    produced = await produce(gemini([said({"functionCall": CALL}, {"functionCall": CALL}, finish="STOP")]))
    first, second = (item.call_id for item in produced if isinstance(item, ToolCallPiece))
    assert first.startswith("call_")
    assert second.startswith("call_")
    assert first != second


async def test_each_count_is_told_and_replaces_the_one_before() -> None:
    reports = [item for item in await produce(gemini()) if isinstance(item, UsageReport)]
    assert [report.usage.completion_tokens for report in reports] == [1, 2]
    assert reports[-1].raw == counted(5, 2)


# -- what goes wrong -------------------------------------------------------------------------------

A = said(text("a"), usageMetadata=counted(5, 1))

FAILURES: dict[str, tuple[Handler, str, str]] = {
    "cut": (gemini([A], cut=True), "upstream_error", "broke the connection"),
    "no end": (gemini([A]), "upstream_error", "cut its answer off"),
    "an error after words": (gemini([A, error(503, "UNAVAILABLE")]), "upstream_error", "overloaded"),
    "an error in a list": (gemini([A, [error(429, "RESOURCE_EXHAUSTED")]]), "upstream_rate_limited", "limit"),
    "a broken call": (gemini([A, said(finish="MALFORMED_FUNCTION_CALL")]), "upstream_error", "cannot be read"),
    "a call without a name": (gemini([A, said({"functionCall": {"args": {}}})]), "upstream_error", "cannot be read"),
    "arguments of no object": (
        gemini([A, said({"functionCall": {"name": "f", "args": [1]}})]), "upstream_error", "cannot be read",
    ),
    "an account that is closed": (gemini([A, said(finish="PUP_LIMITED_DISABLED")]), "upstream_error", "disabled"),
    "no object": (gemini([A, 7]), "upstream_error", "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAILURES)
async def test_what_came_before_a_failure_is_kept_and_counted(name: str) -> None:
    handler, code, words = FAILURES[name]
    produced = await produce(handler)
    failed = produced[-1]
    assert isinstance(failed, ProviderError)
    assert failed.code == code
    assert words in str(failed)
    assert "canary" not in str(failed)
    assert TextDelta("a") in produced
    assert [item.usage.total_tokens for item in produced if isinstance(item, UsageReport)] == [6]


async def test_a_prompt_that_is_blocked_is_refused_and_counted() -> None:
    blocked = {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "usageMetadata": counted(5)}
    report, failed = await produce(gemini([blocked]))
    assert isinstance(report, UsageReport)
    assert isinstance(failed, ProviderError)
    assert (failed.code, failed.status, failed.retryable) == ("upstream_refused", 400, False)
    assert "content filter refused the prompt" in str(failed)


RETRY = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "34.07s"}
REFUSALS: list[tuple[int, object, str, str, int | None]] = [
    (429, error(429, "RESOURCE_EXHAUSTED", "x", RETRY), "upstream_rate_limited", "limit", 35),
    (503, error(503, "UNAVAILABLE"), "upstream_error", "overloaded", None),
    (500, [error(500, "INTERNAL")], "upstream_error", "HTTP 500", None),
    (504, error(504, "DEADLINE_EXCEEDED"), "upstream_timeout", "ran out of time", None),
    (403, error(403, "PERMISSION_DENIED"), "upstream_refused", "may not do this", None),
    (400, error(400, "INVALID_ARGUMENT"), "upstream_refused", "HTTP 400", None),
]


@pytest.mark.parametrize(("status", "answer", "code", "words", "retry_after"), REFUSALS)
async def test_a_refusal_is_said_as_what_it_is(
    status: int, answer: object, code: str, words: str, retry_after: int | None
) -> None:
    async def refuse(request: Request) -> None:
        await request.answer(status, answer)

    (failed,) = await produce(refuse)
    assert isinstance(failed, ProviderError)
    assert (failed.code, failed.retry_after_seconds) == (code, retry_after)
    assert words in str(failed)
    assert "canary" not in str(failed)


async def test_a_wrong_key_and_a_wrong_model_are_told_apart_from_a_wrong_request() -> None:
    async with oracle(gemini()) as server:
        for key, model, words in [
            ("x", "m", "does not accept the configured key"),
            (KEY, "missing", "no such model"),
        ]:
            made = provider(server, key)
            with pytest.raises(ProviderError, match=words):
                assert [batch async for batch in made.stream(HI, model)]
            await made.close()


async def test_an_answer_that_is_complete_does_not_wait_for_the_end_of_its_connection() -> None:
    produced = await produce(gemini(stay=True), idle=0.1)
    assert produced[-1] == Finish("stop", usage(5, 2), "STOP")


async def test_cancelling_closes_the_connection() -> None:
    async with oracle(gemini(stay=True)) as server:
        made = provider(server)
        async with asyncio.timeout(5):
            async with aclosing(made.stream(HI, "m")) as batches:
                await anext(batches)
            await server.requests[0].gone.wait()
        await made.close()


anything = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.sampled_from(["", "STOP", "OTHER", "x"]),
    st.lists(st.integers() | st.text(max_size=3), max_size=2), st.dictionaries(st.text(max_size=3), st.none(), max_size=2),
)  # fmt: skip


@st.composite
def mutated(draw: st.DrawFn) -> object:
    """A chunk in which a value is something else."""
    chunks, _ = ANSWERS[draw(st.sampled_from(sorted(ANSWERS)))]
    chunk: Any = json.loads(json.dumps(draw(st.sampled_from(chunks))))
    place = chunk
    while True:
        key = draw(st.sampled_from(list(place) if isinstance(place, dict) else range(len(place))))
        if not isinstance(place[key], (dict, list)) or not place[key] or draw(st.booleans()):
            place[key] = draw(anything)
            return chunk
        place = place[key]


@given(st.lists(mutated(), min_size=1, max_size=4))
@settings(max_examples=300, deadline=None)
def test_whatever_comes_is_read_or_is_a_failure(chunks: list[object]) -> None:
    reading = Reading("p")
    produced = [item for chunk in chunks for item in reading.read([Event(json.dumps(chunk).encode())])]
    if reading.fault is None:
        produced += reading.end()
    assert (reading.fault is None) == any(isinstance(item, Finish) for item in produced)
    assert all(piece.arguments.startswith("{") for piece in produced if isinstance(piece, ToolCallPiece))
    for report in produced:
        if isinstance(report, UsageReport):
            assert 0 <= report.usage.reasoning_tokens <= report.usage.completion_tokens
            assert 0 <= report.usage.cached_tokens <= report.usage.prompt_tokens


def test_half_a_character_and_a_number_that_is_none_end_no_answer() -> None:
    reading = Reading("p")
    half = json.dumps(said(text("a\ud83d"), avgLogprobs=float("nan"))).encode()
    assert reading.read([Event(half)])[1:] == [TextDelta("a\ufffd")]
    assert reading.fault is None


# -- what is asked ---------------------------------------------------------------------------------

LOOK = asked.Tool("look", "Looks.", {"type": "object", "properties": {"at": {"type": "string"}}})
SIGNED = {"google": {"thought_signature": "c2ln"}}
WHOLE = Prompt(
    (
        Message("system", (asked.Text("Be brief."),)),
        Message(
            "user",
            (
                asked.Text("What is this?"),
                asked.Image(f"data:image/png;base64,{PICTURE}"),
                asked.File("application/pdf", "https://files.example/a.pdf"),
            ),
        ),
        Message(
            "assistant",
            (
                asked.Text("I look."),
                asked.ToolCall("c-1", "look", '{"at":"Z"}', SIGNED),
                asked.ToolCall("c-2", "look", "{}"),
            ),
        ),
        Message("tool", (asked.ToolResult("c-1", (asked.Text("a cat"),)),)),
        Message("tool", (asked.ToolResult("c-2", (asked.Text('{"seen":2}'),)),)),
        Message("user", (asked.Text("And?"),)),
    ),
    tools=(LOOK,),
    tool_choice=asked.NamedTool("look"),
    max_tokens=100,
    temperature=0.5,
    top_p=0.9,
    top_k=40,
    stop=("END",),
    seed=7,
    choices=2,
    output=asked.OutputFormat({"type": "object", "properties": {"a": {"type": "integer"}}}),
    reasoning_effort="low",
)


def as_their_client_has_it() -> dict[str, Any]:
    """``WHOLE`` in the words of google-genai."""
    picture = types.Part(inline_data=types.Blob(data=b"\x89PNG\r\n\x1a\n", mime_type="image/png"))
    file = types.Part(
        file_data=types.FileData(file_uri="https://files.example/a.pdf", mime_type="application/pdf")
    )
    calls = [
        types.Part(
            function_call=types.FunctionCall(id="c-1", name="look", args={"at": "Z"}),
            thought_signature=b"sig",
        ),
        types.Part(function_call=types.FunctionCall(id="c-2", name="look", args={})),
    ]
    results = [
        types.Part(function_response=types.FunctionResponse(id=identity, name="look", response=response))
        for identity, response in (("c-1", {"output": "a cat"}), ("c-2", {"seen": 2}))
    ]
    declaration = types.FunctionDeclaration(
        name="look",
        description="Looks.",
        parameters_json_schema={"type": "object", "properties": {"at": {"type": "string"}}},
    )
    return {
        "contents": [
            types.Content(role="user", parts=[types.Part(text="What is this?"), picture, file]),
            types.Content(role="model", parts=[types.Part(text="I look."), *calls]),
            types.Content(role="user", parts=results),
            types.Content(role="user", parts=[types.Part(text="And?")]),
        ],
        "config": types.GenerateContentConfig(
            system_instruction=types.Content(parts=[types.Part(text="Be brief.")]),
            tools=[types.Tool(function_declarations=[declaration])],
            tool_config=types.ToolConfig(function_calling_config=types.FunctionCallingConfig(
                mode=types.FunctionCallingConfigMode.ANY, allowed_function_names=["look"])),
            max_output_tokens=100, temperature=0.5, top_p=0.9, top_k=40, stop_sequences=["END"], seed=7,
            candidate_count=2, response_mime_type="application/json",
            response_json_schema={"type": "object", "properties": {"a": {"type": "integer"}}},
            thinking_config=types.ThinkingConfig(include_thoughts=True, thinking_level=types.ThinkingLevel.LOW),
        ),
    }  # fmt: skip


def client(server: Oracle, key: str = KEY) -> genai.Client:
    base_url = server.base_url.removesuffix("/v1")
    return genai.Client(api_key=key, http_options=types.HttpOptions(base_url=base_url, api_version="v1beta"))


async def stream(server: Oracle, **given: Any) -> list[types.GenerateContentResponse]:
    theirs = client(server)
    try:
        chunks = await theirs.aio.models.generate_content_stream(model="gemini-3-flash", **given)
        return [chunk async for chunk in chunks]
    finally:
        await theirs.aio.aclose()


async def test_a_request_is_the_one_that_their_own_client_sends() -> None:
    async with oracle(gemini()) as server:
        await stream(server, **as_their_client_has_it())
        made = provider(server)
        assert [batch async for batch in made.stream(WHOLE, "gemini-3-flash")]
        await made.close()
        theirs, ours = server.requests
        assert ours.path == theirs.path
        assert ours.headers["x-goog-api-key"] == theirs.headers["x-goog-api-key"]
        assert ours.json == plain(theirs.json)


def plain(value: Any) -> Any:
    """One of the two forms that JSON of Google's may have: fields in camel case, base64 with ``+`` and ``/``."""
    if isinstance(value, dict):
        made = {
            re.sub("_(.)", lambda found: found[1].upper(), name): plain(inner)
            for name, inner in value.items()
        }
        if signature := made.get("thoughtSignature"):
            made["thoughtSignature"] = signature.replace("-", "+").replace("_", "/")
        return made
    return [plain(inner) for inner in value] if isinstance(value, list) else value


async def test_their_client_understands_the_server_that_these_tests_are_run_against() -> None:
    chunks, _ = ANSWERS["calls"]
    async with oracle(gemini([*HELLO[:1], *chunks])) as server:
        first, second, last = await stream(server, contents="Hi")
    assert first.text == "Hel"
    assert second.function_calls is not None
    assert [(call.id, call.name, call.args) for call in second.function_calls] == [
        ("c-1", "look", CALL["args"]),
        ("c-2", "look", CALL["args"]),
    ]
    assert second.parts is not None
    assert [part.thought_signature for part in second.parts] == [b"sig", None]
    assert last.candidates is not None
    assert last.candidates[0].finish_reason is types.FinishReason.STOP
    assert last.usage_metadata is not None
    assert (last.usage_metadata.prompt_token_count, last.usage_metadata.candidates_token_count) == (5, 3)
    assert last.response_id == "r-1"


async def test_their_client_and_this_provider_list_the_same_models() -> None:
    async with oracle(gemini()) as server:
        theirs, made = client(server), provider(server)
        found = [
            (model.name or "").removeprefix("models/")
            async for model in await theirs.aio.models.list()
            if "generateContent" in (model.supported_actions or ())
        ]
        assert await made.models() == found == ["gemini-3-flash", "gemini-2.5-flash"]
        await theirs.aio.aclose()
        await made.close()


async def test_their_client_takes_the_servers_errors_for_errors() -> None:
    async with oracle(gemini([A, error(503, "UNAVAILABLE")])) as server:
        wrong = client(server, "x")
        with pytest.raises(genai.errors.ClientError) as caught:
            assert [
                chunk
                async for chunk in await wrong.aio.models.generate_content_stream(model="m", contents="Hi")
            ]
        assert (caught.value.code, caught.value.status) == (400, "INVALID_ARGUMENT")
        await wrong.aio.aclose()


def sent(prompt: Prompt, model: str = "gemini-3-flash") -> dict[str, Any]:
    made: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(body(prompt, model)))
    return made


def asking(*messages: Message, **given: Any) -> Prompt:
    return Prompt((*messages, *HI.messages), **given)


def calling(extra_content: dict[str, Any] | None = None, arguments: str = "{}") -> Message:
    return Message("assistant", (asked.ToolCall("c-1", "look", arguments, extra_content),))


@pytest.mark.parametrize(
    ("model", "given", "expected"),
    [
        ("gemini-3-pro", {"reasoning_effort": "high"}, {"includeThoughts": True, "thinkingLevel": "HIGH"}),
        ("gemini-3-pro", {"reasoning_effort": "xhigh"}, {"includeThoughts": True, "thinkingLevel": "HIGH"}),
        ("gemini-3-pro", {"reasoning_effort": "max"}, {"includeThoughts": True, "thinkingLevel": "HIGH"}),
        ("gemini-2.5-pro", {"reasoning_effort": "max"}, {"includeThoughts": True, "thinkingBudget": 24_576}),
        (
            "gemini-3-pro",
            {"reasoning_effort": "none"},
            {"includeThoughts": False, "thinkingLevel": "MINIMAL"},
        ),
        ("gemini-2.5-pro", {"reasoning_effort": "medium"}, {"includeThoughts": True, "thinkingBudget": 8192}),
        ("gemini-2.5-pro", {"reasoning_effort": "none"}, {"includeThoughts": False, "thinkingBudget": 0}),
        (
            "gemini-3-pro",
            {"reasoning_effort": "high", "reasoning_tokens": 99},
            {"includeThoughts": True, "thinkingBudget": 99},
        ),
    ],
)
def test_effort_is_a_level_or_a_budget(model: str, given: dict[str, Any], expected: dict[str, Any]) -> None:
    assert sent(asking(**given), model)["generationConfig"] == {"thinkingConfig": expected}


def test_nothing_is_sent_that_was_not_said() -> None:
    assert sent(HI) == {"contents": [{"role": "user", "parts": [{"text": "Hi"}]}]}


@pytest.mark.parametrize(
    ("model", "extra_content", "signature"),
    [
        ("gemini-3-flash", SIGNED, "c2ln"),
        ("gemini-3-flash", None, "skip_thought_signature_validator"),
        ("gemini-2.5-flash", SIGNED, "c2ln"),
        ("gemini-2.5-flash", None, None),
    ],
)
def test_the_first_call_is_signed(
    model: str, extra_content: dict[str, Any] | None, signature: str | None
) -> None:
    (call,) = sent(asking(calling(extra_content)), model)["contents"][0]["parts"]
    assert call.get("thoughtSignature") == signature


def test_only_thoughts_that_gemini_signed_go_back() -> None:
    thoughts = (
        asked.Reasoning("mine", "gemini:c2ln"),
        asked.Reasoning("theirs", "c2ln"),
        asked.Reasoning("plain"),
    )
    (content, _) = sent(asking(Message("assistant", (*thoughts, asked.Text("a")))))["contents"]
    assert content == {
        "role": "model",
        "parts": [{"text": "mine", "thought": True, "thoughtSignature": "c2ln"}, {"text": "a"}],
    }


def test_the_signature_of_words_goes_back_with_them() -> None:
    message = Message("assistant", (asked.Text("a"),), extra={"openai": {"extra_content": SIGNED}})
    assert sent(asking(message))["contents"][0]["parts"] == [{"text": "a", "thoughtSignature": "c2ln"}]


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (asked.ToolResult("c-1", (asked.Text("a cat"),)), {"response": {"output": "a cat"}}),
        (asked.ToolResult("c-1", (asked.Text("[1]"),)), {"response": {"output": "[1]"}}),
        (asked.ToolResult("c-1", (asked.Text('{"a":'),)), {"response": {"output": '{"a":'}}),
        (
            asked.ToolResult("c-1", (asked.Text('{"a":1}'),), is_error=True),
            {"response": {"error": '{"a":1}'}},
        ),
        (
            asked.ToolResult("c-1", (asked.Image("data:image/png;base64,AAAA"),)),
            {
                "response": {"output": ""},
                "parts": [{"inlineData": {"mimeType": "image/png", "data": "AAAA"}}],
            },
        ),
    ],
)
def test_a_tools_result_is_an_object(result: asked.ToolResult, expected: dict[str, Any]) -> None:
    answered = sent(asking(calling(), Message("tool", (result,))))["contents"][1]
    assert answered == {
        "role": "user",
        "parts": [{"functionResponse": {"id": "c-1", "name": "look", **expected}}],
    }


@pytest.mark.parametrize("arguments", ["", " ", "{}"])
def test_a_call_may_have_no_arguments(arguments: str) -> None:
    call = sent(asking(calling(arguments=arguments)))["contents"][0]["parts"][0]["functionCall"]
    assert call["args"] == {}


@pytest.mark.parametrize(
    "arguments", ["[1]", '{"a":', "null", '{"a":1}x', '{"a":1e400}', '{"a":NaN}', '{"a":"\\ud800"}']
)
def test_arguments_that_are_no_object_are_refused_with_words(arguments: str) -> None:
    with pytest.raises(RequestRefused, match="JSON object"):
        sent(asking(calling(arguments=arguments)))


def test_a_data_url_may_have_any_form() -> None:
    message = Message(
        "user",
        (
            asked.Image("data:text/plain,a%20b"),
            asked.Image("DATA:image/png;charset=utf-8;base64,AA=="),
            asked.Image("https://a.example/b.webp?c=1"),
        ),
    )
    assert sent(Prompt((message,)))["contents"][0]["parts"] == [
        {"inlineData": {"mimeType": "text/plain", "data": "YSBi"}},
        {"inlineData": {"mimeType": "image/png", "data": "AA=="}},
        {"fileData": {"mimeType": "image/webp", "fileUri": "https://a.example/b.webp?c=1"}},
    ]


async def test_what_the_settings_add_is_merged_into_every_request() -> None:
    async with oracle(gemini()) as server:
        more = {
            "tools": [{"googleSearch": {}}],
            "generationConfig": {"mediaResolution": "MEDIA_RESOLUTION_LOW"},
        }
        upstream = Upstream("p", {"x-goog-api-key": KEY})
        made = GeminiProvider("p", server.base_url.removesuffix("/v1"), upstream, extra=more)
        assert [batch async for batch in made.stream(asking(tools=(LOOK,), seed=1), "m")]
        await made.close()
        seen = server.requests[0].json
    assert [set(tool) for tool in seen["tools"]] == [{"functionDeclarations"}, {"googleSearch"}]
    assert seen["generationConfig"] == {"seed": 1, "mediaResolution": "MEDIA_RESOLUTION_LOW"}


@pytest.mark.parametrize(
    ("model", "path"),
    [
        ("gemini-3-flash", "models/gemini-3-flash"),
        ("tunedModels/mine", "tunedModels/mine"),
        ("../../x?y#z", "models/..%2F..%2Fx%3Fy%23z"),
    ],
)
async def test_a_models_name_stays_within_its_place_in_the_path(model: str, path: str) -> None:
    async with oracle(gemini()) as server:
        made = provider(server)
        with suppress(ProviderError):
            assert [batch async for batch in made.stream(HI, model)]
        await made.close()
        assert server.requests[0].path == f"/v1beta/{path}:streamGenerateContent?alt=sse"


# -- as a provider of the settings -----------------------------------------------------------------


def test_its_variable_makes_it_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    config = Settings().providers["gemini"]
    assert (config.type, config.base_url, config.price_id) == (
        "gemini",
        "https://generativelanguage.googleapis.com",
        "google",
    )
    monkeypatch.setenv("GEMINI_BASE_URL", "http://127.0.0.1:1")
    config = Settings().providers["gemini"]
    assert (config.type, config.base_url, config.price_id) == ("gemini", "http://127.0.0.1:1", None)


def test_it_needs_an_address() -> None:
    with pytest.raises(ConfigurationError, match="type 'gemini' needs a base_url"):
        Settings.load(providers={"g": {"type": "gemini"}})


async def test_its_section_of_the_settings_makes_it() -> None:
    async with oracle(gemini()) as server:
        config = ProviderSettings(
            type="gemini", base_url=server.base_url.removesuffix("/v1"), api_key=SecretStr(KEY)
        )
        service = llm_service(Settings(providers={"g": config}), {})
        await service.discover()
        assert list(service.models) == ["gemini-3-flash", "gemini-2.5-flash"]
        pieces = [piece async for piece in service.stream_chat([{"role": "user", "content": "Hi"}])]
        assert [piece.content for piece in pieces] == ["Hel", "lo", ""]
        assert pieces[-1].token_count == 2
        await service.close()


async def test_a_tool_loop_over_chat_completions_gives_gemini_its_signature_back(run: Run) -> None:
    answers: list[Sequence[Any]] = [ANSWERS["calls"][0], HELLO]

    async def handler(request: Request) -> None:
        await gemini(HELLO if "models?" in request.path else answers.pop(0))(request)

    async with oracle(handler) as server, run({"gemini": provider(server)}) as app:
        question = {"role": "user", "content": "Hi"}
        asking: dict[str, Any] = {"model": "gemini-3-flash", "messages": [question]}
        async with post(app.app, "/v1/chat/completions", asking, app.key) as call:
            await call.finished()
        message = call.json["choices"][0]["message"]
        results = [
            {"role": "tool", "tool_call_id": made["id"], "content": "a cat"} for made in message["tool_calls"]
        ]
        asking["messages"] = [question, message, *results]
        async with post(app.app, "/v1/chat/completions", asking, app.key) as call:
            await call.finished()
        assert call.json["choices"][0]["message"]["content"] == "Hello"
        _, said_before, answered = server.requests[-1].json["contents"]
        assert [part.get("thoughtSignature") for part in said_before["parts"]] == ["c2ln", None]
        assert [part["functionResponse"]["id"] for part in answered["parts"]] == ["c-1", "c-2"]
        assert {part["functionResponse"]["name"] for part in answered["parts"]} == {"look"}
        first, last = await app.receipts()
        assert (last["completion_tokens"], last["prompt_tokens"], last["usage_source"]) == (
            2,
            5,
            "provider_final",
        )
        assert (first["finish_reason"], last["finish_reason"]) == ("tool_calls", "stop")
