"""Streams: what is known of one after its start (spec/protocol.md §5)."""

import re
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Request

from millstream.auth import Principal
from millstream.errors import NotFound
from millstream.server.dependencies import get_api_key, get_millstream
from millstream.server.requests import Route

router = APIRouter(route_class=Route)

_STREAM_ID = re.compile(r"[\w-]{1,64}", re.ASCII)


@router.get("/v1/streams/{stream_id}")
async def receipt(
    request: Request, stream_id: str, caller: Annotated[Principal, Depends(get_api_key)]
) -> dict[str, Any]:
    """The stream's receipt. A stream of another key answers like one that does not exist."""
    if not _STREAM_ID.fullmatch(stream_id):
        raise NotFound(f"there is no stream '{stream_id[:64]}'")
    found = await get_millstream(request).ledger.receipt(stream_id)
    if found.key_id != caller.id and not caller.may(["admin"]):
        raise NotFound(f"there is no stream '{stream_id}'")
    receipt: dict[str, Any] = msgspec.to_builtins(found)
    return receipt
