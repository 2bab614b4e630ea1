"""Errors as OpenAI's APIs have them, all alike: ``{"message", "type", "param", "code"}``, with our code."""

from typing import Any

from millstream.errors import InvalidRequest, MillstreamError

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "insufficient_quota",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


def status_of(error: MillstreamError) -> int:
    """The HTTP status of ``error``: these APIs have 400 for a field that is wrong."""
    return 400 if error.status == InvalidRequest.status else error.status


def shown(error: MillstreamError) -> dict[str, Any]:
    """The object that stands under ``error``."""
    status = status_of(error)
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"message": error.message, "type": kind, "param": None, "code": error.code}
