"""Debian's Chromium, and what lies between it and a server."""

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress

from playwright.async_api import Browser, Page, async_playwright

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


@asynccontextmanager
async def chromium(*, ignore_default_args: Sequence[str] = ()) -> AsyncGenerator[Browser]:
    async with async_playwright() as playwright:
        path = needed("chromium")
        browser = await playwright.chromium.launch(
            executable_path=path, args=FLAGS, ignore_default_args=ignore_default_args or None
        )
        try:
            yield browser
        finally:
            await browser.close()


async def watched_page(browser: Browser) -> tuple[Page, list[str]]:
    """A page, and what it complains of: what it throws, and what the browser refuses it."""
    page = await browser.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
    return page, complaints


@asynccontextmanager
async def tasks_of(page: Page) -> AsyncGenerator[list[float]]:
    """The tasks of the page's main thread, once the body has ended: milliseconds of the processor for each."""
    tasks: list[float] = []
    browser = page.context.browser
    assert browser is not None
    await browser.start_tracing(page=page, categories=["toplevel"])
    yield tasks
    events = json.loads(await browser.stop_tracing())["traceEvents"]
    threads = {
        (event["pid"], event["tid"])
        for event in events
        if event["name"] == "thread_name" and event["args"]["name"] == "CrRendererMain"
    }
    tasks += [
        event.get("tdur", 0) / 1000
        for event in events
        if event["name"].endswith("RunTask") and (event["pid"], event["tid"]) in threads
    ]


class Wire:
    """What lies between the browser and the server, and can be cut."""

    def __init__(self, port: int) -> None:
        self.port, self.whole = port, True
        self.ends: set[asyncio.StreamWriter] = set()
        self.streams_pass = asyncio.Event()
        self.streams_pass.set()

    async def start(self) -> str:
        self.server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        self.cut()
        self.server.close()
        await self.server.wait_closed()

    def cut(self) -> None:
        self.whole = False
        for end in list(self.ends):
            end.transport.abort()

    def mend(self) -> None:
        self.whole = True

    def buffer(self) -> None:
        """Holds streams back from now on, as a proxy that buffers does, until ``flow``. Other answers pass."""
        self.streams_pass.clear()

    def flow(self) -> None:
        self.streams_pass.set()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self.whole:
            writer.transport.abort()
            return
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self.port)
        ends = {writer, there_writer}
        self.ends |= ends

        async def carry(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            with suppress(OSError):
                while data := await source.read(65_536):
                    if b"text/event-stream" in data and source is there_reader:
                        await self.streams_pass.wait()
                    target.write(data)
                    await target.drain()
            target.close()

        try:
            await asyncio.gather(carry(reader, there_writer), carry(there_reader, writer))
        finally:
            self.ends -= ends
