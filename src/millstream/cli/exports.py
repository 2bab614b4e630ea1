"""The commands on what is on its way to exporters."""

import sys
from typing import Annotated, NoReturn

import msgspec
import typer
from rich.table import Table

from millstream.cli.shared import (
    DataDir,
    Json,
    cell,
    fail,
    print_json,
    print_table,
    refuse_options,
    with_database,
)

exports_app = typer.Typer(
    help="What is on its way to exporters. Works on the database, with or without a running server.",
)


@exports_app.callback(invoke_without_command=True)
def exports_list(context: typer.Context, data_dir: DataDir = None, as_json: Json = False) -> None:
    """Show what waits for each exporter, for how long, and what the last error was.

    Failed ones were refused for good. They are kept, and sent again by `exports retry`.
    """
    from millstream.ledger.exports import ExporterState, Exports
    from millstream.settings import Settings

    if context.invoked_subcommand is not None:
        refuse_options(context)
        return
    found = with_database(data_dir, lambda db: Exports(db).states())
    idle = Settings.load().exporters.keys() - {state.exporter for state in found}
    states = sorted([*found, *(ExporterState(name) for name in idle)], key=lambda state: state.exporter)
    if as_json:
        print_json(msgspec.to_builtins(states))
        return
    table = Table("exporter", box=None)
    for column in ("waiting", "oldest", "failed"):
        table.add_column(column, justify="right")
    table.add_column("last error")
    for state in states:
        table.add_row(
            cell(state.exporter),
            f"{state.waiting:,}",
            f"{state.lag_seconds:,.0f} s" if state.waiting else "",
            f"{state.failed:,}" if state.failed else "",
            cell(state.last_error or ""),
        )
    print_table(table)


@exports_app.command("retry")
def exports_retry(
    name: Annotated[str, typer.Argument(help="The exporter, as `exports` shows it.")],
    data_dir: DataDir = None,
) -> None:
    """Send again what an exporter's service has refused, once its reason is mended.

    Among it may be what was sent long ago without an answer: look there first, since it would count twice.
    """
    from millstream.database import Database
    from millstream.ledger.exports import Exports
    from millstream.settings import Settings

    async def retry(db: Database) -> int | None:
        known = {state.exporter for state in await Exports(db).states()} | Settings.load().exporters.keys()
        return await Exports(db).retry(name) if name in known else None

    number = with_database(data_dir, retry)
    if number is None:
        _unknown(name)
    print(f"{number:,} streams are due again")


@exports_app.command("drop")
def exports_drop(
    name: Annotated[str, typer.Argument(help="The exporter, as `exports` shows it.")],
    yes: Annotated[bool, typer.Option("--yes", help="without asking")] = False,
    data_dir: DataDir = None,
) -> None:
    """Forget an exporter whose section is gone, and what waits for it or was refused.

    Until then `MILLSTREAM_RETENTION_DAYS` deletes none of those rows.
    """
    from millstream.ledger.exports import Exports
    from millstream.settings import Settings

    if name in Settings.load().exporters:
        fail(f"'{name}' is in the settings; remove its section, and stop the server that has it, before")
    (state, *_) = with_database(data_dir, lambda db: Exports(db).states(name)) or (None,)
    if state is None:
        _unknown(name)
    if not yes:
        number = state.waiting + state.failed
        typer.confirm(f"{number:,} streams will never be sent to '{name}'. Forget them?", abort=True)
    print(f"{with_database(data_dir, lambda db: Exports(db).drop(name)):,} streams are forgotten")


def _unknown(name: str) -> NoReturn:
    print(f"millstream: there is no exporter '{name}', and nothing waits for one", file=sys.stderr)
    raise typer.Exit(1)
