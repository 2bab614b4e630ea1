"""AG-UI, for ``HttpAgent``, CopilotKit and TanStack AI (spec/protocol.md §6)."""

from fastapi import APIRouter, Request, Response

from millstream.dialects.ag_ui import AG_UI
from millstream.server import openapi
from millstream.server.errors import route_in
from millstream.server.routes.chat import Caller, speak

router = APIRouter(route_class=route_in(AG_UI), responses=openapi.FOREIGN, tags=openapi.TAGS)


@router.post(
    "/ag-ui",
    response_class=Response,
    openapi_extra=openapi.ANY_BODY,
    responses=openapi.STREAMED,
)
async def run_agent(request: Request, caller: Caller) -> Response:
    """A `RunAgentInput`, answered with the events of its run."""
    return await speak(request, caller, AG_UI)
