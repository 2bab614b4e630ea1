"""Errors out: every error of ours as one HTTP response, whatever application it is mounted in."""

import asyncio
import logging
import re
import secrets
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any, TypeAlias

from fastapi import Request, Response
from fastapi.exceptions import HTTPException as FastAPIHTTPException
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match
from starlette.types import Message, Receive, Scope, Send

from millstream.bodies import invalid
from millstream.database import DatabaseAway
from millstream.dialects import Dialect
from millstream.dialects.native import NATIVE
from millstream.dialects.table import FOREIGN
from millstream.errors import (
    Draining,
    Internal,
    InvalidRequest,
    MillstreamError,
    NotFound,
    Overloaded,
    ReportedError,
    TooLarge,
    Unauthorized,
    UnsupportedEncoding,
    fault,
    printable,
)
from millstream.log_ids import REQUEST_ID
from millstream.runtime import Runtime
from millstream.server.credentials import without_credentials

log = logging.getLogger("millstream.server")

Handler: TypeAlias = Callable[[Request], Coroutine[Any, Any, Response]]

_REQUEST_ID = re.compile(r"[\w.:-]{1,64}", re.ASCII)
_MAX_SHOWN_PATH = 200
_SCOPE_KEY = "millstream.request_id"
STATE = "_millstream"  # the name of what runs in ``app.state``


class Refused(FastAPIHTTPException):
    """A refusal as FastAPI knows it, so that your own error handlers apply on your own routes."""

    def __init__(self, error: MillstreamError) -> None:
        headers = {}
        if isinstance(error, Unauthorized):
            headers["WWW-Authenticate"] = "Bearer"
        if error.retry_after_seconds is not None:
            headers["Retry-After"] = str(error.retry_after_seconds)
        super().__init__(error.status, error.message, headers or None)
        self.error = error


def request_id(request: Request) -> str:
    """As ``id_of_scope``."""
    return id_of_scope(request.scope)


def id_of_scope(scope: MutableMapping[str, Any]) -> str:
    """The caller's ``X-Request-Id`` where it is a plain one, else one of ours; it stays the same."""
    known: str | None = scope.get(_SCOPE_KEY)
    if known is None:
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        text = given.decode("latin-1")
        known = text if _REQUEST_ID.fullmatch(text) else new_request_id()
        scope[_SCOPE_KEY] = known
    return known


def new_request_id() -> str:
    return f"req_{secrets.token_urlsafe(12)}"


def fault_of(request: Request, error: Exception, *, stream_id: str = "") -> Internal:
    """An unexpected exception -> what the caller is told, and a line in the log under the same id."""
    where = _asked(request)
    return fault(
        log, request_id(request), error, where=f"stream {stream_id}, {where}" if stream_id else where
    )


def _asked(request: Request) -> str:
    return f"{request.method} {without_credentials(request.scope['path'])}"


def error_headers(error: MillstreamError, request_id: str, stream_id: str = "") -> dict[str, str]:
    headers = {
        "Content-Type": "application/json",
        "Cache-Control": "no-store",
        "X-Request-Id": request_id,
        # The SDKs of OpenAI and Anthropic would else repeat every 408, 409, 429 and 5xx.
        "X-Should-Retry": "true" if error.retryable else "false",
    }
    if stream_id:
        headers["X-Stream-Id"] = stream_id
    if error.retry_after_seconds is not None:
        headers["Retry-After"] = str(error.retry_after_seconds)
    if error.status == UnsupportedEncoding.status:
        headers["Accept-Encoding"] = "identity"
    if error.code == Unauthorized.code:
        headers["WWW-Authenticate"] = "Bearer"
    if error.code in (TooLarge.code, Draining.code):
        headers["Connection"] = "close"  # the rest of the body is not read; the next request goes elsewhere
    return headers


def end_of_stream(error: MillstreamError, request: Request) -> MillstreamError:
    """How the stream of ``request`` has ended; with an Idempotency-Key a repetition would find the same."""
    if "idempotency-key" in request.headers:
        error.retryable = False
    return error


def error_response(
    error: MillstreamError, request: Request, dialect: Dialect = NATIVE, stream_id: str = ""
) -> Response:
    """``error`` as the answer to ``request``."""
    identity = request_id(request)
    status, body = dialect.error(error, identity)
    headers = error_headers(error, identity, stream_id)
    if error.standing is not None:
        headers |= dialect.limit_headers((error.standing,))
    response = Response(body, status, headers)
    response.headers[dialect.request_id_header] = identity
    return response


def unread_response() -> Response:
    """To a client that has left. No server sends it, but a middleware may wait for a response to pass on."""
    return Response(status_code=499)  # as nginx calls it in its log


def with_errors(handle: Callable[[Request], Awaitable[Response]], dialect: Dialect = NATIVE) -> Handler:
    """``handle``, whose errors become responses in ``dialect``. No cache may keep any response of ours: each
    is about one caller, and some carry a secret.
    """

    def answered(error: MillstreamError, request: Request) -> Response:
        return error_response(error, request, dialect)

    async def handler(request: Request) -> Response:
        REQUEST_ID.set(request_id(request))
        try:
            response = await handle(request)
            if hasattr(response, "raw_headers"):  # a response that reads a stream says it itself
                response.headers.setdefault("Cache-Control", "no-store")
                response.headers.setdefault(dialect.request_id_header, request_id(request))
            return response
        except MillstreamError as error:
            # A code of "internal" that no `Internal` has is a fault as well: nobody meant it for a caller.
            unexpected = error.code == Internal.code and not isinstance(error, Internal)
            return answered(fault_of(request, error) if unexpected else error, request)
        except Refused as refused:
            return answered(refused.error, request)
        except RequestValidationError as error:
            return answered(invalid(error.errors()), request)
        except ClientDisconnect:
            return unread_response()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or not _is_draining(request):
                raise
            task.uncancel()  # the server stops, and waits for this request no longer
            return answered(Draining(), request)
        except DatabaseAway as error:
            where = printable(_asked(request))
            log.error("%s: %s: the database: %s", request_id(request), where, error)
            return answered(Overloaded("the database does not answer; try again"), request)
        except Exception as error:
            if isinstance(error, HTTPException) or _is_handled(request, error):
                raise
            return answered(fault_of(request, error), request)

    return handler


def _is_draining(request: Request) -> bool:
    runtime: Runtime | None = getattr(request.app.state, STATE, None)
    return runtime is not None and runtime.streams.draining


def _is_handled(request: Request, error: Exception) -> bool:
    """Whether the application has a handler for this class of errors, or for one that it is of."""
    handlers, _ = request.scope.get("starlette.exception_handlers", ({}, {}))
    return any(kind in handlers for kind in type(error).__mro__)


def route_in(dialect: Dialect) -> type["Route"]:
    """A ``Route`` whose errors have the shape of ``dialect``."""
    return type("Route", (Route,), {"dialect": dialect})


class Route(APIRoute):
    """A route whose errors have our shape, whatever application it is mounted in.

    A path with a slash behind it is nothing, where nobody else's route has it. An application's router would
    redirect it, over http, to whatever ``Host`` the caller has named. HEAD is answered wherever GET is, but
    for streams; FastAPI does not do so.
    """

    dialect: Dialect = NATIVE

    def get_route_handler(self) -> Handler:
        return with_errors(super().get_route_handler(), self.dialect)

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        scope = self._as_get(scope)
        match, child_scope = super().matches(scope)
        if scope["type"] == "http" and scope["path"].endswith("/"):
            if match is Match.NONE:
                match, child_scope = super().matches({**scope, "path": scope["path"].rstrip("/")})
            if match is Match.FULL:
                match = Match.PARTIAL  # the router goes on looking for a whole match
        return match, child_scope

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"].endswith("/"):
            response = error_response(_nothing_at(scope["path"]), Request(scope), self.dialect)
            await response(scope, receive, send)
        elif (asked := self._as_get(scope)) is scope:
            await super().handle(scope, receive, send)
        else:
            await super().handle(asked, receive, _without_body(send))

    def _as_get(self, scope: Scope) -> Scope:
        """The scope of the GET that a HEAD is about, else ``scope``."""
        if scope["type"] != "http" or scope["method"] != "HEAD" or "GET" not in (self.methods or ()):
            return scope
        streams = any("text/event-stream" in said.get("content", {}) for said in self.responses.values())
        return scope if streams else {**scope, "method": "GET"}


def _without_body(send: Send) -> Send:
    async def send_head(message: Message) -> None:
        await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

    return send_head


def _nothing_at(path: str) -> NotFound:
    return NotFound(f"there is nothing at {without_credentials(path)[:_MAX_SHOWN_PATH]}")


async def http_error(request: Request, error: Exception) -> Response:
    """Errors of the framework's own (no such path, wrong method) in our shape, or in that of the clients who
    ask for the neighbours of the path.
    """
    assert isinstance(error, HTTPException)
    ours: MillstreamError
    if error.status_code == 404:
        ours = _nothing_at(request.scope["path"])
    else:
        ours = ReportedError(InvalidRequest.code, str(error.detail), status=error.status_code)
    response = error_response(ours, request, _spoken_at(request.scope))
    response.headers.update(error.headers or {})
    if error.status_code == 405 and (allowed := _allowed(request)):
        response.headers["Allow"] = ", ".join(allowed)
    return response


def _spoken_at(scope: Scope) -> Dialect:
    """The dialect of what is at or below the path."""
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    below = (dialect for at, dialect in FOREIGN.items() if path == at or path.startswith(f"{at}/"))
    return next(below, NATIVE)


def _allowed(request: Request) -> list[str]:
    """What the path may be asked with: each of its routes has one method, and the error names one."""
    routes = [route for route in request.app.routes if isinstance(route, APIRoute)]
    there = [route for route in routes if route.matches(request.scope)[0] is not Match.NONE]
    return sorted({method for route in there for method in route.methods or ()})
