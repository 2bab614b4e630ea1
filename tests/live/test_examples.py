"""The examples for the browser, started as their READMEs say, in a real Chromium."""

import asyncio
import os
import re
import socket
import subprocess
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from playwright.async_api import Page, expect

from live.browser import chromium, watched_page
from live.conftest import Serve, Server, answers
from live.site import Model
from oracle import Oracle, oracle
from services import wait_for

EXAMPLES = Path(__file__).parents[2] / "examples"


@contextmanager
def node(folder: Path, command: Sequence[str], output: Path, **environment: str) -> Generator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [part.replace("PORT", str(port)) for part in command]
    with output.open("wb") as out:
        process = subprocess.Popen(
            arguments,
            cwd=folder,
            env={**os.environ, "PORT": str(port), "NEXT_TELEMETRY_DISABLED": "1", **environment},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_for(lambda: answers(f"http://localhost:{port}/"), process)
        yield f"http://localhost:{port}"
    finally:
        process.terminate()
        process.wait(10)


COMMANDS = {
    "nextjs": ["node", "node_modules/next/dist/bin/next", "start", "-p", "PORT", "-H", "localhost"],
    "vanilla": ["node", "server.mjs"],
}


class Site(NamedTuple):
    """A page of the example, its Millstream and the model behind it, and what the page complains of."""

    server: Server
    model: Model
    upstream: Oracle
    page: Page
    complaints: list[str]


@asynccontextmanager
async def example(name: str, serve: Serve, tmp_path: Path) -> AsyncGenerator[Site]:
    """A page of the example, with its Millstream and the model behind it."""
    model = Model()
    async with oracle(model) as upstream, chromium() as browser:
        context = serve(openai=upstream.base_url, MILLSTREAM_CORS_ORIGINS='["*"]')
        server = await asyncio.to_thread(context.__enter__)
        pages = node(
            EXAMPLES / name,
            COMMANDS[name],
            tmp_path / "pages.log",
            MILLSTREAM_URL=server.url,
            MILLSTREAM_KEY=server.key,
        )
        url = await asyncio.to_thread(pages.__enter__)
        try:
            page, complaints = await watched_page(browser)
            await page.goto(url)
            yield Site(server, model, upstream, page, complaints)
        finally:
            await asyncio.to_thread(pages.__exit__, None, None, None)
            await asyncio.to_thread(context.__exit__, None, None, None)


@pytest.mark.parametrize("name", COMMANDS)
async def test_an_example_asks_resumes_after_a_reload_and_stops(
    name: str, serve: Serve, tmp_path: Path
) -> None:
    async with example(name, serve, tmp_path) as (server, model, upstream, page, complaints):
        ask, stop = page.get_by_role("button", name="Ask"), page.get_by_role("button", name="Stop")
        answer = page.locator('[data-role="assistant"]').last
        await page.get_by_label("Question").fill("First?")
        await ask.click()
        await model.words.put("One ")
        await expect(answer).to_contain_text("One")
        await page.reload()
        await expect(answer).to_contain_text("One")
        await model.words.put("two")
        await model.words.put(None)
        await expect(answer).to_contain_text("One two")
        await expect(page.get_by_role("status").last).to_contain_text("idle")
        await page.get_by_label("Question").fill("Second?")
        await ask.click()
        await model.words.put("Three ")
        await expect(answer).to_contain_text("Three")
        await stop.click()
        async with asyncio.timeout(2):
            await model.request.gone.wait()
        await expect(page.get_by_role("status").last).to_contain_text("idle")
        assert complaints == []
        asked = [r for r in upstream.requests if r.path.endswith("completions")]
        assert [m["content"] for m in asked[1].json["messages"]] == ["First?", "One two", "Second?"]
        # No key is anywhere in the page, nor where it keeps things.
        kept = await page.evaluate("document.documentElement.outerHTML + JSON.stringify(sessionStorage)")
        assert server.key not in kept
        assert not re.search(r"ms_(live|test)_", kept)
