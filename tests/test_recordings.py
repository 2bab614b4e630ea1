"""Recordings: what was produced is produced again, and nothing else is kept. docs/guides/test-your-front-end.md."""

import asyncio
import itertools
import json
import re
import shlex
import tomllib
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from application import Run
from asgi import post
from millstream import cli
from millstream.errors import (
    ConfigurationError,
    ProviderError,
    RequestRefused,
    UpstreamError,
    UpstreamRateLimited,
)
from millstream.events import (
    AnswerStart,
    File,
    Reasoning,
    ReasoningDelta,
    RefusalDelta,
    Source,
    Text,
    TextDelta,
)
from millstream.prompt import Message, Prompt
from millstream.prompt import Text as Words
from millstream.providers import Finish, InChoice, PartBreak, Produced, ToolCallPiece, UsageReport
from millstream.providers.replay import Recorder, ReplayProvider
from millstream.settings import ModelSettings
from millstream.usage import Usage

GUIDE = (Path(__file__).parent.parent / "docs" / "guides" / "test-your-front-end.md").read_text(
    encoding="utf-8"
)
HI = Prompt((Message("user", (Words("Hi"),)),))
USAGE = Usage(1, 2, "provider_final", 1, 1)

EVERYTHING: list[Sequence[Produced]] = [
    [AnswerStart("openai", "c-1", "m", USAGE, {"created": 1})],
    [ReasoningDelta("hm"), PartBreak(Reasoning("sig")), Reasoning(redacted="x"), TextDelta("Grüße\u2028\n", extra={"a": 1})],
    [PartBreak(Text({"a": 1})), RefusalDelta("no"), File("image/png", "data:image/png;base64,AA=="), Source("https://a")],
    [ToolCallPiece(0, "{", "c", "f", {"google": {}}), ToolCallPiece(0, "}"), PartBreak(index=0)],
    [InChoice(1, TextDelta("b")), InChoice(1, ToolCallPiece(0, "{}", "d", "g")), InChoice(1, Finish("stop", None))],
    [USAGE, UsageReport(USAGE, {"prompt_tokens": 1}, Decimal("0.25"))],
    [Finish("length", USAGE, "max_tokens", "END", {"a": 1})],
]  # fmt: skip


def recorded(folder: Path, batches: Sequence[Sequence[Produced]], name: str = "one", **given: Any) -> Path:
    with Recorder(folder, name, "m", **given) as recorder:
        for batch in batches:
            recorder.add(batch)
    return recorder.path


async def played(folder: Path, model: str = "one@0") -> list[Sequence[Produced]]:
    return [batch async for batch in ReplayProvider(folder).stream(HI, model)]


async def test_what_was_produced_is_produced_again(tmp_path: Path) -> None:
    recorded(tmp_path, EVERYTHING)
    assert await played(tmp_path) == EVERYTHING


@pytest.mark.parametrize(
    "failed",
    [
        UpstreamError("broke"),
        RequestRefused("no", accepted=False),
        UpstreamRateLimited("later", retry_after_seconds=7),
    ],
)
async def test_an_error_belongs_to_the_recording(tmp_path: Path, failed: ProviderError) -> None:
    with pytest.raises(ProviderError), Recorder(tmp_path, "one", "m") as recorder:
        recorder.add([TextDelta("a")])
        raise failed
    stream = ReplayProvider(tmp_path).stream(HI, "one@0")
    assert await anext(stream) == [TextDelta("a")]
    with pytest.raises(type(failed)) as caught:
        await anext(stream)
    assert caught.value.message == failed.message
    assert (caught.value.accepted, caught.value.retry_after_seconds) == (
        failed.accepted,
        failed.retry_after_seconds,
    )


@pytest.mark.parametrize(("model", "factor"), [("one", 1), ("one@2", 2), ("one@0.5", 0.5), ("one@0", 0)])
async def test_it_is_played_at_its_pace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, factor: float
) -> None:
    ticks = itertools.count()
    recorded(tmp_path, [[TextDelta("a")], [TextDelta("b")]], clock=lambda: next(ticks) * 10.0)
    times = [json.loads(line)["at"] for line in (tmp_path / "one.jsonl").read_text().splitlines()[1:]]
    assert times == [10, 20]
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    await played(tmp_path, model)
    assert [round(seconds) for seconds in slept] == ([10 * factor, 20 * factor] if factor else [])


def test_a_recording_has_the_question_only_where_that_is_asked_for(tmp_path: Path) -> None:
    assert "prompt" not in recorded(tmp_path, []).read_text()
    head = recorded(tmp_path, [], "two", prompt="Hi").read_text()
    assert json.loads(head)["prompt"] == "Hi"


def test_a_recording_is_its_owners_alone(tmp_path: Path) -> None:
    path = recorded(tmp_path / "recordings", [])
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_recording_is_whole_or_not_there(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Recorder(tmp_path, "one", "m") as recorder:
        recorder.add([TextDelta("a")])
        raise KeyboardInterrupt
    with pytest.raises(ConfigurationError, match="over 16 MiB"), Recorder(tmp_path, "one", "m") as recorder:
        recorder.add([TextDelta("a" * (16 << 20))])
    assert list(tmp_path.iterdir()) == []


def test_a_recording_is_replaced_only_where_that_is_asked_for(tmp_path: Path) -> None:
    path = recorded(tmp_path, [[TextDelta("a")]])
    with pytest.raises(ConfigurationError, match="--replace"):
        recorded(tmp_path, [])
    assert "text-delta" in path.read_text()
    recorded(tmp_path, [], replace=True)
    assert "text-delta" not in path.read_text()


@pytest.mark.parametrize("name", ["", ".hidden", "../a", "a/b", "a@0", "a" * 65, "ä"])
async def test_a_name_stays_within_its_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot be a recording's name"):
        Recorder(tmp_path, name, "m")
    if "@" not in name:
        with pytest.raises(ProviderError, match="not the name of a recording"):
            await played(tmp_path, name)


async def test_a_recording_that_is_missing_is_no_model(run: Run, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        async with run(recordings_dir=folder) as app:
            body = {"model": "replay/x", "messages": [{"role": "user", "content": "Hi"}]}
            async with post(app.app, "/v1/chat/stream", body, app.key) as call:
                await call.finished()
            assert (call.status, call.json["error"]["code"]) == (404, "model_not_found")
            message = "there is no recording 'x'; make it with: millstream record x Hello"
            assert call.json["error"]["message"] == message


HEAD = b'{"type":"recording","version":1,"model":"m","recorded_at":1.0}\n'
BATCH = b'{"type":"batch","at":2.0,"items":[{"type":"text-delta","text":"a"}]}\n'


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "line 1 cannot be read"),
        (b"\xff\n", "line 1 cannot be read"),
        (BATCH, "line 1 cannot be read"),
        (HEAD + BATCH + BATCH[:-20], "line 3 cannot be read"),
        (HEAD + HEAD, "line 2 cannot be read"),
        (HEAD + BATCH + BATCH.replace(b"2.0", b"1.0"), "line 3 cannot be read"),
        (HEAD + BATCH.replace(b"2.0", b"1e9"), "line 2 cannot be read"),
        (HEAD + BATCH.replace(b"text-delta", b"stream-end"), "line 2 cannot be read"),
        (HEAD + b'{"type":"batch","at":0,"items":' + b"[" * 9999, "line 2 cannot be read"),
        (HEAD.replace(b"1,", b"2,"), "has version 2; this Millstream reads 1"),
        (HEAD + b" " * (16 << 20), "is over 16 MiB"),
    ],
)
async def test_a_recording_that_is_damaged_says_where(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "one.jsonl").write_bytes(data)
    with pytest.raises(UpstreamError, match=f"recording 'one' .*{message}"):
        await played(tmp_path)


async def test_the_guides_recording_is_one(tmp_path: Path) -> None:
    (block,) = re.findall(r"```json\n(\{\"type\":\"recording\".*?)```", GUIDE, re.DOTALL)
    (tmp_path / "one.jsonl").write_text(block, encoding="utf-8")
    stream = ReplayProvider(tmp_path).stream(HI, "one@0")
    produced: list[Produced] = []
    with pytest.raises(UpstreamRateLimited) as caught:
        async for batch in stream:
            produced += batch
    assert produced == [
        AnswerStart("openai", "chatcmpl-1"),
        TextDelta("Hel"),
        TextDelta("lo"),
        ToolCallPiece(0, "{}", "call_1", "look"),
    ]
    assert caught.value.retry_after_seconds == 5


def test_the_guides_command_records(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("millstream.toml").write_text('[providers.s]\ntype = "scripted"\n', encoding="utf-8")
    monkeypatch.setattr("millstream.providers.scripted._PACE", 0.0)
    (command,) = re.findall(r"^millstream (record .*)$", GUIDE, re.MULTILINE)
    result = CliRunner().invoke(cli.app, shlex.split(command))
    assert result.exit_code == 0
    assert result.stdout.startswith("This answer comes from a script")
    assert "recorded as replay/greeting in millstream-data/recordings/greeting.jsonl" in result.stderr
    text = Path("millstream-data/recordings/greeting.jsonl").read_text(encoding="utf-8")
    assert "Say hello" not in text


async def test_a_recording_is_played_with_its_usage(run: Run, tmp_path: Path) -> None:
    recorded(tmp_path / "data" / "recordings", [[TextDelta("Hello")], [Finish("stop", USAGE)]])
    async with run() as app:
        body = {"model": "replay/one", "messages": [{"role": "user", "content": "Hi"}]}
        async with post(app.app, "/v1/chat/stream", body, app.key) as call:
            await call.finished()
        frames = [frame for frame in call.frames if isinstance(frame, dict)]
        assert "".join(frame.get("delta", "") for frame in frames) == "Hello"
        (receipt,) = await app.receipts()
        assert (receipt["status"], receipt["completion_tokens"]) == ("completed", 2)


async def test_the_guides_own_name_falls_back_on_a_recording(run: Run, tmp_path: Path) -> None:
    (block,) = re.findall(r"```toml\n(\[models\..*?)```", GUIDE, re.DOTALL)
    recorded(tmp_path / "data" / "recordings", [[TextDelta("Hello"), Finish("stop", USAGE)]], "greeting")
    models = {name: ModelSettings(**model) for name, model in tomllib.loads(block)["models"].items()}
    async with run(models=models) as app:
        body = {"model": "shaky", "messages": [{"role": "user", "content": "Hi"}]}
        async with post(app.app, "/v1/chat", body, app.key) as call:
            await call.finished()
        assert call.status == 200
        assert "Hello" in call.received.decode()
