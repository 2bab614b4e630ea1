import asyncio
import json
import time

import pytest

from application import Run
from asgi import Exchange, delete, get, patch, post
from millstream.dialects.table import DIALECTS, DialectName
from millstream.errors import NotFound
from millstream.events import TextDelta
from millstream.ledger.receipts import Wanted
from millstream.providers import Finish, Provider
from millstream.providers.scripted import ScriptedProvider
from millstream.settings import ModelSettings
from millstream.usage import Usage


class Wrapped:
    """A provider of which nobody knows what it is."""

    def __init__(self, provider: Provider) -> None:
        self.stream, self.models, self.close = provider.stream, provider.models, provider.close


NOW = time.time()
USAGE = Usage(9, 2, "provider_final")
PROVIDERS = {"s": ScriptedProvider({"m": [TextDelta("Hello"), Finish("stop", USAGE)]})}
BODY = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}


async def test_keys_are_made_listed_and_revoked_over_http(run: Run) -> None:
    async with run(PROVIDERS) as app:
        async with post(app.app, "/v1/keys", {"name": "n", "scopes": ["chat"]}, app.admin) as call:
            made = (await call.finished()).json
            assert call.status == 201
        async with post(app.app, "/v1/chat", BODY, made["key"]) as call:
            assert (await call.finished()).status == 200
        async with get(app.app, "/v1/keys", app.admin) as call:
            listed = {key["id"]: key for key in (await call.finished()).json["data"]}
        assert "key" not in listed[made["id"]]
        async with delete(app.app, f"/v1/keys/{made['id']}", app.admin) as call:
            assert (await call.finished()).json["revoked_at"] is not None
        async with post(app.app, "/v1/chat", BODY, made["key"]) as call:
            assert (await call.finished()).status == 401
        async with delete(app.app, "/v1/keys/key_x", app.admin) as call:
            assert (await call.finished()).status == 404


async def test_keys_need_the_scope_admin(run: Run) -> None:
    async with run(PROVIDERS) as app:
        for exchange in (
            post(app.app, "/v1/keys", {"name": "n"}, app.key),
            get(app.app, "/v1/keys", app.key),
            delete(app.app, f"/v1/keys/{app.key_id}", app.key),
        ):
            async with exchange as call:
                assert (await call.finished()).status == 403
        for bad in ({"name": ""}, {"name": "n", "scopes": ["root"]}, {"name": "n", "x": 1}, b"{"):
            async with post(app.app, "/v1/keys", bad, app.admin) as call:
                assert (await call.finished()).status in (400, 422)


async def test_a_key_is_rotated_and_changed_over_http(run: Run) -> None:
    async with run(PROVIDERS) as app:
        body = {"name": "n", "owner": "acme", "labels": {"team": "search"}}
        async with post(app.app, "/v1/keys", body, app.admin) as call:
            made = (await call.finished()).json
        assert (made["owner"], made["labels"], made["test"]) == ("acme", {"team": "search"}, False)
        path = f"/v1/keys/{made['id']}"
        async with post(app.app, f"{path}/rotate", {"overlap_seconds": 60}, app.admin) as call:
            rotated = (await call.finished()).json
            assert (call.status, rotated["id"]) == (200, made["id"])
        for key in (made["key"], rotated["key"]):
            async with post(app.app, "/v1/chat", BODY, key) as call:
                assert (await call.finished()).status == 200
        async with post(app.app, f"{path}/rotate", {"overlap_seconds": 0}, app.admin) as call:
            newest = (await call.finished()).json["key"]
        for key, status in ((made["key"], 401), (rotated["key"], 401), (newest, 200)):
            async with post(app.app, "/v1/chat", BODY, key) as call:
                assert (await call.finished()).status == status
        async with patch(app.app, path, {"labels": {}, "expires_at": 1}, app.admin) as call:
            changed = (await call.finished()).json
            assert (changed["name"], changed["labels"], changed["expires_at"]) == ("n", {}, 1)
        async with post(app.app, "/v1/chat", BODY, newest) as call:
            assert (await call.finished()).status == 401
        for bad in ({"owner": "emca"}, {"x": 1}, {"name": None}, {"name": ""}, {"expires_at": 1e300}):
            async with patch(app.app, path, bad, app.admin) as call:
                assert (await call.finished()).status == 422
        async with patch(app.app, "/v1/keys/key_x", {"name": "x"}, app.admin) as call:
            assert (await call.finished()).status == 404
        for exchange in (patch(app.app, path, {}, app.key), post(app.app, f"{path}/rotate", {}, app.key)):
            async with exchange as call:
                assert (await call.finished()).status == 403


async def test_last_use_is_listed_once_it_is_written(run: Run) -> None:
    async with run(PROVIDERS) as app:
        async with post(app.app, "/v1/chat", BODY, app.key) as call:
            await call.finished()
        await app.millstream.keys.write_uses()
        async with get(app.app, "/v1/keys", app.admin) as call:
            listed = {key["id"]: key for key in (await call.finished()).json["data"]}
        assert listed[app.key_id]["last_used_at"] == pytest.approx(time.time(), abs=60)


async def test_a_test_key_reaches_only_what_costs_nothing_and_is_not_billed(run: Run) -> None:
    paid = Wrapped(ScriptedProvider({"gpt": [TextDelta("Hello"), Finish("stop", USAGE)]}))
    providers: dict[str, Provider] = {"paid": paid, **PROVIDERS}
    routed = {"mixed": ModelSettings(deployments=("s/m",), fallbacks=("paid/gpt",))}
    async with run(providers, models=routed) as app:
        key, secret = await app.millstream.keys.create("n", ["chat"], test=True)
        async with post(app.app, "/v1/tokens", {"user": "u"}, secret) as call:
            token = (await call.finished()).json["token"]
        for credential in (secret, token):
            for model, status in (("m", 200), ("gpt", 403), ("paid/gpt", 403), ("mixed", 403)):
                async with post(app.app, "/v1/chat", {**BODY, "model": model}, credential) as call:
                    assert (await call.finished()).status == status, model
        assert [row["is_test"] for row in await app.receipts()] == [True, True]
        for path, seen in (("/v1/usage", 0), ("/v1/usage?test=true", 2)):
            async with get(app.app, path, app.admin) as call:
                assert sum(one["streams"] for one in (await call.finished()).json["data"]) == seen
        async with get(app.app, "/v1/usage", secret) as call:
            (own,) = (await call.finished()).json["data"]
            assert (own["group"], own["streams"]) == ({"key": key.id}, 2)


async def test_usage_is_ones_own_or_with_the_scope_everybodys(run: Run) -> None:
    async with run(PROVIDERS) as app:
        for key in (app.key, app.admin):
            async with post(app.app, "/v1/chat", BODY, key) as call:
                await call.finished()
        await app.idle()
        async with get(app.app, "/v1/usage?by=model", app.key) as call:
            (own,) = (await call.finished()).json["data"]
        async with get(app.app, "/v1/usage?by=model", app.admin) as call:
            (all_,) = (await call.finished()).json["data"]
        assert (own["streams"], all_["streams"]) == (1, 2)
        async with get(app.app, "/v1/usage?by=planet", app.admin) as call:
            assert (await call.finished()).status == 422
            assert call.json["error"]["code"] == "invalid_request"


async def test_usage_is_crossed_compared_and_given_as_csv(run: Run) -> None:
    now = time.time()
    async with run(PROVIDERS) as app:
        meter = app.millstream.meter
        for key, user in ((app.key, "ann"), (app.key, "bob"), (app.admin, "ann")):
            async with post(app.app, "/v1/chat", {**BODY, "user": user}, key) as call:
                await call.finished()
        await app.idle()
        async with get(app.app, "/v1/usage?by=day,user&percentiles=true", app.admin) as call:
            told = (await call.finished()).json
        assert told["by"] == ["day", "user"]
        assert {one["group"]["user"]: one["streams"] for one in told["data"]} == {"ann": 2, "bob": 1}
        assert told["data"][0]["first_event_seconds"]["p50"] is not None
        async with get(app.app, f"/v1/usage?by=user&key={app.key_id}", app.admin) as call:
            assert [one["streams"] for one in (await call.finished()).json["data"]] == [1, 1]
        async with get(app.app, "/v1/usage?by=user&key=key_x", app.key) as call:  # it has its own
            assert [one["streams"] for one in (await call.finished()).json["data"]] == [1, 1]
        async with get(app.app, "/v1/usage?by=model,user", app.admin, accept="text/csv") as call:
            lines = (await call.finished()).received.decode().splitlines()
        assert call.response_headers["content-type"].startswith("text/csv")
        assert call.response_headers["cache-control"] == "no-store"
        assert lines[0].startswith("model,user,streams,")
        assert [line.split(",")[:3] for line in lines[1:]] == [["m", "ann", "2"], ["m", "bob", "1"]]
        path = f"/v1/usage?by=model&since={now - 60}&until={now + 60}&compare=true"
        async with get(app.app, path, app.admin) as call:
            told = (await call.finished()).json
        assert [one["streams"] for one in told["data"]] == [3]
        assert told["previous"] == {
            "since": pytest.approx(now - 180),
            "until": pytest.approx(now - 60),
            "data": [],
        }
        assert await meter.totals("model", since=now - 60)
        for zone in ("UTC", "Asia/Singapore", "America/New_York"):
            for query in ("since=0", "since=0&until=253370764799", "since=253370764799&until=253370764799"):
                async with get(
                    app.app, f"/v1/usage?by=day&compare=true&zone={zone}&{query}", app.admin
                ) as call:
                    assert (await call.finished()).status == 200, (zone, query)
        for query in (
            "by=planet",
            "by=day,month",
            "zone=x",
            "compare=true",
            "since=-1",
            "since=nan",
            "until=inf",
            "since=1e300",
            "by=day&until=253402300799",
            "compare=true&since=253370764799&until=0",
            "key=%00",
        ):
            async with get(app.app, f"/v1/usage?{query}", app.admin) as call:
                await call.finished()
                assert (call.status, call.json["error"]["code"]) == (422, "invalid_request"), query
        async with get(app.app, path, app.admin, accept="text/csv") as call:
            assert "for the period before" in (await call.finished()).json["error"]["message"]
            assert call.status == 422


async def test_rows_are_deleted_when_they_are_old_enough(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream.streams.upkeep.OLD_ROWS_SECONDS", 0.02)
    async with run(PROVIDERS, retention_days=1) as app:
        ledger = app.millstream.ledger
        for days, stream_id in ((3, "old"), (0, "new")):
            monkeypatch.setattr("millstream.meter.time.time", lambda days=days: NOW - days * 86_400)
            await app.millstream.meter.record(app.key_id, 5, record_id=stream_id)
        async with asyncio.timeout(10):
            while len((await ledger.receipts(Wanted())).data) > 1:
                await asyncio.sleep(0.01)
        assert [one.stream_id for one in (await ledger.receipts(Wanted())).data] == ["new"]
        assert sum(total.streams for total in await app.millstream.meter.totals()) == 2
        async with get(app.app, "/v1/streams/old", app.key) as call:
            assert (await call.finished()).status == 404


async def test_health_and_readiness(run: Run) -> None:
    async with run(PROVIDERS) as app:
        for path in ("/healthz", "/readyz"):
            async with get(app.app, path) as call:
                assert (await call.finished()).json == {"status": "ok"}
        app.millstream.streams.draining = True
        async with get(app.app, "/readyz") as call:
            assert (await call.finished()).status == 503
        async with post(app.app, "/v1/chat/stream", BODY, app.key) as call:
            await call.finished()
            assert (call.status, call.json["error"]["code"]) == (503, "draining")


async def test_the_frameworks_own_errors_have_our_shape(run: Run) -> None:
    async with run(PROVIDERS) as app:
        async with get(app.app, "/nowhere") as call:
            await call.finished()
            assert (call.status, call.json["error"]["code"]) == (404, "not_found")
        async with get(app.app, "/v1/chat") as call:
            await call.finished()
            assert (call.status, call.response_headers["allow"]) == (405, "POST")
            assert call.json["error"]["code"] == "invalid_request"


# What no route is at, or none of that method, beside the endpoints of other formats; whose error it is.
NEIGHBOURS = [
    ("GET", "/v1/messages/batches", 404, "anthropic"),
    ("GET", "/v1/messages", 405, "anthropic"),
    ("POST", "/v1/responses/compact", 405, "responses"),
    ("DELETE", "/v1/responses/resp_x", 405, "responses"),
    ("GET", "/v1/chat/completions/x", 404, "openai"),
    ("PUT", "/api/chat/x/stream", 405, "ai-sdk"),
    ("GET", "/v1/messages_of_nobody", 404, "millstream"),
]


@pytest.mark.parametrize("root_path", [None, "/below"])
@pytest.mark.parametrize(("method", "path", "status", "name"), NEIGHBOURS)
async def test_errors_beside_an_endpoint_have_the_shape_that_its_clients_read(
    run: Run, method: str, path: str, status: int, name: DialectName, root_path: str | None
) -> None:
    async with run(PROVIDERS, root_path=root_path) as app:
        async with Exchange(app.app, method, (root_path or "") + path) as call:
            await call.finished()
        _, body = DIALECTS[name].error(NotFound("x"), "req_1")
        expected = json.loads(body)
        assert (call.status, call.json.keys()) == (status, expected.keys())
        assert call.json["error"].keys() == expected["error"].keys()


async def test_a_wrong_method_is_told_all_that_are_right(run: Run) -> None:
    async with run(PROVIDERS) as app:
        for path, allowed in [
            ("/v1/streams", "GET, POST"),
            ("/v1/keys/key_x", "DELETE, PATCH"),
            ("/v1/messages", "POST"),
        ]:
            async with Exchange(app.app, "PUT", path) as call:
                await call.finished()
            assert (call.status, call.response_headers["allow"]) == (405, allowed)


async def test_the_openapi_schema_names_the_stream_and_the_key(run: Run) -> None:
    async with run(PROVIDERS) as app, get(app.app, "/openapi.json") as call:
        schema = (await call.finished()).json
        stream = schema["paths"]["/v1/chat/stream"]["post"]
        assert "text/event-stream" in stream["responses"]["200"]["content"]
        assert stream["security"] == [{"millstream_key": []}]
        assert "messages" in str(stream["requestBody"])
