"""Models stay true: providers that come late, lists that change, and who is the default."""

import asyncio
from collections.abc import Sequence

import pytest

from application import Run
from asgi import get, post
from millstream import listings
from millstream.catalog import LLMService
from millstream.errors import ModelNotFound, UpstreamError
from millstream.listings import ProviderEntry, can_chat
from millstream.providers.openai import OpenAIProvider
from millstream.providers.scripted import ScriptedProvider
from millstream.providers.upstream import Upstream
from oracle import Request, oracle


class Late(ScriptedProvider):
    """A provider whose models are what a test says, or that is down. ``asked`` is how often it was asked."""

    def __init__(self, names: Sequence[str] | None = None) -> None:
        super().__init__()
        self.names = names
        self.asked = 0

    async def models(self) -> list[str]:
        self.asked += 1
        if self.names is None:
            raise UpstreamError("down")
        return list(self.names)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Intervals of milliseconds."""
    for name in ("_FIRST_RETRY_SECONDS", "_LAST_RETRY_SECONDS", "_REFRESH_SECONDS"):
        monkeypatch.setattr(listings, name, 0.01)


async def until(service: LLMService, models: Sequence[str]) -> None:
    async with asyncio.timeout(10):
        while list(service.models) != list(models):
            await asyncio.sleep(0.005)


@pytest.mark.usefixtures("hasty")
async def test_a_provider_that_comes_up_later_and_one_that_changes_are_seen() -> None:
    provider = Late()
    service = LLMService({"p": ProviderEntry(provider)})
    await service.discover()
    assert service.unready == {"p": "down"}
    keeping = asyncio.create_task(service.keep_models_true())
    provider.names = ["a"]
    await until(service, ["a"])
    assert (service.default_model, service.unready) == ("a", {})
    provider.names = ["b", "a"]
    await until(service, ["b", "a"])
    provider.names = None  # for a moment: what it had, it has
    asked = provider.asked
    async with asyncio.timeout(10):
        while provider.asked < asked + 3:
            await asyncio.sleep(0.005)
    assert list(service.models) == ["b", "a"]
    keeping.cancel()
    await service.close()


async def test_intervals_grow_while_a_provider_is_down() -> None:
    entry = ProviderEntry(Late())
    listing = listings.Listing("p", entry)
    waits = []
    for _ in range(9):
        await listing.ask()
        waits.append(round(listing.due_at - listing.asked_at))
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]


async def test_a_caller_who_names_what_nobody_has_makes_them_be_asked_but_not_often() -> None:
    late, other = Late(), Late(["x"])
    service = LLMService({"late": ProviderEntry(late), "other": ProviderEntry(other, any_model=True)})
    await service.discover()
    assert (await service.resolve("m")).deployments[0].provider_name == "other"  # takes any name
    late.names = ["m"]
    assert (late.asked, other.asked) == (1, 1)  # a moment ago
    for listing in service._listings._listings:  # noqa: SLF001  # an hour goes by
        listing.asked_at = float("-inf")
    assert (await service.resolve("n")).deployments[0].provider_name == "other"
    assert (await service.resolve("m")).deployments[0].provider_name == "late"
    for i in range(50):
        await service.resolve(f"unknown-{i}")
    assert (late.asked, other.asked) == (2, 2)
    await service.close()


async def test_a_model_that_nobody_has_is_said_to_be_one() -> None:
    service = LLMService({"p": ProviderEntry(Late(["a"]))})
    await service.discover()
    with pytest.raises(ModelNotFound):
        await service.resolve("b")


async def test_the_default_can_chat() -> None:
    names = ["whisper-large-v3", "text-embedding-3-small", "llama-guard-4", "llama-3.3-70b-instruct"]
    service = LLMService({"p": ProviderEntry(Late(names))})
    await service.discover()
    assert service.default_model == "llama-3.3-70b-instruct"
    assert set(service.models) == set(names)
    none = LLMService({"p": ProviderEntry(Late(names[:2]))})
    await none.discover()
    assert none.default_model is None


@pytest.mark.parametrize(
    "name", ["gpt-5-mini", "qwen3:8b", "Mixtral-8x7B-Instruct", "claude-sonnet-5", "phi-4"]
)
def test_models_that_chat_are_known_to(name: str) -> None:
    assert can_chat(name)


async def test_a_server_that_starts_after_us_has_its_models_and_the_default(run: Run) -> None:
    up = False

    async def handler(request: Request) -> None:
        if not up:
            await request.answer(503, {})
        elif request.path == "/v1/models":
            await request.answer(200, {"data": [{"id": "late model"}]})
        else:
            await request.head()
            await request.say(request.json["model"])
            await request.finish()

    async with oracle(handler) as server:
        provider = OpenAIProvider("ollama", server.base_url, Upstream("ollama", {}))
        async with run({"ollama": provider}) as app:
            async with get(app.app, "/v1/models", app.key) as call:
                await call.finished()
                assert call.json["data"] == []
            up = True
            async with asyncio.timeout(10):
                while app.millstream.llm_service.default_model is None:
                    await asyncio.sleep(0.02)
            body = {"messages": [{"role": "user", "content": "Hello"}]}
            async with post(app.app, "/v1/chat/stream", body, app.key) as exchange:
                await exchange.finished()
            assert "".join(f["delta"] for f in exchange.frames if isinstance(f, dict)) == "late model"
