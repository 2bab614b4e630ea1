"""The page that shows the API: its own files and nobody else's. spec/faults.md: A13."""

import re
from pathlib import Path

import pytest

from application import Run
from asgi import get


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the place of what ``web/`` is built into."""
    folder = tmp_path / "pages"
    monkeypatch.setattr("millstream.server.routes.pages.BUILT", folder)
    return folder


async def test_the_docs_are_a_page_of_ours_that_may_load_nothing_from_elsewhere(
    run: Run, built: Path
) -> None:
    built.mkdir()
    (built / "docs.html").write_text("<!doctype html>")
    async with run() as app, get(app.app, "/docs") as call:
        await call.finished()
        assert (call.status, call.received) == (200, b"<!doctype html>")
        policy = call.response_headers["content-security-policy"]
        assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
        assert not re.search(r"unsafe|https?:|\*", policy)


@pytest.mark.parametrize("path", ["/docs", "/docs/oauth2-redirect", "/redoc"])
async def test_no_page_of_the_frameworks_is_left(run: Run, built: Path, path: str) -> None:
    async with run() as app, get(app.app, path) as call:
        await call.finished()
        assert call.status == 404
        assert b"<script" not in call.received


async def test_without_a_build_the_docs_say_so(run: Run, built: Path) -> None:
    async with run() as app:
        async with get(app.app, "/docs") as call:
            await call.finished()
            assert (call.status, "not built: make web" in call.received.decode()) == (404, True)
            assert call.response_headers["content-type"].startswith("text/plain")
        async with get(app.app, "/openapi.json") as call:
            assert (await call.finished()).status == 200
