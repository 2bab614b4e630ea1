"""What a provider says reaches the frames, the ledger and the receipt. spec/faults.md: U4, U12, U17."""

import json
import logging
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from application import Run
from asgi import get, post
from millstream.events import TextDelta
from millstream.providers import Finish, UsageReport
from millstream.providers.scripted import Script, ScriptedProvider
from millstream.usage import Usage
from oracle import Request, oracle
from services import postgres_server

BODY = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}


async def ask(
    run: Run, events: bytes, price: dict[str, str] | None = None, **settings: Any
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The frames that come of the provider's ``events``, sent in one write, and the receipt as the operator sees it."""

    async def handler(request: Request) -> None:
        if request.path.endswith("/models"):
            return await request.answer(200, {"data": [{"id": "m"}]})
        await request.head()
        await request.chunk(events)
        return await request.end()

    if price:
        settings["prices"] = {"m": price}
    async with oracle(handler) as server, run(openai=server, **settings) as app:
        async with post(app.app, "/v1/chat/stream", BODY, app.key) as exchange:
            await exchange.finished()
        await app.idle()
        stream_id = exchange.frames[0]["stream_id"]
        async with get(app.app, f"/v1/streams/{stream_id}", app.admin) as call:
            receipt = (await call.finished()).json
            counted = receipt["usage"] | {"usage_source": receipt["usage"]["source"]}
            return [frame for frame in exchange.frames if isinstance(frame, dict)], receipt | counted


def event(value: object) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def say(text: str, finish: str | None = None) -> bytes:
    return event({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]})


DONE = b"data: [DONE]\n\n"


async def test_words_that_come_with_a_fault_in_one_read_are_delivered_and_counted(run: Run) -> None:
    words = "".join(f"word{i} " for i in range(300))
    events = b"".join(say(f"word{i} ") for i in range(300)) + event({"error": {"code": "server_error"}})
    frames, receipt = await ask(run, events + DONE)
    assert "".join(frame.get("delta", "") for frame in frames) == words
    assert frames[-1]["error"]["code"] == "upstream_error"
    assert receipt["status"] == "failed"
    assert receipt["completion_tokens"] >= 300
    assert receipt["prompt_tokens"] > 0
    assert frames[-1]["usage"]["completion_tokens"] == receipt["completion_tokens"]


async def test_an_error_that_says_what_was_used_is_billed_as_it_says(run: Run) -> None:
    usage = {"prompt_tokens": 1100, "completion_tokens": 700, "total_tokens": 1800}
    frames, receipt = await ask(
        run,
        say("half") + event({"error": {"code": "server_error"}, "usage": usage}) + DONE,
        {"input": "1", "output": "2"},
    )
    counted = (receipt["prompt_tokens"], receipt["completion_tokens"], receipt["usage_source"])
    assert counted == (1100, 700, "provider_partial")
    assert receipt["cost_usd"] == frames[-1]["usage"]["cost_usd"] == "0.002500"
    assert receipt["provider_usage"] == usage


async def test_the_receipt_keeps_the_providers_own_words(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    usage = {"prompt_tokens": 11, "completion_tokens": 7, "cost": 0.00014, "cost_details": {"x": None}}
    with caplog.at_level(logging.WARNING, "millstream"):
        for _ in range(2):
            frames, receipt = await ask(run, say("a", "wound_up") + event({"usage": usage}) + DONE)
    assert frames[-1]["finish_reason"] == receipt["finish_reason"] == "stop"
    assert receipt["status"] == "completed"
    assert receipt["provider_finish_reason"] == "wound_up"
    assert receipt["provider_usage"] == usage
    assert receipt["provider_cost_usd"] == "0.000140"
    assert receipt["cost_usd"] is None
    assert [record.message for record in caplog.records if "wound_up" in record.message] == [
        "provider oracle ends answers with 'wound_up', which nobody here knows: taken as 'stop'"
    ]


async def test_words_that_no_database_takes_cost_no_settlement(run: Run) -> None:
    usage = b'data: {"usage":{"prompt_tokens":11,"completion_tokens":7,"x":NaN,"y":%d}}\n\n' % (2**70)
    with postgres_server() as postgres:
        events = say("a", "st\0op") + usage + DONE
        frames, receipt = await ask(run, events, database_url=postgres.url)
    assert frames[-1]["finish_reason"] == "stop"
    assert (receipt["status"], receipt["completion_tokens"]) == ("completed", 7)
    assert receipt["provider_finish_reason"] == "st\\x00op"
    assert receipt["provider_usage"]["completion_tokens"] == 7


async def test_a_usage_object_without_end_is_not_kept(run: Run) -> None:
    usage = {"prompt_tokens": 11, "completion_tokens": 7, "more": "x" * 5000}
    _, receipt = await ask(run, say("a", "stop") + event({"usage": usage}) + DONE)
    assert (receipt["completion_tokens"], receipt["provider_usage"]) == (7, None)


async def test_a_prompt_that_the_provider_does_not_count_is_counted(run: Run) -> None:
    usage = {"prompt_tokens": 0, "completion_tokens": 7}
    _, receipt = await ask(run, say("a", "stop") + event({"usage": usage}) + DONE)
    assert receipt["prompt_tokens"] > 0
    assert (receipt["completion_tokens"], receipt["usage_source"]) == (7, "counted")


async def test_an_answer_without_a_word_is_billed_as_its_provider_says(run: Run) -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 0}
    begin = event({"id": "chatcmpl-1", "choices": [{"index": 0, "delta": {"role": "assistant"}}]})
    _, receipt = await ask(run, begin + say("", "stop") + event({"choices": [], "usage": usage}) + DONE)
    counted = (receipt["prompt_tokens"], receipt["completion_tokens"], receipt["usage_source"])
    assert counted == (9, 0, "provider_final")


async def failing_before_the_first_word(request: Request) -> None:
    if request.path.endswith("/models"):
        return await request.answer(200, {"data": [{"id": "m"}]})
    await request.head()
    await request.event({"id": "chatcmpl-1", "choices": [{"index": 0, "delta": {"role": "assistant"}}]})
    usage = {"prompt_tokens": 1100, "completion_tokens": 7}
    await request.event({"error": {"code": "server_error"}, "usage": usage})
    return await request.end()


async def test_what_is_known_of_an_answer_before_its_first_word_is_no_answer(run: Run) -> None:
    async with oracle(failing_before_the_first_word) as server, run(openai=server) as app:
        for path in ("/v1/chat/stream", "/v1/chat"):
            async with post(app.app, path, BODY, app.key) as call:
                await call.finished()
                assert call.status == 502
                assert call.json["error"]["code"] == "upstream_error"


async def test_an_error_before_the_first_word_is_billed_as_it_says(run: Run) -> None:
    async with oracle(failing_before_the_first_word) as server, run(openai=server) as app:
        async with post(app.app, "/v1/chat/stream", BODY, app.key) as call:
            await call.finished()
        (row,) = await app.receipts()
        counted = (row["prompt_tokens"], row["completion_tokens"], row["usage_source"])
        assert counted == (1100, 7, "provider_partial")


async def test_of_answers_that_nobody_asked_for_nothing_is_shown(run: Run) -> None:
    def choices(*texts: str) -> bytes:
        return event({"choices": [{"index": i, "delta": {"content": text}} for i, text in enumerate(texts)]})

    events = choices("a", "x") + choices("b", "y") + say("", "stop") + DONE
    frames, _ = await ask(run, events)
    assert "".join(frame.get("delta", "") for frame in frames) == "ab"


@pytest.mark.parametrize(
    "raw", [{"x": object()}, {"x": 2**70}, {"x": "\ud800"}], ids=["object", "int", "half"]
)
@pytest.mark.parametrize("journal", ["memory", "redis"])
async def test_a_usage_object_that_nobody_can_write_costs_no_end(
    run: Run, raw: dict[str, Any], journal: str, redis_url: str
) -> None:
    """Of a provider that is given to a Millstream by the application it is in."""
    usage = Usage(3, 2, "provider_partial")
    script: Script = [TextDelta("a"), UsageReport(usage, raw), Finish("stop", usage, "stop")]
    where: dict[str, Any] = {"journal_url": redis_url} if journal == "redis" else {}
    async with run({"p": ScriptedProvider({"m": script})}, **where) as app:
        async with post(app.app, "/v1/chat/stream", BODY, app.key) as call:
            await call.finished()
        assert call.frames[-1] == "[DONE]"
        (row,) = await app.receipts()
        assert (row["status"], row["completion_tokens"]) == ("completed", 2)


async def test_a_file_is_a_frame_and_part_of_the_whole_answer(run: Run) -> None:
    url = "data:image/png;base64," + "A" * 2_000_000
    image = {"type": "image_url", "image_url": {"url": url}}
    delta = {"content": "see", "images": [image]}
    frames, receipt = await ask(
        run, event({"choices": [{"index": 0, "delta": delta}]}) + say("", "stop") + DONE
    )
    assert [frame["file"] for frame in frames if "file" in frame] == [{"media_type": "image/png", "url": url}]
    assert receipt["status"] == "completed"


D = Decimal

# Usage objects as the vendors' references show them, dollars for a million tokens of input, cached input and
# output, and the vendor's own sum over its own fields.
VENDORS: dict[str, tuple[dict[str, Any], tuple[str, str, str], Callable[[dict[str, Any]], Decimal]]] = {
    "openai": (
        {
            "prompt_tokens": 2006,
            "completion_tokens": 300,
            "total_tokens": 2306,
            "prompt_tokens_details": {"cached_tokens": 1920, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 192, "accepted_prediction_tokens": 0},
        },
        ("0.25", "0.025", "2"),
        lambda u: (u["prompt_tokens"] - 1920) * D("0.25") + 1920 * D("0.025") + u["completion_tokens"] * 2,
    ),
    "deepseek": (
        {
            "prompt_tokens": 1200,
            "completion_tokens": 640,
            "total_tokens": 1840,
            "prompt_cache_hit_tokens": 1024,
            "prompt_cache_miss_tokens": 176,
            "completion_tokens_details": {"reasoning_tokens": 500},
        },
        ("0.27", "0.07", "1.10"),
        lambda u: (
            u["prompt_cache_hit_tokens"] * D("0.07")
            + u["prompt_cache_miss_tokens"] * D("0.27")
            + 640 * D("1.10")
        ),
    ),
    "xai": (
        {
            "prompt_tokens": 32,
            "completion_tokens": 9,
            "total_tokens": 151,
            "prompt_tokens_details": {"text_tokens": 32, "cached_tokens": 6},
            "completion_tokens_details": {"reasoning_tokens": 110},
        },
        ("0.30", "0.075", "0.50"),
        lambda u: (32 - 6) * D("0.30") + 6 * D("0.075") + (u["completion_tokens"] + 110) * D("0.50"),
    ),
    "gemini": (
        {"prompt_tokens": 12, "completion_tokens": 5, "total_tokens": 317},
        ("0.30", "0.03", "2.50"),
        lambda u: 12 * D("0.30") + (u["total_tokens"] - 12) * D("2.50"),
    ),
    "moonshot": (
        {"prompt_tokens": 1900, "completion_tokens": 40, "total_tokens": 1940, "cached_tokens": 1792},
        ("0.60", "0.15", "2.50"),
        lambda u: (1900 - u["cached_tokens"]) * D("0.60") + u["cached_tokens"] * D("0.15") + 40 * D("2.50"),
    ),
}


@pytest.mark.parametrize("vendor", VENDORS)
async def test_the_cost_is_the_vendors_own_sum(run: Run, vendor: str) -> None:
    usage, (of_input, of_cached, of_output), own_sum = VENDORS[vendor]
    price = {"input": of_input, "cached_input": of_cached, "output": of_output}
    frames, receipt = await ask(run, say("a", "stop") + event({"choices": [], "usage": usage}) + DONE, price)
    assert Decimal(receipt["cost_usd"]) == own_sum(usage) / 1_000_000
    assert frames[-1]["usage"]["cost_usd"] == receipt["cost_usd"]
