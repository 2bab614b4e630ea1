"""History as SDKs give it back: accepted, and sent on as providers take it."""

import json
from typing import Any

import pytest
from openai.types.chat import ChatCompletionMessage, ParsedChatCompletionMessage
from pydantic import ValidationError

from millstream.answer import Answer, ends_of_open_parts
from millstream.bodies import validate
from millstream.dialects.native import NATIVE
from millstream.errors import InvalidRequest
from millstream.events import (
    Event,
    PartStart,
    StreamEnd,
    StreamInfo,
    ToolCall,
    ToolCallDelta,
    from_json,
    to_json,
)
from millstream.messages import ChatRequest
from millstream.providers.known import Quirks
from millstream.providers.openai import request
from millstream.usage import Bill, Usage

CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
SIGNED = {"google": {"thought_signature": "AY89+/=", "more": [None, {"x": None}]}}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "1"}


def sent(*history: dict[str, Any], quirks: Quirks = Quirks()) -> list[dict[str, Any]]:
    """What a provider is sent for ``history``, whichever way the body is read."""
    messages = [{"role": "user", "content": "x"}, *history]
    body = json.dumps({"messages": messages}).encode()
    made = [validate(ChatRequest, body + b" " * size).to_prompt() for size in (0, 5000, 70_000)]
    assert made[0] == made[1] == made[2]
    found: list[dict[str, Any]] = request.body(made[0], quirks)["messages"][1:]
    return found


# A message of an answer as an SDK or a provider returns it, and what goes back to the provider.
RETURNED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "the openai package": (
        ChatCompletionMessage(role="assistant", content="Hello").model_dump(),
        {"content": "Hello"},
    ),
    "the openai package, parsed": (
        ParsedChatCompletionMessage[object](role="assistant", content="{}", parsed={"a": [1]}).model_dump(),
        {"content": "{}"},
    ),
    "the openai package, tool calls": (
        ChatCompletionMessage.model_validate(
            {"role": "assistant", "content": None, "tool_calls": [{"index": 0, **CALL}]}
        ).model_dump(),
        {"content": None, "tool_calls": [CALL]},
    ),
    "the JSON of OpenAI": (
        {"content": "Hello", "refusal": None, "annotations": []},
        {"content": "Hello"},
    ),
    "a refusal": ({"content": None, "refusal": "No."}, {"content": "No."}),
    "a refusal as a part": (
        {"content": [{"type": "text", "text": "Hm."}, {"type": "refusal", "refusal": "No."}]},
        {"content": [{"type": "text", "text": "Hm."}, {"type": "text", "text": "No."}]},
    ),
    "parts as the Responses API has them": (
        {"content": [{"type": "text", "text": "Hm.", "annotations": [{"a": 1}], "logprobs": []}]},
        {"content": "Hm."},
    ),
    "nulls": (
        {
            "content": "",
            "audio": None,
            "function_call": None,
            "tool_calls": None,
            "name": None,
            "refusal": None,
        },
        {"content": ""},
    ),
    "no tool calls": ({"content": "x", "tool_calls": []}, {"content": "x"}),
    "no content": ({"tool_calls": [CALL]}, {"content": None, "tool_calls": [CALL]}),
    "empty content": ({"content": "", "tool_calls": [CALL]}, {"content": "", "tool_calls": [CALL]}),
    "nothing at all": ({"content": None}, {"content": ""}),
    "collected from a stream": (
        {"content": None, "tool_calls": [{**CALL, "type": None, "index": 0}]},
        {"content": None, "tool_calls": [CALL]},
    ),
    "parsed arguments": (
        {"tool_calls": [{**CALL, "function": {**CALL["function"], "parsed_arguments": {"a": 1}}}]},  # type: ignore[dict-item]
        {"content": None, "tool_calls": [CALL]},
    ),
    "DeepSeek": (
        {"content": "", "reasoning_content": "hm", "tool_calls": [{"index": 0, **CALL}]},
        {"content": "", "reasoning_content": "hm", "tool_calls": [CALL]},
    ),
    "our own answer": (
        {"content": "", "reasoning": "hm", "tool_calls": [CALL]},
        {"content": "", "reasoning_content": "hm", "tool_calls": [CALL]},
    ),
    "both names of reasoning": (
        {"content": "x", "reasoning": "hm", "reasoning_content": "hm"},
        {"content": "x", "reasoning_content": "hm"},
    ),
    "no reasoning": ({"content": "x", "reasoning": None}, {"content": "x"}),
    "OpenRouter": (
        {
            "content": "x",
            "reasoning": "hm",
            "reasoning_details": [{"type": "reasoning.encrypted", "data": None}],
        },
        {
            "content": "x",
            "reasoning_content": "hm",
            "reasoning_details": [{"type": "reasoning.encrypted", "data": None}],
        },
    ),
    "Gemini": (
        {"content": None, "tool_calls": [{**CALL, "extra_content": SIGNED}], "extra_content": SIGNED},
        {"content": None, "tool_calls": [{**CALL, "extra_content": SIGNED}], "extra_content": SIGNED},
    ),
    "Azure, Groq and LiteLLM": (
        {
            "content": "x",
            "context": {"citations": []},
            "end_turn": True,
            "executed_tools": [{}],
            "provider_specific_fields": {"a": None},
            "thinking_blocks": [],
        },
        {"content": "x"},
    ),
    "an id": ({"id": "msg_1", "content": "x"}, {"content": "x"}),
}


@pytest.mark.parametrize("case", RETURNED)
def test_an_answer_goes_back_as_it_came(case: str) -> None:
    message, expected = RETURNED[case]
    history = [{**message, "role": "assistant"}, RESULT]
    assert sent(*history) == [{"role": "assistant", **expected}, RESULT]


def test_only_what_a_provider_takes_goes_back_to_it() -> None:
    message = {
        "role": "assistant",
        "content": None,
        "reasoning": "hm",
        "reasoning_details": [1],
        "extra_content": SIGNED,
        "tool_calls": [{**CALL, "extra_content": SIGNED}],
    }
    bare = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    assert sent(message, quirks=Quirks(reasoning_field=None, extra_content=False)) == [bare]
    (found,) = sent(message, quirks=Quirks(reasoning_field="reasoning", extra_content=False))
    assert found == {**bare, "reasoning": "hm", "reasoning_details": [1]}


@pytest.mark.parametrize("role", ["user", "system", "developer", "tool"])
def test_other_messages_may_have_the_same_fields_and_send_none_of_them(role: str) -> None:
    message = {"role": role, "content": "x"} | ({"tool_call_id": "call_1"} if role == "tool" else {})
    more: dict[str, Any] = {
        "id": "m",
        "reasoning": "hm",
        "refusal": None,
        "annotations": [],
        "extra_content": SIGNED,
    }
    assert sent({**message, **more}, quirks=Quirks(developer_role=True)) == [message]


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": "x", "max_token": 5},
        {"role": "assistant", "content": "x", "api_base": "http://x"},
        {"role": "assistant", "content": "x", "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "assistant", "content": "x", "audio": {"id": "a"}},
        {"role": "assistant", "tool_calls": [{**CALL, "x": 1}]},
        {"role": "assistant", "content": "x", "extra_content": "x"},
        {"role": "assistant", "content": "x", "reasoning_content": {"a": 1}},
        {"role": "user", "content": None},
        {"role": "user"},
        {"role": "function", "name": "f", "content": "x"},
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [0, 5000, 70_000])
def test_what_nobody_returns_is_refused(message: dict[str, Any], size: int) -> None:
    body = json.dumps({"messages": [message]}).encode()
    with pytest.raises(InvalidRequest):
        validate(ChatRequest, body + b" " * size)


def test_what_is_left_out_changes_no_idempotent_request() -> None:
    """The claim of a start holds when it is repeated by a client that keeps less of its history."""
    plain = {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}
    full = {"messages": [plain["messages"][0], {**plain["messages"][1], "annotations": [1], "id": "m"}]}
    assert ChatRequest.model_validate(plain) == ChatRequest.model_validate(full)
    assert ChatRequest.model_validate(plain).to_prompt() == ChatRequest.model_validate(full).to_prompt()


def test_numbers_have_to_be_finite_wherever_they_are() -> None:
    for field in ("annotations", "extra_content", "reasoning_details"):
        value = b'{"a":NaN}' if field == "extra_content" else b"[NaN]"
        message = b'{"messages":[{"role":"assistant","content":"x","%b":%b}]}' % (field.encode(), value)
        with pytest.raises(ValidationError, match="finite"):
            ChatRequest.model_validate_json(message)


def test_what_an_answer_hands_out_is_what_its_history_takes() -> None:
    """Gemini's signature of a thought, from the journal to the client and back."""
    events: list[Event] = [
        PartStart(0, ToolCall(0, "call_1", "look", extra_content=SIGNED)),
        PartStart(1, ToolCall(1, "call_2", "hear")),
        ToolCallDelta(0, "call_1", "{}", 0),
        ToolCallDelta(1, "call_2", "{}", 1, {"late": True}),
    ]
    events = from_json(to_json(events))
    events += ends_of_open_parts(events)
    answer = Answer()
    answer.add([*events, StreamEnd("tool_calls", Bill(Usage(1, 1, "counted"), None))])
    shown = json.loads(NATIVE.answer(StreamInfo("str_1", "k", "m", 0), answer))
    history = {"role": "assistant", "content": shown["content"], "tool_calls": shown["tool_calls"]}
    (found,) = sent(history)
    assert [call["extra_content"] for call in found["tool_calls"]] == [SIGNED, {"late": True}]
    assert found == history
