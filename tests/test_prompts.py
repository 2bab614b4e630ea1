"""A body of ours -> a prompt -> what a server of OpenAI's Chat Completions is sent."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from millstream.bodies import validate
from millstream.dialects import Ask
from millstream.dialects.native import ask_of
from millstream.dialects.table import DIALECTS, DialectName
from millstream.errors import RequestRefused
from millstream.messages import ChatMessage, ChatRequest
from millstream.prompt import (
    EFFORTS,
    File,
    Image,
    Message,
    NamedTool,
    OutputFormat,
    Prompt,
    Reasoning,
    Refusal,
    Text,
    Tool,
    ToolCall,
    ToolResult,
)
from millstream.providers import responses
from millstream.providers.known import OPENAI, Quirks
from millstream.providers.openai import request

QUESTION = {"role": "user", "content": "Hello"}
ASKED = Message("user", (Text("Hello"),))
SCHEMA = {"type": "object", "properties": {"a": {"type": ["string", "null"]}}}
SIGNED = {"google": {"thought_signature": "c2ln"}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"q":1}'}}
LOOK = {"type": "function", "function": {"name": "look"}}
PICTURE: dict[str, Any] = {
    "type": "image_url",
    "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"},
}


def asked(**fields: Any) -> Prompt:
    body = json.dumps({"messages": [QUESTION], **fields}).encode()
    return validate(ChatRequest, body).to_prompt()


def message(**fields: Any) -> Message:
    return asked(messages=[fields]).messages[0]


def sent(given: Prompt, quirks: Quirks = Quirks()) -> dict[str, Any]:
    """What stands beside the messages in the body of a provider."""
    body = request.body(given, quirks)
    assert body.pop("messages") == [QUESTION]
    return body


# -- messages --------------------------------------------------------------------------------------

# A message of ours, the same in a prompt, and what a provider is sent for it where that is another.
MESSAGES: dict[str, tuple[dict[str, Any], Message, dict[str, Any] | None]] = {
    "words": (QUESTION, ASKED, None),
    "no words": ({"role": "user", "content": ""}, Message("user", (Text(""),)), None),
    "a system prompt": (
        {"role": "system", "content": "Be brief."},
        Message("system", (Text("Be brief."),)),
        None,
    ),
    "a developer's": (
        {"role": "developer", "content": "Be."},
        Message("developer", (Text("Be."),)),
        {"role": "system", "content": "Be."},
    ),
    "a name": ({**QUESTION, "name": "ann"}, Message("user", (Text("Hello"),), "ann"), None),
    "one part of text, which is a string": (
        {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
        ASKED,
        QUESTION,
    ),
    "several parts of text": (
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        Message("user", (Text("a"), Text("b"))),
        None,
    ),
    "an image": (
        {"role": "user", "content": [{"type": "text", "text": "Look:"}, PICTURE]},
        Message("user", (Text("Look:"), Image("data:image/png;base64,AA==", "low"))),
        None,
    ),
    "an image alone, at an address": (
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://example.org/a"}}]},
        Message("user", (Image("https://example.org/a"),)),
        None,
    ),
    "a tool's result": (
        {"role": "tool", "tool_call_id": "call_1", "content": "1"},
        Message("tool", (ToolResult("call_1", (Text("1"),)),)),
        None,
    ),
    "a result of a tool that is named": (
        {"role": "tool", "tool_call_id": "call_1", "content": "1", "name": "look"},
        Message("tool", (ToolResult("call_1", (Text("1"),), name="look"),), "look"),
        None,
    ),
    "an empty result": (
        {"role": "tool", "tool_call_id": "call_1", "content": ""},
        Message("tool", (ToolResult("call_1", (Text(""),)),)),
        None,
    ),
    "a result in parts": (
        {
            "role": "tool",
            "tool_call_id": "call_1",
            "content": [{"type": "text", "text": "Seen:"}, {"type": "text", "text": "a"}],
        },
        Message(
            "tool",
            (ToolResult("call_1", (Text("Seen:"), Text("a"))),),
        ),
        {"role": "tool", "tool_call_id": "call_1", "content": "Seen:\n\na"},
    ),
    "a system prompt in parts": (
        {"role": "system", "content": [{"type": "text", "text": "Be"}, {"type": "text", "text": "brief."}]},
        Message("system", (Text("Be"), Text("brief."))),
        {"role": "system", "content": "Be\n\nbrief."},
    ),
    "a result in no parts": (
        {"role": "tool", "tool_call_id": "call_1", "content": []},
        Message("tool", (ToolResult("call_1", ()),)),
        {"role": "tool", "tool_call_id": "call_1", "content": ""},
    ),
    "a call": (
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        Message("assistant", (ToolCall("call_1", "look", '{"q":1}'),)),
        None,
    ),
    "words, then a call that goes back signed": (
        {"role": "assistant", "content": "Hm.", "tool_calls": [{**CALL, "extra_content": SIGNED}]},
        Message("assistant", (Text("Hm."), ToolCall("call_1", "look", '{"q":1}', SIGNED))),
        None,
    ),
    "what a model thought, before what it said": (
        {"role": "assistant", "content": "Hm.", "reasoning_content": "hm"},
        Message("assistant", (Reasoning("hm"), Text("Hm."))),
        None,
    ),
    "a refusal": (
        {"role": "assistant", "refusal": "No."},
        Message("assistant", (Refusal("No."),)),
        {"role": "assistant", "content": "No."},
    ),
    "what only a server of OpenAI's protocol can have sent": (
        {"role": "assistant", "content": "x", "reasoning_details": [{"a": None}], "extra_content": SIGNED},
        Message(
            "assistant",
            (Text("x"),),
            extra={"openai": {"reasoning_details": [{"a": None}], "extra_content": SIGNED}},
        ),
        None,
    ),
}


@pytest.mark.parametrize("case", MESSAGES)
def test_a_message_becomes_one_of_a_prompt_and_a_providers(case: str) -> None:
    given, expected, there = MESSAGES[case]
    assert message(**given) == expected
    assert request.body(Prompt((expected,)), Quirks())["messages"] == [there or given]


def test_only_who_knows_developers_is_told_of_them() -> None:
    given = Prompt((Message("developer", (Text("Be."),)), Message("system", (Text("Be brief."),)), ASKED))
    assert request.body(given, Quirks(developer_role=True))["messages"] == [
        {"role": "developer", "content": "Be."},
        {"role": "system", "content": "Be brief."},
        QUESTION,
    ]


@pytest.mark.parametrize(
    ("second", "content"),
    [
        (Message("developer", (Text("Be brief."),)), "Be.\n\nBe brief."),
        (Message("system", ()), "Be."),
        (
            Message("system", (Text("Be brief.", {"openai": {"cache_control": {}}}),)),
            [{"type": "text", "text": "Be."}, {"type": "text", "text": "Be brief.", "cache_control": {}}],
        ),
    ],
)
def test_the_first_system_messages_are_one(second: Message, content: object) -> None:
    """Templates of models take one only."""
    first = Message("system", (Text("Be."),))
    messages = request.body(Prompt((first, second, ASKED, first)), Quirks())["messages"]
    assert messages == [
        {"role": "system", "content": content},
        QUESTION,
        {"role": "system", "content": "Be."},
    ]


def test_the_words_of_a_message_are_all_it_says() -> None:
    texts = {case: expected.text for case, (_, expected, _) in MESSAGES.items()}
    assert texts["several parts of text"] == "ab"
    assert texts["an image"] == "Look:"
    assert texts["a result in parts"] == "Seen:a"
    assert texts["a refusal"] == "No."
    assert texts["a call"] == ""
    assert texts["what a model thought, before what it said"] == "Hm."
    for given, expected, _ in MESSAGES.values():
        assert ChatMessage.model_validate(given).text == expected.text


def test_the_calls_of_a_message_are_those_of_its_parts() -> None:
    call = ToolCall("call_1", "look", "{}")
    assert Message("assistant", (Reasoning("hm"), Text("x"), call)).tool_calls == [call]
    assert ASKED.tool_calls == []


# What other formats can say and ours cannot.


def test_a_message_of_several_results_is_a_message_for_each() -> None:
    """As Anthropic and Gemini have them."""
    results = Message("tool", (ToolResult("a", (Text("1"),)), ToolResult("b", (Text("2"),), name="hear")))
    assert request.body(Prompt((ASKED, results)), Quirks())["messages"] == [
        QUESTION,
        {"role": "tool", "tool_call_id": "a", "content": "1"},
        {"role": "tool", "tool_call_id": "b", "content": "2", "name": "hear"},
    ]


def test_files_of_tools_and_answers_are_shown_by_a_user_behind_all_results() -> None:
    """Other roles may have none."""
    picture, shown = (
        Image(PICTURE["image_url"]["url"], "low"),
        {"type": "text", "text": "Files of what is above:"},
    )
    call = ToolCall("a", "look", "{}")
    history = (
        Message("assistant", (picture, call, ToolCall("b", "look", "{}"))),
        Message("tool", (ToolResult("a", (Text("Seen:"), picture)), ToolResult("b", (picture,)))),
        Message("tool", (ToolResult("c", (Text("1"),)),)),
        Message("assistant", (picture,)),
        ASKED,
        Message("assistant", (Text("Look:"), picture)),
    )
    first, a, b, c, behind, *more = request.body(Prompt(history), Quirks())["messages"]
    assert (first["content"], [call["id"] for call in first["tool_calls"]]) == (None, ["a", "b"])
    assert a == {"role": "tool", "tool_call_id": "a", "content": "Seen:"}
    assert b == {"role": "tool", "tool_call_id": "b", "content": "See the files below."}
    assert c == {"role": "tool", "tool_call_id": "c", "content": "1"}
    assert behind == {"role": "user", "content": [shown, PICTURE, PICTURE, PICTURE]}
    assert more == [
        {"role": "assistant", "content": "See the files below."},
        {"role": "user", "content": [shown, PICTURE]},
        QUESTION,
        {"role": "assistant", "content": "Look:"},
        {"role": "user", "content": [shown, PICTURE]},
    ]


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (
            File("audio/wav", "data:audio/wav;base64,AA=="),
            {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
        ),
        (
            File("application/pdf", "data:application/pdf;base64,AA==", "a.pdf"),
            {
                "type": "file",
                "file": {"file_data": "data:application/pdf;base64,AA==", "filename": "a.pdf"},
            },
        ),
        (
            File("application/pdf", "data:application/pdf;base64,AA=="),
            {
                "type": "file",
                "file": {"file_data": "data:application/pdf;base64,AA==", "filename": "file"},
            },
        ),
        (
            File("text/csv", "data:text/csv;charset=utf-8,a%C3%A9", "a.csv"),
            {"type": "text", "text": "aé"},
        ),
        (File("text/plain", "data:text/plain;base64,YcOp"), {"type": "text", "text": "aé"}),
        (File("text/plain", "DATA:text/plain;a=b;base64,YcOp"), {"type": "text", "text": "aé"}),
        (
            File("text/plain", "data:text/plain;base64,/w=="),
            {"type": "file", "file": {"file_data": "data:text/plain;base64,/w==", "filename": "file"}},
        ),
    ],
)
def test_a_file_is_what_openai_calls_it(part: File, expected: dict[str, Any]) -> None:
    (found,) = request.body(Prompt((Message("user", (part,)),)), Quirks())["messages"]
    content = expected["text"] if expected["type"] == "text" else [expected]
    assert found == {"role": "user", "content": content}


@pytest.mark.parametrize(
    ("media_type", "called"),
    [
        ("audio/mpeg", "mp3"),
        ("audio/mp3", "mp3"),
        ("audio/x-mp3", "mp3"),
        ("audio/mpga", "mp3"),
        ("audio/wav", "wav"),
        ("audio/x-wav", "wav"),
        ("audio/vnd.wave", "wav"),
        ("audio/WAV; codecs=1", "wav"),
        ("audio/x-flac", "flac"),
        ("audio/ogg;codecs=opus", "ogg"),
    ],
)
def test_sound_has_the_name_that_openai_has_for_it(media_type: str, called: str) -> None:
    sound = File(media_type, f"data:{media_type};base64,AA==")
    expected = {"type": "input_audio", "input_audio": {"data": "AA==", "format": called}}
    prompt = Prompt((Message("user", (sound,)),))
    assert request.body(prompt, Quirks())["messages"][0]["content"] == [expected]
    assert responses.body(prompt)["input"][0]["content"] == [expected]


@pytest.mark.parametrize("media_type", ["application/pdf", "audio/wav", "text/plain"])
def test_a_file_that_would_have_to_be_fetched_is_refused_with_words(media_type: str) -> None:
    given = Prompt((Message("user", (File(media_type, "https://example.org/a"),)),))
    with pytest.raises(RequestRefused, match="not by a URL"):
        request.body(given, Quirks())


def test_a_document_that_a_tool_has_read_stays_with_its_result() -> None:
    document = File("text/plain", "data:text/plain;base64,YQ==")
    given = Prompt((Message("tool", (ToolResult("a", (Text("Read:"), document)),)),))
    (found,) = request.body(given, Quirks())["messages"]
    assert found == {"role": "tool", "tool_call_id": "a", "content": "Read:\n\na"}


def test_what_only_one_api_knows_of_a_part_goes_to_that_api() -> None:
    cached = {"cache_control": {"type": "ephemeral"}}
    for extra, more in (({"openai": cached}, cached), ({"anthropic": cached}, {})):
        given = Prompt((Message("user", (Text("a", extra), Text("b"))),))
        (found,) = request.body(given, Quirks())["messages"]
        assert found["content"] == [{"type": "text", "text": "a", **more}, {"type": "text", "text": "b"}]
    # A text of which there is more to say than its words is no string.
    (found,) = request.body(Prompt((Message("user", (Text("a", {"openai": cached}),)),)), Quirks())[
        "messages"
    ]
    assert found["content"] == [{"type": "text", "text": "a", **cached}]


def test_texts_are_one_for_who_takes_no_parts() -> None:
    whole = Quirks(text_parts=False)
    cached = Text("b", {"openai": {"cache_control": {"type": "ephemeral"}}})
    for role in ("user", "assistant", "system"):
        (found,) = request.body(Prompt((Message(role, (Text("a"), cached)),)), whole)["messages"]
        assert found == {"role": role, "content": "a\n\nb"}
    given = Message("user", (Text("a"), Image(PICTURE["image_url"]["url"], "low")))
    (found,) = request.body(Prompt((given,)), whole)["messages"]
    assert found["content"] == [{"type": "text", "text": "a"}, PICTURE]


def test_the_assistant_says_a_word_where_no_user_may_follow_a_tool() -> None:
    result = Message("tool", (ToolResult("a", (Image("data:image/png;base64,AA=="),)),))
    messages = request.body(Prompt((result, ASKED)), Quirks(user_after_tool=False))["messages"]
    assert [message["role"] for message in messages] == ["tool", "assistant", "user", "user"]
    assert messages[1] == {"role": "assistant", "content": "OK."}


def test_ids_of_calls_are_short_for_who_takes_no_others() -> None:
    def ids(*given: str) -> list[str]:
        calls = Message("assistant", tuple(ToolCall(call_id, "look", "{}") for call_id in given))
        results = Message("tool", tuple(ToolResult(call_id, ()) for call_id in given))
        first, *rest = request.body(Prompt((calls, results)), Quirks(short_call_ids=True))["messages"]
        called = [call["id"] for call in first["tool_calls"]]
        assert called == [message["tool_call_id"] for message in rest]
        return called

    theirs, ours, other = ids("D681PevKs", "call_1", "call_2")
    assert theirs == "D681PevKs"
    assert [ours, other] == ids("call_1", "call_2")
    assert ours != other
    assert all(len(one) == 9 and one.isascii() and one.isalnum() for one in (ours, other))


def test_a_long_id_of_a_call_is_another_only_where_it_would_be_refused() -> None:
    long, fits = "call_" + "x" * 60, "x" * 40
    calls = Message("assistant", tuple(ToolCall(one, "look", "{}") for one in (long, fits)))
    results = Message("tool", tuple(ToolResult(one, ()) for one in (long, fits)))
    for quirks, is_kept in ((OPENAI, False), (Quirks(), True)):
        first, *rest = request.body(Prompt((calls, results)), quirks)["messages"]
        called = [call["id"] for call in first["tool_calls"]]
        assert called == [message["tool_call_id"] for message in rest]
        assert called[1] == fits
        assert (called[0] == long) is is_kept
        assert is_kept or len(called[0]) <= 40


def test_a_long_name_of_a_user_is_another_that_openai_takes() -> None:
    """Claude Code's has 171 characters."""
    for name, is_kept in (("u" * 64, True), ("u" * 65, False)):
        chat, responded = request.body(asked(user=name), Quirks()), responses.body(asked(user=name))
        assert chat["user"] == responded["user"] == request.body(asked(user=name), OPENAI)["user"]
        assert (chat["user"] == name) is is_kept
        assert len(chat["user"]) <= 64
    assert request.body(asked(user="u" * 66), Quirks())["user"] != chat["user"]


def test_reasoning_that_only_another_provider_can_read_is_not_sent() -> None:
    said = Message("assistant", (Reasoning(redacted="c2VjcmV0"), Reasoning("hm", "c2ln"), Text("x")))
    (found,) = request.body(Prompt((said,)), Quirks())["messages"]
    assert found == {"role": "assistant", "content": "x", "reasoning_content": "hm"}


def test_thoughts_are_one_text_with_blank_lines_for_who_takes_no_parts() -> None:
    said = Message("assistant", (Reasoning("hm"), Reasoning(redacted="c2VjcmV0"), Reasoning("So"), Text("x")))
    (found,) = request.body(Prompt((said,)), Quirks())["messages"]
    assert found["reasoning_content"] == "hm\n\nSo"


# -- everything else -------------------------------------------------------------------------------

# Fields of ours, the same in a prompt, and what a provider is sent for them where that is another.
FIELDS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any] | None]] = {
    "nothing": ({}, {}, None),
    "numbers": (
        {"max_tokens": 5, "temperature": 0, "top_p": 0.5, "seed": -1},
        {"max_tokens": 5, "temperature": 0, "top_p": 0.5, "seed": -1},
        None,
    ),
    "who asks": (
        {"user": "ann", "metadata": {"a": "b"}},
        {"user": "ann", "metadata": {"a": "b"}},
        None,
    ),
    "effort": ({"reasoning_effort": "low"}, {"reasoning_effort": "low"}, None),
    "one word to stop at": ({"stop": "\n"}, {"stop": ("\n",)}, {"stop": ["\n"]}),
    "words to stop at": ({"stop": ["a", "b"]}, {"stop": ("a", "b")}, None),
    "no words to stop at": ({"stop": []}, {}, {}),
    "a tool of a name": (
        {"tools": [LOOK]},
        {"tools": (Tool("look"),)},
        None,
    ),
    "a tool": (
        {
            "tools": [
                {
                    "type": "function",
                    "function": {
                        "name": "look",
                        "description": "Looks.",
                        "parameters": SCHEMA,
                        "strict": False,
                    },
                }
            ]
        },
        {"tools": (Tool("look", "Looks.", SCHEMA, False),)},
        None,
    ),
    "no tools": ({"tools": []}, {}, {}),
    **{
        f"tools are chosen: {choice}": (
            {"tools": [LOOK], "tool_choice": choice},
            {"tools": (Tool("look"),), "tool_choice": choice},
            None,
        )
        for choice in ("none", "auto", "required")
    },
    "one tool is chosen": (
        {"tools": [LOOK], "tool_choice": LOOK},
        {"tools": (Tool("look"),), "tool_choice": NamedTool("look")},
        None,
    ),
    "a choice of no tools": (
        {"tool_choice": "none"},
        {"tool_choice": "none"},
        {},
    ),
    "text": ({"response_format": {"type": "text"}}, {}, {}),
    "any JSON": ({"response_format": {"type": "json_object"}}, {"output": OutputFormat()}, None),
    "JSON of a schema": (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}},
        {"output": OutputFormat(SCHEMA, "n")},
        None,
    ),
    "JSON of a schema, with all there is to say of it": (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "n", "description": "d", "schema": SCHEMA, "strict": True},
            }
        },
        {"output": OutputFormat(SCHEMA, "n", "d", True)},
        None,
    ),
    "ours alone": ({"on_disconnect": "continue"}, {}, {}),
}


@pytest.mark.parametrize("case", FIELDS)
def test_a_field_becomes_one_of_a_prompt_and_a_providers(case: str) -> None:
    given, expected, there = FIELDS[case]
    made = asked(**given)
    assert made == Prompt((ASKED,), **expected)
    assert sent(made) == (given if there is None else there)


def test_the_name_of_the_model_is_kept_for_whoever_looks_it_up() -> None:
    assert asked(model="p/m").model == "p/m"
    assert asked().model is None
    assert "model" not in sent(asked(model="p/m"))


def test_what_other_formats_ask_for_is_sent_where_openai_knows_it() -> None:
    given = Prompt((ASKED,), top_k=4, reasoning_tokens=100, choices=3)
    assert sent(given) == {"n": 3, "top_k": 4}
    given = Prompt((ASKED,), parallel_tool_calls=False)
    assert sent(given) == {}  # refused without tools
    given = Prompt((ASKED,), tools=(Tool("look"),), parallel_tool_calls=False)
    assert sent(given) == {"tools": [LOOK], "parallel_tool_calls": False}
    given = Prompt((ASKED,), extra={"openai": {"logprobs": True}, "anthropic": {"service_tier": "auto"}})
    assert sent(given) == {"logprobs": True}


def test_what_a_provider_does_differently_holds_for_every_field() -> None:
    given = asked(max_tokens=5, stop="x", user="ann", reasoning_effort="low")
    quirks = Quirks(renamed={"max_tokens": "most"}, refused=("user", "stop"))
    assert sent(given, quirks) == {"most": 5, "reasoning_effort": "low"}


def test_what_openai_refuses_unless_it_stores_the_answer_is_not_sent() -> None:
    assert sent(Prompt((ASKED,), top_k=4, metadata={"a": "b"}), OPENAI) == {}


def test_the_policy_is_asked_of_us_and_is_in_no_prompt() -> None:
    for policy, expected in (("cancel", "cancel"), ("continue", "continue"), ({"grace_seconds": 3}, 3.0)):
        made = ask_of(ChatRequest.model_validate({"messages": [QUESTION], "on_disconnect": policy}))
        assert made == Ask(Prompt((ASKED,)), expected)  # type: ignore[arg-type]
    assert ask_of(ChatRequest.model_validate({"messages": [QUESTION]})) == Ask(Prompt((ASKED,)))


def test_a_prompt_is_the_same_however_little_of_it_is_said() -> None:
    """The digest of an idempotent start is taken of it."""
    full = asked(
        model=None,
        stop=[],
        tools=[],
        tool_choice=None,
        response_format={"type": "text"},
        metadata=None,
        messages=[{"role": "user", "content": [{"type": "text", "text": "Hello", "annotations": []}]}],
    )
    assert full == asked()


UI_QUESTION = {"id": "1", "role": "user", "parts": [{"type": "text", "text": "Hello"}]}

# Where a dialect has how hard to think.
EFFORT: dict[DialectName, Callable[[str], dict[str, Any]]] = {
    "millstream": lambda effort: {"messages": [QUESTION], "reasoning_effort": effort},
    "openai": lambda effort: {"messages": [QUESTION], "reasoning_effort": effort},
    "responses": lambda effort: {"input": "Hello", "reasoning": {"effort": effort}},
    "ai-sdk": lambda effort: {"id": "c", "messages": [UI_QUESTION], "reasoningEffort": effort},
    "ag-ui": lambda effort: {
        "threadId": "t",
        "runId": "r",
        "messages": [{"id": "1", **QUESTION}],
        "forwardedProps": {"reasoning_effort": effort},
    },
}


@pytest.mark.parametrize("dialect", EFFORT)
def test_every_dialect_takes_every_effort(dialect: DialectName) -> None:
    bodies = [json.dumps(EFFORT[dialect](effort)).encode() for effort in EFFORTS]
    assert tuple(DIALECTS[dialect].parse(body).prompt.reasoning_effort for body in bodies) == EFFORTS


def test_an_effort_goes_to_a_server_of_chat_completions_as_it_is() -> None:
    assert sent(asked(reasoning_effort="max")) == {"reasoning_effort": "max"}
