"""What `millstream serve` writes to its standard error."""

import json
import re
import urllib.request
from typing import Any

import pytest

from services import wait_for

from .conftest import Serve, Server

DEMO = '{"demo": {"type": "scripted"}}'


def ask(server: Server) -> None:
    body = {"model": "demo/scripted/3x0", "messages": [{"role": "user", "content": "canary"}]}
    request = urllib.request.Request(
        f"{server.url}/v1/chat",
        json.dumps(body).encode(),
        {"Authorization": f"Bearer {server.key}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        assert answer.status == 200


def test_a_stream_is_one_line_with_its_time(serve: Serve) -> None:
    with serve(MILLSTREAM_PROVIDERS=DEMO) as server:
        ask(server)
        pattern = (
            r"^\d{4}-\d\d-\d\dT[\d:.]{12}Z INFO    millstream\.stream: str_\S+ status=completed reason=stop "
            r"model=demo/scripted/3x0 provider=demo key_id=\S+ prompt_tokens=0 completion_tokens=3 "
        )
        (line,) = wait_for(lambda: re.findall(f"{pattern}.*$", server.printed, re.MULTILINE))
        assert re.search(r" usage_source=provider_final first_event_seconds=[\d.]+ seconds=[\d.]+$", line)
        assert "canary" not in server.printed
        assert "POST" not in server.printed


def test_as_json_it_has_fields_and_requests_are_lines_where_they_are_asked_for(serve: Serve) -> None:
    more = {"MILLSTREAM_LOG_FORMAT": "json", "MILLSTREAM_ACCESS_LOG": "true"}
    with serve(MILLSTREAM_PROVIDERS=DEMO, **more) as server:
        ask(server)

        def records() -> list[dict[str, Any]]:
            return [json.loads(line) for line in server.printed.splitlines() if line.startswith("{")]

        wait_for(lambda: [r for r in records() if r["logger"] == "millstream.stream"])
        wait_for(lambda: [r for r in records() if "POST /v1/chat" in r["message"]])
        (stream,) = [r for r in records() if r["logger"] == "millstream.stream"]
        assert (stream["level"], stream["status"], stream["completion_tokens"]) == ("info", "completed", 3)
        assert stream["stream_id"].startswith("str_")


@pytest.mark.parametrize("level", ["warning", "error"])
def test_less_can_be_had(serve: Serve, level: str) -> None:
    with serve(MILLSTREAM_PROVIDERS=DEMO, MILLSTREAM_LOG_LEVEL=level) as server:
        ask(server)
        server.terminate()
        assert "millstream.stream" not in server.printed
