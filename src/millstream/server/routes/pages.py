"""The pages: files that ``web/`` was built into."""

import os
from pathlib import Path

from fastapi import APIRouter, Response
from fastapi.responses import HTMLResponse, PlainTextResponse
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

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


class _Assets(StaticFiles):
    async def check_config(self) -> None:
        """A folder that was never built is none to fail for: nothing is found in it."""

    def lookup_path(self, path: str) -> tuple[str, os.stat_result | None]:
        # Older versions of Starlette let the file system complain of such a name.
        return ("", None) if "\0" in path else super().lookup_path(path)


def assets() -> Mount:
    """Scripts and styles, whose names change with their content."""
    return Mount("/assets", _Assets(directory=BUILT / "assets", check_dir=False))
