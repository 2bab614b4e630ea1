"""A provider on a real socket that does exactly what a test says, and remembers what it did.

The oracle of the streaming tests: what it wrote is what a client may have seen, when its socket closed is when
the provider was let go.
"""

import asyncio
import json
import ssl
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

SSE_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


class Request:
    """One request that reached the provider, as its handler and the test see it."""

    def __init__(self, path: str, headers: dict[str, str], body: bytes, writer: asyncio.StreamWriter) -> None:
        self.path, self.headers, self.body = path, headers, body
        self.sent: list[str] = []  # pieces of text put on the wire
        self.sent_at: list[float] = []
        self.closed_at: float | None = None
        self.gone = asyncio.Event()
        self._writer = writer

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    async def raw(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def head(self) -> None:
        await self.raw(SSE_HEAD)

    async def chunk(self, data: bytes) -> None:
        """One HTTP chunk."""
        await self.raw(b"%x\r\n%s\r\n" % (len(data), data))

    async def event(self, value: object) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        await self.chunk(b"data: " + data + b"\n\n")

    async def say(self, text: str) -> None:
        self.sent.append(text)
        self.sent_at.append(time.monotonic())
        await self.event({"choices": [{"index": 0, "delta": {"content": text}}]})

    async def finish(self, reason: str = "stop", usage: object = None) -> None:
        await self.event({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
        if usage is not None:
            await self.event({"choices": [], "usage": usage})
        await self.event(b"[DONE]")
        await self.end()

    async def end(self) -> None:
        """The end of the body, as it should be."""
        await self.raw(b"0\r\n\r\n")

    async def answer(self, status: int, value: object, headers: Sequence[str] = ()) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        lines = [f"HTTP/1.1 {status} X", f"content-length: {len(body)}", *headers]
        if not any(line.lower().startswith("content-type") for line in headers):
            lines.append("content-type: application/json")
        await self.raw("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    def cut(self, *, reset: bool = False) -> None:
        """The connection goes away in the middle."""
        if reset:
            self._writer.transport.abort()
        else:
            self._writer.close()


Handler: TypeAlias = Callable[[Request], Coroutine[Any, Any, None]]


class Oracle:
    port: int

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.requests: list[Request] = []
        self.connections = 0
        self.open = 0
        self.writers: set[asyncio.StreamWriter] = set()
        self.serving: set[asyncio.Task[None]] = set()
        self.arrived = asyncio.Event()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        self.writers.add(writer)
        task = asyncio.current_task()
        assert task is not None
        self.serving.add(task)
        task.add_done_callback(self.serving.discard)
        request: Request | None = None
        work: asyncio.Task[None] | None = None
        try:
            begun = b""  # of the next request
            while head := begun + await reader.readuntil(b"\r\n\r\n"):
                first, *lines = head.decode().split("\r\n")
                headers = {
                    k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines if line)
                }
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                request = Request(first.split(" ")[1], headers, body, writer)
                self.requests.append(request)
                self.arrived.set()
                work = asyncio.create_task(self.handler(request))
                # The client sends nothing while it waits for an answer: more bytes or the end of
                # the connection both end this read.
                more = asyncio.create_task(reader.read(1))
                await asyncio.wait({work, more}, return_when=asyncio.FIRST_COMPLETED)
                if not work.done():
                    request.closed_at = time.monotonic()
                    request.gone.set()
                    more.cancel()
                    return
                work.result()
                begun = await more
                if not begun:
                    request.closed_at = time.monotonic()
                    request.gone.set()
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.open -= 1
            self.writers.discard(writer)
            if work is not None:
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)
            if request is not None and request.closed_at is None:
                request.closed_at = time.monotonic()
                request.gone.set()
            writer.close()


@asynccontextmanager
async def oracle(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncGenerator[Oracle]:
    """An Oracle that answers every request with ``handler(request)``, with an SSL context over TLS."""
    found = Oracle(handler)
    server = await asyncio.start_server(found.serve, "127.0.0.1", 0, ssl=tls)
    found.port = server.sockets[0].getsockname()[1]
    try:
        yield found
    finally:
        server.close()
        for writer in list(found.writers):
            writer.transport.abort()
        if found.serving:
            await asyncio.wait(found.serving, timeout=5)
        await asyncio.sleep(0)  # the transports say that they are closed
