"""A database that takes no writes as the server starts: one line that says so, and exit code 2."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg
import pytest

from services import postgres_server


def command(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "millstream", *arguments],
        cwd=folder,
        env={**os.environ, "MILLSTREAM_PROVIDERS": '{"demo": {"type": "scripted"}}', **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


@contextmanager
def locked(file: Path) -> Generator[None]:
    """An SQLite database with its tables, that another process writes to."""
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield


def is_one_line(result: subprocess.CompletedProcess[str], words: str) -> None:
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    assert words in result.stderr
    assert result.stderr.startswith("millstream: ")
    assert result.returncode == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["serve", "--port", "0"],
        ["keys", "create", "--name", "x"],
        ["secret", "rotate"],
    ],
    ids=" ".join,
)
def test_a_locked_file_of_sqlite(tmp_path: Path, arguments: list[str]) -> None:
    assert command(tmp_path, "keys", "create", "--name", "n").returncode == 0
    with locked(tmp_path / "millstream-data" / "millstream.db"):
        is_one_line(command(tmp_path, *arguments), "another process has locked it")


def test_the_first_of_several_workers_says_it_alone(tmp_path: Path, redis_url: str) -> None:
    assert command(tmp_path, "keys", "create", "--name", "n").returncode == 0
    with locked(tmp_path / "millstream-data" / "millstream.db"):
        result = command(tmp_path, "serve", "--port", "0", "--workers", "2", MILLSTREAM_JOURNAL_URL=redis_url)
    is_one_line(result, "another process has locked it")


def test_a_postgresql_that_is_read_only_and_one_whose_keys_are_locked(tmp_path: Path) -> None:
    """The second lets the worker enlist, and not look for keys to show in the banner."""
    with postgres_server() as postgres:
        url = {"MILLSTREAM_DATABASE_URL": postgres.url}
        assert command(tmp_path, "keys", "create", "--name", "n", **url).returncode == 0
        with psycopg.connect(postgres.url) as other:
            other.execute("LOCK TABLE keys IN ACCESS EXCLUSIVE MODE")
            is_one_line(command(tmp_path, "serve", "--port", "0", **url), "LockNotAvailable")
        with psycopg.connect(postgres.url, autocommit=True) as other:
            other.execute("ALTER DATABASE postgres SET default_transaction_read_only = on")
        is_one_line(command(tmp_path, "serve", "--port", "0", **url), "it takes no writes")
