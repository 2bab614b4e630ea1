"""Anthropic's own SDK, before Millstream and before the provider itself: it must not see a difference."""

import asyncio
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
import pytest_asyncio
from anthropic.types import Message

from live.conftest import Server, running
from oracle import Oracle, Request, oracle

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROOT = Path(__file__).parent.parent
RECORDINGS = ROOT / "recordings" / "anthropic"
HELLO: Any = [{"role": "user", "content": "Hello"}]
MARK = {"type": "ephemeral", "ttl": "1h"}


def recorded(name: str) -> Any:
    return json.loads((RECORDINGS / f"{name}.json").read_text(encoding="utf-8"))


class Fake:
    """A server of Anthropic's. It plays what was recorded under the name that a body has for a model, as a
    stream or whole, and keeps the bodies and their headers.
    """

    def __init__(self) -> None:
        self.bodies: list[Any] = []
        self.headers: list[dict[str, str]] = []

    async def __call__(self, request: Request) -> None:
        if request.path.startswith("/v1/models"):
            names = [path.stem for path in sorted(RECORDINGS.glob("*.json"))]
            listed = [{"type": "model", "id": f"claude-4-5-{name}", "max_tokens": 999} for name in names]
            return await request.answer(200, {"data": listed, "has_more": False})
        body = request.json
        self.bodies.append(body)
        self.headers.append(request.headers)
        name = body["model"].removeprefix("claude-4-5-")
        overloaded = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
        if name == "fails":
            return await request.answer(529, overloaded, ["retry-after: 9"])
        if name == "fails-late":
            await request.head()
            await request.chunk(recorded("length")["stream"].partition("event: message_delta")[0].encode())
            await request.chunk(f"event: error\ndata: {json.dumps(overloaded)}\n\n".encode())
            return await request.end()
        recording = recorded("stop-sequence" if name == "claude-haiku-4-5" else name)
        if not body.get("stream"):
            return await request.answer(200, recording["message"])
        await request.head()
        stream = recording["stream"].encode()
        for start in range(0, len(stream), 97):
            await request.chunk(stream[start : start + 97])
        await request.end()


class Both:
    """The SDK before the fake, and before a Millstream whose only provider that is."""

    def __init__(self, fake: Fake, upstream: Oracle, server: Server) -> None:
        self.fake, self.server = fake, server
        at = upstream.base_url.removesuffix("/v1")
        self.direct = anthropic.AsyncAnthropic(base_url=at, api_key="sk-test", max_retries=0)
        self.ours = anthropic.AsyncAnthropic(base_url=server.url, api_key=server.key, max_retries=0)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def both(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Both]:
    """One server for all tests, which change nothing of it."""
    fake = Fake()
    async with oracle(fake) as upstream:
        base_url = upstream.base_url.removesuffix("/v1")
        folder = tmp_path_factory.mktemp("server")
        context = running(folder, ANTHROPIC_BASE_URL=base_url, ANTHROPIC_API_KEY="sk-test")
        server = await asyncio.to_thread(context.__enter__)
        try:
            both = Both(fake, upstream, server)
            async with both.direct, both.ours:
                yield both
        finally:
            await asyncio.to_thread(context.__exit__, None, None, None)


async def streamed(client: anthropic.AsyncAnthropic, **body: Any) -> tuple[Message, list[Any]]:
    """The message that the SDK collects, and its events, without the deltas that add nothing."""
    events: list[Any] = []
    async with client.messages.stream(**body) as stream:
        async for event in stream:
            shown = event.model_dump(warnings=False)
            if shown.get("delta", {}).get("partial_json", 1):
                events.append(shown)
        return await stream.get_final_message(), events


async def test_the_sdk_sees_no_difference(both: Both) -> None:
    """Also of blocks of the beta API, of which its types warn."""
    for path in sorted(RECORDINGS.glob("*.json")):
        body: Any = {"model": f"claude-4-5-{path.stem}", "max_tokens": 9, "messages": HELLO}
        theirs = await both.direct.messages.create(**body)
        ours = await both.ours.messages.create(**body)
        assert ours.model_dump(warnings=False) == theirs.model_dump(warnings=False), path.stem
        message, events = await streamed(both.direct, **body)
        ours_message, ours_events = await streamed(both.ours, **body)
        assert ours_message.model_dump(warnings=False) == message.model_dump(warnings=False), path.stem
        # A call without arguments has them written here.
        plain = [event for event in ours_events if event.get("delta", {}).get("partial_json") != "{}"]
        assert [without_input(e) for e in plain if e["type"] != "input_json"] == [
            without_input(e) for e in events if e["type"] != "input_json"
        ], path.stem


def without_input(event: Any) -> Any:
    return {name: value for name, value in event.items() if name not in ("snapshot", "message")}


async def test_what_a_client_wants_to_try_reaches_the_fake(both: Both) -> None:
    body: Any = {"model": "claude-4-5-everything", "max_tokens": 9, "messages": HELLO}
    for client in (both.direct, both.ours):
        await client.beta.messages.create(**body, betas=["one-2026-01-01", "two-2026-01-01"])
    directly, through_us = (headers["anthropic-beta"] for headers in both.fake.headers[-2:])
    assert through_us.replace(" ", "") == directly.replace(" ", "")


async def test_a_summary_of_what_was_said_comes_whole_and_goes_back(both: Both) -> None:
    body: Any = {"model": "claude-4-5-compaction", "max_tokens": 9, "messages": HELLO}
    body |= {"compaction": {"type": "summarize"}, "betas": ["compact-2026-01-12"]}
    seen: list[Any] = []
    for client in (both.direct, both.ours):
        async with client.beta.messages.stream(**body) as stream:
            events = [event.model_dump() async for event in stream if event.type == "compaction"]
            seen.append([events, (await stream.get_final_message()).model_dump()])
    assert seen[0] == seen[1]
    (event,) = seen[0][0]
    assert (event["content"], event["encrypted_content"]) == ("What was said so far.", "RW5j")
    history = [*HELLO, {"role": "assistant", "content": recorded("compaction")["message"]["content"]}, *HELLO]
    for client in (both.direct, both.ours):
        await client.beta.messages.create(**{**body, "messages": history})
    direct, ours = both.fake.bodies[-2:]
    assert ours == {**direct, "stream": True}
    assert ours["compaction"] == {"type": "summarize"}


async def test_the_fake_is_asked_as_the_client_asks(both: Both) -> None:
    body: Any = {
        "model": "claude-4-5-everything",
        "max_tokens": 2000,
        "system": [
            {"type": "text", "text": "Be brief."},
            {"type": "text", "text": "Cite.", "cache_control": MARK},
        ],
        "messages": [
            {
                "role": "user",
                "content": [
                    {
                        "type": "document",
                        "source": {"type": "text", "media_type": "text/plain", "data": "Über — x"},
                        "title": "Skies",
                        "citations": {"enabled": True},
                        "cache_control": MARK,
                    },
                    {
                        "type": "document",
                        "source": {"type": "content", "content": [{"type": "text", "text": "One."}]},
                    },
                    {"type": "document", "source": {"type": "url", "url": "https://a.example/a.pdf"}},
                    {
                        "type": "image",
                        "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"},
                    },
                    {
                        "type": "search_result",
                        "source": "https://a.example",
                        "title": "A",
                        "content": [{"type": "text", "text": "found"}],
                        "citations": {"enabled": True},
                    },
                    {"type": "text", "text": "What now?", "cache_control": {"type": "ephemeral"}},
                ],
            },
            recorded("everything")["message"]["content"],
            {
                "role": "user",
                "content": [
                    {
                        "type": "tool_result",
                        "tool_use_id": "toolu_01A",
                        "is_error": True,
                        "content": [
                            {"type": "text", "text": "no"},
                            {"type": "image", "source": {"type": "url", "url": "https://a.example/i"}},
                        ],
                    },
                    {
                        "type": "tool_result",
                        "tool_use_id": "toolu_01B",
                        "content": "12:00",
                        "cache_control": MARK,
                    },
                    {"type": "text", "text": "Go on."},
                ],
            },
            {"role": "system", "content": "Answer in German."},
        ],
        "tools": [
            {
                "name": "get_weather",
                "description": "d",
                "input_schema": {"type": "object", "properties": {"b": {}, "a": {}}},
                "strict": True,
                "eager_input_streaming": True,
                "input_examples": [{"a": 1}],
            },
            {"type": "custom", "name": "now", "input_schema": {"type": "object"}, "cache_control": MARK},
        ],
        "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
        "thinking": {"type": "enabled", "budget_tokens": 1024, "display": "summarized"},
        "output_config": {
            "effort": "max",
            "format": {"type": "json_schema", "schema": {"type": "object"}},
        },
        "stop_sequences": ["END"],
        "metadata": {"user_id": "u-1"},
        "service_tier": "auto",
        "cache_control": {"type": "ephemeral"},
    }
    body["messages"][1] = {"role": "assistant", "content": body["messages"][1]}
    await both.direct.messages.create(**body)
    await both.ours.messages.create(**body)
    direct, ours = both.fake.bodies[-2:]
    # Text of an answer that cites nothing says so with a null there, which says nothing.
    for block in direct["messages"][1]["content"]:
        if block.get("citations", 1) is None:
            del block["citations"]
    assert ours == {**direct, "stream": True}


async def test_sampling_goes_to_models_that_take_it(both: Both) -> None:
    body: Any = {"model": "claude-4-5-length", "max_tokens": 9, "messages": HELLO}
    given = {"temperature": 0.3, "top_p": 0.5, "top_k": 7}
    await both.ours.messages.create(**body, extra_body=given)
    sent = both.fake.bodies[-1]
    assert {name: sent[name] for name in given if name in sent} == {"temperature": 0.3, "top_k": 7}


async def test_both_sdks_list_its_models(both: Both) -> None:
    names = {f"claude-4-5-{path.stem}" for path in RECORDINGS.glob("*.json")}
    page = await both.ours.models.list()
    assert {model.id for model in page.data} == names
    assert [model.display_name for model in page.data] == [model.id for model in page.data]
    assert (page.has_more, page.first_id) == (False, page.data[0].id)
    assert {model.id async for model in both.ours.models.list()} == names
    one = await both.ours.models.retrieve("claude-4-5-length")
    assert (one.type, one.created_at.year, one.lifecycle) == ("model", 1970, "active")
    async with openai.AsyncOpenAI(base_url=f"{both.server.url}/v1", api_key=both.server.key) as client:
        assert {model.id async for model in client.models.list()} == names


async def test_tokens_are_counted_without_asking_anybody(both: Both) -> None:
    body: Any = {"model": "claude-4-5-length", "messages": HELLO}
    asked = len(both.fake.bodies)
    few = await both.ours.messages.count_tokens(**body)
    tools: Any = [{"name": "look", "description": "Looks around.", "input_schema": {"type": "object"}}]
    more = await both.ours.messages.count_tokens(**body, system="Be brief.", tools=tools)
    assert 0 < few.input_tokens < more.input_tokens < 100
    assert len(both.fake.bodies) == asked


async def test_errors_are_those_that_the_sdk_knows(both: Both) -> None:
    body: Any = {"model": "claude-4-5-length", "max_tokens": 9, "messages": HELLO}
    wrong = both.ours.with_options(api_key="ms_live_wrong")
    with pytest.raises(anthropic.AuthenticationError) as unauthorized:
        await wrong.messages.create(**body)
    assert unauthorized.value.type == "authentication_error"
    assert unauthorized.value.error_code == "unauthorized"
    assert (unauthorized.value.request_id or "").startswith("req_")
    with pytest.raises(anthropic.BadRequestError, match="top_k") as wrong_field:
        await both.ours.messages.create(**body, extra_body={"top_k": "x"})
    assert (wrong_field.value.type, wrong_field.value.error_code) == (
        "invalid_request_error",
        "invalid_request",
    )
    with pytest.raises(anthropic.NotFoundError) as unknown:
        await both.ours.models.retrieve("no-such-model")
    assert (unknown.value.type, unknown.value.error_code) == ("not_found_error", "model_not_found")
    with pytest.raises(anthropic.AuthenticationError) as nobody:
        await wrong.models.list()
    assert nobody.value.type == "authentication_error"
    with pytest.raises(anthropic.BadRequestError, match="custom"):
        search: Any = [{"type": "web_search_20250305", "name": "web_search"}]
        await both.ours.messages.create(**body, tools=search)


async def test_the_runner_of_tools_goes_on_without_threads(both: Both) -> None:
    """It asks for a thread first, and would else send the newest message alone."""

    @anthropic.beta_async_tool
    async def get_weather(city: str, days: list[float], exact: bool) -> str:
        """The weather."""
        return f"fine in {city}"

    @anthropic.beta_async_tool
    async def now() -> str:
        """The time."""
        return "12:00"

    runner = both.ours.beta.messages.tool_runner(
        model="claude-4-5-everything",
        max_tokens=9,
        messages=HELLO,
        tools=[get_weather, now],
        max_iterations=2,
    )
    messages = [message async for message in runner]
    assert len(messages) == 2
    asked = both.fake.bodies[-1]
    assert "thread" not in asked
    assert [message["role"] for message in asked["messages"]] == ["user", "assistant", "user"]
    assert asked["messages"][1]["content"][0]["signature"] == "EqQBCgIYAhIM1gbcDa9GJwZA2b3h"
    assert "Zürich" in json.dumps(asked["messages"][2], ensure_ascii=False)


async def test_an_error_is_a_status_before_the_first_word_and_an_event_after_it(both: Both) -> None:
    body: Any = {"model": "claude-4-5-fails", "max_tokens": 9, "messages": HELLO}
    with pytest.raises(anthropic.InternalServerError) as failed:
        await both.ours.messages.create(**body, stream=True)
    error = failed.value
    assert (error.status_code, error.type, error.error_code) == (502, "api_error", "upstream_error")
    assert error.response.headers["retry-after"] == "9"
    text = ""
    with pytest.raises(anthropic.APIStatusError) as cut:
        async with both.ours.messages.stream(**{**body, "model": "claude-4-5-fails-late"}) as stream:
            async for piece in stream.text_stream:
                text += piece
    assert text == "Once upon"
    assert (cut.value.type, cut.value.error_code) == ("api_error", "upstream_error")


async def test_the_guide_works(both: Both, capsys: pytest.CaptureFixture[str]) -> None:
    guide = (ROOT.parent / "docs" / "guides" / "anthropic.md").read_text(encoding="utf-8")
    code = guide.partition("```python\n")[2].partition("```")[0]
    code = code.replace("http://127.0.0.1:8000", both.server.url).replace("ms_live_…", both.server.key)
    await asyncio.to_thread(exec, code, {})
    assert capsys.readouterr().out.startswith("One, two, threeUsage(")
