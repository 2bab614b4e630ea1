"""Pages of other origins, and what their tracing and their SDKs put into a request's head."""

import pytest

from application import Run
from asgi import Exchange
from millstream.providers.scripted import ScriptedProvider

PAGE = "https://page.example"
# Tracing (W3C, Sentry, Datadog, Zipkin), what we read ourselves, and what SDKs and libraries send by default.
SENT = [
    "traceparent, tracestate, baggage",
    "sentry-trace, x-datadog-trace-id, b3, x-b3-traceid",
    "X-Request-Id, Last-Event-ID, Idempotency-Key, X-API-Key, Authorization, Content-Type",
    "x-stainless-lang, x-stainless-retry-count, x-stainless-timeout, openai-organization, openai-beta",
    "anthropic-version, anthropic-dangerous-direct-browser-access",
    "Cache-Control, X-Requested-With, User-Agent",
]


@pytest.mark.parametrize("headers", SENT)
@pytest.mark.parametrize("path", ["/v1/chat/stream", "/v1/chat", "/v1/models", "/v1/streams/str_1/events"])
async def test_a_page_that_may_ask_may_send_what_it_likes(run: Run, headers: str, path: str) -> None:
    """spec/faults.md: C35."""
    async with run({"s": ScriptedProvider()}, cors_origins=(PAGE,)) as app:
        preflight = {
            "Origin": PAGE,
            "Access-Control-Request-Method": "POST" if "chat" in path else "GET",
            "Access-Control-Request-Headers": headers,
        }
        async with Exchange(app.app, "OPTIONS", path, preflight) as call:
            await call.finished()
        assert call.status == 200
        assert call.response_headers["access-control-allow-origin"] == PAGE
        allowed = call.response_headers["access-control-allow-headers"].lower().split(", ")
        assert set(headers.lower().split(", ")) <= set(allowed)
        assert "access-control-allow-credentials" not in call.response_headers


async def test_other_pages_may_not(run: Run) -> None:
    async with run({"s": ScriptedProvider()}, cors_origins=(PAGE,)) as app:
        preflight = {"Origin": "https://other.example", "Access-Control-Request-Method": "POST"}
        async with Exchange(app.app, "OPTIONS", "/v1/chat", preflight) as call:
            await call.finished()
        assert call.status == 400
        assert "access-control-allow-origin" not in call.response_headers


@pytest.mark.parametrize("origins", [(PAGE,), ("*",)])
async def test_a_page_reads_what_a_client_needs_of_every_answer(run: Run, origins: tuple[str]) -> None:
    async with run({"s": ScriptedProvider()}, cors_origins=origins) as app:
        for key, expected in [(app.key, 200), ("wrong", 401)]:
            headers = {"Origin": PAGE, "Authorization": f"Bearer {key}"}
            body = b'{"messages":[{"role":"user","content":"x"}]}'
            async with Exchange(app.app, "POST", "/v1/chat", headers, body) as call:
                await call.finished()
            assert call.status == expected
            assert call.response_headers["access-control-allow-origin"] in (PAGE, "*")
            exposed = call.response_headers["access-control-expose-headers"].lower()
            assert exposed.split(", ") == [
                "location",
                "millstream-ignored",
                "request-id",
                "retry-after",
                "x-request-id",
                "x-should-retry",
                "x-stream-id",
                *(
                    f"x-ratelimit-{said}-{what}"
                    for said in ("limit", "remaining", "reset")
                    for what in ("requests", "tokens", "usd", "streams")
                ),
                *(
                    f"anthropic-ratelimit-{what}-{said}"
                    for said in ("limit", "remaining", "reset")
                    for what in ("requests", "tokens", "usd", "streams")
                ),
            ]
