"""Health: is the worker up, and may it be sent work?"""

from fastapi import APIRouter, Request, Response

from millstream.server import openapi
from millstream.server.answers import OneLineJSON
from millstream.server.dependencies import get_runtime
from millstream.server.errors import Route

router = APIRouter(route_class=Route, default_response_class=OneLineJSON, tags=openapi.TAGS)


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The worker answers."""
    return {"status": "ok"}


@router.get("/readyz", responses=openapi.answer("What is missing", openapi.STATUS, status=503))
async def readyz(request: Request, response: Response) -> dict[str, str]:
    """The database and the journal answer and the server is not shutting down; else 503."""
    runtime = get_runtime(request)
    if runtime.streams.draining:
        response.status_code = 503
        return {"status": "draining"}
    problem = await runtime.readiness.problem()
    if problem is None and runtime.ledger.is_away:
        problem = "the ledger cannot be written"
    if problem is not None:
        response.status_code = 503
    return {"status": problem or "ok"}
