"""The decoder against the rules of the standard, and against every way to cut a stream."""

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millstream.sse import Decoder, SSELimitExceeded

# A case of the fixtures: JSON.
Case: TypeAlias = dict[str, Any]

CASES: list[Case] = json.loads(
    (Path(__file__).parent.parent / "spec" / "fixtures" / "sse.json").read_text(encoding="utf-8")
)


def decode(pieces: Iterable[bytes]) -> list[dict[str, str]]:
    decoder = Decoder()
    return [
        {"data": m.data.decode(), "event": m.event, "id": m.id}
        for piece in pieces
        for m in decoder.feed(piece)
    ]


def expected(case: Case) -> list[dict[str, str]]:
    return [{"event": "message", "id": "", **message} for message in case["messages"]]


def stream(case: Case) -> bytes:
    return bytes.fromhex(case["hex"]) if "hex" in case else str(case["stream"]).encode()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_a_stream_is_read_as_the_standard_says(case: Case) -> None:
    assert decode([stream(case)]) == expected(case)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_a_stream_is_read_the_same_wherever_it_is_cut(case: Case) -> None:
    data = stream(case)
    assert decode([data[i : i + 1] for i in range(len(data))]) == expected(case)
    for cut in range(len(data) + 1):
        assert decode([data[:cut], data[cut:]]) == expected(case), cut


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=6))
def test_no_bytes_raise_and_no_cut_changes_them(data: bytes, cuts: list[int]) -> None:
    edges = sorted({0, len(data), *(min(cut, len(data)) for cut in cuts)})
    pieces = [data[a:b] for a, b in zip(edges, edges[1:], strict=False)]
    assert decode(pieces) == decode([data])


LINES = st.sampled_from(["data: a", "data:", "id: 1", "event: e", ": c", "", "data: {}", "junk"])


@given(st.lists(LINES, max_size=12), st.sampled_from(["\n", "\r", "\r\n"]))
def test_every_line_end_means_the_same(lines: list[str], end: str) -> None:
    text = "".join(f"{line}\n" for line in lines)
    assert decode([text.replace("\n", end).encode()]) == decode([text.encode()])


@pytest.mark.parametrize(
    "data",
    [b"data: " + b"x" * 2000, b"data: " + b"x" * 2000 + b"\n\n", b"data: xxxxx\n" * 300],
    ids=["a line", "an event of one line", "an event of many lines"],
)
def test_what_is_too_long_is_refused_with_bounded_memory(data: bytes) -> None:
    decoder = Decoder(max_event_bytes=1000)
    with pytest.raises(SSELimitExceeded):
        for start in range(0, len(data), 100):
            decoder.feed(data[start : start + 100])
    assert decoder.pending_bytes <= 1100


@pytest.mark.cost
@pytest.mark.parametrize(
    "line",
    [
        b":abc\n",
        b":a\n\n",
        b"a:b\n",
        b"\n",
        b"\n\n",
        b"event: x\n",
        b"id: 1\n",
        b":\r",
        b"data:\n",
        b"data\n\n",
    ],
)
def test_no_input_takes_long_to_decode(line: bytes) -> None:
    chunk = line * ((32 << 10) // len(line))
    spent = []
    for _ in range(3):
        decoder, before = Decoder(), time.thread_time()
        decoder.feed(chunk)
        spent.append(time.thread_time() - before)
    assert min(spent) < 0.02, spent


@pytest.mark.parametrize("cut", range(1, 30))
def test_comments_between_the_lines_of_an_event_do_not_change_it(cut: int) -> None:
    text = b": a\ndata: x\n: b\ndata: y\n:\n\n:\n:\n\ndata: z\n\n"
    decoder = Decoder()
    messages = decoder.feed(text[:cut]) + decoder.feed(text[cut:])
    assert [message.data for message in messages] == [b"x\ny", b"z"]


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_json_outside_of_events_is_not_mixed_with_comments(end: bytes) -> None:
    decoder = Decoder()
    decoder.feed(end.join((b"data: {}", b"", b'{"error":', b": ping", b'"x"}', b": ping", b"")))
    assert json.loads(decoder.stray) == {"error": "x"}
