from millstream.events import (
    ReasoningDelta,
    ReasoningEnd,
    ReasoningStart,
    TextDelta,
    TextEnd,
    TextStart,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
)
from millstream.providers import Finish, ToolCallPiece, UsageReport
from millstream.streams.parts import Assembler
from millstream.usage import Usage


def test_a_part_is_opened_once_and_closed_by_another() -> None:
    parts = Assembler()
    assert parts.feed([ReasoningDelta("a"), ReasoningDelta("b"), TextDelta("c")]) == [
        ReasoningStart(),
        ReasoningDelta("a"),
        ReasoningDelta("b"),
        ReasoningEnd(),
        TextStart(),
        TextDelta("c"),
    ]
    assert parts.feed([TextDelta("d")]) == [TextDelta("d")]
    assert parts.close() == [TextEnd()]
    assert parts.close() == []


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
        TextStart(),
        TextDelta("x"),
        TextEnd(),
        ToolCallStart(0, "a", "look"),
        ToolCallStart(1, "b", "hear"),
        ToolCallDelta(1, "b", "{}"),
        ToolCallDelta(0, "a", '{"q":1}'),
    ]
    assert parts.close() == [ToolCallEnd(0, "a", "look", '{"q":1}'), ToolCallEnd(1, "b", "hear", "{}")]


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
