"""Events -> the frames of a response, and a response as a whole: item by item."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import msgspec

from millstream.answer import Answer, Part, arguments_of
from millstream.dialects.responses.body import ANTHROPIC_SEAL, API, ECHO, NAMED
from millstream.dialects.responses.ids import response_id
from millstream.events import (
    AnswerStart,
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
from millstream.prompt import RAW_THOUGHT, RESPONSES_SEAL
from millstream.usage import Usage

_json = msgspec.json.Encoder().encode

_Kind: TypeAlias = Literal["message", "reasoning", "function_call", "image_generation_call"]
_PREFIXES: Mapping[_Kind, str] = {
    "message": "msg",
    "reasoning": "rs",
    "function_call": "fc",
    "image_generation_call": "ig",
}

_LIMITS = {"length": "max_output_tokens", "budget_exceeded": "max_output_tokens"}


class _Piece:
    """A part of ours in its item: what it is, and what came of it before this batch and in it."""

    __slots__ = ("annotations", "content", "cut", "earlier", "extras", "is_raw", "item", "later", "place")

    def __init__(self, item: "_Item", content: Content, earlier: Part | None, *, is_raw: bool) -> None:
        self.item = item
        self.is_raw = is_raw  # a thought itself, and no summary of one
        self.place = item.raw if is_raw else len(item.pieces) - item.raw  # among those of its kind
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
            return {"type": RAW_THOUGHT if self.is_raw else "summary_text", "text": self.text}
        return {
            "type": "output_text",
            "text": self.text,
            "annotations": self.annotations,
            "logprobs": self.logprobs,
        }


class _Item:
    """An item of the output. ``cut`` is whether the end of the answer came before its own."""

    __slots__ = ("api", "cut", "ended", "id", "index", "kind", "more", "pieces", "raw")

    def __init__(self, index: int, kind: _Kind, identity: str, more: Mapping[str, Any], api: str) -> None:
        self.index = index
        self.kind = kind
        self.id = identity
        self.more = more  # what its provider says of it
        self.api = api  # of its provider
        self.pieces: list[_Piece] = []
        self.raw = 0  # of them
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
            thoughts = [piece for piece in self.pieces if not _is_opaque(piece.content)]
            shown["summary"] = [piece.shown() for piece in thoughts if not piece.is_raw]
            if raw := [piece.shown() for piece in thoughts if piece.is_raw]:
                shown["content"] = raw
            if sealed := _sealed(self.pieces, self.api):
                shown["encrypted_content"] = sealed
            return shown
        shown["status"] = self.status
        if self.kind == "message":
            shown["content"] = [piece.shown() for piece in self.pieces]
        elif self.kind == "function_call":
            shown["arguments"] = self.pieces[0].text
        elif isinstance(file := self.pieces[0].content, File):
            shown |= {"result": file.url.partition(",")[2], **self.more}
        return shown


class Encoder:
    """The frames that follow ``answer``. ``has_begun`` is whether the stream's first event came before.

    What came before goes the same way as what comes now, but for its frames, which are only counted.
    """

    def __init__(self, info: StreamInfo, answer: Answer, *, has_begun: bool) -> None:
        self.frames: list[bytes] = []
        self.number = 0  # of the next frame
        self._info = info
        self._echo: Mapping[str, Any] = {**ECHO, **(info.echo or {})}
        self._start = answer.start
        self._items: list[_Item] = []
        self._pieces: dict[int, _Piece] = {}  # by the number of their part
        self._grown: set[int] = set()  # parts of which something came in this batch
        self._last_text: _Piece | None = None
        self._characters = 0  # of all text before it
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
                kind = "response.reasoning_summary_text.delta"
                if piece.is_raw:
                    kind = "response.reasoning_text.delta"
                self._of(piece.item, kind, lambda: {**_at(piece), "delta": event.text})
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
            **_of_answer(start),
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
            self._annotate(number, content)
        elif isinstance(content, File) and _kind(content) == "message":
            self._annotate(number, Source(content.url, content.media_type))
        elif not isinstance(content, Reasoning) or content.redacted:
            piece = self._place(number, content, earlier)
            if isinstance(content, (File, Reasoning)):
                self._end(piece.item)

    def _place(self, number: int, content: Content, earlier: Part | None) -> _Piece:
        """A part in its item, which it opens unless it goes on with the last one."""
        kind = _kind(content)
        more = self._given(content)
        given = more.pop("id", "")
        is_raw = more.pop("type", "") == RAW_THOUGHT
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
        piece = self._pieces[number] = _Piece(item, content, earlier, is_raw=is_raw)
        item.pieces.append(piece)
        item.raw += is_raw
        if isinstance(content, Text):
            self._characters += 0 if self._last_text is None else len(self._last_text.text)
            self._last_text = piece
        if len(item.pieces) == 1:
            self._say("response.output_item.added", lambda: _about(item, item=item.begun()))
        if kind == "message":
            self._of(item, "response.content_part.added", lambda: _part(piece, _NOTHING[type(content)]))
        elif is_raw:
            self._of(item, "response.content_part.added", lambda: _part(piece, _NO_THOUGHT))
        elif kind == "reasoning" and not _is_opaque(content):
            self._of(item, "response.reasoning_summary_part.added", lambda: _part(piece, _NO_SUMMARY))
        return piece

    def _annotate(self, number: int, source: Source) -> None:
        """A source belongs to the text before it; without one, to an empty text."""
        item = self._items[-1] if self._items else None
        piece = item.pieces[-1] if item is not None and item.kind == "message" and not item.ended else None
        if piece is None or not isinstance(piece.content, Text):
            piece = self._place(number, Text(), None)
        self._pieces[number] = piece
        annotation = _citation(source, self._characters)
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
        at = _at(piece)
        if item.kind == "reasoning" and not piece.is_raw:
            self._of(item, "response.reasoning_summary_text.done", lambda: at | {"text": piece.text})
            self._of(item, "response.reasoning_summary_part.done", lambda: _part(piece, piece.shown()))
            return
        if piece.is_raw:
            self._of(item, "response.reasoning_text.done", lambda: at | {"text": piece.text})
        elif isinstance(piece.content, Refusal):
            self._of(item, "response.refusal.done", lambda: at | {"refusal": piece.text})
        else:
            self._of(
                item,
                "response.output_text.done",
                lambda: at | {"text": piece.text, "logprobs": piece.logprobs},
            )
        self._of(item, "response.content_part.done", lambda: _part(piece, piece.shown()))

    def _end(self, item: _Item) -> None:
        item.ended = True
        self._say("response.output_item.done", lambda: _about(item, item=item.shown()))

    def _given(self, content: Content) -> dict[str, Any]:
        """What the provider says of the item, where it speaks this API."""
        theirs = self._start is not None and self._start.api == API
        extra = content.extra if theirs and isinstance(content, (Text, Reasoning, File)) else None
        return {name: value for name, value in (extra or {}).items() if isinstance(value, str) and value}

    def _name(self, kind: _Kind, number: int) -> str:
        return f"{_PREFIXES[kind]}_{self._info.stream_id.removeprefix('str_')}_{number}"

    def _of(self, item: _Item, kind: str, fields: Callable[[], Mapping[str, Any]]) -> None:
        """A frame about something in an item."""
        self._say(kind, lambda: {"item_id": item.id, **_about(item, **fields())})

    def _say(self, kind: str, fields: Callable[[], Mapping[str, Any]]) -> None:
        if not self._counts_only:
            said = {"type": kind, "sequence_number": self.number, **fields()}
            self.frames.append(frame(kind, said))
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
_NO_THOUGHT: Mapping[str, Any] = {"type": RAW_THOUGHT, "text": ""}


def frame(kind: str, said: Mapping[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), _json(said))


def _about(item: _Item, /, **fields: Any) -> dict[str, Any]:
    return {"output_index": item.index, **fields}


def _at(piece: _Piece) -> dict[str, int]:
    """Where a part stands in its item."""
    is_summary = piece.item.kind == "reasoning" and not piece.is_raw
    return {"summary_index" if is_summary else "content_index": piece.place}


def _part(piece: _Piece, part: Mapping[str, Any]) -> dict[str, Any]:
    return {**_at(piece), "part": part}


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
        return f"{ANTHROPIC_SEAL}{seal}"
    bare = seal.removeprefix(RESPONSES_SEAL)
    return seal if bare.startswith(NAMED) else bare


def _citation(source: Source, before: int) -> dict[str, Any]:
    """Of a part that has so many characters ``before`` it."""
    start, end = (max(0, (place or 0) - before) for place in (source.start, source.end))
    cited = {"url": source.url, "title": source.title, "start_index": start, "end_index": end}
    return {"type": "url_citation", **cited}


def _logprobs(extra: Mapping[str, Any]) -> list[Any]:
    """Those of a piece of text, which are kept as Chat Completions has them."""
    kept = extra.get("logprobs")
    tokens = kept.get("content") if isinstance(kept, dict) else None
    return tokens if isinstance(tokens, list) else []


def _of_answer(start: AnswerStart | None) -> Mapping[str, Any]:
    """What the provider says of its answer. Both of OpenAI's APIs have a tier."""
    extra = (start.extra or {}) if start is not None else {}
    if start is None or start.api == API:
        return extra
    tier = extra.get("service_tier") if start.api == "openai" else None
    return {} if tier is None else {"service_tier": tier}


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
    if raw and start is not None and start.api == API and usage.source == "provider_final":
        for name, value in raw.items():
            if isinstance(value, dict) and isinstance(shown.get(name), dict):
                shown[name] = {**value, **shown[name]}
            else:
                shown.setdefault(name, value)
    return shown
