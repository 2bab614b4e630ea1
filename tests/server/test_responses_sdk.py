"""OpenAI's own SDK at ``/v1/responses``, over a real socket."""

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from pydantic import BaseModel

from application import Run, Running
from listening import listening
from millstream import prompt as asked
from millstream.dialects.responses import RESPONSES
from millstream.errors import ProviderError, RequestRefused, UpstreamError, UpstreamRateLimited
from millstream.events import Reasoning, ReasoningDelta, TextDelta
from millstream.prompt import Prompt
from millstream.providers import Finish, PartBreak, Produced, Provider, ToolCallPiece
from millstream.providers.openai import OpenAIProvider
from millstream.providers.scripted import Script, ScriptedProvider
from millstream.providers.upstream import Upstream
from millstream.usage import Usage
from oracle import SSE_HEAD, Request, oracle

USAGE = Usage(9, 4, "provider_final", 3, 1)
SAID: Script = [
    ReasoningDelta("Hm."),
    PartBreak(Reasoning("signed")),
    TextDelta("Hel"),
    TextDelta("lo"),
    Finish("stop", USAGE),
]


@asynccontextmanager
async def asking(running: Running, key: str | None = None) -> AsyncGenerator[AsyncOpenAI]:
    """The SDK before the application."""
    async with (
        listening(running) as url,
        AsyncOpenAI(base_url=f"{url}/v1", api_key=key or running.key, max_retries=0) as client,
    ):
        yield client


@asynccontextmanager
async def scripted(run: Run, script: Script = SAID, **settings: Any) -> AsyncGenerator[AsyncOpenAI]:
    async with (
        run({"p": ScriptedProvider({"m": script})}, **settings) as running,
        asking(running) as client,
    ):
        yield client


class Gated(Provider):
    """Says three words, and waits for the gate after each."""

    def __init__(self) -> None:
        self.gates = [asyncio.Event() for _ in range(3)]
        self.prompts: list[Prompt] = []

    async def stream(self, prompt: Prompt, model: str) -> AsyncGenerator[Sequence[Produced]]:
        self.prompts.append(prompt)
        for number, gate in enumerate(self.gates):
            yield [TextDelta(f"word{number} ")]
            await gate.wait()
        yield [Finish("stop", USAGE)]

    async def models(self) -> list[str]:
        return ["m"]

    async def close(self) -> None:
        pass

    def open(self) -> None:
        for gate in self.gates:
            gate.set()


@asynccontextmanager
async def gated(run: Run) -> AsyncGenerator[tuple[Gated, AsyncOpenAI, Running]]:
    provider = Gated()
    async with run({"p": provider}) as running, asking(running) as client:
        try:
            yield provider, client, running
        finally:
            provider.open()


async def test_the_helper_makes_the_answer_of_its_frames(run: Run) -> None:
    async with scripted(run) as client:
        async with client.responses.stream(model="m", input="Hello") as stream:
            numbers = [event.sequence_number async for event in stream]
            final = await stream.get_final_response()
        assert numbers == list(range(len(numbers)))
        assert final.output_text == "Hello"
        thought, message = final.output
        assert thought.type == "reasoning"
        assert (thought.summary[0].text, thought.encrypted_content) == ("Hm.", "signed")
        assert message.type == "message"
        assert message.status == "completed"
        assert final.usage is not None
        assert (final.usage.input_tokens, final.usage.output_tokens) == (9, 4)
        assert final.usage.input_tokens_details.cached_tokens == 3
        again = await client.responses.retrieve(final.id)
        assert again.model_dump() == {**final.model_dump(), "output": again.model_dump()["output"]}
        assert again.output_text == "Hello"


async def test_a_whole_answer_is_the_same_as_a_streamed_one(run: Run) -> None:
    async with scripted(run) as client:
        whole = await client.responses.create(model="m", input="Hello", temperature=0.5, store=False)
        assert (whole.status, whole.output_text, whole.temperature) == ("completed", "Hello", 0.5)
        assert whole.to_dict()["store"] is False
        streamed = [
            event async for event in await client.responses.create(model="m", input="Hello", stream=True)
        ]
        last = streamed[-1]
        assert last.type == "response.completed"
        assert [item.type for item in last.response.output] == [item.type for item in whole.output]
        assert last.response.usage == whole.usage


async def test_an_answer_of_a_shape_is_parsed(run: Run) -> None:
    class Point(BaseModel):
        x: int

    async with scripted(run, [TextDelta('{"x":'), TextDelta(" 4}"), Finish("stop", USAGE)]) as client:
        answer = await client.responses.parse(model="m", input="Where?", text_format=Point)
        assert answer.output_parsed == Point(x=4)


async def test_a_tool_is_called_and_its_result_goes_back(run: Run) -> None:
    prompts: list[Prompt] = []

    class Caller(Gated):
        async def stream(self, prompt: Prompt, model: str) -> AsyncGenerator[Sequence[Produced]]:
            prompts.append(prompt)
            if len(prompts) == 1:
                yield [ReasoningDelta("Hm."), PartBreak(Reasoning("signed"))]
                yield [ToolCallPiece(0, '{"a":', "call_1", "look"), ToolCallPiece(0, "1}")]
                yield [Finish("tool_calls", USAGE)]
            else:
                yield [TextDelta("One."), Finish("stop", USAGE)]

    tool: Any = {"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": None}
    async with run({"p": Caller()}) as running, asking(running) as client:
        question: Any = {"role": "user", "content": "Look."}
        async with client.responses.stream(model="m", input=[question], tools=[tool]) as stream:
            first = await stream.get_final_response()
        call = first.output[-1]
        assert call.type == "function_call"
        assert (call.name, call.arguments, call.call_id) == ("look", '{"a":1}', "call_1")
        result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "1"}
        history: Any = [question, *first.output, result]
        second = await client.responses.create(model="m", input=history, tools=[tool])
        assert second.output_text == "One."
    _, assistant, answered = prompts[1].messages
    thought, made = assistant.parts
    assert isinstance(thought, asked.Reasoning)
    assert (thought.text, thought.signature) == ("Hm.", "responses:signed")
    assert made == asked.ToolCall("call_1", "look", '{"a":1}')
    assert answered.parts == (asked.ToolResult("call_1", (asked.Text("1"),)),)


async def test_after_a_drop_the_rest_is_exact(run: Run) -> None:
    async with gated(run) as (provider, client, _), asyncio.timeout(20):
        seen: list[dict[str, Any]] = []
        started = await client.responses.create(model="m", input="Hello", stream=True, background=True)
        identity = ""
        async for event in started:
            seen.append(event.model_dump())
            if event.type == "response.created":
                identity = event.response.id
                assert event.response.status == "queued"
            if event.type == "response.output_text.delta":
                break
        await started.close()
        assert [event["type"] for event in seen[:3]] == [
            "response.created",
            "response.queued",
            "response.in_progress",
        ]
        running = await client.responses.retrieve(identity)
        assert (running.status, running.background, running.output_text) == ("in_progress", True, "word0 ")
        last = seen[-1]["sequence_number"]
        resumed = await client.responses.retrieve(identity, stream=True, starting_after=last)
        provider.open()
        seen += [event.model_dump() async for event in resumed]
        assert [event["sequence_number"] for event in seen] == list(range(len(seen)))
        whole = await client.responses.retrieve(identity, stream=True)
        assert [event.model_dump() async for event in whole] == seen
        assert (await client.responses.retrieve(identity)).output_text == "word0 word1 word2 "
        assert len(provider.prompts) == 1


async def test_in_the_background_an_answer_is_there_at_once_and_grows(run: Run) -> None:
    async with gated(run) as (provider, client, running), asyncio.timeout(20):
        started = await client.responses.create(model="m", input="Hello", background=True)
        assert started.status in ("queued", "in_progress")
        assert started.background
        provider.open()
        await running.idle()
        done = await client.responses.retrieve(started.id)
        assert (done.status, done.output_text) == ("completed", "word0 word1 word2 ")


async def test_a_cancelled_response_says_so_and_keeps_what_it_has(run: Run) -> None:
    async with gated(run) as (_, client, running), asyncio.timeout(20):
        stream = await client.responses.create(model="m", input="Hello", stream=True, background=True)
        identity = ""
        async for event in stream:
            if event.type == "response.created":
                identity = event.response.id
            if event.type == "response.output_text.delta":
                break
        cancelled = await client.responses.cancel(identity)
        assert (cancelled.status, cancelled.output_text) == ("cancelled", "word0 ")
        rest = [event async for event in stream]
        assert rest[-1].type == "response.incomplete"
        assert rest[-1].response.status == "cancelled"
        assert (await client.responses.cancel(identity)).status == "cancelled"
        (receipt,) = await running.receipts()
        assert receipt["status"] == "cancelled"


async def test_a_reader_who_leaves_a_response_in_the_foreground_ends_it(run: Run) -> None:
    async with gated(run) as (_, client, running), asyncio.timeout(20):
        stream = await client.responses.create(model="m", input="Hello", stream=True)
        async for event in stream:
            if event.type == "response.output_text.delta":
                break
        await stream.close()
        (receipt,) = await running.receipts()
        assert receipt["status"] == "cancelled"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (UpstreamRateLimited("slow down"), openai.RateLimitError, "upstream_rate_limited"),
        (RequestRefused("too long"), openai.BadRequestError, "upstream_refused"),
        (UpstreamError("it broke"), openai.InternalServerError, "upstream_error"),
    ],
)
async def test_an_error_before_the_first_word_is_a_status(
    run: Run, stream: bool, error: ProviderError, kind: type[openai.APIStatusError], code: str
) -> None:
    async with scripted(run, [error]) as client:
        with pytest.raises(kind) as raised:
            await client.responses.create(model="m", input="Hello", stream=stream)
        assert raised.value.code == code


async def test_an_error_after_it_is_the_last_frame(run: Run) -> None:
    async with scripted(run, [TextDelta("Hel"), UpstreamError("it broke")]) as client:
        stream = await client.responses.create(model="m", input="Hello", stream=True)
        events = [event async for event in stream]
        last = events[-1]
        assert last.type == "response.failed"
        assert last.response.error is not None
        assert (last.response.error.code, last.response.error.message) == ("upstream_error", "it broke")
        assert last.response.output_text == "Hel"
        failed = await client.responses.retrieve(last.response.id)
        assert failed.status == "failed"
        with pytest.raises(openai.InternalServerError):
            await client.responses.create(model="m", input="Hello")


async def test_in_the_background_an_error_is_a_failed_response(run: Run) -> None:
    async with scripted(run, [UpstreamError("it broke")]) as client:
        stream = await client.responses.create(model="m", input="Hello", stream=True, background=True)
        types = [event.type async for event in stream]
        assert types[0] == "response.created"
        assert types[-1] == "response.failed"


@pytest.mark.parametrize(
    "body",
    [
        {"previous_response_id": "resp_1"},
        {"conversation": "conv_1"},
        {"tools": [{"type": "code_interpreter", "container": {"type": "auto"}}]},
    ],
)
async def test_what_is_not_kept_or_run_here_is_refused(run: Run, body: Mapping[str, Any]) -> None:
    async with scripted(run) as client:
        with pytest.raises(openai.BadRequestError) as refused:
            await client.responses.create(model="m", input="Hello", **body)
        assert refused.value.code == "invalid_request"
        assert refused.value.type == "invalid_request_error"
        assert next(iter(body)) in refused.value.message


async def test_what_is_only_offered_is_named_in_the_answer(run: Run) -> None:
    async with scripted(run, SAID) as client:
        tools: Any = [{"type": "web_search"}, {"type": "custom", "name": "apply_patch"}]
        raw = await client.responses.with_raw_response.create(model="m", input="Hello", tools=tools)
        assert raw.headers["millstream-ignored"] == "tools.web_search, tools.custom"


@pytest.mark.parametrize("tier", [None, "default"])
async def test_a_tier_is_the_one_that_the_provider_says(run: Run, tier: str | None) -> None:
    chunk = {"id": "c", "choices": [{"index": 0, "delta": {"content": "Hello"}, "finish_reason": "stop"}]}

    async def upstream(request: Request) -> None:
        await request.head()
        await request.event({**chunk, "service_tier": tier})
        await request.finish()

    async with oracle(upstream) as server:
        provider = OpenAIProvider("p", server.base_url, Upstream("p", {}))
        async with run({"p": provider}) as running, asking(running) as client:
            raw = await client.responses.with_raw_response.create(
                model="p/m", input="Hello", service_tier="flex", prompt_cache_key="k", truncation="auto"
            )
            assert raw.headers["millstream-ignored"] == "truncation"
            response = raw.parse()
            assert (response.service_tier, response.prompt_cache_key) == (tier, "k")
        sent = server.requests[-1].json
        assert (sent["service_tier"], sent["prompt_cache_key"]) == ("flex", "k")


async def test_a_response_that_is_not_there_is_not_found(run: Run) -> None:
    async with run({"p": ScriptedProvider({"m": SAID})}) as running:
        async with asking(running) as client, asking(running, running.admin) as other:
            mine = await client.responses.create(model="m", input="Hello")
            for asker, identity in ((client, "resp_none"), (client, "chatcmpl-1"), (other, mine.id)):
                for call in (asker.responses.retrieve, asker.responses.cancel):
                    with pytest.raises(openai.NotFoundError) as missing:
                        await call(identity)
                    assert missing.value.code == "not_found"


async def test_a_response_is_kept_for_as_long_as_it_can_be_resumed(run: Run) -> None:
    async with run({"p": ScriptedProvider({"m": SAID})}, resume_window_seconds=0.001) as running:
        async with asking(running) as client, asyncio.timeout(10):
            answer = await client.responses.create(model="m", input="Hello", store=True)
            await running.idle()
            while running.millstream.journal.count():
                running.millstream.journal.expire()
                await asyncio.sleep(0)
            with pytest.raises(openai.NotFoundError):
                await client.responses.retrieve(answer.id)


async def test_a_position_that_is_none_is_refused_in_their_form(run: Run) -> None:
    async with scripted(run) as client:
        answer = await client.responses.create(model="m", input="Hello")
        with pytest.raises(openai.BadRequestError) as refused:
            await client.responses.retrieve(answer.id, stream=True, starting_after=-4)
        assert "starting_after" in refused.value.message
        whole = await client.responses.retrieve(answer.id, stream=True)
        last = [event.sequence_number async for event in whole][-1]
        ends = await client.responses.retrieve(answer.id, stream=True, starting_after=last)
        assert [event async for event in ends] == []
        with pytest.raises(openai.BadRequestError, match=f"the response ends at {last}") as refused:
            await client.responses.retrieve(answer.id, stream=True, starting_after=last + 1)
        assert refused.value.code == "bad_position"


async def test_a_response_that_goes_on_elsewhere_is_an_error_to_the_sdk() -> None:
    """A clean end would be overlooked."""

    async def handler(request: Request) -> None:
        await request.raw(SSE_HEAD)
        created = {"type": "response.created", "sequence_number": 0, "response": {"id": "resp_1"}}
        await request.chunk(b"event: response.created\ndata: %b\n\n" % json.dumps(created).encode())
        await request.chunk(RESPONSES.goodbye(500))
        await request.end()

    async with oracle(handler) as server, AsyncOpenAI(base_url=server.base_url, api_key="k") as client:
        stream = await client.responses.create(model="m", input="Hello", stream=True)
        with pytest.raises(openai.APIError, match="resume the response"):
            async for _ in stream:
                pass


async def test_the_guide_does_what_it_says(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "openai-responses.md").read_text("utf-8")
    code = "".join(re.findall(r"```python\n(.*?)```", guide, re.DOTALL))
    async with (
        run({"p": ScriptedProvider({"gpt-5-mini": SAID})}) as running,
        listening(running) as url,
        asyncio.timeout(30),
    ):
        monkeypatch.setenv("OPENAI_BASE_URL", f"{url}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", running.key)
        await asyncio.to_thread(exec, f"{code}\nclient.close()\n", {})
    assert capsys.readouterr().out == "Hello13\nHello\n"


async def test_another_worker_resumes_and_cancels(run: Run, redis_url: str) -> None:
    provider = Gated()
    async with (
        run({"p": provider}, journal_url=redis_url) as first,
        run({"p": provider}, journal_url=redis_url) as second,
        asking(first) as client,
        asking(second, first.key) as other,
        asyncio.timeout(20),
    ):
        started = await client.responses.create(model="m", input="Hello", stream=True, background=True)
        seen: list[dict[str, Any]] = []
        async for event in started:
            seen.append(event.model_dump())
            if event.type == "response.output_text.delta":
                break
        await started.close()
        identity = seen[0]["response"]["id"]
        rest = await other.responses.retrieve(
            identity, stream=True, starting_after=seen[-1]["sequence_number"]
        )
        provider.gates[0].set()
        async for event in rest:
            seen.append(event.model_dump())
            if event.type == "response.output_text.delta":
                break
        cancelled = await other.responses.cancel(identity)
        assert (cancelled.status, cancelled.output_text) == ("cancelled", "word0 word1 ")
        seen += [event.model_dump() async for event in rest]
        assert [event["sequence_number"] for event in seen] == list(range(len(seen)))
        assert seen[-1]["response"]["status"] == "cancelled"
