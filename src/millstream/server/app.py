"""Putting it together: settings -> a running Millstream, inside an application of yours or its own."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from millstream import tokens
from millstream.auth import Keys
from millstream.catalog import LLMService, ProviderEntry
from millstream.database import Database
from millstream.errors import ConfigurationError, MillstreamError, NotFound, recorded
from millstream.generations import Generations, Limits
from millstream.ledger import Ledger
from millstream.logs import EventLog
from millstream.logs.memory import MemoryLog
from millstream.meter import Meter
from millstream.prices import FlatPrice, Prices
from millstream.providers import Provider
from millstream.providers.local import LocalProvider, weights
from millstream.providers.openai import OpenAIProvider
from millstream.providers.scripted import ScriptedProvider
from millstream.providers.upstream import Clocks, Upstream
from millstream.server import admin, chat, health, pages, streams
from millstream.server.dependencies import STATE
from millstream.server.requests import error_response
from millstream.settings import ProviderSettings, Settings
from millstream.version import __version__

log = logging.getLogger("millstream.server")


class Millstream:
    """A Millstream to mount: ``router`` has its endpoints, ``lifespan`` runs it.

        millstream = Millstream()
        app = FastAPI(lifespan=millstream.lifespan)
        app.include_router(millstream.router)

    ``settings`` default to the environment and ``millstream.toml``. ``providers`` are added to those of the
    settings, under names of yours. One instance runs once, in one event loop. Raises
    ``ConfigurationError`` where the settings cannot work.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        providers: Mapping[str, Provider] | None = None,
    ) -> None:
        self.settings = settings or Settings.load()
        self.database = Database(self.settings.resolved_database_url)
        self.database.migrate()
        self.keys = Keys(self.database)
        self.ledger = Ledger(self.database)
        self.meter = Meter(self.ledger)
        self.event_log: EventLog = _event_log(self.settings)
        self.llm_service = _service(self.settings, providers or {})
        self.generations = Generations(
            self.llm_service,
            self.event_log,
            self.ledger,
            self.keys,
            Limits(self.settings.stream_seconds, self.settings.max_streams),
        )
        self._ran = False
        # One flat list of routes: an included router is one more round of matching for every request.
        self.router = APIRouter(routes=[*chat.router.routes, *streams.router.routes, *admin.router.routes])

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncGenerator[None]:
        """Serves while it is entered. Leaving it cancels what still runs and settles it first, then
        closes the providers, then the database.
        """
        if self._ran or hasattr(app.state, STATE):
            raise RuntimeError("an application runs one Millstream, and a Millstream runs once")
        self._ran = True
        setattr(app.state, STATE, self)
        async with AsyncExitStack() as stack:
            stack.callback(delattr, app.state, STATE)
            logging.getLogger("uvicorn.access").addFilter(streams.HideTickets())
            stack.callback(self.database.close)
            stack.push_async_callback(self.llm_service.close)
            await stack.enter_async_context(self.event_log)
            await stack.enter_async_context(self.ledger)
            await stack.enter_async_context(self.generations)
            # The tokenizer now, though it is built in a thread: the library holds the interpreter for 100 ms
            # of that, which would stop whatever streams by then.
            await asyncio.gather(self.llm_service.discover(), tokens.load(tokens.DEFAULT_ENCODING))
            warm_up = asyncio.create_task(self._warm_up(), name="warm-up")
            try:
                yield
            finally:
                warm_up.cancel()
                with suppress(asyncio.CancelledError):
                    await warm_up

    async def _warm_up(self) -> None:
        """Loads what the first stream would otherwise wait for: the default model's price."""
        with suppress(MillstreamError):  # there is no default model
            await self.llm_service.resolve(None)


def create_app(millstream: Millstream) -> FastAPI:
    """The application that ``millstream serve`` runs: the endpoints, health and the pages."""
    app = FastAPI(
        title="Millstream",
        version=__version__,
        lifespan=millstream.lifespan,
        redoc_url=None,
    )
    app.add_middleware(chat.DirectRoutes)  # the innermost: those that are added later are around it
    if origins := millstream.settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID", "X-API-Key"],
            expose_headers=["Location", "Retry-After", "X-Request-Id", "X-Stream-Id"],
            max_age=3600,
        )
    for router in (millstream.router, health.router, pages.router):
        app.router.routes.extend(router.routes)
    app.router.routes.append(pages.assets())
    app.add_exception_handler(HTTPException, _http_error)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


async def _http_error(request: Request, error: Exception) -> Response:
    """Errors of the framework's own (no such path, wrong method) in our shape."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        ours: MillstreamError = NotFound(f"there is nothing at {request.url.path[:200]}")
    else:
        ours = recorded("invalid_request", str(error.detail), None)
        ours.status = error.status_code
    response = error_response(ours, request)
    response.headers.update(error.headers or {})
    return response


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
        schema.setdefault("components", {})["securitySchemes"] = {
            "key": {"type": "http", "scheme": "bearer", "description": "An API key"}
        }
        for path, item in schema["paths"].items():
            for operation in item.values():
                operation["security"] = [{"key": []}] if path.startswith("/v1/") else []
        app.openapi_schema = schema
    return app.openapi_schema


def _event_log(settings: Settings) -> EventLog:
    scheme = settings.log_url.partition(":")[0]
    if scheme == "memory":
        return MemoryLog(window_seconds=settings.resume_window_seconds, max_bytes=settings.log_max_bytes)
    if scheme not in ("redis", "rediss", "unix", "valkey"):
        raise ConfigurationError(
            f"MILLSTREAM_LOG_URL: '{scheme}' is not a log; use memory: or redis://host:6379/0"
        )
    try:
        # Imported here: redis is an extra.
        from millstream.logs.redis import RedisLog
    except ModuleNotFoundError as error:
        raise ConfigurationError("the Redis log needs an extra: pip install 'millstream[redis]'") from error
    event_log = RedisLog(
        settings.log_url.replace("valkey://", "redis://", 1),
        window_seconds=settings.resume_window_seconds,
        lifetime_seconds=settings.stream_seconds,
        max_bytes=settings.log_max_bytes,
    )
    event_log.check()
    return event_log


def _service(settings: Settings, given: Mapping[str, Provider]) -> LLMService:
    entries = {name: _entry(name, settings, config) for name, config in settings.providers.items()}
    entries |= {name: ProviderEntry(provider) for name, provider in given.items()}
    unready = dict(settings.unready_providers)
    if not entries:
        try:
            entries["local"] = ProviderEntry(LocalProvider(weights()))
        except ConfigurationError as error:
            unready["local"] = str(error)
            entries["scripted"] = ProviderEntry(ScriptedProvider(), any_model=False)
    prices = {
        name: FlatPrice(price.input, price.output, price.cached_input)
        for name, price in settings.prices.items()
    }
    service = LLMService(entries, default_model=settings.default_model, prices=Prices(prices))
    service.unready |= unready
    return service


def _entry(name: str, settings: Settings, config: ProviderSettings) -> ProviderEntry:
    if config.type == "scripted":
        return ProviderEntry(ScriptedProvider(), models=config.models)
    if config.type == "local":
        path = Path(config.path) if config.path else weights()
        return ProviderEntry(LocalProvider(path))
    assert config.base_url is not None
    headers = dict(config.headers)
    if config.api_key is not None:
        secret = config.api_key.get_secret_value()
        headers |= {"api-key": secret} if config.azure else {"Authorization": f"Bearer {secret}"}
    clocks = Clocks(settings.connect_seconds, settings.first_byte_seconds, settings.idle_seconds)
    official = config.azure or config.base_url.startswith("https://api.openai.com/")
    provider = OpenAIProvider(
        name,
        config.base_url,
        Upstream(name, headers, clocks),
        max_tokens_field="max_completion_tokens" if official else "max_tokens",
        extra=config.extra,
    )
    return ProviderEntry(
        provider,
        models=config.models,
        any_model=not config.models,
        price_id=config.price_id,
        preferred=config.preferred,
        hidden=config.hidden,
    )
