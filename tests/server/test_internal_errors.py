"""Whoever is told of a fault of ours is told an id, and the log has its cause under that id. spec/faults.md: A9."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest
from fastapi import FastAPI, Request

from application import Run
from asgi import Exchange, get, post
from millstream import Millstream, Settings
from millstream.database import DatabaseAway
from millstream.dialects import Dialect
from millstream.dialects.table import DIALECTS
from millstream.errors import NotFound, StreamClosed
from millstream.events import Batch, Position, StreamStart, TextDelta
from millstream.prompt import Prompt
from millstream.providers import Produced
from millstream.providers.scripted import ScriptedProvider
from millstream.server.errors import error_response

BODY = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}


class Broken(ScriptedProvider):
    """Breaks after so many words, with a secret in the exception's text."""

    def __init__(self, words: int) -> None:
        super().__init__({"m": []})
        self._words = words

    async def stream(self, prompt: Prompt, model: str) -> AsyncGenerator[Sequence[Produced]]:
        for _ in range(self._words):
            yield [TextDelta("word ")]
        raise KeyError("a secret")


def line_under(identity: str, caplog: pytest.LogCaptureFixture) -> str:
    """The one line of the log with that id."""
    (line,) = [record.getMessage() for record in caplog.records if identity in record.getMessage()]
    assert "secret" not in line
    return line


def told(call: Exchange) -> str:
    """The id that an error names: in its header, its body and its message."""
    error = call.json["error"]
    assert (call.status, error["code"]) == (500, "internal")
    assert call.response_headers["x-request-id"] == error["request_id"]
    assert error["message"].endswith(f"under {error['request_id']}")
    assert b"secret" not in call.received
    identity: str = error["request_id"]
    return identity


async def broken(*_: object, **__: object) -> NoReturn:
    raise KeyError("a secret")


@pytest.mark.parametrize("given", [None, "mine-1", "not a plain one\n"])
async def test_a_route_that_breaks_is_logged_under_the_requests_id(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, given: str | None
) -> None:
    headers = {} if given is None else {"x_request_id": given}
    async with run() as app:
        monkeypatch.setattr(app.millstream.meter, "totals", broken)
        async with get(app.app, "/v1/usage", app.key, **headers) as call:
            await call.finished()
        identity = told(call)
        assert (identity == given) is (given == "mine-1")
        line = line_under(identity, caplog)
        assert "KeyError" in line
        assert "GET /v1/usage" in line


async def test_it_is_the_same_in_somebody_elses_application(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    millstream = Millstream(
        Settings(data_dir=tmp_path, max_lag_seconds=3600), providers={"s": ScriptedProvider()}
    )
    app = FastAPI(lifespan=millstream.lifespan)
    app.include_router(millstream.router)
    async with millstream.lifespan(app):
        _, key = await millstream.keys.create("n", ["chat"])
        monkeypatch.setattr(millstream.meter, "totals", broken)
        async with get(app, "/v1/usage", key) as call:
            await call.finished()
        assert "KeyError" in line_under(told(call), caplog)


async def test_an_error_that_was_not_meant_for_a_caller_is_a_fault(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def closed(*_: object, **__: object) -> NoReturn:
        raise StreamClosed("a secret")

    async with run() as app:
        monkeypatch.setattr(app.millstream.meter, "totals", closed)
        async with get(app.app, "/v1/usage", app.key) as call:
            await call.finished()
        assert "StreamClosed" in line_under(told(call), caplog)


@pytest.mark.parametrize("path", ["/v1/chat/stream", "/v1/chat"])
async def test_a_stream_that_breaks_is_logged_under_its_id(
    run: Run, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    async with run({"p": Broken(0)}) as app, post(app.app, path, BODY, app.key) as call:
        await call.finished()
        assert call.status == 500
        stream_id = call.response_headers["x-stream-id"]
        assert call.json["error"]["message"].endswith(f"under {stream_id}")
        assert "KeyError" in line_under(stream_id, caplog)


async def test_a_stream_that_breaks_after_its_first_word_names_its_id_too(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async with run({"p": Broken(2)}) as app, post(app.app, "/v1/chat/stream", BODY, app.key) as call:
        await call.finished()
        stream_id = call.frames[0]["stream_id"]
        error = call.frames[-1]["error"]
        assert (error["code"], error["message"].endswith(f"under {stream_id}")) == ("internal", True)
        assert "KeyError" in line_under(stream_id, caplog)
        async with get(app.app, f"/v1/streams/{stream_id}/events", app.key) as later:
            assert (await later.finished()).frames[-1]["error"] == error


@pytest.mark.parametrize("path", ["/v1/chat/stream", "/v1/chat"])
async def test_a_response_that_breaks_is_logged_under_the_ids_of_both(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    async with run({"p": ScriptedProvider({"m": [asyncio.Event().wait]})}) as app:

        async def read(
            stream_id: str, after: Position | None = None, push: object = None
        ) -> AsyncGenerator[Batch]:
            raise KeyError("a secret")
            yield

        monkeypatch.setattr(app.millstream.journal, "read", read)
        async with post(app.app, path, BODY, app.key) as call:
            await call.finished()
        line = line_under(told(call), caplog)
        assert call.response_headers["x-stream-id"] in line
        assert "KeyError" in line


async def test_a_response_that_breaks_after_its_status_is_logged_under_the_streams_id(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with run({"p": ScriptedProvider({"m": [asyncio.Event().wait]})}) as app:

        async def read(
            stream_id: str, after: Position | None = None, push: object = None
        ) -> AsyncGenerator[Batch]:
            yield Batch(Position(1, 1), [StreamStart(stream_id, "m"), TextDelta("word")])
            raise KeyError("a secret")

        monkeypatch.setattr(app.millstream.journal, "read", read)
        async with post(app.app, "/v1/chat/stream", BODY, app.key) as call:
            await call.finished()
        assert call.text == "word"
        assert "KeyError" in line_under(call.response_headers["x-stream-id"], caplog)


async def test_a_database_that_is_away_is_logged_under_the_requests_id(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def away(*_: Any, **__: Any) -> NoReturn:
        raise DatabaseAway("it is locked")

    async with run() as app:
        monkeypatch.setattr(app.millstream.meter, "totals", away)
        async with get(app.app, "/v1/usage", app.key) as call:
            await call.finished()
        assert call.status == 503
        assert "it is locked" in line_under(call.response_headers["x-request-id"], caplog)


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)
def test_an_error_names_its_request_once(dialect: Dialect) -> None:
    request = Request({"type": "http", "method": "POST", "path": "/", "headers": []})
    names = [name for name, _ in error_response(NotFound("x"), request, dialect).raw_headers]
    assert names.count(dialect.request_id_header.lower().encode()) == 1
    assert len(names) == len(set(names))
