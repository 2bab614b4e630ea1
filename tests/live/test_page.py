"""The chat page in a real Chromium."""

import asyncio
import re

import pytest
from playwright.async_api import async_playwright, expect

from oracle import oracle
from services import needed

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
MARKUP = "<img src=x onerror=alert(1)> <b>bold</b> & more"


class Model:
    """A provider that says a word whenever the test lets it."""

    def __init__(self):
        self.words = asyncio.Queue()
        self.request = None

    async def __call__(self, request):
        if request.path.endswith("/models"):
            return await request.answer(200, {"data": [{"id": "first"}, {"id": "second"}]})
        self.request = request
        await request.head()
        while (word := await self.words.get()) is not None:
            await request.say(word)
        await request.finish(usage={"prompt_tokens": 5, "completion_tokens": 3})


@pytest.fixture
async def page(serve):
    model = Model()
    async with oracle(model) as upstream, async_playwright() as playwright:
        context = serve(openai=upstream.base_url)
        server = await asyncio.to_thread(context.__enter__)
        browser = await playwright.chromium.launch(executable_path=needed("chromium"), args=FLAGS)
        try:
            page = await browser.new_page()
            page.complaints = []
            page.on("pageerror", lambda error: page.complaints.append(str(error)))
            page.on("console", lambda m: page.complaints.append(m.text) if m.type == "error" else None)
            page.server, page.model = server, model
            yield page
        finally:
            await browser.close()
            await asyncio.to_thread(context.__exit__, None, None, None)


async def ask(page, text="Hello"):
    await page.get_by_test_id("input").fill(text)
    await page.get_by_test_id("send").click()


def answer(page):
    return page.get_by_test_id("message").and_(page.locator('[data-role="assistant"]')).last


async def test_text_arrives_in_pieces_as_text_with_its_usage(page):
    await page.goto(f"{page.server.url}/#key={page.server.key}")
    await expect(page.get_by_test_id("model")).to_have_value("first")
    assert "key" not in page.url
    await page.get_by_test_id("model").select_option("second")
    await ask(page)
    for i, word in enumerate(["One ", "two ", MARKUP]):
        await page.model.words.put(word)
        await expect(answer(page)).to_contain_text(word.strip())
        await expect(answer(page)).to_have_attribute("data-status", "streaming")
        if i == 0:
            await expect(answer(page)).not_to_contain_text("two")
    await page.model.words.put(None)
    await expect(answer(page)).to_have_attribute("data-status", "done")
    await expect(page.get_by_test_id("usage").last).to_contain_text("5")
    assert page.model.request.json["model"] == "second"
    assert await page.locator("img").count() == 0
    assert page.complaints == []
    # The conversation goes on.
    await ask(page, "And then?")
    await page.model.words.put("Three")
    await page.model.words.put(None)
    await expect(answer(page)).to_have_attribute("data-status", "done")
    assert [m["role"] for m in page.model.request.json["messages"]] == ["user", "assistant", "user"]


async def test_the_stop_button_reaches_the_provider_and_keeps_the_text(page):
    await page.goto(f"{page.server.url}/#key={page.server.key}")
    await ask(page)
    await page.model.words.put("One ")
    await expect(answer(page)).to_contain_text("One")
    await page.get_by_test_id("stop").click()
    async with asyncio.timeout(2):
        await page.model.request.gone.wait()
    await expect(answer(page)).to_have_attribute("data-status", "stopped")
    await expect(answer(page)).to_contain_text("One")


async def test_stop_before_the_first_word_reaches_the_provider(page):
    await page.goto(f"{page.server.url}/#key={page.server.key}")
    await ask(page)
    async with asyncio.timeout(5):
        while page.model.request is None:
            await asyncio.sleep(0.01)
    await page.get_by_test_id("stop").click()
    async with asyncio.timeout(2):
        await page.model.request.gone.wait()


async def test_closing_the_tab_reaches_the_provider(page):
    await page.goto(f"{page.server.url}/#key={page.server.key}")
    await ask(page)
    await page.model.words.put("One ")
    await expect(answer(page)).to_contain_text("One")
    await page.close()
    async with asyncio.timeout(2):
        await page.model.request.gone.wait()


async def test_a_failure_is_shown_with_its_code_and_the_text_stays(page):
    await page.goto(f"{page.server.url}/#key={page.server.key}")
    await ask(page)
    await page.model.words.put("One ")
    await expect(answer(page)).to_contain_text("One")
    page.model.request.cut(reset=True)
    await expect(page.get_by_test_id("error")).to_contain_text("upstream_error")
    await expect(answer(page)).to_have_attribute("data-status", "failed")
    await expect(answer(page)).to_contain_text("One")


async def test_a_wrong_key_is_asked_for_again_and_a_reload_keeps_a_right_one(page):
    await page.goto(f"{page.server.url}/#key=ms_live_wrong")
    await expect(page.get_by_test_id("key-form")).to_be_visible()
    await page.get_by_test_id("key-form").locator("input").fill(page.server.key)
    await page.get_by_test_id("key-form").locator("button").first.click()
    await expect(page.get_by_test_id("model")).to_have_value("first")
    await page.reload()
    await expect(page.get_by_test_id("input")).to_be_visible()


async def test_the_page_may_load_nothing_from_elsewhere(page):
    response = await page.goto(page.server.url)
    policy = response.headers["content-security-policy"]
    assert re.match(r"default-src 'none'; script-src 'self';", policy)
    assert "unsafe" not in policy
