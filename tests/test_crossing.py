"""What clients of OpenAI's APIs say in fields that both have reaches providers of either, and the rest is named."""

import json
from typing import Any

import pytest

from millstream import crossing
from millstream.dialects.openai import OPENAI
from millstream.dialects.responses import RESPONSES
from millstream.prompt import BETAS, Prompt, short_user
from millstream.providers import responses
from millstream.providers.known import KNOWN, Quirks
from millstream.providers.openai import request

SAME = {
    "moderation": {"mode": "on"},
    "prompt_cache_key": "k",
    "prompt_cache_options": {"mode": "explicit"},
    "prompt_cache_retention": "24h",
    "safety_identifier": "s",
    "service_tier": "flex",
    "top_logprobs": 2,
}
LOGPROBS = "message.output_text.logprobs"
TOOL = {"name": "look", "parameters": {"type": "object"}}
POINT = {"prompt_cache_breakpoint": {"mode": "explicit"}}


def of_responses(**body: Any) -> Prompt:
    return RESPONSES.parse(json.dumps({"input": "Hello", **body}).encode()).prompt


def of_chat(**body: Any) -> Prompt:
    messages = [{"role": "user", "content": "Hello"}]
    return OPENAI.parse(json.dumps({"messages": messages, **body}).encode()).prompt


def test_what_a_client_of_responses_says_reaches_a_server_of_chat_completions() -> None:
    body = {**SAME, "text": {"verbosity": "low"}, "truncation": "auto", "reasoning": {"summary": "auto"}}
    prompt = of_responses(**body, user="u", tools=[{"type": "function", **TOOL}], parallel_tool_calls=False)
    sent = request.body(prompt, Quirks())
    del sent["messages"], sent["tools"]
    expected = {**SAME, "verbosity": "low", "logprobs": True, "user": "u", "parallel_tool_calls": False}
    assert sent == expected
    assert crossing.lost(prompt, "openai", ()) == ("reasoning.summary", "truncation")


def test_what_a_client_of_chat_completions_says_reaches_a_server_of_responses() -> None:
    body = {**SAME, "verbosity": "low", "logprobs": True, "user": "u", "logit_bias": {"1": 2}}
    prompt = of_chat(**body, tools=[{"type": "function", "function": TOOL}], parallel_tool_calls=False)
    sent = responses.body(prompt)
    del sent["input"], sent["tools"], sent["store"]
    assert sent == {
        **SAME,
        "text": {"verbosity": "low"},
        "include": [LOGPROBS],
        "user": "u",
        "parallel_tool_calls": False,
    }
    assert crossing.lost(prompt, "responses", ()) == ("logit_bias",)


@pytest.mark.parametrize(("included", "lost"), [([LOGPROBS], ()), ([LOGPROBS, "x"], ("include",))])
def test_logprobs_are_asked_for_in_the_words_of_each(included: list[str], lost: tuple[str, ...]) -> None:
    prompt = of_responses(include=included)
    assert request.body(prompt, Quirks())["logprobs"] is True
    assert crossing.lost(prompt, "openai", ()) == lost
    assert "include" not in responses.body(of_chat(logprobs=False))


def test_a_long_end_user_is_as_short_as_everywhere() -> None:
    prompt = of_responses(safety_identifier="s" * 65, user="u" * 65)
    sent = request.body(prompt, Quirks())
    assert (sent["safety_identifier"], sent["user"]) == (short_user("s" * 65), short_user("u" * 65))


def test_marks_of_the_cache_cross_with_their_parts() -> None:
    content = [{"type": "input_text", "text": "a", **POINT}]
    (message,) = request.body(of_responses(input=[{"role": "user", "content": content}]), Quirks())[
        "messages"
    ]
    assert message["content"] == [{"type": "text", "text": "a", **POINT}]
    content = [{"type": "text", "text": "a", **POINT}]
    (item,) = responses.body(of_chat(messages=[{"role": "user", "content": content}]))["input"]
    assert item["content"] == [{"type": "input_text", "text": "a", **POINT}]


def test_a_format_of_the_answer_keeps_its_verbosity() -> None:
    sent = responses.body(of_chat(verbosity="low", response_format={"type": "json_object"}))
    assert sent["text"] == {"format": {"type": "json_object"}, "verbosity": "low"}


@pytest.mark.parametrize("name", ["groq", "mistral", "gemini"])
def test_who_takes_no_field_that_it_does_not_know_gets_none(name: str) -> None:
    (quirks,) = (known.quirks for known in KNOWN if known.name == name)
    content = [{"type": "input_text", "text": "a", **POINT}]
    body = {name: value for name, value in SAME.items() if name not in ("service_tier", "top_logprobs")}
    prompt = of_responses(input=[{"role": "user", "content": content}], text={"verbosity": "low"}, **body)
    sent = request.body(prompt, quirks)
    assert sent.pop("user", "s") == "s"
    assert sent == {"messages": [{"role": "user", "content": "a"}]}


def test_what_other_apis_alone_know_is_lost_to_them() -> None:
    prompt = Prompt((), extra={"anthropic": {"thinking": {"type": "adaptive"}, BETAS: ("b",)}})
    assert crossing.lost(prompt, "anthropic", ()) == ()
    assert crossing.lost(prompt, "openai", ()) == ("thinking",)
    assert crossing.lost(of_chat(cache_control={"type": "ephemeral"}), "anthropic", ()) == ()
    assert crossing.lost(of_responses(**SAME), "gemini", ()) == tuple(SAME)


def test_what_a_server_would_refuse_is_lost_as_well() -> None:
    (mistral,) = (known.quirks for known in KNOWN if known.name == "mistral")
    prompt = of_responses(service_tier="flex", text={"verbosity": "low"}, user="u")
    assert crossing.lost(prompt, "openai", mistral.refused) == ("service_tier", "verbosity")
    refused = responses.ResponsesProvider.refused
    assert crossing.lost(of_chat(stop=["x"], seed=7, top_k=3), "responses", refused) == (
        "seed",
        "stop",
        "top_k",
    )
    assert crossing.lost(of_chat(logprobs=False), "anthropic", ()) == ()


def test_no_log_probabilities_are_asked_for_by_none() -> None:
    assert not request.body(of_responses(top_logprobs=0), Quirks()).keys() & {"top_logprobs", "logprobs"}
