"""The Python client and `millstream chat`, against a real server over a wire that breaks."""

import asyncio
import os
import pty
import random
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from live.browser import Wire
from live.conftest import Serve, Server
from live.test_workers import Provider
from millstream.client import AsyncClient, Frame, Unreachable
from millstream.errors import MillstreamError
from oracle import Handler, Oracle, Request, oracle

WORDS = [f"wörd{i} " for i in range(60)]
MESSAGES = [{"role": "user", "content": "Hello"}]


@asynccontextmanager
async def serving(serve: Serve, provider: Handler) -> AsyncGenerator[tuple[Oracle, Server, Wire]]:
    async with oracle(provider) as upstream:
        context = serve(openai=upstream.base_url)
        server = await asyncio.to_thread(context.__enter__)
        wire = Wire(server.port)
        server.url = await wire.start()
        try:
            yield upstream, server, wire
        finally:
            await wire.stop()
            await asyncio.to_thread(context.__exit__, None, None, None)


async def read(client: AsyncClient, **options: Any) -> list[Frame]:
    async with asyncio.timeout(60), aclosing(client.stream(MESSAGES, **options)) as stream:
        return [frame async for frame in stream]


def asked(upstream: Oracle) -> list[Request]:
    return [request for request in upstream.requests if request.path.endswith("completions")]


async def test_answers_are_whole_over_a_wire_that_breaks(serve: Serve) -> None:
    async with serving(serve, Provider(WORDS, pace=0.03)) as (upstream, server, wire):

        async def shake() -> None:
            while True:
                await asyncio.sleep(random.uniform(0.1, 0.5))
                wire.cut()
                await asyncio.sleep(random.uniform(0, 0.1))
                wire.mend()

        shaking = asyncio.create_task(shake())
        try:
            async with AsyncClient(server.url, server.key, attempts=100) as client:
                answers = await asyncio.gather(*(read(client, model="m") for _ in range(10)))
        finally:
            shaking.cancel()
        for frames in answers:
            assert "".join(frame.delta for frame in frames) == "".join(WORDS)
            assert [frame.position for frame in frames] == [f"1-{i + 1}" for i in range(len(frames))]
            assert frames[-1].finish_reason == "stop"
        assert len(asked(upstream)) == 10


async def test_errors_are_the_servers(serve: Serve) -> None:
    async with serving(serve, Provider()) as (_, server, wire):
        async with AsyncClient(server.url, "ms_live_wrong") as client:
            with pytest.raises(MillstreamError) as caught:
                await read(client)
            assert (caught.value.code, caught.value.status) == ("unauthorized", 401)
        async with AsyncClient(server.url, server.key, attempts=2) as client:
            with pytest.raises(MillstreamError) as caught:
                await read(client, model=" none such")
            assert caught.value.code == "invalid_request"
            with pytest.raises(MillstreamError) as caught:
                await client.receipt("str_none")
            assert caught.value.code == "not_found"
            wire.cut()
            with pytest.raises(Unreachable):
                await read(client)
            with pytest.raises(Unreachable):
                await client.cancel("str_none")


async def test_leaving_before_the_first_frame_stops_the_provider(serve: Serve) -> None:
    arrived = asyncio.Event()

    async def silent(request: Request) -> None:
        if request.path.endswith("/models"):
            return await request.answer(200, {"data": [{"id": "m"}]})
        arrived.set()
        await asyncio.Event().wait()

    async with serving(serve, silent) as (upstream, server, _):
        async with AsyncClient(server.url, server.key) as client:
            reading = asyncio.create_task(read(client))
            async with asyncio.timeout(10):
                await arrived.wait()
                reading.cancel()
                await asked(upstream)[0].gone.wait()


def command(server: Server, *arguments: str) -> tuple[list[str], dict[str, str]]:
    environment = {**os.environ, "MILLSTREAM_URL": server.url, "MILLSTREAM_KEY": server.key}
    return [sys.executable, "-m", "millstream", "chat", *arguments], environment


async def test_the_terminal_gets_the_text_in_a_pipe_and_stops_at_ctrl_c(serve: Serve) -> None:
    provider = Provider(WORDS, pace=0.01)
    async with serving(serve, provider) as (upstream, server, _):
        line, environment = command(server, "Why", "though?")
        run = await asyncio.create_subprocess_exec(
            *line, env=environment, stdin=subprocess.DEVNULL, stdout=-1, stderr=-1
        )
        out, err = await asyncio.wait_for(run.communicate(), 30)
        assert (run.returncode, out.decode()) == (0, "".join(WORDS) + "\n")
        match = re.search(rb"str_[\w-]+", err)
        assert match is not None
        stream_id = match[0].decode()
        assert asked(upstream)[0].json["messages"][0]["content"] == "Why though?"
        line, environment = command(server, "--resume", stream_id)
        run = await asyncio.create_subprocess_exec(
            *line, env=environment, stdin=subprocess.DEVNULL, stdout=-1, stderr=-1
        )
        assert (await asyncio.wait_for(run.communicate(), 30))[0].decode() == "".join(WORDS) + "\n"
        provider.pace = 0.2
        line, environment = command(server, "Long")
        run = await asyncio.create_subprocess_exec(
            *line, env=environment, stdin=subprocess.DEVNULL, stdout=-1, stderr=-1
        )
        assert run.stdout is not None
        await asyncio.wait_for(run.stdout.readuntil(b" "), 30)
        run.send_signal(signal.SIGINT)
        async with asyncio.timeout(10):
            await asked(upstream)[1].gone.wait()
            _, err = await run.communicate()
        assert run.returncode == 0
        assert b"cancelled" in err


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", rb"caf\xe9 \u2192 \u2615"),
        ("cp1252", b"caf\xe9 \\u2192 \\u2615"),
        ("utf-8", "café → ☕".encode()),
    ],
)
async def test_characters_that_the_output_lacks_are_spelt_out(
    serve: Serve, encoding: str, shown: bytes
) -> None:
    async with serving(serve, Provider(["café ", "→ ", "☕"])) as (upstream, server, _):
        line, environment = command(server, "Why")
        run = await asyncio.create_subprocess_exec(
            *line, env=environment | {"PYTHONIOENCODING": encoding}, stdin=-1, stdout=-1, stderr=-1
        )
        out, err = await asyncio.wait_for(run.communicate(b"caf\xe9"), 30)
        assert (run.returncode, out) == (0, shown + b"\n")
        assert b"tokens" in err
        read = "café" if encoding == "cp1252" else "caf\\xe9"
        assert asked(upstream)[0].json["messages"][0]["content"] == f"Why\n\n{read}"


async def test_a_conversation_on_a_terminal(serve: Serve) -> None:
    async with serving(serve, Provider(["**bold** ", "word"])) as (upstream, server, _):
        line, environment = command(server)
        master, slave = pty.openpty()
        run = await asyncio.create_subprocess_exec(
            *line, env=environment | {"TERM": "xterm"}, stdin=slave, stdout=slave, stderr=slave
        )
        os.close(slave)
        try:
            for i, question in enumerate((b"one\n", b"two\n")):
                os.write(master, question)
                async with asyncio.timeout(30):
                    while len(asked(upstream)) <= i:
                        upstream.arrived.clear()
                        await upstream.arrived.wait()
                    shown = b""
                    while b"tokens" not in shown:
                        shown += await asyncio.to_thread(os.read, master, 65_536)
                assert b"bold" in shown
                assert b"**" not in shown
            os.write(master, b"\x04")
            assert await asyncio.wait_for(run.wait(), 20) == 0
        finally:
            os.close(master)
        assert [m["role"] for m in asked(upstream)[1].json["messages"]] == ["user", "assistant", "user"]


async def test_a_missing_key_or_server_is_one_line(tmp_path: Path) -> None:
    cases: list[tuple[dict[str, str], str]] = [
        ({}, "MILLSTREAM_KEY"),
        ({"MILLSTREAM_KEY": "x"}, "cannot be reached"),
        ({"MILLSTREAM_KEY": "x", "MILLSTREAM_URL": "localhost:8000"}, "'localhost:8000' is no address"),
    ]
    for more, said in cases:
        run = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "millstream", "chat", "Hi"],
            env={**os.environ, "MILLSTREAM_URL": "http://127.0.0.1:9", **more},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=60,
        )
        assert run.returncode == 2
        assert said in run.stderr
        assert run.stderr.count("\n") == 1


async def test_a_server_that_says_nothing_is_given_up_before_anything_is_asked() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        async with AsyncClient(f"http://127.0.0.1:{silent.getsockname()[1]}", "x") as client:
            async with asyncio.timeout(2.5):
                with pytest.raises(Unreachable):
                    await client.reach()
