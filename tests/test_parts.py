import pytest

from millstream.answer import Answer
from millstream.errors import UpstreamError
from millstream.events import (
    AnswerStart,
    ChoiceEnd,
    Event,
    File,
    PartEnd,
    PartStart,
    Reasoning,
    ReasoningDelta,
    Source,
    Text,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    WholePart,
)
from millstream.providers import (
    MAX_CHOICES,
    Finish,
    InChoice,
    PartBreak,
    PartOpen,
    Produced,
    ToolCallPiece,
    UsageReport,
)
from millstream.streams.parts import Assembler
from millstream.usage import Usage

PICTURE = File("image/png", "data:image/png;base64,iVBORw0KGgo=")
PAGE = Source("https://example.org/", "Example")


def assembled(*produced: Produced) -> list[Event]:
    """The events of an answer, to the ends of its parts."""
    parts = Assembler()
    return [*parts.feed(produced), *parts.close()]


def test_a_part_is_opened_once_and_closed_by_another() -> None:
    parts = Assembler()
    assert parts.feed([ReasoningDelta("a"), ReasoningDelta("b"), TextDelta("c")]) == [
        PartStart(0, Reasoning()),
        ReasoningDelta("a"),
        ReasoningDelta("b"),
        PartEnd(0, Reasoning()),
        PartStart(1, Text()),
        TextDelta("c", 1),
    ]
    assert parts.feed([TextDelta("d")]) == [TextDelta("d", 1)]
    assert parts.close() == [PartEnd(1, Text())]
    assert parts.close() == []


def test_thoughts_that_a_provider_has_apart_are_told_from_pieces_of_one() -> None:
    said: list[Produced] = [PartOpen(Reasoning()), ReasoningDelta("a"), ReasoningDelta("b"), TextDelta("x")]
    said += [ReasoningDelta("c"), PartBreak(), ReasoningDelta(""), ReasoningDelta("d"), ReasoningDelta("e")]
    said += [PartOpen(Reasoning()), PartOpen(Reasoning()), ReasoningDelta("f"), TextDelta("y")]
    events = assembled(*said)
    thoughts = [event for event in events if isinstance(event, ReasoningDelta)]
    assert [(thought.text, thought.apart) for thought in thoughts] == [
        *[("a", False), ("b", False), ("c", False), ("", False)],
        *[("d", True), ("e", False), ("f", True)],
    ]
    answer = Answer()
    answer.add(events)
    assert answer.reasoning == "".join(thought.joined for thought in thoughts) == "abc\n\nde\n\nf"
    assert answer.text == "xy"


def test_a_thought_that_was_opened_before_any_other_is_apart_from_none() -> None:
    opened = assembled(PartOpen(Reasoning()), PartOpen(Reasoning()), ReasoningDelta("a"))
    assert ReasoningDelta("a", 1) in opened


def test_parallel_tool_calls_may_interleave_and_end_whole() -> None:
    parts = Assembler()
    events = parts.feed(
        [
            TextDelta("x"),
            ToolCallPiece(0, "", "a", "look"),
            ToolCallPiece(1, "{}", "b", "hear"),
            ToolCallPiece(0, '{"q":1}'),
        ]
    )
    assert events == [
        PartStart(0, Text()),
        TextDelta("x"),
        PartEnd(0, Text()),
        PartStart(1, ToolCall(0, "a", "look")),
        PartStart(2, ToolCall(1, "b", "hear")),
        ToolCallDelta(1, "b", "{}", 2),
        ToolCallDelta(0, "a", '{"q":1}', 1),
    ]
    assert parts.close() == [
        PartEnd(1, ToolCall(0, "a", "look", '{"q":1}')),
        PartEnd(2, ToolCall(1, "b", "hear", "{}")),
    ]


def test_a_call_is_ended_when_its_provider_says_that_it_is_whole() -> None:
    parts = Assembler()
    parts.feed([ToolCallPiece(0, "{", "a", "look"), ToolCallPiece(1, "{}", "b", "hear")])
    assert parts.feed([ToolCallPiece(0, "}"), PartBreak(index=0)]) == [
        ToolCallDelta(0, "a", "}"),
        PartEnd(0, ToolCall(0, "a", "look", "{}")),
    ]
    assert parts.feed([PartBreak(index=7)]) == []  # of which nothing was said
    assert parts.close() == [PartEnd(1, ToolCall(1, "b", "hear", "{}"))]


def test_what_a_provider_wants_back_with_a_call_is_in_the_call() -> None:
    late, early = {"google": {"thought_signature": "c2ln"}}, {"early": True}
    assert assembled(
        ToolCallPiece(0, "{}", "a", "look", early),
        ToolCallPiece(1, "{}", "b", "hear"),
        ToolCallPiece(1, "", extra_content=late),
    ) == [
        PartStart(0, ToolCall(0, "a", "look", extra_content=early)),
        ToolCallDelta(0, "a", "{}"),
        PartStart(1, ToolCall(1, "b", "hear")),
        ToolCallDelta(1, "b", "{}", 1),
        ToolCallDelta(1, "b", "", 1, late),
        PartEnd(0, ToolCall(0, "a", "look", "{}", early)),
        PartEnd(1, ToolCall(1, "b", "hear", "{}", late)),
    ]


# -- breaks ----------------------------------------------------------------------------------------


def test_a_break_splits_what_would_be_one_part() -> None:
    assert assembled(TextDelta("a"), PartBreak(), TextDelta("b"), TextDelta("c")) == [
        PartStart(0, Text()),
        TextDelta("a"),
        PartEnd(0, Text()),
        PartStart(1, Text()),
        TextDelta("b", 1),
        TextDelta("c", 1),
        PartEnd(1, Text()),
    ]


def test_a_break_says_what_is_known_of_a_part_at_its_end() -> None:
    signed = [Reasoning(signature="c2ln"), Reasoning(signature="bmV4dA==")]
    events = assembled(
        ReasoningDelta("hm"),
        PartBreak(signed[0]),
        ReasoningDelta("so"),
        PartBreak(signed[1]),
        TextDelta("x"),
    )
    assert events[:6] == [
        PartStart(0, Reasoning()),
        ReasoningDelta("hm"),
        PartEnd(0, signed[0]),
        PartStart(1, Reasoning()),
        ReasoningDelta("so", 1, apart=True),
        PartEnd(1, signed[1]),
    ]
    answer = Answer()
    answer.add(events)
    assert [part.content for part in answer.parts] == [*signed, Text()]
    assert (answer.reasoning, answer.text) == ("hm\n\nso", "x")


def test_a_break_of_nothing_is_nothing() -> None:
    assert assembled(
        PartBreak(), PartBreak(Reasoning(signature="c2ln")), TextDelta("x"), PartBreak(), PartBreak()
    ) == [
        PartStart(0, Text()),
        TextDelta("x"),
        PartEnd(0, Text()),
    ]


def test_a_break_of_prose_leaves_the_calls_open() -> None:
    parts = Assembler()
    parts.feed([ToolCallPiece(0, "{", "a", "look"), TextDelta("x")])
    assert parts.feed([PartBreak(), ToolCallPiece(0, "}")]) == [
        PartEnd(1, Text()),
        ToolCallDelta(0, "a", "}"),
    ]
    assert parts.close() == [PartEnd(0, ToolCall(0, "a", "look", "{}"))]


# -- parts in one event ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", [PICTURE, PAGE, Reasoning(redacted="c2VjcmV0")], ids=lambda c: type(c).__name__
)
def test_what_comes_whole_is_one_event_and_parts_the_prose_around_it(
    content: File | Source | Reasoning,
) -> None:
    assert assembled(TextDelta("a"), content, TextDelta("b")) == [
        PartStart(0, Text()),
        TextDelta("a"),
        PartEnd(0, Text()),
        WholePart(1, content),
        PartStart(2, Text()),
        TextDelta("b", 2),
        PartEnd(2, Text()),
    ]


def test_what_comes_whole_leaves_the_calls_open() -> None:
    assert assembled(ToolCallPiece(0, "{", "a", "look"), PICTURE, ToolCallPiece(0, "}")) == [
        PartStart(0, ToolCall(0, "a", "look")),
        ToolCallDelta(0, "a", "{"),
        WholePart(1, PICTURE),
        ToolCallDelta(0, "a", "}"),
        PartEnd(0, ToolCall(0, "a", "look", "{}")),
    ]


def test_an_answer_has_its_whole_parts() -> None:
    answer = Answer()
    answer.add(assembled(PICTURE, PAGE, InChoice(1, PICTURE)))
    assert answer.files == [PICTURE]
    assert [part.content for part in answer.of(0)] == [PICTURE, PAGE]


# -- several answers -------------------------------------------------------------------------------


def test_the_parts_of_several_answers_are_told_apart_by_their_numbers() -> None:
    events = assembled(
        TextDelta("a"),
        InChoice(1, TextDelta("A")),
        TextDelta("b"),
        InChoice(2, ReasoningDelta("hm")),
        InChoice(1, TextDelta("B")),
        InChoice(1, ToolCallPiece(0, "{}", "c", "look")),
        ToolCallPiece(0, "[]", "d", "hear"),
    )
    assert events == [
        PartStart(0, Text()),
        TextDelta("a"),
        PartStart(1, Text(), 1),
        TextDelta("A", 1),
        TextDelta("b"),
        PartStart(2, Reasoning(), 2),
        ReasoningDelta("hm", 2),
        TextDelta("B", 1),
        PartEnd(1, Text(), 1),
        PartStart(3, ToolCall(0, "c", "look"), 1),
        ToolCallDelta(0, "c", "{}", 3),
        PartEnd(0, Text()),
        PartStart(4, ToolCall(0, "d", "hear")),
        ToolCallDelta(0, "d", "[]", 4),
        PartEnd(4, ToolCall(0, "d", "hear", "[]")),
        PartEnd(3, ToolCall(0, "c", "look", "{}"), 1),
        ChoiceEnd(1, "stop"),
        PartEnd(2, Reasoning(), 2),
        ChoiceEnd(2, "stop"),
    ]
    answer = Answer()
    answer.add(events)
    assert [part.number for part in answer.parts] == [0, 1, 2, 3, 4]
    assert (answer.text, answer.text_of(Text, 1), answer.text_of(Reasoning, 2)) == ("ab", "AB", "hm")
    assert [call.call_id for call in answer.tool_calls] == ["d"]
    assert [call.call_id for call in answer.tool_calls_of(1)] == ["c"]


def test_the_end_of_another_answer_ends_its_parts_and_no_others() -> None:
    parts = Assembler()
    parts.feed(
        [
            TextDelta("a"),
            InChoice(1, ToolCallPiece(0, "{}", "c", "look")),
            InChoice(1, TextDelta("A")),
            InChoice(2, TextDelta("x")),
        ]
    )
    ends = parts.feed([InChoice(1, Finish("tool_calls", None))])
    assert ends == [
        PartEnd(2, Text(), 1),
        PartEnd(1, ToolCall(0, "c", "look", "{}"), 1),
        ChoiceEnd(1, "tool_calls"),
    ]
    assert parts.finish is None  # which is the first one's
    assert parts.feed([InChoice(2, Finish("length", None)), Finish("stop", None)]) == [
        PartEnd(3, Text(), 2),
        ChoiceEnd(2, "length"),
    ]
    assert parts.finish == Finish("stop", None)
    assert parts.close() == [PartEnd(0, Text())]


def test_an_answer_knows_how_the_others_ended() -> None:
    answer = Answer()
    answer.add(assembled(InChoice(1, Finish("length", None)), InChoice(2, Finish("stop", None))))
    assert answer.ends == {1: "length", 2: "stop"}


@pytest.mark.parametrize("choice", [-1, 0, MAX_CHOICES, 2**70, True, 1.0, "1", None], ids=repr)
@pytest.mark.parametrize("item", [TextDelta("x"), Finish("stop", None)], ids=lambda i: type(i).__name__)
def test_a_choice_that_cannot_be_is_an_upstream_error(choice: int, item: TextDelta | Finish) -> None:
    parts = Assembler()
    assert parts.feed([TextDelta("a"), InChoice(choice, item)]) == [PartStart(0, Text()), TextDelta("a")]
    assert f"0 to {MAX_CHOICES - 1}" in str(parts.fault)


def test_a_tool_call_of_another_answer_is_bounded_as_well() -> None:
    parts = Assembler()
    parts.feed([InChoice(1, ToolCallPiece(1000, "{}", "a", "look"))])
    assert isinstance(parts.fault, UpstreamError)


# Of everything that opens and ends parts, in several batches.
BATCHES: list[list[Produced]] = [
    [AnswerStart("openai", "x", "m"), TextDelta("a")],
    [TextDelta("b"), ToolCallPiece(0, "{", "c1", "look"), InChoice(1, TextDelta("1"))],
    [ToolCallPiece(1, "{}", "c2", "look"), PICTURE, ReasoningDelta("hm"), InChoice(2, TextDelta("2"))],
    [ToolCallPiece(0, "}"), PartBreak(index=0), TextDelta("c"), InChoice(1, Finish("stop", None))],
    [InChoice(2, ReasoningDelta("so")), TextDelta("d")],
]


@pytest.mark.parametrize("lost", range(len(BATCHES)))
def test_what_nobody_has_seen_need_not_be_ended_and_what_ended_in_it_has(lost: int) -> None:
    parts, seen = Assembler(), list[Event]()
    for batch in BATCHES[:lost]:
        seen += parts.feed(batch)
    parts.lost(parts.feed(BATCHES[lost]))
    seen += parts.close(cut=True)
    answer = Answer()
    answer.add(seen)
    assert [part.number for part in answer.parts] == list(range(len(answer.parts)))
    assert all(part.ended for part in answer.parts)
    ended = [event.part for event in seen if isinstance(event, PartEnd)]
    assert len(ended) == len(set(ended))
    assert answer.ends.keys() >= {part.choice for part in answer.parts if part.choice}


def test_every_answer_counts() -> None:
    parts = Assembler()
    parts.feed([Usage(1, 1, "provider_partial"), InChoice(1, TextDelta("more"))])
    assert parts.usage_is_stale


# -- what is no part -------------------------------------------------------------------------------


def test_what_a_provider_says_of_its_answer_is_passed_on_and_opens_no_part() -> None:
    start = AnswerStart("openai", "chatcmpl-1", "m", extra={"created": 1})
    assert assembled(start, TextDelta("x"))[:2] == [start, PartStart(0, Text())]


def test_counts_and_the_finish_are_kept_and_are_no_events() -> None:
    parts, usage = Assembler(), Usage(1, 2, "provider_partial")
    assert parts.feed([usage, Finish("stop", None)]) == []
    assert (parts.usage, parts.finish) == (usage, Finish("stop", None))


def test_what_a_provider_of_somebodys_own_reports_cannot_keep_a_stream_from_its_settlement() -> None:
    assembler = Assembler()
    usage = Usage(1, 1, "provider_partial")
    assembler.feed([UsageReport(usage, {"x": object()}), Finish("stop", usage, "a\0" + "é" * 100)])
    reported = assembler.reported
    assert reported.usage is None
    assert reported.finish_reason is not None
    assert reported.finish_reason.isprintable()
    assert len(reported.finish_reason) <= 64
