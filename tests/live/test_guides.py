"""The documents' commands in a shell, in a clean folder: what they start runs, and what they ask is answered."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from guides import ROOT, Block, blocks
from live.conftest import Serve, answers
from live.site import Model
from millstream.version import __version__
from oracle import oracle
from services import wait_for

README = ROOT / "README.md"


def block(page: Path | str, words: str) -> Block:
    """The one shell block of a page that has ``words`` in it."""
    (found,) = [block for block in blocks(page, "sh") if words in block.text]
    return found


@contextmanager
def shell(text: str, folder: Path, **environment: str) -> Generator[subprocess.Popen[bytes]]:
    """Runs commands where ``millstream`` is installed, with its output in the file ``output``."""
    programs = folder / "bin"
    programs.mkdir(parents=True)
    (programs / "millstream").write_text(
        f'#!/bin/sh\nexec "{sys.executable}" -m millstream "$@"\n', encoding="utf-8"
    )
    (programs / "millstream").chmod(0o755)
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", **environment}
    with (folder / "output").open("w") as output:
        process = subprocess.Popen(
            ["bash", "-euc", text],
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(20)


@pytest.mark.parametrize(
    ("page", "words", "ready"),
    [("many-workers", "--workers", "/readyz"), ("behind-nginx", "ROOT_PATH", "/ai/readyz")],
)
def test_a_server_starts_as_the_guide_starts_it(
    tmp_path: Path, redis_url: str, page: str, words: str, ready: str
) -> None:
    text = block(page, words).text.replace("redis://localhost:6379/0", redis_url)
    demo = '{"demo": {"type": "scripted"}}'
    with shell(text, tmp_path, MILLSTREAM_PORT="0", MILLSTREAM_PROVIDERS=demo) as process:
        output = tmp_path / "output"
        url = wait_for(lambda: re.search(r"http://[\d.]+:\d+", output.read_text(encoding="utf-8")), process)[
            0
        ]
        wait_for(lambda: answers(f"{url}{ready}"), process)
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)
    assert "Traceback" not in output.read_text(encoding="utf-8")


async def test_the_readmes_requests_are_answered(serve: Serve, tmp_path: Path) -> None:
    model = Model()
    words = [f"word{i} " for i in range(60)]
    for word in words:
        model.words.put_nowait(word)
    model.words.put_nowait(None)

    async def run(text: str, **environment: str) -> str:
        with shell(text, tmp_path / str(len(environment)), **environment) as process:
            assert await asyncio.to_thread(process.wait, 30) == 0
        return (tmp_path / str(len(environment)) / "output").read_text(encoding="utf-8")

    async with oracle(model) as upstream:
        context = serve(openai=upstream.base_url)
        server = await asyncio.to_thread(context.__enter__)
        try:
            text = block(README, "export KEY").text
            assert "ms_live_…" in text
            text = text.replace("ms_live_…", server.key).replace("http://127.0.0.1:8000", server.url)
            shown = await run(text)
            assert shown.count('"delta":"word') == len(words)
            assert "data: [DONE]" in shown
            (stream_id,) = re.findall(r'"stream_id":"([\w-]+)"', shown)
            shown = await run(block(README, "/events").text, URL=server.url, ID=stream_id, KEY=server.key)
            assert re.findall(r"^id: (\S+)", shown, re.MULTILINE)[0] == "1-43"
            assert '"status":"completed"' in shown  # the receipt that a cancel answers with
        finally:
            await asyncio.to_thread(context.__exit__, None, None, None)


def test_the_wheel_installs_as_the_guide_says(tmp_path: Path) -> None:
    """The packages that it needs are those of the tests: nothing is fetched."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    others = tmp_path / "others"
    others.mkdir()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if "millstream" not in path.name and path.suffix != ".pth":
            (others / path.name).symlink_to(path)
    text = block("install", "-m venv").text + block("install", "[redis,postgres]").text
    text += (
        ".venv/bin/python -c 'import millstream.server.routes.pages as p; print(p.__file__, p.is_built())'"
    )
    with shell(text, tmp_path, PYTHONPATH=str(others), PIP_NO_INDEX="1") as process:
        process.wait(100)
    output = (tmp_path / "output").read_text(encoding="utf-8")
    assert process.returncode == 0, output
    assert f"\n{__version__}\n" in output
    assert output.endswith("True\n")
    assert f"{tmp_path}/.venv/lib" in output
