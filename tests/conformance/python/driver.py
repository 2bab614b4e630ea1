"""What the clients in Python share: requests in as lines of JSON, what a user would see out.

A request has ``op``, ``model``, ``key`` and what else is wanted: ``tools`` to offer, an ``image`` to send,
``stop_after`` so many pieces of text.
"""

import asyncio
import inspect
import json
import os
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

URL = os.environ["MILLSTREAM_TEST_URL"]
DIALECT = os.environ["MILLSTREAM_TEST_DIALECT"]
QUESTION = "Hello"
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
PICTURE = f"data:image/png;base64,{PIXEL}"
SCHEMA = {
    "type": "object",
    "properties": {"q": {"type": "integer"}},
    "required": ["q"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": SCHEMA}}


def look(q: int) -> str:
    """Looks."""
    return str(q + 6)


class Said:
    """What the user of a client sees of one answer."""

    def __init__(self) -> None:
        self.text = ""
        self.pieces = 0
        self.reasoning = ""
        self.calls: list[dict[str, Any]] = []
        self.finish: str | None = None
        self.usage: list[int] | None = None  # of the prompt, of the answer
        self.error: dict[str, Any] | None = None

    def piece(self, text: str | None) -> None:
        if text:
            self.text += text
            self.pieces += 1

    def call(self, name: str, arguments: Any) -> None:
        parsed = json.loads(arguments) if isinstance(arguments, str) else arguments
        self.calls.append({"name": name, "arguments": parsed})

    def enough(self, request: SimpleNamespace) -> bool:
        return request.stop_after is not None and self.pieces >= request.stop_after


def serve(**operations: Callable[[SimpleNamespace, Said], Any]) -> None:
    """Answers requests until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a client prints is not an answer
    for line in sys.stdin:
        request = SimpleNamespace(**json.loads(line))
        said = Said()
        try:
            work = operations[request.op](request, said)
            if inspect.isawaitable(work):
                asyncio.run(_finished(work))
        except Exception as error:
            said.error = _shown(error)
        print(json.dumps(vars(said)), file=answers, flush=True)


async def _finished(work: Any) -> None:
    await work


def _shown(error: BaseException) -> dict[str, Any]:
    """The error that the user gets. Some clients wrap that of the SDK in one of their own."""
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    statuses = (getattr(cause, "status_code", None) for cause in causes)
    status = next((found for found in statuses if isinstance(found, int)), None)
    return {"name": type(error).__name__, "status": status, "message": str(error)[:500]}
