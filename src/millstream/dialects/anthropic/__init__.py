"""The ``anthropic`` dialect: Messages, as Anthropic's SDKs read it, of both versions of that API.

Facts: https://platform.claude.com/docs/en/api/messages and the types of anthropic-python and anthropic-node
(spec/dialects.md). Those clients know an event by its ``event:`` line and a ping by its name. Usage in
``message_delta`` is a running total: it takes the place of what ``message_start`` has said.

Files and sources that a model gives beside its words have no block there, and are left out.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from millstream import sse
from millstream.answer import Answer, Part, input_of
from millstream.bodies import read_object
from millstream.dialects import Ask, Before, choice_of_parts
from millstream.dialects import fields as read
from millstream.dialects.anthropic.body import API, ThreadsUnsupported, prompt_of
from millstream.dialects.fields import Fields
from millstream.dialects.limit_headers import anthropic_limits
from millstream.errors import Draining, InvalidRequest, MillstreamError, UnreadableCall
from millstream.events import (
    AnswerStart,
    Batch,
    Content,
    Event,
    File,
    PartEnd,
    PartStart,
    Reasoning,
    ReasoningDelta,
    Refusal,
    RefusalDelta,
    Source,
    StreamEnd,
    StreamFailed,
    StreamInfo,
    Text,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    WholePart,
    is_cut,
)
from millstream.prompt import Prompt
from millstream.usage import Usage

_json = msgspec.json.Encoder().encode

_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
    "cancelled": "end_turn",
    "budget_exceeded": "max_tokens",
}
_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    410: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_NO_BLOCK = (File, Source)
_SUMMARY = "compaction"  # a block that has what was said so far; what of it comes behind its start
_OF_SUMMARY = ("content", "encrypted_content")
# Of an answer as a whole; where that is streamed, not of its end.
_BESIDE_END = ("context_management", "input_transformations")


class AnthropicDialect:
    name = "anthropic"
    headers: Mapping[str, str] = {"Content-Type": "text/event-stream; charset=utf-8"}
    request_id_header = "request-id"
    beta_header: str | None = "anthropic-beta"
    limit_headers = staticmethod(anthropic_limits)
    ping = b'event: ping\ndata: {"type":"ping"}\n\n'
    preamble = b""
    tells_cuts = False
    looks_back = True

    def parse(self, body: bytes) -> Ask:
        fields = Fields(read_object(body))
        prompt = prompt_of(fields)
        if prompt.max_tokens is None:
            raise fields.fault("max_tokens", "is missing")
        whole = not fields.flag("stream")
        return Ask(prompt, read.on_disconnect(fields), whole, fields.ignored())

    def parse_prompt(self, body: bytes) -> Prompt:
        """What is asked of a model, of a body that asks for no answer. Raises what ``parse`` does."""
        return prompt_of(Fields(read_object(body)))

    def encode(self, info: StreamInfo, batch: Batch, before: Before) -> bytes:
        answer = before()
        others = choice_of_parts(info, batch, before)
        start = answer.start
        begun, blocks, refused, late = answer.kept(API) or _so_far(answer)
        frames: list[bytes] = []
        for event in batch.events:
            # Nearly every event is a piece of text; its frame is put together by hand.
            if type(event) is TextDelta and event.extra is None and event.part not in others:
                if event.text:
                    frames.append(_TEXT % (blocks[event.part], _json(event.text)))
                continue
            if getattr(event, "part", None) in others or getattr(event, "choice", 0) != 0:
                continue
            if isinstance(event, StreamEnd) and event.because:
                frames.append(_failure(Draining("the server is shutting down; the answer is not whole")))
                continue
            if isinstance(event, AnswerStart):
                start = event
            if not begun and isinstance(event, (AnswerStart, PartStart, WholePart, StreamEnd)):
                begun = True
                frames.append(_frame("message_start", message=_message_start(info, start)))
            if isinstance(event, (PartStart, WholePart)) and not isinstance(event.content, _NO_BLOCK):
                blocks[event.part] = len(blocks)
                refused = refused or isinstance(event.content, Refusal)
            if isinstance(event, PartEnd) and _is_late(event.content, event.cut):
                late[event.part] = event
            elif isinstance(event, StreamEnd):
                frames += _late_ends(late, blocks, start)
                if _is_unreadable(event, late.values()):
                    frames.append(_failure(UnreadableCall()))
                else:
                    frames += _end(start, event, refused=refused)
            elif isinstance(event, StreamFailed):
                frames.append(_failure(event.error))
            else:
                frames += _of_block(event, blocks, start)
        answer.keep(API, (begun, blocks, refused, late), len(batch.events))
        return sse.one_line(b"".join(frames))

    def answer(self, info: StreamInfo, answer: Answer) -> bytes:
        end, start = answer.terminal, answer.start
        assert isinstance(end, StreamEnd)
        if _is_unreadable(end, answer.of(0)):
            raise UnreadableCall
        said = _of_end(start, end, refused=_is_refused(answer.of(0)))
        shown = {
            **_message_start(info, start),
            "content": [
                _whole_block(part, start)
                for part in answer.of(0)
                if not isinstance(part.content, _NO_BLOCK) and not _is_torn(part.content, part.cut)
            ],
            **said,
            "usage": _whole_usage(start, end),
        }
        return sse.one_line(_json(shown))

    def goodbye(self, retry_milliseconds: int | None) -> bytes:
        # Without an error these clients take the end of the connection for the end of the answer.
        return _failure(Draining("the connection ends before its answer; follow the stream where it is"))

    def error(self, error: MillstreamError, request_id: str) -> tuple[int, bytes]:
        status = 400 if error.status == InvalidRequest.status else error.status
        shown = {"type": "error", "error": _shown_error(error), "request_id": request_id}
        return status, sse.one_line(_json(shown))


ANTHROPIC = AnthropicDialect()


# -- frames ----------------------------------------------------------------------------------------

_TEXT = (
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,'
    b'"delta":{"type":"text_delta","text":%b}}\n\n'
)


def _frame(kind: str, **fields: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), _json({"type": kind, **fields}))


def _so_far(answer: Answer) -> tuple[bool, dict[int, int], bool, dict[int, PartEnd]]:
    """Whether it has begun, the index of its block for every part that has one, whether it is refused, and
    the ends that are late.
    """
    parts = answer.of(0)
    shown = (part for part in parts if not isinstance(part.content, _NO_BLOCK))
    blocks = {part.number: index for index, part in enumerate(shown)}
    late = {
        part.number: PartEnd(part.number, part.content, cut=part.cut)
        for part in parts
        if part.ended and _is_late(part.content, part.cut)
    }
    return answer.start is not None or bool(parts), blocks, _is_refused(parts), late


def _is_refused(parts: list[Part]) -> bool:
    return any(isinstance(part.content, Refusal) for part in parts)


def _own(start: AnswerStart | None) -> AnswerStart | None:
    """The start of an answer that came in this format; None for others, whose extras say nothing here."""
    return start if start is not None and start.api == API else None


def _message_start(info: StreamInfo, start: AnswerStart | None) -> dict[str, Any]:
    """What is said of the answer first: as its provider says it, where that speaks this format."""
    own = _own(start)
    return {
        "id": (own and own.response_id) or f"msg_{info.stream_id.removeprefix('str_')}",
        "type": "message",
        "role": "assistant",
        "model": (start and start.model) or info.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": _usage(start.usage if start is not None else None),
        **((own and own.extra) or {}),
    }


def _of_block(event: Event, blocks: Mapping[int, int], start: AnswerStart | None) -> Iterator[bytes]:
    """The frames of an event of a part. Deltas that add nothing have none."""
    index = blocks.get(getattr(event, "part", -1))
    if index is None:
        return
    match event:
        case PartStart():
            yield _frame("content_block_start", index=index, content_block=_begun(event.content, start))
        case WholePart():
            block = _begun(event.content, start)
            later = {name: block[name] for name in _OF_SUMMARY if name in block}
            yield _frame("content_block_start", index=index, content_block=block | dict.fromkeys(later))
            if later:
                yield _delta(index, "compaction_delta", **later)
            yield _frame("content_block_stop", index=index)
        case TextDelta() | RefusalDelta():
            if event.text:
                yield _TEXT % (index, _json(event.text))
            extra = (_own(start) and event.extra) or {}
            if isinstance(event, TextDelta) and (cited := extra.get("citation")):
                yield _delta(index, "citations_delta", citation=cited)
        case ReasoningDelta():
            if event.text:
                yield _delta(index, "thinking_delta", thinking=event.text)
        case ToolCallDelta():
            if event.arguments:
                yield _delta(index, "input_json_delta", partial_json=event.arguments)
        case PartEnd():
            if isinstance(event.content, Reasoning) and event.content.signature:
                yield _delta(index, "signature_delta", signature=event.content.signature)
            yield _frame("content_block_stop", index=index)
        case _:
            pass


def _is_late(content: Content, cut: bool) -> bool:
    """Whether the end of a part is told, or not, with the end of the answer."""
    return cut or _is_torn(content, cut)


def _late_ends(
    late: Mapping[int, PartEnd], blocks: Mapping[int, int], start: AnswerStart | None
) -> Iterator[bytes]:
    """The ends of the blocks that a limit or the reader has cut. A failure leaves them open."""
    for _, end in sorted(late.items()):
        if not _is_torn(end.content, end.cut):
            yield from _of_block(end, blocks, start)


def _is_torn(content: Content, cut: bool) -> bool:
    """Whether it is a call whose arguments are no object, or were cut. Clients run a call at the end of its
    block, and one without any input with none.
    """
    return isinstance(content, ToolCall) and input_of(content, cut=cut) is None


def _is_unreadable(end: StreamEnd, parts: Iterable[Part | PartEnd]) -> bool:
    """Whether an answer that nothing has cut has a call that cannot be read. Some clients run a call that has
    begun, ended or not, as soon as the answer is whole.
    """
    return not is_cut(end) and any(_is_torn(part.content, part.cut) for part in parts)


def _delta(index: int, kind: str, **fields: Any) -> bytes:
    return _frame("content_block_delta", index=index, delta={"type": kind, **fields})


def _begun(content: Content, start: AnswerStart | None) -> dict[str, Any]:
    """A block at its start."""
    given = (_own(start) and getattr(content, "extra", None)) or {}
    if isinstance(content, Reasoning) and given.get("type") == _SUMMARY:
        return dict(given)
    match content:
        case Reasoning() if content.redacted:
            return {"type": "redacted_thinking", "data": content.redacted}
        case Reasoning():
            return {"type": "thinking", "thinking": "", "signature": "", **given}
        case ToolCall():
            extra = (content.extra_content or {}).get(API, {})
            return {"type": "tool_use", "id": content.call_id, "name": content.name, "input": {}, **extra}
        case Text():
            return {"type": "text", "text": "", **given}
        case _:
            return {"type": "text", "text": ""}


def _whole_block(part: Part, start: AnswerStart | None) -> dict[str, Any]:
    block = _begun(part.content, start)
    match part.content:
        case Reasoning() if block["type"] == "thinking":
            return {**block, "thinking": part.text, "signature": part.content.signature}
        case ToolCall():
            return {**block, "input": input_of(part.content, cut=part.cut)}
        case Text() | Refusal():
            block["text"] = part.text
            extras = part.extras if _own(start) else []
            if cited := [extra["citation"] for extra in extras if "citation" in extra]:
                block["citations"] = cited
    return block


def _end(start: AnswerStart | None, end: StreamEnd, *, refused: bool) -> Iterator[bytes]:
    said, usage = _of_end(start, end, refused=refused), _usage(end.bill.usage)
    if _is_theirs(start, end) and end.extra is not None:
        usage = end.extra.get("usage", usage)
    beside = {name: said.pop(name) for name in _BESIDE_END if name in said}
    yield _frame("message_delta", delta=said, usage=usage, **beside)
    yield _frame("message_stop")


def _of_end(start: AnswerStart | None, end: StreamEnd, *, refused: bool) -> dict[str, Any]:
    """Why the answer ended."""
    if _own(start) and end.word:
        more = {name: value for name, value in (end.extra or {}).items() if name != "usage"}
        return {"stop_reason": end.word, "stop_sequence": end.stop_sequence, **more}
    reason = _REASONS[end.finish_reason]
    if reason == "end_turn":
        reason = "stop_sequence" if end.stop_sequence is not None else "refusal" if refused else reason
    return {"stop_reason": reason, "stop_sequence": end.stop_sequence}


def _is_theirs(start: AnswerStart | None, end: StreamEnd) -> bool:
    """Whether the usage is the provider's own, in this format."""
    return _own(start) is not None and end.bill.usage.source == "provider_final"


def _whole_usage(start: AnswerStart | None, end: StreamEnd) -> dict[str, Any]:
    if _is_theirs(start, end) and end.raw_usage:
        return end.raw_usage
    return _usage(end.bill.usage)


def _usage(usage: Usage | None) -> dict[str, Any]:
    usage = usage or Usage(0, 0, "counted")
    shown: dict[str, Any] = {
        "input_tokens": max(usage.prompt_tokens - usage.cached_tokens - usage.cache_write_tokens, 0),
        "cache_creation_input_tokens": usage.cache_write_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }
    if hour := usage.cache_write_1h_tokens:
        shown["cache_creation"] = {
            "ephemeral_5m_input_tokens": usage.cache_write_tokens - hour,
            "ephemeral_1h_input_tokens": hour,
        }
    if usage.reasoning_tokens:
        shown["output_tokens_details"] = {"thinking_tokens": usage.reasoning_tokens}
    return shown


def _failure(error: MillstreamError) -> bytes:
    return sse.one_line(_frame("error", error=_shown_error(error)))


def _shown_error(error: MillstreamError) -> dict[str, Any]:
    """Our code is where these clients look for the name of a cause."""
    details: dict[str, Any] = {"error_code": error.code}
    if isinstance(error, ThreadsUnsupported):
        details = {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}
    kind = "invalid_request_error" if error.status < 500 else "api_error"
    return {"type": _TYPES.get(error.status, kind), "message": error.message, "details": details}
