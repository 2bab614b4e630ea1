"""``millstream serve`` as a process: how it starts, what it says, how it ends."""

import asyncio
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from live.conftest import Ask, Serve, Server
from millstream.database import Database
from millstream.ledger import Ledger
from millstream.meter import Meter
from oracle import Request, oracle
from services import wait_for

BODY = json.dumps({"messages": [{"role": "user", "content": "Hello"}]}).encode()


def rows(tmp_path: Path) -> list[dict[str, Any]]:
    with sqlite3.connect(tmp_path / "server" / "millstream-data" / "millstream.db") as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute("select * from streams order by created_at")]


def command(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs one that ends by itself. Its port, if it comes to that, is no other server's."""
    environment = {"MILLSTREAM_PORT": "0", **environment}
    return subprocess.run(
        [sys.executable, "-m", "millstream", *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_first_start_shows_a_key_once(serve: Serve, tmp_path: Path) -> None:
    with serve(MILLSTREAM_PROVIDERS='{"demo": {"type": "scripted"}}') as server:
        key = server.key
        assert f"{server.url}/#key={key}" in server.printed
        request = urllib.request.Request(f"{server.url}/v1/chat", BODY, {"Authorization": f"Bearer {key}"})
        with urllib.request.urlopen(request, timeout=20) as answer:
            assert "script" in json.load(answer)["content"]
        assert server.terminate() == 0
    with serve(MILLSTREAM_PROVIDERS='{"demo": {"type": "scripted"}}') as server:
        assert "ms_live" not in server.printed
    with serve("--temporary-key", MILLSTREAM_PROVIDERS='{"demo": {"type": "scripted"}}') as server:
        assert server.key != key
        server.terminate()
        listed = json.loads(command("keys", "list", "--json", cwd=tmp_path / "server").stdout)
        assert [bool(k["revoked_at"]) for k in listed] == [False, True]


_A_DATABASE_THAT_GOES_WHILE_KEYS_ARE_LISTED = """
import asyncio
from millstream import auth, cli
from millstream.database import DatabaseAway
from millstream.server.process import serve

listeners, listen = [], serve._listen

def remember(*address):
    listeners.append(listen(*address))
    return listeners[-1]

async def all(self):
    try:
        await asyncio.open_connection(*listeners[0].getsockname())
        print("somebody was let in")
    except ConnectionRefusedError:
        pass
    raise DatabaseAway("no answer in 5 s")

serve._listen = remember
auth.Keys.all = all
cli.main()
"""


def test_who_is_let_in_is_answered_so_nobody_is_before_the_start_is_over(tmp_path: Path) -> None:
    script = [sys.executable, "-c", _A_DATABASE_THAT_GOES_WHILE_KEYS_ARE_LISTED]
    ended = subprocess.run(
        [*script, "serve", "--port", "0"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "the database does not work: no answer in 5 s" in ended.stderr


async def test_any_compatible_server_works_with_two_variables(serve: Serve) -> None:
    async def handler(request: Request) -> None:
        if request.path.endswith("/models"):
            return await request.answer(200, {"data": [{"id": "their-model"}]})
        assert request.headers["authorization"] == "Bearer sk-test"
        assert request.json["model"] == "their-model"
        await request.head()
        await request.say("Hello")
        await request.finish(usage={"prompt_tokens": 1, "completion_tokens": 1})

    async with oracle(handler) as provider:

        def talk() -> Any:
            with serve(openai=provider.base_url) as server:
                assert "openai: their-model" in server.printed
                request = urllib.request.Request(
                    f"{server.url}/v1/chat", BODY, {"Authorization": f"Bearer {server.key}"}
                )
                return json.load(urllib.request.urlopen(request, timeout=20))

        assert (await asyncio.to_thread(talk))["content"] == "Hello"


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        (["--port", "{busy}"], {}, "port {busy} is in use"),
        ([], {"MILLSTREAM_PORT": "many"}, "setting port"),
        ([], {"MILLSTREAM_DATABASE_URL": "mysql://x"}, "SQLite or PostgreSQL"),
        ([], {"MILLSTREAM_JOURNAL_URL": "redis://x"}, "MILLSTREAM_JOURNAL_URL"),
        ([], {"MILLSTREAM_PROVIDERS": "{bad"}, "not valid JSON"),
        (
            [],
            {"MILLSTREAM_PROVIDERS": '{"p": {"base_url": "http://x/v1", "extra": {"n": 2}}}'},
            "extra cannot set n",
        ),
        ([], {"MILLSTREAM_MAX_STREAM": "5"}, "there is no setting MILLSTREAM_MAX_STREAM"),
        ([], {"OPENAI_BASE_URL": "localhost:1"}, "OPENAI_BASE_URL"),
        ([], {"MILLSTREAM_DATABASE_URL": "sqlite:////proc/nowhere/x.db"}, "cannot"),
        (["--host", "300.0.0.1"], {}, "is not an address"),
        (
            [],
            {"MILLSTREAM_PROVIDERS": '{"x": {"type": "local", "path": "/no/such.gguf"}}'},
            "provider x: there is no model file at /no/such.gguf",
        ),
        (
            [],
            {"MILLSTREAM_PROVIDERS": '{"x": {"type": "local", "path": "/etc/passwd"}}'},
            "provider x: /etc/passwd is not a model file",
        ),
        (["--nonsense"], {}, "nonsense"),
    ],
)
def test_what_cannot_work_is_one_clear_line_and_exit_code_2(
    tmp_path: Path, arguments: list[str], environment: dict[str, str], words: str
) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = str(busy.getsockname()[1])
        arguments = [argument.replace("{busy}", port) for argument in arguments]
        result = command("serve", *arguments, cwd=tmp_path, **environment)
    assert result.returncode == 2
    assert words.replace("{busy}", port) in result.stderr
    assert "Traceback" not in result.stderr
    if arguments != ["--nonsense"]:
        assert len(result.stderr.strip().splitlines()) == 1


def test_an_unknown_name_in_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "millstream.toml").write_text('prot = 80\n[providers.x]\nbase_url = "http://x"\n')
    result = command("serve", cwd=tmp_path)
    assert result.returncode == 2
    assert "setting prot" in result.stderr


async def slow(request: Request) -> None:
    if request.path.endswith("/models"):
        return await request.answer(200, {"data": [{"id": "m"}]})
    await request.head()
    for i in range(10_000):
        await request.say(f"word{i} ")
        await asyncio.sleep(0.01)
    await request.finish()


@pytest.fixture
def hears_hangups() -> Iterator[None]:
    """Also where the tests run under nohup, as a server would."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hears_hangups")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_a_signal_ends_streams_settles_them_and_exits_0(
    serve: Serve, ask: Ask, tmp_path: Path, number: signal.Signals
) -> None:
    async with oracle(slow) as provider:
        context = serve(openai=provider.base_url, MILLSTREAM_DRAIN_SECONDS="0.2")
        server = await asyncio.to_thread(context.__enter__)
        try:
            reader, writer = await ask(
                server.port, "POST", "/v1/chat/stream", BODY, Authorization=f"Bearer {server.key}"
            )
            await reader.readuntil(b"word3")
            server.process.send_signal(number)
            rest = await asyncio.wait_for(reader.read(), 10)
            assert b'"finish_reason":"cancelled"' in rest
            assert b"data: [DONE]" in rest
            assert await asyncio.to_thread(server.process.wait, 10) == 0
            writer.close()
        finally:
            await asyncio.to_thread(context.__exit__, None, None, None)
    (row,) = rows(tmp_path)
    assert (row["status"], row["usage_source"]) == ("cancelled", "counted")
    assert row["completion_tokens"] > 0


async def uploading(server: Server, path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A request whose body does not end, and is waited for."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.key}\r\n"
    writer.write(f"{head}Expect: 100-continue\r\nContent-Length: 100\r\n\r\n".encode())
    assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10) == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"{")
    await writer.drain()
    return reader, writer


@pytest.mark.parametrize(
    ("path", "signals", "shape", "seconds"),
    [
        ("/v1/chat/stream", 1, b'{"error":{"code":"draining"', 0),
        ("/v1/streams", 1, b'{"error":{"code":"draining"', 0),
        ("/v1/messages", 1, b'{"type":"error","error":{"type":"overloaded_error"', 0),
        ("/v1/messages/count_tokens", 1, b'{"type":"error","error":{"type":"overloaded_error"', 5),
        ("/v1/keys", 1, b'{"error":{"code":"draining"', 5),
        ("/v1/keys", 2, b'{"error":{"code":"draining"', 1),
    ],
)
async def test_who_still_sends_when_the_server_stops_is_told_so(
    serve: Serve, path: str, signals: int, shape: bytes, seconds: float
) -> None:
    context = serve(MILLSTREAM_PROVIDERS='{"demo": {"type": "scripted"}}', MILLSTREAM_DRAIN_SECONDS="60")
    server = await asyncio.to_thread(context.__enter__)
    try:
        reader, writer = await uploading(server, path)
        began = time.monotonic()
        for _ in range(signals):
            server.process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.5)
        answered = await asyncio.wait_for(reader.read(), 10)
        assert time.monotonic() - began < seconds + 3
        head, _, body = answered.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nretry-after: " in head
        assert b"\r\nx-request-id: req_" in head
        assert body.startswith(shape)
        writer.close()
        assert await asyncio.to_thread(server.process.wait, 10) == 0
        assert "ERROR" not in server.printed
    finally:
        await asyncio.to_thread(context.__exit__, None, None, None)


@pytest.mark.usefixtures("hears_hangups")
async def test_a_terminal_that_closes_leaves_streams_their_time(serve: Serve, ask: Ask) -> None:
    """Its shell says so too."""
    async with oracle(slow) as provider:
        context = serve(openai=provider.base_url, MILLSTREAM_DRAIN_SECONDS="2")
        server = await asyncio.to_thread(context.__enter__)
        try:
            reader, writer = await ask(
                server.port, "POST", "/v1/chat/stream", BODY, Authorization=f"Bearer {server.key}"
            )
            await reader.readuntil(b"word3")
            began = time.monotonic()
            for _ in range(3):
                server.process.send_signal(signal.SIGHUP)
                await asyncio.sleep(0.1)
            assert b"data: [DONE]" in await asyncio.wait_for(reader.read(), 10)
            assert time.monotonic() - began > 1.5
            writer.close()
            assert await asyncio.to_thread(server.process.wait, 10) == 0
        finally:
            await asyncio.to_thread(context.__exit__, None, None, None)


def test_under_nohup_a_terminal_may_close(serve: Serve) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with serve(MILLSTREAM_PROVIDERS='{"demo": {"type": "scripted"}}') as server:
            server.process.send_signal(signal.SIGHUP)
            with pytest.raises(subprocess.TimeoutExpired):
                server.process.wait(1)
            assert server.terminate() == 0
    finally:
        signal.signal(signal.SIGHUP, before)


async def test_after_a_kill_the_row_is_settled_from_its_checkpoint(
    serve: Serve, ask: Ask, tmp_path: Path
) -> None:
    async with oracle(slow) as provider:
        context = serve(openai=provider.base_url)
        server = await asyncio.to_thread(context.__enter__)
        try:
            reader, writer = await ask(
                server.port, "POST", "/v1/chat/stream", BODY, Authorization=f"Bearer {server.key}"
            )
            await reader.readuntil(b"word5")
            await asyncio.to_thread(wait_for, lambda: rows(tmp_path)[0]["completion_tokens"] > 0)
            server.process.kill()
            await asyncio.to_thread(server.process.wait, 10)
            writer.close()
        finally:
            await asyncio.to_thread(context.__exit__, None, None, None)
    # The next process waits for a lease to see whether the dead one still lives.
    with serve(MILLSTREAM_PROVIDERS='{"demo": {"type": "scripted"}}'):
        await asyncio.to_thread(wait_for, lambda: rows(tmp_path)[0]["status"] == "interrupted")
    (row,) = rows(tmp_path)
    assert row["usage_source"] == "checkpoint"
    assert row["completion_tokens"] > 0


async def test_a_price_that_is_unknown_is_not_zero(tmp_path: Path) -> None:
    key = json.loads(command("keys", "create", "--name", "n", "--json", cwd=tmp_path).stdout)["id"]
    db = Database(f"sqlite:///{tmp_path}/millstream-data/millstream.db")
    async with Ledger(db) as ledger:
        await Meter(ledger).record(key, 7, model="known", cost_usd=Decimal("0.25"))
        await Meter(ledger).record(key, 7, model="known")
        await Meter(ledger).record(key, 7, model="unknown")
    db.close()
    printed = command("usage", "--by", "model", cwd=tmp_path).stdout.splitlines()
    assert [line.split() for line in printed[1:]] == [
        ["known", "2", "0", "14", "0.250000", "0.250000", "1"],
        ["unknown", "1", "0", "7", "-", "-", "1"],
    ]
    by_model = json.loads(command("usage", "--by", "model", "--json", cwd=tmp_path).stdout)
    assert [(total["cost_usd"], total["unpriced"]) for total in by_model] == [("0.250000", 1), (None, 1)]


def test_keys_and_usage_work_from_the_command_line(tmp_path: Path) -> None:
    made = command("keys", "create", "--name", "n", "--scopes", "chat,usage", "--json", cwd=tmp_path)
    key = json.loads(made.stdout)
    assert key["scopes"] == ["chat", "usage"]
    assert key["key"].startswith("ms_live_")
    plain = command("keys", "create", "--name", "t", "--test", cwd=tmp_path).stdout
    assert plain.startswith("ms_test_")
    assert plain.count("\n") == 1
    listed = command("keys", "list", cwd=tmp_path).stdout
    assert key["id"] in listed
    assert key["key"] not in listed
    set_limits = ("--requests-per-minute", "60", "--budget-usd", "0.5/day", "--model", "m", "--each-user")
    limits = json.loads(command("keys", "limit", key["id"], *set_limits, "--json", cwd=tmp_path).stdout)
    assert [(one["what"], one["per"], one["amount"], one["model"], one["each_user"]) for one in limits] == [
        ("requests", "minute", 60, "m", True),
        ("usd", "day", "0.500000", "m", True),
    ]
    command(
        "keys", "limit", key["id"], "--requests", "70/minute", "--model", "m", "--each-user", cwd=tmp_path
    )
    assert "70" in (shown := command("keys", "limit", key["id"], cwd=tmp_path).stdout)
    assert "60" not in shown
    assert "usd" in shown
    command("keys", "limit", key["id"], "--streams", "9", cwd=tmp_path)
    standing = json.loads(command("keys", "limit", key["id"], "--json", cwd=tmp_path).stdout)
    assert {one["what"]: one.get("left") for one in standing} == {"requests": None, "streams": 9, "usd": None}
    for wrong in (("--budget-usd", "1/week"), ("--budget-usd", "x/day"), ("--requests", "1.5/day")):
        refused = command("keys", "limit", key["id"], *wrong, cwd=tmp_path)
        assert (refused.returncode, refused.stdout) == (2, ""), wrong
    assert json.loads(command("keys", "limit", key["id"], "--clear", "--json", cwd=tmp_path).stdout) == []
    assert command("keys", "limit", "key_x", "--streams", "1", cwd=tmp_path).returncode == 2
    assert key["id"] in command("keys", "revoke", key["id"], cwd=tmp_path).stdout
    missing = command("keys", "revoke", "key_x", cwd=tmp_path)
    assert (missing.returncode, "no key has the id" in missing.stderr) == (2, True)
    assert command("keys", "create", "--name", "x", "--scopes", "root", cwd=tmp_path).returncode == 2
    command("keys", "create", "--name", "[/]", cwd=tmp_path)
    assert "[/]" in command("keys", "list", cwd=tmp_path).stdout
    assert json.loads(command("usage", "--json", "--since", "7d", cwd=tmp_path).stdout) == []
    assert "streams" in command("usage", "--by", "model", cwd=tmp_path).stdout
    assert command("usage", "--since", "yesterday", cwd=tmp_path).returncode == 2
    assert command("--version", cwd=tmp_path).stdout.strip()


async def test_raw_bad_input_gets_4xx_and_never_5xx(serve: Serve, ask: Ask) -> None:
    with serve(MILLSTREAM_PROVIDERS='{"demo": {"type": "scripted"}}') as server:
        key = f"Bearer {server.key}"
        bodies = [
            b"{",
            b"\xff",
            b"[" * 100_000,
            b'{"messages":' * 50_000,
            b"null",
            b"NaN",
            b'"\\ud800"',
            b"{}",
        ]
        for body in bodies:
            reader, writer = await ask(server.port, "POST", "/v1/chat/stream", body, Authorization=key)
            status = (await asyncio.wait_for(reader.readline(), 10)).split()[1]
            assert status in (b"400", b"422"), (body[:20], status)
            writer.close()
        reader, writer = await ask(
            server.port, "POST", "/v1/chat/stream", Authorization=key, Expect="100-continue"
        )
        writer.close()
        # A hundred megabytes: announced, answered before they are read.
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(
            b"POST /v1/chat/stream HTTP/1.1\r\nHost: x\r\nContent-Length: 104857600\r\n"
            b"Authorization: " + key.encode() + b"\r\n\r\n" + b"x" * 1000
        )
        assert (await asyncio.wait_for(reader.readline(), 10)).split()[1] == b"413"
        writer.close()
        for path in ("/nowhere", "/v1/chat/stream", "/v1/streams/str_x", "/v1/streams/" + "x" * 5000):
            reader, writer = await ask(server.port, "GET", path, Authorization=key)
            number = int((await asyncio.wait_for(reader.readline(), 10)).split()[1])
            assert 400 <= number < 500
            writer.close()
        assert "Traceback" not in server.printed


async def test_a_reader_that_takes_nothing_is_cut_off_and_comes_back_by_position(
    serve: Serve, ask: Ask
) -> None:
    """spec/faults.md: C6. The producer does not wait for it."""
    import psutil

    providers = '{"scripted": {"type": "scripted"}}'
    context = serve(MILLSTREAM_PROVIDERS=providers, MILLSTREAM_JOURNAL_MAX_BYTES="200000000")
    server = await asyncio.to_thread(context.__enter__)
    try:
        process = psutil.Process(server.pid)
        credential = {"Authorization": f"Bearer {server.key}"}
        body = json.dumps(
            {
                "model": "scripted/100000x0",
                "messages": [{"role": "user", "content": "x"}],
                "on_disconnect": "continue",
            }
        ).encode()
        reader, writer = await ask(server.port, "POST", "/v1/chat/stream", body, **credential)
        received = await reader.readuntil(b"id: 1-50\n")
        match = re.search(rb'"stream_id":"([^"]+)"', received)
        assert match is not None
        path = f"/v1/streams/{match[1].decode()}"
        assert isinstance(writer.transport, asyncio.Transport)
        writer.transport.pause_reading()
        port = writer.get_extra_info("sockname")[1]
        async with asyncio.timeout(60):
            while [c for c in process.net_connections("tcp") if c.raddr and c.raddr.port == port]:
                await asyncio.sleep(0.2)
        writer.transport.abort()
        more = {"Last_Event_ID": "1-50", "Connection": "close"}
        reader, writer = await ask(server.port, "GET", f"{path}/events", b"", **credential, **more)
        rest = await asyncio.wait_for(reader.read(), 60)
        ids = [int(seq) for seq in re.findall(rb"id: 1-(\d+)\n", rest)]
        assert ids == list(range(51, ids[-1] + 1))
        assert ids[-1] > 100_000
        assert rest.count(b"[DONE]") == 1
        writer.close()
    finally:
        await asyncio.to_thread(context.__exit__, None, None, None)


@pytest.mark.parametrize(
    "arguments", [("keys", "list"), ("keys", "revoke", "key_x"), ("usage",), ("secret", "rotate")]
)
def test_a_folder_without_a_database_is_said_and_stays_as_it_is(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    result = command(*arguments, "--data-dir", "elsewhere", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("millstream: there is no database at elsewhere/millstream.db; --data-dir")
    assert not (tmp_path / "elsewhere").exists()
    (tmp_path / "empty.db").touch()
    result = command(*arguments, cwd=tmp_path, MILLSTREAM_DATABASE_URL="sqlite:///empty.db")
    assert (result.returncode, (tmp_path / "empty.db").stat().st_size) == (2, 0)
    assert result.stderr.startswith("millstream: there is no database at empty.db")
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("create table theirs (x)")
    other.close()
    before = (tmp_path / "other.db").stat().st_mode
    result = command(*arguments, cwd=tmp_path, MILLSTREAM_DATABASE_URL="sqlite:///other.db")
    assert result.returncode == 2
    assert result.stderr.endswith("/other.db is no database of Millstream\n")
    assert (tmp_path / "other.db").stat().st_mode == before
    with sqlite3.connect(tmp_path / "other.db") as other:
        assert other.execute("select name from sqlite_master").fetchall() == [("theirs",)]
    other.close()
    made = command("keys", "create", "--name", "n", "--data-dir", "elsewhere", cwd=tmp_path)
    assert made.stderr == "a new database is made: elsewhere/millstream.db\n"
    assert made.stdout.startswith("ms_live_")


@pytest.mark.parametrize("in_file", [False, True])
def test_two_databases_are_told_from_one(tmp_path: Path, in_file: bool) -> None:
    made = json.loads(
        command("keys", "create", "--name", "n", "--data-dir", "dd", "--json", cwd=tmp_path).stdout
    )
    environment: dict[str, str] = {}
    if in_file:
        (tmp_path / "millstream.toml").write_text('database_url = "sqlite:///other.db"\n')
    else:
        environment["MILLSTREAM_DATABASE_URL"] = "sqlite:///other.db"
    assert command("keys", "create", "--name", "n", cwd=tmp_path, **environment).returncode == 0
    for words in (("keys", "list"), ("keys", "revoke", made["id"]), ("usage",), ("prices", "check")):
        result = command(*words, "--data-dir", "dd", cwd=tmp_path, **environment)
        assert result.returncode == 2
        assert result.stderr == (
            "millstream: --data-dir and MILLSTREAM_DATABASE_URL name two databases; give one\n"
        )
    # The folder of the settings is not only for the database.
    folder = {**environment, "MILLSTREAM_DATA_DIR": "dd"}
    assert made["id"] not in command("keys", "list", cwd=tmp_path, **folder).stdout


def test_bytes_that_are_no_characters_are_said_without_a_traceback(tmp_path: Path) -> None:
    assert command("keys", "create", "--name", "n", cwd=tmp_path).returncode == 0
    for arguments in (("keys", "revoke", "\udcff"), ("usage", "--stream", "\udcff")):
        result = command(*arguments, cwd=tmp_path)
        assert result.returncode == 2
        assert result.stderr == "millstream: an argument has bytes that are no characters\n"


@pytest.mark.parametrize("environment", [{}, {"PYTHONUNBUFFERED": "1"}], ids=["at the end", "at once"])
@pytest.mark.parametrize("arguments", [("--help",), ("keys", "create", "--name", "n"), ("usage",)])
def test_what_nobody_can_write_or_read_is_said_without_a_traceback(
    tmp_path: Path, arguments: tuple[str, ...], environment: dict[str, str]
) -> None:
    assert command("keys", "create", "--name", "n", cwd=tmp_path).returncode == 0

    def into(output: int) -> tuple[int, str]:
        process = subprocess.run(
            [sys.executable, "-m", "millstream", *arguments],
            cwd=tmp_path,
            env={**os.environ, **environment},
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
        os.close(output)
        return process.returncode, process.stderr

    words = "millstream: the output cannot be written: No space left on device\n"
    assert into(os.open("/dev/full", os.O_WRONLY)) == (2, words)
    reader, closed = os.pipe()
    os.close(reader)
    assert into(closed) == (1, "")
