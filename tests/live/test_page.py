"""The chat page in a real Chromium."""

import asyncio
import os
import re
from pathlib import Path
from typing import Literal

import pytest
from playwright.async_api import Page, expect

from live.site import Site, answer, ask

MARKUP = "<img src=x onerror=alert(1)> <b>bold</b> & more"


async def test_text_arrives_in_pieces_as_text_with_its_usage(page: Page, site: Site) -> None:
    await page.goto(f"{site.server.url}/#key={site.server.key}")
    await expect(page.get_by_test_id("model")).to_have_value("first")
    assert "key" not in page.url
    await page.get_by_test_id("model").select_option("second")
    await ask(page)
    for i, word in enumerate(["One ", "two ", MARKUP]):
        await site.model.words.put(word)
        await expect(answer(page)).to_contain_text(word.strip())
        await expect(answer(page)).to_have_attribute("data-status", "streaming")
        if i == 0:
            await expect(answer(page)).not_to_contain_text("two")
    await site.model.words.put(None)
    await expect(answer(page)).to_have_attribute("data-status", "done")
    await expect(page.get_by_test_id("usage").last).to_contain_text("5")
    assert site.model.request.json["model"] == "second"
    assert await page.locator("img").count() == 0
    assert site.complaints == []
    # The conversation goes on.
    await ask(page, "And then?")
    await site.model.words.put("Three")
    await site.model.words.put(None)
    await expect(answer(page)).to_have_attribute("data-status", "done")
    assert [m["role"] for m in site.model.request.json["messages"]] == ["user", "assistant", "user"]


async def test_the_stop_button_reaches_the_provider_and_keeps_the_text(page: Page, site: Site) -> None:
    await page.goto(f"{site.server.url}/#key={site.server.key}")
    await ask(page)
    await site.model.words.put("One ")
    await expect(answer(page)).to_contain_text("One")
    await page.get_by_test_id("stop").click()
    async with asyncio.timeout(2):
        await site.model.request.gone.wait()
    await expect(answer(page)).to_have_attribute("data-status", "stopped")
    await expect(answer(page)).to_contain_text("One")


async def test_stop_before_the_first_word_reaches_the_provider(page: Page, site: Site) -> None:
    await page.goto(f"{site.server.url}/#key={site.server.key}")
    await ask(page)
    async with asyncio.timeout(5):
        while not site.model.asked:
            await asyncio.sleep(0.01)
    await page.get_by_test_id("stop").click()
    async with asyncio.timeout(2):
        await site.model.request.gone.wait()


async def test_closing_the_tab_reaches_the_provider_after_the_time_for_a_reload(
    page: Page, site: Site
) -> None:
    await page.goto(f"{site.server.url}/#key={site.server.key}")
    await ask(page)
    await site.model.words.put("One ")
    await expect(answer(page)).to_contain_text("One")
    await page.close()
    async with asyncio.timeout(10):
        await site.model.request.gone.wait()


async def test_a_reload_in_the_middle_loses_nothing_and_can_still_be_stopped(page: Page, site: Site) -> None:
    await page.goto(f"{site.server.url}/#key={site.server.key}")
    await ask(page, "First?")
    for word in ("One ", "two "):
        await site.model.words.put(word)
    await expect(answer(page)).to_contain_text("One two")
    await page.reload()
    await expect(answer(page)).to_contain_text("One two")
    await expect(answer(page)).to_have_attribute("data-status", "streaming")
    await site.model.words.put("three")
    await site.model.words.put(None)
    await expect(answer(page)).to_have_attribute("data-status", "done")
    await expect(answer(page)).to_contain_text("One two three")
    first = site.model.request
    await ask(page, "Second?")
    await site.model.words.put("Four ")
    await expect(answer(page)).to_contain_text("Four")
    await page.reload()
    await expect(answer(page)).to_contain_text("Four")
    await page.get_by_test_id("stop").click()
    async with asyncio.timeout(2):
        await site.model.request.gone.wait()
    await expect(answer(page)).to_have_attribute("data-status", "stopped")
    assert site.model.request is not first
    assert len([r for r in site.upstream.requests if r.path.endswith("completions")]) == 2
    assert site.complaints == []


async def test_offline_and_back_the_answer_goes_on(page: Page, site: Site) -> None:
    await page.goto(f"{site.server.url}/#key={site.server.key}")
    await ask(page)
    await site.model.words.put("One ")
    await expect(answer(page)).to_contain_text("One")
    site.wire.cut()
    await expect(page.get_by_test_id("connection")).to_have_attribute("data-status", "reconnecting")
    await site.model.words.put("two ")
    site.wire.mend()
    await expect(answer(page)).to_contain_text("One two")
    await site.model.words.put(None)
    await expect(answer(page)).to_have_attribute("data-status", "done")
    assert len([r for r in site.upstream.requests if r.path.endswith("completions")]) == 1


async def test_an_answer_is_asked_for_again(page: Page, site: Site) -> None:
    await page.goto(f"{site.server.url}/#key={site.server.key}")
    for text in ("One", "Two"):
        await (ask(page) if text == "One" else page.get_by_test_id("retry").click())
        await site.model.words.put(text)
        await site.model.words.put(None)
        await expect(answer(page)).to_have_attribute("data-status", "done")
        await expect(answer(page)).to_contain_text(text)
    await expect(page.get_by_test_id("message")).to_have_count(2)


MARKDOWN = (
    "# Title\n\nSome *words* and `code`.\n\n1. one\n2. two\n\n"
    "```py\nprint('x')\n\nprint('y')\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n"
)
ATTACKS = [
    "<script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'>",
    "![x](https://evil.example/x.png)",
    "[x](javascript:window.hacked=1)",
    "<a href='javascript:window.hacked=1'>x</a>",
    "<svg onload=window.hacked=1>",
    "```html\n<script>window.hacked = 1</script>\n```",
    "<iframe src='https://evil.example'></iframe>",
    "[x]: https://evil.example\n\n![x][x]",
    "<style>body{display:none}</style>",
]


async def test_markdown_is_shown_and_does_nothing_else(page: Page, site: Site) -> None:
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    await page.goto(f"{site.server.url}/#key={site.server.key}")
    await ask(page)
    text = MARKDOWN + "\n\n" + "\n\n".join(ATTACKS)
    for character in text:  # one by one: nothing half-written may slip through
        await site.model.words.put(character)
    await site.model.words.put(None)
    await expect(answer(page)).to_have_attribute("data-status", "done")
    shown = answer(page)
    await expect(shown.locator("h1")).to_have_text("Title")
    await expect(shown.locator("em")).to_have_text("words")
    await expect(shown.locator("li")).to_have_count(2)
    await expect(shown.locator("td")).to_have_count(2)
    await expect(shown.locator(".code").first).to_contain_text("print('y')")
    assert await page.evaluate("window.hacked") is None
    for element in ("img", "script", "iframe", "svg", "style"):
        assert await shown.locator(element).count() == 0, element
    for link in await shown.locator("a").all():
        assert not (await link.get_attribute("href") or "").startswith("javascript")
    assert [url for url in requests if "evil" in url] == []
    assert site.complaints == []


async def test_a_failure_is_shown_with_its_code_and_the_text_stays(page: Page, site: Site) -> None:
    await page.goto(f"{site.server.url}/#key={site.server.key}")
    await ask(page)
    await site.model.words.put("One ")
    await expect(answer(page)).to_contain_text("One")
    site.model.request.cut(reset=True)
    await expect(page.get_by_test_id("error")).to_contain_text("upstream_error")
    await expect(answer(page)).to_have_attribute("data-status", "failed")
    await expect(answer(page)).to_contain_text("One")


async def test_a_wrong_key_is_asked_for_again_and_a_reload_keeps_a_right_one(page: Page, site: Site) -> None:
    await page.goto(f"{site.server.url}/#key=ms_live_wrong")
    await expect(page.get_by_test_id("key-form")).to_be_visible()
    await page.get_by_test_id("key-form").locator("input").fill(site.server.key)
    await page.get_by_test_id("key-form").locator("button").first.click()
    await expect(page.get_by_test_id("model")).to_have_value("first")
    await page.reload()
    await expect(page.get_by_test_id("input")).to_be_visible()


async def test_the_page_may_load_nothing_from_elsewhere(page: Page, site: Site) -> None:
    response = await page.goto(site.server.url)
    assert response is not None
    policy = response.headers["content-security-policy"]
    assert re.match(r"default-src 'none'; script-src 'self';", policy)
    assert "unsafe" not in policy


PICTURED = """A **stream** is one answer in progress:

1. the server holds back the status line until the first token,
2. every event has a *position*, and a client comes back with it.

```python
async with AsyncClient(url, key) as client:
    async for frame in client.stream(messages):
        print(frame.delta, end="")
```
"""


@pytest.mark.parametrize(
    ("name", "scheme", "width", "height"),
    [("chat", "light", 960, 900), ("chat-phone-dark", "dark", 390, 844)],
)
async def test_the_pictures_in_the_docs_are_of_this_page(
    page: Page,
    site: Site,
    tmp_path: Path,
    name: str,
    scheme: Literal["light", "dark"],
    width: int,
    height: int,
) -> None:
    """With ``make pictures`` they are written where the docs have them."""
    await page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    await page.set_viewport_size({"width": width, "height": height})
    await page.goto(f"{site.server.url}/#key={site.server.key}")
    await ask(page, "What is a stream?")
    await site.model.words.put({"reasoning_content": "They want a definition, and an example."})
    await site.model.words.put(PICTURED)
    await site.model.words.put(None)
    await expect(answer(page)).to_have_attribute("data-status", "done")
    await ask(page, "And what if the network drops?")
    await site.model.words.put("Then nothing is lost. The client comes back with")
    await expect(answer(page)).to_contain_text("comes back")
    await expect(page.get_by_test_id("connection")).to_have_text("Streaming")
    folder = Path(__file__).parents[2] / "docs" / "images" if os.environ.get("PICTURES") else tmp_path
    await page.screenshot(path=folder / f"{name}.png")
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert site.complaints == []
    await page.get_by_test_id("stop").click()
    await expect(answer(page)).to_have_attribute("data-status", "stopped")
