"""What `millstream serve` writes to its standard error."""

import asyncio
import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from services import wait_for

from .conftest import Ask, Serve, Server
from .test_serve import command

DEMO = '{"demo": {"type": "scripted"}}'


def ask(server: Server, path: str = "/v1/chat", model: str = "demo/scripted/3x0", **headers: str) -> int:
    body = {"model": model, "messages": [{"role": "user", "content": "canary"}]}
    request = urllib.request.Request(
        f"{server.url}{path}",
        json.dumps(body).encode(),
        {"Authorization": f"Bearer {server.key}", "Content-Type": "application/json", **headers},
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            answer.read()
            return int(answer.status)
    except urllib.error.HTTPError as refused:
        refused.close()
        return refused.code


def records(server: Server) -> list[dict[str, Any]]:
    return [json.loads(line) for line in server.printed.splitlines() if line.startswith("{")]


def test_a_stream_is_one_line_with_its_time(serve: Serve) -> None:
    with serve(MILLSTREAM_PROVIDERS=DEMO) as server:
        ask(server)
        pattern = (
            r"^\d{4}-\d\d-\d\dT[\d:.]{12}Z INFO    millstream\.stream: str_\S+ status=completed reason=stop "
            r"model=demo/scripted/3x0 provider=demo key_id=\S+ prompt_tokens=0 completion_tokens=3 "
        )
        (line,) = wait_for(lambda: re.findall(f"{pattern}.*$", server.printed, re.MULTILINE))
        assert re.search(
            r" usage_source=provider_final first_event_seconds=[\d.]+ seconds=[\d.]+ request_id=req_\S+$",
            line,
        )
        assert "canary" not in server.printed
        assert "POST" not in server.printed


def test_as_json_it_has_fields_and_requests_are_lines_where_they_are_asked_for(serve: Serve) -> None:
    more = {"MILLSTREAM_LOG_FORMAT": "json", "MILLSTREAM_ACCESS_LOG": "true"}
    with serve(MILLSTREAM_PROVIDERS=DEMO, **more) as server:
        ask(server)
        wait_for(lambda: [r for r in records(server) if r["logger"] == "millstream.stream"])
        wait_for(lambda: [r for r in records(server) if "POST /v1/chat" in r["message"]])
        (stream,) = [r for r in records(server) if r["logger"] == "millstream.stream"]
        assert (stream["level"], stream["status"], stream["completion_tokens"]) == ("info", "completed", 3)
        assert stream["stream_id"].startswith("str_")


@pytest.mark.parametrize("level", ["warning", "error"])
def test_less_can_be_had(serve: Serve, level: str) -> None:
    with serve(MILLSTREAM_PROVIDERS=DEMO, MILLSTREAM_LOG_LEVEL=level) as server:
        ask(server)
        server.terminate()
        assert "millstream.stream" not in server.printed


@pytest.mark.parametrize("path", ["/v1/chat", "/v1/chat/stream"])
def test_lines_of_a_request_have_its_id_and_those_of_a_stream_its_own(serve: Serve, path: str) -> None:
    more = {"MILLSTREAM_LOG_FORMAT": "json", "MILLSTREAM_ACCESS_LOG": "true"}
    with serve(MILLSTREAM_PROVIDERS=DEMO, **more) as server:
        assert ask(server, path, **{"X-Request-Id": "mine-1"}) == 200
        wait_for(lambda: [r for r in records(server) if r["logger"] == "millstream.stream"])
        lines = [r for r in records(server) if r.get("request_id") == "mine-1"]
        assert sorted(line["logger"] for line in lines) == ["millstream.stream", "uvicorn.access"]
        assert len({line["stream_id"] for line in lines}) == 1
        assert ask(server, path, "none") == 404
        assert ask(server, "/nowhere") == 404
        wait_for(lambda: len([r for r in records(server) if r.get("status") == 404]) == 2)
        for line in records(server):
            if line.get("status") == 404:
                assert (line["method"], line["path"]) in [("POST", path), ("POST", "/nowhere")]
                assert re.fullmatch(r"req_\S{16}", line["request_id"])
                assert "stream_id" not in line
            if "path" in line and line["path"] in ("/readyz", "/healthz"):
                assert line["request_id"].startswith("req_")


async def test_what_is_refused_before_it_is_a_request_has_a_line_too(serve: Serve, ask: Ask) -> None:
    context = serve(MILLSTREAM_PROVIDERS=DEMO, MILLSTREAM_ACCESS_LOG="true")
    server = await asyncio.to_thread(context.__enter__)
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"nonsense\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        identity = re.search(rb'"request_id":"(req_[^"]+)"', answer)
        assert identity is not None
        line = f'"- - HTTP/1.1" 400 request_id={identity[1].decode()}\n'
        await asyncio.to_thread(wait_for, lambda: line in server.printed)
    finally:
        await asyncio.to_thread(context.__exit__, None, None, None)


def test_what_a_provider_did_is_said_with_both_ids(serve: Serve) -> None:
    """A line of the provider's own, written while its stream runs."""
    away = '{"x": {"base_url": "http://127.0.0.1:1", "models": ["m"]}}'
    with serve(MILLSTREAM_PROVIDERS=away, MILLSTREAM_LOG_FORMAT="json") as server:
        assert ask(server, model="m", **{"X-Request-Id": "mine-2"}) == 502
        (line,) = wait_for(lambda: [r for r in records(server) if r["logger"] == "millstream.stream"])
        assert (line["request_id"], line["status"]) == ("mine-2", "failed")


@pytest.mark.parametrize(
    "arguments", [("serve",), ("keys", "list"), ("keys", "create", "--name", "n"), ("usage",)]
)
def test_a_damaged_database_is_one_line(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    (tmp_path / "millstream-data").mkdir()
    (tmp_path / "millstream-data" / "millstream.db").write_bytes(b"no database at all " * 100)
    result = command(*arguments, cwd=tmp_path, MILLSTREAM_PORT="0")
    assert result.returncode == 2
    assert result.stderr.endswith("millstream.db: its file is damaged (DatabaseError)\n")
    assert result.stderr.count("\n") == 1


def test_a_reader_of_the_log_that_stands_still_stops_nobody(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "millstream", "serve", "--port", "0"]
    more = {
        "MILLSTREAM_PROVIDERS": DEMO,
        "MILLSTREAM_ACCESS_LOG": "true",
        "MILLSTREAM_MAX_LAG_SECONDS": "3600",
    }
    output = tmp_path / "output"
    with output.open("wb") as out:
        process = subprocess.Popen(
            command, cwd=tmp_path, env={**os.environ, **more}, stdout=out, stderr=subprocess.PIPE
        )
    assert process.stderr is not None
    try:
        port = wait_for(lambda: re.search(r"http://[\d.]+:(\d+)", output.read_text()), process)[1]
        for _ in range(60):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/{'x' * 30_000}", timeout=5)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as answer:
            assert answer.status == 200
        process.terminate()
        assert process.wait(15) == 0
    finally:
        process.kill()
        written = process.communicate()[1]
    assert 10 < written.count(b"xxx HTTP/1.1") < 60
