"""The runtime: settings -> everything that runs, without a web framework."""

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress

from millstream import tokens
from millstream.auth import Keys
from millstream.bodies import BodyValidator
from millstream.database import Database
from millstream.errors import MillstreamError
from millstream.ledger import Ledger
from millstream.logs import EventLog
from millstream.meter import Meter
from millstream.providers import Provider
from millstream.runtime.providers import llm_service
from millstream.runtime.readiness import Readiness
from millstream.runtime.stores import event_log
from millstream.settings import Settings
from millstream.streams.registry import Limits, Streams


class Runtime:
    """Runs while it is entered (``async with``), once. Leaving it cancels and settles what still runs first,
    then closes the providers, then the database.

    ``settings`` default to the environment and ``millstream.toml``. ``providers`` are added to those of the
    settings, under names of yours. Raises ``ConfigurationError`` where the settings cannot work.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        providers: Mapping[str, Provider] | None = None,
    ) -> None:
        self.settings = settings or Settings.load()
        self.database = Database(
            self.settings.resolved_database_url, own_folder=self.settings.database_has_own_folder
        )
        self.database.migrate()
        self.bodies = BodyValidator()
        self.keys = Keys(self.database, self.settings.signing_secrets)
        self.ledger = Ledger(self.database)
        self.meter = Meter(self.ledger)
        self.event_log: EventLog = event_log(self.settings)
        self.llm_service = llm_service(self.settings, providers or {})
        self.streams = Streams(
            self.llm_service,
            self.event_log,
            self.ledger,
            self.keys,
            Limits(
                self.settings.stream_seconds,
                self.settings.max_streams,
                self.settings.max_lag_seconds,
                self.settings.max_readers,
            ),
        )
        self.readiness = Readiness(self.database, self.event_log)
        self._exits = AsyncExitStack()

    async def __aenter__(self) -> "Runtime":
        async with AsyncExitStack() as stack:
            stack.callback(self.database.close)
            stack.callback(self.bodies.close)
            stack.push_async_callback(self.llm_service.close)
            for part in (self.event_log, self.ledger, self.streams):
                await stack.enter_async_context(part)
            # The tokenizer now, though it is built in a thread: the library holds the interpreter for 100 ms
            # of that, which would stop whatever streams by then.
            await asyncio.gather(self.llm_service.discover(), tokens.load(tokens.DEFAULT_ENCODING))
            for work in (self._warm_up, self.llm_service.keep_models_true):
                stack.push_async_callback(_stop, asyncio.create_task(work(), name=work.__name__))
            self._exits = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._exits.aclose()

    async def _warm_up(self) -> None:
        """Loads what the first stream would otherwise wait for: the default model's price."""
        with suppress(MillstreamError):  # there is no default model
            await self.llm_service.resolve(None)


async def _stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
