import os
import shutil
from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from redis import Redis
from sqlalchemy.engine import make_url

from application import Run, Running
from millstream.database import Database
from millstream.providers import Provider
from millstream.server.app import Millstream, create_app
from millstream.settings import ProviderSettings, Settings
from oracle import Oracle
from services import REDIS, RedisServers, on_server, postgres_server, redis_programs, redis_server

hypothesis.settings.register_profile("shared", deadline=None)  # a machine may have other work
hypothesis.settings.load_profile("shared")

# No test sees the keys or settings of the machine it runs on.
for name in list(os.environ):
    if name.startswith("MILLSTREAM_") or name.endswith(("_API_KEY", "_BASE_URL", "_ENDPOINT")):
        del os.environ[name]
os.environ["MILLSTREAM_REQUIRE_PROVIDER"] = "false"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def redis_servers(tmp_path_factory: pytest.TempPathFactory) -> Generator[RedisServers]:
    """``redis_servers(version)``: the URL of an empty Redis or Valkey."""
    urls: dict[str, str] = {}
    with ExitStack() as stack:

        def empty(version: str = REDIS) -> str:
            if version not in urls:
                socket = tmp_path_factory.mktemp("redis") / "redis.sock"
                stack.enter_context(redis_server(socket, program=redis_programs()[version]))
                urls[version] = f"unix://{socket}"
            with Redis.from_url(urls[version]) as client:
                client.flushall()
            return urls[version]

        yield empty


@pytest.fixture
def redis_url(redis_servers: RedisServers) -> str:
    return redis_servers()


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite database with its tables, to be copied: making them takes a tenth of a second."""
    path = tmp_path_factory.mktemp("migrated") / "millstream.db"
    db = Database(f"sqlite:///{path}")
    db.migrate()
    db.close()
    return path


@pytest.fixture
def run(tmp_path: Path, migrated: Path) -> Run:
    """``async with run(providers={…}) as running``: the whole application without a socket."""

    @asynccontextmanager
    async def start(
        providers: Mapping[str, Provider] | None = None, openai: Oracle | None = None, **settings: Any
    ) -> AsyncGenerator[Running]:
        if openai is not None:
            settings["providers"] = {"oracle": ProviderSettings(base_url=openai.base_url, models=("m",))}
        # Tests share their machine with others: that it is late is not what they are about.
        values = {"data_dir": tmp_path / "data", "max_lag_seconds": 3600, **settings}
        checked = Settings(**values)
        if checked.database_url is None:
            _copy(migrated, checked.data_dir / migrated.name)
        millstream = Millstream(checked, providers=providers)
        app = create_app(millstream)
        async with millstream.lifespan(app):
            running = Running(millstream, app)
            key, running.key = await millstream.keys.create("test", ["chat"])
            running.key_id = key.id
            _, running.admin = await millstream.keys.create("admin", ["chat", "usage", "admin"])
            yield running
            # Nothing of a request may outlive it: only the application's own tasks are left.
            await running.idle()

    return start


def _copy(migrated: Path, path: Path) -> None:
    if not path.exists():
        path.parent.mkdir(0o700, parents=True, exist_ok=True)
        shutil.copyfile(migrated, path)
        path.chmod(0o600)


@pytest.fixture(scope="session")
def postgres() -> Generator[str]:
    with postgres_server() as server:
        # Its machine does not crash, and nothing waits for a disk.
        on_server(server.url, "ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()")
        yield server.url


@pytest.fixture(scope="session")
def migrated_postgres(postgres: str) -> str:
    """The name of a database on ``postgres`` with its tables, to be copied."""
    on_server(postgres, "CREATE DATABASE migrated")
    db = Database(make_url(postgres).set(database="migrated").render_as_string(hide_password=False))
    db.migrate()
    db.close()
    return "migrated"


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of a database of every kind; without tables, but for whoever asks for ``db``."""
    with_tables = "db" in request.fixturenames
    if request.param == "sqlite":
        path = tmp_path / "folder" / "x.db"
        if with_tables:
            _copy(request.getfixturevalue("migrated"), path)
        return f"sqlite:///{path}"
    url: str = request.getfixturevalue("postgres")
    template = request.getfixturevalue("migrated_postgres") if with_tables else "template0"
    on_server(
        url, "DROP DATABASE IF EXISTS tested WITH (FORCE)", f"CREATE DATABASE tested TEMPLATE {template}"
    )
    return make_url(url).set(database="tested").render_as_string(hide_password=False)


@pytest.fixture
def db(database_url: str) -> Generator[Database]:
    db = Database(database_url)
    db.migrate()
    yield db
    db.close()
