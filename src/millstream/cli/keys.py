"""The commands on keys, and on the secret that signs what is made with them."""

import re
from decimal import Decimal
from typing import Annotated, Any

import msgspec
import typer
from rich.table import Column, Table

from millstream.cli.shared import (
    DataDir,
    Json,
    KeyId,
    age_of,
    cell,
    date_of,
    fail,
    moment_of,
    print_json,
    print_table,
    with_database,
)

keys_app = typer.Typer(
    help="Make, limit, list, rotate and revoke API keys, in the database, with or without a running server.",
    no_args_is_help=True,
)
secret_app = typer.Typer(
    help="The secret that signs browser tokens and tickets. Works on the database, as keys do.",
    no_args_is_help=True,
)


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
            expires_at=moment_of(expires, ahead=True),
        )

    key, secret = with_database(data_dir, create, makes_one=True)
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

    seconds = 0.0 if overlap == "0" else age_of(overlap)
    if seconds is None:
        fail(f"'{overlap}' is no time like 24h or 7d")
    key, secret = with_database(data_dir, lambda db: Keys(db).rotate(key_id, seconds))
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
        given["expires_at"] = None if expires == "never" else moment_of(expires, ahead=True)
    key = with_database(data_dir, lambda db: Keys(db).change(key_id, Changes(**given)))
    if as_json:
        print_json(msgspec.to_builtins(key))
    else:
        print(f"changed {key.id} ({key.name})")


@keys_app.command("list")
def keys_list(data_dir: DataDir = None, as_json: Json = False) -> None:
    """List the keys, without their secrets."""
    from millstream.auth import Keys

    keys = with_database(data_dir, lambda db: Keys(db).all())
    if as_json:
        print_json(msgspec.to_builtins(keys))
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
            cell(key.name),
            cell(key.owner or ""),
            key.hint,
            " ".join(key.scopes),
            *("" if at is None else date_of(at) for at in dates),
            cell(" ".join(f"{name}={value}" for name, value in key.labels.items())),
        )
    print_table(table)


@keys_app.command("revoke")
def keys_revoke(
    key_id: KeyId,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Revoke a key. A running server refuses it, and ends its streams, within 5 seconds."""
    from millstream.auth import Keys

    key = with_database(data_dir, lambda db: Keys(db).revoke(key_id))
    if as_json:
        print_json(msgspec.to_builtins(key))
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

    told = with_database(data_dir, work)
    if as_json:
        print_json(told)
        return
    names = ("amount", "used", "reserved", "left")
    numbers = [Column(name, justify="right") for name in names]
    table = Table("limit", "per", "model", "for", *numbers, box=None)
    for one in told:
        whose = "each user" if one["each_user"] else "the key"
        amounts = [str(one.get(name, "")) for name in names]
        table.add_row(one["what"], one["per"], cell(one["model"] or "all"), whose, *amounts)
    print_table(table)


def _limit(what: Any, text: str, model: str | None, each_user: bool) -> Any:
    from millstream.limits import PERS, make

    number, _, per = text.partition("/")
    if per not in PERS or not re.fullmatch(r"\d{1,16}(\.\d{1,12})?", number):
        fail(f"'{text}' is no limit; one is like 10/day, and its time is {', '.join(PERS)}")
    try:
        return make(what, per, Decimal(number), model, each_user=each_user)
    except ValueError as error:
        fail(str(error))


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
    believed_until = with_database(data_dir, lambda db: SigningSecrets(db, given).rotate(at_once=now))
    if now:
        print("a new secret signs; what was signed before it is refused within 5 seconds")
    else:
        print(
            f"a new secret signs; what was signed before it is believed until {date_of(believed_until)} UTC"
        )


def _labels(given: list[str]) -> dict[str, str]:
    for label in given:
        if "=" not in label:
            fail(f"'{label}' is no label: one is like team=search")
    return {name: value for name, _, value in (label.partition("=") for label in given)}


def _print_made(key: Any, secret: str, as_json: bool) -> None:
    if as_json:
        print_json({"key": secret, **msgspec.to_builtins(key)})
    else:
        print(secret)
