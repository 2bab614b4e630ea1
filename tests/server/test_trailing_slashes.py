"""No path of ours is redirected: a redirect would name whatever host the caller has named. spec/faults.md: A14."""

from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from asgi import Exchange
from millstream import Millstream, Settings, create_app
from millstream.providers.scripted import ScriptedProvider

HOST = {"Host": "evil.example"}


def ours(where: str, millstream: Millstream) -> tuple[FastAPI, FastAPI, str]:
    """The application that runs ``millstream``, the one that is asked, and what comes before its paths."""
    if where == "our application":
        app = create_app(millstream)
        return app, app, ""
    app = FastAPI(lifespan=millstream.lifespan)
    app.include_router(millstream.router, prefix="/ai" if where == "with a prefix" else "")

    @app.get("/theirs")
    async def theirs() -> str:
        return "theirs"

    @app.get("/v1/models/")
    async def models() -> str:
        return "theirs as well"

    if where != "mounted":
        return app, app, "/ai" if where == "with a prefix" else ""
    outer = FastAPI()
    outer.mount("/inner", app)
    return app, outer, "/inner"


PLACES = ["our application", "included", "with a prefix", "mounted"]


@pytest.mark.parametrize("where", PLACES)
async def test_a_slash_behind_a_path_is_a_404_and_never_a_redirect(tmp_path: Path, where: str) -> None:
    millstream = Millstream(
        Settings(data_dir=tmp_path, max_lag_seconds=3600), providers={"s": ScriptedProvider()}
    )
    app, asked, prefix = ours(where, millstream)
    async with millstream.lifespan(app):
        operations = [
            (method.upper(), path.removeprefix("/ai").replace("{", "").replace("}", ""))
            for path, item in app.openapi()["paths"].items()
            for method in item
            if path not in ("/theirs", "/v1/models/", "/v1/models")
        ]
        assert {("POST", "/v1/keys"), ("GET", "/v1/streams/stream_id/events")} <= set(operations)
        for method, path in operations:
            for slashes in ("/", "//"):
                await refused(asked, method, f"{prefix}{path}{slashes}")
                await refused(asked, "PATCH", f"{prefix}{path}{slashes}")
        for path in ("/", "/docs/", "/openapi.json/") if where == "our application" else ():
            async with Exchange(asked, "GET", path, HOST) as call:
                await call.finished()
                assert "location" not in call.response_headers, path


async def refused(app: Any, method: str, path: str) -> None:
    async with Exchange(app, method, path, HOST) as call:
        await call.finished()
        assert (call.status, "location" in call.response_headers) == (404, False), (method, path)
        assert "not_found" in str(call.json["error"])
        assert "evil" not in call.received.decode()


@pytest.mark.parametrize("where", ["included", "mounted"])
async def test_what_another_application_does_with_its_own_slashes_is_its_own(
    tmp_path: Path, where: str
) -> None:
    millstream = Millstream(
        Settings(data_dir=tmp_path, max_lag_seconds=3600), providers={"s": ScriptedProvider()}
    )
    app, asked, prefix = ours(where, millstream)
    async with millstream.lifespan(app):
        async with Exchange(asked, "GET", f"{prefix}/theirs/", HOST) as call:
            await call.finished()
            assert (call.status, call.response_headers["location"][-7:]) == (307, "/theirs")
        async with Exchange(asked, "GET", f"{prefix}/v1/models/", HOST) as call:
            assert (await call.finished()).json == "theirs as well"
