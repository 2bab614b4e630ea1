import os
from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import sqlalchemy as sa
from redis import Redis

from application import Run, Running
from millstream import schema
from millstream.database import Database
from millstream.providers import Provider
from millstream.server.app import Millstream, create_app
from millstream.settings import ProviderSettings, Settings
from oracle import Oracle
from services import REDIS, RedisServers, postgres_server, redis_programs, redis_server

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


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """``async with run(providers={…}) as running``: the whole application without a socket."""

    @asynccontextmanager
    async def start(
        providers: Mapping[str, Provider] | None = None, openai: Oracle | None = None, **settings: Any
    ) -> AsyncGenerator[Running]:
        if openai is not None:
            settings["providers"] = {"oracle": ProviderSettings(base_url=openai.base_url, models=("m",))}
        # Tests share their machine with others: that it is late is not what they are about.
        values = {"data_dir": tmp_path / "data", "max_lag_seconds": 3600, **settings}
        millstream = Millstream(Settings(**values), providers=providers)
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


@pytest.fixture(scope="session")
def postgres() -> Generator[str]:
    with postgres_server() as server:
        yield server.url


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of a database without tables, of every kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'folder' / 'x.db'}"
    url: str = request.getfixturevalue("postgres")
    db = Database(url)
    db.run(lambda connection: schema.metadata.drop_all(connection))
    db.run(lambda connection: connection.execute(sa.text("DROP TABLE IF EXISTS alembic_version")))
    db.close()
    return url


@pytest.fixture
def db(database_url: str) -> Generator[Database]:
    db = Database(database_url)
    db.migrate()
    yield db
    db.close()
