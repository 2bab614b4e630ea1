"""The ``responses`` dialect: OpenAI's Responses API, as its SDKs read it.

Facts: https://platform.openai.com/docs/api-reference/responses-streaming, the openapi document of OpenAI, and
the parsers of openai-python and openai-node (spec/dialects.md). Frames have an ``event:`` line and are
numbered from 0 without a gap, which is how those clients resume; they have no ids of ours. There is no
``[DONE]``.

An answer is a list of items there. Texts, refusals and sources that follow each other are one item, a
message. It ends with what follows it, because a source may come after the text that rests on it.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, TypeAlias

import msgspec

from millstream import prompt as asked
from millstream import sse
from millstream.answer import Answer, Part, arguments_of
from millstream.bodies import read_object
from millstream.dialects import Ask, Before, choice_of_parts, openai_errors
from millstream.dialects import fields as read
from millstream.dialects.fields import Fields
from millstream.dialects.limit_headers import openai_limits
from millstream.errors import BadPosition, Draining, MillstreamError
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
    Terminal,
    Text,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    WholePart,
)
from millstream.prompt import RESPONSES_SEAL, Message, NamedTool, OutputFormat, Prompt
from millstream.usage import Usage

_API = "responses"
_MAX_ITEMS = 4096
_MAX_ECHO_BYTES = 2048  # of one field

_json = msgspec.json.Encoder().encode

# What is passed on as it is to providers of this API. Nothing in it runs anything or sends data elsewhere.
_PASSED_ON = (
    "image",
    "include",
    "max_tool_calls",
    "moderation",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "top_logprobs",
    "truncation",
)

# What a response says of the body that it answers, and what it says where that said nothing.
_ECHO: Mapping[str, Any] = {
    "background": False,
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "prompt_cache_key": None,
    "reasoning": {"effort": None, "summary": None},
    "safety_identifier": None,
    "service_tier": None,
    "store": True,
    "temperature": None,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": None,
    "top_p": None,
    "truncation": "disabled",
    "user": None,
}

_Kind: TypeAlias = Literal["message", "reasoning", "function_call", "image_generation_call"]
_PREFIXES: Mapping[_Kind, str] = {
    "message": "msg",
    "reasoning": "rs",
    "function_call": "fc",
    "image_generation_call": "ig",
}

# A thought's signature is shown with the name of its API in front, but for those of this one. A prompt has no
# name before Anthropic's.
_ANTHROPIC_SEAL = "anthropic:"
_NAMED = (_ANTHROPIC_SEAL, "gemini:", RESPONSES_SEAL)

_LIMITS = {"length": "max_output_tokens", "budget_exceeded": "max_output_tokens"}


class ResponsesDialect:
    """``after`` is the number of the last frame that a client has seen, which gets those behind it."""

    name = "responses"
    headers: Mapping[str, str] = {"Content-Type": "text/event-stream; charset=utf-8"}
    request_id_header = "x-request-id"
    beta_header: str | None = None
    limit_headers = staticmethod(openai_limits)
    ping = sse.PING
    preamble = b""
    tells_cuts = True
    looks_back = True

    def __init__(self, *, after: int = -1) -> None:
        self._after = after

    def parse(self, body: bytes) -> Ask:
        fields = Fields(read_object(body))
        fields.refuse(
            "previous_response_id", "conversation", because="no history is kept here; send it in input"
        )
        fields.refuse("prompt", because="prompts are not kept here; send what it says in input")
        fields.refuse("context_management", because="a conversation is not changed here; leave it out")
        (fields.inner("stream_options") or Fields({})).flag("include_obfuscation")
        background, stream = bool(fields.flag("background")), bool(fields.flag("stream"))
        fields.flag("store")  # either way an answer is kept for as long as it can be resumed
        reasoning = fields.inner("reasoning") or Fields({})
        text = fields.inner("text") or Fields({})
        tools, choice, left_out = _tools(fields)
        prompt = Prompt(
            tuple(_messages(fields)),
            read.model(fields),
            tools,
            choice,
            fields.flag("parallel_tool_calls"),
            fields.count("max_output_tokens", 1, read.MAX_TOKENS),
            fields.number("temperature", 0, 2),
            fields.number("top_p", 0, 1),
            output=_output(text),
            reasoning_effort=reasoning.one_of("effort", *asked.EFFORTS),  # type: ignore[arg-type]
            user=read.user(fields, "safety_identifier") or read.user(fields),
            metadata=read.metadata(fields),
            extra=_extra(fields, reasoning, text),
        )
        policy = read.on_disconnect(fields)
        if background and "on_disconnect" not in fields:
            policy = "continue"
        ignored = (*fields.ignored(), *left_out)
        echo = {name: value for name, value in fields.these(*_ECHO).items() if _is_short(value)}
        return Ask(prompt, policy, not stream, ignored, self, background=background, echo=echo)

    def encode(self, info: StreamInfo, batch: Batch, before: Before) -> bytes:
        answer = before()
        encoder: _Encoder | None = answer.kept(_API)
        if encoder is None:
            encoder = _Encoder(info, answer, has_begun=not isinstance(batch.events[0], StreamStart))
        else:
            encoder.go_on(answer)
        others = choice_of_parts(info, batch, before)
        number = encoder.number
        for event in batch.events:
            # Nearly every event is a piece of text.
            if type(event) is TextDelta and not others:
                encoder.add_text(event)
            elif getattr(event, "part", None) not in others and getattr(event, "choice", 0) == 0:
                encoder.add(event)
        answer.keep(_API, encoder, len(batch.events))
        seen = max(0, self._after + 1 - number)
        return sse.one_line(b"".join(encoder.frames[seen:]))

    def check_position(self, info: StreamInfo, so_far: Answer) -> None:
        """Raises ``BadPosition`` where a response that has ended has no such frame. One that goes on may be
        ahead of what is known of it here.
        """
        last = _Encoder(info, so_far, has_begun=True).number  # behind which is only the end
        if so_far.terminal is not None and self._after > last:
            raise BadPosition(f"the response ends at {last}")

    def answer(self, info: StreamInfo, answer: Answer) -> bytes:
        """Also of a stream that still runs, or has failed: the response as far as it is."""
        return sse.one_line(_json(_Encoder(info, answer, has_begun=True).response(answer.terminal)))

    def goodbye(self, retry_milliseconds: int | None) -> bytes:
        # With an ``error`` inside, OpenAI's SDKs raise; without, most programs would overlook it. It has no
        # number, from which a client would go on.
        error = Draining("the connection ends before its answer; resume the response")
        said = {"type": "error", "code": error.code, "message": error.message, "param": None}
        return _frame("error", {**said, "error": openai_errors.shown(error)})

    def error(self, error: MillstreamError, request_id: str) -> tuple[int, bytes]:
        return openai_errors.status_of(error), sse.one_line(_json({"error": openai_errors.shown(error)}))


RESPONSES = ResponsesDialect()


def response_id(stream_id: str) -> str:
    """The id of a stream's response."""
    return f"resp_{stream_id.removeprefix('str_')}"


def stream_id(response_id: str) -> str | None:
    """The stream of a response; None where there is none by that id."""
    return f"str_{response_id[5:]}" if response_id.startswith("resp_") else None


# -- frames ----------------------------------------------------------------------------------------


class _Piece:
    """A part of ours in its item: what it is, and what came of it before this batch and in it."""

    __slots__ = ("annotations", "content", "cut", "earlier", "extras", "item", "later", "place")

    def __init__(self, item: "_Item", place: int, content: Content, earlier: Part | None) -> None:
        self.item = item
        self.place = place  # among the pieces of its item
        self.content = content
        self.cut = False  # the answer broke off in it
        self.annotations: list[dict[str, Any]] = []
        self.earlier = earlier
        self.later: list[str] = []
        self.extras: list[Mapping[str, Any]] = []  # of what came in this batch

    @property
    def text(self) -> str:
        return (self.earlier.text if self.earlier is not None else "") + "".join(self.later)

    @property
    def logprobs(self) -> list[Any]:
        earlier = [] if self.earlier is None else self.earlier.extras
        return [token for extra in (*earlier, *self.extras) for token in _logprobs(extra)]

    def shown(self) -> dict[str, Any]:
        if isinstance(self.content, Refusal):
            return {"type": "refusal", "refusal": self.text}
        if isinstance(self.content, Reasoning):
            return {"type": "summary_text", "text": self.text}
        return {
            "type": "output_text",
            "text": self.text,
            "annotations": self.annotations,
            "logprobs": self.logprobs,
        }


class _Item:
    """An item of the output. ``cut`` is whether the end of the answer came before its own."""

    __slots__ = ("api", "cut", "ended", "id", "index", "kind", "more", "pieces")

    def __init__(self, index: int, kind: _Kind, identity: str, more: Mapping[str, Any], api: str) -> None:
        self.index = index
        self.kind = kind
        self.id = identity
        self.more = more  # what its provider says of it
        self.api = api  # of its provider
        self.pieces: list[_Piece] = []
        self.ended = self.cut = False

    @property
    def status(self) -> str:
        if not self.ended:
            return "in_progress"
        return "incomplete" if self.cut or not self.can_be_read else "completed"

    @property
    def can_be_read(self) -> bool:
        """Whether a call that has ended has arguments that can be read."""
        if self.kind != "function_call":
            return True
        try:
            arguments_of(self.pieces[0].text, cut=self.pieces[0].cut)
        except ValueError:
            return False
        return True

    def begun(self) -> dict[str, Any]:
        """The item before anything is in it."""
        shown: dict[str, Any] = {"id": self.id, "type": self.kind}
        if self.kind == "reasoning":
            return {**shown, "summary": []}
        shown["status"] = "in_progress"
        if self.kind == "message":
            return {**shown, "role": "assistant", "content": [], **self.more}
        if self.kind == "image_generation_call":
            return {**shown, "result": None}
        call = self.pieces[0].content
        assert isinstance(call, ToolCall)
        shown |= {"call_id": call.call_id, "name": call.name, "arguments": ""}
        return shown | ({"extra_content": call.extra_content} if call.extra_content else {})

    def shown(self) -> dict[str, Any]:
        """The item as it is now."""
        shown = self.begun()
        if self.kind == "reasoning":
            shown["summary"] = [piece.shown() for piece in self.pieces if not _is_opaque(piece.content)]
            if sealed := _sealed(self.pieces, self.api):
                shown["encrypted_content"] = sealed
            return shown
        shown["status"] = self.status
        if self.kind == "message":
            shown["content"] = [piece.shown() for piece in self.pieces]
        elif self.kind == "function_call":
            shown["arguments"] = self.pieces[0].text
        elif isinstance(file := self.pieces[0].content, File):
            shown["result"] = file.url.partition(",")[2]
        return shown


class _Encoder:
    """The frames that follow ``answer``. ``has_begun`` is whether the stream's first event came before.

    What came before goes the same way as what comes now, but for its frames, which are only counted.
    """

    def __init__(self, info: StreamInfo, answer: Answer, *, has_begun: bool) -> None:
        self.frames: list[bytes] = []
        self.number = 0  # of the next frame
        self._info = info
        self._echo: Mapping[str, Any] = {**_ECHO, **(info.echo or {})}
        self._start = answer.start
        self._items: list[_Item] = []
        self._pieces: dict[int, _Piece] = {}  # by the number of their part
        self._grown: set[int] = set()  # parts of which something came in this batch
        self._heads: dict[int, bytes] = {}
        self._counts_only = True
        if has_begun:
            self._begin()
        for part in answer.of(0):
            self._replay(part)
        if answer.terminal is not None:
            self._close(answer.terminal)
        self._counts_only = False

    def go_on(self, answer: Answer) -> None:
        """The next batch follows. ``answer`` has by now what came in the last one."""
        self.frames = []
        for part in self._grown:
            piece = self._pieces[part]
            piece.earlier = answer.parts[part]
            piece.later.clear()
            piece.extras.clear()
        self._grown.clear()

    def add_text(self, event: TextDelta) -> None:
        """Takes a piece of text. Its frame is put together by hand."""
        piece = self._grow(event.part, event.text)
        head = self._heads.get(event.part)
        if head is None:
            at = b',"item_id":%b,"output_index":%d,"content_index":%d,"delta":'
            head = self._heads[event.part] = at % (_json(piece.item.id), piece.item.index, piece.place)
        logprobs = b"[]"
        if event.extra is not None:
            piece.extras.append(event.extra)
            logprobs = _json(_logprobs(event.extra))
        self.frames.append(_TEXT_FRAME % (self.number, head, _json(event.text), logprobs))
        self.number += 1

    def _grow(self, part: int, text: str) -> _Piece:
        piece = self._pieces[part]
        piece.later.append(text)
        self._grown.add(part)
        return piece

    def add(self, event: Event) -> None:
        """Takes the event that follows."""
        match event:
            case TextDelta():
                self.add_text(event)
            case ReasoningDelta():
                piece = self._grow(event.part, event.text)
                at = {"summary_index": piece.place, "delta": event.text}
                self._of(piece.item, "response.reasoning_summary_text.delta", lambda: at)
            case RefusalDelta():
                piece = self._grow(event.part, event.text)
                at = {"content_index": piece.place, "delta": event.text}
                self._of(piece.item, "response.refusal.delta", lambda: at)
            case ToolCallDelta():
                piece = self._grow(event.part, event.arguments)
                if event.extra_content and isinstance(piece.content, ToolCall):
                    piece.content = msgspec.structs.replace(piece.content, extra_content=event.extra_content)
                delta = {"delta": event.arguments}
                self._of(piece.item, "response.function_call_arguments.delta", lambda: delta)
            case StreamStart():
                self._begin()
            case AnswerStart():
                self._start = event
            case PartStart():
                self._place(event.part, event.content, None)
            case WholePart():
                self._whole(event.part, event.content, None)
            case PartEnd():
                piece = self._pieces[event.part]
                piece.content = event.content
                self._end_part(piece, event.cut)
            case StreamEnd() | StreamFailed():
                self._close(event)
                status = _status(event)
                # Of a response that was cancelled no event of theirs tells.
                kind = "incomplete" if status == "cancelled" else status
                self._say(f"response.{kind}", lambda: {"response": self.response(event)})
            case _:
                pass

    def response(self, terminal: Terminal | None) -> dict[str, Any]:
        """The response as it is now."""
        status = "in_progress" if terminal is None else _status(terminal)
        start = self._start
        usage = error = details = None
        if isinstance(terminal, StreamFailed):
            error = {"code": terminal.code, "message": terminal.message}
        elif isinstance(terminal, StreamEnd) and status == "incomplete":
            details = {"reason": _LIMITS.get(terminal.finish_reason, terminal.finish_reason)}
        if terminal is not None:
            usage = _usage(start, terminal)
        return {
            "id": response_id(self._info.stream_id),
            "object": "response",
            "created_at": int(self._info.created_at),
            "status": status,
            "error": error,
            "incomplete_details": details,
            "model": (start and start.model) or self._info.model,
            "output": [item.shown() for item in self._items],
            "previous_response_id": None,
            **self._echo,
            **((start.extra or {}) if start is not None and start.api == _API else {}),
            "usage": usage,
        }

    def _begin(self) -> None:
        first = "in_progress"
        if self._echo["background"]:
            first = "queued"
        self._say("response.created", lambda: {"response": self.response(None) | {"status": first}})
        if first == "queued":
            self._say("response.queued", lambda: {"response": self.response(None) | {"status": first}})
        self._say("response.in_progress", lambda: {"response": self.response(None)})

    def _replay(self, part: Part) -> None:
        """A part of before the batch."""
        if part.whole:
            self._whole(part.number, part.content, part)
            return
        piece = self._place(part.number, part.content, part)
        self.number += len(part.pieces)
        if part.ended:
            self._end_part(piece, part.cut)

    def _whole(self, number: int, content: Content, earlier: Part | None) -> None:
        if isinstance(content, Source):
            self._annotate(number, _citation(content.url, content.title))
        elif isinstance(content, File) and _kind(content) == "message":
            self._annotate(number, _citation(content.url, content.media_type))
        elif not isinstance(content, Reasoning) or content.redacted:
            piece = self._place(number, content, earlier)
            if isinstance(content, (File, Reasoning)):
                self._end(piece.item)

    def _place(self, number: int, content: Content, earlier: Part | None) -> _Piece:
        """A part in its item, which it opens unless it goes on with the last one."""
        kind = _kind(content)
        more = self._given(content)
        given = more.pop("id", "")
        item = self._items[-1] if self._items else None
        joins = item is not None and item.kind == kind and not item.ended
        if joins and kind == "message":
            joins = not given or (item is not None and given == item.id)
        elif joins:  # each thought has a signature of its own, unless its provider says that they are one
            joins = bool(given) and item is not None and given == item.id
        if item is None or not joins:
            item = self._open(kind, given or self._name(kind, number), more)
        elif item.pieces:
            self._end_piece(item.pieces[-1])
        piece = self._pieces[number] = _Piece(item, len(item.pieces), content, earlier)
        item.pieces.append(piece)
        if len(item.pieces) == 1:
            self._say("response.output_item.added", lambda: _about(item, item=item.begun()))
        if kind == "message":
            self._of(item, "response.content_part.added", lambda: self._part(piece, _NOTHING[type(content)]))
        elif kind == "reasoning" and not _is_opaque(content):
            self._of(item, "response.reasoning_summary_part.added", lambda: self._part(piece, _NO_SUMMARY))
        return piece

    def _annotate(self, number: int, annotation: dict[str, Any]) -> None:
        """A source belongs to the text before it; without one, to an empty text."""
        item = self._items[-1] if self._items else None
        piece = item.pieces[-1] if item is not None and item.kind == "message" and not item.ended else None
        if piece is None or not isinstance(piece.content, Text):
            piece = self._place(number, Text(), None)
        self._pieces[number] = piece
        piece.annotations.append(annotation)
        last = len(piece.annotations) - 1
        self._of(
            piece.item,
            "response.output_text.annotation.added",
            lambda: {"content_index": piece.place, "annotation_index": last, "annotation": annotation},
        )

    def _open(self, kind: _Kind, identity: str, more: Mapping[str, Any]) -> _Item:
        self._end_run()
        api = self._start.api if self._start is not None else ""
        item = _Item(len(self._items), kind, identity, more, api)
        self._items.append(item)
        return item

    def _end_run(self) -> None:
        """Ends the item that goes on until something else comes."""
        item = self._items[-1] if self._items else None
        if item is None or item.ended or item.kind == "function_call":
            return
        self._end_piece(item.pieces[-1])
        self._end(item)

    def _end_part(self, piece: _Piece, cut: bool) -> None:
        """A part of ours has ended: its item, if it is a call, unless the answer broke off in it."""
        piece.cut = cut
        if isinstance(piece.content, ToolCall) and not cut:
            self._end_piece(piece)
            self._end(piece.item)

    def _close(self, terminal: Terminal) -> None:
        """Ends what is open at the end of the answer. What a failure has cut has no frames of an end, nor has
        a call that was cut in its arguments: clients run a call at those, one without arguments with none.
        """
        for item in self._items:
            if item.ended:
                continue
            item.cut = _is_cut(terminal)
            piece = item.pieces[-1]
            if piece.cut and (isinstance(terminal, StreamFailed) or not item.can_be_read):
                item.ended = True
            else:
                self._end_piece(piece)
                self._end(item)

    def _end_piece(self, piece: _Piece) -> None:
        item = piece.item
        if item.kind == "function_call":
            self._of(item, "response.function_call_arguments.done", lambda: {"arguments": piece.text})
            return
        if item.kind == "reasoning":
            at = {"summary_index": piece.place}
            self._of(item, "response.reasoning_summary_text.done", lambda: at | {"text": piece.text})
            self._of(item, "response.reasoning_summary_part.done", lambda: self._part(piece, piece.shown()))
            return
        at = {"content_index": piece.place}
        if isinstance(piece.content, Refusal):
            self._of(item, "response.refusal.done", lambda: at | {"refusal": piece.text})
        else:
            self._of(
                item,
                "response.output_text.done",
                lambda: at | {"text": piece.text, "logprobs": piece.logprobs},
            )
        self._of(item, "response.content_part.done", lambda: self._part(piece, piece.shown()))

    def _end(self, item: _Item) -> None:
        item.ended = True
        self._say("response.output_item.done", lambda: _about(item, item=item.shown()))

    def _part(self, piece: _Piece, part: Mapping[str, Any]) -> dict[str, Any]:
        index = "summary_index" if piece.item.kind == "reasoning" else "content_index"
        return {index: piece.place, "part": part}

    def _given(self, content: Content) -> dict[str, Any]:
        """What the provider says of the item, where it speaks this API."""
        theirs = self._start is not None and self._start.api == _API
        extra = content.extra if theirs and isinstance(content, (Text, Reasoning)) else None
        return {name: value for name, value in (extra or {}).items() if isinstance(value, str) and value}

    def _name(self, kind: _Kind, number: int) -> str:
        return f"{_PREFIXES[kind]}_{self._info.stream_id.removeprefix('str_')}_{number}"

    def _of(self, item: _Item, kind: str, fields: Callable[[], Mapping[str, Any]]) -> None:
        """A frame about something in an item."""
        self._say(kind, lambda: {"item_id": item.id, **_about(item, **fields())})

    def _say(self, kind: str, fields: Callable[[], Mapping[str, Any]]) -> None:
        if not self._counts_only:
            said = {"type": kind, "sequence_number": self.number, **fields()}
            self.frames.append(_frame(kind, said))
        self.number += 1


_TEXT_FRAME = (
    b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta",'
    b'"sequence_number":%d%b%b,"logprobs":%b}\n\n'
)
_NO_TEXT: Mapping[str, Any] = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
_NOTHING: Mapping[type[Content], Mapping[str, Any]] = {
    Text: _NO_TEXT,
    Refusal: {"type": "refusal", "refusal": ""},
}
_NO_SUMMARY: Mapping[str, Any] = {"type": "summary_text", "text": ""}


def _frame(kind: str, said: Mapping[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), _json(said))


def _about(item: _Item, /, **fields: Any) -> dict[str, Any]:
    return {"output_index": item.index, **fields}


def _kind(content: Content) -> _Kind:
    match content:
        case Reasoning():
            return "reasoning"
        case ToolCall():
            return "function_call"
        case File() if content.url.startswith("data:"):
            return "image_generation_call"
        case _:
            return "message"


def _is_opaque(content: Content) -> bool:
    """Whether only its provider can read it."""
    return isinstance(content, Reasoning) and bool(content.redacted)


def _sealed(pieces: list[_Piece], api: str) -> str:
    """What the provider of a thought wants back with it."""
    contents = [piece.content for piece in pieces if isinstance(piece.content, Reasoning)]
    seal = next((seal for content in contents[::-1] if (seal := content.signature or content.redacted)), "")
    if seal and api == "anthropic":
        return f"{_ANTHROPIC_SEAL}{seal}"
    bare = seal.removeprefix(RESPONSES_SEAL)
    return seal if bare.startswith(_NAMED) else bare


def _citation(url: str, title: str) -> dict[str, Any]:
    return {"type": "url_citation", "url": url, "title": title, "start_index": 0, "end_index": 0}


def _logprobs(extra: Mapping[str, Any]) -> list[Any]:
    """Those of a piece of text, which are kept as Chat Completions has them."""
    kept = extra.get("logprobs")
    tokens = kept.get("content") if isinstance(kept, dict) else None
    return tokens if isinstance(tokens, list) else []


def _status(terminal: Terminal) -> str:
    if isinstance(terminal, StreamFailed):
        return "failed"
    if terminal.finish_reason == "cancelled":
        return "cancelled"
    return "incomplete" if terminal.finish_reason in (*_LIMITS, "content_filter") else "completed"


def _is_cut(terminal: Terminal) -> bool:
    return _status(terminal) != "completed"


def _usage(start: AnswerStart | None, terminal: Terminal) -> dict[str, Any]:
    """Ours in this form, with what the provider's own object says besides, where it speaks this API."""
    usage: Usage = terminal.bill.usage
    shown: dict[str, Any] = {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
        },
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.total_tokens,
    }
    raw = terminal.raw_usage if isinstance(terminal, StreamEnd) else None
    if raw and start is not None and start.api == _API and usage.source == "provider_final":
        for name, value in raw.items():
            if isinstance(value, dict) and isinstance(shown.get(name), dict):
                shown[name] = {**value, **shown[name]}
            else:
                shown.setdefault(name, value)
    return shown


# -- bodies ----------------------------------------------------------------------------------------


def _is_short(value: object) -> bool:
    """Whether a field is said back: every response has it several times."""
    return len(_json(value)) <= _MAX_ECHO_BYTES


def _extra(fields: Fields, reasoning: Fields, text: Fields) -> dict[str, dict[str, Any]]:
    extra = fields.these(*_PASSED_ON)
    if "safety_identifier" in fields and (user := read.user(fields)):
        extra["user"] = user  # the older name, which may say something else
    if more := reasoning.these("summary", "generate_summary", "mode", "context"):
        extra["reasoning"] = more
    if more := text.these("verbosity"):
        extra["text"] = more
    return {_API: extra} if extra else {}


def _messages(fields: Fields) -> Iterator[Message]:
    """The conversation. What an assistant has said, thought and called in one turn is one message."""
    if instructions := fields.text("instructions"):
        yield Message("system", (asked.Text(instructions),))
    given = fields.any("input")
    if isinstance(given, str):
        yield Message("user", (asked.Text(given),))
        return
    if not given:
        raise fields.fault("input", "is missing")
    turn: list[asked.Part] = []
    for item in fields.objects("input", _MAX_ITEMS):
        message = _item(item)
        if message.role == "assistant":
            turn += message.parts
            continue
        if turn:
            yield Message("assistant", tuple(turn))
            turn = []
        yield message
    if turn:
        yield Message("assistant", tuple(turn))


def _item(fields: Fields) -> Message:
    match fields.text("type"):
        case None | "message":
            return _message(fields)
        case "reasoning":
            return Message("assistant", (_reasoning(fields),))
        case "function_call":
            call = asked.ToolCall(
                fields.needed("call_id", most=512),
                fields.needed("name", most=128),
                fields.text("arguments") or "",
                fields.mapping("extra_content"),
            )
            return Message("assistant", (call,))
        case "function_call_output":
            parts = [part for part in _content(fields, "output") if not isinstance(part, asked.Refusal)]
            result = asked.ToolResult(fields.needed("call_id", most=512), tuple(parts))
            return Message("tool", (result,))
        case "image_generation_call":
            return Message("assistant", (_picture(fields),))
        case "item_reference":
            raise fields.fault("type", "items are not kept here; send the item, as SDKs do with store false")
        case _:
            raise fields.fault(
                "type",
                "is none of message, reasoning, function_call, function_call_output and "
                "image_generation_call; hosted and custom tools are not run here",
            )


def _message(fields: Fields) -> Message:
    role = fields.one_of("role", "system", "developer", "user", "assistant")
    if role is None:
        raise fields.fault("role", "is missing")
    if "content" not in fields:
        raise fields.fault("content", "is missing")
    parts = _content(fields, "content")
    if role == "assistant" and (phase := fields.text("phase", most=64)):
        extra = {_API: {"phase": phase}}
        parts = [asked.Text(part.text, extra) if isinstance(part, asked.Text) else part for part in parts]
    return Message(role, tuple(parts))  # type: ignore[arg-type]


def _reasoning(fields: Fields) -> asked.Reasoning:
    """A thought, which a provider of its API gets back as it is, and no other. A signature without a name in
    front is of this API.
    """
    texts = [part.needed("text") for part in fields.objects("summary", read.MAX_PARTS)]
    if not texts:
        texts = [part.needed("text") for part in fields.objects("content", read.MAX_PARTS)]
    sealed, text = fields.text("encrypted_content") or "", "\n\n".join(texts)
    kept = {"summary": [], **fields.these("id", "summary", "content", "encrypted_content")}
    if sealed and not sealed.startswith(_NAMED):
        sealed = f"{RESPONSES_SEAL}{sealed}"
    is_ours = not sealed or sealed.startswith(RESPONSES_SEAL)
    sealed = sealed.removeprefix(_ANTHROPIC_SEAL)
    extra = {_API: {"type": "reasoning", **kept}} if is_ours else {}
    return asked.Reasoning(text, sealed if text else "", "" if text else sealed, extra)


# How pictures of other types than PNG begin, in base64: an item need not say its type.
_BEGINNINGS = {"/9j/": "jpeg", "UklGR": "webp", "R0lGOD": "gif"}


def _picture(fields: Fields) -> asked.Image:
    """One that the model made."""
    data = fields.needed("result")
    seen = (kind for beginning, kind in _BEGINNINGS.items() if data.startswith(beginning))
    kind = fields.text("output_format", most=32) or next(seen, "png")
    return asked.Image(f"data:image/{kind};base64,{data}")


_InputPart: TypeAlias = asked.Text | asked.Image | asked.File | asked.Refusal


def _content(fields: Fields, name: str) -> list[_InputPart]:
    value = fields.any(name)
    if value is None:
        return []
    if isinstance(value, str):
        return [asked.Text(value)]
    if not isinstance(value, list):
        raise fields.fault(name, "has to be text or a list of parts")
    return [_part(part) for part in fields.objects(name, read.MAX_PARTS)]


def _part(fields: Fields) -> _InputPart:
    extra = fields.these("prompt_cache_breakpoint")
    kept: asked.Extra = {_API: extra} if extra else {}
    match fields.text("type"):
        case "input_text" | "output_text" | "text":
            return asked.Text(fields.needed("text"), kept)
        case "refusal":
            return asked.Refusal(fields.needed("refusal"))
        case "input_image":
            _no_file_id(fields, "image_url")
            return asked.Image(fields.needed("image_url"), fields.text("detail", most=32), kept)
        case "input_file":
            _no_file_id(fields, "file_data or file_url")
            return msgspec.structs.replace(_file(fields), extra=kept)
        case "input_audio":
            audio = fields.inner("input_audio") or Fields({})
            media_type = f"audio/{audio.needed('format', most=32)}"
            return asked.File(media_type, f"data:{media_type};base64,{audio.needed('data')}")
        case _:
            raise fields.fault("type", "is none of input_text, input_image, input_file, output_text, refusal")


def _no_file_id(fields: Fields, instead: str) -> None:
    fields.refuse("file_id", because=f"files are not kept here; send {instead}")


def _file(fields: Fields) -> asked.File:
    url = fields.text("file_url")
    if not url:
        return read.document(fields)
    name = fields.text("filename", most=512)
    return asked.File(read.document_type(name or url), url, name)


_Choice: TypeAlias = Literal["none", "auto", "required"] | NamedTool | None


def _tools(fields: Fields) -> tuple[tuple[asked.Tool, ...], _Choice, tuple[str, ...]]:
    """The functions that may be called, the choice among them, and what is left out of the body."""
    offered = list(fields.objects("tools", read.MAX_TOOLS))
    tools = tuple(_tool(tool) for tool in offered if not _is_only_offered(tool))
    left_out = tuple(dict.fromkeys(f"tools.{tool.any('type')}" for tool in offered if _is_only_offered(tool)))
    if not isinstance(fields.any("tool_choice"), dict):
        said: Any = fields.one_of("tool_choice", "none", "auto", "required")
        if said == "required" and left_out and not tools:
            raise fields.fault("tool_choice", "asks for a tool, and none of the tools is a function")
        return tools, said, left_out
    choice = fields.inner("tool_choice") or Fields({})
    match choice.text("type"):
        case "function":
            return tools, NamedTool(choice.needed("name", most=128)), left_out
        case "allowed_tools":
            allowed = {_allowed(tool) for tool in choice.objects("tools", read.MAX_TOOLS)}
            mode: Any = choice.one_of("mode", "auto", "required")
            return tuple(tool for tool in tools if tool.name in allowed), mode, left_out
        case _:
            raise fields.fault("tool_choice", "has to be none, auto, required, a function or allowed_tools")


def _is_only_offered(tool: Fields) -> bool:
    """Whether it is a tool that is not run here, but that clients send by default: without it they go on."""
    kind = tool.text("type") or ""
    return kind.startswith("web_search") or kind in ("custom", "namespace")


def _allowed(tool: Fields) -> str:
    """The name of one of the tools that the model is to choose among."""
    if _is_only_offered(tool):
        raise tool.fault("type", _FUNCTIONS)
    return tool.needed("name", most=128)


_FUNCTIONS = "only functions are passed on; hosted tools, such as mcp, and custom tools are not"


def _tool(fields: Fields) -> asked.Tool:
    if fields.text("type") != "function":
        raise fields.fault("type", _FUNCTIONS)
    name, description = fields.needed("name", most=128), fields.text("description")
    parameters, strict = fields.mapping("parameters"), fields.flag("strict")
    extra: dict[str, Any] = fields.these(*fields.left_over())
    if strict is None:
        extra["strict"] = None  # which is true here, and false elsewhere
    return asked.Tool(name, description, parameters, strict, {_API: extra} if extra else {})


def _output(text: Fields) -> OutputFormat | None:
    given = text.inner("format")
    if given is None:
        return None
    kind = given.one_of("type", "text", "json_object", "json_schema")
    if kind != "json_schema":
        return OutputFormat() if kind == "json_object" else None
    return OutputFormat(
        given.needed_mapping("schema"),
        given.text("name", most=128) or "answer",
        given.text("description"),
        given.flag("strict"),
    )
