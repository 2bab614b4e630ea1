"""FastAPI dependencies, usable on any route of an application that runs Millstream's lifespan.

None of them holds anything while a response streams: no database session, no slot.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping
from inspect import isawaitable, iscoroutinefunction, signature
from typing import Any

from fastapi.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection

from millstream.api_keys import SCOPES, Scope
from millstream.auth import Principal, check_payer
from millstream.catalog import LLMService
from millstream.errors import Forbidden, MillstreamError, Misuse, Overloaded, Unauthorized
from millstream.meter import Meter
from millstream.runtime import NotRunning, Runtime
from millstream.server.errors import STATE, Refused
from millstream.server.openapi import KEY
from millstream.tickets import is_signed

_CHAT: tuple[Scope, ...] = ("chat",)


def get_runtime(request: HTTPConnection) -> Runtime:
    """What runs in the application. Raises ``NotRunning`` where its lifespan does not."""
    runtime: Runtime | None = getattr(request.app.state, STATE, None)
    if runtime is None:
        raise NotRunning
    return runtime


def _credential(request: HTTPConnection) -> str:
    header = request.headers.get("authorization")
    if header is None:
        return request.headers.get("x-api-key", "").strip()
    scheme, _, credential = header.partition(" ")
    if scheme.lower() != "bearer":
        raise Refused(Unauthorized())
    return credential.strip()


async def get_api_key(request: HTTPConnection, _: None = KEY) -> Principal:
    """Whoever sent a valid key, in ``Authorization: Bearer`` or ``X-API-Key``. Otherwise 401, or 503 where
    too many unknown keys are being tried.
    """
    try:
        return await get_runtime(request).keys.verify(_credential(request))
    except (Unauthorized, Overloaded) as error:
        raise Refused(error) from None


async def get_principal(request: HTTPConnection, _: None = KEY) -> Principal:
    """Whoever sent a valid key, or a browser token of one. Otherwise 401."""
    credential = _credential(request)
    if not is_signed(credential):
        return await get_api_key(request)
    try:
        return await get_runtime(request).keys.verify_token(credential)
    except Unauthorized as error:
        raise Refused(error) from None


def require_api_key(*, scopes: Collection[Scope] = _CHAT) -> Callable[[HTTPConnection], Awaitable[Principal]]:
    """A dependency like ``get_api_key`` that also asks for scopes: 403 where the key lacks one.

    ``Depends(require_api_key(scopes=["usage"]))``
    """
    return _require(get_api_key, scopes)


def require_principal(
    *, scopes: Collection[Scope] = _CHAT
) -> Callable[[HTTPConnection], Awaitable[Principal]]:
    """The same, also for a browser token, which has the scope ``chat`` and no other."""
    return _require(get_principal, scopes)


async def identify(
    request: HTTPConnection, get: Callable[[HTTPConnection], Awaitable[Principal]] = get_principal
) -> Principal:
    """What ``get`` says, or what the application has put in its place or in that of ``get_api_key``
    (``app.dependency_overrides``), which takes the request or nothing.
    """
    overrides: Mapping[Any, Callable[..., Any]] = getattr(request.app, "dependency_overrides", {})
    instead = overrides.get(get) or overrides.get(get_api_key)
    if instead is None:
        return await get(request)
    try:
        found = await _called(instead, request)
    except MillstreamError as error:
        raise Refused(error) from None
    if not isinstance(found, Principal):
        raise Misuse(f"the login of this application returns a Principal, not a {type(found).__name__}")
    check_payer(found.id)
    return found


async def _called(login: Callable[..., Any], request: HTTPConnection) -> object:
    """What a login of the application's own says, in a thread where it is no coroutine function: it may look
    into a database. Raises ``Misuse`` where it wants anything but the request.
    """
    wanted = signature(login).parameters.values()
    if len(wanted) > 1 or any(one.default is not one.empty or one.kind is one.KEYWORD_ONLY for one in wanted):
        raise Misuse("the login of this application takes the request or nothing; FastAPI fills in no more")
    given = (request,) if wanted else ()
    if iscoroutinefunction(login):
        return await login(*given)
    found = await run_in_threadpool(login, *given)
    return await found if isawaitable(found) else found


def _require(
    get: Callable[[HTTPConnection], Awaitable[Principal]], scopes: Collection[Scope]
) -> Callable[[HTTPConnection], Awaitable[Principal]]:
    needed = frozenset(scopes)
    if isinstance(scopes, str) or not needed.issubset(SCOPES):
        raise Misuse(f"scopes are a list of {', '.join(SCOPES)}, not {scopes!r}")

    async def principal(request: HTTPConnection, _: None = KEY) -> Principal:
        found = await identify(request, get)
        if not found.may(needed):
            lacking = ", ".join(sorted(needed - found.scopes))
            raise Refused(Forbidden(f"this key lacks the scope {lacking}"))
        return found

    return principal


async def get_llm_service(request: HTTPConnection) -> LLMService:
    """Models by name, for your own code."""
    return get_runtime(request).llm_service


async def get_meter(request: HTTPConnection) -> Meter:
    """Where your own routes record usage."""
    return get_runtime(request).meter
