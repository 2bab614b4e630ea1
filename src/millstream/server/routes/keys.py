"""Keys and browser tokens (spec/protocol.md §7)."""

import re
from decimal import Decimal
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema

from millstream.api_keys import MAX_OVERLAP_SECONDS, ApiKey, Changes, Scope
from millstream.auth import Principal
from millstream.errors import InvalidRequest, NotFound
from millstream.limits import PERS, WHATS, Limit, Per, What, limit_shown, make
from millstream.messages import Number, Whole
from millstream.runtime import Runtime
from millstream.server import openapi
from millstream.server.answers import OneLineJSON
from millstream.server.dependencies import get_runtime, require_api_key
from millstream.server.errors import Route
from millstream.server.requests import read_model
from millstream.tickets import BrowserToken

router = APIRouter(
    route_class=Route, default_response_class=OneLineJSON, responses=openapi.USUAL, tags=openapi.TAGS
)
_BODY_ERRORS = openapi.errors(400, 413, 415, 422)
_KEY = openapi.of(ApiKey)
_MADE = openapi.of(ApiKey, key={"type": "string"})

_MAX_KEY_BODY_BYTES = 16_384
_MAX_TOKEN_BODY_BYTES = 32_768
_MAX_LIMITS_BODY_BYTES = 32_768
_MAX_LIMITS = 64
_LIMIT = {
    "type": "object",
    "required": ["what", "per", "amount", "model", "each_user"],
    "properties": {
        "what": {"enum": list(WHATS)},
        "per": {"enum": list(PERS)},
        "model": {"type": ["string", "null"]},
        "each_user": {"type": "boolean"},
        **{name: {"type": ["integer", "string"]} for name in ("amount", "used", "reserved", "left")},
        "resets_in_seconds": {"type": ["integer", "null"]},
    },
}
_DECIMAL = re.compile(r"\d{1,16}(\.\d{1,12})?", re.ASCII)
_KEY_ID = re.compile(r"key_\w{1,28}", re.ASCII)

Admin = Annotated[Principal, Depends(require_api_key(scopes=["admin"]))]


class NewKey(BaseModel):
    """The body of ``POST /v1/keys``."""

    model_config = ConfigDict(extra="forbid")

    name: str
    scopes: list[Scope] = ["chat"]
    test: bool = False
    owner: str | None = None
    labels: dict[str, str] = {}
    expires_at: Annotated[Number | None, Field(description="Unix seconds")] = None


class KeyChanges(BaseModel):
    """The body of ``PATCH /v1/keys/{id}``; what is not in it stays."""

    model_config = ConfigDict(extra="forbid")

    name: str = ""
    owner: str | None = None
    labels: dict[str, str] = {}
    expires_at: Annotated[Number | None, Field(description="Unix seconds; null: never")] = None


class Rotation(BaseModel):
    """The body of ``POST /v1/keys/{id}/rotate``: for how long the secrets before the new one are good."""

    model_config = ConfigDict(extra="forbid")

    overlap_seconds: Annotated[Number, Field(ge=0, le=MAX_OVERLAP_SECONDS)] = 86_400


@router.post(
    "/v1/keys",
    status_code=201,
    openapi_extra=openapi.body(NewKey),
    responses=_BODY_ERRORS | openapi.answer("The key", _MADE, status=201),
)
async def create_key(request: Request, caller: Admin) -> dict[str, Any]:
    """Makes a key. ``key`` is in this answer and nowhere else."""
    asked = await read_model(request, NewKey, _MAX_KEY_BODY_BYTES)
    created, secret = await get_runtime(request).keys.create(**asked.model_dump())
    return {"key": secret, **_shown(created)}


@router.get("/v1/keys", responses=openapi.answer("All keys", openapi.listed(_KEY)))
async def list_keys(request: Request, caller: Admin) -> dict[str, Any]:
    """All keys, without their secrets."""
    return {"data": [_shown(key) for key in await get_runtime(request).keys.all()]}


@router.delete("/v1/keys/{key_id}", responses=openapi.errors(404, 422) | openapi.answer("The key", _KEY))
async def revoke_key(request: Request, key_id: str, caller: Admin) -> dict[str, Any]:
    """Revokes a key. Its running streams end within 5 s."""
    return _shown(await get_runtime(request).keys.revoke(_checked(key_id)))


@router.patch(
    "/v1/keys/{key_id}",
    openapi_extra=openapi.body(KeyChanges),
    responses=_BODY_ERRORS | openapi.errors(404) | openapi.answer("The key", _KEY),
)
async def change_key(request: Request, key_id: str, caller: Admin) -> dict[str, Any]:
    """Changes a key's name, labels or end. An owner can be given to a key that has none."""
    asked = await read_model(request, KeyChanges, _MAX_KEY_BODY_BYTES)
    changes = Changes(**asked.model_dump(exclude_unset=True))
    return _shown(await get_runtime(request).keys.change(_checked(key_id), changes))


@router.post(
    "/v1/keys/{key_id}/rotate",
    openapi_extra=openapi.body(Rotation),
    responses=_BODY_ERRORS | openapi.errors(404) | openapi.answer("The key", _MADE),
)
async def rotate_key(request: Request, key_id: str, caller: Admin) -> dict[str, Any]:
    """Gives a key another secret. `key` is in this answer and nowhere else; the one before it goes on for a
    while."""
    asked = await read_model(request, Rotation, _MAX_KEY_BODY_BYTES)
    key, secret = await get_runtime(request).keys.rotate(_checked(key_id), asked.overlap_seconds)
    return {"key": secret, **_shown(key)}


def _amount(value: object) -> Decimal:
    if isinstance(value, str) and _DECIMAL.fullmatch(value):
        return Decimal(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return Decimal(repr(value))  # of the shortest number that is this one
    raise ValueError("has to be a number, or a decimal number as text, such as 60 or '0.25'")


class LimitOfToken(BaseModel):
    """A limit (docs/guides/limits.md). ``amount`` is in dollars where it is of ``usd``."""

    model_config = ConfigDict(extra="forbid")

    what: What
    per: Per
    amount: Annotated[
        Decimal,
        PlainValidator(_amount),
        WithJsonSchema(
            {"anyOf": [{"type": "number"}, {"type": "string", "pattern": f"^{_DECIMAL.pattern}$"}]}
        ),
    ]
    model: Annotated[str, Field(max_length=256)] | None = None


class LimitOfKey(LimitOfToken):
    """The same, for the key or for ``each_user`` of it."""

    each_user: bool = False


class NewLimits(BaseModel):
    """The body of ``PUT /v1/keys/{id}/limits``: all that the key is to have."""

    model_config = ConfigDict(extra="forbid")

    limits: Annotated[list[LimitOfKey], Field(max_length=_MAX_LIMITS)]


@router.put(
    "/v1/keys/{key_id}/limits",
    openapi_extra=openapi.body(NewLimits),
    responses=_BODY_ERRORS | openapi.errors(404) | openapi.answer("The limits", openapi.listed(_LIMIT)),
)
async def set_limits(request: Request, key_id: str, caller: Admin) -> dict[str, Any]:
    """Sets the limits of a key in the place of those that it had. They hold within 2 s."""
    asked = await read_model(request, NewLimits, _MAX_LIMITS_BODY_BYTES)
    made = [_limit(one, each_user=one.each_user) for one in asked.limits]
    runtime = get_runtime(request)
    await runtime.keys.set_limits(_checked(key_id), made)
    return await _standing(runtime, key_id, None)


@router.get(
    "/v1/keys/{key_id}/limits",
    responses=openapi.errors(404, 422) | openapi.answer("The limits", openapi.listed(_LIMIT)),
)
async def get_limits(
    request: Request, key_id: str, caller: Admin, user: Annotated[str | None, Query(max_length=256)] = None
) -> dict[str, Any]:
    """The limits of a key and how they stand; those for each end user for the one that is named."""
    return await _standing(get_runtime(request), _checked(key_id), user)


async def _standing(runtime: Runtime, key_id: str, user: str | None) -> dict[str, Any]:
    limits = await runtime.keys.limits(key_id)
    return {"data": await runtime.ledger.standing(key_id, limits, user)}


def _limit(asked: LimitOfToken, *, each_user: bool = False) -> Limit:
    try:
        return make(asked.what, asked.per, asked.amount, asked.model, each_user=each_user)
    except ValueError as error:
        raise InvalidRequest(str(error)) from None


class NewToken(BaseModel):
    """The body of ``POST /v1/tokens``: what the bearer may do with it, at the expense of the key."""

    model_config = ConfigDict(extra="forbid")

    user: Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f-\x9f]{1,256}$")] | None = None
    models: Annotated[list[Annotated[str, Field(max_length=256)]], Field(max_length=64)] = []
    max_streams: Annotated[Whole, Field(ge=1, le=1000)] = 4
    max_tokens: Annotated[Whole, Field(ge=1, le=10_000_000)] | None = None
    expires_in_seconds: Annotated[Whole, Field(ge=10, le=86_400)] = 600
    limits: Annotated[list[LimitOfToken], Field(max_length=_MAX_LIMITS)] = []


@router.post(
    "/v1/tokens",
    status_code=201,
    openapi_extra=openapi.body(NewToken),
    responses=_BODY_ERRORS
    | openapi.answer(
        "The token",
        openapi.of(BrowserToken, token={"type": "string"}, limits={"type": "array", "items": _LIMIT}),
        status=201,
    ),
)
async def create_token(
    request: Request, caller: Annotated[Principal, Depends(require_api_key(scopes=["chat"]))]
) -> dict[str, Any]:
    """Makes a browser token: for a page, where a key does not belong."""
    asked = await read_model(request, NewToken, _MAX_TOKEN_BODY_BYTES)
    signer = await get_runtime(request).keys.signer()
    text, token = signer.token(
        caller.id,
        user=asked.user,
        models=tuple(asked.models),
        max_streams=asked.max_streams,
        max_tokens=asked.max_tokens,
        seconds=asked.expires_in_seconds,
        limits=tuple(_limit(one) for one in asked.limits),
    )
    limits = [limit_shown(limit) for limit in token.limits]
    return {"token": text, **msgspec.to_builtins(token), "limits": limits}


def _checked(key_id: str) -> str:
    if not _KEY_ID.fullmatch(key_id):
        raise NotFound(f"no key has the id '{key_id[:32]}'")
    return key_id


def _shown(key: ApiKey) -> dict[str, Any]:
    shown: dict[str, Any] = msgspec.to_builtins(key)
    return shown
