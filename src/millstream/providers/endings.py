"""Endings: the words with which providers end an answer -> our finish reasons and errors.

Both tables are closed. A finish reason that is not in them counts as ``stop``, with its word on the receipt
and a line in the log; an error that is not in them is the provider's failure. Words are compared in small
letters, with ``_`` for every run of other characters. They are those of the references of OpenAI, Azure,
Anthropic, Gemini, Mistral, Cohere, DeepSeek, OpenRouter, Groq, xAI, Zhipu (GLM), Alibaba (Qwen), MiniMax,
Moonshot, Bedrock, vLLM, llama.cpp, TGI and Ollama.
"""

import logging
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from msgspec import Struct

from millstream.errors import (
    PromptTooLong,
    ProviderError,
    RequestRefused,
    UpstreamError,
    UpstreamModelNotFound,
    UpstreamRateLimited,
    UpstreamRefused,
    UpstreamTimeout,
    printable,
)
from millstream.events import FinishReason

log = logging.getLogger("millstream.providers")

_MAX_WORD = 64
MAX_RETRY_AFTER_SECONDS = 3600


class Failure(Struct, frozen=True):
    """What a word of an error means. ``why`` is empty where the word only names a family of errors: then an
    HTTP status says more.
    """

    error: type[ProviderError]
    why: str = ""


# Each our finish reason -> the words for it.
FINISH_REASONS: dict[FinishReason, str] = {
    "stop": "stop stop_sequence end_turn eos eos_token complete completed",
    "length": "length max_tokens model_length max_output max_output_tokens token_limit error_limit "
    "model_context_window_exceeded continuation",
    "tool_calls": "tool_calls tool_call tool_use function_call",
    "content_filter": "content_filter content_filtered safety recitation language blocklist spii "
    "prohibited_content model_armor image_safety image_prohibited_content image_recitation sensitive refusal "
    "guardrail_intervened error_toxic escalation",
}

# An answer that ends with one of these has failed.
FAILED_FINISHES: dict[str, str] = {
    "it reported an error": "error failed other network_error malformed_model_output malformed_response",
    "it had no resources left": "insufficient_system_resource",
    "it gave the answer up": "abort aborted cancelled canceled user_cancel",
    "it ran out of time": "timeout time_limit",
    "its model wrote a tool call that cannot be read": "malformed_function_call malformed_tool_use "
    "function_call_filter_malformed_function_call unexpected_tool_call too_many_tool_calls "
    "missing_thought_signature",
    "it made no image": "no_image image_other",
    "the account is limited or disabled": "pup_limited_disabled",
}

# Written where there is no finish reason yet.
_NO_FINISH = frozenset(("", "null", "none", "not_finished", "finish_reason_unspecified"))

_NO_QUOTA = Failure(UpstreamRefused, "the account's quota is used up")
_TOO_LONG = Failure(PromptTooLong, "the prompt is too long for the model's context")  # clients know the words

ERRORS: dict[Failure, str] = {
    Failure(UpstreamRateLimited, "its rate limit is reached"): "rate_limit_exceeded rate_limit_error "
    "rate_limited too_many_requests resource_exhausted throttling throttling_ratequota throttling_burstrate "
    "throttling_allocationquota limit_requests limit_burst_rate requests tokens rate_limit_reached_error "
    "ratelimiterror ratelimitreached",
    Failure(UpstreamRateLimited, "its capacity is used up"): "service_tier_capacity_exceeded "
    "engine_overloaded_error",
    _NO_QUOTA: "insufficient_quota insufficient_balance "
    "insufficient_credits quota_exceeded billing_error billing_hard_limit_reached billing_not_active "
    "arrearage allocationquota_freetieronly exceeded_current_quota_error payment_required",
    _TOO_LONG: "context_length_exceeded context_window_exceeded exceed_context_size_error",
    Failure(RequestRefused, "the request is longer than it takes"): "request_too_large",
    Failure(RequestRefused, "one of the texts in it is longer than it takes"): "string_above_max_length",
    Failure(RequestRefused, "its content filter refused the prompt"): "content_filter content_filtered "
    "responsibleaipolicyviolation responsible_ai_policy_violation data_inspection_failed "
    "datainspectionfailed moderation moderation_blocked moderation_error prompt_blocked safety sensitive",
    Failure(RequestRefused, "its content policy refuses the prompt"): "content_policy_violation "
    "content_policy invalid_prompt bio_policy misalignment_policy_violation image_content_policy_violation",
    Failure(RequestRefused, "it cannot read one of the images"): "invalid_image invalid_image_format "
    "invalid_base64_image invalid_image_url invalid_image_mode image_too_large image_too_small "
    "image_parse_error image_file_too_large image_file_not_found empty_image_file "
    "unsupported_image_media_type failed_to_download_image",
    Failure(UpstreamRefused, "it does not accept the configured key"): "invalid_api_key authentication_error "
    "invalid_authentication invalid_authentication_error unauthorized unauthenticated invalidapikey "
    "api_key_invalid api_key_expired",
    Failure(UpstreamRefused, "the configured key may not do this"): "permission_denied permission_error "
    "permission_denied_error api_key_service_blocked service_disabled",
    Failure(UpstreamRefused, "it does not serve the region this server is in"): (
        "unsupported_country_region_territory"
    ),
    Failure(RequestRefused, "a parameter has a value it does not accept"): "invalid_value invalid_type "
    "integer_above_max_value integer_below_min_value decimal_above_max_value decimal_below_min_value",
    Failure(RequestRefused, "it does not support one of the parameters"): "unsupported_parameter "
    "unknown_parameter",
    Failure(RequestRefused, "it does not support a parameter's value"): "unsupported_value",
    Failure(UpstreamModelNotFound): "model_not_found model_not_exist model_decommissioned deploymentnotfound "
    "deployment_not_found model_not_available invalid_model",
    Failure(UpstreamError, "it is overloaded"): "overloaded_error overloaded engine_overloaded "
    "server_overloaded unavailable service_unavailable modelserving_overloaded",
    Failure(UpstreamError, "its model wrote a tool call that cannot be read"): "tool_use_failed",
    Failure(UpstreamTimeout, "it ran out of time"): "timeout timeout_error deadline_exceeded gateway_timeout "
    "request_timeout",
    Failure(RequestRefused): "invalid_request_error invalid_request bad_request badrequesterror "
    "invalid_argument invalid_parameter invalid_parameter_error invalidparameter validation_error "
    "unprocessable_entity failed_precondition not_found not_found_error notfounderror",
    Failure(UpstreamError): "server_error internal_error internal_server_error internalservererror internal "
    "api_error bad_gateway",
}

# What Anthropic, Gemini, Mistral, DeepSeek, OpenRouter, xAI, Zhipu, Moonshot, Alibaba, MiniMax, Bedrock, vLLM
# and TGI say in a message alone, under a word for any fault of a request.
_SAYINGS = (
    (
        _TOO_LONG,
        re.compile(
            r"prompt is too long|prompt exceeds max length|input is too long"
            r"|(maximum|available|exceed) context (length|limit|size)"
            r"|exceeds the context window|context window exceeds limit"
            r"|exceeds the maximum number of tokens|exceeded model token limit|maximum prompt length"
            r"|range of input length|reduce the length of the messages|tokens \+ `max_new_tokens`",
            re.IGNORECASE,
        ),
    ),
    (_NO_QUOTA, re.compile(r"credit balance is too low", re.IGNORECASE)),
)
_MAX_SAYING = 400  # characters; what is behind them may be the prompt

_REASON_OF: dict[str, FinishReason] = {
    word: reason for reason, words in FINISH_REASONS.items() for word in words.split()
}
_FAILED: dict[str, str] = {word: why for why, words in FAILED_FINISHES.items() for word in words.split()}
_ERROR_OF = {word: failure for failure, words in ERRORS.items() for word in words.split()}

_VERBS: dict[type[ProviderError], str] = {
    UpstreamRateLimited: "limits our rate",
    UpstreamRefused: "refused the request",
    RequestRefused: "refused the request",
    PromptTooLong: "refused the request",
    UpstreamTimeout: "timed out",
    UpstreamError: "failed",
}

_unknown_words: set[tuple[str, str]] = set()  # that the log has been told of
_MAX_UNKNOWN_WORDS = 1000


def finish_reason(name: str, word: str, own: Mapping[str, str]) -> FinishReason | None:
    """What provider ``name`` means by ``word``, which it may have for its ``own``; None where it says that
    there is no end yet. Raises ``UpstreamError`` where the answer has failed.
    """
    word = _folded(own.get(word, word))
    if reason := _REASON_OF.get(word):
        return reason
    if word in _NO_FINISH:
        return None
    if why := _FAILED.get(word):
        raise UpstreamError(f"provider '{name}' failed in the middle of its answer: {why}")
    if (name, word) not in _unknown_words and len(_unknown_words) < _MAX_UNKNOWN_WORDS:
        _unknown_words.add((name, word))
        log.warning(
            "provider %s ends answers with '%s', which nobody here knows: taken as 'stop'", name, word
        )
    return "stop"


def reported_error(body: object) -> object | None:
    """The error that a body says it is, in whatever form; None where it says none."""
    if isinstance(body, list):  # Gemini
        body = body[0] if body else None
    if not isinstance(body, dict):
        return None
    for place in ("error", "errors"):
        error: object = body.get(place)
        if error and not (isinstance(error, dict) and not any(error.values())):
            return error
    if body.get("object") == "error" or body.get("type") == "error":  # vLLM, Anthropic
        return body
    match body:
        case {"base_resp": {"status_code": code, **more}} if code:  # MiniMax
            return {"code": code, "type": _MINIMAX.get(str(code)), **more}
        case {"x_groq": {"error": error}} if error:
            return error if isinstance(error, dict) else {"message": error}
    if "choices" in body or "usage" in body:
        return None
    if body.get("detail") or body.get("success") is False:  # FastAPI, Cloudflare
        return body
    if body.get("message") and (body.get("code") or body.get("type") or _status(body.get("status"))):
        return body
    return None


# https://platform.minimax.io/docs/api-reference/errorcode
_MINIMAX = {
    "1001": "timeout",
    "1002": "rate_limit_exceeded",
    "1004": "invalid_api_key",
    "1008": "insufficient_balance",
    "1026": "sensitive",
    "1027": "sensitive",
    "1039": "rate_limit_exceeded",
    "2013": "invalid_request_error",
}


def failure(
    name: str, detail: object, *, status: int | None = None, retry_after_seconds: int | None = None
) -> ProviderError:
    """The error for a provider's error object. ``status`` is the HTTP status that came with it, None for an
    error in the middle of an answer.

    A word that says why wins over a status, and a status over a word that does not.
    """
    known = [found for word in _words(detail) if (found := _ERROR_OF.get(_folded(word)))]
    said = next((found for found in known if found.why or found.error is UpstreamModelNotFound), None)
    code = status or next(filter(None, map(_status, _codes(detail))), None)
    if said is None and (code is None or code in (400, 413, 422)):
        said = _saying(detail)
    meant = said or (_of_status(code, detail) if code else None) or next(iter(known), Failure(UpstreamError))
    because = f": {meant.why}" if meant.why else ""
    shown = f" (HTTP {status})" if status else ""
    log.info("provider %s refused%s%s", name, shown, because)
    if retry_after_seconds is None:
        retry_after_seconds = next((seconds for one in _details(detail) if (seconds := _delay(one))), None)
    if meant.error is UpstreamModelNotFound:
        return UpstreamModelNotFound(f"provider '{name}' has no such model; see GET /v1/models")
    return meant.error(
        f"provider '{name}' {_VERBS[meant.error]}{shown}{because}",
        # A provider that answers 5xx has not taken the request on; one that fails in its answer had.
        accepted=False if status and meant.error is UpstreamError else None,
        retry_after_seconds=retry_after_seconds,
    )


def _of_status(status: int, detail: object) -> Failure:
    match status:
        case 429:
            return Failure(UpstreamRateLimited)
        case 401:
            return Failure(UpstreamRefused, "it does not accept the configured key")
        case 402:
            return _NO_QUOTA
        case 403 if _was_flagged(detail):
            return Failure(RequestRefused, "its content filter refused the prompt")
        case 403:
            return Failure(UpstreamRefused, "the configured key may not do this")
        case 404 if isinstance(detail, (dict, str)) and not _ADDRESS.search(_message(detail)):
            return Failure(UpstreamModelNotFound)
        case 404 | 405:
            return Failure(UpstreamRefused, "nothing answers at its base URL, which is up to and with /v1")
        case 413:
            return Failure(RequestRefused, "the request is longer than it takes")
        case 408 | 504 | 524:  # the last is Cloudflare's, of a server that has the request and says nothing
            return Failure(UpstreamTimeout)
        case _ if status < 400:  # a redirect, which would carry the key along
            return Failure(UpstreamError, "it sends us elsewhere; its base URL has to be where it is")
    return Failure(RequestRefused if 400 <= status < 500 else UpstreamError)


# What servers say of a path that they do not have.
_ADDRESS = re.compile(r"\b(url|path|route|resource|file)\b|^not found", re.IGNORECASE)


def _message(detail: dict[str, Any] | str) -> str:
    said = detail if isinstance(detail, str) else detail.get("message", detail.get("detail"))
    return said if isinstance(said, str) else ""


def _saying(detail: object) -> Failure | None:
    """What an error object means by its message, where that is one of those that are known."""
    if isinstance(detail, list):
        detail = detail[0] if detail else None
    said = _message(detail)[:_MAX_SAYING] if isinstance(detail, (dict, str)) else ""
    return next((meant for meant, saying in _SAYINGS if saying.search(said)), None)


def _was_flagged(detail: object) -> bool:
    """OpenRouter: what its moderation has against the prompt."""
    metadata = detail.get("metadata") if isinstance(detail, dict) else None
    return isinstance(metadata, dict) and "reasons" in metadata


def _words(detail: object) -> Iterator[str]:
    """Where an error object says what it is, the most exact place first."""
    if isinstance(detail, list):
        detail = detail[0] if detail else None
    if isinstance(detail, str):
        yield detail
    if isinstance(detail, dict):
        yield from (reason for one in _details(detail) if isinstance(reason := one.get("reason"), str))
        inner: Any = detail.get("innererror")
        for value in (
            detail.get("code"),
            inner.get("code") if isinstance(inner, dict) else None,
            detail.get("type"),
            detail.get("status"),
        ):
            if isinstance(value, str):
                yield value


def _details(detail: object) -> Iterator[dict[str, Any]]:
    """What an error of Google's says of itself (google.rpc.ErrorInfo, RetryInfo)."""
    found = detail.get("details") if isinstance(detail, dict) else None
    for one in found if isinstance(found, list) else ():
        if isinstance(one, dict):
            yield one


def _delay(info: dict[str, Any]) -> int | None:
    """The seconds that a RetryInfo asks for, such as ``34.07s``."""
    delay = info.get("retryDelay")
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)s", delay) if isinstance(delay, str) else None
    return min(math.ceil(float(found[1])), MAX_RETRY_AFTER_SECONDS) if found else None


def _codes(detail: object) -> Iterator[object]:
    if isinstance(detail, dict):
        yield from (detail.get("code"), detail.get("status"), detail.get("status_code"))


def _status(value: object) -> int | None:
    """``value`` where it can be an HTTP status that says no."""
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) == 3:
        value = int(value)
    return value if isinstance(value, int) and 400 <= value < 600 else None


def _folded(word: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", printable(word[:_MAX_WORD]).lower()).strip("_")
