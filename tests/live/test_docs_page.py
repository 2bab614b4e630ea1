"""The page at /docs in a real Chromium: it works, with no request that leaves the machine."""

import asyncio
from pathlib import Path

from playwright.async_api import expect

from live.browser import chromium, watched_page
from live.conftest import Serve


async def test_the_api_is_shown_and_tried_out_with_nothing_from_elsewhere(
    serve: Serve, tmp_path: Path
) -> None:
    context = serve(MILLSTREAM_PROVIDERS='{"demo": {"type": "scripted"}}')
    server = await asyncio.to_thread(context.__enter__)
    try:
        async with chromium() as browser:
            page, complaints = await watched_page(browser)
            asked: list[str] = []
            page.on("request", lambda request: asked.append(request.url))
            response = await page.goto(f"{server.url}/docs")
            assert response is not None
            assert "unsafe" not in response.headers["content-security-policy"]
            operations = page.locator(".opblock")
            await expect(operations.filter(has_text="/v1/chat/stream")).to_be_visible()
            await expect(page.locator("h1, h2").filter(has_text="Millstream")).to_be_visible()
            # With a key, a request goes to this server and its answer is shown.
            await page.get_by_role("button", name="Authorize").first.click()
            await page.locator(".auth-container input").fill(server.key)
            await page.locator(".auth-btn-wrapper .authorize").click()
            await page.locator(".auth-btn-wrapper .btn-done").click()
            models = operations.filter(has_text="/v1/models").first
            await models.locator(".opblock-summary-control").click()
            await models.get_by_role("button", name="Try it out").click()
            await models.get_by_role("button", name="Execute").click()
            await expect(models.locator(".live-responses-table")).to_contain_text("owned_by")
            await page.screenshot(path=tmp_path / "docs.png", full_page=True)
            elsewhere = [url for url in asked if not url.startswith((f"{server.url}/", "data:"))]
            assert elsewhere == []
            assert complaints == []
    finally:
        await asyncio.to_thread(context.__exit__, None, None, None)
