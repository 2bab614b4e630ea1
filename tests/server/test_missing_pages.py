"""A server whose pages were never built says so, and fails nowhere. spec/faults.md: P11."""

from pathlib import Path

import pytest

from application import Run
from asgi import get


@pytest.fixture(params=["no folder", "no assets", "a file in its place"])
def built(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "pages"
    if request.param == "no assets":
        folder.mkdir()
    if request.param == "a file in its place":
        folder.touch()
    monkeypatch.setattr("millstream.server.routes.pages.BUILT", folder)


@pytest.mark.usefixtures("built")
async def test_the_page_says_how_it_is_built(run: Run) -> None:
    async with run() as app, get(app.app, "/") as call:
        await call.finished()
        assert call.status == 404
        assert call.response_headers["content-type"].startswith("text/plain")
        assert "The chat page is not built: make web" in call.received.decode()


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize(
    "path", ["/assets/index.js", "/assets/", "/assets", "/assets/../app.py", "/assets/a\x00b"]
)
async def test_what_belongs_to_it_is_a_404_in_our_shape(run: Run, path: str) -> None:
    async with run() as app, get(app.app, path) as call:
        await call.finished()
        assert (call.status, call.json["error"]["code"]) == (404, "not_found")


@pytest.mark.usefixtures("built")
async def test_everything_else_works(run: Run) -> None:
    async with run() as app, get(app.app, "/v1/models", app.key) as call:
        assert (await call.finished()).status == 200
