"""The provider for servers of OpenAI's Responses, against a server that does what each test says."""

import json
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from millstream import prompt as asked
from millstream.errors import ProviderError, RequestRefused, UpstreamError
from millstream.events import (
    AnswerStart,
    File,
    PartEnd,
    PartStart,
    Reasoning,
    ReasoningDelta,
    Refusal,
    RefusalDelta,
    Source,
    Text,
    TextDelta,
)
from millstream.prompt import Message, NamedTool, OutputFormat, Prompt
from millstream.providers import Finish, PartBreak, PartOpen, Produced, ToolCallPiece, UsageReport
from millstream.providers.responses import Reading, ResponsesProvider, body
from millstream.providers.upstream import Upstream
from millstream.runtime.providers import llm_service
from millstream.settings import ProviderSettings, Settings
from millstream.sse import Message as Sent
from millstream.streams.parts import Assembler
from millstream.usage import Usage
from oracle import Handler, Request, oracle

HELLO = Prompt((Message("user", (asked.Text("Hello"),)),))
RAW = {
    "input_tokens": 9,
    "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 2},
    "output_tokens": 12,
    "output_tokens_details": {"reasoning_tokens": 3},
    "total_tokens": 21,
}
USAGE = Usage(9, 12, "provider_final", 4, 3, 2)
RAW_THOUGHT = {"id": "rs_1", "type": "reasoning_text"}
CREATED = {"type": "response.created", "response": {"id": "resp_9", "model": "m-1", "service_tier": "flex"}}
START = AnswerStart("responses", "resp_9", "m-1", extra={"service_tier": "flex"})


def ended(status: str = "completed", /, **more: Any) -> dict[str, Any]:
    return {"type": f"response.{status}", "response": {"id": "resp_9", "status": status, "usage": RAW} | more}


def read(*events: dict[str, Any]) -> list[Produced | ProviderError]:
    """What is understood of the events, and the fault among them."""
    reading = Reading("p")
    found: list[Produced | ProviderError] = list(
        reading.read([Sent(json.dumps(event).encode()) for event in events])
    )
    if reading.fault is not None:
        found.append(reading.fault)
    return found


def said(*events: dict[str, Any], status: str = "completed") -> list[Produced | ProviderError]:
    """What is understood between the start and the end."""
    first, *between, report, finish = read(CREATED, *events, ended(status))
    assert first == START
    assert report == UsageReport(USAGE.sourced("provider_partial"), RAW)
    assert isinstance(finish, Finish)
    return between


def item(kind: str, at: int, done: bool = False, **more: Any) -> dict[str, Any]:
    what = "done" if done else "added"
    return {"type": f"response.output_item.{what}", "output_index": at, "item": {"type": kind, **more}}


def delta(kind: str, text: str, item_id: str, **more: Any) -> dict[str, Any]:
    return {"type": f"response.{kind}.delta", "delta": text, "item_id": item_id, **more}


def test_text_has_the_id_of_its_item() -> None:
    part = [{"type": "output_text", "text": "Hello", "annotations": []}]
    assert said(
        item("message", 0, id="msg_1", content=[], phase="commentary"),
        delta("output_text", "Hel", "msg_1", content_index=0, logprobs=[]),
        delta("output_text", "lo", "msg_1", content_index=0, logprobs=[{"token": "lo"}]),
        item("message", 0, True, id="msg_1", content=part),
    ) == [
        PartOpen(Text(extra={"id": "msg_1", "phase": "commentary"})),
        TextDelta("Hel"),
        TextDelta("lo", extra={"logprobs": {"content": [{"token": "lo"}], "refusal": None}}),
    ]


def test_a_source_comes_after_its_text() -> None:
    annotation = {"type": "url_citation", "url": "https://a.example/", "title": "A"}
    assert said(
        item("message", 0, id="msg_1"),
        delta("output_text", "Hel", "msg_1"),
        {"type": "response.output_text.annotation.added", "annotation": annotation},
        delta("output_text", "lo", "msg_1"),
        item("message", 0, True, id="msg_1", content=[{"type": "output_text", "annotations": [annotation]}]),
    )[1:] == [TextDelta("Hel"), TextDelta("lo"), Source("https://a.example/", "A")]


def test_where_a_source_stands_is_counted_in_all_text() -> None:
    def part(text: str) -> dict[str, Any]:
        cited = {"type": "url_citation", "url": f"https://{text}.example/", "start_index": 1, "end_index": 2}
        return {"type": "output_text", "text": text, "annotations": [cited]}

    def message(at: int, *texts: str) -> dict[str, Any]:
        return item("message", at, True, id=f"msg_{at}", content=[part(text) for text in texts])

    added = {"type": "response.output_text.annotation.added", "annotation": part("six")["annotations"][0]}
    found = said(
        message(0, "one", "two"),
        item("message", 1, id="msg_1"),
        delta("output_text", "six", "msg_1", content_index=0),
        added,
        message(1, "six"),
        item("message", 2, id="msg_2"),
        delta("output_text", "ten", "msg_2", content_index=0),
        message(2, "ten"),
    )
    assert [one for one in found if isinstance(one, Source)] == [
        Source("https://one.example/", "", 1, 2),
        Source("https://two.example/", "", 4, 5),
        Source("https://six.example/", "", 7, 8),
        Source("https://ten.example/", "", 10, 11),
    ]


def test_a_thought_is_signed_with_what_only_its_provider_can_read() -> None:
    summary = "reasoning_summary_text"
    assert said(
        item("reasoning", 0, id="rs_1", summary=[]),
        delta(summary, "One", "rs_1", summary_index=0),
        delta(summary, "two", "rs_1", summary_index=1),
        item("reasoning", 0, True, id="rs_1", summary=[], encrypted_content="sealed"),
        item("reasoning", 1, id="rs_2", summary=[]),
        item("reasoning", 1, True, id="rs_2", summary=[], encrypted_content="opaque"),
        item("reasoning", 2, id="rs_3", summary=[]),
        item("reasoning", 2, True, id="rs_3", summary=[]),
    ) == [
        PartOpen(Reasoning(extra={"id": "rs_1"})),
        ReasoningDelta("One"),
        PartOpen(Reasoning(extra={"id": "rs_1"})),
        ReasoningDelta("two"),
        PartBreak(Reasoning("responses:sealed")),
        Reasoning(redacted="responses:opaque", extra={"id": "rs_2"}),
    ]


def test_a_thought_itself_is_told_from_its_summary_in_pieces_and_whole() -> None:
    whole = {
        "id": "rs_1",
        "summary": [{"type": "summary_text", "text": "Short."}],
        "content": [{"type": "reasoning_text", "text": "Long."}],
    }
    told = [
        PartOpen(Reasoning(extra={"id": "rs_1"})),
        ReasoningDelta("Short."),
        PartOpen(Reasoning(extra=RAW_THOUGHT)),
        ReasoningDelta("Long."),
        PartBreak(Reasoning("")),
    ]
    in_pieces = said(
        item("reasoning", 0, id="rs_1", summary=[]),
        delta("reasoning_summary_text", "Short.", "rs_1", summary_index=0),
        delta("reasoning_text", "Long.", "rs_1", content_index=0),
        item("reasoning", 0, True, **whole),
    )
    assert in_pieces == told
    assert said(item("reasoning", 0, True, **whole)) == told


def test_calls_may_come_one_among_the_other() -> None:
    arguments = "function_call_arguments"
    assert said(
        item("function_call", 0, id="fc_1", call_id="c1", name="look", arguments=""),
        item("function_call", 1, id="fc_2", call_id="c2", name="go", arguments=""),
        delta(arguments, '{"a"', "fc_1", output_index=0),
        delta(arguments, "{}", "fc_2", output_index=1),
        delta(arguments, ":1}", "fc_1", output_index=0),
        item("function_call", 1, True, id="fc_2", call_id="c2", name="go", arguments="{}"),
        item("function_call", 0, True, id="fc_1", call_id="c1", name="look", arguments='{"a":1}'),
    ) == [
        ToolCallPiece(0, "", "c1", "look"),
        ToolCallPiece(1, "", "c2", "go"),
        ToolCallPiece(0, '{"a"'),
        ToolCallPiece(1, "{}"),
        ToolCallPiece(0, ":1}"),
        PartBreak(index=1),
        PartBreak(index=0),
    ]
    assert isinstance(finish := read(item("function_call", 0, call_id="c", name="n"), ended())[-1], Finish)
    assert finish.reason == "tool_calls"


def test_what_comes_whole_counts_like_what_comes_in_pieces() -> None:
    output: list[dict[str, Any]] = [
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Hm."}]},
        {
            "type": "message",
            "id": "msg_1",
            "content": [{"type": "output_text", "text": "Hello"}, {"type": "refusal", "refusal": "No."}],
        },
        {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "look", "arguments": "{}"},
        {"type": "image_generation_call", "id": "ig_1", "result": "AA==", "output_format": "webp"},
    ]
    whole: list[Produced | ProviderError] = [
        PartOpen(Reasoning(extra={"id": "rs_1"})),
        ReasoningDelta("Hm."),
        PartBreak(Reasoning("")),
        PartOpen(Text(extra={"id": "msg_1"})),
        TextDelta("Hello"),
        RefusalDelta("No."),
        ToolCallPiece(0, "", "c1", "look"),
        ToolCallPiece(0, "{}"),
        PartBreak(index=0),
        File("image/webp", "data:image/webp;base64,AA==", {"id": "ig_1", "output_format": "webp"}),
    ]
    items = [
        event
        for at, one in enumerate(output)
        for event in (
            item(one["type"], at, id=one["id"]) if one["type"] != "function_call" else {"type": "x"},
            {"type": "response.output_item.done", "output_index": at, "item": one},
        )
    ]
    assert said(*items) == whole
    assert read(ended(output=output))[1:-2] == whole
    # As JSON, though a stream was asked for.
    answer = {"object": "response", "id": "resp_9", "status": "completed", "output": output, "usage": RAW}
    assert read(answer)[1:-2] == whole


def test_items_that_are_whole_behind_the_last_one_say_nothing_again() -> None:
    """llama.cpp tells so of all items at the end."""
    thought = {"type": "reasoning_text", "text": "hm"}
    text = {"type": "output_text", "text": "Hello"}
    assert said(
        item("reasoning", 0, id="rs_1", summary=[]),
        delta("reasoning_text", "hm", "rs_1"),
        item("message", 1, id="msg_1", content=[]),
        delta("output_text", "Hel", "msg_1"),
        item("web_search_call", 2, id="ws_1"),
        item("reasoning", 0, True, id="rs_1", summary=[], content=[thought], encrypted_content="sealed"),
        delta("output_text", "lo", "msg_1"),
        item("message", 1, True, id="msg_1", content=[text]),
    ) == [
        PartOpen(Reasoning(extra=RAW_THOUGHT)),
        ReasoningDelta("hm"),
        PartOpen(Text(extra={"id": "msg_1"})),
        TextDelta("Hel"),
        Reasoning(redacted="responses:sealed", extra={"id": "rs_1"}),
        PartOpen(Text(extra={"id": "msg_1"})),
        TextDelta("lo"),
    ]


def test_an_item_whose_id_changes_with_every_event_is_one() -> None:
    """GitHub Copilot's, for one."""
    text = {"type": "output_text", "text": "Hello"}
    assert said(
        item("message", 0, id="a", content=[]),
        delta("output_text", "Hel", "b", output_index=0, content_index=0),
        delta("output_text", "lo", "c", output_index=0, content_index=0),
        item("message", 0, True, id="d", content=[text]),
    ) == [PartOpen(Text(extra={"id": "b"})), TextDelta("Hel"), TextDelta("lo")]


@pytest.mark.parametrize("odd", ['"a\\ud83d"', "NaN", "1e400"])
def test_a_whole_answer_that_msgspec_does_not_read_is_an_answer(odd: str) -> None:
    message = {"type": "message", "id": "m", "content": [{"type": "output_text", "text": "Hi"}]}
    answer = {"object": "response", "status": "completed", "output": [message, "odd"], "usage": RAW}
    reading = Reading("p")
    produced = reading.read([Sent(json.dumps(answer).replace('"odd"', odd).encode())])
    assert reading.fault is None
    assert TextDelta("Hi") in produced


def test_what_llamacpp_leaves_out_is_not_missed() -> None:
    assert read(
        {
            "type": "response.created",
            "response": {"id": "resp_1", "object": "response", "status": "in_progress"},
        },
        {"type": "response.output_item.added", "item": {"id": "rs_1", "type": "reasoning", "summary": []}},
        {"type": "response.reasoning_text.delta", "delta": "Hm", "item_id": "rs_1"},
        {"type": "response.output_item.done", "item": {"id": "rs_1", "type": "reasoning", "summary": []}},
        {"type": "response.output_item.added", "item": {"id": "msg_1", "type": "message", "content": []}},
        {"type": "response.output_text.delta", "delta": "Hel", "item_id": "msg_1"},
        {"type": "response.output_text.delta", "delta": "lo", "item_id": "msg_1"},
        {
            "type": "response.output_item.added",
            "item": {"type": "function_call", "call_id": "fc_1", "name": "n"},
        },
        {"type": "response.function_call_arguments.delta", "delta": "{}", "item_id": "fc_1"},
        ended(),
    ) == [
        AnswerStart("responses", "resp_1"),
        PartOpen(Reasoning(extra=RAW_THOUGHT)),
        ReasoningDelta("Hm"),
        PartBreak(Reasoning("")),
        PartOpen(Text(extra={"id": "msg_1"})),
        TextDelta("Hel"),
        TextDelta("lo"),
        ToolCallPiece(0, "", "fc_1", "n"),
        ToolCallPiece(0, "{}"),
        UsageReport(USAGE.sourced("provider_partial"), RAW),
        Finish("tool_calls", USAGE, "completed"),
    ]


@pytest.mark.parametrize(
    ("details", "reason", "word"),
    [
        ({"reason": "max_output_tokens"}, "length", "max_output_tokens"),
        ({"reason": "content_filter"}, "content_filter", "content_filter"),
        ({"reason": "max_messages"}, "length", "max_messages"),
        (None, "length", "incomplete"),
    ],
)
def test_an_incomplete_answer_says_why(details: Any, reason: str, word: str) -> None:
    assert read(ended("incomplete", incomplete_details=details))[-1] == Finish(reason, USAGE, word)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("event", "code", "words"),
    [
        (
            ended("failed", error={"code": "rate_limit_exceeded", "message": "secret"}),
            "upstream_rate_limited",
            "limits our rate",
        ),
        (ended("failed", error={"code": "server_error", "message": "secret"}), "upstream_error", "failed"),
        (ended("failed", error=None), "upstream_error", "failed"),
        (ended("failed", error={"code": "invalid_image", "message": "secret"}), "upstream_refused", "images"),
        (ended("incomplete", status="cancelled"), "upstream_error", "gave the answer up"),
        ({"type": "error", "code": "insufficient_quota", "message": "secret"}, "upstream_refused", "quota"),
        ({"type": "error", "error": {"type": "overloaded"}}, "upstream_error", "overloaded"),
        ({"error": {"message": "secret", "code": 429}}, "upstream_rate_limited", "rate"),
        ({"anything": 1}, "upstream_error", "without a type"),
        (delta("output_text", "x", "m") | {"delta": 5}, "upstream_error", "cannot be read"),
        (delta("function_call_arguments", "x", "f"), "upstream_error", "no tool call"),
        (item("function_call", 0, call_id="c"), "upstream_error", "without an id or a name"),
    ],
)
def test_a_failure_is_told_by_its_word_and_never_by_its_text(event: Any, code: str, words: str) -> None:
    error = read(CREATED, event)[-1]
    assert isinstance(error, ProviderError)
    assert error.code == code
    assert words in error.message
    assert "secret" not in error.message


def test_half_a_character_costs_that_character_alone() -> None:
    reading = Reading("p")
    half = rb'{"type":"response.output_text.delta","delta":"a\ud83d","item_id":"msg_1"}'
    assert reading.read([Sent(half)])[-1] == TextDelta("a\N{REPLACEMENT CHARACTER}")


def test_what_was_used_until_a_failure_is_told() -> None:
    assert UsageReport(USAGE.sourced("provider_partial"), RAW) in read(ended("failed"))


def test_what_nobody_here_knows_is_passed_over() -> None:
    assert (
        said(
            {"type": "response.web_search_call.searching", "item_id": "ws_1"},
            item("web_search_call", 0, id="ws_1"),
            item("web_search_call", 0, True, id="ws_1"),
            {"type": "response.rate_limits.updated", "delta": 7},
        )
        == []
    )


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
EVENTS = [
    CREATED,
    item("reasoning", 0, id="rs_1", summary=[]),
    delta("reasoning_summary_text", "Hm.", "rs_1", summary_index=0),
    item("reasoning", 0, True, id="rs_1", summary=[{"text": "Hm."}], encrypted_content="sealed"),
    item("message", 1, id="msg_1", content=[], phase="commentary"),
    delta("output_text", "Hel", "msg_1", content_index=0, logprobs=[]),
    {"type": "response.output_text.annotation.added", "annotation": {"type": "url_citation", "url": "u"}},
    item("message", 1, True, id="msg_1", content=[{"text": "Hello", "annotations": [{"url": "u"}]}]),
    item("function_call", 2, id="fc_1", call_id="c1", name="look", arguments=""),
    delta("function_call_arguments", "{}", "fc_1", output_index=2),
    item("function_call", 2, True, id="fc_1", call_id="c1", name="look", arguments="{}"),
    item("image_generation_call", 3, True, id="ig_1", result="AA==", output_format="png"),
    {"type": "error", "error": {"code": "server_error", "message": "x"}},
    ended(output=[{"type": "message", "content": [{"text": "Hello"}]}], incomplete_details={"reason": "x"}),
]


@settings(max_examples=300)
@given(st.data())
def test_whatever_a_server_sends_is_understood_or_a_fault(data: st.DataObject) -> None:
    """Events of which one has something else in one place."""
    events = json.loads(json.dumps(data.draw(st.lists(st.sampled_from(EVENTS), min_size=1, max_size=8))))
    value = data.draw(st.sampled_from(events))
    while True:
        keys = sorted(value) if isinstance(value, dict) else list(range(len(value)))
        if not keys:
            break
        key = data.draw(st.sampled_from(keys))
        if not isinstance(value[key], (dict, list)) or data.draw(st.booleans()):
            value[key] = data.draw(json_values)
            break
        value = value[key]
    Assembler().feed([one for one in read(*events) if not isinstance(one, ProviderError)])


# -- over a socket ---------------------------------------------------------------------------------


async def produce(handler: Handler, prompt: Prompt = HELLO) -> tuple[list[Produced | ProviderError], Any]:
    """Everything the provider produced, or the error it ended with as the last item; and what it was sent."""
    async with oracle(handler) as server:
        provider = ResponsesProvider("p", server.base_url, Upstream("p", {}), extra={"service_tier": "flex"})
        produced: list[Produced | ProviderError] = []
        try:
            async for batch in provider.stream(prompt, "m"):
                produced.extend(batch)
        except ProviderError as error:
            produced.append(error)
        finally:
            await provider.close()
        return produced, server.requests


def saying(events: Sequence[dict[str, Any]]) -> Handler:
    async def handler(request: Request) -> None:
        await request.head()
        for event in events:
            await request.event(event)
        await request.end()

    return handler


async def test_a_request_goes_to_responses_and_keeps_nothing_there() -> None:
    produced, (request,) = await produce(saying([CREATED, delta("output_text", "Hi", "msg_1"), ended()]))
    assert [item for item in produced if isinstance(item, TextDelta)] == [TextDelta("Hi")]
    assert request.path == "/v1/responses"
    assert request.json == {
        "model": "m",
        "stream": True,
        "store": False,
        "service_tier": "flex",
        "input": [
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello"}]},
        ],
    }


async def test_an_answer_without_its_end_is_cut() -> None:
    produced, _ = await produce(saying([CREATED, delta("output_text", "Hi", "msg_1")]))
    assert isinstance(produced[-1], UpstreamError)
    assert "cut" in produced[-1].message


async def test_one_answer_is_given_to_a_prompt() -> None:
    produced, requests = await produce(saying([]), msgspec.structs.replace(HELLO, choices=2))
    assert isinstance(produced[0], RequestRefused)
    assert requests == []


async def test_models_are_named() -> None:
    async def handler(request: Request) -> None:
        await request.answer(200, {"object": "list", "data": [{"id": "a"}, {"id": "b"}, {}]})

    async with oracle(handler) as server:
        provider = ResponsesProvider("p", server.base_url, Upstream("p", {}))
        assert await provider.models() == ["a", "b"]
        await provider.close()


async def test_a_section_of_the_settings_makes_one() -> None:
    async def handler(request: Request) -> None:
        assert request.headers["authorization"] == "Bearer sk-test"
        await saying([CREATED, delta("output_text", "Hi", "msg_1"), ended()])(request)

    async with oracle(handler) as server:
        section = ProviderSettings(
            type="responses", base_url=server.base_url, api_key=SecretStr("sk-test"), models=("m",)
        )
        service = llm_service(Settings(providers={"r": section}), {})
        await service.discover()
        (found,) = (await service.resolve("m")).deployments
        batches = [batch async for batch in found.provider.stream(HELLO, found.upstream_name)]
        assert isinstance(batches[-1][-1], Finish)
        await service.close()
    with pytest.raises(ValidationError, match="'responses' needs a base_url"):
        ProviderSettings(type="responses")


# -- requests --------------------------------------------------------------------------------------


def test_a_prompt_of_another_api_is_put_into_this_ones_words() -> None:
    prompt = Prompt(
        (
            Message("system", (asked.Text("Be short."),)),
            Message("user", (asked.Text("See"), asked.Image("data:,", "low"))),
            Message(
                "assistant",
                (
                    asked.Reasoning("Hm.", "of another API"),
                    asked.Text("I look."),
                    asked.ToolCall("c1", "look", "{}"),
                ),
            ),
            Message("tool", (asked.ToolResult("c1", (asked.Text("1"),)),)),
            Message("assistant", (asked.Refusal("No."),)),
            Message("user", (asked.File("application/pdf", "https://a.example/a.pdf"),)),
        ),
        tools=(asked.Tool("look", "Looks.", {"type": "object"}),),
        tool_choice=NamedTool("look"),
        parallel_tool_calls=False,
        max_tokens=50,
        temperature=0.5,
        stop=("x",),
        seed=1,
        output=OutputFormat({"type": "object"}, "n"),
        reasoning_effort="low",
        user="u1",
        metadata={"a": "b"},
    )
    assert body(prompt) == {
        "instructions": "Be short.",
        "input": [
            {
                "type": "message",
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "See"},
                    {"type": "input_image", "image_url": "data:,", "detail": "low"},
                ],
            },
            {
                "type": "message",
                "role": "assistant",
                "content": [{"type": "output_text", "text": "I look."}],
            },
            {"type": "function_call", "call_id": "c1", "name": "look", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "1"},
            {"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
            {
                "type": "message",
                "role": "user",
                "content": [{"type": "input_file", "file_url": "https://a.example/a.pdf"}],
            },
        ],
        "tools": [
            {
                "type": "function",
                "name": "look",
                "description": "Looks.",
                "parameters": {"type": "object"},
                "strict": False,
            }
        ],
        "tool_choice": {"type": "function", "name": "look"},
        "parallel_tool_calls": False,
        "max_output_tokens": 50,
        "temperature": 0.5,
        "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}},
        "reasoning": {"effort": "low"},
        "user": "u1",
        "metadata": {"a": "b"},
        "store": False,
    }


def test_files_of_an_assistant_are_shown_by_the_user_behind_all_results() -> None:
    """An assistant's messages have texts and refusals only."""
    picture = asked.Image("data:image/png;base64,AA==")
    shown = {
        "type": "message",
        "role": "user",
        "content": [
            {"type": "input_text", "text": "Files of what is above:"},
            {"type": "input_image", "image_url": picture.url, "detail": "auto"},
        ],
    }
    history = (
        Message("assistant", (picture, asked.ToolCall("c1", "look", "{}"))),
        Message("tool", (asked.ToolResult("c1", (asked.Text("1"),)),)),
        Message("assistant", (picture,)),
    )
    call, result, behind, below, again = body(Prompt(history))["input"]
    assert (call["type"], result["type"]) == ("function_call", "function_call_output")
    assert below == {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "See the files below."}],
    }
    assert behind == again == shown


@pytest.mark.parametrize(
    ("file", "sent"),
    [
        (
            asked.File("application/pdf", "DATA:application/pdf;base64,AA==", "a.pdf"),
            {"type": "input_file", "file_data": "DATA:application/pdf;base64,AA==", "filename": "a.pdf"},
        ),
        (
            asked.File("audio/wav", "data:audio/wav;base64,AA=="),
            {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
        ),
    ],
)
def test_a_file_as_data(file: asked.File, sent: dict[str, Any]) -> None:
    (item,) = body(Prompt((Message("user", (file,)),)))["input"]
    assert item["content"] == [sent]


def test_sound_that_would_have_to_be_fetched_is_refused_with_words() -> None:
    with pytest.raises(RequestRefused, match="not by a URL"):
        body(Prompt((Message("user", (asked.File("audio/wav", "https://a.example/b"),)),)))


@pytest.mark.parametrize(("asked_for", "sent"), [(5, 16), (16, 16), (17, 17)])
def test_a_limit_is_not_under_what_the_api_takes(asked_for: int, sent: int) -> None:
    assert body(msgspec.structs.replace(HELLO, max_tokens=asked_for))["max_output_tokens"] == sent


SUMMARY = [{"type": "summary_text", "text": "Hm."}]


@pytest.mark.parametrize(
    ("thought", "sent"),
    [
        (
            asked.Reasoning("Hm.", "responses:sealed", extra={"responses": {"id": "rs_1"}}),
            {"type": "reasoning", "id": "rs_1", "summary": SUMMARY, "encrypted_content": "sealed"},
        ),
        (
            asked.Reasoning(redacted="responses:sealed"),
            {"type": "reasoning", "summary": [], "encrypted_content": "sealed"},
        ),
        (
            asked.Reasoning("Hm.", extra={"responses": {"content": [{"text": "Hm."}]}}),
            {"type": "reasoning", "content": [{"text": "Hm."}]},
        ),
        (
            asked.Reasoning("Hm.", extra={"responses": RAW_THOUGHT}),
            {
                "type": "reasoning",
                "id": "rs_1",
                "summary": [],
                "content": [{"type": "reasoning_text", "text": "Hm."}],
            },
        ),
        (asked.Reasoning("Hm.", "EqQB", extra={"responses": {"encrypted_content": "EqQB"}}), None),
        (asked.Reasoning("Hm.", "gemini:c2ln", extra={"responses": {"content": [{"text": "Hm."}]}}), None),
        (asked.Reasoning(redacted="EmwK"), None),
        (asked.Reasoning("Hm."), None),
    ],
)
def test_a_thought_goes_back_to_the_api_that_has_signed_it(
    thought: asked.Reasoning, sent: dict[str, Any] | None
) -> None:
    items = body(Prompt((Message("assistant", (thought, asked.Text("So."))),)))["input"]
    assert items[:-1] == ([] if sent is None else [sent])


@pytest.mark.parametrize(
    ("extra", "sent"),
    [
        ({}, {"user": "u1"}),
        ({"safety_identifier": "other"}, {"safety_identifier": "u1"}),
        ({"safety_identifier": "other", "user": "u2"}, {"safety_identifier": "u1", "user": "u2"}),
    ],
)
def test_the_end_user_is_who_the_prompt_says(extra: dict[str, Any], sent: dict[str, Any]) -> None:
    prompt = msgspec.structs.replace(HELLO, user="u1", extra={"responses": extra})
    assert {name: value for name, value in body(prompt).items() if name in ("user", *extra)} == sent


# -- parts -----------------------------------------------------------------------------------------


def test_a_long_id_of_a_call_is_another_the_same_for_its_result() -> None:
    long, fits = "x" * 65, "x" * 64
    calls = Message("assistant", tuple(asked.ToolCall(one, "look", "{}") for one in (long, fits)))
    results = Message("tool", tuple(asked.ToolResult(one, ()) for one in (long, fits)))
    ids = [item["call_id"] for item in body(Prompt((calls, results)))["input"]]
    assert ids[:2] == ids[2:]
    assert ids[1] == fits
    assert len(ids[0]) <= 64


def test_a_part_keeps_what_was_known_of_it_at_its_start() -> None:
    assembler = Assembler()
    events = assembler.feed(
        [
            PartOpen(Reasoning(extra={"id": "rs_1"})),
            ReasoningDelta("Hm."),
            PartBreak(Reasoning("sealed")),
            PartOpen(Text(extra={"id": "msg_1"})),
            TextDelta("Hm."),
            RefusalDelta("No."),
            TextDelta("Hello"),
        ]
    )
    assert [event for event in [*events, *assembler.close()] if isinstance(event, (PartStart, PartEnd))] == [
        PartStart(0, Reasoning(extra={"id": "rs_1"})),
        PartEnd(0, Reasoning("sealed", extra={"id": "rs_1"})),
        PartStart(1, Text(extra={"id": "msg_1"})),
        PartEnd(1, Text(extra={"id": "msg_1"})),
        PartStart(2, Refusal()),
        PartEnd(2, Refusal()),
        PartStart(3, Text()),
        PartEnd(3, Text()),
    ]


def test_the_end_of_a_part_does_not_make_it_another_kind() -> None:
    events = Assembler().feed([TextDelta("Hello"), PartBreak(Reasoning("sealed"))])
    assert events[-1] == PartEnd(0, Text())
