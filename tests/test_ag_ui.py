"""AG-UI: what its bodies ask for, and what goes over the wire. Its own client judges in tests/conformance."""

import copy
import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from application import Run
from asgi import post
from millstream import prompt as asked
from millstream.dialects import Ask
from millstream.dialects.ag_ui import AG_UI
from millstream.errors import InvalidRequest, UpstreamError, UpstreamRateLimited
from millstream.events import Reasoning, ReasoningDelta, TextDelta
from millstream.prompt import Image, Message, Text, Tool
from millstream.providers import Finish, PartBreak, Provider, ToolCallPiece
from millstream.providers.scripted import Script, ScriptedProvider
from millstream.sse import Decoder
from millstream.usage import Usage

USAGE = Usage(9, 2, "provider_final")
USER = {"id": "1", "role": "user", "content": "Hello"}
INPUT: dict[str, Any] = {
    "threadId": "thread_1",
    "runId": "run_1",
    "protocolVersion": "1.0",
    "state": {},
    "messages": [USER],
    "tools": [],
    "context": [],
    "forwardedProps": {},
}


def parsed(**fields: Any) -> Ask:
    return AG_UI.parse(json.dumps(INPUT | fields).encode())


def conversation(*messages: dict[str, Any]) -> tuple[Message, ...]:
    numbered = [{"id": str(number), **message} for number, message in enumerate(messages)]
    return parsed(messages=numbered).prompt.messages


def test_what_clients_send_by_themselves_is_no_news() -> None:
    ask = parsed()
    assert ask.ignored == ()
    assert ask.thread_id == "thread_1"
    assert ask.prompt == asked.Prompt((Message("user", (Text("Hello"),)),))


def test_a_state_with_something_in_it_and_strange_properties_are_named() -> None:
    assert parsed(state={"steps": 3}, forwardedProps={"voice": "x"}).ignored == ("state", "voice")


@pytest.mark.parametrize("field", ["forwardedProps", "data"])
def test_knobs_come_with_the_forwarded_properties(field: str) -> None:
    knobs = {"model": "m", "temperature": 0.5, "max_tokens": 7, "on_disconnect": "continue"}
    ask = parsed(**{"forwardedProps": None, field: knobs})
    assert ask.prompt.model == "m"
    assert ask.prompt.temperature == 0.5
    assert ask.prompt.max_tokens == 7
    assert ask.on_disconnect == "continue"
    assert ask.ignored == ()


def test_tools_and_context_are_passed_on() -> None:
    schema = {"type": "object", "properties": {}}
    ask = parsed(
        tools=[{"name": "look", "description": "Looks.", "parameters": schema}],
        context=[{"description": "page", "value": "cart"}, {"description": "user", "value": "Ann"}],
    )
    assert ask.prompt.tools == (Tool("look", "Looks.", schema),)
    assert ask.prompt.messages[0] == Message("system", (Text("page: cart\nuser: Ann"),))


@pytest.mark.parametrize("message", [{"role": "activity"}, {"role": "assistant", "content": ""}])
def test_messages_of_which_a_model_can_be_told_nothing_are_refused(message: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="messages: has nothing"):
        conversation(message)


def test_context_joins_the_system_message_where_there_is_one() -> None:
    messages = [{"id": "0", "role": "system", "content": "Be kind."}, USER]
    said = parsed(messages=messages, context=[{"description": "page", "value": "cart"}]).prompt.messages
    assert [message.role for message in said] == ["system", "user"]
    assert said[0].text == "Be kind.\n\npage: cart"


def test_calls_and_their_results_go_back_and_calls_without_an_answer_do_not() -> None:
    def call(identity: str) -> dict[str, Any]:
        return {"id": identity, "type": "function", "function": {"name": "look", "arguments": '{"q":1}'}}

    said = conversation(
        {"role": "user", "content": "Look"},
        {"role": "assistant", "content": "I look.", "toolCalls": [call("a"), call("b"), call("cut")]},
        {"role": "tool", "toolCallId": "a", "content": "seen"},
        {"role": "tool", "toolCallId": "b", "content": "", "error": "it is dark"},
        {"role": "activity", "activityType": "PLAN", "content": {}},
    )
    assert said[1:] == (
        Message(
            "assistant",
            (
                Text("I look."),
                asked.ToolCall("a", "look", '{"q":1}'),
                asked.ToolCall("b", "look", '{"q":1}'),
            ),
        ),
        Message("tool", (asked.ToolResult("a", (Text("seen"),), name="look"),)),
        Message("tool", (asked.ToolResult("b", (Text("it is dark"),), is_error=True, name="look"),)),
    )


def test_media_come_as_data_or_as_an_address_also_in_the_old_form() -> None:
    (said,) = conversation(
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "See"},
                {"type": "image", "source": {"type": "data", "value": "AA==", "mimeType": "image/gif"}},
                {"type": "image", "source": {"type": "url", "value": "https://a.example/p.png"}},
                {"type": "document", "source": {"type": "data", "value": "AA==", "mimeType": "text/csv"}},
                {"type": "binary", "mimeType": "image/png", "data": "AA=="},
            ],
        }
    )
    assert said.parts == (
        Text("See"),
        Image("data:image/gif;base64,AA=="),
        Image("https://a.example/p.png"),
        asked.File("text/csv", "data:text/csv;base64,AA=="),
        Image("data:image/png;base64,AA=="),
    )


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"id": "1", "role": "clown", "content": "x"}]}, r"messages\.0\.role"),
        ({"messages": [{"id": "1", "role": "user"}]}, r"messages\.0\.content"),
        ({"messages": [{"id": "1", "role": "tool", "content": "x"}]}, "toolCallId"),
        ({"resume": [{"interruptId": "i", "status": "resolved"}]}, "resume"),
        ({"threadId": "t" * 200}, "threadId"),
        ({"forwardedProps": {"temperature": 9}}, r"forwardedProps\.temperature"),
        (
            {"messages": [USER | {"content": [{"type": "image", "source": {"type": "file", "value": "f"}}]}]},
            "files are not kept here",
        ),
    ],
)
def test_what_is_wrong_is_refused_with_its_name(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidRequest, match=named):
        parsed(**fields)


FULL: dict[str, Any] = INPUT | {
    "data": {"model": "m", "top_p": 1, "seed": 3, "metadata": {"a": "b"}},
    "context": [{"description": "page", "value": "cart"}],
    "tools": [{"name": "look", "description": "Looks.", "parameters": {}}],
    "messages": [
        {"id": "0", "role": "system", "content": "Be kind."},
        {
            "id": "1",
            "role": "user",
            "content": [
                {"type": "text", "text": "See"},
                {"type": "image", "source": {"type": "data", "value": "AA==", "mimeType": "image/gif"}},
                {"type": "binary", "mimeType": "image/png", "data": "AA=="},
            ],
        },
        {"id": "2", "role": "reasoning", "content": "hm", "encryptedValue": '{"signature":"s"}'},
        {
            "id": "3",
            "role": "assistant",
            "content": "I look.",
            "toolCalls": [
                {
                    "id": "a",
                    "type": "function",
                    "function": {"name": "look", "arguments": "{}"},
                    "encryptedValue": "{}",
                }
            ],
        },
        {"id": "4", "role": "tool", "toolCallId": "a", "content": "seen", "error": "dark"},
    ],
}
odd: st.SearchStrategy[Any] = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=8)
    | st.just([])
    | st.just({})
    | st.just([[]])
)


@given(data=st.data())
def test_a_full_body_with_one_odd_value_is_understood_or_refused(data: st.DataObject) -> None:
    body = copy.deepcopy(FULL)
    value: Any = body
    while True:
        key = data.draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
        if not isinstance(value[key], (dict, list)) or not value[key] or data.draw(st.booleans()):
            break
        value = value[key]
    value[key] = data.draw(odd)
    with suppress(InvalidRequest):  # which is all that it may raise
        assert isinstance(AG_UI.parse(json.dumps(body).encode()), Ask)


# -- over the wire ---------------------------------------------------------------------------------

RUN = INPUT | {"forwardedProps": {"model": "m"}}
CALLS: Script = [
    ReasoningDelta("hm"),
    PartBreak(Reasoning("signed")),
    Reasoning(redacted="opaque"),
    TextDelta("I look."),
    ToolCallPiece(0, '{"q":', "a", "look", {"google": {"thought_signature": "s"}}),
    ToolCallPiece(0, "1}", "a", "look"),
    Finish("tool_calls", USAGE),
]


def scripted(**scripts: Script) -> dict[str, Provider]:
    hello: Script = [TextDelta("Hel"), TextDelta("lo"), Finish("stop", USAGE)]
    return {"scripted": ScriptedProvider({"m": hello, **scripts})}


def shown(received: bytes) -> list[dict[str, Any]]:
    return [json.loads(message.data) for message in Decoder().feed(received)]


async def test_a_run_has_the_names_that_its_body_gave_it(run: Run) -> None:
    async with run(scripted()) as app, post(app.app, "/ag-ui", RUN, app.key) as call:
        await call.finished()
        assert call.status == 200
        assert call.response_headers["content-type"] == "text/event-stream; charset=utf-8"
        assert b"\nid:" not in call.received
        events = shown(call.received)
        stream_id = call.response_headers["x-stream-id"]
        assert [event["type"] for event in events] == [
            "RUN_STARTED",
            "TEXT_MESSAGE_START",
            "TEXT_MESSAGE_CONTENT",
            "TEXT_MESSAGE_CONTENT",
            "TEXT_MESSAGE_END",
            "RUN_FINISHED",
        ]
        names = {"threadId": "thread_1", "runId": "run_1"}
        assert names.items() <= events[0].items()
        assert names.items() <= events[-1].items()
        assert {event["messageId"] for event in events[1:-1]} == {stream_id}
        (row,) = await app.receipts()
        assert (row["id"], row["thread_id"]) == (stream_id, "thread_1")


async def test_what_an_answer_says_comes_back_with_the_history(run: Run) -> None:
    async with run(scripted(m=CALLS)) as app, post(app.app, "/ag-ui", RUN, app.key) as call:
        await call.finished()
        events = shown(call.received)
    assert events[-1]["outcome"] == {"type": "success", "pendingToolCallIds": ["a"]}
    kept = {
        event["entityId"]: event["encryptedValue"]
        for event in events
        if event["type"] == "REASONING_ENCRYPTED_VALUE"
    }
    thoughts = [event["messageId"] for event in events if event["type"] == "REASONING_START"]
    # As the client keeps it: every message by its id, in the order in which they began.
    said = conversation(
        USER,
        {"id": thoughts[0], "role": "reasoning", "content": "hm", "encryptedValue": kept[thoughts[0]]},
        {"id": thoughts[1], "role": "reasoning", "content": "", "encryptedValue": kept[thoughts[1]]},
        {
            "role": "assistant",
            "content": "I look.",
            "toolCalls": [
                {
                    "id": "a",
                    "type": "function",
                    "function": {"name": "look", "arguments": '{"q":1}'},
                    "encryptedValue": kept["a"],
                }
            ],
        },
        {"role": "tool", "toolCallId": "a", "content": "seen"},
    )
    assert said[1] == Message(
        "assistant",
        (
            asked.Reasoning("hm", "signed"),
            asked.Reasoning("", "", "opaque"),
            Text("I look."),
            asked.ToolCall("a", "look", '{"q":1}', {"google": {"thought_signature": "s"}}),
        ),
    )


def test_thoughts_that_no_answer_follows_belong_to_the_one_before() -> None:
    call = {"id": "a", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    said = conversation(
        USER,
        {"role": "assistant", "content": "I look.", "toolCalls": [call]},
        {"role": "reasoning", "content": "hm", "encryptedValue": "somebody else's"},
        {"role": "tool", "toolCallId": "a", "content": "seen"},
        {"role": "reasoning", "content": "well"},
    )
    look = asked.ToolCall("a", "look", "{}")
    assert said[1].parts == (Text("I look."), asked.Reasoning("hm", "somebody else's"), look)
    assert said[-1] == Message("assistant", (asked.Reasoning("well"),))


async def test_an_error_before_the_first_word_is_a_status_and_later_an_event(run: Run) -> None:
    scripts: dict[str, Script] = {
        "busy": [UpstreamRateLimited("provider 'p' limits our rate")],
        "broken": [TextDelta("Hel"), UpstreamError("provider 'p' failed")],
    }
    async with run(scripted(**scripts)) as app:
        busy = INPUT | {"forwardedProps": {"model": "busy"}}
        async with post(app.app, "/ag-ui", busy, app.key) as call:
            await call.finished()
            assert call.status == 429
            assert json.loads(call.received)["error"]["code"] == "upstream_rate_limited"
        broken = INPUT | {"forwardedProps": {"model": "broken"}}
        async with post(app.app, "/ag-ui", broken, app.key) as call:
            await call.finished()
            assert call.status == 200
            *events, last = shown(call.received)
            assert events[-1]["type"] == "TEXT_MESSAGE_END"
            assert (last["type"], last["code"]) == ("RUN_ERROR", "upstream_error")


@pytest.mark.parametrize("tanstack", [False, True])
async def test_only_tanstack_is_told_that_a_call_is_ready(run: Run, tanstack: bool) -> None:
    body = RUN | ({"data": {}} if tanstack else {})
    async with run(scripted(m=CALLS)) as app, post(app.app, "/ag-ui", body, app.key) as call:
        await call.finished()
        ready = [event["value"] for event in shown(call.received) if event["type"] == "CUSTOM"]
    assert ready == ([{"toolCallId": "a", "toolName": "look", "input": {"q": 1}}] if tanstack else [])
