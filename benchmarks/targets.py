"""The servers that measure.py knows.

Each: cmd (split on spaces), path and headers and body of the request, model ("%s" is the mock's model
name), env, files (from targets/ or peers/, copied to a scratch folder that is the process's working
directory), prepare (a command to run first; what it prints is @KEY@), cores it may use, ready_s, setup (a
request to send first). @UP@ (the mock), @PORT@, @HERE@ (targets/), @BENCH@ (this folder), @PEERS@ (where each
peer has an environment), @WORK@ (the scratch folder), @PYTHON@ (the Python that measures) and @KEY@ are
filled in.
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

# Other gateways, each in an environment of its own that `make peers` makes. Where one forwards only names of
# models that it knows, the mock's name is in the prompt.
STREAMED = BODY.replace('"messages"', '"stream":true,"messages"')
PEERS: dict[str, Target] = {
    "vllm-router": {
        **OPENAI,
        "cmd": "@PEERS@/vllm-router/bin/vllm-router --host 127.0.0.1 --port @PORT@ --worker-urls http://@UP@ "
        "--policy round_robin --log-level error",
        "body": STREAMED,
        "cores": 2,
    },
    "smg": {
        **OPENAI,
        "cmd": "@PEERS@/smg/bin/smg launch --host 127.0.0.1 --port @PORT@ --worker-urls http://@UP@ "
        "--policy round_robin --log-level error --backend openai",
        "body": STREAMED,
        "cores": 2,
    },
    "tensorzero": {
        **OPENAI,
        "path": "/openai/v1/chat/completions",
        "cmd": "@PEERS@/tensorzero/bin/python @BENCH@/peers/tensorzero_gateway.py @WORK@/tensorzero.toml "
        "@WORK@/port",
        "files": ["tensorzero.toml"],
        "body": STREAMED.replace("tag=", "behave=%MODEL% tag=").replace(
            '"model":"%MODEL%"', '"model":"tensorzero::model_name::mock"'
        ),
        "cores": 2,
    },
    "ferrogw": {
        **OPENAI,
        "cmd": "@PEERS@/ferrogw/bin/ferrogw serve",
        "env": {
            "GATEWAY_CONFIG": "@WORK@/ferrogw.yaml",
            "OPENAI_API_KEY": "sk-upstream",
            "OPENAI_BASE_URL": "http://@UP@",
            "PORT": "@PORT@",
            "MASTER_KEY": "key-1",
            "LOG_LEVEL": "error",
            "RATE_LIMIT_RPS": "1000000",
            "RATE_LIMIT_BURST": "1000000",
        },
        "files": ["ferrogw.yaml"],
        "body": STREAMED.replace("tag=", "behave=%MODEL% tag=").replace(
            '"model":"%MODEL%"', '"model":"gpt-4o-mini"'
        ),
        "cores": 2,
    },
    "litellm": {
        **OPENAI,
        "cmd": "@PEERS@/litellm/bin/litellm --host 127.0.0.1 --port @PORT@ --config @WORK@/litellm.yaml",
        "files": ["litellm.yaml"],
        "env": {"LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        "headers": {"Authorization": "Bearer sk-bench"},
        "body": STREAMED,
        "ready_s": 120,
    },
}

TARGETS: dict[str, Target] = {
    **PEERS,
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
