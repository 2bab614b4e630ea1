"""Tokens of sound and of pictures are read from every API's usage object."""

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
