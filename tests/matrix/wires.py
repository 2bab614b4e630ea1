"""Wires: a scenario -> what the server of each provider sends for it. The model's name is the scenario's."""

import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import urlsplit

from gemini_server import counted, error, said
from matrix.scenarios import (
    RETRY_AFTER_SECONDS,
    SCENARIOS,
    Call,
    Counts,
    Declined,
    Piece,
    Scenario,
    Thought,
    Words,
)
from oracle import Request

OWN_WORDS = "the provider's own words"


class Wire(NamedTuple):
    """How one provider says a scenario, frame by frame. ``errors`` are the statuses and bodies of answers that
    never begin; ``tells_refusals`` is whether a refusal has words of its own, ``names_calls`` whether calls
    have ids.
    """

    frames: Callable[[Scenario], Iterator[bytes]]
    errors: dict[str, tuple[int, Any, tuple[str, ...]]]
    counts: Counts = Counts()
    tells_refusals: bool = False
    names_calls: bool = True


def of_data(value: object) -> bytes:
    return b"data: %b\n\n" % json.dumps(value).encode()


def of_event(kind: str, **fields: object) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


def calls_of(scenario: Scenario) -> list[Call]:
    return [piece for piece in scenario.said if isinstance(piece, Call)]


# -- OpenAI's Chat Completions ---------------------------------------------------------------------


def _chunk(delta: dict[str, object], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return of_data({"id": "chatcmpl-1", "created": 7, "model": "m-1", "choices": [choice]})


def _openai(scenario: Scenario) -> Iterator[bytes]:
    yield _chunk({"role": "assistant", "content": ""})
    calls = calls_of(scenario)
    for piece in scenario.said:
        match piece:
            case Words(text):
                yield _chunk({"content": text})
            case Thought(text):
                yield _chunk({"reasoning_content": text})
            case Declined(text):
                yield _chunk({"refusal": text})
    for index, call in enumerate(calls):
        function = {"name": call.name, "arguments": ""}
        first = {"index": index, "id": call.call_id, "type": "function", "function": function}
        yield _chunk({"tool_calls": [first]})
    for index, call in enumerate(calls):  # behind each other's starts, as parallel calls may come
        for arguments in call.arguments or ("{}",):
            yield _chunk({"tool_calls": [{"index": index, "function": {"arguments": arguments}}]})
    if scenario.end == "cut":
        return
    if scenario.end == "failed":
        yield of_data({"error": {"message": OWN_WORDS, "type": "server_error"}})
        return
    yield _chunk({}, scenario.end)
    usage = {
        "prompt_tokens": 15,
        "completion_tokens": 7,
        "total_tokens": 22,
        "prompt_tokens_details": {"cached_tokens": 2},
        "completion_tokens_details": {"reasoning_tokens": 3},
    }
    yield of_data({"id": "chatcmpl-1", "model": "m-1", "choices": [], "usage": usage})
    yield b"data: [DONE]\n\n"


_AFTER = (f"retry-after: {RETRY_AFTER_SECONDS}",)


def _openai_error(kind: str, code: str) -> dict[str, Any]:
    return {"error": {"message": OWN_WORDS, "type": kind, "param": None, "code": code}}


_OPENAI_ERRORS: dict[str, tuple[int, Any, tuple[str, ...]]] = {
    "limited": (429, _openai_error("requests", "rate_limit_exceeded"), _AFTER),
    "too-long": (400, _openai_error("invalid_request_error", "context_length_exceeded"), ()),
}


# -- Anthropic's Messages --------------------------------------------------------------------------

_STOP_REASONS = {
    "stop": "end_turn",
    "tool_calls": "tool_use",
    "length": "max_tokens",
    "content_filter": "refusal",
}


def _anthropic(scenario: Scenario) -> Iterator[bytes]:
    used = {
        "input_tokens": 9,
        "cache_creation_input_tokens": 4,
        "cache_read_input_tokens": 2,
        "output_tokens": 1,
    }
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m-1", "content": []}
    yield of_event(
        "message_start", message={**message, "stop_reason": None, "stop_sequence": None, "usage": used}
    )
    yield of_event("ping")
    for index, pieces in enumerate(_runs(scenario.said)):
        begun, deltas = _block(pieces)
        yield of_event("content_block_start", index=index, content_block=begun)
        for delta in deltas:
            yield of_event("content_block_delta", index=index, delta=delta)
        if scenario.end not in ("failed", "cut"):
            yield of_event("content_block_stop", index=index)
    if scenario.end == "cut":
        return
    if scenario.end == "failed":
        yield of_event("error", error={"type": "api_error", "message": OWN_WORDS})
        return
    declined = any(isinstance(piece, Declined) for piece in scenario.said)
    reason = "refusal" if declined else _STOP_REASONS[scenario.end]
    counted = {"output_tokens": 7, "output_tokens_details": {"thinking_tokens": 3}}
    yield of_event("message_delta", delta={"stop_reason": reason, "stop_sequence": None}, usage=counted)
    yield of_event("message_stop")


def _runs(pieces: tuple[Piece, ...]) -> list[list[Piece]]:
    """Pieces of one kind that follow each other; each call is one of its own."""
    runs: list[list[Piece]] = []
    for piece in pieces:
        if runs and not isinstance(piece, Call) and type(runs[-1][0]) is type(piece):
            runs[-1].append(piece)
        else:
            runs.append([piece])
    return runs


def _block(pieces: list[Piece]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    first = pieces[0]
    if isinstance(first, Call):
        begun = {"type": "tool_use", "id": first.call_id, "name": first.name, "input": {}}
        return begun, [{"type": "input_json_delta", "partial_json": one} for one in ("", *first.arguments)]
    if isinstance(first, Thought):
        deltas = [{"type": "thinking_delta", "thinking": piece[0]} for piece in pieces]
        signed = {"type": "signature_delta", "signature": "sig"}
        return {"type": "thinking", "thinking": "", "signature": ""}, [*deltas, signed]
    return {"type": "text", "text": ""}, [{"type": "text_delta", "text": piece[0]} for piece in pieces]


_ANTHROPIC_ERRORS: dict[str, tuple[int, Any, tuple[str, ...]]] = {
    "limited": (429, {"type": "error", "error": {"type": "rate_limit_error", "message": OWN_WORDS}}, _AFTER),
    "too-long": (
        400,
        {
            "type": "error",
            "error": {
                "type": "invalid_request_error",
                "message": f"prompt is too long: 9 tokens > 8 maximum; {OWN_WORDS}",
            },
        },
        (),
    ),
}


# -- Gemini ----------------------------------------------------------------------------------------

_FINISH_REASONS = {
    "stop": "STOP",
    "tool_calls": "STOP",
    "length": "MAX_TOKENS",
    "content_filter": "SAFETY",
}


def _gemini(scenario: Scenario) -> Iterator[bytes]:
    for piece in scenario.said:
        match piece:
            case Words(text) | Declined(text):
                yield of_data(said({"text": text}, usageMetadata=counted(15)))
            case Thought(text):
                yield of_data(said({"text": text, "thought": True}))
            case Call():
                call = {"name": piece.name, "args": json.loads("".join(piece.arguments) or "{}")}
                yield of_data(said({"functionCall": call, "thoughtSignature": "c2ln"}))
    if scenario.end == "cut":
        return
    if scenario.end == "failed":
        yield of_data(error(500, "INTERNAL", OWN_WORDS))
        return
    declined = any(isinstance(piece, Declined) for piece in scenario.said)
    finish = "SAFETY" if declined else _FINISH_REASONS[scenario.end]
    usage = counted(15, 4, thoughtsTokenCount=3, cachedContentTokenCount=2)
    yield of_data(said({"text": ""}, finish=finish, usageMetadata=usage))


_GEMINI_ERRORS: dict[str, tuple[int, Any, tuple[str, ...]]] = {
    "limited": (
        429,
        error(
            429,
            "RESOURCE_EXHAUSTED",
            OWN_WORDS,
            {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{RETRY_AFTER_SECONDS}s"},
        ),
        (),
    ),
    "too-long": (
        400,
        error(
            400,
            "INVALID_ARGUMENT",
            f"The input token count (9) exceeds the maximum number of tokens allowed (8). {OWN_WORDS}",
        ),
        (),
    ),
}


# -- OpenAI's Responses ----------------------------------------------------------------------------

_ENDS = {"length": "max_output_tokens", "content_filter": "content_filter"}


def _responses(scenario: Scenario) -> Iterator[bytes]:
    about = {"id": "resp_1", "object": "response", "created_at": 7, "model": "m-1", "output": []}
    yield of_event("response.created", response={**about, "status": "in_progress"})
    why = _ENDS.get(scenario.end)
    for index, pieces in enumerate(_runs(scenario.said)):
        yield from _item(index, pieces, cut=bool(why) or scenario.end in ("failed", "cut"))
    if scenario.end == "cut":
        return
    if scenario.end == "failed":
        failed = {"code": "server_error", "message": OWN_WORDS}
        yield of_event("response.failed", response={**about, "status": "failed", "error": failed})
        return
    status = "incomplete" if why else "completed"
    usage = {
        "input_tokens": 15,
        "input_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 0},
        "output_tokens": 7,
        "output_tokens_details": {"reasoning_tokens": 3},
        "total_tokens": 22,
    }
    ended = {
        **about,
        "status": status,
        "incomplete_details": {"reason": why} if why else None,
        "usage": usage,
    }
    yield of_event(f"response.{status}", response=ended)


def _item(index: int, pieces: list[Piece], *, cut: bool) -> Iterator[bytes]:
    first = pieces[0]
    if isinstance(first, Call):
        item: dict[str, Any] = {
            "type": "function_call", "id": f"fc_{index}", "call_id": first.call_id, "name": first.name
        }  # fmt: skip
        kind, place, texts = "function_call_arguments", {}, [*(first.arguments or ("{}",))]
        item |= {"arguments": ""}
    elif isinstance(first, Thought):
        item = {"type": "reasoning", "id": f"rs_{index}", "summary": []}
        kind, place, texts = "reasoning_summary_text", {"summary_index": 0}, [piece[0] for piece in pieces]
    else:
        item = {"type": "message", "id": f"msg_{index}", "role": "assistant", "content": []}
        kind = "refusal" if isinstance(first, Declined) else "output_text"
        place, texts = {"content_index": 0}, [piece[0] for piece in pieces]
    at = {"output_index": index, "item_id": item["id"], **place}
    yield of_event("response.output_item.added", output_index=index, item=item)
    for text in texts:
        yield of_event(f"response.{kind}.delta", **at, delta=text)
    if not cut:
        whole = "".join(texts)
        if isinstance(first, Call):
            item = {**item, "arguments": whole}
        yield of_event("response.output_item.done", output_index=index, item=item)


WIRES: dict[str, Wire] = {
    "openai": Wire(_openai, _OPENAI_ERRORS, tells_refusals=True),
    "anthropic": Wire(_anthropic, _ANTHROPIC_ERRORS, Counts(written=4)),
    "gemini": Wire(_gemini, _GEMINI_ERRORS, names_calls=False),
    "responses": Wire(_responses, _OPENAI_ERRORS, tells_refusals=True),
}

Place: TypeAlias = tuple[str, str]


def _asked(request: Request) -> Place:
    """The wire and the scenario that a request is for."""
    path = urlsplit(request.path).path
    if "/models/" in path:
        return "gemini", path.rpartition("/")[2].partition(":")[0]
    wire = {"completions": "openai", "messages": "anthropic", "responses": "responses"}[
        path.rpartition("/")[2]
    ]
    return wire, request.json["model"]


async def model(request: Request) -> None:
    """The servers of all providers in one."""
    if urlsplit(request.path).path.endswith("/models"):
        return await request.answer(404, {})
    provider, name = _asked(request)
    wire, scenario = WIRES[provider], SCENARIOS[name]
    if name in wire.errors:
        return await request.answer(*wire.errors[name])
    await request.head()
    for frame in wire.frames(scenario):
        await request.chunk(frame)
    if scenario.end == "cut":
        return request.cut()
    await request.end()
