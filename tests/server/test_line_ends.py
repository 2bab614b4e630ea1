"""No answer has a character that a client which reads by lines cuts at."""

import re
from collections.abc import Mapping, Sequence

import pytest

from application import Run
from asgi import Exchange, get, post
from millstream.events import ReasoningDelta, TextDelta
from millstream.providers import Finish, Produced, ToolCallPiece
from millstream.providers.scripted import ScriptedProvider
from millstream.usage import Usage

ENDS = "a\u2028b\u2029c\u0085d\x0be\x0cf\x1cg\x1dh\x1ei\rj"
ASKED = {"model": "m", "messages": [{"role": "user", "content": ENDS}]}
SCRIPT: Sequence[Produced] = [
    TextDelta(ENDS),
    ReasoningDelta(ENDS),
    ToolCallPiece(0, ENDS, "c", ENDS),
    Finish("stop", Usage(9, 2, "provider_final")),
]


def lines(call: Exchange) -> None:
    """The JSON of ``call`` is read, and stands in one line of a text."""
    text = call.received.decode()
    assert not re.search(r"[\v\f\r\x1c-\x1e\x85\u2028\u2029]", text)


async def finished(call: Exchange) -> Exchange:
    async with call:
        await call.finished()
    return call


async def test_streams_and_answers(run: Run) -> None:
    async with run({"s": ScriptedProvider({"m": SCRIPT})}) as app:
        stream = await finished(post(app.app, "/v1/chat/stream", ASKED, app.key))
        assert stream.text == ENDS
        lines(stream)
        answer = await finished(post(app.app, "/v1/chat", ASKED, app.key))
        assert answer.json["content"] == answer.json["reasoning"] == ENDS
        assert answer.json["tool_calls"][0]["function"] == {"name": ENDS, "arguments": ENDS}
        lines(answer)


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [], ENDS: 1},
        {"messages": [], "x": " " * 5000, ENDS: 1},
        {"messages": [{"role": "user", "content": "x"}], "model": "a/b", "tool_choice": ENDS},
    ],
)
async def test_refusals(run: Run, body: Mapping[str, object]) -> None:
    async with run({"s": ScriptedProvider({"m": SCRIPT})}) as app:
        call = await finished(post(app.app, "/v1/chat/stream", body, app.key))
        assert call.status == 422
        lines(call)
        lines(await finished(get(app.app, f"/v1/{ENDS}", app.key)))


async def test_what_routes_answer(run: Run) -> None:
    async with run({"s": ScriptedProvider({ENDS: SCRIPT, "m": SCRIPT}), ENDS: ScriptedProvider({})}) as app:
        asked = await finished(post(app.app, "/v1/chat", ASKED, app.key))
        models = await finished(get(app.app, "/v1/models", app.key))
        assert ENDS in [model["id"] for model in models.json["data"]]
        lines(models)
        lines(await finished(get(app.app, f"/v1/streams/{asked.response_headers['x-stream-id']}", app.key)))
