"""Following, resuming, stopping and starting streams apart from the request that started them, over ASGI."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, NoReturn

import pytest

from application import Run, Running
from asgi import Exchange, get, post
from millstream.errors import UpstreamError
from millstream.events import StreamInfo, TextDelta
from millstream.ledger.leases import Leases
from millstream.ledger.rows import Receipt
from millstream.prompt import Extra, Prompt
from millstream.providers import Finish, Produced, Provider
from millstream.providers.scripted import ScriptedProvider
from millstream.server.access_log import HideCredentials
from millstream.usage import UNKNOWN, Usage

MESSAGES = [{"role": "user", "content": "Hello"}]
BODY = {"model": "m", "messages": MESSAGES}
GRACE = BODY | {"on_disconnect": {"grace_seconds": 600}}
END = Finish("stop", Usage(9, 2, "provider_final"))


def gated(gate: asyncio.Event) -> tuple[list[str], dict[str, Provider]]:
    """A model that says "Hel", waits for the gate and says "lo"; it notes when it is left."""
    calls: list[str] = []

    async def wait() -> None:
        calls.append("called")
        try:
            await gate.wait()
        except asyncio.CancelledError:
            calls.append("left")
            raise

    return calls, {"scripted": ScriptedProvider({"m": [TextDelta("Hel"), wait, TextDelta("lo"), END]})}


@pytest.fixture(params=["memory", "redis"])
def journal_url(request: pytest.FixtureRequest) -> str:
    return "memory:" if request.param == "memory" else str(request.getfixturevalue("redis_url"))


def said(call: Exchange) -> bool:
    return "Hel" in call.text


async def start(
    app: Running, body: Mapping[str, object] = BODY, key: str | None = None, **headers: str
) -> dict[str, Any]:
    async with post(app.app, "/v1/streams", body, key or app.key, **headers) as call:
        await call.finished()
        assert call.status == 201, call.received
        made: dict[str, Any] = call.json
        return made


async def receipt(app: Running, stream_id: str) -> dict[str, Any]:
    async with get(app.app, f"/v1/streams/{stream_id}", app.key) as call:
        found: dict[str, Any] = (await call.finished()).json
        return found


# -- following -------------------------------------------------------------------------------------


async def test_every_position_gives_exactly_the_rest(run: Run, journal_url: str) -> None:
    script = [TextDelta(f"{i} ") for i in range(20)]
    provider = {"scripted": ScriptedProvider({"m": [*script, END]})}
    async with run(provider, journal_url=journal_url) as app:
        async with post(app.app, "/v1/chat/stream", BODY, app.key) as call:
            whole = (await call.finished()).received
        stream_id = call.response_headers["x-stream-id"]
        frames = whole.removesuffix(b"data: [DONE]\n\n").split(b"\n\n")[:-1]
        url = f"/v1/streams/{stream_id}/events"
        for seen in range(len(frames)):
            rest = b"".join(frame + b"\n\n" for frame in frames[seen:]) + b"data: [DONE]\n\n"
            rest = rest if rest.startswith(b"retry:") else b"retry: 1000\n" + rest
            for query, headers in ((f"?after=1-{seen}", {}), ("?after=1-1", {"last_event_id": f"1-{seen}"})):
                async with get(app.app, url + query, app.key, **headers) as call:
                    await call.finished()
                    assert call.status == 200
                    assert call.received.removeprefix(b"retry: 1000\n") == rest.removeprefix(b"retry: 1000\n")
        async with get(app.app, url, app.key, last_event_id=f"1-{len(frames)}") as call:
            assert ((await call.finished()).status, call.received) == (204, b"")
        assert len(await app.receipts()) == 1


async def test_readers_join_while_it_runs_and_all_get_the_same(run: Run, journal_url: str) -> None:
    gate = asyncio.Event()
    calls, provider = gated(gate)
    async with (
        run(provider, journal_url=journal_url) as app,
        post(app.app, "/v1/chat/stream", BODY, app.key) as first,
    ):
        await first.until(said)
        url = f"/v1/streams/{first.response_headers['x-stream-id']}/events"
        async with get(app.app, url, app.key) as second, get(app.app, f"{url}?after=1-3", app.key) as third:
            await second.until(said)
            await third.until(lambda call: call.status)
            gate.set()
            for call in (first, second, third):
                await call.finished()
        assert second.received.startswith(b"retry: 1000\n")
        assert second.received.endswith(first.received.removeprefix(b"retry: 1000\n"))
        assert third.text == "lo"
        assert calls == ["called"]


@pytest.mark.parametrize(
    "position", ["1", "1-", "-1", "1-x", "1-99", "3-1", "0-1", "1-1 ", "x" * 10_000, "1-" + "9" * 30]
)
async def test_a_position_that_makes_no_sense_is_a_400(run: Run, position: str) -> None:
    async with run(gated(asyncio.Event())[1]) as app:
        made = await start(app)
        async with get(
            app.app, f"/v1/streams/{made['stream_id']}/events", app.key, last_event_id=position
        ) as call:
            await call.finished()
            assert (call.status, call.json["error"]["code"]) == (400, "bad_position")
        await cancel(app, made["stream_id"])


async def test_a_stream_that_is_not_kept_any_more_is_a_410_and_one_that_never_was_a_404(run: Run) -> None:
    async with run(gated(asyncio.Event())[1]) as app:
        made = await start(app)
        await cancel(app, made["stream_id"])
        await app.idle()
        await app.millstream.journal.forget(made["stream_id"])
        _, other = await app.millstream.keys.create("other", ["chat"])
        for stream_id, key, status, code in (
            (made["stream_id"], app.key, 410, "stream_gone"),
            (made["stream_id"], other, 404, "not_found"),
            ("str_none", app.key, 404, "not_found"),
        ):
            async with get(app.app, f"/v1/streams/{stream_id}/events", key) as call:
                await call.finished()
                assert (call.status, call.json["error"]["code"]) == (status, code)


async def test_a_running_stream_that_another_worker_cannot_read_is_not_gone(run: Run) -> None:
    gate = asyncio.Event()
    _, providers = gated(gate)
    # The second worker has nothing of it, as where Redis has taken nothing for a while.
    async with run(providers) as app, run(providers) as other:
        made = await start(app, GRACE)
        path = f"/v1/streams/{made['stream_id']}/events"
        async with get(other.app, path, app.key) as call:
            await call.finished()
            assert (call.status, call.frames) == (200, [])
            assert call.received.startswith(b"retry: ")
        gate.set()
        await app.idle()
        async with get(other.app, path, app.key) as call:
            await call.finished()
            assert (call.status, call.json["error"]["code"]) == (410, "stream_gone")


async def test_a_stream_of_another_key_answers_like_none(run: Run) -> None:
    async with run(gated(asyncio.Event())[1]) as app:
        made = await start(app)
        _, other = await app.millstream.keys.create("other", ["chat"])

        async def bodies(stream_id: str) -> list[tuple[int | None, str]]:
            found: list[tuple[int | None, str]] = []
            for call in (
                get(app.app, f"/v1/streams/{stream_id}", other),
                get(app.app, f"/v1/streams/{stream_id}/events", other),
                post(app.app, f"/v1/streams/{stream_id}/cancel", b"", other),
            ):
                async with call:
                    await call.finished()
                    error = call.json["error"]
                    found.append((call.status, error["message"].replace(stream_id, "it")))
            return found

        assert await bodies(made["stream_id"]) == await bodies("str_none")
        assert (await receipt(app, made["stream_id"]))["status"] == "running"
        await cancel(app, made["stream_id"])


async def test_a_failure_is_a_frame_to_whoever_follows(run: Run) -> None:
    from millstream.errors import UpstreamRefused

    provider = {"scripted": ScriptedProvider({"m": [UpstreamRefused("no")]})}
    async with run(provider) as app:
        made = await start(app)
        await app.idle()
        async with get(app.app, f"/v1/streams/{made['stream_id']}/events", app.key) as call:
            await call.finished()
            assert call.status == 200
            assert call.frames[-1]["error"]["code"] == "upstream_refused"


async def test_a_draining_server_asks_to_come_back(run: Run) -> None:
    async with run(gated(asyncio.Event())[1]) as app:
        made = await start(app)
        await cancel(app, made["stream_id"])
        await app.idle()
        app.millstream.streams.draining = True
        async with get(app.app, f"/v1/streams/{made['stream_id']}/events", app.key) as call:
            await call.finished()
            assert call.status == 200
            assert call.received.startswith(b"retry: ")
        async with post(app.app, "/v1/streams", BODY, app.key) as call:
            await call.finished()
            assert (call.status, call.json["error"]["code"]) == (503, "draining")
            assert call.response_headers["retry-after"] == "1"


# -- leaving and stopping --------------------------------------------------------------------------


async def cancel(app: Running, stream_id: str, key: str | None = None) -> dict[str, Any]:
    async with post(app.app, f"/v1/streams/{stream_id}/cancel", b"", key or app.key) as call:
        await call.finished()
        assert call.status == 200, call.received
        receipt: dict[str, Any] = call.json
        return receipt


async def test_a_cancel_ends_the_stream_for_all_and_can_be_repeated(run: Run, journal_url: str) -> None:
    calls, provider = gated(asyncio.Event())
    async with (
        run(provider, journal_url=journal_url) as app,
        post(app.app, "/v1/chat/stream", BODY, app.key) as call,
    ):
        await call.until(said)
        stream_id = call.response_headers["x-stream-id"]
        answers = [await cancel(app, stream_id) for _ in range(3)]
        assert [answer["status"] for answer in answers] == ["cancelled"] * 3
        assert answers[0]["usage"]["source"] == "counted"
        await call.finished()
        assert call.frames[-2]["finish_reason"] == "cancelled"
        assert call.frames[-1] == "[DONE]"
        assert calls == ["called", "left"]


async def test_within_the_grace_a_reader_comes_back_and_nothing_is_lost(run: Run, journal_url: str) -> None:
    gate = asyncio.Event()
    calls, provider = gated(gate)
    async with run(provider, journal_url=journal_url) as app:
        async with post(app.app, "/v1/chat/stream", GRACE, app.key) as call:
            await call.until(said)
        stream_id = call.response_headers["x-stream-id"]
        async with get(app.app, f"/v1/streams/{stream_id}/events?after=1-3", app.key) as again:
            gate.set()
            await again.finished()
        assert call.text + again.text == "Hello"
        assert calls == ["called"]
        await app.idle()
        assert (await receipt(app, stream_id))["status"] == "completed"


async def test_after_the_grace_it_is_cancelled(run: Run) -> None:
    calls, provider = gated(asyncio.Event())
    async with run(provider) as app:
        body = BODY | {"on_disconnect": {"grace_seconds": 0.05}}
        async with post(app.app, "/v1/chat/stream", body, app.key) as call:
            await call.until(said)
        await app.idle()
        assert (await receipt(app, call.response_headers["x-stream-id"]))["status"] == "cancelled"
        assert calls == ["called", "left"]


async def test_a_reader_that_comes_back_stops_the_clock_of_the_grace(run: Run) -> None:
    gate = asyncio.Event()
    _, provider = gated(gate)
    async with run(provider) as app:
        body = BODY | {"on_disconnect": {"grace_seconds": 0.2}}
        async with post(app.app, "/v1/chat/stream", body, app.key) as call:
            await call.until(said)
        stream_id = call.response_headers["x-stream-id"]
        audience = app.millstream.streams[stream_id].audience
        async with get(app.app, f"/v1/streams/{stream_id}/events", app.key) as again:
            await again.until(said)
            assert not audience.in_grace
            gate.set()
            await again.finished()
        assert again.text == "Hello"


async def test_continue_runs_to_its_end_with_nobody_there(run: Run) -> None:
    gate = asyncio.Event()
    _, provider = gated(gate)
    async with run(provider) as app:
        async with post(app.app, "/v1/chat/stream", BODY | {"on_disconnect": "continue"}, app.key) as call:
            await call.until(said)
        gate.set()
        await app.idle()
        stream_id = call.response_headers["x-stream-id"]
        assert (await receipt(app, stream_id))["status"] == "completed"
        async with get(app.app, f"/v1/streams/{stream_id}/events", app.key) as later:
            assert (await later.finished()).text == "Hello"


async def test_the_last_of_several_readers_decides(run: Run) -> None:
    calls, provider = gated(asyncio.Event())
    async with run(provider) as app:
        async with post(app.app, "/v1/chat/stream", BODY, app.key) as first:
            await first.until(said)
            stream_id = first.response_headers["x-stream-id"]
            async with get(app.app, f"/v1/streams/{stream_id}/events", app.key) as second:
                await second.until(said)
                first.leave()
                await first.task
                assert calls == ["called"]
        await app.idle()
        assert calls == ["called", "left"]


# -- starting without following, tickets -----------------------------------------------------------


async def test_a_stream_is_started_and_followed_with_its_ticket_alone(run: Run) -> None:
    gate = asyncio.Event()
    _, provider = gated(gate)
    async with run(provider) as app:
        made = await start(app)
        assert set(made) == {"stream_id", "events_url", "cancel_url", "expires_at"}
        async with get(app.app, made["events_url"]) as call:
            await call.until(said)
        gate.set()
        async with get(app.app, made["events_url"], last_event_id="1-3") as again:
            await again.finished()
        assert call.text + again.text == "Hello"
        async with get(app.app, made["events_url"], last_event_id="1-6") as done:
            assert (await done.finished()).status == 204


async def test_a_ticket_is_for_one_stream_and_one_purpose(run: Run) -> None:
    async with run(gated(asyncio.Event())[1]) as app:
        one, two = await start(app), await start(app)
        ticket = {name: one[f"{name}_url"].partition("?ticket=")[2] for name in ("events", "cancel")}
        for method, path in (
            (get, f"/v1/streams/{two['stream_id']}/events?ticket={ticket['events']}"),
            (get, f"/v1/streams/{one['stream_id']}/events?ticket={ticket['cancel']}"),
            (get, f"/v1/streams/{one['stream_id']}/events?ticket={ticket['events'][:-2]}"),
            (get, f"/v1/streams/{one['stream_id']}/events?ticket="),
            (get, f"/v1/streams/{one['stream_id']}?ticket={ticket['events']}"),
            (
                lambda *a: post(a[0], a[1], b""),
                f"/v1/streams/{one['stream_id']}/cancel?ticket={ticket['events']}",
            ),
        ):
            async with method(app.app, path) as call:
                await call.finished()
                assert (call.status, call.json["error"]["code"]) == (401, "unauthorized"), path
        async with get(app.app, "/v1/models", ticket["events"]) as call:
            assert (await call.finished()).status == 401
        async with post(app.app, one["cancel_url"], b"") as call:
            assert (await call.finished()).json["status"] == "cancelled"
        await cancel(app, two["stream_id"])


async def test_a_ticket_that_was_not_used_in_time_only_resumes(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with run(gated(asyncio.Event())[1]) as app:
        made = await start(app, GRACE)
        async with get(app.app, made["events_url"]) as call:
            await call.until(said)
            first_id = call.received.decode().partition("id: ")[2].partition("\n")[0]
        monkeypatch.setattr("millstream.tickets.FIRST_USE_SECONDS", -10)
        async with get(app.app, made["events_url"]) as call:
            assert (await call.finished()).status == 401
        async with get(app.app, made["events_url"], last_event_id=first_id) as call:
            await call.until(said)
            assert call.status == 200
        await cancel(app, made["stream_id"])


async def test_a_stream_that_nobody_comes_to_read_is_cancelled(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millstream.streams.audience.FIRST_READER_SECONDS", 0.05)
    async with run(gated(asyncio.Event())[1]) as app:
        made = await start(app, BODY | {"on_disconnect": "cancel"})
        await app.idle()
        assert (await receipt(app, made["stream_id"]))["status"] == "cancelled"


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/v1/streams/str_x/events?ticket=eyJ.a.b&after=1-1", "/v1/streams/str_x/events?ticket=…&after=1-1"),
        ("/v1/streams/str_x/events?%74icket=eyJa.b.c", "/v1/streams/str_x/events?%74icket=…"),
        ("/v1/streams/str_x/events?%74icket=e%79Ja.b.c", "/v1/streams/str_x/events?%74icket=…"),
        (
            "/v1/streams/str_x/events?after=1-1&%2574icket=abc",
            "/v1/streams/str_x/events?after=1-1&%2574icket=…",
        ),
        ("/v1/models?api_key=sk-1&by=day", "/v1/models?api_key=…&by=day"),
        ("/v1/models?a=ms_live_abc", "/v1/models?a=…"),
        ("/v1/models?ms%5Flive_abc", "/v1/models?…"),
        ("/v1/streams/ms_test_abc/events", "/v1/streams/…/events"),
        ("/v1/ms%255flive_abc", "/v1/…"),
        (f"/v1/%{'25' * 30_000}/a", "/v1/…/a"),
        ("/v1/usage?by=day&since=2026-01-01", "/v1/usage?by=day&since=2026-01-01"),
        ("/search?author=ann&keywords=a+b", "/search?author=ann&keywords=a+b"),
        ("/v1/chat/stream", "/v1/chat/stream"),
    ],
)
def test_credentials_are_kept_out_of_access_logs(path: str, shown: str) -> None:
    record = logging.LogRecord("uvicorn.access", 20, "", 0, "%s %s %d", ("GET", path, 200), None)
    assert HideCredentials().filter(record)
    assert record.getMessage() == f"GET {shown} 200"


async def test_a_path_with_a_key_in_it_is_not_repeated(run: Run) -> None:
    async with run() as app, get(app.app, f"/v1/nothing/{app.key}", app.key) as call:
        assert (await call.finished()).json["error"]["message"] == "there is nothing at /v1/nothing/…"


# -- idempotency -----------------------------------------------------------------------------------


async def test_racing_duplicates_are_one_generation(run: Run, journal_url: str) -> None:
    gate = asyncio.Event()
    calls, provider = gated(gate)
    async with run(provider, journal_url=journal_url) as app:
        exchanges = [post(app.app, "/v1/chat/stream", BODY, app.key, idempotency_key="k") for _ in range(20)]
        for exchange in exchanges:
            await exchange.__aenter__()
        for exchange in exchanges:
            await exchange.until(said)
        gate.set()
        for exchange in exchanges:
            await exchange.finished()
            await exchange.__aexit__()
        assert len({exchange.response_headers["x-stream-id"] for exchange in exchanges}) == 1
        assert {exchange.text for exchange in exchanges} == {"Hello"}
        assert calls == ["called"]
        assert len(await app.receipts()) == 1
        async with post(app.app, "/v1/chat", BODY, app.key, idempotency_key="k") as later:
            assert (await later.finished()).json["content"] == "Hello"
        assert len(await app.receipts()) == 1


@pytest.mark.parametrize("path", ["/v1/chat", "/v1/chat/stream"])
async def test_a_failure_that_a_repetition_would_find_again_is_not_to_be_repeated(
    run: Run, path: str
) -> None:
    async with run({"s": ScriptedProvider({"m": [UpstreamError("it broke")]})}) as app:
        for key, retry in [(None, "true"), ("k", "false"), ("k", "false"), ("other", "false")]:
            named = {} if key is None else {"idempotency_key": key}
            async with post(app.app, path, BODY, app.key, **named) as call:
                await call.finished()
            assert (call.status, call.response_headers["x-should-retry"]) == (502, retry)


async def test_an_idempotency_key_is_for_one_request_of_one_caller(run: Run) -> None:
    gate = asyncio.Event()
    gate.set()
    async with run(gated(gate)[1]) as app:
        made = await start(app, idempotency_key="k")
        async with post(app.app, "/v1/streams", BODY | {"seed": 1}, app.key, idempotency_key="k") as call:
            await call.finished()
            assert (call.status, call.json["error"]["code"]) == (422, "idempotency_conflict")
        _, other = await app.millstream.keys.create("other", ["chat"])
        assert (await start(app, key=other, idempotency_key="k"))["stream_id"] != made["stream_id"]
        for bad in ("", "a b", "x" * 129):
            async with post(app.app, "/v1/streams", BODY, app.key, idempotency_key=bad) as call:
                assert (await call.finished()).status == 422


@pytest.mark.parametrize("how", ["header", "lastEventId", "after"])
async def test_a_repeated_start_goes_on_after_the_position_that_it_shows(
    run: Run, journal_url: str, how: str
) -> None:
    """As fetch-event-source and TanStack repeat their POST. spec/faults.md: C33."""
    gate = asyncio.Event()
    calls, provider = gated(gate)
    async with run(provider, journal_url=journal_url) as app:

        def again(position: str) -> Exchange:
            headers = {"last_event_id": position} if how == "header" else {}
            query = "" if how == "header" else f"?{how}={position}"
            return post(app.app, "/v1/chat/stream" + query, GRACE, app.key, idempotency_key="k", **headers)

        async with post(app.app, "/v1/chat/stream", GRACE, app.key, idempotency_key="k") as first:
            await first.until(said)
        async with again("1-3") as call:
            gate.set()
            await call.finished()
            whole = call.received
        assert (call.status, call.text) == (200, "lo")
        assert call.frames[-1] == "[DONE]"
        assert call.response_headers["x-stream-id"] == first.response_headers["x-stream-id"]
        await app.idle()
        async with again("1-3") as call:
            assert (await call.finished()).received == whole
        # One that has all but the last byte ends well: 204 would be an error to fetch-event-source.
        async with again("1-6") as call:
            assert ((await call.finished()).status, call.received) == (200, b"retry: 1000\n")
            assert call.response_headers["content-type"].startswith("text/event-stream")
        for bad in ("1-99", "x"):
            async with again(bad) as call:
                assert ((await call.finished()).status, call.json["error"]["code"]) == (400, "bad_position")
        assert calls == ["called"]
        assert len(await app.receipts()) == 1


@pytest.mark.parametrize("headers", [{}, {"idempotency_key": "unused"}])
async def test_a_position_in_nothing_starts_nothing(run: Run, headers: dict[str, str]) -> None:
    calls, provider = gated(asyncio.Event())
    async with run(provider) as app:
        async with post(app.app, "/v1/chat/stream", BODY, app.key, last_event_id="1-3", **headers) as call:
            await call.finished()
            assert (call.status, call.json["error"]["code"]) == (400, "bad_position")
            assert "Idempotency-Key" in call.json["error"]["message"]
        assert not calls
        assert not await app.receipts()


async def test_a_position_is_for_one_request_of_one_caller(run: Run) -> None:
    gate = asyncio.Event()
    gate.set()
    shown = {"idempotency_key": "k", "last_event_id": "1-3"}
    async with run(gated(gate)[1]) as app:
        await start(app, idempotency_key="k")
        async with post(app.app, "/v1/chat/stream", BODY | {"seed": 1}, app.key, **shown) as call:
            await call.finished()
            assert (call.status, call.json["error"]["code"]) == (422, "idempotency_conflict")
        _, other = await app.millstream.keys.create("other", ["chat"])
        async with post(app.app, "/v1/chat/stream", BODY, other, **shown) as call:
            await call.finished()
            assert (call.status, call.json["error"]["code"]) == (400, "bad_position")


async def test_a_position_comes_in_the_header_or_in_what_polyfills_add_to_the_url(run: Run) -> None:
    """spec/faults.md: C33."""
    gate = asyncio.Event()
    gate.set()
    async with run(gated(gate)[1]) as app:
        made = await start(app)
        url = f"/v1/streams/{made['stream_id']}/events"
        for query, header, expected in [
            ("?lastEventId=1-3", "", "lo"),
            ("?after=1-1&lastEventId=1-3", "", "lo"),  # a position of the page's own, and the polyfill's
            ("?lastEventId=1-1", "1-3", "lo"),
            ("?lastEventId=", "", "Hello"),
        ]:
            headers = {"last_event_id": header} if header else {}
            async with get(app.app, url + query, app.key, **headers) as call:
                assert (await call.finished()).text == expected, query
        async with get(app.app, url + "?lastEventId=nothing", app.key) as call:
            assert (await call.finished()).status == 400
        ticket = made["events_url"].rpartition("/v1/")[2]
        async with get(app.app, f"/v1/{ticket}", None) as call:
            await call.finished()
        (ids,) = [[line[4:] for line in call.received.decode().split("\n") if line.startswith("id: ")]]
        async with get(app.app, f"/v1/{ticket}&lastEventId={ids[2]}", None) as call:
            assert (await call.finished()).text == "lo"


async def test_a_client_that_leaves_while_its_key_is_claimed_leaves_nothing_behind(run: Run) -> None:
    async with run(gated(asyncio.Event())[1]) as app:
        async with post(app.app, "/v1/chat/stream", BODY, app.key, idempotency_key="k") as call:
            async with asyncio.timeout(5):
                while not app.millstream.streams:
                    await asyncio.sleep(0)
            call.leave()
            await call.task
        (row,) = await app.receipts()
        assert row["status"] == "cancelled"


async def test_a_start_whose_key_cannot_be_looked_up_is_refused_not_hung(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = asyncio.Event()
    gate.set()
    async with run(gated(gate)[1]) as app:
        await start(app, idempotency_key="k")
        await app.idle()

        async def broken(*_: object) -> NoReturn:
            raise KeyError("a fault of ours")

        monkeypatch.setattr(app.millstream.ledger, "claim_error", broken)
        for path in ("/v1/streams", "/v1/chat/stream", "/v1/chat"):
            async with post(app.app, path, BODY, app.key, idempotency_key="k") as call:
                await call.finished()
                assert (call.status, call.json["error"]["code"]) == (500, "internal")


async def test_a_client_that_leaves_while_the_journal_is_slow_leaves_nothing_behind(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with run(gated(asyncio.Event())[1]) as app:
        journal, begun = app.millstream.journal, asyncio.Event()
        create = journal.create

        async def slow(info: StreamInfo) -> None:
            await create(info)
            begun.set()
            await asyncio.Event().wait()

        monkeypatch.setattr(journal, "create", slow)
        async with post(app.app, "/v1/chat/stream", BODY, app.key) as call:
            await begun.wait()
        assert call.task.done()
        assert journal.count() == 0
        assert not app.millstream.streams


async def test_a_stream_that_was_settled_without_an_end_is_ended_for_its_readers(
    run: Run, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its worker stopped while Redis was away. As long as that worker lives, the end is its to tell."""
    monkeypatch.setattr("millstream.streams.upkeep.REPAIR_SECONDS", 0.05)
    from millstream.events import PartStart, StreamStart, Text
    from millstream.journals.redis import RedisJournal
    from millstream.ledger.rows import Opening, Settlement

    async with run(gated(asyncio.Event())[1], journal_url=redis_url) as app, RedisJournal(redis_url) as other:
        ledger = app.millstream.ledger
        worker = Leases(app.millstream.database, time.monotonic)
        await worker.enlist()
        await other.create(StreamInfo("str_x", app.key_id, "m", 1.0, worker_id=worker.worker_id))
        await other.append("str_x", [StreamStart("str_x", "m"), PartStart(0, Text()), TextDelta("Hel")])
        await other.flush("str_x")
        await ledger.open(Opening("str_x", app.key_id, app.key_id, "m", "p", 1.0))
        usage = Usage(3, 4, "counted", cached_tokens=2, reasoning_tokens=1)
        await ledger.settle(Settlement("str_x", "completed", "stop", None, usage, UNKNOWN, None, 2.0, "p"))
        looked, receipt = asyncio.Semaphore(0), ledger.receipt

        async def look(stream_id: str) -> Receipt:
            looked.release()
            return await receipt(stream_id)

        monkeypatch.setattr(ledger, "receipt", look)
        async with get(app.app, "/v1/streams/str_x/events", app.key) as call:
            for _ in range(4):
                await looked.acquire()
            assert not call.task.done()
            await worker.leave()
            await call.finished()
            assert call.frames[-1]["error"]["code"] == "interrupted"
            shown = call.frames[-1]["usage"]
            assert (shown["cached_tokens"], shown["reasoning_tokens"]) == (2, 1)
            assert call.frames[-1]["usage"]["completion_tokens"] == 4


async def test_a_revoked_key_takes_its_tickets_with_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream.auth.CACHE_SECONDS", 0)
    async with run(gated(asyncio.Event())[1]) as app:
        made = await start(app)
        await app.millstream.keys.revoke(app.key_id)
        for call in (get(app.app, made["events_url"]), post(app.app, made["cancel_url"], b"")):
            async with call:
                assert (await call.finished()).status == 401


# -- browser tokens --------------------------------------------------------------------------------


async def token(app: Running, **limits: object) -> str:
    async with post(app.app, "/v1/tokens", limits, app.key) as call:
        await call.finished()
        assert call.status == 201, call.received
        return str(call.json["token"])


async def test_a_token_starts_follows_and_stops_its_own_streams(run: Run) -> None:
    async with run(gated(asyncio.Event())[1]) as app:
        ann, bob = await token(app, user="ann"), await token(app, user="bob")
        made = await start(app, key=ann)
        later = await token(app, user="ann")
        for holder, status in ((ann, 200), (later, 200), (app.key, 200), (bob, 404)):
            async with get(app.app, f"/v1/streams/{made['stream_id']}", holder) as call:
                assert (await call.finished()).status == status
        assert (await cancel(app, made["stream_id"], ann))["user"] == "ann"
        (row,) = await app.receipts()
        assert (row["key_id"], row["user"], row["owner_id"]) == (app.key_id, "ann", f"{app.key_id}/ann")
        for path in ("/v1/keys", "/v1/usage"):
            async with get(app.app, path, ann) as call:
                assert (await call.finished()).status == 401
        async with post(app.app, "/v1/tokens", {}, ann) as call:
            assert (await call.finished()).status == 401


async def test_a_token_has_limits(run: Run) -> None:
    asked: list[tuple[int | None, str | None]] = []
    extras: list[Extra] = []

    class Asked(ScriptedProvider):
        def stream(self, prompt: Prompt, model: str) -> AsyncGenerator[Sequence[Produced]]:
            asked.append((prompt.max_tokens, prompt.user))
            extras.append(prompt.extra)
            return super().stream(prompt, model)

    provider = {"scripted": Asked({"m": [TextDelta("x"), asyncio.Event().wait], "n": [END]})}
    async with run(provider) as app:
        some = await token(app, models=["m"], max_streams=2, max_tokens=50, user="ann")
        one = await start(app, key=some)
        two = await start(app, {"messages": MESSAGES, "max_tokens": 10, "user": "eve"}, key=some)
        async with get(app.app, one["events_url"]) as call:
            await call.until(lambda call: call.text)
        async with get(app.app, two["events_url"]) as call:
            await call.until(lambda call: call.text)
        assert asked == [(50, "ann"), (10, "ann")]
        async with post(app.app, "/v1/chat/stream", BODY, some) as call:
            await call.finished()
            assert (call.status, call.json["error"]["code"]) == (429, "too_many_streams")
        async with post(app.app, "/v1/chat/stream", BODY | {"model": "n"}, some) as call:
            await call.finished()
            assert (call.status, call.json["error"]["code"]) == (403, "forbidden")
        several = BODY | {"model": "m", "n": 3}  # in a format that has them
        async with post(app.app, "/v1/chat/completions", several, some) as call:
            await call.finished()
            assert (call.status, call.json["error"]["code"]) == (403, "forbidden")
        for made in (one, two):
            await cancel(app, made["stream_id"])
        chosen = {"safety_identifier": "eve", "service_tier": "priority", "verbosity": "low"}
        async with post(app.app, "/v1/chat/completions", BODY | chosen | {"stream": True}, some) as call:
            await call.until(lambda _: len(extras) == 3)
        assert extras[-1] == {"openai": {"verbosity": "low"}}  # neither for whom nor at what price
        body = BODY | {"max_tokens": 9, "stream": True}  # nor what is tried
        async with post(app.app, "/v1/messages", body, some, anthropic_beta="a") as call:
            await call.until(lambda _: len(extras) == 4)
        assert extras[-1] == {"anthropic": {}}


async def test_an_owner_has_so_many_readers_and_others_have_theirs(run: Run, journal_url: str) -> None:
    gate = asyncio.Event()
    async with run(gated(gate)[1], journal_url=journal_url, max_readers=2) as app:
        ann, eve = await token(app, user="ann"), await token(app, user="eve")
        of_ann, of_eve, of_the_key = [await start(app, GRACE, key) for key in (ann, eve, app.key)]
        url = f"/v1/streams/{of_ann['stream_id']}/events"
        async with get(app.app, url, ann) as first, get(app.app, of_ann["events_url"]) as second:
            await first.until(said)
            await second.until(said)
            # With the token, with a ticket, after any position, of a stream that there is or not.
            for refused in (
                get(app.app, url, ann),
                get(app.app, of_ann["events_url"]),
                get(app.app, url, ann, last_event_id="1-1"),
                get(app.app, "/v1/streams/str_none/events", ann),
            ):
                async with refused as call:
                    await call.finished()
                    assert (call.status, call.json["error"]["code"]) == (429, "too_many_streams")
                    assert call.response_headers["retry-after"] == "1"
            for other, key in ((of_eve, eve), (of_the_key, app.key), (of_ann, app.key)):
                async with get(app.app, f"/v1/streams/{other['stream_id']}/events", key) as call:
                    await call.until(said)
        async with get(app.app, url, ann) as call:
            await call.until(said)  # their places are free again
        gate.set()


async def test_readers_that_come_at_once_are_no_more_than_there_may_be(run: Run) -> None:
    gate = asyncio.Event()
    async with run(gated(gate)[1], max_readers=3) as app:
        made = await start(app, GRACE)
        url = f"/v1/streams/{made['stream_id']}/events"
        async with AsyncExitStack() as stack:
            calls = [await stack.enter_async_context(get(app.app, url, app.key)) for _ in range(20)]
            for call in calls:
                await call.until(lambda call: said(call) or call.complete.is_set())
            assert sorted(call.status or 0 for call in calls) == [200] * 3 + [429] * 17
            assert {call.json["error"]["code"] for call in calls if call.status == 429} == {
                "too_many_streams"
            }
        gate.set()


async def test_whoever_starts_a_stream_reads_it_beside_the_other_readers(run: Run) -> None:
    gate = asyncio.Event()
    async with run(gated(gate)[1], max_readers=1) as app:
        async with AsyncExitStack() as stack:
            for _ in range(3):
                call = await stack.enter_async_context(post(app.app, "/v1/chat/stream", GRACE, app.key))
                await call.until(said)
            url = f"/v1/streams/{call.response_headers['x-stream-id']}/events"
            async with get(app.app, url, app.key) as reader:
                await reader.until(said)
        gate.set()


async def test_a_repeated_start_is_a_reader_and_one_that_does_not_read_is_none(run: Run) -> None:
    gate = asyncio.Event()
    async with run(gated(gate)[1], max_readers=1) as app:
        made = await start(app, GRACE, idempotency_key="again")
        async with get(app.app, made["events_url"]) as reader:
            await reader.until(said)
            assert (await start(app, GRACE, idempotency_key="again"))["stream_id"] == made["stream_id"]
            for path in ("/v1/chat/stream", "/v1/chat"):
                async with post(app.app, path, GRACE, app.key, idempotency_key="again") as call:
                    await call.finished()
                    assert (call.status, call.json["error"]["code"]) == (429, "too_many_streams")
        gate.set()


async def test_a_token_ends_with_its_time_or_its_key(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream.auth.CACHE_SECONDS", 0)
    async with run(gated(asyncio.Event())[1]) as app:
        valid = await token(app)
        async with get(app.app, "/v1/models", valid) as call:
            assert (await call.finished()).status == 200
        forged = valid[:-4] + "AAAA"
        async with get(app.app, "/v1/models", forged) as call:
            assert (await call.finished()).status == 401
        with monkeypatch.context() as patch:
            patch.setattr("millstream.tickets.time.time", lambda: 1.0)
            expired = await token(app)
        async with get(app.app, "/v1/models", expired) as call:
            assert (await call.finished()).status == 401
        await app.millstream.keys.revoke(app.key_id)
        async with get(app.app, "/v1/models", valid) as call:
            assert (await call.finished()).status == 401


async def test_a_token_cannot_ask_for_what_makes_no_sense(run: Run) -> None:
    async with run(gated(asyncio.Event())[1]) as app:
        for body in (
            {"models": "m"},
            {"max_streams": 0},
            {"expires_in_seconds": 10**9},
            {"key_id": "x"},
            {"user": "a\nb"},
        ):
            async with post(app.app, "/v1/tokens", body, app.key) as call:
                await call.finished()
                assert (call.status, json.loads(call.received)["error"]["code"]) == (422, "invalid_request")


async def test_a_stream_that_others_ended_first_is_settled_as_they_ended_it(run: Run, redis_url: str) -> None:
    """Its worker slept, wakes up between their end of the journal and their settlement, and settles before them."""
    from millstream.errors import Interrupted
    from millstream.events import StreamFailed
    from millstream.journals.redis import RedisJournal
    from millstream.usage import Bill

    gate = asyncio.Event()
    async with run(gated(gate)[1], journal_url=redis_url) as app, RedisJournal(redis_url) as other:
        async with post(app.app, "/v1/chat/stream", BODY, app.key) as call:
            await call.until(said)
            stream_id = call.response_headers["x-stream-id"]
            await app.millstream.journal.flush(stream_id)
            await other.interrupt(
                stream_id, StreamFailed.of(Interrupted(), Bill(Usage(1, 0, "checkpoint"), None))
            )
            gate.set()
            await call.finished()
            assert call.frames[-1]["error"]["code"] == "interrupted"
        (row,) = await app.receipts()
        assert (row["status"], row["error_code"], row["finish_reason"]) == (
            "interrupted",
            "interrupted",
            None,
        )
        assert row["corrected_at"] is not None
