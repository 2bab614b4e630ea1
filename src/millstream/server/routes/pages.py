"""The chat page: files that ``web/`` was built into."""

from pathlib import Path

from fastapi import APIRouter, Response
from fastapi.responses import FileResponse, PlainTextResponse
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

_BUILT = Path(__file__).parents[1] / "pages"

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

router = APIRouter(include_in_schema=False)


@router.get("/")
async def chat_page() -> Response:
    index = _BUILT / "index.html"
    if not index.is_file():
        return PlainTextResponse("The chat page is not built: make web\n", 404)
    return FileResponse(index, headers={**_HEADERS, "Cache-Control": "no-cache"})


def assets() -> Mount:
    """Scripts and styles, whose names change with their content."""
    return Mount("/assets", StaticFiles(directory=_BUILT / "assets", check_dir=False))
