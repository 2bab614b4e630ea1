"""The provider for every endpoint that speaks OpenAI's Responses API.

Facts: https://platform.openai.com/docs/api-reference/responses, and what llama.cpp leaves out of it
(spec/dialects.md): numbers of events, items and parts. So an item is what was added last, unless an event
names another one.

1. The end is ``response.completed`` or ``response.incomplete``, nothing else.
2. A text, a thought or a call that comes whole with the end of its item counts like one that came in pieces.
3. A thought goes out with its item's id, and with what only its provider can read as its signature: both are
   wanted back with the history, and together. The signature says whose it is, because another vendor's is
   refused. A thought that is no summary, but what the model has thought, says so in its ``type``.
4. Nothing is kept at the provider (``store`` is false).
"""

from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec
from msgspec import Struct

from millstream import crossing, data_urls
from millstream import prompt as asked
from millstream.errors import RequestRefused, UpstreamError
from millstream.events import (
    AnswerStart,
    File,
    Reasoning,
    ReasoningDelta,
    RefusalDelta,
    Source,
    Text,
    TextDelta,
)
from millstream.prompt import RAW_THOUGHT, RESPONSES_SEAL, Message, Prompt
from millstream.providers import (
    Finish,
    PartBreak,
    PartOpen,
    Produced,
    ToolCallPiece,
    UsageReport,
    media,
    reading,
)
from millstream.providers.endings import failure, finish_reason, reported_error
from millstream.providers.extra import merged
from millstream.providers.upstream import Upstream, tolerant_json
from millstream.sse import Message as Sent
from millstream.usage import Usage

_API = "responses"
_MAX_TOKENS = 10_000_000  # no answer is longer; a larger count is nonsense

_OF_ANSWER = ("service_tier",)  # what an answer says of itself that no other format has
_OF_PICTURE = ("id", "action", "background", "output_format", "quality", "revised_prompt", "size")
_SUMMARY_DELTA = "response.reasoning_summary_text.delta"
_RAW_DELTA = "response.reasoning_text.delta"
_INCOMPLETE = {"incomplete": "length", "max_messages": "length", "steered": "stop"}


class ResponsesProvider:
    """``extra`` is merged into every request."""

    api = _API
    refused = ("stop", "seed", "top_k")

    def __init__(
        self, name: str, base_url: str, upstream: Upstream, *, extra: Mapping[str, Any] | None = None
    ) -> None:
        self._name = name
        self._base_url = base_url.rstrip("/")
        self._upstream = upstream
        self._extra = dict(extra or {})

    def stream(self, prompt: Prompt, model: str) -> AsyncGenerator[Sequence[Produced]]:
        url = f"{self._base_url}/responses"
        return reading.answer(Reading(self._name), self._upstream, url, partial(self._body, prompt, model))

    async def models(self) -> list[str]:
        listing = await self._upstream.get_json(f"{self._base_url}/models", timeout_seconds=3)
        match listing:
            case {"data": [*models]}:
                return [name for model in models if isinstance(model, dict) if (name := _text(model, "id"))]
            case _:
                raise UpstreamError(f"provider '{self._name}' answered GET /models in an unknown form")

    async def close(self) -> None:
        await self._upstream.close()

    def _body(self, prompt: Prompt, model: str) -> bytes:
        if prompt.choices > 1:
            raise RequestRefused(f"provider '{self._name}' gives one answer to a prompt: leave out n")
        return msgspec.json.encode(merged(body(prompt), self._extra) | {"model": model, "stream": True})


# -- requests --------------------------------------------------------------------------------------

# Fields of a prompt that have the same meaning here -> their names.
_SAME = {
    "temperature": "temperature",
    "top_p": "top_p",
    "parallel_tool_calls": "parallel_tool_calls",
    "metadata": "metadata",
}
_LEAST_TOKENS = 16  # a limit below is refused
_LONGEST_CALL_ID = 64


def body(prompt: Prompt) -> dict[str, Any]:
    """Without the model, and without what says that a stream is wanted. ``stop``, ``seed`` and ``top_k`` have
    no place here.
    """
    extra = crossing.known(prompt.extra, _API)
    sent: dict[str, Any] = {
        **{name: value for field, name in _SAME.items() if (value := getattr(prompt, field)) is not None},
        **extra,
        "store": False,
    }
    if prompt.max_tokens is not None:
        sent["max_output_tokens"] = max(prompt.max_tokens, _LEAST_TOKENS)
    messages = prompt.messages
    if messages and messages[0].role == "system" and _is_text(messages[0]):
        sent["instructions"] = messages[0].text
        messages = messages[1:]
    sent["input"] = [item for message in media.shown_by_users(messages) for item in _items(message)]
    if prompt.user is not None:  # who it is, a browser token may have said, and not the body
        name = "safety_identifier" if "safety_identifier" in prompt.extra_of(_API) else "user"
        sent[name] = asked.short_user(prompt.user)
    if prompt.reasoning_effort is not None:
        sent["reasoning"] = {"effort": prompt.reasoning_effort, **extra.get("reasoning", {})}
    if prompt.output is not None:
        sent["text"] = {"format": _format(prompt.output), **extra.get("text", {})}
    if prompt.tools:
        sent["tools"] = list(map(_tool, prompt.tools))
    if isinstance(prompt.tool_choice, asked.NamedTool):
        sent["tool_choice"] = {"type": "function", "name": prompt.tool_choice.name}
    elif prompt.tool_choice is not None:
        sent["tool_choice"] = prompt.tool_choice
    return sent


def _is_text(message: Message) -> bool:
    return all(isinstance(part, asked.Text) for part in message.parts)


def _items(message: Message) -> Iterator[dict[str, Any]]:
    """A message as items: what is said in one is one; each thought, call and result is one of its own."""
    content: list[dict[str, Any]] = []
    phase: Any = None

    def said() -> Iterator[dict[str, Any]]:
        if content:
            more = {} if phase is None else {"phase": phase}
            yield {"type": "message", "role": message.role, "content": content.copy(), **more}
            content.clear()

    for part in message.parts:
        match part:
            case asked.Reasoning():
                yield from said()
                if thought := _reasoning(part):
                    yield thought
            case asked.ToolCall():
                yield from said()
                yield {
                    "type": "function_call",
                    "call_id": _call_id(part.call_id),
                    "name": part.name,
                    "arguments": part.arguments,
                }
            case asked.ToolResult():
                output: Any = [_part(inner, "user") for inner in part.parts]
                if all(isinstance(inner, asked.Text) for inner in part.parts):
                    output = "".join(inner.text for inner in part.parts if isinstance(inner, asked.Text))
                yield {"type": "function_call_output", "call_id": _call_id(part.call_id), "output": output}
            case _:
                new = part.extra.get(_API, {}).get("phase") if isinstance(part, asked.Text) else None
                if new != phase:
                    yield from said()
                    phase = new
                content.append(_part(part, message.role))
    yield from said()


def _call_id(given: str) -> str:
    return given if len(given) <= _LONGEST_CALL_ID else asked.short_id("call", given)


def _reasoning(thought: asked.Reasoning) -> dict[str, Any] | None:
    """A thought as its item came; None for one of another API, or without what the provider needs of it."""
    item = dict(thought.extra.get(_API, {}))
    if item.get("type") == RAW_THOUGHT:
        item |= {"summary": [], "content": [{"type": RAW_THOUGHT, "text": thought.text}]}
    item["type"] = "reasoning"
    seal = thought.signature or thought.redacted
    if seal.startswith(RESPONSES_SEAL):
        summary = [{"type": "summary_text", "text": thought.text}] if thought.text else []
        return {"summary": summary, **item, "encrypted_content": seal.removeprefix(RESPONSES_SEAL)}
    return item if item.get("content") and not seal else None


def _part(part: asked.Part, role: str) -> dict[str, Any]:
    extra = {} if isinstance(part, asked.Refusal) else crossing.known(part.extra, _API)
    return _shown(part, role) | {name: value for name, value in extra.items() if name != "phase"}


def _shown(part: asked.Part, role: str) -> dict[str, Any]:
    match part:
        case asked.Text():
            return {"type": "output_text" if role == "assistant" else "input_text", "text": part.text}
        case asked.Refusal():
            return {"type": "refusal", "refusal": part.text}
        case asked.Image():
            return {"type": "input_image", "image_url": part.url, "detail": part.detail or "auto"}
        case asked.File() if part.media_type.startswith("audio/"):
            held = data_urls.held_by(part.url)
            if held is None:
                raise RequestRefused("this model's provider takes sound as data, not by a URL")
            sound = {"data": held.data, "format": media.sound_format(part.media_type)}
            return {"type": "input_audio", "input_audio": sound}
        case asked.File() if data_urls.held_by(part.url) is not None:
            return {"type": "input_file", "file_data": part.url, "filename": part.name or "file"}
        case asked.File():
            return {"type": "input_file", "file_url": part.url}
        case _:
            raise TypeError(part)


def _tool(tool: asked.Tool) -> dict[str, Any]:
    """Nothing said of ``strict`` is false in every other API, and true in this one."""
    extra = tool.extra.get(_API, {})
    strict = tool.strict if tool.strict is not None or "strict" in extra else False
    described = {} if tool.description is None else {"description": tool.description}
    return {
        **extra,
        "type": "function",
        "name": tool.name,
        "parameters": tool.parameters,
        "strict": strict,
        **described,
    }


def _format(output: asked.OutputFormat) -> dict[str, Any]:
    if output.schema is None:
        return {"type": "json_object"}
    given = {"description": output.description, "strict": output.strict}
    more = {name: value for name, value in given.items() if value is not None}
    return {"type": "json_schema", "name": output.name, "schema": output.schema, **more}


# -- answers ---------------------------------------------------------------------------------------


class _Event(Struct, gc=False):
    """What an event can say. Any field may be missing; only what is read has to be what it should be."""

    type: str = ""
    delta: Any = None
    item_id: Any = None
    output_index: Any = None
    content_index: Any = None
    summary_index: Any = None
    item: Any = None
    annotation: Any = None
    logprobs: Any = None
    response: Any = None
    object: Any = None


_decode = msgspec.json.Decoder(_Event).decode
_decode_anything = msgspec.json.Decoder().decode


def _event(data: bytes) -> _Event:
    """What an event says. Raises ``ValueError``."""
    try:
        return _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return msgspec.convert(tolerant_json(data), _Event)


class _Call:
    """A tool call by its ``index`` among those of the answer."""

    __slots__ = ("has_arguments", "index")

    def __init__(self, index: int) -> None:
        self.index = index
        self.has_arguments = False


class Reading(reading.Reading):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._has_begun = False
        self._item: dict[str, Any] = {}  # the last one that was added
        self._before_item = 0  # the contents until then
        self._spoken: set[tuple[str, object]] = set()  # items that have said something, by all their names
        self._part: tuple[str, object, object] | None = None  # the open one of prose
        self._calls: list[_Call] = []
        self._calls_by: dict[object, _Call] = {}  # whatever names them
        self._sources: list[Source] = []  # of the message that is not whole yet
        self._characters = 0  # of all text until now
        self._before_part = 0  # of it

    def _message(self, message: Sent, produced: list[Produced]) -> None:
        if message.data[:1] != b"{":  # [DONE], and whatever keeps a connection open
            return
        try:
            event = _event(message.data)
        except ValueError as error:
            raise UpstreamError(f"provider '{self._name}' sent an event that cannot be read") from error
        match event.type or message.event:
            case "response.output_text.delta":
                self._text(event, produced)
            case "response.refusal.delta":
                self._spoken |= _spoken("message", event)
                self._say(RefusalDelta(self._words(event)), produced)
            case "response.reasoning_summary_text.delta" | "response.reasoning_text.delta":
                place = event.summary_index if event.content_index is None else event.content_index
                self._open(event.type, event, place, produced)
                self._say(ReasoningDelta(self._words(event)), produced)
            case "response.function_call_arguments.delta":
                self._arguments(self._call(event), self._words(event), produced)
            case "response.output_item.added":
                self._added(event, produced)
            case "response.output_text.annotation.added":
                self._sources += _sources([event.annotation], self._before_part)
            case "response.output_item.done":
                self._done(event, produced)
            case "response.created" | "response.in_progress" | "response.queued":
                self._begin(event.response, produced)
            case "response.completed" | "response.incomplete" | "response.failed":
                self._end(event.response, produced)
            case "error":
                self._raise_error(message.data)
            case "message" if event.object == "response":  # the whole answer, though a stream was asked for
                self._end(reading.decoded(message.data), produced)
            case "message":
                self._raise_error(message.data)
            case _:
                pass  # what nobody here knows or needs

    def _begin(self, response: object, produced: list[Produced]) -> None:
        if self._has_begun or not isinstance(response, dict):
            return
        self._has_begun = True
        extra = {name: response[name] for name in _OF_ANSWER if response.get(name) is not None}
        model = _text(response, "model")
        produced.append(AnswerStart(_API, _text(response, "id"), model, extra=extra or None))

    def _text(self, event: _Event, produced: list[Produced]) -> None:
        self._open(event.type, event, event.content_index, produced)
        tokens = event.logprobs if isinstance(event.logprobs, list) else []
        # Kept as Chat Completions has them.
        extra = {"logprobs": {"content": tokens, "refusal": None}} if tokens else None
        words = self._words(event)
        self._characters += len(words)
        self._say(TextDelta(words, extra=extra), produced)

    def _open(self, kind: str, event: _Event, place: object, produced: list[Produced]) -> None:
        """A new part, where an event belongs to another one than the last."""
        identity = event.item_id if isinstance(event.item_id, str) else _text(self._item, "id")
        # By its number where it has one: GitHub Copilot gives every event of an item another id.
        part = (kind, identity if event.output_index is None else event.output_index, place)
        if part == self._part:
            return
        self._part = part
        of = "message" if kind == "response.output_text.delta" else "reasoning"
        self._spoken |= _spoken(of, event) | {(of, identity)}
        of_item = {"id": identity}
        if _text(self._item, "id") == identity and (phase := _text(self._item, "phase")):
            of_item["phase"] = phase
        if kind == _RAW_DELTA:
            of_item["type"] = RAW_THOUGHT
        extra = {name: value for name, value in of_item.items() if value} or None
        is_text = kind == "response.output_text.delta"
        if is_text:
            self._before_part = self._characters
        produced.append(PartOpen(Text(extra) if is_text else Reasoning(extra=extra)))

    def _say(self, item: TextDelta | ReasoningDelta | RefusalDelta, produced: list[Produced]) -> None:
        if item.text:
            self.contents += 1
            produced.append(item)

    def _added(self, event: _Event, produced: list[Produced]) -> None:
        self._item = event.item if isinstance(event.item, dict) else {}
        self._before_item = self.contents
        self._part = None
        produced += self._flush_sources()
        if _text(self._item, "type") == "function_call":
            self._start_call(event, produced)

    def _start_call(self, event: _Event, produced: list[Produced]) -> _Call:
        item = event.item
        call_id, name = _text(item, "call_id") or _text(item, "id"), _text(item, "name")
        if not call_id or not name:
            raise UpstreamError(f"provider '{self._name}' sent a tool call without an id or a name")
        call = _Call(len(self._calls))
        self._calls.append(call)
        self._calls_by |= dict.fromkeys(_names(event), call)
        self.contents += 1
        produced.append(ToolCallPiece(call.index, "", call_id, name))
        self._arguments(call, _text(item, "arguments"), produced)
        return call

    def _call(self, event: _Event) -> _Call | None:
        """The call that an event names, or the last one where it names none."""
        names = _names(event)
        if not names:
            return self._calls[-1] if self._calls else None
        return next((self._calls_by[name] for name in names if name in self._calls_by), None)

    def _arguments(self, call: _Call | None, arguments: str, produced: list[Produced]) -> None:
        if call is None:
            raise UpstreamError(f"provider '{self._name}' sent arguments of no tool call")
        if arguments:
            call.has_arguments = True
            self.contents += 1
            produced.append(ToolCallPiece(call.index, arguments))

    def _done(self, event: _Event, produced: list[Produced]) -> None:
        """An item is whole. It says here what it has not said in pieces."""
        item = event.item if isinstance(event.item, dict) else {}
        # Some servers say of all items that they are whole behind the last one.
        has_spoken = not self._spoken.isdisjoint(_spoken(_text(item, "type"), event))
        is_new = self.contents == self._before_item and not has_spoken
        match _text(item, "type"):
            case "message":
                self._message_done(item, produced, is_new=is_new)
            case "reasoning":
                self._reasoning_done(event, item, produced, is_new=is_new)
            case "function_call":
                call = self._call(event) or self._start_call(event, produced)
                if not call.has_arguments:
                    self._arguments(call, _text(item, "arguments"), produced)
                produced.append(PartBreak(index=call.index))
            case "image_generation_call" if image := _text(item, "result"):
                media_type = f"image/{_text(item, 'output_format') or 'png'}"
                self.contents += 1
                extra = {name: said for name in _OF_PICTURE if (said := _text(item, name))}
                produced.append(File(media_type, f"data:{media_type};base64,{image}", extra or None))
            case _:
                pass
        if self._part is None or not (names := _names(event)) or self._part[1] in names:
            self._before_item = self.contents
            self._part = None

    def _message_done(self, item: dict[str, Any], produced: list[Produced], *, is_new: bool) -> None:
        if is_new:
            self._item = item
        parts = _objects(item, "content")
        for place, part in enumerate(parts):
            if is_new and (text := _text(part, "text")):
                whole = _Event("response.output_text.delta", text, content_index=place)
                whole.logprobs = part.get("logprobs")
                self._text(whole, produced)
            if is_new and (refusal := _text(part, "refusal")):
                self._say(RefusalDelta(refusal), produced)
        if not self._sources:
            before = self._characters - sum(len(_text(part, "text")) for part in parts)
            for part in parts:
                self._sources += _sources(part.get("annotations"), before)
                before += len(_text(part, "text"))
        produced += self._flush_sources()

    def _reasoning_done(
        self, event: _Event, item: dict[str, Any], produced: list[Produced], *, is_new: bool
    ) -> None:
        if is_new:
            self._item = item
            for name, kind in (("summary", _SUMMARY_DELTA), ("content", _RAW_DELTA)):
                for place, part in enumerate(_objects(item, name)):
                    self._open(kind, _Event(), place, produced)
                    self._say(ReasoningDelta(_text(part, "text")), produced)
        sealed, identity = _text(item, "encrypted_content"), _text(item, "id")
        sealed = f"{RESPONSES_SEAL}{sealed}" if sealed else ""
        if self._part is not None and self._part[0] != "response.output_text.delta":
            produced.append(PartBreak(Reasoning(sealed)))
        elif sealed:
            self.contents += 1
            produced.append(Reasoning(redacted=sealed, extra={"id": identity} if identity else None))

    def _flush_sources(self) -> list[Source]:
        sources, self._sources = self._sources, []
        return sources

    def _end(self, response: object, produced: list[Produced]) -> None:
        response = response if isinstance(response, dict) else {}
        self._begin(response, produced)
        if not self.contents:
            for item in _objects(response, "output"):
                event = _Event(item=item)
                self._added(event, produced)
                self._done(event, produced)
        produced += self._flush_sources()
        report = usage_report(response.get("usage"))
        if report is not None:
            produced.append(report)
        status = _text(response, "status")
        if response.get("error") or status == "failed":
            raise failure(self._name, response.get("error") or {})
        details = response.get("incomplete_details")
        word = status or "completed"
        if isinstance(details, dict):
            word = _text(details, "reason") or word
        reason = finish_reason(self._name, word, _INCOMPLETE) or "stop"
        if self._calls and reason == "stop":
            reason = "tool_calls"
        usage = None if report is None else report.usage.sourced("provider_final")
        produced.append(Finish(reason, usage, word))
        self.is_done = True

    def _raise_error(self, data: bytes) -> None:
        try:
            said = _decode_anything(data)
        except (msgspec.DecodeError, RecursionError):  # what was not read before
            said = {}
        failed = reported_error(said)
        if failed is None:
            raise UpstreamError(f"provider '{self._name}' sent an event without a type")
        raise failure(self._name, failed)

    def _words(self, event: _Event) -> str:
        if isinstance(event.delta, str):
            return event.delta
        raise UpstreamError(f"provider '{self._name}' sent an event that cannot be read")


def usage_report(raw: object) -> UsageReport | None:
    """What the usage object ``raw`` says; None where it counts nothing."""
    if not isinstance(raw, dict):
        return None
    read, written = _count(raw, "input_tokens"), _count(raw, "output_tokens")
    if read is None or written is None or not (read or written):
        return None
    of_input, of_output = raw.get("input_tokens_details"), raw.get("output_tokens_details")
    cached = min(_count(of_input, "cached_tokens") or 0, read)
    usage = Usage(
        read,
        written,
        "provider_partial",
        cached,
        min(_count(of_output, "reasoning_tokens") or 0, written),
        min(_count(of_input, "cache_write_tokens") or 0, read - cached),
    )
    return UsageReport(usage.with_media(_media(of_input), _media(of_output)), raw)


def _media(details: object) -> tuple[int, int]:
    """Tokens of sound and of pictures."""
    return _count(details, "audio_tokens") or 0, _count(details, "image_tokens") or 0


def _count(value: object, name: str) -> int | None:
    found = value.get(name) if isinstance(value, dict) else None
    if isinstance(found, float) and found.is_integer():
        found = int(found)
    is_count = isinstance(found, int) and not isinstance(found, bool) and 0 <= found <= _MAX_TOKENS
    return found if is_count else None


def _text(value: Mapping[str, Any], name: str) -> str:
    found = value.get(name)
    return found if isinstance(found, str) else ""


def _objects(value: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    found = value.get(name)
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def _names(event: _Event) -> list[object]:
    """By what an event tells a call from others: the number of its item, its id, or the call's."""
    item = event.item if isinstance(event.item, dict) else {}
    names = (event.item_id, _text(item, "id"), _text(item, "call_id"), event.output_index)
    return [name for name in names if isinstance(name, (str, int)) and name != ""]


def _spoken(kind: str, event: _Event) -> set[tuple[str, object]]:
    return {(kind, name) for name in _names(event)}


def _sources(annotations: object, before: int) -> Iterator[Source]:
    """Those of a part that has so many characters ``before`` it."""
    for annotation in annotations if isinstance(annotations, list) else ():
        match annotation:
            case {"type": "url_citation", "url": str(url)} if url:
                start, end = _count(annotation, "start_index"), _count(annotation, "end_index")
                places = (None if place is None else before + place for place in (start, end))
                yield Source(url, _text(annotation, "title"), *places)
            case _:
                pass
