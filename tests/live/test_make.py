"""``make run`` on a machine without Node, in a copy of the repository where everything else is installed."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from zipfile import ZipFile

import pytest

from services import wait_for

ROOT = Path(__file__).parents[2]
NO_NODE = "building the chat page (make web) needs Node 20.19 or newer with npm, and there is none here"
TOOLS = ("sh", "make", "awk", "find", "touch", "env", "dirname")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The repository, with nothing on the path but what make needs."""
    copy, programs = tmp_path / "copy", tmp_path / "programs"
    copy.mkdir()
    for name in ("Makefile", "pyproject.toml", "uv.lock"):
        shutil.copy2(ROOT / name, copy)
    shutil.copytree(ROOT / "tools", copy / "tools")
    shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("pages", "__pycache__"))
    (copy / "web").mkdir()
    (copy / "examples/nextjs/app").mkdir(parents=True)
    (copy / "web" / "package-lock.json").touch()
    bin_folder = copy / ".venv" / "bin"
    bin_folder.mkdir(parents=True)
    for name, words in (("python", ""), ("millstream", "-m millstream"), ("uv", "-m none")):
        script = bin_folder / name
        script.write_text(f'#!/bin/sh\nexec {sys.executable} {words} "$@"\n', encoding="utf-8")
        script.chmod(0o755)
    (copy / ".venv" / "run").touch()
    programs.mkdir()
    for name in TOOLS:
        found = shutil.which(name)
        assert found is not None
        (programs / name).symlink_to(found)
    return copy


def environment(copy: Path, **more: str) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MILLSTREAM_", "OPENAI_", "MAKE")) and name != "ARGS"
    }
    programs = str(copy.parent / "programs")
    demo = '{"demo": {"type": "scripted"}}'
    return {**kept, "PATH": programs, "PYTHONPATH": str(copy / "src"), "MILLSTREAM_PROVIDERS": demo, **more}


@contextmanager
def make_run(copy: Path, **more: str) -> Generator[tuple[subprocess.Popen[bytes], Path]]:
    """It runs in a session of its own, as in a terminal of its own, and its output goes to a file."""
    output = copy / "output"
    with output.open("w") as file:
        process = subprocess.Popen(
            ["make", "run"],
            cwd=copy,
            env=environment(copy, MILLSTREAM_PORT="0", **more),
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_for(lambda: "stop    Ctrl-C" in output.read_text(encoding="utf-8"), process)
        yield process, output
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wheel(copy: Path, *names: str) -> None:
    (copy / "dist").mkdir()
    with ZipFile(copy / "dist" / "millstream-0.1.0-py3-none-any.whl", "w") as archive:
        for name in names:
            archive.writestr(f"millstream/server/pages/{name}", name)


def test_five_lines_say_all_and_ctrl_c_ends_it_without_a_word(copy: Path) -> None:
    with make_run(copy) as (process, output):
        (copy / "src/millstream/server/pages").mkdir()
        said, *banner = output.read_text(encoding="utf-8").splitlines()
        assert said == f"{NO_NODE}; the server runs without the page"
        assert [line[:10].strip() for line in banner] == ["Millstream", "key", "chat", "models", "stop"]
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(15) in (0, -signal.SIGINT)  # of make itself
        assert output.read_text(encoding="utf-8").splitlines() == [said, *banner]


def test_the_page_comes_from_a_wheel(copy: Path) -> None:
    wheel(copy, "index.html", "assets/index.js")
    with make_run(copy) as (_, output):
        said, *banner = output.read_text(encoding="utf-8").splitlines()
        assert said == f"{NO_NODE}; the server has the page of dist/millstream-0.1.0-py3-none-any.whl"
        assert "/#key=ms_live_" in banner[2]
    assert (copy / "src/millstream/server/pages/assets/index.js").read_text(encoding="utf-8")
    with make_run(copy) as (_, output):
        assert f"{NO_NODE}; the server has the page that is built already" in output.read_text("utf-8")


def test_a_wheel_without_a_page_is_none(copy: Path) -> None:
    wheel(copy, "assets/index.js")
    with make_run(copy) as (_, output):
        assert f"{NO_NODE}; the server runs without the page" in output.read_text(encoding="utf-8")


def test_a_node_that_is_too_old_is_said(copy: Path) -> None:
    for name in ("node", "npm"):
        script = copy.parent / "programs" / name
        script.write_text('#!/bin/sh\n[ "$1" = --version ] && echo v18.20.0\n', encoding="utf-8")
        script.chmod(0o755)
    with make_run(copy) as (_, output):
        assert "needs Node 20.19, 22.12 or newer, and this one is v18.20.0; the server runs without" in (
            output.read_text(encoding="utf-8")
        )


def test_what_needs_node_says_so_and_fails(copy: Path) -> None:
    result = subprocess.run(
        ["make", "web"], cwd=copy, env=environment(copy), capture_output=True, text=True, timeout=30
    )
    assert result.returncode == 2
    assert result.stderr.startswith(f"{NO_NODE}\n")
    assert "npm: not found" not in result.stderr


def test_a_port_in_use_names_the_variable_that_make_takes(copy: Path) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        result = subprocess.run(
            ["make", "run"],
            cwd=copy,
            env=environment(copy, MILLSTREAM_PORT=str(port)),
            capture_output=True,
            text=True,
            timeout=30,
        )
    assert result.returncode == 2
    assert f"port {port} is in use; take another one with MILLSTREAM_PORT=" in result.stderr
    assert "which `make run` takes too" in result.stderr
