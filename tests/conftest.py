import asyncio
import os
from contextlib import ExitStack, asynccontextmanager

import pytest
from fastapi import FastAPI
from redis import Redis

from millstream.server.app import Millstream, create_app
from millstream.settings import ProviderSettings, Settings
from services import REDIS, redis_programs, redis_server

# No test sees the keys or settings of the machine it runs on.
for name in list(os.environ):
    if name.startswith("MILLSTREAM_") or name.endswith(("_API_KEY", "_BASE_URL", "_ENDPOINT")):
        del os.environ[name]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


class Running:
    """A Millstream inside this process, with keys to use it."""

    def __init__(self, millstream: Millstream, app: FastAPI) -> None:
        self.millstream, self.app = millstream, app
        self.key = self.key_id = self.admin = ""

    async def idle(self, seconds=10):
        """Waits until no stream runs."""
        async with asyncio.timeout(seconds):
            await self.millstream.streams.idle()

    async def receipts(self):
        import sqlalchemy as sa

        from millstream.database import streams

        await self.idle()
        return await self.millstream.database.read(
            lambda connection: connection.execute(sa.select(streams)).mappings().all()
        )


@pytest.fixture(scope="session")
def redis_servers(tmp_path_factory):
    """``redis_servers(version)``: the URL of an empty Redis or Valkey."""
    urls = {}
    with ExitStack() as stack:

        def empty(version=REDIS):
            if version not in urls:
                socket = tmp_path_factory.mktemp("redis") / "redis.sock"
                stack.enter_context(redis_server(socket, program=redis_programs()[version]))
                urls[version] = f"unix://{socket}"
            with Redis.from_url(urls[version]) as client:
                client.flushall()
            return urls[version]

        yield empty


@pytest.fixture
def redis_url(redis_servers):
    return redis_servers()


@pytest.fixture
def run(tmp_path):
    """``async with run(providers={…}) as running``: the whole application without a socket."""

    @asynccontextmanager
    async def start(providers=None, openai=None, **settings):
        if openai is not None:
            settings["providers"] = {"oracle": ProviderSettings(base_url=openai.base_url, models=("m",))}
        values = {"data_dir": tmp_path / "data", **settings}
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
