"""Ctrl-C: a terminal sends SIGINT to every process of its foreground, the model's among them."""

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from live.conftest import Ask, Serve
from live.test_serve import rows
from millstream import cli
from millstream.__main__ import main
from oracle import Request, oracle
from services import wait_for

STORY = {"messages": [{"role": "user", "content": "Tell me a long story about a river."}]}


async def slow(request: Request) -> None:
    if request.path.endswith("/models"):
        return await request.answer(200, {"data": [{"id": "slow"}]})
    await request.head()
    for number in range(3000):
        await request.say(f"word{number} ")
        await asyncio.sleep(0.05)
    await request.finish()


async def test_the_local_model_finishes_its_answer_within_the_drain(serve: Serve, ask: Ask) -> None:
    context = serve(MILLSTREAM_DRAIN_SECONDS="60")
    server = await asyncio.to_thread(context.__enter__)
    try:
        body = json.dumps(STORY | {"max_tokens": 60, "temperature": 0}).encode()
        reader, writer = await ask(
            server.port, "POST", "/v1/chat/stream", body, Authorization=f"Bearer {server.key}"
        )
        await asyncio.wait_for(reader.readuntil(b'"delta":"'), 60)
        os.killpg(server.pid, signal.SIGINT)
        rest = await asyncio.wait_for(reader.read(), 60)
        writer.close()
        assert await asyncio.to_thread(server.process.wait, 15) == 0
    finally:
        await asyncio.to_thread(context.__exit__, None, None, None)
    assert b'"finish_reason":"length"' in rest
    assert b'"error"' not in rest
    assert "waiting for 1 stream, at most 60 s; press Ctrl-C again to hurry" in server.printed


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_pressed_again_it_hurries(
    serve: Serve, ask: Ask, tmp_path: Path, workers: str, redis_url: str
) -> None:
    shared = {} if workers == "1" else {"MILLSTREAM_JOURNAL_URL": redis_url}
    async with oracle(slow) as provider:
        context = serve(
            "--workers", workers, openai=provider.base_url, MILLSTREAM_DRAIN_SECONDS="60", **shared
        )
        server = await asyncio.to_thread(context.__enter__)
        try:
            body = json.dumps(STORY).encode()
            reader, writer = await ask(
                server.port, "POST", "/v1/chat/stream", body, Authorization=f"Bearer {server.key}"
            )
            await asyncio.wait_for(reader.readuntil(b"word5"), 20)
            os.killpg(server.pid, signal.SIGINT)
            await asyncio.to_thread(wait_for, lambda: "waiting for 1 stream" in server.printed)
            pressed = time.monotonic()
            os.killpg(server.pid, signal.SIGINT)
            rest = await asyncio.wait_for(reader.read(), 20)
            writer.close()
            assert await asyncio.to_thread(server.process.wait, 10) == 0
            assert time.monotonic() - pressed < 5
        finally:
            await asyncio.to_thread(context.__exit__, None, None, None)
    assert b'"finish_reason":"cancelled"' in rest
    assert [row["status"] for row in rows(tmp_path)] == ["cancelled"]


def test_a_server_without_streams_says_nothing_of_waiting(serve: Serve) -> None:
    with serve(MILLSTREAM_PROVIDERS='{"demo": {"type": "scripted"}}') as server:
        os.killpg(server.pid, signal.SIGINT)
        assert server.process.wait(10) == 0
        assert "waiting" not in server.printed


async def test_before_it_serves_it_ends_at_once(tmp_path: Path) -> None:
    """Also while it waits for a provider to say which models it has."""
    asked = asyncio.Event()

    async def silent(_request: Request) -> None:
        asked.set()
        await asyncio.Event().wait()

    async with oracle(silent) as provider:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "millstream", "serve", "--port", "0", "--temporary-key"),
            cwd=tmp_path,
            env={**os.environ, "OPENAI_BASE_URL": provider.base_url, "OPENAI_API_KEY": "sk-test"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        await asyncio.wait_for(asked.wait(), 20)
        process.send_signal(signal.SIGINT)
        printed, _ = await asyncio.wait_for(process.communicate(), 3)
    assert (process.returncode, printed) == (0, b"")


def test_no_command_ends_with_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", interrupted)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 130
