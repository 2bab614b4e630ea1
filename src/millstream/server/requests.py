"""Requests in: bodies and headers, read and checked."""

import re
from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from millstream.errors import InvalidRequest, TooLarge
from millstream.server.errors import invalid

Body = TypeVar("Body", bound=BaseModel)

_IDEMPOTENCY_KEY = re.compile(r"[!-~]{1,128}")


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
        raise invalid(error.errors(include_url=False, include_input=False)) from None


def idempotency_key(request: Request) -> str | None:
    """The header's value, or None. Raises ``InvalidRequest`` where it is not a valid key."""
    given = request.headers.get("idempotency-key")
    if given is not None and not _IDEMPOTENCY_KEY.fullmatch(given):
        raise InvalidRequest("an Idempotency-Key has 1 to 128 characters of ASCII without spaces")
    return given
