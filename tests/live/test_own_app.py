"""How an application of one's own starts and stops, under the servers that one runs it with."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from live.conftest import Ask, answers
from live.test_serve import rows
from services import wait_for

MAIN = """
from fastapi import FastAPI
from millstream import Millstream, Principal, Settings, get_api_key

millstream = Millstream(Settings())
app = FastAPI(lifespan=millstream.lifespan)
app.include_router(millstream.router)
app.dependency_overrides[get_api_key] = lambda: Principal("ann", frozenset({"chat"}))
"""
UVICORN = ("uvicorn", "main:app", "--port", "0")
GUNICORN_WORKER = ("-k", "uvicorn_worker.UvicornWorker", "--no-control-socket")
GUNICORN = ("gunicorn", "main:app", "--bind", "127.0.0.1:0", *GUNICORN_WORKER)


class Application(NamedTuple):
    process: subprocess.Popen[bytes]
    output: Path

    @property
    def printed(self) -> str:
        return self.output.read_text(encoding="utf-8")

    @property
    def port(self) -> int:
        return int(re.findall(r"http://127\.0\.0\.1:(\d+)", self.printed)[0])


@contextmanager
def launched(folder: Path, command: Sequence[str], **environment: str) -> Generator[Application]:
    """The application, run by the server of ``command``. What is left of it in the end is killed."""
    folder.mkdir()
    (folder / "main.py").write_text(MAIN, encoding="utf-8")
    output = folder / "output"
    with output.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=folder,
            env={**os.environ, **environment},
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield Application(process, output)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # gunicorn's workers outlive it else
        process.wait()


@contextmanager
def application(folder: Path, command: Sequence[str], **environment: str) -> Generator[Application]:
    """The application, as soon as it answers."""
    given = {"MILLSTREAM_PROVIDERS": '{"demo": {"type": "scripted"}}', "MILLSTREAM_MAX_LAG_SECONDS": "3600"}
    with launched(folder, command, **given, **environment) as running:
        process = running.process
        wait_for(lambda: re.search(r"http://127\.0\.0\.1:\d+", running.printed), process)
        wait_for(lambda: answers(f"http://127.0.0.1:{running.port}/v1/models"), process)
        yield running


async def stopped(
    running: Application, ask: Ask, path: str = "/v1/chat/stream", words: str = "3000x20"
) -> bytes:
    """Stops the server while a client reads an answer; what this client still read, to the end."""
    body = {"model": f"demo/scripted/{words}", "messages": [{"role": "user", "content": "Hello"}]}
    asked = body if path == "/v1/chat/stream" else {**body, "stream": True}
    reader, writer = await ask(running.port, "POST", path, json.dumps(asked).encode())
    await asyncio.wait_for(reader.readuntil(b"after"), 20)
    running.process.send_signal(signal.SIGTERM)
    rest = await asyncio.wait_for(reader.read(), 30)
    writer.close()
    await asyncio.to_thread(running.process.wait, 20)
    return rest


@pytest.mark.parametrize("command", [UVICORN, GUNICORN], ids=["uvicorn", "gunicorn"])
async def test_answers_get_the_drain_time_and_then_an_end(
    tmp_path: Path, ask: Ask, command: Sequence[str]
) -> None:
    with application(tmp_path / "server", command, MILLSTREAM_DRAIN_SECONDS="0.5") as running:
        rest = await stopped(running, ask)
        assert b'"finish_reason":"cancelled"' in rest
        assert rest.endswith(b"0\r\n\r\n")
        assert "Traceback" not in running.printed
    assert [row["status"] for row in rows(tmp_path)] == ["cancelled"]


async def test_an_answer_that_ends_within_the_drain_time_is_whole(tmp_path: Path, ask: Ask) -> None:
    with application(tmp_path / "server", UVICORN, MILLSTREAM_DRAIN_SECONDS="30") as running:
        rest = await stopped(running, ask, words="40x20")
        assert b'"finish_reason":"stop"' in rest
        assert "Traceback" not in running.printed
    assert [row["status"] for row in rows(tmp_path)] == ["completed"]


@pytest.mark.parametrize(
    ("path", "last"),
    [("/v1/chat/stream", b"retry: "), ("/v1/chat/completions", b"the connection ends before its answer")],
)
async def test_a_server_that_waits_for_less_ends_responses_politely(
    tmp_path: Path, ask: Ask, path: str, last: bytes
) -> None:
    command = (*UVICORN, "--timeout-graceful-shutdown", "1")
    with application(tmp_path / "server", command, MILLSTREAM_DRAIN_SECONDS="60") as running:
        rest = await stopped(running, ask, path)
        assert last in rest
        assert rest.endswith(b"0\r\n\r\n")
        assert "timeout graceful shutdown exceeded" in running.printed
        assert "Traceback" not in running.printed
    assert [row["status"] for row in rows(tmp_path)] == ["cancelled"]


async def test_whoever_waits_for_a_whole_answer_is_told(tmp_path: Path, ask: Ask) -> None:
    command = (*UVICORN, "--timeout-graceful-shutdown", "1")
    body = {"model": "demo/scripted/3000x20", "messages": [{"role": "user", "content": "Hello"}]}
    with application(tmp_path / "server", command, MILLSTREAM_DRAIN_SECONDS="60") as running:
        reader, writer = await ask(running.port, "POST", "/v1/chat", json.dumps(body).encode())
        await asyncio.to_thread(wait_for, lambda: rows(tmp_path))
        running.process.send_signal(signal.SIGTERM)
        rest = await asyncio.wait_for(reader.read(), 30)
        writer.close()
        await asyncio.to_thread(running.process.wait, 20)
        assert rest.startswith(b"HTTP/1.1 503 ")
        assert b'"code":"draining"' in rest
        assert "Traceback" not in running.printed


@pytest.mark.parametrize("command", [UVICORN, GUNICORN], ids=["uvicorn", "gunicorn"])
@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"MILLSTREAM_REQUIRE_PROVIDER": "true"},
            r"Millstream cannot start: no provider is set: set one of OPENAI_API_KEY, .*",
        ),
        (
            {"MILLSTREAM_DATABASE_URL": "postgresql://nobody@127.0.0.1:9/x"},
            r"Millstream cannot start: cannot open the database.* refuse.*",
        ),
    ],
    ids=["provider", "database"],
)
def test_what_the_operator_can_mend_is_one_line(
    tmp_path: Path, command: Sequence[str], given: dict[str, str], said: str
) -> None:
    with launched(tmp_path / "server", command, **given) as running:
        assert running.process.wait(60) == 3
        assert re.search(rf"\b{said}$", running.printed, re.MULTILINE)
        assert "Traceback" not in running.printed
