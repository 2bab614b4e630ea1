"""Chat over ASGI: what goes over the wire, and what is left in the ledger."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, NoReturn

import pytest
import sqlalchemy as sa
from starlette.types import Message

from application import Run
from asgi import Exchange, get, post
from descriptors import no_descriptors
from millstream.database import DatabaseAway
from millstream.errors import ProviderError, UpstreamError, UpstreamRateLimited, UpstreamRefused
from millstream.events import ReasoningDelta, RefusalDelta, TextDelta
from millstream.prompt import Prompt
from millstream.providers import Finish, InChoice, Produced, Provider, ToolCallPiece, UsageReport
from millstream.providers.scripted import Script, ScriptedProvider, Step
from millstream.server.app import Millstream, create_app
from millstream.server.streaming import event_stream as streaming
from millstream.settings import ProviderSettings, Settings
from millstream.streams.tally import Tally
from millstream.tokens import Tokenizer
from millstream.usage import Usage

USAGE = Usage(9, 2, "provider_final")
HELLO: Script = [TextDelta("Hel"), TextDelta("lo"), Finish("stop", USAGE)]
BODY = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}


def scripted(**scripts: Script) -> dict[str, Provider]:
    return {"scripted": ScriptedProvider({"m": HELLO, **scripts})}


async def test_an_answer_is_streamed_frame_by_frame(run: Run) -> None:
    async with run(scripted()) as app, post(app.app, "/v1/chat/stream", BODY, app.key) as call:
        await call.finished()
        assert call.status == 200
        stream_id = call.response_headers["x-stream-id"]
        assert call.response_headers.pop("x-request-id").startswith("req_")
        assert call.response_headers == {
            "content-type": "text/event-stream; charset=utf-8",
            "cache-control": "no-store, no-transform",
            "x-accel-buffering": "no",
            "x-stream-id": stream_id,
            "location": f"/v1/streams/{stream_id}",
        }
        assert call.received.decode() == (
            f'retry: 1000\nid: 1-1\ndata: {{"delta":"","finish_reason":null,"stream_id":"{stream_id}",'
            '"model":"m"}\n\n'
            'id: 1-2\ndata: {"delta":"","finish_reason":null}\n\n'
            'id: 1-3\ndata: {"delta":"Hel","finish_reason":null}\n\n'
            'id: 1-4\ndata: {"delta":"lo","finish_reason":null}\n\n'
            'id: 1-5\ndata: {"delta":"","finish_reason":null}\n\n'
            'id: 1-6\ndata: {"delta":"","finish_reason":"stop","usage":{"prompt_tokens":9,'
            '"completion_tokens":2,"total_tokens":11,"source":"provider_final","cost_usd":null}}\n\n'
            "data: [DONE]\n\n"
        )
        (row,) = await app.receipts()
        assert (row["status"], row["finish_reason"], row["completion_tokens"]) == ("completed", "stop", 2)
        assert row["key_id"] == app.key_id
        async with get(app.app, f"/v1/streams/{stream_id}", app.key) as receipt:
            assert (await receipt.finished()).json["usage"]["source"] == "provider_final"
        async with get(app.app, f"/v1/streams/{stream_id}", app.admin) as receipt:
            assert (await receipt.finished()).status == 200
        _, other = await app.millstream.keys.create("other", ["chat"])
        async with get(app.app, f"/v1/streams/{stream_id}", other) as receipt:
            assert (await receipt.finished()).status == 404


async def test_the_whole_answer_comes_as_json(run: Run) -> None:
    script: Script = [
        ReasoningDelta("hm"),
        TextDelta("Hello"),
        RefusalDelta("no"),
        ToolCallPiece(0, '{"a":', "call_1", "look"),
        ToolCallPiece(0, "1}"),
        Finish("tool_calls", USAGE),
    ]
    async with run(scripted(m=script)) as app, post(app.app, "/v1/chat", BODY, app.key) as call:
        answer = (await call.finished()).json
        assert call.status == 200
        assert answer.pop("stream_id") == call.response_headers["x-stream-id"]
        assert answer == {
            "model": "m",
            "content": "Hello",
            "reasoning": "hm",
            "refusal": "no",
            "tool_calls": [
                {
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "look", "arguments": '{"a":1}'},
                }
            ],
            "finish_reason": "tool_calls",
            "usage": {
                "prompt_tokens": 9,
                "completion_tokens": 2,
                "total_tokens": 11,
                "source": "provider_final",
                "cost_usd": None,
            },
        }


async def test_every_kind_of_part_has_its_frame(run: Run) -> None:
    script: Script = [
        ReasoningDelta("hm"),
        RefusalDelta("no"),
        ToolCallPiece(0, "{}", "call_1", "look"),
        Finish("tool_calls", USAGE),
    ]
    async with run(scripted(m=script)) as app, post(app.app, "/v1/chat/stream", BODY, app.key) as call:
        frames = (await call.finished()).frames
        assert [f for f in frames[1:-2] if len(f) > 2] == [
            {"delta": "", "finish_reason": None, "reasoning": "hm"},
            {"delta": "", "finish_reason": None, "refusal": "no"},
            {
                "delta": "",
                "finish_reason": None,
                "tool_call": {"index": 0, "id": "call_1", "name": "look"},
            },
            {"delta": "", "finish_reason": None, "tool_call": {"index": 0, "arguments": "{}"}},
        ]


@pytest.mark.parametrize("path", ["/v1/chat/stream", "/v1/chat"])
@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (UpstreamError("it broke"), 502, "upstream_error"),
        (UpstreamRefused("it said no"), 502, "upstream_refused"),
        (UpstreamRateLimited("slow down", retry_after_seconds=7), 429, "upstream_rate_limited"),
    ],
)
async def test_a_failure_before_the_first_token_is_a_status(
    run: Run, path: str, error: ProviderError, status: int, code: str
) -> None:
    async with run(scripted(m=[error])) as app, post(app.app, path, BODY, app.key) as call:
        await call.finished()
        assert call.status == status
        assert call.json["error"]["code"] == code
        assert call.response_headers.get("retry-after") == ("7" if status == 429 else None)
        (row,) = await app.receipts()
        assert (row["status"], row["error_code"]) == ("failed", code)
        assert row["completion_tokens"] == 0


async def test_a_failure_after_the_first_token_is_the_last_frame(run: Run) -> None:
    gate = asyncio.Event()
    script: Script = [TextDelta("Hel"), gate.wait, UpstreamError("it broke")]
    async with run(scripted(m=script)) as app, post(app.app, "/v1/chat/stream", BODY, app.key) as call:
        await call.until(lambda c: "Hel" in c.text)
        gate.set()
        await call.finished()
        assert call.status == 200
        last = call.frames[-1]
        assert last["error"] == {"code": "upstream_error", "message": "it broke", "retryable": True}
        assert last["usage"]["source"] == "counted"
        assert last["usage"]["completion_tokens"] == 1
        assert b"[DONE]" not in call.received


async def test_text_arrives_while_the_provider_still_speaks(run: Run) -> None:
    gates = [asyncio.Event() for _ in range(3)]
    script: list[Step] = []
    for i, gate in enumerate(gates):
        script += [TextDelta(f"{i} "), gate.wait]
    script.append(Finish("stop", USAGE))
    async with run(scripted(m=script)) as app, post(app.app, "/v1/chat/stream", BODY, app.key) as call:
        for i, gate in enumerate(gates):

            def says(call: Exchange, word: str = f"{i} ") -> bool:
                return call.text.endswith(word)

            await call.until(says)
            assert not call.complete.is_set()
            gate.set()
        await call.finished()


async def test_a_silent_provider_gets_its_status_and_pings_after_the_hold(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "HOLD_SECONDS", 0.05)
    monkeypatch.setattr(streaming, "PING_SECONDS", 0.05)
    monkeypatch.setattr(streaming, "LOOK_SECONDS", 0.01)
    gate = asyncio.Event()
    script: Script = [gate.wait, UpstreamError("it broke")]
    async with run(scripted(m=script)) as app, post(app.app, "/v1/chat/stream", BODY, app.key) as call:
        await call.until(lambda c: c.received.count(b": ping\n") >= 2)
        assert call.status == 200
        assert call.frames[0]["model"] == "m"
        # A comment is one line: with a blank line some decoders would make an empty event of it.
        assert b": ping\n\n" not in call.received
        gate.set()
        await call.finished()
        assert call.frames[-1]["error"]["code"] == "upstream_error"


@pytest.mark.parametrize("path", ["/v1/chat/stream", "/v1/chat"])
@pytest.mark.parametrize("moment", ["before the first token", "in silence"])
async def test_leaving_closes_the_provider_and_settles(run: Run, path: str, moment: str) -> None:
    never, asked, closed = asyncio.Event(), asyncio.Event(), asyncio.Event()

    class Provider(ScriptedProvider):
        async def stream(self, prompt: Prompt, model: str) -> AsyncGenerator[Sequence[Produced]]:
            try:
                asked.set()
                if moment == "in silence":
                    yield [TextDelta("Hello there")]
                await never.wait()
            finally:
                closed.set()

    async with run({"p": Provider({"m": []})}) as app:
        async with post(app.app, path, BODY, app.key) as call:
            async with asyncio.timeout(5):
                await asked.wait()
            if moment == "in silence" and path.endswith("stream"):
                await call.until(lambda c: "there" in c.text)
            call.leave()
            async with asyncio.timeout(1):
                await closed.wait()
        (row,) = await app.receipts()
        assert (row["status"], row["finish_reason"]) == ("cancelled", "cancelled")
        assert (row["usage_source"], row["tokenizer"]) == ("counted", "o200k_base")
        assert row["completion_tokens"] == (2 if moment == "in silence" else 0)
        assert row["prompt_tokens"] > 0


async def test_who_leaves_at_once_costs_nothing(run: Run) -> None:
    async with run(scripted()) as app:
        async with post(app.app, "/v1/chat/stream", BODY, app.key) as call:
            call.leave()
        statuses = [row["status"] for row in await app.receipts()]
        assert statuses in ([], ["cancelled"], ["completed"])


@pytest.mark.parametrize(
    ("policy", "status"),
    [("cancel", "cancelled"), ("continue", "completed"), ({"grace_seconds": 0}, "cancelled")],
)
async def test_the_disconnect_policy_decides_what_leaving_means(
    run: Run, policy: object, status: str
) -> None:
    gate = asyncio.Event()
    script: Script = [TextDelta("Hello"), gate.wait, TextDelta(" again"), Finish("stop", USAGE)]
    async with run(scripted(m=script)) as app:
        async with post(app.app, "/v1/chat/stream", {**BODY, "on_disconnect": policy}, app.key) as call:
            await call.until(lambda c: c.text == "Hello")
        if policy == "continue":
            gate.set()
        (row,) = await app.receipts()
        assert row["status"] == status


async def test_a_provider_that_never_stops_is_stopped_by_the_total_clock(run: Run) -> None:
    script: Script = [TextDelta("Hello"), asyncio.Event().wait]
    async with run(scripted(m=script), stream_seconds=0.05) as app:
        async with post(app.app, "/v1/chat/stream", BODY, app.key) as call:
            await call.finished()
            assert call.frames[-1]["error"]["code"] == "upstream_timeout"


async def test_a_provider_may_have_a_shorter_total_clock_of_its_own(tmp_path: Path) -> None:
    slow = ProviderSettings(type="scripted", stream_seconds=0.05)
    millstream = Millstream(Settings(data_dir=tmp_path, max_lag_seconds=3600, providers={"slow": slow}))
    app = create_app(millstream)
    async with millstream.lifespan(app):
        _, key = await millstream.keys.create("n", ["chat"])
        body = BODY | {"model": "slow/scripted/9x60000"}
        async with post(app, "/v1/chat/stream", body, key) as call:
            await call.finished()
            assert call.frames[-1]["error"]["message"] == "the answer took over 0.05 s"


async def test_a_broken_provider_is_an_internal_error_without_its_text(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(ScriptedProvider):
        async def stream(self, prompt: Prompt, model: str) -> AsyncGenerator[Sequence[Produced]]:
            raise RuntimeError("secret-in-the-text")
            yield

    async with run({"p": Broken({"m": []})}) as app, post(app.app, "/v1/chat/stream", BODY, app.key) as call:
        await call.finished()
        assert call.status == 500
        assert b"secret" not in call.received
        assert "secret" not in caplog.text
        assert "RuntimeError" in caplog.text


@pytest.mark.parametrize(
    "wrong",
    [
        "text",
        None,
        5,
        {"text": "Hello"},
        TextDelta(5),  # type: ignore[arg-type]
        ToolCallPiece(0, None, "c", "n"),  # type: ignore[arg-type]
        InChoice(1, "text"),  # type: ignore[arg-type]
        UsageReport(None, {}),  # type: ignore[arg-type]
        UsageReport("text", {}),  # type: ignore[arg-type]
        Finish("stop", "text"),  # type: ignore[arg-type]
        Finish("stop", None, word=5),  # type: ignore[arg-type]
    ],
    ids=repr,
)
async def test_whatever_a_provider_yields_its_stream_ends_and_is_settled(run: Run, wrong: Any) -> None:
    class Wrong(ScriptedProvider):
        async def stream(self, prompt: Prompt, model: str) -> AsyncGenerator[Sequence[Produced]]:
            yield [TextDelta("Hello")]
            yield [wrong]
            yield [Finish("stop", None)]

    async with run({"p": Wrong({"m": []})}) as app:
        async with post(app.app, "/v1/chat/stream", BODY, app.key) as call:
            await call.finished()
            assert "Hello" in call.text
            assert call.frames[-1] is not None
        (row,) = await app.receipts()
        assert row["status"] != "running"
        assert all(isinstance(row[name], int) for name in ("prompt_tokens", "completion_tokens"))


@pytest.mark.parametrize(
    "wrong",
    [
        [Finish("x" * 99, None)],  # type: ignore[arg-type]
        [Finish(None, None)],  # type: ignore[arg-type]
        [Finish("stop", Usage(9, -5, "provider_final"))],
        [Finish("stop", Usage(9, 2**70, "provider_final"))],
        [Finish("stop", Usage("9", 5, "provider_final"))],  # type: ignore[arg-type]
        [UsageReport(Usage(9, 1.5, "provider_partial"), {})],  # type: ignore[arg-type]
        [Usage(-9, 5, "provider_partial")],
        [Usage(10**9, 5, "provider_partial")],
        [UsageReport(Usage(9, 5, "provider_final"), {}, Decimal("1e30"))],
        [UsageReport(Usage(9, 5, "provider_final"), {}, Decimal("NaN"))],
        [UsageReport(Usage(9, 5, "provider_final"), {}, Decimal(-1))],
        [UsageReport(Usage(9, 5, "provider_final"), {}, 0.5)],  # type: ignore[arg-type]
        None,
        "text",
    ],
    ids=repr,
)
async def test_what_a_ledger_cannot_have_is_a_fault_of_the_provider(run: Run, wrong: Any) -> None:
    class Wrong(ScriptedProvider):
        async def stream(self, prompt: Prompt, model: str) -> AsyncGenerator[Sequence[Produced]]:
            yield [TextDelta("Hello")]
            yield wrong
            yield [Finish("stop", None)]

    async with run({"p": Wrong({"m": []})}) as app:
        async with post(app.app, "/v1/chat/stream", BODY, app.key) as call:
            await call.finished()
            assert (call.text, call.frames[-1]["error"]["code"]) == ("Hello", "internal")
        (row,) = await app.receipts()
        assert (row["status"], row["error_code"], row["completion_tokens"]) == ("failed", "internal", 1)


async def test_of_what_is_refused_while_the_database_is_away_nothing_is_left(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(work: object) -> NoReturn:
        raise DatabaseAway("away")

    caplog.set_level("INFO", "millstream.stream")
    async with run(scripted(m=[TextDelta("Hello")])) as app:
        with monkeypatch.context() as patch:
            patch.setattr(app.millstream.database, "run_by_hand", away)
            for _ in range(5):
                async with post(app.app, "/v1/chat/stream", BODY, app.key) as call:
                    await call.finished()
                    assert (call.status, call.json["error"]["code"]) == (503, "overloaded")
        assert await app.receipts() == []
        # The row of the first one may have been written, for all that its worker knew.
        assert [record.name for record in caplog.records].count("millstream.stream") == 1


async def test_a_stream_that_cannot_be_counted_is_settled_all_the_same(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def damaged(encoding: str) -> Tokenizer:
        raise RuntimeError("damaged")

    script: Script = [TextDelta("Hello"), asyncio.Event().wait]
    async with run(scripted(m=script)) as app:
        monkeypatch.setattr("millstream.tokens.load", damaged)
        async with post(app.app, "/v1/chat/stream", BODY, app.key) as call:
            await call.until(lambda c: c.text == "Hello")
        (row,) = await app.receipts()
        assert row["status"] == "cancelled"
        assert "cannot be counted" in caplog.text


async def test_a_checkpoint_has_every_kind_of_tokens(run: Run) -> None:
    usage = Usage(9, 5, "provider_partial", cached_tokens=4, reasoning_tokens=3)
    script: Script = [TextDelta("Hello"), usage, asyncio.Event().wait]
    async with run(scripted(m=script)) as app:
        async with post(app.app, "/v1/chat/stream", BODY, app.key) as call, asyncio.timeout(5):
            await call.until(lambda c: c.text == "Hello")
            stream_id = call.response_headers["x-stream-id"]
            receipt = None
            while receipt is None or not receipt.usage.completion_tokens:  # until the first checkpoint
                receipt = await app.millstream.ledger.receipt(stream_id)
        assert receipt.bill.usage == usage.sourced("checkpoint")


async def test_a_running_count_that_text_came_after_is_not_believed(run: Run) -> None:
    words = [TextDelta("word ") for _ in range(50)]
    script: Script = [Usage(9, 1, "provider_partial"), *words, asyncio.Event().wait]
    async with run(scripted(m=script)) as app:
        async with post(app.app, "/v1/chat/stream", BODY, app.key) as call:
            await call.until(lambda c: c.text.count("word") == 50)
        (row,) = await app.receipts()
        assert (row["usage_source"], row["prompt_tokens"]) == ("counted", 9)
        assert row["completion_tokens"] >= 50


async def test_a_provider_that_is_cancelled_inside_itself_has_failed(run: Run) -> None:
    class Cancelled(ScriptedProvider):
        async def stream(self, prompt: Prompt, model: str) -> AsyncGenerator[Sequence[Produced]]:
            yield [TextDelta("Hello")]
            helper = asyncio.create_task(asyncio.Event().wait())
            helper.cancel()
            await helper

    async with run({"p": Cancelled({"m": []})}) as app:
        async with post(app.app, "/v1/chat/stream", BODY, app.key) as call:
            await call.finished()
            assert call.frames[-1]["error"]["code"] == "internal"
        (row,) = await app.receipts()
        assert row["status"] == "failed"


async def test_a_stream_whose_end_breaks_ends_and_is_settled_all_the_same(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Tally, usage: Usage) -> Decimal | None:
        raise ArithmeticError

    async with run(scripted()) as app:
        monkeypatch.setattr("millstream.streams.tally.Tally.charge", broken)
        async with post(app.app, "/v1/chat/stream", BODY, app.key) as call:
            await call.finished()
            assert call.frames[-1]["error"]["code"] == "internal"
        (row,) = await app.receipts()
        assert row["status"] == "failed"


async def test_a_finished_stream_is_not_kept_for_its_grace(run: Run) -> None:
    import gc

    from millstream.streams.producer import Producer

    body = {**BODY, "on_disconnect": {"grace_seconds": 600}}
    async with run(scripted()) as app:
        async with post(app.app, "/v1/chat/stream", body, app.key) as call:
            await call.finished()
        await app.idle()
        await asyncio.sleep(0)
        gc.collect()
        ended = call.response_headers["x-stream-id"]
        kept = [thing for thing in gc.get_objects() if isinstance(thing, Producer)]
        assert ended not in [producer.info.stream_id for producer in kept]


async def test_pings_do_not_pile_up_behind_a_client_that_does_not_read(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "HOLD_SECONDS", 0.01)
    monkeypatch.setattr(streaming, "PING_SECONDS", 0.01)
    monkeypatch.setattr(streaming, "LOOK_SECONDS", 0.001)
    reads = asyncio.Event()
    pings: list[Message] = []

    class Stuck(Exchange):
        async def _send(self, message: Message) -> None:
            if message.get("body") == b": ping\n":
                pings.append(message)
                await reads.wait()
            await super()._send(message)

    script: Script = [TextDelta("Hello"), asyncio.Event().wait]
    async with run(scripted(m=script)) as app:
        asked = post(app.app, "/v1/chat/stream", BODY, app.key)
        stuck = Stuck(asked.app, asked.method, asked.path, asked.headers, asked.body)
        async with stuck as call, asyncio.timeout(5):
            await call.until(lambda c: c.text == "Hello")
            while not pings:
                await asyncio.sleep(0.001)
            for _ in range(50):  # several times as long as it takes a ping to be due
                await asyncio.sleep(0.001)
            assert len(pings) == 1
            reads.set()


async def test_a_database_that_is_away_is_503_in_our_shape(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with run(scripted()) as app:
        run_work = app.millstream.database.run

        def broken(connection: object) -> NoReturn:
            raise sa.exc.OperationalError("SELECT secret", {"key": "secret"}, Exception("secret"))

        monkeypatch.setattr(app.millstream.database, "run", lambda work: run_work(broken))
        for exchange in (get(app.app, "/v1/streams/str_x", app.key), get(app.app, "/readyz")):
            async with exchange as call:
                await call.finished()
                assert call.status == 503
        assert "the database: Exception" in caplog.text
        assert "secret" not in caplog.text
        monkeypatch.undo()
        for path in ("/v1/streams/%00", "/v1/streams/" + "x" * 500):
            async with get(app.app, path, app.key) as call:
                assert (await call.finished()).status == 404


async def test_a_database_that_cannot_be_opened_for_want_of_descriptors_is_503(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """spec/faults.md: P8."""
    async with run(scripted()) as app:
        await app.millstream.database.close_idle_connections()
        with no_descriptors():
            async with get(app.app, "/v1/streams/str_x", app.key) as call:
                await call.finished()
        assert (call.status, call.json["error"]["code"]) == (503, "overloaded")
        assert "no file descriptor is left" in caplog.text
        async with get(app.app, "/v1/streams/str_x", app.key) as call:
            assert (await call.finished()).status == 404


async def test_a_revoked_key_ends_its_running_streams(run: Run) -> None:
    script: Script = [TextDelta("Hello"), asyncio.Event().wait]
    async with run(scripted(m=script)) as app, post(app.app, "/v1/chat/stream", BODY, app.key) as call:
        await call.until(lambda c: c.text == "Hello")
        await app.millstream.keys.revoke(app.key_id)
        await call.finished(5)
        assert call.frames[-1]["error"]["code"] == "unauthorized"


class Leaver(Exchange):
    """Whoever leaves at once, without what the other one waits for beside it."""

    async def _receive(self) -> Message:
        if not self._body_sent:
            return await super()._receive()
        await self._left.wait()
        return {"type": "http.disconnect"}


async def test_leaving_reaches_the_provider_within_three_turns_of_the_loop(run: Run) -> None:
    """On a busy worker a turn takes 20 ms and more."""
    left = asyncio.Event()

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            left.set()

    async with run(scripted(m=[TextDelta("Hello"), wait])) as app:
        start = post(app.app, "/v1/chat/stream", BODY, app.key)
        async with Leaver(start.app, start.method, start.path, start.headers, start.body) as call:
            await call.until(lambda c: c.text == "Hello")
            call.leave()
            turns = 0
            while not left.is_set():
                await asyncio.sleep(0)
                turns += 1
            assert turns <= 4  # the first one is this test's own


async def test_no_more_streams_run_than_there_may(run: Run) -> None:
    script: Script = [TextDelta("Hello"), asyncio.Event().wait]
    async with run(scripted(m=script), max_streams=1) as app:
        async with post(app.app, "/v1/chat/stream", BODY, app.key) as first:
            await first.until(lambda c: c.text == "Hello")
            async with post(app.app, "/v1/chat/stream", BODY, app.key) as second:
                await second.finished()
                assert (second.status, second.json["error"]["code"]) == (503, "overloaded")
                assert second.response_headers["retry-after"] == "1"


# What is sent, and the status and the words of the answer.
BAD: dict[str, tuple[object, int, str]] = {
    "not JSON": (b"{", 400, "not JSON"),
    "nothing": (b"", 400, "not JSON"),
    "not UTF-8": (b"\xff\xff", 400, "not JSON"),
    "a list": (b"[]", 422, "object"),
    "a lone surrogate": (b'{"messages":[{"role":"user","content":"\\ud800"}]}', 400, "not JSON"),
    "nested too deep": (
        b'{"messages":[{"role":"user","content":"x"}],"tools":[{"function":{"name":"f","parameters":{"a":'
        + b"[" * 50_000,
        400,
        "recursion",
    ),
    "too many values": (b'{"messages":' + b"[" * 100_001, 413, "values"),
    "no messages": ({"model": "m"}, 422, "messages: Field required"),
    "an empty list of messages": ({"messages": []}, 422, "messages"),
    "an unknown field": ({**BODY, "max_token": 5}, 422, "max_token: unknown field"),
    "an unknown field inside": (
        {"messages": [{"role": "user", "content": "x", "api_base": "http://x"}]},
        422,
        "messages.0.api_base: unknown field",
    ),
    "an unknown role": ({"messages": [{"role": "root", "content": "x"}]}, 422, "messages.0.role"),
    "a wrong type": ({**BODY, "max_tokens": "many"}, 422, "max_tokens"),
    "true for a number": ({**BODY, "max_tokens": True}, 422, "max_tokens: has to be a number"),
    "false for seconds": ({**BODY, "on_disconnect": {"grace_seconds": False}}, 422, "has to be a number"),
    "not a number": (b'{"messages":[{"role":"user","content":"x"}],"temperature":NaN}', 422, "finite"),
    "not a number in a schema": (
        b'{"messages":[{"role":"user","content":"x"}],"tools":[{"function":{"name":"f","parameters":{"x":NaN}}}]}',
        422,
        "finite",
    ),
    "a tool message of nothing": ({"messages": [{"role": "tool", "content": "x"}]}, 422, "tool_call_id"),
    "a line feed in the model": ({**BODY, "model": "a\nb"}, 422, "model"),
    "NUL in the user": ({**BODY, "user": "a\x00"}, 422, "user"),
    "an unknown model": ({**BODY, "model": "nope"}, 404, "there is no model 'nope'"),
}


@pytest.mark.parametrize("path", ["/v1/chat/stream", "/v1/chat"])
@pytest.mark.parametrize("case", BAD)
async def test_bad_input_is_refused_and_says_where(run: Run, path: str, case: str) -> None:
    body, status, words = BAD[case]
    async with run(scripted()) as app, post(app.app, path, body, app.key) as call:
        await call.finished()
        assert call.status == status, call.received
        assert words in call.json["error"]["message"]
        assert call.json["error"]["request_id"] == call.response_headers["x-request-id"]
        assert await app.receipts() == []


async def test_a_body_over_the_limit_is_not_read(run: Run) -> None:
    async with run(scripted(), max_body_bytes=2048) as app:
        async with post(app.app, "/v1/chat/stream", b"x", app.key, content_length="100000000") as call:
            await call.finished()
            assert (call.status, call.json["error"]["code"]) == (413, "too_large")
        async with post(app.app, "/v1/chat/stream", b"x" * 3000, app.key) as call:  # unannounced
            await call.finished()
            assert (call.status, call.json["error"]["code"]) == (413, "too_large")


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer x"}, {"authorization": "Basic eDp5"}])
async def test_every_bad_credential_gets_the_same_answer(run: Run, headers: dict[str, str]) -> None:
    async with run(scripted()) as app, post(app.app, "/v1/chat/stream", BODY, **headers) as call:
        await call.finished()
        assert call.status == 401
        assert call.response_headers["www-authenticate"] == "Bearer"
        error = call.json["error"]
        assert error["code"] == "unauthorized"
        assert error["message"] == "missing or invalid API key; send 'Authorization: Bearer <key>'"


async def test_an_answer_in_two_ways_has_the_same_words(run: Run) -> None:
    async with run(scripted()) as app:
        async with post(app.app, "/v1/chat/stream", BODY, x_api_key=app.key) as streamed:
            await streamed.finished()
        async with post(app.app, "/v1/chat", BODY, x_api_key=app.key) as whole:
            await whole.finished()
        assert streamed.text == whole.json["content"] == "Hello"


async def test_the_models_are_listed_with_the_default_first(run: Run) -> None:
    async with run(scripted(), default_model="m") as app, get(app.app, "/v1/models", app.key) as call:
        await call.finished()
        assert [model["id"] for model in call.json["data"]] == ["m", "scripted"]


@pytest.mark.parametrize(
    ("query", "names", "has_more"),
    [
        ("", "m scripted n", False),
        ("?limit=2", "m scripted", True),
        ("?limit=1&after_id=m", "scripted", True),
        ("?after_id=scripted", "n", False),
        ("?after_id=n", "", False),
        ("?before_id=scripted", "m", False),
        ("?limit=1&before_id=n", "scripted", True),
        ("?after_id=m&before_id=n", "scripted", False),
        ("?before_id=m&limit=2", "", False),
    ],
)
async def test_the_models_are_listed_in_pages_as_anthropic_has_them(
    run: Run, query: str, names: str, has_more: bool
) -> None:
    async with (
        run(scripted(n=HELLO), default_model="m") as app,
        get(app.app, f"/v1/models{query}", app.key) as call,
    ):
        await call.finished()
        listed = [model["id"] for model in call.json["data"]]
        assert (listed, call.json["has_more"]) == (names.split(), has_more)
        ends = [listed[0], listed[-1]] if listed else [None, None]
        assert [call.json["first_id"], call.json["last_id"]] == ends


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "after_id=gone", "before_id=gone"])
async def test_a_page_of_models_that_cannot_be_is_refused(run: Run, query: str) -> None:
    async with run(scripted()) as app:
        field = query.partition("=")[0]
        async with get(app.app, f"/v1/models?{query}", app.key) as call:
            await call.finished()
            assert (call.status, call.json["error"]["code"]) == (422, "invalid_request")
            assert field in call.json["error"]["message"]
        async with get(app.app, f"/v1/models?{query}", app.key, anthropic_version="2023-06-01") as call:
            await call.finished()
            assert call.json["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("path", "body", "header"),
    [
        ("/v1/models", None, "x-request-id"),
        ("/v1/messages/count_tokens", {"messages": [{"role": "user", "content": "x"}]}, "request-id"),
        ("/api/chat/c/stop", {}, "x-request-id"),
    ],
)
async def test_answers_that_are_no_stream_have_the_id_of_their_request(
    run: Run, path: str, body: object, header: str
) -> None:
    async with run(scripted()) as app:
        call = get(app.app, path, app.key) if body is None else post(app.app, path, body, app.key)
        async with call:
            await call.finished()
        assert call.status == 200
        assert call.response_headers[header].startswith("req_")
