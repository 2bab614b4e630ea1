"""Connections as nobody should use them: what is endless ends, who leaves is noticed, who is refused hears it.

Real sockets throughout. Where a clock is waited for, the server's connections run inside this process with
shorter clocks, on the event loop that serves.
"""

import asyncio
import functools
import gc
import json
import os
import re
import socket
import sys
import time
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, ParamSpec, cast

import psutil
import pytest
import uvicorn
import uvloop
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from application import Run
from descriptors import no_descriptors
from live.conftest import Serve, Server, running
from millstream.server.process.acceptor import Acceptor
from millstream.server.process.connections import Bounds, Connections
from millstream.server.process.http import Connection
from millstream.server.streaming.client_watch import CLIENT, Client
from oracle import Request, oracle

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Arguments = ParamSpec("Arguments")

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
QUICK = Bounds(
    head_seconds=0.2,
    idle_seconds=0.4,
    body_pause_seconds=0.2,
    body_seconds=0.6,
    rest_pause_seconds=0.2,
    rest_seconds=0.6,
    look_seconds=0.02,
)


def on_uvloop(
    test: Callable[Arguments, Coroutine[Any, Any, None]],
) -> Callable[Arguments, None]:
    """``millstream serve`` runs on uvloop, whose transports are not asyncio's."""

    @functools.wraps(test)
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(test(*args, **kwargs))

    return run


@asynccontextmanager
async def edge(
    app: App,
    bounds: Bounds | None = None,
    descriptors: int = 10_000,
    protocol: type[Connection] = Connection,
) -> AsyncGenerator[int]:
    """The connections of a server before ``app``, inside this process: its port."""
    config = uvicorn.Config(app, lifespan="off", ws="none", log_level="critical", access_log=False)
    config.load()
    state = ServerState()
    connections = Connections(descriptors, bounds)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        acceptor = Acceptor(
            listener, lambda: protocol(connections, config, state, {}), connections.most_a_turn
        )
        try:
            yield listener.getsockname()[1]
        finally:
            acceptor.close()
            for connection in list(state.connections):
                connection.shutdown()
            async with asyncio.timeout(5):
                while state.connections or state.tasks:
                    await asyncio.sleep(0.01)


class Greeter:
    """Reads a request to its end and answers "Hello"; remembers how it ended."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.asks = asyncio.Event()
        self.disconnected = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        self.asks.set()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.disconnected.set()
                return
            body += message["body"]
            if not message["more_body"]:
                break
        self.bodies.append(body)
        await answer(send, 200, scope["path"].encode())


class Silent:
    """Begins an answer and never ends it; says when its client has left."""

    def __init__(self) -> None:
        self.begun, self.left = asyncio.Event(), asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"", "more_body": True})
        self.begun.set()
        while (await receive())["type"] != "http.disconnect":
            pass
        self.left.set()


async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers before it has read anything."""
    await answer(send, 401, b"no")


async def answer(send: Send, status: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": status, "headers": [length, *headers]})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def client(port: int) -> AsyncGenerator[Streams]:
    """A connection, which is closed at the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(ConnectionError):
            await asyncio.wait_for(writer.wait_closed(), 5)


@asynccontextmanager
async def clients(port: int, count: int) -> AsyncGenerator[list[Streams]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(client(port)) for _ in range(count)]


async def response(reader: asyncio.StreamReader) -> bytes:
    """One response, of which the length is known."""
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    length = re.search(rb"content-length: (\d+)", head.lower())
    assert length is not None
    return head + await asyncio.wait_for(reader.readexactly(int(length[1])), 5)


async def everything(reader: asyncio.StreamReader, seconds: float = 5) -> bytes:
    """What comes until the connection ends; if it ends with a reset, that is an error."""
    return await asyncio.wait_for(reader.read(), seconds)


async def flood(writer: asyncio.StreamWriter, piece: bytes, most: int = 4 << 20) -> int:
    """Sends ``piece`` again and again, until the server does not take it or ``most`` bytes went out."""
    sent = 0
    with suppress(ConnectionError):
        while sent < most:
            writer.write(piece)
            await writer.drain()
            sent += len(piece)
    return sent


def refusal(answered: bytes) -> tuple[int, str]:
    """The status and the code of an answer in the shape of all errors, which ends its connection."""
    head, _, body = answered.partition(b"\r\n\r\n")
    assert b"connection: close" in head.lower()
    error = json.loads(body)["error"]
    assert sorted(error) == ["code", "message", "request_id"]
    return int(head.split()[1]), error["code"]


# -- heads ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("begin", "piece", "expected"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: ", b"x" * 1000, (431, "too_large")),
        (b"GET /", b"x" * 1000, (431, "too_large")),
        (b"GET / HTTP/1.1\r\nHost: x\r\n", b"X: %s\r\n" % (b"x" * 500), (431, "too_large")),
        (b"GET / HTTP/1.1\r\nHost: x\r\n", b"X:\r\n" * 200, (431, "too_large")),
        (b"", b"\r\n" * 500, (400, "invalid_request")),
        (CHUNKED + b"1\r\nx\r\n0\r\nX: ", b"x" * 1000, (400, "invalid_request")),
        (CHUNKED + b"1\r\nx\r\n0\r\n", b"X:\r\n" * 200, (431, "too_large")),
        (CHUNKED + b"1;", b"x" * 1000, (400, "invalid_request")),
        (CHUNKED, b"0" * 1000, (400, "invalid_request")),
    ],
    ids=["value", "path", "fields", "tiny fields", "blank lines", "trailer", "trailers", "extension", "size"],
)
@on_uvloop
async def test_a_head_that_does_not_end_is_refused(
    begin: bytes, piece: bytes, expected: tuple[int, str]
) -> None:
    async with edge(Greeter()) as port, client(port) as (reader, writer):
        writer.write(begin)
        await writer.drain()
        sending = asyncio.create_task(flood(writer, piece, most=1 << 20))
        assert refusal(await everything(reader)) == expected
        writer.close()
        await sending


@pytest.mark.parametrize("size", [100, 60 << 10, 70 << 10, 200 << 10])
@pytest.mark.parametrize("at_once", [True, False])
@on_uvloop
async def test_a_head_may_have_64_kib(size: int, at_once: bool) -> None:
    async with edge(Greeter()) as port, client(port) as (reader, writer):
        head = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + b"X: %s\r\n" % (b"x" * 1000) * (
            size // 1006
        )
        for piece in [head + b"\r\n"] if at_once else [head[:-100], head[-100:], b"\r\n"]:
            writer.write(piece)
            await writer.drain()
        received = await everything(reader)
        if size > 64 << 10:
            assert refusal(received) == (431, "too_large")
        else:
            assert received.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "request_",
    [
        b"HELLO\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    ],
    ids=["junk", "field", "tls", "two lengths", "length and chunks", "negative"],
)
@on_uvloop
async def test_what_is_not_http_is_a_400(request_: bytes) -> None:
    """spec/faults.md: A15."""
    async with edge(Greeter()) as port, client(port) as (reader, writer):
        writer.write(request_)
        assert refusal(await everything(reader)) == (400, "invalid_request")


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"1.1\r\nHost: x", 200),
        (b"1.1\r\nhost: a_b.example.:8000", 200),
        (b"1.1\r\nHost: [::1]:80", 200),
        (b"1.1\r\nHost: x \t", 200),
        (b"1.1\r\nHost:", 200),  # the address of what is asked has no host
        (b"1.0", 200),
        (b"1.0\r\nHost: x", 200),
        (b"1.1\r\nX: y", 400),
        (b"1.1\r\nHost: x\r\nHost: x", 400),
        (b"1.0\r\nHost: x\r\nHost: y", 400),
        (b"1.1\r\nHost: x/y", 400),
        (b"1.1\r\nHost: x y", 400),
        (b"1.1\r\nHost: http://x", 400),
        (b"1.1\r\nHost: x:y", 400),
        (b"1.1\r\nHost: \xc3\xa4", 400),
    ],
)
@on_uvloop
async def test_a_request_has_one_host(head: bytes, status: int) -> None:
    async with edge(Greeter()) as port, client(port) as (reader, writer):
        writer.write(b"GET / HTTP/%b\r\nConnection: close\r\n\r\n" % head)
        answered = await everything(reader)
    assert answered.startswith(b"HTTP/1.1 %d" % status)
    assert status == 200 or refusal(answered) == (400, "invalid_request")


@pytest.mark.parametrize(("version", "told"), [(b"1.1", True), (b"1.0", False)])
@on_uvloop
async def test_who_speaks_http_1_0_is_not_told_to_go_on(version: bytes, told: bool) -> None:
    app = Greeter()
    async with edge(app) as port, client(port) as (reader, writer):
        head = b"POST / HTTP/%b\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n" % version
        writer.write(head)
        await asyncio.wait_for(app.asks.wait(), 5)  # for the body, which is when the client is told
        writer.write(b"x")
        answered = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n/"), 5)
    assert answered.startswith(b"HTTP/1.1 100 Continue\r\n\r\n") == told


@on_uvloop
async def test_trailers_are_no_headers() -> None:
    headers: list[tuple[bytes, bytes]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["more_body"]:
            pass
        headers.extend(scope["headers"])
        await answer(send, 200, b"")

    async with edge(app) as port, client(port) as (reader, writer):
        writer.write(CHUNKED + b"1\r\nx\r\n0\r\nAuthorization: Bearer x\r\n\r\n")
        await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        writer.close()
    assert [name for name, _ in headers] == [b"host", b"transfer-encoding"]


# -- offers and old versions ------------------------------------------------------------------

# What Java's HttpClient sends with each request that may be HTTP/2, and others.
OFFERS = {
    "h2c": b"Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABk\r\nUpgrade: h2c\r\n",
    "websocket": b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: eA==\r\n",
    "tls": b"upgrade: TLS/1.2, HTTP/1.1\r\nconnection: keep-alive\r\nConnection: upgrade\r\n",
}


@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS)
@pytest.mark.parametrize("cut", ["at once", "by bytes"])
@on_uvloop
async def test_an_offer_to_change_the_protocol_is_ignored(offer: bytes, cut: str) -> None:
    """spec/faults.md: C30."""
    app = Greeter()
    lengths = b"POST /a HTTP/1.1\r\n%bHost: x\r\nContent-Length: 5\r\n\r\nhello" % offer
    chunks = b"POST /b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n%b\r\n" % offer
    chunks += b"3\r\nwor\r\n2\r\nld\r\n0\r\n\r\n"
    bare = b"GET /c HTTP/1.1\r\nHost: x\r\n%bX: y\r\n\r\n" % offer
    sent = lengths + chunks + bare + GET + lengths
    async with edge(app) as port, client(port) as (reader, writer):
        for piece in [sent] if cut == "at once" else [sent[i : i + 1] for i in range(len(sent))]:
            writer.write(piece)
            await writer.drain()
        for path in (b"/a", b"/b", b"/c", b"/", b"/a"):
            received = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n" + path), 5)
            assert received.startswith(b"HTTP/1.1 200")
    assert app.bodies == [b"hello", b"world", b"", b"", b"hello"]


@on_uvloop
async def test_an_offer_does_not_change_what_a_head_may_have() -> None:
    async with edge(Greeter()) as port:
        for head, expected in [
            (b"X: %b\r\n" % (b"x" * 70_000), 431),
            (b"X: y\r\n" * 300, 431),
            (b"Content-Length: 5\r\nContent-Length: 6\r\n", 400),
        ]:
            async with client(port) as (reader, writer):
                writer.write(b"POST / HTTP/1.1\r\nHost: x\r\n%b%b\r\nhello" % (OFFERS["h2c"], head))
                assert refusal(await everything(reader))[0] == expected


@on_uvloop
async def test_an_offer_under_a_running_answer_waits_for_its_turn_and_leaving_is_noticed() -> None:
    app = Silent()
    async with edge(app) as port, client(port) as (_, writer):
        writer.write(GET + b"POST /a HTTP/1.1\r\nHost: x\r\n%bContent-Length: 5\r\n\r\nhel" % OFFERS["h2c"])
        await app.begun.wait()
        writer.close()
        await asyncio.wait_for(app.left.wait(), 2)


@pytest.mark.parametrize(
    "request_", [b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\nx", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]
)
@on_uvloop
async def test_what_would_be_another_protocol_is_a_400(request_: bytes) -> None:
    async with edge(Greeter()) as port, client(port) as (reader, writer):
        writer.write(request_)
        assert refusal(await everything(reader)) == (400, "invalid_request")


@pytest.mark.parametrize(
    "more", [b"", b"Connection: keep-alive\r\n", OFFERS["h2c"]], ids=["", "stays", "h2c"]
)
@on_uvloop
async def test_http_1_0_gets_its_answer_without_chunks_and_to_the_connections_end(more: bytes) -> None:
    """spec/faults.md: C31."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/whole":
            return await answer(send, 200, b"Hello")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for word in (b"Hel", b"", b"lo"):
            await send({"type": "http.response.body", "body": word, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async with edge(app) as port:
        for path in (b"/whole", b"/stream"):
            async with client(port) as (reader, writer):
                writer.write(b"POST %b HTTP/1.0\r\n%bContent-Length: 2\r\n\r\nxx" % (path, more))
                head, _, body = (await everything(reader)).partition(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200")
                assert b"connection: close" in head
                assert b"transfer-encoding" not in head.lower()
                assert body == b"Hello"


# -- clocks -----------------------------------------------------------------------------------


@on_uvloop
async def test_a_connection_that_says_nothing_is_closed() -> None:
    async with edge(Greeter(), QUICK) as port, client(port) as (reader, _):
        began = time.monotonic()
        assert await everything(reader) == b""
        assert 0.2 <= time.monotonic() - began < 2


@pytest.mark.parametrize("first", [b"", GET])
@on_uvloop
async def test_a_head_that_comes_a_byte_at_a_time_is_ended(first: bytes) -> None:
    """spec/faults.md: A7."""
    async with edge(Greeter(), QUICK) as port, client(port) as (reader, writer):
        if first:
            writer.write(first)
            await asyncio.wait_for(reader.readuntil(b"\r\n\r\n/"), 5)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nX: ")
        sending = asyncio.create_task(drip(writer))
        began = time.monotonic()
        assert refusal(await everything(reader)) == (408, "invalid_request")
        assert time.monotonic() - began < 2
        writer.close()
        await sending


@on_uvloop
async def test_blank_lines_do_not_keep_an_idle_connection() -> None:
    async with edge(Greeter(), QUICK) as port, client(port) as (reader, writer):
        writer.write(GET)
        await asyncio.wait_for(reader.readuntil(b"\r\n\r\n/"), 5)
        began = time.monotonic()
        sending = asyncio.create_task(drip(writer, b"\r\n"))
        assert await everything(reader) == b""
        assert 0.3 <= time.monotonic() - began < 2
        writer.close()
        await sending


@pytest.mark.parametrize("dripping", [True, False])
@on_uvloop
async def test_a_body_that_does_not_come_on_is_ended(dripping: bool) -> None:
    """spec/faults.md: A7."""
    app = Greeter()
    async with edge(app, QUICK) as port, client(port) as (reader, writer):
        writer.write(POST % 1000 + b"x")
        sending = asyncio.create_task(drip(writer) if dripping else asyncio.sleep(0))
        began = time.monotonic()
        assert refusal(await everything(reader)) == (408, "invalid_request")
        assert (0.6 if dripping else 0.2) <= time.monotonic() - began < 2
        assert app.disconnected.is_set()
        writer.close()
        await sending


@on_uvloop
async def test_a_body_that_goes_on_under_its_answer_ends_with_its_time() -> None:
    app = Silent()
    async with edge(app, QUICK) as port, client(port) as (reader, writer):
        writer.write(CHUNKED)
        sending = asyncio.create_task(drip(writer, b"1\r\nx\r\n"))
        assert (await everything(reader)).startswith(b"HTTP/1.1 200")
        assert app.left.is_set()
        writer.close()
        await sending


@on_uvloop
async def test_a_body_waits_for_an_application_that_does_not_read() -> None:
    """The clock is the client's only where the server is reading."""
    reading = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await reading.wait()
        size = 0
        more = True
        while more:
            message = await receive()
            size += len(message["body"])
            more = message["more_body"]
        await answer(send, 200, b"%d" % size)

    async with edge(app, QUICK) as port, client(port) as (reader, writer):
        writer.write(POST % 200_000 + b"x" * 199_999)
        with pytest.raises(TimeoutError):  # for longer than a pause may be, and not for the whole time
            await asyncio.wait_for(reader.read(1), 0.4)
        reading.set()
        writer.write(b"x")
        assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n200000"), 5)).startswith(b"HTTP/1.1 200")


async def drip(writer: asyncio.StreamWriter, piece: bytes = b"x") -> None:
    """Sends a piece now and then, until the connection is closed."""
    with suppress(ConnectionError):
        while not writer.is_closing():
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.02)


# -- requests behind the one that is answered -------------------------------------------------


@pytest.mark.parametrize(
    "ahead",
    [
        b"",
        GET,
        GET[:10],
        POST % 40_000 + b"x" * 40_000,
        POST % 10_000_000 + b"x" * 300_000,
        GET * 5000,
        b"junk",
    ],
    ids=["nothing", "a request", "a part", "its body", "a long one", "thousands", "junk"],
)
@pytest.mark.parametrize("how", ["closes", "closes its half", "resets"])
@pytest.mark.parametrize("at_once", [False, True])
@on_uvloop
async def test_leaving_is_noticed_behind_further_requests(ahead: bytes, how: str, at_once: bool) -> None:
    """spec/faults.md: C3, C4 and C16."""
    app = Silent()
    async with edge(app) as port, client(port) as (reader, writer):
        writer.write(GET + ahead if at_once else GET)
        await app.begun.wait()
        if not at_once:
            writer.write(ahead)
            await writer.drain()
        await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        if how == "resets":
            writer.transport.abort()
        elif how == "closes":
            writer.close()
        else:
            writer.write_eof()
        await asyncio.wait_for(app.left.wait(), 2)


@on_uvloop
async def test_a_client_that_goes_on_sending_under_its_answer_is_cut_off() -> None:
    app = Silent()
    async with edge(app, Bounds(rest_bytes=1 << 20)) as port, client(port) as (_, writer):
        writer.write(GET)
        assert await flood(writer, GET * 100, most=64 << 20) < 64 << 20
        await asyncio.wait_for(app.left.wait(), 2)


@on_uvloop
async def test_requests_at_once_are_answered_in_their_order() -> None:
    async with edge(Greeter()) as port, client(port) as (reader, writer):
        for _ in range(100):  # more than 64 KiB in all
            writer.write(
                b"".join(b"GET /%d HTTP/1.1\r\nHost: x\r\nX: %s\r\n\r\n" % (i, b"x" * 100) for i in range(9))
            )
            writer.write(POST % 5000 + b"x" * 5000)
            for path in (*(b"/%d" % i for i in range(9)), b"/"):
                received = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n" + path), 5)
                assert received.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@on_uvloop
async def test_the_head_of_an_answer_goes_with_what_follows_it(method: str) -> None:
    """As one call of the system, and alone where nothing follows."""
    writes: list[bytes] = []

    class Remembering(Connection):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            wire = transport

            class Wire:
                def write(self, data: bytes) -> None:
                    writes.append(data)
                    wire.write(data)

                def __getattr__(self, name: str) -> Any:
                    return getattr(wire, name)

            super().connection_made(cast("asyncio.Transport", Wire()))

    async with edge(Greeter(), protocol=Remembering) as port, client(port) as (reader, writer):
        for _ in range(2):
            writer.write(f"{method} /x HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            await asyncio.wait_for(reader.readuntil(b"\r\n\r\n" + b"/x" * (method == "GET")), 5)
    assert [one.startswith(b"HTTP/1.1 200") for one in writes] == [True, True]


@pytest.mark.parametrize("way", ["dies", "closes"])
@on_uvloop
async def test_a_head_with_nothing_behind_it_is_not_lost(way: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if way == "dies":
            raise RuntimeError

    async with edge(app) as port, client(port) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await everything(reader)).startswith(b"HTTP/1.1 200")


@on_uvloop
async def test_a_body_can_be_written_in_any_turn_while_its_client_takes_it() -> None:
    writers: list[Client] = []
    ended = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        body: Client = scope[CLIENT]
        writers.append(body)
        assert not body.is_ready
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        assert body.is_ready
        body.write(b"")  # which ends nothing
        body.write(b"bc")
        while body.is_ready:
            body.write(b"x" * 65536)  # more than it takes
        ended.set()
        await send({"type": "http.response.body", "body": b"d", "more_body": False})

    async with edge(app) as port, client(port) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        await asyncio.wait_for(ended.wait(), 5)
        received = await everything(reader)
        assert received.endswith(b"1\r\nd\r\n0\r\n\r\n")
        assert b"1\r\na\r\n2\r\nbc\r\n10000\r\n" in received
        assert not writers[0].is_ready


@on_uvloop
async def test_who_answers_is_told_at_once_that_its_client_leaves() -> None:
    left = asyncio.Event()
    asks, waits = asyncio.Event(), asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        whom: Client = scope[CLIENT]
        assert not whom.watch(left.set)  # the body is not here yet
        asks.set()
        await receive()
        assert whom.watch(left.set)
        waits.set()
        await left.wait()
        assert (await receive())["type"] == "http.disconnect"

    async with edge(app) as port, client(port) as (_, writer):
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n")
        await asyncio.wait_for(asks.wait(), 5)
        writer.write(b"x")
        await asyncio.wait_for(waits.wait(), 5)
        writer.close()
        await asyncio.wait_for(left.wait(), 5)


@on_uvloop
async def test_a_request_is_freed_without_the_collector() -> None:
    requests: list[weakref.ref[object]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        requests.append(weakref.ref(receive.__self__))  # type: ignore[attr-defined]
        assert scope[CLIENT].watch(lambda: None)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    gc.disable()
    try:
        async with edge(app) as port, client(port) as (reader, writer):
            for _ in range(2):
                writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                await reader.readuntil(b"\r\n\r\n")
            await asyncio.sleep(0)
            assert requests[0]() is None
    finally:
        gc.enable()


@on_uvloop
async def test_of_too_many_requests_at_once_the_first_are_answered() -> None:
    async with edge(Greeter()) as port, client(port) as (reader, writer):
        writer.write(b"".join(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % i for i in range(100)))
        answers = (await everything(reader)).split(b"HTTP/1.1 200 OK\r\n")[1:]
        assert [answered.rpartition(b"/")[2] for answered in answers] == [b"%d" % i for i in range(17)]
        assert [b"connection: close" in answered for answered in answers] == [False] * 16 + [True]


@on_uvloop
async def test_junk_behind_a_request_does_not_get_into_its_answer() -> None:
    async with edge(Greeter()) as port, client(port) as (reader, writer):
        writer.write(GET + b"\x00junk\r\n\r\n")
        received = await everything(reader)
        assert received.startswith(b"HTTP/1.1 200")
        assert received.endswith(b"\r\n\r\n/")


# -- answers that come before the request has ended -------------------------------------------


def send_all(port: int, head: bytes, piece: bytes, times: int) -> bytes:
    """Sends all of a request before it reads anything, as most clients do."""
    with socket.create_connection(("127.0.0.1", port), 5) as client:
        client.sendall(head)
        for _ in range(times):
            client.sendall(piece)
        received = b""
        while more := client.recv(65_536):
            received += more
        return received


@on_uvloop
async def test_an_early_answer_reaches_a_client_that_still_sends() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, 413, b"too large", (b"connection", b"close"))

    async with edge(app) as port:
        received = await asyncio.to_thread(send_all, port, POST % (4 << 20), b"x" * 65_536, 64)
        assert received.startswith(b"HTTP/1.1 413")
        assert received.endswith(b"too large")


@on_uvloop
async def test_a_connection_is_used_again_when_the_rest_of_a_refused_body_has_come() -> None:
    async with edge(refuse) as port, client(port) as (reader, writer):
        for _ in range(3):
            writer.write(POST % 300_000 + b"x" * 1000)
            await asyncio.wait_for(reader.readuntil(b"\r\n\r\nno"), 5)
            writer.write(b"x" * 299_000)
            await writer.drain()


@pytest.mark.parametrize("closing", [True, False])
@pytest.mark.parametrize("how", ["endless", "slow", "silent"])
@on_uvloop
async def test_the_rest_of_a_refused_request_is_bounded(closing: bool, how: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, 413, b"no", *([(b"connection", b"close")] if closing else []))

    async with edge(app, QUICK) as port, client(port) as (reader, writer):
        writer.write(POST % (1 << 40) + b"x")
        await asyncio.wait_for(reader.readuntil(b"\r\n\r\nno"), 5)
        began = time.monotonic()
        if how == "endless":
            assert await flood(writer, b"x" * 65_536, most=256 << 20) < 256 << 20
        else:
            sending = asyncio.create_task(drip(writer) if how == "slow" else asyncio.sleep(0))
            with suppress(ConnectionError):  # it has had its answer, and its time
                await everything(reader)
            assert (0.5 if how == "slow" else 0.2) <= time.monotonic() - began or closing
            writer.close()
            await sending
        assert time.monotonic() - began < 2


# -- how many there may be --------------------------------------------------------------------


@on_uvloop
async def test_an_idle_connection_makes_room_and_a_busy_one_does_not() -> None:
    app = Silent()
    async with edge(app, descriptors=48) as port, clients(port, 8) as idle:  # which are all there may be
        async with clients(port, 8) as busy:
            for reader, _ in idle:
                assert await everything(reader) == b""
            for reader, writer in busy:
                await begin(reader, writer)
            async with client(port) as (reader, writer):
                writer.write(GET)
                received = await everything(reader)
                assert refusal(received) == (503, "overloaded")
                assert b"retry-after: 1" in received.lower()
            busy[0][1].close()
            await asyncio.wait_for(app.left.wait(), 2)
            async with client(port) as (reader, writer):
                await begin(reader, writer)


@on_uvloop
async def test_those_that_are_refused_take_no_room_themselves() -> None:
    app = Silent()
    async with edge(app, descriptors=48) as port, clients(port, 8) as busy:
        for reader, writer in busy:
            await begin(reader, writer)
        async with clients(port, 50) as refused:
            for reader, _ in refused:
                assert refusal(await everything(reader)) == (503, "overloaded")
            busy[0][1].close()
            await asyncio.wait_for(app.left.wait(), 2)
            async with client(port) as (reader, writer):
                await begin(reader, writer)


@on_uvloop
async def test_connections_are_refused_where_descriptors_went_elsewhere() -> None:
    with ExitStack() as files:
        most = 200
        while files.enter_context(Path(os.devnull).open()).fileno() < most:
            pass
        async with edge(Silent(), descriptors=most) as port, client(port) as (reader, _):
            assert refusal(await everything(reader)) == (503, "overloaded")


async def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Asks, and waits for the head of an answer."""
    writer.write(GET)
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    assert head.startswith(b"HTTP/1.1 200")


# -- Millstream itself ------------------------------------------------------------------------


@on_uvloop
async def test_a_body_over_the_limit_is_told_so(run: Run) -> None:
    """spec/faults.md: A6."""
    async with run(max_body_bytes=65_536) as application, edge(application.app) as port:
        key = application.key.encode()
        for path in (b"/v1/chat/stream", b"/v1/streams"):
            head = b"POST %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n" % (path, key)
            announced = head + b"Content-Length: %d\r\n\r\n" % (2 << 20)
            received = await asyncio.to_thread(send_all, port, announced, b" " * 65_536, 32)
            assert refusal(received) == (413, "too_large")
            chunked = head + b"Transfer-Encoding: chunked\r\n\r\n"
            piece = b"ffff\r\n%s\r\n" % (b" " * 65_535)
            received = await asyncio.to_thread(send_all, port, chunked, piece, 32)
            assert refusal(received) == (413, "too_large")


async def silence(request: Request) -> None:
    """A provider that says a word at most."""
    if request.path.endswith("/models"):
        return await request.answer(200, {"data": []})
    if request.json.get("user") == "speaks":
        await request.head()
        await request.say("word")
    await asyncio.Event().wait()


def question(key: str, path: bytes = b"/v1/chat/stream", user: str = "is silent") -> bytes:
    body = json.dumps({"user": user, "messages": [{"role": "user", "content": "Hello"}]}).encode()
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n"
    return head % (path, key.encode(), len(body)) + body


@pytest.mark.parametrize("path", [b"/v1/chat/stream", b"/v1/chat"])
@pytest.mark.parametrize("user", ["is silent", "speaks"])
@on_uvloop
async def test_leaving_behind_a_second_request_reaches_a_silent_provider(
    run: Run, path: bytes, user: str
) -> None:
    """spec/faults.md: C16."""
    async with oracle(silence) as upstream, run(openai=upstream) as application:
        async with edge(application.app) as port, client(port) as (_, writer):
            writer.write(question(application.key, path, user))
            async with asyncio.timeout(5):
                while not (upstream.requests and upstream.requests[-1].path.endswith("/completions")):
                    upstream.arrived.clear()
                    await upstream.arrived.wait()
            writer.write(GET)
            await writer.drain()
        await asyncio.wait_for(upstream.requests[-1].gone.wait(), 1)
        assert [row["status"] for row in await application.receipts()] == ["cancelled"]


async def test_without_descriptors_starts_are_refused_and_what_runs_goes_on(serve: Serve) -> None:
    """spec/faults.md: P8."""
    goes_on = asyncio.Event()

    async def provider(request: Request) -> None:
        if request.path.endswith("/models"):  # whose connection would be used again
            return await request.answer(200, {"data": [{"id": "m"}]}, ["connection: close"])
        await request.head()
        await request.say("Hello")
        if request.json.get("user") == "runs":
            await goes_on.wait()
        await request.finish()

    async with oracle(provider) as upstream:
        context = serve(openai=upstream.base_url)
        server = await asyncio.to_thread(context.__enter__)
        try:
            async with client(server.port) as (runs, starts), client(server.port) as (reader, writer):
                starts.write(question(server.key, user="runs"))
                await asyncio.wait_for(runs.readuntil(b'"delta":"Hello"'), 5)
                writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
                assert (await response(reader)).startswith(b"HTTP/1.1 200")
                with no_descriptors(server.pid):
                    writer.write(question(server.key, b"/v1/chat"))
                    refused = await response(reader)
                    writer.write(question(server.key, b"/v1/chat/stream"))
                    refused_stream = await response(reader)
                for received in (refused, refused_stream):
                    assert received.startswith(b"HTTP/1.1 503")
                    assert b"retry-after: 1" in received.lower()
                    assert json.loads(received.partition(b"\r\n\r\n")[2])["error"]["code"] == "overloaded"
                goes_on.set()
                assert b'"error"' not in await asyncio.wait_for(runs.readuntil(b"[DONE]"), 5)
                writer.write(question(server.key, b"/v1/chat"))
                assert (await response(reader)).startswith(b"HTTP/1.1 200")
            assert [request.path[4:] for request in upstream.requests] == [
                "models",
                "chat/completions",
                "chat/completions",
            ]
        finally:
            await asyncio.to_thread(context.__exit__, None, None, None)


@pytest.fixture(scope="module")
def small_server(tmp_path_factory: pytest.TempPathFactory) -> Generator[Server]:
    """A server that may have 80 descriptors, which are 20 connections."""
    folder = tmp_path_factory.mktemp("small")
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nulimit -n 80\nexec {sys.executable} "$@"\n', encoding="utf-8")
    python.chmod(0o700)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", str(python))
        with running(folder, MILLSTREAM_PROVIDERS='{"scripted": {"type": "scripted"}}') as server:
            yield server


async def test_twenty_heads_of_16_mib_take_no_memory(small_server: Server) -> None:
    """spec/faults.md: A23."""
    process = psutil.Process(small_server.pid)
    before = process.memory_info().rss

    async def send() -> None:
        async with client(small_server.port) as (reader, writer):
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nX: ")
            sending = asyncio.create_task(flood(writer, b"x" * 65_536, 16 << 20))
            with suppress(ConnectionError):  # beyond the 16 MiB that are thrown away
                assert refusal(await everything(reader)) == (431, "too_large")
            await sending

    await asyncio.gather(*(send() for _ in range(20)))
    assert process.memory_info().rss - before < 40 << 20


async def test_silent_connections_shut_out_nobody(small_server: Server) -> None:
    """spec/faults.md: A7 and A24."""
    port = small_server.port
    async with clients(port, 100):
        assert (await get(port, b"/healthz")).startswith(b"HTTP/1.1 200")
        async with clients(port, 20) as begun:
            # What has begun is not closed for others, until its time is over.
            for reader, writer in begun:
                writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" + GET[:-2])
                assert (await response(reader)).startswith(b"HTTP/1.1 200")
            began = time.monotonic()
            assert refusal(await get(port, b"/healthz")) == (503, "overloaded")
            assert time.monotonic() - began < 1
            for reader, _ in begun:
                assert refusal(await everything(reader, 15)) == (408, "invalid_request")
            assert 9 < time.monotonic() - began < 13
            assert (await get(port, b"/healthz")).startswith(b"HTTP/1.1 200")


async def get(port: int, path: bytes) -> bytes:
    async with client(port) as (reader, writer):
        writer.write(b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % path)
        return await response(reader)
