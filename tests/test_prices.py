"""Prices: what tokens cost and what is charged for them, and what nobody knows."""

import asyncio
import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, cast

import msgspec
import pytest
from genai_prices import Usage as GenaiUsage
from genai_prices import calc_price
from genai_prices.data import providers
from sqlalchemy.engine import RowMapping

from application import Run
from asgi import get, post
from ledger_rows import opening, settlement
from millstream.errors import ConfigurationError, UpstreamRateLimited
from millstream.events import AnswerStart, TextDelta
from millstream.ledger import rows
from millstream.ledger.rows import Attempt
from millstream.prices import RATES, Override, Prices, Rates, RatesAbove, SetPrices, Tariff, UnitPrices
from millstream.providers import Finish, UsageReport
from millstream.providers.scripted import Script, ScriptedProvider
from millstream.runtime.providers import prices as prices_of
from millstream.settings import Settings
from millstream.usage import Bill, Charge, Usage

NOW = datetime(2026, 11, 20, tzinfo=UTC).timestamp()
MILLION = 1_000_000


def rates(input_: float, output: float, **more: Any) -> Rates:
    return Rates(input=Decimal(input_), output=Decimal(output), **more)


def override(cost: Rates | None = None, **more: Any) -> Override:
    return Override(None if cost is None else UnitPrices("settings", cost), **more)


async def found(prices: Prices, name: str, provider_id: str | None = None) -> Tariff:
    tariff = await prices.find(name, "p", provider_id, name)
    assert tariff is not None
    return tariff


# -- where a price comes from ----------------------------------------------------------------------


async def test_a_set_price_comes_before_the_list() -> None:
    prices = Prices({"gpt-4o": override(rates(1, 2, cached_input=Decimal("0.5")))})
    charge = (await found(prices, "gpt-4o", "openai")).charge(
        Usage(MILLION, MILLION, "counted", 400_000), NOW
    )
    assert charge.cost == charge.price == Decimal("2.8")


@pytest.mark.parametrize("price_of", ["m", "p/m", "alias"])
async def test_a_price_holds_under_every_name_of_its_model(price_of: str) -> None:
    prices = Prices({price_of: override(rates(1, 2))})
    assert await prices.find("alias", "p", None, "m") is not None
    assert await prices.find("other", "q", None, "n") is None


async def test_a_price_holds_for_dated_versions_that_have_none_of_their_own() -> None:
    prices = Prices({"m": override(rates(1, 1)), "p/m-2026-01-31": override(rates(2, 2))})
    usage = Usage(MILLION, 0, "counted")
    for version, cost in (
        ("m", 1),
        ("m-2024-08-06", 1),
        ("m-20250929", 1),
        ("m-0613", 1),
        ("m-2026-01-31", 2),
    ):
        tariff = await prices.find(f"p/{version}", "p", None, version)
        assert tariff is not None
        assert tariff.charge(usage, NOW).cost == cost
    assert await prices.find("m-mini", "p", None, "m-mini") is None


async def test_a_dated_version_that_is_listed_keeps_its_price_and_is_marked_up_as_its_model() -> None:
    marked = Override(UnitPrices("v", rates(1, 1)), Decimal(2))
    usage = Usage(MILLION, 0, "counted")
    listed = await Prices({}).find("openai/gpt-4o-2024-05-13", "openai", "openai", "gpt-4o-2024-05-13")
    tariff = await Prices({"gpt-4o": marked}).find(
        "openai/gpt-4o-2024-05-13", "openai", "openai", "gpt-4o-2024-05-13"
    )
    assert listed is not None
    assert tariff is not None
    charge = tariff.charge(usage, NOW)
    assert charge.cost == listed.charge(usage, NOW).cost == 5
    assert charge.price == 10


async def test_an_unknown_model_has_no_price() -> None:
    for provider_id, model in (("openai", "no-such-model"), (None, "gpt-4o")):
        assert await Prices({}).find("x", "p", provider_id, model) is None
        marked_up = await Prices({}, markup=Decimal(2)).find("x", "p", provider_id, model)
        assert marked_up is not None
        assert marked_up.charge(Usage(9, 5, "counted"), NOW) == Charge()
        assert marked_up.marks_up


async def test_a_model_that_is_listed_without_a_price_is_not_free() -> None:
    unpriced = [
        (provider.id, model.id)
        for provider in providers
        for model in provider.models
        if not isinstance(model.prices, list) and not model.prices.__dict__
    ]
    assert unpriced
    for provider_id, model in unpriced:
        tariff = await Prices({}).find(model, "p", provider_id, model)
        assert tariff is None or tariff.charge(Usage(9, 5, "counted"), NOW).cost is None


async def test_every_list_price_is_what_its_source_makes_of_it() -> None:
    usages = [
        Usage(1000, 100, "counted"),
        Usage(150_000, 700, "counted", 50_000, 300, 20_000),
        Usage(300_000, 700, "counted", 50_000, 300, 20_000, 8_000),
    ]
    compared = 0
    for provider in providers:
        for model in provider.models:
            tariff = await Prices({}).find(model.id, "p", provider.id, model.id)
            for usage in usages if tariff is not None else ():
                assert tariff is not None
                ours = tariff.charge(usage, NOW).cost
                if ours is None:
                    continue
                theirs = calc_price(
                    GenaiUsage(
                        input_tokens=usage.prompt_tokens,
                        output_tokens=usage.completion_tokens,
                        cache_read_tokens=usage.cached_tokens,
                        cache_write_tokens=usage.cache_write_tokens,
                        cache_write_1h_tokens=usage.cache_write_1h_tokens,
                        output_reasoning_tokens=usage.reasoning_tokens,
                    ),
                    model_ref=model.id,
                    provider_id=provider.id,
                    genai_request_timestamp=datetime.fromtimestamp(NOW, UTC),
                ).total_price
                assert ours == theirs, (provider.id, model.id, usage)
                compared += 1
    assert compared > 5000


async def test_the_price_of_the_moment_holds() -> None:
    tariff = await found(Prices({}), "gpt-5", "openai")
    usage = Usage(1000, 100, "counted")
    before = datetime(2026, 10, 1, tzinfo=UTC).timestamp()  # when nothing was known of flex
    assert tariff.charge(usage, NOW, "flex").cost is not None
    assert tariff.charge(usage, before, "flex").cost is None
    dates = [json.loads(tariff.unit_prices(at) or "")["date"] for at in (before, NOW)]
    assert dates == ["2026-10-01", "2026-11-20"]


# -- what a price depends on -----------------------------------------------------------------------


async def test_service_tiers_and_batches_have_prices_of_their_own() -> None:
    tariff = await found(Prices({}), "gpt-5", "openai")
    usage = Usage(1000, 100, "counted")
    usual, flex, batch, priority = (
        tariff.charge(usage, NOW, tier).cost for tier in (None, "flex", "batch", "priority")
    )
    assert usual
    assert flex == batch == usual / 2
    assert priority == usual * 2
    assert tariff.charge(usage, NOW, "scale").cost is None  # a list would have it, if it were known
    tier = json.loads(tariff.charge(usage, NOW, "flex").unit_prices or "")
    assert (tier["tier"], tier["cost"]["input"]) == ("flex", "0.625")


async def test_a_tier_without_a_price_is_named_all_the_same() -> None:
    tariff = await found(Prices({}, markup=Decimal(2)), "gpt-5", "openai")
    shown = json.loads(tariff.charge(Usage(9, 5, "counted"), NOW, "scale").unit_prices or "")
    assert shown.keys() == {"version", "date", "tier"}
    unknown = await found(Prices({}, markup=Decimal(2)), "no-such-model", "openai")
    assert unknown.charge(Usage(9, 5, "counted"), NOW, "scale").unit_prices is None


async def test_a_set_price_with_tiers_holds_in_no_other_and_one_without_in_all(tmp_path: Any) -> None:
    (tmp_path / "millstream.toml").write_text(
        """
        [prices.some]
        input = 2
        output = 4
        tiers = {Flex = {input = 1, output = 2}}
        [prices.none]
        input = 2
        output = 4
        """
    )
    prices = prices_of(Settings.load())
    some, none = await found(prices, "some"), await found(prices, "none")
    usage = Usage(MILLION, 0, "counted")
    assert [some.charge(usage, NOW, tier).cost for tier in (None, "flex", "scale")] == [2, 1, None]
    assert some.charge(usage, NOW, "scale").budgeted == 2
    assert none.charge(usage, NOW, "scale").cost == 2


def test_a_long_prompt_is_dearer_as_a_whole() -> None:
    above = (RatesAbove(100, rates(2, 4)), RatesAbove(200, rates(3, 6)))
    price = rates(1, 2, above=above)
    for prompt, each in ((100, 1), (101, 2), (200, 2), (201, 3)):
        assert price.cost(Usage(prompt, 10, "counted")) == Decimal(prompt + 20) * each / MILLION


def test_sound_and_pictures_have_prices_of_their_own_or_none() -> None:
    known = rates(1, 2, audio_input=Decimal(10), audio_output=Decimal(20), image_output=Decimal(30))
    usage = Usage(100, 50, "counted").with_media((40, 20), (10, 5))
    assert known.cost(usage) == Decimal(60 * 1 + 40 * 10 + 35 * 2 + 10 * 20 + 5 * 30) / MILLION
    text = rates(1, 2)
    assert text.cost(Usage(100, 50, "counted").with_media((1, 0), (0, 0))) is None
    assert text.cost(Usage(100, 50, "counted").with_media((0, 0), (1, 0))) is None
    assert text.cost(Usage(100, 50, "counted").with_media((0, 0), (0, 1))) is None
    assert text.cost(Usage(100, 50, "counted").with_media((0, 9), (0, 0))) == Decimal(200) / MILLION


def test_what_a_cache_keeps_for_an_hour_has_a_price_of_its_own() -> None:
    usage = Usage(100, 0, "counted", cache_write_tokens=60, cache_write_1h_tokens=20)
    known = rates(1, 2, cache_write=Decimal("1.25"), cache_write_1h=Decimal(2))
    assert known.cost(usage) == (40 * 1 + 40 * Decimal("1.25") + 20 * 2) / MILLION
    assert rates(1, 2, cache_write=Decimal(3)).cost(usage) == Decimal(40 * 1 + 60 * 3) / MILLION
    assert rates(1, 2).cost(usage) == Decimal(100) / MILLION


async def test_the_list_knows_what_an_hour_in_the_cache_costs() -> None:
    tariff = await found(Prices({}), "claude-sonnet-4-5", "anthropic")
    minutes, hour = (
        tariff.charge(Usage(MILLION, 0, "counted", 0, 0, MILLION, kept), NOW) for kept in (0, MILLION)
    )
    assert minutes.cost
    assert hour.cost
    assert hour.cost > minutes.cost
    shown = json.loads(hour.unit_prices or "")["cost"]
    assert Decimal(shown["cache_write_1h"]) == 2 * Decimal(shown["input"])


def test_no_token_is_billed_twice() -> None:
    everything: dict[str, Any] = {name: Decimal(1) for name in RATES if name != "request"}
    price = Rates(**everything)
    usage = Usage(100, 50, "counted", 60, 45, 30, 20).with_media((80, 20), (10, 5))
    assert price.cost(usage) == Decimal(150) / MILLION


# -- what is charged -------------------------------------------------------------------------------


async def test_what_is_charged_is_the_cost_times_the_markup_or_has_rates_of_its_own() -> None:
    charged = UnitPrices("settings 2026-07", rates(5, 10))
    prices = Prices(
        {
            "own": override(rates(1, 2), charged=charged),
            "free": override(rates(1, 2), markup=Decimal(0)),
            "usual": override(rates(1, 2)),
            "cost unknown": override(charged=charged),
        },
        markup=Decimal("1.5"),
    )
    usage = Usage(MILLION, MILLION, "counted")
    charges = {
        name: (await found(prices, name)).charge(usage, NOW)
        for name in ("own", "free", "usual", "cost unknown")
    }
    assert {name: (charge.cost, charge.price) for name, charge in charges.items()} == {
        "own": (3, 15),
        "free": (3, 0),
        "usual": (3, Decimal("4.5")),
        "cost unknown": (None, 15),
    }
    assert json.loads(charges["usual"].unit_prices or "") == {
        "version": "settings",
        "date": "2026-11-20",
        "cost": {"input": "1", "output": "2"},
        "price": {"input": "1.5", "output": "3.0"},
    }
    assert json.loads(charges["own"].unit_prices or "")["version"] == "settings, settings 2026-07"


async def test_cost_and_charge_each_come_from_the_first_name_that_says_them() -> None:
    prices = Prices(
        {
            "alias": override(markup=Decimal(2)),
            "p/m": override(rates(1, 1), markup=Decimal(3)),
            "m": override(rates(5, 5), charged=UnitPrices("settings", rates(9, 9))),
            "own": override(rates(4, 4)),
        },
        markup=Decimal(7),
    )
    usage = Usage(MILLION, 0, "counted")
    charges: dict[tuple[str, str], tuple[Any, Any]] = {}
    for name, provider in (
        ("alias", "p"),
        ("alias", "q"),
        ("x", "p"),
        ("own", "p"),
        ("own", "q"),
        ("x", "q"),
    ):
        tariff = await prices.find(name, provider, None, "m")
        assert tariff is not None
        charge = tariff.charge(usage, NOW)
        charges[name, provider] = (charge.cost, charge.price)
    assert charges == {
        ("alias", "p"): (1, 2),
        ("alias", "q"): (5, 10),
        ("x", "p"): (1, 3),
        ("own", "p"): (4, 12),
        ("own", "q"): (4, 9),
        ("x", "q"): (5, 9),
    }


async def test_a_markup_can_stand_on_a_list_price(tmp_path: Any) -> None:
    (tmp_path / "millstream.toml").write_text(
        """
        markup = 1.1
        [prices."gpt-4o"]
        markup = 1.2
        [prices.cluster]
        input = 1
        output = 2
        version = "2026-07"
        above = [{tokens = 200, input = 3, output = 6}, {tokens = 100, input = 2, output = 4}]
        [prices.cluster.tiers.batch]
        input = 0.5
        output = 1
        [prices.cluster.charged]
        input = 10
        output = 20
        """
    )
    prices = prices_of(Settings.load())
    usage = Usage(1000, 100, "counted")
    for name, markup in (("gpt-4o", "1.2"), ("gpt-4o-mini", "1.1")):
        charge = (await found(prices, name, "openai")).charge(usage, NOW)
        assert charge.cost
        assert charge.price == charge.cost * Decimal(markup)
    cluster = await found(prices, "cluster")
    assert cluster.charge(Usage(150, 0, "counted"), NOW).cost == Decimal(300) / MILLION
    assert cluster.charge(Usage(250, 0, "counted"), NOW).cost == Decimal(750) / MILLION
    batch = cluster.charge(Usage(50, 0, "counted"), NOW, "batch")
    assert (batch.cost, batch.price) == (Decimal(25) / MILLION, Decimal(500) / MILLION)


async def test_an_answer_costs_the_same_above_and_in_a_tier_that_say_nothing_of_it(tmp_path: Any) -> None:
    (tmp_path / "millstream.toml").write_text(
        """
        [prices.m]
        input = 0
        output = 0
        request = 0.01
        above = [{tokens = 100, input = 0, output = 0}, {tokens = 200, input = 0, output = 0, request = 0}]
        [prices.m.tiers]
        flex = {input = 0, output = 0}
        batch = {input = 0, output = 0, request = 0.005}
        """
    )
    tariff = await found(prices_of(Settings.load()), "m")
    asked: list[tuple[int, str | None]] = [(100, None), (101, None), (201, None), (9, "flex"), (9, "batch")]
    costs = [tariff.charge(Usage(prompt, 0, "counted"), NOW, tier).cost for prompt, tier in asked]
    assert costs == [Decimal(cost) for cost in ("0.01", "0.01", "0", "0.01", "0.005")]


@pytest.mark.parametrize(
    "section",
    [
        *("input = 1", "version = '1'", "cached_input = 1\nmarkup = 2", "input = 1\noutput = -1"),
        *("markup = 101", "input = 1\noutput = 10001"),
    ],
)
def test_prices_that_make_no_sense_are_refused(tmp_path: Any, section: str) -> None:
    (tmp_path / "millstream.toml").write_text(f"[prices.m]\n{section}\n")
    with pytest.raises(ConfigurationError, match="prices"):
        Settings.load()


# -- who sees what ---------------------------------------------------------------------------------

USAGE = Usage(9, 2, "provider_final")
RAW = {"prompt_tokens": 9, "completion_tokens": 2, "cost": 0.5, "cost_details": {"x": 1}}
ANSWER: Script = [
    AnswerStart("openai", extra={"service_tier": "flex"}),
    TextDelta("Hello"),
    UsageReport(USAGE, RAW, Decimal("0.5")),
    Finish("stop", USAGE),
]
BODY = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
SET: dict[str, Any] = {
    "m": {"input": 1, "output": 1, "tiers": {"flex": {"input": 2, "output": 2}}, "markup": 3}
}


async def test_a_customer_sees_what_is_charged_and_an_operator_what_it_costs_too(run: Run) -> None:
    cost, price = "0.000022", "0.000066"
    async with run({"s": ScriptedProvider({"m": ANSWER})}, prices=SET) as app:
        async with post(app.app, "/v1/chat", BODY, app.key) as call:
            answer = (await call.finished()).json
        assert answer["usage"]["cost_usd"] == price
        async with post(app.app, "/v1/chat/completions", BODY, app.key) as call:
            assert "cost" not in str((await call.finished()).json["usage"])
        await app.idle()
        path = f"/v1/streams/{answer['stream_id']}"
        async with get(app.app, path, app.key) as call:
            seen = (await call.finished()).json
        assert (seen["cost_usd"], seen["price_usd"], seen["provider_cost_usd"]) == (price, price, None)
        assert seen["provider_usage"] == {"prompt_tokens": 9, "completion_tokens": 2}
        assert seen["unit_prices"].keys() == {"version", "date", "tier", "price"}
        assert seen["unit_prices"]["price"] == {"input": "6", "output": "6"}
        async with get(app.app, path, app.admin) as call:
            seen = (await call.finished()).json
        assert (seen["cost_usd"], seen["price_usd"]) == (cost, price)
        assert seen["unit_prices"]["cost"] == {"input": "2", "output": "2"}
        assert seen["provider_usage"] == RAW
        for key, sums in ((app.key, ("0.000132", "0.000132")), (app.admin, ("0.000044", "0.000132"))):
            async with get(app.app, "/v1/usage?by=model", key) as call:
                (total,) = (await call.finished()).json["data"]
            assert (total["cost_usd"], total["price_usd"]) == sums


@pytest.mark.parametrize("prices", [{"m": {"input": 1, "output": 1, "markup": 3}}, {"m": {"markup": 3}}])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("api", "path"),
    [("openai", "/v1/chat/completions"), ("anthropic", "/v1/messages"), ("responses", "/v1/responses")],
)
async def test_no_format_tells_a_customer_what_the_provider_takes(
    run: Run, api: str, path: str, stream: bool, prices: dict[str, Any]
) -> None:
    raw = {
        "prompt_tokens": 9,
        "totalCost": 31415,
        "total_price": "31415",
        "Cost": {"x": 31415},
        "details": {"cached_tokens": 1, "cost": 31415, "parts": [{"price_usd": 31415, "n": 1}]},
    }
    script: Script = [
        AnswerStart(api, usage=USAGE, extra={"usage": raw, "cost": 31415}),
        TextDelta("Hello"),
        UsageReport(USAGE, raw, Decimal(31415)),
        Finish("stop", USAGE, "stop", extra={"usage": raw}),
    ]
    body = {**BODY, "input": "Hello", "max_tokens": 9, "stream": stream}
    del body["input" if path != "/v1/responses" else "messages"]
    async with run({"s": ScriptedProvider({"m": script})}, prices=prices) as app:
        async with post(app.app, path, body, app.key) as call:
            answer = await call.finished()
        assert answer.status == 200
        assert b"31415" not in answer.received
        assert b'"parts":[{"n":1}]' in answer.received
        await app.idle()
        async with get(app.app, f"/v1/streams/{answer.response_headers['x-stream-id']}", app.key) as call:
            seen = (await call.finished()).json
        assert seen["provider_cost_usd"] is None
        assert seen["provider_usage"] == {
            "prompt_tokens": 9,
            "details": {"cached_tokens": 1, "parts": [{"n": 1}]},
        }


def test_an_object_that_is_too_deep_tells_nothing() -> None:
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    assert rows.without_costs({"n": 1, "deep": deep}) == {}


@pytest.mark.parametrize("status", ["running", "failed"])
async def test_a_customer_sees_no_cost_where_there_is_no_sum_or_none_yet(run: Run, status: str) -> None:
    seen_it = asyncio.Event()
    script: Script = [seen_it.wait if status == "running" else UpstreamRateLimited("no"), *ANSWER]
    async with run({"s": ScriptedProvider({"m": script})}, prices=SET) as app:
        async with post(app.app, "/v1/streams", BODY, app.key) as call:
            path = f"/v1/streams/{(await call.finished()).json['stream_id']}"
        if status == "failed":
            await app.idle()
        async with get(app.app, "/v1/streams", app.key) as call:
            (listed,) = (await call.finished()).json["data"]
        async with get(app.app, path, app.key) as call:
            seen = (await call.finished()).json
        seen_it.set()
        assert seen == {**listed, "attempts": seen["attempts"]}
        assert seen["status"] == status
        assert seen["unit_prices"].keys() == {"version", "date", "price"}
        assert seen["unit_prices"]["price"] == {"input": "3", "output": "3"}


@pytest.mark.parametrize("charged", [None, "0.000000", "0.000003"])
async def test_a_customer_sees_of_every_attempt_what_is_charged(charged: str | None) -> None:
    sums: dict[str, Any] = {"cost_picodollars": None, "price_picodollars": None}
    row = rows.opening_values(opening(), None) | rows.settlement_values(settlement()) | sums
    bill = Bill(USAGE, "0.000001", charged)
    attempts = [Attempt("a", "m", 1.0, 2.0, bill=bill), Attempt("b", "m", 1.0, 2.0)]
    row |= {"attempts": msgspec.json.encode(attempts).decode(), "provider_usage": json.dumps(RAW)}
    row |= {"provider_cost_picodollars": 5, "unit_prices": None}
    del row["stream_id"]
    receipt = rows.to_receipt(cast(RowMapping, row))
    seen = receipt.for_customer()
    assert [one.bill for one in seen.attempts] == [Bill(USAGE, charged), None]
    assert (seen.provider_cost_usd, seen.unit_prices) == (None, None)
    assert seen.provider_usage == {"prompt_tokens": 9, "completion_tokens": 2}


async def test_without_a_markup_everybody_sees_the_same(run: Run) -> None:
    prices = {"m": {"input": 1, "output": 1}}
    async with run({"s": ScriptedProvider({"m": ANSWER})}, prices=prices) as app:
        async with post(app.app, "/v1/chat", BODY, app.key) as call:
            answer = (await call.finished()).json
        await app.idle()
        async with get(app.app, f"/v1/streams/{answer['stream_id']}", app.key) as call:
            seen = (await call.finished()).json
        assert seen["cost_usd"] == seen["price_usd"] == answer["usage"]["cost_usd"] == "0.000011"
        assert seen["provider_usage"] == RAW
        assert seen["provider_cost_usd"] == "0.500000"


async def test_what_nobody_knows_is_null_and_counted_as_unpriced(run: Run) -> None:
    async with run({"s": ScriptedProvider({"m": ANSWER})}) as app:
        async with post(app.app, "/v1/chat", BODY, app.key) as call:
            answer = (await call.finished()).json
        assert answer["usage"]["cost_usd"] is None
        (row,) = await app.receipts()
        assert (row["cost_picodollars"], row["price_picodollars"], row["unit_prices"]) == (None, None, None)
        async with get(app.app, "/v1/usage", app.admin) as call:
            (total,) = (await call.finished()).json["data"]
        assert (total["price_usd"], total["unpriced"], total["uncosted"]) == (None, 1, 1)


def test_an_answer_that_costs_more_than_a_row_can_hold_has_no_price() -> None:
    dear = Tariff(SetPrices(UnitPrices("v", rates(10_000, 10_000))), Decimal(100), None)
    expected = Charge(Decimal(90_000), None, dear.unit_prices(NOW))
    assert dear.charge(Usage(9 * MILLION, 0, "counted"), NOW) == expected
    assert dear.charge(Usage(101 * MILLION, 0, "counted"), NOW).cost is None
