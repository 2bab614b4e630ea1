"""The pages: files that ``web/`` was built into."""

import os
import re
from mimetypes import guess_type
from pathlib import Path

from fastapi import APIRouter, Response
from fastapi.responses import HTMLResponse, PlainTextResponse
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

BUILT = Path(__file__).parents[1] / "pages"

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

router = APIRouter(include_in_schema=False)


@router.api_route("/", methods=["GET", "HEAD"])
async def chat_page() -> Response:
    return _page("index.html", "The chat page")


@router.api_route("/docs", methods=["GET", "HEAD"])
async def docs_page() -> Response:
    """The OpenAPI document, shown by Swagger UI."""
    return _page("docs.html", "The page that shows /openapi.json")


def is_built() -> bool:
    return (BUILT / "index.html").is_file()


def _page(name: str, words: str) -> Response:
    try:
        html = (BUILT / name).read_bytes()  # of a few hundred bytes
    except OSError:
        return PlainTextResponse(f"{words} is not built: make web\n", 404)
    return HTMLResponse(html, headers={**_HEADERS, "Cache-Control": "no-cache"})


_HASHED = re.compile(r"-[\w-]{8}\.\w+$")
_ENCODINGS = {"br": ".br", "gzip": ".gz"}  # the better one first


class _Assets(StaticFiles):
    """Files that lie beside themselves compressed. A name with a hash in it never changes what it names."""

    async def check_config(self) -> None:
        """A folder that was never built is none to fail for: nothing is found in it."""

    def lookup_path(self, path: str) -> tuple[str, os.stat_result | None]:
        # Older versions of Starlette let the file system complain of such a name.
        return ("", None) if "\0" in path else super().lookup_path(path)

    async def get_response(self, path: str, scope: Scope) -> Response:
        accepted = _accepted(Headers(scope=scope).get("accept-encoding", ""))
        for encoding, ending in _ENCODINGS.items():
            if encoding in accepted and (found := await self._compressed(path, ending, scope)) is not None:
                found.headers["Content-Encoding"] = encoding
                return self._described(path, found)
        return self._described(path, await super().get_response(path, scope))

    async def _compressed(self, path: str, ending: str, scope: Scope) -> Response | None:
        try:
            found = await super().get_response(path + ending, scope)
        except HTTPException:
            return None
        if found.status_code == 200:
            found.headers["Content-Type"] = _media_type(path)
        return found

    def _described(self, path: str, response: Response) -> Response:
        response.headers.update({"Vary": "Accept-Encoding", "X-Content-Type-Options": "nosniff"})
        hashed = _HASHED.search(path) is not None
        response.headers["Cache-Control"] = "public, max-age=31536000, immutable" if hashed else "no-cache"
        return response


def _accepted(header: str) -> set[str]:
    """The encodings that a client takes (RFC 9110 §12.5.3), but for ``*``, which nobody sends alone."""
    found = set()
    for item in header.split(","):
        name, _, weight = item.partition(";")
        if not re.fullmatch(r"\s*q=0(\.0*)?\s*", weight):
            found.add(name.strip().lower())
    return found


def _media_type(path: str) -> str:
    kind = guess_type(path)[0] or "application/octet-stream"
    return f"{kind}; charset=utf-8" if kind.startswith("text/") else kind


def assets() -> Mount:
    """Scripts and styles, whose names change with their content."""
    return Mount("/assets", _Assets(directory=BUILT / "assets", check_dir=False))
