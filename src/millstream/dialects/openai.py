"""The ``openai`` dialect: Chat Completions, as OpenAI's SDKs and all that follow them read it.

Facts: https://platform.openai.com/docs/api-reference/chat-streaming, the openapi document of OpenAI, and the
parsers of openai-python and openai-node (spec/dialects.md). Chunks have no ids of ours: those clients take a
comment behind an id for an event.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from millstream import prompt as asked
from millstream import sse
from millstream.answer import Answer, Part
from millstream.bodies import read_object
from millstream.dialects import Ask, Before, choice_of_parts, openai_errors
from millstream.dialects import fields as read
from millstream.dialects.fields import Fields
from millstream.dialects.limit_headers import openai_limits
from millstream.errors import Draining, MillstreamError
from millstream.events import (
    AnswerStart,
    Batch,
    ChoiceEnd,
    Content,
    Event,
    File,
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
)
from millstream.prompt import Message, OutputFormat, Prompt
from millstream.usage import Usage

_API = "openai"
_MAX_CHOICES = 8

_json = msgspec.json.Encoder().encode

# What is passed on as it is to providers of this API: sampling, and what OpenAI and servers like its own have
# beside that. Nothing in it runs anything or sends data elsewhere.
_PASSED_ON = (
    "cache_control",
    "frequency_penalty",
    "logit_bias",
    "logprobs",
    "moderation",
    "prediction",
    "presence_penalty",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "reasoning",
    "safety_identifier",
    "service_tier",
    "thinking",
    "top_logprobs",
    "verbosity",
)

# Of parts and tools. The first is Anthropic's, and clients of LiteLLM and OpenRouter have it in this format.
_MARKS = ("cache_control", "prompt_cache_breakpoint")

# Parts of reasoning, an extension of OpenRouter and others; where those that come in pieces have their text.
_DETAILS = "reasoning_details"
_DETAILS_TEXT = {"reasoning.text": "text", "reasoning.summary": "summary"}

# Of ours that these clients do not know -> theirs.
_REASONS = {"cancelled": "stop", "budget_exceeded": "length"}


class OpenAIDialect:
    """``include_usage`` is whether the body asked for a last chunk with the usage; ``functions`` whether it
    has those in place of tools, as before there were any: its answer calls one function at a time.
    """

    name = "openai"
    headers: Mapping[str, str] = {"Content-Type": "text/event-stream; charset=utf-8"}
    request_id_header = "x-request-id"
    beta_header: str | None = None
    limit_headers = staticmethod(openai_limits)
    ping = sse.PING
    preamble = b""
    tells_cuts = False
    looks_back = True

    def __init__(self, *, include_usage: bool = False, functions: bool = False) -> None:
        self._include_usage = include_usage
        self._functions = functions

    def parse(self, body: bytes) -> Ask:
        fields = Fields(read_object(body))
        options = fields.inner("stream_options") or Fields({})
        include_usage = bool(options.flag("include_usage"))
        options.flag("include_obfuscation")  # nothing is hidden here, either way
        fields.refuse("store", because="stored completions are not kept here; leave it out")
        fields.refuse("web_search_options", because="hosted tools are not run here")
        fields.refuse("audio", because="audio answers are not carried")
        if "audio" in fields.texts("modalities", 8):
            raise fields.fault("modalities", "audio answers are not carried")
        tools, choice = _tools(fields)
        functions = not tools and "functions" in fields
        if functions:
            tools, choice = _functions(fields)
        prompt = Prompt(
            tuple(_messages(fields)),
            read.model(fields),
            tools,
            choice,
            False if functions else fields.flag("parallel_tool_calls"),
            _max_tokens(fields),
            fields.number("temperature", 0, 2),
            fields.number("top_p", 0, 1),
            fields.count("top_k", 0, 1_000_000),
            fields.texts("stop", 16),
            fields.count("seed", -(2**63), 2**63 - 1),
            _output(fields),
            fields.one_of("reasoning_effort", *asked.EFFORTS),  # type: ignore[arg-type]
            choices=fields.count("n", 1, _MAX_CHOICES) or 1,
            user=read.user(fields),
            metadata=read.metadata(fields),
            extra=_known(fields.these(*_PASSED_ON)),
        )
        if not prompt.messages:
            raise fields.fault("messages", "is missing")
        whole = not fields.flag("stream")
        policy = read.on_disconnect(fields)
        reply = OpenAIDialect(include_usage=include_usage, functions=functions)
        return Ask(prompt, policy, whole, fields.ignored(), reply)

    def encode(self, info: StreamInfo, batch: Batch, before: Before) -> bytes:
        answer = before()
        start, kept = answer.start, answer.kept(_API)
        if start is None:
            start = next((event for event in batch.events if isinstance(event, AnswerStart)), None)
        if kept is not None and kept[0] is start:
            _, head, foot, begun, beside = kept
        else:
            head, foot = self._around(info, start)
            begun = 1 + max([-1, *(part.choice for part in answer.parts), *answer.ends])
            beside = {}
            for part in answer.parts:
                _lay_beside(beside, part.choice, part.content)
        text_head = b'%b"choices":[{"index":0,"delta":{"content":' % head
        text_foot = b'},"logprobs":null,"finish_reason":null}]%b' % foot
        choices = choice_of_parts(info, batch, before)
        frames: list[bytes] = []
        for event in batch.events:
            # Nearly every event is a piece of text; its chunk is put together by hand.
            if type(event) is TextDelta and event.extra is None and not choices:
                frames.append(text_head + _json(event.text) + text_foot)
                continue
            if isinstance(event, (PartStart, WholePart, ChoiceEnd)):
                # In the order of their indexes, by which openai-python looks them up in a list.
                frames += [_chunk(head, choice, _ROLE, foot) for choice in range(begun, event.choice + 1)]
                begun = max(begun, event.choice + 1)
            if isinstance(event, (ChoiceEnd, StreamEnd, StreamFailed)):
                ended = getattr(event, "choice", 0)
                for name, found in beside.pop(ended, {}).items():
                    frames.append(_chunk(head, ended, _json({name: found}), foot))
            match event:
                case StreamEnd() if event.because:
                    frames.append(_failure(Draining(_STOPPED)))
                case StreamEnd():
                    if not begun:
                        frames.append(_chunk(head, 0, _ROLE, foot))
                    frames.append(self._last(head, 0, event.finish_reason, foot))
                    if self._include_usage:
                        usage = _json(_usage(start, event))
                        frames.append(head + b'"choices":[],"usage":%b}\n\n' % usage)
                    frames.append(b"data: [DONE]\n\n")
                case StreamFailed():
                    frames.append(_failure(event.error))
                case ChoiceEnd():
                    frames.append(self._last(head, event.choice, event.finish_reason, foot))
                case WholePart():
                    _lay_beside(beside, event.choice, event.content)
                case _:
                    shown = self._said(_delta(event))
                    if shown is not None:
                        shown |= _details_of(event)
                        choice = choices.get(getattr(event, "part", 0), 0)
                        frames.append(_chunk(head, choice, _json(shown), foot, getattr(event, "extra", None)))
        answer.keep(_API, (start, head, foot, begun, beside), len(batch.events))
        return sse.one_line(b"".join(frames))

    def answer(self, info: StreamInfo, answer: Answer) -> bytes:
        end, start = answer.terminal, answer.start
        assert isinstance(end, StreamEnd)
        reasons = {0: end.finish_reason, **answer.ends}
        shown: dict[str, Any] = {
            **_of_answer(info, start, "chat.completion"),
            "choices": [
                {
                    "index": choice,
                    "message": self._said(_whole_message(answer, choice)),
                    "logprobs": _logprobs(answer.of(choice)),
                    "finish_reason": self._reason(reason),
                }
                for choice, reason in sorted(reasons.items())
            ],
            "usage": _usage(start, end),
        }
        return sse.one_line(_json(shown))

    def goodbye(self, retry_milliseconds: int | None) -> bytes:
        # Without an error these clients take the end of the connection for the end of the answer.
        return _failure(Draining("the connection ends before its answer; follow the stream where it is"))

    def error(self, error: MillstreamError, request_id: str) -> tuple[int, bytes]:
        return openai_errors.status_of(error), sse.one_line(_json({"error": openai_errors.shown(error)}))

    def _around(self, info: StreamInfo, start: AnswerStart | None) -> tuple[bytes, bytes]:
        """What stands in every chunk before its choices and after them."""
        head = _json(_of_answer(info, start, "chat.completion.chunk"))
        return b"data: %b," % head[:-1], b',"usage":null}\n\n' if self._include_usage else b"}\n\n"

    def _said(self, shown: dict[str, Any] | None) -> dict[str, Any] | None:
        """What a delta or a message says, in the words of who reads it."""
        if not self._functions or shown is None or "tool_calls" not in shown:
            return shown
        call, *_ = shown.pop("tool_calls")
        if call.get("index", 0) == 0:
            shown["function_call"] = call["function"]
        return shown or None

    def _reason(self, reason: str) -> str:
        if self._functions and reason == "tool_calls":
            return "function_call"
        return _REASONS.get(reason, reason)

    def _last(self, head: bytes, choice: int, reason: str, foot: bytes) -> bytes:
        word = _json(self._reason(reason))
        return b'%b"choices":[{"index":%d,"delta":{},"logprobs":null,"finish_reason":%b}]%b' % (
            head,
            choice,
            word,
            foot,
        )


OPENAI = OpenAIDialect()

_STOPPED = "the server is shutting down; the answer is not whole"
_ROLE = b'{"role":"assistant","content":""}'


# -- frames ----------------------------------------------------------------------------------------


def _of_answer(info: StreamInfo, start: AnswerStart | None, kind: str) -> dict[str, Any]:
    """What every chunk says of the answer: as its provider says it, where that speaks this format."""
    theirs = start is not None and start.api == _API
    extra = dict(start.extra or {}) if start is not None and theirs else {}
    return {
        "id": (theirs and start and start.response_id) or f"chatcmpl-{info.stream_id.removeprefix('str_')}",
        "object": kind,
        "created": extra.pop("created", int(info.created_at)),
        "model": (start and start.model) or info.model,
        **extra,
    }


def _chunk(
    head: bytes, choice: int, delta: bytes, foot: bytes, extra: Mapping[str, Any] | None = None
) -> bytes:
    said = b"null" if extra is None or "logprobs" not in extra else _json(extra["logprobs"])
    return b'%b"choices":[{"index":%d,"delta":%b,"logprobs":%b,"finish_reason":null}]%b' % (
        head,
        choice,
        delta,
        said,
        foot,
    )


def _delta(event: Event) -> dict[str, Any] | None:
    """What an event adds to its choice; None where it adds nothing."""
    match event:
        case TextDelta():
            return {"content": event.text}
        case ReasoningDelta():
            return {"reasoning_content": event.joined}
        case RefusalDelta():
            return {"refusal": event.text}
        case PartStart(content=ToolCall() as call):
            return {"tool_calls": [{"index": call.index, **_call(call)}]}
        case ToolCallDelta():
            piece: dict[str, Any] = {"index": event.index, "function": {"arguments": event.arguments}}
            return {"tool_calls": [piece | _extra_content(event)]}
        case _:
            return None


def _lay_beside(beside: dict[int, dict[str, list[Any]]], choice: int, content: Content) -> None:
    """Keeps a picture or a source for the end of its choice, where all of them are one list: openai-python
    refuses a second list, and openai-node takes the last one for all.
    """
    match content:
        case File():
            beside.setdefault(choice, {}).setdefault("images", []).append(_image(content))
        case Source():
            beside.setdefault(choice, {}).setdefault("annotations", []).append(_citation(content))
        case _:
            pass


def _details_of(event: Event) -> dict[str, Any]:
    """Parts of reasoning in their provider's words, which it wants back with the history."""
    extra = getattr(event, "extra", None) or {}
    return {_DETAILS: extra[_DETAILS]} if _DETAILS in extra else {}


def _call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.call_id, "type": "function", "function": function, **_extra_content(call)}


def _extra_content(call: ToolCall | ToolCallDelta) -> dict[str, Any]:
    return {"extra_content": call.extra_content} if call.extra_content else {}


def _image(file: File) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": file.url}}


def _citation(source: Source) -> dict[str, Any]:
    place = {"start_index": source.start or 0, "end_index": source.end or 0}
    cited = {"url": source.url, "title": source.title, **place}
    return {"type": "url_citation", "url_citation": cited}


def _whole_message(answer: Answer, choice: int) -> dict[str, Any]:
    text = answer.text_of(Text, choice)
    refusal = answer.text_of(Refusal, choice) or None
    calls = answer.tool_calls_of(choice)
    contents = [part.content for part in answer.of(choice)]
    shown: dict[str, Any] = {
        "role": "assistant",
        "content": text if text or not (calls or refusal) else None,
        "refusal": refusal,
        "annotations": [_citation(content) for content in contents if isinstance(content, Source)],
    }
    if reasoning := answer.text_of(Reasoning, choice):
        shown["reasoning_content"] = reasoning
    if details := _joined_details(answer.of(choice)):
        shown[_DETAILS] = details
    if calls:
        shown["tool_calls"] = [_call(call) for call in calls]
    if images := [_image(content) for content in contents if isinstance(content, File)]:
        shown["images"] = images
    return shown


def _joined_details(parts: list[Part]) -> list[Any]:
    """Those of all pieces; the pieces of one text are one."""
    joined: list[Any] = []
    for detail in (one for part in parts for extra in part.extras for one in extra.get(_DETAILS, ())):
        match joined[-1:], detail:
            case [{"type": str(before), **first}], {"type": str(kind), **more} if (
                kind == before and first.get("index") == more.get("index") and kind in _DETAILS_TEXT
            ):
                name = _DETAILS_TEXT[kind]
                text = f"{first.get(name) or ''}{more.get(name) or ''}"
                said = {field: value for field, value in more.items() if value is not None}
                joined[-1] = {"type": kind, **first, **said, name: text}
            case _:
                joined.append(detail)
    return joined


def _logprobs(parts: list[Part]) -> dict[str, Any] | None:
    """Those of all pieces, one behind the other."""
    pieces = [extra["logprobs"] for part in parts for extra in part.extras if "logprobs" in extra]
    tokens = [piece for piece in pieces if isinstance(piece, dict)]
    if not tokens:
        return None
    joined: dict[str, list[Any]] = {"content": [], "refusal": []}
    for piece in tokens:
        for name, said in piece.items():
            if isinstance(said, list):
                joined.setdefault(name, []).extend(said)
    return {name: said or None for name, said in joined.items()}


def _usage(start: AnswerStart | None, end: StreamEnd) -> dict[str, Any]:
    """The provider's own object, where it speaks this format and it counts; else ours in this form."""
    usage = end.bill.usage
    shown = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }
    if start is not None and start.api == _API and end.raw_usage and usage.source == "provider_final":
        return {**shown, **_details(usage), **end.raw_usage, **shown}
    return shown | _details(usage)


def _details(usage: Usage) -> dict[str, Any]:
    of_prompt = {"cached_tokens": usage.cached_tokens}
    of_completion = {"reasoning_tokens": usage.reasoning_tokens}
    if usage.prompt_audio_tokens:
        of_prompt["audio_tokens"] = usage.prompt_audio_tokens
    if usage.completion_audio_tokens:
        of_completion["audio_tokens"] = usage.completion_audio_tokens
    return {"prompt_tokens_details": of_prompt, "completion_tokens_details": of_completion}


def _failure(error: MillstreamError) -> bytes:
    return sse.one_line(b"data: %b\n\n" % _json({"error": openai_errors.shown(error)}))


# -- bodies ----------------------------------------------------------------------------------------


def _messages(fields: Fields) -> Iterator[Message]:
    """Calls from before there were tools have no ids: each gets a number, and its result the same."""
    calls = 0
    for message in fields.objects("messages", read.MAX_MESSAGES):
        calls += "function_call" in message
        yield _message(message, f"function_call_{calls}")


def _message(fields: Fields, function_call_id: str) -> Message:
    role = fields.one_of("role", "system", "developer", "user", "assistant", "tool", "function")
    if role is None:
        raise fields.fault("role", "is missing")
    name = fields.text("name", most=128)
    content = _content(fields)
    if role in ("tool", "function"):
        call_id = fields.text("tool_call_id", most=512) if role == "tool" else function_call_id
        if call_id is None:
            raise fields.fault("tool_call_id", "is missing")
        kept = tuple(part for part in content if isinstance(part, (asked.Text, asked.Image, asked.File)))
        return Message("tool", (asked.ToolResult(call_id, kept, name=name),), name)
    if role != "assistant":
        if "content" not in fields:
            raise fields.fault("content", "is missing")
        return Message(role, tuple(content), name)  # type: ignore[arg-type]
    parts: list[asked.Part] = []
    thought = fields.text("reasoning_content") or fields.text("reasoning")
    if thought is not None:
        parts.append(asked.Reasoning(thought))
    parts += content
    parts += [_picture(image, {}) for image in fields.objects("images", read.MAX_PARTS)]
    refusal = fields.text("refusal")
    if refusal and not content:
        parts.append(asked.Refusal(refusal))
    parts += [_tool_call(call) for call in fields.objects("tool_calls", read.MAX_TOOLS)]
    old = fields.inner("function_call")
    if old is not None:
        called = old.needed("name", most=128)
        parts.append(asked.ToolCall(function_call_id, called, old.text("arguments") or ""))
    extra = fields.these(_DETAILS, "extra_content")
    return Message("assistant", tuple(parts), name, {_API: extra} if extra else {})


def _content(fields: Fields) -> list[asked.Part]:
    value = fields.any("content")
    if value is None:
        return []
    if isinstance(value, str):
        return [asked.Text(value, _marks(fields))]
    if not isinstance(value, list):
        raise fields.fault("content", "has to be text or a list of parts")
    return [_part(part) for part in fields.objects("content", read.MAX_PARTS)]


def _part(fields: Fields) -> asked.Part:
    kept = _marks(fields)
    match fields.text("type"):
        case "text" | "input_text" | "output_text":
            return asked.Text(fields.needed("text"), kept)
        case "refusal":
            return asked.Refusal(fields.needed("refusal"))
        case "image_url":
            return _picture(fields, kept)
        case "input_audio":
            audio = fields.inner("input_audio") or Fields({})
            media_type = f"audio/{audio.needed('format', most=32)}"
            return asked.File(media_type, f"data:{media_type};base64,{audio.needed('data')}", extra=kept)
        case "file":
            file = fields.inner("file") or Fields({})
            file.refuse("file_id", because="files are not kept here; send file_data")
            return msgspec.structs.replace(read.document(file), extra=kept)
        case _:
            raise fields.fault("type", "is none of text, image_url, input_audio, file, refusal")


def _picture(fields: Fields, kept: asked.Extra) -> asked.Image:
    if isinstance(url := fields.any("image_url"), str):
        return asked.Image(url, extra=kept)
    image = fields.inner("image_url") or Fields({})
    return asked.Image(image.needed("url"), image.text("detail"), kept)


def _marks(fields: Fields) -> asked.Extra:
    return _known(fields.these(*_MARKS))


def _known(extra: dict[str, Any]) -> asked.Extra:
    """By the APIs that know it."""
    known = {_API: extra} if extra else {}
    if "cache_control" in extra:
        known["anthropic"] = {"cache_control": extra["cache_control"]}
    return known


def _tool_call(fields: Fields) -> asked.ToolCall:
    if fields.one_of("type", "function") is None and "function" not in fields:
        raise fields.fault("function", "is missing")
    function = fields.inner("function") or Fields({})
    return asked.ToolCall(
        fields.needed("id", most=512),
        function.needed("name", most=128),
        function.text("arguments") or "",
        fields.mapping("extra_content"),
    )


def _tool(fields: Fields) -> asked.Tool:
    if fields.text("type") not in ("function", None):
        raise fields.fault("type", "only functions are passed on; hosted and custom tools are not run here")
    function = fields.inner("function")
    if function is None:
        raise fields.fault("function", "is missing")
    return _function(function, _marks(fields))


def _function(function: Fields, marks: asked.Extra = asked.NO_EXTRA) -> asked.Tool:
    return asked.Tool(
        function.needed("name", most=128),
        function.text("description"),
        function.mapping("parameters"),
        function.flag("strict"),
        marks or _marks(function),
    )


def _functions(fields: Fields) -> tuple[tuple[asked.Tool, ...], Any]:
    """What ``_tools`` gives, of a body from before there were tools."""
    tools = tuple(_function(one) for one in fields.objects("functions", read.MAX_TOOLS, are_knobs=True))
    if not isinstance(fields.any("function_call"), dict):
        return tools, fields.one_of("function_call", "none", "auto")
    choice = fields.inner("function_call") or Fields({})
    return tools, asked.NamedTool(choice.needed("name", most=128))


def _tools(fields: Fields) -> tuple[tuple[asked.Tool, ...], Any]:
    """The functions that may be called, and the choice among them."""
    tools = tuple(_tool(tool) for tool in fields.objects("tools", read.MAX_TOOLS, are_knobs=True))
    if not isinstance(fields.any("tool_choice"), dict):
        return tools, fields.one_of("tool_choice", "none", "auto", "required")
    choice = fields.inner("tool_choice") or Fields({})
    if choice.text("type") == "allowed_tools":
        allowed = choice.inner("allowed_tools")
        if allowed is None:
            raise choice.fault("allowed_tools", "is missing")
        names = {_tool(tool).name for tool in allowed.objects("tools", read.MAX_TOOLS)}
        return tuple(tool for tool in tools if tool.name in names), allowed.one_of("mode", "auto", "required")
    function = choice.inner("function")
    if function is None:
        raise fields.fault("tool_choice", "has to be none, auto, required, a function or allowed_tools")
    return tools, asked.NamedTool(function.needed("name", most=128))


def _max_tokens(fields: Fields) -> int | None:
    """By either name; the newer one counts."""
    old = fields.count("max_tokens", 1, read.MAX_TOKENS)
    return fields.count("max_completion_tokens", 1, read.MAX_TOKENS) or old


def _output(fields: Fields) -> OutputFormat | None:
    given = fields.inner("response_format")
    if given is None:
        return None
    kind = given.one_of("type", "text", "json_object", "json_schema")
    if kind == "json_object":  # some servers take a schema there
        return OutputFormat(given.mapping("schema"))
    if kind != "json_schema":
        return None
    schema = given.inner("json_schema")
    if schema is None:
        raise given.fault("json_schema", "is missing")
    return OutputFormat(
        schema.needed_mapping("schema"),
        schema.text("name", most=128) or "answer",
        schema.text("description"),
        schema.flag("strict"),
    )
