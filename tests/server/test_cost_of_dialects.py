"""What an event costs in each format, from its provider to the client's socket."""

import asyncio
import gc
import json
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import pytest
from starlette.types import Message

from application import Run, Running
from dialect_streams import BODIES
from millstream.events import TextDelta
from millstream.prompt import Prompt
from millstream.providers import Finish, Produced

EVENTS = 3000
PATHS = {
    "millstream": "/v1/chat/stream",
    "openai": "/v1/chat/completions",
    "anthropic": "/v1/messages",
    "responses": "/v1/responses",
    "ai-sdk": "/api/chat",
    "ag-ui": "/ag-ui",
}


class Fast:
    """A provider whose every word is a batch of its own, as where a worker is busy all the time."""

    async def stream(self, prompt: Prompt, model: str) -> AsyncGenerator[Sequence[Produced]]:
        for _ in range(EVENTS):
            yield [TextDelta(" word")]
            await asyncio.sleep(0)
        yield [Finish("stop", None)]

    async def models(self) -> list[str]:
        return ["m"]

    async def close(self) -> None:
        pass


async def spent(running: Running, name: str) -> float:
    """The processor's seconds that an answer takes."""
    body, ended = json.dumps(BODIES[name] | {"model": "m"}).encode(), asyncio.Event()
    sent: list[int] = []

    async def receive() -> Message:
        if not sent:
            sent.append(0)
            return {"type": "http.request", "body": body, "more_body": False}
        await ended.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(len(message.get("body", b"")))

    headers = [(b"authorization", f"Bearer {running.key}".encode()), (b"content-type", b"application/json")]
    scope: dict[str, Any] = {"type": "http", "method": "POST", "path": PATHS[name], "headers": headers}
    scope |= {"raw_path": PATHS[name].encode(), "query_string": b"", "root_path": "", "scheme": "http"}
    scope |= {"http_version": "1.1", "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80)}
    scope |= {"asgi": {"version": "3.0", "spec_version": "2.3"}}
    before = time.thread_time()
    await running.app(scope, receive, send)
    ended.set()
    assert len(sent) > EVENTS / 4
    return time.thread_time() - before


@pytest.mark.cost
async def test_no_format_costs_half_as_much_again_as_our_own(run: Run) -> None:
    async with run({"p": Fast()}) as running:
        least = dict.fromkeys(PATHS, float("inf"))
        for _ in range(5):
            for name in PATHS:
                gc.collect()
                least[name] = min(least[name], await spent(running, name))
        costs = {name: f"{seconds / EVENTS * 1e6:.1f} µs" for name, seconds in least.items()}
        assert max(least.values()) < 1.5 * least["millstream"], costs
