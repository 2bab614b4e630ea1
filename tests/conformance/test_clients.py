"""What every official client has to show of the same model, whatever format it speaks."""

import http.client
import json
from typing import Any

import pytest
from openai import APIStatusError, OpenAI

from conformance.conftest import Asker, Gateway
from conformance.upstream import KEPT
from live.conftest import Server
from matrix.meaning import meant
from matrix.readers import READERS
from matrix.scenarios import SCENARIOS
from matrix.wires import OWN_WORDS, WIRES

# How the clients call our finish reasons.
FINISHES = {
    "stop": {"stop", "end_turn"},
    "length": {"length", "max_tokens", "max_output_tokens"},
    "tool_calls": {"tool_calls", "tool-calls", "tool_use", "tool_call"},
    "content_filter": {"content_filter", "content-filter", "refusal"},
}


def whole(said: dict[str, Any]) -> dict[str, Any]:
    """An answer without an error."""
    assert said["error"] is None
    return said


def test_a_text_comes_in_pieces_with_its_end_and_its_usage(asker: Asker) -> None:
    said = whole(asker("text"))
    assert said["text"] == "Hello there"
    assert said["pieces"] >= 2
    assert said["usage"] == [9, 12]
    if "finish" not in asker.client.cannot:
        assert said["finish"] in FINISHES["stop"]


@pytest.mark.needs("reasoning")
def test_what_a_model_thinks_is_told_apart(asker: Asker) -> None:
    said = whole(asker("thought"))
    assert (said["reasoning"], said["text"]) == ("hm", "Yes.")


def test_a_call_in_fragments_is_one_call(asker: Asker) -> None:
    said = whole(asker("call", tools=True))
    assert said["calls"] == [{"name": "look", "arguments": {"q": 1}}]


@pytest.mark.needs("mingled")
def test_parallel_calls_whose_fragments_are_mingled_are_two_calls(asker: Asker) -> None:
    said = whole(asker("calls", tools=True))
    assert said["text"] == "I look."
    assert said["calls"] == [
        {"name": "look", "arguments": {"q": 1}},
        {"name": "look", "arguments": {"q": 2}},
    ]


def test_text_behind_a_call_belongs_to_the_same_answer(asker: Asker) -> None:
    said = whole(asker("behind", tools=True))
    assert said["text"] == "I look. I wait."
    assert said["calls"] == [{"name": "look", "arguments": {"q": 1}}]


def test_a_tool_s_result_goes_back_and_is_answered(asker: Asker, gateway: Gateway) -> None:
    before = len(gateway.upstream.asked("turns"))
    said = whole(asker("turns", op="turns", tools=True))
    assert said["calls"] == [{"name": "look", "arguments": {"q": 1}}]
    assert said["text"] == "It is 7."
    call, result = gateway.upstream.asked("turns")[before + 1].json["messages"][-2:]
    assert call["role"] == "assistant"
    assert result["tool_call_id"] == call["tool_calls"][0]["id"]
    if asker.client.name == "ag_ui":  # which keeps what it does not understand
        assert call["tool_calls"][0]["extra_content"] == KEPT


def test_an_image_reaches_the_model(asker: Asker, gateway: Gateway) -> None:
    said = whole(asker("picture", image=True))
    assert said["text"] == "I see 1."
    parts = gateway.upstream.asked("picture")[-1].json["messages"][-1]["content"]
    (url,) = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    assert url.startswith("data:image/png;base64,iVBOR")


@pytest.mark.needs("abort")
def test_who_goes_stops_the_model(asker: Asker, gateway: Gateway) -> None:
    said = asker("endless", stop_after=2)
    assert said["text"].startswith("word word ")
    request = gateway.upstream.asked("endless")[-1]
    gateway.upstream.let_go(request)


def test_a_silence_is_no_end(asker: Asker) -> None:
    said = whole(asker("silent"))
    assert said["text"] == "One two."


@pytest.mark.parametrize(
    ("more", "status", "code"),
    [
        ({"model": "text", "key": "ms_live_wrong"}, 401, "unauthorized"),
        ({"model": "nothing"}, 404, "model_not_found"),
        ({"model": "busy"}, 429, "upstream_rate_limited"),
    ],
)
def test_an_error_before_the_answer_is_told_as_what_it_is(
    asker: Asker, gateway: Gateway, more: dict[str, Any], status: int, code: str
) -> None:
    before = len(gateway.upstream.asked("busy"))
    said = asker(**more)
    assert said["text"] == ""
    assert said["error"] is not None
    if "status" not in asker.client.cannot:
        assert said["error"]["status"] == status
    else:
        assert code in said["error"]["message"]
    assert "own words" not in json.dumps(said)
    if more["model"] == "busy" and "retries" not in asker.client.cannot:
        assert len(gateway.upstream.asked("busy")) == before + 1


@pytest.mark.parametrize("model", ["broken", "cut"])
def test_an_answer_that_breaks_off_is_an_error_and_keeps_its_text(asker: Asker, model: str) -> None:
    said = asker(model)
    assert said["text"] == "Hel"
    assert said["error"] is not None
    assert "own words" not in json.dumps(said)


@pytest.mark.parametrize("scenario", sorted(SCENARIOS.keys() - {"thought-and-calls"}))
@pytest.mark.parametrize("provider", ["anthropic", "gemini", "responses"])
def test_models_of_others_are_understood_as_well(asker: Asker, provider: str, scenario: str) -> None:
    """Those of Chat Completions are in the tests above."""
    # To litellm "responses/" at the beginning says which of OpenAI's endpoints to ask.
    name = f"{provider}-api" if provider == "responses" else provider
    said = asker(f"{name}/{scenario}", tools="call" in scenario)
    tells, cannot = READERS[asker.client.dialect].tells, asker.client.cannot
    meaning = tells(meant(SCENARIOS[scenario], WIRES[provider], whole=False))
    match asker.client.shows_refusals if meaning.refusal else "end":
        case "text":
            meaning = meaning._replace(text=meaning.text + meaning.refusal, finish="content_filter")
        case "filter":
            meaning = meaning._replace(finish="content_filter")
        case "error":
            assert meaning.refusal in said["error"]["message"]
            return
    assert said["text"] == meaning.text
    if "incomplete" in cannot and meaning.finish in ("length", "content_filter"):
        assert said["error"] is not None
        return
    if "reasoning" not in cannot:
        assert said["reasoning"] == meaning.reasoning
    if meaning.failed is not None:
        assert said["error"] is not None
        assert OWN_WORDS not in json.dumps(said)
        if meaning.failed.status is not None and "status" not in cannot:
            assert said["error"]["status"] == meaning.failed.status
        return
    assert said["error"] is None
    assert said["calls"] == [{"name": name, "arguments": arguments} for _, name, arguments in meaning.calls]
    assert meaning.counts is not None
    assert said["usage"][1] == meaning.counts.completion
    if "finish" not in cannot:
        assert said["finish"] in FINISHES[meaning.finish]


@pytest.mark.parametrize(("model", "requests"), [("busy", 3), ("refused", 1)])
def test_openai_s_client_repeats_only_what_that_can_help(gateway: Gateway, model: str, requests: int) -> None:
    before = len(gateway.upstream.asked(model))
    with OpenAI(base_url=f"{gateway.server.url}/v1", api_key=gateway.server.key) as client:
        with pytest.raises(APIStatusError):
            client.chat.completions.create(model=model, messages=[{"role": "user", "content": "x"}])
    assert len(gateway.upstream.asked(model)) == before + requests


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"stream": True, "messages": [{"role": "user", "content": "x"}]}),
        ("/api/chat", {"id": "c", "messages": [{"role": "user", "parts": [{"type": "text", "text": "x"}]}]}),
        ("/ag-ui", {"messages": [{"id": "1", "role": "user", "content": "x"}]}),
    ],
)
def test_the_silence_that_clients_read_has_pings(gateway: Gateway, path: str, body: dict[str, Any]) -> None:
    body |= {"model": "silent"}
    assert post(gateway.server, path, body).count(b": ping\n") >= 2


def post(server: Server, path: str, body: dict[str, Any]) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        connection.request("POST", path, json.dumps(body), {"Authorization": f"Bearer {server.key}"})
        return connection.getresponse().read()
    finally:
        connection.close()
