"""The example application, run as its reader would."""

import importlib.util
from collections.abc import AsyncGenerator
from pathlib import Path
from types import ModuleType

import pytest
from fastapi import Depends, FastAPI

from asgi import get, post
from millstream import ChatMessage, ChunkResponse, Millstream, Settings, get_api_key
from millstream.errors import ModelNotFound, UpstreamError
from millstream.events import TextDelta
from millstream.providers import Finish
from millstream.providers.scripted import Script, ScriptedProvider

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
    (total,) = [t for t in await example.millstream.meter.totals("model") if t.group == "summary"]
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
    millstream = Millstream(Settings(data_dir=tmp_path), providers={"s": ScriptedProvider(scripts)})
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
