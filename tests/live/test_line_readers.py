"""Clients that read an answer by lines, as most people's first program does."""

import asyncio
import codecs
import http.client
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing

import pytest

from live.conftest import Serve, Server
from live.test_workers import Provider
from oracle import oracle

WORDS = [f"wörd{i}\u2028\u0085😀 " for i in range(50)]
BODY = {"messages": [{"role": "user", "content": "x"}], "on_disconnect": {"grace_seconds": 30}}


def by_unicode(chunks: Iterable[bytes]) -> Iterator[str]:
    """Lines as ``iter_lines`` of httpx and of requests cut them."""
    decode = codecs.getincrementaldecoder("utf-8")().decode
    buffer = ""
    for chunk in chunks:
        *lines, buffer = (buffer + decode(chunk)).splitlines(keepends=True) or [""]
        if buffer.endswith("\n"):
            lines, buffer = [*lines, buffer], ""
        yield from (line[:-1] for line in lines)


def by_line_feeds(chunks: Iterable[bytes]) -> Iterator[str]:
    buffer = b""
    for chunk in chunks:
        *lines, buffer = (buffer + chunk).split(b"\n")
        yield from (line.decode() for line in lines)


def ask(server: Server, headers: dict[str, str]) -> Iterator[bytes]:
    """An answer as it comes."""
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)) as connection:
        connection.request("POST", "/v1/chat/stream", json.dumps(BODY), headers)
        response = connection.getresponse()
        assert response.status == 200
        while chunk := response.read1(50):
            yield chunk


def read(lines: Iterable[str], most: int) -> tuple[list[str], str]:
    """The pieces of text and the last id of ``lines``, up to ``most`` frames."""
    pieces, last = [], ""
    for line in lines:
        if line.startswith("id: "):
            last = line[4:]
        elif line.startswith("data: {"):
            pieces.append(json.loads(line[6:])["delta"])
            if len(pieces) == most:
                break
    return pieces, last


@pytest.mark.parametrize("lines", [by_unicode, by_line_feeds])
async def test_an_answer_is_whole_read_by_lines_and_gone_on_with_by_a_repeated_post(
    serve: Serve, lines: Callable[[Iterable[bytes]], Iterator[str]]
) -> None:
    """spec/faults.md: C32 and C33."""
    async with oracle(Provider(WORDS, pace=0.01)) as upstream:
        context = serve(openai=upstream.base_url)
        server = await asyncio.to_thread(context.__enter__)
        try:
            headers = {"Authorization": f"Bearer {server.key}", "Idempotency-Key": "k"}
            first, last = await asyncio.to_thread(lambda: read(lines(ask(server, headers)), 20))
            headers["Last-Event-ID"] = last
            rest, _ = await asyncio.to_thread(lambda: read(lines(ask(server, headers)), 1000))
        finally:
            await asyncio.to_thread(context.__exit__, None, None, None)
    assert len(first) == 20
    assert "".join(first + rest) == "".join(WORDS)
    assert len([request for request in upstream.requests if request.path.endswith("completions")]) == 1
