"""A conversation in the terminal, over the client."""

import asyncio
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress

from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown
from rich.text import Text

from millstream.client import AsyncClient, Frame
from millstream.errors import MillstreamError

_UPDATES_PER_SECOND = 12


class Conversation:
    def __init__(self, url: str, key: str, model: str | None) -> None:
        self._url = url
        self._key = key
        self._options = {} if model is None else {"model": model}
        self._messages: list[dict[str, str]] = []
        self._console = Console()
        self._notes = Console(stderr=True, highlight=False)

    async def run(self, prompt: str, resume: str | None) -> None:
        """One answer where there is a ``prompt`` or a stream to ``resume``; else until the input ends. Raises
        ``MillstreamError`` where the one answer fails."""
        async with AsyncClient(self._url, self._key) as client:
            await client.reach()
            if resume is not None:
                await self._show(client, client.stream(stream_id=resume), resume)
            elif prompt or not sys.stdin.isatty():
                piped = "" if sys.stdin.isatty() else await asyncio.to_thread(sys.stdin.read)
                await self._ask(client, "\n\n".join(part for part in (prompt, piped.strip()) if part))
            else:
                await self._converse(client)

    async def _converse(self, client: AsyncClient) -> None:
        self._notes.print("[dim]Ctrl-C stops an answer, Ctrl-D ends.[/dim]")
        while True:
            try:
                prompt = await asyncio.to_thread(self._console.input, "[bold]> [/bold]")
            except (EOFError, KeyboardInterrupt):
                return
            if prompt.strip():
                try:
                    await self._ask(client, prompt)
                except MillstreamError as error:
                    self._messages.pop()
                    self._notes.print(f"[red]{error.code}[/red] {error.message}")

    async def _ask(self, client: AsyncClient, prompt: str) -> None:
        self._messages.append({"role": "user", "content": prompt})
        frames = client.stream(self._messages, **self._options)
        answer = await self._show(client, frames, None)
        self._messages.append({"role": "assistant", "content": answer or "…"})

    async def _show(self, client: AsyncClient, frames: AsyncGenerator[Frame], stream_id: str | None) -> str:
        """Shows an answer to its end and returns its text. Ctrl-C stops it at the provider."""
        task = asyncio.current_task()
        assert task is not None
        stopped = False

        def stop() -> None:
            nonlocal stopped
            if stopped or stream_id is None:
                task.cancel()  # before its first word, or pressed twice
            stopped = True
            stops.append(asyncio.create_task(_cancel(client, stream_id)))

        stops: list[asyncio.Task[None]] = []
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, stop)
        screen = _Screen(self._console)
        try:
            with screen:
                async with aclosing(frames):
                    async for frame in frames:
                        stream_id = frame.stream_id or stream_id
                        screen.take(frame)
        except asyncio.CancelledError:
            if not stopped:
                raise
            task.uncancel()
        finally:
            loop.remove_signal_handler(signal.SIGINT)
            await asyncio.gather(*stops)
        self._note(screen.last, stream_id)
        return screen.text

    def _note(self, last: Frame | None, stream_id: str | None) -> None:
        if last is None:
            self._notes.print("[dim]stopped[/dim]")
            return
        if last.error is not None:
            self._notes.print(f"[red]{last.error.code}[/red] {last.error.message}")
        usage = last.usage or {}
        parts = [
            stream_id or "",
            "" if last.finish_reason in (None, "stop") else str(last.finish_reason),
            f"{usage['prompt_tokens']} + {usage['completion_tokens']} tokens" if usage else "",
            f"${usage['cost_usd']}" if usage.get("cost_usd") else "",
        ]
        self._notes.print(Text(" · ".join(part for part in parts if part), style="dim"))


async def _cancel(client: AsyncClient, stream_id: str | None) -> None:
    if stream_id is not None:
        with suppress(MillstreamError):
            await client.cancel(stream_id)


class _Screen:
    """Markdown that grows on a terminal; plain text as it comes where there is none."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(
            console=console, refresh_per_second=_UPDATES_PER_SECOND, vertical_overflow="visible"
        )
        self.text = ""
        self.last: Frame | None = None

    def __enter__(self) -> "_Screen":
        if self._console.is_terminal:
            self._live.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._live.update(Markdown(self.text))
            self._live.__exit__(None, None, None)
        elif self.text:
            sys.stdout.write("\n")

    def take(self, frame: Frame) -> None:
        text = frame.delta + (frame.refusal or "")
        self.text += text
        if frame.is_last:
            self.last = frame
        if self._console.is_terminal:
            self._live.update(Markdown(self.text))
        elif text:
            sys.stdout.write(text)
            sys.stdout.flush()
