"""The clients: which there are, what each cannot, and how one is asked."""

import json
import os
import subprocess
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

HERE = Path(__file__).parent
NODE_MODULES = HERE / "node" / "node_modules"
NODE_22 = (
    NODE_MODULES / ".bin" / "node"
)  # for clients that ask for it; of a package, beside the one that is there
_SECONDS = 100  # to answer one request; the first one imports the client


class Client(NamedTuple):
    """``in_slice`` is whether ``make test`` runs it too. ``cannot`` says what it has no way to do or to tell,
    and why; ``shows_refusals`` what its user sees of one: an end like any other, a text that a filter has
    ended, the filter without the text, or an error. ``program`` is that of another client, which speaks this
    dialect as well.
    """

    name: str
    dialect: str
    language: str = "python"
    in_slice: bool = False
    cannot: Mapping[str, str] = {}
    shows_refusals: Literal["end", "text", "filter", "error"] = "end"
    program: str = ""

    @property
    def is_node(self) -> bool:
        return self.language.startswith("node")

    @property
    def command(self) -> list[str]:
        program = self.program or self.name
        if self.is_node:
            node = str(NODE_22) if self.language == "node22" else "node"
            return [node, str(HERE / "node" / f"{program}.mjs")]
        python = HERE.parents[1] / ".venv-clients" / program / "bin" / "python"
        return [str(python), str(HERE / "python" / program / "client.py")]

    @property
    def installed(self) -> bool:
        if self.is_node:
            return NODE_MODULES.is_dir()
        return Path(self.command[0]).exists()


_NO_STATUS = {"status": "its error is the body of the response, without the status"}

CLIENTS = (
    Client("openai_sdk", "openai", in_slice=True),
    Client("langchain", "openai", cannot={"reasoning": "it drops reasoning_content"}),
    Client("pydantic_ai", "openai", shows_refusals="filter"),
    Client("litellm", "openai"),
    Client(
        "llm",
        "openai",
        cannot={
            "reasoning": "it drops reasoning_content",
            "finish": "it shows no finish reason",
            "abort": "nothing stops a response",
            "retries": "the two repetitions of the SDK cannot be switched off",
        },
    ),
    Client(
        "openai_agents",
        "openai",
        cannot={"finish": "it shows no finish reason"},
        shows_refusals="error",
    ),
    Client(
        "langchain_responses",
        "responses",
        cannot={
            "reasoning": "what it thinks is a block beside its text",
            "finish": "it shows no finish reason",
            "mingled": "it takes every piece of a call for one of the last call",
        },
        program="langchain",
    ),
    Client(
        "litellm_messages",
        "anthropic",
        cannot={"mingled": "it takes every piece of a call for one of the last call"},
        program="litellm",
    ),
    Client(
        "agents_responses",
        "responses",
        cannot={
            "finish": "it shows no finish reason",
            "incomplete": "it raises an error for what a filter or a limit has cut",
        },
        shows_refusals="error",
        program="openai_agents",
    ),
    Client("anthropic_sdk", "anthropic"),
    Client("openai", "openai", "node"),
    Client("openai7", "openai", "node22", program="openai"),
    Client("ai_provider", "openai", "node", shows_refusals="text"),
    Client("anthropic", "anthropic", "node", in_slice=True),
    Client("ai_anthropic", "anthropic", "node"),
    Client("responses", "responses", "node", in_slice=True),
    Client("ai_responses", "responses", "node", shows_refusals="text"),
    Client("ai", "ai-sdk", "node", in_slice=True, cannot=_NO_STATUS),
    Client("use_chat", "ai-sdk", "browser", cannot=_NO_STATUS),
    Client("ag_ui", "ag-ui", "node", in_slice=True),
    Client("tanstack", "ag-ui", "node"),
)


class Asked:
    """A client that runs: each request gets what its user would see."""

    def __init__(self, process: subprocess.Popen[str], errors: Path) -> None:
        self._process, self._errors = process, errors

    def __call__(self, op: str, model: str, key: str, **more: Any) -> dict[str, Any]:
        request = {"op": op, "model": model, "key": key, "tools": False, "image": False, "stop_after": None}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        alarm = threading.Timer(_SECONDS, self._process.kill)
        alarm.start()
        try:
            self._process.stdin.write(json.dumps(request | more) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        finally:
            alarm.cancel()
        assert answer, f"the client died: {self._errors.read_text(encoding='utf-8')[-2000:]}"
        said: dict[str, Any] = json.loads(answer)
        return said


@contextmanager
def started(client: Client, url: str, folder: Path) -> Generator[Asked]:
    """``client`` in a process of its own, before the server at ``url``."""
    assert client.installed, f"{client.name} is not installed; run: make conformance"
    errors = folder / f"{client.name}.err"
    environment = {
        **os.environ,
        "MILLSTREAM_TEST_URL": url,
        "MILLSTREAM_TEST_CLIENT": client.name,
        "MILLSTREAM_TEST_DIALECT": client.dialect,
        "PYTHONPATH": str(HERE / "python"),
        "HOME": str(folder),  # some keep a database or settings there
        "OPENAI_AGENTS_DISABLE_TRACING": "1",
    }
    with errors.open("w") as err:
        process = subprocess.Popen(
            client.command,
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=err,
            text=True,
        )
    try:
        yield Asked(process, errors)
    finally:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
