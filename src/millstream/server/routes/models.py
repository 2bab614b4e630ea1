"""Models: which can be asked (spec/protocol.md §6)."""

from typing import Any

from fastapi import APIRouter, Request

from millstream.server.answers import OneLineJSON
from millstream.server.dependencies import get_runtime
from millstream.server.errors import Route
from millstream.server.routes.chat import Caller

router = APIRouter(route_class=Route, default_response_class=OneLineJSON)


@router.get("/v1/models")
async def models(request: Request, caller: Caller) -> dict[str, Any]:
    """The models that are ready, the default first."""
    found = get_runtime(request).llm_service.models
    return {
        "object": "list",
        "data": [
            {"id": name, "object": "model", "created": 0, "owned_by": provider}
            for name, provider in found.items()
        ],
    }
