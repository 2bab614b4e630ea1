"""Exporters: what services are sent, in which form, and what becomes of it. The rules of leases are in
``contracts/test_exports.py``.
"""

import asyncio
import base64
import hashlib
import hmac
import json
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from application import Run
from asgi import post
from billing_servers import SECRET, Answer, Asked, Service, Stripe, serving
from millstream.cli import app as command_line
from millstream.database import Database
from millstream.errors import ConfigurationError
from millstream.events import TextDelta
from millstream.exporters.stripe import MeterEvents
from millstream.ledger import Ledger
from millstream.ledger.exports import ExporterState, Exports
from millstream.ledger.rows import Opening, Settlement
from millstream.providers import Finish
from millstream.providers.scripted import ScriptedProvider
from millstream.runtime import Runtime
from millstream.runtime.exporters import exporters
from millstream.settings import Settings
from millstream.usage import UNKNOWN, Charge, Usage

NOW = 1_790_000_000.0
HOUR = 3600.0
WEBHOOK_KEY = b"0123456789abcdefghijklmn"
WEBHOOK_SECRET = "whsec_" + base64.b64encode(WEBHOOK_KEY).decode()


class Bench:
    """A database with settled streams, an exporter of the settings, and a clock that is moved by hand."""

    def __init__(self, db: Database, **section: Any) -> None:
        self.db = db
        self.now = NOW
        self.exports = Exports(db, lambda: self.now)
        self.settings = Settings(exporters={"x": section})
        (self.exporter,) = exporters(self.settings, self.exports)

    async def settle(self, *stream_ids: str, user: str | None = "cus_ann", **more: Any) -> None:
        usage = more.pop("usage", Usage(10, 5, "provider_final", cached_tokens=4))
        cost = more.pop("cost", Decimal("0.25"))
        async with Ledger(self.db, exporters=("x",)) as ledger:
            for stream_id in stream_ids:
                await ledger.record(
                    Settlement(
                        stream_id,
                        "completed",
                        "stop",
                        None,
                        usage,
                        Charge(cost, cost),
                        None,
                        self.now,
                        "openai",
                        **more,
                    ),
                    Opening(stream_id, "key_k", "key_k", "gpt", "openai", self.now - 1, user),
                )

    async def round(self) -> float:
        return await self.exporter.round()

    async def state(self) -> ExporterState:
        return next(iter(await self.exports.states()), ExporterState("x"))


@asynccontextmanager
async def bench(tmp_path: Path, **section: Any) -> AsyncGenerator[Bench]:
    db = Database(f"sqlite:///{tmp_path / 'x.db'}")
    db.migrate()
    made = Bench(db, **section)
    try:
        yield made
    finally:
        made.exporter.close()
        db.close()


def stripe(url: str, **more: Any) -> dict[str, Any]:
    value = ("prompt_tokens", "completion_tokens")
    return {"type": "stripe", "url": url, "secret": SECRET, "event_name": "tokens", "value": value, **more}


def webhook(url: str, **more: Any) -> dict[str, Any]:
    return {"type": "webhook", "url": url, "secret": WEBHOOK_SECRET, **more}


# -- Stripe ----------------------------------------------------------------------------------------


async def test_stripe_counts_a_stream_once_under_its_id_and_the_meter(tmp_path: Path) -> None:
    async with serving(service := Stripe(clock=lambda: NOW)), bench(tmp_path, **stripe(service.url)) as b:
        await b.settle("s", "t")
        await b.round()
        assert service.books == {f"{name}.tokens": [("cus_ann", 15, int(NOW))] for name in "st"}
        assert await b.state() == ExporterState("x")


@pytest.mark.parametrize(
    ("value", "counted"),
    [
        (("prompt_tokens", "-cached_tokens"), 6),
        (("cached_tokens",), 4),
        (("streams",), 1),
        (("cost_picodollars",), 25 * 10**10),
    ],
)
async def test_a_meter_counts_what_its_section_says(
    tmp_path: Path, value: tuple[str, ...], counted: int
) -> None:
    async with (
        serving(service := Stripe(clock=lambda: NOW)),
        bench(tmp_path, **stripe(service.url, value=value)) as b,
    ):
        await b.settle("s")
        await b.round()
        assert service.counted == {"s.tokens": counted}


async def test_nothing_is_sent_of_a_stream_that_used_nothing(tmp_path: Path) -> None:
    async with serving(service := Stripe(clock=lambda: NOW)), bench(tmp_path, **stripe(service.url)) as b:
        await b.settle("s", usage=Usage(0, 0, "counted"))
        await b.round()
        assert (service.asked, await b.state()) == ([], ExporterState("x"))


async def test_a_correction_is_an_event_of_its_own_with_the_difference(tmp_path: Path) -> None:
    async with serving(service := Stripe(clock=lambda: NOW)), bench(tmp_path, **stripe(service.url)) as b:
        before, after = Usage(10, 9, "checkpoint"), Usage(10, 5, "provider_final")
        async with Ledger(b.db, exporters=("x",)) as ledger:
            await ledger.open(Opening("s", "k", "k", "m", "p", NOW, "cus_ann"))
            end = Settlement("s", "interrupted", None, "interrupted", before, UNKNOWN, None, NOW, "p")
            await ledger.settle_orphan(end)
            await b.round()
            await ledger.settle(
                Settlement(
                    "s", "interrupted", None, "interrupted", after, UNKNOWN, None, NOW, "p", corrects=True
                )
            )
        await b.round()
        assert service.counted == {"s.tokens": 19, "s.correction.tokens": -4}


async def test_an_identifier_is_never_longer_than_stripe_takes(tmp_path: Path) -> None:
    async with serving(service := Stripe(clock=lambda: NOW)):
        async with bench(tmp_path, **stripe(service.url, event_name="m" * 100)) as b:
            await b.settle("s" * 64, "t" * 64)
            await b.round()
            assert len(service.books) == 2


async def test_what_stripe_has_already_is_delivered(tmp_path: Path) -> None:
    """Its answer was lost, and so the same is sent again: Stripe refuses it, which says that it is there."""
    async with serving(service := Stripe(clock=lambda: NOW)), bench(tmp_path, **stripe(service.url)) as b:
        await b.settle("s")
        rules = service.answer
        service.answer = lambda asked: rules(asked)._replace(drops=True)
        await b.round()
        service.answer = rules
        b.now += 10
        await b.round()
        assert (len(service.asked), service.counted) == (2, {"s.tokens": 15})
        assert await b.state() == ExporterState("x")


@pytest.mark.parametrize(
    "refusal",
    [
        {"code": "duplicate_meter_event", "message": "it was submitted"},
        {"message": "An event already exists with identifier s.tokens."},
    ],
)
def test_stripes_word_for_what_it_has_is_known_with_and_without_a_code(refusal: dict[str, str]) -> None:
    form = MeterEvents("k", "tokens", None, None)  # type: ignore[arg-type]
    assert form.has_it(json.dumps({"error": refusal}).encode())
    for other in (b"", b"null", b'{"error": null}', b'{"error": {"message": "No such meter", "code": null}}'):
        assert not form.has_it(other)


async def test_what_may_have_arrived_a_day_ago_is_not_sent_again(tmp_path: Path) -> None:
    """Stripe would not know its identifier any more, and count it twice."""
    clock = NOW
    async with (
        serving(service := Stripe(clock=lambda: clock)),
        bench(tmp_path, **stripe(service.url)) as b,
    ):
        await b.settle("lost", "never")
        rules = service.answer

        def loses_one(asked: Asked) -> Answer:
            return rules(asked)._replace(drops=True) if b"lost" in asked.body else Answer(429)

        service.answer = loses_one
        await b.round()
        service.answer = rules
        clock = b.now = NOW + 25 * HOUR
        await b.round()
        assert service.counted == {"lost.tokens": 15, "never.tokens": 15}
        assert len(service.books["lost.tokens"]) == 1
        state = await b.state()
        assert (state.waiting, state.failed) == (0, 1)
        assert "may have been counted" in str(state.last_error)
        # An operator who has looked there may have it sent.
        await b.exports.retry("x")
        await b.round()
        assert len(service.books["lost.tokens"]) == 2


async def test_one_request_of_a_customer_is_on_its_way_at_a_time(tmp_path: Path) -> None:
    async with serving(service := Stripe(clock=lambda: NOW)), bench(tmp_path, **stripe(service.url)) as b:
        service.seconds = 0.01
        for customer in ("cus_ann", "cus_bob"):
            await b.settle(*(f"{customer}-{number}" for number in range(12)), user=customer)
        await b.round()
        assert len(service.books) == 24
        assert service.most_at_once == 1
        assert set(service.statuses) == {200}


async def test_over_its_limit_stripe_is_left_alone_and_gets_the_rest_later(tmp_path: Path) -> None:
    async with serving(service := Stripe(clock=lambda: NOW)), bench(tmp_path, **stripe(service.url)) as b:
        service.per_second = 20
        await b.settle(*(f"s{number}" for number in range(30)))
        assert await b.round() >= 0.5
        assert len(service.books) == 20
        assert service.statuses[429] == 1  # the others were not tried
        assert await b.state() == ExporterState("x", 10, 0, 0.0, (await b.state()).last_error)
        service.per_second = 100
        await b.round()
        assert len(service.books) == 30


async def test_no_more_is_sent_in_a_second_than_the_section_allows(tmp_path: Path) -> None:
    async with serving(service := Stripe(clock=lambda: NOW)):
        async with bench(tmp_path, **stripe(service.url, per_second=10)) as b:
            await b.settle(*(f"s{number}" for number in range(30)))
            assert await b.round() > 2


# -- customers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "user", "customer"),
    [
        ({}, "cus_ann", "cus_ann"),
        ({"customers": {"ann": "cus_1"}}, "ann", "cus_1"),
        ({"customer": "key", "customers": {"key_k": "cus_2"}}, None, "cus_2"),
    ],
)
async def test_the_customer_is_the_user_or_the_key_by_the_name_in_the_section(
    tmp_path: Path, section: dict[str, Any], user: str | None, customer: str
) -> None:
    async with serving(service := Stripe(clock=lambda: NOW)):
        async with bench(tmp_path, **stripe(service.url, **section)) as b:
            await b.settle("s", user=user)
            await b.round()
            assert [event[0][0] for event in service.books.values()] == [customer]


async def test_who_has_an_empty_name_is_not_billed(tmp_path: Path) -> None:
    async with serving(service := Stripe(clock=lambda: NOW)):
        async with bench(tmp_path, **stripe(service.url, customers={"us": ""})) as b:
            await b.settle("s", user="us")
            await b.round()
            assert (service.asked, await b.state()) == ([], ExporterState("x"))


@pytest.mark.parametrize(
    ("user", "cost", "words"),
    [
        ("bob", Decimal(1), "no customer is named for the user bob"),
        (None, Decimal(1), "the stream has no user"),
        ("ann", None, "no known price"),
    ],
)
async def test_what_cannot_be_said_is_kept_and_says_why(
    tmp_path: Path, user: str | None, cost: Decimal | None, words: str
) -> None:
    section = {"customers": {"ann": "cus_1"}, "value": ("cost_picodollars",)}
    async with serving(service := Stripe(clock=lambda: NOW)):
        async with bench(tmp_path, **stripe(service.url, **section)) as b:
            await b.settle("s", user=user, cost=cost)
            await b.round()
            state = await b.state()
            assert (service.asked, state.waiting, state.failed) == ([], 0, 1)
            assert words in str(state.last_error)


# -- CloudEvents -----------------------------------------------------------------------------------


async def test_cloudevents_say_all_that_a_receipt_counts(tmp_path: Path) -> None:
    async with serving(service := Service()):
        section = {"type": "cloudevents", "url": service.url, "secret": "om", "source": "eu-1"}
        async with bench(tmp_path, **section) as b:
            await b.settle("s", "t")
            await b.round()
            (asked,) = service.asked
            assert asked.headers["content-type"] == "application/cloudevents-batch+json"
            assert asked.headers["authorization"] == "Bearer om"
            event = min(json.loads(asked.body), key=lambda event: event["id"])
            assert event == {
                "specversion": "1.0",
                "id": "s",
                "source": "eu-1",
                "type": "millstream.stream",
                "subject": "cus_ann",
                "time": "2026-09-21T14:13:20.000Z",
                "datacontenttype": "application/json",
                "data": {
                    "stream_id": "s",
                    "is_correction": False,
                    "key_id": "key_k",
                    "owner": None,
                    "user": "cus_ann",
                    "model": "gpt",
                    "provider": "openai",
                    "status": "completed",
                    "prompt_tokens": 10,
                    "completion_tokens": 5,
                    "prompt_audio_tokens": 0,
                    "prompt_image_tokens": 0,
                    "completion_audio_tokens": 0,
                    "completion_image_tokens": 0,
                    "cached_tokens": 4,
                    "reasoning_tokens": 0,
                    "cache_write_tokens": 0,
                    "usage_source": "provider_final",
                    "cost_usd": "0.250000",
                    "price_usd": "0.250000",
                },
            }


async def test_a_service_that_takes_one_cloudevent_a_request_gets_one(tmp_path: Path) -> None:
    async with serving(service := Service()):
        async with bench(tmp_path, type="cloudevents", url=service.url, batch=1) as b:
            await b.settle("s", "t")
            await b.round()
            assert {json.loads(asked.body)["id"] for asked in service.asked} == {"s", "t"}
            assert {asked.headers["content-type"] for asked in service.asked} == {
                "application/cloudevents+json"
            }


async def test_one_that_is_refused_does_not_keep_the_others_of_its_batch(tmp_path: Path) -> None:
    taken: list[str] = []

    def but_for_one(asked: Asked) -> Answer:
        ids = [event["id"] for event in json.loads(asked.body)]
        if "bad" in ids:
            return Answer(400, {"detail": "bad is bad"})
        taken.extend(ids)
        return Answer(204)

    async with serving(service := Service(but_for_one)):
        async with bench(tmp_path, type="cloudevents", url=service.url) as b:
            await b.settle("a", "bad", "c")
            await b.round()
            assert sorted(taken) == ["a", "c"]
            state = await b.state()
            assert (state.waiting, state.failed) == (0, 1)
            assert "bad is bad" in str(state.last_error)


# -- webhooks --------------------------------------------------------------------------------------


async def test_a_webhook_is_signed_by_every_secret_over_its_id_its_time_and_its_body(tmp_path: Path) -> None:
    other = b"another-key-of-24-bytes!"
    secrets = f"{WEBHOOK_SECRET}, whsec_{base64.b64encode(other).decode()}"
    async with serving(service := Service()):
        async with bench(tmp_path, **webhook(service.url, secret=secrets)) as b:
            await b.settle("s")
            await b.round()
            (asked,) = service.asked
            signed = b"s.%d." % NOW + asked.body
            signatures = [
                "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
                for key in (WEBHOOK_KEY, other)
            ]
            assert asked.headers["webhook-id"] == "s"
            assert asked.headers["webhook-timestamp"] == str(int(NOW))
            assert asked.headers["webhook-signature"].split() == signatures
            body = json.loads(asked.body)
            assert (body["type"], body["data"]["stream_id"]) == ("stream.settled", "s")


async def test_an_id_of_any_characters_is_one_header(tmp_path: Path) -> None:
    async with serving(service := Service()), bench(tmp_path, **webhook(service.url)) as b:
        await b.settle("a b\r\nx: y\u00e9")
        await b.round()
        (asked,) = service.asked
        assert asked.headers["webhook-id"] == "a%20b%0D%0Ax%3A%20y%C3%A9"
        assert "x" not in asked.headers


# -- what goes wrong -------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 402, 404, 405, 410, 413, 422])
async def test_a_refusal_for_good_is_kept_with_its_words(tmp_path: Path, status: int) -> None:
    async with (
        serving(service := Service(lambda asked: Answer(status, "no\x1b[31m\nway"))),
        bench(tmp_path, **webhook(service.url)) as b,
    ):
        await b.settle("s")
        await b.round()
        state = await b.state()
        assert (state.waiting, state.failed) == (0, 1)
        assert str(state.last_error).startswith(f"{status} ")
        assert "\x1b" not in str(state.last_error)
        service.answer = lambda asked: Answer(200)
        assert await b.exports.retry("x") == 1
        await b.round()
        assert await b.state() == ExporterState("x")


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504])
async def test_another_time_is_another_time(tmp_path: Path, status: int) -> None:
    async with (
        serving(service := Service(lambda asked: Answer(status))),
        bench(tmp_path, **webhook(service.url)) as b,
    ):
        await b.settle("s")
        await b.round()
        assert (await b.state()).waiting == 1
        service.answer = lambda asked: Answer(200)
        b.now += 2.1
        await b.round()
        assert await b.state() == ExporterState("x")


async def test_pauses_grow_with_every_attempt(tmp_path: Path) -> None:
    async with (
        serving(service := Service(lambda asked: Answer(500))),
        bench(tmp_path, **webhook(service.url)) as b,
    ):
        await b.settle("s")
        rests = [await b.round()]
        for _ in range(11):
            b.now += HOUR  # the longest pause
            rests.append(await b.round())
        assert len(service.asked) == 12
        assert rests[0] <= 2
        assert 30 <= rests[-1] <= 60
        b.now += HOUR / 2 - 1
        assert not await b.exports.are_due("x")


@pytest.mark.parametrize("status", [429, 503])
async def test_a_service_that_names_a_time_is_left_alone_until_then(tmp_path: Path, status: int) -> None:
    async with (
        serving(service := Service(lambda asked: Answer(status, None, ("retry-after: 120",)))),
        bench(tmp_path, **webhook(service.url)) as b,
    ):
        await b.settle(*(f"s{number}" for number in range(100)))
        assert await b.round() == 120
        assert len(service.asked) <= 16  # those that were on their way


@pytest.mark.parametrize("status", [301, 401, 403])
async def test_while_the_secret_or_the_address_is_wrong_all_of_it_waits(
    tmp_path: Path, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    """None of it is given up for what is no fault of its own."""
    async with (
        serving(service := Service(lambda asked: Answer(status, "the words of the service"))),
        bench(tmp_path, **webhook(service.url)) as b,
    ):
        await b.settle(*(f"s{number}" for number in range(50)))
        await b.round()
        state = await b.state()
        assert (state.waiting, state.failed) == (50, 0)
        assert str(state.last_error).startswith(str(status))
        await b.round()
        service.answer = lambda asked: Answer(200)
        await b.round()
        assert await b.state() == ExporterState("x")
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert said == [
        f"exporter 'x' delivers nothing: it answered {status}; it goes on trying",
        "exporter 'x' delivers again",
    ]


async def test_an_exporter_that_delivers_nothing_does_not_say_that_it_delivers_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither where all was refused, nor where there was nothing to send."""
    statuses: list[int] = []
    async with (
        serving(service := Service(lambda asked: Answer(statuses[-1]))),
        bench(tmp_path, **stripe(service.url)) as b,
    ):
        for stream_id, status in (("s", 500), ("t", 400), ("u", 200)):
            statuses.append(status)
            await b.settle(stream_id)
            await b.settle(f"nothing of {stream_id}", usage=Usage(0, 0, "counted"))
            await b.round()
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert said == [
        "exporter 'x' delivers nothing: it answered 500; it goes on trying",
        "exporter 'x': 1 streams are kept: it answered 400; see them with: millstream exports",
        "exporter 'x' delivers again",
    ]


async def test_while_nobody_listens_nothing_counts_as_sent(tmp_path: Path) -> None:
    async with serving(service := Service()):
        pass
    async with bench(tmp_path, **webhook(service.url)) as b:
        await b.settle("s")
        await b.round()
        assert "cannot be reached" in str((await b.state()).last_error)
        (export,) = await b.exports.lease("x", 9, 60)
        assert (export.attempts, export.sent_at) == (1, None)


async def test_one_that_always_breaks_does_not_hold_up_the_others(tmp_path: Path) -> None:
    def breaks_of_one(asked: Asked) -> Answer:
        return Answer(drops=b'"stream_id":"bad"' in asked.body)

    async with serving(service := Service(breaks_of_one)), bench(tmp_path, **webhook(service.url)) as b:
        await b.settle("bad")
        for number in range(5):
            await b.settle(f"s{number}")
            await b.round()
        assert (await b.state()).waiting == 1
        assert sum(b'"stream_id":"bad"' in asked.body for asked in service.asked) == 1


async def test_an_exporter_that_stops_waits_for_the_answers_on_their_way(tmp_path: Path) -> None:
    async with serving(service := Service()), bench(tmp_path, **webhook(service.url)) as b:
        service.seconds = 0.2
        await b.settle(*(f"s{number}" for number in range(100)))
        async with b.exporter, asyncio.timeout(20):
            while len(service.asked) < 16:
                await asyncio.sleep(0.01)
        state = await b.state()
        assert state.waiting == 100 - len(service.asked) > 0
        assert len(await b.exports.lease("x", 200, 60)) == state.waiting  # nothing is left leased


async def test_what_is_kept_is_said_in_the_log_without_a_word_of_the_service(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        serving(service := Service(lambda asked: Answer(400, "canary"))),
        bench(tmp_path, **webhook(service.url)) as b,
    ):
        await b.settle("s", "t")
        await b.round()
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert said == ["exporter 'x': 2 streams are kept: it answered 400; see them with: millstream exports"]


# -- settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"type": "stripe", "secret": "k", "event_name": "e"}, "needs a secret, an event_name and a value"),
        (stripe("ftp://x"), "http:// or https://"),
        (stripe("http://x", value=("tokens",)), "'tokens' is not counted"),
        ({"type": "cloudevents"}, "needs a url"),
        ({"type": "webhook", "url": "http://x"}, "needs a secret"),
        ({"type": "carrier-pigeon"}, "type"),
        (stripe("http://x", unknown=1), "unknown"),
    ],
)
def test_a_section_that_cannot_work_is_refused_by_name(section: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as refused:
        Settings.load(exporters={"x": section})
    assert "exporters" in str(refused.value)


@pytest.mark.parametrize("secret", ["whsec_not base64", "whsec_c2hvcnQ="])
async def test_a_secret_that_cannot_sign_is_refused_at_the_start(tmp_path: Path, secret: str) -> None:
    settings = Settings(data_dir=tmp_path, exporters={"x": webhook("http://x", secret=secret)})
    with pytest.raises(ConfigurationError, match="exporter 'x': its secret"):
        async with Runtime(settings):
            pass


@pytest.mark.parametrize(
    ("file", "why"), [("/nowhere.pem", "No such file"), (__file__, "it has no certificate that can be read")]
)
async def test_a_file_of_certificates_that_is_none_is_refused_at_the_start(
    tmp_path: Path, file: str, why: str
) -> None:
    settings = Settings(data_dir=tmp_path, exporters={"x": webhook("https://x", ca_file=file)})
    with pytest.raises(ConfigurationError, match=f"exporter 'x': the ca_file {file}: {why}"):
        async with Runtime(settings):
            pass


def test_a_secret_is_taken_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "millstream.toml").write_text(
        '[exporters.stripe-a]\ntype = "stripe"\nevent_name = "e"\nvalue = ["streams"]\n'
    )
    monkeypatch.setenv("MILLSTREAM_EXPORTERS__stripe-a__SECRET", "sk_canary")
    section = Settings.load().exporters["stripe-a"]
    assert section.secret is not None
    assert (section.secret.get_secret_value(), section.event_name) == ("sk_canary", "e")
    assert "canary" not in repr(section)


@pytest.mark.parametrize("name", ["", "Aa", "a b", "x" * 33, "_"])
def test_an_exporter_has_a_name_that_fits_its_rows(name: str) -> None:
    with pytest.raises(ConfigurationError, match="is no name"):
        Settings.load(exporters={name: webhook("http://x")})


# -- the whole of it -------------------------------------------------------------------------------


async def test_a_stream_of_the_server_arrives_with_the_numbers_of_its_receipt(run: Run) -> None:
    provider = ScriptedProvider({"m": [TextDelta("Hello"), Finish("stop", Usage(9, 2, "provider_final"))]})
    arrived = asyncio.Event()

    def note(asked: Asked) -> Answer:
        arrived.set()
        return Answer()

    async with serving(service := Service(note)):
        async with run({"s": provider}, exporters={"books": webhook(service.url)}) as app:
            body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "user": "ann"}
            async with post(app.app, "/v1/chat", body, app.key) as call:
                await call.finished()
            async with asyncio.timeout(20):
                await arrived.wait()
            (row,) = await app.receipts()
    (asked,) = service.asked
    data = json.loads(asked.body)["data"]
    assert (asked.headers["webhook-id"], data["user"], data["model"]) == (row["id"], "ann", "m")
    assert {
        name: data[name] for name in ("prompt_tokens", "completion_tokens", "usage_source", "status")
    } == {
        "prompt_tokens": 9,
        "completion_tokens": 2,
        "usage_source": "provider_final",
        "status": "completed",
    }


async def test_the_commands_show_what_waits_and_send_what_was_refused_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        serving(service := Service(lambda asked: Answer(422, "no [such] meter"))),
        bench(tmp_path, **webhook(service.url)) as b,
    ):
        await b.settle("s", "t")
        await b.round()
        await b.settle("u")
        monkeypatch.setenv("MILLSTREAM_DATABASE_URL", f"sqlite:///{tmp_path / 'x.db'}")
        monkeypatch.setenv("MILLSTREAM_EXPORTERS", json.dumps({"idle": webhook("http://x")}))

        async def command(*words: str) -> str:
            done = await asyncio.to_thread(CliRunner().invoke, command_line, ["exports", *words])
            assert done.exit_code == 0, done.output
            return done.stdout

        shown = await command()
        assert [line.split()[0] for line in shown.splitlines()] == ["exporter", "idle", "x"]
        assert "no [such] meter" in shown
        idle, x = json.loads(await command("--json"))
        assert (idle["waiting"], idle["failed"], idle["last_error"]) == (0, 0, None)
        assert (x["waiting"], x["failed"]) == (1, 2)
        assert x["lag_seconds"] > 0
        assert await command("retry", "x") == "2 streams are due again\n"
        with monkeypatch.context() as patch:
            patch.setenv("MILLSTREAM_EXPORTERS", json.dumps({"x": webhook("http://x")}))
            named = await asyncio.to_thread(CliRunner().invoke, command_line, ["exports", "drop", "x"])
            assert (named.exit_code, "is in the settings" in named.stderr) == (2, True)
        asked = await asyncio.to_thread(CliRunner().invoke, command_line, ["exports", "drop", "x"], "n\n")
        assert (asked.exit_code, "3 streams" in asked.output) == (1, True)
        (x,) = (one for one in json.loads(await command("--json")) if one["exporter"] == "x")
        assert (x["waiting"], x["failed"]) == (3, 0)
        assert await command("drop", "x", "--yes") == "3 streams are forgotten\n"
        assert [one["exporter"] for one in json.loads(await command("--json"))] == ["idle"]
