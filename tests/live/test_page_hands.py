"""What a person's hands do to the chat page, in a real Chromium."""

import asyncio

from playwright.async_api import Page, expect

from live.site import Site, answer, ask


async def open_page(page: Page, site: Site) -> None:
    await page.goto(f"{site.server.url}/#key={site.server.key}")
    await expect(page.get_by_test_id("model")).to_have_value("first")


async def asked_and_answered(page: Page, site: Site, question: str, words: str) -> None:
    await ask(page, question)
    await site.model.words.put(words)
    await site.model.words.put(None)
    await expect(answer(page)).to_contain_text(words)
    await expect(answer(page)).to_have_attribute("data-status", "done")


async def test_a_double_click_on_send_starts_one_answer_and_stops_none(page: Page, site: Site) -> None:
    await open_page(page, site)
    await page.get_by_test_id("input").fill("Hello")
    box = await page.get_by_test_id("send").bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    await page.mouse.click(x, y)
    await expect(page.get_by_test_id("stop")).to_be_visible()
    await page.mouse.click(x, y)
    await site.model.words.put("One ")
    await expect(answer(page)).to_contain_text("One")
    await expect(answer(page)).to_have_attribute("data-status", "streaming")
    # Stop is meant once it has been there for longer than a double click takes.
    await page.get_by_test_id("stop").click()
    await expect(answer(page)).to_have_attribute("data-status", "stopped")
    assert len([r for r in site.upstream.requests if r.path.endswith("completions")]) == 1


async def test_escape_stops_an_answer_at_once(page: Page, site: Site) -> None:
    await open_page(page, site)
    await ask(page)
    await expect(page.get_by_test_id("stop")).to_be_visible()
    await page.keyboard.press("Escape")
    await expect(answer(page)).to_have_attribute("data-status", "stopped")


async def test_a_question_is_edited_in_its_place_and_nothing_is_lost_before_it_is_sent(
    page: Page, site: Site
) -> None:
    await open_page(page, site)
    await asked_and_answered(page, site, "First?", "One")
    await asked_and_answered(page, site, "Second?", "Two")
    messages, draft = page.get_by_test_id("message"), page.get_by_test_id("input")
    await draft.fill("half a thought")
    await page.get_by_test_id("edit").first.click()
    edited = page.get_by_test_id("edited")
    await expect(edited).to_be_focused()
    await expect(edited).to_have_value("First?")
    await expect(messages).to_have_count(4)
    await edited.fill("Something else")
    await page.keyboard.press("Escape")
    await expect(edited).to_have_count(0)
    await expect(page.get_by_test_id("edit").first).to_be_focused()
    await expect(messages.first).to_contain_text("First?")
    await page.get_by_test_id("edit").first.click()
    await edited.fill("Third?")
    await page.reload()
    await expect(messages).to_have_count(4)
    await draft.fill("half a thought")
    await page.get_by_test_id("edit").first.click()
    await edited.fill("Third?")
    await page.keyboard.press("Enter")
    await expect(messages).to_have_count(2)
    await site.model.words.put("Three")
    await site.model.words.put(None)
    await expect(answer(page)).to_contain_text("Three")
    assert [m["content"] for m in site.model.request.json["messages"]] == ["Third?"]
    await expect(draft).to_have_value("half a thought")
    await expect(draft).to_be_focused()


# What Safari sends with the Enter that takes a candidate: the composition is over, the code says otherwise.
SAFARI_ENTER = """
(element) => element.dispatchEvent(new KeyboardEvent("keydown",
  { key: "Enter", code: "Enter", keyCode: 229, isComposing: false, bubbles: true, cancelable: true }))
"""


async def test_enter_that_takes_a_candidate_sends_nothing(page: Page, site: Site) -> None:
    await open_page(page, site)
    await page.get_by_test_id("input").fill("こんにちは")
    await page.get_by_test_id("input").evaluate(SAFARI_ENTER)
    await page.evaluate("new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)))")
    await expect(page.get_by_test_id("message")).to_have_count(0)
    await expect(page.get_by_test_id("input")).to_have_value("こんにちは")
    await page.keyboard.press("Enter")
    await expect(page.get_by_test_id("message")).to_have_count(2)


async def test_asking_again_leaves_the_keyboard_where_one_writes(page: Page, site: Site) -> None:
    await open_page(page, site)
    await asked_and_answered(page, site, "First?", "One")
    await page.get_by_test_id("retry").click()
    await expect(page.get_by_test_id("input")).to_be_focused()
    async with asyncio.timeout(5):
        await site.model.words.put(None)
