"""The runtime: settings -> everything that runs, without a web framework."""

import asyncio
import logging
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from typing import TYPE_CHECKING, Never

from millstream import tokens
from millstream.auth import Keys
from millstream.bodies import BodyValidator
from millstream.catalog import LLMService
from millstream.database import Database
from millstream.errors import MillstreamError, Misuse
from millstream.journals import Journal
from millstream.ledger import Ledger
from millstream.ledger.exports import Exports
from millstream.meter import Meter
from millstream.providers import Provider
from millstream.runtime.exporters import exporters
from millstream.runtime.providers import llm_service
from millstream.runtime.readiness import Readiness
from millstream.runtime.stores import journal
from millstream.settings import Settings
from millstream.streams.registry import Limits, Streams


class NotRunning(Misuse):
    """A part of the runtime was asked for while it does not run."""

    def __init__(self) -> None:
        super().__init__(
            "Millstream is not running in this application. It runs within its lifespan: "
            "FastAPI(lifespan=millstream.lifespan), and in a test 'with TestClient(app)'. The lifespan of a "
            "mounted sub-application is run by nobody: include the router in the application itself"
        )


log = logging.getLogger("millstream")


class Runtime:
    """Runs while it is entered (``async with``), as often as you like, one at a time. Nothing is opened
    before; leaving it cancels and settles what still runs first, then closes the providers, then the
    database.

    ``settings`` default to the environment and ``millstream.toml``. ``providers`` are added to those of the
    settings, under names of yours. Raises ``ConfigurationError`` where the settings cannot work, when it is
    made or when it is entered; ``NotRunning`` where one of its parts is asked for while it does not run.
    """

    database: Database
    bodies: BodyValidator
    keys: Keys
    ledger: Ledger
    meter: Meter
    journal: Journal
    llm_service: LLMService
    streams: Streams
    readiness: Readiness

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        providers: Mapping[str, Provider] | None = None,
    ) -> None:
        self.settings = settings or Settings.load()
        self._given = dict(providers or {})
        self._exits: AsyncExitStack | None = None

    if not TYPE_CHECKING:  # it would hide a misspelt name

        def __getattr__(self, name: str) -> Never:
            if name in Runtime.__annotations__:
                raise NotRunning
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    async def __aenter__(self) -> "Runtime":
        if self._exits is not None:
            raise Misuse("this Millstream runs already; one application, one Millstream")
        settings = self.settings
        for old, new in settings.old_names.items():
            log.warning("%s is now %s; the old name works until version 0.3", old, new)
        async with AsyncExitStack() as stack:
            stack.callback(self._forget_parts)
            self.database = await asyncio.to_thread(_open_database, settings)
            stack.callback(self.database.close)
            self.bodies = BodyValidator()
            stack.callback(self.bodies.close)
            self.llm_service = llm_service(settings, self._given)
            stack.push_async_callback(self.llm_service.close)
            self.keys = Keys(self.database, settings.signing_secrets)
            self.ledger = Ledger(self.database, exporters=tuple(settings.exporters))
            self.meter = Meter(self.ledger)
            self.journal = journal(settings)
            self.readiness = Readiness(self.database, self.journal)
            days = settings.retention_days
            limits = Limits(
                settings.stream_seconds,
                settings.max_streams,
                settings.max_lag_seconds,
                settings.max_readers,
                None if days is None else days * 86_400,
            )
            self.streams = Streams(self.llm_service, self.journal, self.ledger, self.keys, limits)
            sending = exporters(settings, Exports(self.database))
            parts: list[AbstractAsyncContextManager[object]] = [
                self.journal,
                self.ledger,
                *sending,
                self.streams,
            ]
            for part in parts:
                await stack.enter_async_context(part)
            # The tokenizer now, though it is built in a thread: the library holds the interpreter for 100 ms
            # of that, which would stop whatever streams by then.
            await asyncio.gather(self.llm_service.discover(), tokens.load(tokens.DEFAULT_ENCODING))
            for work in (self._warm_up, self.llm_service.keep_models_true):
                stack.push_async_callback(_stop, asyncio.create_task(work(), name=work.__name__))
            self._exits = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        exits, self._exits = self._exits, None
        assert exits is not None
        await exits.aclose()

    def _forget_parts(self) -> None:
        for name in Runtime.__annotations__:
            self.__dict__.pop(name, None)

    async def _warm_up(self) -> None:
        """Loads what the first stream would otherwise wait for: the default model's price."""
        with suppress(MillstreamError):  # there is no default model
            await self.llm_service.resolve(None)


def _open_database(settings: Settings) -> Database:
    database = Database(settings.resolved_database_url, own_folder=settings.database_has_own_folder)
    try:
        database.migrate()
    except BaseException:
        database.close()
        raise
    return database


async def _stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
