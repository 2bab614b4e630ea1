"""No cache keeps an answer of ours: many carry a secret, and all are about one caller. spec/faults.md: A16."""

from pathlib import Path

import pytest
from fastapi import FastAPI

from asgi import Exchange, delete, get, patch, post, put
from millstream import Millstream, Settings, create_app
from millstream.dialects.responses.ids import response_id
from millstream.events import TextDelta
from millstream.providers import Finish
from millstream.providers.scripted import ScriptedProvider
from millstream.usage import Usage

BODY = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
OF_A_PAGE = {"id": "chat-1", "messages": [{"role": "user", "parts": [{"type": "text", "text": "Hello"}]}]}
OF_AN_AGENT = {"threadId": "t", "runId": "r", "messages": [{"id": "1", "role": "user", "content": "Hello"}]}
END = Finish("stop", Usage(9, 2, "provider_final"))
PROVIDERS = {"s": ScriptedProvider({"m": [TextDelta("Hello"), END]})}


@pytest.mark.parametrize("whose", ["ours", "somebody else's"])
async def test_every_answer_says_that_it_is_not_to_be_kept(tmp_path: Path, whose: str) -> None:
    millstream = Millstream(Settings(data_dir=tmp_path, max_lag_seconds=3600), providers=PROVIDERS)
    if whose == "ours":
        app = create_app(millstream)
    else:
        app = FastAPI(lifespan=millstream.lifespan)
        app.include_router(millstream.router)
    async with millstream.lifespan(app):
        _, key = await millstream.keys.create("n", ["chat", "usage", "admin"])
        made, _ = await millstream.keys.create("other", ["chat"])
        rotated, _ = await millstream.keys.create("rotated", ["chat"])
        async with post(app, "/v1/streams", BODY, key) as call:
            started = (await call.finished()).json
        await millstream.streams.idle()
        stream, events = f"/v1/streams/{started['stream_id']}", started["events_url"]
        limits = f"/v1/keys/{made.id}/limits"
        response = f"/v1/responses/{response_id(started['stream_id'])}"
        good = {
            ("post", "/v1/responses"): (post(app, "/v1/responses", {"input": "Hello"}, key), 200),
            ("get", "/v1/responses/{response_id}"): (get(app, response, key), 200),
            ("post", "/v1/responses/{response_id}/cancel"): (
                post(app, f"{response}/cancel", b"", key),
                200,
            ),
            ("post", "/v1/chat/stream"): (post(app, "/v1/chat/stream", BODY, key), 200),
            ("post", "/v1/chat"): (post(app, "/v1/chat", BODY, key), 200),
            ("post", "/v1/chat/completions"): (post(app, "/v1/chat/completions", BODY, key), 200),
            ("post", "/v1/messages"): (post(app, "/v1/messages", {**BODY, "max_tokens": 9}, key), 200),
            ("post", "/v1/messages/count_tokens"): (post(app, "/v1/messages/count_tokens", BODY, key), 200),
            ("post", "/ag-ui"): (post(app, "/ag-ui", OF_AN_AGENT, key), 200),
            ("post", "/api/chat"): (post(app, "/api/chat", OF_A_PAGE, key), 200),
            ("get", "/api/chat/{chat_id}/stream"): (get(app, "/api/chat/chat-1/stream", key), 204),
            ("post", "/api/chat/{chat_id}/stop"): (post(app, "/api/chat/chat-1/stop", b"", key), 200),
            ("get", "/v1/models"): (get(app, "/v1/models", key), 200),
            ("get", "/v1/models/{model_id}"): (get(app, "/v1/models/scripted", key), 200),
            ("get", "/v1/streams"): (get(app, "/v1/streams", key), 200),
            ("post", "/v1/streams"): (post(app, "/v1/streams", BODY, key), 201),
            ("get", "/v1/streams/{stream_id}/events"): (get(app, events), 200),
            ("get", "/v1/streams/{stream_id}"): (get(app, stream, key), 200),
            ("post", "/v1/streams/{stream_id}/cancel"): (post(app, f"{stream}/cancel", b"", key), 200),
            ("post", "/v1/keys"): (post(app, "/v1/keys", {"name": "n"}, key), 201),
            ("get", "/v1/keys"): (get(app, "/v1/keys", key), 200),
            ("patch", "/v1/keys/{key_id}"): (patch(app, f"/v1/keys/{made.id}", {"name": "m"}, key), 200),
            ("post", "/v1/keys/{key_id}/rotate"): (post(app, f"/v1/keys/{rotated.id}/rotate", {}, key), 200),
            ("delete", "/v1/keys/{key_id}"): (delete(app, f"/v1/keys/{made.id}", key), 200),
            ("put", "/v1/keys/{key_id}/limits"): (put(app, limits, {"limits": []}, key), 200),
            ("get", "/v1/keys/{key_id}/limits"): (get(app, limits, key), 200),
            ("post", "/v1/tokens"): (post(app, "/v1/tokens", {}, key), 201),
            ("get", "/v1/usage"): (get(app, "/v1/usage", key), 200),
            ("get", "/healthz"): (get(app, "/healthz"), 200),
            ("get", "/readyz"): (get(app, "/readyz"), 200),
        }
        operations = {(method, path) for path, item in app.openapi()["paths"].items() for method in item}
        assert operations == (
            good.keys()
            if whose == "ours"
            else {o for o in good if o[1].startswith(("/v1/", "/api/", "/ag-ui"))}
        )
        for operation in operations:
            exchange, status = good[operation]
            await kept_by_nobody(exchange, status)
        ended = {"Last-Event-ID": "1-5", "Authorization": f"Bearer {key}"}
        await kept_by_nobody(Exchange(app, "GET", f"{stream}/events", ended), 204)
        for method, path in operations:
            if path.startswith(("/v1/", "/api/", "/ag-ui")):
                ids = {"stream_id": started["stream_id"], "response_id": "resp_x", "chat_id": "x"}
                path = path.format(**ids, key_id="key_x", model_id="x")
                await kept_by_nobody(Exchange(app, method.upper(), path), 401)
        await kept_by_nobody(get(app, "/v1/streams/str_none", key), 404)
        await kept_by_nobody(post(app, "/v1/tokens", b"{", key), 400)


async def kept_by_nobody(exchange: Exchange, status: int) -> None:
    async with exchange as call:
        await call.finished()
        assert call.status == status, (exchange.path, call.received)
        said = call.response_headers.get("cache-control", "").split(", ")
        assert "no-store" in said, (exchange.method, exchange.path, status)
