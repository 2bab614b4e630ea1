"""The ``ag-ui`` dialect: AG-UI 1.0, which ``HttpAgent`` of ``@ag-ui/client``, CopilotKit and TanStack read.

Facts: https://docs.ag-ui.com/concepts/events and the schemas and the verifier of ``@ag-ui/core`` and
``@ag-ui/client`` (spec/dialects.md). Frames are told apart by two line feeds, every line of data is JSON, and
a null is an error there, so what is not set is left out. There are no ids: TanStack AI would answer a drop
with its POST once more, which is another generation.

All text of an answer is one message, named as the stream is, and the calls of tools belong to it: so it goes
back to a provider as the one answer that it was. What has no event of its own is in ``metadata.millstream``.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from millstream import prompt as asked
from millstream import sse
from millstream.answer import Answer, arguments_of, input_of
from millstream.bodies import read_object
from millstream.dialects import Ask, Before, choice_of_parts
from millstream.dialects import fields as read
from millstream.dialects.fields import Fields
from millstream.dialects.limit_headers import plain_limits
from millstream.errors import Draining, MillstreamError, UnreadableCall
from millstream.events import (
    AnswerStart,
    Batch,
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
    is_cut,
)
from millstream.prompt import Message, Prompt
from millstream.usage import Bill

_json = msgspec.json.Encoder().encode

_MAX_ID = 128
_MAX_CONTEXTS = 256

# The kinds of media in a message -> the type of one that names none.
_MEDIA = {
    "image": "image/png",
    "audio": "audio/mpeg",
    "video": "video/mp4",
    "document": "application/pdf",
}
_ROLES = ("system", "developer", "user", "assistant", "tool", "reasoning", "activity")


class AGUIDialect:
    """``thread_id`` and ``run_id`` are the names that the body gives; a stream that is followed by somebody
    else has its own. ``tanstack`` is whether the body is one of TanStack AI.
    """

    name = "ag-ui"
    headers: Mapping[str, str] = {"Content-Type": "text/event-stream; charset=utf-8"}
    request_id_header = "X-Request-Id"
    beta_header: str | None = None
    limit_headers = staticmethod(plain_limits)
    ping = sse.PING
    preamble = b""
    tells_cuts = True
    looks_back = True

    def __init__(self, thread_id: str = "", run_id: str = "", *, tanstack: bool = False) -> None:
        self._thread_id = thread_id
        self._run_id = run_id
        self._tanstack = tanstack

    def parse(self, body: bytes) -> Ask:
        fields = Fields(read_object(body))
        thread = fields.identity("threadId", most=_MAX_ID) or ""
        run = fields.text("runId", most=_MAX_ID) or ""
        for about in ("protocolVersion", "parentRunId"):  # what the client is and does, which changes nothing
            fields.text(about, most=_MAX_ID)
        fields.refuse("resume", because="no run is interrupted here, so there is nothing to go on with")
        given, mirrored = fields.mapping("forwardedProps"), fields.mapping("data")
        # TanStack AI says the same twice.
        knobs = Fields(mirrored or {}, "data") if given is None else Fields(given, "forwardedProps")
        prompt = Prompt(
            tuple(_conversation(fields)),
            read.model(knobs) or read.model(fields),
            tuple(_tool(tool) for tool in fields.objects("tools", read.MAX_TOOLS, are_knobs=True)),
            max_tokens=_either(
                knobs.count("max_tokens", 1, read.MAX_TOKENS), knobs.count("maxTokens", 1, read.MAX_TOKENS)
            ),
            temperature=knobs.number("temperature", 0, 2),
            top_p=_either(knobs.number("top_p", 0, 1), knobs.number("topP", 0, 1)),
            seed=knobs.count("seed", -(2**63), 2**63 - 1),
            reasoning_effort=knobs.one_of("reasoning_effort", *asked.EFFORTS),  # type: ignore[arg-type]
            user=read.user(knobs),
            metadata=read.metadata(knobs),
        )
        policy = read.on_disconnect(fields if "on_disconnect" in fields else knobs)
        # Clients always send a state, mostly an empty one; it is no news that nobody reads that.
        ignored = (name for name in fields.ignored() if "." in name or fields.any(name))
        reply = AGUIDialect(thread, run, tanstack=mirrored is not None)
        return Ask(prompt, policy, False, (*ignored, *knobs.ignored()), reply, thread or None)

    def encode(self, info: StreamInfo, batch: Batch, before: Before) -> bytes:
        others = choice_of_parts(info, batch, before)
        said = b'data: {"type":"TEXT_MESSAGE_CONTENT","messageId":%b,"delta":%%b}\n\n' % _json(info.stream_id)
        frames: list[bytes] = []
        for event in batch.events:
            # Nearly every event is a piece of text; its frame is put together by hand.
            if type(event) is TextDelta and event.part not in others:
                if event.text:
                    frames.append(said % _json(event.text))
            elif getattr(event, "part", None) not in others and getattr(event, "choice", 0) == 0:
                shown = self._events(info, event, batch, before)
                frames += [b"data: %b\n\n" % _json(one) for one in shown]
        return sse.one_line(b"".join(frames))

    def answer(self, info: StreamInfo, answer: Answer) -> bytes:
        end = answer.terminal
        assert isinstance(end, StreamEnd)
        message: dict[str, Any] = {"id": info.stream_id, "role": "assistant"}
        if text := answer.text + answer.refusal:
            message["content"] = text
        if calls := answer.tool_calls:
            message["toolCalls"] = [
                {
                    "id": call.call_id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in calls
            ]
        thoughts = [
            {"id": f"{info.stream_id}-{part.number}", "role": "reasoning", "content": part.text}
            for part in answer.of(0)
            if isinstance(part.content, Reasoning) and part.text
        ]
        whole = [
            part.content.call_id
            for part in answer.of(0)
            if isinstance(part.content, ToolCall) and input_of(part.content, cut=part.cut) is not None
        ]
        finished = self._finished(info, end, answer.start, whole)
        del finished["type"]
        return sse.one_line(_json({**finished, "messages": [*thoughts, message]}))

    def goodbye(self, retry_milliseconds: int | None) -> bytes:
        # These clients take the end of the connection for the end of the answer.
        error = Draining("the connection ends before its answer; follow the stream where it is")
        shown = {"type": "RUN_ERROR", "message": error.message, "code": error.code}
        return b"data: %b\n\n" % _json(shown)

    def error(self, error: MillstreamError, request_id: str) -> tuple[int, bytes]:
        said = {"code": error.code, "message": error.message, "request_id": request_id}
        return error.status, sse.one_line(_json({"error": said}))

    # -- events --------------------------------------------------------------------------------

    def _events(
        self, info: StreamInfo, event: Event, batch: Batch, before: Before
    ) -> Iterator[dict[str, Any]]:
        message = info.stream_id
        match event:
            case StreamStart():
                about = {"streamId": event.stream_id, "model": event.model}
                yield {"type": "RUN_STARTED", **self._run(info), "metadata": {"millstream": about}}
            case PartStart(content=Text() | Refusal()):
                yield {"type": "TEXT_MESSAGE_START", "messageId": message, "role": "assistant"}
            case TextDelta() | RefusalDelta():
                if event.text:
                    yield {"type": "TEXT_MESSAGE_CONTENT", "messageId": message, "delta": event.text}
            case PartEnd(content=Text() | Refusal()):
                yield {"type": "TEXT_MESSAGE_END", "messageId": message}
            case PartStart(content=Reasoning()):
                yield from _thought_starts(f"{message}-{event.part}")
            case ReasoningDelta():
                if event.text:
                    thought = f"{message}-{event.part}"
                    yield {"type": "REASONING_MESSAGE_CONTENT", "messageId": thought, "delta": event.text}
            case PartEnd(content=Reasoning() as content):
                yield from _thought_ends(f"{message}-{event.part}", content, _api(batch, before))
            case WholePart(content=Reasoning() as content):
                yield from _thought_starts(f"{message}-{event.part}")
                yield from _thought_ends(f"{message}-{event.part}", content, _api(batch, before))
            case PartStart(content=ToolCall() as call):
                yield {
                    "type": "TOOL_CALL_START",
                    "toolCallId": call.call_id,
                    "toolCallName": call.name,
                    "parentMessageId": message,
                }
            case ToolCallDelta():
                if event.arguments:
                    yield {"type": "TOOL_CALL_ARGS", "toolCallId": event.call_id, "delta": event.arguments}
            case PartEnd(content=ToolCall() as call):
                if not _is_late(call, event.cut):
                    yield from self._call_ends(call)
            case WholePart(content=File() as file):
                value = {"mediaType": file.media_type, "url": file.url}
                yield {"type": "CUSTOM", "name": "file", "value": value}
            case WholePart(content=Source() as source):
                value = {"url": source.url, "title": source.title}
                places = {"start": source.start, "end": source.end}
                known = {name: place for name, place in places.items() if place is not None}
                yield {"type": "CUSTOM", "name": "source", "value": {**value, **known}}
            case StreamEnd():
                start = before().start or _start(batch)
                calls = _calls(batch, before)
                whole = [call.call_id for call, cut in calls if input_of(call, cut=cut) is not None]
                if len(whole) < len(calls) and not is_cut(event):
                    yield _run_error(UnreadableCall(), event.bill, info.model)
                    return
                for call, cut in calls:
                    if _is_late(call, cut):
                        yield from self._call_ends(call, cut=cut)
                yield self._finished(info, event, start, whole)
            case StreamFailed():
                yield _run_error(event.error, event.bill, info.model)
            case _:
                pass

    def _call_ends(self, call: ToolCall, *, cut: bool = False) -> Iterator[dict[str, Any]]:
        if call.extra_content:
            yield _encrypted("tool-call", call.call_id, call.extra_content)
        yield {"type": "TOOL_CALL_END", "toolCallId": call.call_id}
        if self._tanstack and (given := input_of(call, cut=cut)) is not None:
            # Without it TanStack AI does not run a tool that the page has.
            ready = {"toolCallId": call.call_id, "toolName": call.name, "input": given}
            yield {"type": "CUSTOM", "name": "tool-input-available", "value": ready}

    def _run(self, info: StreamInfo) -> dict[str, str]:
        return {"threadId": self._thread_id or info.stream_id, "runId": self._run_id or info.stream_id}

    def _finished(
        self, info: StreamInfo, end: StreamEnd, start: AnswerStart | None, calls: list[str]
    ) -> dict[str, Any]:
        outcome: dict[str, Any] = {"type": "success"}
        if end.finish_reason == "cancelled":
            outcome = {"type": "cancelled"}
        elif calls:
            outcome["pendingToolCallIds"] = calls
        return {
            "type": "RUN_FINISHED",
            **self._run(info),
            "outcome": outcome,
            "usage": [_usage(end.bill, (start and start.model) or info.model)],
            "metadata": {"millstream": {"finishReason": end.finish_reason, **_about(end.bill)}},
        }


AG_UI = AGUIDialect()


# -- events ----------------------------------------------------------------------------------------


def _thought_starts(identity: str) -> Iterator[dict[str, Any]]:
    yield {"type": "REASONING_START", "messageId": identity}
    yield {"type": "REASONING_MESSAGE_START", "messageId": identity, "role": "reasoning"}


def _thought_ends(identity: str, thought: Reasoning, api: str) -> Iterator[dict[str, Any]]:
    yield {"type": "REASONING_MESSAGE_END", "messageId": identity}
    kept = {"signature": thought.signature, "redacted": thought.redacted, "extra": thought.extra}
    if said := {name: value for name, value in kept.items() if value}:
        yield _encrypted("message", identity, {"api": api, **said})
    yield {"type": "REASONING_END", "messageId": identity}


def _encrypted(subtype: str, identity: str, value: Mapping[str, Any]) -> dict[str, Any]:
    """What goes back to the provider with the history; to clients it is a text that means nothing."""
    return {
        "type": "REASONING_ENCRYPTED_VALUE",
        "subtype": subtype,
        "entityId": identity,
        "encryptedValue": _json(value).decode(),
    }


def _api(batch: Batch, before: Before) -> str:
    start = before().start or _start(batch)
    return start.api if start is not None else ""


def _start(batch: Batch) -> AnswerStart | None:
    return next((event for event in batch.events if isinstance(event, AnswerStart)), None)


def _calls(batch: Batch, before: Before) -> list[tuple[ToolCall, bool]]:
    """The calls that have ended, in their order, and whether the answer broke off in them."""
    calls = {part.number: (part.content, part.cut) for part in before().of(0) if part.ended}
    calls |= {
        end.part: (end.content, end.cut)
        for end in batch.events
        if isinstance(end, PartEnd) and end.choice == 0
    }
    return [(call, cut) for _, (call, cut) in sorted(calls.items()) if isinstance(call, ToolCall)]


def _usage(bill: Bill, model: str) -> dict[str, Any]:
    usage = bill.usage
    shown: dict[str, Any] = {
        "model": model,
        "inputTokens": usage.prompt_tokens,
        "outputTokens": usage.completion_tokens,
        "totalTokens": usage.total_tokens,
    }
    details = {
        "reasoningTokens": usage.reasoning_tokens,
        "cachedInputTokens": usage.cached_tokens,
        "cacheWriteInputTokens": usage.cache_write_tokens,
    }
    return shown | {name: count for name, count in details.items() if count}


def _about(bill: Bill) -> dict[str, Any]:
    cost = {} if bill.charged_usd is None else {"costUsd": bill.charged_usd}
    return {"source": bill.usage.source, **cost}


def _is_late(call: ToolCall, cut: bool) -> bool:
    """Whether a call ends with its answer, and not at all where that fails. Clients run a call at its end,
    and one that cannot be read with nothing.
    """
    return cut or input_of(call, cut=cut) is None


def _run_error(error: MillstreamError, bill: Bill, model: str) -> dict[str, Any]:
    return {
        "type": "RUN_ERROR",
        "message": error.message,
        "code": error.code,
        "usage": [_usage(bill, model)],
        "metadata": {"millstream": {**_about(bill), "retryable": error.retryable}},
    }


# -- bodies ----------------------------------------------------------------------------------------


def _conversation(fields: Fields) -> Iterator[Message]:
    """The messages, with the context in front as a system's words. Thoughts are messages of their own there;
    here they belong to the answer that follows, or else to the one before. A call that nobody has answered
    cannot go back.
    """
    given = list(fields.objects("messages", read.MAX_MESSAGES))
    if not given:
        raise fields.fault("messages", "is missing")
    roles = [_role(message) for message in given]
    answered = {
        message.text("toolCallId") for message, role in zip(given, roles, strict=True) if role == "tool"
    }
    names: dict[str, str] = {}
    said: list[Message] = []
    thoughts: list[asked.Part] = []
    for message, role in zip(given, roles, strict=True):
        if role == "reasoning":
            thoughts.append(_thought(message))
        elif role == "assistant":
            calls = [_call(call) for call in message.objects("toolCalls", read.MAX_TOOLS)]
            names |= {call.call_id: call.name for call in calls}
            words = [asked.Text(text)] if (text := message.text("content")) else []
            parts = (*thoughts, *words, *(call for call in calls if call.call_id in answered))
            if parts:
                said.append(Message("assistant", parts))
            thoughts = []
        elif role != "activity":  # which is something that the page shows
            _add_thoughts(said, thoughts)
            thoughts = []
            said.append(
                _result(message, names) if role == "tool" else Message(role, tuple(_content(message)))
            )
    _add_thoughts(said, thoughts)
    if not said:
        raise fields.fault("messages", "has nothing that a model can be told")
    if context := _context(fields):
        first = said[0] if said[0].role in ("system", "developer") else None
        if first is None:
            yield Message("system", (asked.Text(context),))
        else:  # some models know one system's message, which is the first
            said[0] = msgspec.structs.replace(first, parts=(*first.parts, asked.Text(f"\n\n{context}")))
    yield from said


def _role(fields: Fields) -> Any:
    role = fields.one_of("role", *_ROLES)
    if role is None:
        raise fields.fault("role", "is missing")
    return role


def _add_thoughts(said: list[Message], thoughts: list[asked.Part]) -> None:
    if not thoughts:
        return
    if said and said[-1].role == "assistant":
        parts = said[-1].parts
        calls = sum(isinstance(part, asked.ToolCall) for part in parts)
        before = parts[: len(parts) - calls]
        said[-1] = msgspec.structs.replace(said[-1], parts=(*before, *thoughts, *parts[len(before) :]))
    else:
        said.append(Message("assistant", tuple(thoughts)))


def _thought(fields: Fields) -> asked.Reasoning:
    text, kept = fields.text("content") or "", fields.text("encryptedValue") or ""
    value = _ours(kept)
    if value is None:
        return asked.Reasoning(text, kept)
    signature, redacted = (word if isinstance(word := value.get(name), str) else "" for name in _SIGNED)
    api, extra = value.get("api"), value.get("extra")
    known = {api: extra} if isinstance(api, str) and isinstance(extra, dict) else {}
    return asked.Reasoning(text, signature, redacted, known)


_SIGNED = ("signature", "redacted")


def _ours(kept: str) -> dict[str, Any] | None:
    """What ``_encrypted`` has written; None where somebody else has."""
    if not kept.startswith("{"):
        return None
    try:
        value = arguments_of(kept)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _call(fields: Fields) -> asked.ToolCall:
    function = fields.inner("function")
    if function is None:
        raise fields.fault("function", "is missing")
    fields.one_of("type", "function")
    return asked.ToolCall(
        fields.needed("id", most=512),
        function.needed("name", most=128),
        function.text("arguments") or "{}",
        _ours(fields.text("encryptedValue") or ""),
    )


def _result(fields: Fields, names: Mapping[str, str]) -> Message:
    call_id = fields.needed("toolCallId", most=512)
    parts = [part for part in _content(fields) if not isinstance(part, asked.Text) or part.text]
    error = fields.text("error")
    if error and not parts:
        parts = [asked.Text(error)]
    name = names.get(call_id)
    return Message("tool", (asked.ToolResult(call_id, tuple(parts), bool(error), name),))


def _content(fields: Fields) -> list[asked.Text | asked.Image | asked.File]:
    value = fields.any("content")
    if isinstance(value, str):
        return [asked.Text(value)]
    if not isinstance(value, list):
        raise fields.fault("content", "has to be text or a list of parts")
    return [_part(part) for part in fields.objects("content", read.MAX_PARTS)]


def _part(fields: Fields) -> asked.Text | asked.Image | asked.File:
    kind = fields.text("type", most=64)
    if kind == "text":
        return asked.Text(fields.needed("text"))
    if kind == "binary":  # of versions before 1.0
        fields.refuse("id", because="files are not kept here; send data or url")
        media_type = fields.needed("mimeType", most=128)
        url = fields.text("url") or f"data:{media_type};base64,{fields.needed('data')}"
        name = fields.text("filename", most=512)
        return asked.Image(url) if media_type.startswith("image/") else asked.File(media_type, url, name)
    if kind not in _MEDIA:
        raise fields.fault("type", f"is none of text, {', '.join(_MEDIA)}")
    source = fields.inner("source")
    if source is None:
        raise fields.fault("source", "is missing")
    if source.one_of("type", "data", "url", "file") == "file":
        raise source.fault("type", "files are not kept here; send data or url")
    value = source.needed("value")
    media_type = source.text("mimeType", most=128) or _MEDIA[kind]
    url = value if source.any("type") == "url" else f"data:{media_type};base64,{value}"
    return asked.Image(url) if kind == "image" else asked.File(media_type, url)


def _tool(fields: Fields) -> asked.Tool:
    return asked.Tool(
        fields.needed("name", most=128), fields.text("description"), fields.mapping("parameters")
    )


def _context(fields: Fields) -> str:
    """What the page tells of itself, a line each."""
    told = [
        f"{about.text('description') or 'context'}: {about.text('value') or ''}"
        for about in fields.objects("context", _MAX_CONTEXTS)
    ]
    return "\n".join(told)


def _either(first: Any, second: Any) -> Any:
    return second if first is None else first
