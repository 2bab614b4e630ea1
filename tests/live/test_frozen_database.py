"""A PostgreSQL that hangs: what is asked of the server then has an answer, and the server ends when it is told to."""

import asyncio
import json
import time
import urllib.error
import urllib.request

import pytest

from live.conftest import Serve
from services import postgres_server

DRAIN_SECONDS = 1


def status(url: str, key: str = "") -> tuple[int, float]:
    """The status of an answer, and how long it took."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"} if key else {})
    began = time.monotonic()
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return int(answer.status), time.monotonic() - began
    except urllib.error.HTTPError as error:
        return error.code, time.monotonic() - began


@pytest.mark.timeout(120)
async def test_a_frozen_database_stops_nobody_from_asking_or_from_stopping_the_server(
    serve: Serve,
) -> None:
    environment = {
        "MILLSTREAM_PROVIDERS": '{"scripted": {"type": "scripted"}}',
        "MILLSTREAM_DRAIN_SECONDS": str(DRAIN_SECONDS),
    }
    with postgres_server() as postgres:
        with serve(MILLSTREAM_DATABASE_URL=postgres.url, **environment) as server:
            body = json.dumps(
                {"model": "scripted/500x20", "messages": [{"role": "user", "content": "x"}]}
            ).encode()
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(
                f"POST /v1/chat/stream HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.key}\r\n"
                f"Content-Length: {len(body)}\r\n\r\n".encode()
                + body
            )
            await reader.readuntil(b'"delta":"stream')
            postgres.freeze()
            code, began = 200, time.monotonic()
            while code == 200 and time.monotonic() - began < 1.5:  # an answer is a second old at most
                code, seconds = await asyncio.to_thread(status, f"{server.url}/readyz")
                assert seconds < 3
            assert code == 503
            code, seconds = await asyncio.to_thread(status, f"{server.url}/v1/streams/str_x", server.key)
            assert code == 503
            assert seconds < 7
            await reader.readuntil(b'"delta":"')  # the stream goes on
            began = time.monotonic()
            await asyncio.to_thread(server.terminate, DRAIN_SECONDS + 14)
            assert time.monotonic() - began < DRAIN_SECONDS + 10.5
            writer.close()
