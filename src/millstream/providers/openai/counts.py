"""Counts: a server's usage object -> tokens in one meaning, reconciled by one rule.

The rule, for servers that put reasoning inside the completion, beside it, or nowhere but in the total, and
what they read from a cache and wrote to it inside the prompt or beside it:

    prompt     = prompt + cached + written where that and the completion are the total
               = total - completion        where the server counts no prompt
    completion = total - prompt            where the total says more than prompt and completion together
               = completion + reasoning    where no total says so, and the vendor is known to keep
                                           them apart, or there is more reasoning than completion
               = completion                else

A count is a whole number from 0 to ten million, or a text or a float of one; anything else is no count. A
usage object that counts nothing never replaces one that does.
"""

from collections.abc import Iterable
from decimal import Decimal, InvalidOperation
from typing import Any

from millstream.providers import UsageReport
from millstream.providers.known import Quirks
from millstream.usage import Usage

_MAX_TOKENS = 10_000_000  # no answer is longer; a larger count is nonsense
_MAX_COST = Decimal(100_000)

# Where servers say what came from their cache.
_CACHED = (
    ("prompt_tokens_details", "cached_tokens"),  # OpenAI
    ("input_tokens_details", "cached_tokens"),
    ("prompt_cache_hit_tokens",),  # DeepSeek
    ("cached_tokens",),  # Moonshot, Together
    ("cache_read_input_tokens",),  # Anthropic
)
# Tokens written to the cache.
_CACHE_WRITE = (
    ("prompt_tokens_details", "cache_write_tokens"),  # OpenAI, OpenRouter
    ("prompt_tokens_details", "cache_creation_tokens"),  # LiteLLM
    ("prompt_tokens_details", "cached_creation_tokens"),  # New API
    ("cache_creation_input_tokens",),  # Anthropic
)
# And of those what is kept for an hour.
_CACHE_WRITE_1H = (
    ("prompt_tokens_details", "cache_creation_token_details", "ephemeral_1h_input_tokens"),  # LiteLLM
    ("cache_creation", "ephemeral_1h_input_tokens"),  # Anthropic
    ("claude_cache_creation_1_h_tokens",),  # New API
)
_OF_CLAUDE = (("cache_read_input_tokens",), ("cache_creation_input_tokens",))
_REASONING = (
    ("completion_tokens_details", "reasoning_tokens"),  # OpenAI
    ("output_tokens_details", "reasoning_tokens"),
    ("reasoning_tokens",),  # Perplexity
)
_OF_PROMPT = ("prompt_tokens_details", "input_tokens_details")
_OF_COMPLETION = ("completion_tokens_details", "output_tokens_details")
_PROMPT = (("prompt_tokens",), ("input_tokens",))
_COMPLETION = (("completion_tokens",), ("output_tokens",))
_COST = (("cost",), ("cost", "total_cost"), ("total_cost",))  # OpenRouter, Perplexity; in dollars


def usage_report(raw: object, quirks: Quirks) -> UsageReport | None:
    """What the usage object ``raw`` says; None where it counts nothing."""
    if not isinstance(raw, dict):
        return None
    prompt, completion = _count(raw, _PROMPT), _count(raw, _COMPLETION)
    total = _count(raw, (("total_tokens",),))
    reasoning = _count(raw, _REASONING) or 0
    if completion is None and (prompt is None or total is None):
        return None
    written, prompt = completion or 0, prompt or 0
    beside = sum(_count(raw, (place,)) or 0 for place in _OF_CLAUDE)
    if beside and total == prompt + written + beside:  # Portkey
        prompt += beside
    elif total is not None and total > prompt + written:
        if prompt:
            written = total - prompt
        else:
            prompt = total - written
    elif reasoning > written or (quirks.reasoning_beside and total is None):
        written += reasoning
    if not (prompt or written):
        return None
    places = (*_CACHED, tuple(quirks.cached_at.split("."))) if quirks.cached_at else _CACHED
    cached = min(max(_count(raw, (place,)) or 0 for place in places), prompt)
    cache_write = min(_count(raw, _CACHE_WRITE) or 0, prompt - cached)
    hour = min(_count(raw, _CACHE_WRITE_1H) or 0, cache_write) if cache_write else 0
    usage = Usage(prompt, written, "provider_partial", cached, min(reasoning, written), cache_write, hour)
    usage = usage.with_media(_media(raw, _OF_PROMPT), _media(raw, _OF_COMPLETION))
    return UsageReport(usage, raw, _cost(raw))


def _media(raw: dict[str, Any], details: tuple[str, ...]) -> tuple[int, int]:
    """Tokens of sound and of pictures."""
    if not any(place in raw for place in details):
        return 0, 0
    audio, image = (
        _count(raw, [(place, kind) for place in details]) or 0 for kind in ("audio_tokens", "image_tokens")
    )
    return audio, image


def timings_report(timings: object) -> UsageReport | None:
    """llama.cpp: ``prompt_n`` tokens were read anew, ``cache_n`` came from its cache."""
    if not isinstance(timings, dict):
        return None
    read, completion = _count(timings, (("prompt_n",),)), _count(timings, (("predicted_n",),))
    if read is None or completion is None:
        return None
    cached = _count(timings, (("cache_n",),)) or 0
    return UsageReport(Usage(read + cached, completion, "provider_partial", cached), timings)


def _at(raw: dict[str, Any], path: tuple[str, ...]) -> object:
    value: object = raw.get(path[0])
    for name in path[1:]:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _count(raw: dict[str, Any], paths: Iterable[tuple[str, ...]]) -> int | None:
    """The number of tokens at the first of ``paths`` that has one."""
    for path in paths:
        value = _at(raw, path)
        if value is None:
            continue
        if isinstance(value, str) and len(value) < 20:
            try:
                value = float(value)
            except ValueError:
                continue
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_TOKENS:
            return value
    return None


def _cost(raw: dict[str, Any]) -> Decimal | None:
    """What the server says that the answer costs, in US dollars."""
    for path in _COST:
        value = _at(raw, path)
        if isinstance(value, (int, float, str)) and not isinstance(value, bool) and len(str(value)) < 40:
            try:
                cost = Decimal(str(value))
            except InvalidOperation:
                continue
            if cost.is_finite() and 0 <= cost <= _MAX_COST:
                return cost
    return None
