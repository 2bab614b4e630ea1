"""What another worker adds: the delay of an event read there, and of a cancel asked for there.

    python benchmarks/elsewhere.py

Starts a provider, a Redis and two workers; prints one line of JSON. The provider writes the time into each
event.
"""

import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import aiohttp

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from live.conftest import Server, running
from oracle import Oracle, Request, oracle
from services import redis_server

EVENTS, PACE, CANCELS = 400, 0.02, 100
BODY = {"model": "m", "messages": [{"role": "user", "content": "x"}], "on_disconnect": {"grace_seconds": 9}}


async def provider(request: Request) -> None:
    if request.path.endswith("/models"):
        await request.answer(200, {"data": [{"id": "m"}]})
        return
    await request.head()
    for _ in range(EVENTS):
        await request.say(f"{time.monotonic_ns()} ")
        await asyncio.sleep(PACE)
    await request.finish()


async def delays(response: aiohttp.ClientResponse) -> list[float]:
    return [
        (time.monotonic_ns() - int(json.loads(line[6:])["delta"])) / 1e6
        async for line in response.content
        if line.startswith(b'data: {"delta":"') and line[16:17].isdigit()
    ]


def shown(values: list[float]) -> dict[str, float]:
    cut = statistics.quantiles(values, n=100)
    return {"p50": round(cut[49], 2), "p99": round(cut[98], 2), "max": round(max(values), 2)}


async def measure(
    here: Server, there: Server, session: aiohttp.ClientSession, upstream: Oracle
) -> dict[str, dict[str, float]]:
    headers = {"Authorization": f"Bearer {here.key}"}
    async with session.post(f"{here.url}/v1/chat/stream", json=BODY, headers=headers) as first:
        url = f"{there.url}/v1/streams/{first.headers['X-Stream-Id']}/events"
        async with session.get(url, headers=headers) as second:
            owner, elsewhere = await asyncio.gather(delays(first), delays(second))
    cancels = []
    for _ in range(CANCELS):
        async with session.post(f"{here.url}/v1/chat/stream", json=BODY, headers=headers) as response:
            request = upstream.requests[-1]
            url = f"{there.url}/v1/streams/{response.headers['X-Stream-Id']}/cancel"
            began = time.monotonic()
            async with session.post(url, headers=headers):
                await request.gone.wait()
            assert request.closed_at is not None
            cancels.append((request.closed_at - began) * 1000)
    return {
        "event, ms, own worker": shown(owner[20:]),
        "event, ms, another worker": shown(elsewhere[20:]),
        "cancel from another worker to the provider's socket, ms": shown(cancels),
    }


async def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with redis_server(folder / "redis.sock"):
            async with oracle(provider) as upstream, aiohttp.ClientSession() as session:
                environment = {
                    "MILLSTREAM_JOURNAL_URL": f"unix://{folder / 'redis.sock'}",
                    "OPENAI_BASE_URL": upstream.base_url,
                    "OPENAI_API_KEY": "x",
                }
                contexts = [running(folder / "server", **environment) for _ in range(2)]
                here, there = [await asyncio.to_thread(context.__enter__) for context in contexts]
                try:
                    print(json.dumps(await measure(here, there, session, upstream)))
                finally:
                    for context in contexts:
                        await asyncio.to_thread(context.__exit__, None, None, None)


asyncio.run(main())
