"""Usage: totals of the ledger (spec/protocol.md §7)."""

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Query, Request

from millstream.auth import Principal
from millstream.ledger.reports import Total
from millstream.server import openapi
from millstream.server.answers import OneLineJSON
from millstream.server.dependencies import get_api_key, get_runtime
from millstream.server.errors import Route
from millstream.usage import Group

router = APIRouter(route_class=Route, default_response_class=OneLineJSON, responses=openapi.USUAL)


@router.get(
    "/v1/usage",
    responses=openapi.errors(422) | openapi.answer("The totals", openapi.listed(openapi.of(Total))),
)
async def usage(
    request: Request,
    caller: Annotated[Principal, Depends(get_api_key)],
    by: Group = "key",
    since: Annotated[float | None, Query(description="Unix seconds, inclusive")] = None,
    until: Annotated[float | None, Query(description="Unix seconds, exclusive")] = None,
    test: Annotated[
        bool | None,
        Query(description="those of test keys; by default not, but for a test key that asks for its own"),
    ] = None,
) -> dict[str, Any]:
    """Totals: of all keys with the scope ``usage`` or ``admin``, else of the caller's own."""
    sees_all = caller.may(["usage"]) or caller.may(["admin"])
    totals = await get_runtime(request).meter.totals(
        by,
        since=since,
        until=until,
        key_id=None if sees_all else caller.id,
        test=caller.test and not sees_all if test is None else test,
    )
    shown = totals if sees_all else [total.for_customer() for total in totals]
    return {"by": by, "data": msgspec.to_builtins(shown)}
