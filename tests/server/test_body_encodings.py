"""Bodies in other encodings than JSON's: read, or refused in words that name the cause."""

import gzip
import json

import pytest

from application import Run
from asgi import Exchange
from millstream.providers import Finish
from millstream.providers.scripted import ScriptedProvider

SIZES = [0, 5000, 70_000]
WORDS = "Hé 😀"


def asked(words: str = WORDS, size: int = 0) -> str:
    body = {"model": "m", "messages": [{"role": "user", "content": words + "x" * size}]}
    return json.dumps(body, ensure_ascii=False)


async def refused(run: Run, body: bytes, **headers: str) -> tuple[int | None, str]:
    """The status and the message of the answer to ``body``, which is no other error than of the request."""
    async with run({"s": ScriptedProvider({"m": []})}) as app:
        head = {name.replace("_", "-"): value for name, value in headers.items()}
        head["authorization"] = f"Bearer {app.key}"
        async with Exchange(app.app, "POST", "/v1/chat", head, body) as call:
            await call.finished()
        assert call.json["error"]["code"] == "invalid_request", call.received
        if call.status == 415:
            assert call.response_headers["accept-encoding"] == "identity"
        return call.status, call.json["error"]["message"]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("encoded", "status", "cause"),
    [
        (lambda text: text.encode("utf-16"), 415, "UTF-16"),
        (lambda text: text.encode("utf-16-le"), 415, "UTF-16"),
        (lambda text: text.encode("utf-16-be"), 415, "UTF-16"),
        (lambda text: text.encode("utf-32"), 415, "UTF-32"),
        (lambda text: text.encode("utf-32-be"), 415, "UTF-32"),
        (lambda text: gzip.compress(text.encode()), 415, "gzip"),
        (lambda text: b"\x28\xb5\x2f\xfd" + text.encode(), 415, "zstd"),
        (lambda text: text.replace("😀", "").encode("latin-1"), 400, "UTF-8"),
        (lambda text: text.replace("😀", "\ud83d").encode("utf-8", "surrogatepass"), 400, "UTF-8"),
        (lambda text: text.replace("😀", "\\ud83d").encode(), 400, "half of a character"),
        (lambda text: text.replace("😀", "\\ude00").encode(), 400, "half of a character"),
        (lambda text: text.replace("😀", "\\ud83d\\u0041").encode(), 400, "half of a character"),
        (lambda text: " " * len(text), 400, "empty"),
    ],
    ids=[
        "utf-16",
        "le",
        "be",
        "utf-32",
        "32-be",
        "gzip",
        "zstd",
        "latin",
        "cesu",
        "high",
        "low",
        "pair",
        "blank",
    ],
)
async def test_what_json_cannot_be_is_refused_by_name(
    run: Run, encoded: object, status: int, cause: str, size: int
) -> None:
    """spec/faults.md: A30."""
    assert callable(encoded)
    made = encoded(asked(size=size))
    found, said = await refused(run, made if isinstance(made, bytes) else made.encode())
    assert (found, cause in said) == (status, True), said


@pytest.mark.parametrize("coding", ["gzip", "br", "deflate, gzip", "x" * 5000, "a\u2028b"])
async def test_a_coding_of_the_content_is_refused_by_name(run: Run, coding: str) -> None:
    """spec/faults.md: A30."""
    status, said = await refused(run, gzip.compress(asked().encode()), content_encoding=coding)
    assert status == 415
    assert "Content-Encoding" in said
    assert coding.isascii() is (coding[:20] in said)
    assert len(said) < 300


async def test_a_body_that_is_no_json_is_told_its_content_type(run: Run) -> None:
    form = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n{}\r\n--x--'
    status, said = await refused(run, form, content_type="multipart/form-data; boundary=x")
    assert status == 400
    assert "multipart/form-data" in said


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["", "with a mark"])
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "application/json"},
        {"content-type": "application/json; charset=utf-8"},
        {"content-type": 'application/json;charset="UTF8"'},
        {"content-type": "text/plain;charset=UTF-8"},
        {"content-type": "text/plain; charset=ISO-8859-1"},  # Apache's client says so of ASCII
        {"content-type": "application/x-www-form-urlencoded"},  # curl -d
        {"content-encoding": ""},
        {"content-encoding": "Identity"},
    ],
    ids=str,
)
async def test_json_is_read_whatever_it_is_called(
    run: Run, headers: dict[str, str], mark: bytes, size: int
) -> None:
    async with run({"s": ScriptedProvider({"m": [Finish("stop", None)]})}) as app:
        head = headers | {"authorization": f"Bearer {app.key}"}
        async with Exchange(app.app, "POST", "/v1/chat", head, mark + asked(size=size).encode()) as call:
            await call.finished()
        assert call.status == 200, call.received
