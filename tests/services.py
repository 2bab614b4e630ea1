"""The services that tests need, each a process of its own that is stopped by its pid."""

import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path


def wait_for(condition, process=None, seconds=60):
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        if found := condition():
            return found
        if process is not None and process.poll() is not None:
            raise AssertionError(f"the process ended with {process.returncode}")
        time.sleep(0.02)
    raise AssertionError("it did not happen in time")


def needed(program):
    """The path of a program that ``make test`` installs. Its absence fails the test."""
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")
    assert path, f"{program} is not installed; run: make test-deps"
    return path


@contextmanager
def redis_server(socket: Path, *arguments):
    """A Redis that forgets everything, behind a Unix socket."""
    command = [needed("redis-server"), "--port", "0", "--unixsocket", str(socket), "--save", ""]
    process = subprocess.Popen([*command, *arguments], stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: socket.exists() and answers(socket), process)
        yield process
    finally:
        process.terminate()
        process.wait(10)


def answers(socket):
    from redis import Redis
    from redis.exceptions import RedisError

    try:
        with Redis(unix_socket_path=str(socket)) as client:
            return client.ping()
    except RedisError:
        return False
