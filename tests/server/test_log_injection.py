"""Whatever a caller sends, a line of the log is one line, short, and obeyed by no terminal. spec/faults.md: A5."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import NoReturn

import pytest
from fastapi import FastAPI

from asgi import get, post
from millstream import Millstream, Settings
from millstream.database import DatabaseAway
from millstream.errors import printable
from millstream.events import Batch, Position
from millstream.providers.scripted import ScriptedProvider

BODY = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
NASTY = [
    "a\r\nERROR a line of its own",
    "\x1b[2J\x1b]0;x\x07",
    "a\u2028b\u0085c",
    "\u202egnp",
    "x" * 10_000,
    "\x00\x7f",
]


@pytest.mark.parametrize("error", [KeyError, DatabaseAway])
@pytest.mark.parametrize("nasty", NASTY, ids=[ascii(text)[:12] for text in NASTY])
async def test_a_path_in_the_log_is_one_short_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    nasty: str,
    error: type[Exception],
) -> None:
    """In somebody else's application: in ours no path with such characters leads anywhere."""
    provider = ScriptedProvider({"m": [asyncio.Event().wait]})
    millstream = Millstream(Settings(data_dir=tmp_path, max_lag_seconds=3600), providers={"s": provider})
    app = FastAPI(lifespan=millstream.lifespan)
    app.include_router(millstream.router, prefix="/{tenant}")

    async def broken(*_: object, **__: object) -> NoReturn:
        raise error("broken")

    async def read(stream_id: str, after: Position | None = None) -> AsyncGenerator[Batch]:
        raise error("broken")
        yield

    async with millstream.running_in(app):  # which says nothing of its own
        _, key = await millstream.keys.create("n", ["chat"])
        monkeypatch.setattr(millstream.meter, "totals", broken)
        monkeypatch.setattr(millstream.journal, "read", read)
        for exchange in (
            get(app, f"/{nasty}/v1/usage", key),
            post(app, f"/{nasty}/v1/chat/stream", BODY, key),
            post(app, f"/{nasty}/v1/chat", BODY, key),
        ):
            async with exchange as call:
                await call.finished()
                assert call.status in (500, 503)
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("millstream")]
    assert len(lines) == 3
    for line in lines:
        assert line.isprintable(), line
        assert len(line) < 1500
        assert "ERROR a line" not in line or "\\r\\nERROR a line" in line


def test_what_is_printable_stays_and_everything_else_is_seen() -> None:
    assert printable("GET /v1/streams/é x") == "GET /v1/streams/é x"
    assert printable("a\r\n\x1b\u2028\ud800") == "a\\r\\n\\x1b\\u2028\\ud800"
    assert printable("a\\n") == "a\\\\n"  # not to be taken for a line's end that was escaped
    assert printable("x" * 500) == "x" * 200 + "…"
    assert len(printable("\U0010ffff" * 500)) <= 10 * 200 + 1
