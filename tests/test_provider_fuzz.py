"""Provider streams of every wrong shape: whatever comes, an answer is right, or it has failed with what came before."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from millstream.answer import Answer
from millstream.dialects.table import DIALECTS
from millstream.errors import ProviderError
from millstream.events import Batch, Event, Position, StreamInfo, TextDelta, from_json, to_json
from millstream.journals.memory import MemoryJournal
from millstream.providers import MAX_CHOICES, Finish, InChoice, Produced, ToolCallPiece
from millstream.providers.endings import ERRORS, FAILED_FINISHES, FINISH_REASONS
from millstream.providers.known import Quirks
from millstream.providers.openai import Reading
from millstream.sse import Decoder
from millstream.streams.parts import Assembler

INFO = StreamInfo("str_1", "key_1", "m", 0, MAX_CHOICES)
RECORDINGS = Path(__file__).parent / "recordings"
WORDS = " ".join([*FINISH_REASONS.values(), *FAILED_FINISHES.values(), *ERRORS.values()]).split()

# How servers say that they have failed, wherever it stands.
SAID_TO_HAVE_FAILED: list[bytes] = [
    b'data: {"error":{"message":"x","code":"server_error"}}\n\n',
    b'data: {"error":"x"}\n\n',
    b'data: [{"error":{"code":429}}]\n\n',
    b'event: error\ndata: {"message":"x"}\n\n',
    b"event: error\ndata: x\n\n",
    b"event: error\ndata: {}\n\n",
    b'data: {"object":"error","message":"x","code":400}\n\n',
    b'data: {"type":"error","error":{"type":"overloaded_error"}}\n\n',
    b'data: {"choices":null,"base_resp":{"status_code":1008}}\n\n',
    b'data: {"choices":[{"index":0,"delta":{},"error":{"code":502}}]}\n\n',
    b'data: {"choices":[],"x_groq":{"error":"x"}}\n\n',
    b'data: {"choices":[{"delta":{},"finish_reason":"error"}]}\n\n',
    b'data: {"choices":[{"delta":{},"finish_reason":"stop","native_finish_reason":"error"}]}\n\n',
    b'data: {"detail":"x"}\n\n',
    b'data: {"code":"Throttling","message":"x"}\n\n',
]


def recorded() -> list[dict[str, Any]]:
    """Every event of every recording that is an object."""
    events: list[dict[str, Any]] = []
    for path in sorted(RECORDINGS.glob("*.json")):
        stream = json.loads(path.read_text(encoding="utf-8"))["stream"].replace("\r\n", "\n")
        for block in stream.split("\n\n")[:20]:
            try:
                value = json.loads(block.partition("data: ")[2])
            except ValueError:
                continue
            if isinstance(value, dict):
                events.append(value)
    return events


anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.sampled_from([*WORDS, "", "0", "12", "null", "st\0op", "\ud800"]),
    st.lists(st.none() | st.integers() | st.text(max_size=3), max_size=2),
    st.dictionaries(
        st.sampled_from(["text", "index", "code", "error", "id"]), st.text(max_size=3), max_size=2
    ),
)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A recorded event in which some values are something else."""
    event = json.loads(json.dumps(draw(st.sampled_from(EVENTS))))
    for _ in range(draw(st.integers(0, 3))):
        place: Any = event
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if not isinstance(place[key], (dict, list)) or not place[key] or draw(st.booleans()):
                if isinstance(place, dict) and draw(st.integers(0, 4)) == 0:
                    del place[key]
                else:
                    place[key] = draw(anything)
                break
            place = place[key]
    data = json.dumps(event).encode()
    if draw(st.integers(0, 30)) == 0:
        data = data[: draw(st.integers(0, len(data)))]
    return b"data: " + data + b"\n\n"


EVENTS = recorded()


def text_event(number: int) -> bytes:
    delta = {"content": f"<{number}>"}
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": delta}]}).encode() + b"\n\n"


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[bytes], int | None]:
    """A stream's events, and where among them it said that it failed."""
    events: list[bytes] = []
    for number in range(draw(st.integers(1, 6))):
        events.append(text_event(number))
        events += draw(st.lists(mutated(), max_size=2))
        if draw(st.integers(0, 9)) == 0:
            events.append(events[-1])
    failed: int | None = None
    if draw(st.booleans()):
        failed = draw(st.integers(0, len(events)))
        events.insert(failed, draw(st.sampled_from(SAID_TO_HAVE_FAILED)))
    if draw(st.booleans()):
        events.append(b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n')
    if draw(st.booleans()):
        events.append(b"data: [DONE]\n\n")
    return events, failed


def read(reads: Sequence[bytes]) -> tuple[list[Produced], str | None, int]:
    """What comes of a stream that arrives in these reads, the code of its fault, and how many were looked at."""
    decoder, reading = Decoder(), Reading("p", Quirks(), MAX_CHOICES)
    produced: list[Produced] = []
    taken = 0
    for data in reads:
        produced += reading.read(decoder.feed(data))
        taken += 1
        if reading.is_done or reading.fault is not None:
            break
    else:
        produced += reading.end()
    assert reading.fault is None or isinstance(reading.fault, ProviderError)
    return [unnamed(item) for item in produced], reading.fault.code if reading.fault else None, taken


def unnamed(item: Produced) -> Produced:
    """An id of ours is another one each time."""
    if isinstance(item, InChoice) and isinstance(item.item, ToolCallPiece):
        return msgspec.structs.replace(item, item=unnamed(item.item))
    return (
        msgspec.structs.replace(item, call_id="*")
        if isinstance(item, ToolCallPiece) and item.call_id
        else item
    )


async def keep(journal: MemoryJournal, events: Sequence[Event]) -> None:
    await journal.create(INFO)
    await journal.append(INFO.stream_id, events)


def use(produced: Sequence[Produced]) -> None:
    """Makes of it what a stream does: events, frames, what Redis keeps and what the ledger keeps."""
    assembler = Assembler()
    events = [*assembler.feed(produced), *assembler.close()]
    assert len(from_json(to_json(events))) == len(events)
    answer = Answer()
    answer.add(events)
    assert [part.number for part in answer.parts] == list(range(len(answer.parts)))
    assert all(part.ended for part in answer.parts)
    for dialect in DIALECTS.values() if events else ():
        dialect.encode(INFO, Batch(Position(1, 1), events), Answer)
    asyncio.run(keep(MemoryJournal(), events))
    reported = assembler.reported
    kept = (reported.finish_reason or "") + (reported.usage or "")
    assert "\0" not in kept  # which PostgreSQL takes in no text
    kept.encode()


def check(stream: tuple[list[bytes], int | None]) -> None:
    events, failed = stream
    produced, fault, taken = read(events)
    together, fault_together, _ = read([b"".join(events)])
    use(produced)
    # What comes of a stream does not depend on how it arrives. (Not ==: NaN may be among it.)
    assert repr((produced, fault)) == repr((together, fault_together))
    # A stream that said that it failed has failed.
    assert failed is None or fault is not None
    assert [isinstance(item, Finish) for item in produced].count(True) == (fault is None)
    # Text that came before the fault, or in an answer without one, is there.
    said = [item.text for item in produced if isinstance(item, TextDelta) and item.text.startswith("<")]
    texts = {text_event(number): f"<{number}>" for number in range(6)}
    assert said == [texts[event] for event in events[:taken] if event in texts]


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(streams())
def test_every_stream_is_right_or_has_failed(stream: tuple[list[bytes], int | None]) -> None:
    check(stream)


@pytest.mark.faults
@pytest.mark.timeout(3600)
@settings(max_examples=50_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(streams())
def test_fifty_thousand_streams_are_right_or_have_failed(stream: tuple[list[bytes], int | None]) -> None:
    check(stream)
