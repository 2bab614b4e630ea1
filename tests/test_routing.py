"""Which deployment answers, and what happens when one does not."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from application import Run
from asgi import get, post
from millstream import Millstream
from millstream.dialects import Ask
from millstream.errors import (
    ProviderError,
    RequestRefused,
    UpstreamError,
    UpstreamRateLimited,
    UpstreamRefused,
    UpstreamTimeout,
)
from millstream.events import AnswerStart, TextDelta
from millstream.prompt import Message, Prompt, Text
from millstream.providers import Finish, Produced, UsageReport
from millstream.providers.openai import OpenAIProvider
from millstream.providers.scripted import ScriptedProvider
from millstream.providers.upstream import Upstream
from millstream.routing import Circuit, Deployment, Model, Routed
from millstream.settings import ModelSettings, Settings
from millstream.usage import Usage
from oracle import Oracle, Request, oracle

PROMPT = Prompt((Message("user", (Text("Hello"),)),))
DOWN = UpstreamError("it is down", accepted=False)
ANSWER: list[Produced] = [TextDelta("Hello"), Finish("stop", Usage(1, 1, "provider_final"))]


class Flaky:
    """Fails as it is told, one error a call, and then answers."""

    def __init__(self, *errors: ProviderError | None, before: Sequence[Produced] = ()) -> None:
        self._errors = list(errors)
        self._before = before
        self.calls = 0

    async def stream(self, prompt: Prompt, model: str) -> AsyncGenerator[Sequence[Produced]]:
        self.calls += 1
        error = self._errors.pop(0) if self._errors else None
        if error is not None:
            if self._before:
                yield self._before
            raise error
        yield ANSWER

    async def models(self) -> list[str]:
        return ["m"]

    async def close(self) -> None:
        pass


def deployment(name: str, provider: Flaky, *, weight: int = 1, circuit: Circuit | None = None) -> Deployment:
    return Deployment(name, provider, "m", "o200k_base", circuit or Circuit(), weight=weight)


class Slow(Flaky):
    """Says ``before``, and the rest when it is let; or fails then, if it is told to."""

    def __init__(self, *errors: ProviderError | None, before: Sequence[Produced] = ()) -> None:
        super().__init__(*errors)
        self._said_before = before
        self.asked, self.go_on, self.closed = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def stream(self, prompt: Prompt, model: str) -> AsyncGenerator[Sequence[Produced]]:
        try:
            if self._said_before:
                yield self._said_before
            self.asked.set()
            await self.go_on.wait()
            async for batch in super().stream(prompt, model):
                yield batch
        finally:
            self.closed.set()


async def said(routed: Routed) -> str:
    words: list[str] = []
    async with routed.answering() as (begun, rest), aclosing(rest):
        batches = [*begun, *[batch async for batch in rest]]
        words += [item.text for batch in batches for item in batch if isinstance(item, TextDelta)]
    return "".join(words)


async def test_the_next_deployment_answers_at_once_and_every_attempt_is_kept() -> None:
    first, second = Flaky(DOWN), Flaky()
    routed = Routed(Model("m", (deployment("a", first),), (deployment("b", second),), attempts=3), PROMPT)
    started = asyncio.get_running_loop().time()
    assert await said(routed) == "Hello"
    assert asyncio.get_running_loop().time() - started < 0.2
    assert [(one.provider, one.error) for one in routed.attempts()] == [("a", "upstream_error"), ("b", None)]
    assert routed.deployment.provider_name == "b"


@pytest.mark.parametrize(
    "error",
    [
        RequestRefused("the request is at fault"),
        UpstreamError("it broke after it had taken the request on"),
        UpstreamTimeout("too slow", accepted=True),
    ],
)
async def test_what_may_be_billed_or_is_the_callers_fault_is_not_tried_again(error: ProviderError) -> None:
    second = Flaky()
    routed = Routed(
        Model("m", (deployment("a", Flaky(error)),), (deployment("b", second),), attempts=3), PROMPT
    )
    with pytest.raises(type(error)):
        await said(routed)
    assert second.calls == 0


async def test_nothing_is_tried_again_after_the_first_content() -> None:
    second = Flaky()
    broken = Flaky(UpstreamRateLimited("in the middle"), before=[TextDelta("Hel")])
    routed = Routed(Model("m", (deployment("a", broken),), (deployment("b", second),), attempts=3), PROMPT)
    with pytest.raises(UpstreamRateLimited):
        await said(routed)
    assert second.calls == 0


async def test_what_comes_before_the_first_content_binds_to_no_deployment() -> None:
    busy = Flaky(UpstreamRateLimited("at once"), before=[AnswerStart("openai", "chatcmpl-1")])
    routed = Routed(Model("m", (deployment("a", busy),), (deployment("b", Flaky()),), attempts=2), PROMPT)
    assert await said(routed) == "Hello"


async def test_what_has_used_tokens_is_not_tried_again_and_says_how_many() -> None:
    used = Usage(9, 3, "provider_partial")
    second = Flaky()
    broken = Flaky(UpstreamRateLimited("after it had thought"), before=[used])
    routed = Routed(Model("m", (deployment("a", broken),), (deployment("b", second),), attempts=3), PROMPT)
    seen: list[Produced] = []
    with pytest.raises(UpstreamRateLimited):
        async with routed.answering() as (begun, rest):
            seen += [item for batch in begun for item in batch]
            async for batch in rest:
                seen += batch
    assert seen == [used]
    assert second.calls == 0


async def test_a_refused_key_is_no_reason_to_ask_the_same_deployment_again() -> None:
    alone = Flaky(UpstreamRefused("the key"))
    with pytest.raises(UpstreamRefused):
        await said(Routed(Model("m", (deployment("a", alone),), attempts=5), PROMPT))
    assert alone.calls == 1


async def test_a_single_deployment_is_asked_again_after_a_pause_within_its_bounds() -> None:
    flaky = Flaky(DOWN, DOWN)
    assert await said(Routed(Model("m", (deployment("a", flaky),), attempts=3), PROMPT)) == "Hello"
    assert flaky.calls == 3
    flaky = Flaky(DOWN, DOWN)
    with pytest.raises(UpstreamError):
        await said(Routed(Model("m", (deployment("a", flaky),), attempts=2), PROMPT))
    patient = Flaky(UpstreamRateLimited("later", retry_after_seconds=60))
    with pytest.raises(UpstreamRateLimited):  # longer than the attempts may take
        await said(Routed(Model("m", (deployment("a", patient),), attempts=5), PROMPT))
    assert patient.calls == 1


async def test_the_usage_of_an_answer_that_is_stopped_before_its_first_word_is_kept() -> None:
    class Thinking(Flaky):
        async def stream(self, prompt: Prompt, model: str) -> AsyncGenerator[Sequence[Produced]]:
            yield [
                AnswerStart("anthropic"),
                UsageReport(Usage(1200, 0, "provider_partial"), {"input_tokens": 1200}),
            ]
            began.set()
            await asyncio.Event().wait()

    began = asyncio.Event()
    millstream = Millstream(Settings(max_lag_seconds=3600), providers={"p": Thinking()})
    async with millstream:
        _, secret = await millstream.keys.create("test", ["chat"])
        principal = await millstream.keys.verify(secret)
        source = await millstream.streams.start(principal, Ask(Prompt(PROMPT.messages, "m"), "continue"))
        await began.wait()
        receipt = await millstream.streams.cancel(principal, source.info.stream_id)
        assert (receipt.status, receipt.usage.prompt_tokens) == ("cancelled", 1200)


def test_weights_are_shares() -> None:
    random.seed(1)
    model = Model("m", (deployment("a", Flaky(), weight=3), deployment("b", Flaky())))
    first = Counter(model.order()[0].provider_name for _ in range(2000))
    assert 0.70 < first["a"] / 2000 < 0.80


def test_a_circuit_rests_and_then_lets_one_stream_try() -> None:
    now = [0.0]
    circuit = Circuit(lambda: now[0])
    for _ in range(5):
        assert not circuit.is_open
        circuit.begin()
        circuit.failed(DOWN)
    assert circuit.is_open
    now[0] = 10.0
    assert not circuit.is_open
    circuit.begin()
    assert circuit.is_open  # to everybody else
    circuit.failed(DOWN)
    now[0] = 29.9
    assert circuit.is_open  # twice as long
    now[0] = 30.0
    circuit.begin()
    circuit.left()  # it was stopped and says nothing
    assert not circuit.is_open
    circuit.begin()
    circuit.succeeded()
    circuit.begin()
    assert not circuit.is_open
    circuit.failed(RequestRefused("no fault of the deployment"))
    assert not circuit.is_open
    circuit.failed(UpstreamRateLimited("wait", retry_after_seconds=7))
    assert circuit.is_open
    now[0] = 37.0
    assert not circuit.is_open


async def test_whoever_rests_is_asked_last() -> None:
    circuit = Circuit()
    for _ in range(5):
        circuit.failed(DOWN)
    resting, other = Flaky(), Flaky()
    model = Model("m", (deployment("a", resting, weight=1000, circuit=circuit), deployment("b", other)))
    assert await said(Routed(model, PROMPT)) == "Hello"
    assert (resting.calls, other.calls) == (0, 1)


class Flapping:
    """Down or up, each for a while."""

    def __init__(self, always: bool, seed: int) -> None:
        self._always = always
        self._random = random.Random(seed)
        self._left = 0
        self._up = True
        self.answered = 0

    async def stream(self, prompt: Prompt, model: str) -> AsyncGenerator[Sequence[Produced]]:
        await asyncio.sleep(0)
        if self._left == 0:
            self._up, self._left = self._random.random() < 0.5, self._random.randint(1, 20)
        self._left -= 1
        if not (self._up or self._always):
            raise self._random.choice(
                [
                    DOWN,
                    UpstreamRateLimited("busy"),
                    UpstreamRefused("quota"),
                    UpstreamTimeout("", accepted=False),
                ]
            )
        self.answered += 1
        yield ANSWER

    async def models(self) -> list[str]:
        return ["m"]

    async def close(self) -> None:
        pass


async def test_no_caller_sees_an_error_while_one_deployment_is_healthy_and_none_is_billed_twice() -> None:
    providers = [Flapping(always, seed) for seed, always in enumerate([False, False, True])]
    deployments = [
        Deployment(f"p{i}", provider, "m", "o200k_base", Circuit()) for i, provider in enumerate(providers)
    ]
    model = Model("m", tuple(deployments), attempts=3)
    answers = await asyncio.gather(*(said(Routed(model, PROMPT)) for _ in range(1000)))
    assert answers == ["Hello"] * 1000
    assert sum(provider.answered for provider in providers) == 1000


async def test_of_a_thousand_streams_over_the_wire_each_is_whole_and_has_one_bill(run: Run) -> None:
    providers = {f"p{seed}": Flapping(always=seed == 2, seed=seed) for seed in range(3)}
    models = {"fast": ModelSettings(deployments=tuple(f"{name}/m" for name in providers), attempts=3)}
    body = {"model": "fast", "messages": [{"role": "user", "content": "Hello"}]}
    places = asyncio.Semaphore(50)
    async with run(providers, models=models) as running:

        async def ask() -> tuple[str, str]:
            async with places, post(running.app, "/v1/chat/stream", body, running.key) as exchange:
                await exchange.finished()
                return exchange.text, exchange.frames[-2]["finish_reason"]

        assert Counter(await asyncio.gather(*(ask() for _ in range(1000)))) == {("Hello", "stop"): 1000}
        rows = await running.receipts()
    assert Counter((row["status"], row["completion_tokens"]) for row in rows) == {("completed", 1): 1000}
    assert sum(provider.answered for provider in providers.values()) == 1000


async def test_a_deployment_that_refuses_costs_the_caller_less_than_50_ms(run: Run) -> None:
    async def handler(request: Request) -> None:
        if not request.body:
            return await request.answer(200, {"data": []})
        if request.json["model"] == "down":
            return await request.answer(503, {})
        await request.head()
        await request.say("Hello")
        await request.finish()

    async with oracle(handler) as server:
        models = {
            "direct": ModelSettings(deployments=("b/up",)),
            "fallen": ModelSettings(deployments=("a/down",), fallbacks=("b/up",)),
        }
        providers = {name: OpenAIProvider(name, server.base_url, Upstream(name, {})) for name in ("a", "b")}
        async with run(providers, models=models) as running:
            least = dict.fromkeys(models, float("inf"))
            for name in [*models] * 4:  # a fifth failure would let it rest
                body = {"model": name, "messages": [{"role": "user", "content": "Hello"}]}
                began = time.monotonic()
                async with post(running.app, "/v1/chat/stream", body, running.key) as exchange:
                    await exchange.until(lambda exchange: b"Hello" in exchange.received)
                    least[name] = min(least[name], time.monotonic() - began)
    assert sum(b'"down"' in request.body for request in server.requests) == 4
    assert least["fallen"] - least["direct"] < 0.05, least


# -- hedging ---------------------------------------------------------------------------------------

AT_ONCE = 0.001


def hedged(
    first: Flaky, second: Flaky, *, seconds: float | None = AT_ONCE, attempts: int = 2, **more: Any
) -> Routed:
    deployments = (deployment("a", first),), (deployment("b", second, **more),)
    return Routed(Model("m", *deployments, attempts=attempts, hedge_seconds=seconds), PROMPT)


async def test_whoever_is_first_answers_and_the_other_is_let_go_at_once() -> None:
    used = UsageReport(Usage(1200, 2, "provider_partial"), {"input_tokens": 1200})
    first, second = Slow(before=[AnswerStart("anthropic"), used]), Flaky()
    routed = hedged(first, second)
    async with routed.answering() as (begun, _):
        assert begun == [ANSWER]
        assert first.closed.is_set()
    assert [(one.provider, one.error) for one in routed.attempts()] == [("a", None), ("b", None)]
    lost, won = routed.attempts()
    assert (lost.bill and lost.bill.usage, won.bill) == (used.usage, None)
    assert routed.deployment.provider_name == "b"


async def test_the_first_may_still_be_faster_than_the_one_that_was_asked_later() -> None:
    first, second = Slow(), Slow()
    routed = hedged(first, second)
    answer = asyncio.create_task(said(routed))
    await second.asked.wait()
    first.go_on.set()
    assert await answer == "Hello"
    assert second.closed.is_set()
    assert [(one.provider, one.first_content_at is None) for one in routed.attempts()] == [
        ("b", True),
        ("a", False),
    ]


@pytest.mark.parametrize(
    ("seconds", "attempts", "rests"),
    [(None, 2, False), (60, 2, False), (AT_ONCE, 1, False), (AT_ONCE, 2, True)],
)
async def test_no_second_one_is_asked_without_need(seconds: float | None, attempts: int, rests: bool) -> None:
    circuit = Circuit()
    for _ in range(5 if rests else 0):
        circuit.failed(DOWN)
    first, second = Slow(), Flaky()
    routed = hedged(first, second, seconds=seconds, attempts=attempts, circuit=circuit)
    answer = asyncio.create_task(said(routed))
    await first.asked.wait()
    done, _ = await asyncio.wait({answer}, timeout=20 * AT_ONCE)
    assert not done
    first.go_on.set()
    assert await answer == "Hello"
    assert second.calls == 0


async def test_one_that_fails_beside_another_is_no_error() -> None:
    first, second = Slow(UpstreamError("it broke")), Slow()
    routed = hedged(first, second)
    answer = asyncio.create_task(said(routed))
    await second.asked.wait()
    first.go_on.set()
    await first.closed.wait()
    second.go_on.set()
    assert await answer == "Hello"
    assert [(one.provider, one.error) for one in routed.attempts()] == [("a", "upstream_error"), ("b", None)]


async def test_when_both_fail_nothing_is_tried_again_that_may_be_billed() -> None:
    first, second = Slow(UpstreamError("it had taken the request on")), Slow(DOWN)
    routed = hedged(first, second, attempts=5)
    answer = asyncio.create_task(said(routed))
    await second.asked.wait()
    first.go_on.set()
    await first.closed.wait()
    second.go_on.set()
    with pytest.raises(UpstreamError, match="it is down"):
        await answer
    assert (first.calls, second.calls) == (1, 1)
    first, second = Slow(DOWN), Slow(DOWN)
    first.go_on.set()
    second.go_on.set()
    assert await said(hedged(first, second, attempts=3)) == "Hello"


async def test_a_stop_closes_both_and_keeps_what_both_have_counted() -> None:
    used = UsageReport(Usage(1200, 0, "provider_partial"), {"input_tokens": 1200})
    first, second = Slow(before=[used]), Slow(before=[used])
    routed = hedged(first, second)
    answer = asyncio.create_task(said(routed))
    await second.asked.wait()
    answer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await answer
    assert first.closed.is_set()
    assert second.closed.is_set()
    other, expected = routed.attempts()
    assert (other.provider, other.bill and other.bill.usage) == ("b", used.usage)
    assert (expected.provider, routed.pending) == ("a", [[used]])


async def test_the_connection_of_the_slower_one_is_closed_and_its_receipt_has_both(run: Run) -> None:
    async def handler(request: Request) -> None:
        await request.head()
        if request.json["model"] == "slow":
            await asyncio.Event().wait()
        await request.say("Hello")
        await request.finish(usage={"prompt_tokens": 3, "completion_tokens": 1})

    def provider(name: str, server: Oracle) -> OpenAIProvider:
        return OpenAIProvider(name, server.base_url, Upstream(name, {}))

    async with oracle(handler) as server:
        models = {"fast": ModelSettings(deployments=("a/slow",), fallbacks=("b/quick",), hedge_seconds=0.01)}
        providers = {name: provider(name, server) for name in ("a", "b")}
        async with run(providers, models=models) as running:
            body = {"model": "fast", "messages": [{"role": "user", "content": "Hello"}]}
            async with post(running.app, "/v1/chat/stream", body, running.key) as exchange:
                await exchange.finished()
                assert exchange.text == "Hello"
                async with asyncio.timeout(5):
                    await server.requests[0].gone.wait()
            await running.idle()
            path = f"/v1/streams/{exchange.frames[0]['stream_id']}"
            async with get(running.app, path, running.key) as receipt:
                await receipt.finished()
            assert [(one["provider"], one["model"]) for one in receipt.json["attempts"]] == [
                ("a", "slow"),
                ("b", "quick"),
            ]
            assert receipt.json["provider"] == "b"


@pytest.mark.parametrize("more", [{}, {"fallbacks": ("b/m",), "attempts": 1}])
def test_a_hedge_without_another_to_ask_is_a_mistake(more: Any) -> None:
    with pytest.raises(ValueError, match="hedge_seconds"):
        ModelSettings(deployments=("a/m",), hedge_seconds=1, **more)


@pytest.fixture
def file_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "millstream.toml").write_text(
        """
        [models.fast]
        deployments = [{model = "first/m", weight = 1}]
        fallbacks = ["second/m"]

        [prices.fast]
        input = 1
        output = 10_000
        """
    )
    return Settings.load()


async def test_a_name_of_ones_own_is_listed_and_its_receipt_has_every_attempt(
    file_settings: Settings,
) -> None:
    providers: dict[str, Any] = {"first": Flaky(DOWN), "second": Flaky()}
    millstream = Millstream(file_settings, providers=providers)
    app = FastAPI(lifespan=millstream.lifespan)
    async with millstream.lifespan(app):
        service = millstream.llm_service
        assert next(iter(service.models.items())) == ("fast", "millstream")
        _, secret = await millstream.keys.create("test", ["chat"])
        principal = await millstream.keys.verify(secret)
        source = await millstream.streams.start(principal, Ask(PROMPT))
        await millstream.streams.idle()
        receipt = await millstream.streams.receipt(principal, source.info.stream_id)
        assert (receipt.model, receipt.provider, receipt.status) == ("fast", "second", "completed")
        assert [(one.provider, one.error) for one in receipt.attempts] == [
            ("first", "upstream_error"),
            ("second", None),
        ]
        assert receipt.cost_usd == "0.010001"
        chunks = [chunk async for chunk in service.stream_chat([{"role": "user", "content": "x"}], "fast")]
        assert "".join(chunk.content for chunk in chunks) == "Hello"


async def test_a_checkpoint_names_the_fallback_that_answers(run: Run) -> None:
    models = {"fast": ModelSettings(deployments=("a/m",), fallbacks=("b/n",))}
    end = asyncio.Event()
    answering = ScriptedProvider({"n": [TextDelta("Hello"), end.wait, *ANSWER]})
    async with run({"a": Flaky(DOWN), "b": answering}, models=models) as running:
        body = {"model": "fast", "messages": [{"role": "user", "content": "Hello"}]}
        async with post(running.app, "/v1/streams", body, running.key) as exchange:
            stream_id = (await exchange.finished()).json["stream_id"]
        async with asyncio.timeout(5):
            while not (receipt := await running.millstream.ledger.receipt(stream_id)).usage.completion_tokens:
                await asyncio.sleep(0.01)
        end.set()
    assert (receipt.status, receipt.provider, receipt.upstream_model) == ("running", "b", "n")


async def test_a_model_without_others_has_one_attempt_on_its_receipt() -> None:
    millstream = Millstream(Settings(max_lag_seconds=3600), providers={"p": ScriptedProvider({"m": ANSWER})})
    async with millstream:
        _, secret = await millstream.keys.create("test", ["chat"])
        principal = await millstream.keys.verify(secret)
        source = await millstream.streams.start(principal, Ask(Prompt(PROMPT.messages, "m")))
        await millstream.streams.idle()
        receipt = await millstream.streams.receipt(principal, source.info.stream_id)
        assert [(one.provider, one.error) for one in receipt.attempts] == [("p", None)]
