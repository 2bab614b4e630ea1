"""What belongs to the pages goes out compressed, and is asked for once."""

from pathlib import Path

import pytest

from application import Run
from asgi import get

FILES = {
    "index-AbC_12-x.js": b"script",
    "index-AbC_12-x.js.br": b"br of it",
    "index-AbC_12-x.js.gz": b"gz of it",
    "style-12345678.css": b"style",
    "licenses.md": b"notices",
}


@pytest.fixture(autouse=True)
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "pages" / "assets"
    folder.mkdir(parents=True)
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    monkeypatch.setattr("millstream.server.routes.pages.BUILT", folder.parent)


@pytest.mark.parametrize(
    ("accepts", "encoding", "body"),
    [
        ("gzip, deflate, br, zstd", "br", b"br of it"),
        ("gzip", "gzip", b"gz of it"),
        ("br;q=0, GZIP;q=0.5", "gzip", b"gz of it"),
        ("identity", None, b"script"),
        ("", None, b"script"),
    ],
)
async def test_a_browser_gets_what_it_takes(
    run: Run, accepts: str, encoding: str | None, body: bytes
) -> None:
    async with (
        run() as app,
        get(app.app, "/assets/index-AbC_12-x.js", accept_encoding=accepts) as call,
    ):
        await call.finished()
        assert (call.status, call.received) == (200, body)
        headers = call.response_headers
        assert headers.get("content-encoding") == encoding
        assert headers["content-type"].startswith("text/javascript")
        assert int(headers["content-length"]) == len(body)
        assert headers["vary"] == "Accept-Encoding"
        assert headers["cache-control"] == "public, max-age=31536000, immutable"


async def test_what_is_not_compressed_goes_out_as_it_is(run: Run) -> None:
    async with (
        run() as app,
        get(app.app, "/assets/style-12345678.css", accept_encoding="br, gzip") as call,
    ):
        await call.finished()
        assert (call.status, call.received) == (200, b"style")
        assert "content-encoding" not in call.response_headers


async def test_a_name_without_a_hash_is_asked_for_again(run: Run) -> None:
    async with run() as app, get(app.app, "/assets/licenses.md") as call:
        await call.finished()
        assert (call.status, call.response_headers["cache-control"]) == (200, "no-cache")
