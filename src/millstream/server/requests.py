"""Requests in and errors out: what every endpoint of ours does before and beside its own work."""

import logging
import re
import secrets
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeAlias, TypeVar

import msgspec
from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from millstream.database import AWAY
from millstream.errors import (
    Draining,
    Internal,
    InvalidRequest,
    MalformedBody,
    MillstreamError,
    Overloaded,
    TooLarge,
    Unauthorized,
    whereabouts,
)
from millstream.server.dependencies import Refused

log = logging.getLogger("millstream.server")

Body = TypeVar("Body", bound=BaseModel)
Handler: TypeAlias = Callable[[Request], Coroutine[Any, Any, Response]]

_REQUEST_ID = re.compile(r"[\w.:-]{1,64}", re.ASCII)
_IDEMPOTENCY_KEY = re.compile(r"[!-~]{1,128}")
_MAX_SHOWN_ERRORS = 3
_MAX_SHOWN_LOCATION = 100


async def read_body(request: Request, model: type[Body], limit: int) -> Body:
    """The body as a ``model``. Raises ``TooLarge`` before reading more than ``limit`` bytes,
    ``MalformedBody`` where it is not JSON (or is nested over 200 deep), ``InvalidRequest`` saying
    which field is wrong.
    """
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit:
        raise TooLarge(f"the body is over {limit} bytes")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise TooLarge(f"the body is over {limit} bytes")
    try:
        return model.model_validate_json(bytes(body))
    except ValidationError as error:
        raise _invalid(error.errors(include_url=False, include_input=False)) from None


def _invalid(errors: Any) -> InvalidRequest:
    if errors[0]["type"] == "json_invalid":
        return MalformedBody(f"the body is not JSON: {errors[0]['msg'].partition(': ')[2]}")
    shown = []
    for error in errors[:_MAX_SHOWN_ERRORS]:
        where = ".".join(map(str, error["loc"]))[:_MAX_SHOWN_LOCATION]
        what = "unknown field" if error["type"] == "extra_forbidden" else error["msg"]
        shown.append(f"{where}: {what}" if where else what)
    more = len(errors) - len(shown)
    return InvalidRequest("; ".join(shown) + (f"; and {more} more" if more else ""))


def request_id(request: Request) -> str:
    """The caller's ``X-Request-Id`` where it is a plain one, else a new one."""
    given = request.headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else f"req_{secrets.token_urlsafe(12)}"


def idempotency_key(request: Request) -> str | None:
    """Raises ``InvalidRequest`` where the header is there and is none."""
    given = request.headers.get("idempotency-key")
    if given is not None and not _IDEMPOTENCY_KEY.fullmatch(given):
        raise InvalidRequest("an Idempotency-Key has 1 to 128 characters of ASCII without spaces")
    return given


def error_headers(error: MillstreamError, request_id: str) -> dict[str, str]:
    headers = {
        "Content-Type": "application/json",
        "Cache-Control": "no-store",
        "X-Request-Id": request_id,
    }
    if error.retry_after_seconds is not None:
        headers["Retry-After"] = str(error.retry_after_seconds)
    if error.code == Unauthorized.code:
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, (TooLarge, Draining)):
        headers["Connection"] = "close"  # the rest of the body is not read; the next request goes elsewhere
    return headers


def error_response(error: MillstreamError, request: Request) -> Response:
    """``error`` in the one shape that all of ours have."""
    identity = request_id(request)
    body = {"error": {"code": error.code, "message": error.message, "request_id": identity}}
    return Response(msgspec.json.encode(body), error.status, error_headers(error, identity))


def with_errors(handle: Callable[[Request], Awaitable[Response]]) -> Handler:
    """``handle``, whose errors become responses."""

    async def handler(request: Request) -> Response:
        try:
            return await handle(request)
        except MillstreamError as error:
            return error_response(error, request)
        except Refused as refused:
            return error_response(refused.error, request)
        except RequestValidationError as error:
            return error_response(_invalid(error.errors()), request)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody is there to read it
        except AWAY as error:
            log.error("%s: %s", request.url.path, whereabouts(error))
            return error_response(Overloaded("the database does not answer; try again"), request)
        except Exception as error:
            if isinstance(error, HTTPException):
                raise
            log.error("%s: %s", request.url.path, whereabouts(error))
            return error_response(Internal(), request)

    return handler


class Route(APIRoute):
    """A route whose errors have our shape, whatever application it is mounted in."""

    def get_route_handler(self) -> Handler:
        return with_errors(super().get_route_handler())
