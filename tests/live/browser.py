"""Debian's Chromium, and what lies between it and a server."""

import asyncio
from contextlib import asynccontextmanager, suppress

from playwright.async_api import async_playwright

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
async def chromium(**options):
    async with async_playwright() as playwright:
        path = needed("chromium")
        browser = await playwright.chromium.launch(executable_path=path, args=FLAGS, **options)
        try:
            yield browser
        finally:
            await browser.close()


async def watched_page(browser):
    """A page that notes in ``complaints`` what it throws, and what the browser refuses it."""
    page = await browser.new_page()
    page.complaints = []
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("console", lambda m: page.complaints.append(m.text) if m.type == "error" else None)
    return page


class Wire:
    """What lies between the browser and the server, and can be cut."""

    def __init__(self, port):
        self.port, self.whole, self.ends = port, True, set()

    async def start(self):
        self.server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"

    async def stop(self):
        self.cut()
        self.server.close()
        await self.server.wait_closed()

    def cut(self):
        self.whole = False
        for end in list(self.ends):
            end.transport.abort()

    def mend(self):
        self.whole = True

    async def _carry(self, reader, writer):
        if not self.whole:
            writer.transport.abort()
            return
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self.port)
        ends = {writer, there_writer}
        self.ends |= ends

        async def carry(source, target):
            with suppress(OSError):
                while data := await source.read(65_536):
                    target.write(data)
                    await target.drain()
            target.close()

        try:
            await asyncio.gather(carry(reader, there_writer), carry(there_reader, writer))
        finally:
            self.ends -= ends
