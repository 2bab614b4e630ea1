"""Streams of every shape, as the assembler makes them, and what a dialect makes of them."""

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from millstream.answer import Fold
from millstream.dialects import Dialect
from millstream.errors import UpstreamError
from millstream.events import (
    AnswerStart,
    Batch,
    Event,
    File,
    Position,
    Reasoning,
    ReasoningDelta,
    RefusalDelta,
    Source,
    StreamEnd,
    StreamFailed,
    StreamInfo,
    StreamStart,
    Text,
    TextDelta,
    is_cut,
)
from millstream.providers import Finish, InChoice, PartBreak, PartOpen, Produced, ToolCallPiece
from millstream.streams.parts import Assembler
from millstream.usage import Bill, Usage

BILL = Bill(Usage(9, 12, "provider_final", 4, 3), "0.000142")
FAILED = StreamFailed.of(UpstreamError("it broke"), BILL)

# The least body that each dialect understands.
BODIES: dict[str, dict[str, Any]] = {
    "millstream": {"messages": [{"role": "user", "content": "Hello"}]},
    "openai": {"messages": [{"role": "user", "content": "Hello"}], "stream": True},
    "anthropic": {
        "max_tokens": 9,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}],
        "stream": True,
    },
    "ai-sdk": {"id": "c", "messages": [{"role": "user", "parts": [{"type": "text", "text": "Hello"}]}]},
    "responses": {"input": "Hello", "stream": True},
    "ag-ui": {"threadId": "t", "runId": "r", "messages": [{"id": "1", "role": "user", "content": "Hello"}]},
}

words = st.text(max_size=12)
SOME: list[Produced] = [
    File("image/png", "data:image/png;base64,AA=="),
    File("image/png", "data:image/png;base64,AA==", {"id": "ig_1", "size": "1024x1024"}),
    Source("https://a.example/", "A"),
    Source("https://b.example/", "B", 3, 8),
    Reasoning(redacted="opaque"),
    Reasoning(extra={"type": "compaction", "content": "What was said."}),
    PartOpen(Text({"citations": []})),
    PartOpen(Reasoning()),
    PartBreak(),
    PartBreak(Reasoning("signed")),
    PartOpen(Text(extra={"id": "msg_1"})),
    PartOpen(Reasoning(extra={"id": "rs_1"})),
    PartOpen(Reasoning(extra={"id": "rs_1", "type": "reasoning_text"})),
    PartBreak(index=0),
    TextDelta("", extra={"citation": {"type": "page_location"}}),
    TextDelta("x", extra={"logprobs": {"content": [{"token": "x"}], "refusal": None}}),
]
pieces: st.SearchStrategy[Produced] = st.one_of(
    st.builds(TextDelta, words),
    st.builds(ReasoningDelta, words),
    st.builds(RefusalDelta, words),
    st.sampled_from(SOME),
    st.builds(ToolCallPiece, st.integers(0, 2), words, st.just("call_1"), st.just("look")),
)
in_others = st.builds(
    InChoice, st.integers(1, 2), st.one_of(st.builds(TextDelta, words), st.builds(ReasoningDelta, words))
)
starts = st.sampled_from(
    [
        None,
        AnswerStart("openai", "chatcmpl-1", "m-1", extra={"created": 7}),
        AnswerStart("anthropic", "msg_1"),
        AnswerStart("responses"),
    ]
)


@st.composite
def streams(draw: st.DrawFn) -> tuple[StreamInfo, list[Event]]:
    """A whole stream of one answer or of three, as the assembler makes it."""
    choices = draw(st.sampled_from([1, 3]))
    said: list[Produced] = draw(st.lists(pieces if choices == 1 else pieces | in_others, max_size=12))
    start = draw(starts)
    if start is not None:
        said = [start, *said]
    if choices > 1:
        said.append(InChoice(1, Finish("length", None)))
    assembler = Assembler()
    end = draw(
        st.sampled_from(
            [StreamEnd("stop", BILL), StreamEnd("tool_calls", BILL), StreamEnd("cancelled", BILL)]
        )
        | st.just(FAILED)
    )
    events = [StreamStart("str_1", "m"), *assembler.feed(said), *assembler.close(cut=is_cut(end)), end]
    return StreamInfo("str_1", "key_1", "m", 5.0, choices), events


def encoded(dialect: Dialect, info: StreamInfo, events: Sequence[Event], *cuts: int) -> list[bytes]:
    """The frames of the pieces between the cuts, as a reader that was there from the start gets them."""
    before, frames, bounds = Fold(), [], [0, *sorted(cuts), len(events)]
    for start, end in zip(bounds, bounds[1:], strict=False):
        batch = Batch(Position(1, start + 1), events[start:end])
        frames.append(dialect.encode(info, batch, before) if batch.events else b"")
        before.add(batch.events)
    return frames
