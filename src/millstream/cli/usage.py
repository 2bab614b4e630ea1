"""The commands on what was used, and on what it costs."""

import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import typer
from rich.markup import escape
from rich.table import Table

from millstream.cli.shared import (
    DataDir,
    Json,
    Since,
    Until,
    cell,
    date_of,
    fail,
    moment_of,
    print_json,
    print_table,
    refuse_options,
    with_database,
)

prices_app = typer.Typer(help="What models cost, and what is charged for them.", no_args_is_help=True)
usage_app = typer.Typer(help="What was used, and what it cost.")


@prices_app.callback()
def _prices() -> None:
    """As with `secret`."""


@prices_app.command("check")
def prices_check(
    since: Annotated[str, typer.Option(help="A date (2026-01-31, UTC) or an age (24h, 30d).")] = "30d",
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """List the models in use that have no price; the exit code is 1 if there is one.

    Looks at the streams of the ledger that have no price, and whether they would have one now, in
    their service tier and with the kinds of tokens that they had. What test keys have used is left
    out. A price is a section \\[prices."MODEL"] of millstream.toml.
    """
    from millstream.runtime.price_check import unpriced
    from millstream.settings import Settings

    settings = Settings.load(**({} if data_dir is None else {"data_dir": data_dir}))
    found = with_database(data_dir, lambda db: unpriced(settings, db, moment_of(since), time.time()))
    if as_json:
        print_json(msgspec.to_builtins(found))
    elif found:
        table = Table("provider", "model", "its name there", "tier", "besides text", box=None)
        for column in ("streams", "tokens"):
            table.add_column(column, justify="right")
        for one in found:
            names = (one.provider, one.model, one.upstream_model or "", one.tier or "", ", ".join(one.kinds))
            table.add_row(*map(cell, names), f"{one.streams:,}", f"{one.tokens:,}")
        print_table(table)
    if found:
        raise typer.Exit(1)


@usage_app.callback(invoke_without_command=True)
def usage(
    context: typer.Context,
    by: Annotated[
        str,
        typer.Option(help="hour, day or month; key, owner, model, provider, user. Or several: day,model."),
    ] = "key",
    since: Since = "",
    until: Until = "",
    zone: Annotated[str, typer.Option(help="Whose hours, days and months.")] = "UTC",
    key: Annotated[str | None, typer.Option(help="Of one key, by its id.", show_default=False)] = None,
    owner: Annotated[str | None, typer.Option(help="Of the keys of one owner.", show_default=False)] = None,
    test: Annotated[bool, typer.Option("--test", help="Of test keys, which are left out otherwise.")] = False,
    percentiles: Annotated[
        bool, typer.Option("--percentiles", help="Also of the time to the first event.")
    ] = False,
    stream: Annotated[
        str | None, typer.Option(help="Print the receipt of the stream of this id.", show_default=False)
    ] = None,
    data_dir: DataDir = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV instead of text.")] = False,
    as_json: Json = False,
) -> None:
    """Print what was used, and what it cost."""
    if context.invoked_subcommand is not None:
        refuse_options(context)
        return
    from millstream.ledger import Ledger, reports, tables

    if stream is not None:
        receipt = with_database(data_dir, lambda db: Ledger(db).receipt(stream)).shown()
        if as_json:
            print_json(receipt)
        else:
            _print_receipt(receipt)
        return
    asked = reports.Asked(
        reports.dimensions(by),
        moment_of(since, zone),
        moment_of(until, zone),
        zone,
        key,
        owner,
        test,
        percentiles,
    )
    totals = with_database(data_dir, lambda db: Ledger(db).totals(asked))
    if as_json:
        print_json(msgspec.to_builtins(totals))
    elif as_csv:
        print(tables.of_totals(asked.by, totals, percentiles=percentiles), end="")
    else:
        _print_totals(asked.by, totals)


def _print_totals(by: Sequence[str], totals: Sequence[Any]) -> None:
    table = Table(*by, box=None)
    waited = ["p50 s", "p95 s"] if any(total.first_event_seconds for total in totals) else []
    for column in (
        "streams",
        "prompt tokens",
        "completion tokens",
        "cost USD",
        "price USD",
        "unpriced",
        *waited,
    ):
        table.add_column(column, justify="right")
    for total in totals:
        first = total.first_event_seconds
        seconds = (first.p50, first.p95) if first else ()
        table.add_row(
            *(cell(total.group[name] or "(none)") for name in by),
            f"{total.streams:,}",
            f"{total.prompt_tokens:,}",
            f"{total.completion_tokens:,}",
            "-" if total.cost_usd is None else total.cost_usd,
            "-" if total.price_usd is None else total.price_usd,
            f"{total.unpriced:,}" if total.unpriced else "",
            *("" if one is None else f"{one:g}" for one in seconds),
        )
    print_table(table)


@usage_app.command("export")
def usage_export(
    since: Since = "",
    until: Until = "",
    form: Annotated[Literal["csv", "jsonl"], typer.Option("--format", help="A line a stream.")] = "csv",
    data_dir: DataDir = None,
) -> None:
    """Print the receipts of all streams, the oldest first.

    Each page is read on its own: a server that runs meanwhile is not held up.
    """
    from millstream.database import Database
    from millstream.ledger import Ledger, tables
    from millstream.ledger.receipts import Wanted

    wanted = Wanted(since=moment_of(since), until=moment_of(until))

    async def export(db: Database) -> None:
        if form == "csv":
            print(tables.receipt_headings(), end="")
        async for page in Ledger(db).every_receipt(wanted):
            if form == "csv":
                print(tables.of_receipts(page), end="")
            else:
                for receipt in page:
                    print(json.dumps(receipt.shown()))

    with_database(data_dir, export)


@usage_app.command("verify")
def usage_verify(
    since: Since = "",
    until: Until = "",
    invoice: Annotated[
        Path | None,
        typer.Option(help="A usage export (CSV) of OpenAI or Anthropic.", exists=True, dir_okay=False),
    ] = None,
    provider: Annotated[
        str | None,
        typer.Option(help="Its name here, if that is not openai or anthropic.", show_default=False),
    ] = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Add all streams up again, and compare that with the sums that reports are made of.

    What exporters have delivered, or have still to deliver, is compared as well. The exit code is 1
    where something differs. Hours are whole; those whose streams have been deleted
    (MILLSTREAM_RETENTION_DAYS) cannot be looked at. With --invoice, streams are compared with what
    their provider has counted, by day (UTC) and model.
    """
    from millstream.ledger import Ledger
    from millstream.settings import Settings

    if invoice is not None:
        if since or until:
            fail("--invoice is compared on its own days; leave --since and --until out")
        _verify_invoice(invoice, provider, data_dir, as_json=as_json)
        return
    if provider is not None:
        fail("--provider is whose --invoice it is; give both, or neither")

    exporters = list(Settings.load().exporters)
    start, end = moment_of(since), moment_of(until)
    verified = with_database(data_dir, lambda db: Ledger(db, exporters=exporters).verify(start, end))
    if as_json:
        print_json(msgspec.to_builtins(verified))
    else:
        if verified.differences:
            table = Table("hour", "sums", "of", "what", "streams say", "sums say", box=None)
            for one in verified.differences:
                of = " ".join(f"{name}={value}" for name, value in one.of.items())
                table.add_row(
                    date_of(one.hour), one.table, cell(of), one.what, f"{one.rows:,}", f"{one.sums:,}"
                )
            print_table(table)
        looked_at = (
            f"{date_of(verified.since)} to {date_of(verified.until)} UTC" if verified.until else "nothing"
        )
        found = f"{len(verified.differences):,} differences" if verified.differences else "no difference"
        exported = f", and their exports to {', '.join(verified.exporters)}" if verified.exporters else ""
        print(f"{verified.streams:,} streams, {looked_at}{exported}: {found}")
    if verified.differences:
        raise typer.Exit(1)


def _verify_invoice(path: Path, provider: str | None, data_dir: Path | None, *, as_json: bool) -> None:
    from millstream.ledger import Ledger, invoices

    with invoices.open_export(path) as lines:
        try:
            invoice = invoices.read(lines)
        except UnicodeError:
            fail(f"{path} is no text in UTF-8 or UTF-16")
    found = with_database(data_dir, lambda db: Ledger(db).compare(invoice, provider))
    if as_json:
        print_json(msgspec.to_builtins(found))
    elif found:
        table = Table("day", "model", "what", box=None)
        for column in ("ledger", "invoice", "difference", "estimated streams"):
            table.add_column(column, justify="right")
        for one in found:
            numbers = (one.ledger, one.invoice, one.ledger - one.invoice, one.estimated)
            table.add_row(one.day, cell(one.model), one.what, *(f"{number:,}" for number in numbers))
        print_table(table)
    else:
        first, last = invoices.day_of(invoice.days[0]), invoices.day_of(invoice.days[-1])
        print(f"{invoice.provider}, {first} to {last} UTC: no difference")
    if found:
        raise typer.Exit(1)


def _print_receipt(receipt: dict[str, Any]) -> None:
    """One line a fact; what is not known is left out."""
    table = Table(show_header=False, box=None)
    for name, value in receipt.items():
        inner = value if isinstance(value, dict) else {}
        facts = {f"{name}.{of}": one for of, one in inner.items()} if inner else {name: value}
        for fact, known in facts.items():
            if known not in (None, {}, []):
                table.add_row(fact, _fact(fact, known))
    print_table(table)


def _fact(name: str, value: object) -> str:
    if name.endswith("_at") and isinstance(value, float):
        return datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] + " UTC"
    return escape(json.dumps(value)) if isinstance(value, (dict, list, tuple)) else cell(str(value))
