"""Usage: totals of the ledger (spec/protocol.md §7)."""

import time
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Query, Request, Response
from msgspec.structs import replace

from millstream.auth import Principal
from millstream.errors import InvalidRequest
from millstream.ledger import periods, reports, tables
from millstream.ledger.reports import Asked, Total
from millstream.server import openapi
from millstream.server.answers import OneLineJSON
from millstream.server.dependencies import get_api_key, get_runtime
from millstream.server.errors import Route
from millstream.server.requests import Moment, Text

router = APIRouter(
    route_class=Route, default_response_class=OneLineJSON, responses=openapi.USUAL, tags=openapi.TAGS
)

_TOTAL = openapi.of(Total)
_PREVIOUS = openapi.listed(_TOTAL, since={"type": "number"}, until={"type": "number"})
_ANSWER = openapi.listed(_TOTAL, by={"type": "array", "items": {"type": "string"}})
_ANSWER["properties"]["previous"] = _PREVIOUS
_CSV = {"text/csv": {"schema": {"type": "string"}}}
_RESPONSES = openapi.errors(422) | openapi.answer("The totals", _ANSWER)
_RESPONSES[200]["content"] |= _CSV


@router.get("/v1/usage", responses=_RESPONSES)
async def usage(
    request: Request,
    caller: Annotated[Principal, Depends(get_api_key)],
    by: Annotated[
        str, Query(description=f"one or several of {', '.join(reports.DIMENSIONS)}, with commas between them")
    ] = "key",
    since: Annotated[Moment | None, Query(description="Unix seconds, inclusive")] = None,
    until: Annotated[Moment | None, Query(description="Unix seconds, exclusive")] = None,
    zone: Annotated[str, Query(description="whose days and months: a name such as `Europe/Paris`")] = "UTC",
    key: Annotated[Text | None, Query(description="of one key, by its id")] = None,
    owner: Annotated[Text | None, Query(description="of the keys of one owner")] = None,
    test: Annotated[
        bool | None,
        Query(description="those of test keys; by default not, but for a test key that asks for its own"),
    ] = None,
    percentiles: Annotated[bool, Query(description="of the time to the first event")] = False,
    compare: Annotated[bool, Query(description="also the period before, in `previous`")] = False,
) -> Any:
    """Totals: of all keys with the scope `usage` or `admin`, else of the caller's own. As CSV with `Accept:
    text/csv`."""
    as_table = "text/csv" in request.headers.get("accept", "")
    if as_table and compare:
        raise InvalidRequest(
            "a table has no place for the period before; ask for that one by its since and until, or for JSON"
        )
    sees_all = caller.may(["usage"]) or caller.may(["admin"])
    if test is None:
        test = caller.test and not sees_all
    if not sees_all:
        key = caller.id
    asked = Asked(reports.dimensions(by), since, until, zone, key, owner, test, percentiles)
    data = await _totals(request, asked, sees_all=sees_all)
    if as_table:
        table = tables.of_totals(asked.by, data, percentiles=percentiles)
        return Response(table, media_type="text/csv")
    answer: dict[str, Any] = {"by": asked.by, "data": msgspec.to_builtins(data)}
    if compare:
        if since is None:
            raise InvalidRequest("to compare with the period before needs since")
        end = time.time() if until is None else until
        if end < since:
            raise InvalidRequest("to compare with the period before needs until after since")
        start, end = periods.before(since, end, periods.zone_of(zone))
        before = await _totals(request, replace(asked, since=start, until=end), sees_all=sees_all)
        answer["previous"] = {"since": start, "until": end, "data": msgspec.to_builtins(before)}
    return answer


async def _totals(request: Request, asked: Asked, *, sees_all: bool) -> list[Total]:
    totals = await get_runtime(request).meter.totals(
        ",".join(asked.by),
        since=asked.since,
        until=asked.until,
        zone=asked.zone,
        key_id=asked.key_id,
        owner=asked.owner,
        test=asked.test,
        percentiles=asked.percentiles,
    )
    return totals if sees_all else [total.for_customer() for total in totals]
