"""Long answers to readers of every pace: each gets every word, once and in order, and nobody waits for another.

Words reach a reader who keeps up in the turn that reads them from the provider, and one who does not from the
journal: whoever changes between the two must not notice.
"""

import asyncio
import json
from contextlib import suppress
from typing import Any

import psutil
import pytest

from live.conftest import Ask, Serve, Server
from oracle import Request, oracle

_MOST_EVENTS_AT_ONCE = 50


def body(model: str) -> bytes:
    value: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": "Count"}]}
    return json.dumps(value | {"on_disconnect": "continue"}).encode()


async def numbers(reader: asyncio.StreamReader, *, pace: str, said: asyncio.Event) -> list[int]:
    """The numbers that a reader gets, at ``pace``; its last frame has to be a good end. One that stalls reads
    nothing until all of it is ``said``.
    """
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    received = bytearray()
    if pace == "stalls":
        await said.wait()
    while data := await reader.read(512 if pace == "drips" else 1 << 16):
        received += data
        if pace == "drips" and len(received) < 200_000:
            await asyncio.sleep(0)
        if received.endswith(b"0\r\n\r\n"):
            break
    text = unchunked(bytes(received))
    frames = [json.loads(line[6:]) for line in text.split(b"\n") if line.startswith(b"data: {")]
    assert frames[-1]["finish_reason"] == "stop"
    return [int(n) for n in "".join(frame.get("delta") or "" for frame in frames).split()]


def unchunked(data: bytes) -> bytes:
    parts: list[bytes] = []
    at = 0
    while True:
        end = data.index(b"\r\n", at)
        size = int(data[at:end], 16)
        if size == 0:
            return b"".join(parts)
        parts.append(data[end + 2 : end + 2 + size])
        at = end + 4 + size


async def soak(serve: Serve, ask: Ask, words: int, streams: int) -> None:
    said, left = asyncio.Event(), 3 * streams

    async def count(request: Request) -> None:
        """All words, a few at a time or many, as providers send them."""
        nonlocal left
        if request.path.endswith("/models"):
            return await request.answer(200, {"data": [{"id": "m"}]})
        await request.head()
        number = 0
        while number < words:
            many = 1 + number % _MOST_EVENTS_AT_ONCE
            events = b"".join(
                b'data: {"choices":[{"index":0,"delta":{"content":"%d "}}]}\n\n' % n
                for n in range(number, min(number + many, words))
            )
            await request.chunk(events)
            number += many
            await asyncio.sleep(0)
        left -= 1
        if not left:
            said.set()
        with suppress(ConnectionError):  # behind the last word it may be let go
            await request.finish(usage={"prompt_tokens": 1, "completion_tokens": words})

    async with oracle(count) as provider:
        with serve(openai=provider.base_url) as server:
            key = {"Authorization": f"Bearer {server.key}"}

            async def follow(pace: str) -> list[int]:
                reader, writer = await ask(server.port, "POST", "/v1/chat/stream", body("m"), **key)
                try:
                    return await numbers(reader, pace=pace, said=said)
                finally:
                    writer.close()

            paces = ["reads", "stalls", "drips"] * streams
            found = await asyncio.gather(*(follow(pace) for pace in paces))
            assert all(numbers == list(range(words)) for numbers in found)
            assert memory(server) < 900 << 20


def memory(server: Server) -> int:
    size: int = psutil.Process(server.pid).memory_info().rss
    return size


async def test_readers_of_every_pace_get_every_word(serve: Serve, ask: Ask) -> None:
    await soak(serve, ask, words=5_000, streams=3)


@pytest.mark.faults
@pytest.mark.timeout(900)
async def test_200000_words_behind_a_reader_that_stalls(serve: Serve, ask: Ask) -> None:
    await soak(serve, ask, words=200_000, streams=4)
