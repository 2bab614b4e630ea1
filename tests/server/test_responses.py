"""Responses at the level of ASGI: what is sent when a client leaves, is sent away, or cannot be written to."""

import asyncio

import pytest
from fastapi import Request
from starlette.types import Message, Scope

from millstream.dialects.native import NATIVE
from millstream.errors import Interrupted
from millstream.events import (
    Event,
    PartStart,
    Position,
    StreamFailed,
    StreamInfo,
    StreamStart,
    Text,
    TextDelta,
)
from millstream.journals.memory import MemoryJournal
from millstream.server.streaming import client_watch
from millstream.server.streaming.answer import AnswerResponse
from millstream.server.streaming.client_watch import ClientWatch
from millstream.server.streaming.event_stream import EventStreamResponse
from millstream.streams.audience import RemoteStream, SendAway
from millstream.usage import Bill, Usage

INFO = StreamInfo("str_x", "key", "m", 1.0)


class Client:
    """One request. It leaves when it is told to, and its server says so once only."""

    def __init__(self) -> None:
        self.left = asyncio.Event()
        self.sent: list[Message] = []
        self.breaks_at: int | None = None
        self._said = False
        scope: Scope = {"type": "http", "method": "GET", "path": "/v1/streams/str_x/events", "headers": []}
        self.request = Request(scope, self.receive)

    async def receive(self) -> Message:
        await self.left.wait()
        if self._said:
            await asyncio.Event().wait()
        self._said = True
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)
        if self.breaks_at == len(self.sent):
            raise ConnectionError("the connection is gone")

    @property
    def statuses(self) -> list[int]:
        return [message["status"] for message in self.sent if message["type"] == "http.response.start"]

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)

    async def answer(self, response: EventStreamResponse | AnswerResponse) -> None:
        async with asyncio.timeout(5):
            await response(self.request.scope, self.request.receive, self.send)


async def stream(*events: Event) -> MemoryJournal:
    journal = MemoryJournal()
    await journal.create(INFO)
    await journal.append("str_x", [StreamStart("str_x", "m"), *events])
    return journal


@pytest.mark.parametrize("held", [True, False])
async def test_a_follower_that_is_sent_away_is_told_when_to_come_back(held: bool) -> None:
    """EventSource does not reconnect after a 503."""
    journal = await stream(PartStart(0, Text()), TextDelta("Hello"))
    readers: dict[SendAway, str] = {}
    client = Client()
    after = Position(1, 3) if held else None
    response = EventStreamResponse(
        client.request,
        ClientWatch(client.receive),
        RemoteStream(INFO, readers),
        journal,
        NATIVE,
        followed=True,
        after=after,
    )
    answering = asyncio.create_task(client.answer(response))
    while not (readers and (held or client.sent)):
        await asyncio.sleep(0)
    next(iter(readers))()
    await answering
    assert client.statuses == [200]
    assert b"retry: " in client.body.removeprefix(b"retry: 1000\n")
    assert client.sent[-1]["more_body"] is False
    assert not readers


async def test_a_client_that_left_while_its_stream_was_started_does_not_read_it() -> None:
    journal = await stream(PartStart(0, Text()), TextDelta("Hello"))
    readers: dict[SendAway, str] = {}
    client = Client()
    watch = ClientWatch(client.receive)
    async with watch:
        client.left.set()
        await asyncio.sleep(0)  # the start ends in the same turn as the client leaves
    response = EventStreamResponse(client.request, watch, RemoteStream(INFO, readers), journal, NATIVE)
    await client.answer(response)
    assert all(message.get("more_body", True) for message in client.sent)
    assert not readers


@pytest.mark.parametrize("broken", [1, 2, 3])
async def test_a_response_begins_once_even_if_it_cannot_be_written(broken: int) -> None:
    journal = await stream(PartStart(0, Text()), TextDelta("Hello"))
    client = Client()
    client.breaks_at = broken
    response = EventStreamResponse(
        client.request, ClientWatch(client.receive), RemoteStream(INFO, {}), journal, NATIVE
    )
    answering = asyncio.create_task(client.answer(response))
    await asyncio.sleep(0)
    await journal.interrupt("str_x", _interrupted())
    await asyncio.gather(answering, return_exceptions=True)
    assert len(client.statuses) == 1


@pytest.mark.parametrize(
    ("kind", "status", "last"),
    [(EventStreamResponse, 200, b"retry: "), (AnswerResponse, 503, b'"code":"draining"')],
)
async def test_a_server_that_cancels_a_request_gets_the_end_of_its_response(
    kind: type[EventStreamResponse] | type[AnswerResponse], status: int, last: bytes
) -> None:
    journal = await stream(PartStart(0, Text()), TextDelta("Hello"))
    readers: dict[SendAway, str] = {}
    client = Client()
    response = kind(client.request, ClientWatch(client.receive), RemoteStream(INFO, readers), journal, NATIVE)
    answering = asyncio.create_task(client.answer(response))
    while not (readers and (client.sent or kind is AnswerResponse)):
        await asyncio.sleep(0)
    answering.cancel()
    await answering
    assert answering.cancelling() == 0
    assert client.statuses == [status]
    assert last in client.body
    assert not client.sent[-1].get("more_body", False)


async def test_a_cancelled_request_does_not_wait_for_a_client_that_takes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client_watch, "_GOODBYE_SECONDS", 0.01)
    journal = await stream(PartStart(0, Text()), TextDelta("Hello"))
    client = Client()
    stalled = asyncio.Event()

    async def send(message: Message) -> None:
        client.sent.append(message)
        if len(client.sent) == 2:
            stalled.set()
        if stalled.is_set():
            await asyncio.Event().wait()

    response = EventStreamResponse(
        client.request, ClientWatch(client.receive), RemoteStream(INFO, {}), journal, NATIVE
    )
    answering = asyncio.create_task(response(client.request.scope, client.receive, send))
    async with asyncio.timeout(5):
        await stalled.wait()
        answering.cancel()
        await answering


async def test_a_request_that_is_cancelled_because_its_client_left_is_cancelled() -> None:
    """Middlewares that run the application in a task of theirs cancel it then."""
    watch = ClientWatch((client := Client()).receive)
    client.left.set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)

    async def work() -> None:
        async with watch:
            asyncio.current_task().cancel()  # type: ignore[union-attr]
            await asyncio.Event().wait()

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(work())
    watch.stop()


@pytest.mark.parametrize("kind", [EventStreamResponse, AnswerResponse])
async def test_nothing_of_a_response_outlives_it(
    kind: type[EventStreamResponse] | type[AnswerResponse],
) -> None:
    journal = await stream(PartStart(0, Text()), TextDelta("Hello"))
    before = asyncio.all_tasks()
    client = Client()
    answering = asyncio.create_task(
        client.answer(
            kind(client.request, ClientWatch(client.receive), RemoteStream(INFO, {}), journal, NATIVE)
        )
    )
    await asyncio.sleep(0)
    client.left.set()
    await answering
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


def _interrupted() -> StreamFailed:
    return StreamFailed.of(Interrupted(), Bill(Usage(0, 0, "counted"), None))
