"""Requests to providers go through a proxy where the operator says so, and only there."""

import logging
import re
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from millstream.errors import ConfigurationError, UpstreamError
from millstream.prompt import Message, Prompt, Text
from millstream.providers.openai import OpenAIProvider
from millstream.providers.upstream import Upstream
from millstream.runtime.providers import llm_service
from millstream.settings import ProviderSettings, Settings
from oracle import Oracle, Request, oracle

PROMPT = Prompt((Message("user", (Text("Hello"),)),))
ELSEWHERE = "http://provider.invalid/v1"


async def answer(request: Request) -> None:
    await request.head()
    await request.say(request.path)
    await request.finish()


@pytest.fixture
async def proxy(monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Oracle]:
    """Answers itself, with the address that it was asked for."""
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    async with oracle(answer) as server:
        yield server


async def asked(base_url: str, proxy: str | None) -> str:
    provider = OpenAIProvider("p", base_url, Upstream("p", {}, proxy=proxy))
    try:
        batches = [batch async for batch in provider.stream(PROMPT, "m")]
        return "".join(getattr(item, "text", "") for batch in batches for item in batch)
    finally:
        await provider.close()


async def test_a_proxy_that_is_named_is_used(proxy: Oracle) -> None:
    assert await asked(ELSEWHERE, f"http://127.0.0.1:{proxy.port}") == f"{ELSEWHERE}/chat/completions"


async def test_the_environments_is_used_where_the_operator_says_so(
    proxy: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.port}")
    assert await asked(ELSEWHERE, "environment") == f"{ELSEWHERE}/chat/completions"
    async with oracle(answer) as direct:
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        assert await asked(direct.base_url, "environment") == "/v1/chat/completions"
        monkeypatch.delenv("NO_PROXY")
        assert await asked(direct.base_url, None) == "/v1/chat/completions"
    assert len(proxy.requests) == 1


@pytest.mark.parametrize("setting", [None, "environment"])
def test_one_that_is_not_used_is_said(
    setting: str | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://user:canary@proxy.example")
    settings = Settings.load(proxy=setting, providers={"p": ProviderSettings(base_url="http://127.0.0.1/v1")})
    with caplog.at_level(logging.WARNING, "millstream"):
        llm_service(settings, {})
    assert ("HTTPS_PROXY is set" in caplog.text) == (setting is None)
    assert "canary" not in caplog.text


@pytest.mark.parametrize(
    ("section", "why"),
    [
        ({"ca_file": "/nowhere.pem"}, "the ca_file /nowhere.pem: No such file"),
        ({"ca_file": __file__}, "it has no certificate that can be read"),
        ({"proxy": "http://-:1"}, "the URL's host is no name"),
        ({"headers": {"X-Team": "a\nb"}}, "the header 'X-Team' has a character that none may have"),
    ],
)
def test_what_no_request_could_go_out_with_is_said_at_the_start(section: dict[str, Any], why: str) -> None:
    provider = ProviderSettings(base_url="http://127.0.0.1/v1", **section)
    with pytest.raises(ConfigurationError, match=re.escape(why)):
        llm_service(Settings.load(providers={"p": provider}), {})


async def test_what_is_no_http_is_called_that() -> None:
    async def ssh(request: Request) -> None:
        await request.raw(b"SSH-2.0-OpenSSH_9.2\r\n")

    async with oracle(ssh) as server:
        with pytest.raises(UpstreamError, match="sent what is no HTTP answer"):
            await asked(server.base_url, None)
