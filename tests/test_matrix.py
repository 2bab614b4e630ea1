"""Every provider in, every client out: whatever a provider says, the client of any dialect understands it.

The table is ``matrix/``: what is said, how each provider sends it, and who reads it.
"""

from collections.abc import AsyncGenerator

import pytest
import pytest_asyncio

from application import Running
from listening import listening
from matrix.meaning import meant
from matrix.readers import READERS, Clients, Heard, clients
from matrix.scenarios import SCENARIOS
from matrix.wires import WIRES, model
from millstream.providers import Provider
from millstream.providers.anthropic import AnthropicProvider
from millstream.providers.gemini import GeminiProvider
from millstream.providers.openai import OpenAIProvider
from millstream.providers.responses import ResponsesProvider
from millstream.providers.upstream import Upstream
from millstream.server.app import Millstream, create_app
from millstream.settings import Settings
from oracle import oracle

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def before(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Clients]:
    """One application with every provider for all tests, which change nothing of it."""
    async with oracle(model) as server:
        root = server.base_url.removesuffix("/v1")
        providers: dict[str, Provider] = {
            "openai": OpenAIProvider("openai", server.base_url, Upstream("openai", {})),
            "anthropic": AnthropicProvider("anthropic", server.base_url, Upstream("anthropic", {})),
            "gemini": GeminiProvider("gemini", root, Upstream("gemini", {})),
            "responses": ResponsesProvider("responses", server.base_url, Upstream("responses", {})),
        }
        settings = Settings(data_dir=tmp_path_factory.mktemp("data"), max_lag_seconds=3600)
        millstream = Millstream(settings, providers=providers)
        app = create_app(millstream)
        async with millstream.lifespan(app):
            running = Running(millstream, app)
            _, running.key = await millstream.keys.create("test", ["chat"])
            async with listening(running) as url, clients(running, url) as found:
                yield found
                await running.idle()


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("dialect", READERS)
@pytest.mark.parametrize("provider", WIRES)
async def test_what_a_provider_says_is_what_a_client_understands(
    before: Clients, provider: str, dialect: str, scenario: str
) -> None:
    reader, wire, heard = READERS[dialect], WIRES[provider], Heard()
    await reader.read(before, f"{provider}/{scenario}", heard)
    understood = heard.understood()
    if not wire.names_calls:  # those of ours, one for each
        ids = {call_id for call_id, *_ in understood.calls}
        assert len(ids - {""}) == len(understood.calls)
        understood = understood._replace(calls=tuple(("", *rest) for _, *rest in understood.calls))
    assert understood == reader.tells(meant(SCENARIOS[scenario], wire, whole=reader.whole))
