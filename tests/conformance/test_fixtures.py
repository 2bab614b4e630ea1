"""The fixtures of a format are what its own client understands: no case is refused, or taken for another."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from conformance.clients import HERE, NODE_22

FIXTURES = HERE.parents[1] / "spec" / "fixtures"


def seen_by(program: str, fixtures: Path, *more: str, node: str | Path = "node") -> dict[str, dict[str, Any]]:
    """What the client makes of each case, by its name."""
    command = [str(node), str(HERE / "node" / program), str(fixtures), *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    found: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(("package", "node"), [("ai5", "node"), ("ai", "node"), ("ai7", NODE_22)])
def test_the_ai_sdk_takes_every_case_for_what_it_is(package: str, node: str | Path) -> None:
    """In all three versions of it that read this protocol; the one without a number is 6."""
    path = FIXTURES / "ai-sdk.json"
    seen = seen_by("ai_fixtures.mjs", path, package, node=node)
    for case in json.loads(path.read_text(encoding="utf-8")):
        said, end = seen[case["name"]], case["events"][-1]
        if end["type"] == "stream-failed":
            assert said["error"] == f"Error: {end['message']}"
        else:
            assert said["error"] is None, case["name"]
            assert (said["finish"] is None) == (end["finish_reason"] == "cancelled")
    kinds = [part["type"] for part in seen["a picture and a source"]["parts"]]
    assert kinds == ["step-start", "text", "file", "source-url"]


def test_ag_ui_s_client_has_nothing_against_the_fixtures() -> None:
    seen = seen_by("ag_ui_fixtures.mjs", FIXTURES / "ag-ui.json")
    assert {name: case["warnings"] for name, case in seen.items() if case["warnings"]} == {}
    for case in seen.values():
        assert (case["outcome"] is None) != (case["error"] is None)
    assert seen["stopped by its reader"]["outcome"] == {"type": "cancelled"}
    assert seen["an error in the middle"]["error"] == "upstream_error"
    assert [message["content"] for message in seen["an error in the middle"]["messages"]] == ["Hel"]
    calls = seen["two tool calls, mingled"]
    (message,) = calls["messages"]
    assert message["content"] == "I look."
    assert [call["function"]["arguments"] for call in message["toolCalls"]] == ["{}", "{}"]
    assert calls["outcome"]["pendingToolCallIds"] == [call["id"] for call in message["toolCalls"]]
    thoughts = seen["signed and redacted reasoning of another API"]["messages"]
    assert [message["role"] for message in thoughts] == ["reasoning", "reasoning", "assistant"]
    assert all("encryptedValue" in message for message in thoughts[:2])
