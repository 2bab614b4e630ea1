"""The web application: a Millstream to mount in an application of yours, and the one that ``serve`` runs."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import cached_property

from fastapi import APIRouter, FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from millstream.runtime import Runtime
from millstream.server import access_log, openapi
from millstream.server.dependencies import STATE
from millstream.server.direct import DirectRoutes
from millstream.server.errors import http_error
from millstream.server.routes import chat, health, keys, models, pages, streams, usage
from millstream.version import __version__

# In one flat list: an included router is one more round of matching for every request.
_ROUTES = [
    route
    for router in (chat.router, models.router, streams.router, keys.router, usage.router)
    for route in router.routes
]


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
        """Serves while it is entered."""
        if hasattr(app.state, STATE):
            raise RuntimeError("an application runs one Millstream")
        with access_log.hidden_tickets():
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
        lifespan=millstream.lifespan,
        docs_url=None,  # FastAPI's page loads its script from elsewhere; routes/pages.py has ours
        redoc_url=None,
        redirect_slashes=False,  # a redirect would name the caller's Host
    )
    app.add_middleware(DirectRoutes)  # the innermost: those that are added later are around it
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
    app.add_exception_handler(HTTPException, http_error)
    app.openapi = lambda: openapi.schema(app)  # type: ignore[method-assign]
    return app
