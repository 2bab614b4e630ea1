"""The first start shows a key to whoever looks at a terminal, and to no journal. spec/faults.md: I9."""

import json
import os
import pty
import re
import shlex
import subprocess
import sys
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

from live.conftest import running, started
from services import wait_for

DEMO = {"MILLSTREAM_PROVIDERS": '{"demo": {"type": "scripted"}}'}


def listed(folder: Path) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "millstream", "keys", "list", "--json"]
    found: list[dict[str, Any]] = json.loads(subprocess.check_output(command, cwd=folder, timeout=60))
    return found


def made(name: str, folder: Path) -> None:
    command = [sys.executable, "-m", "millstream", "keys", "create", "--name", name]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=60)


def test_where_no_terminal_is_no_key_is_made_and_the_banner_says_how(tmp_path: Path) -> None:
    with started(tmp_path, **DEMO) as server:
        assert "ms_" not in server.printed
        assert "millstream keys create --name me" in server.printed
        assert "--show-key" in server.printed
        assert server.terminate() == 0
    assert listed(tmp_path) == []
    with running(tmp_path, **DEMO) as server:
        assert f"{server.url}/#key={server.key}" in server.printed
        (key,) = listed(tmp_path)
        assert key["scopes"] == ["chat", "usage", "admin"]


def test_the_command_of_the_banner_makes_a_key_in_the_servers_database(tmp_path: Path) -> None:
    with started(tmp_path, "--data-dir", "some where", **DEMO) as server:
        match = re.search(r"make one with: millstream (.*), or start", server.printed)
        assert match is not None
        command = [sys.executable, "-m", "millstream", *shlex.split(match[1])]
        made = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True, timeout=60)
        assert made.stderr == ""  # it has found the database, and made none
        request = urllib.request.Request(
            f"{server.url}/v1/models", headers={"Authorization": f"Bearer {made.stdout.strip()}"}
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            assert answer.status == 200


def test_several_workers_show_a_key_no_sooner_than_one(tmp_path: Path, redis_url: str) -> None:
    with started(tmp_path, "--workers", "2", MILLSTREAM_JOURNAL_URL=redis_url, **DEMO) as server:
        assert "ms_" not in server.printed
    assert listed(tmp_path) == []
    with running(tmp_path, "--workers", "2", MILLSTREAM_JOURNAL_URL=redis_url, **DEMO) as server:
        assert len(re.findall(r"\bms_live_\w+", server.printed)) == 2  # alone, and in the link


def test_a_temporary_key_is_asked_for_and_shown_anywhere_and_may_not_do_everything(tmp_path: Path) -> None:
    with started(tmp_path, "--temporary-key", **DEMO) as server:
        assert f"{server.url}/#key={server.key}" in server.printed
        (key,) = listed(tmp_path)
        assert (key["scopes"], key["revoked_at"]) == (["chat", "usage"], None)
        assert server.terminate() == 0
    (key,) = listed(tmp_path)
    assert key["revoked_at"]


def test_where_keys_exist_the_banner_names_those_that_work(tmp_path: Path) -> None:
    with running(tmp_path, **DEMO):
        pass
    made("web", tmp_path)
    with running(tmp_path, **DEMO) as server:
        assert re.search(
            r"^  key     yours: admin, web; their secrets were shown when they "
            r"were made; another: millstream keys create --name me$",
            server.printed,
            re.MULTILINE,
        )
    with running(tmp_path, "--temporary-key", **DEMO) as server:
        assert re.search(
            rf"^  key     {server.key}  \(until the server stops; yours work too: admin, web\)$",
            server.printed,
            re.MULTILINE,
        )


def test_where_all_keys_are_revoked_the_banner_says_so(tmp_path: Path) -> None:
    with started(tmp_path, "--temporary-key", **DEMO):
        pass
    with running(tmp_path, **DEMO) as server:
        assert (
            "  key     all are revoked; make one with: millstream keys create --name me\n" in server.printed
        )


def test_of_many_keys_the_banner_names_some(tmp_path: Path) -> None:
    for number in range(5):
        made(f"k{number}", tmp_path)
    with started(tmp_path, **DEMO) as server:
        assert re.search(r"yours: k0, k1, k2 and 2 more; ", server.printed)


def test_on_a_terminal_the_first_start_shows_the_first_key(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "millstream", "serve", "--port", "0"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env={**os.environ, **DEMO}, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    os.set_blocking(ours, False)
    shown = bytearray()

    def key() -> bool:
        with suppress(BlockingIOError):
            shown.extend(os.read(ours, 65_536))
        return b"it may do everything" in shown

    try:
        assert wait_for(key, process)
        assert re.search(rb"ms_live_\w{36}", shown)
    finally:
        process.terminate()
        process.wait(15)
        os.close(ours)
    assert len(listed(tmp_path)) == 1
