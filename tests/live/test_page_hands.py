"""What a person's hands do to the chat page, in a real Chromium."""

import asyncio

from playwright.async_api import Page, Response, expect

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


async def test_a_reload_keeps_the_model_and_what_was_being_written(page: Page, site: Site) -> None:
    await open_page(page, site)
    await page.get_by_test_id("model").select_option("second")
    await page.get_by_test_id("input").fill("half a thought")
    await page.reload()
    await expect(page.get_by_test_id("model")).to_have_value("second")
    await expect(page.get_by_test_id("input")).to_have_value("half a thought")
    await ask(page)
    await site.model.words.put(None)
    await expect(answer(page)).to_have_attribute("data-status", "done")
    assert site.model.request.json["model"] == "second"


async def test_a_link_does_not_change_the_key_without_a_word(page: Page, site: Site) -> None:
    await open_page(page, site)
    await asked_and_answered(page, site, "Secret?", "click")
    await ask(page, "A link?")
    await site.model.words.put("[click](/#key=ms_live_other) [me](#key=ms_live_other)")
    await site.model.words.put(None)
    await expect(answer(page).locator("p").first).to_have_text("click me")
    assert await answer(page).locator("a").count() == 0
    question, messages = page.get_by_test_id("key-question"), page.get_by_test_id("message")
    await page.goto(f"{site.server.url}/#key=ms_live_other")
    await expect(question).to_be_visible()
    assert "key" not in page.url
    await page.get_by_test_id("keep-key").click()
    await expect(question).to_have_count(0)
    await expect(messages).to_have_count(4)
    await page.reload()
    await expect(page.get_by_test_id("model")).to_have_value("first")
    await expect(messages).to_have_count(4)
    # The other key is not sent what was said under this one.
    await page.goto(f"{site.server.url}/#key=ms_live_other")
    await page.get_by_test_id("use-key").click()
    await expect(page.get_by_test_id("key-form")).to_be_visible()
    await page.get_by_test_id("key-form").locator("input").fill(site.server.key)
    await page.keyboard.press("Enter")
    await expect(messages).to_have_count(4)


async def test_escape_closes_a_question_of_the_page_before_it_stops_an_answer(page: Page, site: Site) -> None:
    await open_page(page, site)
    await ask(page)
    await site.model.words.put("One ")
    await expect(answer(page)).to_contain_text("One")
    await page.goto(f"{site.server.url}/#key=ms_live_other")
    await expect(page.get_by_test_id("keep-key")).to_be_focused()
    await page.keyboard.press("Escape")
    await expect(page.get_by_test_id("key-question")).to_have_count(0)
    await site.model.words.put("two ")
    await expect(answer(page)).to_contain_text("One two")
    await expect(answer(page)).to_have_attribute("data-status", "streaming")
    await page.keyboard.press("Escape")
    await expect(answer(page)).to_have_attribute("data-status", "stopped")


async def test_there_is_a_way_down_again(page: Page, site: Site) -> None:
    await open_page(page, site)
    await ask(page)
    await site.model.words.put("".join(f"Line {i}\n\n" for i in range(80)))
    await expect(answer(page).locator("p")).to_have_count(80)
    newest = page.get_by_test_id("newest")
    await expect(newest).to_have_count(0)
    await page.get_by_role("main").hover()
    await page.mouse.wheel(0, -1000)
    await expect(newest).to_be_visible()
    await site.model.words.put("More")
    await newest.click()
    await expect(answer(page).get_by_text("More", exact=True)).to_be_in_viewport()
    await expect(newest).to_have_count(0)
    await site.model.words.put("\n\nThe end")
    await expect(answer(page).get_by_text("The end")).to_be_in_viewport()


ENDED_ELSEWHERE = """
async (key) => {
  const name = Object.keys(sessionStorage).find((name) => name.startsWith("millstream-chat"));
  const id = JSON.parse(sessionStorage.getItem(name)).messages.at(-1).streamId;
  await fetch(`/v1/streams/${id}/cancel`, { method: "POST", headers: { Authorization: `Bearer ${key}` } });
}
"""


async def test_an_answer_that_the_server_ends_does_not_say_that_the_reader_stopped_it(
    page: Page, site: Site
) -> None:
    await open_page(page, site)
    await ask(page)
    await site.model.words.put("One ")
    await expect(answer(page)).to_contain_text("One")
    await page.evaluate(ENDED_ELSEWHERE, site.server.key)
    await expect(answer(page)).to_contain_text("The server ended this answer")
    await expect(page.get_by_test_id("retry")).to_have_text("Ask again")
    await page.get_by_test_id("retry").click()
    await site.model.words.put("Two ")
    await expect(answer(page)).to_contain_text("Two")
    await page.get_by_test_id("stop").click()
    await expect(answer(page)).to_contain_text("Stopped. The answer is not complete.")


async def test_a_question_that_is_too_long_stays_where_it_was_written(page: Page, site: Site) -> None:
    await open_page(page, site)
    await page.get_by_test_id("input").fill("x" * (5 << 20))
    await page.get_by_test_id("send").click()
    await expect(page.get_by_test_id("error")).to_contain_text("too_large")
    await expect(page.get_by_test_id("message")).to_have_count(0)
    assert await page.get_by_test_id("input").evaluate("(element) => element.value.length") == 5 << 20


async def test_a_question_that_is_edited_into_one_too_long_changes_nothing(page: Page, site: Site) -> None:
    await open_page(page, site)
    await asked_and_answered(page, site, "First?", "One")
    await asked_and_answered(page, site, "Second?", "Two")
    messages, edited = page.get_by_test_id("message"), page.get_by_test_id("edited")
    await page.get_by_test_id("edit").first.click()
    await edited.fill("\x01" * 750_000)  # six times as long in JSON, and sooner laid out
    await page.get_by_test_id("send-edit").click()
    await expect(page.get_by_test_id("error")).to_contain_text("too_large")
    await expect(messages).to_have_count(4)
    assert await edited.evaluate("(element) => element.value.length") == 750_000
    await edited.focus()  # which puts the cursor at the end
    await edited.fill("Third?")
    await page.keyboard.press("Enter")
    await expect(messages).to_have_count(2)
    await expect(edited).to_have_count(0)
    await expect(page.get_by_test_id("error")).to_have_count(0)
    await site.model.words.put("Three")
    await site.model.words.put(None)
    await expect(answer(page)).to_contain_text("Three")


# Leaves room for the name of a text that is elsewhere, and for no conversation.
FILL = """
() => {
  let text = "x".repeat(1 << 23);
  for (let more = text.length; more >= 1; more >>= 1) {
    const before = sessionStorage.getItem("fill") ?? "";
    try { sessionStorage.setItem("fill", before + text.slice(0, more)); } catch { continue; }
  }
  sessionStorage.setItem("fill", sessionStorage.getItem("fill").slice(150));
}
"""
TEXTS = """
() => new Promise((resolve) => {
  const opening = indexedDB.open("millstream");
  opening.onsuccess = () => {
    const asking = opening.result.transaction("texts").objectStore("texts").getAll();
    asking.onsuccess = () => { opening.result.close(); resolve(asking.result.map(({ text }) => text)); };
  };
})
"""


async def test_forgetting_the_key_forgets_a_conversation_that_lies_in_a_database(
    page: Page, site: Site
) -> None:
    await open_page(page, site)
    await page.evaluate(FILL)
    await asked_and_answered(page, site, "Secret?", "word of it " * 50)
    await page.wait_for_function(f"async () => (await ({TEXTS})()).length === 1")
    await page.get_by_test_id("forget-key").click()
    await expect(page.get_by_test_id("key-form")).to_be_visible()
    await page.wait_for_function(f"async () => (await ({TEXTS})()).length === 0")
    assert "millstream-chat" not in await page.evaluate("Object.keys(sessionStorage).join()")
    assert site.complaints == []


async def test_a_new_chat_in_a_tab_that_was_duplicated_leaves_the_other_its_conversation(
    page: Page, site: Site
) -> None:
    await open_page(page, site)
    await page.evaluate(FILL)
    await asked_and_answered(page, site, "Why?", "word of it " * 50)
    await page.reload()
    await expect(page.get_by_test_id("message")).to_have_count(2)
    async with page.expect_popup() as opening:
        await page.evaluate("void window.open(location.href)")  # which copies what the tab keeps
    copy = await opening.value
    await expect(copy.get_by_test_id("message")).to_have_count(2)
    await copy.wait_for_function(f"async () => (await ({TEXTS})()).length === 2")
    await copy.get_by_test_id("new-chat").click()
    await expect(copy.get_by_test_id("message")).to_have_count(0)
    await copy.wait_for_function(f"async () => (await ({TEXTS})()).length === 1")
    await page.reload()
    await expect(page.get_by_test_id("message")).to_have_count(2)
    assert site.complaints == []


async def test_the_page_comes_compressed_and_once(page: Page, site: Site) -> None:
    sizes: list[int] = []

    async def count(response: Response) -> None:
        if "/assets/" in response.url and response.request.resource_type in ("script", "stylesheet"):
            assert (await response.header_value("content-encoding")) in ("br", "gzip")
            assert "immutable" in (await response.header_value("cache-control") or "")
            sizes.append(int(await response.header_value("content-length") or 0))

    page.on("response", count)
    await page.goto(site.server.url)
    await expect(page.get_by_test_id("key-form")).to_be_visible()
    # Over plain HTTP a browser takes gzip; brotli, over HTTPS, is a tenth less.
    assert 0 < sum(sizes) < 30_000
