"""The ``responses`` dialect: frames to the byte, and bodies as OpenAI's SDKs send them."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from openai.types.responses import (
    ResponseFunctionToolCall,
    ResponseOutputMessage,
    ResponseReasoningItem,
)

from millstream import prompt as asked
from millstream.answer import Answer, Fold
from millstream.dialects import Ask
from millstream.dialects.responses import RESPONSES, ResponsesDialect
from millstream.dialects.responses.ids import response_id, stream_id
from millstream.errors import BadPosition, InvalidRequest
from millstream.events import (
    AnswerStart,
    Batch,
    Event,
    File,
    PartEnd,
    PartStart,
    Position,
    Reasoning,
    ReasoningDelta,
    StreamEnd,
    StreamInfo,
    WholePart,
    from_json,
)
from millstream.providers.responses import Reading, body
from millstream.sse import Message
from millstream.streams.parts import Assembler
from millstream.usage import Bill, Usage

CASES = json.loads((Path(__file__).parent.parent / "spec" / "fixtures" / "responses.json").read_text("utf-8"))

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


def case_of(case: dict[str, Any]) -> tuple[StreamInfo, list[Event]]:
    events = msgspec.convert(case["events"], list[Event])
    return StreamInfo("str_1", "key_1", "m", 5.0, 1, case["echo"]), events


def frames(dialect: ResponsesDialect, info: StreamInfo, events: Iterable[Event]) -> list[str]:
    """Those of each event."""
    before, found = Fold(), []
    for seq, event in enumerate(events, 1):
        found.append(dialect.encode(info, Batch(Position(1, seq), [event]), before).decode())
        before.add([event])
    return found


def parsed(**body: Any) -> Ask:
    return RESPONSES.parse(json.dumps({"input": "Hello", **body}).encode())


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_frames_are_numbered_without_a_gap_and_the_rest_after_any_is_exact(case: dict[str, Any]) -> None:
    info, events = case_of(case)
    whole = "".join(frames(RESPONSES, info, events)).split("\n\n")[:-1]
    numbers = [json.loads(frame.partition("data: ")[2])["sequence_number"] for frame in whole]
    assert numbers == list(range(len(whole)))
    for seen in range(len(whole)):
        rest = "".join(frames(ResponsesDialect(after=seen), info, events)).split("\n\n")[:-1]
        assert rest == whole[seen + 1 :]


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_the_response_as_a_whole_is_the_one_of_the_last_frame(case: dict[str, Any]) -> None:
    info, events = case_of(case)
    answer = Answer()
    answer.add(events)
    last = json.loads(case["frames"].rpartition("data: ")[2])
    assert json.loads(RESPONSES.answer(info, answer)) == last["response"]


def test_a_response_that_still_runs_shows_what_it_has() -> None:
    info, events = case_of(CASES[1])
    answer = Answer()
    answer.add(events[:3])
    shown = json.loads(RESPONSES.answer(info, answer))
    assert shown["status"] == "in_progress"
    assert shown["usage"] is None
    (item,) = shown["output"]
    assert item["status"] == "in_progress"
    assert item["content"][0]["text"] == "Hel"


def test_ids_lead_to_their_stream_and_back() -> None:
    assert stream_id(response_id("str_a-b")) == "str_a-b"
    assert stream_id("str_a") is None
    assert stream_id("chatcmpl_a") is None


# -- bodies ----------------------------------------------------------------------------------------


def test_what_a_body_says_is_understood() -> None:
    ask = parsed(
        model="m",
        instructions="Be short.",
        max_output_tokens=50,
        temperature=0.5,
        top_p=0.9,
        reasoning={"effort": "low", "summary": "auto"},
        text={
            "format": {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True},
            "verbosity": "low",
        },
        tools=[{"type": "function", "name": "look", "parameters": SCHEMA, "strict": None}],
        tool_choice={"type": "function", "name": "look"},
        parallel_tool_calls=False,
        metadata={"a": "b"},
        safety_identifier="u1",
        include=["reasoning.encrypted_content"],
        stream_options={"include_obfuscation": True},
        store=False,
        some_knob=1,
    )
    assert ask.whole
    assert ask.ignored == ("some_knob",)
    prompt = ask.prompt
    assert [(message.role, message.text) for message in prompt.messages] == [
        ("system", "Be short."),
        ("user", "Hello"),
    ]
    assert (prompt.model, prompt.max_tokens, prompt.temperature, prompt.top_p) == ("m", 50, 0.5, 0.9)
    assert prompt.reasoning_effort == "low"
    assert prompt.output == asked.OutputFormat(SCHEMA, "n", None, True)
    assert prompt.tools == (asked.Tool("look", None, SCHEMA, None, {"responses": {"strict": None}}),)
    assert prompt.tool_choice == asked.NamedTool("look")
    assert (prompt.parallel_tool_calls, prompt.user, prompt.metadata) == (False, "u1", {"a": "b"})
    assert prompt.extra_of("responses") == {
        "include": ["reasoning.encrypted_content"],
        "safety_identifier": "u1",
        "reasoning": {"summary": "auto"},
        "text": {"verbosity": "low"},
    }
    assert ask.echo is not None
    assert ask.echo["store"] is False
    assert ask.echo["temperature"] == 0.5


def test_a_conversation_is_understood_item_by_item() -> None:
    history = [
        {"role": "developer", "content": "Be kind."},
        {
            "type": "message",
            "role": "user",
            "content": [
                {"type": "input_text", "text": "What is it?"},
                {"type": "input_image", "image_url": "https://a.example/a.png", "detail": "low"},
                {"type": "input_file", "file_data": "data:text/plain;base64,AA==", "filename": "a.txt"},
            ],
        },
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Hm."}]},
        {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "look", "arguments": "{}"},
        {"type": "function_call", "call_id": "c2", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "1"},
        {
            "type": "function_call_output",
            "call_id": "c2",
            "output": [{"type": "input_text", "text": "2"}, {"type": "input_image", "image_url": "data:,"}],
        },
    ]
    developer, user, assistant, first, second = parsed(input=history).prompt.messages
    assert developer == asked.Message("developer", (asked.Text("Be kind."),))
    assert user.parts == (
        asked.Text("What is it?"),
        asked.Image("https://a.example/a.png", "low"),
        asked.File("text/plain", "data:text/plain;base64,AA==", "a.txt"),
    )
    kept = {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Hm."}]}
    assert assistant.parts == (
        asked.Reasoning("Hm.", extra={"responses": kept}),
        asked.ToolCall("c1", "look", "{}"),
        asked.ToolCall("c2", "look", "{}"),
    )
    assert first == asked.Message("tool", (asked.ToolResult("c1", (asked.Text("1"),)),))
    assert second.parts == (asked.ToolResult("c2", (asked.Text("2"), asked.Image("data:,"))),)


DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"file_url": "https://a.example/a.docx?b=c.txt"}, (DOCX, "https://a.example/a.docx?b=c.txt", None)),
        (
            {"file_url": "https://a.example/1", "filename": "a.txt"},
            ("text/plain", "https://a.example/1", "a.txt"),
        ),
        ({"file_url": "https://a.example/1"}, ("application/pdf", "https://a.example/1", None)),
        ({"file_data": "aGk=", "filename": "A.DOCX"}, (DOCX, f"data:{DOCX};base64,aGk=", "A.DOCX")),
        ({"file_data": "data:,hi"}, ("application/pdf", "data:application/pdf;base64,aGk=", None)),
    ],
)
def test_a_document_is_of_the_type_that_its_name_or_its_address_says(
    given: dict[str, str], expected: tuple[str, str, str | None]
) -> None:
    (message,) = parsed(
        input=[{"role": "user", "content": [{"type": "input_file", **given}]}]
    ).prompt.messages
    assert message.parts == (asked.File(*expected),)


def test_a_document_that_is_no_base64_is_refused() -> None:
    content = [{"type": "input_file", "file_data": "https://a.example/a.pdf"}]
    with pytest.raises(InvalidRequest, match=r"file_data: has to be a data: URL or base64"):
        parsed(input=[{"role": "user", "content": content}])


@pytest.mark.parametrize(
    ("said", "media_type"),
    [
        ({"result": "iVBORw0K"}, "image/png"),
        ({"result": "/9j/4AAQ"}, "image/jpeg"),
        ({"result": "UklGRiQA", "output_format": "webp"}, "image/webp"),
        ({"result": "UklGRiQA"}, "image/webp"),
        ({"result": "AA==", "output_format": "png"}, "image/png"),
    ],
)
def test_a_picture_that_the_model_made_is_taken_back(said: dict[str, Any], media_type: str) -> None:
    picture = {"type": "image_generation_call", "id": "ig_1", "status": "completed", **said}
    history = [{"role": "user", "content": "Draw."}, picture, {"role": "assistant", "content": "There."}]
    image = asked.Image(f"data:{media_type};base64,{said['result']}")
    assert parsed(input=history).prompt.messages[1:] == (
        asked.Message("assistant", (image, asked.Text("There."))),
    )


def test_what_the_model_drew_in_this_format_comes_back_as_it_went() -> None:
    file = File("image/jpeg", "data:image/jpeg;base64,/9j/4AAQ")
    answer = Answer()
    answer.add([WholePart(0, file), StreamEnd("stop", Bill(Usage(1, 1, "counted"), None))])
    output = json.loads(RESPONSES.answer(StreamInfo("str_1", "key_1", "m", 5.0), answer))["output"]
    (message,) = parsed(input=output).prompt.messages
    assert message.parts == (asked.Image(file.url),)


@pytest.mark.parametrize(
    "said",
    [
        {"summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {
            "summary": [{"type": "summary_text", "text": "One."}, {"type": "summary_text", "text": "Two."}],
            "content": [{"type": "reasoning_text", "text": "Hm."}, {"type": "reasoning_text", "text": "So."}],
            "encrypted_content": "sealed",
        },
    ],
)
def test_a_thought_itself_goes_back_to_its_provider_as_it_came(said: dict[str, Any]) -> None:
    item = {"id": "rs_1", "type": "reasoning", **said}
    assembler, reading = Assembler(), Reading("p")
    answer = {"object": "response", "id": "resp_1", "status": "completed", "output": [item]}
    answer_events = assembler.feed(reading.read([Message(json.dumps(answer).encode())]))
    whole = Answer()
    whole.add([*answer_events, StreamEnd("stop", Bill(Usage(1, 1, "counted"), None))])
    output = json.loads(RESPONSES.answer(StreamInfo("str_1", "key_1", "m", 5.0), whole))["output"]
    assert output == [item]
    assert body(parsed(input=output).prompt)["input"] == [item]


@pytest.mark.parametrize("mode", ["json", "python"])
def test_output_is_taken_back_as_the_sdk_dumps_it(mode: Any) -> None:
    output = [
        ResponseReasoningItem.model_validate(
            {"id": "rs_1", "type": "reasoning", "summary": [], "encrypted_content": "sealed", "status": None}
        ),
        ResponseOutputMessage.model_validate(
            {
                "id": "msg_1",
                "type": "message",
                "role": "assistant",
                "status": "completed",
                "phase": "commentary",
                "content": [{"type": "output_text", "text": "Hm.", "annotations": [], "logprobs": []}],
            }
        ),
        ResponseFunctionToolCall(arguments="{}", call_id="c1", name="look", type="function_call", id="fc_1"),
    ]
    ask = parsed(input=[{"role": "user", "content": "x"}, *(item.model_dump(mode=mode) for item in output)])
    assert ask.ignored == ()
    assert ask.prompt.messages[1].parts == (
        asked.Reasoning(
            redacted="responses:sealed",
            extra={
                "responses": {
                    "type": "reasoning",
                    "id": "rs_1",
                    "summary": [],
                    "encrypted_content": "sealed",
                }
            },
        ),
        asked.Text("Hm.", {"responses": {"phase": "commentary"}}),
        asked.ToolCall("c1", "look", "{}"),
    )


@pytest.mark.parametrize(
    ("api", "signature", "shown"),
    [
        ("responses", "responses:sealed", "sealed"),
        ("responses", "responses:gemini:c2ln", "responses:gemini:c2ln"),  # of a server that passes it on
        ("anthropic", "EqQB", "anthropic:EqQB"),
        ("gemini", "gemini:c2ln", "gemini:c2ln"),
    ],
)
def test_a_signature_comes_back_as_its_providers(api: str, signature: str, shown: str) -> None:
    answer = Answer()
    answer.add([AnswerStart(api), PartStart(0, Reasoning()), ReasoningDelta("Hm.", 0)])
    answer.add([PartEnd(0, Reasoning(signature)), WholePart(1, Reasoning(redacted=signature))])
    output = json.loads(RESPONSES.answer(StreamInfo("str_1", "key_1", "m", 5.0), answer))["output"]
    assert [item["encrypted_content"] for item in output] == [shown, shown]
    (message,) = parsed(input=output).prompt.messages
    signed, redacted = message.parts
    assert isinstance(signed, asked.Reasoning)
    assert isinstance(redacted, asked.Reasoning)
    assert (signed.text, signed.signature, redacted.redacted) == ("Hm.", signature, signature)
    assert ("responses" in signed.extra) is (api == "responses")


def test_a_response_in_the_background_goes_on_without_a_reader_unless_its_body_says_otherwise() -> None:
    assert parsed(background=True).on_disconnect == "continue"
    assert parsed(background=True, on_disconnect="cancel").on_disconnect == "cancel"
    assert parsed(background=True).background
    assert not parsed().background


def test_what_this_api_alone_knows_of_a_part_or_a_body_goes_on_as_it_is() -> None:
    point = {"prompt_cache_breakpoint": {"mode": "explicit"}}
    content = [
        {"type": "input_text", "text": "See", **point},
        {"type": "input_image", "image_url": "https://a.example/i", "detail": "auto", **point},
        {"type": "input_file", "file_url": "https://a.example/f", **point},
    ]
    given = {"moderation": {"model": "omni-moderation-latest"}, "image": {"context_compression": "auto"}}
    sent = body(parsed(input=[{"role": "user", "content": content}], **given).prompt)
    assert sent["input"] == [{"type": "message", "role": "user", "content": content}]
    assert {name: sent[name] for name in given} == given


def test_of_the_allowed_tools_alone_the_model_is_told() -> None:
    tools = [{"type": "function", "name": name} for name in ("a", "b")]
    choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "b"}]}
    prompt = parsed(tools=tools, tool_choice=choice).prompt
    assert [tool.name for tool in prompt.tools] == ["b"]
    assert prompt.tool_choice == "required"


WEB = {"type": "web_search", "external_web_access": False}


def allowed(*tools: dict[str, Any]) -> dict[str, Any]:
    return {"type": "allowed_tools", "mode": "auto", "tools": list(tools)}


@pytest.mark.parametrize("choice", ["auto", "required", {"type": "function", "name": "look"}])
def test_a_tool_that_is_not_run_here_and_only_offered_is_left_out_and_named(choice: Any) -> None:
    tools = [
        {"type": "function", "name": "look"},
        WEB,
        {"type": "web_search_preview_2025_03_11"},
        {"type": "custom", "name": "apply_patch", "format": {"type": "text"}},
        {"type": "custom", "name": "other"},
        {"type": "namespace", "name": "mcp__a", "tools": [{"type": "function", "name": "b"}]},
    ]
    ask = parsed(tools=tools, tool_choice=choice)
    assert [tool.name for tool in ask.prompt.tools] == ["look"]
    assert ask.ignored == (
        "tools.web_search",
        "tools.web_search_preview_2025_03_11",
        "tools.custom",
        "tools.namespace",
    )


def test_what_only_this_api_knows_of_thinking_and_of_functions_goes_on_to_it() -> None:
    look = {"type": "function", "name": "look", "parameters": SCHEMA, "strict": True}
    more = {"defer_loading": True, "output_schema": SCHEMA}
    ask = parsed(reasoning={"effort": "high", "mode": "pro", "context": "all_turns"}, tools=[look | more])
    assert ask.ignored == ()
    sent = body(ask.prompt)
    assert sent["reasoning"] == {"effort": "high", "mode": "pro", "context": "all_turns"}
    assert sent["tools"] == [look | more]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_the_last_frame_of_an_answer_is_the_last_that_can_be_seen(case: Any) -> None:
    info, answer = StreamInfo("str_1", "key_1", "m", 5.0, case["choices"], case.get("echo")), Answer()
    answer.add(from_json(json.dumps(case["events"]).encode()))
    last = case["frames"].count("event: ") - 1
    ResponsesDialect(after=last).check_position(info, answer)
    with pytest.raises(BadPosition, match=f"ends at {last}"):
        ResponsesDialect(after=last + 1).check_position(info, answer)


def test_what_is_long_is_not_said_back_with_every_response() -> None:
    tools = [{"type": "function", "name": "look", "description": "x" * 3000}]
    ask = parsed(tools=tools, instructions="short")
    assert ask.echo is not None
    assert "tools" not in ask.echo
    assert ask.echo["instructions"] == "short"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id: no history is kept here"),
        ({"conversation": "conv_1"}, "conversation: no history is kept here"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt: prompts are not kept here"),
        ({"safety_identifier": "u1", "user": {"a": [1]}}, "user: has to be text"),
        ({"tools": [{"type": "mcp", "server_url": "https://x"}]}, "tools.0.type: only functions"),
        ({"tools": [{"type": "customs"}]}, "tools.0.type: only functions are passed on"),
        ({"tools": [{"type": "web_search"}, {"type": "shell"}]}, "tools.1.type: only functions"),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice: has to be"),
        ({"tools": [WEB], "tool_choice": {"type": "web_search"}}, "tool_choice: has to be"),
        ({"tools": [WEB], "tool_choice": "required"}, "tool_choice: asks for a tool"),
        ({"tools": [WEB], "tool_choice": allowed(WEB)}, "tool_choice.tools.0.type: only functions"),
        (
            {"tools": [WEB], "tool_choice": allowed({"type": "custom", "name": "web"})},
            "tool_choice.tools.0.type: only functions",
        ),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input.0.type: items are not kept"),
        ({"input": [{"type": "image_generation_call", "result": None}]}, "input.0.result: is missing"),
        ({"input": [{"type": "computer_call_output", "call_id": "c"}]}, "input.0.type: is none of"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
            "content.0.file_id: files are not kept",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]},
            "content.0.file_id: files are not kept",
        ),
        ({"input": []}, "input: is missing"),
        ({"input": None}, "input: is missing"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"reasoning": {"effort": "some"}}, "reasoning.effort"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
    ],
)
def test_what_cannot_be_done_is_refused_with_its_name(body: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parsed(**body)
    assert words in refused.value.message
