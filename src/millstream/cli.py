"""The command line: serve · chat · record · keys · secret · prices · usage · exports."""

import asyncio
import json
import re
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeVar

import msgspec
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from millstream.errors import ConfigurationError, MillstreamError
from millstream.version import DOCS, __version__

Result = TypeVar("Result")

app = typer.Typer(
    name="millstream",
    help="Stream LLM answers over Server-Sent Events: metered once, stopped at once, never buffered.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
keys_app = typer.Typer(
    help="Make, limit, list, rotate and revoke API keys, in the database, with or without a running server.",
    no_args_is_help=True,
)
app.add_typer(keys_app, name="keys")
secret_app = typer.Typer(
    help="The secret that signs browser tokens and tickets. Works on the database, as keys do.",
    no_args_is_help=True,
)
app.add_typer(secret_app, name="secret")
exports_app = typer.Typer(
    help="What is on its way to exporters. Works on the database, with or without a running server.",
)
app.add_typer(exports_app, name="exports")

prices_app = typer.Typer(help="What models cost, and what is charged for them.", no_args_is_help=True)
app.add_typer(prices_app, name="prices")

DataDir = Annotated[
    Path | None,
    typer.Option(help="Folder of the SQLite database.  \\[env: MILLSTREAM_DATA_DIR]", show_default=False),
]
usage_app = typer.Typer(help="What was used, and what it cost.")
app.add_typer(usage_app, name="usage")
Since = Annotated[str, typer.Option(help="A date (2026-01-31) or an age (24h, 7d).", show_default=False)]
Until = Annotated[str, typer.Option(help="The same; up to but not including it.", show_default=False)]
KeyId = Annotated[str, typer.Argument(help="The key's id, as `keys list` shows it.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def main() -> None:
    """What is wrong with the set-up or the arguments is one line and exit code 2."""
    try:
        app()
    except (ConfigurationError, MillstreamError) as error:
        _exit(str(error))
    except Exception as error:
        # Asked by name: most commands end without having loaded it.
        if type(error).__module__ != "sqlalchemy.exc":
            raise
        _exit(f"the database does not work: {type(error).__name__}; is it locked, full or read-only?")


def _exit(message: str) -> NoReturn:
    print(f"millstream: {message}", file=sys.stderr)
    raise SystemExit(2)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


@app.command(epilog=f"All settings: {DOCS}/reference/settings.md")
def serve(
    host: Annotated[
        str | None,
        typer.Option(help="Address to listen on.  \\[env: MILLSTREAM_HOST] \\[default: 127.0.0.1]"),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            help="Port to listen on; 0 takes a free one.  \\[env: MILLSTREAM_PORT] \\[default: 8000]"
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Processes; over 1 needs a shared journal.  \\[env: MILLSTREAM_WORKERS] \\[default: 1]",
            min=1,
        ),
    ] = None,
    data_dir: DataDir = None,
    show_key: Annotated[
        bool,
        typer.Option(
            "--show-key",
            help="Make and print the first key where there is none, though stdout is no terminal.",
        ),
    ] = False,
    temporary_key: Annotated[
        bool,
        typer.Option(
            "--temporary-key",
            help="Print a key that is revoked when the server stops, where no first key is printed.",
        ),
    ] = False,
) -> None:
    """Run the server.

    Needs no settings: without any provider's key it serves a small local model or, where that is not
    installed, a script. Set OPENAI_API_KEY for OpenAI; set OPENAI_BASE_URL for any server that speaks
    its protocol.

    SIGTERM or Ctrl-C lets running streams go on for MILLSTREAM_DRAIN_SECONDS; a second one hurries. With
    several workers, SIGHUP replaces them one after the other.
    """
    from millstream.server.process.serve import serve as run
    from millstream.settings import Settings

    given = {"host": host, "port": port, "workers": workers, "data_dir": data_dir}
    settings = Settings.load(**{name: value for name, value in given.items() if value is not None})
    run(settings, show_key=show_key or sys.stdout.isatty(), temporary_key=temporary_key)


@app.command()
def chat(
    prompt: Annotated[
        list[str] | None,
        typer.Argument(help="The question; without one, a conversation.", show_default=False),
    ] = None,
    url: Annotated[
        str, typer.Option(envvar="MILLSTREAM_URL", help="Where Millstream is.")
    ] = "http://127.0.0.1:8000",
    key: Annotated[
        str, typer.Option(envvar="MILLSTREAM_KEY", help="An API key or a browser token.", show_default=False)
    ] = "",
    model: Annotated[
        str | None, typer.Option(help="The server's default otherwise.", show_default=False)
    ] = None,
    resume: Annotated[
        str | None, typer.Option(help="Follow the stream of this id.", show_default=False)
    ] = None,
) -> None:
    """Talk to a model through a running Millstream.

    Answers are shown as Markdown while they arrive. Ctrl-C stops an answer at the provider; a dropped
    connection is resumed. In a pipe the text comes as it is.
    """
    from millstream.terminal import Conversation

    if not url.startswith(("http://", "https://")):
        raise ConfigurationError(f"'{url}' is no address of a server; one is like http://127.0.0.1:8000")
    if not key:
        raise ConfigurationError(
            "give a key with --key or MILLSTREAM_KEY; make one with: millstream keys create"
        )
    asyncio.run(Conversation(url, key, model).run(" ".join(prompt or ()), resume))


@app.command()
def record(
    name: Annotated[str, typer.Argument(help="What the recording is to be called.")],
    prompt: Annotated[list[str], typer.Argument(help="The question.")],
    model: Annotated[str | None, typer.Option(help="The default otherwise.", show_default=False)] = None,
    with_prompt: Annotated[
        bool, typer.Option("--with-prompt", help="Keep the question in the recording.")
    ] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Replace the recording of that name.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Record an answer, to be played again as the model replay/NAME.

    Asks the provider of the settings directly, without a server. The recording has what the
    model said and when, and how that ended; no key, and the question only if it is asked for.
    """
    from millstream.runtime.recording import record as run
    from millstream.settings import Settings

    settings = Settings.load(**({} if data_dir is None else {"data_dir": data_dir}))

    def show(text: str) -> None:
        print(text, end="", flush=True)

    recording = run(
        settings, name, model, " ".join(prompt), with_prompt=with_prompt, replace=replace, shown=show
    )
    path = asyncio.run(recording)
    print(f"\nrecorded as replay/{name} in {path}", file=sys.stderr)


@keys_app.command("create")
def keys_create(
    name: Annotated[str, typer.Option(help="What the key is for.")],
    scopes: Annotated[
        str, typer.Option(help="Comma-separated: chat, usage (totals of all keys), admin.")
    ] = "chat",
    test: Annotated[
        bool,
        typer.Option(
            "--test",
            help="A test key (ms_test_…), for scripted, local, chaos and replay only; never billed.",
        ),
    ] = False,
    owner: Annotated[
        str | None, typer.Option(help="Whose it is: a customer, a team.", show_default=False)
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE; as often as you like.", show_default=False)
    ] = None,
    expires: Annotated[
        str, typer.Option(help="A date (2026-01-31, UTC) or a time from now (12h, 30d).", show_default=False)
    ] = "",
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Make a key. It is shown once and cannot be had again."""
    from millstream.auth import Keys
    from millstream.database import Database

    async def create(db: Database) -> tuple[Any, str]:
        wanted = [scope.strip() for scope in scopes.split(",") if scope.strip()]
        return await Keys(db).create(
            name,
            wanted,
            test=test,
            owner=owner,
            labels=_labels(label or []),
            expires_at=_moment(expires, ahead=True),
        )

    key, secret = _with_database(data_dir, create, makes_one=True)
    _print_made(key, secret, as_json)


@keys_app.command("rotate")
def keys_rotate(
    key_id: KeyId,
    overlap: Annotated[
        str, typer.Option(help="How long the secret so far goes on (12h, 30d); 0 refuses it at once.")
    ] = "24h",
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Give a key another secret. It is shown once; the one before it goes on for a while."""
    from millstream.auth import Keys

    seconds = 0.0 if overlap == "0" else _age(overlap)
    if seconds is None:
        _exit(f"'{overlap}' is no time like 24h or 7d")
    key, secret = _with_database(data_dir, lambda db: Keys(db).rotate(key_id, seconds))
    _print_made(key, secret, as_json)


@keys_app.command("change")
def keys_change(
    key_id: KeyId,
    name: Annotated[str | None, typer.Option(help="What the key is for.", show_default=False)] = None,
    owner: Annotated[
        str | None, typer.Option(help="Whose it is, where it has no owner yet.", show_default=False)
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(help="NAME=VALUE, instead of the labels so far.", show_default=False),
    ] = None,
    expires: Annotated[
        str,
        typer.Option(
            help="A date (2026-01-31, UTC), a time from now (12h, 30d), or never.", show_default=False
        ),
    ] = "",
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Change what is known of a key."""
    from millstream.api_keys import Changes
    from millstream.auth import Keys

    given: dict[str, Any] = {"name": name, "owner": owner}
    if label is not None:
        given["labels"] = _labels(label)
    given = {field: value for field, value in given.items() if value is not None}
    if expires:
        given["expires_at"] = None if expires == "never" else _moment(expires, ahead=True)
    key = _with_database(data_dir, lambda db: Keys(db).change(key_id, Changes(**given)))
    if as_json:
        _print_json(msgspec.to_builtins(key))
    else:
        print(f"changed {key.id} ({key.name})")


@keys_app.command("list")
def keys_list(data_dir: DataDir = None, as_json: Json = False) -> None:
    """List the keys, without their secrets."""
    from millstream.auth import Keys

    keys = _with_database(data_dir, lambda db: Keys(db).all())
    if as_json:
        _print_json(msgspec.to_builtins(keys))
        return
    table = Table(
        Column("id", no_wrap=True, min_width=20),
        *("name", "owner", "key", "scopes", "created", "last used", "expires", "revoked", "labels"),
        box=None,
    )
    for key in keys:
        dates = (key.created_at, key.last_used_at, key.expires_at, key.revoked_at)
        table.add_row(
            key.id,
            escape(key.name),
            escape(key.owner or ""),
            key.hint,
            " ".join(key.scopes),
            *("" if at is None else _date(at) for at in dates),
            escape(" ".join(f"{name}={value}" for name, value in key.labels.items())),
        )
    _print_table(table)


@keys_app.command("revoke")
def keys_revoke(
    key_id: KeyId,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Revoke a key. A running server refuses it, and ends its streams, within 5 seconds."""
    from millstream.auth import Keys

    key = _with_database(data_dir, lambda db: Keys(db).revoke(key_id))
    if as_json:
        _print_json(msgspec.to_builtins(key))
    else:
        print(f"revoked {key.id} ({key.name})")


@keys_app.command("limit")
def keys_limit(
    key_id: Annotated[str, typer.Argument(help="The key's id, as `keys list` shows it.")],
    requests: Annotated[
        list[str] | None,
        typer.Option("--requests", metavar="N/TIME", help="Requests, such as 60/minute.", show_default=False),
    ] = None,
    requests_per_minute: Annotated[
        int | None, typer.Option(min=0, help="The same as --requests N/minute.", show_default=False)
    ] = None,
    tokens_per_minute: Annotated[
        int | None,
        typer.Option(min=0, help="Tokens of prompts and answers a minute.", show_default=False),
    ] = None,
    streams: Annotated[
        int | None, typer.Option(min=0, help="Streams that are open at a time.", show_default=False)
    ] = None,
    budget_tokens: Annotated[
        list[str] | None,
        typer.Option(metavar="N/TIME", help="Tokens, such as 1000000/month.", show_default=False),
    ] = None,
    budget_usd: Annotated[
        list[str] | None,
        typer.Option(metavar="N/TIME", help="US dollars, such as 10/day or 250/total.", show_default=False),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Of this model only.", show_default=False)] = None,
    each_user: Annotated[
        bool, typer.Option("--each-user", help="For every end user of the key's browser tokens.")
    ] = False,
    clear: Annotated[bool, typer.Option("--clear", help="Take away all that the key had.")] = False,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Set limits and budgets of a key, or show them.

    TIME is minute, hour, day, month (of UTC) or total. What is set takes the place of a limit of the
    same thing, time and model; the others stay. A running server applies it within 2 seconds.
    """
    from millstream.auth import Keys
    from millstream.database import Database
    from millstream.ledger import Ledger

    texts = [("requests", text) for text in requests or ()]
    texts += [("tokens", text) for text in budget_tokens or ()]
    texts += [("usd", text) for text in budget_usd or ()]
    for what, number, per in (
        ("requests", requests_per_minute, "minute"),
        ("tokens", tokens_per_minute, "minute"),
        ("streams", streams, "total"),
    ):
        if number is not None:
            texts.append((what, f"{number}/{per}"))
    limits = [_limit(what, text, model, each_user) for what, text in texts]

    async def work(db: Database) -> list[dict[str, Any]]:
        if limits or clear:
            found = await Keys(db).set_limits(key_id, limits, replace=clear)
        else:
            found = await Keys(db).limits(key_id)
        return await Ledger(db).standing(key_id, found)

    told = _with_database(data_dir, work)
    if as_json:
        _print_json(told)
        return
    names = ("amount", "used", "reserved", "left")
    numbers = [Column(name, justify="right") for name in names]
    table = Table("limit", "per", "model", "for", *numbers, box=None)
    for one in told:
        whose = "each user" if one["each_user"] else "the key"
        amounts = [str(one.get(name, "")) for name in names]
        table.add_row(one["what"], one["per"], escape(one["model"] or "all"), whose, *amounts)
    _print_table(table)


def _limit(what: Any, text: str, model: str | None, each_user: bool) -> Any:
    from millstream.limits import PERS, make

    number, _, per = text.partition("/")
    if per not in PERS or not re.fullmatch(r"\d{1,16}(\.\d{1,12})?", number):
        _exit(f"'{text}' is no limit; one is like 10/day, and its time is {', '.join(PERS)}")
    try:
        return make(what, per, Decimal(number), model, each_user=each_user)
    except ValueError as error:
        _exit(str(error))


@secret_app.callback()
def _secret() -> None:
    """It has one command so far; without this Typer would leave its name out."""


@secret_app.command("rotate")
def secret_rotate(
    now: Annotated[
        bool, typer.Option("--now", help="Refuse at once what was signed so far: the secret has leaked.")
    ] = False,
    data_dir: DataDir = None,
) -> None:
    """Make a new secret, which signs from 10 seconds on.

    What was signed before it is believed for a day more: no browser token lives longer. A running
    server learns of the new one within seconds. Not for MILLSTREAM_SIGNING_SECRET.
    """
    from millstream.settings import Settings
    from millstream.signing import SigningSecrets

    given = Settings.load().signing_secrets
    believed_until = _with_database(data_dir, lambda db: SigningSecrets(db, given).rotate(at_once=now))
    if now:
        print("a new secret signs; what was signed before it is refused within 5 seconds")
    else:
        print(f"a new secret signs; what was signed before it is believed until {_date(believed_until)} UTC")


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

    Looks at the streams of the ledger that have no price, and whether they would have one now. What
    test keys have used is left out. A price is a section [prices."MODEL"] of millstream.toml.
    """
    from millstream.runtime.price_check import unpriced
    from millstream.settings import Settings

    settings = Settings.load(**({} if data_dir is None else {"data_dir": data_dir}))
    found = _with_database(data_dir, lambda db: unpriced(settings, db, _moment(since), time.time()))
    if as_json:
        _print_json(msgspec.to_builtins(found))
    elif found:
        table = Table("provider", "model", "its name there", box=None)
        for column in ("streams", "tokens"):
            table.add_column(column, justify="right")
        for one in found:
            names = (one.provider, one.model, one.upstream_model or "")
            table.add_row(*map(escape, names), f"{one.streams:,}", f"{one.tokens:,}")
        _print_table(table)
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
        return
    from millstream.ledger import Ledger, reports, tables

    if stream is not None:
        receipt = _with_database(data_dir, lambda db: Ledger(db).receipt(stream)).shown()
        if as_json:
            _print_json(receipt)
        else:
            _print_receipt(receipt)
        return
    asked = reports.Asked(
        reports.dimensions(by),
        _moment(since, zone),
        _moment(until, zone),
        zone,
        key,
        owner,
        test,
        percentiles,
    )
    totals = _with_database(data_dir, lambda db: Ledger(db).totals(asked))
    if as_json:
        _print_json(msgspec.to_builtins(totals))
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
            *(escape(total.group[name] or "(none)") for name in by),
            f"{total.streams:,}",
            f"{total.prompt_tokens:,}",
            f"{total.completion_tokens:,}",
            "-" if total.cost_usd is None else total.cost_usd,
            "-" if total.price_usd is None else total.price_usd,
            f"{total.unpriced:,}" if total.unpriced else "",
            *("" if one is None else f"{one:g}" for one in seconds),
        )
    _print_table(table)


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

    wanted = Wanted(since=_moment(since), until=_moment(until))

    async def export(db: Database) -> None:
        if form == "csv":
            print(tables.receipt_headings(), end="")
        async for page in Ledger(db).every_receipt(wanted):
            if form == "csv":
                print(tables.of_receipts(page), end="")
            else:
                for receipt in page:
                    print(json.dumps(receipt.shown()))

    _with_database(data_dir, export)


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

    The exit code is 1 where they differ. Hours are whole; those whose streams have been deleted
    (MILLSTREAM_RETENTION_DAYS) cannot be looked at. With --invoice, streams are compared with what
    their provider has counted, by day (UTC) and model.
    """
    from millstream.ledger import Ledger

    if invoice is not None:
        _verify_invoice(invoice, provider, data_dir, as_json=as_json)
        return

    verified = _with_database(data_dir, lambda db: Ledger(db).verify(_moment(since), _moment(until)))
    if as_json:
        _print_json(msgspec.to_builtins(verified))
    else:
        if verified.differences:
            table = Table("hour", "sums", "of", "what", "streams say", "sums say", box=None)
            for one in verified.differences:
                of = " ".join(f"{name}={value}" for name, value in one.of.items())
                table.add_row(
                    _date(one.hour), one.table, escape(of), one.what, f"{one.rows:,}", f"{one.sums:,}"
                )
            _print_table(table)
        looked_at = f"{_date(verified.since)} to {_date(verified.until)} UTC" if verified.until else "nothing"
        found = f"{len(verified.differences):,} differences" if verified.differences else "no difference"
        print(f"{verified.streams:,} streams, {looked_at}: {found}")
    if verified.differences:
        raise typer.Exit(1)


def _verify_invoice(path: Path, provider: str | None, data_dir: Path | None, *, as_json: bool) -> None:
    from millstream.ledger import Ledger, invoices

    with path.open(encoding="utf-8", newline="") as lines:
        try:
            invoice = invoices.read(lines)
        except UnicodeDecodeError:
            _exit(f"{path} is no text in UTF-8")
    found = _with_database(data_dir, lambda db: Ledger(db).compare(invoice, provider))
    if as_json:
        _print_json(msgspec.to_builtins(found))
    elif found:
        table = Table("day", "model", "what", box=None)
        for column in ("ledger", "invoice", "difference", "estimated streams"):
            table.add_column(column, justify="right")
        for one in found:
            numbers = (one.ledger, one.invoice, one.ledger - one.invoice, one.estimated)
            table.add_row(one.day, escape(one.model), one.what, *(f"{number:,}" for number in numbers))
        _print_table(table)
    else:
        print(f"{len(invoice.counts):,} days and models of {invoice.provider}: no difference")
    if found:
        raise typer.Exit(1)


@exports_app.callback(invoke_without_command=True)
def exports_list(context: typer.Context, data_dir: DataDir = None, as_json: Json = False) -> None:
    """Show what waits for each exporter, for how long, and what the last error was.

    Failed ones were refused for good. They are kept, and sent again by `exports retry`.
    """
    from millstream.ledger.exports import ExporterState, Exports
    from millstream.settings import Settings

    if context.invoked_subcommand is not None:
        return
    found = _with_database(data_dir, lambda db: Exports(db).states())
    idle = Settings.load().exporters.keys() - {state.exporter for state in found}
    states = sorted([*found, *(ExporterState(name) for name in idle)], key=lambda state: state.exporter)
    if as_json:
        _print_json(msgspec.to_builtins(states))
        return
    table = Table("exporter", box=None)
    for column in ("waiting", "oldest", "failed"):
        table.add_column(column, justify="right")
    table.add_column("last error")
    for state in states:
        table.add_row(
            state.exporter,
            f"{state.waiting:,}",
            f"{state.lag_seconds:,.0f} s" if state.waiting else "",
            f"{state.failed:,}" if state.failed else "",
            escape(state.last_error or ""),
        )
    _print_table(table)


@exports_app.command("retry")
def exports_retry(
    name: Annotated[str, typer.Argument(help="The exporter, as `exports` shows it.")],
    data_dir: DataDir = None,
) -> None:
    """Send again what an exporter's service has refused, once its reason is mended.

    Among it may be what was sent long ago without an answer: look there first, since it would count twice.
    """
    from millstream.ledger.exports import Exports

    number = _with_database(data_dir, lambda db: Exports(db).retry(name))
    print(f"{number:,} streams are due again")


def _with_database(
    data_dir: Path | None, work: Callable[[Any], Coroutine[Any, Any, Result]], *, makes_one: bool = False
) -> Result:
    """Runs ``work`` on the database that the settings name, and which there has to be unless it
    ``makes_one``.
    """
    from millstream.database import Database, DatabaseAway, missing_file
    from millstream.settings import Settings

    settings = Settings.load(**({} if data_dir is None else {"data_dir": data_dir}))
    if missing := missing_file(settings.resolved_database_url):
        if not makes_one:
            raise ConfigurationError(
                f"there is no database at {missing}; --data-dir or MILLSTREAM_DATA_DIR says where it is"
            )
        print(f"a new database is made: {missing}", file=sys.stderr)
    db = Database(settings.resolved_database_url, own_folder=settings.database_has_own_folder)
    try:
        db.migrate(makes_one=makes_one)
        return asyncio.run(work(db))
    except DatabaseAway as error:
        raise ConfigurationError(f"the database does not work: {error}") from error
    finally:
        db.close()


def _age(text: str) -> float | None:
    """Seconds; None of what is no age."""
    age = re.fullmatch(r"(\d{1,6})([hd])", text)
    return None if age is None else int(age[1]) * {"h": 3600.0, "d": 86_400.0}[age[2]]


def _moment(text: str, zone: str = "UTC", *, ahead: bool = False) -> float | None:
    """A date of the zone, or so long ago; where it is ``ahead``, from now."""
    if not text:
        return None
    if (age := _age(text)) is not None:
        return time.time() + (age if ahead else -age)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        _exit(f"'{text}' is neither a date like 2026-01-31 nor an age like 24h or 7d")
    from millstream.ledger.periods import zone_of

    return (moment if moment.tzinfo else moment.replace(tzinfo=zone_of(zone))).timestamp()


def _date(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M")


def _print_receipt(receipt: dict[str, Any]) -> None:
    """One line a fact; what is not known is left out."""
    table = Table(show_header=False, box=None)
    for name, value in receipt.items():
        inner = value if isinstance(value, dict) else {}
        facts = {f"{name}.{of}": one for of, one in inner.items()} if inner else {name: value}
        for fact, known in facts.items():
            if known not in (None, {}, []):
                table.add_row(fact, escape(_fact(fact, known)))
    _print_table(table)


def _fact(name: str, value: object) -> str:
    if name.endswith("_at") and isinstance(value, float):
        return datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] + " UTC"
    return json.dumps(value) if isinstance(value, (dict, list, tuple)) else str(value)


def _print_table(table: Table) -> None:
    # Into a file or a pipe a row is one line, however long.
    Console(width=None if sys.stdout.isatty() else 1000).print(table)


def _labels(given: list[str]) -> dict[str, str]:
    for label in given:
        if "=" not in label:
            _exit(f"'{label}' is no label: one is like team=search")
    return {name: value for name, _, value in (label.partition("=") for label in given)}


def _print_made(key: Any, secret: str, as_json: bool) -> None:
    if as_json:
        _print_json({"key": secret, **msgspec.to_builtins(key)})
    else:
        print(secret)


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2))
