"""Requests in: bodies and headers, read and checked."""

import re
from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel

from millstream.errors import InvalidRequest, TooLarge
from millstream.server.dependencies import get_runtime

Body = TypeVar("Body", bound=BaseModel)

_IDEMPOTENCY_KEY = re.compile(r"[!-~]{1,128}")


async def read_body(request: Request, model: type[Body], limit: int) -> Body:
    """The body as a ``model``. Raises ``TooLarge`` where it is over ``limit`` bytes, and what
    ``BodyValidator.validate`` raises.
    """
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
    return await get_runtime(request).bodies.validate(model, chunks)


def idempotency_key(request: Request) -> str | None:
    """The header's value, or None. Raises ``InvalidRequest`` where it is not a valid key."""
    given = request.headers.get("idempotency-key")
    if given is not None and not _IDEMPOTENCY_KEY.fullmatch(given):
        raise InvalidRequest("an Idempotency-Key has 1 to 128 characters of ASCII without spaces")
    return given
