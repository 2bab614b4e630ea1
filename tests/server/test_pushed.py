"""What is pushed and what is read is one body, in every format: spec/protocol.md knows no difference."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import Request
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from starlette.types import Message

from dialect_streams import BILL, encoded, streams
from millstream.dialects import Dialect
from millstream.dialects.native import NATIVE
from millstream.dialects.openai import OPENAI
from millstream.dialects.table import DIALECTS
from millstream.events import (
    AnswerStart,
    Event,
    PartEnd,
    PartStart,
    Position,
    StreamEnd,
    StreamFailed,
    StreamInfo,
    StreamStart,
    Text,
    TextDelta,
)
from millstream.journals import StreamState
from millstream.journals.memory import MemoryJournal
from millstream.server.streaming import event_stream
from millstream.server.streaming.client_watch import CLIENT, ClientWatch
from millstream.server.streaming.event_stream import EventStreamResponse
from millstream.streams.audience import RemoteStream


class Taker:
    """A client that takes more when ``ready`` says so, and keeps its body."""

    def __init__(self, ready: list[bool]) -> None:
        self.body: list[bytes] = []
        self.written: list[bytes] = []
        self._ready = ready

    @property
    def is_ready(self) -> bool:
        return self._ready.pop() if self._ready else True

    def write(self, data: bytes) -> None:
        self.written.append(data)
        self.body.append(data)

    def watch(self, leaving: Callable[[], None]) -> bool:
        return True

    def unwatch(self) -> None:
        pass

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.body":
            self.body.append(message["body"])


def asked(taker: Taker) -> Request:
    async def receive() -> Message:
        raise AssertionError

    scope: dict[str, Any] = {"type": "http", "method": "POST", "path": "/v1/chat/stream", "headers": []}
    scope[CLIENT] = taker
    return Request(scope, receive)


async def respond(taker: Taker, dialect: Dialect, info: StreamInfo, events: list[Event], turns: int) -> None:
    journal = MemoryJournal()
    await journal.create(info)
    request = asked(taker)
    response = EventStreamResponse(request, ClientWatch.of(request), RemoteStream(info, {}), journal, dialect)
    responding = asyncio.create_task(response(request.scope, request.receive, taker.send))
    for event in events:
        for _ in range(turns):
            await asyncio.sleep(0)
        await journal.append(info.stream_id, [event])
    async with asyncio.timeout(5):
        await responding


@settings(max_examples=80)
@given(stream=streams(), ready=st.lists(st.booleans(), max_size=30), turns=st.sampled_from([0, 1, 3]))
@pytest.mark.parametrize("name", sorted(DIALECTS))
def test_the_body_is_the_same_whoever_sends_its_pieces(
    name: Any, stream: tuple[StreamInfo, list[Event]], ready: list[bool], turns: int
) -> None:
    info, events = stream
    first = next(event for event in events if not isinstance(event, (StreamStart, AnswerStart)))
    assume(not isinstance(first, StreamFailed))  # which is a status, and no body
    taker = Taker(ready)
    asyncio.run(respond(taker, DIALECTS[name], info, events, turns))
    assert b"".join(taker.body) == b"".join(encoded(DIALECTS[name], info, events))
    assert b"" not in taker.written


def test_a_client_that_takes_everything_is_pushed_all_but_the_beginning_and_the_end() -> None:
    taker, info = Taker([]), StreamInfo("str_1", "key_1", "m", 5.0)
    words: list[Event] = [TextDelta(f"{number} ") for number in range(9)]
    events = [StreamStart("str_1", "m"), PartStart(0, Text()), *words, PartEnd(0, Text())]
    asyncio.run(respond(taker, NATIVE, info, [*events, StreamEnd("stop", BILL)], turns=3))
    assert len(taker.written) == len(words) + 1


class Lagging(MemoryJournal):
    """As a copy of what is elsewhere: it is known how far the stream is there."""

    async def state(self, stream_id: str) -> StreamState:
        return replace(await super().state(stream_id), last=Position(1, 6))


async def test_what_a_copy_gets_late_is_not_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The response has begun, for silence, when the copy gets what its reader has had elsewhere."""
    monkeypatch.setattr(event_stream, "FOLLOW_SECONDS", 0.0)
    monkeypatch.setattr(event_stream, "LOOK_SECONDS", 0.001)
    taker, info, begun = Taker([]), StreamInfo("str_1", "key_1", "m", 5.0), asyncio.Event()

    async def send(message: Message) -> None:
        begun.set()
        await taker.send(message)

    journal = Lagging(ahead=100)
    await journal.create(info)
    await journal.append("str_1", [StreamStart("str_1", "m"), PartStart(0, Text()), TextDelta("one ")])
    request = asked(taker)
    response = EventStreamResponse(
        request,
        ClientWatch.of(request),
        RemoteStream(info, {}),
        journal,
        OPENAI,
        followed=True,
        after=Position(1, 6),
    )
    async with asyncio.timeout(5):
        responding = asyncio.create_task(response(request.scope, request.receive, send))
        await begun.wait()
        for word in ("two ", "three ", "four ", "five "):
            await journal.append("str_1", [TextDelta(word)])
        await journal.append("str_1", [PartEnd(0, Text()), StreamEnd("stop", BILL)])
        await responding
    body = b"".join(taker.body)
    assert b"five " in body
    assert not any(word in body for word in (b"one ", b"two ", b"three ", b"four "))
