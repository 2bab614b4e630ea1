"""The chat endpoints as bare ASGI, for the application that ``create_app`` makes, and in front of it.

What FastAPI keeps around a response for as long as it streams is a quarter of an open stream's memory
(docs/decisions/0005-direct-routes.md).
"""

from collections.abc import Awaitable, Callable
from typing import cast

from fastapi import FastAPI, Request, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from millstream.dialects import Dialect
from millstream.dialects.table import FOREIGN
from millstream.server.dependencies import get_runtime
from millstream.server.errors import Handler, with_errors
from millstream.server.routes import chat


class DirectRoutes:
    """A middleware that answers the chat endpoints itself, and passes on everything else."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._routes: dict[str, Handler] = {
            "/v1/chat/stream": with_errors(_stream),
            "/v1/chat": with_errors(_answer),
            **{path: with_errors(_speaking(dialect), dialect) for path, dialect in FOREIGN.items()},
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if root_path := scope.get("root_path", ""):
            path = path.removeprefix(root_path)
        handle = self._routes.get(path)
        if handle is None or scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        response = await handle(Request(scope, receive))
        await response(scope, receive, send)


_PATHS = frozenset(("/v1/chat/stream", "/v1/chat", *FOREIGN))


class Door:
    """The application as ``millstream serve`` runs it: its chat endpoints are reached past what FastAPI puts
    around every request, through the middlewares that ``app`` was given and nothing else.
    """

    def __init__(self, app: FastAPI, root_path: str | None = None) -> None:
        self._app = app
        self._root_path = root_path or ""
        self._chat: ASGIApp = DirectRoutes(app)
        for middleware in reversed(app.user_middleware):
            if cast("object", middleware.cls) is not DirectRoutes:
                self._chat = middleware.cls(self._chat, *middleware.args, **middleware.kwargs)

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        # Not a coroutine of its own, which every open stream would keep.
        if (
            scope["type"] == "http"
            and scope["method"] == "POST"
            and scope["path"].removeprefix(self._root_path) in _PATHS
        ):
            scope["app"] = self._app
            return self._chat(scope, receive, send)
        return self._app(scope, receive, send)


def _speaking(dialect: Dialect) -> Callable[[Request], Awaitable[Response]]:
    async def speak(request: Request) -> Response:
        get_runtime(request).streams.admit()
        return await chat.speak(request, await chat.authenticate(request), dialect)

    return speak


async def _stream(request: Request) -> Response:
    get_runtime(request).streams.admit()  # before anything else: an overloaded worker says so cheaply
    return await chat.stream(request, await chat.authenticate(request))


async def _answer(request: Request) -> Response:
    get_runtime(request).streams.admit()
    return await chat.answer(request, await chat.authenticate(request))
