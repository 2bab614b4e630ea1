"""Models that fail on purpose: each does what its line of docs/guides/test-your-front-end.md says."""

import re
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from application import Run
from asgi import get, post
from millstream.errors import ConfigurationError, ModelNotFound
from millstream.runtime.providers import llm_service
from millstream.settings import ProviderSettings, Settings

GUIDE = (Path(__file__).parent.parent / "docs" / "guides" / "test-your-front-end.md").read_text(
    encoding="utf-8"
)
LINES = re.findall(
    r"^\| `(chaos/\S+)` \| .+ \| (\d+) \| `(\w+)` \| `(\w+)`, `(\w+)` \|$", GUIDE, re.MULTILINE
)


def test_the_guide_has_a_line_for_each() -> None:
    from millstream.providers.chaos import _KINDS

    names = {re.split("[/@:]", line[0])[1] for line in LINES}
    assert names == {*_KINDS, "429", "500"}


def asking(model: str) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "Hello"}]}


@pytest.mark.parametrize("line", LINES, ids=lambda line: line[0])
async def test_each_does_what_its_line_says(run: Run, line: tuple[str, ...]) -> None:
    model, words, end, status, source = line
    model = re.sub(r":\d+m?s", ":1ms", model)  # as it is, but faster
    async with run(first_byte_seconds=0.2) as app:
        async with post(app.app, "/v1/chat/stream", asking(model), app.key) as call:
            await call.finished()
        frames = [frame for frame in call.frames if isinstance(frame, dict)]
        text = "".join(frame.get("delta", "") for frame in frames)
        assert text.split() == [WORDS[n % 10] for n in range(int(words))]
        last = frames[-1] if frames else call.json
        shown = last["error"]["code"] if "error" in last else last["finish_reason"]
        assert shown == end
        (receipt,) = await app.receipts()
        assert (receipt["status"], receipt["usage_source"]) == (status, source)
        if source == "provider_final":
            assert receipt["completion_tokens"] == int(words)


WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


async def test_a_rate_limit_says_when_to_come_back(run: Run) -> None:
    async with run() as app, post(app.app, "/v1/chat/stream", asking("chaos/429"), app.key) as call:
        await call.finished()
        assert call.status == 429
        assert call.response_headers["retry-after"] == "2"


async def test_a_stall_that_lasts_is_a_timeout(run: Run) -> None:
    async with run(idle_seconds=0.05) as app:
        async with post(app.app, "/v1/chat/stream", asking("chaos/stall@3:60s"), app.key) as call:
            await call.finished()
        assert call.frames[-1]["error"]["code"] == "upstream_timeout"
        assert call.frames[-1]["error"]["message"] == "provider 'chaos' was silent for 0.05 s"


@pytest.mark.parametrize(
    "model", ["chaos", "chaos/", "chaos/x", "chaos/cut@", "chaos/cut@99999", "chaos/399", "chaos/600"]
)
async def test_any_other_name_is_no_model(run: Run, model: str) -> None:
    async with run() as app, post(app.app, "/v1/chat/stream", asking(model), app.key) as call:
        await call.finished()
        assert (call.status, call.json["error"]["code"]) == (404, "model_not_found")


async def test_nobody_is_offered_them(run: Run) -> None:
    async with run() as app:
        async with get(app.app, "/v1/models", app.key) as call:
            await call.finished()
        assert not [model["id"] for model in call.json["data"] if "chaos" in model["id"]]
        assert "chaos" not in str(app.millstream.llm_service.unready)


MINE = {"mine": ProviderSettings(type="scripted")}


@pytest.mark.parametrize(
    ("terminal", "values", "there"),
    [
        (False, {}, False),
        (True, {}, True),
        (True, {"require_provider": True}, False),
        (False, {"require_provider": False}, True),
        (False, {"require_provider": True, "chaos": True}, True),
        (True, {"chaos": False}, False),
    ],
)
async def test_they_are_there_where_a_script_would_be(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, values: dict[str, Any], there: bool
) -> None:
    monkeypatch.delenv("MILLSTREAM_REQUIRE_PROVIDER")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    service = llm_service(Settings(providers=MINE, **values), {})
    with nullcontext() if there else pytest.raises(ModelNotFound):
        await service.resolve("chaos/cut@40")
    await service.close()


def test_they_do_not_stand_in_for_a_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MILLSTREAM_REQUIRE_PROVIDER")
    with pytest.raises(ConfigurationError, match="no provider is set"):
        llm_service(Settings(require_provider=True, chaos=True), {})
