"""The root path: where a proxy serves Millstream below a path of its own, such as ``/ai``.

ASGI keeps it in front of every path (``root_path``), so what routes say of themselves begins with it too.
"""

import re
from urllib.parse import quote

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

_ENDPOINT = re.compile(r"/(v1/(?!.*/v1/).*|api/chat(/.*)?|ag-ui)$")


class BelowRootPath:
    """A middleware for requests whose path begins with ``root_path``, or no longer does: some proxies take it
    away, and some do not.
    """

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app = app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = scope["path"]
            whole = path if path.startswith(f"{self._root_path}/") else self._root_path + path
            scope = {**scope, "path": whole, "root_path": self._root_path}
        await self._app(scope, receive, send)


def stream_url(request: Request, stream_id: str) -> str:
    """The path of a stream, below whatever the client has in front of the endpoint that it asked."""
    path: str = request.scope["path"]
    root_path: str = request.scope.get("root_path", "").rstrip("/")
    if not path.startswith(f"{root_path}/"):  # the proxy took it away, and the server has not put it back
        path = root_path + path
    return f"{quote(_ENDPOINT.sub('', path))}/v1/streams/{stream_id}"
