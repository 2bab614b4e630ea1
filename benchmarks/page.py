"""What the chat page costs its main thread, and how fast a stop or a closed tab reaches the provider.

    python benchmarks/page.py [SECONDS]

Starts a provider that says 500 tokens a second, a server and a Chromium; prints one line of JSON. A frame's
time goes from its start (as the browser tells it) until it is painted: what our script, React, layout and
paint took of it.
"""

import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from playwright.async_api import Browser

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from live.browser import chromium
from live.conftest import Server, running
from live.site import answer, ask
from oracle import Oracle, Request, oracle

TOKENS_PER_SECOND, TURNS = 500, 20
SENTENCE = "A stream is one answer in progress, with **one** owner and `positions` that only grow. "
WORDS = SENTENCE.split(" ")
CODE = "\n\n```py\nfor event in stream:\n    print(event)\n```\n\n"

WATCH = """
() => {
  const seen = (window.seen = { frames: [], long: 0 });
  new PerformanceObserver((list) => { seen.long += list.getEntries().length; }).observe({ type: "longtask" });
  const { port1, port2 } = new MessageChannel();
  port1.onmessage = ({ data }) => seen.frames.push(performance.now() - data);
  const frame = (start) => { port2.postMessage(start); requestAnimationFrame(frame); };
  requestAnimationFrame(frame);
}
"""


def tokens(count: int) -> Iterator[str]:
    for i in range(count):
        if i % 400 == 399:
            yield CODE
        else:
            end = "\n\n" if i % 80 == 79 else " "
            yield WORDS[i % len(WORDS)] + end


async def provider(request: Request, count: int) -> None:
    if request.path.endswith("/models"):
        await request.answer(200, {"data": [{"id": "m"}]})
        return
    await request.head()
    began = time.monotonic()
    for i, token in enumerate(tokens(count)):
        await request.say(token)
        if (ahead := began + i / TOKENS_PER_SECOND - time.monotonic()) > 0.004:
            await asyncio.sleep(ahead)
    await request.finish(usage={"prompt_tokens": 9, "completion_tokens": count})


def shown(values: list[float]) -> dict[str, float]:
    cut = statistics.quantiles(values, n=100)
    return {
        "p50": round(cut[49], 1),
        "p95": round(cut[94], 1),
        "p99": round(cut[98], 1),
        "max": round(max(values), 1),
    }


async def draw(browser: Browser, server: Server, seconds: int) -> dict[str, Any]:
    page = await browser.new_page()
    await page.goto(f"{server.url}/#key={server.key}")
    await page.evaluate(WATCH)
    await ask(page)
    done = page.locator('[data-role="assistant"][data-status="done"]')
    await done.wait_for(timeout=(seconds * 3 + 30) * 1000)
    seen = await page.evaluate("seen")
    length = await answer(page).evaluate("(element) => element.innerText.length")
    await page.close()
    return {
        "characters": length,
        "frames": len(seen["frames"]),
        "frame, ms": shown(seen["frames"]),
        "tasks over 50 ms": seen["long"],
    }


async def stop_after_reload(browser: Browser, server: Server, upstream: Oracle) -> dict[str, float]:
    page = await browser.new_page()
    await page.goto(f"{server.url}/#key={server.key}")
    took: list[float] = []
    for _ in range(TURNS):
        await ask(page)
        await answer(page).locator("p").first.wait_for()
        await page.reload()
        await answer(page).locator("p").first.wait_for()
        stop = page.get_by_test_id("stop")
        await stop.evaluate("(button) => button.addEventListener('click', () => (window.at = Date.now()))")
        request = upstream.requests[-1]
        offset = time.time() - time.monotonic()
        await stop.click()
        await request.gone.wait()
        assert request.closed_at is not None
        took.append((request.closed_at + offset) * 1000 - await page.evaluate("at"))
        await page.get_by_test_id("send").wait_for()
    await page.close()
    return shown(took)


async def close_with_beacon(browser: Browser, server: Server, upstream: Oracle) -> dict[str, float]:
    took: list[float] = []
    for _ in range(TURNS):
        page = await browser.new_page()
        await page.goto(server.url)
        made = await page.request.post(
            f"{server.url}/v1/streams",
            headers={"Authorization": f"Bearer {server.key}"},
            data={"messages": [{"role": "user", "content": "x"}]},
        )
        urls = await made.json()
        await page.evaluate(
            """({ events_url, cancel_url }) => new Promise((resolve) => {
              new EventSource(events_url).onmessage = () => resolve();
              addEventListener("pagehide", () => navigator.sendBeacon(cancel_url));
            })""",
            urls,
        )
        request = upstream.requests[-1]
        began = time.monotonic()
        await page.close()
        await request.gone.wait()
        assert request.closed_at is not None
        took.append((request.closed_at - began) * 1000)
    return shown(took)


async def main(seconds: int) -> None:
    async def answering(request: Request) -> None:
        await provider(request, seconds * TOKENS_PER_SECOND)

    with tempfile.TemporaryDirectory() as name:
        async with oracle(answering) as upstream, chromium() as browser:
            context = running(Path(name), OPENAI_BASE_URL=upstream.base_url, OPENAI_API_KEY="x")
            server = await asyncio.to_thread(context.__enter__)
            try:
                drawn = await draw(browser, server, seconds)
                stopped = await stop_after_reload(browser, server, upstream)
                closed = await close_with_beacon(browser, server, upstream)
            finally:
                await asyncio.to_thread(context.__exit__, None, None, None)
    figures = {
        f"{seconds * TOKENS_PER_SECOND} tokens at {TOKENS_PER_SECOND}/s": drawn,
        "stop after a reload to the provider's socket, ms": stopped,
        "tab closed with a beacon to the provider's socket, ms": closed,
    }
    print(json.dumps(figures, indent=1))


asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 40))
