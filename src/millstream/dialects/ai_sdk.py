"""The ``ai-sdk`` dialect: the UI message stream of the Vercel AI SDK, version 1 of that protocol, which
``useChat`` of AI SDK 5, 6 and 7 reads.

Facts: https://ai-sdk.dev/docs/ai-sdk-ui/stream-protocol and the schemas of the package ``ai``
(spec/dialects.md). The order of parts is checked there and an unknown type of chunk is refused, so only what
all three versions know is sent. A stream that just ends counts as success, so each has ``finish``, ``abort``
or ``error``.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from millstream import prompt as asked
from millstream import sse
from millstream.answer import Answer, Part, arguments_of
from millstream.bodies import read_object
from millstream.dialects import Ask, Before, choice_of_parts
from millstream.dialects import fields as read
from millstream.dialects.fields import Fields
from millstream.dialects.limit_headers import plain_limits
from millstream.errors import Draining, MillstreamError
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
    StreamStart,
    Text,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    WholePart,
)
from millstream.prompt import Message, Prompt
from millstream.usage import Bill

_json = msgspec.json.Encoder().encode

_REASONS = {
    "tool_calls": "tool-calls",
    "content_filter": "content-filter",
    "budget_exceeded": "length",
}
_PROSE: tuple[tuple[type[Content], str], ...] = ((Text, "text"), (Refusal, "text"), (Reasoning, "reasoning"))
_DONE = b"data: [DONE]\n\n"


class AISDKDialect:
    name = "ai-sdk"
    headers: Mapping[str, str] = {
        "Content-Type": "text/event-stream; charset=utf-8",
        "x-vercel-ai-ui-message-stream": "v1",
    }
    request_id_header = "X-Request-Id"
    beta_header: str | None = None
    limit_headers = staticmethod(plain_limits)
    ping = sse.PING
    preamble = b""
    tells_cuts = True
    looks_back = True

    def parse(self, body: bytes) -> Ask:
        fields = Fields(read_object(body))
        messages: list[Message] = []
        if system := fields.text("system"):
            messages.append(Message("system", (asked.Text(system),)))
        for message in fields.objects("messages", read.MAX_MESSAGES):
            messages += _messages(message)
        if not messages:
            raise fields.fault("messages", "is missing")
        for ours in ("trigger", "messageId"):  # what the page has done, which changes nothing here
            fields.text(ours)
        prompt = Prompt(
            tuple(messages),
            read.model(fields),
            tuple(_tools(fields)),
            max_tokens=fields.count("maxOutputTokens", 1, read.MAX_TOKENS),
            temperature=fields.number("temperature", 0, 2),
            top_p=fields.number("topP", 0, 1),
            seed=fields.count("seed", -(2**63), 2**63 - 1),
            reasoning_effort=fields.one_of("reasoningEffort", *asked.EFFORTS),  # type: ignore[arg-type]
            user=read.user(fields),
            metadata=read.metadata(fields),
        )
        thread = fields.identity("id")
        return Ask(prompt, read.on_disconnect(fields), False, fields.ignored(), self, thread)

    def encode(self, info: StreamInfo, batch: Batch, before: Before) -> bytes:
        others = choice_of_parts(info, batch, before)
        frames: list[bytes] = []
        for event in batch.events:
            # Nearly every event is a piece of text; its chunk is put together by hand.
            if type(event) is TextDelta and event.part not in others:
                text = _json(event.text)
                frames.append(b'data: {"type":"text-delta","id":"%d","delta":%b}\n\n' % (event.part, text))
            elif getattr(event, "part", None) not in others and getattr(event, "choice", 0) == 0:
                frames += [b"data: %b\n\n" % _json(chunk) for chunk in _chunks(event, batch, before)]
                if isinstance(event, StreamEnd):
                    frames.append(_DONE)
        return sse.one_line(b"".join(frames))

    def answer(self, info: StreamInfo, answer: Answer) -> bytes:
        end = answer.terminal
        assert isinstance(end, StreamEnd)
        shown = {
            "id": info.stream_id,
            "role": "assistant",
            "metadata": _metadata(end.bill),
            "parts": [_whole_part(part) for part in answer.of(0)],
        }
        return sse.one_line(_json(shown))

    def goodbye(self, retry_milliseconds: int | None) -> bytes:
        error = Draining("the connection ends before its answer; resume the stream")
        return b"data: %b\n\n" % _json({"type": "error", "errorText": error.message})

    def error(self, error: MillstreamError, request_id: str) -> tuple[int, bytes]:
        said = {"code": error.code, "message": error.message, "request_id": request_id}
        return error.status, sse.one_line(_json({"error": said}))


AI_SDK = AISDKDialect()


# -- frames ----------------------------------------------------------------------------------------


def _chunks(event: Event, batch: Batch, before: Before) -> Iterator[dict[str, Any]]:
    match event:
        case StreamStart():
            metadata = {"streamId": event.stream_id, "model": event.model}
            yield {"type": "start", "messageId": event.stream_id, "messageMetadata": metadata}
            yield {"type": "start-step"}
        case PartStart(content=ToolCall() as call):
            yield {"type": "tool-input-start", "toolCallId": call.call_id, "toolName": call.name}
        case PartStart():
            yield {"type": f"{_prose(event.content)}-start", "id": str(event.part)}
        case ReasoningDelta():
            yield {"type": "reasoning-delta", "id": str(event.part), "delta": event.text}
        case TextDelta() | RefusalDelta():
            yield {"type": "text-delta", "id": str(event.part), "delta": event.text}
        case ToolCallDelta():
            if event.arguments:
                yield {
                    "type": "tool-input-delta",
                    "toolCallId": event.call_id,
                    "inputTextDelta": event.arguments,
                }
        case PartEnd(content=ToolCall() as call):
            yield _tool_input(call, event.cut)
        case PartEnd(content=Reasoning() as thought) if thought.signature or thought.extra:
            kept = {"signature": thought.signature, "extra": thought.extra}
            said = _by_provider({name: value for name, value in kept.items() if value}, batch, before)
            yield {"type": "reasoning-end", "id": str(event.part), "providerMetadata": said}
        case PartEnd():
            yield {"type": f"{_prose(event.content)}-end", "id": str(event.part)}
        case WholePart(content=File() as file):
            yield {"type": "file", "mediaType": file.media_type, "url": file.url}
        case WholePart(content=Source() as source):
            yield _source(event.part, source)
        case WholePart(content=Reasoning() as thought) if thought.redacted:
            redacted = _by_provider({"redactedData": thought.redacted}, batch, before)
            yield {"type": "reasoning-start", "id": str(event.part), "providerMetadata": redacted}
            yield {"type": "reasoning-end", "id": str(event.part)}
        case StreamEnd():
            metadata = _metadata(event.bill)
            if event.finish_reason == "cancelled":
                yield {"type": "message-metadata", "messageMetadata": metadata}
                yield {"type": "abort"}
            else:
                reason = _REASONS.get(event.finish_reason, event.finish_reason)
                yield {"type": "finish-step"}
                yield {"type": "finish", "finishReason": reason, "messageMetadata": metadata}
        case StreamFailed():
            yield {
                "type": "message-metadata",
                "messageMetadata": {**_metadata(event.bill), "errorCode": event.code},
            }
            yield {"type": "error", "errorText": event.message}
        case _:
            pass


def _prose(content: Content) -> str:
    return next(name for kind, name in _PROSE if isinstance(content, kind))


def _by_provider(said: dict[str, Any], batch: Batch, before: Before) -> dict[str, Any]:
    """What goes back to the provider, under its name."""
    starts = (event for event in batch.events if isinstance(event, AnswerStart))
    start = before().start or next(starts, None)
    return {start.api if start is not None else "millstream": said}


def _tool_input(call: ToolCall, cut: bool) -> dict[str, Any]:
    """The call whole; what a cut answer leaves of it is an error there: a page runs whatever is available."""
    shown: dict[str, Any] = {"toolCallId": call.call_id, "toolName": call.name}
    kept = _objects(call.extra_content)
    wanted = {"providerMetadata": kept} if kept else {}
    try:
        ready = {**shown, "input": arguments_of(call.arguments, cut=cut), **wanted}
        return {"type": "tool-input-available", **ready}
    except ValueError:
        said = "the arguments of the call are not whole"
        return {"type": "tool-input-error", **shown, "input": call.arguments, "errorText": said}


def _objects(extra_content: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a provider wants back with a call, as far as it can be metadata there: objects by name."""
    return {name: kept for name, kept in (extra_content or {}).items() if isinstance(kept, dict)}


def _source(number: int, source: Source) -> dict[str, Any]:
    title = {"title": source.title} if source.title else {}
    return {"type": "source-url", "sourceId": str(number), "url": source.url, **title}


def _metadata(bill: Bill) -> dict[str, Any]:
    usage = bill.usage
    return {
        "usage": {
            "inputTokens": usage.prompt_tokens,
            "outputTokens": usage.completion_tokens,
            "totalTokens": usage.total_tokens,
            "cachedInputTokens": usage.cached_tokens,
            "reasoningTokens": usage.reasoning_tokens,
            "source": usage.source,
        },
        "costUsd": bill.charged_usd,
    }


def _whole_part(part: Part) -> dict[str, Any]:
    content, text = part.content, part.text
    match content:
        case Text() | Refusal():
            return {"type": "text", "text": text, "state": "done"}
        case Reasoning():
            return {"type": "reasoning", "text": text, "state": "done"}
        case ToolCall():
            said = _tool_input(content, part.cut)
            shown = {
                "type": f"tool-{content.name}",
                "toolCallId": content.call_id,
                "state": "input-available",
            }
            if "errorText" in said:
                return {**shown, "state": "output-error", "errorText": said["errorText"]}
            wanted = {"callProviderMetadata": kept} if (kept := said.get("providerMetadata")) else {}
            return {**shown, "input": said["input"], **wanted}
        case File():
            return {"type": "file", "mediaType": content.media_type, "url": content.url}
        case Source():
            return _source(part.number, content)


# -- bodies ----------------------------------------------------------------------------------------


def _messages(fields: Fields) -> Iterator[Message]:
    """A message of a page -> those of a conversation: an answer with tools is one for each of its steps, with
    the tools' results behind it.
    """
    role = fields.one_of("role", "system", "user", "assistant")
    if role is None:
        raise fields.fault("role", "is missing")
    parts = fields.objects("parts", read.MAX_PARTS)
    if role != "assistant":
        said = [part for shown in parts if (part := _part(shown)) is not None]
        if not said and (content := fields.text("content")):
            said.append(asked.Text(content))
        if said:
            yield Message(role, tuple(said))  # type: ignore[arg-type]
        return
    step: list[asked.Part] = []
    results: list[asked.Part] = []
    for shown in parts:
        kind = shown.text("type", most=256) or ""
        if kind == "step-start" or (results and not _is_tool(kind)):
            yield from _step(step, results)
            step, results = [], []
        if _is_tool(kind):
            call, result = _tool_part(shown, kind)
            if result is not None:  # a call that nobody has answered cannot go back
                step.append(call)
                results.append(result)
        elif (part := _part(shown)) is not None:
            step.append(part)
    if not step and (content := fields.text("content")):
        step.append(asked.Text(content))
    yield from _step(step, results)


def _step(step: list[asked.Part], results: list[asked.Part]) -> Iterator[Message]:
    if step:
        yield Message("assistant", tuple(step))
    if results:
        yield Message("tool", tuple(results))


def _is_tool(kind: str) -> bool:
    return kind == "dynamic-tool" or kind.startswith("tool-")


def _part(fields: Fields) -> asked.Part | None:
    """A part that a model may be told; None for others, such as sources and data of the page."""
    match fields.text("type", most=256):
        case "text":
            return asked.Text(fields.needed("text"))
        case "reasoning":
            metadata = fields.mapping("providerMetadata") or {}
            said = [value for value in metadata.values() if isinstance(value, dict)]
            signature, redacted = (
                next((word for value in said if isinstance(word := value.get(name), str)), "")
                for name in ("signature", "redactedData")
            )
            extra = {
                api: known
                for api, value in metadata.items()
                if isinstance(value, dict) and isinstance(known := value.get("extra"), dict)
            }
            return asked.Reasoning(fields.needed("text"), signature, redacted, extra)
        case "file":
            media_type, url = fields.needed("mediaType", most=128), fields.needed("url")
            if media_type.startswith("image/"):
                return asked.Image(url)
            return asked.File(media_type, url, fields.text("filename", most=512))
        case _:
            return None


def _tool_part(fields: Fields, kind: str) -> tuple[asked.ToolCall, asked.ToolResult | None]:
    call_id = fields.needed("toolCallId", most=512)
    name = fields.needed("toolName", most=128) if kind == "dynamic-tool" else kind.removeprefix("tool-")[:128]
    state = fields.text("state", most=64)
    kept = _objects(fields.mapping("callProviderMetadata")) or None
    given = fields.any("input")
    if given is None:
        given = fields.any("rawInput")  # of a call that the page could not read
    call = asked.ToolCall(call_id, name, _arguments(given), kept)
    if state == "output-available":
        output = (asked.Text(_text_of(fields.any("output"), if_none="null")),)
        return call, asked.ToolResult(call_id, output, name=name)
    if state == "output-error":
        failed = (asked.Text(fields.text("errorText") or "the tool failed"),)
        return call, asked.ToolResult(call_id, failed, is_error=True, name=name)
    approval = fields.inner("approval") or Fields({})
    if state == "output-denied" or (state == "approval-responded" and approval.flag("approved") is False):
        denied = (asked.Text(approval.text("reason") or "the user has not allowed it"),)
        return call, asked.ToolResult(call_id, denied, is_error=True, name=name)
    return call, None


def _arguments(value: object) -> str:
    """The input of a call, which providers want to be an object."""
    if isinstance(value, str):
        try:
            if isinstance(arguments_of(value), dict):
                return value
        except ValueError:
            pass
    given = {} if value is None else value if isinstance(value, dict) else {"input": value}
    return _json(given).decode()


def _text_of(value: object, *, if_none: str) -> str:
    if value is None:
        return if_none
    return value if isinstance(value, str) else _json(value).decode()


def _tools(fields: Fields) -> Iterator[asked.Tool]:
    """Tools that the page runs: by name, as assistant-ui sends them."""
    tools = fields.any("tools")
    if isinstance(tools, list) and not tools:
        return
    named = fields.inner("tools")
    for name in (fields.mapping("tools") or {}) if named is not None else ():
        tool = named.inner(name) if named is not None else None
        if tool is None or len(name) > 128:
            raise fields.fault("tools", "has to be tools by name")
        schema = tool.mapping("parameters") or tool.mapping("inputSchema")
        yield asked.Tool(name, tool.text("description"), schema)
