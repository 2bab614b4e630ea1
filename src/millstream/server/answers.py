"""Answers in JSON that are one line for every reader of lines."""

from typing import Any

from fastapi.responses import JSONResponse

from millstream import sse


class OneLineJSON(JSONResponse):
    """How routes answer in JSON."""

    def render(self, content: Any) -> bytes:
        return sse.one_line(super().render(content))
