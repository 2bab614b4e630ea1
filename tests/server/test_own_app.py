"""The example application, run as its reader would."""

import asyncio
import importlib.util
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import pytest
from fastapi import Depends, FastAPI, Request, Response, WebSocket
from fastapi.middleware.cors import CORSMiddleware
from fastapi.testclient import TestClient
from starlette.testclient import WebSocketDenialResponse

from application import Run
from asgi import get, post
from millstream import (
    ChatMessage,
    ChunkResponse,
    LLMService,
    Meter,
    Millstream,
    Principal,
    Settings,
    get_api_key,
    get_llm_service,
    get_meter,
    require_api_key,
)
from millstream.errors import ConfigurationError, ModelNotFound, Unauthorized, UpstreamError
from millstream.events import TextDelta
from millstream.providers import Finish
from millstream.providers.scripted import Script, ScriptedProvider
from millstream.server.app import create_app
from millstream.streams import upkeep

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_app" / "main.py"


@pytest.fixture
async def example(monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[ModuleType]:
    monkeypatch.setenv("MILLSTREAM_PROVIDERS", '{"demo": {"type": "scripted"}}')
    spec = importlib.util.spec_from_file_location("own_app", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    async with module.millstream.lifespan(module.app):
        yield module


async def test_the_router_the_keys_and_the_service_work_in_somebody_elses_application(
    example: ModuleType,
) -> None:
    key, secret = await example.millstream.keys.create("n", ["chat"])
    body = {"messages": [{"role": "user", "content": "Hello"}]}
    async with post(example.app, "/v1/chat/stream", body, secret) as call:
        await call.finished()
        assert "script" in call.text
    async with get(example.app, "/whoami", secret) as call:
        assert (await call.finished()).json == {"key": key.id, "scopes": ["chat"]}
    async with post(example.app, "/summary?text=x", b"", secret) as call:
        answer = (await call.finished(20)).json
        assert answer["tokens"] > 10
    (total,) = [t for t in await example.millstream.meter.totals("model") if t.group["model"] == "summary"]
    assert total.completion_tokens == answer["tokens"]


async def test_refusals_look_like_the_applications_own_on_its_own_routes(example: ModuleType) -> None:
    async with get(example.app, "/whoami") as call:
        await call.finished()
        assert (call.status, set(call.json)) == (401, {"detail"})
        assert call.response_headers["www-authenticate"] == "Bearer"
    _, secret = await example.millstream.keys.create("n", ["usage"])
    async with post(example.app, "/summary?text=x", b"", secret) as call:
        await call.finished()
        assert (call.status, "chat" in call.json["detail"]) == (403, True)
    async with post(example.app, "/v1/chat", b"{}", secret) as call:
        await call.finished()
        assert (call.status, call.json["error"]["code"]) == (403, "forbidden")


async def test_without_the_lifespan_the_dependencies_say_what_is_missing() -> None:
    app = FastAPI()
    app.get("/")(lambda key=Depends(get_api_key): key)
    with pytest.raises(RuntimeError, match="lifespan"):
        async with get(app, "/", "x"):
            pass


async def test_the_service_counts_where_the_provider_does_not_and_raises_where_it_breaks(
    tmp_path: Path,
) -> None:
    scripts: dict[str, Script] = {
        "m": [TextDelta("tiktoken is "), TextDelta("great!"), Finish("stop", None)],
        "cut": [TextDelta("a")],
        "broken": [TextDelta("a"), UpstreamError("it broke")],
    }
    millstream = Millstream(
        Settings(data_dir=tmp_path, max_lag_seconds=3600), providers={"s": ScriptedProvider(scripts)}
    )
    app = FastAPI(lifespan=millstream.lifespan)
    async with millstream.lifespan(app):
        llm = millstream.llm_service

        async def ask(model: str) -> list[ChunkResponse]:
            message = ChatMessage(role="user", content="x")
            return [c async for c in llm.stream_chat([message], model)]

        chunks = await ask("m")
        assert "".join(c.content for c in chunks) == "tiktoken is great!"
        assert (chunks[-1].finish_reason, chunks[-1].token_count) == ("stop", 6)
        for model, error in [("cut", UpstreamError), ("broken", UpstreamError), ("x", ModelNotFound)]:
            with pytest.raises(error):
                await ask(model)


def test_an_application_is_tested_as_fastapi_says_as_often_as_one_likes(tmp_path: Path) -> None:
    millstream = Millstream(
        Settings(data_dir=tmp_path, max_lag_seconds=3600), providers={"s": ScriptedProvider()}
    )
    app = FastAPI(lifespan=millstream.lifespan)
    app.include_router(millstream.router)
    app.dependency_overrides[get_api_key] = lambda: Principal("key_test", frozenset({"chat"}))
    body = {"model": "s/scripted/3x0", "messages": [{"role": "user", "content": "Hello"}]}
    for _ in range(3):
        with TestClient(app) as client:
            answer = client.post("/v1/chat", json=body)
            assert (answer.status_code, answer.json()["content"]) == (200, "stream after stream ")
            assert client.get("/v1/models").status_code == 200
            assert client.get(f"/v1/streams/{answer.json()['stream_id']}").json()["status"] == "completed"


@pytest.mark.parametrize("url", [None, "postgresql://nobody@127.0.0.1:9/x"])
def test_making_one_opens_nothing(tmp_path: Path, url: str | None) -> None:
    folder = tmp_path / "data"
    millstream = Millstream(Settings(data_dir=folder, database_url=url, max_lag_seconds=3600))
    app = FastAPI(lifespan=millstream.lifespan)
    app.include_router(millstream.router)
    create_app(millstream)
    assert not folder.exists()
    with pytest.raises(RuntimeError, match="lifespan"):
        _ = millstream.keys
    if url is not None:
        with pytest.raises(ConfigurationError, match="cannot open the database"), TestClient(app):
            pass


async def test_the_log_says_what_is_missing_where_nobody_runs_the_lifespan(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    millstream = Millstream(
        Settings(data_dir=tmp_path, max_lag_seconds=3600), providers={"s": ScriptedProvider()}
    )
    inner = FastAPI(lifespan=millstream.lifespan)
    inner.include_router(millstream.router)
    outer = FastAPI()
    outer.mount("/ai", inner)
    async with get(outer, "/ai/v1/models", "x") as call:
        await call.finished()
        assert (call.status, call.json["error"]["code"]) == (500, "internal")
        assert "lifespan" not in call.text
    assert "include the router in the application itself" in caplog.text


async def test_the_log_says_at_start_what_is_missing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Down(ScriptedProvider):
        async def models(self) -> list[str]:
            raise UpstreamError("provider 'd' cannot be reached: the connection was refused")

    millstream = Millstream(Settings(data_dir=tmp_path, max_lag_seconds=3600), providers={"d": Down()})
    app = FastAPI(lifespan=millstream.lifespan)
    async with millstream.lifespan(app):
        await millstream.keys.create("n", ["chat"])
    assert "provider d has no models yet: provider 'd' cannot be reached" in caplog.text
    made = f"there is no API key; make one with: millstream keys create --name me --data-dir {tmp_path}\n"
    assert made in caplog.text
    caplog.clear()
    async with millstream.lifespan(app):
        assert "API key" not in caplog.text


async def test_two_workers_that_cannot_see_each_others_streams_are_told(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("BEAT_SECONDS", "SWEEP_SECONDS"):
        monkeypatch.setattr(upkeep, name, 0.02)
    async with run() as _, run() as _, asyncio.timeout(20):
        while "another worker uses the same database" not in caplog.text:
            await asyncio.sleep(0.02)


async def test_a_login_of_ones_own_refuses_in_the_form_of_the_route(tmp_path: Path) -> None:
    def nobody() -> Principal:
        raise Unauthorized

    millstream = Millstream(
        Settings(data_dir=tmp_path, max_lag_seconds=3600), providers={"s": ScriptedProvider()}
    )
    app = FastAPI(lifespan=millstream.lifespan)
    app.include_router(millstream.router)
    app.dependency_overrides[get_api_key] = nobody

    @app.get("/own")
    async def own(key: Principal = Depends(require_api_key())) -> None:
        pass

    async with millstream.lifespan(app):
        async with post(app, "/v1/chat", {"messages": []}, "") as call:
            await call.finished()
            assert (call.status, call.json["error"]["code"]) == (401, "unauthorized")
        async with get(app, "/own") as call:
            await call.finished()
            assert call.status == 401
            assert "API key" in call.json["detail"]


Login: TypeAlias = Callable[..., Any]


@asynccontextmanager
async def logged_in_by(login: Login, folder: Path) -> AsyncGenerator[FastAPI]:
    millstream = Millstream(
        Settings(data_dir=folder, max_lag_seconds=3600), providers={"s": ScriptedProvider()}
    )
    app = FastAPI(lifespan=millstream.lifespan)
    app.include_router(millstream.router)
    app.dependency_overrides[get_api_key] = login
    async with millstream.lifespan(app):
        yield app


def somebody(user: str = Depends(lambda: "ann")) -> Principal:
    return Principal(user, frozenset({"chat"}))


@pytest.mark.parametrize(
    ("login", "words"),
    [
        # What is started by "bob/x" would be seen by "bob".
        (lambda: Principal("bob/x", frozenset({"chat"})), "without a slash"),
        (lambda: Principal("x" * 129, frozenset({"chat"})), "1 to 128"),
        (lambda: Principal("", frozenset({"chat"})), "1 to 128"),
        (lambda: Principal("a\x00", frozenset({"chat"})), "printable"),
        (lambda: Principal(7, frozenset({"chat"})), "a text, not a int"),  # type: ignore[arg-type]
        (lambda: "ann", "returns a Principal, not a str"),
        (somebody, "takes the request or nothing"),
    ],
)
async def test_a_login_that_cannot_work_is_told_in_the_log(
    login: Login, words: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with logged_in_by(login, tmp_path) as app, get(app, "/v1/models") as call:
        await call.finished()
        assert (call.status, call.json["error"]["code"]) == (500, "internal")
        assert words in caplog.text


async def test_a_login_that_waits_holds_nobody_up(tmp_path: Path) -> None:
    may_go_on = threading.Event()

    def slow() -> Principal:
        assert may_go_on.wait(10)
        return Principal("ann", frozenset({"chat"}))

    async with logged_in_by(slow, tmp_path) as app, get(app, "/v1/models") as call:
        async with get(app, "/openapi.json") as other:
            await other.finished()
        may_go_on.set()
        await call.finished()
        assert call.status == 200


@pytest.fixture
def own_app(tmp_path: Path) -> FastAPI:
    """An application with a Millstream, under its most natural name."""
    provider = ScriptedProvider({"silent": [asyncio.Event().wait]})
    millstream = Millstream(Settings(data_dir=tmp_path, max_lag_seconds=3600), providers={"s": provider})
    app = FastAPI(lifespan=millstream.lifespan)
    app.include_router(millstream.router)
    app.state.millstream = millstream
    return app


def test_the_dependencies_work_on_a_web_socket(own_app: FastAPI) -> None:
    @own_app.websocket("/ws")
    async def talk(
        socket: WebSocket,
        key: Principal = Depends(get_api_key),
        caller: Principal = Depends(require_api_key()),
        llm: LLMService = Depends(get_llm_service),
        meter: Meter = Depends(get_meter),
    ) -> None:
        await socket.accept()
        await socket.send_json([key.id, caller.id, *llm.models, len(await meter.totals())])
        await socket.close()

    with TestClient(own_app) as client:
        assert client.portal is not None
        create = own_app.state.millstream.keys.create
        _, secret = client.portal.call(create, "n", ["chat"])
        _, other = client.portal.call(create, "n", ["usage"])
        with client.websocket_connect("/ws", headers={"X-API-Key": secret}) as socket:
            key_id, caller_id, *_, totals = socket.receive_json()
            assert (key_id, totals) == (caller_id, 0)
        for key, status in [("wrong", 401), (other, 403)]:
            with pytest.raises(WebSocketDenialResponse) as refused:
                with client.websocket_connect("/ws", headers={"X-API-Key": key}):
                    pass
            assert refused.value.status_code == status


class NotLoggedIn(Exception):
    pass


class Expired(NotLoggedIn):
    pass


def test_exceptions_of_ones_own_have_ones_own_handlers_on_every_route(own_app: FastAPI) -> None:
    @own_app.exception_handler(NotLoggedIn)
    async def to_login(request: Request, error: Exception) -> Response:
        return Response("log in", 401)

    @own_app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> Response:
        return Response("broken", 500)

    raised: list[Exception] = [NotLoggedIn(), Expired(), ValueError("x")]

    def nobody() -> Principal:
        raise raised.pop(0)

    own_app.dependency_overrides[get_api_key] = nobody
    with TestClient(own_app) as client:
        for _ in range(2):
            answer = client.post("/v1/chat", json={})
            assert (answer.status_code, answer.text) == (401, "log in")
        answer = client.post("/v1/chat", json={})
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal")


@pytest.mark.parametrize("path", ["/v1/chat", "/v1/chat/stream"])
async def test_who_leaves_before_the_response_begins_breaks_no_middleware(
    own_app: FastAPI, path: str
) -> None:
    """``BaseHTTPMiddleware`` raises where nothing was sent."""
    passed: list[int] = []

    @own_app.middleware("http")
    async def passes_on(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await call_next(request)
        passed.append(response.status_code)
        return response

    millstream: Millstream = own_app.state.millstream
    body = {"model": "silent", "messages": [{"role": "user", "content": "Hello"}]}
    async with millstream.lifespan(own_app):
        _, key = await millstream.keys.create("n", ["chat"])
        async with post(own_app, path, body, key) as call, asyncio.timeout(10):
            while not millstream.streams:
                await asyncio.sleep(0.01)
            call.leave()
            await call.finished()
        assert passed == [499]


async def test_settings_that_have_no_effect_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(data_dir=tmp_path, cors_origins=("https://page.example",), root_path="/ai")
    millstream = Millstream(settings, providers={"s": ScriptedProvider()})
    app = FastAPI(lifespan=millstream.lifespan)
    async with millstream.lifespan(app):
        assert "MILLSTREAM_CORS_ORIGINS lets no page in here" in caplog.text
        assert "MILLSTREAM_ROOT_PATH has no effect here" in caplog.text
    caplog.clear()
    app.add_middleware(CORSMiddleware, allow_origins=["https://page.example"])
    async with millstream.lifespan(app):
        assert "MILLSTREAM_CORS_ORIGINS" not in caplog.text
    caplog.clear()
    async with create_app(millstream).router.lifespan_context(app):
        assert "MILLSTREAM_" not in caplog.text
