"""The servers that measure.py knows.

Each: cmd (split on spaces), path and headers and body of the request, model ("%s" is the mock's model
name), env, files (from targets/, copied to a scratch folder that is the process's working directory),
prepare (a command to run first; what it prints is @KEY@), cores it may use, ready_s, setup (a request to
send first). @UP@ (the mock), @PORT@, @HERE@ (targets/), @WORK@ (the scratch folder), @PYTHON@ (the Python
that measures) and @KEY@ are filled in.
"""

from typing import Any, Required, TypedDict


class Target(TypedDict, total=False):
    cmd: str
    path: Required[str]
    headers: Required[dict[str, str]]
    body: str
    model: str
    env: dict[str, str]
    files: list[str]
    prepare: str
    cores: int
    ready_s: float
    setup: tuple[str, dict[str, Any]]


OPENAI: Target = {"path": "/v1/chat/completions", "headers": {"Authorization": "Bearer key-1"}}
BODY = (
    '{"model":"%MODEL%","messages":[{"role":"system","content":"You are a helpful '
    'assistant."},{"role":"user","content":"tag=%TAG% Tell me a story about a '
    'stream."}]}'
)
UVICORN = (
    "@PYTHON@ -m uvicorn --app-dir @HERE@ --port @PORT@ --backlog 4096 --log-level warning --no-access-log "
)


def naive(path: str) -> Target:
    """The widely copied tutorial: FastAPI, AsyncOpenAI, StreamingResponse."""
    return {
        "cmd": UVICORN + "naive:app",
        "env": {"UPSTREAM": "http://@UP@/v1"},
        "path": path,
        "headers": {"X-API-Key": "key-1"},
        "body": BODY,
    }


MILLSTREAM: Target = {
    "prepare": "@PYTHON@ -m millstream keys create --name bench --data-dir @WORK@/data",
    "cmd": "@PYTHON@ -m millstream serve --port @PORT@ --data-dir @WORK@/data",
    "env": {"OPENAI_BASE_URL": "http://@UP@/v1", "OPENAI_API_KEY": "sk-upstream"},
    "path": "/v1/chat/stream",
    "headers": {"Authorization": "Bearer @KEY@"},
    "body": BODY,
}

TARGETS: dict[str, Target] = {
    "direct": OPENAI,
    "nginx": {**OPENAI, "cmd": "/usr/sbin/nginx -c @WORK@/nginx.conf", "files": ["nginx.conf"]},
    "tutorial": naive("/v1/chat/stream"),
    # With its key check, durable ledger row, log and positions; on its defaults.
    "millstream": MILLSTREAM,
    # The same with a Redis for its journal, to be started first: redis-server --port 6399 --save ""
    "millstream-redis": {
        **MILLSTREAM,
        "env": {**MILLSTREAM["env"], "MILLSTREAM_JOURNAL_URL": "redis://127.0.0.1:6399/0"},
    },
    # What Python costs with nothing but the relay: key check, parsed request, usage read; no journal, no
    # ledger.
    "lean-asgi": {**OPENAI, "cmd": UVICORN + "--lifespan off lean:app", "env": {"UPSTREAM": "@UP@"}},
    "lean-protocol": {**OPENAI, "cmd": "@PYTHON@ @HERE@/lean.py @PORT@", "env": {"UPSTREAM": "@UP@"}},
}
