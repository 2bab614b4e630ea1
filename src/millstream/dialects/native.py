"""The ``millstream`` dialect: events -> native frames (spec/protocol.md §4). One event, one frame."""

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType

from millstream import sse
from millstream.answer import Answer
from millstream.bodies import validate
from millstream.dialects import Ask, Before, choice_of_parts
from millstream.dialects.limit_headers import plain_limits
from millstream.errors import MillstreamError
from millstream.events import (
    Batch,
    Event,
    File,
    PartStart,
    ReasoningDelta,
    RefusalDelta,
    StreamEnd,
    StreamFailed,
    StreamInfo,
    StreamStart,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    WholePart,
)
from millstream.messages import ChatRequest, Grace
from millstream.usage import TOKEN_KINDS, Bill

_RETRY_MILLISECONDS = 1000

_json = msgspec.json.Encoder().encode


class _ToolCall(Struct):
    index: int
    id: str | UnsetType = UNSET
    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET
    extra_content: dict[str, Any] | UnsetType = UNSET


class _Frame(Struct):
    """What a frame's ``data`` can hold besides text."""

    delta: str = ""
    finish_reason: str | None = None
    stream_id: str | UnsetType = UNSET
    model: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    refusal: str | UnsetType = UNSET
    tool_call: _ToolCall | UnsetType = UNSET
    file: dict[str, str] | UnsetType = UNSET
    usage: dict[str, Any] | UnsetType = UNSET


_NOTHING = _json(_Frame())


def usage_json(bill: Bill) -> dict[str, Any]:
    """A bill as frames and JSON answers show it."""
    usage = bill.usage
    shown: dict[str, Any] = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }
    counts = {kind: getattr(usage, kind) for kind in TOKEN_KINDS}
    shown |= {kind: count for kind, count in counts.items() if count and kind not in shown}
    if usage.tokenizer is not None:
        shown["tokenizer"] = usage.tokenizer
    return shown | {"source": usage.source, "cost_usd": bill.charged_usd}


def ask_of(request: ChatRequest) -> Ask:
    """What a validated body asks for."""
    policy = request.on_disconnect
    return Ask(request.to_prompt(), policy.grace_seconds if isinstance(policy, Grace) else policy)


class NativeDialect:
    name = "millstream"
    headers: Mapping[str, str] = {"Content-Type": "text/event-stream; charset=utf-8"}
    request_id_header = "X-Request-Id"
    beta_header: str | None = None
    limit_headers = staticmethod(plain_limits)
    ping = sse.PING
    # Without a blank line it belongs to the next frame; alone it would be an empty event to some decoders.
    preamble = b"retry: %d\n" % _RETRY_MILLISECONDS
    tells_cuts = True
    looks_back = False

    def parse(self, body: bytes) -> Ask:
        return ask_of(validate(ChatRequest, body))

    def encode(self, info: StreamInfo, batch: Batch, before: Before) -> bytes:
        epoch, seq = batch.first
        frames: list[bytes] = []
        others = choice_of_parts(info, batch, before)  # which have no place in these frames
        for event in batch.events:
            # Nearly every event is a piece of text; its frame is put together by hand.
            if type(event) is TextDelta and not others:
                frames.append(
                    b'id: %d-%d\ndata: {"delta":%b,"finish_reason":null}\n\n'
                    % (epoch, seq, _json(event.text))
                )
            elif others and getattr(event, "part", None) in others:
                frames.append(sse.frame(_NOTHING, id=f"{epoch}-{seq}"))
            else:
                frames.append(_frame(event, f"{epoch}-{seq}"))
            seq += 1
        return sse.one_line(b"".join(frames))

    def answer(self, info: StreamInfo, answer: Answer) -> bytes:
        end = answer.terminal
        assert isinstance(end, StreamEnd)
        shown: dict[str, object] = {
            "stream_id": info.stream_id,
            "model": info.model,
            "content": answer.text,
        }
        if reasoning := answer.reasoning:
            shown["reasoning"] = reasoning
        if refusal := answer.refusal:
            shown["refusal"] = refusal
        if answer.tool_calls:
            shown["tool_calls"] = [_shown_call(call) for call in answer.tool_calls]
        if answer.files:
            shown["files"] = [_file(file) for file in answer.files]
        shown |= {"finish_reason": end.finish_reason, "usage": usage_json(end.bill)}
        return sse.one_line(_json(shown))

    def goodbye(self, retry_milliseconds: int | None) -> bytes:
        return b"" if retry_milliseconds is None else b"retry: %d\n\n" % retry_milliseconds

    def error(self, error: MillstreamError, request_id: str) -> tuple[int, bytes]:
        said = {"code": error.code, "message": error.message, "request_id": request_id}
        return error.status, sse.one_line(_json({"error": said}))


NATIVE = NativeDialect()


def _shown_call(call: ToolCall) -> dict[str, Any]:
    """A tool call as it goes back into a request's history."""
    function = {"name": call.name, "arguments": call.arguments}
    shown: dict[str, Any] = {"id": call.call_id, "type": "function", "function": function}
    return shown | ({"extra_content": call.extra_content} if call.extra_content else {})


def _frame(event: Event, position: str) -> bytes:
    match event:
        case StreamStart():
            start = _Frame(stream_id=event.stream_id, model=event.model)
            return NativeDialect.preamble + sse.frame(_json(start), id=position)
        case StreamEnd():
            end = _Frame(finish_reason=event.finish_reason, usage=usage_json(event.bill))
            return sse.frame(_json(end), id=position) + b"data: [DONE]\n\n"
        case StreamFailed():
            failure = {
                "error": {
                    "code": event.code,
                    "message": event.message,
                    "retryable": event.retryable,
                },
                "usage": usage_json(event.bill),
            }
            return sse.frame(_json(failure), id=position)
        case TextDelta():
            return sse.frame(_json(_Frame(event.text)), id=position)
        case ReasoningDelta():
            return sse.frame(_json(_Frame(reasoning=event.joined)), id=position)
        case RefusalDelta():
            return sse.frame(_json(_Frame(refusal=event.text)), id=position)
        case PartStart(content=ToolCall() as said):
            call = _ToolCall(
                said.index, id=said.call_id, name=said.name, extra_content=said.extra_content or UNSET
            )
            return sse.frame(_json(_Frame(tool_call=call)), id=position)
        case ToolCallDelta():
            call = _ToolCall(
                event.index, arguments=event.arguments, extra_content=event.extra_content or UNSET
            )
            return sse.frame(_json(_Frame(tool_call=call)), id=position)
        case WholePart(content=File() as file):
            return sse.frame(_json(_Frame(file=_file(file))), id=position)
        case _:
            # The boundaries of parts and the like: a position that a client has to see, and nothing else.
            return sse.frame(_NOTHING, id=position)


def _file(file: File) -> dict[str, str]:
    return {"media_type": file.media_type, "url": file.url}
