"""The command line: serve · chat · record · keys · secret · usage · exports."""

import asyncio
import json
import re
import sys
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import msgspec
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from millstream.errors import ConfigurationError, MillstreamError
from millstream.usage import Group
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
    help="Make, list and revoke API keys. Works on the database, with or without a running server.",
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

DataDir = Annotated[
    Path | None,
    typer.Option(help="Folder of the SQLite database.  \\[env: MILLSTREAM_DATA_DIR]", show_default=False),
]
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
    test: Annotated[bool, typer.Option("--test", help="Mark it as a test key (ms_test_…).")] = False,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Make a key. It is shown once and cannot be had again."""
    from millstream.auth import Keys
    from millstream.database import Database

    async def create(db: Database) -> tuple[Any, str]:
        wanted = [scope.strip() for scope in scopes.split(",") if scope.strip()]
        return await Keys(db).create(name, wanted, test=test)

    key, secret = _with_database(data_dir, create, makes_one=True)
    if as_json:
        _print_json({"key": secret, **msgspec.to_builtins(key)})
    else:
        print(secret)


@keys_app.command("list")
def keys_list(data_dir: DataDir = None, as_json: Json = False) -> None:
    """List the keys, without their secrets."""
    from millstream.auth import Keys

    keys = _with_database(data_dir, lambda db: Keys(db).all())
    if as_json:
        _print_json(msgspec.to_builtins(keys))
        return
    table = Table(
        Column("id", no_wrap=True, min_width=20), "name", "key", "scopes", "created", "revoked", box=None
    )
    for key in keys:
        revoked = _date(key.revoked_at) if key.revoked_at else ""
        table.add_row(
            key.id, escape(key.name), key.hint, " ".join(key.scopes), _date(key.created_at), revoked
        )
    _print_table(table)


@keys_app.command("revoke")
def keys_revoke(
    key_id: Annotated[str, typer.Argument(help="The key's id, as `keys list` shows it.")],
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


@app.command()
def usage(
    by: Annotated[Group, typer.Option(help="What to add up by.")] = "key",
    since: Annotated[
        str, typer.Option(help="A date (2026-01-31, UTC) or an age (24h, 7d).", show_default=False)
    ] = "",
    until: Annotated[
        str, typer.Option(help="The same; up to but not including it.", show_default=False)
    ] = "",
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Print what was used, and what it cost.

    Streams whose price is unknown are counted in a column of their own; their cost is in no sum.
    """
    from millstream.ledger import Ledger
    from millstream.meter import Meter

    totals = _with_database(
        data_dir,
        lambda db: Meter(Ledger(db)).totals(by, since=_moment(since), until=_moment(until)),
    )
    if as_json:
        _print_json(msgspec.to_builtins(totals))
        return
    table = Table(by, box=None)
    for column in ("streams", "prompt tokens", "completion tokens", "cost USD", "price unknown"):
        table.add_column(column, justify="right")
    for total in totals:
        table.add_row(
            escape(total.group) or "(none)",
            f"{total.streams:,}",
            f"{total.prompt_tokens:,}",
            f"{total.completion_tokens:,}",
            "-" if total.cost_usd is None else total.cost_usd,
            f"{total.unpriced:,}" if total.unpriced else "",
        )
    _print_table(table)


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


def _moment(text: str) -> float | None:
    if not text:
        return None
    if age := re.fullmatch(r"(\d{1,6})([hd])", text):
        return time.time() - int(age[1]) * {"h": 3600, "d": 86_400}[age[2]]
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except ValueError:
        _exit(f"'{text}' is neither a date like 2026-01-31 nor an age like 24h or 7d")


def _date(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M")


def _print_table(table: Table) -> None:
    # Into a file or a pipe a row is one line, however long.
    Console(width=None if sys.stdout.isatty() else 1000).print(table)


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2))
