"""Whoever has seen the end of a stream finds it settled. spec/faults.md: I1."""

import asyncio
from contextlib import suppress
from typing import Any

import pytest

from application import Run, Running
from asgi import get, post
from millstream.events import TextDelta
from millstream.journals import StreamState
from millstream.ledger.rows import Settlement
from millstream.providers import Finish
from millstream.providers.scripted import ScriptedProvider
from millstream.usage import Usage

BODY = {
    "model": "m",
    "messages": [{"role": "user", "content": "Hello"}],
    "on_disconnect": {"grace_seconds": 600},
}
END = Finish("stop", Usage(9, 2, "provider_final"))
PROVIDERS = {"s": ScriptedProvider({"m": [TextDelta("Hello"), END]})}


@pytest.fixture(params=["memory", "redis"])
def journal_url(request: pytest.FixtureRequest) -> str:
    return "memory:" if request.param == "memory" else str(request.getfixturevalue("redis_url"))


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits without need, waits for longer than a test may take."""
    monkeypatch.setattr("millstream.streams.registry.SETTLING_SECONDS", 600)


def settle_slowly(app: Running, monkeypatch: pytest.MonkeyPatch, *, seconds: float) -> None:
    """From now on a settlement takes so long."""
    settle = app.millstream.ledger.settle

    async def slow(settlement: Settlement) -> None:
        await asyncio.sleep(seconds)
        await settle(settlement)

    monkeypatch.setattr(app.millstream.ledger, "settle", slow)


async def receipt(app: Running, stream_id: str, key: str) -> dict[str, Any]:
    async with get(app.app, f"/v1/streams/{stream_id}", key) as call:
        await call.finished()
        assert call.status == 200, call.received
        found: dict[str, Any] = call.json
        return found


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("path", ["/v1/chat/stream", "/v1/chat"])
async def test_right_after_the_end_the_receipt_is_the_last_one(
    run: Run, journal_url: str, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    async with run(PROVIDERS, journal_url=journal_url) as app:
        settle_slowly(app, monkeypatch, seconds=0.2)
        async with post(app.app, path, BODY, app.key) as call:
            await call.finished()
            found = await receipt(app, call.response_headers["x-stream-id"], app.key)
        assert (found["status"], found["usage"]["completion_tokens"]) == ("completed", 2)


@pytest.mark.usefixtures("patient")
async def test_it_is_so_on_another_worker(run: Run, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with run(PROVIDERS, journal_url=redis_url) as here, run(PROVIDERS, journal_url=redis_url) as there:
        settle_slowly(here, monkeypatch, seconds=0.2)
        async with post(here.app, "/v1/streams", BODY, here.key) as call:
            stream_id = (await call.finished()).json["stream_id"]
        async with get(there.app, f"/v1/streams/{stream_id}/events", here.key) as call:
            await call.finished()
            assert call.frames[-1] == "[DONE]"
            assert (await receipt(there, stream_id, here.key))["status"] == "completed"


async def test_a_settlement_that_does_not_come_is_waited_for_with_a_bound(
    run: Run, journal_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millstream.streams.registry.SETTLING_SECONDS", 0.05)
    async with run(PROVIDERS, journal_url=journal_url) as app:
        settle_slowly(app, monkeypatch, seconds=1)
        async with post(app.app, "/v1/chat/stream", BODY, app.key) as call:
            await call.finished()
            found = await receipt(app, call.response_headers["x-stream-id"], app.key)
        assert found["status"] == "running"


async def test_a_journal_that_cannot_say_whether_it_has_ended_holds_up_nobody(
    run: Run, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millstream.streams.registry.SETTLING_SECONDS", 0.05)

    async def silent(stream_id: str) -> StreamState:
        await asyncio.Event().wait()
        raise AssertionError

    gate = asyncio.Event()
    waiting = {"s": ScriptedProvider({"m": [gate.wait, END]})}
    async with run(waiting, journal_url=redis_url) as here, run(waiting, journal_url=redis_url) as there:
        async with post(here.app, "/v1/streams", BODY, here.key) as call:
            stream_id = (await call.finished()).json["stream_id"]
        monkeypatch.setattr(there.millstream.journal, "state", silent)
        async with asyncio.timeout(5):
            assert (await receipt(there, stream_id, here.key))["status"] == "running"
        gate.set()


@pytest.mark.usefixtures("patient")
async def test_a_stream_that_runs_is_told_at_once(run: Run, redis_url: str) -> None:
    gate = asyncio.Event()
    waiting = {"s": ScriptedProvider({"m": [TextDelta("Hello"), gate.wait, END]})}
    async with run(waiting, journal_url=redis_url) as here, run(waiting, journal_url=redis_url) as there:
        async with post(here.app, "/v1/streams", BODY, here.key) as call:
            stream_id = (await call.finished()).json["stream_id"]
        for app in (here, there):
            async with asyncio.timeout(5):
                assert (await receipt(app, stream_id, here.key))["status"] == "running"
        gate.set()


@pytest.mark.usefixtures("patient")
async def test_whose_stream_it_is_not_waits_for_nothing(
    run: Run, journal_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer, and the time that it takes, are those for a stream that does not exist."""
    async with run(PROVIDERS, journal_url=journal_url) as app:
        _, other = await app.millstream.keys.create("other", ["chat"])
        settled = asyncio.Event()

        async def never(settlement: Settlement) -> None:
            await settled.wait()

        with monkeypatch.context() as patch:
            patch.setattr(app.millstream.ledger, "settle", never)
            async with post(app.app, "/v1/chat/stream", BODY, app.key) as call:
                await call.finished()
            stream_id = call.response_headers["x-stream-id"]
            with suppress(TimeoutError):
                async with asyncio.timeout(5), get(app.app, f"/v1/streams/{stream_id}", other) as asked:
                    await asked.finished()
            assert asked.status == 404
        settled.set()
