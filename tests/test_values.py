"""Small values: keys, positions, errors, events."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millstream import errors, events
from millstream.answer import Answer
from millstream.api_keys import is_wellformed, new_secret
from millstream.database import DatabaseAway
from millstream.dialects.native import NativeDialect
from millstream.events import Batch, Event, Position, StreamInfo
from millstream.usage import Bill, Usage

SPEC = Path(__file__).parent.parent / "spec"


@pytest.mark.parametrize("test", [False, True])
def test_a_new_key_is_wellformed_and_no_typing_error_is(test: bool) -> None:
    secret = new_secret(test=test)
    assert secret.startswith("ms_test_" if test else "ms_live_")
    assert len(secret) == 44
    assert is_wellformed(secret)
    for i in range(8, len(secret)):
        assert not is_wellformed(secret[:i] + ("a" if secret[i] != "a" else "b") + secret[i + 1 :])


@given(st.text(max_size=60))
def test_junk_is_no_key(text: str) -> None:
    assert not is_wellformed(text)


def test_positions_are_short_and_plain() -> None:
    assert str(Position(2, 42)) == "2-42"
    assert str(events.Batch(Position(1, 3), [events.PartStart(0, events.Text())] * 4).last) == "1-6"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (DatabaseAway("it refuses connections"), "the database: it refuses connections"),
        (errors.Overloaded("the store cannot be reached"), "the store cannot be reached"),
    ],
)
def test_what_is_said_in_our_words_needs_no_traceback(error: Exception, words: str) -> None:
    with pytest.raises(type(error)) as raised:
        raise error
    assert errors.safe_traceback(raised.value) == words


def test_safe_tracebacks_name_places_and_not_words() -> None:
    try:
        raise ValueError("a secret")
    except ValueError as error:
        said = errors.safe_traceback(error)
    assert "ValueError" in said
    assert "test_values.py" in said
    assert "secret" not in said


def test_every_event_survives_json() -> None:
    bill = Bill(Usage(1, 2, "counted", 1, 1), "0.1")
    some: list[Event] = [
        events.StreamStart("s", "m"),
        events.AnswerStart("openai", "chatcmpl-1", "m-1", bill.usage, {"created": 1}),
        events.PartStart(0, events.Text({"annotations": []})),
        events.TextDelta("é\u2028", 0, {"logprobs": None}),
        events.PartEnd(0, events.Text()),
        events.PartEnd(1, events.Reasoning("c2ln"), 2),
        events.PartEnd(2, events.Refusal()),
        events.ToolCallDelta(0, "c", "{}", 3, {"late": True}),
        events.PartEnd(3, events.ToolCall(0, "c", "n", "{}", {"late": True})),
        events.WholePart(4, events.File("image/png", "data:,")),
        events.WholePart(5, events.Source("https://example.org/", "é"), 1),
        events.ChoiceEnd(1, "length"),
        events.StreamEnd("stop", bill),
        events.StreamEnd("stop", bill, "end_turn", "\n\n", {"input_tokens": 1}, {"a": None}),
        events.StreamFailed("internal", "x", False, bill, 3),
    ]
    for event in some:
        assert events.from_json(events.to_json([event])) == [event]


def test_the_native_fixtures_are_what_is_sent() -> None:
    fixtures = json.loads((SPEC / "fixtures" / "native.json").read_text(encoding="utf-8"))
    info = StreamInfo("str_1", "key_1", "m", 0.0)
    for fixture in fixtures:
        (event,) = events.from_json(json.dumps([fixture["event"]]).encode())
        batch = Batch(Position(1, fixture["seq"]), [event])
        assert NativeDialect().encode(info, batch, Answer).decode() == fixture["frame"], fixture["event"][
            "type"
        ]
        # Clients that read texts by lines (httpx, requests) cut at more than what ends a line here.
        assert fixture["frame"].splitlines() == fixture["frame"].split("\n")[:-1]
    schema = json.loads((SPEC / "events.schema.json").read_text(encoding="utf-8"))
    kinds = {fixture["event"]["type"] for fixture in fixtures}
    assert kinds == set(schema["discriminator"]["mapping"])
    contents = {fixture["event"]["content"]["type"] for fixture in fixtures if "content" in fixture["event"]}
    content = schema["$defs"]["PartStart"]["properties"]["content"]
    assert contents == set(content["discriminator"]["mapping"])


def test_a_batch_is_its_events_one_by_one() -> None:
    dialect, info = NativeDialect(), StreamInfo("str_1", "key_1", "m", 0.0)
    some: list[Event] = [
        events.PartStart(0, events.Text()),
        events.TextDelta('a"\n'),
        events.PartEnd(0, events.Text()),
    ]
    whole = dialect.encode(info, Batch(Position(1, 4), some), Answer)
    assert whole == b"".join(
        dialect.encode(info, Batch(Position(1, 4 + i), [event]), Answer) for i, event in enumerate(some)
    )
