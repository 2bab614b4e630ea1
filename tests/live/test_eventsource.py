"""The browser's own EventSource, in a real Chromium, with nothing but the URL that a start gives."""

import asyncio
import time
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from playwright.async_api import expect

from live.browser import chromium
from live.test_workers import Provider, fleet

WORDS = [f"word{i} " for i in range(100)]

# What everybody writes, and no more: the page keeps nothing, the browser reconnects by itself.
PAGE = """
(url) => new Promise((resolve) => {
  const seen = (window.seen = { text: "", ids: [], opened: 0, end: null, closed: false });
  const source = new EventSource(url);
  source.onopen = () => { seen.opened += 1; changed(); };
  source.onmessage = (event) => {
    if (event.data === "[DONE]") { return; }
    const data = JSON.parse(event.data);
    seen.ids.push(event.lastEventId);
    seen.text += data.delta ?? "";
    if (data.error || data.finish_reason) { seen.end = data; }
    changed();
  };
  source.onerror = () => { seen.closed = source.readyState === EventSource.CLOSED; changed(); };
  resolve();
})
"""


@asynccontextmanager
async def browsing(tmp_path, redis_url, pace=0.05):
    provider = Provider(WORDS, pace=pace)
    async with fleet(tmp_path, provider, 2, redis_url=redis_url) as it, chromium() as browser:
        page = await browser.new_page()
        page.changed = asyncio.Event()
        await page.expose_function("changed", page.changed.set)
        await page.goto(it.url)
        yield it, page


async def start(it, server, **more):
    body = it.body() | more
    headers = {"Authorization": f"Bearer {it.key}"}
    async with it.session.post(f"{server.url}/v1/streams", json=body, headers=headers) as answer:
        assert answer.status == 201
        return await answer.json()


async def seen(page, condition, seconds=40):
    async with asyncio.timeout(seconds):
        while True:
            page.changed.clear()
            if condition(found := await page.evaluate("window.seen")):
                return found
            await page.changed.wait()


async def test_it_survives_drops_and_a_worker_restart_and_stops_at_the_end(tmp_path, redis_url):
    async with browsing(tmp_path, redis_url) as (it, page):
        here, there = it.servers
        made = await start(it, here)
        await page.evaluate(PAGE, made["events_url"])
        await seen(page, lambda s: len(s["ids"]) > 10)
        it.proxy.restart()  # every connection is cut
        await seen(page, lambda s: s["opened"] >= 2 and len(s["ids"]) > 40)
        await asyncio.to_thread(there.terminate)  # wherever it was, there is one worker left
        found = await seen(page, lambda s: s["end"])
        assert found["text"] == "".join(WORDS)
        assert found["ids"] == [f"1-{i + 1}" for i in range(len(found["ids"]))]
        assert found["end"]["finish_reason"] == "stop"
        # It asks once more after the end, is told that nothing is left, and gives up.
        await seen(page, lambda s: s["closed"], 10)
        assert len(it.asked()) == 1
        assert len(await it.rows()) == 1


@pytest.mark.parametrize("says", [True, False])
async def test_a_closed_tab_stops_the_provider_at_once_or_after_the_grace(tmp_path, redis_url, says):
    async with browsing(tmp_path, redis_url) as (it, page):
        here, _ = it.servers
        made = await start(it, here, on_disconnect={"grace_seconds": 1})
        await page.evaluate(PAGE, made["events_url"])
        if says:
            listen = "(url) => addEventListener('pagehide', () => navigator.sendBeacon(url))"
            await page.evaluate(listen, made["cancel_url"])
        await seen(page, lambda s: len(s["ids"]) > 10)
        (request,) = it.asked()
        closed_at = time.monotonic()
        await page.close(run_before_unload=False)
        async with asyncio.timeout(10):
            await request.gone.wait()
        delay = request.closed_at - closed_at
        assert delay < 1 if says else 0.9 < delay < 4
        (row,) = (await it.rows()).values()
        assert row["status"] == "cancelled"


async def test_the_example_does_what_it_says(tmp_path, redis_url):
    example = Path(__file__).parents[2] / "examples" / "eventsource.html"
    async with browsing(tmp_path, redis_url) as (it, page):
        made = await start(it, it.servers[0])

        async def answer(route):
            if route.request.url.endswith("/start"):
                await route.fulfill(json=made)
            else:
                await route.fulfill(path=example, content_type="text/html")

        await page.route("**/start", answer)
        await page.route("**/example", answer)
        await page.goto(f"{it.url}/example")
        await expect(page.locator("#answer")).to_contain_text("word10")
        it.proxy.restart()
        await expect(page.locator("#answer")).to_contain_text("word60", timeout=20_000)
        await page.locator("#stop").click()
        await expect(page.locator("#state")).to_have_text("ended: cancelled")
        text = await page.locator("#answer").text_content()
        assert "".join(WORDS).startswith(text)
        await asyncio.wait_for(it.asked()[0].gone.wait(), 5)
