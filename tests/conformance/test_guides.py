"""The code in the guides of the clients does what it says, as it stands there."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from playwright.async_api import Page, Route

from conformance.clients import CLIENTS, NODE_MODULES, Client
from conformance.conftest import Gateway
from live.browser import chromium, watched_page

GUIDES = Path(__file__).parents[2] / "docs" / "guides"
TOTAL = "21 tokens"


class Code(NamedTuple):
    """The block of a page that has ``words`` in it, who runs it, and what it prints."""

    page: str
    language: str
    words: str
    client: str
    printed: str
    more: str = ""  # code behind it


def _in_slice(name: str) -> bool:
    return any(client.name == name and client.in_slice for client in CLIENTS)


BLOCKS = [
    Code("openai-sdk.md", "python", "include_usage", "openai_sdk", f"Hello there\n{TOTAL}"),
    Code("openai-sdk.md", "js", 'from "openai"', "openai", "Hello there"),
    Code("openai-sdk.md", "python", "import urllib.request", "openai_sdk", '"content":"Hel"'),
    Code("openai-sdk.md", "python", "from pydantic_ai import", "pydantic_ai", "Hello there"),
    Code("openai-sdk.md", "python", "from agents import", "openai_agents", "Hello there"),
    Code("openai-sdk.md", "python", "import litellm", "litellm", "Hello there"),
    Code("anthropic.md", "js", "@anthropic-ai/sdk", "anthropic", "Hello there\n"),
    Code("langchain.md", "python", "stream_usage", "langchain", f"Hello there\n{TOTAL}"),
    Code("langchain.md", "python", "ToolMessage", "langchain", "It is 7."),
    Code("vercel-ai-sdk.md", "js", "streamText", "ai_provider", f"Hello there\n {TOTAL}"),
    Code("ag-ui.md", "js", "initialMessages", "ag_ui", f"Hello there\n {TOTAL}"),
    Code(
        "ag-ui.md",
        "js",
        "class MillstreamAgent",
        "ag_ui",
        "Hello there",
        """
const agent = new MillstreamAgent("gpt-4o").clone();
agent.addMessage({ id: "1", role: "user", content: "Hello" });
const { newMessages } = await agent.runAgent();
console.log(newMessages[0].content);
""",
    ),
    Code("ag-ui.md", "js", "ChatClient", "tanstack", "Hello there\n"),
]


def block(page: str, language: str, words: str) -> str:
    """The one block of a page in that language with those words in it."""
    text = (GUIDES / page).read_text(encoding="utf-8")
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (found,) = [code for code in blocks if words in code]
    return str(found)


def here(code: str, gateway: Gateway) -> str:
    """The same with this server and its key."""
    server = gateway.server
    assert "http://127.0.0.1:8000" in code
    return code.replace("http://127.0.0.1:8000", server.url).replace("ms_live_…", server.key)


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(
            code,
            id=f"{code.page}-{code.client}",
            marks=() if _in_slice(code.client) else pytest.mark.conformance,
        )
        for code in BLOCKS
    ],
)
def test_the_code_of_a_guide_prints_what_it_should(code: Code, gateway: Gateway, tmp_path: Path) -> None:
    client: Client = next(client for client in CLIENTS if client.name == code.client)
    program = tmp_path / ("guide.mjs" if code.language == "js" else "guide.py")
    program.write_text(
        here(block(code.page, code.language, code.words), gateway) + code.more, encoding="utf-8"
    )
    (tmp_path / "node_modules").symlink_to(NODE_MODULES)
    done = subprocess.run(
        [client.command[0], str(program)],
        cwd=tmp_path,
        env={**os.environ, "HOME": str(tmp_path), "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert code.printed in done.stdout


@pytest.mark.conformance
def test_the_settings_for_llm_in_the_guide_are_enough_for_it(gateway: Gateway, tmp_path: Path) -> None:
    settings = block("openai-sdk.md", "yaml", "model_id").replace("http://127.0.0.1:8000", gateway.server.url)
    (tmp_path / "extra-openai-models.yaml").write_text(settings)
    (tmp_path / "keys.json").write_text(json.dumps({"millstream": gateway.server.key}))
    client = next(client for client in CLIENTS if client.name == "llm")
    done = subprocess.run(
        [str(Path(client.command[0]).parent / "llm"), "-m", "millstream", "Hello"],
        env={**os.environ, "LLM_USER_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("Hello there\n", 0), done.stderr[-2000:]


@pytest.mark.conformance
def test_the_page_of_the_ai_sdk_s_guide_answers_in_a_browser(gateway: Gateway, tmp_path: Path) -> None:
    (tmp_path / "node_modules").symlink_to(NODE_MODULES)
    (tmp_path / "chat.tsx").write_text(here(block("vercel-ai-sdk.md", "tsx", "useChat"), gateway))
    (tmp_path / "page.tsx").write_text(
        'import { createRoot } from "react-dom/client";\n'
        'import Chat from "./chat";\n'
        'createRoot(document.body).render(<Chat id="guide" />);\n'
    )
    script = subprocess.run(
        [
            str(NODE_MODULES / ".bin" / "esbuild"),
            "page.tsx",
            "--bundle",
            "--jsx=automatic",
            "--log-level=warning",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    answer, complaints = gateway.upstream.run(_ask(gateway, script))
    assert answer == "Hello there"
    assert complaints == []


async def _ask(gateway: Gateway, script: str) -> tuple[str, list[str]]:
    async def token(route: Route) -> None:
        await route.fulfill(json={"token": gateway.server.key})

    async def empty(route: Route) -> None:
        await route.fulfill(content_type="text/html", body="<!doctype html><title>Guide</title><body>")

    async with chromium() as browser:
        page: Page
        page, complaints = await watched_page(browser)
        await page.route("**/api/token", token)
        await page.route("**/guide", empty)
        await page.goto(f"{gateway.server.url}/guide")
        await page.add_script_tag(content=script)
        await page.locator("input").fill("Hello")
        await page.get_by_text("Send").click()
        shown = page.locator("[data-role=assistant]", has_text="there")
        await shown.wait_for()
        return await shown.inner_text(), complaints
