"""A Millstream inside the test's process, without a socket."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from fastapi import FastAPI
from sqlalchemy.engine import RowMapping

from millstream.providers import Provider
from millstream.server.app import Millstream
from oracle import Oracle


class Running:
    """A Millstream inside this process, with keys to use it."""

    def __init__(self, millstream: Millstream, app: FastAPI) -> None:
        self.millstream, self.app = millstream, app
        self.key = self.key_id = self.admin = ""

    async def idle(self, seconds: float = 10) -> None:
        """Waits until no stream runs."""
        async with asyncio.timeout(seconds):
            await self.millstream.streams.idle()

    async def receipts(self) -> Sequence[RowMapping]:
        import sqlalchemy as sa

        from millstream.schema import streams

        await self.idle()
        return await self.millstream.database.read(
            lambda connection: connection.execute(sa.select(streams)).mappings().all()
        )


class Run(Protocol):
    """The fixture ``run``. ``settings`` are fields of ``Settings``."""

    def __call__(
        self, providers: Mapping[str, Provider] | None = None, openai: Oracle | None = None, **settings: Any
    ) -> AbstractAsyncContextManager[Running]: ...
