"""A provider numbers its tool calls; what it makes of that is bounded. spec/faults.md: U16."""

from collections.abc import AsyncGenerator, Sequence
from typing import Any, cast

import pytest

from application import Run
from asgi import post
from millstream.errors import UpstreamError
from millstream.prompt import Message, Prompt, Text
from millstream.providers import MAX_TOOL_CALLS, Finish, Produced, ToolCallPiece
from millstream.providers.openai import OpenAIProvider
from millstream.providers.scripted import ScriptedProvider
from millstream.providers.upstream import Upstream
from millstream.streams.parts import Assembler
from oracle import Request, oracle

PROMPT = Prompt((Message("user", (Text("Hello"),)),))
WRONG = [-1, -(2**63), 1000, 2**31, 2**63 - 1, 2**64, 10**30, True, False, 1.5, "x", "1000", [1], {}]


async def pieces(*calls: dict[str, object]) -> list[int] | str:
    """The indexes of what comes of tool calls, one a chunk, or the code of the error that does."""

    async def handler(request: Request) -> None:
        await request.head()
        for call in calls:
            await request.event({"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]})
        await request.finish("tool_calls")

    async with oracle(handler) as server:
        provider = OpenAIProvider("p", server.base_url, Upstream("p", {}))
        found: list[int] = []
        try:
            async for batch in provider.stream(PROMPT, "m"):
                found += [item.index for item in batch if isinstance(item, ToolCallPiece)]
        except UpstreamError as error:
            return error.code if "'p'" in error.message else error.message
        finally:
            await provider.close()
        return found


def call(call_id: str, **more: object) -> dict[str, object]:
    return {"id": call_id, "function": {"name": "look", "arguments": "{}"}, **more}


@pytest.mark.parametrize("index", WRONG, ids=repr)
async def test_an_index_that_cannot_be_is_an_upstream_error(index: object) -> None:
    assert await pieces(call("a", index=index)) == "upstream_error"
    assert await pieces(call("a", index=0), call("b", index=index)) == "upstream_error"


@pytest.mark.parametrize("index", [0, 1, MAX_TOOL_CALLS - 1])
async def test_an_index_that_can_be_is_taken(index: int) -> None:
    """It only tells calls apart: what goes out is numbered from 0."""
    assert await pieces(call("a", index=index)) == [0]
    assert await pieces(call("a", index=index), call("b", index=str(index))) == [0, 1]


async def test_calls_without_an_index_are_no_more_than_those_with_one() -> None:
    calls = [call(f"call_{i}") for i in range(MAX_TOOL_CALLS)]
    assert await pieces(*calls) == list(range(MAX_TOOL_CALLS))
    assert await pieces(*calls, call("one too many")) == "upstream_error"
    assert await pieces({"function": {"arguments": "{"}}, call("a"), call("b")) == [0, 1]


@pytest.mark.parametrize("index", [-1, MAX_TOOL_CALLS, True, 1.0, None, "1"], ids=repr)
def test_it_holds_for_every_provider(index: Any) -> None:
    """Also for those that are given to a Millstream by the application it is in."""
    parts = Assembler()
    assert parts.feed([ToolCallPiece(index, "{}", "a", "look")]) == []
    assert isinstance(parts.fault, UpstreamError)


async def test_the_stream_fails_with_what_came_before(run: Run) -> None:
    class Wrong(ScriptedProvider):
        async def stream(self, prompt: Prompt, model: str) -> AsyncGenerator[Sequence[Produced]]:
            yield [ToolCallPiece(0, "{}", "a", "look")]
            yield [ToolCallPiece(cast("int", "x" * 100), "{}", "b", "look")]
            yield [Finish("tool_calls", None)]

    body = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
    async with (
        run({"p": Wrong({"m": []})}) as app,
        post(app.app, "/v1/chat/stream", body, app.key) as exchange,
    ):
        await exchange.finished()
        assert exchange.frames[-1]["error"]["code"] == "upstream_error"
        assert [f["tool_call"]["index"] for f in exchange.frames if "tool_call" in f] == [0, 0]
        (row,) = await app.receipts()
        assert (row["status"], row["error_code"]) == ("failed", "upstream_error")
