"""Health: is the process up, and may it be sent work?"""

import sqlalchemy as sa
from fastapi import APIRouter, Request, Response

from millstream.database import AWAY
from millstream.errors import Overloaded
from millstream.server.dependencies import get_millstream
from millstream.server.requests import Route

router = APIRouter(route_class=Route)


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz")
async def readyz(request: Request, response: Response) -> dict[str, str]:
    """The database and the log answer and the server is not shutting down; else 503."""
    millstream = get_millstream(request)
    if millstream.generations.draining:
        response.status_code = 503
        return {"status": "draining"}
    try:
        await millstream.database.read(lambda connection: connection.execute(sa.text("SELECT 1")))
    except AWAY:
        response.status_code = 503
        return {"status": "the database does not answer"}
    try:
        await millstream.event_log.ping()
    except Overloaded:
        response.status_code = 503
        return {"status": "the log does not answer"}
    return {"status": "ok"}
