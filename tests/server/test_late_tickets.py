"""A ticket to follow that is used late: it resumes, and it does nothing else. spec/faults.md: A11."""

import asyncio
import re
from typing import Any

import pytest

from asgi import get, post
from millstream.events import TextDelta
from millstream.providers import Finish
from millstream.providers.scripted import ScriptedProvider
from millstream.usage import Usage

BODY = {
    "model": "m",
    "messages": [{"role": "user", "content": "Hello"}],
    "on_disconnect": {"grace_seconds": 600},
}
END = Finish("stop", Usage(9, 2, "provider_final"))
WORDS = ["a secret", "id: 1-1\n\nid: 1-2", " and more"]


@pytest.fixture(params=["memory", "redis"])
def journal_url(request: pytest.FixtureRequest) -> Any:
    return "memory:" if request.param == "memory" else request.getfixturevalue("redis_url")


def provider(gate: asyncio.Event) -> dict[str, ScriptedProvider]:
    return {"s": ScriptedProvider({"m": [*map(TextDelta, WORDS), gate.wait, TextDelta("!"), END]})}


async def start(app: Any) -> Any:
    async with post(app.app, "/v1/streams", BODY, app.key) as call:
        await call.finished()
        assert call.status == 201, call.received
        return call.json


def ids(call: Any) -> list[str]:
    return re.findall(r"^id: (.*)$", call.received.decode(), re.MULTILINE)


async def test_a_late_ticket_without_an_id_of_a_frame_reads_nothing(
    run: Any, journal_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = asyncio.Event()
    async with run(provider(gate), journal_url=journal_url) as app:
        made, other = await start(app), await start(app)
        async with get(app.app, other["events_url"]) as call:
            await call.until(lambda call: WORDS[-1] in call.text)
            of_another = ids(call)[-1]
        monkeypatch.setattr("millstream.tickets.FIRST_USE_SECONDS", -10)
        for running in (True, False):
            for guess in (
                "1-0",
                "1-1",
                "1-2",
                "1-4",
                "2-0",
                "2-1",
                "0-0",
                "1-1.",
                "1-1.AAAAAAAAAAAA",
                "1-1.\xe9",
                of_another,
            ):
                for query, headers in ((f"&after={guess}", {}), ("", {"last_event_id": guess})):
                    async with get(app.app, made["events_url"] + query, **headers) as call:
                        await call.finished()
                        assert (call.status, call.json["error"]["code"]) == (401, "unauthorized"), guess
                        assert b"secret" not in call.received
            if running:
                gate.set()
                await app.idle()


async def test_a_late_ticket_resumes_with_the_id_that_its_bearer_was_sent(
    run: Any, journal_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than once: whoever has resumed may have to resume again."""
    gate = asyncio.Event()
    async with run(provider(gate), journal_url=journal_url) as app:
        made = await start(app)
        async with get(app.app, made["events_url"]) as first:
            await first.until(lambda call: WORDS[-1] in call.text)
        assert first.text == "".join(WORDS)
        monkeypatch.setattr("millstream.tickets.FIRST_USE_SECONDS", -10)
        async with get(app.app, made["events_url"], last_event_id=ids(first)[2]) as second:
            await second.until(lambda call: WORDS[-1] in call.text)
            assert second.text == "".join(WORDS[1:])
        gate.set()
        async with get(app.app, made["events_url"], last_event_id=ids(second)[-1]) as third:
            await third.finished()
            assert third.text == "!"
            assert third.frames[-1] == "[DONE]"
        async with get(app.app, made["events_url"], last_event_id=ids(third)[-1]) as fourth:
            assert (await fourth.finished()).status == 204


async def test_the_id_of_a_tickets_frame_is_a_position_for_everybody(run: Any) -> None:
    """With what proves that it was sent. A key and a ticket in time need no proof, and bear any."""
    gate = asyncio.Event()
    gate.set()
    async with run(provider(gate)) as app:
        made = await start(app)
        async with get(app.app, made["events_url"]) as call:
            await call.finished()
        sent = ids(call)
        assert [sent_id.partition(".")[0] for sent_id in sent] == [f"1-{i + 1}" for i in range(len(sent))]
        assert {len(sent_id.partition(".")[2]) for sent_id in sent} == {12}
        url = made["events_url"].partition("?")[0]
        async with get(app.app, url, app.key, last_event_id=sent[2]) as by_key:
            await by_key.finished()
            assert by_key.text == "".join(WORDS[1:]) + "!"
            assert ids(by_key)[0] == "1-4"
        async with get(app.app, made["events_url"], last_event_id="1-3") as in_time:
            await in_time.finished()
            assert in_time.text == by_key.text
        for nonsense in ("1-3.", "1-3.x", "1-3.AAAAAAAAAAA/", f"{sent[2]}x", "1-3." + "A" * 10_000):
            async with get(app.app, url, app.key, last_event_id=nonsense) as call:
                await call.finished()
                assert (call.status, call.json["error"]["code"]) == (400, "bad_position"), nonsense
