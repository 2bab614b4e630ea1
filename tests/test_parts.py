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
from millstream.providers import Finish, ToolCallPiece
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
