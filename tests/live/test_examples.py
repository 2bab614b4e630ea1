"""The examples for the browser, started as their READMEs say, in a real Chromium."""

import asyncio
import os
import re
import shutil
import socket
import subprocess
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from aiohttp import web
from playwright.async_api import Page, expect

from live.browser import chromium, watched_page
from live.conftest import Serve, Server, answers
from live.site import Model
from live.test_nginx import fetched
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


def alone(name: str, folder: Path) -> Path:
    """The example in a folder of its own, with the client as npm installs it."""
    shutil.copytree(EXAMPLES / name, folder / name)
    package, client = folder / name / "node_modules" / "millstream", EXAMPLES.parent / "clients" / "ts"
    shutil.copytree(client / "dist", package / "dist")
    shutil.copy(client / "package.json", package)
    return folder / name


def test_an_example_without_the_client_says_where_it_is_from(tmp_path: Path) -> None:
    shutil.copytree(EXAMPLES / "vanilla", tmp_path / "vanilla")
    ran = subprocess.run(
        ["node", "server.mjs"], cwd=tmp_path / "vanilla", capture_output=True, text=True, timeout=20
    )
    assert ran.returncode == 1
    assert ran.stderr == "The client is not here: npm install the millstream-*.tgz that `make dist` builds.\n"


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
    folder = EXAMPLES / name if name == "nextjs" else alone(name, tmp_path)
    async with oracle(model) as upstream, chromium() as browser:
        context = serve(openai=upstream.base_url, MILLSTREAM_CORS_ORIGINS='["*"]')
        server = await asyncio.to_thread(context.__enter__)
        pages = node(
            folder,
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


@pytest.mark.parametrize("name", COMMANDS)
async def test_an_example_loses_no_question_that_is_too_long(name: str, serve: Serve, tmp_path: Path) -> None:
    async with example(name, serve, tmp_path) as (_, model, _, page, complaints):
        question, ask = page.get_by_label("Question"), page.get_by_role("button", name="Ask")
        error = page.locator('main [role="alert"], #error')
        await question.fill("x" * (5 << 20))
        await ask.click()
        await expect(error).to_contain_text("takes no request of this length")
        assert await question.evaluate("(element) => element.value.length") == 5 << 20
        await question.fill("Why?")
        await ask.click()
        await model.words.put("One ")
        await expect(page.locator('[data-role="assistant"]')).to_contain_text("One")
        await expect(error.filter(has_text="longer")).to_have_count(0)
        await expect(question).to_have_value("")
        assert complaints == []


@asynccontextmanager
async def backend(start: Callable[[], Awaitable[object]]) -> AsyncGenerator[tuple[str, list[str]]]:
    """The least that the page of an EventSource needs: its address, and where its Millstream is, which may be
    said later.
    """
    millstream: list[str] = []
    html = (EXAMPLES / "eventsource.html").read_text(encoding="utf-8")

    async def page(_: web.Request) -> web.Response:
        named = html.replace('data-millstream=""', f'data-millstream="{millstream[0]}"')
        assert named != html
        return web.Response(text=named, content_type="text/html")

    async def begin(_: web.Request) -> web.Response:
        return web.json_response(await start())

    pages = web.Application()
    pages.add_routes([web.get("/", page), web.get("/favicon.ico", page), web.post("/start", begin)])
    runner = web.AppRunner(pages)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", millstream
    finally:
        await runner.cleanup()


async def test_an_event_source_works_in_a_page_of_another_origin(serve: Serve) -> None:
    model = Model()
    body = {"messages": [{"role": "user", "content": "Why?"}]}

    async def start() -> object:
        return (await asyncio.to_thread(fetched, f"{server.url}/v1/streams", server.key, body))[1]

    async with oracle(model) as upstream, chromium() as browser, backend(start) as (origin, millstream):
        context = serve(openai=upstream.base_url, MILLSTREAM_CORS_ORIGINS=origin)
        server = await asyncio.to_thread(context.__enter__)
        millstream.append(server.url)
        try:
            page, complaints = await watched_page(browser)
            await page.goto(origin)
            await model.words.put("One ")
            await expect(page.locator("#answer")).to_contain_text("One")
            await page.locator("#stop").click()
            await expect(page.locator("#state")).to_have_text("ended: cancelled")
            await page.reload()
            await model.words.put("Two ")
            await expect(page.locator("#answer")).to_contain_text("Two")
            request = model.request
            await page.goto("about:blank")  # leaving says so
            async with asyncio.timeout(2):
                await request.gone.wait()
            assert complaints == []
        finally:
            await asyncio.to_thread(context.__exit__, None, None, None)
