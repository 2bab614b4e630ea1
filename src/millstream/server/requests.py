"""Requests in: bodies and headers, read and checked."""

import re
from collections.abc import Callable
from functools import partial
from typing import Annotated, TypeVar

from fastapi import Request
from pydantic import BaseModel, Field, StringConstraints

from millstream.bodies import validate
from millstream.errors import (
    BadPosition,
    InvalidRequest,
    MalformedBody,
    TooLarge,
    UnsupportedEncoding,
    printable,
)
from millstream.events import Position
from millstream.schema import EARLIEST, LATEST
from millstream.server.dependencies import get_runtime

# Of a query, as every database takes it: without NUL, and a time that is one.
Text = Annotated[str, StringConstraints(max_length=256, pattern=r"^[^\x00]*$")]
Moment = Annotated[float, Field(ge=EARLIEST, le=LATEST)]

Model = TypeVar("Model", bound=BaseModel)
Body = TypeVar("Body")

_MAX_SHOWN = 80
_POSITION = re.compile(r"(?P<position>[^.]+)(?:\.(?P<proof>[\w-]{12}))?", re.ASCII)
_BETAS = re.compile(r"[\w.,\s-]{1,2000}", re.ASCII)
_IDEMPOTENCY_KEY = re.compile(r"[!-~]{1,128}")


async def read_model(request: Request, model: type[Model], limit: int) -> Model:
    """The body as a ``model``. Raises what ``read_body`` and ``validate`` raise."""
    return await read_body(request, partial(validate, model), limit)


async def read_body(request: Request, parse: Callable[[bytes], Body], limit: int) -> Body:
    """What ``parse`` makes of the body, whatever its ``Content-Type`` says: no credential of ours is one that
    a browser sends by itself. Raises ``TooLarge`` where it is over ``limit`` bytes, ``UnsupportedEncoding``
    where it says that it is compressed, ``Overloaded``, and what ``parse`` raises.
    """
    coding = request.headers.get("content-encoding", "")
    if coding.lower() not in ("", "identity"):
        shown = printable(coding[:_MAX_SHOWN])
        raise UnsupportedEncoding(f"the body has the Content-Encoding '{shown}'; send it without one")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit:
        raise TooLarge(f"the body is over {limit} bytes")
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise TooLarge(f"the body is over {limit} bytes")
        chunks.append(chunk)
    try:
        return await get_runtime(request).bodies.read(parse, chunks)
    except MalformedBody as error:
        kind = request.headers.get("content-type", "json")
        if "json" in kind:
            raise
        raise MalformedBody(
            f"{error.message}; its Content-Type is '{printable(kind[:_MAX_SHOWN])}'"
        ) from None


def idempotency_key(request: Request) -> str | None:
    """The header's value, or None. Raises ``InvalidRequest`` where it is not a valid key."""
    given = request.headers.get("idempotency-key")
    if given is not None and not _IDEMPOTENCY_KEY.fullmatch(given):
        raise InvalidRequest("an Idempotency-Key has 1 to 128 characters of ASCII without spaces")
    return given


def betas(request: Request, header: str) -> tuple[str, ...]:
    """The names in ``header``, which may come more than once. Raises ``InvalidRequest`` for what is none."""
    told = ",".join(request.headers.getlist(header))
    if told and not _BETAS.fullmatch(told):
        raise InvalidRequest(f"{header} is not a list of names")
    return tuple(dict.fromkeys(name for given in told.split(",") if (name := given.strip())))


def last_event_id(request: Request) -> str:
    """The id of the last frame that a client has seen, or ``""``. The header goes first, then what polyfills
    of EventSource add to the URL, which may have a position of its own already.
    """
    if seen := request.headers.get("last-event-id"):
        return seen
    if not request.scope.get("query_string"):
        return ""
    query = request.query_params
    return query.get("lastEventId") or query.get("after") or ""


def position(last_id: str) -> Position | None:
    """The position in the id of a frame, with a proof behind it or not. Raises ``BadPosition``."""
    if not last_id:
        return None
    match = _POSITION.fullmatch(last_id)
    try:
        return Position.parse(match["position"] if match else "")
    except ValueError:
        raise BadPosition("a position is <epoch>-<seq>, such as 1-42") from None
