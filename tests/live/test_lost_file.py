"""An SQLite database that takes no writes any more, or is another one, while the server runs: nothing starts."""

import json
import resource
import sqlite3
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from live.conftest import Serve, Server
from services import wait_for

SCRIPTED = {"MILLSTREAM_PROVIDERS": '{"scripted": {"type": "scripted"}}'}
BODY = json.dumps({"messages": [{"role": "user", "content": "x"}]}).encode()


def status(server: Server, path: str, body: bytes | None = None) -> int:
    request = urllib.request.Request(f"{server.url}{path}", body, {"Authorization": f"Bearer {server.key}"})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def stays_unready(server: Server) -> None:
    """From soon on, also where starts are tried in between."""
    wait_for(lambda: status(server, "/readyz") == 503, server.process)
    until = time.monotonic() + 4
    while time.monotonic() < until:
        assert status(server, "/v1/chat", BODY) == 503
        assert status(server, "/readyz") == 503
        time.sleep(0.1)


def test_on_a_full_disk_the_server_is_not_ready_until_there_is_room(serve: Serve) -> None:
    with serve(**SCRIPTED) as server:
        # No file of this process may grow over so many bytes, which those of the database have long had.
        _, hard = resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (8192, resource.RLIM_INFINITY))
        stays_unready(server)
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (hard, hard))
        wait_for(lambda: status(server, "/readyz") == 200, server.process)
        assert status(server, "/v1/chat", BODY) == 200
        assert server.terminate() == 0


def replace(file: Path) -> None:
    copy = file.with_name("copy.db")
    with sqlite3.connect(file) as old, sqlite3.connect(copy) as new:
        old.backup(new)
    copy.replace(file)


def delete(file: Path) -> None:
    for one in file.parent.glob("millstream.db*"):
        one.unlink()


@pytest.mark.parametrize("lose", [replace, delete])
def test_a_file_that_was_replaced_or_deleted_is_away(
    serve: Serve, tmp_path: Path, lose: Callable[[Path], None]
) -> None:
    with serve(**SCRIPTED) as server:
        assert status(server, "/v1/chat", BODY) == 200
        lose(tmp_path / "server" / "millstream-data" / "millstream.db")
        stays_unready(server)
        assert "its file was replaced or deleted; restart the server" in server.printed
