"""How answers end in the chat page that nobody stopped: servers that go away, and what lies in between."""

import asyncio
import os
import signal

import pytest
from playwright.async_api import Page, expect

from live.conftest import Serve
from live.site import Site, answer, ask

GONE = {
    signal.SIGTERM: "The server ended this answer before it was complete: it was shut down",
    signal.SIGKILL: "The server was restarted, and the rest of this answer is lost.",
}


@pytest.mark.parametrize("how", GONE)
async def test_a_server_that_goes_away_is_not_the_reader_who_stopped(
    page: Page, site: Site, serve: Serve, how: signal.Signals
) -> None:
    await page.goto(f"{site.server.url}/#key={site.server.key}")
    await ask(page)
    await site.model.words.put("One ")
    await expect(answer(page)).to_contain_text("One")
    os.kill(site.server.pid, how)
    await asyncio.to_thread(site.server.process.wait, 20)
    if how == signal.SIGKILL:
        await expect(page.get_by_test_id("connection")).to_have_text("Reconnecting")
    context = serve(openai=site.upstream.base_url)
    server = await asyncio.to_thread(context.__enter__)
    try:
        site.wire.port = server.port
        await expect(answer(page)).to_contain_text(GONE[how], timeout=30_000)
        await expect(answer(page)).to_contain_text("One")
        await expect(page.get_by_role("main")).not_to_contain_text("Stopped")
        await expect(page.get_by_test_id("retry")).to_have_text("Ask again")
        await page.get_by_test_id("retry").click()
        await site.model.words.put("Two")
        await site.model.words.put(None)
        await expect(answer(page)).to_have_attribute("data-status", "done")
        await expect(answer(page)).to_contain_text("Two")
        await expect(page.get_by_test_id("message")).to_have_count(2)
    finally:
        await asyncio.to_thread(context.__exit__, None, None, None)


async def test_behind_a_proxy_that_buffers_the_page_says_so_while_one_waits(page: Page, site: Site) -> None:
    await page.goto(f"{site.server.url}/#key={site.server.key}")
    await expect(page.get_by_test_id("model")).to_have_value("first")
    site.wire.buffer()
    await ask(page)
    notice = page.get_by_test_id("held-back")
    for _ in range(3):
        await site.model.words.put("word ")
    await expect(notice).to_contain_text("nothing of it comes through", timeout=20_000)
    await expect(answer(page)).to_have_attribute("data-status", "streaming")
    await site.model.words.put(None)
    site.wire.flow()
    await expect(answer(page)).to_have_attribute("data-status", "done")
    await expect(answer(page)).to_contain_text("word word word")
    await expect(notice).to_contain_text("came all at once")
    assert len([r for r in site.upstream.requests if r.path.endswith("completions")]) == 1
    assert site.complaints == []


async def test_a_tool_call_is_answered_by_hand(page: Page, site: Site) -> None:
    await page.goto(f"{site.server.url}/#key={site.server.key}")
    await ask(page, "How is the weather?")
    function = {"name": "weather", "arguments": '{"city":"Bonn"}'}
    await site.model.words.put(
        {"tool_calls": [{"index": 0, "id": "call_1", "type": "function"} | {"function": function}]}
    )
    await site.model.words.put(None)
    await expect(answer(page)).to_have_attribute("data-status", "done")
    await expect(page.get_by_test_id("tool-call")).to_contain_text('"city": "Bonn"')
    await page.get_by_test_id("tool-result").fill("Rain")
    await page.get_by_test_id("send-result").click()
    await site.model.words.put("Take an umbrella.")
    await site.model.words.put(None)
    await expect(answer(page)).to_contain_text("Take an umbrella.")
    await expect(answer(page)).to_have_attribute("data-status", "done")
    await expect(page.get_by_label("Tool result")).to_contain_text("Rain")
    await expect(page.get_by_test_id("tool-result")).to_have_count(0)
    said = site.model.request.json["messages"]
    assert [message["role"] for message in said] == ["user", "assistant", "tool"]
    assert said[2] == {"role": "tool", "tool_call_id": "call_1", "content": "Rain"}
    assert site.complaints == []
