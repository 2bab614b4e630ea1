"""The OpenAPI document: what routes say of themselves beyond their signatures.

Schemas stand where they are used, without references: a route that somebody's own application includes brings
everything that its part of that application's document needs.
"""

from collections.abc import Mapping
from enum import Enum
from typing import Any, TypeAlias

import msgspec
from fastapi import Depends, FastAPI
from fastapi.openapi.models import HTTPBearer
from fastapi.openapi.utils import get_openapi
from fastapi.security.base import SecurityBase
from pydantic import BaseModel

from millstream.usage import TOKEN_KINDS

Responses: TypeAlias = dict[int | str, dict[str, Any]]

_TEXT = {"type": "string"}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message", "request_id"],
            "properties": {"code": _TEXT, "message": _TEXT, "request_id": _TEXT},
        }
    },
}
_STATUSES = {
    400: "The body or a position cannot be read",
    401: "No valid credential",
    402: "Less of a budget is left than the answer may need",
    403: "The credential lacks a scope, or the model has no price and the key a budget in dollars",
    404: "There is no such thing, or not for this credential",
    410: "The stream's events are no longer kept",
    413: "The body is too large",
    415: "The body has an encoding that is not read",
    422: "A field is wrong",
    429: "A limit of the key or user, too many streams or readers, or the provider's rate limit",
    500: "A fault of ours; the log has its cause under the request's id",
    502: "The provider failed or refused",
    503: "Another moment or another worker can; `Retry-After` says when",
    504: "The provider did not answer in time",
}


def _json(what: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"description": what, "content": {"application/json": {"schema": schema}}}


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """``schema`` with every definition in the place of its references; none of ours contains itself."""
    definitions = schema.get("$defs", {})

    def walk(value: Any) -> Any:
        if isinstance(value, list):
            return [walk(item) for item in value]
        if not isinstance(value, dict):
            return value
        if (name := value.get("$ref")) is not None:
            return walk(definitions[name.rpartition("/")[2]])
        # A discriminator's mapping would be references too; its property says enough.
        kept = {key: item for key, item in value.items() if key not in ("$defs", "mapping")}
        return {key: walk(item) for key, item in kept.items()}

    found: dict[str, Any] = walk(schema)
    return found


def errors(*statuses: int) -> Responses:
    """Answers in the one form that errors have (spec/protocol.md §8)."""
    return {status: _json(_STATUSES[status], _ERROR) for status in statuses}


def answer(what: str, schema: Mapping[str, Any], *, status: int = 200) -> Responses:
    """An answer in JSON."""
    return {status: _json(what, schema)}


def body(model: type[BaseModel]) -> dict[str, Any]:
    """A request body that the route reads itself."""
    schema = _inlined(model.model_json_schema())
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def of(struct: Any, *, without: str = "", **more: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a struct, with ``more`` properties."""
    schema = _inlined(msgspec.json.schema(struct))
    properties = {name: value for name, value in schema["properties"].items() if name != without} | more
    required = [name for name in schema.get("required", ()) if name != without] + [*more]
    return {**schema, "properties": properties, "required": required}


def listed(item: Mapping[str, Any], **more: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a list as all endpoints have it, with ``more`` properties."""
    properties = {"data": {"type": "array", "items": item}, **more}
    return {"type": "object", "required": [*properties], "properties": properties}


_USAGE = {
    "type": "object",
    "properties": {
        **{kind: {"type": "integer"} for kind in ("total_tokens", *TOKEN_KINDS)},
        "source": _TEXT,
        "tokenizer": _TEXT,
        "cost_usd": {"type": ["string", "null"]},
    },
}
ANSWER = {
    "type": "object",
    "required": ["stream_id", "model", "content", "finish_reason", "usage"],
    "properties": {
        **dict.fromkeys(("stream_id", "model", "content", "reasoning", "refusal", "finish_reason"), _TEXT),
        "tool_calls": {"type": "array", "items": {"type": "object"}},
        "files": {"type": "array", "items": {"type": "object"}},
        "usage": _USAGE,
    },
}
STARTED = {
    "type": "object",
    "required": ["stream_id", "events_url", "cancel_url", "expires_at"],
    "properties": {
        **dict.fromkeys(("stream_id", "events_url", "cancel_url"), _TEXT),
        "expires_at": {"type": "integer"},
    },
}
STATUS = {"type": "object", "properties": {"status": _TEXT}}
STREAMED: Responses = {
    200: {
        "description": "The answer as Server-Sent Events, ended by `[DONE]` or an error frame.",
        "content": {"text/event-stream": {"schema": {"type": "string", "format": "event-stream"}}},
    }
}
STREAMED_OR_WHOLE: Responses = {
    200: {
        "description": "The answer: as Server-Sent Events where the body asks for a stream, else as JSON.",
        "content": {
            **STREAMED[200]["content"],
            "application/json": {"schema": {"type": "object"}},
        },
    }
}
STOPPED = {
    "type": "object",
    "required": ["stream_id", "status"],
    "properties": {name: {"type": ["string", "null"]} for name in ("stream_id", "status")},
}
COUNTED = {
    "type": "object",
    "required": ["input_tokens"],
    "properties": {"input_tokens": {"type": "integer"}},
}
ANY_BODY: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}
}
USUAL = errors(401, 403, 500, 503)
CHAT = USUAL | errors(400, 402, 404, 413, 415, 422, 429, 502, 504)

# Errors of other formats have the shape of their format, with the same codes.
FOREIGN: Responses = {
    status: {"description": what, "content": {"application/json": {"schema": {"type": "object"}}}}
    for status, what in _STATUSES.items()
}


class _Key(SecurityBase):
    """Says in a document that a route asks for a key, and does nothing else."""

    def __init__(self) -> None:
        self.model = HTTPBearer(description="An API key of Millstream's")
        self.scheme_name = "millstream_key"

    async def __call__(self) -> None: ...


KEY = Depends(_Key())
TAGS: list[str | Enum] = ["millstream"]


def schema(app: FastAPI) -> dict[str, Any]:
    """The document of the application that is all ours."""
    if app.openapi_schema is None:
        app.openapi_schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
    return app.openapi_schema
