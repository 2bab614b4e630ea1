"""The provider for OpenAI-compatible servers, against a server that does what each test says."""

import asyncio
import json
import ssl
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import trustme

from descriptors import no_descriptors
from millstream.errors import ProviderError
from millstream.events import ReasoningDelta, RefusalDelta, TextDelta
from millstream.messages import ChatRequest
from millstream.providers import Finish, Produced, ToolCallPiece
from millstream.providers.openai import OpenAIProvider
from millstream.providers.upstream import Clocks, Upstream
from millstream.usage import Usage
from oracle import Handler, Request, oracle

RECORDINGS = Path(__file__).parent / "recordings"
REQUEST = ChatRequest.model_validate({"messages": [{"role": "user", "content": "Hello"}]})


def provider(base_url: str, **clocks: float) -> OpenAIProvider:
    return OpenAIProvider(
        "p", base_url, Upstream("p", {"Authorization": "Bearer sk-canary"}, Clocks(**clocks))
    )


async def produce(
    handler: Handler, request: ChatRequest = REQUEST, **clocks: float
) -> list[Produced | ProviderError]:
    """Everything the provider produced, or the error it ended with as the last item."""
    async with oracle(handler) as server:
        asked = provider(server.base_url, **clocks)
        produced: list[Produced | ProviderError] = []
        try:
            async for batch in asked.stream(request, "m"):
                produced.extend(batch)
        except ProviderError as error:
            produced.append(error)
        finally:
            await asked.close()
        return produced


def chunk(
    delta: dict[str, str] | None = None, finish: str | None = None, **more: object
) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": delta or {}, "finish_reason": finish}], **more}


# -- what is read ----------------------------------------------------------------------------------


def recordings() -> list[Path]:
    return sorted(RECORDINGS.glob("*.json"))


@pytest.mark.parametrize("path", recordings(), ids=lambda p: p.stem)
@pytest.mark.parametrize("size", [1, 7, 100_000], ids=["bytes", "pieces", "whole"])
async def test_a_recorded_stream_is_read(path: Path, size: int) -> None:
    recording = json.loads(path.read_text(encoding="utf-8"))
    data = recording["stream"].encode()

    async def handler(request: Request) -> None:
        await request.head()
        for start in range(0, len(data), size):
            await request.chunk(data[start : start + size])
        await request.end()

    produced = await produce(handler)
    finish = produced[-1]
    assert isinstance(finish, Finish)
    expected = recording["expected"]
    assert "".join(p.text for p in produced if isinstance(p, TextDelta)) == expected["text"]
    assert "".join(p.text for p in produced if isinstance(p, ReasoningDelta)) == expected.get("reasoning", "")
    assert "".join(p.text for p in produced if isinstance(p, RefusalDelta)) == expected.get("refusal", "")
    calls: dict[int, dict[str, str]] = {}
    for piece in produced:
        if isinstance(piece, ToolCallPiece):
            call = calls.setdefault(piece.index, {"id": piece.call_id, "name": piece.name, "arguments": ""})
            call["arguments"] += piece.arguments
    assert list(calls.values()) == expected.get("tool_calls", [])
    assert finish.reason == expected["finish_reason"]
    assert finish.usage == (
        Usage(**expected["usage"], source="provider_final") if "usage" in expected else None
    )


async def test_the_request_asks_for_usage_and_nothing_of_ours_is_in_it() -> None:
    seen: dict[str, Any] = {}

    async def handler(request: Request) -> None:
        seen.update(request.json, headers=request.headers)
        await request.head()
        await request.finish()

    request = ChatRequest.model_validate(
        {
            "model": "ours",
            "messages": [{"role": "user", "content": "Hello"}],
            "max_tokens": 5,
            "on_disconnect": {"grace_seconds": 3},
            "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"a": 1}}},
        }
    )
    await produce(handler, request)
    headers = seen.pop("headers")
    assert seen == {
        "model": "m",
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 5,
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"a": 1}}},
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert headers["authorization"] == "Bearer sk-canary"
    assert headers["accept-encoding"] == "identity"


async def test_only_the_first_of_several_choices_is_taken() -> None:
    async def handler(request: Request) -> None:
        await request.head()
        await request.event(
            {"choices": [{"index": 1, "delta": {"content": "b"}}, {"index": 0, "delta": {"content": "a"}}]}
        )
        await request.finish()

    assert [p.text for p in await produce(handler) if isinstance(p, TextDelta)] == ["a"]


async def test_a_finish_reason_and_a_clean_end_are_an_end_without_done() -> None:
    async def handler(request: Request) -> None:
        await request.head()
        await request.say("a")
        await request.event(chunk(finish="length"))
        await request.end()

    assert (await produce(handler))[-1] == Finish("length", None)


async def test_an_empty_answer_is_an_answer() -> None:
    async def handler(request: Request) -> None:
        await request.head()
        await request.finish()

    assert await produce(handler) == [Finish("stop", None)]


@pytest.mark.parametrize(
    ("usages", "expected"),
    [
        (
            [{"prompt_tokens": 5, "completion_tokens": 1}, {"prompt_tokens": 5, "completion_tokens": 3}],
            (5, 3),
        ),
        (
            [{"prompt_tokens": 5, "completion_tokens": 3}, {"prompt_tokens": 5, "completion_tokens": -1}],
            None,
        ),
        ([{"prompt_tokens": 5, "completion_tokens": 10**12}], None),
        ([{"prompt_tokens": True, "completion_tokens": 1}], None),
        ([{"prompt_tokens": 1.5, "completion_tokens": "x"}], None),
        ([[1, 2]], None),
        (["nonsense"], None),
        ([{}], None),
    ],
)
async def test_usage_is_the_last_that_can_be_true(
    usages: list[object], expected: tuple[int, int] | None
) -> None:
    async def handler(request: Request) -> None:
        await request.head()
        for usage in usages:
            await request.event(chunk({"content": "a"}, usage=usage))
        await request.finish()

    finish = (await produce(handler))[-1]
    assert isinstance(finish, Finish)
    usage = finish.usage
    assert (usage and (usage.prompt_tokens, usage.completion_tokens)) == expected


async def test_usage_that_text_came_after_is_not_final() -> None:
    async def handler(request: Request) -> None:
        await request.head()
        await request.event(chunk({"content": "a"}, usage={"prompt_tokens": 5, "completion_tokens": 1}))
        await request.say("b c d")
        await request.finish()

    finish = (await produce(handler))[-1]
    assert isinstance(finish, Finish)
    assert finish.usage is None


# -- what goes wrong -------------------------------------------------------------------------------


async def cut(request: Request) -> None:
    await request.head()
    await request.say("a")
    request.cut()


async def reset(request: Request) -> None:
    await request.head()
    await request.say("a")
    request.cut(reset=True)


async def unfinished(request: Request) -> None:
    await request.head()
    await request.say("a")
    await request.end()


async def broken_json(request: Request) -> None:
    await request.head()
    await request.say("a")
    await request.event(b"{nonsense")


async def html(request: Request) -> None:
    await request.answer(200, b"<html>", ["content-type: text/html"])


async def plain_json(request: Request) -> None:
    await request.answer(200, {"choices": []})


async def compressed(request: Request) -> None:
    await request.answer(200, b"x", ["content-type: text/event-stream", "content-encoding: gzip"])


async def error_event(request: Request) -> None:
    await request.head()
    await request.say("a")
    await request.event({"error": {"message": "sk-canary is bad", "code": "server_error"}})
    await request.event(b"[DONE]")
    await request.end()


async def error_finish(request: Request) -> None:
    await request.head()
    await request.event(chunk({"content": ""}, finish="error"))


async def endless_line(request: Request) -> None:
    await request.head()
    while True:
        await request.chunk(b"x" * 65_536)


async def endless_event(request: Request) -> None:
    await request.head()
    while True:
        await request.chunk(b"data: x\n" * 8192)


async def redirect(request: Request) -> None:
    await request.answer(302, b"", ["location: http://169.254.169.254/"])


def status(code: int, error: dict[str, str] | None = None, *headers: str) -> Handler:
    async def handler(request: Request) -> None:
        await request.answer(code, {"error": error or {"message": "sk-canary"}}, headers)

    return handler


FAILURES = [
    (cut, "upstream_error", True),
    (reset, "upstream_error", True),
    (unfinished, "upstream_error", True),
    (broken_json, "upstream_error", True),
    (html, "upstream_error", True),
    (plain_json, "upstream_error", True),
    (compressed, "upstream_error", True),
    (error_event, "upstream_error", True),
    (error_finish, "upstream_error", True),
    (endless_line, "upstream_error", True),
    (endless_event, "upstream_error", True),
    (redirect, "upstream_error", True),
    (status(400, {"code": "context_length_exceeded", "message": "sk-canary"}), "upstream_refused", False),
    (status(401), "upstream_refused", False),
    (status(404), "model_not_found", False),
    (status(408), "upstream_timeout", True),
    (status(429), "upstream_rate_limited", True),
    (status(500), "upstream_error", True),
    (status(503), "upstream_error", True),
    (status(529), "upstream_error", True),
]


@pytest.mark.parametrize(
    ("handler", "code", "retryable"), FAILURES, ids=lambda v: getattr(v, "__name__", None)
)
async def test_every_failure_is_one_of_the_list_and_says_nothing_of_the_provider(
    handler: Handler, code: str, retryable: bool
) -> None:
    error = (await produce(handler))[-1]
    assert isinstance(error, ProviderError)
    assert (error.code, error.retryable) == (code, retryable)
    assert "canary" not in str(error)
    assert "127.0.0.1" not in str(error)


@pytest.mark.parametrize("body", [b"[" * 30_000, b'{"error":' * 5000, b"\xff", b"1" * 60_000])
async def test_a_refusal_of_any_form_is_a_refusal(body: bytes) -> None:
    async def refuse(request: Request) -> None:
        await request.answer(400, body)

    error = (await produce(refuse))[-1]
    assert isinstance(error, ProviderError)
    assert error.code == "upstream_refused"


async def test_a_flood_of_comments_does_not_hold_up_others() -> None:
    async def flood(request: Request) -> None:
        await request.head()
        for _ in range(64):
            await request.chunk(b":abc\n" * 13_000)
        await request.finish()

    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    others = asyncio.create_task(count())
    await produce(flood)
    others.cancel()
    assert turns > 32  # at least once for each read, of which none is over 128 KiB


async def test_a_known_reason_is_told_in_our_words() -> None:
    error = (await produce(status(400, {"code": "context_length_exceeded"})))[-1]
    assert str(error) == (
        "provider 'p' refused the request (HTTP 400): the conversation is longer than the model's context"
    )


@pytest.mark.parametrize(
    ("value", "seconds"), [("7", 7), ("1.5", 2), ("999999", 3600), ("Wed, 21 Oct 2026 07:28:00 GMT", None)]
)
async def test_the_providers_retry_after_is_kept(value: str, seconds: int | None) -> None:
    error = (await produce(status(429, None, f"retry-after: {value}")))[-1]
    assert isinstance(error, ProviderError)
    assert error.retry_after_seconds == seconds


async def test_text_before_a_cut_is_kept_whatever_the_byte(tmp_path: Path) -> None:
    """Cut inside an event, inside a character, inside a chunk's header: no piece is half."""
    events = b"".join(
        b"data: " + json.dumps(chunk({"content": text}), ensure_ascii=False).encode() + b"\n\n"
        for text in ("Grüße", "€", "😀")
    )
    for at in range(0, len(events), 5):

        async def handler(request: Request, at: int = at) -> None:
            await request.head()
            await request.chunk(events[:at])
            request.cut()

        produced = await produce(handler)
        error = produced[-1]
        assert isinstance(error, ProviderError)
        assert error.code == "upstream_error"
        text = "".join(p.text for p in produced if isinstance(p, TextDelta))
        assert text in ("", "Grüße", "Grüße€", "Grüße€😀")


async def silent_before_headers(request: Request) -> None:
    await asyncio.Event().wait()


async def silent_before_the_first_byte(request: Request) -> None:
    await request.head()
    await asyncio.Event().wait()


async def silent_between_tokens(request: Request) -> None:
    await request.head()
    await request.say("a")
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("handler", "clocks"),
    [
        (silent_before_headers, {"first_byte": 0.1}),
        (silent_before_the_first_byte, {"first_byte": 0.1}),
        (silent_between_tokens, {"first_byte": 30, "idle": 0.1}),
    ],
)
async def test_silence_ends_when_its_clock_does(handler: Handler, clocks: dict[str, float]) -> None:
    async with asyncio.timeout(5):
        error = (await produce(handler, REQUEST, **clocks))[-1]
    assert isinstance(error, ProviderError)
    assert error.code == "upstream_timeout"


async def test_headers_do_not_start_the_clock_of_the_first_byte_anew() -> None:
    async def late_headers(request: Request) -> None:
        await asyncio.sleep(0.7)
        await request.head()
        await asyncio.Event().wait()

    started = asyncio.get_running_loop().time()
    error = (await produce(late_headers, first_byte=1))[-1]
    assert isinstance(error, ProviderError)
    assert error.code == "upstream_timeout"
    assert asyncio.get_running_loop().time() - started < 1.5


async def test_nobody_listening_is_told_at_once() -> None:
    async with oracle(silent_before_headers) as server:
        url = server.base_url
    asked = provider(url)
    with pytest.raises(ProviderError, match="cannot be reached: the connection was refused") as caught:
        async with aclosing(asked.stream(REQUEST, "m")) as batches:
            await anext(batches)
    assert not caught.value.accepted
    await asked.close()


async def test_a_name_that_does_not_resolve_is_told() -> None:
    asked = provider("http://nowhere.invalid/v1")
    with pytest.raises(ProviderError, match="its host name does not resolve"):
        async with aclosing(asked.stream(REQUEST, "m")) as batches:
            await anext(batches)
    await asked.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "nowhere.invalid"])
async def test_a_worker_without_descriptors_says_so_and_blames_no_provider(host: str) -> None:
    """spec/faults.md: P8."""
    async with oracle(silent_before_headers) as server:
        asked = provider(server.base_url.replace("127.0.0.1", host))
        with no_descriptors(), pytest.raises(ProviderError, match="no connections left") as caught:
            async with aclosing(asked.stream(REQUEST, "m")) as batches:
                await anext(batches)
        await asked.close()
        assert server.requests == []
    error = caught.value
    assert (error.code, error.status, error.retryable, error.accepted) == ("overloaded", 503, True, False)


async def test_a_certificate_that_nobody_vouches_for_is_not_accepted() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    async with oracle(silent_before_headers, tls=context) as server:
        asked = provider(server.base_url.replace("http://", "https://"))
        with pytest.raises(ProviderError, match="its TLS certificate was not accepted") as caught:
            async with aclosing(asked.stream(REQUEST, "m")) as batches:
                await anext(batches)
        assert "127.0.0.1" not in str(caught.value)
        assert server.requests == []
        await asked.close()


# -- letting go ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "handler", [silent_before_headers, silent_before_the_first_byte, silent_between_tokens]
)
async def test_cancelling_closes_the_connection(handler: Handler) -> None:
    async with oracle(handler) as server:
        asked = provider(server.base_url)

        async def read() -> None:
            async with aclosing(asked.stream(REQUEST, "m")) as batches:
                async for _ in batches:
                    pass

        task = asyncio.create_task(read())
        async with asyncio.timeout(5):
            await server.arrived.wait()
            task.cancel()
            await server.requests[0].gone.wait()
        await asyncio.gather(task, return_exceptions=True)
        await asked.close()


async def test_connections_are_used_again_and_survive_thousands_of_cancels() -> None:
    async def handler(request: Request) -> None:
        await request.head()
        await request.say("a")
        await request.finish()

    async with oracle(handler) as server:
        asked = provider(server.base_url)
        for _ in range(5):
            async for _ in asked.stream(REQUEST, "m"):
                pass
        assert server.connections == 1

        async def start_and_cancel() -> None:
            task = asyncio.create_task(anext(asked.stream(REQUEST, "m")))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        for _ in range(100):
            await asyncio.gather(*(start_and_cancel() for _ in range(20)))
        async with asyncio.timeout(5):
            last = [item async for batch in asked.stream(REQUEST, "m") for item in batch][-1]
        assert isinstance(last, Finish)
        assert last.reason == "stop"
        await asked.close()


async def test_a_server_that_keeps_the_connection_open_after_done_does_not_delay_the_end() -> None:
    async def handler(request: Request) -> None:
        await request.head()
        await request.event(chunk(finish="stop"))
        await request.event(b"[DONE]")
        await asyncio.Event().wait()

    async with oracle(handler) as server:
        asked = provider(server.base_url)
        async with asyncio.timeout(2), aclosing(asked.stream(REQUEST, "m")) as batches:
            assert (await anext(batches))[-1] == Finish("stop", None)
        await asked.close()


async def test_models_are_asked_for() -> None:
    async def handler(request: Request) -> None:
        await request.answer(200, {"data": [{"id": "a"}, {"id": "b"}]})

    async with oracle(handler) as server:
        asked = provider(server.base_url)
        assert await asked.models() == ["a", "b"]
        await asked.close()
