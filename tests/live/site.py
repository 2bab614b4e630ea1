"""The chat page in a real Chromium: a site that tests drive, and how they use it."""

import asyncio
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from playwright.async_api import Locator, Page

from live.browser import Wire, chromium, watched_page
from oracle import Oracle, Request, oracle

if TYPE_CHECKING:
    from live.conftest import Serve, Server


class Model:
    """A provider that says a word (or any other delta) whenever the test lets it."""

    def __init__(self) -> None:
        self.words: asyncio.Queue[str | dict[str, Any] | None] = asyncio.Queue()
        self._request: Request | None = None

    @property
    def asked(self) -> bool:
        return self._request is not None

    @property
    def request(self) -> Request:
        """The last one."""
        assert self._request is not None
        return self._request

    async def __call__(self, request: Request) -> None:
        if request.path.endswith("/models"):
            return await request.answer(200, {"data": [{"id": "first"}, {"id": "second"}]})
        self._request = request
        await request.head()
        while (word := await self.words.get()) is not None:
            if isinstance(word, dict):
                await request.event({"choices": [{"index": 0, "delta": word}]})
            else:
                await request.say(word)
        await request.finish(usage={"prompt_tokens": 5, "completion_tokens": 3})


class Site(NamedTuple):
    """What is behind the page, and what the page complains of."""

    server: "Server"
    model: Model
    upstream: Oracle
    wire: Wire
    page: Page
    complaints: list[str]


@pytest.fixture
async def site(serve: "Serve") -> AsyncGenerator[Site]:
    model = Model()
    async with oracle(model) as upstream, chromium() as browser:
        context = serve(openai=upstream.base_url, MILLSTREAM_DRAIN_SECONDS="1")
        server = await asyncio.to_thread(context.__enter__)
        wire = Wire(server.port)
        server.url = await wire.start()
        try:
            page, complaints = await watched_page(browser)
            yield Site(server, model, upstream, wire, page, complaints)
        finally:
            await wire.stop()
            await asyncio.to_thread(context.__exit__, None, None, None)


@pytest.fixture
def page(site: Site) -> Page:
    return site.page


async def ask(page: Page, text: str = "Hello") -> None:
    await page.get_by_test_id("input").fill(text)
    await page.get_by_test_id("send").click()


def answer(page: Page) -> Locator:
    return page.get_by_test_id("message").and_(page.locator('[data-role="assistant"]')).last
