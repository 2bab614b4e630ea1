"""Real processes on free ports, each stopped by its pid."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

import pytest

from live.site import page, site  # noqa: F401 - fixtures
from services import wait_for


class Server:
    """A running ``millstream serve``."""

    def __init__(self, process: subprocess.Popen[bytes], output: Path, url: str) -> None:
        self.process, self.output, self.url = process, output, url
        self.pid = process.pid

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def printed(self) -> str:
        return self.output.read_text(encoding="utf-8")

    @property
    def key(self) -> str:
        match = re.search(r"ms_live_\w+", self.printed)
        assert match is not None
        return match[0]

    def terminate(self, seconds: float = 15) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)


MILLSTREAM = ("-m", "millstream")


def running(
    folder: Path, *arguments: str, program: Sequence[str] = MILLSTREAM, **environment: str
) -> AbstractContextManager[Server]:
    """Like ``started``, and it shows its first key, as it would on a terminal."""
    return started(folder, "--show-key", *arguments, program=program, **environment)


@contextmanager
def started(
    folder: Path, *arguments: str, program: Sequence[str] = MILLSTREAM, **environment: str
) -> Generator[Server]:
    """Starts a server as its user would, with its output in a file, and waits until it is ready. ``program``
    is what Python runs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    output = folder / f"output-{time.monotonic_ns()}"
    command = [sys.executable, *program, "serve", "--port", "0", *arguments]
    # Tests share their machine with others: that it is late is not what they are about.
    environment = {"MILLSTREAM_MAX_LAG_SECONDS": "3600", **environment}
    with output.open("wb") as out:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **environment},
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a signal to all its processes, as a terminal sends it, reaches no others
        )
    try:
        url = wait_for(lambda: re.search(r"http://[\d.]+:\d+", output.read_text(encoding="utf-8")), process)[
            0
        ]
        wait_for(lambda: answers(f"{url}/readyz"), process)
        yield Server(process, output, url)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


class Serve(Protocol):
    """The fixture ``serve``: starts a server, before the model at ``openai`` where it is given."""

    def __call__(
        self, *arguments: str, openai: str | None = None, **environment: str
    ) -> AbstractContextManager[Server]: ...


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    def start(
        *arguments: str, openai: str | None = None, **environment: str
    ) -> AbstractContextManager[Server]:
        if openai is not None:
            environment |= {"OPENAI_BASE_URL": openai, "OPENAI_API_KEY": "sk-test"}
        return running(tmp_path / "server", *arguments, **environment)

    return start


class Ask(Protocol):
    """The fixture ``ask``."""

    async def __call__(
        self,
        port: int,
        method: str,
        path: str,
        body: bytes = b"",
        host: str = "127.0.0.1",
        **headers: str,
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]: ...


async def request(
    port: int, method: str, path: str, body: bytes = b"", host: str = "127.0.0.1", **headers: str
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Sends a request; the reader of its answer and the writer, which closes the connection."""
    reader, writer = await asyncio.open_connection(host, port)
    lines = [f"{method} {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
    await writer.drain()
    return reader, writer


@pytest.fixture
def ask() -> Ask:
    return request
