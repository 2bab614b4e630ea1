"""What an application's own tests are written with. The guide shows this file's first test."""

from collections.abc import Callable
from pathlib import Path

from fastapi import FastAPI
from fastapi.testclient import TestClient

from millstream import Millstream, Settings
from millstream.providers.scripted import ScriptedProvider

pytest_plugins = ["millstream.testing"]


def test_a_chat(tmp_path: Path, scripted_provider: ScriptedProvider, api_key: Callable[..., str]) -> None:
    millstream = Millstream(
        Settings(data_dir=tmp_path, max_lag_seconds=3600), providers={"test": scripted_provider}
    )
    app = FastAPI(lifespan=millstream.lifespan)
    app.include_router(millstream.router)
    with TestClient(app) as client:
        headers = {"Authorization": f"Bearer {api_key(client, millstream)}"}
        body = {"model": "hello", "messages": [{"role": "user", "content": "Hi"}]}
        answer = client.post("/v1/chat", json=body, headers=headers).json()
        assert (answer["content"], answer["usage"]["completion_tokens"]) == ("Hello there.", 2)
        assert client.post("/v1/chat", json=body).status_code == 401
