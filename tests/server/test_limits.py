"""Limits and budgets as clients meet them, over ASGI."""

import asyncio
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, NoReturn

import pytest
import sqlalchemy as sa

from application import Run, Running
from asgi import Exchange, get, post, put
from millstream.database import DatabaseAway
from millstream.events import TextDelta
from millstream.limits import Limit, make
from millstream.providers import Finish, Provider
from millstream.providers.scripted import Script, ScriptedProvider
from millstream.schema import counters
from millstream.settings import ModelSettings
from millstream.streams.allowance import STEP_TOKENS
from millstream.usage import Usage

MESSAGES = [{"role": "user", "content": "Hello"}]
BODY = {"model": "m", "messages": MESSAGES}
PROMPT = 8  # tokens of the prompt, as they are counted
PRICES = {"m": {"input": "1", "output": "1000"}}  # a tenth of a cent a token of an answer
LOOK = 64  # tokens between two looks of a stream at its budget, at most


def provider(**scripts: Script) -> Mapping[str, Provider]:
    return {"scripted": ScriptedProvider(scripts)}


def words(count: int) -> Script:
    """An answer of so many tokens, each a batch of its own."""
    steps: list[Any] = []
    for i in range(count):
        steps += [TextDelta(" word" if i else "word"), lambda: asyncio.sleep(0)]
    return [*steps, Finish("stop", Usage(PROMPT, count, "provider_final"))]


SHORT = words(4)


async def limit(app: Running, *limits: Limit) -> None:
    await app.millstream.keys.set_limits(app.key_id, limits)


def of(what: Any, per: Any, amount: str | int | Decimal, **more: Any) -> Limit:
    return make(what, per, Decimal(amount), **more)


async def ask(app: Running, path: str = "/v1/chat/stream", key: str = "", **more: object) -> Exchange:
    async with post(app.app, path, BODY | more, key or app.key) as call:
        return await call.finished(60)


async def counted(app: Running) -> dict[str, tuple[int, int]]:
    """What is used and reserved, by the kind of limit."""
    await app.idle()
    query = sa.select(counters)
    rows = await app.millstream.database.read(lambda c: c.execute(query).mappings().all())
    return {row["id"].split()[0]: (row["used"], row["reserved"]) for row in rows}


async def row_of(app: Running, key_id: str) -> sa.RowMapping:
    """The one counter of a key."""
    query = sa.select(counters).where(counters.c.id.endswith(f" {key_id}"))
    return await app.millstream.database.read(lambda c: c.execute(query).mappings().one())


async def set_over_http(app: Running, limits: Sequence[object], key_id: str = "", key: str = "") -> Exchange:
    path = f"/v1/keys/{key_id or app.key_id}/limits"
    async with put(app.app, path, {"limits": limits}, key or app.admin) as call:
        return await call.finished()


# -- refusals --------------------------------------------------------------------------------------


async def test_requests_over_the_limit_are_429_and_say_when_to_come_back(run: Run) -> None:
    async with run(provider(m=SHORT)) as app:
        await limit(app, of("requests", "hour", 2))
        first = await ask(app)
        assert first.status == 200
        assert first.response_headers["x-ratelimit-limit-requests"] == "2"
        assert first.response_headers["x-ratelimit-remaining-requests"] == "1"
        await ask(app)
        refused = await ask(app)
        assert (refused.status, refused.json["error"]["code"]) == (429, "rate_limited")
        headers = refused.response_headers
        assert 0 < int(headers["retry-after"]) <= 3600
        assert headers["x-ratelimit-reset-requests"] == headers["retry-after"]
        assert headers["x-should-retry"] == "true"
        assert len(await app.receipts()) == 2  # what is refused leaves no row
        assert (await counted(app)) == {"requests": (2, 0)}


@pytest.mark.parametrize(
    ("path", "names", "error_type"),
    [
        (
            "/v1/chat/completions",
            ("x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"),
            ("error", "type", "rate_limit_error"),
        ),
        (
            "/v1/messages",
            (
                "anthropic-ratelimit-requests-limit",
                "anthropic-ratelimit-requests-remaining",
                "anthropic-ratelimit-requests-reset",
            ),
            ("error", "type", "rate_limit_error"),
        ),
    ],
)
async def test_every_format_has_its_own_headers(
    run: Run, path: str, names: tuple[str, str, str], error_type: tuple[str, str, str]
) -> None:
    async with run(provider(m=SHORT)) as app:
        await limit(app, of("requests", "day", 1))
        assert (await ask(app, path, max_tokens=50)).response_headers[names[1]] == "0"
        refused = await ask(app, path, max_tokens=50)
        assert refused.status == 429
        assert [refused.response_headers[name] for name in names[:2]] == ["1", "0"]
        assert refused.response_headers[names[2]]
        error = refused.json
        for name in error_type[:-1]:
            error = error[name]
        assert error == error_type[-1]


@pytest.mark.parametrize(
    ("what", "per", "amount", "status", "words"),
    [
        ("tokens", "minute", 1000, 429, "a minute, and this needs 2008 tokens: it never fits"),
        ("requests", "minute", 0, 429, "a minute, and this needs 1 requests: it never fits"),
        ("streams", "total", 0, 429, "may have 0 streams open"),
        ("tokens", "day", 1000, 402, "a day, and this needs 2008 tokens: it never fits"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/stream", "/v1/chat/completions", "/v1/messages"])
async def test_what_never_fits_is_not_to_be_repeated(
    run: Run, path: str, what: Any, per: Any, amount: int, status: int, words: str
) -> None:
    async with run(provider(m=SHORT)) as app:
        await limit(app, of(what, per, amount))
        for _ in range(2):  # the second time perhaps from memory
            refused = await ask(app, path, max_tokens=2000)
            assert refused.status == status
            assert words in refused.json["error"]["message"]
            assert refused.response_headers["x-should-retry"] == "false"
            assert "retry-after" not in refused.response_headers


async def test_what_is_used_up_for_ever_is_not_to_be_repeated(run: Run) -> None:
    async with run(provider(m=SHORT)) as app:
        await limit(app, of("requests", "total", 1))
        refused = [await ask(app) for _ in range(2)][-1]
        assert refused.status == 429
        assert refused.response_headers["x-should-retry"] == "false"
        assert "retry-after" not in refused.response_headers


async def test_a_budget_that_is_spent_is_402_with_what_is_left(run: Run) -> None:
    async with run(provider(m=words(10)), prices=PRICES) as app:
        await limit(app, of("usd", "month", "0.02"))
        assert (await ask(app, max_tokens=12)).status == 200
        refused = await ask(app, max_tokens=12)
        assert (refused.status, refused.json["error"]["code"]) == (402, "budget_exceeded")
        assert "this key may have $0.020000 a month; $0.009992 are left" in refused.json["error"]["message"]
        assert "retry-after" not in refused.response_headers
        assert refused.response_headers["x-should-retry"] == "false"
        assert refused.response_headers["x-ratelimit-remaining-usd"] == "0.009992"
        assert (await ask(app, max_tokens=9)).status == 200  # for which there is enough


async def test_a_budget_in_dollars_wants_a_price(run: Run) -> None:
    async with run(provider(m=SHORT)) as app:
        await limit(app, of("usd", "month", "5"))
        refused = await ask(app)
        assert (refused.status, refused.json["error"]["code"]) == (403, "forbidden")
        assert "nobody knows the price of 'm'" in refused.json["error"]["message"]
        assert len(await app.receipts()) == 0


async def test_a_limit_of_a_model_is_for_that_model(run: Run) -> None:
    async with run(provider(m=SHORT, n=SHORT)) as app:
        await limit(app, of("requests", "day", 1, model="m"))
        assert [(await ask(app)).status for _ in range(2)] == [200, 429]
        assert [(await ask(app, model="n")).status for _ in range(2)] == [200, 200]


@pytest.mark.parametrize("name", ["m", "scripted/m", "mine"])
async def test_a_limit_of_a_model_holds_by_every_name_of_it(run: Run, name: str) -> None:
    models = {
        "mine": ModelSettings(deployments=("n", "m")),
        "other": ModelSettings(deployments=("n",), fallbacks=("m",)),
    }
    async with run(provider(m=SHORT, n=SHORT), models=models) as app:
        await limit(app, of("requests", "day", 2, model=name))
        if name != "mine":  # which is none of the names of its deployments
            await ask(app, model="m")
            await ask(app, model="scripted/m")
            assert (await ask(app, model="m")).status == (await ask(app, model="scripted/m")).status == 429
        assert [(await ask(app, model="mine")).status for _ in range(3)][-1] == 429
        assert (await ask(app, model="other")).status == 200  # which only falls back on it


async def test_a_limit_of_a_model_is_for_its_dated_versions_too(run: Run) -> None:
    async with run(provider(**{"m": SHORT, "m-2024-08-06": SHORT, "m-mini": SHORT})) as app:
        await limit(app, of("requests", "day", 2, model="m"), of("requests", "day", 1, model="m-2024-08-06"))
        names = ("m-2024-08-06", "scripted/m-2024-08-06", "m", "m", "m-mini")
        assert [(await ask(app, model=name)).status for name in names] == [200, 429, 200, 429, 200]


async def test_open_streams_are_limited_for_a_key(run: Run) -> None:
    gate = asyncio.Event()
    async with run(provider(m=[TextDelta("Hel"), gate.wait, *SHORT])) as app:
        await limit(app, of("streams", "total", 1))
        async with post(app.app, "/v1/chat/stream", BODY, app.key) as call:
            await call.until(lambda c: "Hel" in c.text)
            refused = await ask(app)
            assert (refused.status, refused.json["error"]["code"]) == (429, "too_many_streams")
            assert refused.response_headers["x-should-retry"] == "true"
            assert refused.response_headers["x-ratelimit-limit-streams"] == "1"
            assert refused.response_headers["x-ratelimit-remaining-streams"] == "0"
            gate.set()
            await call.finished()
        await app.idle()
        assert (await ask(app)).status == 200


async def test_a_repeated_start_counts_once(run: Run) -> None:
    async with run(provider(m=SHORT)) as app:
        await limit(app, of("requests", "day", 5))
        ids = set()
        for _ in range(3):
            async with post(app.app, "/v1/chat/stream", BODY, app.key, idempotency_key="k") as call:
                ids.add((await call.finished()).response_headers["x-stream-id"])
        assert len(ids) == 1
        assert await counted(app) == {"requests": (1, 0)}


async def test_a_repeated_start_finds_its_stream_when_nothing_is_left(run: Run) -> None:
    async with run(provider(m=SHORT)) as app:
        await limit(app, of("requests", "day", 1), of("tokens", "day", PROMPT + STEP_TOKENS))
        ids = set()
        for _ in range(2):
            async with post(app.app, "/v1/chat/stream", BODY, app.key, idempotency_key="k") as call:
                ids.add((await call.finished()).response_headers["x-stream-id"])
        assert len(ids) == 1
        async with post(app.app, "/v1/chat/stream", BODY, app.key, idempotency_key="other") as call:
            assert (await call.finished()).status == 429


async def test_who_keeps_asking_costs_no_transaction(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream.streams.registry._FULL_SECONDS", 1000)
    async with run(provider(m=SHORT, n=SHORT)) as app:
        await limit(app, of("requests", "day", 1, model="m"))
        assert [(await ask(app)).status for _ in range(2)] == [200, 429]
        with monkeypatch.context() as patch:
            patch.setattr(app.millstream.ledger, "open", None)
            refused = await ask(app)
        assert (refused.status, refused.response_headers["x-ratelimit-remaining-requests"]) == (429, "0")
        assert (await ask(app, model="n")).status == 200


async def test_a_refusal_is_remembered_of_whom_it_was_for(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream.streams.registry._FULL_SECONDS", 1000)
    async with run(provider(m=SHORT)) as app:
        few, many = [
            (await token(app, user="ann", limits=[{"what": "requests", "per": "day", "amount": amount}]))
            for amount in (1, 3)
        ]
        tokens = [few, few, many, few, many, many]
        statuses = [(await ask(app, key=one["token"])).status for one in tokens]
        assert statuses == [200, 429, 200, 429, 200, 429]


async def test_open_streams_of_one_token_do_not_fill_a_larger_one(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millstream.streams.registry._FULL_SECONDS", 1000)
    gate = asyncio.Event()
    async with run(provider(m=[TextDelta("Hel"), gate.wait, *SHORT])) as app:
        one, three = [(await token(app, user="ann", max_streams=most))["token"] for most in (1, 3)]
        async with post(app.app, "/v1/chat/stream", BODY, one) as call:
            await call.until(lambda c: "Hel" in c.text)
            monkeypatch.setattr(app.millstream.streams, "_open", Counter())  # as another worker knows it
            refused = [await ask(app, key=one) for _ in range(2)]
            assert [said.json["error"]["code"] for said in refused] == ["too_many_streams"] * 2
            assert refused[1].response_headers["x-ratelimit-limit-streams"] == "1"
            monkeypatch.setattr(app.millstream.streams, "_open", Counter())
            async with post(app.app, "/v1/chat/stream", BODY, three) as other:
                await other.until(lambda c: "Hel" in c.text)
                gate.set()
                await other.finished()
            await call.finished()


async def test_without_limits_nothing_is_counted(run: Run) -> None:
    async with run(provider(m=SHORT)) as app:
        call = await ask(app)
        assert not [name for name in call.response_headers if "ratelimit" in name]
        assert await counted(app) == {}


# -- in the middle ---------------------------------------------------------------------------------


async def end_in_the_middle(run: Run, what: str, seeds: Sequence[int]) -> None:
    longest = 3 * STEP_TOKENS
    async with run(provider(m=words(longest)), prices=PRICES) as app:
        for seed in seeds:
            most = random.Random(seed).randint(20, longest - LOOK)  # no secret
            budget = of("tokens", "day", PROMPT + most)
            if what == "usd":
                budget = of("usd", "day", Decimal(PROMPT + 1000 * most) / 1_000_000)
            key, secret = await app.millstream.keys.create("k", ["chat"])
            await app.millstream.keys.set_limits(key.id, [budget])
            call = await ask(app, key=secret)
            last, done = call.frames[-2:]
            assert (last["finish_reason"], done) == ("budget_exceeded", "[DONE]"), seed
            used = last["usage"]["completion_tokens"]
            assert call.text == "word" + " word" * (used - 1)
            assert most < used <= most + LOOK, seed
            await app.idle()
            async with get(app.app, f"/v1/streams/{call.response_headers['x-stream-id']}", secret) as told:
                receipt = (await told.finished()).json
            assert (receipt["status"], receipt["finish_reason"]) == ("cancelled", "budget_exceeded")
            assert receipt["usage"]["completion_tokens"] == used
            assert receipt["ended_by"] == "limit"
            assert [one["what"] for one in receipt["limits"]] == [what]
            assert receipt["cost_usd"] == last["usage"]["cost_usd"]
            row = await row_of(app, key.id)
            spent = PROMPT + used if what == "tokens" else round(Decimal(receipt["cost_usd"]) * 10**12)
            assert (row["used"], row["reserved"]) == (spent, 0)


@pytest.mark.parametrize("what", ["tokens", "usd"])
async def test_a_budget_that_ends_in_the_middle_ends_the_stream(run: Run, what: str) -> None:
    await end_in_the_middle(run, what, range(5))


@pytest.mark.faults
@pytest.mark.timeout(900)
@pytest.mark.parametrize("what", ["tokens", "usd"])
async def test_a_budget_ends_at_any_of_200_points(run: Run, what: str) -> None:
    await end_in_the_middle(run, what, range(100, 200))


async def test_a_long_answer_within_its_budget_is_whole(run: Run) -> None:
    count = 3 * STEP_TOKENS
    async with run(provider(m=words(count)), prices=PRICES) as app:
        await limit(
            app, of("tokens", "day", 10 * count), of("usd", "total", 100), of("tokens", "minute", 5000)
        )
        call = await ask(app)
        assert call.frames[-2]["finish_reason"] == "stop"
        assert await counted(app) == {"tokens": (PROMPT + count, 0), "usd": (8_000_000 + count * 10**9, 0)}


async def test_while_the_database_is_away_a_stream_goes_no_further_than_it_has_reserved(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 3 * STEP_TOKENS
    async with run(provider(m=words(count))) as app:
        await limit(app, of("tokens", "day", 10 * count))
        async with post(app.app, "/v1/chat/stream", BODY, app.key) as call:
            await call.until(lambda c: c.text)

            def away(work: object) -> NoReturn:
                raise DatabaseAway("away")

            monkeypatch.setattr(app.millstream.database, "run_by_hand", away)
            async with asyncio.timeout(10):
                while not app.millstream.ledger.is_away:
                    await asyncio.sleep(0)
            tokens = -1
            while tokens != (tokens := call.text.count("word")):  # until it stands still
                await asyncio.sleep(0.1)
            assert tokens <= 2 * STEP_TOKENS + LOOK
            monkeypatch.undo()
            await call.finished(20)
        assert call.frames[-2]["finish_reason"] == "stop"
        assert await counted(app) == {"tokens": (PROMPT + count, 0)}


async def test_a_stream_that_is_stopped_gives_back_what_it_has_not_used(run: Run) -> None:
    async with run(provider(m=[TextDelta("Hello"), asyncio.Event().wait])) as app:
        await limit(app, of("tokens", "day", 5000), of("streams", "total", 3))
        async with post(app.app, "/v1/chat/stream", BODY, app.key) as call:
            await call.until(lambda c: c.text == "Hello")
            query = sa.select(counters.c.reserved).where(counters.c.id.like("tokens %"))
            assert await app.millstream.database.read(lambda c: c.scalar(query)) == PROMPT + STEP_TOKENS
        assert await counted(app) == {"tokens": (PROMPT + 1, 0), "streams": (0, 0)}


# -- users -----------------------------------------------------------------------------------------


async def token(app: Running, **asked: object) -> dict[str, Any]:
    async with post(app.app, "/v1/tokens", asked, app.key) as call:
        assert (await call.finished()).status == 201, call.received
        made: dict[str, Any] = call.json
        return made


async def test_limits_in_a_token_are_its_users_whatever_token_they_have(run: Run) -> None:
    limits = [{"what": "requests", "per": "day", "amount": 2}]
    async with run(provider(m=SHORT)) as app:
        first = await token(app, user="ann", limits=limits)
        assert first["limits"] == [{**limits[0], "model": None, "each_user": False}]
        second = await token(app, user="ann", limits=limits)
        other = await token(app, user="ben", limits=limits)
        tokens = [first["token"], second["token"], first["token"], other["token"]]
        assert [(await ask(app, key=one)).status for one in tokens] == [200, 200, 429, 200]
        assert (
            "this user may have 2 requests a day"
            in (await ask(app, key=first["token"])).json["error"]["message"]
        )


async def test_a_key_can_limit_each_of_its_users_and_all_of_them(run: Run) -> None:
    async with run(provider(m=SHORT)) as app:
        await limit(app, of("requests", "day", 1, each_user=True), of("requests", "day", 3))
        tokens = [(await token(app, user=user))["token"] for user in ("ann", "ben", "cleo", "dan")]
        assert [(await ask(app, key=tokens[0])).status for _ in range(2)] == [200, 429]
        assert [(await ask(app, key=one)).status for one in tokens[1:]] == [200, 200, 429]
        assert (await ask(app)).status == 429  # the key itself has none left either


# -- setting them ----------------------------------------------------------------------------------


async def test_limits_are_set_shown_and_replaced(run: Run) -> None:
    async with run(provider(m=SHORT), prices=PRICES) as app:
        asked = [
            {"what": "usd", "per": "day", "amount": "0.5"},
            {"what": "requests", "per": "minute", "amount": 60, "each_user": True},
        ]
        made = await set_over_http(app, asked)
        assert made.status == 200, made.received
        await ask(app)
        await app.idle()
        async with get(app.app, f"/v1/keys/{app.key_id}/limits", app.admin) as call:
            shown = {one["what"]: one for one in (await call.finished()).json["data"]}
        assert shown["usd"]["amount"] == "0.500000"
        assert shown["usd"]["used"] == "0.004008"
        assert shown["usd"]["left"] == "0.495992"
        assert 0 < shown["usd"]["resets_in_seconds"] <= 86_400
        assert "used" not in shown["requests"]
        async with get(app.app, f"/v1/keys/{app.key_id}/limits?user=ann", app.admin) as call:
            shown = {one["what"]: one for one in (await call.finished()).json["data"]}
        assert (shown["requests"]["used"], shown["requests"]["left"]) == (0, 60)
        assert (await set_over_http(app, [])).json == {"data": []}
        assert (await ask(app)).status == 200


@pytest.mark.parametrize(
    ("amount", "shown"),
    [(1.5, "1.500000"), (0.1, "0.100000"), (2, "2.000000"), ("0.25", "0.250000"), (1e-7, "0.0000001")],
)
async def test_dollars_may_be_a_number_or_a_text(run: Run, amount: object, shown: str) -> None:
    limits = [{"what": "usd", "per": "day", "amount": amount}]
    async with run() as app:
        made = await set_over_http(app, limits)
        assert [one["amount"] for one in made.json["data"]] == [shown]
        assert [one["amount"] for one in (await token(app, user="ann", limits=limits))["limits"]] == [shown]


async def test_an_amount_that_is_no_number_is_refused_in_words(run: Run) -> None:
    async with run() as app:
        refused = await set_over_http(app, [{"what": "usd", "per": "day", "amount": True}])
        said = "limits.0.amount: has to be a number, or a decimal number as text, such as 60 or '0.25'"
        assert refused.json["error"]["message"] == said


@pytest.mark.parametrize(
    "wrong",
    [
        {"what": "requests", "per": "week", "amount": 1},
        {"what": "requests", "per": "day", "amount": -1},
        {"what": "requests", "per": "day", "amount": "1.5"},
        {"what": "usd", "per": "day", "amount": "1e9"},
        {"what": "usd", "per": "day", "amount": "9999999"},
        {"what": "streams", "per": "day", "amount": 1},
        {"what": "tokens", "per": "day", "amount": 10**16},
        {"what": "tokens", "per": "day", "amount": 1, "model": " a"},
        {"what": "tokens", "per": "day"},
        {"what": "requests", "per": "day", "amount": 1.5},
        {"what": "usd", "per": "day", "amount": 1e99},
        {"what": "usd", "per": "day", "amount": True},
        {"what": "usd", "per": "day", "amount": [1]},
    ],
)
async def test_a_limit_that_makes_no_sense_is_refused(run: Run, wrong: object) -> None:
    async with run() as app:
        assert (await set_over_http(app, [wrong])).status == 422


async def test_only_an_operator_sets_limits_and_only_of_a_key_that_is_there(run: Run) -> None:
    async with run() as app:
        assert (await set_over_http(app, [], key=app.key)).status == 403
        assert (await set_over_http(app, [], key_id="key_unknown")).status == 404
        assert (await set_over_http(app, [], key_id="x%00")).status == 404
