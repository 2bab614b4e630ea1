"""``useChat`` in a real Chromium: a client like the others."""

import subprocess
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self

from playwright.async_api import Page, Route

from conformance.clients import HERE
from conformance.upstream import Upstream
from live.browser import chromium, watched_page


class BrowserClient:
    """A page at the server's own address, which the browser is given here. Its browser lives in the thread of
    the model, because the tests are not asynchronous.
    """

    def __init__(self, url: str, upstream: Upstream) -> None:
        self._url, self._run = url, upstream.run
        self._stack = AsyncExitStack()

    def __enter__(self) -> Self:
        self._page = self._run(self._open())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self._stack.aclose())

    def __call__(self, op: str, model: str, key: str, **more: Any) -> dict[str, Any]:
        request = {"op": op, "model": model, "key": key, "tools": False, "image": False, "stop_after": None}
        said: dict[str, Any] = self._run(
            self._page.evaluate("request => window.ask(request)", request | more)
        )
        return said

    def watch(self, chat_id: str, key: str) -> None:
        """Opens the page on a chat whose answer is being given."""
        self._run(self._page.evaluate("([id, key]) => window.watch(id, key)", [chat_id, key]))

    def shows(self, text: str) -> None:
        """Waits until the page shows an answer with that text."""
        answer = self._page.locator("[data-role=assistant]", has_text=text)
        self._run(answer.wait_for())

    def shown(self) -> str:
        """The text of the answer, once the page says that it is whole."""
        return self._run(self._answer())

    async def _open(self) -> Page:
        browser = await self._stack.enter_async_context(chromium())
        page, _ = await watched_page(browser)
        await page.route(f"{self._url}/conformance", _empty)
        await page.goto(f"{self._url}/conformance")
        await page.add_script_tag(content=_bundle())
        return page

    async def _answer(self) -> str:
        await self._page.locator("output", has_text="ready").wait_for()
        return await self._page.locator("[data-role=assistant]").inner_text()


async def _empty(route: Route) -> None:
    await route.fulfill(content_type="text/html", body="<!doctype html><title>useChat</title><body>")


def _bundle() -> str:
    folder = HERE / "node"
    command = ["use_chat.mjs", "--bundle", "--format=iife", '--define:process.env.NODE_ENV="production"']
    made = subprocess.run(
        [str(folder / "node_modules" / ".bin" / "esbuild"), *command, "--log-level=warning"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return made.stdout
