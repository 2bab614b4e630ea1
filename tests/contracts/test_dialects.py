"""The rules of a dialect, for every one there is."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dialect_streams import BILL, BODIES, FAILED, encoded, streams, words
from millstream.answer import Answer, Fold, input_of
from millstream.dialects import Ask, Dialect
from millstream.dialects.openai import OpenAIDialect
from millstream.dialects.table import DIALECTS
from millstream.errors import (
    InvalidRequest,
    MillstreamError,
    ModelNotFound,
    PromptTooLong,
    RequestRefused,
    TooManyStreams,
    Unauthorized,
    UpstreamError,
)
from millstream.events import (
    AnswerStart,
    Batch,
    Event,
    PartStart,
    Position,
    Reasoning,
    ReasoningDelta,
    Source,
    StreamEnd,
    StreamFailed,
    StreamInfo,
    StreamStart,
    Text,
    TextDelta,
    WholePart,
    from_json,
    is_cut,
)
from millstream.providers import PartBreak, PartOpen, Produced, ToolCallPiece
from millstream.sse import Decoder
from millstream.streams.parts import Assembler

# What the end of an answer, good or bad, looks like to the clients of each.
GOOD_END = {
    "millstream": b"data: [DONE]",
    "openai": b"data: [DONE]",
    "anthropic": b"event: message_stop",
    "ai-sdk": b'"type":"finish"',
    "responses": b'"type":"response.completed"',
    "ag-ui": b'"type":"RUN_FINISHED"',
}
BAD_END = {
    "millstream": b'"error":',
    "openai": b'"error":',
    "anthropic": b'"type":"error"',
    "ai-sdk": b'"type":"error"',
    "responses": b'"type":"response.failed"',
    "ag-ui": b'"type":"RUN_ERROR"',
}
# And the end of one that was stopped, where that is another one.
STOPPED_END = {"ai-sdk": b'"type":"abort"', "responses": b'"type":"response.incomplete"'}


@pytest.fixture(params=sorted(DIALECTS))
def dialect(request: pytest.FixtureRequest) -> Dialect:
    found: Dialect = DIALECTS[request.param]
    return found


@settings(max_examples=150)
@given(stream=streams(), data=st.data())
@pytest.mark.parametrize("name", sorted(DIALECTS))
def test_the_same_bytes_wherever_a_reader_joins_and_however_the_events_come(
    name: Any, stream: tuple[StreamInfo, list[Event]], data: st.DataObject
) -> None:
    dialect, (info, events) = DIALECTS[name], stream
    whole = b"".join(encoded(dialect, info, events))
    cuts = data.draw(st.lists(st.integers(0, len(events)), max_size=6))
    assert b"".join(encoded(dialect, info, events, *cuts)) == whole
    # One that joins has read nothing, and asks what came before.
    joins = data.draw(st.integers(0, len(events) - 1))
    before = Answer()
    before.add(events[:joins])
    rest = dialect.encode(info, Batch(Position(1, joins + 1), events[joins:]), lambda: before)
    assert whole.endswith(rest)
    assert b"".join(encoded(dialect, info, events, joins)[1:]) == rest


class Once(list[Any]):
    """Parts that nobody may look through again."""

    def __iter__(self) -> Any:
        raise AssertionError("the parts are looked through for every batch")


def test_a_word_costs_the_same_however_many_parts_came_before(dialect: Dialect) -> None:
    sources = [WholePart(number, Source(f"https://a.example/{number}")) for number in range(1, 40)]
    begun: list[Event] = [StreamStart("str_1", "m"), PartStart(0, Text()), *sources, PartStart(40, Text())]
    said: list[Event] = [TextDelta("a", 40)]
    info, before = StreamInfo("str_1", "key_1", "m", 5.0), Fold()
    for events in (begun, said):
        dialect.encode(info, Batch(Position(1, 1), events), before)
        before.add(events)
    before().parts = Once(before().parts)
    assert b'"b"' in dialect.encode(info, Batch(Position(1, 9), [TextDelta("b", 40)]), before)


@settings(max_examples=150)
@given(stream=streams())
@pytest.mark.parametrize("name", sorted(DIALECTS))
def test_every_frame_is_one_line_of_json_and_every_stream_shows_its_end(
    name: Any, stream: tuple[StreamInfo, list[Event]]
) -> None:
    info, events = stream
    frames = b"".join(encoded(DIALECTS[name], info, events))
    assert b"\r" not in frames
    assert frames.endswith(b"\n\n")
    # Clients that read texts by lines cut at more than what ends a line here.
    assert frames.decode().splitlines() == frames.decode().split("\n")[:-1]
    messages = Decoder().feed(frames)
    assert messages
    for message in messages:
        assert message.data == b"[DONE]" or isinstance(json.loads(message.data), dict)
    good, bad = GOOD_END[name] in frames, BAD_END[name] in messages[-1].data
    match events[-1]:
        case StreamFailed():
            assert bad
            assert b"[DONE]" not in frames
        case StreamEnd(finish_reason="cancelled") if name in STOPPED_END:
            assert STOPPED_END[name] in frames
        case StreamEnd() as end if name in WANT_AN_OBJECT and not is_cut(end) and not can_be_read(events):
            assert bad
            assert not good
        case _:
            assert good
            assert not bad


# Those whose clients take the arguments of a call for an object, and for an empty one where they are none.
WANT_AN_OBJECT = ("anthropic", "ag-ui")


def can_be_read(events: list[Event]) -> bool:
    """Whether every call has arguments that are an object."""
    answer = Answer()
    answer.add(events)
    return all(input_of(call, cut=False) is not None for call in answer.tool_calls)


DRAINED = StreamEnd("cancelled", BILL, because="draining")


def test_what_a_shutdown_has_cut_looks_whole_to_nobody(dialect: Dialect) -> None:
    assembler = Assembler()
    events = [*assembler.feed([TextDelta("Hel")]), *assembler.close(cut=True), DRAINED]
    info = StreamInfo("str_1", "key_1", "m", 5.0)
    frames = b"".join(encoded(dialect, info, [StreamStart("str_1", "m"), *events]))
    if dialect.name in ("millstream", "ag-ui"):  # whose end says that it was stopped
        assert b"cancelled" in frames
    else:
        assert GOOD_END[dialect.name] not in frames


@pytest.mark.parametrize("pieces", [[], ["{"], ['{"a":"\\ud83d"}'], ["[" * 3000]])
@pytest.mark.parametrize("end", [FAILED, StreamEnd("cancelled", BILL), StreamEnd("length", BILL)], ids=repr)
def test_a_call_that_was_cut_is_nothing_that_a_page_may_run(
    dialect: Dialect, end: Event, pieces: list[str]
) -> None:
    assembler = Assembler()
    said: list[Produced] = [ToolCallPiece(0, "", "call_1", "delete_all")]
    events = assembler.feed([*said, *(ToolCallPiece(0, piece) for piece in pieces)])
    events = [StreamStart("str_1", "m"), *events, *assembler.close(cut=True), end]
    info = StreamInfo("str_1", "key_1", "m", 5.0)
    frames = b"".join(encoded(dialect, info, events))
    assert b"tool-input-available" not in frames
    assert b"pendingToolCallIds" not in frames
    assert b'"status":"completed"' not in frames
    for told in (b"content_block_stop", b"_arguments.done", b"output_item.done"):
        assert told not in frames
    answer = Answer()
    answer.add(events)
    if isinstance(end, StreamEnd):
        whole = dialect.answer(info, answer)
        assert b"input-available" not in whole
        assert b"tool_use" not in whole
    else:
        assert b"TOOL_CALL_END" not in frames


@pytest.mark.parametrize("arguments", ['{"city": "Ber', "rm -rf", '{"a":"\\ud83d"}', "[1]", "null"])
@pytest.mark.parametrize("name", WANT_AN_OBJECT)
def test_a_call_that_cannot_be_read_is_nothing_that_a_page_may_run(name: Any, arguments: str) -> None:
    """Though nothing has cut it: small models say such things."""
    dialect, info = DIALECTS[name], StreamInfo("str_1", "key_1", "m", 5.0)
    calls: list[Produced] = [
        ToolCallPiece(0, arguments, "call_1", "delete_all"),
        ToolCallPiece(1, '{"a": 1}', "call_2", "look"),
    ]
    for said in (calls[:1], calls):
        assembler, answer = Assembler(), Answer()
        events: list[Event] = [StreamStart("str_1", "m"), *assembler.feed(said), *assembler.close()]
        events.append(StreamEnd("tool_calls", BILL))
        answer.add(events)
        frames = b"".join(encoded(dialect, info, events))
        assert frames.count(b"event: content_block_stop") + frames.count(b"TOOL_CALL_END") == len(said) - 1
        assert BAD_END[name] in frames
        assert GOOD_END[name] not in frames
        assert b"pendingToolCallIds" not in frames
        if name == "anthropic":
            with pytest.raises(UpstreamError, match="no JSON object"):
                dialect.answer(info, answer)


@pytest.mark.parametrize("name", WANT_AN_OBJECT)
def test_a_call_without_arguments_can_be_read(name: Any) -> None:
    assembler = Assembler()
    said = [*assembler.feed([ToolCallPiece(0, " ", "call_1", "look")]), *assembler.close()]
    events: list[Event] = [StreamStart("str_1", "m"), *said, StreamEnd("tool_calls", BILL)]
    frames = b"".join(encoded(DIALECTS[name], StreamInfo("str_1", "key_1", "m", 5.0), events))
    assert GOOD_END[name] in frames
    assert b"content_block_stop" in frames or b"TOOL_CALL_END" in frames


@pytest.mark.parametrize("name", ["anthropic", "openai", "responses"])
def test_what_one_api_alone_has_is_in_no_answer_of_another(name: Any) -> None:
    theirs = {"id": "theirs_1", "citations": ["theirs"], "phase": "theirs"}
    info = StreamInfo("str_1", "key_1", "m", 5.0)
    for api, is_there in (("gemini", False), (name, name != "openai")):
        said: list[Produced] = [AnswerStart(api), PartOpen(Reasoning(extra=theirs)), ReasoningDelta("Hm")]
        said += [PartBreak(), PartOpen(Text(theirs)), TextDelta("Hi", extra={"citation": {"type": "theirs"}})]
        assembler, answer = Assembler(), Answer()
        events = [StreamStart("str_1", "m"), *assembler.feed(said), *assembler.close()]
        events.append(StreamEnd("stop", BILL))
        answer.add(events)
        frames = b"".join(encoded(DIALECTS[name], info, events))
        assert (b"theirs" in frames, b"theirs" in DIALECTS[name].answer(info, answer)) == (is_there, is_there)


@pytest.mark.parametrize("name", ["openai", "ai-sdk", "responses"])
def test_a_summary_of_what_was_said_is_nothing_that_a_reader_sees(name: Any) -> None:
    info, summary = StreamInfo("str_1", "key_1", "m", 5.0), Reasoning(extra={"type": "compaction"})
    frames: list[bytes] = []
    for also in ([summary], []):
        assembler = Assembler()
        said: list[Produced] = [AnswerStart("anthropic"), *also, TextDelta("Hi")]
        events = [StreamStart("str_1", "m"), *assembler.feed(said), *assembler.close()]
        events.append(StreamEnd("stop", BILL))
        frames.append(b"".join(encoded(DIALECTS[name], info, events)))
    assert len(frames[0]) == len(frames[1])  # but for the numbers of the parts


# What tells the clients of each that a text is whole.
END_OF_TEXT = {"anthropic": b"content_block_stop", "responses": b"output_text.done"}


@pytest.mark.parametrize("name", END_OF_TEXT)
def test_a_text_that_a_failure_has_cut_has_no_end_and_one_that_a_limit_has_cut_has_one(name: Any) -> None:
    info = StreamInfo("str_1", "key_1", "m", 5.0)
    for end in (FAILED, StreamEnd("length", BILL)):
        assembler = Assembler()
        said = [*assembler.feed([TextDelta("Hel")]), *assembler.close(cut=True)]
        frames = b"".join(encoded(DIALECTS[name], info, [StreamStart("str_1", "m"), *said, end]))
        assert (END_OF_TEXT[name] in frames) is isinstance(end, StreamEnd)


@settings(max_examples=100)
@given(stream=streams())
@pytest.mark.parametrize("name", sorted(DIALECTS))
def test_a_whole_answer_is_one_line_of_json(name: Any, stream: tuple[StreamInfo, list[Event]]) -> None:
    info, events = stream
    answer = Answer()
    answer.add(events)
    if isinstance(answer.terminal, StreamEnd) and (name != "anthropic" or can_be_read(events)):
        body = DIALECTS[name].answer(info, answer)
        assert isinstance(json.loads(body), dict)
        assert len(body.decode().splitlines()) == 1


@pytest.mark.parametrize(
    "error",
    [
        InvalidRequest("messages: is missing"),
        Unauthorized(),
        ModelNotFound("there is no model 'x'"),
        TooManyStreams(3),
        RequestRefused("the conversation is too long"),
        PromptTooLong("the conversation is too long"),
        UpstreamError("it broke"),
    ],
)
def test_an_error_has_its_code_and_is_the_callers_or_ours(dialect: Dialect, error: MillstreamError) -> None:
    status, body = dialect.error(error, "req_1")
    assert status // 100 == error.status // 100
    assert error.message in body.decode()
    assert f'"{error.code}"' in body.decode()


def test_a_ping_is_one_comment_line_or_an_event_that_says_so(dialect: Dialect) -> None:
    *pings, after = Decoder().feed(dialect.ping + b"data: {}\n\n")
    assert after.data == b"{}"
    if dialect.name == "anthropic":
        assert [ping.event for ping in pings] == ["ping"]
    else:
        assert pings == []
        assert b"\n\n" not in dialect.ping


def test_a_goodbye_is_whole_frames_and_no_end(dialect: Dialect) -> None:
    for milliseconds in (None, 700):
        frames = dialect.goodbye(milliseconds)
        assert frames == b"" or frames.endswith(b"\n\n")
        assert GOOD_END[dialect.name] not in frames


FIXTURES = Path(__file__).parents[2] / "spec" / "fixtures"
FOREIGN = sorted(set(DIALECTS) - {"millstream"})


@pytest.mark.parametrize("name", FOREIGN)
def test_the_fixtures_are_what_is_sent(name: Any) -> None:
    """``native.json`` has a case for each event; those of other formats are whole streams."""
    dialect = OpenAIDialect(include_usage=True) if name == "openai" else DIALECTS[name]
    for case in json.loads((FIXTURES / f"{name}.json").read_text(encoding="utf-8")):
        info = StreamInfo("str_1", "key_1", "m", 5.0, case["choices"], case.get("echo"))
        events = from_json(json.dumps(case["events"]).encode())
        frames = dialect.encode(info, Batch(Position(1, 1), events), Answer)
        assert frames.decode() == case["frames"], case["name"]


def asked(dialect: Dialect, **more: Any) -> Ask:
    return dialect.parse(json.dumps(BODIES[dialect.name] | more).encode())


def test_the_least_body_is_understood(dialect: Dialect) -> None:
    ask = asked(dialect)
    assert ask.prompt.messages[-1].text == "Hello"
    assert ask.on_disconnect == "cancel"
    assert ask.ignored == ()


def test_the_policy_is_the_same_in_every_body(dialect: Dialect) -> None:
    assert asked(dialect, on_disconnect={"grace_seconds": 15}).on_disconnect == 15
    assert asked(dialect, on_disconnect="continue").on_disconnect == "continue"
    wrong: Any
    for wrong in ("later", 5, {"grace_seconds": -1}, {"grace_seconds": 1e9}, []):
        with pytest.raises(InvalidRequest, match="on_disconnect"):
            asked(dialect, on_disconnect=wrong)


def test_what_nobody_knows_is_ignored_and_named_but_in_our_own_format(dialect: Dialect) -> None:
    if dialect.name == "millstream":
        with pytest.raises(InvalidRequest, match="some_knob"):
            asked(dialect, some_knob=1)
    else:
        assert asked(dialect, some_knob=1).ignored == ("some_knob",)


FUNCTION = {"name": "look", "paramters": {}}
SCHEMA: dict[str, Any] = {"type": "object"}
NAMED = {"name": "n", "schema": SCHEMA, "strct": True}
# What is in an object of the body that nobody knows -> its path.
MISSPELT: list[tuple[str, dict[str, Any], str]] = [
    ("openai", {"stream_options": {"include_usge": True}}, "stream_options.include_usge"),
    ("openai", {"tools": [{"type": "function", "function": FUNCTION}]}, "tools.function.paramters"),
    (
        "openai",
        {"response_format": {"type": "json_schema", "json_schema": NAMED}},
        "response_format.json_schema.strct",
    ),
    ("openai", {"tool_choice": {"function": {"name": "a", "nme": 1}}}, "tool_choice.function.nme"),
    ("anthropic", {"metadata": {"user": "u"}}, "metadata.user"),
    ("anthropic", {"tool_choice": {"type": "auto", "parallel": True}}, "tool_choice.parallel"),
    ("responses", {"reasoning": {"efort": "high"}}, "reasoning.efort"),
    ("responses", {"text": {"format": {"type": "json_schema", **NAMED}}}, "text.format.strct"),
    ("ai-sdk", {"tools": {"look": {"paramters": {}}}}, "tools.look.paramters"),
    ("ag-ui", {"tools": [FUNCTION, FUNCTION]}, "tools.paramters"),
    ("ag-ui", {"forwardedProps": {"on_disconnect": {"grace_seconds": 1, "x": 1}}}, "on_disconnect.x"),
]


@pytest.mark.parametrize(("name", "more", "path"), MISSPELT)
def test_what_nobody_knows_of_an_object_in_a_body_is_named_too(name: Any, more: Any, path: str) -> None:
    assert asked(DIALECTS[name], **more).ignored == (path,)


# Each asks for JSON of a schema and has none.
NO_SCHEMA: dict[str, tuple[dict[str, Any], str]] = {
    "millstream": ({"response_format": {"type": "json_schema"}}, "json_schema"),
    "openai": ({"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}}, "schema"),
    "anthropic": ({"output_config": {"format": {"type": "json_schema"}}}, "schema"),
    "responses": ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "schema"),
}


@pytest.mark.parametrize("name", NO_SCHEMA)
def test_json_of_a_schema_that_is_not_there_is_refused_and_not_any_json(name: Any) -> None:
    body, named = NO_SCHEMA[name]
    with pytest.raises(InvalidRequest, match=named):
        asked(DIALECTS[name], **body)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150)
@given(data=st.data())
@pytest.mark.parametrize("name", sorted(DIALECTS))
def test_any_body_is_understood_or_refused_with_words(name: Any, data: st.DataObject) -> None:
    """A body that is right but for one value, anywhere in it, which may be anything."""
    body = json.loads(json.dumps(BODIES[name]))
    value = body
    while True:
        keys = sorted(value) if isinstance(value, dict) else list(range(len(value)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(value[key], (dict, list)) or not value[key] or data.draw(st.booleans()):
            break
        value = value[key]
    value[key] = data.draw(json_values)
    with suppress(InvalidRequest):  # which is all that it may raise
        assert isinstance(DIALECTS[name].parse(json.dumps(body).encode()), Ask)


def test_a_number_of_many_digits_is_refused(dialect: Dialect) -> None:
    body = json.dumps(BODIES[dialect.name] | {"temperature": 1}).replace(
        '"temperature": 1', '"temperature": ' + "1" * 400
    )
    with suppress(InvalidRequest):  # or it is no field of the format, and left over
        dialect.parse(body.encode())


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"1", b"null", b'{"a":' * 300 + b"1" + b"}" * 300])
def test_what_is_no_object_is_refused(dialect: Dialect, body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        dialect.parse(body)
