"""A running server learns of a new signing secret."""

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from live.conftest import Serve
from services import wait_for


def status_and_body(url: str, credential: str, body: object = None) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Authorization": f"Bearer {credential}"})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def rotate(folder: Path, *options: str) -> None:
    command = [sys.executable, "-m", "millstream", "secret", "rotate", *options]
    subprocess.run(command, cwd=folder, env={**os.environ}, check=True, capture_output=True, timeout=60)


def test_a_new_secret_is_felt_by_a_running_server(serve: Serve, tmp_path: Path) -> None:
    with serve(MILLSTREAM_PROVIDERS='{"demo": {"type": "scripted"}}') as server:

        def token() -> str:
            text: str = status_and_body(f"{server.url}/v1/tokens", server.key, {})[1]["token"]
            return text

        def status(credential: str) -> int:
            return status_and_body(f"{server.url}/v1/models", credential)[0]

        before = token()
        rotate(tmp_path / "server")
        assert [status(some) for some in (before, token())] == [200, 200]
        rotate(tmp_path / "server", "--now")
        wait_for(lambda: status(before) == 401, seconds=5)
        assert status(token()) == 200
        assert server.terminate() == 0
        assert "Traceback" not in server.printed
