"""What the ``openai`` dialect understands of a body."""

import json
from pathlib import Path
from typing import Any

import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletionChunk

from millstream import events
from millstream.answer import Answer
from millstream.dialects.openai import OPENAI
from millstream.errors import InvalidRequest
from millstream.events import (
    Batch,
    Event,
    PartEnd,
    PartStart,
    Position,
    Refusal,
    RefusalDelta,
    StreamEnd,
    StreamInfo,
    WholePart,
)
from millstream.prompt import (
    File,
    Image,
    Message,
    NamedTool,
    OutputFormat,
    Prompt,
    Text,
    Tool,
    ToolResult,
)
from millstream.providers import Produced, ToolCallPiece
from millstream.providers.anthropic import models
from millstream.providers.anthropic import request as of_anthropic
from millstream.providers.known import OPENAI as OPENAI_ITSELF
from millstream.providers.known import Quirks
from millstream.providers.openai import request
from millstream.sse import Decoder
from millstream.streams.parts import Assembler
from millstream.usage import Bill, Usage

HELLO: Any = {"messages": [{"role": "user", "content": "Hello"}]}
MARK = {"type": "ephemeral", "ttl": "1h"}
LOOK: Any = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


def parsed(**more: Any) -> Prompt:
    return OPENAI.parse(json.dumps(HELLO | more).encode()).prompt


def test_marks_of_the_cache_reach_a_model_of_anthropic() -> None:
    """In the form that LiteLLM's and OpenRouter's clients know."""
    marked = {"type": "text", "text": "Rules.", "cache_control": MARK}
    picture = {"type": "image_url", "image_url": {"url": "https://a.example/i"}, "cache_control": MARK}
    prompt = parsed(
        messages=[
            {"role": "system", "content": [marked]},
            {"role": "user", "content": [picture, {"type": "text", "text": "Hello"}]},
            {"role": "user", "content": "So?", "cache_control": MARK},
        ],
        tools=[{**LOOK, "cache_control": MARK}, {**LOOK, "function": {"name": "see", "cache_control": MARK}}],
        cache_control=MARK,
    )
    sent = of_anthropic.body("a", prompt, models.of_name("claude-4-5"))
    assert sent["system"] == [marked]
    assert [part.get("cache_control") for part in sent["messages"][0]["content"]] == [MARK, None, MARK]
    assert [tool["cache_control"] for tool in sent["tools"]] == [MARK, MARK]
    assert sent["cache_control"] == MARK
    again = request.body(prompt, Quirks())
    assert again["messages"][0]["content"] == [marked]
    assert again["messages"][1]["content"][0] == picture
    assert again["cache_control"] == MARK
    assert [tool["cache_control"] for tool in again["tools"]] == [MARK, MARK]
    assert "cache_control" not in json.dumps(request.body(prompt, OPENAI_ITSELF))


def test_a_result_of_a_tool_has_its_mark() -> None:
    content = [{"type": "text", "text": "7", "cache_control": MARK}]
    (message,) = parsed(messages=[{"role": "tool", "tool_call_id": "c", "content": content}]).messages
    extra = {"openai": {"cache_control": MARK}, "anthropic": {"cache_control": MARK}}
    assert message == Message("tool", (ToolResult("c", (Text("7", extra),)),))


def test_what_openai_alone_knows_goes_on_as_it_is() -> None:
    point = {"prompt_cache_breakpoint": {"mode": "explicit"}}
    given = {"prompt_cache_options": {"mode": "explicit"}, "moderation": {"model": "omni-moderation-latest"}}
    prompt = parsed(
        messages=[{"role": "user", "content": [{"type": "text", "text": "Hello", **point}]}], **given
    )
    sent = request.body(prompt, Quirks())
    assert sent["messages"] == [{"role": "user", "content": [{"type": "text", "text": "Hello", **point}]}]
    assert {name: sent[name] for name in given} == given
    assert of_anthropic.body("a", prompt, models.of_name("claude-4-5"))["messages"] == HELLO["messages"]


def test_json_may_have_its_schema_beside_it() -> None:
    """As llama.cpp, Together and others have it."""
    schema = {"type": "object", "properties": {"a": {}}}
    assert parsed(response_format={"type": "json_object"}).output == OutputFormat()
    assert parsed(response_format={"type": "json_object", "schema": schema}).output == OutputFormat(schema)
    with pytest.raises(InvalidRequest, match=r"response_format.schema: has to be an object"):
        parsed(response_format={"type": "json_object", "schema": 7})


def test_of_the_allowed_tools_alone_the_model_is_told() -> None:
    tools = [LOOK, {"type": "function", "function": {"name": "see"}}]
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "see"}}]}
    prompt = parsed(tools=tools, tool_choice={"type": "allowed_tools", "allowed_tools": allowed})
    assert (prompt.tools, prompt.tool_choice) == ((Tool("see"),), "required")
    with pytest.raises(InvalidRequest, match=r"tool_choice.allowed_tools: is missing"):
        parsed(tools=tools, tool_choice={"type": "allowed_tools"})


def test_an_image_as_an_address_alone_has_its_mark() -> None:
    picture = {"type": "image_url", "image_url": "https://a.example/i", "cache_control": MARK}
    (message,) = parsed(messages=[{"role": "user", "content": [picture]}]).messages
    (part,) = message.parts
    assert isinstance(part, Image)
    assert part.extra["anthropic"] == {"cache_control": MARK}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            {"file_data": "aGk=", "filename": "a.txt"},
            File("text/plain", "data:text/plain;base64,aGk=", "a.txt"),
        ),
        ({"file_data": "aGk="}, File("application/pdf", "data:application/pdf;base64,aGk=")),
        (
            {"file_data": "data:;base64,aGk=", "filename": "a.csv"},
            File("text/csv", "data:text/csv;base64,aGk=", "a.csv"),
        ),
        (
            {"file_data": "DATA:text/html;a=b;base64,aGk=", "filename": "a.txt"},
            File("text/html", "DATA:text/html;a=b;base64,aGk=", "a.txt"),
        ),
    ],
)
def test_a_document_is_of_the_type_that_its_url_or_its_name_says(
    given: dict[str, str], expected: File
) -> None:
    content = [{"type": "file", "file": given}]
    (message,) = parsed(messages=[{"role": "user", "content": content}]).messages
    assert message.parts == (expected,)


@pytest.mark.parametrize("data", ["https://a.example/a.pdf", "aGk", "ä"])
def test_a_document_that_is_no_base64_is_refused(data: str) -> None:
    content = [{"type": "file", "file": {"file_data": data}}]
    with pytest.raises(InvalidRequest, match=r"file.file_data: has to be a data: URL or base64"):
        parsed(messages=[{"role": "user", "content": content}])


def test_pictures_of_an_answer_in_this_format_come_back() -> None:
    answer = Answer()
    drawn = WholePart(0, events.File("image/png", "data:image/png;base64,AA=="))
    answer.add([drawn, StreamEnd("stop", Bill(Usage(1, 1, "counted"), None))])
    whole = json.loads(OPENAI.answer(StreamInfo("str_1", "key_1", "m", 5.0), answer))
    (message,) = parsed(messages=[whole["choices"][0]["message"]]).messages
    assert message.role == "assistant"
    assert [part for part in message.parts if isinstance(part, Image)] == [
        Image("data:image/png;base64,AA==")
    ]


FIXTURES = json.loads((Path(__file__).parents[1] / "spec/fixtures/openai.json").read_text(encoding="utf-8"))


def said_in(message: Any) -> Any:
    """Without what says nothing, and the numbers of pieces."""

    def without(found: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in found.items() if value and name != "index"}

    return json.loads(json.dumps(message), object_hook=without)


@pytest.mark.parametrize("case", FIXTURES, ids=[case["name"] for case in FIXTURES])
def test_openai_s_own_client_adds_the_chunks_up_to_the_whole_answer(case: dict[str, Any]) -> None:
    state, answer = ChatCompletionStreamState(), Answer()
    for message in Decoder().feed(case["frames"].encode()):
        if message.data.startswith(b'{"id"'):
            state.handle_chunk(ChatCompletionChunk.construct(**json.loads(message.data)))
    answer.add(events.from_json(json.dumps(case["events"]).encode()))
    if isinstance(answer.terminal, StreamEnd):
        whole = json.loads(OPENAI.answer(StreamInfo("str_1", "key_1", "m", 5.0, case["choices"]), answer))
        added: Any = state.current_completion_snapshot.to_dict(warnings=False)
        for shown, said in zip(whole["choices"], added["choices"], strict=True):
            assert said["finish_reason"] == shown["finish_reason"]
            assert said_in(said["message"]) == said_in(shown["message"])


def test_an_answer_that_is_a_refusal_has_no_content() -> None:
    answer = Answer()
    said: list[Event] = [PartStart(0, Refusal()), RefusalDelta("No."), PartEnd(0, Refusal())]
    answer.add([*said, StreamEnd("stop", Bill(Usage(1, 1, "counted"), None))])
    whole = json.loads(OPENAI.answer(StreamInfo("str_1", "key_1", "m", 5.0), answer))
    message = whole["choices"][0]["message"]
    assert (message["content"], message["refusal"]) == (None, "No.")


# -- before there were tools -----------------------------------------------------------------------

FUNCTION: Any = {"name": "look", "description": "Looks.", "parameters": {"type": "object"}}


def test_functions_are_tools() -> None:
    ask = OPENAI.parse(json.dumps(HELLO | {"functions": [FUNCTION], "function_call": "auto"}).encode())
    assert ask.prompt.tools == (Tool("look", "Looks.", {"type": "object"}),)
    assert (ask.prompt.tool_choice, ask.ignored) == ("auto", ())
    assert ask.prompt.parallel_tool_calls is False  # an answer has a place for one
    assert parsed(functions=[FUNCTION], function_call={"name": "look"}).tool_choice == NamedTool("look")
    both = OPENAI.parse(json.dumps(HELLO | {"functions": [FUNCTION], "tools": [LOOK]}).encode())
    assert (len(both.prompt.tools), both.ignored) == (1, ("functions",))
    with pytest.raises(InvalidRequest, match=r"functions.0.name: is missing"):
        parsed(functions=[{}])


def test_a_function_of_the_history_is_called_by_an_id_of_its_own_each_time() -> None:
    def called(number: int) -> list[dict[str, Any]]:
        call = {"name": "look", "arguments": f'{{"at":{number}}}'}
        return [
            {"role": "assistant", "content": None, "function_call": call},
            {"role": "function", "name": "look", "content": str(number)},
        ]

    first, of_first, second, of_second = parsed(messages=[*called(1), *called(2)]).messages
    ids = [call.call_id for message in (first, second) for call in message.tool_calls]
    results = [part for message in (of_first, of_second) for part in message.parts]
    assert [part.call_id for part in results if isinstance(part, ToolResult)] == ids
    assert len(set(ids)) == 2


@pytest.mark.parametrize("calls", [1, 2])
def test_who_asks_with_functions_is_answered_with_one(calls: int) -> None:
    dialect = OPENAI.parse(json.dumps(HELLO | {"functions": [FUNCTION]}).encode()).reply
    assert dialect is not None
    assembler, answer, state = Assembler(), Answer(), ChatCompletionStreamState()
    said: list[Produced] = []
    for index in range(calls):
        said += [ToolCallPiece(index, "", f"call_{index}", "look"), ToolCallPiece(index, '{"a":1}')]
    told = [*assembler.feed(said), *assembler.close()]
    told.append(StreamEnd("tool_calls", Bill(Usage(1, 1, "counted"), None)))
    answer.add(told)
    info = StreamInfo("str_1", "key_1", "m", 5.0)
    for message in Decoder().feed(dialect.encode(info, Batch(Position(1, 1), told), Answer)):
        if message.data != b"[DONE]":
            state.handle_chunk(ChatCompletionChunk.construct(**json.loads(message.data)))
    streamed: Any = state.current_completion_snapshot.to_dict(warnings=False)
    for choice in (json.loads(dialect.answer(info, answer))["choices"][0], streamed["choices"][0]):
        assert choice["finish_reason"] == "function_call"
        assert choice["message"]["function_call"] == {"name": "look", "arguments": '{"a":1}'}
        assert not choice["message"]["content"]
        assert not choice["message"].get("tool_calls")
