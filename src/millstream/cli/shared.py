"""What the commands share: their options, the database, times, and how they print."""

import asyncio
import json
import re
import sys
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from millstream.errors import ConfigurationError, printable

Result = TypeVar("Result")

DataDir = Annotated[
    Path | None,
    typer.Option(help="Folder of the SQLite database.  \\[env: MILLSTREAM_DATA_DIR]", show_default=False),
]
Since = Annotated[str, typer.Option(help="A date (2026-01-31) or an age (24h, 7d).", show_default=False)]
Until = Annotated[str, typer.Option(help="The same; up to but not including it.", show_default=False)]
KeyId = Annotated[str, typer.Argument(help="The key's id, as `keys list` shows it.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def fail(message: str) -> NoReturn:
    print(f"millstream: {message}", file=sys.stderr)
    raise SystemExit(2)


def refuse_options(context: typer.Context) -> None:
    """Those of a group that stand before one of its commands, which has its own and would not see them."""
    given = [
        parameter.opts[0]
        for parameter in context.command.params
        if (source := context.get_parameter_source(parameter.name or "")) and source.name == "COMMANDLINE"
    ]
    if given:
        fail(f"put {', '.join(given)} behind `{context.invoked_subcommand}`")


def with_database(
    data_dir: Path | None, work: Callable[[Any], Coroutine[Any, Any, Result]], *, makes_one: bool = False
) -> Result:
    """Runs ``work`` on the database that the settings name, and which there has to be unless it
    ``makes_one``.
    """
    from millstream.database import Database, DatabaseAway, missing_file
    from millstream.settings import Settings

    settings = Settings.load(**({} if data_dir is None else {"data_dir": data_dir}))
    if data_dir is not None and settings.database_url:
        raise ConfigurationError("--data-dir and MILLSTREAM_DATABASE_URL name two databases; give one")
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


def age_of(text: str) -> float | None:
    """Seconds; None of what is no age."""
    age = re.fullmatch(r"(\d{1,6})([hd])", text)
    return None if age is None else int(age[1]) * {"h": 3600.0, "d": 86_400.0}[age[2]]


def moment_of(text: str, zone: str = "UTC", *, ahead: bool = False) -> float | None:
    """A date of the zone, or so long ago; where it is ``ahead``, from now."""
    if not text:
        return None
    from millstream.schema import EARLIEST, LATEST

    if (age := age_of(text)) is not None:
        at = time.time() + (age if ahead else -age)
    else:
        at = _timestamp(text, zone)
    if not EARLIEST <= at <= LATEST:
        fail(f"'{text}' is out of range: times are of the years 1970 to 9998")
    return at


def _timestamp(date: str, zone: str) -> float:
    from millstream.ledger.periods import zone_of

    try:
        moment = datetime.fromisoformat(date)
    except ValueError:
        fail(f"'{date}' is neither a date like 2026-01-31 nor an age like 24h or 7d")
    return (moment if moment.tzinfo else moment.replace(tzinfo=zone_of(zone))).timestamp()


def date_of(at: float) -> str:
    try:
        return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M")
    except (ValueError, OverflowError, OSError):  # no calendar has it
        return f"{at:g}"


def cell(text: str) -> str:
    """Words that somebody has chosen, for a table: the terminal obeys none of them."""
    return escape(printable(text, most=1000))


def print_table(table: Table) -> None:
    # Into a file or a pipe a row is one line, however long.
    Console(width=None if sys.stdout.isatty() else 1000).print(table)


def print_json(value: object) -> None:
    print(json.dumps(value, indent=2))
