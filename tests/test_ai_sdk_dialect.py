"""What the bodies of a page on the Vercel AI SDK ask for. The rules of every dialect are in contracts."""

import json
from typing import Any

import pytest

from millstream.answer import Answer
from millstream.dialects.ai_sdk import AI_SDK
from millstream.errors import InvalidRequest
from millstream.events import AnswerStart, Batch, PartEnd, PartStart, Position, StreamEnd, StreamInfo
from millstream.events import Reasoning as Thought
from millstream.events import ToolCall as ToolCallEvent
from millstream.prompt import Message, Prompt, Reasoning, Text, ToolCall, ToolResult
from millstream.usage import Bill, Usage

QUESTION = {"id": "1", "role": "user", "parts": [{"type": "text", "text": "Hello"}]}


def parsed(*messages: dict[str, Any], **more: Any) -> Prompt:
    return AI_SDK.parse(json.dumps({"id": "c", "messages": [QUESTION, *messages], **more}).encode()).prompt


def answer(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"id": "2", "role": "assistant", "parts": list(parts)}


def test_a_message_without_parts_is_its_content() -> None:
    said = parsed({"id": "2", "role": "assistant", "content": "Hello Bob"}).messages[1]
    assert said == Message("assistant", (Text("Hello Bob"),))


def test_each_step_is_an_answer_with_the_results_of_its_tools() -> None:
    look = {"type": "tool-look", "toolCallId": "c1", "state": "output-available", "input": {}, "output": [1]}
    prompt = parsed(
        answer(
            {"type": "step-start"},
            look,
            {"type": "step-start"},
            {"type": "text", "text": "One."},
            {"type": "data-weather", "data": {}},
        )
    )
    assert prompt.messages[1:] == (
        Message("assistant", (ToolCall("c1", "look", "{}"),)),
        Message("tool", (ToolResult("c1", (Text("[1]"),), name="look"),)),
        Message("assistant", (Text("One."),)),
    )


def test_a_call_that_nobody_has_answered_cannot_go_back() -> None:
    call = {"type": "tool-look", "toolCallId": "c1", "state": "input-available", "input": {}}
    assert len(parsed(answer(call)).messages) == 1


@pytest.mark.parametrize(
    ("given", "arguments"),
    [
        ({"input": {"city": "Bonn"}, "rawInput": "x"}, {"city": "Bonn"}),
        ({"rawInput": {"city": "Ber"}}, {"city": "Ber"}),
        ({"input": None, "rawInput": '{"city": "Ber'}, {"input": '{"city": "Ber'}),
        ({"input": '{"city": "Ber"}'}, {"city": "Ber"}),
        ({"input": [1]}, {"input": [1]}),
        ({}, {}),
    ],
)
def test_a_call_that_has_failed_goes_back_with_what_it_was_given(given: Any, arguments: Any) -> None:
    call = {"type": "tool-look", "toolCallId": "c1", "state": "output-error", "errorText": "no such city"}
    _, called, told = parsed(answer(call | given)).messages
    assert isinstance(called.parts[0], ToolCall)
    assert json.loads(called.parts[0].arguments) == arguments
    assert told.parts == (ToolResult("c1", (Text("no such city"),), is_error=True, name="look"),)


@pytest.mark.parametrize("state", ["output-denied", "approval-responded"])
@pytest.mark.parametrize(
    ("approval", "words"),
    [
        ({"id": "a", "approved": False, "reason": "too dear"}, "too dear"),
        ({"id": "a", "approved": False}, "the user has not allowed it"),
    ],
)
def test_a_model_is_told_why_a_call_was_denied(approval: Any, words: str, state: str) -> None:
    call = {"type": "tool-look", "toolCallId": "c1", "state": state, "input": {}}
    told = parsed(answer(call | {"approval": approval})).messages[-1]
    assert told.parts == (ToolResult("c1", (Text(words),), is_error=True, name="look"),)


def test_a_call_that_is_allowed_and_has_not_run_cannot_go_back() -> None:
    call = {"type": "tool-look", "toolCallId": "c1", "state": "approval-responded", "input": {}}
    assert len(parsed(answer(call | {"approval": {"id": "a", "approved": True}})).messages) == 1


def test_what_a_provider_says_of_a_thought_goes_to_the_page_and_comes_back() -> None:
    raw = {"id": "rs_1", "type": "reasoning_text"}
    info, part = StreamInfo("str_1", "key_1", "m", 5.0), PartEnd(0, Thought(extra=raw))
    batch = Batch(Position(1, 3), [AnswerStart("responses"), part])
    end = json.loads(AI_SDK.encode(info, batch, Answer).removeprefix(b"data: "))
    assert end == {"type": "reasoning-end", "id": "0", "providerMetadata": {"responses": {"extra": raw}}}
    shown = {"type": "reasoning", "text": "Hm.", "providerMetadata": end["providerMetadata"]}
    message = parsed(answer(shown)).messages[1]
    assert message.parts == (Reasoning("Hm.", extra={"responses": raw}),)


SIGNED: dict[str, Any] = {"google": {"thought_signature": "signed"}}


def test_what_a_provider_wants_back_with_a_call_goes_to_the_page_and_comes_back() -> None:
    kept = {**SIGNED, "plain": "which is no object"}  # a page refuses metadata that are none
    call = ToolCallEvent(0, "c1", "look", "{}", kept)
    info, part = StreamInfo("str_1", "key_1", "m", 5.0), PartEnd(0, call)
    frame = AI_SDK.encode(info, Batch(Position(1, 3), [part]), Answer)
    assert json.loads(frame.removeprefix(b"data: ")) == {
        "type": "tool-input-available",
        "toolCallId": "c1",
        "toolName": "look",
        "input": {},
        "providerMetadata": SIGNED,
    }
    whole = Answer()
    bill = Bill(Usage(1, 1, "counted"), None)
    whole.add([PartStart(0, call), part, StreamEnd("tool_calls", bill)])
    (shown,) = json.loads(AI_SDK.answer(info, whole))["parts"]
    assert shown["callProviderMetadata"] == SIGNED
    done = {**shown, "state": "output-available", "output": 1}
    said = parsed(answer(done)).messages[1]
    assert said.parts == (ToolCall("c1", "look", "{}", SIGNED),)


def test_metadata_of_a_call_that_are_no_objects_are_left_out_or_refused() -> None:
    done = {"type": "tool-look", "toolCallId": "c1", "state": "output-available", "output": 1}
    said = parsed(answer({**done, "callProviderMetadata": {"a": 1}})).messages[1]
    assert said.parts == (ToolCall("c1", "look", "{}"),)
    with pytest.raises(InvalidRequest, match=r"callProviderMetadata: has to be an object"):
        parsed(answer({**done, "callProviderMetadata": 1}))


def test_tools_of_the_page_come_by_name() -> None:
    schema = {"type": "object", "properties": {}}
    (tool,) = parsed(tools={"look": {"description": "Looks", "parameters": schema}}).tools
    assert (tool.name, tool.description, tool.parameters) == ("look", "Looks", schema)


@pytest.mark.parametrize("identity", ["a\0b", "a\nb", "x" * 129])
def test_a_chat_has_a_name_that_every_ledger_takes(identity: str) -> None:
    with pytest.raises(InvalidRequest, match="id: "):
        AI_SDK.parse(json.dumps({"id": identity, "messages": [QUESTION]}).encode())
