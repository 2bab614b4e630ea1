"""HEAD is answered wherever GET is, but for streams."""

from pathlib import Path

import pytest
from fastapi import FastAPI

from application import Run
from asgi import Exchange, get, post
from millstream import Millstream, Settings
from millstream.listings import ProviderEntry
from millstream.providers.scripted import ScriptedProvider
from millstream.server.routes import pages

BODY = {"messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("index.html", "docs.html"):
        (tmp_path / name).write_text("<p>Hello", encoding="utf-8")
    monkeypatch.setattr(pages, "BUILT", tmp_path)


@pytest.mark.usefixtures("built")
async def test_head_is_get_without_its_body(run: Run) -> None:
    """spec/faults.md: C34."""
    async with run({"s": ScriptedProvider()}) as app:
        auth = {"authorization": f"Bearer {app.admin}"}
        async with post(app.app, "/v1/chat", BODY, app.admin) as call:
            stream_id = (await call.finished()).json["stream_id"]
        paths = ["/", "/docs", "/openapi.json", "/healthz", "/readyz", f"/v1/streams/{stream_id}"]
        for path in [*paths, "/v1/models", "/v1/keys", "/v1/usage"]:
            async with Exchange(app.app, "GET", path, auth) as asked:
                await asked.finished()
            async with Exchange(app.app, "HEAD", path, auth) as call:
                await call.finished()
            assert call.status == 200, path
            if path not in ("/", "/docs", "/openapi.json"):  # of which the server drops the body
                assert call.received == b"", path
            assert call.response_headers.keys() == asked.response_headers.keys(), path
            assert call.response_headers["content-length"] == str(len(asked.received)), path


async def test_head_of_what_get_refuses(run: Run) -> None:
    async with run({"s": ScriptedProvider()}) as app:
        for path, expected in [
            ("/v1/models", 401),
            ("/nothing", 404),
            ("/healthz/", 404),
            ("/v1/chat", 405),
            ("/v1/streams/str_1/events", 405),
        ]:
            async with Exchange(app.app, "HEAD", path) as call:
                await call.finished()
            assert call.status == expected, path


async def test_it_is_so_in_somebody_elses_application_and_no_operation_of_its_document(
    tmp_path: Path,
) -> None:
    millstream = Millstream(
        Settings(data_dir=tmp_path, max_lag_seconds=3600), providers={"s": ScriptedProvider()}
    )
    app = FastAPI(lifespan=millstream.lifespan)
    app.include_router(millstream.router, prefix="/ai")
    async with millstream.lifespan(app):
        _, key = await millstream.keys.create("k", ["chat"])
        async with Exchange(app, "HEAD", "/ai/v1/models", {"authorization": f"Bearer {key}"}) as call:
            await call.finished()
        assert (call.status, call.received) == (200, b"")
        assert all("head" not in item for item in app.openapi()["paths"].values())


async def test_one_model_by_its_name(run: Run) -> None:
    providers = {"openai": ScriptedProvider({"gpt-4o": [], "org/model:free": [], "é x": []})}
    async with run(providers) as app:
        async with get(app.app, "/v1/models", app.key) as listed:
            await listed.finished()
        found = {}
        for model in [*(one["id"] for one in listed.json["data"]), "openai/gpt-4o"]:
            async with get(app.app, f"/v1/models/{model}", app.key) as call:
                found[model] = (await call.finished()).json
                assert call.status == 200
        assert [found[one["id"]] for one in listed.json["data"]] == listed.json["data"]
        assert found["openai/gpt-4o"] == found["gpt-4o"]
        # That a provider takes any name does not make every name a model.
        app.millstream.llm_service._providers["openai"] = ProviderEntry(ScriptedProvider(), any_model=True)  # noqa: SLF001
        for model in ("nothing", "openai/nothing", "nobody/gpt-4o", "gpt-4o/x", "x" * 5000):
            async with get(app.app, f"/v1/models/{model}", app.key) as call:
                await call.finished()
            assert (call.status, call.json["error"]["code"]) == (404, "model_not_found"), model
            assert len(call.received) < 1000
        async with get(app.app, "/v1/models/gpt-4o") as call:
            assert (await call.finished()).status == 401
