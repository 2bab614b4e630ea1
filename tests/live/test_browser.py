"""What a browser and its user do to an answer, in a real Chromium: reload, sleep, come back, close, open twice."""

import asyncio
import json
import random
import sqlite3
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page, Route, expect

from live.browser import Wire, chromium
from live.conftest import Serve
from live.site import answer, ask
from live.test_workers import Fleet, Provider, Rows, fleet
from oracle import oracle

CLIENT = Path(__file__).parents[2] / "clients" / "ts" / "dist" / "millstream.js"
WORDS = [f"word{i} " for i in range(100)]
TEXT = "".join(WORDS)

# A page with the client and nothing else, at the server's own origin.
LAB = "<!doctype html><title>lab</title><link rel=icon href='data:,'>"
CHATS = """
async ([key, from, to, atOnce]) => {
  const { Chat, textOf } = await import("/lab/millstream.js");
  const found = [];
  async function one(i) {
    const chat = new Chat({ getToken: () => key, request: { model: "m" }, throttleMs: 0 });
    await chat.send(`chat ${i}`);
    const last = chat.getSnapshot().messages.at(-1);
    found[i] = { text: textOf(last), status: last.status, streamId: last.streamId };
  }
  let next = from;
  const lane = async () => { while (next < to) await one(next++); };
  await Promise.all(Array.from({ length: atOnce }, lane));
  return found.slice(from);
}
"""


async def open_lab(page: Page, url: str) -> None:
    async def give(route: Route) -> None:
        if route.request.url.endswith(".js"):
            await route.fulfill(path=CLIENT, content_type="text/javascript")
        else:
            await route.fulfill(body=LAB, content_type="text/html")

    await page.route("**/lab/**", give)
    await page.goto(f"{url}/lab/")


def rows_of(folder: Path) -> Rows:
    with sqlite3.connect(folder / "server" / "millstream-data" / "millstream.db") as connection:
        connection.row_factory = sqlite3.Row
        return {row["id"]: dict(row) for row in connection.execute("select * from streams")}


async def break_wire(wire: Wire, chance: random.Random) -> int:
    """One connection after the other goes away, at any byte. How many have, once it is told to stop."""
    broken = 0
    try:
        while True:
            await asyncio.sleep(chance.uniform(0.02, 0.12))
            if ends := sorted(wire.ends, key=id):
                chance.choice(ends).transport.abort()
                broken += 1
    except asyncio.CancelledError:
        return broken


@pytest.mark.parametrize("count", [30, pytest.param(200, marks=pytest.mark.faults)])
@pytest.mark.timeout(600)
async def test_chats_are_whole_over_connections_that_break(serve: Serve, tmp_path: Path, count: int) -> None:
    """spec/faults.md: R1, C12, I3, with the real client in a real browser."""
    words = WORDS[:40]
    async with oracle(Provider(words, pace=0.02)) as upstream, chromium() as browser:
        context = serve(openai=upstream.base_url)
        server = await asyncio.to_thread(context.__enter__)
        wire = Wire(server.port)
        url = await wire.start()
        page = await browser.new_page()
        await open_lab(page, url)
        breaking = asyncio.create_task(break_wire(wire, random.Random(count)))
        try:
            chats = await page.evaluate(CHATS, [server.key, 0, count, 5])
        finally:
            breaking.cancel()
            assert await breaking > count
            await wire.stop()
            await asyncio.to_thread(context.__exit__, None, None, None)
        assert [chat["text"] for chat in chats] == ["".join(words)] * count
        assert {chat["status"] for chat in chats} == {"done"}
        asked = [json.loads(r.body)["messages"][0]["content"] for r in upstream.requests if r.body]
        assert sorted(asked) == sorted(f"chat {i}" for i in range(count))
        rows = rows_of(tmp_path)
        assert set(rows) == {chat["streamId"] for chat in chats}
        assert {row["status"] for row in rows.values()} == {"completed"}


async def reload(page: Page, it: Fleet) -> None:
    await page.reload()


async def restart(page: Page, it: Fleet) -> None:
    it.proxy.restart()  # every connection is cut
    await asyncio.to_thread(it.servers[1].terminate)


async def away_and_back(page: Page, it: Fleet) -> None:
    await page.evaluate("window.kept = true")
    await page.goto("about:blank")
    await page.go_back(wait_until="commit")
    await page.wait_for_function("window.kept")  # the browser had kept it


@pytest.mark.parametrize("happens", [reload, restart, away_and_back])
async def test_an_answer_is_completed_whatever_happens_to_its_page(
    tmp_path: Path, redis_url: str, happens: Callable[[Page, Fleet], Coroutine[Any, Any, None]]
) -> None:
    # With the browser's cache of pages that were left, which the test tool switches off.
    options = {"ignore_default_args": ["--disable-back-forward-cache"]}
    provider = Provider(WORDS, pace=0.05)
    async with fleet(tmp_path, provider, 2, redis_url=redis_url) as it, chromium(**options) as browser:
        page = await browser.new_page()
        await page.goto(f"{it.url}/#key={it.key}")
        await ask(page)
        await expect(answer(page)).to_contain_text("word30")
        await happens(page, it)
        await expect(answer(page)).to_have_attribute("data-status", "done", timeout=30_000)
        shown = await answer(page).locator(".markdown").inner_text()
        assert shown.strip() == TEXT.strip()
        assert len(it.asked()) == 1
        (row,) = (await it.rows()).values()
        assert row["status"] == "completed"


async def test_a_second_tab_shows_the_same_answer(tmp_path: Path, redis_url: str) -> None:
    async with (
        fleet(tmp_path, Provider(WORDS, pace=0.05), 2, redis_url=redis_url) as it,
        chromium() as browser,
    ):
        page = await browser.new_page()
        await page.goto(f"{it.url}/#key={it.key}")
        await ask(page)
        await expect(answer(page)).to_contain_text("word10")
        async with page.expect_popup() as opened:
            await page.evaluate("window.open(location.href)")
        second = await opened.value
        for tab in (page, second):
            await expect(answer(tab)).to_have_attribute("data-status", "done", timeout=30_000)
            shown = await answer(tab).locator(".markdown").inner_text()
            assert shown.strip() == TEXT.strip()
        assert len(it.asked()) == len(await it.rows()) == 1


SHARED = """
async ([key, streamId]) => {
  const { Chat, textOf } = await import("/lab/millstream.js");
  const answer = { role: "assistant", id: "a", parts: [], status: "streaming", streamId };
  const messages = streamId ? [answer] : [];
  const chat = (window.chat = new Chat({
    getToken: () => key, request: { model: "m" }, shareTabs: true, messages,
  }));
  chat.attach();
  if (!streamId) void chat.send("Why?");
  await new Promise((resolve) => {
    const look = () => { if (textOf(chat.getSnapshot().messages.at(-1)).includes("word5 ")) resolve(); };
    chat.subscribe(look);
  });
  return chat.getSnapshot().messages.at(-1).streamId;
}
"""


async def test_tabs_share_a_connection_and_the_next_one_goes_on(tmp_path: Path, redis_url: str) -> None:
    async with (
        fleet(tmp_path, Provider(WORDS, pace=0.05), 2, redis_url=redis_url) as it,
        chromium() as browser,
    ):
        context = await browser.new_context()
        tabs = [await context.new_page() for _ in range(3)]
        asked: list[str] = []
        for tab in tabs:
            tab.on("request", lambda r: asked.append(r.url) if "/v1/" in r.url else None)
            await open_lab(tab, it.url)
        stream_id = await tabs[0].evaluate(SHARED, [it.key, None])
        for tab in tabs[1:]:
            await tab.evaluate(SHARED, [it.key, stream_id])
        assert len(asked) == 1
        await tabs[0].close()
        for tab in tabs[1:]:
            await tab.wait_for_function("chat.getSnapshot().status === 'idle'", timeout=30_000)
            parts = await tab.evaluate("chat.getSnapshot().messages.at(-1).parts")
            assert parts == [{"type": "text", "text": TEXT}]
        assert len(asked) == 2
        assert len(it.asked()) == len(await it.rows()) == 1


START = """
async ([key, onLeave]) => {
  const { Chat, textOf } = await import("/lab/millstream.js");
  const chat = (window.chat = new Chat({ getToken: () => key, request: { model: "m" }, onLeave }));
  chat.attach();
  void chat.send("Why?");
  await new Promise((resolve) => {
    const look = () => { if (textOf(chat.getSnapshot().messages.at(-1)).includes("word5 ")) resolve(); };
    chat.subscribe(look);
  });
}
"""


@pytest.mark.parametrize(
    ("on_leave", "status"),
    [("cancel", "cancelled"), ({"graceSeconds": 1}, "cancelled"), ("continue", "completed")],
)
async def test_closing_the_tab_means_what_the_application_chose(
    tmp_path: Path, redis_url: str, on_leave: object, status: str
) -> None:
    async with (
        fleet(tmp_path, Provider(WORDS, pace=0.02), 2, redis_url=redis_url) as it,
        chromium() as browser,
    ):
        page = await browser.new_page()
        await open_lab(page, it.url)
        await page.evaluate(START, [it.key, on_leave])
        (request,) = it.asked()
        await page.close()
        (row,) = (await it.rows()).values()
        assert row["status"] == status
        assert (len(request.sent) == len(WORDS)) == (status == "completed")


@pytest.mark.parametrize("seconds", [3, pytest.param(60, marks=pytest.mark.faults)])
async def test_a_page_that_stood_still_in_the_background_goes_on(
    tmp_path: Path, redis_url: str, seconds: int
) -> None:
    """As on a phone: neither timers nor connections survive, and the answer is longer than that."""
    words = [f"word{i} " for i in range(20 * seconds + 60)]
    async with (
        fleet(tmp_path, Provider(words, pace=0.05), 2, redis_url=redis_url) as it,
        chromium() as browser,
    ):
        page = await browser.new_page()
        await open_lab(page, it.url)
        await page.evaluate(START, [it.key, {"graceSeconds": 120}])
        session = await page.context.new_cdp_session(page)
        await session.send("Page.setWebLifecycleState", {"state": "frozen"})
        it.proxy.restart()
        await asyncio.sleep(seconds)
        await session.send("Page.setWebLifecycleState", {"state": "active"})
        await page.wait_for_function("chat.getSnapshot().status === 'idle'", timeout=30_000)
        parts = await page.evaluate("chat.getSnapshot().messages.at(-1).parts")
        assert parts == [{"type": "text", "text": "".join(words)}]
        assert len(it.asked()) == 1
        (row,) = (await it.rows()).values()
        assert row["status"] == "completed"
