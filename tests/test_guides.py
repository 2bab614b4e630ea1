"""The documents' blocks, as they are written: their files load and run, their commands and settings exist."""

import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from itertools import dropwhile
from pathlib import Path
from typing import Any

import pytest
import typer
from fastapi import FastAPI
from fastapi.testclient import TestClient
from rich.text import Text
from starlette.types import Receive, Scope, Send

from application import Run
from asgi import post
from guides import PAGES, ROOT, Block, all_blocks, blocks
from matrix.wires import model
from millstream import Principal, get_api_key
from millstream.cli import app as command_line
from millstream.settings import Settings
from oracle import oracle

SHELL = all_blocks("sh")
README = ROOT / "README.md"
OF_CHAT = {"MILLSTREAM_URL", "MILLSTREAM_KEY"}  # what `millstream chat` and the examples read
# The others have the names of earlier versions too.
NOW = [page for page in PAGES if page.name != "CHANGELOG.md" and page.parent.name != "decisions"]


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_a_shell_takes_every_command_of_the_documents(block: Block) -> None:
    checked = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


def commands(text: str) -> list[list[str]]:
    """The words of each command in a shell's text, without the variables that are set for it."""
    lines = text.replace("\\\n", " ").splitlines()
    split = [
        shlex.split(part, comments=True) for line in lines for part in re.split(r"&& |\|\| |; |^\(", line)
    ]
    return [list(dropwhile(lambda word: re.match(r"\w+=", word), words)) for words in split]


ASKED = [
    (str(block), words)
    for block in [
        *SHELL,
        *(b for page in PAGES for b in blocks(page, "") if b.text.startswith("millstream ")),
    ]
    for words in commands(
        block.text.replace("(", "").replace(")", "") if "$(" not in block.text else block.text
    )
    if words and words[0].rpartition("/")[2] in ("millstream", "make")
]


@pytest.mark.parametrize(("place", "words"), ASKED, ids=str)
def test_every_command_and_option_of_the_documents_exists(place: str, words: list[str]) -> None:
    if words[0] == "make":
        targets = set(
            re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        )
        assert [word for word in words[1:] if "=" not in word and word not in targets] == []
        return
    command: Any = typer.main.get_command(command_line)
    for word in words[1:]:
        if not word.startswith("-") and hasattr(command, "commands"):
            if word in command.commands or not command.invoke_without_command:  # else an option's value
                command = command.commands[word]
        elif word.startswith("-"):
            options = {name for parameter in command.params for name in parameter.opts}
            assert word in options | {"--help"}


def helps(command: Any) -> list[str]:
    """What a command says of itself and of its options, and what those below it say."""
    own = [command.help, *(getattr(parameter, "help", None) for parameter in command.params)]
    return [text for text in own if text] + [
        text for below in getattr(command, "commands", {}).values() for text in helps(below)
    ]


def test_no_part_of_a_help_is_taken_for_markup() -> None:
    written = helps(typer.main.get_command(command_line))
    assert len(written) > 50
    assert [Text.from_markup(text).plain for text in written] == [
        text.replace("\\[", "[") for text in written
    ]


@pytest.mark.parametrize("page", NOW, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_setting_that_a_page_names_exists(page: Path) -> None:
    known = {f"MILLSTREAM_{name.upper()}" for name in Settings.model_fields} | OF_CHAT
    named = set(re.findall(r"\bMILLSTREAM_[A-Z_]*[A-Z]\b(?!…)", page.read_text(encoding="utf-8")))
    assert named - known == set()


@pytest.mark.parametrize("block", all_blocks("toml"), ids=str)
def test_every_file_of_settings_loads(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("millstream.toml").write_text(block.text, encoding="utf-8")
    settings = Settings.load()
    written = tomllib.loads(block.text)
    assert set(settings.providers) == set(written.get("providers", {}))
    assert set(settings.models) == set(written.get("models", {}))
    assert set(settings.exporters) == set(written.get("exporters", {}))


OF_PROVIDERS = ["openai", "anthropic", "gemini", "responses"]


@pytest.mark.parametrize("page", OF_PROVIDERS)
async def test_a_model_of_the_section_of_a_providers_page_answers(
    page: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (block,) = blocks(page, "toml")
    monkeypatch.chdir(tmp_path)
    async with oracle(model) as server:
        text = re.sub(
            r'base_url = "https?://[^/"]+', f'base_url = "http://127.0.0.1:{server.port}', block.text
        )
        Path("millstream.toml").write_text(
            re.sub("^models = .*$", "", text, flags=re.MULTILINE), encoding="utf-8"
        )
        providers = Settings.load().providers
        async with run() as running:  # which reads the file
            for name in providers:
                asked = {"model": f"{name}/text", "messages": [{"role": "user", "content": "Hello"}]}
                async with post(running.app, "/v1/chat", asked, running.key) as exchange:
                    await exchange.finished()
                assert exchange.json["content"].startswith("Hello")
        sent = [request for request in server.requests if request.body]
        assert len(sent) == len(providers)


NEXTJS = [block for block in blocks("nextjs") if block.language in ("ts", "tsx")]


@pytest.mark.parametrize("block", NEXTJS, ids=str)
def test_a_file_of_the_guide_is_that_of_the_example(block: Block) -> None:
    """So that what is built and used in a browser is what the guide says."""
    assert block.name
    example = ROOT / "examples" / "nextjs" / block.name
    assert block.text == example.read_text(encoding="utf-8")


def test_the_guide_has_every_file_of_the_example() -> None:
    folder = ROOT / "examples" / "nextjs" / "app"
    files = {str(path.relative_to(folder.parent)) for path in folder.rglob("*.ts*")}
    assert {block.name for block in NEXTJS} == files - {"app/layout.tsx"}  # which every application has


# -- Python -----------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests share their machine with others: that it is late is not what they are about."""
    monkeypatch.setenv("MILLSTREAM_MAX_LAG_SECONDS", "3600")


@pytest.fixture
def scripted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clean folder, and the least that an operator sets."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MILLSTREAM_PROVIDERS", '{"demo": {"type": "scripted"}}')


def run(blocks: list[Block]) -> dict[str, Any]:
    """What the blocks define, one after the other."""
    names: dict[str, Any] = {"__name__": "main"}
    for block in blocks:
        exec(compile("\n" * (block.line - 1) + block.text, str(block.page), "exec"), names)
    return names


def made(names: dict[str, Any], prefix: str = "") -> Callable[[TestClient], None]:
    """Asks for an answer as a client with a key does."""

    def ask(client: TestClient) -> None:
        assert client.portal is not None
        _, key = client.portal.call(names["millstream"].keys.create, "test", ["chat"])
        headers = {"Authorization": f"Bearer {key}"}
        body = {"messages": [{"role": "user", "content": "Hi"}]}
        answer = client.post(f"{prefix}/v1/chat", json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        if prefix:
            assert client.get("/whoami", headers=headers).status_code == 200
            assert client.get("/whoami").status_code == 401

    return ask


@pytest.mark.usefixtures("scripted")
def test_the_application_of_the_readme_answers() -> None:
    names = run(blocks(README, "python"))
    with TestClient(names["app"]) as client:
        made(names)(client)


@pytest.mark.usefixtures("scripted")
def test_the_application_of_the_guide_answers() -> None:
    names = run(blocks("library", "python")[:1])
    with TestClient(names["app"]) as client:
        made(names, "/ai")(client)


@pytest.mark.usefixtures("scripted")
def test_the_guides_own_lifespan_and_login_work() -> None:
    names = run([block for block in blocks("library", "python") if block.name in ("main.py", "")])
    app: FastAPI = names["app"]
    app.router.lifespan_context = names["lifespan"]

    async def with_login(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "session": {"user": "ann"}}, receive, send)

    with TestClient(with_login) as client:
        body = {"messages": [{"role": "user", "content": "Hi"}]}
        assert client.post("/ai/v1/chat", json=body).json()["content"]
        assert client.portal is not None
        (row,) = client.portal.call(names["millstream"].meter.totals)
        assert row.group == {"key": "ann"}
        page = {"Origin": "https://page.example"}
        asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "X-Request-Id"}
        assert client.options("/ai/v1/chat", headers=page | asks).status_code == 200
        exposed = client.post("/ai/v1/chat", json=body, headers=page).headers["access-control-expose-headers"]
        assert {"X-Stream-Id", "X-RateLimit-Limit-Tokens"} <= set(exposed.split(", "))


@pytest.mark.usefixtures("scripted")
def test_the_provider_of_the_guide_answers_and_refuses() -> None:
    names = run(blocks(ROOT / "docs/extending/provider.md", "python"))
    millstream = names["millstream"]
    app = FastAPI(lifespan=millstream.lifespan)
    app.include_router(millstream.router)
    app.dependency_overrides[get_api_key] = lambda: Principal("ann", frozenset({"chat"}))
    with TestClient(app) as client:
        for content, status, said in [
            ("Say it", 200, "Say it "),
            (" ", 400, "there is nothing to say again"),
        ]:
            body = {"model": "mine/again", "messages": [{"role": "user", "content": content}]}
            answer = client.post("/v1/chat", json=body)
            assert answer.status_code == status
            assert said in answer.text


def test_the_guides_test_passes(tmp_path: Path) -> None:
    (block,) = [block for block in blocks("library", "python") if block.name.startswith("test_")]
    (tmp_path / block.name).write_text(block.text, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:valkey", block.name]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout
    assert "1 passed" in ran.stdout
