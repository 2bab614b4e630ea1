"""Behind a proxy that serves Millstream below a path of its own: every address that it gives begins there."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI

from application import Run
from asgi import Application, Exchange
from millstream import Millstream, Settings
from millstream.errors import ConfigurationError
from millstream.providers.scripted import ScriptedProvider

BODY = json.dumps({"messages": [{"role": "user", "content": "Hi"}]}).encode()


async def addresses(app: Application, key: str, before: str, root_path: str = "") -> Iterator[str]:
    """The addresses that two starts give, which a proxy has passed on with ``before`` in front of their paths."""
    headers = {"authorization": f"Bearer {key}"}
    found: list[str] = []
    for path in ("/v1/streams", "/v1/chat/stream"):
        async with Exchange(app, "POST", before + path, headers, BODY, root_path) as call:
            await call.finished()
        assert call.status in (200, 201)
        found.append(call.response_headers["location"])
        if call.status == 201:
            found += [call.json["events_url"], call.json["cancel_url"]]
    return iter(found)


@pytest.mark.parametrize("passed_on", ["/ai", ""], ids=["with its path", "without its path"])
async def test_the_setting_holds_whether_the_proxy_takes_its_path_away_or_not(
    run: Run, passed_on: str
) -> None:
    async with run({"s": ScriptedProvider()}, root_path="/ai") as running:
        for address in await addresses(running.app, running.key, passed_on):
            assert address.startswith("/ai/v1/streams/str_")
            path = passed_on + address.removeprefix("/ai")
            headers = {"authorization": f"Bearer {running.key}"}
            method = "POST" if "/cancel" in path else "GET"
            async with Exchange(running.app, method, path, headers) as call:
                await call.finished()
            assert call.status == 200
        for path in ("/", "/docs", "/healthz", "/openapi.json", "/assets/x.js"):
            async with Exchange(running.app, "GET", passed_on + path) as call:
                await call.finished()
            assert call.status != 404 or b"is not built" in call.received or "assets" in path
        async with Exchange(running.app, "GET", f"{passed_on}/openapi.json") as call:
            await call.finished()
        assert call.json["servers"] == [{"url": "/ai"}]


async def test_without_the_setting_nothing_below_a_path_is_here(run: Run) -> None:
    async with run({"s": ScriptedProvider()}) as running:
        async with Exchange(running.app, "GET", "/ai/healthz") as call:
            await call.finished()
        assert call.status == 404


@pytest.mark.parametrize(
    ("passed_on", "prefix", "mounted"),
    [("/ai", "", False), ("", "", False), ("", "/chat", False), ("/ai", "/chat", False), ("/ai", "", True)],
)
async def test_in_an_application_of_yours_the_servers_root_path_holds(
    tmp_path: Path, passed_on: str, prefix: str, mounted: bool
) -> None:
    millstream = Millstream(
        Settings(data_dir=tmp_path, max_lag_seconds=3600), providers={"s": ScriptedProvider()}
    )
    app = FastAPI(lifespan=millstream.lifespan)
    app.include_router(millstream.router, prefix=prefix)
    asked = app
    if mounted:
        asked = FastAPI()
        asked.mount("/inner", app)
    async with millstream.lifespan(app):
        _, key = await millstream.keys.create("k", ["chat"])
        inner = "/inner" if mounted else ""
        for address in await addresses(asked, key, f"{passed_on}{inner}{prefix}", "/ai"):
            assert address.startswith(f"/ai{inner}{prefix}/v1/streams/str_")
        await millstream.streams.idle()


@pytest.mark.parametrize("wrong", ["ai", "/ai/", "/", "/a b", "//ai", "/v1", "/v1/ai", "https://x/ai"])
def test_a_root_path_that_cannot_be_one_is_refused(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    monkeypatch.setenv("MILLSTREAM_ROOT_PATH", wrong)
    with pytest.raises(ConfigurationError, match="root_path"):
        Settings.load()
