"""The oracle: a provider on a real socket that does what each stream's plan says, and remembers it all.

It speaks OpenAI's Chat Completions. Which stream a request is for is told by its ``user``.
"""

import asyncio
import json
import random
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Any

from nemesis.plans import CANARY_PROVIDER, MODEL, StreamPlan, stream_plan
from nemesis.records import Asked

_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


class Provider:
    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.asked: list[Asked] = []
        self.open = 0
        self.port = 0
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def abort(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        self._writers.add(writer)
        try:
            begun = b""
            while True:
                head = begun + await reader.readuntil(b"\r\n\r\n")
                lines = head.decode().split("\r\n")
                length = next(
                    (int(line.split(":")[1]) for line in lines if line.lower().startswith("content-length:")),
                    0,
                )
                body = await reader.readexactly(length)
                if lines[0].split(" ")[1].endswith("/models"):
                    await _answer(writer, 200, {"data": [{"id": MODEL}]})
                    begun = await reader.read(1)
                else:
                    begun = await self._complete(json.loads(body), reader, writer)
                if not begun:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.open -= 1
            self._writers.discard(writer)
            writer.transport.abort()

    async def _complete(
        self, body: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bytes:
        """Answers one request; the first byte of the next one, or nothing where the connection has ended."""
        asked = Asked(stream_plan(self.seed, body["user"]), time.monotonic())
        self.asked.append(asked)
        work = asyncio.create_task(_perform(asked, writer))
        # The client sends nothing while it waits for its answer: a byte or the end both end this read.
        more = asyncio.create_task(reader.read(1))
        try:
            await asyncio.wait({work, more}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                return b""
            if work.exception() is not None or writer.is_closing():
                return b""
            return await more
        finally:
            asked.closed_at = None if asked.finished and more.done() and _said(more) else time.monotonic()
            for task in (work, more):
                task.cancel()
            await asyncio.gather(work, more, return_exceptions=True)


def _said(more: asyncio.Task[bytes]) -> bytes:
    """The next request's first byte; nothing where the connection broke."""
    return b"" if more.cancelled() or more.exception() is not None else more.result()


async def _answer(writer: asyncio.StreamWriter, status: int, value: object) -> None:
    body = json.dumps(value).encode()
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await writer.drain()


async def _perform(asked: Asked, writer: asyncio.StreamWriter) -> None:
    plan = asked.plan
    chance = random.Random(plan.marker)
    if plan.first_pause:
        await asyncio.sleep(plan.first_pause)
    if plan.ending == "refused":
        message = f"{CANARY_PROVIDER} cannot do {plan.marker}"
        await _answer(writer, plan.status, {"error": {"message": message, "code": "some_code"}})
        _finish(asked)
        return
    if plan.ending == "silence" and not plan.chunks and chance.random() < 0.5:
        await asyncio.Event().wait()
    writer.write(_HEAD)
    for number, chunk in enumerate(plan.chunks, 1):
        event: dict[str, Any] = {"choices": [{"index": 0, "delta": {"content": chunk}}]}
        if plan.running_count_after(number):
            event["usage"] = _usage(plan, number)
        # Before it is written: what breaks while it is on its way may have arrived.
        asked.said_at.append(time.monotonic())
        await _event(writer, event, cut=chance if plan.slices else None)
        if plan.pace:
            await asyncio.sleep(plan.pace)
    if plan.ending == "silence":
        await asyncio.Event().wait()
    if plan.ending == "cut":
        whole = _framed({"choices": [{"index": 0, "delta": {"content": " never"}}]})
        writer.write(whole[: chance.randint(0, len(whole) - 8)])
        with suppress(ConnectionError):
            await writer.drain()
        _finish(asked)
        if chance.random() < 0.5:
            writer.transport.abort()
        else:
            writer.close()
        return
    if plan.ending == "error":
        await _event(writer, {"error": {"message": f"{CANARY_PROVIDER} broke", "code": 500}})
    else:
        await _event(writer, {"choices": [{"index": 0, "delta": {}, "finish_reason": plan.ending}]})
        if plan.counting != "missing":
            await _event(writer, {"choices": [], "usage": _usage(plan, len(plan.chunks))})
    writer.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
    await writer.drain()
    _finish(asked)


def _finish(asked: Asked) -> None:
    asked.finished = True
    asked.ended_at = time.monotonic()


def _usage(plan: StreamPlan, chunks: int) -> dict[str, int]:
    completion = plan.hidden + plan.tokens[chunks]
    return {"prompt_tokens": plan.prompt_tokens, "completion_tokens": completion}


def _framed(value: object) -> bytes:
    data = b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(data), data)


async def _event(writer: asyncio.StreamWriter, value: object, cut: random.Random | None = None) -> None:
    framed = _framed(value)
    if cut is not None:
        place = cut.randrange(len(framed))
        writer.write(framed[:place])
        await writer.drain()
        await asyncio.sleep(0.001)
        framed = framed[place:]
    writer.write(framed)
    await writer.drain()


@asynccontextmanager
async def provider(seed: int) -> AsyncGenerator[Provider]:
    found = Provider(seed)
    server = await asyncio.start_server(found.serve, "127.0.0.1", 0)
    found.port = server.sockets[0].getsockname()[1]
    try:
        yield found
    finally:
        server.close()
        found.abort()
