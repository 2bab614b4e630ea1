"""One server before one model for all clients, and each client once."""

import json
from collections.abc import Callable, Generator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from conformance.browser import BrowserClient
from conformance.clients import CLIENTS, Asked, Client, started
from conformance.upstream import Upstream, upstream
from live.conftest import Server, running


class Gateway(NamedTuple):
    """A Millstream and the model behind it."""

    server: Server
    upstream: Upstream


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Generator[Gateway]:
    folder = tmp_path_factory.mktemp("gateway")
    with upstream() as behind:
        root = behind.base_url.removesuffix("/v1")
        responses = {"type": "responses", "base_url": behind.base_url, "api_key": "sk-test"}
        environment = {
            "OPENAI_BASE_URL": behind.base_url,
            "OPENAI_API_KEY": "sk-test",
            "ANTHROPIC_BASE_URL": root,
            "ANTHROPIC_API_KEY": "sk-test",
            "GEMINI_BASE_URL": root,
            "GEMINI_API_KEY": "sk-test",
            "MILLSTREAM_PROVIDERS": json.dumps({"responses-api": responses}),
        }
        program = Path(__file__).parent / "server.py"
        with running(folder, program=[str(program)], **environment) as server:
            yield Gateway(server, behind)


class Asker:
    """A client with the key of the server."""

    def __init__(self, client: Client, ask: Callable[..., dict[str, Any]], key: str) -> None:
        self.client, self._ask, self._key = client, ask, key

    def __call__(self, model: str, op: str = "ask", **more: Any) -> dict[str, Any]:
        return self._ask(op, model, **{"key": self._key, **more})


def _needs(metafunc: pytest.Metafunc) -> set[str]:
    """What a client has to be able to do for the test: there is none for the others (``clients.py`` says why)."""
    return {what for mark in metafunc.definition.iter_markers("needs") for what in mark.args}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "asker" in metafunc.fixturenames:
        clients = [
            pytest.param(client, id=client.name, marks=() if client.in_slice else pytest.mark.conformance)
            for client in CLIENTS
            if not _needs(metafunc) & client.cannot.keys()
        ]
        metafunc.parametrize("asker", clients, indirect=True, scope="session")


@pytest.fixture(scope="session")
def _clients(gateway: Gateway, tmp_path_factory: pytest.TempPathFactory) -> Generator[Callable[..., Any]]:
    found: dict[str, Asked | BrowserClient] = {}
    folder = tmp_path_factory.mktemp("clients")
    with ExitStack() as stack:

        def get(client: Client) -> Asked | BrowserClient:
            if client.name not in found:
                url = gateway.server.url
                if client.language == "browser":
                    found[client.name] = stack.enter_context(BrowserClient(url, gateway.upstream))
                else:
                    found[client.name] = stack.enter_context(started(client, url, folder))
            return found[client.name]

        yield get


@pytest.fixture(scope="session")
def asker(request: pytest.FixtureRequest, gateway: Gateway, _clients: Callable[..., Any]) -> Asker:
    client: Client = request.param
    return Asker(client, _clients(client), gateway.server.key)
