"""The fixtures of a format are what its own client understands."""

import json
import subprocess
from typing import Any

from conformance.clients import HERE

FIXTURES = HERE.parents[1] / "spec" / "fixtures"


def test_ag_ui_s_client_has_nothing_against_the_fixtures() -> None:
    done = subprocess.run(
        ["node", str(HERE / "node" / "ag_ui_fixtures.mjs"), str(FIXTURES / "ag-ui.json")],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    seen: dict[str, dict[str, Any]] = json.loads(done.stdout)
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
