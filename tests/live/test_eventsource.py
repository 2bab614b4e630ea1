"""The browser's own EventSource, in a real Chromium, with nothing but the URL that a start gives."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from playwright.async_api import Page, Route, expect

from live.browser import chromium
from live.conftest import Server
from live.test_workers import Fleet, Provider, fleet

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


# What the page has seen, as its script notes it.
Seen: TypeAlias = dict[str, Any]


class Tab:
    """A page, and what it has seen."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.changed = asyncio.Event()

    async def seen(self, condition: Callable[[Seen], object], seconds: float = 40) -> Seen:
        """Waits until ``condition`` holds for what the page has seen."""
        async with asyncio.timeout(seconds):
            while True:
                self.changed.clear()
                found: Seen = await self.page.evaluate("window.seen")
                if condition(found):
                    return found
                await self.changed.wait()


@asynccontextmanager
async def browsing(tmp_path: Path, redis_url: str, pace: float = 0.05) -> AsyncGenerator[tuple[Fleet, Tab]]:
    provider = Provider(WORDS, pace=pace)
    async with fleet(tmp_path, provider, 2, redis_url=redis_url) as it, chromium() as browser:
        page = await browser.new_page()
        tab = Tab(page)
        await page.expose_function("changed", tab.changed.set)
        await page.goto(it.url)
        yield it, tab


async def start(it: Fleet, server: Server, **more: object) -> dict[str, Any]:
    body = it.body() | more
    headers = {"Authorization": f"Bearer {it.key}"}
    async with it.session.post(f"{server.url}/v1/streams", json=body, headers=headers) as answer:
        assert answer.status == 201
        made: dict[str, Any] = await answer.json()
        return made


async def test_it_survives_drops_and_a_worker_restart_and_stops_at_the_end(
    tmp_path: Path, redis_url: str
) -> None:
    async with browsing(tmp_path, redis_url) as (it, tab):
        here, there = it.servers
        made = await start(it, here)
        await tab.page.evaluate(PAGE, made["events_url"])
        await tab.seen(lambda s: len(s["ids"]) > 10)
        it.proxy.restart()  # every connection is cut
        await tab.seen(lambda s: s["opened"] >= 2 and len(s["ids"]) > 40)
        await asyncio.to_thread(there.terminate)  # wherever it was, there is one worker left
        found = await tab.seen(lambda s: s["end"])
        assert found["text"] == "".join(WORDS)
        positions, proofs = zip(*(sent_id.split(".") for sent_id in found["ids"]), strict=True)
        assert list(positions) == [f"1-{i + 1}" for i in range(len(positions))]
        assert len(set(proofs)) == 1
        assert found["end"]["finish_reason"] == "stop"
        # It asks once more after the end, is told that nothing is left, and gives up.
        await tab.seen(lambda s: s["closed"], 10)
        assert len(it.asked()) == 1
        assert len(await it.rows()) == 1


@pytest.mark.parametrize("says", [True, False])
async def test_a_closed_tab_stops_the_provider_at_once_or_after_the_grace(
    tmp_path: Path, redis_url: str, says: bool
) -> None:
    async with browsing(tmp_path, redis_url) as (it, tab):
        here, _ = it.servers
        # Without the page's call the stream would go on for longer than is waited for here.
        made = await start(it, here, on_disconnect={"grace_seconds": 60 if says else 1})
        await tab.page.evaluate(PAGE, made["events_url"])
        if says:
            listen = "(url) => addEventListener('pagehide', () => navigator.sendBeacon(url))"
            await tab.page.evaluate(listen, made["cancel_url"])
        await tab.seen(lambda s: len(s["ids"]) > 10)
        (request,) = it.asked()
        closed_at = time.monotonic()
        await tab.page.close(run_before_unload=False)
        async with asyncio.timeout(10):
            await request.gone.wait()
        assert request.closed_at is not None
        assert says or request.closed_at - closed_at > 0.9
        (row,) = (await it.rows()).values()
        assert row["status"] == "cancelled"


async def test_the_example_does_what_it_says(tmp_path: Path, redis_url: str) -> None:
    example = Path(__file__).parents[2] / "examples" / "eventsource.html"
    async with browsing(tmp_path, redis_url) as (it, tab):
        made = await start(it, it.servers[0])

        async def answer(route: Route) -> None:
            if route.request.url.endswith("/start"):
                await route.fulfill(json=made)
            else:
                await route.fulfill(path=example, content_type="text/html")

        await tab.page.route("**/start", answer)
        await tab.page.route("**/example", answer)
        await tab.page.goto(f"{it.url}/example")
        await expect(tab.page.locator("#answer")).to_contain_text("word10")
        it.proxy.restart()
        await expect(tab.page.locator("#answer")).to_contain_text("word60", timeout=20_000)
        await tab.page.locator("#stop").click()
        await expect(tab.page.locator("#state")).to_have_text("ended: cancelled")
        text = await tab.page.locator("#answer").text_content()
        assert text is not None
        assert "".join(WORDS).startswith(text)
        await asyncio.wait_for(it.asked()[0].gone.wait(), 5)
