"""Tokens of sound, of pictures and of the cache are read from every API's usage object."""

from collections.abc import Callable
from typing import Any

import pytest

from millstream.providers import UsageReport, gemini, responses
from millstream.providers.known import Quirks
from millstream.providers.openai.counts import usage_report


def chat_completions(raw: object) -> UsageReport | None:
    return usage_report(raw, Quirks())


DETAILS = {"audio_tokens": 4, "image_tokens": 3}
OF_API: dict[str, tuple[Callable[[object], UsageReport | None], dict[str, Any]]] = {
    "chat completions": (
        chat_completions,
        {
            "prompt_tokens": 20,
            "completion_tokens": 10,
            "prompt_tokens_details": DETAILS,
            "completion_tokens_details": DETAILS,
        },
    ),
    "responses": (
        responses.usage_report,
        {
            "input_tokens": 20,
            "output_tokens": 10,
            "input_tokens_details": DETAILS,
            "output_tokens_details": DETAILS,
        },
    ),
    "gemini": (
        gemini.usage_report,
        {
            "promptTokenCount": 20,
            "candidatesTokenCount": 10,
            "promptTokensDetails": [
                {"modality": "TEXT", "tokenCount": 13},
                {"modality": "AUDIO", "tokenCount": 4},
                {"modality": "IMAGE", "tokenCount": 3},
                "nonsense",
            ],
            "candidatesTokensDetails": [
                {"modality": "AUDIO", "tokenCount": 4},
                {"modality": "IMAGE", "tokenCount": "3"},
                {"modality": "VIDEO", "tokenCount": -1},
            ],
        },
    ),
}


@pytest.mark.parametrize("api", OF_API)
def test_sound_and_pictures_are_counted_apart(api: str) -> None:
    read, raw = OF_API[api]
    report = read(raw)
    assert report is not None
    usage = report.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (20, 10)
    assert (usage.prompt_audio_tokens, usage.prompt_image_tokens) == (4, 3)
    assert (usage.completion_audio_tokens, usage.completion_image_tokens) == (4, 3)


@pytest.mark.parametrize("api", OF_API)
def test_without_details_there_are_none(api: str) -> None:
    read, raw = OF_API[api]
    report = read({name: value for name, value in raw.items() if "etails" not in name})
    assert report is not None
    usage = report.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (20, 10)
    assert usage.prompt_audio_tokens + usage.prompt_image_tokens == 0
    assert usage.completion_audio_tokens + usage.completion_image_tokens == 0


@pytest.mark.parametrize(
    ("said", "counted"),
    [
        # Portkey, of Claude: beside the prompt, and inside the total.
        (
            {
                "prompt_tokens": 100,
                "completion_tokens": 50,
                "total_tokens": 10150,
                "cache_read_input_tokens": 10000,
            },
            (10100, 50, 10000, 0),
        ),
        (
            {
                "prompt_tokens": 100,
                "completion_tokens": 50,
                "total_tokens": 450,
                "cache_read_input_tokens": 200,
                "cache_creation_input_tokens": 100,
            },
            (400, 50, 200, 100),
        ),
        # OpenAI and OpenRouter, LiteLLM: inside the prompt.
        (
            {
                "prompt_tokens": 100,
                "completion_tokens": 10,
                "prompt_tokens_details": {"cached_tokens": 20, "cache_write_tokens": 70},
            },
            (100, 10, 20, 70),
        ),
        (
            {
                "prompt_tokens": 100,
                "completion_tokens": 10,
                "total_tokens": 110,
                "cache_creation_input_tokens": 90,
                "cache_read_input_tokens": 10,
            },
            (100, 10, 10, 90),
        ),
        # LiteLLM and New API, what is kept for an hour: inside what was written.
        (
            {
                "prompt_tokens": 100,
                "completion_tokens": 10,
                "prompt_tokens_details": {
                    "cache_creation_tokens": 70,
                    "cache_creation_token_details": {"ephemeral_1h_input_tokens": 30},
                },
            },
            (100, 10, 0, 70, 30),
        ),
        (
            {
                "prompt_tokens": 100,
                "completion_tokens": 10,
                "prompt_tokens_details": {"cached_creation_tokens": 70},
                "claude_cache_creation_1_h_tokens": 70,
            },
            (100, 10, 0, 70, 70),
        ),
        (
            {
                "prompt_tokens": 100,
                "completion_tokens": 10,
                "cache_creation_input_tokens": 40,
                "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 50},
            },
            (100, 10, 0, 40, 40),
        ),
        # More than there is.
        (
            {
                "prompt_tokens": 100,
                "completion_tokens": 10,
                "prompt_tokens_details": {"cached_tokens": 60, "cache_write_tokens": 70},
            },
            (100, 10, 60, 40),
        ),
    ],
)
def test_what_the_cache_had_and_got_is_part_of_the_prompt(
    said: dict[str, Any], counted: tuple[int, ...]
) -> None:
    report = chat_completions(said)
    assert report is not None
    usage = report.usage
    assert (
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.cached_tokens,
        usage.cache_write_tokens,
        usage.cache_write_1h_tokens,
    ) == (counted if len(counted) > 4 else (*counted, 0))
