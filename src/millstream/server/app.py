"""The web application: a Millstream to mount in an application of yours, and the one that ``serve`` runs."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import cached_property
from typing import cast

from fastapi import APIRouter, FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from millstream.database import DatabaseAway
from millstream.errors import ConfigurationError, Misuse
from millstream.limits import WHATS
from millstream.runtime import Runtime
from millstream.server import access_log, openapi, startup_errors, stop_signals
from millstream.server.direct import DirectRoutes
from millstream.server.errors import STATE, http_error
from millstream.server.root_path import BelowRootPath
from millstream.server.routes import (
    ag_ui,
    ai_sdk,
    anthropic,
    chat,
    health,
    keys,
    models,
    openai,
    pages,
    responses,
    streams,
    usage,
)
from millstream.version import DOCS, __version__

log = logging.getLogger("millstream")

# In one flat list: an included router is one more round of matching for every request.
_ROUTES = [
    route
    for router in (
        chat.router,
        openai.router,
        anthropic.router,
        responses.router,
        ai_sdk.router,
        ag_ui.router,
        models.router,
        streams.router,
        keys.router,
        usage.router,
    )
    for route in router.routes
]


_SAID = ("Limit", "Remaining", "Reset")
# What pages of other origins need to read: ``CORSMiddleware(expose_headers=EXPOSED_HEADERS)``.
EXPOSED_HEADERS: tuple[str, ...] = (
    *("Location", "Millstream-Ignored", "Request-Id", "Retry-After"),
    *("X-Request-Id", "X-Should-Retry", "X-Stream-Id"),
    *(f"X-RateLimit-{said}-{what.capitalize()}" for said in _SAID for what in WHATS),
    *(f"Anthropic-RateLimit-{what.capitalize()}-{said}" for said in _SAID for what in WHATS),
)


class Millstream(Runtime):
    """A Millstream to mount: ``router`` has its endpoints, ``lifespan`` runs it.

        millstream = Millstream()
        app = FastAPI(lifespan=millstream.lifespan)
        app.include_router(millstream.router)

    Nothing is opened before the lifespan, so it may be made before a server forks. It runs as often as its
    lifespan is entered, one application at a time.
    """

    @cached_property
    def router(self) -> APIRouter:
        """All endpoints, without health and pages."""
        return APIRouter(routes=_ROUTES)

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncGenerator[None]:
        """Serves while it is entered. The log says what is ready, and what is missing. From the signal that
        stops the server on, running streams have the drain time.
        """
        async with AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(self.running_in(app))
                self._say_what_has_no_effect(app)
                await self._say_what_is_ready()
            except (ConfigurationError, DatabaseAway) as error:
                startup_errors.say_in_one_line(error)
                raise
            async with self._drained_by_signal():
                yield

    @asynccontextmanager
    async def _drained_by_signal(self) -> AsyncGenerator[None]:
        drains: list[asyncio.Task[None]] = []

        def drain() -> None:
            if not drains:
                drains.append(
                    asyncio.create_task(self.streams.drain(self.settings.drain_seconds), name="drain")
                )

        try:
            with stop_signals.heard(drain):
                yield
        finally:
            for task in drains:
                task.cancel()  # what it has not ended, the end of the lifespan ends
            await asyncio.gather(*drains, return_exceptions=True)

    def _say_what_has_no_effect(self, app: FastAPI) -> None:
        settings = self.settings
        cors = any(cast("object", middleware.cls) is CORSMiddleware for middleware in app.user_middleware)
        if settings.cors_origins and not cors:
            log.warning(
                "MILLSTREAM_CORS_ORIGINS lets no page in here: an application of yours adds a "
                f"CORSMiddleware; see {DOCS}/guides/library.md"
            )
        if settings.root_path:
            log.warning("MILLSTREAM_ROOT_PATH has no effect here: give the root_path to your server")

    async def _say_what_is_ready(self) -> None:
        service = self.llm_service
        models = len(service.models)
        log.info("%d model%s; the default is %s", models, "" if models == 1 else "s", service.default_model)
        if not service.models:
            for name, why in service.unready.items():
                log.warning("provider %s has no models yet: %s", name, why)
        if all(key.revoked_at is not None for key in await self.keys.all()):
            log.warning("there is no API key; make one with: %s", self.settings.key_command)

    @asynccontextmanager
    async def running_in(self, app: FastAPI) -> AsyncGenerator[None]:
        """``lifespan`` without a word."""
        if hasattr(app.state, STATE):
            raise Misuse("an application runs one Millstream")
        with access_log.hidden_credentials():
            async with self:
                setattr(app.state, STATE, self)
                try:
                    yield
                finally:
                    delattr(app.state, STATE)


def create_app(millstream: Millstream) -> FastAPI:
    """The application that ``millstream serve`` runs: the endpoints, health and the pages."""
    app = FastAPI(
        title="Millstream",
        version=__version__,
        lifespan=millstream.running_in,
        docs_url=None,  # FastAPI's page loads its script from elsewhere; routes/pages.py has ours
        redoc_url=None,
        redirect_slashes=False,  # a redirect would name the caller's Host
    )
    app.add_middleware(DirectRoutes)  # the innermost: those that are added later are around it
    if root_path := millstream.settings.root_path:
        app.add_middleware(BelowRootPath, root_path=root_path)
    if origins := millstream.settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "POST"],
            # Whatever tracing and SDKs add. No cookie counts here: what a page can do, its credential can.
            allow_headers=["*"],
            expose_headers=EXPOSED_HEADERS,
            max_age=3600,
        )
    for router in (millstream.router, health.router, pages.router):
        app.router.routes.extend(router.routes)
    app.router.routes.append(pages.assets())
    app.add_exception_handler(HTTPException, http_error)
    app.openapi = lambda: openapi.schema(app)  # type: ignore[method-assign]
    return app
