"""Keys, prices, receipts and reports from the command line."""

import asyncio
import json
from typing import Any

import pytest
from typer.testing import CliRunner

from millstream.auth import Keys
from millstream.cli import app
from millstream.database import Database
from millstream.errors import Unauthorized


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
