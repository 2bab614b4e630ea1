"""Receipts: what they say of a stream, who ended it, and pages of them."""

import asyncio
import base64
import json
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any
from urllib.parse import quote

import pytest

from application import Run, Running
from asgi import Exchange, get, post
from millstream.errors import UpstreamError
from millstream.events import TextDelta
from millstream.prompt import Prompt
from millstream.providers import Finish, Produced, Provider
from millstream.providers.scripted import Script, ScriptedProvider
from millstream.usage import TOKEN_KINDS, Usage

USAGE = Usage(9, 2, "provider_final", 3, 1)
BODY = {"model": "m", "messages": [{"role": "user", "content": "Hello"}], "on_disconnect": "cancel"}
SCRIPT: Script = [TextDelta("Hello"), Finish("stop", USAGE)]
PROVIDERS = {"s": ScriptedProvider({"m": SCRIPT})}


class Endless(ScriptedProvider):
    """Says a word, and then what ``then`` does."""

    def __init__(self, then: Exception | None = None) -> None:
        super().__init__({"m": []})
        self._then = then

    async def stream(self, prompt: Prompt, model: str) -> AsyncGenerator[Sequence[Produced]]:
        yield [TextDelta("Hello")]
        if self._then is not None:
            raise self._then
        await asyncio.Event().wait()


async def receipt(app: Running, stream_id: str) -> dict[str, Any]:
    async with get(app.app, f"/v1/streams/{stream_id}", app.admin) as call:
        found: dict[str, Any] = (await call.finished()).json
        return found


async def begin(app: Running, call: Exchange) -> str:
    await call.until(lambda call: "Hello" in call.text)
    return str(call.frames[0]["stream_id"])


async def test_a_receipt_says_everything_of_a_stream(run: Run) -> None:
    prices = {"m": {"input": 1, "output": 1, "version": "2026-07"}}
    async with run(PROVIDERS, prices=prices) as app:
        async with post(app.app, "/v1/chat", {**BODY, "user": "ann"}, app.key) as call:
            stream_id = (await call.finished()).json["stream_id"]
        await app.idle()
        told = await receipt(app, stream_id)
    assert told["usage"] == {
        "source": "provider_final",
        "tokenizer": None,
        "total_tokens": 11,
        **{kind: getattr(USAGE, kind) for kind in TOKEN_KINDS},
    }
    assert (told["cost_usd"], told["price_usd"]) == ("0.000011", "0.000011")
    assert told["unit_prices"]["version"] == "settings 2026-07"
    assert told["unit_prices"]["cost"] == {"input": "1", "output": "1"}
    assert (told["status"], told["finish_reason"], told["ended_by"]) == ("completed", "stop", "provider")
    assert (told["model"], told["provider"], told["upstream_model"], told["user"]) == ("m", "s", "m", "ann")
    assert (
        told["created_at"] <= told["attempts"][0]["started_at"] <= told["first_event_at"] <= told["ended_at"]
    )
    timings = told["timings"]
    assert 0 <= timings["queued"] <= timings["first_event"] <= timings["ended"]
    assert told["limits"] == []
    assert "owner_id" not in told


ENDINGS = ["client", "policy", "operator", "revoked", "drain", "provider", "limit", "crash"]


@pytest.mark.parametrize("how", ENDINGS)
async def test_a_receipt_says_who_ended_the_stream(
    run: Run, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millstream.streams.upkeep._REFUSED_SECONDS", 0.02)
    then = {"provider": UpstreamError("it failed"), "crash": RuntimeError("a fault")}.get(how)
    seconds = 0.3 if how == "limit" else 60.0
    async with run({"p": Endless(then)}, stream_seconds=seconds) as app:
        async with post(app.app, "/v1/chat/stream", BODY, app.key) as call:
            stream_id = await begin(app, call)
            match how:
                case "client" | "operator":
                    key = app.key if how == "client" else app.admin
                    async with post(app.app, f"/v1/streams/{stream_id}/cancel", b"", key) as cancelled:
                        assert (await cancelled.finished()).status == 200
                case "policy":
                    call.leave()
                case "revoked":
                    await app.millstream.keys.revoke(app.key_id)
                case "drain":
                    await app.millstream.streams.drain(0)
            await app.idle()
        told = await receipt(app, stream_id)
    expected = {"revoked": "operator", "drain": "operator"}.get(how, how)
    assert told["ended_by"] == expected, told


async def test_an_operator_on_another_worker_is_known_as_one(run: Run, redis_url: str, tmp_path: Any) -> None:
    from millstream.server.app import Millstream, create_app
    from millstream.settings import Settings

    async with run({"p": Endless()}, journal_url=redis_url) as app:
        settings = Settings(data_dir=tmp_path / "data", journal_url=redis_url, max_lag_seconds=3600)
        other = Millstream(settings, providers={"p": Endless()})
        there = create_app(other)
        async with other.lifespan(there):
            for key, expected in ((app.admin, "operator"), (app.key, "client")):
                async with post(app.app, "/v1/chat/stream", BODY, app.key) as call:
                    stream_id = await begin(app, call)
                    async with post(there, f"/v1/streams/{stream_id}/cancel", b"", key) as cancelled:
                        assert (await cancelled.finished()).status == 200
                    await call.finished()
                await app.idle()
                assert (await receipt(app, stream_id))["ended_by"] == expected


# -- pages -----------------------------------------------------------------------------------------


async def page(app: Running, key: str, query: str = "") -> Any:
    async with get(app.app, f"/v1/streams?{query}", key) as call:
        await call.finished()
        assert call.status == 200, call.received
        return call.json


async def ask(app: Running, key: str, **more: object) -> str:
    async with post(app.app, "/v1/chat", {**BODY, **more}, key) as call:
        return str((await call.finished()).json["stream_id"])


@pytest.mark.parametrize("seconds", [-172_800, 34_560_000])
async def test_a_clock_that_is_set_under_a_stream_moves_none_of_its_durations(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, seconds: float
) -> None:
    real = time.time

    async def set_clock() -> None:
        monkeypatch.setattr("time.time", lambda: real() + seconds)

    script: Script = [set_clock, TextDelta("Hello"), 0.01, Finish("stop", USAGE)]
    with caplog.at_level(logging.INFO, "millstream.stream"):
        async with run({"s": ScriptedProvider({"m": script})}) as app:
            stream_id = await ask(app, app.key)
            await app.idle()
            told = await receipt(app, stream_id)
    timings, (attempt,) = told["timings"], told["attempts"]
    assert 0 <= timings["queued"] <= timings["first_event"] < timings["ended"] < 60
    assert attempt["started_at"] <= attempt["first_content_at"] < attempt["ended_at"]
    (line,) = [record for record in caplog.records if record.name == "millstream.stream"]
    assert 0 <= line.fields["first_event_seconds"] <= line.fields["seconds"] < 60  # type: ignore[attr-defined]


async def test_pages_have_every_stream_once_the_newest_first(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millstream.streams.registry.time.time", lambda: 1000.25)  # all at one moment
    async with run(PROVIDERS) as app:
        asked = [await ask(app, app.key) for _ in range(7)]
        await app.idle()
        found: list[str] = []
        cursor, pages = "", 0
        while True:
            told = await page(app, app.admin, f"limit=3{cursor}")
            found += [one["stream_id"] for one in told["data"]]
            pages += 1
            if told["next_cursor"] is None:
                break
            cursor = f"&cursor={told['next_cursor']}"
            await ask(app, app.key)  # comes in between, at the same moment or before it in the list
        assert pages == 3
        assert len(found) == len(set(found))
        assert set(asked) <= set(found)
        assert found == sorted(found, reverse=True)


async def test_streams_are_found_by_what_they_are(run: Run) -> None:
    providers: dict[str, Provider] = {
        "e": Endless(),
        "s": ScriptedProvider({"n": SCRIPT}),
    }
    async with run(providers) as app:
        done = await ask(app, app.key, model="n", user="ann")
        async with post(app.app, "/v1/chat/stream", BODY, app.key) as call:
            running = await begin(app, call)
            for query, expected in (
                ("", [running, done]),
                ("status=running", [running]),
                ("status=completed", [done]),
                ("model=n", [done]),
                ("user=ann", [done]),
                ("user=ann&status=running", []),
                (f"key={app.key_id}", [running, done]),
                ("key=key_x", []),
                ("since=0&until=1", []),
                ("since=1", [running, done]),
            ):
                told = await page(app, app.admin, query)
                assert [one["stream_id"] for one in told["data"]] == expected, query
            call.leave()


async def test_a_page_has_ones_own_streams(run: Run) -> None:
    async with run(PROVIDERS) as app:
        _, other = await app.millstream.keys.create("other", ["chat"])
        tokens = {}
        for user in ("ann", "bob"):
            async with post(app.app, "/v1/tokens", {"user": user}, app.key) as call:
                tokens[user] = (await call.finished()).json["token"]
        by_key, by_ann, by_bob = [await ask(app, key) for key in (app.key, tokens["ann"], tokens["bob"])]
        by_other = await ask(app, other)
        for key, expected in (
            (app.key, {by_key, by_ann, by_bob}),
            (tokens["ann"], {by_ann}),
            (other, {by_other}),
            (app.admin, {by_key, by_ann, by_bob, by_other}),
        ):
            told = await page(app, key)
            assert {one["stream_id"] for one in told["data"]} == expected
        told = await page(app, other, f"key={app.key_id}")
        assert told["data"] == []


def encoded(place: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode()


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=201",
        "status=odd",
        "cursor=nonsense",
        "cursor=%C3%A4",
        "user=%00",
        f"cursor={quote(encoded([1, chr(0)]))}",
        f"cursor={quote(encoded(['a', 'b']))}",
        f"cursor={quote(encoded([1, 'b', 'c']))}",
    ],
)
async def test_what_names_no_page_is_refused(run: Run, query: str) -> None:
    async with run(PROVIDERS) as app, get(app.app, f"/v1/streams?{query}", app.key) as call:
        await call.finished()
        assert (call.status, call.json["error"]["code"]) == (422, "invalid_request")
